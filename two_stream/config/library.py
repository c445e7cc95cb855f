"""Options of the backbones that other libraries build: one class per kind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from two_stream.config.base import Fraction, Options, PositiveInt

ConfigValue = bool | int | float | str | list[int]


class TimmNet(Options):
    """A 2D network of timm, frame by frame."""

    kind: Literal["timm"] = "timm"
    name: str = "resnet50"
    """name in timm, with or without the tag of its weights: resnet50, resnet50.a1_in1k, vit_small_patch16_224 …"""
    pretrained: bool = False
    """a training starts from the weights timm has for this name (downloaded once, or from the Hugging Face cache);
    tf_efficientnet_lite0 to lite2 are first looked for among the installed packages"""
    weights: Path | None = None
    """with `pretrained`: a file of such weights (safetensors or torch) to read instead"""
    image_size: PositiveInt | None = None
    """side of the image for networks of a fixed size (ViT, Swin …); none is the size of timm's weights"""
    temporal_stride: PositiveInt = 1
    """frames per token: the maps of so many frames are averaged"""
    tsm: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """temporal shift: share of the channels that move a frame back, and as many forth (0.125 is the published one);
    0 is off"""
    difference: Literal["none", "alone", "beside"] = "none"
    """RGB: every moment is a pair of neighbouring frames, and the network sees their difference (TSN's RGB difference);
    alone: nothing else; beside: the first frame too, and the features of both are joined"""
    picture: bool = False
    """flow: the network sees a picture of x, y and magnitude, so that RGB weights apply as they are; false: two
    channels, with the RGB kernels averaged"""
    inflate: bool = False
    """make a plain convolutional network 3D: convolutions, norms and pools get a dimension of time"""
    inflate_kernel: Literal[1, 3] = 3
    """length in time of an inflated kernel; 1×1 convolutions keep 1"""
    drop_path: Fraction = 0.0
    """largest rate of dropped residual branches (stochastic depth), where the network has that"""

    @model_validator(mode="after")
    def _consistent(self) -> TimmNet:
        if self.tsm and self.inflate:
            raise ValueError("tsm shifts the frames of a 2D network and inflate makes it 3D: choose one")
        if self.inflate and self.difference != "none":
            raise ValueError(
                "difference looks at pairs of frames and inflate at all of them together: choose one"
            )
        if self.weights is not None and not self.pretrained:
            raise ValueError("weights needs `pretrained: true`")
        return self


class HfVideo(Options):
    """A video transformer of `transformers`: of a local folder or a hub name, or built anew from `architecture`."""

    kind: Literal["hf_video"] = "hf_video"
    model: str | None = None
    """folder, or name on the Hugging Face hub, that has config.json and weights: MCG-NJU/videomae-base …"""
    architecture: Literal["videomae", "timesformer", "vivit", "vjepa2"] | None = None
    """network; none reads it (and what `config` leaves out) from `model`, and is videomae without one"""
    config: dict[str, ConfigValue] = Field(default_factory=dict)
    """values of the network's configuration that differ from the library's, for example num_frames 8"""
    pretrained: bool = False
    """a training starts from the weights of `model`"""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        nothing = isinstance(data, dict) and data.get("model") is None and data.get("architecture") is None
        return {**data, "architecture": "videomae"} if nothing else data

    @model_validator(mode="after")
    def _has_weights(self) -> HfVideo:
        if self.pretrained and self.model is None:
            raise ValueError("pretrained needs `model`, the folder or hub name that has the weights")
        return self
