"""Networks of timm and transformers train from local weights, and their runs need nothing but themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.torch import save_file

from two_stream.backbones.timm_net import create
from two_stream.cli import main
from two_stream.config.backbones import TimmNet
from two_stream.pretrained import read_model, read_state

SIDE, FRAMES = 32, 4
CLASSES = ["left", "right"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six short frame folders of two classes, for RGB and flow."""
    root = tmp_path_factory.mktemp("library")
    dataset = root / "settings" / "tiny"
    dataset.mkdir(parents=True)
    lines = []
    for label, name in enumerate(CLASSES):
        for source in range(3):
            video = f"{name}_g{source}"
            folder = dataset / "frames" / video
            folder.mkdir(parents=True)
            pixels = np.random.default_rng(10 * label + source).integers(0, 255, (36, 40, 3), dtype=np.uint8)
            for number in range(1, 7):
                moved = np.roll(pixels, (4 * label - 2) * number, axis=1)
                cv2.imwrite(str(folder / f"img_{number:05d}.jpg"), moved)
                for axis in "xy":
                    cv2.imwrite(str(folder / f"flow_{axis}_{number:05d}.jpg"), moved[..., 0])
            lines.append(f"{video} 6 {label}\n")
    frames = {"rgb": "frames", "flow": "frames"}
    record = {"name": "tiny", "classes": CLASSES, "frames": frames, "group": r"_(g\d+)$"}
    (dataset / "dataset.yaml").write_text(yaml.safe_dump(record))
    for modality in ("rgb", "flow"):
        (dataset / f"train_{modality}_split1.txt").write_text("".join(lines))
        (dataset / f"val_{modality}_split1.txt").write_text("".join(lines[::3]))
    return root


def write_experiment(root: Path, name: str, model: dict, **train: object) -> Path:
    experiment = {
        "name": name,
        "runs": str(root / "runs"),
        "device": "cpu",
        "threads": 1,
        "model": {"head": {"kind": "bert", "heads": 2, "hidden": 16}, **model},
        "data": {"dataset": "tiny", "settings_root": str(root / "settings"), "workers": 0, "holdout": 0.4},
        "train": {
            "epochs": 1,
            "batch_size": 2,
            "optimizer": {"kind": "adamw", "lr": 1e-4},
            "log_images": False,
            **train,
        },
    }
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return path


def test_a_timm_network_trains_from_a_file_and_is_scored_without_it(root: Path) -> None:
    theirs = create(TimmNet(name="test_resnet"), 3)
    file = root / "weights.safetensors"
    save_file(theirs.state_dict(), file)
    backbone = {"kind": "timm", "name": "test_resnet", "tsm": 0.125, "pretrained": True, "weights": str(file)}
    size = {"clip_length": FRAMES, "stride": 1, "resize": [36, 40], "crop": SIDE}
    path = write_experiment(
        root, "timm", {"backbone": backbone, "input": size}, freeze_until="layer2", layer_decay=0.5
    )
    assert main(["train", str(path)]) == 0
    state = read_state(root / "runs" / "timm" / "last")
    frozen = state["backbone.layer1.0.conv1.layer.weight"]
    torch.testing.assert_close(frozen, theirs.layer1[0].conv1.weight)  # the file's, kept by freeze_until
    moved = state["backbone.layer4.0.conv1.layer.weight"] - theirs.layer4[0].conv1.weight
    assert 0 < moved.abs().max() < 1e-2
    file.unlink()
    assert main(["evaluate", str(root / "runs" / "timm"), "--views", "single", "--crops", "center"]) == 0


def test_a_video_transformer_trains_from_a_folder_and_goes_on_without_it(root: Path) -> None:
    folder = root / "videomae"
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        image_size=SIDE,
        num_frames=FRAMES,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    transformers.VideoMAEModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.2] * 3})
    )
    backbone = {"kind": "hf_video", "model": str(folder), "pretrained": True}
    model = {"backbone": backbone, "modality": "flow", "reduction": "frab", "reduced_channels": 16}
    path = write_experiment(
        root, "hf", model, gradient_checkpointing=True, layer_decay=0.75, freeze_until="block1", epochs=1
    )
    assert main(["train", str(path)]) == 0
    first = read_state(folder / "model.safetensors")["embeddings.patch_embeddings.projection.weight"]
    run = root / "runs" / "hf"
    kept = read_state(run / "last")["backbone.stem.embed.patch_embeddings.projection.weight"]
    torch.testing.assert_close(kept, first.mean(1, keepdim=True).expand_as(kept))
    shutil.rmtree(folder)
    assert main(["evaluate", str(run), "--views", "single", "--crops", "center"]) == 0
    assert read_model(run)[0].spec.std == pytest.approx((0.2, 0.2))
    assert main(["train", str(run / "experiment.yaml"), "--resume"]) == 0


def test_weights_that_cannot_be_had_end_a_training_before_it_begins(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = {"kind": "timm", "name": "test_resnet", "pretrained": True}
    path = write_experiment(root, "nothing", {"backbone": backbone})
    assert main(["train", str(path)]) == 2
    said = capsys.readouterr().err
    assert "timm's weights of test_resnet cannot be fetched" in said
    assert "`backbone.weights`" in said
    assert not (root / "runs" / "nothing" / "experiment.yaml").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--train.loss.kind", "focal", "--train.loss.alpha", "0.5"], "requires a multi-label data set"),
        (["--train.stage-rates", "nowhere", "0.1"], "nowhere"),
        (["--data.source", "shards", "--data.shards", "/nowhere"], "the index of shards cannot be read"),
    ],
)
def test_settings_that_do_not_fit_leave_no_folder(
    root: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    path = write_experiment(root, "unfit", {"backbone": {"kind": "timm", "name": "test_resnet"}})
    assert main(["train", str(path), *flags]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (root / "runs" / "unfit").exists()
