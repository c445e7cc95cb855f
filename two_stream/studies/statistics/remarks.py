"""What a study says in words: its protocol line, its caveats, the answer to its question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from two_stream.evaluation.scores.words import count_sources, interval_words
from two_stream.studies.statistics.panel import Panel, matched
from two_stream.studies.statistics.results import Comparison, VariantResult
from two_stream.types import ScoreTable

FEW_SOURCES = 20
"""Below this many units one weighs more than 5 %."""
MANY_TESTS = 10


def protocol_of(panels: Mapping[str, Panel], level: float) -> str:
    """Return the line that every number of a study needs: data, part, views, selection, videos, seeds, interval."""
    lead = next(iter(panels.values()))
    tables = _tables(panels)
    splits = sorted({split for panel in panels.values() for split in panel.splits})
    parts = [
        f"{_values(tables, 'dataset', 'unknown data set')} split{'s' if len(splits) > 1 else ''} "
        f"{', '.join(map(str, splits))}, {_values(tables, 'part', '?')} part"
    ]
    if any(table.meta.get("protocol") for table in tables):
        parts.append(_values(tables, "protocol", "unknown views"))
    selections = _values(tables, "selection", "")
    if selections:
        parts.append("test-selected" if selections == "paper" else f"selection {selections}")
    videos = f"{round(lead.videos)} videos" + (" per split" if len(splits) > 1 else "")
    parts.append(videos + (f" of {count_sources(lead.groups)}" if lead.groups is not None else ""))
    counts = sorted({len(panel.seeds) for panel in panels.values()})
    several = counts[-1] > 1
    parts.append(f"{'–'.join(map(str, counts))} training{'s' if several else ''} each")
    parts.append(interval_words(lead.groups, lead.interval(level), level, trainings=several))
    return " · ".join(parts)


def study_remarks(
    without: Sequence[str],
    panels: Mapping[str, Panel],
    pairs: Sequence[tuple[str, str, str]],
    comparisons: Sequence[Comparison],
) -> list[str]:
    """Return what a reader must know before believing the numbers, one sentence each."""
    found = [f"{name} has no scores: it is in no table and no comparison." for name in without]
    lost = [f"{one} – {two}" for _, one, two in pairs if one in without or two in without]
    if lost:
        found.append(f"Not compared, for lack of scores: {', '.join(lost)}.")
    found += _about_cells(panels)
    found += _about_pairing(panels, comparisons)
    found += _about_data(panels)
    by_family = [comparison.family for comparison in comparisons]
    largest = max((by_family.count(family) for family in by_family), default=0)
    if largest > MANY_TESTS:
        found.append(
            f"{largest} comparisons are corrected together: each has to pass a strict test, so that real "
            "differences may stay unseen. Ask fewer questions for sharper answers."
        )
    return found


def _about_cells(panels: Mapping[str, Panel]) -> list[str]:
    found = []
    single = [name for name, panel in panels.items() if len(panel.seeds) == 1]
    if single and len(single) == len(panels):
        found.append(
            "One training each: the intervals do not hold the spread between trainings, and another seed may turn a "
            "difference round."
        )
    elif single:
        found.append(f"One training only, so its spread is unknown: {', '.join(single)}.")
    if len({tuple(panel.seeds) for panel in panels.values()}) > 1:
        seeds = "; ".join(f"{name}: {', '.join(map(str, panel.seeds))}" for name, panel in panels.items())
        found.append(f"The variants have different seeds ({seeds}); comparisons use as many as both have.")
    if len({tuple(panel.splits) for panel in panels.values()}) > 1:
        splits = "; ".join(f"{name}: {', '.join(map(str, panel.splits))}" for name, panel in panels.items())
        found.append(f"The variants cover different splits ({splits}); comparisons use those both have.")
    return found


def _about_pairing(panels: Mapping[str, Panel], comparisons: Sequence[Comparison]) -> list[str]:
    swapped = []
    for comparison in comparisons:
        one, two = panels[comparison.first], panels[comparison.second]
        cells = matched([one.tables, two.tables])
        if any(two.tables.get(cell) is not table for cell, table in cells[1].items()):
            swapped.append(f"{comparison.first} – {comparison.second}")
    if not swapped:
        return []
    return [f"No seed in common, so that trainings are paired in their order: {', '.join(swapped)}."]


def _about_data(panels: Mapping[str, Panel]) -> list[str]:
    found = []
    lead = next(iter(panels.values()))
    if lead.units < FEW_SOURCES:
        unit = "source videos" if lead.groups is not None else "videos"
        found.append(f"Only {lead.units} {unit}: one of them moves the accuracy a lot.")
    if lead.groups is None:
        found.append(
            "The sources of the videos are unknown: parts of one count as independent, so that intervals may be too "
            "narrow."
        )
    tables = _tables(panels)
    if any(table.meta.get("selection") == "paper" for table in tables):
        found.append(
            "Test-selected: checkpoints were picked on the test split, so accuracies are optimistic."
        )
    for key, words in (
        ("protocol", "The runs were scored by different protocols"),
        ("precision", "The runs were scored in different precision"),
        ("code_version", "The runs were scored by different versions of the code"),
        ("selection", "The runs chose their checkpoints in different ways"),
    ):
        values = _distinct(tables, key)
        if len(values) > 1:
            found.append(f"{words}: {'; '.join(values)}.")
    skipped = sorted({str(name) for table in tables for name in table.meta.get("skipped") or []})
    if skipped:
        more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        found.append(
            f"{len(skipped)} videos could not be read and are not counted: {', '.join(skipped[:3])}{more}."
        )
    return found


def answer_of(comparisons: Sequence[Comparison], variants: Sequence[VariantResult]) -> str:
    """Return what the tests answer, in one to three sentences."""
    if not comparisons:
        return "Nothing was compared with anything, so that the numbers stand for themselves."
    shown = [comparison for comparison in comparisons if comparison.significant]
    if len(comparisons) == 1:
        return _sentence(comparisons[0].verdict)
    if not shown:
        missed = [comparison.detectable for comparison in comparisons]
        best = next((variant.name for variant in variants if variant.best), "")
        start = (
            f"No difference shown in any of {len(comparisons)} comparisons; {best} has the highest mean, "
            "which may be chance."
        )
        if min(missed) >= 1:
            return f"{start} No difference could have been seen here, however large."
        low, high = (f"{100 * end:.1f}" for end in (min(missed), max(missed)))
        sizes = f"{low} points" if low == high else f"{low} to {high} points, by comparison,"
        return f"{start} Differences below about {sizes} would be missed here."
    strongest = sorted(shown, key=lambda comparison: (comparison.p_holm, -abs(comparison.difference.value)))
    told = [_sentence(comparison.verdict) for comparison in strongest[:2]]
    others = len(shown) - len(told)
    if others:
        told.append(f"{_count(others, 'more difference')} of {len(comparisons)} comparisons shown.")
    elif len(comparisons) > len(shown):
        told.append(
            f"No difference shown in the other {_count(len(comparisons) - len(shown), 'comparison')}."
        )
    return " ".join(told)


def _sentence(verdict: str) -> str:
    """Return a verdict as a sentence; names of variants keep their case."""
    start = "no difference"
    return (verdict[0].upper() + verdict[1:] if verdict.startswith(start) else verdict) + "."


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("s" if number != 1 else "")


def _tables(panels: Mapping[str, Panel]) -> list[ScoreTable]:
    return [table for panel in panels.values() for table in panel.tables.values()]


def _distinct(tables: Iterable[ScoreTable], key: str) -> list[str]:
    return list(dict.fromkeys(str(table.meta[key]) for table in tables if table.meta.get(key) is not None))


def _values(tables: Iterable[ScoreTable], key: str, otherwise: str) -> str:
    return " / ".join(_distinct(tables, key)) or otherwise
