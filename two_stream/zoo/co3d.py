"""The clip networks of co3d, which come from PySlowFast and torchvision."""

from __future__ import annotations

from typing import Any, Literal

from two_stream.config.backbones import R2Plus1d, Slow, SlowFast, X3d
from two_stream.config.heads import AverageHead
from two_stream.config.model import InputOptions, ModelOptions
from two_stream.zoo.record import ModelRecord

X3D = "Feichtenhofer, X3D: Expanding Architectures for Efficient Video Recognition (arXiv 2004.04730)"
SLOWFAST = "Feichtenhofer et al., SlowFast Networks for Video Recognition (arXiv 1812.03982)"
NONLOCAL = "Wang et al., Non-local Neural Networks (arXiv 1711.07971)"
R2PLUS1D = "Tran et al., A Closer Look at Spatiotemporal Convolutions (arXiv 1711.11248)"

SIZES: tuple[tuple[str, float, int, int, int, tuple[int, int]], ...] = (
    # name, depth, frames, stride, crop, resize
    ("xs", 2.2, 4, 12, 160, (182, 242)),
    ("s", 2.2, 13, 6, 160, (182, 242)),
    ("m", 2.2, 16, 5, 224, (256, 340)),
    ("l", 5.0, 16, 5, 312, (356, 474)),
)
VARIANTS: tuple[tuple[Literal["slow", "i3d"], str, str], ...] = (
    ("slow", "Slow-50 8×8", SLOWFAST),
    ("i3d", "I3D-ResNet-50 8×8", NONLOCAL),
)
PAIRS: tuple[tuple[str, int, Literal[5, 7]], ...] = (("4x16", 8, 5), ("8x8", 4, 7))
"""Name, alpha, length of the kernels between the pathways."""


def _record(name: str, backbone: Any, summary: str, paper: str, **options: Any) -> ModelRecord:
    made = ModelOptions(**{"backbone": backbone, "head": AverageHead(), "dropout": 0.5} | options)
    return ModelRecord(f"co3d/{name}", made, f"{summary}, average pooling", paper)


RECORDS = (
    *(
        _record(
            f"x3d_{name}",
            X3d(depth=depth),
            f"X3D-{name.upper()}, {frames} frames, every {stride}th",
            X3D,
            head=AverageHead(features=2048),
            input=InputOptions(clip_length=frames, stride=stride, crop=crop, resize=resize),
        )
        for name, depth, frames, stride, crop, resize in SIZES
    ),
    *(
        _record(f"{variant}_8x8_r50", Slow(variant=variant), f"{what}, 8 frames, every 8th", paper)
        for variant, what, paper in VARIANTS
    ),
    *(
        _record(
            f"slowfast_{name}_r50",
            SlowFast(fast_stride=1, alpha=alpha, fusion_kernel=kernel, spread=True),
            f"SlowFast-50 {name.replace('x', '×')}, 32 frames, every 2nd",
            SLOWFAST,
            input=InputOptions(crop=256),
        )
        for name, alpha, kernel in PAIRS
    ),
    _record(
        "r2plus1d_18",
        R2Plus1d(depth=18, midplanes="block", norm_eps=1e-5),
        "R(2+1)D-18, 16 frames",
        R2PLUS1D,
        dropout=0.0,
        input=InputOptions(clip_length=16),
    ),
)
