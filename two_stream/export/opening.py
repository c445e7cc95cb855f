"""Opens exported files: their format by name or content, and their card."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from two_stream.errors import CheckpointError
from two_stream.export.card import UNSEALED, ExportCard, Target
from two_stream.export.formats import Format

_HOMES = {"onnx": ("onnx_format", "Onnx"), "pt2": ("archives", "Pt2"), "aoti": ("archives", "Aoti")}


def format_by_name(to: Target) -> Format:
    """Return a format."""
    module, name = _HOMES[to]
    made: Format = getattr(import_module(f"two_stream.export.{module}"), name)()
    return made


def format_of(path: Path) -> Format:
    """Return the format of a file, known by its content.

    Raises:
        CheckpointError: A folder, empty, or an archive without our card.
    """
    with path.open("rb") as file:
        head = file.read(4)
    if not head:
        raise CheckpointError(f"{path}: is empty; export the run again")
    if not head.startswith(b"PK"):
        return format_by_name("onnx")
    from two_stream.export.archives import target_of

    return format_by_name(target_of(path))


def read_card(path: Path) -> ExportCard:
    """Return the card of an exported file; nothing of the file is run.

    Raises:
        CheckpointError: No such file, not one of ours, or damaged.
        SettingsError: It is ONNX and the package `onnx` is not installed.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected one that `two-stream export` wrote")
    card = format_of(path).read_card(path)
    if card.content_sha256 == UNSEALED:
        raise CheckpointError(f"{path}: was never finished; export the run again")
    return card
