"""Before and after: what the report measures and says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.datasets import SmallWorld
from two_stream.commands.compress.comparison import LayerChange, scores_of, write_compression
from two_stream.errors import ScoreError
from two_stream.evaluation.runs.run import load_run
from two_stream.evaluation.scores.files import read_scores
from two_stream.pretrained import write_model
from two_stream.profiling.timing import nonzero_parameters
from two_stream.training.train import train


@pytest.fixture(scope="module")
def wider(small_world: SmallWorld) -> Path:
    """A run of a network of twice the width."""
    given = small_world.experiment("wider")
    backbone = given.model.backbone.model_copy(update={"width": 0.5})
    return train(
        given.model_copy(update={"model": given.model.model_copy(update={"backbone": backbone})})
    ).run.root


def test_costs_and_accuracies_are_those_of_the_runs(wider: Path, rgb_run: Path) -> None:
    report = write_compression(wider, rgb_run, seconds=0.05, layers=[LayerChange("a", "8×4", "6×4", 0.5)])
    models = [load_run(path).model for path in (wider, rgb_run)]
    for side, model, path in zip((report.before, report.after), models, (wider, rgb_run), strict=True):
        assert side.costs.parameters == sum(p.numel() for p in model.parameters())
        assert side.costs.nonzero == nonzero_parameters(model)
        assert side.costs.file_bytes == (path / "best" / "model.safetensors").stat().st_size
        table = read_scores(side.scores)
        assert side.accuracy.value == pytest.approx((table.logits.argmax(1) == table.labels).mean())
        assert side.costs.latency_low <= side.costs.latency_ms <= side.costs.latency_high
    assert report.before.costs.multiply_adds > 2 * report.after.costs.multiply_adds
    assert report.before.costs.latency_ms > report.after.costs.latency_ms
    gap = report.after.accuracy.value - report.before.accuracy.value
    assert report.comparison.difference.value == pytest.approx(gap)
    assert report.comparison.videos == 6
    page = (rgb_run / "compression.html").read_text()
    assert report.comparison.verdict[1:] in page
    assert f"{100 * report.after.accuracy.value:.1f} [" in page
    assert "6×4" in page
    assert "| a | 8×4 | 6×4 | 50.0 |" in (rgb_run / "compression.md").read_text()
    kept = json.loads((rgb_run / "compression.json").read_text())
    assert kept["after"]["costs"]["parameters"] == report.after.costs.parameters


def test_scores_of_these_weights_are_read_and_not_made_again(
    rgb_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(rgb_run)
    made = scores_of(run, run.experiment.evaluate, "val")

    def never(*args: object, **options: object) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr("two_stream.commands.compress.comparison.evaluate_run", never)
    assert (scores_of(run, run.experiment.evaluate, "val").logits == made.logits).all()
    vars(run)["model_sha256"] = "of other weights"
    with pytest.raises(AssertionError, match="scored again"):
        scores_of(run, run.experiment.evaluate, "val")


def test_runs_of_other_classes_are_refused(small_world: SmallWorld, rgb_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "best").mkdir(parents=True)
    run = load_run(rgb_run)
    write_model(other / "best", run.model, {"class_names": ["a", "b", "c"]})
    (other / "experiment.yaml").write_text((rgb_run / "experiment.yaml").read_text())
    with pytest.raises(ScoreError, match="different classes"):
        write_compression(rgb_run, other, seconds=0.01)


def test_parameters_that_are_zero_are_not_counted() -> None:
    layer = torch.nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight[0] = 0
    assert nonzero_parameters(layer) == 4 * 3 + 3 - 4
