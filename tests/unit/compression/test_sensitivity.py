"""What each layer bears, and shares by layer for a budget."""

from __future__ import annotations

import copy
import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from tests.helpers.datasets import SmallWorld
from two_stream.cli import main
from two_stream.commands import compress
from two_stream.compression import sensitivity
from two_stream.compression.channels import narrow_channels
from two_stream.compression.layers import layers_of, read_levels
from two_stream.compression.pruning import keep_mask, level_threshold
from two_stream.compression.sensitivity import (
    Sensitivity,
    SensitivityPoint,
    choose_levels,
    draw_sensitivity,
    fixed_clips,
    measure_sensitivity,
)
from two_stream.config.compress import Prune
from two_stream.errors import SettingsError
from two_stream.evaluation.runs.run import load_run
from two_stream.profiling.costs import multiply_adds
from two_stream.profiling.timing import nonzero_parameters
from two_stream.runtime.plotting import contrast

INSIDE = r"layer[12]\.0\.conv"


def whole_state(path: Path) -> dict[str, torch.Tensor]:
    return copy.deepcopy(load_run(path).model.state_dict())


def test_clips_are_the_same_for_a_seed_and_of_the_holdout(rgb_run: Path) -> None:
    run = load_run(rgb_run)
    every, some, again, other = (
        [name for batch in fixed_clips(run, "val", count, seed) for name in batch.ids]
        for count, seed in ((None, 0), (2, 0), (2, 0), (2, 3))
    )
    assert len(set(every)) == len(every) == 3  # one source of four, in each of three classes
    assert {name.split("_g")[1] for name in every}.isdisjoint({"0", "1"})  # which are the test list's
    assert some == again
    assert len(set(some)) == 2
    assert set(some) < set(every)
    assert len(other) == 2


