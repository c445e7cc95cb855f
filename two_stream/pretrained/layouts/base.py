"""Layouts describe how other codebases name the weights of a network.

In this folder, "their" refers to the other codebase, and "our" refers to this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

State = Mapping[str, torch.Tensor]
Pair = tuple[str, str]
"""Prefix of a key in the other codebase, and in this package. A prefix ends in a dot, or is a complete key."""
CARRIED = "carried."
"""Prefix in model folders for tensors of a published file that our network does not use; they are kept for export."""


@dataclass(frozen=True)
class Layout:
    """A naming scheme of weights: a table that maps prefixes of keys; the longest matching prefix is used.

    The table is used in both directions. If the published network stores a parameter under two names, two published
    prefixes map to one of our prefixes. When a checkpoint is read, the tensor that is stored last is used; when it is
    written, both prefixes are written.
    """

    name: str
    recognise: Callable[[State], bool]
    """function that returns whether the keys and shapes of a state dict have this layout"""
    pairs: tuple[Pair, ...]
    flat: bool = False
    """whether the weights are 2D and must be inflated"""
    pointwise: tuple[str, ...] = ()
    """prefixes of published 1×1×1 convolutions that are linear layers in this package"""
    flattened: tuple[str, ...] = ()
    """prefixes of published linear layers over a flattened map that are convolutions in this package"""
    unused: tuple[str, ...] = ()
    """prefixes of tensors that the published network never uses"""
    writable: bool = True
    """whether checkpoints can also be written in this layout"""

    @cached_property
    def _ours(self) -> dict[str, str]:
        return dict(self.pairs)

    @cached_property
    def _theirs(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for theirs, ours in self.pairs:
            found.setdefault(ours, []).append(theirs)
        return found

    def translate(self, key: str) -> str | None:
        """Return this package's name for a published key; None if the table has no entry."""
        prefix = next((prefix for prefix in prefixes(key) if prefix in self._ours), None)
        return None if prefix is None else self._ours[prefix] + key[len(prefix) :]

    def invert(self, key: str) -> list[str]:
        """Return the published names for a key of this package: one, or two if it is stored twice, or none."""
        prefix = next((prefix for prefix in prefixes(key) if prefix in self._theirs), None)
        return [] if prefix is None else [theirs + key[len(prefix) :] for theirs in self._theirs[prefix]]

    def is_unused(self, key: str) -> bool:
        """Return whether the published network never uses this key."""
        return key.startswith(self.unused)

    def is_pointwise(self, key: str) -> bool:
        """Return whether a published weight of a 1×1×1 convolution belongs to a linear layer in this package."""
        return key.endswith("weight") and key.startswith(self.pointwise)

    def is_flattened(self, key: str) -> bool:
        """Return whether a published weight of a linear layer belongs to a full-size convolution in this package."""
        return key.endswith("weight") and key.startswith(self.flattened)


def prefixes(key: str) -> Iterator[str]:
    """Yield the key, and then its prefixes that end in a dot, with the longest first."""
    yield key
    end = key.rfind(".")
    while end >= 0:
        yield key[: end + 1]
        end = key.rfind(".", 0, end)


def ndim(state: State, key: str) -> int:
    """Return the number of dimensions of a tensor; 0 if it is missing."""
    return state[key].ndim if key in state else 0
