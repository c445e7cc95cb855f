"""Channels: what is left computes what the whole network computes without those that went."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import nn

from two_stream.backbones import BACKBONES
from two_stream.compression.channels import REFUSED, narrow_channels
from two_stream.config.compress import Prune
from two_stream.config.model import InputOptions, ModelOptions
from two_stream.errors import CheckpointError, SettingsError
from two_stream.pretrained import load_weights, read_model, write_model
from two_stream.profiling.costs import multiply_adds, parameter_count, stage_costs
from two_stream.recognizer import Recognizer
from two_stream.surgery import describe_alterations, read_alterations

SMALL: dict[str, dict[str, Any]] = {
    "resnet3d": {"depth": 10, "width": 0.25},
    "resnext3d": {"depth": 50, "width": 0.25, "cardinality": 8},
    "mobilenetv2_3d": {"width": 0.5},
    "slowfast": {"width": 0.25},
    "i3d": {"width": 0.25},
    "r2plus1d": {"depth": 18, "width": 0.25},
    "mobilenet_3d": {"width": 0.5},
    "squeezenet_3d": {"width": 0.5},
    "csn": {"depth": 26, "width": 0.25},
    "densenet3d": {"growth": 8},
    "x3d": {"width": 1.0},
    "slow": {"width": 0.25},
    "c3d": {"width": 0.125, "side": 1},
    "shufflenet_3d": {"width": 0.5},
    "shufflenetv2_3d": {"width": 0.25},
}
VARIANTS = {
    "shortcut A": {"kind": "resnet3d", "depth": 10, "width": 0.25, "shortcut": "A"},
    "shortcut A, bottleneck": {"kind": "resnet3d", "depth": 50, "width": 0.125, "shortcut": "A"},
    "pre-activation": {"kind": "resnet3d", "depth": 18, "width": 0.25, "preactivation": True},
    "joined early": {"kind": "slowfast", "width": 0.25, "fusion": "early"},
    "i3d, inflated": {"kind": "slow", "width": 0.25, "variant": "i3d"},
}
HALF = Prune(what="channels", amount=0.5)


def network(backbone: dict[str, Any], modality: str = "rgb", head: str = "average") -> Recognizer:
    """Return a small network in float64, every weight and statistic a number of its own."""
    torch.manual_seed(5)
    given = InputOptions(clip_length=16, resize=(36, 40), crop=32)
    options = ModelOptions.model_validate(
        {"backbone": backbone, "head": {"kind": head}, "modality": modality, "input": given.model_dump()}
    )
    model = Recognizer(options, 4).double().eval()
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.1)
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
    return model


def pixels(model: Recognizer, count: int = 1) -> torch.Tensor:
    spec = model.spec
    shape = (count, spec.channels, spec.clip_length, 32, 32)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def without(whole: Recognizer, left: Recognizer) -> Recognizer:
    """Return the whole network with every weight set to 0 that the narrowed one has not: values tell which."""
    made = copy.deepcopy(whole)
    there = dict(left.named_parameters())
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.shape != there[name].shape:
                weight.mul_(torch.isin(weight, there[name]))
    return made


def check(backbone: dict[str, Any], options: Prune = HALF) -> tuple[Recognizer, Recognizer]:
    whole = network(backbone)
    left = copy.deepcopy(whole).float()
    whole.load_state_dict({k: v.double() for k, v in left.state_dict().items()})
    narrow_channels(left, options)
    left.double()
    assert parameter_count(left) < 0.9 * parameter_count(whole)
    assert [feature.shape[1] for feature in maps(left)] == list(whole.backbone.channels)
    with torch.no_grad():
        wanted = without(whole, left).forward_normalised(pixels(whole))
        assert torch.allclose(left.forward_normalised(pixels(left)), wanted, rtol=1e-6, atol=1e-9)
    left.train()
    loss = left.forward_normalised(pixels(left, 2)).square().mean()
    loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in left.parameters())
    assert sum(p.grad is not None for p in left.parameters()) > 0
    return whole, left.eval()


def maps(model: Recognizer) -> list[torch.Tensor]:
    with torch.no_grad():
        return [found.tensor for found in model.backbone(pixels(model))]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow) if kind in ("slowfast", "densenet3d", "x3d") else kind
        for kind in sorted(BACKBONES)
    ],
)
def test_every_family_is_narrowed_exactly_or_refused_by_name(kind: str) -> None:
    if kind in REFUSED:
        assert kind in SMALL or kind in ("timm", "hf_video", "torchvision", "motion_grid")
        if kind in SMALL:
            with pytest.raises(SettingsError, match=f"channels of backbone {kind} cannot be removed"):
                narrow_channels(network({"kind": kind, **SMALL[kind]}), HALF)
        return
    check({"kind": kind, **SMALL[kind]})


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "joined early" else name
        for name in sorted(VARIANTS)
    ],
)
def test_variants_of_families_too(name: str) -> None:
    check(VARIANTS[name])


@pytest.mark.parametrize("options", [{"scope": "global"}, {"importance": "l2"}, {"importance": "bn"}])
def test_every_importance_and_scope_is_exact(options: dict[str, Any]) -> None:
    check({"kind": "resnet3d", **SMALL["resnet3d"]}, HALF.model_copy(update=options))


def test_importance_decides_what_goes() -> None:
    """The channels with the smallest BatchNorm scale go under `bn`, those with the smallest weights under `l1`."""
    for importance in ("bn", "l1"):
        model = network({"kind": "resnet3d", **SMALL["resnet3d"]}).float()
        layer, norm = (model.get_submodule(f"backbone.layer2.0.{name}") for name in ("conv1", "bn1"))
        small = torch.arange(0, 32, 2)
        with torch.no_grad():
            if importance == "bn":
                norm.weight[small] *= 1e-3
            else:
                layer.weight[small] *= 1e-3
                model.get_submodule("backbone.layer2.0.conv2").weight[:, small] *= 1e-3
        kept = norm.running_mean[torch.arange(1, 32, 2)].clone()
        narrow_channels(model, HALF.model_copy(update={"importance": importance}))
        assert torch.equal(model.get_submodule("backbone.layer2.0.bn1").running_mean, kept)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_budget_of_multiply_adds_is_met_and_not_overshot(share: float) -> None:
    model = network({"kind": "resnet3d", **SMALL["resnet3d"]}).float()
    whole = multiply_adds(model)
    narrow_channels(model, Prune(what="channels", target_macs=share))
    assert share - 0.08 < multiply_adds(model) / whole <= share
    assert sum(cost.parameters for cost in stage_costs(model)) == parameter_count(model)


def test_widths_are_rounded() -> None:
    model = network({"kind": "resnet3d", **SMALL["resnet3d"]}).float()
    narrow_channels(model, Prune(what="channels", amount=0.3, round_to=4))
    widths = [part.out_channels for part in model.backbone.modules() if isinstance(part, nn.Conv3d)]
    assert all(width % 4 == 0 for width in widths)
    assert sorted(widths)[0] == 8  # 16 · 0.7 = 11.2, cut to a multiple of 4


def test_named_layers_only_and_first_kept() -> None:
    whole = network({"kind": "resnet3d", **SMALL["resnet3d"]}).float()
    model = copy.deepcopy(whole)
    narrow_channels(model, HALF.model_copy(update={"layers": r"layer2\.0\.conv1"}))
    changed = [n for n, p in model.named_parameters() if p.shape != whole.get_parameter(n).shape]
    inside = ["layer2.0.conv1.weight", "layer2.0.bn1.weight", "layer2.0.bn1.bias", "layer2.0.conv2.weight"]
    assert changed == [f"backbone.{name}" for name in inside]
    model = copy.deepcopy(whole)
    narrow_channels(model, HALF.model_copy(update={"skip_first": True}))
    assert model.get_submodule("backbone.stem.0").out_channels == 16


def test_a_model_file_builds_the_narrowed_network_again(tmp_path) -> None:
    whole, left = check({"kind": "resnet3d", **SMALL["resnet3d"]})
    left.float()
    write_model(tmp_path, left, {"class_names": list("abcd")})
    again, _ = read_model(tmp_path)
    clip = torch.randint(0, 256, (2, 3, 16, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(again(clip), left(clip))
    assert multiply_adds(again) == multiply_adds(left) < multiply_adds(whole)
    assert describe_alterations(again) == describe_alterations(left)
    fresh = Recognizer(left.options, 4)
    load_weights(fresh, tmp_path)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(clip), left(clip))
    narrow_channels(again, HALF)  # once more, from where it is
    write_model(tmp_path / "twice", again, {"class_names": list("abcd")})
    twice, _ = read_model(tmp_path / "twice")
    with torch.no_grad():
        assert torch.equal(twice(clip), again.eval()(clip))


def test_a_flow_network_takes_a_narrowed_rgb_one(tmp_path) -> None:
    _, left = check({"kind": "resnet3d", **SMALL["resnet3d"]})
    write_model(tmp_path, left.float(), {})
    flow = network({"kind": "resnet3d", **SMALL["resnet3d"]}, "flow").float()
    load_weights(flow, tmp_path, cross_modality=True)
    rgb, made = (model.get_submodule("backbone.stem.0").weight for model in (left, flow))
    assert torch.allclose(made, rgb.mean(1, keepdim=True).expand_as(made))


def test_a_narrowed_file_of_another_network_is_refused() -> None:
    _, left = check({"kind": "resnet3d", **SMALL["resnet3d"]})
    (told,) = read_alterations(describe_alterations(left), "file")
    other = network({"kind": "i3d", **SMALL["i3d"]})
    before = parameter_count(other)
    with pytest.raises(CheckpointError, match="a different network"):
        told.apply(other)
    assert parameter_count(other) == before


def test_budgets_that_cannot_be_met_say_what_can() -> None:
    model = network({"kind": "resnet3d", **SMALL["resnet3d"]}).float()
    with pytest.raises(SettingsError, match=r"the lowest possible value is 0\.\d+"):
        narrow_channels(model, Prune(what="channels", target_macs=0.3, layers="layer4"))


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(SettingsError, match=r"pip install 'two-stream\[compression\]'"):
        narrow_channels(network({"kind": "resnet3d", **SMALL["resnet3d"]}).float(), HALF)


def test_heads_that_need_the_width_are_left_as_they_are() -> None:
    model = network({"kind": "resnet3d", **SMALL["resnet3d"]}, head="bert").float()
    heads = {name: weight.clone() for name, weight in model.heads.state_dict().items()}
    narrow_channels(model, HALF)
    for name, weight in model.heads.state_dict().items():
        assert torch.equal(weight, heads[name])
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, 16, 32, 32)).shape == (1, 4)
