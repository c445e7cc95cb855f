"""The embedded data set: files as promised, and classes that only motion and its order can tell apart."""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from two_stream.data.catalog import load_record
from two_stream.data.demo import (
    APPEARANCE_CLASSES,
    DemoOptions,
    colour_at,
    disc_state,
    encode,
    render,
    write_demo,
)
from two_stream.data.demo import MOTION_CLASSES as CLASSES
from two_stream.data.demo import MOTION_PAIRS as PAIRS
from two_stream.data.demo import ORDER_CLASSES as ORDERS
from two_stream.data.splits import load_part
from two_stream.errors import SettingsError
from two_stream.video.decoding.reader import open_video

SMALL = DemoOptions(groups=3, min_frames=4, max_frames=5)
GROUPS = 15


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo"), options=SMALL)


def test_files_lists_and_record_agree(written: Path) -> None:
    record = load_record(written)
    assert record.classes == list(CLASSES)
    assert record.num_splits == 3
    assert record.resolve(record.frames.rgb or Path()).name == "frames"
    tests = []
    for split in (1, 2, 3):
        rgb = load_part(record, "rgb", split, "train", selection="paper")
        test = load_part(record, "rgb", split, "test")
        flow = load_part(record, "flow", split, "test")
        assert len(rgb) == 16
        assert [(r.id, r.num_frames - 1, r.label) for r in test] == [
            (r.id, r.num_frames, r.label) for r in flow
        ]
        assert {r.label for r in test} == set(range(8))
        assert not {r.group for r in rgb} & {r.group for r in test}
        tests += [r.group for r in test]
        for r in test[:2]:
            with open_video(record.videos_root() / f"{r.id}.mp4") as video:
                assert video.num_frames == r.num_frames
                assert (video.height, video.width) == (48, 64)
                assert video.codec == "h264"
    assert sorted(set(tests)) == ["g01", "g02", "g03"]


def test_videos_hold_what_was_drawn(written: Path) -> None:
    frames = np.stack(render("rise", 2, 1, SMALL))
    with open_video(written.parent / "videos" / "rise" / "rise_g02_c01.mp4") as video:
        decoded = np.stack(list(video.frames()))
    assert np.abs(decoded.astype(int) - frames).mean() < 4


