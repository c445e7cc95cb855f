"""Small networks with known weights, and what their outputs are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from two_stream import create_model
from two_stream.backbones.x3d import SqueezeExcitation
from two_stream.config.model import ModelOptions
from two_stream.recognizer import Recognizer

CLASSES = 5
DIVISIBLE: dict[str, dict[str, Any]] = {"motion_grid": {"rows": 4}}
"""A width that BERT's 8 heads divide where the usual one is none (36)."""
SMALL_BACKBONES: dict[str, dict[str, Any]] = {
    **DIVISIBLE,
    "resnet3d": {"depth": 10, "width": 0.25, "temporal_stride": 4},
    "resnext3d": {"depth": 50, "width": 0.25, "temporal_stride": 4},
    "mobilenetv2_3d": {"width": 0.2, "temporal_stride": 4},
    "i3d": {"width": 0.25, "temporal_stride": 4},
    "mobilenet_3d": {"width": 0.25, "temporal_stride": 4},
    "shufflenet_3d": {"groups": 1, "width": 0.2832, "temporal_stride": 4},
    "shufflenetv2_3d": {"width": 0.25, "temporal_stride": 4},
    "squeezenet_3d": {"width": 0.25, "temporal_stride": 4},
    "c3d": {"width": 0.0625, "temporal_stride": 2, "side": 2},
    "csn": {"depth": 26, "width": 0.25, "temporal_stride": 4},
    "densenet3d": {"growth": 4, "temporal_stride": 4},
    "x3d": {"depth": 0.5, "width": 0.7},
    "slow": {"width": 0.125},
    "slowfast": {"width": 0.25, "fast_stride": 1, "alpha": 2},
    "r2plus1d": {"depth": 18, "width": 0.125, "temporal_stride": 4},
    "timm": {"name": "test_resnet", "temporal_stride": 4},
    "torchvision": {"name": "mc3_18"},
    "hf_video": {
        "config": {
            "image_size": 32,
            "num_frames": 8,
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 96,
        }
    },
}
"""Settings that make a kind small; a kind without an entry is used as it is."""


def network(classes: int = 3, *, seed: int = 0, **options: Any) -> Recognizer:
    """Build a network with random weights; keyword arguments are fields of `ModelOptions`."""
    torch.manual_seed(seed)
    return Recognizer(ModelOptions(**options), classes)


def made(name: str = "rgb", **options: Any) -> Recognizer:
    """Build a network in float64 whose BatchNorms have the statistics of a clip, so that what passes is not lost.

    The same at every call.
    """
    torch.manual_seed(0)
    model = create_model(name, CLASSES, **options)
    for part in model.modules():
        if isinstance(part, (nn.BatchNorm3d, nn.BatchNorm2d)):
            part.momentum = None  # the mean of all that is seen: of one batch
    with torch.no_grad():
        model.train()(frames_of(model, model.spec.clip_length, side=side_of(model, 64), batch=2))
    return model.eval().double()


def side_of(model: Recognizer, side: int) -> int:
    """Return the side of the frames that a network is tried on: a small one, or its own where it takes no other."""
    fixed = getattr(model.backbone, "fixed", (None, None))[1] is not None
    return model.spec.crop if fixed or model.options.backbone.kind == "c3d" else min(side, model.spec.crop)


def small(**options: Any) -> Recognizer:
    """Build a narrow MobileNetV2 with a token every 4 frames, 16 frames a clip."""
    backbone = {"kind": "mobilenetv2_3d", "width": 0.25, "temporal_stride": 4}
    given = {"backbone": backbone, "head": {"kind": "average"}, "input": {"crop": 32}}
    return made("efficient3d/mobilenetv2_0.45x", **(given | options))


