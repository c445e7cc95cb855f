"""Networks whose layers are not those their options say (narrowed, int8), and how a model file builds them again.

A `Recognizer` lists what was done to it in `alterations`, in order; its model file carries the list, and reading the
file does the same to a network newly built from its options before the weights go in.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from two_stream.errors import CheckpointError
from two_stream.recognizer import Recognizer
from two_stream.surgery.base import Alteration

HOMES = {"narrowed": "two_stream.surgery.narrowed:Narrowed", "int8": "two_stream.surgery.int8:Int8"}
"""Class of each kind."""

__all__ = ["Alteration", "alter", "described", "from_description"]


def alter(model: Recognizer, alteration: Alteration) -> None:
    """Change a network in place and list the change with it."""
    alteration.apply(model)
    model.alterations.append(alteration)


def described(model: Recognizer) -> list[dict[str, Any]]:
    """Return a network's alterations as JSON values; empty for an ordinary one."""
    return [{"kind": alteration.kind, **alteration.describe()} for alteration in model.alterations]


def from_description(descriptions: Sequence[dict[str, Any]], source: object) -> list[Alteration]:
    """Return the alterations that a model file lists.

    Args:
        descriptions: As `described` gave them.
        source: The file, for messages.

    Raises:
        CheckpointError: A kind that this version does not know.
    """
    found = []
    for description in descriptions:
        values = dict(description)
        kind = values.pop("kind", None)
        if kind not in HOMES:
            raise CheckpointError(
                f"{source}: its network was altered in a way this version does not know ({kind!r}); upgrade"
            )
        module, _, name = HOMES[kind].partition(":")
        found.append(getattr(import_module(module), name).read(values))
    return found
