"""Logits equal to the published code's, through our importer, for every network that exists here.

The numbers come from `shared/fixtures` (see its README): a fixture gives keys and shapes, a deterministic filling, a
clip and the logits. `-m parity` prints the worst relative error of each; the full sweep is `slow`.
"""

import gzip
import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from two_stream import create_model, load_weights, zoo
from two_stream.pretrained import read_state
from two_stream.pretrained.converting import export_checkpoint, import_checkpoint
from two_stream.profiling.costs import multiply_adds
from two_stream.recognizer import Recognizer

pytestmark = pytest.mark.parity

LATE_TEMPORAL = [
    "rgb_resneXt3D64f101",
    "flow_resneXt3D64f101",
    "rgb_resneXt3D64f101_adamw",
    "rgb_resneXt3D64f101_FRMB_adamw",
    "rgb_resneXt3D64f101_bert10_FRAB",
    "rgb_resneXt3D64f101_bert10_FRMB",
    "flow_resneXt3D64f101_bert10_FRAB",
    "flow_resneXt3D64f101_bert10_FRMB",
    "rgb_resneXt3D64f101_FRMB_lstm",
    "rgb_resneXt3D64f101_concatenation",
    "rgb_resneXt3D64f101_FRMB_NLB_concatenation",
    "rgb_slowfast64f_50",
    "rgb_slowfast64f_50_bert10_FRAB_late",
    "rgb_slowfast64f_50_bert10_FRAB_early",
    "rgb_slowfast64f_50_bert10_FRMB_late",
    "rgb_slowfast64f_50_bert10_FRMB_early",
    "rgb_I3D64f",
    "flow_I3D64f",
    "rgb_I3D64f_bert2",
    "flow_I3D64f_bert2",
    "rgb_I3D64f_bert2_FRMB",
    "flow_I3D64f_bert2_FRMB",
    "rgb_I3D64f_bert2_FRAB",
    "flow_I3D64f_bert2_FRAB",
    "rgb_r2plus1d_32f_34",
    "rgb_r2plus1d_32f_34_bert10",
    "rgb_r2plus1d_64f_34_bert10",
]

