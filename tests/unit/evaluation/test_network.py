"""Networks made ready for scoring give the logits they gave before: every backbone folded, in bf16, compiled or not."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.helpers.models import SMALL_BACKBONES
from two_stream.backbones import BACKBONES
from two_stream.config.backbones import MobileNetV2
from two_stream.config.heads import BertHead
from two_stream.config.model import ModelOptions
from two_stream.config.schema import AugmentOptions, DataOptions, EvaluateOptions, Experiment, TrainOptions
from two_stream.evaluation.scoring import network as network_module
from two_stream.evaluation.scoring.network import (
    Compiled,
    fold_batchnorm,
    is_exact,
    prepare_for_inference,
    resolve_evaluation,
    usual_batch,
)
from two_stream.recognizer import Recognizer, create_model, input_spec
from two_stream.runtime import device
from two_stream.runtime.device import autocast
from two_stream.types import InputSpec

CPU = torch.device("cpu")
NORM_FIRST = {"densenet3d"}
"""A norm before its convolution, with a ReLU in between, stays."""


def lived_in(model: nn.Module) -> None:
    """Give every BatchNorm statistics and weights of its own, as training would."""
    generator = torch.Generator().manual_seed(3)
    for part in model.modules():
        if isinstance(part, (nn.BatchNorm2d, nn.BatchNorm3d)):
            for tensor, low, high in (
                (part.weight, 0.5, 1.5),
                (part.running_var, 0.5, 2.0),
                (part.bias, -0.3, 0.3),
                (part.running_mean, -0.3, 0.3),
            ):
                tensor.data.uniform_(low, high, generator=generator)


def network(kind: str, **other: object) -> Recognizer:
    torch.manual_seed(0)
    backbone = {"kind": kind, **SMALL_BACKBONES.get(kind, {})}
    shape = {"clip_length": 8, "crop": 32, "resize": (32, 40)}
    model = create_model(ModelOptions.model_validate({"backbone": backbone, "input": shape, **other}), 5)
    lived_in(model)
    return model.eval()


def clips(model: Recognizer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (2, model.spec.channels, 8, 32, 32)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def norms(model: nn.Module) -> int:
    return sum(isinstance(part, (nn.BatchNorm2d, nn.BatchNorm3d)) for part in model.modules())


CONVOLVING = sorted(kind for kind in BACKBONES if kind != "motion_grid")


FEW = [(kind, "none") for kind in CONVOLVING] + [("slowfast", "frab"), ("resnet3d", "frmb")]
ALL = [(kind, reduction) for kind in CONVOLVING for reduction in ("none", "frab", "frmb")]


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "reduction"),
    [each if each in FEW else pytest.param(*each, marks=pytest.mark.slow) for each in ALL],
)
def test_every_backbone_folds_whole_and_gives_the_same_logits(kind, reduction):
    model = network(kind, reduction=reduction, reduced_channels=64)
    made = prepare_for_inference(model, EvaluateOptions())
    assert made is not model
    assert norms(made) == 0 or kind in NORM_FIRST
    x = clips(model)
    expected = model(x)
    assert float(expected.std()) > 0
    assert gap(made(x), expected) < 1e-4
    last = prepare_for_inference(
        network(kind, reduction=reduction, reduced_channels=64).channels_last(), EvaluateOptions()
    )
    assert gap(last(x), expected) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("kind", CONVOLVING)
def test_bf16_weights_are_what_autocast_would_make_of_them(kind):
    model = network(kind)
    plain = fold_batchnorm(model, clips(model))
    made = prepare_for_inference(model, EvaluateOptions(precision="bf16"))
    assert {p.weight.dtype for p in made.modules() if isinstance(p, (nn.Conv2d, nn.Conv3d))} == {
        torch.bfloat16
    }
    assert model.classifier.weight.dtype == torch.float32
    x = clips(model)
    with autocast(CPU, "bf16"):
        torch.testing.assert_close(made(x), plain(x), rtol=0, atol=0)
        assert gap(made(x).float(), model(x).float()) < 0.05


class Twice(nn.Module):
    """A convolution used twice, and one whose output is needed without its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(3, 4, 1, bias=False)
        self.first_norm = nn.BatchNorm3d(4)
        self.again = nn.Conv3d(4, 4, 1, bias=False)
        self.again_norm = nn.BatchNorm3d(4)
        self.fork = nn.Conv3d(4, 4, 1)
        self.fork_norm = nn.BatchNorm3d(4)
        self.needs_fork = False
        lived_in(self)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        x = self.first_norm(self.first(clip.float()))
        x = self.again_norm(self.again(x)) + self.again(x)
        y = self.fork(x)
        return self.fork_norm(y) + (y if self.needs_fork else 0)


