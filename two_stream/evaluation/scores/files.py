"""Score files: one `.npz` file for each stream and protocol, or a file of another program; joined by video id."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from two_stream.errors import ScoreError
from two_stream.evaluation.scores.formats import SEVERAL, Described, read_foreign
from two_stream.evaluation.scores.tables import check_table
from two_stream.pretrained.files.hub import fetch_run, is_on_hub
from two_stream.runtime.files import atomic_path, read_arrays, write_json, write_text
from two_stream.runtime.text import csv_text, json_text, parse_json
from two_stream.types import RunPaths, ScoreTable

FORMAT = 1
"""Version of the file layout; files of newer versions are rejected."""


def write_scores(path: Path, table: ScoreTable) -> None:
    """Write a score file atomically: a compressed NumPy archive without pickles.

    The archive has one array for each field of a `ScoreTable` that is not None, and the number of the `format`. `meta`
    is JSON text.

    Raises:
        ScoreError: The table is inconsistent; see `check_table`.
    """
    check_table(table, str(path))
    meta = {key: value for key, value in table.meta.items() if key != "file"}
    arrays: dict[str, NDArray[Any]] = {
        "format": np.asarray(FORMAT),
        "ids": np.asarray(table.ids, dtype=np.str_),
        "labels": np.asarray(table.labels, dtype=np.int64),
        "class_names": np.asarray(table.class_names, dtype=np.str_),
        "logits": np.asarray(table.logits, dtype=np.float64),
        "meta": np.asarray(json_text(meta, sort_keys=True)),
    }
    if table.view_logits is not None and table.view_counts is not None:
        arrays["view_logits"] = np.asarray(table.view_logits, dtype=np.float32)
        arrays["view_counts"] = np.asarray(table.view_counts, dtype=np.int64)
    if table.targets is not None:
        arrays["targets"] = np.asarray(table.targets, dtype=np.bool_)
    if table.groups is not None:
        arrays["groups"] = np.asarray(table.groups, dtype=np.str_)
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def write_table(path: Path, table: ScoreTable) -> None:
    """Write a table as a CSV, JSON or score file (.npz), depending on the suffix.

    Raises:
        ScoreError: The file has another suffix.
    """
    if path.suffix == ".npz":
        write_scores(path, table)
        return
    if path.suffix not in (".csv", ".json"):
        raise ScoreError(
            f"{path}: unknown type of score file; expected a name that ends in .csv, .json or .npz"
        )
    targets = (
        table.labels[:, None] if table.targets is None else [np.flatnonzero(row) for row in table.targets]
    )
    labels = [SEVERAL.join(table.class_names[number] for number in own) for own in targets]
    rows = zip(table.ids, labels, table.groups or [""] * len(labels), table.logits.tolist(), strict=True)
    if path.suffix == ".csv":
        lines = ((name, label, group, *scores) for name, label, group, scores in rows)
        write_text(path, csv_text(("id", "label", "group", *table.class_names), lines))
        return
    keys = ("id", "label", "group", "scores")
    records = [dict(zip(keys, row, strict=True)) for row in rows]
    write_json(path, {"class_names": table.class_names, "records": records}, indent=None)


def read_scores(path: Path | str, described: Described | None = None, part: str = "test") -> ScoreTable:
    """Read a score file. `meta["file"]` of the result is the path of the file.

    Args:
        path: The file: `.npz`, or a file of another program, see `formats`.
        described: What a file of another program leaves out.
        part: Part of the data set that the scores in a file of another program are of.

    Raises:
        ScoreError: The file is missing, damaged, inconsistent or not a score file.
    """
    path = Path(path)
    try:
        if path.suffix != ".npz" and path.is_file():
            return read_foreign(path, described or Described(), part)
        arrays = read_arrays(path)
        if "format" not in arrays and "meta" not in arrays:
            return read_foreign(path, described or Described(), part, arrays)
    except FileNotFoundError:
        raise ScoreError(f"{path}: no such score file; write one with `two-stream evaluate RUN`") from None
    except (OSError, ValueError) as error:
        if "data type other than" in str(error):
            hint = "Python objects are not read, so write ids as np.array(ids, dtype=str)"
            raise ScoreError(f"{path}: not a score file, or a damaged one ({error}); {hint}") from None
        raise ScoreError(
            f"{path}: not a score file, or a damaged one ({error}); write it again with "
            "`two-stream evaluate RUN`"
        ) from None
    try:
        if int(arrays["format"]) > FORMAT:
            raise ScoreError(
                f"{path}: format {int(arrays['format'])} is newer than {FORMAT}, the newest format that this "
                "version reads; update two-stream"
            )
        meta = parse_json(str(arrays["meta"]))
        table = ScoreTable(
            ids=[str(name) for name in arrays["ids"]],
            labels=arrays["labels"].astype(np.int64),
            class_names=[str(name) for name in arrays["class_names"]],
            logits=arrays["logits"].astype(np.float64),
            meta={**meta, "file": str(path)},
            view_logits=arrays.get("view_logits"),
            view_counts=arrays.get("view_counts"),
            groups=[str(name) for name in arrays["groups"]] if "groups" in arrays else None,
            targets=arrays["targets"].astype(np.bool_) if "targets" in arrays else None,
        )
    except KeyError as error:
        raise ScoreError(
            f"{path}: not a score file: the array {error} is missing; use a file written by "
            "`two-stream evaluate`"
        ) from None
    except (TypeError, ValueError) as error:
        raise ScoreError(
            f"{path}: damaged score file ({str(error).splitlines()[0]}); write it again with "
            "`two-stream evaluate RUN`"
        ) from None
    check_table(table, str(path))
    return table


def newest_scores(run: Path, part: str = "test") -> Path:
    """Return the newest score file of a run for a part; of a run from the Hugging Face hub, the newest published one.

    Raises:
        ScoreError: The run has no scores of this part.
    """
    if not RunPaths(run).experiment.is_file() and not (run / "scores").is_dir():
        raise ScoreError(f"{run}: not a run folder; expected a run folder or score files")
    folder, order = run / "scores", _published_order(run)
    found = sorted(
        folder.glob(f"{part}_*.npz"),
        key=lambda path: (-order.get(path.name, len(order)), path.stat().st_mtime_ns, path.name),
    )
    if not found:
        flag = "" if part == "test" else f" --part {part}"
        command = f"two-stream evaluate {shlex.quote(str(run))}{flag}"
        raise ScoreError(f"{folder}: no scores of the {part} part; write them with `{command}`")
    return found[-1]


def _published_order(run: Path) -> dict[str, int]:
    """Return the places of score files in the list of a published run, from the newest one; empty for other runs.

    The time of a downloaded file is that of the download.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):
        results = parse_json((run / "config.json").read_bytes())["results"]
        return {Path(str(one["file"])).name: place for place, one in enumerate(results)}
    return {}


def find_scores(path: Path | str, part: str = "test") -> Path:
    """Return the path of a score file, or of the newest score file of a run folder or of a run on the hub.

    Raises:
        ScoreError: The file or folder does not exist, or the run has no scores of this part.
    """
    path = fetch_run(path) if is_on_hub(path) else Path(path)
    if path.is_dir():
        return newest_scores(path, part)
    if not path.exists():
        raise ScoreError(f"{path}: no such score file or run folder; check the path")
    return path
