"""Running a study: what is missing and nothing else, then the statistics and the report."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from two_stream.config.load import dump
from two_stream.config.study import DemoData, Study
from two_stream.data.demo import DemoOptions, write_demo_frames
from two_stream.errors import SettingsError
from two_stream.runtime.console import note, warn
from two_stream.runtime.device import pick_device
from two_stream.runtime.locks import study_lock
from two_stream.runtime.text import parse_json
from two_stream.runtime.workers import usable_processes
from two_stream.studies.running.cells import StudyJob, StudyOutcome, outcome_of, record_outcome, whole
from two_stream.studies.running.live import LiveTable, show_live, tell
from two_stream.studies.running.plan import Cell, check_study, folder_of, keep_precision, plan
from two_stream.studies.running.pool import Event, Running, Slot, run_jobs, slots_for
from two_stream.studies.running.stages import StudyStage, stages_of


@dataclass(frozen=True)
class StudyWorkers:
    """Where the cells of a study run."""

    jobs: int | None = None
    """at once, per device; None: as many as the settings' threads fit into the processor, one per GPU"""
    devices: tuple[str, ...] = ()
    """GPUs to spread over; empty: as the settings say"""
    ray: str | None = None
    """address of a Ray cluster"""


@dataclass(frozen=True)
class Ran:
    """What a study's cells came to."""

    study: Study
    cells: list[Cell]
    outcomes: list[StudyOutcome | None]
    """of each cell; None: not run"""
    jobs: list[StudyJob]
    """of each cell"""

    @property
    def failed(self) -> int:
        """Cells without a result."""
        return sum(outcome is None or not outcome.done for outcome in self.outcomes)


def prepare_data(study: Study, source: object = "study") -> None:
    """Write the embedded data set where the study asks for it; what is there is kept.

    Raises:
        SettingsError: The study is wrong; found out before anything is written.
    """
    check_study(study, source)
    if study.demo is not None:
        write_demo_frames(study.demo.out, demo_options(study.demo), flow=study.demo.flow)


def demo_options(demo: DemoData) -> DemoOptions:
    """Return what to draw."""
    return DemoOptions(seed=demo.seed, theme=demo.theme, groups=demo.groups, takes=demo.takes)


def run_study(study: Study, places: StudyWorkers, *, source: object = "study", any_code: bool = False) -> Ran:
    """Run the cells that are missing, and return what all of them came to.

    A cell that fails is noted and does not stop the others; a study that is interrupted or killed goes on where it was.

    Args:
        study: The study.
        places: Where to run.
        source: What messages name, mostly the study's file.
        any_code: Take cells that another version of the code has made.

    Raises:
        SettingsError: The study is wrong, or another process runs it.
        DataError: Its data set cannot be read.
        KeyboardInterrupt: It was interrupted; running cells are saved.
    """
    _check_devices(places.devices)
    prepare_data(study, source)
    keep_precision(study)
    cells = plan(study, source)
    with study_lock(folder_of(study)):
        stages = stages_of(study, cells, source)
        jobs = stages[-1].jobs
        older = _older(stages)
        before = _so_far(jobs, older if any_code else {})
        if not any_code:
            _tell_outdated(jobs, before, older)
            older = {}
        if not all(outcome is not None and outcome.done for outcome in before):
            moved = _run_first(stages[:-1], places, older)
            jobs = [_moved(job, moved) for job in jobs]
        found = _run_stage(replace(stages[-1], jobs=jobs), places, older)
    return Ran(study, cells, list(found), jobs)


def look_at(study: Study, *, source: object = "study", any_code: bool = False) -> Ran:
    """Return what the cells of a study came to so far; runs nothing."""
    cells = plan(study, source)
    stages = stages_of(study, cells, source)
    jobs = stages[-1].jobs
    return Ran(study, cells, _so_far(jobs, _older(stages) if any_code else {}), jobs)


def _check_devices(names: Sequence[str]) -> None:
    for name in names:
        try:
            pick_device(name)
        except SettingsError:
            raise SettingsError(
                f"--devices names {name}, which this machine does not have; without --devices the settings decide"
            ) from None


