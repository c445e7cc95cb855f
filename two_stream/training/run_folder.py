"""The folder of a run: lock, settings, environment and checkpoints.

A checkpoint is a folder with `model.safetensors`, `state.pt` and their checksums. A checkpoint is written completely or
not at all. `last/` contains the weights of the latest step, and `best/` those of the best epoch. With a moving average,
`best/` contains the averaged weights. `last/` and `best/` both contain the training state, so a run can continue from
either.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from two_stream.config.load import dump, flatten, load_experiment
from two_stream.config.schema import FREE_ON_RESUME, Cosine, Experiment
from two_stream.errors import CheckpointError, SettingsError
from two_stream.runtime import distributed
from two_stream.runtime.console import note, warn
from two_stream.runtime.files import (
    complete_folder,
    exclusive_lock,
    replaced_folder,
    room_for,
    verify_checksums,
    write_json,
    write_text,
)
from two_stream.runtime.provenance import environment
from two_stream.runtime.text import is_utf8
from two_stream.types import RunPaths

WEIGHTS = "model.safetensors"
STATE = "state.pt"
FORMAT = 1

WriteModel = Callable[[Path, nn.Module, dict[str, Any]], object]
"""Function of a folder, a model and metadata; writes `model.safetensors` into the folder."""
ENVIRONMENT = "environment.json"
JOB = ".job"
"""file with the id of the `torchrun` job that last started or continued the run"""
_OWN = (
    "last",
    "best",
    "trained",
    ".last.old",
    ".best.old",
    ".last.new",
    ".best.new",
    "scores",
    "metrics.jsonl",
)
_OWN_FILES = ("report.html", ENVIRONMENT, "experiment.yaml", "data.json", "threshold.json")
_PLACES = ("name", "data.dataset", "data.settings_root", "data.features", "data.shards")
"""settings that may change on resume because runs and data can be moved; the trainer compares the lists' content"""


def check_run(experiment: Experiment, *, resume: bool, overwrite: bool) -> RunPaths:
    """Check that a run can start or continue, and return its paths; nothing is written.

    Raises:
        SettingsError: The run exists and neither `resume` nor `overwrite` is set, the settings differ from those of the
            run to resume, or the folder contains other files.
    """
    paths = RunPaths(experiment.runs / experiment.name)
    if resume and overwrite:
        raise SettingsError("--resume and --overwrite cannot be combined; use only one")
    if not is_utf8(paths.root):
        raise SettingsError(
            f"{paths.root}: the path is not valid UTF-8, which TensorBoard and safetensors require; choose "
            "another `runs` folder"
        )
    if paths.root.exists() and not paths.root.is_dir():
        raise SettingsError(f"{paths.root}: is a file, expected a folder; choose another `name` or `runs`")
    # if the process was killed right after creating the folder, the folder contains only hidden files
    used = paths.root.is_dir() and any(not path.name.startswith(".") for path in paths.root.iterdir())
    if used and not paths.experiment.is_file():
        raise SettingsError(
            f"{paths.root}: the folder contains files but no `experiment.yaml` of a run; choose "
            "another `name` or `runs`"
        )
    if used and not resume and not overwrite:
        raise SettingsError(
            f"{paths.root}: the run exists; continue it with --resume, start over with --overwrite, or choose "
            "another name with --name"
        )
    if resume and paths.experiment.is_file():
        _compare(paths.experiment, load_experiment(paths.experiment), experiment)
    return paths


def begin_run(paths: RunPaths, experiment: Experiment, *, overwrite: bool) -> None:
    """Write the settings of a run. With `overwrite`, the files of an earlier run are removed first."""
    if overwrite and paths.root.is_dir():
        _clear(paths)
    write_text(paths.experiment, dump(experiment))


@contextmanager
def lock_run(paths: RunPaths) -> Iterator[None]:
    """Context manager that locks a run for this process.

    Raises:
        SettingsError: Another process is training this run.
    """
    busy = SettingsError(
        f"{paths.root}: another process is training this run; wait for it to finish or choose another name"
    )
    with exclusive_lock(paths.root / ".lock", busy):
        (paths.root / JOB).write_text(distributed.job(), encoding="utf-8")
        yield


def began_here(paths: RunPaths) -> bool:
    """Return whether this `torchrun` job was the last one to start or continue the run."""
    try:
        return distributed.job() == (paths.root / JOB).read_text(encoding="utf-8") != ""
    except OSError:
        return False