FAMILIES = [
    *(f"efficient3d__mobilenetv2_{width}x_c27" for width in ("0.2", "0.45", "0.7", "1.0")),
    *(f"efficient3d__mobilenetv2_{width}x_c600" for width in ("0.2", "0.45", "0.7", "1.0")),
    "efficient3d__c3d_c600",
    *(
        f"efficient3d__{name}_c{classes}"
        for classes in (27, 600)
        for name in (
            *(f"mobilenet_{width}x" for width in ("0.5", "1.0", "1.5", "2.0")),
            *(f"shufflenet_g3_{width}x" for width in ("0.5", "1.0", "1.5", "2.0")),
            *(f"shufflenetv2_{width}x" for width in ("0.25", "1.0", "1.5", "2.0")),
            "squeezenet_1.0",
            "squeezenet_1.1",
        )
    ),
    *(f"efficient3d__shufflenet_g{groups}_1.0x_c27" for groups in (1, 2, 4, 8)),
    "efficient3d__shufflenetv2_0.5x_c27",
    "efficient3d__resnet10_B_c27",
    "efficient3d__resnet18_A_c27",
    "efficient3d__resnet18_A_c600",
    "efficient3d__resnet18_B_c27",
    "efficient3d__resnet34_A_c27",
    "efficient3d__resnet50_A_c27",
    "efficient3d__resnet50_B_c600",
    "efficient3d__resnet101_B_c600",
    "efficient3d__resnext50_B_c27",
    "efficient3d__resnext101_B_c600",
    "3dresnets__resnet10",
    "3dresnets__resnet18",
    "3dresnets__resnet18_A",
    "3dresnets__resnet18_ct1_s2_nopool",
    "3dresnets__resnet18_widen0.5",
    "3dresnets__resnet34",
    "3dresnets__resnet50",
    "3dresnets__resnet101",
    "3dresnets__resnet152",
    "3dresnets__resnet200",
    "3dresnets__resnext50",
    "3dresnets__resnext101",
    *(f"3dresnets__{name}" for name in ("preresnet18", "preresnet50", "wideresnet50_k2")),
    *(f"3dresnets__resnet2p1d{depth}" for depth in (18, 34, 50)),
    *(f"3dresnets__densenet{depth}" for depth in (121, 169, 201)),
    *(f"compressed__csn{name}_c101" for name in ("26_ip", "26_ir", "50_ip", "50_ir", "101_ip", "152_ip")),
    *(f"co3d__x3d_{size}{small}" for size in ("xs", "s", "m", "l") for small in ("", "_small")),
    *(
        f"co3d__{name}_r50{small}"
        for name in ("slow_8x8", "i3d_8x8", "slowfast_4x16", "slowfast_8x8")
        for small in ("", "_small")
    ),
    "co3d__r2plus1d_18_t8",
    "co3d__r2plus1d_18_t16",
    "compressed__mobilenetv2_1.0x_c101",
    "compressed__resnet18_A_c101",
    "compressed__resnet18_B_c101",
    "compressed__resnet50_B_c101",
]
LIKE_OTHERS = {
    "rgb_resneXt3D64f101_adamw",
    "rgb_resneXt3D64f101_FRMB_adamw",
    "flow_resneXt3D64f101",
    "rgb_resneXt3D64f101_bert10_FRAB",
    "flow_resneXt3D64f101_bert10_FRMB",
    "flow_I3D64f_bert2",
    "rgb_slowfast64f_50",
    "rgb_slowfast64f_50_bert10_FRAB_early",
    "rgb_slowfast64f_50_bert10_FRAB_late",
    "rgb_slowfast64f_50_bert10_FRMB_late",
    "rgb_I3D64f",
    "flow_I3D64f",
    "rgb_I3D64f_bert2",
    "flow_I3D64f_bert2_FRMB",
    "rgb_I3D64f_bert2_FRAB",
    "flow_I3D64f_bert2_FRAB",
    "rgb_r2plus1d_32f_34",
    "rgb_r2plus1d_64f_34_bert10",
}
"""Networks that share their backbone, reduction, head and stream, each with one of the networks compared by default."""
QUICK_FAMILIES = {
    *(f"co3d__{name}_small" for name in ("x3d_s", "slow_8x8_r50", "i3d_8x8_r50", "slowfast_4x16_r50")),
    "3dresnets__preresnet50",
    "3dresnets__resnet2p1d18",
    "3dresnets__densenet121",
    "compressed__csn26_ip_c101",
    "efficient3d__mobilenet_0.5x_c27",
    "efficient3d__shufflenet_g3_1.0x_c27",
    "efficient3d__shufflenetv2_1.0x_c27",
    "efficient3d__squeezenet_1.1_c27",
    "efficient3d__mobilenetv2_0.45x_c27",
    "efficient3d__resnet18_A_c27",
    "3dresnets__resnet18_ct1_s2_nopool",
    "3dresnets__resnext50",
    "compressed__mobilenetv2_1.0x_c101",
}


def load(deterministic: ModuleType, path: Path, tmp_path: Path) -> tuple[dict, Recognizer]:
    """Read a fixture, write its checkpoint as the published trainers do, load that into the named model."""
    fixture = json.loads(gzip.decompress(path.read_bytes()))
    name = path.name.removesuffix(".json.gz")
    name = f"late_temporal/{name}" if "__" not in name else name.replace("__", "/")
    classes = fixture["num_classes"]
    named = re.sub(rf"_c{classes}$|_small$|_t\d+$", "", name)
    _, _, frames, side, _ = fixture["input_shape"]
    changes = {"input": {"clip_length": frames, "crop": side}} if name.startswith("co3d/") else {}
    model = create_model(named, classes, **changes)
    if "gmacs" in fixture:
        assert multiply_adds(model) / 1e9 == pytest.approx(fixture["gmacs"], rel=1e-5)
    scale = fixture.get("weight_scale", 1.0)
    filled = deterministic.state_dict(fixture["state_dict"], fixture["weight_seed"])
    state = {
        fixture.get("checkpoint_prefix", "") + key: torch.from_numpy(
            value * scale if value.ndim >= 2 else value
        )
        for key, value in filled.items()
    }
    checkpoint = tmp_path / "model_best.pth.tar"
    torch.save({"epoch": 3, "arch": name, "state_dict": state, "best_prec1": 71.5}, checkpoint)
    report = load_weights(model, checkpoint)
    checkpoint.unlink()
    # the published network holds some parameters twice, and some it never reads
    doubled = len(fixture.get("aliases", []))
    assert len(report.used) == len(state) - doubled - len(report.unused)
    assert not report.missing
    unread = sum(state[key].numel() for key in report.unused)
    assert sum(p.numel() for p in model.parameters()) == fixture["num_params"] - unread
    return fixture, model.eval()


