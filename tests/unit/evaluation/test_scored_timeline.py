"""`evaluate --timeline`: the rule chosen on the holdout, bouts, and the way from videos to the result."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.helpers.videos import write_video
from two_stream.commands import evaluate
from two_stream.commands import prepare as prepare_command
from two_stream.config.schema import Experiment
from two_stream.data.bouts import Bout, LabelledRecording, read_recordings
from two_stream.data.sources.segments import frames_between
from two_stream.errors import DataError, ScoreError, SettingsError
from two_stream.evaluation.pictures.timeline import score_windows
from two_stream.evaluation.runs.run import load_run, score_with_runs
from two_stream.evaluation.runs.timeline import (
    Rule,
    TimeLine,
    choose_rule,
    evaluate_timeline,
    find_bouts,
    frame_labels,
)
from two_stream.training.train import train

ACTIONS = ["cut", "pour"]


def line(
    chances: list[tuple[float, float]], bouts: list[tuple[float, float, str]], fps: float = 1.0
) -> TimeLine:
    """Return a recording with one window per frame."""
    count = len(chances)
    recording = LabelledRecording(frames=count, flow=count - 1, seconds=count / fps, bouts=tuple(bouts))
    return TimeLine("v", recording, np.asarray(chances), np.arange(count))


def test_frames_of_bouts_are_those_of_segments() -> None:
    generator = np.random.default_rng(0)
    for fps in (10, 25, 30000 / 1001):
        edges = LabelledRecording(frames=60, flow=59, seconds=60 / fps, bouts=()).edges
        for _ in range(100):
            start, end = sorted(generator.integers(0, 240, 2) / (4 * fps))
            labels = frame_labels([Bout(start, end, "pour")], edges, ACTIONS)
            assert (np.flatnonzero(labels == 1) + 1).tolist() == list(frames_between(start, end, 60, fps=fps))


def test_thresholds_maximise_the_frame_f1_of_every_class() -> None:
    generator = np.random.default_rng(1)
    chances = generator.dirichlet([1, 1, 1], 40)[:, :2].round(1)  # rounded, so that some are equal
    found = line([tuple(row) for row in chances], [(0, 9, "cut"), (12, 20, "pour"), (30, 33, "cut")])
    truth = frame_labels(found.truth, found.recording.edges, ACTIONS)
    rule = choose_rule([found], ACTIONS)
    best = chances.argmax(axis=1)
    for k, name in enumerate(ACTIONS):

        def f1(least: float, k: int = k) -> float:
            made = (best == k) & (chances.max(axis=1) >= least)
            return 2 * (made & (truth == k)).sum() / (made.sum() + (truth == k).sum())

        assert f1(rule.thresholds[name]) == max(f1(least) for least in np.arange(0, 1.01, 0.01))
    assert rule.undetermined == []


def test_a_threshold_lies_in_the_middle_and_unknown_classes_are_named() -> None:
    found = line([(0.9, 0), (0.7, 0), (0.4, 0), (0.2, 0)], [(0, 2, "cut")])
    rule = choose_rule([found], ACTIONS)
    assert rule.thresholds == pytest.approx({"cut": 0.55, "pour": 0.55})
    assert rule.undetermined == ["pour"]
    equal = line(
        [(0.9, 0), *[(0.5, 0)] * 7], [(0, 2, "cut")]
    )  # the frames at 0.5 are accepted together or not at all
    assert choose_rule([equal], ACTIONS).thresholds["cut"] == pytest.approx(0.7)
    with pytest.raises(ScoreError, match="holdout recordings have no bouts"):
        choose_rule([line([(0.9, 0)], [])], ACTIONS)


def test_short_gaps_are_filled_and_short_bouts_removed() -> None:
    high = {".": (0.1, 0.2), "c": (0.9, 0), "p": (0, 0.8)}
    found = line([high[c] for c in "cc.cccppccc....p.ppp...c"], [])

    def bouts(shortest: float) -> list[tuple[str, float, float]]:
        rule = Rule({"cut": 0.5, "pour": 0.5}, [], shortest)
        return [(bout.name, bout.start, bout.end) for bout in find_bouts(found, rule, ACTIONS)]

    assert [span for *_, span in bouts(0)] == [2, 6, 8, 11, 16, 20, 24]
    # gaps of 1 s are filled; `pp` and the last `c` are removed, and the gap of `pp` is filled
    assert bouts(2.5) == [("cut", 0, 11), ("pour", 15, 20)]
    (first, second) = find_bouts(found, Rule({"cut": 0.5, "pour": 0.5}, [], 2.5), ACTIONS)
    assert first.confidence == pytest.approx((8 * 0.9 + 0.1 + 2 * 0) / 11)
    assert second.confidence == pytest.approx((4 * 0.8 + 0.2) / 5)


def test_the_shortest_bout_is_the_best_on_the_holdout() -> None:
    truth = [(0, 4, "cut"), (6, 10, "cut")]
    chances = [(0.9, 0.0) if n in (0, 1, 2, 3, 6, 7, 8, 9, 12, 14, 16) else (0.1, 0.0) for n in range(20)]
    # the lone frames at 12, 14 and 16 s cost F1@50, and gaps of 2 s must not be filled
    assert choose_rule([line(chances, truth)], ACTIONS).shortest == 1.5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight recordings of 40 to 47 frames at 12 per second, and a network trained for an epoch on their clips."""
    root = tmp_path_factory.mktemp("timeline")
    rows = ["video,start,end,class"]
    for number in range(8):
        write_video(root / "videos" / f"v{number}.mp4", 40 + number, step=1)  # of other textures
        rows += [f"v{number},{0.1 * number:.1f},1.5,cut", f"v{number},2,{3 - 0.1 * number:.1f},pour"]
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    args = f"timeline --annotations {root}/labels.csv --videos {root}/videos --out {root}/settings --shortest 0.4"
    assert prepare_command.main(args.split()) == 0
    experiment = Experiment.model_validate(
        {
            "name": "run",
            "runs": str(root / "runs"),
            "device": "cpu",
            "threads": 1,
            "model": {
                "backbone": {"kind": "resnet3d", "depth": 10, "width": 0.25, "temporal_stride": 4},
                "head": {"kind": "average"},
                "input": {"clip_length": 4, "resize": [36, 40], "crop": 32},
            },
            "data": {"dataset": f"{root}/settings/labels", "source": "videos", "workers": 0},
            "train": {"epochs": 1, "batch_size": 4, "log_images": False},
            "evaluate": {"views": "single", "crops": "ten", "precision": "fp32", "step": 2},
        }
    )
    train(experiment)
    return root


