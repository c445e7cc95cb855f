"""Prints the result of a study on the terminal."""

from __future__ import annotations

from two_stream.evaluation.scores.words import difference_in_points, percent
from two_stream.runtime.console import console, say, table
from two_stream.studies.report.tables import (
    Table,
    comparisons_table,
    differing_settings,
    pairs_table,
    variants_table,
)
from two_stream.studies.statistics.comparison import p_text
from two_stream.studies.statistics.results import FusionResult, StudyResult

_NAMES = 8
"""Largest number of settings that are listed in one line."""


def print_study(result: StudyResult) -> None:
    """Print the tables, protocol, notes and verdicts of a study."""
    _print(f"{result.metric} in %", variants_table(result, "terminal"))
    if result.comparisons:
        _print("differences in points", comparisons_table(result, "terminal"))
    if result.fusion is not None:
        _print(f"fusion ({result.fusion.rule})", pairs_table(result.fusion))
        for line in _fusion_lines(result.fusion):
            say(line)
    say(result.protocol)
    for text in result.notes:
        say(f"note: {text}")
    for comparison in result.comparisons:
        say(comparison.verdict)


def settings_line(result: StudyResult) -> str:
    """Return one line with the names of the settings that differ between variants; empty if no setting differs."""
    names = list(differing_settings(result))
    more = f", … ({len(names)} in all)" if len(names) > _NAMES else ""
    return f"settings that differ: {', '.join(names[:_NAMES])}{more}" if names else ""


def _print(title: str, shown: Table) -> None:
    console.print(table(title, shown.columns, shown.texts))


def _fusion_lines(fusion: FusionResult) -> list[str]:
    """Return lines on the fusion of all streams, the contribution of each stream, and the fitted weights."""
    lines = []
    if len(fusion.streams) > 2:
        lines.append(
            f"all streams {percent(fusion.all_streams)} %; at least one is right in {percent(fusion.oracle)} %"
        )
    lines += [
        f"{part.stream} adds {difference_in_points(part.difference)} points to the fusion of all, "
        f"p {p_text(part.p_holm, sign=True)} after correction"
        for part in fusion.contributions
    ]
    if fusion.weights:
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in fusion.weights.items())
        lines.append(f"weights {weights}, found on {fusion.fitted_on}: {percent(fusion.tuned)} %")
    return lines
