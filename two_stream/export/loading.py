"""Loads exported files as runs, so that `evaluate` and `predict` can be used with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from two_stream.errors import CheckpointError, SettingsError
from two_stream.evaluation.runs.run import AnyRun
from two_stream.evaluation.scoring.network import ClipNetwork
from two_stream.export.card import BATCH, ExportCard
from two_stream.export.formats import format_by_name, read_card
from two_stream.runtime.files import sha256
from two_stream.types import RunPaths

if TYPE_CHECKING:
    from two_stream.export.graph import Session


class ExportedNetwork(ClipNetwork):
    """The network of an exported file, which runs on the CPU; the runtime is started for the first clip."""

    def __init__(self, path: Path, card: ExportCard) -> None:
        super().__init__()
        self.path = path
        self.source = str(path)
        self.card = card
        self.spec = card.input_spec()
        self.num_classes = len(card.class_names)
        self._format = format_by_name(card.to)
        self._session: Session | None = None

    def forward(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return the logits `(B, K)` of uint8 clips `(B, C, T, H, W)`.

        Raises:
            SettingsError: The clips have a different shape or type from what the file expects.
            CheckpointError: The runtime cannot load the file.
        """
        wanted = self.card.inputs[0].shape[1:]
        if clip_BCTHW.dtype != torch.uint8 or tuple(clip_BCTHW.shape[1:]) != wanted:
            raise SettingsError(
                f"{self.path}: found clips of shape {tuple(clip_BCTHW.shape)} and type "
                f"{clip_BCTHW.dtype}, expected uint8 "
                f"(batch, {', '.join(map(str, wanted))})"
            )
        if self._session is None:
            self._session = self._format.open(self.path, self.card)
        return self._session((clip_BCTHW.cpu(),))[0]


@dataclass(frozen=True)
class ExportedRun(AnyRun[ExportedNetwork]):
    """An exported clip network and the settings of its run; scores are written to `scores/` next to the file."""

    file: Path
    card: ExportCard

    @property
    def model_sha256(self) -> str:
        """SHA-256 of the weights file of the exported run."""
        return self.card.model_sha256

    @property
    def source(self) -> str:
        """The file."""
        return str(self.file)

    @property
    def score_suffix(self) -> str:
        """Name of the exported file."""
        return f"_{self.file.name}"

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Entries of score files that describe the exported file and its runtime."""
        form = format_by_name(self.card.to)
        return {
            "run": self.card.run,
            "precision": self.card.precision,
            "exported": {
                "file": str(self.file),
                "sha256": sha256(self.file),
                "to": self.card.to,
                "runtime": f"{form.runtime} {metadata.version(form.runtime)}",
                "code_version": self.card.code_version,
            },
        }


def load(path: Path | str, device: str = "cpu", *, trust: bool = False) -> ExportedRun:
    """Load an exported clip network; `evaluate_run` and `score_with_runs` accept it like a run.

    Args:
        path: A file that `two-stream export` wrote.
        device: auto or cpu; exported files run on the CPU only.
        trust: Also load an AOTInductor package. It contains machine code, which is executed on loading; ONNX and pt2
            files contain only data.

    Raises:
        CheckpointError: Missing, not an exported file, damaged, a streaming network, or a package without `trust`.
        SettingsError: Another device, a missing extra, or settings from a different version.
    """
    file, card = _checked_card(path, device, trust)
    if card.kind != "clip":
        raise CheckpointError(
            f"{file}: the file contains a streaming network, expected a clip network; use a file "
            "that was exported without "
            "--stream"
        )
    return ExportedRun(
        experiment=card.settings(file),
        model=ExportedNetwork(file, card),
        class_names=card.class_names,
        paths=RunPaths(file.parent),
        checkpoint=card.checkpoint,
        meta=card.meta,
        file=file,
        card=card,
    )


class ExportedStream:
    """The streaming network of an exported file; `step` maps frames and states to logits and new states."""

    def __init__(self, path: Path, card: ExportCard) -> None:
        assert card.stream is not None
        self.card = card
        self.stream = card.stream
        self.spec = card.input_spec()
        self._session = format_by_name(card.to).open(path, card)

    def initial_states(self, batch: int = 1) -> tuple[torch.Tensor, ...]:
        """Return the initial states."""
        shapes = [[batch if size == BATCH else int(size) for size in one.shape] for one in self.stream.states]
        return tuple(
            torch.full(shape, state.initial, dtype=getattr(torch, state.dtype))
            for shape, state in zip(shapes, self.stream.states)
        )

    def step(
        self, frames_BCSHW: torch.Tensor, states: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Compute the next step of uint8 frames `(B, C, S, H, W)`; return the logits `(B, K)` and the new states."""
        logits_BK, *following = self._session((frames_BCSHW, *states))
        return logits_BK, tuple(following)


def load_stream(path: Path | str, device: str = "cpu", *, trust: bool = False) -> ExportedStream:
    """Load an exported streaming network.

    Raises:
        CheckpointError: As for `load`; or it is a clip network.
        SettingsError: As for `load`.
    """
    file, card = _checked_card(path, device, trust)
    if card.stream is None:
        raise CheckpointError(
            f"{file}: the file contains a clip network, expected a streaming network; export the run "
            "with --stream"
        )
    return ExportedStream(file, card)


def _checked_card(path: Path | str, device: str, trust: bool) -> tuple[Path, ExportCard]:
    """Return the file and its card; raise an error for machine code without `trust`, or a device other than the CPU."""
    file, card = Path(path), read_card(Path(path))
    if card.to == "aoti" and not trust:
        raise CheckpointError(
            f"{file}: an AOTInductor package contains machine code, which is executed on loading. Use `--trust "
            f"{file}` (in Python `trust=True`) if you trust its author, or use an ONNX or pt2 file, "
            "which contains only data"
        )
    if device not in ("auto", "cpu"):
        raise SettingsError(
            f"{file}: --device is {device!r}, but exported files run only on the CPU; omit --device"
        )
    return file, card
