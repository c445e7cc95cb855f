"""Accuracy against cost: which variants no other beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from two_stream.evaluation.report.page import INK, MUTED, STREAMS, drawing, short, to_svg
from two_stream.studies.report.figures import WIDTH
from two_stream.studies.statistics.results import VariantResult

_LINE = 0.17
"""Inches between the names of two points."""
_WITH_INTERVALS = 8
"""Up to so many points show their intervals."""


@dataclass(frozen=True)
class CostPoint:
    """One variant: what it reaches and what it costs."""

    name: str
    cost: float
    accuracy: float
    low: float
    high: float


def front(points: Sequence[CostPoint]) -> list[CostPoint]:
    """Return the points, by rising cost, that no other one equals or beats in both and beats in one."""

    def beaten(point: CostPoint) -> bool:
        return any(
            other.cost <= point.cost
            and other.accuracy >= point.accuracy
            and (other.cost, other.accuracy) != (point.cost, point.accuracy)
            for other in points
        )

    return sorted(
        (point for point in points if not beaten(point)), key=lambda point: (point.cost, point.name)
    )


def cost_axes(variants: Sequence[VariantResult]) -> list[tuple[str, list[CostPoint]]]:
    """Return what accuracy can be drawn against: label and points, for costs known of at least two variants.

    Multiply-adds are those of a whole video where the views of all are known, else of a view.
    """
    known = [variant for variant in variants if variant.cost is not None]
    whole = all(variant.cost.views for variant in known if variant.cost is not None)
    found: list[tuple[str, list[CostPoint]]] = []
    for label, kind in (
        (f"G multiply-adds per {'video' if whole else 'view'}", "operations"),
        ("milliseconds per view", "latency"),
    ):
        points = []
        for variant in known:
            cost = variant.cost
            assert cost is not None
            value = cost.latency_ms
            if kind == "operations":
                value = cost.multiply_adds * ((cost.views or 1.0) if whole else 1.0) / 1e9
            if value is not None:
                interval = variant.accuracy
                points.append(CostPoint(variant.name, value, interval.value, interval.low, interval.high))
        if len(points) > 1:
            found.append((label, points))
    return found


def pareto(variants: Sequence[VariantResult], metric: str) -> str | None:
    """Draw accuracy against multiply-adds and latency, the front marked; None where costs are not known."""
    shown = cost_axes(variants)
    if not shown:
        return None
    most = max(len(points) for _, points in shown)
    height = max(1.9, _LINE * most + 0.3) + 0.5
    with drawing(height * len(shown), len(shown), width=WIDTH) as (figure, axes):
        for axis, (label, points) in zip(axes, shown):
            _panel(axis, points, metric, label, height)
        return to_svg(figure, f"{metric} against cost")


def _panel(axis: Axes, points: Sequence[CostPoint], metric: str, label: str, height: float) -> None:
    best = front(points)
    axis.step(
        [point.cost for point in best],
        [100 * point.accuracy for point in best],
        where="post",
        color=STREAMS[2],
        linewidth=1.2,
        alpha=0.7,
    )
    for point in points:
        color = STREAMS[2] if point in best else MUTED
        if len(points) <= _WITH_INTERVALS:
            ends = [100 * point.low, 100 * point.high]
            axis.plot([point.cost] * 2, ends, color=color, linewidth=0.8, alpha=0.5)
        axis.plot([point.cost], [100 * point.accuracy], "o", color=color, markersize=6)
    low, high = min(point.cost for point in points), max(point.cost for point in points)
    if high > 8 * low > 0:
        axis.set_xscale("log")
        axis.set_xlim(low / 1.2, high * 1.2)
    else:
        spread = (high - low) or abs(high) or 1.0
        axis.set_xlim(low - 0.08 * spread, high + 0.08 * spread)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.ticklabel_format(useOffset=False)
    axis.margins(y=0.06)
    axis.xaxis.labelpad = 3
    axis.set(xlabel=label, ylabel=f"{metric} (%)")
    _names(axis, points, best, height)


def _names(axis: Axes, points: Sequence[CostPoint], best: Sequence[CostPoint], height: float) -> None:
    """Write the names in a column beside the axes, each joined to its point by a thin line; none covers another."""
    low, high = axis.get_ylim()
    rising = sorted(points, key=lambda point: point.accuracy)
    wanted = [(100 * point.accuracy - low) / (high - low) for point in rising]
    for place, point in zip(spread(wanted, _LINE / (height - 0.5)), rising):
        axis.annotate(
            short(point.name, 22),
            (point.cost, 100 * point.accuracy),
            xytext=(1.05, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8.0,
            color=INK if point in best else MUTED,
            weight="bold" if point in best else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": MUTED,
                "linewidth": 0.5,
                "alpha": 0.6,
                "relpos": (0.0, 0.5),
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Return rising places moved apart to `gap` at least, as little as possible in sum of squares.

    Places too near to each other become a block around their mean (pool adjacent violators on `place - rank × gap`).
    """
    blocks: list[list[float]] = []
    for rank, place in enumerate(places):
        blocks.append([place - rank * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    flat = [float(np.mean(block)) for block in blocks for _ in block]
    return [value + rank * gap for rank, value in enumerate(flat)]
