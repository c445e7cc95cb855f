"""Networks whose layers differ from those in their options (narrowed, int8), and how a model file rebuilds them.

A `Recognizer` lists its changes in `alterations`, in order. Its model file stores the list. Reading the file applies
the same changes to a network newly built from its options, before the weights are loaded.
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
    """whether only the sizes of layers change: such a network is trained and counted like any other, and whatever loads
    or continues its weights applies the same change to a newly built network first"""

    @property
    def cpu_only(self) -> bool:
        """Whether the network only runs on a CPU, in a fixed precision and without BatchNorm folding."""
        return False

    @abstractmethod
    def apply(self, model: Recognizer) -> None:
        """Change the layers in place. Names and shapes of tensors are then final; their values do not matter."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the values that `read` needs, as JSON values."""

    @classmethod
    @abstractmethod
    def read(cls, values: dict[str, Any]) -> Alteration:
        """Return the alteration that `describe` described."""

    def tensors(self, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return an altered network's state as plain tensors for a safetensors file."""
        return dict(state)

    def state(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Return the state for `load_state_dict` from the tensors of a file: the inverse of `tensors`."""
        return dict(tensors)


def alter(model: Recognizer, alteration: Alteration) -> None:
    """Change a network in place and add the change to its `alterations`."""
    alteration.apply(model)
    model.alterations.append(alteration)


def describe_alterations(model: Recognizer) -> list[dict[str, Any]]:
    """Return a network's alterations as JSON values; empty for an ordinary network."""
    return [{"kind": alteration.kind, **alteration.describe()} for alteration in model.alterations]


def read_alterations(descriptions: Sequence[dict[str, Any]], source: object) -> list[Alteration]:
    """Return the alterations that a model file lists, from the values of `describe_alterations`.

    Raises:
        CheckpointError: This version does not know a kind; the message names the file.
    """
    found = []
    for description in descriptions:
        values = dict(description)
        kind = values.pop("kind", None)
        if kind not in _CLASSES:
            raise CheckpointError(
                f"{source}: its network has an alteration of kind {kind!r}, which this version does not know; "
                "upgrade two-stream"
            )
        module, _, name = _CLASSES[kind].partition(":")
        found.append(getattr(import_module(module), name).read(values))
    return found
