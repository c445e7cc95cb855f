"""Runs the missing jobs of a study in the order of their dependencies, and shows a live table."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from rich.live import Live
from rich.table import Table

from two_stream.config.load import dump
from two_stream.config.schema import Experiment, TrainOptions
from two_stream.config.study import DemoData, Study
from two_stream.data.demo import DemoOptions, write_demo_frames
from two_stream.errors import SettingsError
from two_stream.profiling.costs import meta_model
from two_stream.runtime.console import err, note, warn
from two_stream.runtime.device import pick_device
from two_stream.runtime.files import study_lock
from two_stream.runtime.text import duration, per_cent
from two_stream.runtime.workers import usable_processes
from two_stream.studies.running.cells import (
    StudyJob,
    StudyOutcome,
    group_of,
    is_complete,
    job_of,
    outcome_of,
    read_outcome,
    record_outcome,
)
from two_stream.studies.running.plan import (
    Cell,
    Variant,
    backbone_cell,
    check_study,
    digest_of,
    folder_of,
    keep_precision,
    keep_study,
    name_cell,
    plan_cells,
    start_digest,
    variants_of,
    with_setting,
)
from two_stream.studies.running.pool import Event, Slot, Workers, run_jobs, slots_for
from two_stream.types import Part


@dataclass(frozen=True)
class StudyWorkers:
    """The devices on which the cells of a study run, and the number of cells that run at the same time."""

    jobs: int | None = None
    """number of cells that run at the same time on each device; None: one per GPU; on a CPU, the number of cores
    divided by `threads` (one if `threads` is 0)"""
    devices: tuple[str, ...] = ()
    """GPUs to use; if empty, the device of the settings"""
    ray: str | None = None


@dataclass(frozen=True)
class Ran:
    """The cells of a study with their outcomes."""

    study: Study
    cells: list[Cell]
    outcomes: list[StudyOutcome | None]
    """outcome of each cell; None if the cell was not run"""
    jobs: list[StudyJob]

    @property
    def failed(self) -> int:
        """Number of cells that have no result."""
        return sum(outcome is None or not outcome.done for outcome in self.outcomes)


def prepare_data(study: Study, source: object = "study") -> None:
    """Write the study's demo data set if the study has one. Existing files are kept.

    Raises:
        SettingsError: The study is invalid; nothing has been written.
    """
    check_study(study, source)
    if study.demo is not None:
        write_demo_frames(study.demo.out, demo_options(study.demo), flow=study.demo.flow)


def demo_options(demo: DemoData) -> DemoOptions:
    """Return the options of the demo data set."""
    return DemoOptions(seed=demo.seed, theme=demo.theme, groups=demo.groups, takes=demo.takes)


def run_study(study: Study, places: StudyWorkers, *, source: object = "study", any_code: bool = False) -> Ran:
    """Run the missing cells of a study and return the outcomes of all cells.

    If a cell fails, the other cells are still run. An interrupted or killed study continues where it stopped.
    `any_code` accepts results of a different version of the code. `source` is the study's name in messages.

    Raises:
        SettingsError: The study is invalid, or another process is running it.
        DataError: The data set cannot be read.
        KeyboardInterrupt: The study was interrupted; running cells have been saved.
    """
    for name in places.devices:
        try:
            pick_device(name)
        except SettingsError:
            raise SettingsError(
                f"--devices names {name}, which this machine does not have; omit --devices to use the device of "
                "the settings"
            ) from None
    prepare_data(study, source)
    keep_precision(study)
    cells = plan_cells(study, source)
    with study_lock(folder_of(study)), closing(Workers()) as workers:
        keep_study(study, cells)
        stages = stages_of(study, cells, source)
        jobs = stages[-1].jobs
        older = _older(stages)
        before = _so_far(jobs, older if any_code else {})
        if not any_code:
            _note_outdated(jobs, before, older)
            older = {}
        if not all(outcome is not None and outcome.done for outcome in before):
            moved = _run_first(stages[:-1], places, older, workers)
            jobs = [_moved(job, moved) for job in jobs]
        found = _run_stage(replace(stages[-1], jobs=jobs), places, older, workers)
    return Ran(study, cells, list(found), jobs)


def read_progress(study: Study, *, source: object = "study", any_code: bool = False) -> Ran:
    """Return the current outcomes of a study's cells without running any cell."""
    cells = plan_cells(study, source)
    stages = stages_of(study, cells, source)
    jobs = stages[-1].jobs
    return Ran(study, cells, _so_far(jobs, _older(stages) if any_code else {}), jobs)


