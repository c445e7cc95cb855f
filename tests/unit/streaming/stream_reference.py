"""What a stream is compared with: the clip network over the whole stream at once, a window of its tokens at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from two_stream import create_model
from two_stream.backbones.x3d import SqueezeExcitation
from two_stream.recognizer import Recognizer

CLASSES = 5


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
    found = []
    for place in range(number):
        parts = [x[:, :, place * s : place * s + n] for x, n, s in zip(maps, counts, steps, strict=True)]
        tokens = [head.pool(x) for head, x in zip(model.heads, parts, strict=True)]
        found.append(model._classified(tokens))
    return torch.stack(found, 1)


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
