"""RGB differences (`modality: rgbdiff`): values from frame files, and a run that starts from RGB weights."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.helpers.datasets import SmallWorld
from two_stream import create_model, load_run, read_scores, streaming
from two_stream.cli import main
from two_stream.config.model import ModelOptions
from two_stream.data.clips.views import view_loader
from two_stream.errors import SettingsError
from two_stream.evaluation.scoring.score import Canvas
from two_stream.pretrained import read_state
from two_stream.recognizer import Recognizer, differences

FRAMES, SIDE, RESIZE = 4, 32, (36, 40)
BACKBONE = {"kind": "mobilenetv2_3d", "width": 0.2, "temporal_stride": 2}
PIXELS = {"value_range": [0, 1], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.5]}
INPUT = {"clip_length": FRAMES, "stride": 1, "resize": list(RESIZE), "crop": SIDE, **PIXELS}


def options(**more) -> ModelOptions:
    given = {"modality": "rgbdiff", "backbone": BACKBONE, "head": {"kind": "average"}, "dropout": 0.0}
    return ModelOptions.model_validate(given | {"input": INPUT | more.pop("input", {})} | more)


def by_hand(frames_THWC: NDArray[np.uint8], segments: int = 1) -> NDArray[np.float64]:
    """The definition, frame by frame: `(x[t] - x[t - 1]) / 255 / std`; a first frame gets the second's."""
    out, each = np.empty(frames_THWC.shape), len(frames_THWC) // segments
    for index in range(len(frames_THWC)):
        now = max(index, index // each * each + 1)
        change = frames_THWC[now].astype(float) - frames_THWC[now - 1].astype(float)
        out[index] = change / 255 / np.array(PIXELS["std"])
    return out


def seen_by(model: Recognizer) -> list[torch.Tensor]:
    """What the backbone gets, in the order of its calls."""
    seen: list[torch.Tensor] = []
    model.backbone.register_forward_pre_hook(lambda module, given: seen.append(given[0].clone()))
    return seen


@pytest.mark.parametrize("segments", [0, 2, 4])
def test_differences_are_those_of_numpy(segments):
    frames = np.random.default_rng(3).integers(0, 256, (8, SIDE, SIDE, 3), dtype=np.uint8)
    model = Recognizer(options(input={"clip_length": 8, "segments": segments}), 3).eval()
    seen = seen_by(model)
    with torch.inference_mode():
        model(torch.from_numpy(frames).permute(3, 0, 1, 2)[None])
    expected = by_hand(frames, segments or 1)
    np.testing.assert_allclose(seen[0][0].permute(1, 2, 3, 0), expected, atol=2e-6)


def test_a_still_clip_is_zero_and_every_output_sees_differences():
    model = Recognizer(options(), 3).eval()
    seen = seen_by(model)
    still = torch.full((2, 3, FRAMES, SIDE, SIDE), 77, dtype=torch.uint8)
    with torch.inference_mode():
        model.forward_vectors(still)
        model.forward_tokens(still)
        model.features_to_store(model.normalised(still), maps=True)
        model.forward_normalised(model.normalised(still))
    assert len(seen) == 4
    assert not any(x.any() for x in seen)
    assert differences(torch.arange(4.0).square().view(1, 1, 4, 1, 1)).flatten().tolist() == [1, 1, 3, 5]


def test_spec_and_weights_are_those_of_rgb():
    rgb, model = Recognizer(options(modality="rgb"), 3), Recognizer(options(), 3)
    assert model.spec == rgb.spec
    assert model.options.reads == model.backbone.modality == model.spec.modality == "rgb"
    model.load_state_dict(rgb.state_dict())
    named = create_model("3dresnets/resnet10", 3, modality="rgbdiff")
    assert named.spec == create_model("3dresnets/resnet10", 3).spec


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("differences")
    SmallWorld(root)
    return root


def run_of(root: Path, name: str, modality: str, *flags: str) -> Path:
    file = root / f"{name}.yaml"
    settings = {
        "name": name,
        "runs": str(root / "runs"),
        "device": "cpu",
        "threads": 1,
        "model": options().model_dump(mode="json") | {"modality": modality},
        "data": {"dataset": "tiny", "settings_root": str(root / "settings"), "workers": 0, "holdout": 0.4},
        "train": {"epochs": 1, "batch_size": 2, "log_images": False},
        "evaluate": {"views": "single", "crops": "center", "precision": "bf16"},
    }
    if modality == "flow":
        settings["model"]["input"] |= {"mean": [0.5, 0.5], "std": [0.2, 0.2]}
    file.write_text(json.dumps(settings))
    assert main(["train", str(file), *flags]) == 0
    assert main(["evaluate", str(root / "runs" / name)]) == 0
    return root / "runs" / name


def test_the_whole_path_from_files_to_a_third_stream(root, capsys):
    rgb, flow = run_of(root, "rgb", "rgb"), run_of(root, "flow", "flow")
    still = ("--train.optimizer.lr", "1e-30", "--train.optimizer.weight-decay", "0")
    run = run_of(root, "diff", "rgbdiff", "--train.init", str(rgb), *still)
    kept, before = (read_state(folder / "best")["backbone.stem.0.weight"] for folder in (run, rgb))
    torch.testing.assert_close(kept, before)

    found = load_run(run)
    data, evaluate = found.experiment.data, found.experiment.evaluate
    videos = found.videos("test")
    seen = seen_by(found.model)
    canvas = Canvas(found.model, torch.device("cpu"), "bf16", 1)
    for views in view_loader(data, evaluate, found.model.spec, videos, found.record):
        canvas.draw(0, views.view(0))
        canvas.logits(1)
    assert len(seen) == len(videos) > 1
    for video, x in zip(videos, seen):
        folder = root / "settings" / "tiny" / "frames" / video.id
        first = (video.num_frames - FRAMES) // 2 + 1
        files = [folder / f"img_{first + index:05d}.jpg" for index in range(FRAMES)]
        images = np.stack([cv2.imread(str(file))[2 : 2 + SIDE, 4 : 4 + SIDE, ::-1] for file in files])
        np.testing.assert_allclose(x[0].permute(1, 2, 3, 0), by_hand(images), atol=2e-6)

    scores = next((run / "scores").glob("*.npz"))
    assert read_scores(scores).meta["modality"] == "rgbdiff"
    fused = root / "fused.npz"
    assert main(["fuse", str(rgb), str(flow), str(run), "--out", str(fused)]) == 0
    assert read_scores(fused).meta["modality"] == "rgb + flow + rgbdiff"
    video = str(root / "settings" / "tiny" / "frames" / videos[0].id)
    capsys.readouterr()
    streams = ["--rgb", str(rgb), "--rgb", str(run), "--flow", str(flow)]
    assert main(["predict", video, *streams, "--json", "-"]) == 0
    assert list(json.loads(capsys.readouterr().out)[0]["streams"]) == ["rgb", "rgbdiff", "flow"]
    assert main(["predict", video, "--flow", str(run)]) == 2
    assert "pass it with --rgb" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["pt2", pytest.param("onnx", marks=pytest.mark.slow)])
def test_an_export_computes_the_differences(root, to):
    pytest.importorskip("onnxruntime")
    import export_table as page

    model = {"modality": "rgbdiff"}
    case = page.Case("rgbdiff", BACKBONE, {"crop": 64, "clip_length": 8, "resize": [64, 64]}, model)
    assert page.exported(case, "average", to) == page.YES


def test_streams_and_what_contradicts_are_refused_in_one_line():
    with pytest.raises(SettingsError, match=r"RGB differences cannot stream.*--mode sliding"):
        streaming.convert(Recognizer(options(), 3))
    with pytest.raises(SettingsError, match="needs two frames of each segment"):
        Recognizer(options(input={"segments": FRAMES}), 3)
    with pytest.raises(ValueError, match="both compute differences"):
        options(backbone={"kind": "timm", "difference": "alone"})
    with pytest.raises(ValueError, match="only flow is stacked"):
        options(input={"stack": 2})