def _run_first(
    stages: Sequence[StudyStage], places: StudyWorkers, older: Mapping[str, StudyOutcome]
) -> dict[str, str]:
    """Do what the cells need; return, for results by other code, the folders that stand in place of the usual ones.

    Raises:
        SettingsError: Something failed that cells need.
    """
    moved: dict[str, str] = {}
    for stage in stages:
        jobs = [_moved(job, moved) for job in stage.jobs]
        for job, outcome in zip(jobs, _run_stage(replace(stage, jobs=jobs), places, older), strict=True):
            if not outcome.done:
                raise SettingsError(f"{job.title} failed, and the study needs it: {outcome.reason}")
            if outcome.run != job.made:
                moved[job.made] = outcome.run
    return moved


def _moved(job: StudyJob, moved: Mapping[str, str]) -> StudyJob:
    """Return a job that starts from weights and stored features where they are."""
    experiment = job.settings()
    init, features = (moved.get(str(path)) for path in (experiment.train.init, experiment.data.features))
    if init is None and features is None:
        return job
    if init is not None:
        train = experiment.train.model_copy(update={"init": Path(init)})
        experiment = experiment.model_copy(update={"train": train})
    if features is not None:
        data = experiment.data.model_copy(update={"features": Path(features)})
        experiment = experiment.model_copy(update={"data": data})
    return replace(job, experiment=dump(experiment))


def _so_far(jobs: Sequence[StudyJob], older: Mapping[str, StudyOutcome]) -> list[StudyOutcome | None]:
    """Return how jobs stand, results by other code among them where those are taken."""
    found = []
    for job in jobs:
        outcome = outcome_of(job)
        if outcome is None and job.loose_key in older and whole(job, older[job.loose_key]):
            outcome = older[job.loose_key]
        found.append(outcome)
    return found


def _tell_outdated(
    jobs: Sequence[StudyJob], before: Sequence[StudyOutcome | None], older: Mapping[str, StudyOutcome]
) -> None:
    count = sum(job.loose_key in older and known is None for job, known in zip(jobs, before, strict=True))
    if count:
        note(
            f"{count} of {len(jobs)} cells were made by other code and are run again (--any-code takes them)"
        )


def _run_stage(
    stage: StudyStage, places: StudyWorkers, older: Mapping[str, StudyOutcome]
) -> list[StudyOutcome]:
    """Do the jobs of a stage that are not done; return how each of them stands then."""
    slots = _slots(stage.jobs, places)
    board = LiveTable(f"study, {stage.what}", stage.rows, stage.jobs, len(slots))
    for index, outcome in enumerate(_so_far(stage.jobs, older)):
        if outcome is not None and outcome.done:
            board.end(index, outcome, fresh=False)
    missing = [index for index in range(len(stage.jobs)) if index not in board.ended]
    taken = sum(outcome.key != stage.jobs[index].key for index, outcome in board.ended.items())
    if taken:
        note(f"{taken} of {len(stage.jobs)} {stage.what} were made by other code and are taken as they are")
    if missing:
        note(
            f"{stage.what}: {len(missing)} of {len(stage.jobs)} to run, {min(len(slots), len(missing))} at a time"
        )
        _run_missing({index: stage.jobs[index] for index in missing}, slots, places, board)
    return [board.ended[index] for index in range(len(stage.jobs))]


def _run_missing(
    jobs: Mapping[int, StudyJob], slots: list[Slot], places: StudyWorkers, board: LiveTable
) -> None:
    with show_live(board), closing(_events(jobs, slots, places, board.running)) as events:
        for event in events:
            if event is None:
                continue
            index, outcome = event
            if outcome.state == "failed":
                outcome = record_outcome(jobs[index], outcome)
            board.end(index, outcome)
            tell(board, index)


def _events(
    jobs: Mapping[int, StudyJob], slots: list[Slot], places: StudyWorkers, running: Running
) -> Generator[Event]:
    if places.ray is None:
        return run_jobs(jobs, slots, running)
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
    """Return the results by other code that lie beside those of a study's jobs, by the key without the code."""
    found: dict[str, StudyOutcome] = {}
    jobs = [job for stage in stages for job in stage.jobs]
    wanted, keys = {job.loose_key for job in jobs}, {job.key for job in jobs}
    for folder in {Path(job.record).parent for job in jobs}:
        for path in sorted(folder.glob("*.json")):
            try:
                outcome = StudyOutcome(**parse_json(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                warn(f"{path}: damaged, and not looked at")
                continue
            if outcome.done and outcome.loose_key in wanted and outcome.key not in keys:
                found[outcome.loose_key] = outcome
    return found
