"""Accuracy against what it costs: score files in one picture, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from two_stream.evaluation.scores import metrics
from two_stream.runtime.files import atomic_path
from two_stream.runtime.plotting import plain_figures
from two_stream.types import ScoreTable

_SIZE = (6.4, 4.2)
"""inches"""
_DPI = 150


@dataclass(frozen=True)
class FigurePoint:
    """One score file: what it reaches and what a video costs."""

    name: str
    file: str
    accuracy: float
    """top-1"""
    low: float
    high: float
    """ends of its 95 % interval"""
    multiply_adds: float
    """per clip"""
    views: float | None
    """views per video, on average; None where the score file does not hold them: then a single one is counted"""
    videos: int
    protocol: str

    @property
    def cost(self) -> float:
        """Multiply-adds per video."""
        return self.multiply_adds * (self.views or 1.0)


def point_of(table: ScoreTable, multiply_adds: int) -> FigurePoint:
    """Return the point of a score file whose model takes this many multiply-adds a clip."""
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
    """Draw top-1 with its 95 % interval against multiply-adds per video (logarithmic)."""
    figure, axes = _figure()
    counted = all(
        point.views for point in points
    )  # else views are unknown for one of them: compare single ones
    for point in points:
        spread = [[100 * (point.accuracy - point.low)], [100 * (point.high - point.accuracy)]]
        label = f"{point.name} ({point.protocol})" if point.protocol else point.name
        axes.errorbar(
            [(point.cost if counted else point.multiply_adds) / 1e9],
            [100 * point.accuracy],
            yerr=spread,
            fmt="o",
            capsize=3,
            label=f"{label}, {point.videos} videos",
        )
    axes.set_xscale("log")
    axes.set_xlabel(f"G multiply-adds per {'video' if counted else 'view'}")
    axes.set_ylabel("top-1 accuracy in %, 95 % interval")
    axes.legend(fontsize=8)
    _save(figure, target)


@plain_figures()
def throughput(name: str, speeds: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Draw clips per second against batch size, a line per pass and precision."""
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
