"""Several classes per video: mAP equals scikit-learn's, fusion is by sigmoid, the page says what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import t as student
from sklearn.metrics import average_precision_score

from two_stream.commands import fuse as fuse_command
from two_stream.errors import ScoreError
from two_stream.evaluation.report.run_report import write_report
from two_stream.evaluation.scores import fusion, metrics, words
from two_stream.evaluation.scores.files import read_scores, write_scores
from two_stream.evaluation.scoring.video import VideoResult, fuse_results
from two_stream.types import ScoreTable


def make(noise: float = 1.0, seed: int = 0, part: str = "test", videos: int = 60) -> ScoreTable:
    """Four classes, the last of which no video has; logits follow the targets."""
    truth = np.random.default_rng([7, len(part)])
    targets = np.column_stack([truth.random((videos, 3)) < (0.5, 0.3, 0.2), np.zeros(videos, np.bool_)])
    targets[~targets.any(1), 0] = True
    logits = 2.0 * targets - 1.0 + noise * np.random.default_rng(seed).normal(size=targets.shape)
    return ScoreTable(
        ids=[f"{part}{i}" for i in range(videos)],
        labels=targets.argmax(1).astype(np.int64),
        class_names=["sit", "eat", "read", "fly"],
        logits=logits,
        meta={"modality": f"m{seed}", "part": part, "dataset": "toy", "split": 1, "name": f"run{seed}"},
        groups=[f"g{i // 3}" for i in range(videos)],
        targets=targets,
    )


def test_map_is_scikit_learns_over_the_classes_that_occur() -> None:
    table = make()
    assert table.targets is not None
    expected = average_precision_score(table.targets[:, :3], table.logits[:, :3], average="macro")
    summary = metrics.summarise(table)
    assert summary.map is not None
    assert summary.map.value == summary.main.value == pytest.approx(expected)
    assert summary.map_classes == 3
    assert summary.map.low < expected < summary.map.high
    assert (summary.mean_class, summary.ece) == (None, None)
    assert summary.chance == pytest.approx(table.targets[:, 0].mean())
    with pytest.raises(ScoreError, match="no video has a class"):
        metrics.mean_average_precision(table.logits, np.zeros_like(table.targets))


def test_resamples_equal_scikit_learn_with_weights_ties_included() -> None:
    table = make()
    assert table.targets is not None
    logits = np.round(table.logits)  # many equal scores
    draw = np.random.default_rng(0)
    weights = draw.integers(0, 3, size=(5, 60)).astype(np.float32)
    for index in range(3):
        measure = metrics._weighted(logits[:, index], table.targets[:, index])
        expected = [
            average_precision_score(table.targets[:, index], logits[:, index], sample_weight=row)
            for row in weights
        ]
        assert measure(weights).tolist() == pytest.approx(expected)


def test_top_k_counts_any_class_of_the_video() -> None:
    logits = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    targets = np.array([[False, True, True], [False, False, True], [False, True, False]])
    table = ScoreTable(["a", "b", "c"], targets.argmax(1), ["x", "y", "z"], logits, targets=targets)
    assert metrics.table_ranks(table).tolist() == [1, 0, 1]
    assert metrics.agreement(table, table) == {"both": 1, "only_first": 0, "only_second": 0, "neither": 2}
    assert metrics.confident_mistakes(table, 3) == [0, 2]


def test_paired_difference_is_that_of_the_maps_and_sure_of_an_equal() -> None:
    good, bad = make(0.5, seed=1), make(3.0, seed=2)
    gap = metrics.difference(good, bad).interval
    assert gap.value == pytest.approx(metrics.summarise(good).main.value - metrics.summarise(bad).main.value)
    assert 0 < gap.low < gap.value < gap.high
    assert metrics.difference(good, good).p == 1.0


def test_fused_probability_is_the_mean_of_the_sigmoids() -> None:
    one, two = make(seed=1), make(seed=2)
    fused = fusion.fuse([one, two], "probabilities", (3.0, 1.0))
    expected = (3 * expit(one.logits) + expit(two.logits)) / 4
    np.testing.assert_allclose(expit(fused.logits), expected, rtol=1e-9)
    assert fused.targets is one.targets


def test_learned_weights_lower_the_binary_cross_entropy() -> None:
    streams = [make(1.5, seed=1, part="val"), make(3.0, seed=2, part="val")]
    weights = fusion.fit_stacking(streams)

    def entropy(w: list[float]) -> float:
        p = expit(sum(a * t.logits for a, t in zip(w, streams)))
        assert streams[0].targets is not None
        return float(-np.log(np.where(streams[0].targets, p, 1 - p)).mean())

    best = entropy(weights)
    assert weights[0] > 2 * weights[1] > 0
    for factor in (0.8, 1.25):
        assert entropy([weights[0] * factor, weights[1]]) > best + 1e-4
        assert entropy([weights[0], weights[1] * factor]) > best - 1e-4  # the ridge pulls a little


def test_searched_weights_are_judged_by_map() -> None:
    streams = [make(0.5, seed=1, part="val"), make(3.0, seed=2, part="val")]
    curve = fusion.weight_curve(*streams, "logits")
    assert curve.metric == "mAP"
    assert curve.accuracies[-1] == pytest.approx(metrics.summarise(streams[0]).main.value)
    assert fusion.search_weights(streams, "logits")[0] == curve.chosen


def test_the_table_shows_map_and_the_report_says_what_is_left_out(tmp_path: Path) -> None:
    paths = []
    for seed, noise in ((1, 0.7), (2, 1.4)):
        write_scores(tmp_path / f"{seed}.npz", make(noise, seed))
        paths.append(tmp_path / f"{seed}.npz")
    found = words.lines([read_scores(path) for path in paths])
    headings, (first, _) = words.columns(found), words.rows(found)
    assert dict(zip(headings, first))["classes"] == "3"
    assert first[1].startswith(f"{100 * found[0].summary.main.value:.1f} [")
    page, facts, text = write_report(paths, tmp_path / "report.html")
    html = page.read_text()
    assert "left out, because they require one class per video" in html
    assert 'id="confusion"' not in html
    loaded = json.loads(facts.read_text())
    assert loaded["headline"]["metric"] == "mAP"
    assert loaded["headline"]["correct"] == "mean over 3 of 4 classes"
    assert loaded["confusion"] is None
    assert "average precision" in text.read_text()


def test_one_videos_classes_have_probabilities_of_their_own() -> None:
    def seen(*logits: float) -> VideoResult:
        found = np.asarray(logits)
        return VideoResult(found, 1, None, 1, None, np.zeros((1, 3), np.float32), multi_label=True)

    first, second = seen(2.0, 1.0, -3.0), seen(0.0, 3.0, -1.0)
    np.testing.assert_allclose(fuse_results([first]), expit(first.logits))
    both = fuse_results([first, second], "probabilities")
    np.testing.assert_allclose(both, (expit(first.logits) + expit(second.logits)) / 2)
    mean = fuse_results([first, second], "logits")
    np.testing.assert_allclose(mean, expit((first.logits + second.logits) / 2))
    assert fuse_results([first, first], "l2").tolist() == pytest.approx(expit(first.logits).tolist())


def test_the_fuse_command_shows_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for seed in (1, 2):
        write_scores(tmp_path / f"{seed}.npz", make(1.0, seed))
        paths.append(str(tmp_path / f"{seed}.npz"))
    assert fuse_command.main([*paths, "--rule", "probabilities", "--out", str(tmp_path / "out.npz")]) == 0
    printed = capsys.readouterr().out
    fused = read_scores(tmp_path / "out.npz")
    assert fused.targets is not None
    assert "mAP" in printed
    assert f"{100 * metrics.summarise(fused).main.value:.1f} [" in printed
    assert fuse_command.main([*paths, "--json"]) == 0
    streams = json.loads(capsys.readouterr().out)["streams"]
    assert streams[0]["map"]["value"] == pytest.approx(metrics.summarise(make(1.0, 1)).main.value)
    assert streams[0]["map_classes"] == 3


def test_the_interval_is_the_jackknifes() -> None:
    """Each source left out in turn, by scikit-learn's average precision."""
    table = make(1.0, videos=60)
    table.groups = [f"g{number % 15}" for number in range(60)]
    assert table.targets is not None
    left = []
    for source in range(15):
        kept = np.arange(60) % 15 != source
        found = [average_precision_score(table.targets[kept, k], table.logits[kept, k]) for k in range(3)]
        left.append(np.mean(found))
    error = np.sqrt(14 / 15 * ((left - np.mean(left)) ** 2).sum())
    found = metrics.summarise(table).map
    assert found is not None
    trials = found.value * (1 - found.value) / (error**2 * 15 / 14)  # a little more, for few sources
    square = student.ppf(0.975, 14) ** 2
    low, high = np.roots([1 + square / trials, -(2 * found.value + square / trials), found.value**2])[::-1]
    assert (found.low, found.high) == pytest.approx(
        (low, high), abs=1e-6
    )  # Wilson's interval: the roots of its test


def test_nine_sources_give_no_interval_of_map() -> None:
    table = make(videos=60)
    for sources, known in ((9, False), (10, True)):
        table.groups = [f"g{number % sources}" for number in range(60)]
        found = metrics.summarise(table)
        assert found.map is not None
        assert found.map.known == known
        assert (
            "no interval: too few independent sources (9 sources)" in words.protocol_line(table.meta, found)
        ) != known


def test_many_sources_are_left_out_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    table = make(videos=400)
    whole = metrics.summarise(table).map
    monkeypatch.setattr(metrics, "BLOCKS", 100)
    parts = metrics.summarise(table).map
    assert whole is not None
    assert parts is not None
    assert parts.value == pytest.approx(whole.value)
    assert parts.high - parts.low == pytest.approx(whole.high - whole.low, rel=0.2)
