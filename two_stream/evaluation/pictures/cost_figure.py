"""Figures of accuracy against cost, with one point for each score file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from two_stream.evaluation.scores import metrics
from two_stream.runtime.files import atomic_path
from two_stream.runtime.plotting import plain_figures
from two_stream.types import ScoreTable

_SIZE = (6.4, 4.2)
"""width and height of the figure, in inches"""
_DPI = 150
_LINE = 0.17
"""smallest distance between the names of two points, in inches"""
_WITH_INTERVALS = 8
"""largest number of points for which the intervals are drawn"""


@dataclass(frozen=True)
class FigurePoint:
    """A score file in a figure: its accuracy and its cost per video."""

    name: str
    file: str
    accuracy: float
    """top-1 accuracy"""
    low: float
    high: float
    """upper end of the 95 % interval of the accuracy; `low` is the lower end"""
    multiply_adds: float
    """multiply-adds of one clip"""
    views: float | None
    """mean number of views per video; None if unknown, in which case one view is assumed"""
    videos: int
    protocol: str

    @property
    def cost(self) -> float:
        """Multiply-adds per video."""
        return self.multiply_adds * (self.views or 1.0)


def point_of(table: ScoreTable, multiply_adds: int) -> FigurePoint:
    """Return the point of a score file; `multiply_adds` is the number of multiply-adds of one clip."""
    found = metrics.summarise(table, top=(1,)).top[1]
    assert found is not None  # top-1 is always there
    counts = table.view_counts
    views = float(counts.mean()) if counts is not None else None
    if views is None and table.meta.get("views_per_video"):
        views = float(table.meta["views_per_video"])
    return FigurePoint(
        name=str(table.meta.get("name") or Path(str(table.meta.get("file", "scores"))).stem),
        file=str(table.meta.get("file", "")),
        accuracy=found.value,
        low=found.low,
        high=found.high,
        multiply_adds=float(multiply_adds),
        views=views,
        videos=len(table.ids),
        protocol=str(table.meta.get("protocol", "")),
    )


@plain_figures()
def accuracy_against_cost(points: Sequence[FigurePoint], target: Path) -> None:
    """Draw top-1 accuracy with its 95 % interval against multiply-adds per video, and the Pareto front.

    If the number of views is unknown for a score file, the horizontal axis shows multiply-adds per view.
    """
    figure, axes = _figure()
    counted = all(point.views for point in points)
    shown = []
    for point in points:
        cost = (point.cost if counted else point.multiply_adds) / 1e9
        name = f"{point.name}\n{', '.join(filter(None, (point.protocol, f'{point.videos} videos')))}"
        shown.append(CostPoint(name, cost, point.accuracy, point.low, point.high))
    draw_costs(axes, shown, _SIZE[1], ("tab:blue", "tab:gray", "black"))
    axes.set_xlabel(f"G multiply-adds per {'video' if counted else 'view'}")
    axes.set_ylabel("top-1 accuracy in %, 95 % interval")
    _save(figure, target)


@plain_figures()
def throughput(name: str, speeds: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Draw clips per second against the batch size, with one line for each pass and precision."""
    figure, axes = _figure()
    for key in dict.fromkeys((speed["work"], speed["precision"]) for speed in speeds):
        chosen = sorted(
            (speed["batch_size"], speed["clips_per_second"])
            for speed in speeds
            if (speed["work"], speed["precision"]) == key
        )
        axes.plot([one[0] for one in chosen], [one[1] for one in chosen], "o-", label=" ".join(key))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("clips per batch")
    axes.set_ylabel("clips per second")
    axes.set_title(f"{name} on {speeds[0]['device']}", fontsize=9)
    axes.legend(fontsize=8)
    _save(figure, target)


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Figure, target: Path) -> None:
    with atomic_path(target) as part:
        figure.savefig(part, format=target.suffix[1:].lower(), dpi=_DPI)


