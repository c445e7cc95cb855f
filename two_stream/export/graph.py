"""A network as one graph with named inputs and outputs: what every format is written from."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import torch
from torch import nn

from two_stream.errors import ExportError
from two_stream.export.card import BATCH

Session = Callable[[tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]
"""Computes an exported graph: tensors of the inputs, in their order, to those of the outputs; all on the CPU."""
EXAMPLE_BATCH = 2
"""Batch of the example: torch takes a 1 for a constant."""


@cache
def operators(to: Literal["onnx", "pt2"]) -> frozenset[str]:
    """Return the operations that a file may hold, by their names in it (pt2: with the overload).

    `docs/export_table.py --operators` writes the lists from every family, head, stream and module of timm.
    """
    listed = resources.files("two_stream.export").joinpath(f"operators_{to}.txt")
    return frozenset(listed.read_text(encoding="utf-8").split())


def free_shape(tensor: torch.Tensor, axis: int | None) -> tuple[int | str, ...]:
    """Return a shape with the name of the batch in its dimension."""
    return tuple(BATCH if place == axis else size for place, size in enumerate(tensor.shape))


@dataclass(frozen=True)
class Exportable:
    """A module with an example of what it takes in."""

    module: nn.Module
    """in evaluation mode, on the CPU"""
    inputs: tuple[torch.Tensor, ...]
    """of `EXAMPLE_BATCH` clips or streams"""
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    state_axes: tuple[int | None, ...] = ()
    """which dimension of each state is the batch, where there are states: inputs from the second on, and outputs"""

    @property
    def axes(self) -> tuple[int | None, ...]:
        """Which dimension of each input is the batch; None for a state that all streams share."""
        return (0, *self.state_axes)

    @torch.no_grad()
    def run(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Compute with the module itself: what an exported file is compared with."""
        found = self.module(*inputs)
        return found if isinstance(found, tuple) else (found,)


def program_of(exportable: Exportable) -> torch.export.ExportedProgram:
    """Return the graph of a module for any batch.

    Raises:
        ExportError: Its code cannot be written as one graph; gives torch's reason.
    """
    batch = torch.export.Dim(BATCH, min=1)
    shapes = tuple({} if axis is None else {axis: batch} for axis in exportable.axes)
    try:
        with quiet(), torch.no_grad():
            # a StepNetwork takes its states as *args: one entry for all of them
            return torch.export.export(
                exportable.module,
                exportable.inputs,
                dynamic_shapes=_grouped(exportable, shapes),
                strict=False,
            )
    except Exception as error:  # torch raises whatever the module's code raises on symbols
        raise ExportError(f"torch.export cannot write this network as a graph: {reason(error)}") from error


def _grouped(exportable: Exportable, shapes: tuple[dict[int, torch.export.Dim], ...]) -> tuple[object, ...]:
    """Return dynamic shapes in the structure of `forward`'s parameters: `*states` is one entry."""
    code = type(exportable.module).forward.__code__
    named = code.co_argcount - 1
    takes_rest = bool(code.co_flags & 0x04)
    return (*shapes[:named], shapes[named:]) if takes_rest else shapes


def reason(error: BaseException) -> str:
    """Return the line of an error of torch that says most, without colours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [
        line for line in lines if any(word in line for word in ("Error", "No ONNX function", "specialized"))
    ]
    line = (telling or lines or [type(error).__name__])[-1 if telling else 0]
    return line.replace("\x1b[96m", "").replace("\x1b[0m", "")[:300]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what torch says about its own insides from the terminal."""
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
