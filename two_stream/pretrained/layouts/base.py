"""What a layout is: how another code base names the weights of a network that exists here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

State = Mapping[str, torch.Tensor]
Pair = tuple[str, str]
"""Their prefix of a key and ours. A prefix ends in a dot, or is the whole key."""
CARRIED = "carried."
"""In a model folder of ours, before the name of a tensor that came with a published file and that ours has no place
for; it is kept for the way back."""


@dataclass(frozen=True)
class Layout:
    """One way of naming weights, as prefixes that are exchanged; the longest prefix of a key counts.

    The same table serves both directions. Two of their prefixes may stand for one of ours (the published network
    files a parameter under two names): reading takes the later of the two, writing writes both.
    """

    name: str
    recognise: Callable[[State], bool]
    """Tells by keys and shapes whether a state dict is of this layout."""
    pairs: tuple[Pair, ...]
    flat: bool = False
    """2D weights, to be inflated"""
    pointwise: tuple[str, ...] = ()
    """their prefixes of weights kept as 1×1×1 convolutions that are linear layers here"""
    flattened: tuple[str, ...] = ()
    """their prefixes of linear layers over a whole map that are convolutions of its size here"""
    unused: tuple[str, ...] = ()
    """their prefixes of what the published network carries along and never reads"""
    writable: bool = True
    """false: read only"""

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
        """Return our name of their key, or none where the table has no entry."""
        prefix = next((prefix for prefix in prefixes(key) if prefix in self._ours), None)
        return None if prefix is None else self._ours[prefix] + key[len(prefix) :]

    def invert(self, key: str) -> list[str]:
        """Return their names of our key: mostly one, two where they file it twice, none where there is no entry."""
        prefix = next((prefix for prefix in prefixes(key) if prefix in self._theirs), None)
        return [] if prefix is None else [theirs + key[len(prefix) :] for theirs in self._theirs[prefix]]

    def is_unused(self, key: str) -> bool:
        """Tell whether the published network carries this key along without reading it."""
        return key.startswith(self.unused) if self.unused else False

    def is_pointwise(self, key: str) -> bool:
        """Tell whether they keep this weight as a 1×1×1 convolution where ours is a linear layer."""
        return key.endswith("weight") and key.startswith(self.pointwise) if self.pointwise else False

    def is_flattened(self, key: str) -> bool:
        """Tell whether they keep this weight as a linear layer where ours is a convolution over the whole map."""
        return key.endswith("weight") and key.startswith(self.flattened) if self.flattened else False


def prefixes(key: str) -> Iterator[str]:
    """Return the key and every prefix of it that ends in a dot, the longest first."""
    yield key
    end = key.rfind(".")
    while end >= 0:
        yield key[: end + 1]
        end = key.rfind(".", 0, end)


def ndim(state: State, key: str) -> int:
    """Return the number of dimensions of a tensor, 0 where there is none of that name."""
    return state[key].ndim if key in state else 0
