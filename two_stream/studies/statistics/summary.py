"""Computes a study's result from the score tables of its variants: statistics, notes and answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from two_stream.errors import ScoreError
from two_stream.evaluation.runs.lookup import environment_of
from two_stream.evaluation.scores import metrics, statistics
from two_stream.evaluation.scores.statistics import LEVEL
from two_stream.evaluation.scores.words import count_sources, interval_words
from two_stream.runtime.provenance import code_version, environment
from two_stream.studies.statistics.comparison import class_means, compare_panels, correct_families
from two_stream.studies.statistics.fusing import fusion_study
from two_stream.studies.statistics.panel import Cell, Panel, match_cells, panel_of
from two_stream.studies.statistics.results import (
    Comparison,
    Published,
    RunRow,
    StudyResult,
    VariantCost,
    VariantResult,
)
from two_stream.types import ScoreTable

Pair = tuple[str, str, str]
"""(family, first, second)"""
FEW_SOURCES = 20
"""With fewer sources than this, a note says so: a single one then weighs more than 5 %."""
MANY_TESTS = 10
_ENVIRONMENT = {"torch": "torch", "cpu": "CPU", "device": "device", "gpu": "GPU", "two-stream": "code"}
"""Facts of `environment.json` that a note names if they differ."""


@dataclass(frozen=True)
class VariantRuns:
    """The runs of one variant, before any statistics."""

    name: str
    levels: dict[str, str]
    """its level of every factor of the grid"""
    changes: dict[str, Any]
    """dotted setting -> value, where it differs from the base"""
    tables: dict[Cell, ScoreTable]
    """scores of the compared part by (split, seed)"""
    histories: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """rows of `metrics.jsonl` by cell ("split 1, seed 2")"""
    cost: VariantCost | None = None
    published: Published | None = None
    settings: str = ""
    """resolved settings of its first cell, as YAML"""
    holdout: dict[Cell, ScoreTable] = field(default_factory=dict)
    """scores of the holdout part by (split, seed), for the search of fusion weights"""
    baseline: bool = False
    """whether it is the baseline, which is not fused with others"""


@dataclass(frozen=True)
class Question:
    """The question of a study and its definition."""

    name: str
    question: str
    fusion_rule: str | None = None
    """rule for fusing every RGB with every flow variant; None: no fusion"""
    level: float = LEVEL
    command: str = ""
    """command line that reproduces the study"""
    definition: str = ""


def study_result(
    question: Question,
    variants: Sequence[VariantRuns],
    pairs: Sequence[Pair],
    *,
    runs: Sequence[RunRow] = (),
    notes: Sequence[str] = (),
) -> StudyResult:
    """Compute the statistics of a study.

    Args:
        question: Name, question, fusion rule, level.
        variants: Their scores; variants without scores are named in the notes and left out, with their comparisons.
        pairs: Comparisons as (family, first, second).
        runs: The cells, for the report's list.
        notes: Further caveats, shown first.

    Raises:
        ScoreError: No variant has scores, two variants share a name, a pair names an unknown variant, or score tables
            do not join.
    """
    _check_names(variants, pairs)
    panels = {variant.name: panel_of(variant.name, variant.tables) for variant in variants if variant.tables}
    if not panels:
        raise ScoreError(f"{question.name}: no variant has scores, so there is nothing to compare")
    comparisons = correct_families(
        [
            compare_panels(
                (first, second), (panels[first], panels[second]), family=family, level=question.level
            )
            for family, first, second in pairs
            if first in panels and second in panels
        ],
        question.level,
    )
    results = [
        _variant(variant, panels[variant.name], question.level) for variant in variants if variant.tables
    ]
    highest = max(result.accuracy.value for result in results)
    results = [replace(result, best=result.accuracy.value == highest) for result in results]
    lead = next(iter(panels.values()))
    remarks = [*notes, *_unused(variants, panels), *_remarks(variants, panels, pairs, comparisons)]
    remarks += _about_environments(runs)
    fusion = None
    fused = [variant for variant in variants if variant.name in panels and not variant.baseline]
    if question.fusion_rule is not None and len(fused) > 1:
        fit = {variant.name: variant.holdout for variant in fused}
        streams = {variant.name: panels[variant.name].tables for variant in fused}
        complete = all(fit.values())
        fusion = fusion_study(
            streams, question.fusion_rule, fit=fit if complete else None, level=question.level
        )
    elif question.fusion_rule is not None:
        remarks.append("Fusion was requested, but only one variant has scores.")
    return StudyResult(
        name=question.name,
        question=question.question,
        protocol=_protocol(panels, question.level),
        metric="mAP" if lead.multi_label else "top-1",
        part=str(lead.first.meta.get("part", "?")),
        videos=round(lead.videos),
        groups=lead.groups,
        class_names=list(lead.first.class_names),
        chance=_chance(lead),
        level=question.level,
        variants=results,
        comparisons=comparisons,
        runs=list(runs),
        answer=_answer(comparisons, results),
        notes=remarks,
        fusion=fusion,
        settings={variant.name: variant.settings for variant in variants if variant.settings},
        command=question.command,
        definition=question.definition,
        environment=environment(),
        code_version=code_version(),
        created=datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
    )


def _check_names(variants: Sequence[VariantRuns], pairs: Sequence[Pair]) -> None:
    names = [variant.name for variant in variants]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ScoreError(f"two variants are called {doubled[0]!r}; use unique names")
    unknown = next((name for _, *both in pairs for name in both if name not in names), None)
    if unknown is not None:
        raise ScoreError(f"a comparison names {unknown!r}; known variants: {', '.join(names)}")


def _variant(variant: VariantRuns, panel: Panel, level: float) -> VariantResult:
    values = panel.by_training
    alone = sd = None
    if len(values) > 1:
        interval = statistics.t_interval(values, level)  # may exceed the range of a share
        alone = replace(interval, low=max(0.0, interval.low), high=min(1.0, interval.high))
        sd = float(np.std(values, ddof=1))
    return VariantResult(
        name=variant.name,
        levels=variant.levels,
        changes=variant.changes,
        accuracy=panel.interval(level),
        seed_interval=alone,
        sd=sd,
        seeds=panel.seeds,
        splits=panel.splits,
        more=_more(panel),
        per_class=class_means(panel),
        confusion=_confusion(panel),
        histories=variant.histories,
        cost=variant.cost,
        published=variant.published,
    )


def _more(panel: Panel) -> dict[str, float | None]:
    """Return further measures, as means over cells; None where a measure is undefined."""
    found: dict[str, list[float]] = {"top-5": [], "mean class": [], "ECE": []}
    for table in panel.tables.values():
        if len(table.class_names) > 5:
            found["top-5"].append(float((metrics.table_ranks(table) < 5).mean()))
        if table.targets is not None:
            continue
        found["mean class"].append(metrics.mean_class_accuracy(table.logits, table.labels))
        if table.meta.get("scale") != "ranking":
            found["ECE"].append(metrics.calibration_error(table.logits, table.labels))
    if panel.multi_label:
        found = {"top-1": [float(panel.hits.mean())], "top-5": found["top-5"]}
    return {name: float(np.mean(values)) if values else None for name, values in found.items()}


def _confusion(panel: Panel) -> list[list[float]] | None:
    if panel.multi_label:
        return None
    counts = [metrics.confusion_matrix(table.logits, table.labels) for table in panel.tables.values()]
    return [[float(value) for value in row] for row in np.mean(counts, axis=0)]


def _chance(panel: Panel) -> float:
    """Return the accuracy of a constant guess: the fraction of the most frequent class, a mean over splits."""
    shares = [metrics.chance(panel.tables[split, panel.seeds[0]]) for split in panel.splits]
    return float(np.mean(shares))


def _protocol(panels: Mapping[str, Panel], level: float) -> str:
    """Return the protocol line: data, part, views, selection, videos, seeds, interval."""
    lead = next(iter(panels.values()))
    splits = sorted({split for panel in panels.values() for split in panel.splits})
    several = len(splits) > 1
    data = " / ".join(_distinct(panels, "dataset")) or "unknown data set"
    part = " / ".join(_distinct(panels, "part")) or "?"
    parts = [f"{data} split{'s' if several else ''} {', '.join(map(str, splits))}, {part} part"]
    parts += [" / ".join(_distinct(panels, "protocol"))]
    selections = " / ".join(_distinct(panels, "selection"))
    if selections:
        parts.append("test-selected" if selections == "paper" else f"selection {selections}")
    videos = f"{round(lead.videos)} videos" + (" per split" if several else "")
    parts.append(videos + (f" of {count_sources(lead.groups)}" if lead.groups is not None else ""))
    counts = sorted({len(panel.seeds) for panel in panels.values()})
    trainings = counts[-1] > 1
    parts.append(f"{'–'.join(map(str, counts))} training run{'s' if trainings else ''} each")
    parts.append(interval_words(lead.groups, lead.interval(level), level, trainings=trainings))
    return " · ".join(filter(None, parts))


def _unused(variants: Sequence[VariantRuns], panels: Mapping[str, Panel]) -> list[str]:
    """Return a note on each variant with training runs that not every split has."""
    found = []
    for variant in variants:
        left = len(variant.tables) - len(panels[variant.name].tables) if variant.tables else 0
        if left:
            found.append(
                f"{variant.name}: {left} of {len(variant.tables)} runs are not counted, because not every split has "
                "a run with their seed."
            )
    return found


def _remarks(
    variants: Sequence[VariantRuns],
    panels: Mapping[str, Panel],
    pairs: Sequence[Pair],
    comparisons: Sequence[Comparison],
) -> list[str]:
    """Return the caveats of a study, one sentence each."""
    without = [variant.name for variant in variants if not variant.tables]
    found = [f"{name} has no scores: it is in no table and no comparison." for name in without]
    lost = [f"{one} – {two}" for _, one, two in pairs if one in without or two in without]
    if lost:
        found.append(f"Not compared, for lack of scores: {', '.join(lost)}.")
    found += [*_about_cells(panels), *_about_pairing(panels, comparisons), *_about_data(panels)]
    by_family = [comparison.family for comparison in comparisons]
    largest = max((by_family.count(family) for family in by_family), default=0)
    if largest > MANY_TESTS:
        found.append(
            f"{largest} comparisons are corrected together, so each test is strict and real differences may be missed. "
            "Fewer comparisons give more sensitive tests."
        )
    return found


def _about_cells(panels: Mapping[str, Panel]) -> list[str]:
    found = []
    single = [name for name, panel in panels.items() if len(panel.seeds) == 1]
    if single and len(single) == len(panels):
        found.append(
            "One training run each: the intervals do not include the spread between runs, and another seed may "
            "reverse a difference."
        )
    elif single:
        found.append(f"One training run only, so its spread is unknown: {', '.join(single)}.")
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
        cells = match_cells([one.tables, two.tables])
        if any(two.tables.get(cell) is not table for cell, table in cells[1].items()):
            swapped.append(f"{comparison.first} – {comparison.second}")
    if not swapped:
        return []
    return [f"No seed in common, so training runs are paired in their order: {', '.join(swapped)}."]


def _about_data(panels: Mapping[str, Panel]) -> list[str]:
    found = []
    lead = next(iter(panels.values()))
    if lead.units < FEW_SOURCES:
        unit = "source videos" if lead.groups is not None else "videos"
        found.append(f"Only {lead.units} {unit}: a single one changes the accuracy considerably.")
    if lead.groups is None:
        found.append(
            "The sources of the videos are unknown: clips of one source count as independent, so the intervals may be "
            "too narrow."
        )
    if "paper" in _distinct(panels, "selection"):
        found.append(
            "Test-selected: checkpoints were picked on the test split, so accuracies are optimistic."
        )
    for key, text in (
        ("protocol", "The runs were scored by different protocols"),
        ("precision", "The runs were scored in different precision"),
        ("code_version", "The runs were scored by different versions of the code"),
        ("selection", "The runs selected their checkpoints in different ways"),
    ):
        values = _distinct(panels, key)
        if len(values) > 1:
            found.append(f"{text}: {'; '.join(values)}.")
    found += _about_lists(panels)
    tables = [table for panel in panels.values() for table in panel.tables.values()]
    skipped = sorted({str(name) for table in tables for name in table.meta.get("skipped") or []})
    if skipped:
        more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        found.append(
            f"{len(skipped)} videos could not be read and are not counted: {', '.join(skipped[:3])}{more}."
        )
    return found


def _about_lists(panels: Mapping[str, Panel]) -> list[str]:
    """Return a note if runs of one split had different training lists; older runs do not record their lists."""
    for number in sorted({split for panel in panels.values() for split, _ in panel.tables}):
        videos: dict[str, str] = {}
        names: dict[str, list[str]] = {}
        for name, panel in panels.items():
            for (split, _), table in panel.tables.items():
                key = table.meta.get("training_list")
                if split == number and key is not None:
                    videos[key] = str(table.meta.get("training_videos", "?"))
                    names.setdefault(key, []).append(name)
        if len(videos) > 1:
            who = "; ".join(", ".join(dict.fromkeys(own)) for own in names.values())
            return [
                f"The runs were trained on different lists: {' and '.join(videos.values())} videos ({who})."
            ]
    return []


def _about_environments(runs: Sequence[RunRow]) -> list[str]:
    """Return a note on what differs between the machines and versions that trained the runs."""
    known = [facts for one in runs if one.run and (facts := environment_of(Path(one.run)))]
    found = []
    for key, label in _ENVIRONMENT.items():
        values = dict.fromkeys(facts[key].partition(":")[0] for facts in known if key in facts)  # cuda:1
        if len(values) > 1:
            found.append(f"{label} {' / '.join(values)}")
    return [f"The runs were trained in different environments: {'; '.join(found)}."] if found else []


def _distinct(panels: Mapping[str, Panel], key: str) -> list[str]:
    """Return the different values of a fact of the score files."""
    tables = [table for panel in panels.values() for table in panel.tables.values()]
    return list(dict.fromkeys(str(table.meta[key]) for table in tables if table.meta.get(key) is not None))


def _answer(comparisons: Sequence[Comparison], variants: Sequence[VariantResult]) -> str:
    """Return the answer of the tests, in one to three sentences."""
    if not comparisons:
        return "Nothing was compared."
    if len(comparisons) == 1:
        return _sentence(comparisons[0].verdict)
    shown = [comparison for comparison in comparisons if comparison.significant]
    if not shown:
        missed = [comparison.detectable for comparison in comparisons]
        best = next((variant.name for variant in variants if variant.best), "")
        start = (
            f"No difference shown in any of {len(comparisons)} comparisons; {best} has the highest mean, "
            "which may be chance."
        )
        if min(missed) >= 1:
            return f"{start} No difference could have been detected here, however large."
        low, high = (f"{100 * end:.1f}" for end in (min(missed), max(missed)))
        sizes = f"{low} points" if low == high else f"{low} to {high} points, by comparison,"
        return f"{start} Differences below about {sizes} would be missed here."
    strongest = sorted(shown, key=lambda comparison: (comparison.p_holm, -abs(comparison.difference.value)))
    sentences = [_sentence(comparison.verdict) for comparison in strongest[:2]]
    others, open_ = len(shown) - len(sentences), len(comparisons) - len(shown)
    if others:
        sentences.append(f"{_count(others, 'more difference')} of {len(comparisons)} comparisons shown.")
    elif open_:
        sentences.append(f"No difference shown in the other {_count(open_, 'comparison')}.")
    return " ".join(sentences)


def _sentence(verdict: str) -> str:
    """Return a verdict as a sentence; names of variants keep their case."""
    starts_plain = verdict.startswith("no difference")
    return (verdict[0].upper() + verdict[1:] if starts_plain else verdict) + "."


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("s" if number != 1 else "")
