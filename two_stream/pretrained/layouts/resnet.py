"""3D ResNet, ResNeXt and DenseNet of 3D-ResNets (kenshohara), and 2D ResNets."""

from __future__ import annotations

from two_stream.pretrained.layouts.base import Layout, Pair, ndim

_PAIRS: tuple[Pair, ...] = (
    ("conv1.", "backbone.stem.0."),
    ("bn1.", "backbone.stem.1."),
    *((f"layer{layer}.", f"backbone.layer{layer}.") for layer in (1, 2, 3, 4)),
    ("fc.", "classifier."),
)

_MOST_LAYERS = 64

LAYOUTS = (
    Layout(
        "densenet3d (3D-ResNets)",
        lambda s: (
            ndim(s, "features.conv1.weight") == 5 and "features.denseblock1.denselayer1.conv1.weight" in s
        ),
        (
            ("features.conv1.", "backbone.stem.0."),
            ("features.norm1.", "backbone.stem.1."),
            *(
                (f"features.denseblock{block}.denselayer{layer}.", f"backbone.block{block}.{layer - 1}.")
                for block in range(1, 5)
                for layer in range(1, _MOST_LAYERS + 1)
            ),
            *((f"features.transition{number}.", f"backbone.transition{number}.") for number in (1, 2, 3)),
            ("features.norm5.", "backbone.last.0."),
            ("classifier.", "classifier."),
        ),
    ),
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
