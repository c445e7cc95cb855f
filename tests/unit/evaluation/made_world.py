"""A small data set of real videos, and untrained runs that know it."""

from pathlib import Path

import av
import numpy as np
import torch
import yaml

from two_stream.config.backbones import MobileNetV2
from two_stream.config.heads import AverageHead
from two_stream.config.load import dump
from two_stream.config.model import InputOptions, ModelOptions
from two_stream.config.schema import DataOptions, EvaluateOptions, Experiment, TrainOptions
from two_stream.pretrained import write_model
from two_stream.recognizer import create_model

CLASSES = ["left", "right", "stay"]
SMALL = EvaluateOptions(views="multi", crops="three", batch_views=5, keep_views=True, precision="fp32")


def write_video(path: Path, frames: int, step: int, fps: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(frames).integers(0, 256, (48, 200, 1), dtype=np.uint8)
    texture = np.repeat(grey, 3, axis=2)  # JPEG halves the resolution of colour
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            start = 60 + step * number
            picture = np.ascontiguousarray(texture[:, start : start + 64])
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def settle(model) -> None:
    """Give BatchNorm the statistics of noise, so that the logits of an untrained network differ between clips."""
    norms = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm3d)]
    for norm in norms:
        norm.momentum = None
    model.train()
    clips = torch.randint(0, 256, (24, model.spec.channels, 4, 4, 4), dtype=torch.uint8)
    with torch.no_grad():
        model(torch.nn.functional.interpolate(clips.float(), size=(4, 32, 32)))
        model.classifier.weight.mul_(5)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


def write_run(root: Path, modality: str, *, names=CLASSES, selection="holdout", **data) -> Path:
    options = ModelOptions(
        modality=modality,
        backbone=MobileNetV2(width=0.25),
        head=AverageHead(),
        input=InputOptions(clip_length=4, resize=(36, 48), crop=32),
    )
    given = {"dataset": "toy", "settings_root": root / "settings", "source": "videos", "workers": 0, **data}
    experiment = Experiment(
        name=modality,
        runs=root,
        seed=3,
        model=options,
        data=DataOptions(**given),
        evaluate=SMALL,
        train=TrainOptions(selection=selection),
    )
    torch.manual_seed(len(modality))
    model = create_model(options, num_classes=len(names))
    settle(model)
    folder = root / modality
    write_model(folder / "best", model, {"class_names": list(names), "epoch": 7})
    (folder / "experiment.yaml").write_text(dump(experiment))
    return folder


def make_world(root: Path) -> Path:
    """Nine videos of three classes, their lists, an RGB and a flow run."""
    settings = root / "settings" / "toy"
    settings.mkdir(parents=True)
    record = {"name": "toy", "classes": CLASSES, "videos": str(root / "videos"), "group": r"_(g\d)$"}
    record["frames"] = {"rgb": str(root / "frames"), "flow": str(root / "frames")}
    (settings / "dataset.yaml").write_text(yaml.safe_dump(record))
    lists = {(part, modality): [] for part in ("train", "val") for modality in ("rgb", "flow")}
    for label, (name, step) in enumerate(zip(CLASSES, (-4, 4, 0))):
        for group, frames in enumerate((5, 9, 13), start=1):
            video = f"{name}/v_g{group}"
            write_video(root / "videos" / f"{video}.mp4", frames, step)
            part = "val" if group == 3 else "train"
            lists[part, "rgb"].append(f"{video} {frames} {label}")
            lists[part, "flow"].append(f"{video} {frames - 1} {label}")
    for (part, modality), found in lists.items():
        (settings / f"{part}_{modality}_split1.txt").write_text("\n".join(found) + "\n")
    write_run(root, "rgb")
    write_run(root, "flow")
    return root
