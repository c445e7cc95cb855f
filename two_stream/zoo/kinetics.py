"""Networks as their authors released them; the training of late temporal networks starts from these weights."""

from __future__ import annotations

from typing import Any

from two_stream.config.backbones import I3d, R2Plus1d, ResNeXt3d, SlowFast
from two_stream.config.heads import AverageHead
from two_stream.config.model import InputOptions, ModelOptions
from two_stream.zoo.record import ModelRecord

I3D = "Carreira and Zisserman, Quo Vadis, Action Recognition? (arXiv 1705.07750); weights of pytorch-i3d"
SLOWFAST = "Feichtenhofer et al., SlowFast Networks for Video Recognition (arXiv 1812.03982); PySlowFast"
R2PLUS1D = "Tran et al., A Closer Look at Spatiotemporal Convolutions (arXiv 1711.11248); torchvision"
IG65M = "Ghadiyaram et al., Large-Scale Weakly-Supervised Pre-training (arXiv 1905.00561); ig65m-pytorch"
MARS = "Crasto et al., MARS: Motion-Augmented RGB Stream (CVPR 2019)"


def _record(name: str, backbone: Any, summary: str, paper: str, **options: Any) -> ModelRecord:
    made = ModelOptions(**{"backbone": backbone, "head": AverageHead(), "dropout": 0.5} | options)
    return ModelRecord(f"kinetics/{name}", made, summary, paper)


_PAIRS = AverageHead(window=2)
_SIXTY_FOUR = InputOptions(clip_length=64)

RECORDS = (
    _record("i3d_rgb", I3d(), "Inception-I3D, 64 frames, average pooling of pairs", I3D, head=_PAIRS),
    _record(
        "i3d_flow",
        I3d(),
        "Inception-I3D, 64 flow frames, average pooling of pairs",
        I3D,
        head=_PAIRS,
        modality="flow",
    ),
    _record("slowfast_8x8_r50", SlowFast(), "SlowFast-50 8×8, 64 frames, average pooling", SLOWFAST),
    _record(
        "resnext101_64f_rgb",
        ResNeXt3d(depth=101),
        "ResNeXt-101, 64 frames, average pooling",
        MARS,
        input=_SIXTY_FOUR,
    ),
    _record(
        "resnext101_64f_flow",
        ResNeXt3d(depth=101),
        "ResNeXt-101, 64 flow frames, average pooling",
        MARS,
        modality="flow",
        input=_SIXTY_FOUR,
    ),
    _record(
        "r2plus1d_18",
        R2Plus1d(depth=18, midplanes="block", norm_eps=1e-5),
        "R(2+1)D-18, 16 frames, average pooling",
        R2PLUS1D,
        dropout=0.0,
        input=InputOptions(clip_length=16, resize=(128, 171)),
    ),
    *(
        _record(
            f"r2plus1d_34_{frames}f",
            R2Plus1d(depth=34),
            f"R(2+1)D-34, {frames} frames, average pooling",
            IG65M,
            dropout=0.0,
            input=InputOptions(clip_length=frames),
        )
        for frames in (8, 32)
    ),
)
