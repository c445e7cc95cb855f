"""The video networks of torchvision, with the clips of its Kinetics-400 weights."""

from __future__ import annotations

from typing import Any

from two_stream.config.backbones import R2Plus1d, TorchvisionVideo
from two_stream.config.heads import AverageHead
from two_stream.config.model import InputOptions, ModelOptions
from two_stream.zoo.record import ModelRecord

MVIT = "Fan et al., Multiscale Vision Transformers (arXiv 2104.11227)"
MVIT2 = "Li et al., MViTv2 (arXiv 2112.01526)"
SWIN = "Liu et al., Video Swin Transformer (arXiv 2106.13230)"
S3D = "Xie et al., Rethinking Spatiotemporal Feature Learning (arXiv 1712.04851)"
TRAN = "Tran et al., A Closer Look at Spatiotemporal Convolutions (arXiv 1711.11248)"


def _record(name: str, backbone: Any, summary: str, paper: str, **options: Any) -> ModelRecord:
    made = ModelOptions(**{"backbone": backbone, "head": AverageHead(), "dropout": 0.0} | options)
    return ModelRecord(f"torchvision/{name}", made, summary, paper, alias=name)


def _wrapped(name: Any, summary: str, paper: str, **options: Any) -> ModelRecord:
    return _record(name, TorchvisionVideo(name=name), f"{summary}, average pooling", paper, **options)


RECORDS = (
    *(
        _record(
            name,
            TorchvisionVideo(name=name, class_token=True),
            f"{summary}, 16 frames, every 4th, class token",
            paper,
            dropout=0.5,
        )
        for name, summary, paper in (("mvit_v1_b", "MViT-B", MVIT), ("mvit_v2_s", "MViTv2-S", MVIT2))
    ),
    *(
        _wrapped(f"swin3d_{size}", f"Video Swin-{size.upper()}, 32 frames, every 2nd", SWIN)
        for size in ("t", "s", "b")
    ),
    _wrapped("s3d", "S3D, 128 frames, every 2nd", S3D, head=AverageHead(window=2), dropout=0.2),
    _wrapped("r3d_18", "R3D-18, 16 frames, every 2nd", TRAN),
    _wrapped("mc3_18", "MC3-18, 16 frames, every 2nd", TRAN),
    _record(
        "r2plus1d_18",
        R2Plus1d(depth=18, midplanes="block", norm_eps=1e-5),
        "R(2+1)D-18, 16 frames, every 2nd, average pooling",
        TRAN,
        input=InputOptions(clip_length=16, stride=2, resize=(128, 171)),
    ),
)
