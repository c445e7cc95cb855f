"""The folder of a run: may it be started, may it be continued, what made it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from two_stream.config.load import dump, flatten, load_experiment
from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError
from two_stream.runtime import distributed
from two_stream.runtime.console import note, warn
from two_stream.runtime.files import write_json, write_text
from two_stream.runtime.locks import exclusive_lock
from two_stream.runtime.provenance import environment
from two_stream.runtime.text import is_utf8
from two_stream.types import RunPaths

FREE_ON_RESUME = (
    "device",
    "threads",
    "runs",
    "data.workers",
    "train.strategy",
    "train.compile",
    "evaluate",
)
"""settings (and everything below them) that may differ on resume: they do not change what is trained"""
ENVIRONMENT = "environment.json"
JOB = ".job"
"""names the `torchrun` job that last began or continued the run"""
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
_OWN_FILES = ("report.html", ENVIRONMENT, "experiment.yaml")


def check_run(experiment: Experiment, *, resume: bool, overwrite: bool) -> RunPaths:
    """Find out whether a run may begin or continue; writes nothing.

    Raises:
        SettingsError: The folder is in use and neither `resume` nor `overwrite` was asked for; or the settings of
            the run to resume differ; or the folder holds something else.
    """
    paths = RunPaths(experiment.runs / experiment.name)
    if resume and overwrite:
        raise SettingsError("--resume and --overwrite contradict each other; keep one")
    if not is_utf8(paths.root):
        raise SettingsError(
            f"{paths.root}: not UTF-8, as TensorBoard and safetensors need; choose other `runs`"
        )
    if paths.root.exists() and not paths.root.is_dir():
        raise SettingsError(f"{paths.root}: is a file; choose another `name` or `runs`")
    # a kill may have come right after the folder was made: then it holds hidden files and an unfinished file at most
    used = paths.root.is_dir() and any(not path.name.startswith(".") for path in paths.root.iterdir())
    if used and not paths.experiment.is_file():
        raise SettingsError(f"{paths.root}: holds files but no run; choose another `name` or `runs`")
    if used and not resume and not overwrite:
        raise SettingsError(
            f"{paths.root}: the run exists; continue it with --resume, start over with --overwrite, "
            "or choose another name with --name"
        )
    if resume and paths.experiment.is_file():
        _compare(paths.experiment, load_experiment(paths.experiment), experiment)
    return paths


def begin_run(paths: RunPaths, experiment: Experiment, *, overwrite: bool) -> None:
    """Make the folder ready and write the settings; with `overwrite`, remove what an earlier run wrote."""
    if overwrite and paths.root.is_dir():
        _clear(paths)
    write_text(paths.experiment, dump(experiment))


@contextmanager
def lock_run(paths: RunPaths) -> Iterator[None]:
    """Keep a second process from training the same run at the same time.

    Raises:
        SettingsError: Another process trains this run.
    """
    busy = SettingsError(
        f"{paths.root}: another process is training this run; wait for it or choose another name"
    )
    with exclusive_lock(paths.root / ".lock", busy):
        (paths.root / JOB).write_text(distributed.job(), encoding="utf-8")
        yield


def began_here(paths: RunPaths) -> bool:
    """Whether it was the present `torchrun` job that last began or continued a run."""
    try:
        return distributed.job() == (paths.root / JOB).read_text(encoding="utf-8") != ""
    except OSError:
        return False


def record_environment(paths: RunPaths, facts: dict[str, str]) -> None:
    """Write `environment.json`; on resume say which versions changed, since the last bits may then differ."""
    path = paths.root / ENVIRONMENT
    now = environment() | facts
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    changed = [f"{key} {before[key]} -> {now.get(key)}" for key in before if before[key] != now.get(key)]
    if changed:
        warn(f"resumed under other versions, so the last bits may differ: {'; '.join(changed)}")
    write_json(path, now)


def differences(before: Experiment, now: Experiment) -> list[str]:
    """Return `key: old -> new` for every setting that may not change on resume."""
    old, new = flatten(before.model_dump(mode="json")), flatten(now.model_dump(mode="json"))
    found = []
    for key in sorted(old.keys() | new.keys()):
        free = any(key == name or key.startswith(f"{name}.") for name in FREE_ON_RESUME)
        if not free and old.get(key) != new.get(key):
            found.append(f"{key}: {old.get(key)} -> {new.get(key)}")
    return found


def _compare(path: Path, before: Experiment, now: Experiment) -> None:
    changed = differences(before, now)
    if changed:
        raise SettingsError(
            f"{path}: the run to resume has other settings ({'; '.join(changed)}); "
            "give the old values, or train under another --name"
        )


def _clear(paths: RunPaths) -> None:
    """Remove what a run writes and nothing else."""
    note(f"removing the files of the run in {paths.root}")
    doomed: list[Any] = [paths.root / name for name in (*_OWN, *_OWN_FILES)]
    doomed += paths.root.glob("events.out.tfevents.*")
    for path in doomed:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
