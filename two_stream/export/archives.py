"""Formats that torch writes: `torch.export` programs and AOTInductor packages.

Both are zip files that also contain the card.

Nothing in an archive is unpickled or executed before the content has been compared with the digest on the card.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch._ops import OpOverload

from two_stream.errors import CheckpointError, ExportError, SettingsError
from two_stream.evaluation.scoring.network import missing_compiler
from two_stream.export.card import ExportCard, Target, parse_card
from two_stream.export.graph import Exportable, Format, Session, error_line, operators, silence_torch
from two_stream.export.program import Program

_CARD = "extra/two_stream.json"
_COMPILED = re.compile(r"(^|/)data/aotinductor/|\.(so|dll|dylib|o|cubin)$", re.IGNORECASE)
_HOLDS: dict[Target, str] = {
    "aoti": "machine code (an AOTInductor package)",
    "pt2": "a graph of torch.export",
}


class _Archive(Format):
    runtime: ClassVar[str] = "torch"

    def seal(self, path: Path, card: ExportCard) -> None:
        """See `Format.seal`."""
        sealed = card.model_copy(update={"content_sha256": _content(path)})
        with zipfile.ZipFile(path, "a") as archive:
            root = archive.namelist()[0].split("/", 1)[0]
            archive.writestr(f"{root}/{_CARD}", sealed.model_dump_json())

    def read_card(self, path: Path) -> ExportCard:
        """See `Format.read_card`."""
        card = parse_card(_card_text(path), path)
        if _content(path) != card.content_sha256:
            raise CheckpointError(
                f"{path}: the file is damaged, because its SHA-256 differs from the SHA-256 on its "
                "card; export the run again"
            )
        return card


class Pt2(_Archive):
    """Files of `torch.export`, which the class `Program` runs with torch's operations."""

    to: ClassVar[Target] = "pt2"

    def check(self) -> None:
        """See `Format.check`."""

    def write(self, program: torch.export.ExportedProgram, exportable: Exportable, path: Path) -> None:
        """See `Format.write`."""
        del exportable  # the program contains the names
        used = {
            f"torch.ops.{node.target}" for node in program.graph.nodes if isinstance(node.target, OpOverload)
        }
        strange = sorted(used - operators("pt2"))
        if strange:
            raise ExportError(
                f"a pt2 file of this network would contain {', '.join(strange)}, which is not allowed "
                "(operators_pt2.txt lists the allowed operations; see CONTRIBUTING.md for layers of your own); "
                "export to aoti"
            )
        try:
            with silence_torch():
                torch.export.save(program, path)
        except Exception as error:  # the serializer names what it cannot write in errors of many classes
            raise ExportError(f"torch.export cannot write this graph: {error_line(error)}") from error

    def open(self, path: Path, card: ExportCard | None = None) -> Session:
        """See `Format.open`."""
        return _computing(Program(path, card))


class Aoti(_Archive):
    """Packages of AOTInductor, which contain the weights and machine code for one kind of processor."""

    to: ClassVar[Target] = "aoti"

    def check(self) -> None:
        """See `Format.check`."""
        problem = missing_compiler(torch.device("cpu"))
        if problem:
            raise SettingsError(
                f"--to aoti compiles the network, but {problem}; install a compiler, or export to pt2"
            )

    def write(self, program: torch.export.ExportedProgram, exportable: Exportable, path: Path) -> None:
        """See `Format.write`."""
        del exportable
        from torch._inductor import aoti_compile_and_package

        try:
            with silence_torch():
                aoti_compile_and_package(program, package_path=str(path))
        except Exception as error:  # the compiler's own messages come in errors of many classes
            raise ExportError(f"AOTInductor cannot compile this network: {error_line(error)}") from error

    def open(self, path: Path, card: ExportCard | None = None) -> Session:
        """See `Format.open`."""
        from torch._inductor import aoti_load_package

        try:
            with silence_torch():
                module = aoti_load_package(str(path))
        except Exception as error:  # another processor, system or torch
            writer = f" (written by torch {card.environment.get('torch')})" if card else ""
            raise CheckpointError(
                f"{path}: the file{writer} cannot be loaded on this machine ({error_line(error)}); "
                "export the run on this machine"
            ) from error
        return _computing(module)


def target_of(path: Path) -> Target:
    """Return the format of an archive, determined from its members and not from its card or name.

    Raises:
        CheckpointError: Not an archive, without a card, or its card names the other format.
    """
    card = parse_card(_card_text(path), path)
    try:
        with zipfile.ZipFile(path) as archive:
            compiled = any(_COMPILED.search(name) for name in archive.namelist())
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path}: the file is damaged ({error}); export the run again") from None
    found: Target = "aoti" if compiled else "pt2"
    if card.to != found:
        raise CheckpointError(
            f"{path}: the card says {card.to}, but the file contains {_HOLDS[found]}; export the run again"
        )
    return found


def _computing(module: Any) -> Session:
    @torch.inference_mode()
    def compute(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        found = module(*(value.contiguous() for value in inputs))
        return tuple(found) if isinstance(found, (tuple, list)) else (found,)

    return compute


def _card_text(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.split("/", 1)[-1] == _CARD]
            if not names:
                raise CheckpointError(
                    f"{path}: found an archive without a Two-Stream card, expected a file written "
                    "by `two-stream export`"
                )
            return archive.read(names[-1]).decode()
    except (zipfile.BadZipFile, UnicodeDecodeError, EOFError) as error:
        raise CheckpointError(f"{path}: the file is damaged ({error}); export the run again") from None


def _content(path: Path) -> str:
    """Return the SHA-256 of the names and contents of all members except for the card."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.filename.split("/", 1)[-1] == _CARD:
                    continue
                digest.update(f"{info.filename}\0{info.file_size}\0".encode())
                with archive.open(info) as member:
                    while block := member.read(2**20):
                        digest.update(block)
    except (zipfile.BadZipFile, EOFError) as error:
        raise CheckpointError(f"{path}: the file is damaged ({error}); export the run again") from None
    return digest.hexdigest()
