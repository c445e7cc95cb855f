"""Paths, settings, learning curves and baselines of run folders; the networks are not loaded."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from two_stream.config.load import load_experiment, read_yaml
from two_stream.config.schema import DataOptions, Experiment
from two_stream.data.catalog import RECORD_FILE, Record, dataset_record
from two_stream.errors import CheckpointError, DataError, SettingsError
from two_stream.evaluation.scores.files import newest_scores, read_scores
from two_stream.pretrained.files.hub import WEIGHTS, fetch_run, is_on_hub
from two_stream.runtime.console import warn
from two_stream.runtime.files import complete_folder, is_line_intact, write_json
from two_stream.runtime.text import parse_json
from two_stream.types import RunPaths, ScoreTable

BASELINE_SCORES = "{part}_fused.npz"
"""name of the file with the fused scores in a baseline's folder"""
Roots = Path | str | Sequence[Path] | None
"""folders to which data have been moved"""
_WHAT = {"dataset": "data set", "features": "stored features", "shards": "shards"}


def find_run(path: Path | str) -> Path:
    """Return the folder of a run; a run on the Hugging Face hub (`hf://NAME/MODEL`) is downloaded to the hub's cache.

    Raises:
        CheckpointError: The hub does not provide the run; see `fetch_run`.
    """
    return fetch_run(path) if is_on_hub(path) else Path(path)


def checkpoint_folder(run: Path, checkpoint: str) -> Path:
    """Return the folder of a checkpoint; a run from the Hugging Face hub contains the best one, not in a folder."""
    folder = complete_folder(run / checkpoint)
    published = checkpoint == "best" and not folder.is_dir() and (run / WEIGHTS).is_file()
    return run if published else folder


def run_paths(path: Path | str) -> RunPaths:
    """Return the paths of a run folder, or of a run on the Hugging Face hub; see `find_run`.

    Raises:
        CheckpointError: The folder does not exist or is not a run folder.
    """
    folder = find_run(path)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such run folder"
        raise CheckpointError(f"{folder}: {what}; expected a folder written by `two-stream train`")
    paths = RunPaths(folder)
    if not paths.experiment.is_file():
        raise CheckpointError(
            f"{folder}: not a run folder, because it contains no experiment.yaml; expected a folder written by "
            "`two-stream train`"
        )
    return paths


def record_data(run: RunPaths, experiment: Experiment, record: Record) -> None:
    """Write the name of a run's data set, and where its data are.

    `paths` has the keys `dataset` (the file `dataset.yaml`), `features` and `shards`, as far as the run uses them. Each
    place has a path `relative` to the run folder (null if it is on another drive) and an `absolute` path.
    """
    data = experiment.data
    local = Path(data.shards) if data.shards is not None and "://" not in data.shards else None
    paths: dict[str, Path | None] = {
        "dataset": record.folder / RECORD_FILE,
        "features": data.features,
        "shards": local,
    }
    places = {key: place_of(path, run.root) for key, path in paths.items() if path is not None}
    write_json(run.data, {"name": record.name, "paths": places})


def place_of(path: Path, start: Path) -> dict[str, str | None]:
    """Return a path relative to a folder (None on another drive of Windows) and absolute; see `recorded_paths`."""
    relative = None
    with suppress(ValueError):
        relative = Path(os.path.relpath(path.resolve(), start.resolve())).as_posix()
    return {"relative": relative, "absolute": path.resolve().as_posix()}


def recorded_paths(start: Path, place: Mapping[str, Any]) -> list[Path]:
    """Return the recorded places of something, in the order in which they are tried."""
    relative = [Path(os.path.normpath(start / str(place["relative"])))] if place["relative"] else []
    return [*relative, Path(str(place["absolute"]))]


def locate_data(run: RunPaths, experiment: Experiment, roots: Roots = ()) -> Experiment:
    """Return the settings of a run with the places of its data on this machine.

    The data set, the stored features and the shards are searched relative to the run folder, then at the absolute path
    of the training, then at the place in the settings. A data set is only accepted if it has the name of the training's
    data set.

    Args:
        run: The run folder, which may have been moved.
        experiment: Settings of the run.
        roots: Folders of data that have been moved elsewhere: the folder of the data set's `dataset.yaml` (or this
            file), of the stored features, or of the shards.

    Raises:
        SettingsError: A folder of `roots` contains none of the run's data, or a data set of another name.
    """
    name, places = _places(run, experiment)
    data = experiment.data
    found: dict[str, Any] = {}
    for root in map(Path, [roots] if isinstance(roots, (str, Path)) else roots or ()):
        file = root / RECORD_FILE if root.is_dir() else root
        kinds = {"dataset": file, "features": root, "shards": root}
        key = next((key for key in places if _is_there(key, kinds[key], name, experiment)), None)
        if key is None:
            others = [_WHAT[key] for key in places if key != "dataset"]
            also = f", and no {' or '.join(others)}" if others else ""
            raise SettingsError(
                f"{root}: found no {RECORD_FILE} of the data set {name or data.dataset!r} there{also}"
            )
        found[key] = kinds[key]
    for key, tried in places.items():
        place = next((path for path in tried if _is_there(key, path, name, experiment)), None)
        given = _given(key, data)
        if key not in found and place is not None and (given is None or place.resolve() != given.resolve()):
            found[key] = place
    found = {key: place if key == "features" else str(place) for key, place in found.items()}
    return experiment.model_copy(update={"data": data.model_copy(update=found)}) if found else experiment


