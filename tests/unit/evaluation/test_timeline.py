"""Time lines: which pictures a window holds, what it says, and how it is written."""

from __future__ import annotations

import csv
import re
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import softmax

from two_stream.config.schema import EvaluateOptions
from two_stream.evaluation.pictures import timeline
from two_stream.evaluation.pictures.timeline import (
    TimelineWindow,
    _edges,
    _stretches,
    draw_timeline,
    score_windows,
    write_csv,
)
from two_stream.evaluation.scoring.video import VideoResult, fuse_results
from two_stream.runtime.plotting import contrast
from two_stream.types import InputSpec

OPTIONS = EvaluateOptions(views="sliding", step=4, crops="three")
NAMES = ["jump", "run"]


def run_of(modality, clip_length=8):
    channels = 3 if modality == "rgb" else 2
    spec = InputSpec(modality, clip_length, 1, (8, 8), 8, (0.0, 1.0), (0.0,) * channels, (1.0,) * channels)
    return SimpleNamespace(model=SimpleNamespace(spec=spec))


def result_of(frames, clips, seed=0):
    views = np.random.default_rng(seed).standard_normal((3 * clips, 2)).astype(np.float32)
    return VideoResult(
        views.mean(0).astype(np.float64), frames, np.arange(frames + 1) / 10, 3 * clips, None, views
    )


def test_a_window_is_the_mean_of_its_own_crops():
    scored = result_of(21, 5)  # starts 1, 5, 9, 13, and 14 to reach the end
    found = score_windows([run_of("rgb")], [scored], [OPTIONS], ["standard"])
    assert [(w.first, w.last) for w in found] == [(1, 8), (5, 12), (9, 16), (13, 20), (14, 21)]
    assert [(w.start, w.end) for w in found[:2]] == [(0.0, 0.8), (0.4, 1.2)]
    views = scored.view_logits.reshape(3, 5, 2)  # crop-major
    for number, window in enumerate(found):
        np.testing.assert_allclose(window.probabilities, softmax(views[:, number].mean(0)), rtol=1e-6)


def test_streams_meet_window_by_window():
    rgb, flow = result_of(21, 5), result_of(21, 4, seed=1)  # 20 flow frames: 1, 5, 9, 13
    runs, options = [run_of("rgb"), run_of("flow")], [OPTIONS, OPTIONS]
    found = score_windows(
        runs, [rgb, flow], options, ["standard"] * 2, rule="probabilities", weights=(3.0, 1.0)
    )
    assert [(w.first, w.last) for w in found] == [(1, 9), (5, 13), (9, 17), (13, 21)], (
        "flow 8 lies between 8 and 9"
    )
    means = [rgb.view_logits.reshape(3, 5, 2)[:, 2].mean(0), flow.view_logits.reshape(3, 4, 2)[:, 2].mean(0)]
    seen = [VideoResult(mean.astype(np.float64), 21, None, 3, None, mean[None]) for mean in means]
    wanted = fuse_results(seen, "probabilities", (3.0, 1.0))
    np.testing.assert_allclose(found[2].probabilities, wanted, rtol=1e-6)


def test_a_short_video_is_one_window_up_to_its_end():
    (window,) = score_windows([run_of("rgb")], [result_of(5, 1)], [OPTIONS], ["standard"])
    assert (window.first, window.last) == (1, 5)


@pytest.mark.parametrize(("span", "times"), [((0.4, 1.2), ["0.400", "1.200"]), ((), ["", ""])])
def test_the_csv_names_frames_seconds_and_the_best_classes(tmp_path, span, times):
    found = [
        TimelineWindow(1, 8, np.asarray([0.9, 0.1])),
        TimelineWindow(5, 12, np.asarray([0.25, 0.75]), *span),
    ]
    write_csv(tmp_path / "t.csv", found, NAMES, 5)
    lines = list(csv.reader((tmp_path / "t.csv").read_text().splitlines()))
    ranked = ["class_1", "probability_1", "class_2", "probability_2"]
    assert lines[0] == ["window", "first_frame", "last_frame", "start_s", "end_s", *ranked]
    assert lines[2] == ["2", "5", "12", *times, "run", "0.750000", "jump", "0.250000"]


def test_the_picture_divides_the_video_among_its_windows(tmp_path):
    found = [
        TimelineWindow(first, first + 7, np.asarray([p, 1 - p]))
        for first, p in ((1, 0.9), (5, 0.8), (9, 0.2))
    ]
    np.testing.assert_array_equal(_edges(found), [0, 6, 10, 16])
    assert _stretches(np.asarray([0, 0, 1])) == [(0, 2), (2, 3)]
    assert _stretches(np.asarray([1])) == [(0, 1)]
    draw_timeline(tmp_path / "t.svg", "a walk", found, NAMES)
    text = (tmp_path / "t.svg").read_text()
    assert {"a walk", "most likely", "jump", "run", "1  jump", "2  run"} <= set(
        re.findall(r">([^<\n]+)</t", text)
    )


@pytest.fixture
def figure(monkeypatch, tmp_path):
    """Ten classes, the first of which lead for longest; the last names are long."""
    names = ["a", "b", *(f"{k} {'long' * 9}" for k in range(2, 10))]
    leading = np.repeat(np.arange(10), [20, 9, 8, 7, 6, 5, 4, 3, 2, 1])
    found = [
        TimelineWindow(n + 1, n + 1, np.where(np.arange(10) == k, 0.55, 0.05)) for n, k in enumerate(leading)
    ]
    saved = []
    monkeypatch.setattr(timeline, "save_figure", lambda made, path: saved.append(made))
    draw_timeline(tmp_path / "t.png", "title " * 90, found, names)
    return saved[0]


def test_classes_differ_in_colour_style_and_number(figure):
    upper, _ = figure.axes
    lines = [(line.get_edgecolor(), line.get_linestyle()) for line in upper.patches]
    assert len(set(lines)) == len({color for color, _ in lines}) == 8
    assert len({style for _, style in lines}) == 4
    named = [text.get_text() for text in upper.get_legend().get_texts()]
    assert [name[:3] for name in named] == [*(f"{n}  " for n in range(1, 9)), "oth"]
    assert max(map(len, named)) == 3 + 22


def test_text_on_the_time_line_fits_and_can_be_read(figure):
    lower = figure.axes[1]
    shown = [text.get_text() for text in lower.texts]
    assert shown[:2] == ["a", "b"]
    assert shown[2].endswith("…")
    assert shown[7] == "8", "too narrow for four letters"
    assert shown[8:] == ["", ""], "grey: a class without a number"
    for label, patch in zip(lower.texts, lower.patches, strict=True):
        assert contrast(label.get_color(), patch.get_facecolor()) >= 4.5
        span, box = patch.get_window_extent(), label.get_window_extent()
        assert not label.get_text() or span.x0 <= box.x0 <= box.x1 <= span.x1
    assert figure.get_suptitle().count("\n") == 1
    assert figure.get_suptitle().endswith("…")
    assert max(text.get_window_extent().x1 for text in figure.texts) <= figure.bbox.x1