def _run_first(
    stages: Sequence[StudyStage], places: StudyWorkers, older: Mapping[str, StudyOutcome], workers: Workers
) -> dict[str, str]:
    """Run the jobs that the cells depend on.

    Returns `{expected folder: actual folder}` for results that are reused from a different version of the code.

    Raises:
        SettingsError: A job that cells depend on has failed.
    """
    moved: dict[str, str] = {}
    for stage in stages:
        jobs = [_moved(job, moved) for job in stage.jobs]
        outcomes = _run_stage(replace(stage, jobs=jobs), places, older, workers)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if not outcome.done:
                raise SettingsError(
                    f"{job.title} failed, but the study requires its result: {outcome.reason}"
                )
            if outcome.run != job.target:
                moved[job.target] = outcome.run
    return moved


def _moved(job: StudyJob, moved: Mapping[str, str]) -> StudyJob:
    """Return a job that reads weights and stored features from the folders that `_run_first` returned."""
    experiment = job.settings()
    for setting, path in (("train.init", experiment.train.init), ("data.features", experiment.data.features)):
        if str(path) in moved:
            experiment = with_setting(experiment, setting, Path(moved[str(path)]))
            job = replace(job, experiment=dump(experiment))
    return job


def _so_far(jobs: Sequence[StudyJob], older: Mapping[str, StudyOutcome]) -> list[StudyOutcome | None]:
    """Return the current outcomes of jobs; `older` contains usable results of a different version of the code."""
    found = []
    for job in jobs:
        outcome = outcome_of(job)
        if outcome is None and job.loose_key in older and is_complete(job, older[job.loose_key]):
            outcome = older[job.loose_key]
        found.append(outcome)
    return found


def _note_outdated(
    jobs: Sequence[StudyJob], before: Sequence[StudyOutcome | None], older: Mapping[str, StudyOutcome]
) -> None:
    count = sum(job.loose_key in older and known is None for job, known in zip(jobs, before, strict=True))
    if count:
        note(
            f"{count} of {len(jobs)} cells come from a different version of the code and are run again (to reuse "
            "them, add --any-code)"
        )


def _run_stage(
    stage: StudyStage, places: StudyWorkers, older: Mapping[str, StudyOutcome], workers: Workers
) -> list[StudyOutcome]:
    """Run the missing jobs of a stage and return the outcomes of all its jobs."""
    slots = _slots(stage.jobs, places)
    board = LiveTable(f"study, {stage.what}", stage.rows, stage.jobs, len(slots))
    for index, outcome in enumerate(_so_far(stage.jobs, older)):
        if outcome is not None and outcome.done:
            board.end(index, outcome, fresh=False)
    missing = {index: job for index, job in enumerate(stage.jobs) if index not in board.ended}
    taken = sum(outcome.key != stage.jobs[index].key for index, outcome in board.ended.items())
    if taken:
        note(
            f"{taken} of {len(stage.jobs)} {stage.what} come from a different version of the code and are reused"
        )
    if missing:
        note(
            f"{stage.what}: {len(missing)} of {len(stage.jobs)} to run, {min(len(slots), len(missing))} at a time"
        )
        with _shown(board), closing(_events(missing, slots, places, board.running, workers)) as events:
            for index, outcome in filter(None, events):
                ended = record_outcome(missing[index], outcome) if outcome.state == "failed" else outcome
                board.end(index, ended)
                if not err.is_terminal or not ended.done:  # on a terminal, the live table shows the others
                    note(board.line(index))
    return [board.ended[index] for index in range(len(stage.jobs))]


def _events(
    jobs: Mapping[int, StudyJob],
    slots: list[Slot],
    places: StudyWorkers,
    running: set[int],
    workers: Workers,
) -> Generator[Event]:
    if places.ray is None:
        return run_jobs(jobs, slots, running, workers)
    from two_stream.studies.running.ray_jobs import run_on_ray

    return run_on_ray(jobs, places.ray, running, per_gpu=places.jobs or 1)


