"""What two variants do differently class by class: gains and losses, and confusions that come or go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from two_stream.studies.report.figures import MOST_CLASSES, class_differences, confusion_difference
from two_stream.studies.report.variant_tables import Table, TableCell, number
from two_stream.studies.statistics.results import Comparison, StudyResult

_PAIRS = 12
"""Comparisons shown; significant and large ones come first."""
_CELLS = 15
"""Confusions listed where there are too many classes for a matrix."""


@dataclass(frozen=True)
class ClassView:
    """One comparison class by class."""

    title: str
    verdict: str
    classes: str | None
    """SVG"""
    confusion: str | None
    """SVG, of few classes"""
    cells: Table | None
    """the confusions that differ most, of many classes"""


def class_views(result: StudyResult) -> list[ClassView]:
    """Return the views of the comparisons that have any class to show, the most telling one first."""
    ordered = sorted(result.comparisons, key=lambda one: (not one.significant, -abs(one.difference.value)))
    views = [_view(result, one) for one in ordered[:_PAIRS]]
    return [view for view in views if view.classes or view.confusion or view.cells]


def _view(result: StudyResult, one: Comparison) -> ClassView:
    names = result.class_names
    gap = _confusion_gap(result, one)
    small = len(names) <= MOST_CLASSES
    title = f"{one.first} − {one.second}"
    return ClassView(
        title,
        one.verdict,
        class_differences(one, names),
        confusion_difference(gap, names, f"difference of confusions, {title}")
        if gap is not None and small
        else None,
        _cells(result, one, gap) if gap is not None and not small else None,
    )


def _confusion_gap(result: StudyResult, one: Comparison) -> NDArray[np.float64] | None:
    found = {variant.name: variant.confusion for variant in result.variants}
    first, second = found.get(one.first), found.get(one.second)
    if first is None or second is None:
        return None
    return np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)


def _cells(result: StudyResult, one: Comparison, gap_KK: NDArray[np.float64]) -> Table:
    """Return the confusions (off the diagonal) that differ most."""
    wrong = np.where(np.eye(len(gap_KK), dtype=bool), 0.0, gap_KK)
    order = np.argsort(-np.abs(wrong), axis=None, kind="stable")[:_CELLS]
    counts = {variant.name: variant.confusion for variant in result.variants}
    rows = []
    for place in order.tolist():
        true, predicted = divmod(place, len(gap_KK))
        if not wrong[true, predicted]:
            break
        rows.append(_cell_row(result.class_names, (true, predicted), counts, one))
    return Table(
        "Confusions that differ most, in videos (mean over runs).",
        ["true", "predicted", one.first, one.second, "difference"],
        [False, False, True, True, True],
        rows,
    )


def _cell_row(
    names: Sequence[str],
    place: tuple[int, int],
    counts: dict[str, list[list[float]] | None],
    one: Comparison,
) -> list[TableCell]:
    true, predicted = place
    first, second = counts[one.first], counts[one.second]
    assert first is not None
    assert second is not None
    a, b = first[true][predicted], second[true][predicted]
    return [
        TableCell(names[true], names[true]),
        TableCell(names[predicted], names[predicted]),
        number(a),
        number(b),
        number(a - b, signed=True),
    ]
