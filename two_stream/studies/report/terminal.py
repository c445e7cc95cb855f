"""The tables of a study at the terminal."""

from __future__ import annotations

from two_stream.evaluation.scores.words import DASH, difference_in_points, percent
from two_stream.runtime.console import console, say, table
from two_stream.studies.statistics.comparison import ENOUGH_TRAININGS, p_text
from two_stream.studies.statistics.results import Comparison, FusionResult, StudyResult, VariantResult

VARIANT_COLUMNS = ("variant", "accuracy [interval]", "sd over seeds", "seeds", "splits", "published")
PAIR_COLUMNS = ("first – second", "difference [interval]", "clips", "p", "p (Holm)", "verdict")
FUSION_COLUMNS = ("streams", "accuracy [interval]", "gain over the better", "agreement", "oracle")
SHOWN, NOT_SHOWN = "difference", "no difference shown"


def variant_rows(result: StudyResult) -> list[list[str]]:
    """Return a row per variant, in per cent."""
    return [_variant(variant) for variant in result.variants]


def _variant(variant: VariantResult) -> list[str]:
    published = variant.published
    return [
        variant.name,
        percent(variant.accuracy),
        percent(variant.sd),
        str(len(variant.seeds)),
        ", ".join(map(str, variant.splits)),
        DASH if published is None else f"{percent(published.value)} ({published.source})",
    ]


def pair_rows(result: StudyResult) -> list[list[str]]:
    """Return a row per comparison."""
    return [_pair(comparison) for comparison in result.comparisons]


def _pair(comparison: Comparison) -> list[str]:
    return [
        f"{comparison.first} – {comparison.second}",
        difference_in_points(comparison.difference),
        f"{comparison.clips:+.1f}" if comparison.mcnemar else DASH,
        p_value(comparison.p),
        p_value(comparison.p_holm),
        _said(comparison),
    ]


def _said(comparison: Comparison) -> str:
    if not comparison.significant:
        return NOT_SHOWN
    return SHOWN if comparison.seeds >= ENOUGH_TRAININGS else f"{SHOWN} on these runs"


def fusion_rows(fusion: FusionResult) -> list[list[str]]:
    """Return a row per fused pair, then the fusion of all streams where there are more than two."""
    found = [
        [
            f"{pair.first} + {pair.second}",
            percent(pair.accuracy),
            f"{difference_in_points(pair.gain)} over {pair.better}",
            percent(pair.agreement),
            percent(pair.oracle),
        ]
        for pair in fusion.pairs
    ]
    if len(fusion.streams) > 2:
        found.append(["all streams", percent(fusion.all_streams), DASH, DASH, percent(fusion.oracle)])
    return found


def fusion_lines(fusion: FusionResult) -> list[str]:
    """Return what each stream adds, and the weights found on the holdout part."""
    found = [
        f"{part.stream} adds {difference_in_points(part.difference)} points to the fusion of all, "
        f"{p_text(part.p_holm)} after correction"
        for part in fusion.contributions
    ]
    if fusion.weights:
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in fusion.weights.items())
        found.append(f"weights {weights}, found on {fusion.fitted_on}: {percent(fusion.tuned)} %")
    return found


def p_value(p: float) -> str:
    """Return a p value with three decimals, never as 0."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def print_study(result: StudyResult) -> None:
    """Print what a study says."""
    console.print(table(f"{result.metric} in %", VARIANT_COLUMNS, variant_rows(result)))
    if result.comparisons:
        console.print(table("differences in points", PAIR_COLUMNS, pair_rows(result)))
    if result.fusion is not None:
        console.print(table(f"fusion ({result.fusion.rule})", FUSION_COLUMNS, fusion_rows(result.fusion)))
        for line in fusion_lines(result.fusion):
            say(line)
    say(result.protocol)
    for text in result.notes:
        say(f"note: {text}")
    for comparison in result.comparisons:
        say(comparison.verdict)
