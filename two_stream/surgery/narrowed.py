"""Networks with fewer channels: storing and applying the remaining sizes of the layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from two_stream.errors import CheckpointError
from two_stream.recognizer import Recognizer
from two_stream.surgery import Alteration

_ATTRIBUTES = ("in_channels", "out_channels", "groups", "num_features", "in_features", "out_features")
"""Attributes in which the layers of torch store their sizes."""


@dataclass(frozen=True)
class Narrowed(Alteration):
    """Layers with fewer channels than the options define.

    The last feature map keeps all its channels, so that every head fits.
    """

    sizes: Mapping[str, Mapping[int, int]]
    """`{tensor name: {dimension: remaining size}}`"""
    attributes: Mapping[str, Mapping[str, int]]
    """`{layer name: {attribute: value}}` for attributes that store sizes"""

    kind: ClassVar[str] = "narrowed"
    reshapes: ClassVar[bool] = True

    def apply(self, model: Recognizer) -> None:
        """Shorten the tensors to the sizes, keeping the first values of each dimension.

        Raises:
            CheckpointError: A layer is missing or too small, so the sizes belong to a different network. Nothing is
                changed.
        """
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, sizes in self.sizes.items():
            shape = tensors[name].shape if name in tensors else ()
            if any(dim >= len(shape) or shape[dim] < size for dim, size in sizes.items()):
                raise CheckpointError(
                    f"the pruned weights belong to a different network: {name} does not fit the backbone "
                    f"{model.options.backbone.kind}; use the `model.backbone` that was pruned"
                )
        for name, sizes in self.sizes.items():
            owner, _, last = name.rpartition(".")
            _resize(model.get_submodule(owner), last, sizes)
        for name, values in self.attributes.items():
            layer = model.get_submodule(name)
            for attribute, value in values.items():
                setattr(layer, attribute, value)

    def describe(self) -> dict[str, Any]:
        """Return the sizes and attributes as JSON values."""
        sizes = {name: {str(dim): size for dim, size in dims.items()} for name, dims in self.sizes.items()}
        return {
            "sizes": sizes,
            "attributes": {name: dict(values) for name, values in self.attributes.items()},
        }

    @classmethod
    def read(cls, values: dict[str, Any]) -> Narrowed:
        """Return the alteration from the values that `describe` returned."""
        sizes = {
            name: {int(dim): int(size) for dim, size in dims.items()}
            for name, dims in values["sizes"].items()
        }
        return cls(sizes, values["attributes"])


def find_narrowing(before: nn.Module, after: nn.Module) -> Narrowed:
    """Return the sizes of a narrowed network that differ from those of the original.

    Both networks must have the same layers.
    """
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
        changed_values = {
            key: int(getattr(layers[name], key))
            for key in _ATTRIBUTES
            if isinstance(getattr(layer, key, None), int)
            and getattr(layer, key) != getattr(layers[name], key)
        }
        if changed_values:
            attributes[name] = changed_values
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