def record_environment(paths: RunPaths, facts: dict[str, str]) -> None:
    """Write `environment.json`, and warn if versions have changed since the run began."""
    path = paths.root / ENVIRONMENT
    now = environment() | facts
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    changed = [f"{key} {before[key]} -> {now.get(key)}" for key in before if before[key] != now.get(key)]
    if changed:
        warn(
            f"the environment of the run has changed ({'; '.join(changed)}), so results may differ by rounding"
        )
    write_json(path, now)


def differences(before: Experiment, now: Experiment) -> list[str]:
    """Return `key: old -> new` for every changed setting that must stay the same on resume."""
    old, new = flatten(before.model_dump(mode="json")), flatten(now.model_dump(mode="json"))
    found = []
    for key in sorted(old.keys() | new.keys()):
        free = any(key == name or key.startswith(f"{name}.") for name in (*FREE_ON_RESUME, *_PLACES))
        if not free and old.get(key) != new.get(key):
            found.append(f"{key}: {old.get(key)} -> {new.get(key)}")
    return found


def _compare(path: Path, before: Experiment, now: Experiment) -> None:
    changed = differences(before, now)
    old, new = before.train.epochs, now.train.epochs
    if new > old and now.compress.kind == "none":  # pruning and quantization divide the epochs into phases
        changed = [line for line in changed if not line.startswith("train.epochs: ")]
    if changed:
        raise SettingsError(
            f"{path}: the settings of the run to resume differ ({'; '.join(changed)}); use the old values, "
            "or train a new run with another --name"
        )
    if new > old:
        rates = f"the learning rates are those of a run that began with {new} epochs"
        if isinstance(now.train.schedule, Cosine):
            rates = f"from epoch {old + 1}, the learning rates are those of a schedule over {new} epochs"
        note(f"train.epochs: {old} -> {new}; {rates}")


def _clear(paths: RunPaths) -> None:
    """Remove only the files that a run writes."""
    note(f"--overwrite: removing the files of the earlier run in {paths.root}")
    own: list[Any] = [paths.root / name for name in (*_OWN, *_OWN_FILES)]
    own += paths.root.glob("events.out.tfevents.*")
    for path in own:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def save_checkpoint(
    folder: Path, model: nn.Module, state: dict[str, Any], meta: dict[str, Any], write_model: WriteModel
) -> None:
    """Write a checkpoint; an old checkpoint in the folder is replaced when the new one is complete."""
    with replaced_folder(folder) as new:
        write_model(new, model, meta)
        with room_for(new / STATE):
            torch.save({"format": FORMAT, **state}, new / STATE)


def load_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Load the weights and the training state of a checkpoint on the CPU.

    Raises:
        CheckpointError: The checkpoint is missing, damaged or in a different format.
    """
    verify_checksums(folder)
    for name in (WEIGHTS, STATE):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name}: file not found; the run cannot continue from this checkpoint"
            )
    try:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        raise CheckpointError(
            f"{folder / STATE}: cannot be read ({_first_line(error)}); the checkpoint is damaged"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / STATE}: written by a different version of two-stream; expected "
            f"checkpoint format {FORMAT}; resume with that version, or start over with --overwrite"
        )
    return load_file(folder / WEIGHTS), state


def has_checkpoint(paths: RunPaths) -> bool:
    """Return whether a run has a checkpoint to continue from."""
    return complete_folder(paths.last).is_dir()


def load_newest(paths: RunPaths) -> tuple[dict[str, torch.Tensor], dict[str, Any], bool]:
    """Load `last/`. If `last/` is damaged, print a warning and load `best/`.

    A run that continues from the earlier checkpoint repeats the same steps, so its result does not change.

    Returns:
        The weights, the training state, and whether `last/` was loaded.

    Raises:
        CheckpointError: Both checkpoints are damaged or missing.
    """
    try:
        return (*load_checkpoint(complete_folder(paths.last)), True)
    except CheckpointError as error:
        if not complete_folder(paths.best).is_dir():
            raise
        weights, state = load_checkpoint(complete_folder(paths.best))
        warn(f"{error}")
        epoch = state["progress"]["epoch"]
        warn(
            f"continuing from {paths.best} instead, which was saved after epoch {epoch}; the steps since then "
            "are repeated"
        )
        return weights, state, False


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
