"""Computes the result of a study from the score tables of its variants: statistics, notes and answer."""

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
from two_stream.evaluation.scores.words import few_sources, interval_words, listed, more_data
from two_stream.runtime.provenance import code_version, environment
from two_stream.runtime.text import plural
from two_stream.studies.statistics.comparison import (
    ENOUGH_TRAININGS,
    Cell,
    Panel,
    class_means,
    compare_panels,
    correct_families,
    match_cells,
    panel_of,
)
from two_stream.studies.statistics.fusing import fusion_study
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
MANY_TESTS = 10
_ENVIRONMENT = {"torch": "torch", "cpu": "CPU", "device": "device", "gpu": "GPU", "two-stream": "code"}
"""Facts of `environment.json` that are compared, and their names in a note."""


@dataclass(frozen=True)
class VariantRuns:
    """The runs of a variant, as input of the statistics."""

    name: str
    levels: dict[str, str]
    """level of the variant for each factor of the study's grid"""
    changes: dict[str, Any]
    """`{dotted setting: value}` for the settings that differ from the study's base"""
    tables: dict[Cell, ScoreTable]
    """scores of the compared part by `(split, seed)`"""
    histories: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """rows of `metrics.jsonl` for each cell, with keys such as `split 1, seed 2`"""
    cost: VariantCost | None = None
    published: Published | None = None
    settings: str = ""
    """resolved settings of the variant's first cell, as YAML"""
    holdout: dict[Cell, ScoreTable] = field(default_factory=dict)
    """scores of the holdout part by `(split, seed)`, on which fusion weights are fitted"""
    baseline: bool = False
    """whether this is the baseline, which is not fused with other variants"""


@dataclass(frozen=True)
class Question:
    """The question of a study and its definition."""

    name: str
    question: str
    fusion_rule: str | None = None
    """rule for fusing each RGB variant with each flow variant; None for no fusion"""
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
        question: Name, question, fusion rule and level of the study.
        variants: The runs of the variants. Variants without scores, and their comparisons, are left out and mentioned
            in the notes.
        pairs: Comparisons as `(family, first, second)`.
        runs: The rows of the report's list of runs.
        notes: Further caveats, which come first.

    Raises:
        ScoreError: No variant has scores, two variants have the same name, a pair contains an unknown variant, or score
            tables do not join.
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
        remarks.append("The study requests a fusion, but only one variant has scores.")
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
        answer=_answer(comparisons, results, "mAP" if lead.multi_label else "top-1"),
        outlook=_outlook(comparisons),
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
        raise ScoreError(f"two variants have the same name, {doubled[0]!r}; use unique names")
    unknown = next((name for _, *both in pairs for name in both if name not in names), None)
    if unknown is not None:
        raise ScoreError(
            f"a comparison contains {unknown!r}, which is not a variant; known variants: {', '.join(names)}"
        )


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
        sources=panel.by_source(panel.hits),
    )


def _more(panel: Panel) -> dict[str, float | None]:
    """Return further metrics as means over cells; undefined metrics are None."""
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
    """Return the accuracy of a constant prediction: the fraction of the most frequent class, as a mean over splits."""
    shares = [metrics.chance(panel.tables[split, panel.seeds[0]]) for split in panel.splits]
    return float(np.mean(shares))


def _protocol(panels: Mapping[str, Panel], level: float) -> str:
    """Return one line on the data, the part, the views, the selection, the videos, the seeds and the interval."""
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
    videos = plural(round(lead.videos), "video") + (" per split" if several else "")
    parts.append(videos + (f" of {plural(lead.groups, 'source')}" if lead.groups is not None else ""))
    counts = sorted({len(panel.seeds) for panel in panels.values()})
    trainings = counts[-1] > 1
    parts.append(f"{'–'.join(map(str, counts))} training run{'s' if trainings else ''} each")
    parts.append(interval_words(lead.groups, lead.interval(level), level, trainings=trainings))
    return " · ".join(filter(None, parts))


def _unused(variants: Sequence[VariantRuns], panels: Mapping[str, Panel]) -> list[str]:
    """Return a note for each variant that has training runs whose seed does not occur in all splits."""
    found = []
    for variant in variants:
        left = len(variant.tables) - len(panels[variant.name].tables) if variant.tables else 0
        if left:
            found.append(
                f"{variant.name}: {left} of {len(variant.tables)} runs are not used, because their seeds do not "
                "occur in all splits."
            )
    return found


