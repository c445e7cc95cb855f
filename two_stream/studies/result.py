"""From the cells of a study to its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from two_stream.config.load import dump, flatten
from two_stream.config.schema import Experiment
from two_stream.config.study import Study
from two_stream.errors import ScoreError
from two_stream.evaluation.runs.lookup import history
from two_stream.evaluation.scores.files import read_scores
from two_stream.runtime.console import note
from two_stream.runtime.device import pick_device, set_threads
from two_stream.studies.costs import stored_cost
from two_stream.studies.running.ablation import Ran
from two_stream.studies.running.cells import StudyJob, StudyOutcome
from two_stream.studies.running.plan import Cell, folder_of
from two_stream.studies.running.variants import Variant, pairs_of, variants_of
from two_stream.studies.statistics.results import Published, RunRow, StudyResult, VariantCost
from two_stream.studies.statistics.summary import Question, VariantRuns, study_result
from two_stream.types import Part, RunPaths, ScoreTable

Entry = tuple[Cell, StudyJob, StudyOutcome]
"""A cell that is done."""


def summarize_study(ran: Ran, *, source: Path, command: str) -> StudyResult:
    """Compute the statistics of a study's finished cells, and measure the cost of its variants.

    Raises:
        ScoreError: No cell is done, or score files do not fit together.
    """
    study = ran.study
    variants = variants_of(study)
    done = [
        (cell, job, outcome)
        for cell, job, outcome in zip(ran.cells, ran.jobs, ran.outcomes, strict=True)
        if outcome is not None and outcome.done
    ]
    if not done:
        raise ScoreError(f"{source}: no cell of the study is done, so there is nothing to report")
    asked = Question(
        name=study.name,
        question=study.question,
        fusion_rule=None if study.fusion == "none" else study.fusion,
        command=command,
        definition=source.read_text(encoding="utf-8") if source.is_file() else dump(study),
    )
    return study_result(
        asked,
        [_runs(study, variant, done) for variant in variants],
        pairs_of(study, variants),
        runs=_rows(ran),
        notes=_notes(ran),
    )


def _runs(study: Study, variant: Variant, done: Sequence[Entry]) -> VariantRuns:
    mine = [entry for entry in done if entry[0].variant == variant.name]
    made = VariantRuns(
        variant.name,
        variant.levels,
        flatten(variant.changes),
        _tables(mine, study.part),
        baseline=variant.baseline,
    )
    if not mine:
        return made
    reference = study.published.get(variant.name)
    _, job, outcome = mine[0]
    return replace(
        made,
        histories={
            f"split {cell.split}, seed {cell.seed}": history(RunPaths(Path(outcome.run)))
            for cell, _, outcome in mine
        },
        cost=_cost(study, job, outcome, made.tables) if study.measure_cost else None,
        published=None if reference is None else Published(reference.value / 100, reference.source),
        settings=dump(job.settings()),
        holdout=_tables(mine, "val") if study.fusion != "none" else {},
    )


def _tables(mine: Sequence[Entry], part: Part) -> dict[tuple[int, int], ScoreTable]:
    return {
        (cell.split, cell.seed): read_scores(outcome.scores[part][0])
        for cell, _, outcome in mine
        if part in outcome.scores
    }


def _cost(
    study: Study, job: StudyJob, outcome: StudyOutcome, tables: dict[tuple[int, int], ScoreTable]
) -> VariantCost:
    """Measure what a variant costs, or take what was measured on this machine before."""
    experiment = job.settings()
    table = next(iter(tables.values()))
    note(f"measuring the cost of {job.title.partition(',')[0]}")
    set_threads(experiment.threads)
    return stored_cost(
        folder_of(study) / "costs.json",
        experiment,
        len(table.class_names),
        table.meta.get("views_per_video"),
        device=pick_device(experiment.device),
        run=Path(outcome.run) if outcome.run else None,
    )


def _rows(ran: Ran) -> list[RunRow]:
    rows = []
    for cell, job, outcome in zip(ran.cells, ran.jobs, ran.outcomes, strict=True):
        row = RunRow(cell.variant, cell.split, cell.seed, "missing", run=job.run, key=cell.key)
        if outcome is not None:
            row = replace(
                row,
                state="done" if outcome.done else "failed",
                run=outcome.run or job.run,
                key=outcome.key,
                accuracy=outcome.accuracy,
                reason=outcome.reason,
                seconds=outcome.seconds,
                scores=next((file for file, _ in outcome.scores.values()), ""),
                model_sha256=outcome.model_sha256,
            )
        rows.append(row)
    return rows


def _notes(ran: Ran) -> list[str]:
    study = ran.study
    notes = []
    older = sum(
        outcome is not None and outcome.done and outcome.key != cell.key
        for cell, outcome in zip(ran.cells, ran.outcomes, strict=True)
    )
    if older:
        notes.append(
            f"{older} of {len(ran.cells)} runs were made by another version of the code (--any-code)."
        )
    if study.features is None:
        return notes
    notes += [
        "Heads learn on the stored features of a frozen backbone, which sees the same "
        f"{study.features.train_views} clip(s) of each training video in every epoch."
    ]
    if study.features.backbone is None and any(_starts_from_nothing(job.settings()) for job in ran.jobs):
        notes.append(
            "The frozen backbone has no trained weights (neither `train.init` nor `pretrained`): its values are random."
        )
    if study.features.backbone is not None:
        notes.append(
            f"The backbone was trained once, with seed {study.seeds[0]}: the differences between seeds are those of "
            "the heads, and with other seeds it has seen holdout videos, which choose the epoch; no test video."
        )
    return notes


def _starts_from_nothing(experiment: Experiment) -> bool:
    return experiment.train.init is None and not getattr(experiment.model.backbone, "pretrained", False)


def failures(ran: Ran) -> list[str]:
    """Return a line for every cell without a result."""
    lines = []
    for cell, outcome in zip(ran.cells, ran.outcomes, strict=True):
        if outcome is None:
            lines.append(f"{cell.title}: not run")
        elif not outcome.done:
            lines.append(f"{cell.title}: failed: {outcome.reason}")
    return lines