def frames_of(model: Recognizer, count: int, *, side: int = 32, batch: int = 1) -> torch.Tensor:
    """Return frames whose brightness and place of light change, so that time is seen in the predictions."""
    generator = torch.Generator().manual_seed(1)
    shape = (batch, model.spec.channels, count, side, side)
    noise = torch.randint(0, 128, shape, generator=generator)
    light = torch.randint(0, 128, (*shape[:3], 4, 4), generator=generator)
    return (noise + light.repeat_interleave(side // 4, 3).repeat_interleave(side // 4, 4)).to(torch.uint8)


@torch.inference_mode()
def clip_predictions(model: Recognizer, frames: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Return the logits `(B, m, K)` of every window of the clip network's tokens over all frames."""
    maps = [feature.tensor for feature in model.backbone(model.normalised(frames))]
    counts = model.backbone.num_tokens(window or model.spec.clip_length)
    strides = model.backbone.temporal_stride
    steps = [max(strides) // stride for stride in strides]
    number = min((x.shape[2] - n) // s + 1 for x, n, s in zip(maps, counts, steps, strict=True))
    tokens = []  # all windows as one batch
    for head, x, n, s in zip(model.heads, maps, counts, steps, strict=True):
        windows = [x[:, :, place * s : place * s + n] for place in range(number)]
        tokens.append(head.pool(torch.cat(windows)))
    return model._classified(tokens).unflatten(0, (number, -1)).movedim(0, 1)


@torch.inference_mode()
def dense_predictions(model: Recognizer, frames: torch.Tensor) -> torch.Tensor:
    """Return the logits of every window of a network that classifies places."""
    (feature,) = model.backbone(model.normalised(frames))
    places = torch.relu(model.classifier(feature.tensor.movedim(1, -1)))
    return places.mean((2, 3)).unfold(1, model.backbone.num_tokens(model.spec.clip_length)[0], 1).mean(-1)


def each_frame_squeezed(part: SqueezeExcitation, x_BCTHW: torch.Tensor) -> torch.Tensor:
    """Squeeze-and-excitation of each frame by itself, in the place of the module's forward pass."""
    mean = x_BCTHW.mean((3, 4), keepdim=True)
    return x_BCTHW * torch.sigmoid(part.fc2(torch.relu(part.fc1(mean))))


def assert_near(found: torch.Tensor, wanted: torch.Tensor, limit: float = 1e-9) -> None:
    """Check that logits differ by less than `limit` of their spread, and that they change in time."""
    assert found.shape == wanted.shape
    spread = wanted.std()
    assert wanted.std(1).max() > 1e-3 * spread
    assert float((found - wanted).abs().max() / spread) < limit


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


def settled_model(options: ModelOptions, seed: int = 0) -> Recognizer:
    """A network whose norms have the statistics of noise, and whose head is far from the identity.

    Rounding stays small in it, on any processor. A random layer whose ReLU cuts half of the signal off passes a
    difference on enlarged, and fifty layers a thousand times; norms with a bias of one let most of the signal through.
    Logits in float32 then lie within 2e-6 of those in float64 (3e-5 with a bias of zero), relative to the largest, so
    two ways to compute them within 4e-6 of each other: the tests' limit is 1e-5.
    """
    torch.manual_seed(seed)
    model = create_model(options, num_classes=3)
    norms = [
        part for part in model.modules() if isinstance(part, (torch.nn.BatchNorm2d, torch.nn.BatchNorm3d))
    ]
    for norm in norms:
        norm.momentum = None
        torch.nn.init.ones_(norm.bias)
    model.train()
    spec = model.spec
    with torch.no_grad():
        spots = 255 * torch.rand(6, spec.channels, 2, 4, 4)
        clips = functional.interpolate(spots, size=(spec.clip_length, 32, 32), mode="trilinear")
        model(clips)
        for norm in norms:
            norm.momentum = 0.1
        for parameter in [*model.heads.parameters(), *model.classifier.parameters()]:
            parameter.add_(0.02 * torch.randn_like(parameter))
        model.eval()
        model.classifier.weight.div_(model(clips).std(dim=0).max())
    return model


def difference(ours: NDArray[Any] | None, theirs: NDArray[Any] | None) -> float:
    """Largest difference of logits, relative to the largest logit where that is above 1."""
    assert ours is not None
    assert theirs is not None
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))