def _remarks(
    variants: Sequence[VariantRuns],
    panels: Mapping[str, Panel],
    pairs: Sequence[Pair],
    comparisons: Sequence[Comparison],
) -> list[str]:
    """Return the caveats of a study."""
    without = [variant.name for variant in variants if not variant.tables]
    found = [f"{name} has no scores, so it is missing in the tables and comparisons." for name in without]
    lost = [f"{one} – {two}" for _, one, two in pairs if one in without or two in without]
    if lost:
        found.append(f"Not compared, because scores are missing: {', '.join(lost)}.")
    found += [*_about_cells(panels), *_about_pairing(panels, comparisons), *_about_data(panels)]
    by_family = [comparison.family for comparison in comparisons]
    largest = max((by_family.count(family) for family in by_family), default=0)
    if largest > MANY_TESTS:
        found.append(
            f"{largest} comparisons are corrected together, so each test is strict and may miss real differences. "
            "Fewer comparisons would give more sensitive tests."
        )
    return found


def _about_cells(panels: Mapping[str, Panel]) -> list[str]:
    found = []
    single = [name for name, panel in panels.items() if len(panel.seeds) == 1]
    if single and len(single) == len(panels):
        found.append(
            "Each variant has only one training run: the intervals do not include the spread between runs, and "
            "another seed may reverse a difference."
        )
    elif single:
        found.append(
            f"Variants with only one training run, so that the spread between runs is unknown: "
            f"{', '.join(single)}."
        )
    if len({tuple(panel.seeds) for panel in panels.values()}) > 1:
        seeds = "; ".join(f"{name}: {', '.join(map(str, panel.seeds))}" for name, panel in panels.items())
        found.append(
            f"The variants have different seeds ({seeds}); each comparison uses the same number of "
            "training runs of both variants."
        )
    if len({tuple(panel.splits) for panel in panels.values()}) > 1:
        splits = "; ".join(f"{name}: {', '.join(map(str, panel.splits))}" for name, panel in panels.items())
        found.append(
            f"The variants cover different splits ({splits}); each comparison uses the splits that both "
            "variants have."
        )
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
    return [f"Variants without a common seed, whose training runs are paired in order: {', '.join(swapped)}."]


def _about_data(panels: Mapping[str, Panel]) -> list[str]:
    found = []
    lead = next(iter(panels.values()))
    found += few_sources(lead.units, lead.groups)
    if lead.groups is None:
        found.append(
            "The sources of the videos are unknown. Clips of the same source are treated as independent, so the "
            "intervals may be too narrow."
        )
    if "paper" in _distinct(panels, "selection"):
        found.append(
            "Test-selected: the checkpoints were selected on the test split, so the accuracies are optimistic."
        )
    for key, text in (
        ("protocol", "The runs were scored with different protocols"),
        ("precision", "The runs were scored with different precision"),
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
            f"{plural(len(skipped), 'video')} not counted, because of read errors: {', '.join(skipped[:3])}{more}."
        )
    return found


def _about_lists(panels: Mapping[str, Panel]) -> list[str]:
    """Return a note if runs of the same split were trained on different lists. Older runs do not record their lists."""
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
    """Return a note on differences between the machines and versions that trained the runs."""
    known = [facts for one in runs if one.run and (facts := environment_of(Path(one.run)))]
    found = []
    for key, label in _ENVIRONMENT.items():
        values = dict.fromkeys(facts[key].partition(":")[0] for facts in known if key in facts)  # cuda:1
        if len(values) > 1:
            found.append(f"{label} {' / '.join(values)}")
    return [f"The runs were trained in different environments: {'; '.join(found)}."] if found else []


def _distinct(panels: Mapping[str, Panel], key: str) -> list[str]:
    """Return the distinct values of a metadata entry in the score files."""
    tables = [table for panel in panels.values() for table in panel.tables.values()]
    return list(dict.fromkeys(str(table.meta[key]) for table in tables if table.meta.get(key) is not None))


