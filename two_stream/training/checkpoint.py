"""Checkpoints: a folder with `model.safetensors`, `state.pt` and their checksums, whole or absent.

`last/` holds the weights in training; with a moving average, `best/` holds the averaged ones, because those were
validated and will be evaluated. Either holds the rest of the training state too, so a run can continue from both.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from two_stream.errors import CheckpointError
from two_stream.runtime.console import warn
from two_stream.runtime.files import complete_folder, replaced_folder, room_for, verify_checksums
from two_stream.types import RunPaths

WEIGHTS = "model.safetensors"
STATE = "state.pt"
FORMAT = 1

WriteModel = Callable[[Path, nn.Module, dict[str, Any]], object]
"""Writes `model.safetensors` into a folder, from a model and facts about it."""


def save_checkpoint(
    folder: Path, model: nn.Module, state: dict[str, Any], meta: dict[str, Any], write_model: WriteModel
) -> None:
    """Write a checkpoint in place of the folder's present one, which stays until the new one is whole."""
    with replaced_folder(folder) as new:
        write_model(new, model, meta)
        with room_for(new / STATE):
            torch.save({"format": FORMAT, **state}, new / STATE)


def load_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read weights and training state, on the CPU.

    Raises:
        CheckpointError: Missing, damaged, or of another format; names the file.
    """
    verify_checksums(folder)
    for name in (WEIGHTS, STATE):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: missing; the run cannot continue from this checkpoint")
    try:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        raise CheckpointError(f"{folder / STATE}: cannot be read ({_first_line(error)})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{folder / STATE}: written by another version (expected format {FORMAT})")
    return load_file(folder / WEIGHTS), state


def has_checkpoint(paths: RunPaths) -> bool:
    """Whether a run has something to continue from."""
    return complete_folder(paths.last).is_dir()


def load_newest(paths: RunPaths) -> tuple[dict[str, torch.Tensor], dict[str, Any], bool]:
    """Read `last/`; where it is damaged, `best/`, with a warning that says so.

    Continuing from an earlier checkpoint repeats the same steps, so the result stays the same.

    Returns:
        Weights, training state, and whether `last/` could be read.

    Raises:
        CheckpointError: Both are damaged or missing; names the first damaged file.
    """
    try:
        return (*load_checkpoint(complete_folder(paths.last)), True)
    except CheckpointError as error:
        if not complete_folder(paths.best).is_dir():
            raise
        weights, state = load_checkpoint(complete_folder(paths.best))
        warn(f"{error}")
        epoch = state["progress"]["epoch"]
        warn(f"continuing from {paths.best} instead, after epoch {epoch}; the steps since are repeated")
        return weights, state, False


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
