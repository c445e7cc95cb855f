"""Differences of two variants by class: gains, losses and confusions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from two_stream.studies.report.figures import MOST_CLASSES, class_differences, confusion_difference
from two_stream.studies.report.tables import Table, TableCell, number
from two_stream.studies.statistics.results import Comparison, StudyResult

_PAIRS = 12
"""Comparisons shown; significant and large ones first."""
_CELLS = 15
"""Confusions listed if there are too many classes for a matrix."""


@dataclass(frozen=True)
class ClassView:
    """One comparison class by class."""

    title: str
    verdict: str
    classes: str | None
    """SVG"""
    confusion: str | None = None
    """SVG, of few classes"""
    cells: Table | None = None
    """the confusions that differ most, of many classes"""


def class_views(result: StudyResult) -> list[ClassView]:
    """Return the views of the comparisons that have classes to show, significant and large differences first."""
    ordered = sorted(result.comparisons, key=lambda one: (not one.significant, -abs(one.difference.value)))
    views = [_view(result, one) for one in ordered[:_PAIRS]]
    return [view for view in views if view.classes or view.confusion or view.cells]


def _view(result: StudyResult, one: Comparison) -> ClassView:
    names, title = result.class_names, f"{one.first} − {one.second}"
    counts = {variant.name: variant.confusion for variant in result.variants}
    first, second = counts.get(one.first), counts.get(one.second)
    view = ClassView(title, one.verdict, class_differences(one, names))
    if first is None or second is None:
        return view
    first_KK, second_KK = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(names) > MOST_CLASSES:
        return replace(view, cells=_cells(names, one, first_KK, second_KK))
    label = f"difference of confusions, {title}"
    return replace(view, confusion=confusion_difference(first_KK - second_KK, names, label))


def _cells(
    names: Sequence[str], one: Comparison, first_KK: NDArray[np.float64], second_KK: NDArray[np.float64]
) -> Table:
    """Return the confusions (off the diagonal) that differ most."""
    gap_KK = first_KK - second_KK
    wrong = np.where(np.eye(len(gap_KK), dtype=bool), 0.0, gap_KK)
    order = np.argsort(-np.abs(wrong), axis=None, kind="stable")[:_CELLS]
    rows = []
    for true, predicted in (divmod(place, len(gap_KK)) for place in order.tolist()):
        if not wrong[true, predicted]:
            break
        a, b = float(first_KK[true, predicted]), float(second_KK[true, predicted])
        classes = [TableCell(names[place], names[place]) for place in (true, predicted)]
        rows.append([*classes, number(a), number(b), number(a - b, signed=True)])
    return Table(
        "Confusions that differ most, in videos (mean over runs).",
        ["true", "predicted", one.first, one.second, "difference"],
        [False, False, True, True, True],
        rows,
    )