def _answer(comparisons: Sequence[Comparison], variants: Sequence[VariantResult], metric: str) -> str:
    """Return which variants are best, which are not shown to differ from them, and which of these is the cheapest."""
    if not comparisons:
        return "Nothing was compared."
    if len(comparisons) == 1:
        return _sentence(comparisons[0].verdict)
    best = [variant.name for variant in variants if variant.best]
    value = next(variant.accuracy.value for variant in variants if variant.best)
    verb = "has" if len(best) == 1 else "have"
    shown = [comparison for comparison in comparisons if comparison.significant]
    if not shown:
        missed = [comparison.detectable for comparison in comparisons]
        start = (
            f"No difference shown in any of {len(comparisons)} comparisons; {listed(best)} {verb} the highest mean, "
            "which may be chance."
        )
        if min(missed) >= 1:
            return f"{start} With these data, not even a large difference could have been detected."
        low, high = (f"{100 * end:.1f}" for end in (min(missed), max(missed)))
        sizes = f"{low} points" if low == high else f"{low} to {high} points, by comparison,"
        return f"{start} Differences below about {sizes} would be missed here."
    base = {one.second for one in comparisons}
    if len(base) == 1 and not base & {*best}:
        (against,) = base
        where, kind = f"'{against}'", f"from '{against}'"
    else:
        against, where, kind = "", "the highest", "from the highest"
    higher: dict[str, float] = {}
    lower: dict[str, float] = {}
    equal: list[str] = []
    for variant in variants:
        own = [one for one in comparisons if variant.name in (one.first, one.second)]
        if against:
            own = [one for one in own if variant.name != against]
        else:
            own = [one for one in own if not variant.best and {one.first, one.second} & {*best}]
        if not own:
            continue
        nearest = min(own, key=lambda one: (one.significant, abs(one.difference.value)))
        if not nearest.significant:
            equal.append(variant.name)
        else:
            is_higher = (nearest.first == variant.name) == (nearest.difference.value > 0)
            (higher if is_higher else lower)[variant.name] = 100 * abs(nearest.difference.value)
    runs = "" if min(one.seeds for one in shown) >= ENOUGH_TRAININGS else " on these runs"
    sentences = [f"{listed(best)} {verb} the highest {metric}, {100 * value:.1f} %."]
    for word, found in (("Higher", higher), ("Lower", lower)):
        by_points: dict[str, list[str]] = {}
        for name, points in found.items():
            by_points.setdefault(f"{points:.1f}", []).append(name)
        parts = [f"{listed(names)} (by {points} points)" for points, names in by_points.items()]
        sentences += [f"{word} than {where}{runs}: {'; '.join(parts)}."] if parts else []
    sentences += [f"No difference {kind} shown: {listed(equal)}."] if equal else []
    if len(higher) > 1:
        sentences.append("These were not compared with each other.")
    if not against:
        pairs = [{one.first, one.second} for one in comparisons]
        compared = {name for pair in pairs if pair & {*best} for name in pair}
        other = [variant.name for variant in variants if variant.name not in compared and not variant.best]
        sentences += [f"Not compared with the highest: {listed(other)}."] if other else []
        rest = sum({one.first, one.second}.isdisjoint(best) for one in shown)
        sentences += [f"{plural(rest, 'further difference')} shown."] if rest else []
    return " ".join([*sentences, *_cheapest(variants, [*higher] if against else [*best, *equal])])


def _cheapest(variants: Sequence[VariantResult], names: Sequence[str]) -> list[str]:
    """Return a sentence on the cheapest of several variants; empty if costs are unknown or equal."""
    costs = {
        one.name: f"{one.cost.multiply_adds / 1e9:.3g}"
        for one in variants
        if one.cost is not None and one.name in names
    }
    if len(costs) < len(names) or len({*costs.values()}) < 2:
        return []
    least = min(costs.values(), key=float)
    cheapest = [name for name, cost in costs.items() if cost == least]
    return [f"The cheapest of these {len(names)}: {listed(cheapest)}, with {least} G multiply-adds."]


def _outlook(comparisons: Sequence[Comparison]) -> str:
    """Return a sentence on how much data would show a difference, for the comparison that requires the least data."""
    open_ = [one for one in comparisons if not one.significant and one.data_needed > 1]
    if not open_:
        return ""
    near = min(open_, key=lambda one: one.data_needed)
    what = f"a difference of {100 * abs(near.difference.value):.1f} points between {near.first} and {near.second}"
    return more_data(near.data_needed, what, near.groups, near.seeds)


def _sentence(verdict: str) -> str:
    """Return a verdict as a sentence; variant names keep their case."""
    starts_plain = verdict.startswith("no difference")
    return (verdict[0].upper() + verdict[1:] if starts_plain else verdict) + "."