def check_data(run: RunPaths, experiment: Experiment, *, features: bool = True) -> None:
    """Check that the data of a run are at the places in its settings, which `locate_data` has updated.

    Args:
        run: The run folder.
        experiment: Settings of the run.
        features: Whether stored features are read, if the settings name them.

    Raises:
        DataError: The data are missing, or are another data set; the message lists the places that were tried.
    """
    name, places = _places(run, experiment)
    data = experiment.data
    stored = features and data.features is not None
    used = {"dataset": True, "features": stored, "shards": data.source == "shards" and not stored}
    for key, tried in places.items():
        given = _given(key, data)
        if not used[key] or (given is not None and _is_there(key, given, name, experiment)):
            continue
        if key == "dataset" and given is None and _record(data) is not None:
            continue  # a record of the package
        what = f"{_WHAT[key]} {name!r}" if key == "dataset" and name else _WHAT[key]
        listed = ", ".join(dict.fromkeys(map(str, [*tried, *([data.dataset] if key == "dataset" else [])])))
        videos = ", or read the videos with --uncached" if key == "features" else ""
        raise DataError(
            f"{run.root}: {what} not found; tried {listed}; name the folder with --data-root (`train --resume`: "
            f"--data.{key}){videos}"
        )


def _places(run: RunPaths, experiment: Experiment) -> tuple[str, dict[str, list[Path]]]:
    """Return the name of a run's data set, and the places to try for the data set, the features and the shards."""
    data = experiment.data
    guessed: dict[str, list[Path]] = {}
    try:
        facts = parse_json(run.data.read_bytes())
        name = str(facts["name"])
        recorded = {str(key): recorded_paths(run.root, one) for key, one in facts["paths"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        name, recorded, guessed = "", {}, _guessed(run.root, experiment)  # a run of an earlier version
    local = data.shards is not None and "://" not in data.shards
    used = {"dataset": True, "features": data.features is not None, "shards": local}
    given = {key: [_given(key, data)] for key in used if used[key]}
    places = {key: [*recorded.get(key, ()), *given[key], *guessed.get(key, ())] for key in given}
    return name, {key: [path for path in tried if path is not None] for key, tried in places.items()}


def _is_there(key: str, path: Path, name: str, experiment: Experiment) -> bool:
    if key == "dataset":
        return path.is_file() and (not name or read_yaml(path).get("name") == name)
    if key == "features":
        return (complete_folder(path) / "features.json").is_file()
    return (path / experiment.model.reads / "index.npz").is_file()


def _given(key: str, data: DataOptions) -> Path | None:
    """Return a place in the settings; for the data set, its `dataset.yaml`, if there is one."""
    if key == "dataset":
        record = _record(data)
        file = None if record is None else record.folder / RECORD_FILE
        return file if file is not None and file.is_file() else None
    value = getattr(data, key)
    return None if value is None else Path(value)


def _record(data: DataOptions) -> Record | None:
    """Return the record of the data set at the place in the settings; None if there is none."""
    with suppress(SettingsError, DataError):
        record = dataset_record(data)
        return record if record.folder.is_dir() else None
    return None


def _guessed(run: Path, experiment: Experiment) -> dict[str, list[Path]]:
    """Return places for a run without `data.json`: the folder in which it was trained, if `runs/name` shows it."""
    tail, whole = experiment.runs / experiment.name, run.resolve()
    if tail.is_absolute() or whole.parts[-len(tail.parts) :] != tail.parts:
        return {}
    base, data = Path(*whole.parts[: -len(tail.parts)]), experiment.data
    named = base / data.dataset if data.dataset.endswith((".yaml", ".yml")) else None
    paths = {"dataset": named or base / data.settings_root / data.dataset / RECORD_FILE}
    paths |= {"features": base / data.features} if data.features is not None else {}
    return {key: [path] for key, path in paths.items()}


def baseline_folder(runs: Path, dataset: str, split: int) -> Path:
    """Return the folder that `two-stream baseline` writes for a split of a data set, below the folder of runs."""
    return runs / "baseline" / f"{dataset}-split{split}"


def find_baseline(table: ScoreTable) -> tuple[ScoreTable | None, str]:
    """Return the baseline's scores to compare a table with, and the command that computes these scores.

    The scores are looked up in the nearest four folders above the table's run, because the run can be `runs/<run>`,
    `runs/<group>/<run>` or a study's cell `runs/studies/<study>/runs/<cell>`.

    The first result is None if no scores are found. The command is empty for tables without a baseline: tables of parts
    other than test, multi-label tables, the baseline's own tables, and tables whose data set is unknown.

    Raises:
        ScoreError: The baseline's score file is damaged.
    """
    meta, run = table.meta, run_of(table)
    if meta.get("part") != "test" or table.targets is not None or not meta.get("dataset"):
        return None, ""
    dataset, split = str(meta["dataset"]), int(meta.get("split") or 1)
    roots = list(run.root.parents[:4]) if run is not None else [Path("runs")]
    if any(baseline_folder(root, dataset, split) in run.root.parents for root in roots if run is not None):
        return None, ""
    command = _baseline_command(settings_of(run), dataset, split, roots[0])
    for root in roots:
        folder = baseline_folder(root, dataset, split)
        fused = folder / BASELINE_SCORES.format(part="test")
        only = sorted(folder.glob("*/scores/test_*.npz"))
        if fused.is_file() or len({path.parent for path in only}) == 1:
            found = read_scores(fused if fused.is_file() else newest_scores(only[0].parents[1]))
            found.meta |= {"baseline": True}
            return found, command
    return None, command


def _baseline_command(experiment: Experiment | None, dataset: str, split: int, runs: Path) -> str:
    words = ["two-stream", "baseline", dataset, "--split", str(split)]
    if experiment is not None:
        words[2], settings = experiment.data.dataset, experiment.data.settings_root
        words += ["--settings-root", str(settings)] if settings != Path("settings") else []
    words += ["--runs", str(runs)] if runs != Path("runs") else []
    return shlex.join(words)


def run_of(table: ScoreTable) -> RunPaths | None:
    """Return the run folder that contains a table's file, or else the one in its metadata; None if neither exists."""
    own = Path(str(table.meta.get("file", ""))).parent.parent
    for folder in (own, Path(str(table.meta.get("run", "")))):
        if str(folder) not in ("", ".") and RunPaths(folder).experiment.is_file():
            return RunPaths(folder)
    return None


def settings_of(run: RunPaths | None) -> Experiment | None:
    """Return the settings of a run; None if there is no run or this version cannot read the settings."""
    with suppress(SettingsError):
        return None if run is None else locate_data(run, load_experiment(run.experiment))
    return None


def environment_of(run: Path) -> dict[str, str]:
    """Return `environment.json` of a run folder: versions and machine of the training; empty if unknown."""
    with suppress(OSError, ValueError):
        value = parse_json((run / "environment.json").read_text(encoding="utf-8"))
        return {key: str(fact) for key, fact in value.items()} if isinstance(value, dict) else {}
    return {}


def compression_of(run: RunPaths | None) -> dict[str, Any] | None:
    """Return the verdict, columns and rows of a compressed run's `compression.json`; None if there is no such file."""
    if run is None:
        return None
    with suppress(OSError, ValueError, KeyError, TypeError):
        value = parse_json((run.root / "compression.json").read_text(encoding="utf-8"))
        return {"verdict": value["comparison"]["verdict"], "columns": value["columns"], "rows": value["rows"]}
    return None


def history(run: RunPaths | None) -> list[dict[str, float]]:
    """Return the numbers in `metrics.jsonl`, one row for each epoch; a damaged line is reported, see `read_history`."""
    rows, problem = read_history(run)
    if problem:
        warn(problem)
    return rows


def read_history(run: RunPaths | None) -> tuple[list[dict[str, float]], str]:
    """Return the numbers in `metrics.jsonl`, one row for each epoch, and a message if a line is damaged.

    A damaged line and the following ones are ignored.
    """
    rows: list[dict[str, float]] = []
    if run is None or not run.metrics.is_file():
        return rows, ""
    lines = run.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
    checked = any(is_line_intact(line) for line in lines)  # runs of earlier versions have no checksums
    for number, line in enumerate(lines, start=1):
        try:
            value = parse_json(line)
        except ValueError:
            value = None
        if value is None or (checked and not is_line_intact(line)):
            problem = f"line {number} is damaged (the checksum differs); the curves end before this line"
            return rows, f"{run.metrics}: {problem}"
        if isinstance(value, dict) and "epoch" in value:
            rows.append({key: float(item) for key, item in value.items() if _is_number(item)})
    return rows, ""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
