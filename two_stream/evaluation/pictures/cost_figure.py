"""Figures of costs: accuracy against cost, throughput, and the shares of stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from two_stream.evaluation.scores import metrics
from two_stream.runtime.plotting import INK, MORE, MUTED, SERIES, plain_figures, save_figure, shorten
from two_stream.types import ScoreTable

_SIZE = (6.4, 4.2)
"""width and height of the figure, in inches"""
_LINE = 0.17
"""smallest distance between the names of two points, in inches"""
_SMALL = 0.1
"""difference of the costs, as a fraction of the highest, below which their axis begins at 0"""
_NEAR = 0.06
"""distance in inches at which the line of a name counts as passing through a point"""
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
    counted = all(point.views for point in points)
    tests = [", ".join(filter(None, (point.protocol, f"{point.videos} videos"))) for point in points]
    equal = len(set(tests)) == 1
    shown = []
    for point, test in zip(points, tests):
        cost = (point.cost if counted else point.multiply_adds) / 1e9
        name = shorten(point.name) if equal else f"{shorten(point.name)}\n{shorten(test, 30)}"
        shown.append(CostPoint(name, cost, point.accuracy, point.low, point.high))
    height = max(_SIZE[1], (1 if equal else 2) * _LINE * len(points) + 1.0)
    figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
    axes = figure.add_subplot()
    draw_costs(axes, shown, height, (SERIES[2], MUTED, INK))
    title = "The line shows the best accuracy at each cost"
    axes.set_title(f"{title}\n{shorten(tests[0], 90)}" if equal else title)
    axes.set_xlabel(f"G multiply-adds per {'video' if counted else 'view'}")
    axes.set_ylabel("top-1 accuracy in %, 95 % interval")
    save_figure(figure, target)


@plain_figures()
def throughput(name: str, speeds: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Draw clips per second against the batch size, with one line for each precision and kind of pass (`work`)."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    lines = dict.fromkeys((speed["work"], speed["precision"]) for speed in speeds)
    for key, color, mark in zip(lines, SERIES + MORE, "osD^vP*X"):
        chosen = sorted(
            (speed["batch_size"], speed["clips_per_second"])
            for speed in speeds
            if (speed["work"], speed["precision"]) == key
        )
        axes.plot(*zip(*chosen), marker=mark, color=color, label=" ".join(key))
    axes.set(ylim=(0, None), xlim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("clips per batch")
    axes.set_ylabel("clips per second")
    axes.set_title(shorten(f"{name} on {speeds[0]['device']}", 80))
    axes.legend()
    save_figure(figure, target)


@plain_figures()
def stage_shares(title: str, stages: Mapping[str, Mapping[str, float]], target: Path) -> None:
    """Draw a bar for each stage and measure: the stage's share of the network's total.

    `stages` contains the values of the stages in order, for example `{"layer1": {"time": 3.2, "parameters": 1000}}`.
    The names of the measures are drawn as titles. A stage can lack some of the measures.
    """
    measures = list(dict.fromkeys(measure for values in stages.values() for measure in values))
    figure = Figure(figsize=(_SIZE[0] + 1, 1.2 + 0.26 * len(stages)), layout="constrained")
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    table = np.array([[values.get(measure, 0.0) for values in stages.values()] for measure in measures])
    shares = 100 * table / np.maximum(table.sum(axis=1, keepdims=True), 1e-12)
    for axes, measure, row, color in zip(panels, measures, shares, SERIES):
        bars = axes.barh(range(len(stages)), row, height=0.7, color=color)
        known = [measure in values for values in stages.values()]
        labels = [f"{share:.1f} %" if there else "" for share, there in zip(row, known)]
        axes.bar_label(bars, labels, padding=3, fontsize=8)
        axes.set(xlim=(0, 1.35 * shares.max()), title=measure, xticks=[])
        axes.grid(visible=False)
    axes.set_yticks(range(len(stages)), [shorten(stage) for stage in stages])
    axes.invert_yaxis()
    figure.suptitle(shorten(title, 100), x=0.01, ha="left", fontsize=10)
    save_figure(figure, target)


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
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        # the default labels contain `$`, which is drawn as plain text here
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlim(low / 1.2, high * 1.2)
    else:
        start = 0.0 if high - low < _SMALL * high else low  # a small difference must not look large
        spread = (high - start) or 1.0
        axis.set_xlim(start - 0.08 * spread * (start > 0), high + 0.08 * spread)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.ticklabel_format(useOffset=False)
    axis.margins(y=0.06)
    axis.xaxis.labelpad = 3
    # names are in a column next to the axes, and thin lines connect them to their points
    dots = axis.transAxes.inverted().transform(
        axis.transData.transform([(point.cost, 100 * point.accuracy) for point in points])
    )
    line = {"arrowstyle": "-", "color": other_colour, "linewidth": 0.5, "alpha": 0.6}
    lines = 1 + max(point.name.count("\n") for point in points)
    gap = lines * _LINE / (height - 0.5)
    ranks = gap * np.arange(len(points))
    places = np.clip(spread_apart(sorted(dots[:, 1]), gap), ranks, max(1.0, ranks[-1]) - ranks[::-1])
    for point, place in zip(points, _chosen_places(dots, places, height - 0.5), strict=True):
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


def _chosen_places(
    dots: NDArray[np.float64], places: NDArray[np.float64], height: float
) -> NDArray[np.float64]:
    """Return the place of each point's name, so that the lines to the names are short and cross few other points.

    `dots` `(N, 2)` and the N `places` are fractions of axes that are `height` inches high.
    """
    from scipy.optimize import linear_sum_assignment

    dots = dots * (3.5, height)  # the width is known only when the figure is drawn
    ends = np.stack([np.full(len(places), 1.05), places], axis=1) * (3.5, height)
    line = ends[:, None] - dots[:, None, None]  # from point i to place j
    away = dots - dots[:, None, None]  # from point i to point k
    along = np.clip((away * line).sum(-1) / (line**2).sum(-1), 0, 1)
    passed = np.linalg.norm(away - along[..., None] * line, axis=-1) < _NEAR
    passed &= np.linalg.norm(away, axis=-1) >= _NEAR
    costs = 0.05 * passed.sum(-1) + (line[:, :, 0, 1] / height) ** 2
    chosen: NDArray[np.intp] = linear_sum_assignment(costs)[1]
    return places[chosen]


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
