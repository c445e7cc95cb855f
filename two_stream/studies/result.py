"""Computes the result of a study from its runs, and measures the costs of its variants.

A cost is measured once per model and machine, and stored in the study's folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from two_stream.config.load import dump, flatten
from two_stream.config.schema import Experiment
from two_stream.config.study import Study
from two_stream.errors import ScoreError
from two_stream.evaluation.runs.lookup import history
from two_stream.evaluation.scores.files import read_scores
from two_stream.evaluation.scoring.network import is_exact
from two_stream.pretrained import alterations_in, read_model
from two_stream.profiling.costs import meta_twin, multiply_adds, parameter_count
from two_stream.profiling.timing import device_name, measure_view
from two_stream.recognizer import Recognizer
from two_stream.runtime.console import note
from two_stream.runtime.device import pick_device, set_threads
from two_stream.runtime.files import write_json
from two_stream.runtime.provenance import environment
from two_stream.runtime.text import plural
from two_stream.studies.running.ablation import Ran
from two_stream.studies.running.cells import StudyJob, StudyOutcome
from two_stream.studies.running.plan import Cell, Variant, digest_of, folder_of, pairs_of, variants_of
from two_stream.studies.statistics.results import Published, RunRow, StudyResult, VariantCost
from two_stream.studies.statistics.summary import Question, VariantRuns, study_result
from two_stream.types import Part, RunPaths, ScoreTable

Entry = tuple[Cell, StudyJob, StudyOutcome]
"""A finished cell with its job and outcome."""


def summarize_study(ran: Ran, *, source: Path, command: str) -> StudyResult:
    """Compute the statistics of a study's finished cells, and measure the cost of its variants.

    Raises:
        ScoreError: No cell is done, or the score files do not fit together.
    """
    study = ran.study
    variants = variants_of(study)
    done = [
        (cell, job, outcome)
        for cell, job, outcome in zip(ran.cells, ran.jobs, ran.outcomes, strict=True)
        if outcome is not None and outcome.done
    ]
    if not done:
        raise ScoreError(
            f"{source}: none of the study's runs is finished, so there is nothing to report; run the "
            "study first"
        )
    question = Question(
        name=study.name,
        question=study.question,
        fusion_rule=None if study.fusion == "none" else study.fusion,
        command=command,
        definition=source.read_text(encoding="utf-8") if source.is_file() else dump(study),
    )
    return study_result(
        question,
        [_runs(study, variant, done) for variant in variants],
        pairs_of(study, variants),
        runs=_rows(ran),
        notes=_notes(ran),
    )


def _runs(study: Study, variant: Variant, done: Sequence[Entry]) -> VariantRuns:
    mine = [entry for entry in done if entry[0].variant == variant.name]
    tables, changes = _tables(mine, study.part), flatten(variant.changes)
    runs = VariantRuns(variant.name, variant.levels, changes, tables, baseline=variant.baseline)
    if not mine:
        return runs
    reference = study.published.get(variant.name)
    _, job, outcome = mine[0]
    return replace(
        runs,
        histories={
            f"split {cell.split}, seed {cell.seed}": history(RunPaths(Path(outcome.run)))
            for cell, _, outcome in mine
        },
        cost=_cost(study, job, outcome, tables) if study.measure_cost else None,
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
    """Return the cost of a variant; it is measured if it is not stored for this machine."""
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


def measure_variant(
    experiment: Experiment,
    num_classes: int,
    views: float | None,
    *,
    device: torch.device,
    seconds: float = 1.0,
    run: Path | None = None,
) -> VariantCost:
    """Count a variant's parameters and multiply-adds, and measure the forward pass of one view.

    The forward pass uses the evaluation settings. By default the network has random weights, which does not change its
    cost. If the network of a run is narrowed or quantized to int8, pass `run`, so that this network is measured. The
    setting `threads` is not applied.
    """
    model = Recognizer(experiment.model, num_classes).eval() if run is None else read_model(run)[0]
    device = torch.device("cpu") if model.cpu_only else device
    model = model.to(device)
    if experiment.channels_last:
        model.channels_last()
    parameters, operations = parameter_count(meta_twin(model)), multiply_adds(model)
    found = measure_view(model, experiment, device, seconds)
    return VariantCost(
        parameters=parameters,
        multiply_adds=operations,
        views=views,
        latency_ms=found.latency_ms,
        memory_mib=found.memory_mib,
        device=f"{device_name(device)}, {found.precision}",
    )


def stored_cost(
    path: Path,
    experiment: Experiment,
    num_classes: int,
    views: float | None,
    *,
    device: torch.device,
    run: Path | None = None,
) -> VariantCost:
    """Return a variant's cost from a JSON file. If the file does not contain the cost, measure and store it.

    Variants with the same model, precision and machine share a measurement. A damaged file is replaced. If the network
    of `run` was narrowed or quantized, this network is measured instead of the one in the settings.
    """
    altered = [] if run is None else alterations_in(run)
    key = cost_key(experiment, num_classes, device, altered)
    stored = _read(path)
    if key in stored:
        return replace(stored[key], views=views)
    cost = measure_variant(experiment, num_classes, views, device=device, run=run if altered else None)
    # read again: another process may have stored a cost in the meantime
    write_json(path, {name: asdict(one) for name, one in {**_read(path), key: cost}.items()})
    return cost


def cost_key(
    experiment: Experiment, num_classes: int, device: torch.device, altered: Sequence[dict[str, Any]] = ()
) -> str:
    """Return the hash of all facts that a cost depends on: model, classes, evaluation settings, machine and torch."""
    facts: dict[str, Any] = {
        "model": experiment.model.model_dump(mode="json", exclude={"input": {"fps"}}),
        "classes": num_classes,
        "evaluate": experiment.evaluate.model_dump(mode="json", include={"precision", "fold", "compile"}),
        "exact": is_exact(experiment),
        "channels_last": experiment.channels_last,
        "device": device_name(device),
        "machine": environment()["cpu"],
        "torch": torch.__version__,
    }
    if altered:
        facts["altered"] = list(altered)
    return digest_of(facts)


def _read(path: Path) -> dict[str, VariantCost]:
    try:
        return {str(key): VariantCost(**value) for key, value in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


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
            f"{older} of {plural(len(ran.cells), 'run', 'was', 'were')} trained with a different version of the "
            "code (--any-code)."
        )
    if study.features is None:
        return notes
    notes += [
        "Heads are trained on the stored features of a frozen backbone. Every epoch uses the same "
        f"{plural(study.features.train_views, 'clip')} of each training video."
    ]
    if study.features.backbone is None and any(_has_random_backbone(job.settings()) for job in ran.jobs):
        notes.append(
            "The frozen backbone has random weights, because neither `train.init` nor `pretrained` is set."
        )
    if study.features.backbone is not None:
        notes.append(
            f"The backbone was trained once, with seed {study.seeds[0]}, so different seeds change only the "
            "heads. The holdout of another seed contains videos that the backbone was trained on; it selects the "
            "epoch. The backbone was not trained on test videos."
        )
    return notes


def _has_random_backbone(experiment: Experiment) -> bool:
    return experiment.train.init is None and not getattr(experiment.model.backbone, "pretrained", False)


def failures(ran: Ran) -> list[str]:
    """Return a line for each cell that has no result."""
    lines = []
    for cell, outcome in zip(ran.cells, ran.outcomes, strict=True):
        if outcome is None:
            lines.append(f"{cell.title}: not run")
        elif not outcome.done:
            lines.append(f"{cell.title}: failed: {outcome.reason}")
    return lines
