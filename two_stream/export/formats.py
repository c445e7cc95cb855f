"""The formats: each writes a graph, puts the card in, reads it back, and computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch

    from two_stream.export.card import ExportCard, Target
    from two_stream.export.graph import Exportable, Session

SUFFIXES: dict[Target, str] = {"onnx": ".onnx", "pt2": ".pt2", "aoti": ".aoti.pt2"}


class Format(ABC):
    """One way to keep a graph in a file."""

    to: ClassVar[Target]
    runtime: ClassVar[str]
    """what computes it, with its version in score files"""

    @abstractmethod
    def check(self) -> None:
        """Find out whether this machine can write the format.

        Raises:
            SettingsError: A package or a compiler is not there; says what to install.
        """

    @abstractmethod
    def write(self, program: torch.export.ExportedProgram, exportable: Exportable, path: Path) -> None:
        """Write the graph, without a card.

        Args:
            program: The graph.
            exportable: What it was made of; for the names.
            path: A new file whose name ends as the format wants.

        Raises:
            ExportError: The format cannot say what the graph does; gives the reason.
        """

    @abstractmethod
    def seal(self, path: Path, card: ExportCard) -> None:
        """Put the card into a file, with the digest of its content."""

    @abstractmethod
    def read_card(self, path: Path) -> ExportCard:
        """Return the card of a file whose content is whole; nothing of it is run.

        Raises:
            CheckpointError: Damaged, or not written by us.
        """

    @abstractmethod
    def open(self, path: Path, card: ExportCard | None = None) -> Session:
        """Return what computes the graph, on as many threads as torch has.

        Args:
            path: The file.
            card: Its card; None before it has one.

        Raises:
            CheckpointError: The runtime does not take the file.
            SettingsError: The runtime is not installed.
        """
