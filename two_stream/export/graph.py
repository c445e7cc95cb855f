"""Captures a network as one graph with named inputs and outputs, and defines the interface of file formats."""

from __future__ import annotations

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import nn

from two_stream.errors import ExportError
from two_stream.export.card import BATCH, ExportCard, Target

Session = Callable[[tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]
"""Computes an exported graph: input tensors in their order to output tensors, on the CPU."""
EXAMPLE_BATCH = 2
"""Batch size of the example; torch treats 1 as a constant."""


@cache
def operators(to: Literal["onnx", "pt2"]) -> frozenset[str]:
    """Return the names of the operations that a file may contain; for pt2, the names include the overload.

    `eval/documentation/export_table.py --operators` writes these lists, from exports of all families, heads, streams
    and timm modules.
    """
    listed = resources.files("two_stream.export").joinpath(f"operators_{to}.txt")
    return frozenset(listed.read_text(encoding="utf-8").split())


def free_shape(tensor: torch.Tensor, axis: int | None) -> tuple[int | str, ...]:
    """Return the shape of a tensor, with `batch` in place of the size of `axis`."""
    return tuple(BATCH if place == axis else size for place, size in enumerate(tensor.shape))


@dataclass(frozen=True)
class Exportable:
    """A module to export, with example inputs."""

    module: nn.Module
    """module in evaluation mode, on the CPU"""
    inputs: tuple[torch.Tensor, ...]
    """example inputs for `EXAMPLE_BATCH` clips or streams"""
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    state_axes: tuple[int | None, ...] = ()
    """batch dimension of each state, None if all streams share the state; each input after the first, and each output
    after the first, is a state"""

    @property
    def axes(self) -> tuple[int | None, ...]:
        """Batch dimension of each input; None for a state that all streams share."""
        return (0, *self.state_axes)

    @torch.no_grad()
    def run(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Compute the reference outputs with the module."""
        found = self.module(*inputs)
        return found if isinstance(found, tuple) else (found,)


class Format(ABC):
    """A file format for graphs."""

    to: ClassVar[Target]
    runtime: ClassVar[str]
    """package that runs the file; score files record the package and its version"""

    @abstractmethod
    def check(self) -> None:
        """Check that this machine can write files of the format.

        Raises:
            SettingsError: A package or a compiler is missing; names what to install.
        """

    @abstractmethod
    def write(self, program: torch.export.ExportedProgram, exportable: Exportable, path: Path) -> None:
        """Write the graph to a new file without a card; the names of inputs and outputs are those in `exportable`.

        Raises:
            ExportError: The format does not support the graph; gives the reason.
        """

    @abstractmethod
    def seal(self, path: Path, card: ExportCard) -> None:
        """Add the card to a file, with a digest of the file's content."""

    @abstractmethod
    def read_card(self, path: Path) -> ExportCard:
        """Return the card of a file after comparing its digest, without executing anything in the file.

        Raises:
            CheckpointError: The file is damaged, or `two-stream export` did not write it.
        """

    @abstractmethod
    def open(self, path: Path, card: ExportCard | None = None) -> Session:
        """Return a function that computes the graph with torch's number of threads; `card` is None during export.

        Raises:
            CheckpointError: The runtime cannot load the file.
            SettingsError: The runtime is not installed.
        """


def capture_graph(exportable: Exportable) -> torch.export.ExportedProgram:
    """Return the graph of a module for any batch size.

    Raises:
        ExportError: torch.export cannot capture the module as one graph; gives its reason.
    """
    batch = torch.export.Dim(BATCH, min=1)
    shapes = tuple({} if axis is None else {axis: batch} for axis in exportable.axes)
    try:
        with silence_torch(), torch.no_grad():
            # a StepNetwork takes its states as *args: one entry for all of them
            return torch.export.export(
                exportable.module,
                exportable.inputs,
                dynamic_shapes=_grouped(exportable, shapes),
                strict=False,
            )
    except Exception as error:  # torch raises whatever the module's code raises on symbols
        raise ExportError(
            f"torch.export cannot capture this network as a graph: {error_line(error)}"
        ) from error


def _grouped(exportable: Exportable, shapes: tuple[dict[int, torch.export.Dim], ...]) -> tuple[object, ...]:
    """Return dynamic shapes grouped like the parameters of `forward`, where `*states` is a single entry."""
    code = type(exportable.module).forward.__code__
    named = code.co_argcount - 1
    takes_rest = bool(code.co_flags & 0x04)
    return (*shapes[:named], shapes[named:]) if takes_rest else shapes


def error_line(error: BaseException) -> str:
    """Return the most informative line of a torch error message, without colour codes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [
        line for line in lines if any(word in line for word in ("Error", "No ONNX function", "specialized"))
    ]
    line = (telling or lines or [type(error).__name__])[-1 if telling else 0]
    return line.replace("\x1b[96m", "").replace("\x1b[0m", "")[:300]


@contextmanager
def silence_torch() -> Iterator[None]:
    """Suppress the warnings and log messages of torch and the ONNX packages."""
    loggers = [
        logging.getLogger(name) for name in ("torch", "torch.onnx", "torch._export", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
