"""Weights that are taken out stay out: in training, in the moving average, and in a resumed run."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.datasets import SmallWorld
from two_stream.compression.layers import chosen_layers, layers_of, read_levels
from two_stream.compression.pruning import Pruning
from two_stream.config.compress import Prune
from two_stream.errors import SettingsError
from two_stream.evaluation.runs.run import load_run
from two_stream.training.run_folder import load_checkpoint
from two_stream.training.train import train
from two_stream.training.trainer import Validation


def pruned(world: SmallWorld, source: Path, name: str, compress: dict[str, Any], **train_options: Any):
    given = world.experiment(name, init=source, **train_options)
    return type(given).model_validate(
        {**given.model_dump(), "compress": {"kind": "prune", "source": source, **compress}}
    )


def zeros(path: Path, checkpoint: str = "best") -> dict[str, float]:
    model = load_run(path, checkpoint).model
    return {name: float((layer.weight == 0).double().mean()) for name, layer in layers_of(model).items()}


def test_the_share_holds_after_training_and_in_the_average(small_world: SmallWorld, rgb_run: Path) -> None:
    made = train(pruned(small_world, rgb_run, "p60", {"amount": 0.6, "skip_first": True}, ema=0.5)).run.root
    before = load_run(rgb_run).model
    for checkpoint in ("best", "last"):
        for name, share in zeros(made, checkpoint).items():
            size = layers_of(before)[name].weight.numel()
            untouched = name in ("backbone.stem.0", "classifier")
            assert share == (0 if untouched else int(0.6 * size) / size), name
    after = load_run(made).model.state_dict()
    changed = [k for k, v in before.state_dict().items() if "weight" in k and not torch.equal(v, after[k])]
    assert "backbone.layer1.0.conv1.weight" in changed
    stays = after["backbone.layer1.0.conv1.weight"]
    assert not torch.equal(
        stays[stays != 0], before.state_dict()["backbone.layer1.0.conv1.weight"][stays != 0]
    )


def test_what_goes_is_what_was_smallest_in_the_source(small_world: SmallWorld, rgb_run: Path) -> None:
    made = train(pruned(small_world, rgb_run, "global", {"amount": 0.7, "scope": "global"})).run.root
    layers = layers_of(load_run(rgb_run).model)
    weights = {name: layer.weight.detach() for name, layer in layers.items() if name != "classifier"}
    every = torch.cat([w.abs().flatten() for w in weights.values()])
    threshold = every.sort().values[int(0.7 * len(every)) - 1]
    after = layers_of(load_run(made).model)
    for name, weight in weights.items():
        assert torch.equal(after[name].weight == 0, weight.abs() <= threshold)


def test_gradual_pruning_rises_and_only_the_last_share_may_be_best(
    small_world: SmallWorld, rgb_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    real = Pruning.stepped
    early = iter(Validation(1.0, score, 1.0, np.eye(3, dtype=np.int64), 3) for score in (0.9, 0.8, 0.5, 0.4))
    monkeypatch.setattr("two_stream.training.trainer.validate", lambda *args, **options: next(early))

    def watched(self: Pruning, models: Any, step: int) -> None:
        real(self, models, step)
        weight = models[0].get_submodule("backbone.layer1.0.conv1").weight
        if step % self.steps == 0:
            seen.append(float((weight == 0).float().mean()))

    monkeypatch.setattr(Pruning, "stepped", watched)
    options = {"amount": 0.8, "initial": 0.2, "end": 3}
    result = train(pruned(small_world, rgb_run, "gradual", options, epochs=4))
    assert seen == pytest.approx([0.2, 0.8 - 0.6 * 0.125, 0.8, 0.8], abs=1e-3)
    assert result.best_epoch == 3  # epochs 1 and 2 score higher and have not lost enough
    assert zeros(result.run.root)["backbone.layer1.0.conv1"] == pytest.approx(0.8, abs=1e-3)


def _compare(left: Any, right: Any) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.equal(value, right[key]), key


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        pytest.param("weights", {"amount": 0.8, "initial": 0.2, "end": 3}, marks=pytest.mark.slow),
        ("channels", {"what": "channels", "amount": 0.5}),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    small_world: SmallWorld,
    rgb_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    compress: dict[str, Any],
) -> None:
    whole = train(pruned(small_world, rgb_run, f"{name}_whole", compress, epochs=3, ema=0.5)).run.root
    again = pruned(small_world, rgb_run, f"{name}_again", compress, epochs=3, ema=0.5)
    real = Pruning.stepped

    def stops(self: Pruning, models: Any, step: int) -> None:
        real(self, models, step)
        if step == 4:  # inside the second epoch
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Pruning, "stepped", stops)
    assert train(again).interrupted == signal.SIGINT
    monkeypatch.setattr(Pruning, "stepped", real)
    resumed = train(again, resume=True)
    assert resumed.finished
    for folder in ("last", "best"):
        _compare(load_checkpoint(whole / folder)[0], load_checkpoint(resumed.run.root / folder)[0])


def test_a_published_file_of_levels_is_read(rgb_run: Path, tmp_path: Path) -> None:
    model = load_run(rgb_run).model
    names = list(layers_of(model))
    rows = [
        "Name,Type,Sparsity",
        "module.layer1.0.conv1.weight,Conv3d,0.4",
        "module.layer1.0.bn1,BatchNorm3d,0.6",
    ]
    path = tmp_path / "ours.csv"
    path.write_text("\n".join([*rows, "module.layer2.0.conv1,Conv3d,0"]) + "\n")
    assert read_levels(path, names) == {"backbone.layer1.0.conv1": 0.4}
    convolutions = [name for name in names if name != "classifier"]
    other = "\n".join(
        ["Name,Type,Sparsity", *(f"module.features.{i}.0,Conv3d,0.{i % 9 + 1}" for i in range(12))]
    )
    assert len(convolutions) == 12
    path.write_text(other + "\n")
    assert list(read_levels(path, names)) == convolutions
    path.write_text("Name,Type,Sparsity\nmodule.layer1.0.conf1,Conv3d,0.4\n")
    with pytest.raises(SettingsError, match=r"'module\.layer1\.0\.conf1'"):
        read_levels(path, names)


def test_levels_by_layer_are_what_is_taken(small_world: SmallWorld, rgb_run: Path) -> None:
    levels = {"backbone.layer1.0.conv1": 0.25, "backbone.layer3.0.conv2": 0.5}
    made = train(pruned(small_world, rgb_run, "levels", {"by_layer": levels}, epochs=1)).run.root
    found = {name: share for name, share in zeros(made).items() if share > 0.01}
    assert found == pytest.approx(levels, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amount": 1.5}, "`amount` is 1.5"),
        ({"target_macs": 0.5}, "`target_macs` applies only to `what: channels`"),
        ({"what": "channels", "end": 5}, "`end` applies only to `what: weights`"),
        ({"rule": "sensitivity", "scope": "global"}, "applies a threshold to each layer"),
        ({"end": 1}, "needs two steps"),
    ],
)
def test_contradictions_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prune.model_validate(options)


def test_a_pattern_that_names_nothing_is_refused(rgb_run: Path) -> None:
    model = load_run(rgb_run).model
    with pytest.raises(SettingsError, match="leaves no layer to prune"):
        chosen_layers(model, Prune(layers="layer9"))
    assert list(chosen_layers(model, Prune(layers=r"layer1.*conv2$"))) == ["backbone.layer1.0.conv2"]
