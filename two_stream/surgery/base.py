"""What an alteration of a network is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from two_stream.recognizer import Recognizer


class Alteration(ABC):
    """A change of a network's layers that can be told in JSON and done again."""

    kind: ClassVar[str]
    reshapes: ClassVar[bool] = False
    """whether layers only change their sizes: then the network trains and is counted like any other, and what loads or
    continues its weights does the same to a newly built one"""

    @property
    def cpu_only(self) -> bool:
        """Whether the network then computes on a CPU alone, and only as it is: in no other precision, not folded."""
        return False

    @abstractmethod
    def apply(self, model: Recognizer) -> None:
        """Change the layers in place; values of weights need not be right after it, names and shapes must."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what `read` needs, as JSON values."""

    @classmethod
    @abstractmethod
    def read(cls, values: dict[str, Any]) -> Alteration:
        """Return the alteration that `describe` described."""

    def tensors(self, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return an altered network's state as plain tensors for a safetensors file; mostly it is already."""
        return dict(state)

    def state(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Return what `load_state_dict` takes from the tensors of a file: the way back of `tensors`."""
        return dict(tensors)
