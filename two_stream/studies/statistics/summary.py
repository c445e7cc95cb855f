"""From the score tables of variants to everything a report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from two_stream.errors import ScoreError
from two_stream.evaluation.scores import metrics, statistics
from two_stream.evaluation.scores.statistics import LEVEL, Interval
from two_stream.runtime.provenance import code_version, environment
from two_stream.studies.statistics.comparison import Tested, class_means, compare_panels, corrected
from two_stream.studies.statistics.fusing import fusion_study
from two_stream.studies.statistics.panel import Cell, Panel, panel_of
from two_stream.studies.statistics.remarks import answer_of, protocol_of, study_remarks
from two_stream.studies.statistics.results import Published, RunRow, StudyResult, VariantCost, VariantResult
from two_stream.types import ScoreTable

Pair = tuple[str, str, str]
"""(family, first, second)"""


@dataclass(frozen=True)
class VariantRuns:
    """What is known of one variant before any statistics."""

    name: str
    levels: dict[str, str]
    """its level of every factor of the grid"""
    changes: dict[str, Any]
    """dotted setting -> value, where it departs from the base"""
    tables: dict[Cell, ScoreTable]
    """scores of the compared part by (split, seed)"""
    histories: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """rows of `metrics.jsonl` by cell ("split 1, seed 2")"""
    cost: VariantCost | None = None
    published: Published | None = None
    settings: str = ""
    """resolved settings as YAML, of its first cell"""
    holdout: dict[Cell, ScoreTable] = field(default_factory=dict)
    """scores of the holdout part by (split, seed), to search fusion weights on; may be left out"""
    baseline: bool = False
    """whether it is what the others must beat, which is fused with none of them"""


@dataclass(frozen=True)
class Question:
    """What is asked, and how it was asked."""

    name: str
    question: str
    fusion_rule: str | None = None
    """fuse every RGB with every flow variant by this rule; none: do not"""
    level: float = LEVEL
    command: str = ""
    """reproduces the study"""
    definition: str = ""
    """the study file's text"""


def study_result(
    asked: Question,
    variants: Sequence[VariantRuns],
    pairs: Sequence[Pair],
    *,
    runs: Sequence[RunRow] = (),
    notes: Sequence[str] = (),
) -> StudyResult:
    """Run the statistics of a study.

    Args:
        asked: Name, question, fusion rule, level.
        variants: What each variant's runs scored; those without any score are named in the notes and left out.
        pairs: Comparisons as (family, first, second); those with a variant without scores are noted and left out.
        runs: The cells, for the report's list.
        notes: Caveats known beforehand, shown first.

    Raises:
        ScoreError: No variant has scores, two variants share a name, a pair names an unknown variant, or score tables
            do not join.
    """
    _check_names(variants, pairs)
    panels = {variant.name: panel_of(variant.name, variant.tables) for variant in variants if variant.tables}
    if not panels:
        raise ScoreError(f"{asked.name}: no variant has scores, so there is nothing to compare")
    chosen = [pair for pair in pairs if pair[1] in panels and pair[2] in panels]
    tested = [_tested(panels, pair, asked.level) for pair in chosen]
    comparisons = corrected(tested, asked.level)
    results = [_variant(variant, panels[variant.name], asked.level) for variant in variants if variant.tables]
    highest = max(result.accuracy.value for result in results)
    results = [replace(result, best=result.accuracy.value == highest) for result in results]
    lead = next(iter(panels.values()))
    fusion = None
    without = [variant.name for variant in variants if not variant.tables]
    told = [*notes, *_unused(variants, panels), *study_remarks(without, panels, pairs, comparisons)]
    fused = [variant for variant in variants if variant.name in panels and not variant.baseline]
    if asked.fusion_rule is not None and len(fused) > 1:
        fit = {variant.name: variant.holdout for variant in fused}
        complete = all(fit.values())
        streams = {variant.name: panels[variant.name].tables for variant in fused}
        fusion = fusion_study(streams, asked.fusion_rule, fit=fit if complete else None, level=asked.level)
    elif asked.fusion_rule is not None:
        told.append("Fusion was asked for, but only one variant has scores.")
    return StudyResult(
        name=asked.name,
        question=asked.question,
        protocol=protocol_of(panels, asked.level),
        metric="mAP" if lead.multi_label else "top-1",
        part=str(lead.first.meta.get("part", "?")),
        videos=round(lead.videos),
        groups=lead.groups,
        class_names=list(lead.first.class_names),
        chance=_chance(lead),
        level=asked.level,
        variants=results,
        comparisons=comparisons,
        runs=list(runs),
        answer=answer_of(comparisons, results),
        notes=told,
        fusion=fusion,
        settings={variant.name: variant.settings for variant in variants if variant.settings},
        command=asked.command,
        definition=asked.definition,
        environment=environment(),
        code_version=code_version(),
        created=datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
    )


def _unused(variants: Sequence[VariantRuns], panels: Mapping[str, Panel]) -> list[str]:
    """Return a note on each variant with trainings that not every split has."""
    found = []
    for variant in variants:
        left = len(variant.tables) - len(panels[variant.name].tables) if variant.tables else 0
        if left:
            found.append(
                f"{variant.name}: {left} of {len(variant.tables)} runs are not counted, because not every split has "
                "a run with their seed."
            )
    return found


def _check_names(variants: Sequence[VariantRuns], pairs: Sequence[Pair]) -> None:
    names = [variant.name for variant in variants]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ScoreError(f"two variants are called {doubled[0]!r}; give each its own name")
    for _, first, second in pairs:
        unknown = next((name for name in (first, second) if name not in names), None)
        if unknown is not None:
            raise ScoreError(f"a comparison names {unknown!r}; known variants: {', '.join(names)}")


def _within_range(interval: Interval) -> Interval:
    """Return the interval of a share, which a t interval may leave."""
    return replace(interval, low=max(0.0, interval.low), high=min(1.0, interval.high))


def _tested(panels: dict[str, Panel], pair: Pair, level: float) -> Tested:
    family, first, second = pair
    return compare_panels((first, second), (panels[first], panels[second]), family=family, level=level)


def _variant(variant: VariantRuns, panel: Panel, level: float) -> VariantResult:
    values = panel.by_training
    several = len(values) > 1
    return VariantResult(
        name=variant.name,
        levels=variant.levels,
        changes=variant.changes,
        accuracy=panel.interval(level),
        seed_interval=_within_range(statistics.t_interval(values, level)) if several else None,
        sd=float(np.std(values, ddof=1)) if several else None,
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
    """Return further measures, means over cells; None where they mean nothing."""
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
    """Return what a constant guess would get: the share of the most frequent class, a mean over splits."""
    shares = [metrics.chance(panel.tables[split, panel.seeds[0]]) for split in panel.splits]
    return float(np.mean(shares))
