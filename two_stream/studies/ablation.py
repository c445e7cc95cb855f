"""Running a study: what is missing and nothing else, then the statistics and the report."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from two_stream.config.study import DemoData, Study
from two_stream.data.demo import DemoOptions, write_demo_frames
from two_stream.errors import SettingsError
from two_stream.runtime.console import note, warn
from two_stream.studies.cells import Job, Outcome, keep, outcome_of
from two_stream.studies.live import Board, shown, tell
from two_stream.studies.locks import study_lock
from two_stream.studies.plan import Cell, folder_of, plan
from two_stream.studies.pool import Event, Running, Slot, run_jobs, slots_for
from two_stream.studies.stages import Stage, stages_of


@dataclass(frozen=True)
class Places:
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
    outcomes: list[Outcome | None]
    """of each cell; None: not run"""
    jobs: list[Job]
    """of each cell"""

    @property
    def failed(self) -> int:
        """Cells without a result."""
        return sum(outcome is None or not outcome.done for outcome in self.outcomes)


def prepare(study: Study) -> None:
    """Write the embedded data set where the study asks for it; what is there is kept."""
    if study.demo is not None:
        write_demo_frames(study.demo.out, demo_options(study.demo), flow=study.demo.flow)


def demo_options(demo: DemoData) -> DemoOptions:
    """Return what to draw."""
    return DemoOptions(seed=demo.seed, theme=demo.theme, groups=demo.groups, takes=demo.takes)


def run_study(study: Study, places: Places, *, source: object = "study", any_code: bool = False) -> Ran:
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
    prepare(study)
    cells = plan(study, source)
    with study_lock(folder_of(study)):
        stages = stages_of(study, cells, source)
        for stage in stages[:-1]:
            outcomes = _run_stage(stage, places, any_code=any_code)
            broken = [outcome for outcome in outcomes if not outcome.done]
            if broken:
                raise SettingsError(f"{stage.what} of the study failed: {broken[0].reason}")
        found = _run_stage(stages[-1], places, any_code=any_code)
    return Ran(study, cells, list(found), stages[-1].jobs)


def look_at(study: Study, *, source: object = "study", any_code: bool = False) -> Ran:
    """Return what the cells of a study came to so far; runs nothing."""
    cells = plan(study, source)
    stage = stages_of(study, cells, source)[-1]
    older = _older(stage.jobs) if any_code else {}
    found = [outcome_of(job) or older.get(job.loose_key) for job in stage.jobs]
    return Ran(study, cells, found, stage.jobs)


def _run_stage(stage: Stage, places: Places, *, any_code: bool) -> list[Outcome]:
    """Do the jobs of a stage that are not done; return how each of them stands then."""
    slots = _slots(stage.jobs, places)
    board = Board(f"study, {stage.what}", stage.rows, stage.jobs, len(slots))
    older = _older(stage.jobs)
    outdated = 0
    for index, job in enumerate(stage.jobs):
        before = outcome_of(job)
        if before is None and job.loose_key in older:
            outdated += 1
            before = older[job.loose_key] if any_code else None
        if before is not None and before.done:
            board.end(index, before, fresh=False)
    if outdated:
        how = "taken as they are" if any_code else "run again (--any-code takes them)"
        note(f"{outdated} of {len(stage.jobs)} {stage.what} were made by other code and are {how}")
    missing = [index for index in range(len(stage.jobs)) if index not in board.ended]
    if missing:
        note(
            f"{stage.what}: {len(missing)} of {len(stage.jobs)} to run, {min(len(slots), len(missing))} at a time"
        )
        _run_missing({index: stage.jobs[index] for index in missing}, slots, places, board)
    return [board.ended[index] for index in range(len(stage.jobs))]


def _run_missing(jobs: Mapping[int, Job], slots: list[Slot], places: Places, board: Board) -> None:
    with shown(board), closing(_events(jobs, slots, places, board.running)) as events:
        for event in events:
            if event is None:
                continue
            index, outcome = event
            if outcome.state == "failed":
                outcome = keep(jobs[index], outcome)
            board.end(index, outcome)
            tell(board, index)


def _events(jobs: Mapping[int, Job], slots: list[Slot], places: Places, running: Running) -> Generator[Event]:
    if places.ray is None:
        return run_jobs(jobs, slots, running)
    from two_stream.studies.ray_jobs import run_on_ray

    return run_on_ray(jobs, places.ray, running, per_gpu=places.jobs or 1)


def _slots(jobs: Sequence[Job], places: Places) -> list[Slot]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = places.jobs
    if count is None:
        threads = max((job.settings().threads for job in jobs), default=0)
        count = max(1, cores // threads) if threads and not places.devices else 1
    return slots_for(places.devices, count, cores)


def _older(jobs: Sequence[Job]) -> dict[str, Outcome]:
    """Return the results by other code that lie beside those of these jobs, by the key without the code."""
    found: dict[str, Outcome] = {}
    wanted = {job.loose_key for job in jobs}
    keys = {job.key for job in jobs}
    for folder in {Path(job.record).parent for job in jobs}:
        for path in sorted(folder.glob("*.json")):
            try:
                outcome = Outcome(**json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                warn(f"{path}: damaged, and not looked at")
                continue
            if outcome.done and outcome.loose_key in wanted and outcome.key not in keys:
                found[outcome.loose_key] = outcome
    return found