def test_from_videos_to_the_result(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([f"{world}/runs/run", "--timeline"]) == 0
    shown = capsys.readouterr().out
    path = world / "runs" / "run" / "scores" / "timeline_test.json"
    result = json.loads(path.read_text())
    assert result["meta"]["criteria"].startswith("thresholds: frame F1")
    assert not set(result["meta"]["recordings"]) & set(result["meta"]["holdout_recordings"])
    assert f"{100 * result['metrics']['f1@50']['value']:.1f} [unknown]" in shown
    run = load_run(world / "runs" / "run")
    recordings = read_recordings(run.record)
    assert {"edit", "frame_f1", "map"} < set(result["metrics"])
    # the windows are those of `predict --timeline`, and the bouts follow from the stored rule
    rows = list(csv.reader(path.with_suffix(".csv").open()))[1:]
    views = run.experiment.evaluate.model_copy(update={"views": "sliding"})
    rule = Rule(**result["rule"])
    expected = []
    for name in result["meta"]["recordings"]:
        (scored,) = score_with_runs([run], world / "videos" / f"{name}.mp4", [views])
        windows = score_windows([run], [scored], [views], ["standard"])
        middles = np.asarray([(window.first + window.last) / 2 for window in windows])
        owner = [int(np.abs(middles - n).argmin()) for n in range(1, recordings[name].frames + 1)]
        chances = np.stack([window.probabilities for window in windows])
        actions = [k for k, c in enumerate(run.class_names) if c != "background"]
        made = find_bouts(
            TimeLine(name, recordings[name], chances[:, actions], np.asarray(owner)), rule, ["cut", "pour"]
        )
        expected += [
            [name, f"{b.start:.3f}", f"{b.end:.3f}", b.name, pytest.approx(b.confidence, abs=1e-4)]
            for b in made
        ]
    assert [[*row[:4], float(row[4])] for row in rows] == expected
    assert rows


def test_the_result_depends_only_on_the_holdout_and_the_network(world: Path, tmp_path: Path) -> None:
    run = load_run(world / "runs" / "run")
    options = run.experiment.evaluate
    found = evaluate_timeline(run, options, "test", out=tmp_path / "a.json")
    other = evaluate_timeline(run, options, "train", out=tmp_path / "b.json")
    assert found.rule == other.rule
    assert set(found.meta["recordings"]).isdisjoint(other.meta["recordings"])


def test_wrong_uses_are_named(world: Path, tmp_path: Path) -> None:
    folder = f"{world}/runs/run"
    for args, said in (
        (["--part", "val"], "the part is val, but the thresholds are chosen on the holdout"),
        (["--csv", "x.csv"], "--csv and --timeline cannot be combined"),
        (["--out", "x.npz"], r"--out is x\.npz: expected a file name that ends in \.json"),
    ):
        with pytest.raises(SettingsError, match=said):
            evaluate.main([folder, "--timeline", *args])
    record = world / "settings" / "labels" / "dataset.yaml"
    text, labels = record.read_text(), world / "settings" / "labels" / "timeline.json"
    content = yaml.safe_load(text)
    del content["timeline"]
    record.write_text(yaml.safe_dump(content))
    with pytest.raises(
        DataError, match=r"dataset\.yaml: the data set has no dense labels .*prepare timeline"
    ):
        evaluate.main([folder, "--timeline"])
    record.write_text(text)
    kept = labels.read_text()
    for old, new, said in (
        ('"cut"', '"cat"', "a bout of 'cat', which is not a class"),
        ('"seconds": 3', '"seconds": -3', "seconds"),
        ('{"v0"', '{"w0"', "the recording 'v0' of the .* part has no dense labels"),
        ("{", "[", r"timeline\.json:1: invalid JSON"),
    ):
        assert old in kept
        labels.write_text(kept.replace(old, new, 1))
        with pytest.raises((DataError, SettingsError), match=said):
            evaluate.main([folder, "--timeline"])
    labels.write_text(kept)


def test_bouts_never_overlap() -> None:
    generator = np.random.default_rng(3)
    for shortest in (0, 0.3, 1, 4):
        found = line([tuple(row) for row in generator.dirichlet([1, 1, 1], 200)[:, :2]], [], fps=10)
        bouts = find_bouts(found, Rule({"cut": 0.3, "pour": 0.4}, [], shortest), ACTIONS)
        assert all(one.end <= two.start for one, two in itertools.pairwise(bouts))
        assert all(bout.end - bout.start >= shortest - 1e-5 for bout in bouts)