def clips(deterministic: ModuleType, fixture: dict, kind: str, samples: int) -> torch.Tensor:
    make = getattr(deterministic, kind)
    return torch.from_numpy(make(fixture["input_shape"], fixture["input_seed"])[:samples])


@torch.inference_mode()
def logits(model: Recognizer, x_BCTHW: torch.Tensor) -> np.ndarray:
    return model.forward_normalised(x_BCTHW).numpy()


def late_temporal_error(deterministic, fixture, model, kind: str, samples: int) -> float:
    expected = np.array(fixture["logits_blocks" if kind == "blocks" else "logits"])[:samples]
    got = logits(model, clips(deterministic, fixture, kind, samples))
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def test_zoo_has_the_published_names():
    assert {r.alias for r in zoo.records("late_temporal/*")} == set(LATE_TEMPORAL)


@pytest.mark.parametrize(
    "name", [n if n not in LIKE_OTHERS else pytest.param(n, marks=pytest.mark.slow) for n in LATE_TEMPORAL]
)
def test_late_temporal(name, shared, deterministic, tmp_path, parity):
    path = shared / "fixtures" / "late_temporal" / "models" / f"{name}.json.gz"
    fixture, model = load(deterministic, path, tmp_path)
    parity(name, late_temporal_error(deterministic, fixture, model, "blocks", 1), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", LATE_TEMPORAL)
def test_late_temporal_with_both_clips(name, shared, deterministic, tmp_path, parity):
    path = shared / "fixtures" / "late_temporal" / "models" / f"{name}.json.gz"
    fixture, model = load(deterministic, path, tmp_path)
    worst = max(late_temporal_error(deterministic, fixture, model, kind, 2) for kind in ("blocks", "clip"))
    parity(f"{name} (both clips)", worst, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", LATE_TEMPORAL)
def test_late_temporal_to_ours_and_back(name, shared, deterministic, tmp_path):
    path = shared / "fixtures" / "late_temporal" / "models" / f"{name}.json.gz"
    fixture = json.loads(gzip.decompress(path.read_bytes()))
    filled = deterministic.state_dict(fixture["state_dict"], fixture["weight_seed"])
    state = {key: torch.from_numpy(value) for key, value in filled.items()}
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "theirs")
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours", name)
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    back = read_state(tmp_path / "back")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize(
    "name", [n if n in QUICK_FAMILIES else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]
)
def test_families(name, shared, deterministic, tmp_path, parity):
    path = shared / "fixtures" / "families" / "models" / f"{name}.json.gz"
    fixture, model = load(deterministic, path, tmp_path)
    expected = np.array(fixture["logits"])[:1]
    got = logits(model, clips(deterministic, fixture, "clip", 1))
    parity(name, float(np.abs(got - expected).max() / fixture["logit_std"]), 1e-5)


def test_every_clip_network_of_the_families_is_compared(shared):
    files = (shared / "fixtures" / "families" / "models").glob("*.json.gz")
    clip = {
        name for name in (f.name.removesuffix(".json.gz") for f in files) if not name.startswith("co3d__co")
    }
    assert clip == set(FAMILIES)
