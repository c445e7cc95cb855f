"""Finds the format of an exported file, by name or by content."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from two_stream.errors import CheckpointError
from two_stream.export.card import UNSEALED, ExportCard, Target

if TYPE_CHECKING:
    from two_stream.export.graph import Format

SUFFIXES: dict[Target, str] = {"onnx": ".onnx", "pt2": ".pt2", "aoti": ".aoti.pt2"}


def format_by_name(to: Target) -> Format:
    """Return a format; the packages that it requires are imported when they are first used."""
    if to == "onnx":
        from two_stream.export.onnx_format import Onnx

        return Onnx()
    from two_stream.export.archives import Aoti, Pt2

    return Pt2() if to == "pt2" else Aoti()


def read_card(path: Path) -> ExportCard:
    """Return the card of an exported file without executing anything in the file.

    Raises:
        CheckpointError: Missing, not written by `two-stream export`, or damaged.
        SettingsError: It is an ONNX file and the package `onnx` is not installed.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a file written by `two-stream export`")
    with path.open("rb") as file:
        head = file.read(4)
    if not head:
        raise CheckpointError(f"{path}: the file is empty; export the run again")
    to: Target = "onnx"
    if head.startswith(b"PK"):  # a zip file
        from two_stream.export.archives import target_of

        to = target_of(path)
    card = format_by_name(to).read_card(path)
    if card.content_sha256 == UNSEALED:
        raise CheckpointError(
            f"{path}: the file is incomplete, because its export did not finish; export the run again"
        )
    return card