@dataclass(frozen=True)
class CostPoint:
    """A point in a figure of accuracy against cost."""

    name: str
    cost: float
    accuracy: float
    """accuracy from 0 to 1; `low` and `high` are the ends of its interval"""
    low: float
    high: float


def front(points: Sequence[CostPoint]) -> list[CostPoint]:
    """Return the points of the Pareto front in order of increasing cost."""

    def is_beaten(point: CostPoint) -> bool:
        return any(
            other.cost <= point.cost
            and other.accuracy >= point.accuracy
            and (other.cost, other.accuracy) != (point.cost, point.accuracy)
            for other in points
        )

    best = [point for point in points if not is_beaten(point)]
    return sorted(best, key=lambda point: (point.cost, point.name))


def cost_height(count: int) -> float:
    """Return the height in inches that axes with `count` points require for the names."""
    return max(1.9, _LINE * count + 0.3) + 0.5


def draw_costs(axis: Axes, points: Sequence[CostPoint], height: float, colours: tuple[str, str, str]) -> None:
    """Draw accuracy in per cent against cost, with the Pareto front and the names in a column.

    Args:
        axis: Axes to draw on.
        points: Points to draw; if there are few, their intervals are also drawn.
        height: Height of the axes with their labels, in inches.
        colours: Colours of the front, of the other points, and of the names of points on the front.
    """
    best, (front_colour, other_colour, ink) = front(points), colours
    costs, values = [point.cost for point in best], [100 * point.accuracy for point in best]
    axis.step(costs, values, where="post", color=front_colour, linewidth=1.2, alpha=0.7)
    for point in points:
        colour = front_colour if point in best else other_colour
        if len(points) <= _WITH_INTERVALS:
            ends = [100 * point.low, 100 * point.high]
            axis.plot([point.cost] * 2, ends, color=colour, linewidth=0.8, alpha=0.5)
        axis.plot([point.cost], [100 * point.accuracy], "o", color=colour, markersize=6)
    low, high = min(point.cost for point in points), max(point.cost for point in points)
    if high > 8 * low > 0:
        axis.set_xscale("log")
        # the default labels contain `$`, which is drawn as plain text here
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlim(low / 1.2, high * 1.2)
    else:
        spread = (high - low) or abs(high) or 1.0
        axis.set_xlim(low - 0.08 * spread, high + 0.08 * spread)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.ticklabel_format(useOffset=False)
    axis.margins(y=0.06)
    axis.xaxis.labelpad = 3
    # names are in a column next to the axes, and thin lines connect them to their points
    bottom, top = axis.get_ylim()
    rising = sorted(points, key=lambda point: point.accuracy)
    wanted = [(100 * point.accuracy - bottom) / (top - bottom) for point in rising]
    line = {"arrowstyle": "-", "color": other_colour, "linewidth": 0.5, "alpha": 0.6}
    lines = 1 + max(point.name.count("\n") for point in points)
    for place, point in zip(spread_apart(wanted, lines * _LINE / (height - 0.5)), rising, strict=True):
        axis.annotate(
            point.name,
            (point.cost, 100 * point.accuracy),
            xytext=(1.05, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8.0,
            color=ink if point in best else other_colour,
            weight="bold" if point in best else "normal",
            arrowprops={**line, "relpos": (0.0, 0.5), "shrinkA": 1, "shrinkB": 3},
        )


def spread_apart(places: Sequence[float], gap: float) -> list[float]:
    """Move increasing positions apart to distances of at least `gap`, with the smallest sum of squared moves.

    Positions that are too close become a block around their mean (pool-adjacent-violators algorithm on `place - rank ×
    gap`).
    """
    blocks: list[list[float]] = []
    for rank, place in enumerate(places):
        blocks.append([place - rank * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    flat = [float(np.mean(block)) for block in blocks for _ in block]
    return [value + rank * gap for rank, value in enumerate(flat)]
