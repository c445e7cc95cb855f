"""Timeline of a long video: the classes of each window of a sliding clip, as CSV and as an image."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from numpy.typing import NDArray

from two_stream.config.schema import EvaluateOptions
from two_stream.errors import printable
from two_stream.evaluation.runs.none_of_these import NONE, mark_none
from two_stream.evaluation.runs.run import AnyRun
from two_stream.evaluation.scoring.score import aggregate_views
from two_stream.evaluation.scoring.video import VideoResult, clip_spans, fuse_results, top_classes
from two_stream.runtime.files import write_text
from two_stream.runtime.plotting import (
    GRID,
    MORE,
    SERIES,
    SURFACE,
    plain_figures,
    save_figure,
    shorten,
    text_on,
)
from two_stream.runtime.text import csv_text

_MOST = 8
"""largest number of classes that are drawn as lines"""
_DASHES: Any = ("-", (0, (6, 1.5)), (0, (1.5, 1.0)), (0, (6, 1.2, 1.2, 1.2)))


@dataclass(frozen=True)
class TimelineWindow:
    """A window: one position of the sliding clip."""

    first: int
    """number of the first image, counted from 1"""
    last: int
    """number of the last image; if the video is shorter than a clip and looped, the last image of the video"""
    probabilities: NDArray[np.float64]
    """probabilities of the classes `(K,)`"""
    start: float | None = None
    """time of the first image in seconds from the start of the video; None if the file has no times"""
    end: float | None = None
    """end time of the last image in seconds; None if the file has no times"""


def score_windows(
    runs: Sequence[AnyRun[Any]],
    scored: Sequence[VideoResult],
    options: Sequence[EvaluateOptions],
    samplings: Sequence[str],
    *,
    rule: str = "l2",
    weights: Sequence[float] | None = None,
) -> list[TimelineWindow]:
    """Return the windows of a video in order, with the scores of its streams fused.

    The n-th windows of all streams are fused. Flow has one frame fewer than RGB, so its last window may be slightly
    earlier or missing. Only windows that all streams have are returned. A flow frame has the number of the first of its
    two images.

    `scored`, `options` and `samplings` (`standard` or `paper`) have one entry for each run.
    """
    spans, streams = [], []
    for run, result, views, sampling in zip(runs, scored, options, samplings, strict=True):
        chosen = clip_spans(views, run.model.spec, result.seen, sampling)
        spans.append([result.span(*clip) for clip in chosen])
        by_crop = result.view_logits.reshape(-1, len(chosen), result.view_logits.shape[-1])
        streams.append([aggregate_views(by_crop[:, n], views.aggregate) for n in range(len(chosen))])
    made = []
    for number in range(min(map(len, spans))):
        seen = [replace(result, logits=stream[number]) for result, stream in zip(scored, streams)]
        firsts, lasts, starts, ends = zip(*(stream[number] for stream in spans))
        probabilities = fuse_results(seen, rule, weights)
        span = (None, None) if None in starts else (min(starts), max(ends))
        made.append(TimelineWindow(min(firsts), max(lasts), probabilities, *span))
    return made


def write_csv(
    path: Path, found: Sequence[TimelineWindow], names: Sequence[str], count: int, threshold: float = 0.0
) -> None:
    """Write one line for each window: frames, seconds (empty if unknown), the best classes and their probabilities.

    The first class is "none of these" if the probability of the best one is below the threshold.
    """
    count = min(count, len(names))
    lines: list[list[object]] = []
    ranked = [name for place in range(1, count + 1) for name in (f"class_{place}", f"probability_{place}")]
    for number, window in enumerate(found, 1):
        best = mark_none(top_classes(window.probabilities, list(names), count), threshold)[:count]
        cells = [cell for name, share in best for cell in (name, f"{share:.6f}")]
        times = ["" if at is None else f"{at:.3f}" for at in (window.start, window.end)]
        lines.append([number, window.first, window.last, *times, *cells])
    header = ["window", "first_frame", "last_frame", "start_s", "end_s", *ranked]
    write_text(path, csv_text(header, lines))


@plain_figures()
def draw_timeline(
    path: Path, title: str, found: Sequence[TimelineWindow], names: Sequence[str], threshold: float = 0.0
) -> None:
    """Draw the class probabilities over time, and below them the most likely class, or "none of these".

    The horizontal axis shows seconds, or frame numbers if the file has no times. Because windows overlap, the border
    between two windows is drawn halfway between their middles. Classes differ in colour, line style and number.

    `path` is the PNG, PDF or SVG file to write.
    """
    shares = np.stack([window.probabilities for window in found])
    edges = _edges(found)
    best = shares.argmax(axis=1)
    counts = np.bincount(best, minlength=len(names))
    leading = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]][:_MOST]
    others = [int(k) for k in np.argsort(-shares.max(axis=0), kind="stable") if k not in leading]
    drawn = leading + others[: max(0, min(3, len(names)) - len(leading))]
    numbers = {k: number for number, k in enumerate(drawn, start=1)}
    colours = dict(zip(drawn, SERIES + MORE))
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    for k, dashes in zip(drawn, _DASHES + _DASHES):
        label = f"{numbers[k]}  {shorten(names[k])}"
        line = {"baseline": None, "color": colours[k], "linestyle": dashes, "linewidth": 1.8}
        upper.stairs(100 * shares[:, k], edges, label=label, **line)
    upper.set(ylim=(0, 103), ylabel="probability in %")
    lines = textwrap.wrap(printable(title), 105, max_lines=2, placeholder=" …")
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10)
    if threshold:
        upper.axhline(100 * threshold, color=GRID, linestyle=(0, (3, 3)), linewidth=1.2)
    labels, names = [], [*names, NONE]
    marked = np.where(shares.max(axis=1) < threshold, len(names) - 1, best)
    for start, stop in _stretches(marked):
        k, left, right = int(marked[start]), edges[start], edges[stop]
        colour = colours.get(k, GRID)
        lower.axvspan(left, right, facecolor=colour, edgecolor=SURFACE, linewidth=0.8)
        label = lower.text((left + right) / 2, 0.5, shorten(names[k]), ha="center", va="center", fontsize=8)
        label.set(color=text_on(colour), in_layout=False)
        labels.append((label, str(numbers.get(k, "")), left, right))
    handles = upper.get_legend_handles_labels()[0]
    if len(leading) < np.count_nonzero(counts):
        handles.append(Patch(color=GRID, label="other classes"))
    upper.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=3)
    lower.set(ylim=(0, 1), xlim=(edges[0], edges[-1]))
    lower.set_xlabel("frame" if found[0].start is None else "seconds")
    lower.set_yticks([0.5], ["most likely\nclass"])
    lower.grid(visible=False)
    figure.draw_without_rendering()
    for label, number, left, right in labels:
        room = np.diff(lower.transData.transform([(left, 0), (right, 0)])[:, 0])[0] - 3
        _fit(label, number, room)
    save_figure(figure, path)


def _fit(label: Text, number: str, room: float) -> None:
    """Shorten a name to a width in pixels; if fewer than four letters fit, show the number of the class or nothing."""
    name = label.get_text()
    choices = [name, *(f"{name[:keep]}…" for keep in range(len(name) - 1, 3, -1)), number]
    while choices and label.get_window_extent().width > room:
        label.set_text(choices.pop(0))
    if label.get_window_extent().width > room:
        label.set_text("")


def _edges(found: Sequence[TimelineWindow]) -> np.ndarray:
    """Return the borders between windows, halfway between their middles."""
    spans = np.asarray(
        [(one.first - 1, one.last) if one.start is None else (one.start, one.end) for one in found],
        np.float64,
    )
    middles = spans.mean(axis=1)
    return np.asarray([spans[0, 0], *(middles[:-1] + middles[1:]) / 2, spans[-1, 1]])


def _stretches(best: np.ndarray) -> list[tuple[int, int]]:
    """Return `(start, stop)` for each series of consecutive windows with the same most likely class."""
    changes = np.flatnonzero(np.diff(best)) + 1
    starts = [0, *changes.tolist()]
    return list(zip(starts, [*starts[1:], len(best)]))
