"""Int8 networks of every family: a layer computes what its float twin does of the same bytes; a file keeps it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.ao.nn import quantized as nnq

from two_stream.backbones import BACKBONES
from two_stream.errors import SettingsError
from two_stream.evaluation.scoring.network import prepare_for_inference, resolve_evaluation
from two_stream.heads import HEADS as EVERY
from two_stream.pretrained import read_model, write_model
from two_stream.recognizer import Recognizer, create_model
from two_stream.surgery import alter
from two_stream.surgery.int8 import ENGINES, Int8, has_vnni, use_engine

FAMILIES: dict[str, dict[str, Any]] = {
    "resnet3d": {"depth": 10, "width": 0.25, "shortcut": "A"},
    "resnext3d": {"depth": 50, "width": 0.25, "cardinality": 4},
    "mobilenetv2_3d": {"width": 0.25},
    "slowfast": {"width": 0.125},
    "i3d": {"width": 0.125},
    "r2plus1d": {"depth": 18, "width": 0.125},
    "mobilenet_3d": {"width": 0.25},
    "shufflenet_3d": {"width": 0.25},
    "shufflenetv2_3d": {"width": 0.25},
    "squeezenet_3d": {"width": 0.25},
    "csn": {"depth": 26, "width": 0.125},
    "densenet3d": {"growth": 4},
    "x3d": {"width": 1.0, "depth": 1.0},
    "slow": {"width": 0.125},
    "c3d": {"width": 0.125, "side": 2},
    "torchvision": {"name": "mc3_18"},
}
REFUSED = {"timm", "hf_video", "motion_grid"}
ACCEPTED = sorted(set(BACKBONES) - REFUSED)
HEADS: tuple[dict[str, Any], ...] = (
    {"kind": "bert", "heads": 2},
    {"kind": "lstm", "hidden": 12},
    {"kind": "concat", "features": 12},
    {"kind": "moments"},
    {"kind": "nonlocal"},
)
HEADS += tuple({"kind": kind} for kind in EVERY if kind not in {head["kind"] for head in HEADS})


def built(backbone: dict[str, Any], head: dict[str, Any] | None = None, crop: int = 32) -> Recognizer:
    """Return a network of 16 frames whose BatchNorms have seen clips, so that its maps have a usual size."""
    torch.manual_seed(0)
    model = create_model(
        "co3d/x3d_xs",
        num_classes=4,
        backbone=backbone,
        head=head or {"kind": "average"},
        input={"clip_length": 16, "stride": 1, "resize": (crop, crop), "crop": crop},
    )
    for part in model.modules():
        if isinstance(part, nn.BatchNorm3d):
            part.momentum = None
    with torch.no_grad():
        model.train()(clips(model))
    return model.eval()


def clips(model: Recognizer, count: int = 3) -> torch.Tensor:
    """Return smooth clips, uint8."""
    spec = model.spec
    noise = torch.randint(0, 256, (count, 3, 4, 6, 6), generator=torch.Generator().manual_seed(1)).float()
    size = (spec.clip_length, spec.crop, spec.crop)
    return nn.functional.interpolate(noise, size=size, mode="trilinear").to(torch.uint8)


def quantised(model: Recognizer, **options: Any) -> Recognizer:
    made = Int8(observer="minmax", **options)
    made.observe(model)
    with torch.inference_mode():
        model(clips(model))
    made.convert(model)
    model.alterations.append(made)
    return model


class Compared(fx.Interpreter):
    """Runs a graph and compares every int8 convolution with the float one of the same bytes."""

    worst = 0
    count = 0

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        layer = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        if isinstance(layer, nnq.Conv3d):
            x = self.env[n.args[0]].dequantize()
            options = (layer.stride, layer.padding, layer.dilation, layer.groups)
            plain = nn.functional.conv3d(x, layer.weight().dequantize(), layer.bias(), *options)
            plain = plain.relu() if "ReLU" in type(layer).__name__ else plain
            wanted = torch.quantize_per_tensor(plain.detach(), layer.scale, layer.zero_point, torch.quint8)
            self.worst = max(self.worst, int((made.int_repr().int() - wanted.int_repr().int()).abs().max()))
            self.count += 1
            return made.clone()  # an activation behind it may work in place
        return made


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow)
        if kind in ("slowfast", "densenet3d", "shufflenetv2_3d", "resnext3d")
        else kind
        for kind in ACCEPTED
    ],
)
def test_every_convolution_computes_its_float_twin_and_a_file_keeps_it(kind: str, tmp_path: Path) -> None:
    model = built({"kind": kind, **FAMILIES.get(kind, {})}, crop=64 if kind == "c3d" else 32)
    convolutions = sum(isinstance(part, nn.Conv3d) for part in model.backbone.modules())
    x_BCTHW = clips(model, 2)
    with torch.inference_mode():
        wanted = model(x_BCTHW)
        made = quantised(model)(x_BCTHW)
        run = Compared(model.backbone.graph)  # type: ignore[arg-type]
        run.run(model.normalised(x_BCTHW))
    assert run.count == convolutions
    assert run.worst <= 1
    assert not [name for name, part in model.named_modules() if type(part) in (nn.Conv3d, nn.Linear)]
    assert made.isfinite().all()
    assert not torch.equal(made, wanted)
    write_model(tmp_path / "int8", model, {})
    again = read_model(tmp_path / "int8")[0]
    with torch.inference_mode():
        assert torch.equal(again(x_BCTHW), made)


def test_a_well_behaved_network_says_nearly_the_same(tmp_path: Path) -> None:
    model = built({"kind": "resnet3d", "depth": 10, "width": 0.5}, crop=64)
    write_model(tmp_path / "float", model, {})
    with torch.inference_mode():
        wanted = model(clips(model))
        made = quantised(model)(clips(model))
    noise = (made - wanted).pow(2).mean()
    # without VNNI weights have half as many steps: twice the rounding, and 4 times, or 6.02 dB, the noise at most
    assert 10 * torch.log10(wanted.pow(2).mean() / noise) > (20.0 if has_vnni() else 20.0 - 6.02)
    write_model(tmp_path / "int8", model, {})
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("float", "int8")]
    assert sizes[1] < 0.3 * sizes[0]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head["kind"])
def test_heads(head: dict[str, Any], tmp_path: Path) -> None:
    model = built({"kind": "resnet3d", "depth": 10, "width": 0.25}, head, crop=64)
    with torch.inference_mode():
        wanted = model(clips(model))
        made = quantised(model)(clips(model))
    assert not [name for name, part in model.named_modules() if type(part) is nn.Linear]
    assert 10 * torch.log10(wanted.pow(2).mean() / (made - wanted).pow(2).mean()) > 12.0
    write_model(tmp_path, model, {})
    with torch.inference_mode():
        assert torch.equal(read_model(tmp_path)[0](clips(model)), made)


def test_what_is_kept_stays_in_float() -> None:
    model = built({"kind": "resnet3d", "depth": 10, "width": 0.25})
    quantised(model, keep=("stem", "layer2.*.conv1", "classifier"))
    left = [name for name, part in model.named_modules() if type(part) in (nn.Conv3d, nn.Linear)]
    assert left == ["backbone.graph.stem.0.0", "backbone.graph.layer2.0.conv1.0", "classifier"]
    assert model(clips(model)).isfinite().all()


def test_a_scale_per_weight(tmp_path: Path) -> None:
    model = quantised(built({"kind": "resnet3d", "depth": 10, "width": 0.25}), per_channel=False)
    weight = model.backbone.graph.get_submodule("layer1.0.conv1").weight()  # type: ignore[operator, union-attr]
    assert weight.qscheme() == torch.per_tensor_affine
    write_model(tmp_path, model, {})
    with torch.inference_mode():
        assert torch.equal(read_model(tmp_path)[0](clips(model)), model(clips(model)))


@pytest.mark.parametrize(
    ("keep", "words"),
    [(("steem",), "'steem' matches no layer; expected a stage \\(stem"), (("*",), "nothing is left")],
)
def test_wrong_patterns(keep: tuple[str, ...], words: str) -> None:
    model = built({"kind": "resnet3d", "depth": 10, "width": 0.25})
    with pytest.raises(SettingsError, match=words):
        alter(model, Int8(keep=keep))


def test_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert use_engine("auto") in ENGINES
    assert use_engine("an engine of another machine") in ENGINES
    monkeypatch.setattr("two_stream.surgery.int8.ENGINES", ("none",))
    with pytest.raises(SettingsError, match="no suitable int8 engine"):
        use_engine("auto")


@pytest.mark.parametrize(
    ("cap", "flags", "there"),
    [
        ("", {"avx2", "avx512_vnni"}, True),
        ("", {"avx2", "avx512f"}, False),
        ("AVX2", {"avx_vnni", "avx512_vnni", "amx_int8"}, False),
        ("avx512_core", {"avx512_vnni"}, False),
        ("AVX2_VNNI", {"avx512_vnni"}, False),
        ("AVX2_VNNI", {"avx_vnni"}, True),
        ("AVX512_CORE_VNNI", {"avx512_vnni"}, True),
        ("DEFAULT", {"avx512_vnni"}, True),
    ],
)
@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_the_cap_of_onednn_counts(
    variable: str, cap: str, flags: set[str], there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, cap)
    monkeypatch.setattr("two_stream.surgery.int8.cpu_flags", lambda: flags)
    assert has_vnni() is there


def test_an_int8_network_is_evaluated_as_it_is() -> None:
    from two_stream.config.schema import EvaluateOptions

    model = quantised(built({"kind": "resnet3d", "depth": 10, "width": 0.25}))
    assert model.cpu_only
    asked = EvaluateOptions(precision="bf16", fold=True, compile=True)
    options = resolve_evaluation(model, asked, model.device, exact=False)
    assert (options.precision, options.fold, options.compile) == ("fp32", False, False)
    assert prepare_for_inference(model, options) is model


def test_a_torch_without_quantisation_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.ao.quantization")]:
        monkeypatch.setitem(sys.modules, name, None)
    model = built({"kind": "resnet3d", "depth": 10, "width": 0.25})
    with pytest.raises(
        SettingsError, match=r"has no torch\.ao\.quantization, which int8 networks require"
    ) as caught:
        alter(model, Int8())
    assert "\n" not in str(caught.value)
    assert model.alterations == []


def test_only_int8_imports_the_quantisation_of_torch() -> None:
    code = (
        "import sys, torch\n"
        "for name in [name for name in sys.modules if name.startswith('torch.ao.')]: sys.modules[name] = None\n"
        "import two_stream.compression.quantization, two_stream.profiling.timing, two_stream.surgery.int8\n"
        "import two_stream.commands.compress.comparison, two_stream.studies.result, two_stream.commands.compress\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
