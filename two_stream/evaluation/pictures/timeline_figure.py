"""The picture of a time line: the probabilities of the classes that lead somewhere, and which one leads when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from two_stream.errors import printable
from two_stream.evaluation.pictures.timeline import TimelineWindow
from two_stream.runtime.files import atomic_path
from two_stream.runtime.plotting import plain_figures

_MOST = 8
"""classes drawn with a line of their own"""
_GREY = "#b8b8b8"
_SHORTEST = 0.06
"""share of the width below which a stretch gets no name in it"""


@plain_figures()
def draw_timeline(path: Path, title: str, found: Sequence[TimelineWindow], names: Sequence[str]) -> None:
    """Draw the windows of a video, over seconds, or over frame numbers where the file tells no time.

    Each window is drawn around its middle, over the step to its neighbours: windows overlap, their drawings do not.

    Args:
        path: PNG, PDF or SVG file.
        title: Line above.
        found: Windows in order.
        names: Class names.
    """
    title, names = printable(title), [printable(name) for name in names]
    shares = np.stack([window.probabilities for window in found])
    edges = _edges(found)
    best = shares.argmax(axis=1)
    counts = np.bincount(best, minlength=len(names))
    leading = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]][:_MOST]
    others = [int(k) for k in np.argsort(-shares.max(axis=0), kind="stable") if k not in leading]
    drawn = leading + others[: max(0, min(3, len(names)) - len(leading))]
    palette = colormaps["tab10"]
    colours = {k: palette(place % 10) for place, k in enumerate(drawn)}
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    for k in drawn:
        upper.stairs(
            100 * shares[:, k], edges, baseline=None, color=colours[k], linewidth=1.6, label=names[k]
        )
    upper.set_ylim(0, 103)
    upper.set_ylabel("probability in %")
    upper.grid(alpha=0.3)
    upper.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    upper.set_title(title, fontsize=10, loc="left")
    for start, stop in _stretches(best):
        k = int(best[start])
        left, right = edges[start], edges[stop]
        lower.axvspan(left, right, color=colours.get(k, _GREY), linewidth=0)
        if (right - left) >= _SHORTEST * (edges[-1] - edges[0]):
            lower.text(
                (left + right) / 2,
                0.5,
                names[k],
                ha="center",
                va="center",
                fontsize=8,
                color="white",
                clip_on=True,
            )
    lower.set_yticks([])
    lower.set_ylabel("likeliest", fontsize=8)
    lower.set_xlim(edges[0], edges[-1])
    lower.set_xlabel("frame" if found[0].start is None else "seconds")
    with atomic_path(path) as part:
        figure.savefig(part, format=path.suffix[1:].lower(), dpi=150)


def _edges(found: Sequence[TimelineWindow]) -> np.ndarray:
    """Return the borders between the windows' drawings: half-way between their middles."""
    spans = np.asarray(
        [
            (window.first - 1, window.last) if window.start is None else (window.start, window.end)
            for window in found
        ],
        np.float64,
    )
    middles = spans.mean(axis=1)
    return np.asarray([spans[0, 0], *(middles[:-1] + middles[1:]) / 2, spans[-1, 1]])


def _stretches(best: np.ndarray) -> list[tuple[int, int]]:
    """Return (start, stop) of every run of windows with the same likeliest class."""
    changes = np.flatnonzero(np.diff(best)) + 1
    starts = [0, *changes.tolist()]
    return list(zip(starts, [*starts[1:], len(best)]))
