"""Describes layouts: how other codebases name the weights of a network.

In this folder, "their" refers to the other codebase and "our" to this package.
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
    """A naming scheme of weights, as a table of prefixes to exchange; the longest prefix of a key applies.

    The table works in both directions. Two of their prefixes may map to one of ours, if the published network stores a
    parameter under two names: reading uses the later one, writing writes both.
    """

    name: str
    recognise: Callable[[State], bool]
    """returns whether a state dict has this layout, by its keys and shapes"""
    pairs: tuple[Pair, ...]
    flat: bool = False
    """2D weights, to be inflated"""
    pointwise: tuple[str, ...] = ()
    """their prefixes of 1×1×1 convolutions that are linear layers here"""
    flattened: tuple[str, ...] = ()
    """their prefixes of linear layers over a flattened map that are convolutions here"""
    unused: tuple[str, ...] = ()
    """their prefixes of tensors that the published network never uses"""
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
        """Return our name of their key; None if the table has no entry."""
        prefix = next((prefix for prefix in prefixes(key) if prefix in self._ours), None)
        return None if prefix is None else self._ours[prefix] + key[len(prefix) :]

    def invert(self, key: str) -> list[str]:
        """Return their names of our key: usually one, two if they store it twice, none if there is no entry."""
        prefix = next((prefix for prefix in prefixes(key) if prefix in self._theirs), None)
        return [] if prefix is None else [theirs + key[len(prefix) :] for theirs in self._theirs[prefix]]

    def is_unused(self, key: str) -> bool:
        """Return whether the published network never uses this key."""
        return key.startswith(self.unused)

    def is_pointwise(self, key: str) -> bool:
        """Return whether this weight is their 1×1×1 convolution and our linear layer."""
        return key.endswith("weight") and key.startswith(self.pointwise)

    def is_flattened(self, key: str) -> bool:
        """Return whether this weight is their linear layer and our convolution over the whole map."""
        return key.endswith("weight") and key.startswith(self.flattened)


def prefixes(key: str) -> Iterator[str]:
    """Yield the key and its prefixes that end in a dot, the longest first."""
    yield key
    end = key.rfind(".")
    while end >= 0:
        yield key[: end + 1]
        end = key.rfind(".", 0, end)


def ndim(state: State, key: str) -> int:
    """Return the number of dimensions of a tensor; 0 if it is missing."""
    return state[key].ndim if key in state else 0
