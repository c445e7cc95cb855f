"""Formats of exported files: how each is written, opened and recognised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from two_stream.errors import CheckpointError
from two_stream.export.card import UNSEALED, ExportCard, Target

if TYPE_CHECKING:
    import torch

    from two_stream.export.graph import Exportable, Session


SUFFIXES: dict[Target, str] = {"onnx": ".onnx", "pt2": ".pt2", "aoti": ".aoti.pt2"}


class Format(ABC):
    """A file format for graphs."""

    to: ClassVar[Target]
    runtime: ClassVar[str]
    """Package that runs it; score files name it with its version."""

    @abstractmethod
    def check(self) -> None:
        """Check that this machine can write the format.

        Raises:
            SettingsError: A package or a compiler is missing; names what to install.
        """

    @abstractmethod
    def write(self, program: torch.export.ExportedProgram, exportable: Exportable, path: Path) -> None:
        """Write the graph without a card to a new file; inputs and outputs are named as in `exportable`.

        Raises:
            ExportError: The format does not support the graph; gives the reason.
        """

    @abstractmethod
    def seal(self, path: Path, card: ExportCard) -> None:
        """Add the card, with the digest of the content, to a file."""

    @abstractmethod
    def read_card(self, path: Path) -> ExportCard:
        """Return the card of a file after checking its digest; nothing in the file is executed.

        Raises:
            CheckpointError: The file is damaged, or `two-stream export` did not write it.
        """

    @abstractmethod
    def open(self, path: Path, card: ExportCard | None = None) -> Session:
        """Return a function that computes the graph with torch's number of threads; `card` is None while writing.

        Raises:
            CheckpointError: The runtime cannot load the file.
            SettingsError: The runtime is not installed.
        """


_HOMES = {"onnx": ("onnx_format", "Onnx"), "pt2": ("archives", "Pt2"), "aoti": ("archives", "Aoti")}


def format_by_name(to: Target) -> Format:
    """Return a format; its runtime is imported on first use."""
    module, name = _HOMES[to]
    made: Format = getattr(import_module(f"two_stream.export.{module}"), name)()
    return made


def read_card(path: Path) -> ExportCard:
    """Return the card of an exported file; nothing in the file is executed.

    Raises:
        CheckpointError: Missing, not written by `two-stream export`, or damaged.
        SettingsError: It is an ONNX file and the package `onnx` is not installed.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected one that `two-stream export` wrote")
    with path.open("rb") as file:
        head = file.read(4)
    if not head:
        raise CheckpointError(f"{path}: is empty; export the run again")
    to: Target = "onnx"
    if head.startswith(b"PK"):  # a zip file
        from two_stream.export.archives import target_of

        to = target_of(path)
    card = format_by_name(to).read_card(path)
    if card.content_sha256 == UNSEALED:
        raise CheckpointError(f"{path}: was never finished; export the run again")
    return card
