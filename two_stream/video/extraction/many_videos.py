"""Extracts many videos in parallel, on the processors of this machine or on a Ray cluster.

Each video is extracted completely or not at all (see `one_video.py`); the next run skips finished videos.
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
    extract_video,
)
from two_stream.video.flow import FlowEstimator
from two_stream.video.sources import Source, find_collisions

_PER_GPU = 2
"""processes that share a GPU: one decodes and encodes while the other computes"""


@dataclass
class ExtractSummary:
    """The outcome of every video, in the order of the input."""

    outcomes: list[ExtractionOutcome]
    seconds: float
    settings: dict[str, Any]
    backend_version: str

    def by_status(self, status: str) -> list[ExtractionOutcome]:
        """Return the outcomes with this status: "written", "skipped" or "failed"."""
        return [outcome for outcome in self.outcomes if outcome.status == status]

    @property
    def failed(self) -> list[ExtractionOutcome]:
        """Outcomes of the videos that failed, with the reasons."""
        return self.by_status("failed")

    @property
    def frames_per_second(self) -> float:
        """Number of frames written per second by all processes together."""
        return sum(outcome.frames for outcome in self.by_status("written")) / max(self.seconds, 1e-9)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as values that can be written as JSON."""
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
    """Write the frame folder `<out>/<id>` of every video, with several videos in parallel and a progress display.

    If a video fails, no error is raised, and the summary contains the reason. Ctrl-C leaves no unfinished folders.

    Args:
        videos: The videos to extract.
        out: Folder for one frame folder per video.
        options: Settings; None for the default ones.
        ray: Address of a Ray cluster (`host:port`, `auto`, `ray://…`) whose machines share the paths, or `local` for
            one started here; None uses this machine's processors without Ray. The files are the same.

    Raises:
        DataError: The output folder cannot be written, or a machine of the cluster does not share the paths.
        SettingsError: The backend, the flow algorithm or Ray is unknown, not installed or not reachable.
    """
    chosen = options or ExtractOptions()
    version = backend_version(chosen.backend)
    if chosen.flow not in ("none", "raft"):
        FlowEstimator(chosen.flow)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: the output folder cannot be created ({error.strerror})") from None
    start = time.monotonic()
    clashes = find_collisions(videos)
    outcomes = {index: _failed(videos[index], reason) for index, reason in clashes.items()}
    todo = sort_longest_first(videos, [index for index in range(len(videos)) if index not in clashes])
    jobs = [ExtractionJob(videos[index], out, chosen, place=place) for place, index in enumerate(todo)]
    places = {out, *(job.final.parent for job in jobs)}
    clear_leftovers(places)
    try:
        with progress("extract", total=len(jobs)) as advance, closing(_answers(jobs, ray)) as answers:
            for place, answer in answers:
                source = jobs[place].source
                if isinstance(answer, TaskFailure):
                    answer = _failed(source, answer.reason)
                outcomes[todo[place]] = replace(answer, path=str(source.path))
                frames = sum(one.frames for one in outcomes.values() if one.status == "written")
                failed = sum(one.status == "failed" for one in outcomes.values())
                advance(1, fps=f"{frames / (time.monotonic() - start):.1f}", failed=failed)
    finally:
        clear_leftovers(places)
    ordered = [outcomes[index] for index in range(len(videos))]
    return ExtractSummary(ordered, time.monotonic() - start, chosen.recorded(), version)


def sort_longest_first(videos: Sequence[Source], indices: Sequence[int]) -> list[int]:
    """Sort the indices by decreasing file size, so that no process starts a long video at the end."""

    def size(index: int) -> int:
        try:
            return videos[index].path.stat().st_size
        except OSError:  # reported when it is extracted
            return 0

    return sorted(indices, key=size, reverse=True)


def _answers(
    jobs: Sequence[ExtractionJob], ray: str | None
) -> Generator[tuple[int, ExtractionOutcome | TaskFailure]]:
    """Run the jobs on this machine or on a Ray cluster."""
    if not jobs:
        return
    options = jobs[0].options
    if ray is not None:
        from two_stream.video.extraction.ray_pool import extract_on_ray

        with closing(extract_on_ray(jobs, ray)) as answers:
            yield from answers
        return
    processes = options.processes
    if processes is None:
        gpus = options.network.gpus if options.network is not None else 0
        processes = min(usable_processes(), _PER_GPU * gpus) if gpus else usable_processes()
    busy = min(processes, len(jobs))
    # if there are few videos, each uses several processors
    threads = options.threads or (max(1, usable_processes() // busy) if busy else 0)
    local = [replace(job, threads=threads) for job in jobs]
    with closing(run_tasks(extract_video, local, processes=processes, patience=options.patience)) as done:
        yield from done


def _failed(source: Source, reason: str) -> ExtractionOutcome:
    return ExtractionOutcome(source.id, str(source.path), "failed", reason=reason)
