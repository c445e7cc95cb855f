"""From a trained run to a pruned one that every other command takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.datasets import SmallWorld
from two_stream.cli import main
from two_stream.evaluation.runs.run import load_run
from two_stream.profiling.costs import multiply_adds
from two_stream.studies.result import stored_cost
from two_stream.training.train import train

TRAINED = ["--train.epochs", "2", "--train.optimizer.lr", "0.003"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return SmallWorld(tmp_path_factory.mktemp("prune"))


@pytest.fixture(scope="module")
def runs(world: SmallWorld) -> dict[str, Path]:
    """An RGB and a flow run, and of each one pruned: RGB to half its multiply-adds, flow of 60 % of its weights."""
    made = {modality: train(world.experiment(modality, modality)).run.root for modality in ("rgb", "flow")}
    channels = ["--what", "channels", "--target-macs", "0.5", "--name", "rgb_half"]
    assert main(["compress", "prune", str(made["rgb"]), *channels, *TRAINED]) == 0
    assert main(["compress", "prune", str(made["flow"]), "--amount", "0.6", *TRAINED]) == 0
    folder = made["rgb"].parent
    return made | {"rgb_half": folder / "rgb_half", "flow_pruned": folder / "flow_pruned"}


def test_the_report_says_what_was_asked_for(runs: dict[str, Path]) -> None:
    half = json.loads((runs["rgb_half"] / "compression.json").read_text())
    before, after = (half[side]["costs"] for side in ("before", "after"))
    assert 0.42 < after["multiply_adds"] / before["multiply_adds"] <= 0.5
    assert after["multiply_adds"] == multiply_adds(load_run(runs["rgb_half"]).model)
    assert after["file_bytes"] < 0.8 * before["file_bytes"]
    assert half["before"]["run"] == str(runs["rgb"])
    pruned = json.loads((runs["flow_pruned"] / "compression.json").read_text())
    before, after = (pruned[side]["costs"] for side in ("before", "after"))
    assert after["parameters"] == before["parameters"]
    weights = {row["name"]: row["sparsity"] for row in pruned["layers"]}
    assert weights.pop("classifier") == 0
    assert list(weights.values()) == pytest.approx([0.6] * len(weights), abs=2e-3)
    for name in ("rgb_half", "flow_pruned"):
        page = (runs[name] / "compression.html").read_text()
        assert "multiply-adds per view" in page
        assert "http" not in page.replace("http://www.w3.org", "")


def test_pruned_runs_are_ordinary_ones(
    runs: dict[str, Path], world: SmallWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    half, pruned = str(runs["rgb_half"]), str(runs["flow_pruned"])
    assert main(["evaluate", half, "--part", "val"]) == 0
    out = world.root / "fused.npz"
    assert main(["fuse", half, pruned, "--out", str(out)]) == 0
    assert main(["compare", str(runs["rgb"]), half, "--json"]) == 0
    assert main(["report", half, pruned, "--out", str(world.root / "report.html")]) == 0
    page = (world.root / "report.html").read_text()
    assert page.count("Compression <small>") == 2
    assert "multiply-adds per view" in (world.root / "report.md").read_text()
    capsys.readouterr()
    assert main(["profile", half, "--seconds", "0.01", "--precision", "fp32", "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["multiply_adds"] == multiply_adds(load_run(half).model)
    assert told["parameters"] == sum(p.numel() for p in load_run(half).model.parameters())


@pytest.mark.slow
def test_a_training_starts_from_a_narrowed_run_and_goes_on(
    runs: dict[str, Path], world: SmallWorld, tmp_path: Path
) -> None:
    again = world.experiment("again", init=runs["rgb_half"], epochs=1)
    first = train(again).run.root
    assert multiply_adds(load_run(first).model) == multiply_adds(load_run(runs["rgb_half"]).model)
    assert train(again, resume=True).already_finished
    twice = ["--what", "channels", "--amount", "0.3", "--name", "twice", "--train.epochs", "1"]
    assert main(["compress", "prune", str(first), *twice]) == 0
    assert multiply_adds(load_run(first.parent / "twice").model) < multiply_adds(load_run(first).model)


def test_a_study_counts_the_narrowed_network(runs: dict[str, Path], tmp_path: Path) -> None:
    run, cpu = load_run(runs["rgb_half"]), torch.device("cpu")
    costs = tmp_path / "costs.json"
    plain = stored_cost(costs, run.experiment, 3, 1.0, device=cpu)
    cost = stored_cost(costs, run.experiment, 3, 1.0, device=cpu, run=run.paths.root)
    assert cost.multiply_adds == multiply_adds(run.model) < plain.multiply_adds
    assert cost.parameters == sum(p.numel() for p in run.model.parameters()) < plain.parameters


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--amount", "1.5"], "`amount` is 1.5: expected a fraction above 0 and below 1"),
        (["--layers", "layer9"], "leaves no layer to prune"),
        (["--what", "channels", "--target-macs", "0.001"], "; use a larger target"),
        (["--amout", "0.5"], "unknown flag --amout"),
        (["--end", "9", "--train.epochs", "4"], "`compress.end` is 9, but `train.epochs` is 4"),
        (["--levels", "nothing.json"], "nothing.json: cannot be read"),
        (["--part", "train"], "--part is train: expected test or val"),
    ],
)
def test_what_cannot_be_is_said_in_one_line_before_anything_runs(
    runs: dict[str, Path], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compress", "prune", str(runs["rgb"]), "--name", "refused", *flags]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if "tensors used" not in line]
    assert len(told) == 1, told
    assert message in told[0]
    assert not (runs["rgb"].parent / "refused").exists()
