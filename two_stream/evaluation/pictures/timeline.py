"""What happens when in a long video: the classes of every window that slides over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from two_stream.config.schema import EvaluateOptions
from two_stream.evaluation.runs.any_run import AnyRun
from two_stream.evaluation.scoring.score import aggregate_views
from two_stream.evaluation.scoring.video import VideoResult, fuse_results, top
from two_stream.evaluation.scoring.views import clip_frames
from two_stream.runtime.files import write_text
from two_stream.runtime.text import csv_text


@dataclass(frozen=True)
class TimelineWindow:
    """One position of the sliding clip."""

    first: int
    """1-based number of its first picture"""
    last: int
    """and of its last one; a video shorter than a clip is looped, and this is its end"""
    probabilities: NDArray[np.float64]
    """`(K,)`"""
    start: float | None = None
    """when its first picture appears, in seconds from the first of the video, where the file tells"""
    end: float | None = None
    """when its last picture is over, which is when the next one appears"""


def windows(
    runs: Sequence[AnyRun[Any]],
    scored: Sequence[VideoResult],
    options: Sequence[EvaluateOptions],
    samplings: Sequence[str],
    *,
    rule: str = "l2",
    weights: Sequence[float] | None = None,
) -> list[TimelineWindow]:
    """Return the windows of one video in order, fused where there are several streams.

    The n-th window of a stream meets the n-th of the others. Flow has one frame less, so its last window may lie a
    little earlier, or be missing: the windows that all streams have are returned. A flow frame lies between two
    pictures; its number is that of the first.

    Args:
        runs: The networks.
        scored: The video's scores by each of them.
        options: Views of each.
        samplings: Frame choice of each, `standard` or `paper`.
        rule: Fusion rule.
        weights: Fusion weights.
    """
    clips, streams = [], []
    for run, result, views, sampling in zip(runs, scored, options, samplings, strict=True):
        flow = run.model.spec.modality == "flow"
        chosen = clip_frames(views, run.model.spec, result.frames - flow, sampling)
        clips.append([(min(clip), min(max(clip) + flow, result.frames)) for clip in chosen])
        by_crop = result.view_logits.reshape(-1, len(chosen), result.view_logits.shape[-1])
        streams.append([aggregate_views(by_crop[:, n], views.aggregate) for n in range(len(chosen))])
    made, times = [], scored[0].times
    for number in range(min(map(len, clips))):
        seen = [replace(result, logits=stream[number]) for result, stream in zip(scored, streams)]
        ends = [stream[number] for stream in clips]
        probabilities = fuse_results(seen, rule, weights)
        first, last = min(end[0] for end in ends), max(end[1] for end in ends)
        span = (None, None) if times is None else (float(times[first - 1]), float(times[last]))
        made.append(TimelineWindow(first, last, probabilities, *span))
    return made


def write_csv(path: Path, found: Sequence[TimelineWindow], names: Sequence[str], count: int) -> None:
    """Write a line per window: frames, seconds (empty where unknown), best classes and their probabilities."""
    count = min(count, len(names))
    lines: list[list[object]] = []
    ranked = [name for place in range(1, count + 1) for name in (f"class_{place}", f"probability_{place}")]
    for number, window in enumerate(found, 1):
        best = [
            cell
            for name, share in top(window.probabilities, list(names), count)
            for cell in (name, f"{share:.6f}")
        ]
        times = ["" if at is None else f"{at:.3f}" for at in (window.start, window.end)]
        lines.append([number, window.first, window.last, *times, *best])
    header = ["window", "first_frame", "last_frame", "start_s", "end_s", *ranked]
    write_text(path, csv_text(header, lines))