def _slots(jobs: Sequence[StudyJob], places: StudyWorkers) -> list[Slot]:
    count = places.jobs
    if count is None:
        settings = [job.settings() for job in jobs]
        threads = max((experiment.threads for experiment in settings), default=0)
        on_cpu = (
            not places.devices
            and not places.ray
            and all(pick_device(one.device).type == "cpu" for one in settings)
        )
        count = max(1, usable_processes() // threads) if threads and on_cpu else 1
    return slots_for(places.devices, count, usable_processes())


def _older(stages: Sequence[StudyStage]) -> dict[str, StudyOutcome]:
    """Return `{loose_key: outcome}` for the results of other versions of the code in the study's folders."""
    found: dict[str, StudyOutcome] = {}
    jobs = [job for stage in stages for job in stage.jobs]
    wanted, keys = {job.loose_key for job in jobs}, {job.key for job in jobs}
    for folder in {Path(job.record).parent for job in jobs}:
        for path in sorted(folder.glob("*.json")):
            try:
                outcome = read_outcome(path)
            except (OSError, ValueError, TypeError):
                warn(f"{path}: the file is damaged and is ignored")
                continue
            if outcome.done and outcome.loose_key in wanted and outcome.key not in keys:
                found[outcome.loose_key] = outcome
    return found


class LiveTable:
    """Progress of a study's jobs: number of done, running and failed jobs, and the remaining time."""

    def __init__(self, what: str, rows: Sequence[str], jobs: Sequence[StudyJob], slots: int) -> None:
        """Create a table; `rows` contains the row name for each job, and `slots` is the number of simultaneous jobs."""
        self.what = what
        self.rows = list(rows)
        self.jobs = list(jobs)
        self.slots = slots
        self.ended: dict[int, StudyOutcome] = {}
        self.running: set[int] = set()
        self._fresh: list[float] = []
        self._begin = time.monotonic()

    def end(self, index: int, outcome: StudyOutcome, *, fresh: bool = True) -> None:
        """Record the outcome of a job. If `fresh` is true, the job's duration is used for the remaining time."""
        self.ended[index] = outcome
        if fresh and outcome.done:
            self._fresh.append(outcome.seconds)

    def left(self) -> float | None:
        """Return the estimated remaining time in seconds; None before the first job has ended."""
        if not self._fresh:
            return None
        usual = mean(self._fresh)
        open_jobs = [index for index in range(len(self.jobs)) if index not in self.ended]
        work = sum(usual * (1.0 - self._progress(index)) for index in open_jobs)
        return work / max(1, min(self.slots, len(open_jobs) or 1))

    def _progress(self, index: int) -> float:
        """Return the completed fraction of a running job's epochs."""
        job = self.jobs[index]
        if index not in self.running or not job.epochs:
            return 0.0
        try:
            done = (Path(job.run) / "metrics.jsonl").read_bytes().count(b"\n")
        except OSError:
            return 0.0
        return min(1.0, done / job.epochs)

    def line(self, index: int) -> str:
        """Return the message about a job that has ended."""
        outcome, job = self.ended[index], self.jobs[index]
        count = f"[{len(self.ended)}/{len(self.jobs)}]"
        if not outcome.done:
            return f"{count} {job.title}: failed: {outcome.reason}"
        accuracy = "" if outcome.accuracy is None else f"{per_cent(outcome.accuracy)}, "
        left = self.left()
        rest = f"; about {duration(left)} left" if left and len(self.ended) < len(self.jobs) else ""
        return f"{count} {job.title}: {accuracy}{duration(outcome.seconds)}{rest}"

    def table(self) -> Table:
        """Return the table to display."""
        left = self.left()
        rest = f", about {duration(left)} left" if left else ""
        passed = duration(time.monotonic() - self._begin)
        title = f"{self.what}: {len(self.ended)} of {len(self.jobs)} done, {passed} passed{rest}"
        table = Table(title=title.replace("[", r"\["), title_justify="left", header_style="bold")
        for column in ("", "done", "running", "failed", "mean so far"):
            table.add_column(column, justify="left" if not column or column == "running" else "right")
        for row in dict.fromkeys(self.rows):
            own = [index for index, name in enumerate(self.rows) if name == row]
            table.add_row(row.replace("[", r"\["), *self._cells(own))
        return table

    def _cells(self, own: Sequence[int]) -> list[str]:
        ended = [self.ended[index] for index in own if index in self.ended]
        done = [outcome for outcome in ended if outcome.done]
        found = [outcome.accuracy for outcome in done if outcome.accuracy is not None]
        running = [index for index in own if index in self.running]
        failed = len(ended) - len(done)
        return [
            f"{len(done)}/{len(own)}",
            "  ".join(f"{100 * self._progress(index):.0f} %" for index in running),
            str(failed) if failed else "",
            per_cent(mean(found)) if found else "",
        ]


@contextmanager
def _shown(board: LiveTable) -> Iterator[None]:
    """Context manager that shows a live table while jobs run, if the output is a terminal."""
    if not err.is_terminal:
        yield
        return
    with Live(get_renderable=board.table, console=err, refresh_per_second=2, transient=True):
        yield


_OF_WEIGHTS = (
    "init",
    "init_part",
    "init_averaged",
    "inflate",
    "cross_modality",
    "new_classifier",
    "precision",
    "freeze_until",
)
"""training settings that determine the weights and the precision of a frozen backbone"""


@dataclass(frozen=True)
class StudyStage:
    """Jobs of a study that do not depend on each other."""

    what: str
    jobs: list[StudyJob]
    rows: list[str]
    """row name in the live table for each job"""


def parts_of(study: Study, experiment: Experiment) -> tuple[Part, ...]:
    """Return the parts that a cell is scored on: the part to compare, and the holdout if streams are fused."""
    holdout = experiment.train.selection == "holdout" and study.fusion != "none" and study.part != "val"
    return (study.part, "val") if holdout else (study.part,)


def stages_of(study: Study, cells: Sequence[Cell], source: object) -> list[StudyStage]:
    """Return all jobs that the cells require, finished or not."""
    folder = folder_of(study)
    if study.features is None:
        return [_cells(study, cells, [cell.experiment for cell in cells], folder)]
    variants = {variant.name: variant for variant in variants_of(study)}
    _check_maps(study, cells, source)
    backbones: dict[str, StudyJob] = {}
    caches: dict[str, StudyJob] = {}
    ready: list[Experiment] = []
    for cell in cells:
        if variants[cell.variant].baseline:  # the baseline does not use stored features
            ready.append(cell.experiment)
            continue
        backbone, cache, experiment = _frozen(study, variants[cell.variant], cell, source)
        if backbone is not None:
            backbones[backbone.key] = backbone
        caches[cache.key] = cache
        ready.append(experiment)
    return [
        *([_stage("backbones", backbones.values())] if backbones else []),
        _stage("features", caches.values()),
        _cells(study, cells, ready, folder),
    ]


def _check_maps(study: Study, cells: Sequence[Cell], source: object) -> None:
    """Check that no head requires feature maps if the study stores only tokens.

    Raises:
        SettingsError: A head requires feature maps.
    """
    if study.features is None or study.features.maps:
        return
    options = {cell.variant: cell.experiment.model for cell in cells}
    for name, model in options.items():
        if any(getattr(head, "needs_maps", False) for head in meta_model(model, 2).heads):
            raise SettingsError(
                f"{source}: variant {name!r}: the head requires feature maps, but the study stores only tokens; "
                "set `features: {maps: true}`"
            )


def _stage(what: str, jobs: Iterable[StudyJob]) -> StudyStage:
    listed = list(jobs)
    return StudyStage(what, listed, [job.title for job in listed])


def _cells(study: Study, cells: Sequence[Cell], ready: Sequence[Experiment], folder: Path) -> StudyStage:
    jobs = [
        job_of(
            experiment,
            folder,
            title=cell.title,
            key=cell.key,
            loose_key=cell.loose_key,
            parts=parts_of(study, experiment),
            group=group_of(experiment),
        )
        for cell, experiment in zip(cells, ready, strict=True)
    ]
    return StudyStage("cells", jobs, [cell.variant for cell in cells])


def _frozen(
    study: Study, variant: Variant, cell: Cell, source: object
) -> tuple[StudyJob | None, StudyJob, Experiment]:
    """Return the job of a cell's backbone (if it is trained), the job of its features, and settings that use them."""
    assert study.features is not None
    folder, options = folder_of(study), study.features
    train = cell.experiment.train
    backbone = None
    start = loose = start_digest(cell.experiment)
    if options.backbone is not None:
        first = backbone_cell(study, variant, cell.split, source)
        backbone = job_of(
            first.experiment,
            folder,
            title=f"backbone, split {cell.split}",
            key=first.key,
            loose_key=first.loose_key,
            parts=(study.part,),
        )
        start, loose = first.key, first.loose_key
        train = train.model_copy(update={"init": first.folder, "init_part": "backbone"})
    experiment = cell.experiment.model_copy(update={"train": train})
    cache = _cache(study, experiment, cell.split, (start, loose))
    data = experiment.data.model_copy(update={"features": Path(cache.out)})
    return backbone, cache, experiment.model_copy(update={"data": data})


def _cache(study: Study, experiment: Experiment, split: int, start: tuple[str, str]) -> StudyJob:
    """Return the job that stores the features of a backbone; all heads and seeds share these features."""
    assert study.features is not None
    plain = experiment.model.model_copy(
        update={"head": type(experiment.model)().head, "dropout": 0.0, "standardize": False}
    )
    train = {name: getattr(experiment.train, name) for name in _OF_WEIGHTS}
    shared = experiment.model_copy(
        update={"model": plain, "seed": study.seeds[0], "train": TrainOptions().model_copy(update=train)}
    )
    views = digest_of([study.features.model_dump(mode="json"), experiment.evaluate.model_dump(mode="json")])
    cell = name_cell(shared, "features", split, study.seeds[0], start=start, extra=views)
    folder = folder_of(study)
    renamed = shared.model_copy(update={"name": cell.experiment.name})
    return job_of(
        renamed,
        folder,
        title=f"features, split {split}",
        key=cell.key,
        loose_key=cell.loose_key,
        kind="features",
        out=str(folder / "features" / cell.experiment.name),
        train_views=study.features.train_views,
        maps=study.features.maps,
    )
