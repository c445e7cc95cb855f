"""Videos to frame folders, many at a time: on the processors of this machine, or on a Ray cluster.

Each video is done whole or not at all (see `one_video.py`); the next run skips what is finished and redoes the rest.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from two_stream.errors import DataError
from two_stream.runtime.console import progress
from two_stream.runtime.files import clear_leftovers
from two_stream.runtime.workers import TaskFailure, run_tasks, usable_processes
from two_stream.video.decoding.reader import backend_version
from two_stream.video.extraction.one_video import (
    ExtractionJob,
    ExtractionOutcome,
    ExtractOptions,
    extract_one,
)
from two_stream.video.flow import FlowEstimator
from two_stream.video.sources import Source, collisions

_PER_GPU = 2
"""Processes that share a GPU: one decodes and encodes while the other computes."""


@dataclass
class ExtractSummary:
    """What became of every video, in the order given."""

    outcomes: list[ExtractionOutcome]
    seconds: float
    settings: dict[str, Any]
    backend_version: str

    def by_status(self, status: str) -> list[ExtractionOutcome]:
        """Return the outcomes "written", "skipped" or "failed"."""
        return [outcome for outcome in self.outcomes if outcome.status == status]

    @property
    def failed(self) -> list[ExtractionOutcome]:
        """The videos without a frame folder, each with its reason."""
        return self.by_status("failed")

    @property
    def frames_per_second(self) -> float:
        """Frames written per second of wall clock, all processes together."""
        return sum(outcome.frames for outcome in self.by_status("written")) / max(self.seconds, 1e-9)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return {
            **{status: len(self.by_status(status)) for status in ("written", "skipped", "failed")},
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(self.frames_per_second, 2),
            "backend_version": self.backend_version,
            "settings": self.settings,
            "videos": [asdict(outcome) for outcome in self.outcomes],
        }


def extract(
    videos: Sequence[Source], out: Path, options: ExtractOptions | None = None, *, ray: str | None = None
) -> ExtractSummary:
    """Write the frame folder `<out>/<id>` of every video, several at a time, with a progress display.

    Never raises for a single video: one that fails is listed in the summary with its reason. Ctrl-C leaves no
    half-written folder behind.

    Args:
        videos: What to extract.
        out: Folder that gets one folder per video.
        options: How.
        ray: Address of a Ray cluster (`host:port`, `auto`, `ray://…`) whose machines see the same paths, or `local`
            for one started here; None uses this machine's processors without Ray. The files are the same.

    Raises:
        DataError: The output folder cannot be written, or a machine of the cluster does not see the same paths.
        SettingsError: The backend, the flow algorithm or Ray is unknown, not installed or not reachable.
    """
    chosen = options or ExtractOptions()
    version = backend_version(chosen.backend)
    if chosen.flow not in ("none", "raft"):
        FlowEstimator(chosen.flow)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be made an output folder ({error.strerror})") from None
    start = time.monotonic()
    clashes = collisions(videos)
    outcomes: dict[int, ExtractionOutcome] = {
        index: ExtractionOutcome(videos[index].id, str(videos[index].path), "failed", reason=reason)
        for index, reason in clashes.items()
    }
    todo = longest_first(videos, [index for index in range(len(videos)) if index not in clashes])
    jobs = [ExtractionJob(videos[index], out, chosen, place=place) for place, index in enumerate(todo)]
    places = {out, *(job.final.parent for job in jobs)}
    clear_leftovers(places)
    try:
        with progress("extract", total=len(jobs)) as advance, closing(_answers(jobs, ray)) as answers:
            for place, answer in answers:
                source = jobs[place].source
                if isinstance(answer, TaskFailure):
                    answer = ExtractionOutcome(source.id, str(source.path), "failed", reason=answer.reason)
                outcomes[todo[place]] = replace(answer, path=str(source.path))
                frames = sum(one.frames for one in outcomes.values() if one.status == "written")
                advance(1, fps=f"{frames / (time.monotonic() - start):.1f}", failed=_failures(outcomes))
    finally:
        clear_leftovers(places)
    ordered = [outcomes[index] for index in range(len(videos))]
    return ExtractSummary(ordered, time.monotonic() - start, chosen.recorded(), version)


def longest_first(videos: Sequence[Source], indices: Sequence[int]) -> list[int]:
    """Return the indices by falling file size: a long video begun last would keep the others' processors waiting."""

    def size(index: int) -> int:
        try:
            return videos[index].path.stat().st_size
        except OSError:  # it will be told when its turn comes
            return 0

    return sorted(indices, key=size, reverse=True)


def _answers(
    jobs: Sequence[ExtractionJob], ray: str | None
) -> Generator[tuple[int, ExtractionOutcome | TaskFailure]]:
    """Run the jobs, here or on Ray."""
    if not jobs:
        yield from ()
        return
    options = jobs[0].options
    if ray is not None:
        from two_stream.video.extraction.ray_pool import extract_on_ray

        with closing(extract_on_ray(jobs, ray)) as answers:
            yield from answers
        return
    processes = _processes(options)
    busy = min(processes, len(jobs))
    # few videos share all processors
    threads = options.threads or (max(1, usable_processes() // busy) if busy else 0)
    local = [replace(job, threads=threads) for job in jobs]
    with closing(run_tasks(extract_one, local, processes=processes, patience=options.patience)) as done:
        yield from done


def _processes(options: ExtractOptions) -> int:
    if options.processes is not None:
        return options.processes
    if options.network is not None and options.network.gpus:
        return min(usable_processes(), _PER_GPU * options.network.gpus)
    return usable_processes()


def _failures(outcomes: dict[int, ExtractionOutcome]) -> int:
    return sum(outcome.status == "failed" for outcome in outcomes.values())
