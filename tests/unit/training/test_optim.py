"""Parameter groups and optimizers, against hand-made groups and torch's own update rules."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.training import TinyNet
from two_stream.config.backbones import MobileNetV2
from two_stream.config.heads import BertHead
from two_stream.config.model import ModelOptions
from two_stream.config.schema import AdamW, Sgd, TrainOptions
from two_stream.errors import SettingsError
from two_stream.recognizer import create_model
from two_stream.training.optim import build_optimizer, is_exempt, parameter_groups, restore_optimizer


def _names(model: torch.nn.Module, group: dict) -> set[str]:
    ids = {id(p) for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in ids}


def test_norms_biases_and_positions_go_without_decay() -> None:
    model = TinyNet()
    groups = parameter_groups(model, model.stages(), AdamW(weight_decay=0.3))
    decay, exempt = sorted(groups, key=lambda group: -group["weight_decay"])
    assert _names(model, decay) == {"stem.weight", "classifier.weight"}
    assert _names(model, exempt) == {"stem.bias", "norm.weight", "norm.bias", "positions", "classifier.bias"}
    assert (decay["weight_decay"], exempt["weight_decay"]) == (0.3, 0.0)


def test_positions_and_prefix_tokens_of_transformers_go_without_decay() -> None:
    grid = torch.zeros(1, 4, 8)
    for name in ("net.pos_embed", "embed.position_embeddings", "embed.time_embeddings", "net.reg_token"):
        assert is_exempt(f"backbone.stem.{name}", grid)
    assert not is_exempt("backbone.stem.embed.projection.weight", grid)


def test_class_token_and_positions_of_the_bert_heads_go_without_decay() -> None:
    options = ModelOptions(
        backbone=MobileNetV2(width=0.25),
        head=BertHead(hidden=32, heads=2),
        input={"clip_length": 8, "crop": 32},
    )
    model = create_model(options, 3)
    decay, exempt = sorted(parameter_groups(model, model.stages(), AdamW()), key=lambda g: -g["weight_decay"])
    free, held = _names(model, exempt), _names(model, decay)
    assert {"heads.0.class_token", "heads.0.positions"} <= free
    assert "classifier.weight" in held
    assert all(p.ndim > 1 for p in decay["params"])
    assert len(free) + len(held) == len(list(model.parameters()))


def test_decay_all_decays_everything() -> None:
    model = TinyNet()
    (group,) = parameter_groups(model, model.stages(), Sgd(decay_all=True, weight_decay=0.1))
    assert len(group["params"]) == len(list(model.parameters()))
    assert group["weight_decay"] == 0.1


def test_layer_decay_scales_by_depth_and_unknown_parts_stay_whole() -> None:
    model = TinyNet()
    groups = parameter_groups(model, model.stages(), AdamW(lr=0.1), layer_decay=0.5)
    scale = {name: g["lr_scale"] for g in groups for name in _names(model, g)}
    assert scale["classifier.weight"] == scale["classifier.bias"] == 1.0
    assert scale["norm.weight"] == 0.5
    assert scale["stem.weight"] == scale["stem.bias"] == 0.25
    assert scale["positions"] == 1.0
    assert {g["lr"] for g in groups} == {0.1, 0.05, 0.025}


def test_frozen_parameters_are_left_out() -> None:
    model = TinyNet()
    model.stem.requires_grad_(False)
    names = set().union(*(_names(model, g) for g in parameter_groups(model, model.stages(), Sgd())))
    assert "norm.weight" in names
    assert not any(name.startswith("stem") for name in names)
    model.requires_grad_(False)
    with pytest.raises(SettingsError, match="nothing is left to train"):
        parameter_groups(model, model.stages(), Sgd())


@pytest.mark.parametrize(
    "options",
    [
        Sgd(lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.01),
        Sgd(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        AdamW(lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
    ],
    ids=["dampening", "nesterov", "adamw"],
)
def test_three_steps_equal_the_update_rule_written_out(options: Sgd | AdamW) -> None:
    """The rules, step by step, in float64: SGD as in torch's documentation, AdamW as in arXiv 1711.05101."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2, bias=False, dtype=torch.float64)
    expected = model.weight.detach().clone()
    optimizer = build_optimizer(model, [("classifier", model)], options)
    first = torch.zeros_like(expected)
    second = torch.zeros_like(expected)
    for step in range(1, 4):
        gradient = torch.randn_like(expected)
        model.weight.grad = gradient.clone()
        optimizer.step()
        if isinstance(options, Sgd):
            g = gradient + options.weight_decay * expected
            first = g if step == 1 else options.momentum * first + (1 - options.dampening) * g
            expected = expected - options.lr * (g + options.momentum * first if options.nesterov else first)
        else:
            b1, b2 = options.betas
            expected = expected * (1 - options.lr * options.weight_decay)
            first = b1 * first + (1 - b1) * gradient
            second = b2 * second + (1 - b2) * gradient**2
            ratio = (first / (1 - b1**step)) / ((second / (1 - b2**step)).sqrt() + options.eps)
            expected = expected - options.lr * ratio
        torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-12, atol=1e-14)


def test_restored_optimizer_keeps_this_machines_kernel() -> None:
    model = TinyNet()
    optimizer = build_optimizer(model, model.stages(), AdamW())
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["fused"] = False
    restore_optimizer(optimizer, state)
    assert all(group["fused"] for group in optimizer.param_groups)


def test_stage_rates_scale_the_named_stages_alone() -> None:
    model = TinyNet()
    rates = {"stem": 0.1, "classifier": 10.0}
    groups = parameter_groups(model, model.stages(), AdamW(lr=0.5), stage_rates=rates)
    scale = {name: g["lr_scale"] for g in groups for name in _names(model, g)}
    assert scale["stem.weight"] == scale["stem.bias"] == 0.1
    assert scale["norm.weight"] == scale["norm.bias"] == scale["positions"] == 1.0
    assert scale["classifier.weight"] == scale["classifier.bias"] == 10.0
    assert {g["lr"] for g in groups} == {0.05, 0.5, 5.0}
    with pytest.raises(
        SettingsError, match="'layer9' is not a stage of the network; expected one of stem, norm, classifier"
    ):
        parameter_groups(model, model.stages(), AdamW(), stage_rates={"layer9": 0.1})
    with pytest.raises(ValueError, match="remove one of them"):
        TrainOptions(layer_decay=0.9, stage_rates={"stem": 0.1})
