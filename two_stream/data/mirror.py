"""What the mirror image of a video is an example of: the same classes, others, or nothing at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from two_stream.data.catalog import Record


@dataclass(frozen=True)
class Mirror:
    """The facts of a data set about mirrored videos, as a stage carries them out."""

    allowed: bool = True
    """false: nothing is mirrored"""
    labels: tuple[int, ...] | None = None
    """label of the mirror image by the label of the video; None: the mirror changes no class"""

    def of(self, labels: Sequence[int]) -> tuple[int, ...]:
        """Return the labels of the mirror image of a video with these labels, ascending."""
        return tuple(sorted(labels if self.labels is None else (self.labels[label] for label in labels)))


def mirror_of(record: Record, protocol: str = "standard") -> Mirror:
    """Return the mirror facts of a data set; protocol `paper` knows none and mirrors everything, as published."""
    if protocol == "paper":
        return Mirror()
    return Mirror(record.mirror, record.mirror_labels if record.mirror_pairs else None)


def mirror_note(record: Record, protocol: str, mirrors: bool) -> str | None:
    """Return what to say where protocol `paper` mirrors a data set whose classes a mirror changes.

    Args:
        record: The data set.
        protocol: `standard` or `paper`.
        mirrors: Whether the stage mirrors at all.
    """
    if protocol != "paper" or not mirrors or (record.mirror and not record.mirror_pairs):
        return None
    what = (
        "mirrored clips keep their class although the data set pairs classes that a mirror exchanges"
        if record.mirror
        else "clips are mirrored although the data set says `mirror: false`"
    )
    return f"{record.name}: {what}, as the published code does; `data.augment.protocol: standard` honours it"