@torch.no_grad()
def test_only_what_may_be_folded_is(capsys):
    clip = torch.rand((1, 3, 2, 4, 4), generator=torch.Generator().manual_seed(0))
    model = Twice().eval()
    made = fold_batchnorm(model, clip)
    assert isinstance(made.first_norm, nn.Identity)
    assert isinstance(made.again_norm, nn.BatchNorm3d)  # its convolution also serves elsewhere
    assert isinstance(made.fork_norm, nn.Identity)
    torch.testing.assert_close(made(clip), model(clip))
    model.needs_fork = True  # what a fold of it would break shows on the example
    assert fold_batchnorm(model, clip) is model
    assert "BatchNorm is not folded" in capsys.readouterr().err


@torch.no_grad()
def test_the_shortcut_of_a_preactivation_block_is_added_before_its_norm(capsys):
    """The sum is made in place, so the tensor that the next norm gets is the convolution's, changed."""
    model = network(
        "resnet3d", backbone={"kind": "resnet3d", "depth": 18, "width": 0.25, "preactivation": True}
    )
    made = prepare_for_inference(model, EvaluateOptions())
    assert 0 < norms(made) < norms(model)
    assert gap(made(clips(model)), model(clips(model))) < 1e-4
    assert "not folded" not in capsys.readouterr().err


def test_what_is_resolved_is_not_auto_and_of_the_paper_not_folded(monkeypatch):
    monkeypatch.setattr(device, "native_bf16", lambda device: False)
    asked = EvaluateOptions(precision="auto")
    model = SimpleNamespace(spec=input_spec(ModelOptions()), cpu_only=False)
    done = resolve_evaluation(model, asked, CPU, exact=False)
    assert (done.precision, done.fold) == ("fp32", True)
    assert not resolve_evaluation(model, asked, CPU, exact=True).fold


def test_a_batch_is_small_on_a_cpu_and_what_was_asked_for_anywhere(monkeypatch):
    spec = InputSpec("rgb", 64, 1, (128, 170), 112, (0.0, 255.0), (0.0,) * 3, (1.0,) * 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert usual_batch(spec, CPU) == 2
    assert usual_batch(replace(spec, crop=224), CPU) == 1
    assert usual_batch(replace(spec, clip_length=4, crop=32), CPU) == 16
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert usual_batch(spec, CPU) == 16
    assert usual_batch(spec, torch.device("cuda")) == 16
    model = SimpleNamespace(spec=spec, cpu_only=False)
    assert resolve_evaluation(model, EvaluateOptions(batch_views=7), CPU, exact=False).batch_views == 7


def test_exact_is_what_any_part_of_the_paper_asks_for():
    assert not is_exact(Experiment())
    assert is_exact(Experiment(data=DataOptions(sampling="paper")))
    assert is_exact(Experiment(data=DataOptions(augment=AugmentOptions(protocol="paper"))))
    assert is_exact(Experiment(train=TrainOptions(selection="paper")))


def tiny() -> Recognizer:
    backbone = MobileNetV2(width=0.2, temporal_stride=4)
    return network("mobilenetv2_3d", backbone=backbone.model_dump(), head=BertHead(heads=2).model_dump())


@torch.no_grad()
def test_nothing_asked_for_is_the_model_itself():
    model = tiny()
    assert prepare_for_inference(model, EvaluateOptions(fold=False)) is model


@torch.no_grad()
def test_without_a_compiler_or_where_it_fails_the_network_itself_answers(monkeypatch, capsys):
    model = tiny()
    options = EvaluateOptions(fold=False, compile=True)
    monkeypatch.setattr(network_module.shutil, "which", lambda name: None)
    assert not isinstance(prepare_for_inference(model, options), Compiled)
    assert capsys.readouterr().err.count("not compiled: no C++ compiler found") == 1

    def failing(*_: object) -> torch.Tensor:
        raise RuntimeError("inductor says\nmany lines")

    made = Compiled(model, failing)
    torch.testing.assert_close(made(clips(model)), model(clips(model)))
    made(clips(model))
    err = capsys.readouterr().err
    assert err.count("torch.compile fails for this network (inductor says)") == 1
    made = Compiled(model, lambda x: model.forward_normalised(x) + 1)
    torch.testing.assert_close(made(clips(model)), model(clips(model)) + 1)
    made._fast = failing
    with pytest.raises(
        RuntimeError, match="inductor says"
    ):  # it has worked before: this is no missing compiler
        made(clips(model))


@pytest.mark.slow
@torch.inference_mode()
def test_compiled_logits_are_the_same():
    model = tiny().channels_last()
    made = prepare_for_inference(model, EvaluateOptions(compile=True))
    assert isinstance(made, Compiled)
    assert gap(made(clips(model)), model(clips(model))) < 1e-4
