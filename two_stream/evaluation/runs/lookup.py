"""The run behind a score table: its folder, its settings and its learning curve."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

from two_stream.config.load import load_experiment
from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError
from two_stream.evaluation.scores.files import newest_scores, read_scores
from two_stream.runtime.console import warn
from two_stream.runtime.files import is_line_intact
from two_stream.runtime.text import parse_json
from two_stream.types import RunPaths, ScoreTable

BASELINE_SCORES = "{part}_fused.npz"
"""the fused scores in a baseline's folder"""


def baseline_folder(runs: Path, dataset: str, split: int) -> Path:
    """Return where `two-stream baseline` keeps the runs and scores of a data set's split, below the folder of runs."""
    return runs / "baseline" / f"{dataset}-split{split}"


def find_baseline(table: ScoreTable) -> tuple[ScoreTable | None, str]:
    """Return the baseline's scores of a table's test part, and the command that makes them.

    They are looked for under the folder of runs that the table's own lies in: `runs/<run>`, `runs/<group>/<run>` or a
    study's cell, `runs/studies/<study>/runs/<cell>`.

    Returns:
        Their table, None where there is none; and the command, empty where no baseline belongs beside the table:
        another part than the test part, several classes per video, a run of the baseline, or no name of a data set.

    Raises:
        ScoreError: The file is damaged.
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
    """Return the run folder a table lies in, or the one its meta names."""
    beside = Path(str(table.meta.get("file", ""))).parent.parent
    for folder in (beside, Path(str(table.meta.get("run", "")))):
        if str(folder) not in ("", ".") and (folder / "experiment.yaml").is_file():
            return RunPaths(folder)
    return None


def settings_of(run: RunPaths | None) -> Experiment | None:
    """Return a run's settings; None without a run, or where another version wrote them: its numbers still stand."""
    if run is None:
        return None
    try:
        return load_experiment(run.experiment)
    except SettingsError:
        return None


def compression_of(run: RunPaths | None) -> dict[str, Any] | None:
    """Return what `compression.json` says of a compressed run: verdict, columns and rows; None without one."""
    try:
        value = parse_json((run.root / "compression.json").read_text(encoding="utf-8")) if run else None
        return value and {
            "verdict": value["comparison"]["verdict"],
            "columns": value["columns"],
            "rows": value["rows"],
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def history(run: RunPaths | None) -> list[dict[str, float]]:
    """Return `metrics.jsonl` as flat rows of numbers, one per epoch; it ends at a damaged line, with a warning."""
    rows: list[dict[str, float]] = []
    if run is None or not run.metrics.is_file():
        return rows
    lines = run.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
    checked = any(is_line_intact(line) for line in lines)  # runs of earlier versions have no checksums
    for number, line in enumerate(lines, start=1):
        try:
            value = parse_json(line)
        except ValueError:
            value = None
        if value is None or (checked and not is_line_intact(line)):
            warn(f"{run.metrics}: line {number} is damaged (its checksum differs); the curves end before it")
            break
        if isinstance(value, dict) and "epoch" in value:
            rows.append({key: float(item) for key, item in value.items() if _is_number(item)})
    return rows


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
