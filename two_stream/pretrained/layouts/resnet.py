"""3D ResNet and ResNeXt of kenshohara's family, and the 2D ResNets they grew from."""

from __future__ import annotations

from two_stream.pretrained.layouts.base import Layout, Pair, ndim

_PAIRS: tuple[Pair, ...] = (
    ("conv1.", "backbone.stem.0."),
    ("bn1.", "backbone.stem.1."),
    *((f"layer{layer}.", f"backbone.layer{layer}.") for layer in (1, 2, 3, 4)),
    ("fc.", "classifier."),
)

LAYOUTS = (
    Layout(
        "resnet3d (3D-ResNets, MARS, Efficient-3DCNNs)",
        lambda s: ndim(s, "conv1.weight") == 5 and ndim(s, "layer1.0.conv1.weight") == 5,
        _PAIRS,
    ),
    Layout(
        "2D ResNet (torchvision, timm)",
        lambda s: ndim(s, "conv1.weight") == 4 and ndim(s, "layer1.0.conv1.weight") == 4,
        _PAIRS,
        flat=True,
    ),
)
