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

_TOKEN = {"class_token": True}
_R2PLUS1D = R2Plus1d(depth=18, midplanes="block", norm_eps=1e-5)
_SIXTEEN = InputOptions(clip_length=16, stride=2, resize=(128, 171))
_TABLE: tuple[tuple[str, str, str, dict[str, Any], dict[str, Any]], ...] = (
    # name, summary, paper, options of the backbone, options of the model
    ("mvit_v1_b", "MViT-B, 16 frames, every 4th, class token", MVIT, _TOKEN, {"dropout": 0.5}),
    ("mvit_v2_s", "MViTv2-S, 16 frames, every 4th, class token", MVIT2, _TOKEN, {"dropout": 0.5}),
    ("swin3d_t", "Video Swin-T, 32 frames, every 2nd", SWIN, {}, {}),
    ("swin3d_s", "Video Swin-S, 32 frames, every 2nd", SWIN, {}, {}),
    ("swin3d_b", "Video Swin-B, 32 frames, every 2nd", SWIN, {}, {}),
    ("s3d", "S3D, 128 frames, every 2nd", S3D, {}, {"head": AverageHead(window=2), "dropout": 0.2}),
    ("r3d_18", "R3D-18, 16 frames, every 2nd", TRAN, {}, {}),
    ("mc3_18", "MC3-18, 16 frames, every 2nd", TRAN, {}, {}),
    ("r2plus1d_18", "R(2+1)D-18, 16 frames, every 2nd", TRAN, {}, {"backbone": _R2PLUS1D, "input": _SIXTEEN}),
)


def _record(name: Any, summary: str, paper: str, backbone: Any, options: Any) -> ModelRecord:
    usual: dict[str, Any] = {"head": AverageHead(), "dropout": 0.0}
    if "backbone" not in options:
        usual["backbone"] = TorchvisionVideo(name=name, **backbone)
    made = ModelOptions(**usual | options)
    return ModelRecord(f"torchvision/{name}", made, f"{summary}, average pooling", paper, alias=name)


RECORDS = tuple(_record(*row) for row in _TABLE)
