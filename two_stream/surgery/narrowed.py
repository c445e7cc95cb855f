"""Networks whose layers lost channels: which sizes are left, told layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from two_stream.errors import CheckpointError
from two_stream.recognizer import Recognizer
from two_stream.surgery.base import Alteration

_ATTRIBUTES = ("in_channels", "out_channels", "groups", "num_features", "in_features", "out_features")
"""What torch's layers remember of their sizes."""


@dataclass(frozen=True)
class Narrowed(Alteration):
    """Layers with fewer channels than the options say. The last map keeps its width, so every head fits."""

    sizes: Mapping[str, Mapping[int, int]]
    """by the name of a weight or statistic: dimension -> what is left of it"""
    attributes: Mapping[str, Mapping[str, int]]
    """by the name of a layer: what it remembers of its size"""

    kind: ClassVar[str] = "narrowed"
    reshapes: ClassVar[bool] = True

    def apply(self, model: Recognizer) -> None:
        """Give each named tensor its size; the first of its values stay, whatever they mean.

        Raises:
            CheckpointError: The network has no such layer or a smaller one, so it is another one; it is left as it is.
        """
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, sizes in self.sizes.items():
            shape = tensors[name].shape if name in tensors else ()
            if any(dim >= len(shape) or shape[dim] < size for dim, size in sizes.items()):
                raise CheckpointError(
                    f"weights with fewer channels of another network: {name} does not fit the model's backbone, which "
                    f"is {model.options.backbone.kind}"
                )
        for name, sizes in self.sizes.items():
            owner, _, last = name.rpartition(".")
            _resize(model.get_submodule(owner), last, sizes)
        for name, values in self.attributes.items():
            layer = model.get_submodule(name)
            for attribute, value in values.items():
                setattr(layer, attribute, value)

    def describe(self) -> dict[str, Any]:
        """Return sizes and attributes."""
        sizes = {name: {str(dim): size for dim, size in dims.items()} for name, dims in self.sizes.items()}
        return {
            "sizes": sizes,
            "attributes": {name: dict(values) for name, values in self.attributes.items()},
        }

    @classmethod
    def read(cls, values: dict[str, Any]) -> Narrowed:
        """Read `describe` back."""
        sizes = {
            name: {int(dim): int(size) for dim, size in dims.items()}
            for name, dims in values["sizes"].items()
        }
        return cls(sizes, values["attributes"])


def narrowed_from(before: nn.Module, after: nn.Module) -> Narrowed:
    """Return what tells the second network's sizes from the first's; both have the same layers."""
    new = dict(after.named_parameters()) | dict(after.named_buffers())
    sizes = {}
    for name, old in [*before.named_parameters(), *before.named_buffers()]:
        pairs = enumerate(zip(old.shape, new[name].shape, strict=True))
        changed = {dim: size for dim, (was, size) in pairs if was != size}
        if changed:
            sizes[name] = changed
    layers = dict(after.named_modules())
    attributes = {}
    for name, layer in before.named_modules():
        told = {
            key: int(getattr(layers[name], key))
            for key in _ATTRIBUTES
            if isinstance(getattr(layer, key, None), int)
            and getattr(layer, key) != getattr(layers[name], key)
        }
        if told:
            attributes[name] = told
    return Narrowed(sizes, attributes)


def _resize(layer: nn.Module, name: str, sizes: Mapping[int, int]) -> None:
    old = getattr(layer, name)
    value = old.detach()
    for dim, size in sizes.items():
        value = value.narrow(dim, 0, size)
    value = value.clone()
    if isinstance(old, nn.Parameter):
        setattr(layer, name, nn.Parameter(value, requires_grad=old.requires_grad))
    else:
        layer.register_buffer(name, value, persistent=name not in layer._non_persistent_buffers_set)