def test_writing_again_is_quick_and_repairs_what_is_missing(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "demo"
    shutil.copytree(written.parent, copy)
    kept = copy / "videos" / "fall" / "fall_g01_c01.mp4"
    lost = copy / "videos" / "sink" / "sink_g03_c01.mp4"
    before, original = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    (copy / "dataset.yaml").unlink()
    write_demo(copy, options=SMALL)
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == original
    assert (copy / "dataset.yaml").read_bytes() == written.read_bytes()
    write_demo(copy, options=DemoOptions(seed=1, groups=3, min_frames=4, max_frames=5))
    assert kept.stat().st_mtime_ns != before
    assert lost.read_bytes() != original


def test_options_out_of_range_are_named() -> None:
    for options, said in (
        ({"groups": 2}, "groups is 2"),
        ({"width": 63}, "even numbers"),
        ({"max_frames": 3}, "frames"),
    ):
        with pytest.raises(SettingsError, match=said):
            DemoOptions(**options)  # type: ignore[arg-type]


def test_a_class_played_backwards_is_its_partner() -> None:
    start = np.array([0.3, 0.6, 0.1, 0.45])
    times = np.linspace(0, 2, 41)
    for first, second in PAIRS:
        for side in (0, 1):
            forward = np.array([disc_state(first, side, start, t) for t in times])
            end = start.copy()
            # the state at the end, as another video's start
            if first == "rise":
                end[0] = forward[-1, 0]
            elif first.startswith("wheels"):
                end[2] = forward[-1, 2]
            else:
                end[3] = (start[3] + times[-1]) % 1.0
            backward = np.array([disc_state(second, side, end, t) for t in times])
            turn = (backward[::-1] - forward + 0.5) % 1.0 - 0.5
            assert np.abs(turn).max() < 1e-9
            assert np.ptp(forward, axis=0).max() > 0.2


def test_states_are_uniform_in_every_frame_of_every_class() -> None:
    rng = np.random.default_rng(0)
    for name in CLASSES:
        for time in (0.0, 0.37, 1.9):
            drawn = np.array([disc_state(name, 0, rng.uniform(size=4), time) for _ in range(4000)])
            drawn[:, 1] = (drawn[:, 1] - 0.34) / 0.24
            for column in drawn.T:
                counts, _ = np.histogram(column, bins=8, range=(0, 1))
                assert counts.sum() == 4000
                assert counts.min() > 400
                assert counts.max() < 600


@lru_cache(maxsize=1)
def clips() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All videos of the default demo, their first 24 frames: (N, 24, 48, 64, 3), labels, groups."""
    options = DemoOptions(groups=GROUPS)
    keys = [(name, group) for name in CLASSES for group in range(1, GROUPS + 1)]
    videos = np.stack([np.stack(render(name, group, 1, options)[:24]) for name, group in keys])
    return videos, np.array([CLASSES.index(name) for name, _ in keys]), np.array([group for _, group in keys])


def accuracy(model: object, features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float:
    """Accuracy over whole sources the model has not seen."""
    predicted = cross_val_predict(model, features, labels, groups=groups, cv=GroupKFold(5))
    return float((predicted == labels).mean())


def appearance(picture: np.ndarray) -> np.ndarray:
    """Colours on a coarse grid and oriented gradients of one frame."""
    coarse = cv2.resize(picture, (16, 12), interpolation=cv2.INTER_AREA).ravel() / 255.0
    hog = cv2.HOGDescriptor((64, 48), (16, 16), (8, 8), (8, 8), 9)
    return np.concatenate([coarse, np.asarray(hog.compute(picture)).ravel()])


@pytest.mark.parametrize(
    "which", ["first", *(pytest.param(one, marks=pytest.mark.slow) for one in ("random", "middle"))]
)
def test_one_frame_does_not_tell_the_class(which: str) -> None:
    videos, labels, groups = clips()
    rng = np.random.default_rng(0)
    takes = {"random": rng.permuted(np.tile(np.arange(24), (len(videos), 1)), axis=1)[:, :3]}
    numbers = takes.get(which, np.full((len(videos), 1), 0 if which == "first" else 12))
    features = np.array([appearance(videos[v, n]) for v in range(len(videos)) for n in numbers[v]])
    repeat = numbers.shape[1]
    labels, groups = labels.repeat(repeat), groups.repeat(repeat)
    forest = RandomForestClassifier(100, random_state=0)
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    for model in (forest, linear):
        assert accuracy(model, features, labels, groups) < 1.6 / 8


@lru_cache(maxsize=1)
def flows() -> np.ndarray:
    """DIS flow of the clips enlarged twice, pixels per frame of the original: (N, 23, 48, 64, 2)."""
    videos, _, _ = clips()
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    out = np.empty((len(videos), 23, 48, 64, 2), np.float32)
    for v, video in enumerate(videos):
        grey = [cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), (128, 96)) for f in video]
        for t in range(23):
            out[v, t] = cv2.resize(estimator.calc(grey[t], grey[t + 1], None), (64, 48)) / 2
    return out


def motion(flow: np.ndarray) -> np.ndarray:
    """Sums over time of what a motion-sensitive eye sees in either half: lift, growth, turn, and how unsteadily."""
    found = []
    for half in (flow[:, :, :32], flow[:, :, 32:]):
        y, x = half[..., 1], half[..., 0]
        dy_y, dx_x = np.gradient(y, axis=1), np.gradient(x, axis=2)
        dx_y, dy_x = np.gradient(y, axis=2), np.gradient(x, axis=1)
        strong = np.hypot(x, y).clip(0, 8)
        for signal in (y, dy_y + dx_x, dx_y - dy_x):
            series = (signal * strong).sum(axis=(1, 2))
            scale = np.abs(series).mean() + 1e-6
            found += [series.mean(), np.cbrt((series**3).mean()), np.median(series), scale]
    return np.array(found)


@lru_cache(maxsize=1)
def motions() -> np.ndarray:
    return np.array([motion(flow) for flow in flows()])


@pytest.mark.slow
def test_motion_tells_the_class() -> None:
    _, labels, groups = clips()
    features = motions()
    forest = RandomForestClassifier(100, random_state=0)
    assert accuracy(forest, features, labels, groups) > 0.6


@pytest.mark.slow
def test_shuffled_frames_confuse_every_pair() -> None:
    """What does not depend on the order of frames says which pair a video is of, but not which of the two."""
    videos, labels, groups = clips()
    rng = np.random.default_rng(0)
    features = []
    for video in videos:
        shuffled = cv2.resize(video.reshape(24 * 48, 64, 3), (16, 24 * 12), interpolation=cv2.INTER_AREA)
        small = rng.permutation(shuffled.reshape(24, 12, 16, 3).astype(float))
        features.append(
            np.concatenate(
                [
                    small.std(axis=0).ravel(),
                    np.sort(np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3))),
                    np.percentile(small, [10, 50, 90], axis=0).ravel(),
                ]
            )
        )
    forest = RandomForestClassifier(100, random_state=0)
    predicted = cross_val_predict(forest, np.array(features), labels, groups=groups, cv=GroupKFold(5))
    pair = predicted // 2 == labels // 2
    assert pair.mean() > 0.4  # shuffled frames still show what changes (chance 0.25) …
    right = (predicted == labels)[pair].mean()
    assert 0.3 < right < 0.68  # … but not which way


@pytest.mark.slow
def test_the_same_eye_sees_the_order_of_unshuffled_frames() -> None:
    """The counterpart of the shuffled test: within each pair, ordered motion is told apart."""
    _, labels, groups = clips()
    features = motions()
    for pair in range(4):
        rows = labels // 2 == pair
        forest = RandomForestClassifier(100, random_state=0)
        assert accuracy(forest, features[rows], labels[rows], groups[rows]) > 0.75, PAIRS[pair]


def test_the_encoder_repeats_itself(tmp_path: Path) -> None:
    """x264's rate control did not: one call in three wrote other bytes, and the demo's numbers moved with them."""
    frames = render("climb", 2, 1, DemoOptions(seed=1))
    written = set()
    for attempt in range(12):
        path = tmp_path / f"{attempt}.mp4"
        encode(path, frames, "libx264")
        written.add(path.read_bytes())
    assert len(written) == 1


def test_the_order_theme_shows_every_colour_as_often_in_every_class_and_tells_them_by_order():
    changes = np.array([1 / 3, 2 / 3])
    times = np.arange(0, 1, 1 / 240) + 1e-9
    shown = {name: "".join(colour_at(name, time, changes) for time in times) for name in ORDERS}
    assert {tuple(sorted(row.count(c) for c in "rgb")) for row in shown.values()} == {(80, 80, 80)}
    assert all(shown[name] == "".join(letter * 80 for letter in name) for name in ORDERS)
    assert len(ORDERS) == len(set(ORDERS)) == 6
    assert all(name[::-1] in ORDERS and name[::-1] != name for name in ORDERS)  # backwards: another class


def test_the_order_theme_paints_the_colours_in_the_order_of_the_class():
    options = DemoOptions(theme="order", seed=3)
    assert options.classes == ORDERS
    for name in ORDERS:
        frames = np.stack(render(name, 1, 1, options)).astype(float)
        assert frames.shape[1:] == (48, 64, 3)
        colour = frames.reshape(len(frames), -1, 3).mean(1)
        strongest = (colour - colour.mean(0)).argmax(1)
        seen = [str("rgb"[strongest[len(frames) * third // 6]]) for third in (1, 3, 5)]
        assert "".join(seen) == name


def test_the_appearance_theme_shows_the_class_in_every_frame_and_moves_at_random():
    options = DemoOptions(theme="appearance", seed=3)
    colours = np.array(list(APPEARANCE_CLASSES.values()), float)
    for group in (4, 5):
        films = [np.stack(render(name, group, 1, options))[:25].astype(float) for name in APPEARANCE_CLASSES]
        shown_KTC = np.stack([film.reshape(25, -1, 3).mean(1) for film in films])
        shown_KTC -= shown_KTC.mean(0)  # the background and the discs of a source are the same in all classes
        wanted_KC = colours - colours.mean(0)
        likeness_KTK = shown_KTC @ wanted_KC.T / np.linalg.norm(wanted_KC, axis=1)
        assert (likeness_KTK.argmax(2) == np.arange(len(colours))[:, None]).all()
        motion = [round(float(np.abs(np.diff(film, axis=0)).mean()), 3) for film in films]
        assert len(set(motion)) == len(films)


def test_an_unknown_theme_is_refused():
    with pytest.raises(SettingsError, match="theme is 'colour': expected motion or order"):
        DemoOptions(theme="colour")
