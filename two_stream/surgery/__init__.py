"""Alterations: changes by which a network's layers differ from its options (narrowed, int8), and how they are stored.

A `Recognizer` lists its changes in `alterations`, and its model file stores this list. When the file is read, a network
is built from the options, changed in the same way, and then filled with the weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar

import torch

from two_stream.errors import CheckpointError
from two_stream.recognizer import Recognizer

_CLASSES = {"narrowed": "two_stream.surgery.narrowed:Narrowed", "int8": "two_stream.surgery.int8:Int8"}


class Alteration(ABC):
    """A change of a network's layers that can be stored as JSON and applied again."""

    kind: ClassVar[str]
    reshapes: ClassVar[bool] = False
    """whether only the sizes of layers change. Such a network can be trained, and its costs can be counted, as for
    other networks"""

    @property
    def cpu_only(self) -> bool:
        """Whether the network runs only on a CPU, with a fixed precision and without BatchNorm folding."""
        return False

    @abstractmethod
    def apply(self, model: Recognizer) -> None:
        """Change the layers in place, so that all tensors have their final names and shapes (but not values)."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the JSON values from which `read` rebuilds the alteration."""

    @classmethod
    @abstractmethod
    def read(cls, values: dict[str, Any]) -> Alteration:
        """Return the alteration from the values that `describe` returned."""

    def tensors(self, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Convert the state of an altered network to plain tensors for a safetensors file."""
        return dict(state)

    def state(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Convert the tensors of a file to the state for `load_state_dict`. `state` is the inverse of `tensors`."""
        return dict(tensors)


def alter(model: Recognizer, alteration: Alteration) -> None:
    """Change a network in place and add the change to its `alterations`."""
    alteration.apply(model)
    model.alterations.append(alteration)


def describe_alterations(model: Recognizer) -> list[dict[str, Any]]:
    """Return a network's alterations as JSON values; an empty list for a network without alterations."""
    return [{"kind": alteration.kind, **alteration.describe()} for alteration in model.alterations]


def read_alterations(descriptions: Sequence[dict[str, Any]], source: object) -> list[Alteration]:
    """Return the alterations from the values that `describe_alterations` returned.

    Raises:
        CheckpointError: This version does not support a kind of alteration.
    """
    found = []
    for description in descriptions:
        values = dict(description)
        kind = values.pop("kind", None)
        if kind not in _CLASSES:
            raise CheckpointError(
                f"{source}: the network has an alteration of kind {kind!r}, which this version of two-stream does "
                "not support; upgrade two-stream"
            )
        module, _, name = _CLASSES[kind].partition(":")
        found.append(getattr(import_module(module), name).read(values))
    return found