def test_weights_are_scored_without_the_smallest_and_put_back(rgb_run: Path) -> None:
    run = load_run(rgb_run)
    before = whole_state(rgb_run)
    batches = fixed_clips(run, "val", None, 0)
    options = Prune(layers=INSIDE)
    found = measure_sensitivity(run, options, (0.5, 1.0), batches, part="val", seed=0)
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert found.layers == [f"backbone.layer{i}.0.conv{j}" for i in (1, 2) for j in (1, 2)]
    model = load_run(rgb_run).model
    layer = layers_of(model)["backbone.layer2.0.conv1"]
    with torch.no_grad():
        layer.weight.mul_(keep_mask(layer.weight, level_threshold(layer.weight, 0.5)))
        logits = torch.cat([model(batch.clips) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    point = next(p for p in found.points if p.layer == "backbone.layer2.0.conv1" and p.level == 0.5)
    assert point.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert point.top1 == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert point.parameters == nonzero_parameters(model)
    assert found.base.parameters == nonzero_parameters(run.model)


def test_channels_are_scored_on_narrowed_networks(rgb_run: Path) -> None:
    run = load_run(rgb_run)
    batches = fixed_clips(run, "val", None, 0)
    options = Prune(what="channels", layers=r"layer(1\.0\.conv|4\.0\.conv2)|stem")
    found = measure_sensitivity(run, options, (0.5,), batches, part="val", seed=0)
    model = load_run(rgb_run).model
    narrow_channels(model, options.model_copy(update={"by_layer": {"backbone.layer1.0.conv1": 0.5}}))
    point = next(p for p in found.points if p.layer == "backbone.layer1.0.conv1")
    assert point.multiply_adds == multiply_adds(model) < found.base.multiply_adds
    assert found.fixed == ["backbone.layer4.0.conv2"]
    assert found.shared == {"backbone.layer1.0.conv2": "backbone.stem.0"}  # the residual stream
    with torch.no_grad():
        logits = torch.cat([model.eval()(batch.clips) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    assert point.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-4)


def made_up(run: Path, losses: dict[str, tuple[float, float]]) -> Sensitivity:
    """Return made-up losses at 0.5 and 0.9 with the true number of weights that are left."""
    model = load_run(run).model
    whole = nonzero_parameters(model)
    points = [
        SensitivityPoint(
            name, level, 0.0, 0.0, 1.0 + loss, whole - int(level * layers_of(model)[name].weight.numel()), 1
        )
        for name, pair in losses.items()
        for level, loss in zip((0.5, 0.9), pair, strict=True)
    ]
    return Sensitivity(
        "run", "weights", "val", 1, 0, SensitivityPoint("", 0.0, 0.0, 0.0, 1.0, whole, 1), points
    )


def test_cheap_layers_are_pruned_first_and_the_budget_is_met(rgb_run: Path) -> None:
    model = load_run(rgb_run).model
    big, dear, small = (f"backbone.layer{n}.0.conv2" for n in (4, 3, 1))
    found = made_up(rgb_run, {big: (0.1, 0.2), dear: (50.0, 60.0), small: (0.01, 4.0)})
    sizes = {name: layers_of(model)[name].weight.numel() for name in (big, dear, small)}
    whole = nonzero_parameters(model)
    choice = choose_levels(model, found, Prune(), "parameters", 1 - 0.45 * sizes[big] / whole)
    assert choice.levels == {big: 0.5}  # 0.1 for half of the largest is less a weight than all others
    assert choice.loss == pytest.approx(0.1)
    budget = 1 - (0.9 * sizes[big] + 0.4 * sizes[small]) / whole
    choice = choose_levels(model, found, Prune(), "parameters", budget)
    assert choice.levels == {big: 0.9, small: 0.5}
    assert choice.reached <= budget
    with pytest.raises(
        SettingsError, match=r"cannot be met with these levels; the lowest possible value is 0\.\d+"
    ):
        choose_levels(model, found, Prune(), "parameters", 0.05)


def test_the_command_writes_levels_that_prune_takes(
    rgb_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = [
        "compress",
        "sensitivity",
        str(rgb_run),
        "--what",
        "channels",
        "--macs",
        "0.9",
        "--out",
        str(out),
    ]
    assert (
        main([*given, "--levels", "0.5", "0.75", "--layers", r"layer[1234]\.0\.conv1", "--threads", "1"]) == 0
    )
    shown = capsys.readouterr().out
    assert "backbone.layer3.0.conv1" in shown
    assert "two-stream compress prune" in shown
    rows = list(csv.DictReader((out / "channels.csv").read_text().splitlines()))
    assert len(rows) == 1 + 4 * 2
    assert (out / "channels.png").stat().st_size > 1000
    assert (out / "channels.svg").read_text().count("<path") > 8
    told = json.loads((out / "levels_channels.json").read_text())
    assert told["reached"] <= 0.9
    names = list(layers_of(load_run(rgb_run).model))
    levels = read_levels(out / "levels_channels.json", names, "channels")
    assert levels == told["levels"]
    with pytest.raises(SettingsError, match="contains levels for pruning channels"):
        read_levels(out / "levels_channels.json", names)
    model = load_run(rgb_run).model
    whole = multiply_adds(model)
    narrow_channels(model, Prune(what="channels", by_layer=levels))
    assert multiply_adds(model) / whole == pytest.approx(told["reached"])


@pytest.fixture
def changes() -> Sensitivity:
    """Two layers; the second tolerates pruning, and its higher level is unknown."""
    rows = [
        ("backbone.bad", 0.5, 0.5, 1.5),
        ("backbone.bad", 0.8, 0.25, 2.5),
        ("backbone.good", 0.5, 0.8125, 0.99),
    ]
    points = [SensitivityPoint(name, level, top1, 1.0, loss, 1, 1) for name, level, top1, loss in rows]
    base = SensitivityPoint("", 0.0, 0.75, 1.0, 1.0, 1, 1)
    return Sensitivity("run", "channels", "val", 16, 0, base, points)


def test_the_table_shows_changes_and_the_worst_layer_last(
    changes: Sensitivity, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compress._show_sensitivity(changes, None, tmp_path, "run", as_json=False)
    shown = capsys.readouterr().out
    assert "change of top-1 in points" in shown
    cells = [re.findall(r"[^│ ]+", line) for line in shown.splitlines() if "│" in line]
    assert cells == [
        ["backbone.good", "+6.2", "–", "−0.010"],
        ["backbone.bad", "−25.0", "−50.0", "+1.500"],
    ]
    assert "│     – │" in shown, "aligned to the right, like the numbers below"
    assert "top-1 75.0 %, loss 1.000; 16 clips of the val part (one clip = 6.25 points)" in shown


def test_the_figure_is_darker_where_the_network_is_worse(
    changes: Sensitivity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[Figure] = []
    monkeypatch.setattr(sensitivity, "save_figure", lambda figure, path: saved.append(figure))
    draw_sensitivity(changes, tmp_path / "s.png")
    (figure,) = saved
    accuracy, loss = figure.axes
    assert [text.get_text() for text in accuracy.texts] == ["−25.0", "−50.0", "+6.2", "–"]
    assert [text.get_text() for text in loss.texts] == ["+0.50", "+1.50", "−0.01", "–"]
    assert [label.get_text() for label in accuracy.get_yticklabels()] == ["backbone.bad", "backbone.good"]
    figure.draw_without_rendering()
    for axis in figure.axes:
        half, worst, better, _ = axis.collections[0].get_facecolors()
        assert half[0] > worst[0]
        assert better[0] > half[0]
        for text, cell in zip(axis.texts, (half, worst, better), strict=False):
            assert contrast(text.get_color(), cell) >= 4.5
    assert "one clip = 6.25 points" in figure.get_suptitle()


def test_a_data_set_of_several_labels_is_judged_by_its_map(changes: Sensitivity) -> None:
    base, (point, *_) = replace(changes.base, map=0.4), changes.points
    several = replace(changes, base=base, points=[replace(point, map=0.3)])
    assert several.change_of(several.points[0]) == (pytest.approx(-10), 0.5)
    assert several.reference == "unpruned network: mAP 40.0 %, loss 1.000; 16 clips of the val part"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--macs", "0.5"], "--macs requires --what channels"),
        (["--parameters", "1.5"], "--parameters is 1.5: expected a fraction"),
        (["--parameters", "0.5", "--macs", "0.5"], "cannot be combined; use only one budget"),
        (["--levels", "0.5", "0.2"], "expected increasing fractions"),
        (["--levels", "1.2"], "expected fractions above 0"),
        (["--clips", "0"], "--clips is 0"),
    ],
)
def test_wrong_flags_are_told_in_one_line(
    rgb_run: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compress", "sensitivity", str(rgb_run), *flags]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_no_such_run(small_world: SmallWorld, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("sensitivity", "prune"):
        assert main(["compress", method, str(small_world.root / "nothing")]) == 2
        assert "nothing" in capsys.readouterr().err
