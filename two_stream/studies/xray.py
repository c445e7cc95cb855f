"""X-ray of a study (`xray: true`): the finished cells are scored under controlled changes of their clips.

The scores are stored in the folder of each run, in `scores/xray/`. Cells with the same input are scored together, so
heads on one frozen backbone share its forward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from two_stream.backbones import Backbone
from two_stream.errors import ScoreError
from two_stream.evaluation.features.cache import weights_sha256
from two_stream.evaluation.runs.run import load_run
from two_stream.evaluation.runs.xray import score_changes
from two_stream.evaluation.scores.files import read_scores, write_scores
from two_stream.evaluation.scoring.changes import NATURAL, all_changes
from two_stream.runtime.console import note
from two_stream.runtime.text import plural
from two_stream.studies.running.ablation import Ran
from two_stream.studies.running.cells import StudyOutcome
from two_stream.studies.running.plan import Cell
from two_stream.studies.statistics import comparison
from two_stream.studies.statistics.results import StudyResult
from two_stream.studies.statistics.xray import with_xray, xray_of
from two_stream.types import ScoreTable

_TOGETHER = 24
"""largest number of cells whose networks are in memory at the same time"""


def score_cells(ran: Ran) -> None:
    """Score the finished cells of a study under all changes, except for cells that have been scored before."""
    missing = [(cell, outcome) for cell, outcome in _finished(ran) if _read(ran, outcome) is None]
    if missing:
        note(f"X-ray: {plural(len(missing), 'cell')} to score")
    for start in range(0, len(missing), _TOGETHER):
        _score(ran, missing[start : start + _TOGETHER])


def _score(ran: Ran, members: Sequence[tuple[Cell, StudyOutcome]]) -> None:
    runs = [load_run(outcome.run, "best", cell.experiment.device) for cell, outcome in members]
    backbones: dict[str, Backbone] = {}
    for run in runs:  # equal backbones are kept in memory once
        key = f"{run.model.memory_format} {weights_sha256(run.model.backbone)}"
        run.model.backbone = backbones.setdefault(key, run.model.backbone)
    for (_, outcome), changes in zip(members, score_changes(runs, part=ran.study.part), strict=True):
        for change in reversed(changes):  # `NATURAL` last: it shows that all files are there
            write_scores(_file(ran, outcome, change), changes[change])


def _finished(ran: Ran) -> list[tuple[Cell, StudyOutcome]]:
    return [
        (cell, outcome)
        for cell, outcome in zip(ran.cells, ran.outcomes, strict=True)
        if outcome is not None and outcome.done
    ]


def _file(ran: Ran, outcome: StudyOutcome, change: str) -> Path:
    return Path(outcome.run) / "scores" / "xray" / f"{ran.study.part}_{change.replace(' ', '_')}.npz"


def _read(ran: Ran, outcome: StudyOutcome) -> dict[str, ScoreTable] | None:
    """Return the scores of a cell by change; None if there are none of its weights and its protocol."""
    natural = _file(ran, outcome, NATURAL)
    try:
        plain = read_scores(outcome.scores[ran.study.part][0]).meta
        first = read_scores(natural)
        if any(first.meta.get(key) != plain.get(key) for key in ("model_sha256", "protocol", "precision")):
            return None
        others = [read_scores(file) for file in natural.parent.glob(f"{ran.study.part}_*.npz")]
        order = [NATURAL, *(change.name for change in all_changes())]
        others.sort(key=lambda table: order.index(table.meta["change"]))
        return {table.meta["change"]: table for table in others}
    except ScoreError:
        return None


def add_xray(ran: Ran, result: StudyResult) -> StudyResult:
    """Return the result of a study with the X-ray of its scored cells."""
    networks: dict[str, dict[str, dict[comparison.Cell, ScoreTable]]] = {}
    for cell, outcome in _finished(ran):
        for change, table in (_read(ran, outcome) or {}).items():
            networks.setdefault(cell.variant, {}).setdefault(change, {})[cell.split, cell.seed] = table
    return with_xray(result, xray_of(networks, result.level)) if networks else result
