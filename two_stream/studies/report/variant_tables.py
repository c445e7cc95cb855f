"""The tables of a study's report, as text with what to sort by: every form of the report shows these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from two_stream.evaluation.scores.statistics import Interval
from two_stream.evaluation.scores.words import DASH, percent
from two_stream.studies.statistics.comparison import ENOUGH_TRAININGS
from two_stream.studies.statistics.results import Comparison, StudyResult, VariantCost, VariantResult

NO_DIFFERENCE = "no difference shown"


@dataclass(frozen=True)
class TableCell:
    """One cell: what is shown and what it sorts by."""

    text: str
    sort: float | str | None = None
    """None: sorts last"""
    strong: bool = False
    """significant"""
    shade: float | None = None
    """0 to 1: how deep the cell is coloured where a table is a heat map"""


@dataclass(frozen=True)
class Table:
    """A table whose first column names the row."""

    caption: str
    columns: list[str]
    numeric: list[bool]
    """by column"""
    rows: list[list[TableCell]]

    def filled(self) -> Table:
        """Return the table without columns that say nothing."""
        return self.only(
            [
                place
                for place in range(len(self.columns))
                if place == 0 or any(row[place].text not in ("", DASH) for row in self.rows)
            ]
        )

    def only(self, kept: Sequence[int]) -> Table:
        """Return the table with these columns, by number."""
        return Table(
            self.caption,
            [self.columns[place] for place in kept],
            [self.numeric[place] for place in kept],
            [[row[place] for place in kept] for row in self.rows],
        )


def number(value: float | None, digits: int = 1, scale: float = 1.0, *, signed: bool = False) -> TableCell:
    """Return a number as a cell; a dash for none."""
    if value is None:
        return TableCell(DASH)
    return TableCell(signed_text(value * scale, digits) if signed else f"{value * scale:,.{digits}f}", value)


def signed_text(value: float, digits: int = 1) -> str:
    """Return a number with its sign, a true minus; what rounds to nothing has a plus."""
    return f"{round(value, digits) + 0.0:+,.{digits}f}".replace("-", "−")


def p_text(p: float) -> str:
    """Return a p-value as it is written in papers."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def points_with_interval(gap: Interval) -> str:
    """Return a difference of shares with its interval in points."""
    ends = f"{signed_text(100 * gap.low)}, {signed_text(100 * gap.high)}" if gap.known else "unknown"
    return f"{signed_text(100 * gap.value)} [{ends}]"


def better_than_baseline(result: StudyResult) -> set[str]:
    """Return the variants that are significantly better than one they are compared with."""
    return {one.first for one in result.comparisons if one.significant and one.difference.value > 0}


def variants_table(result: StudyResult) -> Table:
    """Return a row per variant: accuracy, what the tests say, and cost. Bold is only what is significantly better."""
    better = better_than_baseline(result)
    seconds = {one.second for one in result.comparisons}
    against = f"against {next(iter(seconds))} (points)" if len(seconds) == 1 else "compared (points)"
    more = list(dict.fromkeys(key for variant in result.variants for key in variant.more))
    level = f"{100 * result.level:g} %"
    makers: list[tuple[str, bool, Callable[[VariantResult], TableCell]]] = [
        ("variant", False, lambda one: TableCell(one.name, one.name, one.name in better)),
        (
            f"{result.metric} (%) [{level}]",
            True,
            lambda one: TableCell(percent(one.accuracy), one.accuracy.value, one.name in better),
        ),
        ("sd over seeds", True, lambda one: number(one.sd, 1, 100)),
        (against, True, lambda one: _against(one.name, result.comparisons, named=len(seconds) > 1)),
        ("verdict", False, lambda one: _verdict(one.name, result.comparisons)),
        ("published (%)", True, lambda one: number(one.published.value if one.published else None, 1, 100)),
        *((f"{key}{_unit(key)}", True, _other(key)) for key in more),
        (f"seeds alone [{level}]", True, _seeds),
        ("M parameters", True, _of_cost(lambda cost: cost.parameters, 2, 1e-6)),
        ("G multiply-adds per view", True, _of_cost(lambda cost: cost.multiply_adds, 3, 1e-9)),
        ("views", True, _of_cost(lambda cost: cost.views, 0)),
        ("ms per view", True, _of_cost(lambda cost: cost.latency_ms, 1)),
        ("MiB", True, _of_cost(lambda cost: cost.memory_mib, 0)),
    ]
    return Table(
        _variants_caption(result, level),
        [label for label, _, _ in makers],
        [numeric for _, numeric, _ in makers],
        [[make(variant) for _, _, make in makers] for variant in result.variants],
    ).filled()


def paper_table(result: StudyResult) -> Table:
    """Return the variants with the few columns that fit on a printed page."""
    table = variants_table(result)
    aside = {
        *(f"{key}{_unit(key)}" for one in result.variants for key in one.more),
        "views",
        "ms per view",
        "MiB",
    }
    kept = [
        place
        for place, label in enumerate(table.columns)
        if label not in aside and not label.startswith("seeds alone")
    ]
    level = f"{100 * result.level:g} %"
    bold = " Bold: significantly better than what it is compared with." if result.comparisons else ""
    return replace(table.only(kept), caption=f"Brackets hold {level} intervals.{bold} {result.protocol}.")


def _variants_caption(result: StudyResult, level: str) -> str:
    parts = [f"Brackets hold {level} intervals."]
    if result.comparisons:
        parts.append("Bold: significantly better than what it is compared with, after Holm's correction.")
    best = [one.name for one in result.variants if one.best]
    if best and len(result.variants) > 1:
        parts.append(f"Highest mean: {', '.join(best)}.")
    if result.metric == "top-1":
        parts.append(f"Always guessing the most frequent class: {percent(result.chance)} %.")
    if any(one.seed_interval for one in result.variants):
        parts.append("Seeds alone: interval of the mean over trainings, on these very videos.")
    devices = sorted({one.cost.device for one in result.variants if one.cost and one.cost.device})
    if devices:
        parts.append(f"Time and memory of the forward pass of one view on {', '.join(devices)}.")
    sources = sorted({one.published.source for one in result.variants if one.published})
    if sources:
        parts.append(f"Published: {'; '.join(sources)}.")
    return " ".join(parts)


def _seeds(one: VariantResult) -> TableCell:
    found = one.seed_interval
    if found is None:
        return TableCell(DASH)
    return TableCell(f"[{percent(found.low)}, {percent(found.high)}]", found.low)


def _unit(key: str) -> str:
    return "" if "(" in key else " (%)"


def _other(key: str) -> Callable[[VariantResult], TableCell]:
    return lambda one: number(one.more.get(key), 1, 100)


def _of_cost(
    read: Callable[[VariantCost], float | None], digits: int, scale: float = 1.0
) -> Callable[[VariantResult], TableCell]:
    return lambda one: number(read(one.cost) if one.cost else None, digits, scale)


def _against(name: str, comparisons: Sequence[Comparison], *, named: bool) -> TableCell:
    own = [one for one in comparisons if one.first == name]
    if not own:
        return (
            TableCell("baseline", 0.0) if any(one.second == name for one in comparisons) else TableCell(DASH)
        )
    first = own[0]
    text = signed_text(100 * first.difference.value) + (f" to {first.second}" if named else "")
    more = f" (+ {len(own) - 1} below)" if len(own) > 1 else ""
    return TableCell(text + more, first.difference.value, _better(own[:1]))


def _verdict(name: str, comparisons: Sequence[Comparison]) -> TableCell:
    own = [one for one in comparisons if one.first == name][:1]
    text = comparison_words(own[0]) if own else ""
    return TableCell(text or DASH, text or None, _better(own))


def _better(comparisons: Sequence[Comparison]) -> bool:
    return any(one.significant and one.difference.value > 0 for one in comparisons)


def comparison_words(comparison: Comparison) -> str:
    """Return what a comparison allows to be said of its first variant, in a few words."""
    if not comparison.significant:
        return NO_DIFFERENCE
    word = "better" if comparison.difference.value > 0 else "worse"
    if comparison.seeds < ENOUGH_TRAININGS:
        word = f"{'higher' if word == 'better' else 'lower'} on these runs"
    return f"{word} (p {_p_with_sign(comparison.p_holm)})"


def _p_with_sign(p: float) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def comparisons_table(result: StudyResult) -> Table:
    """Return a row per comparison, first minus second; bold where the difference is significant."""
    families = len({one.family for one in result.comparisons}) > 1
    counted = result.metric == "top-1"  # a difference of mAP is no number of clips
    columns = [
        ("first − second", False),
        ("family", False),
        ("points [95 %]", True),
        ("clips", True),
        ("p", True),
        ("p, Holm", True),
        ("only first : only second", True),
        ("detectable (points)", True),
        ("detectable (clips)", True),
        ("verdict", False),
    ]
    rows = []
    for one in result.comparisons:
        gap = one.difference
        name = f"{one.first} − {one.second}"
        discordant = (
            sum(test.first_only for test in one.mcnemar),
            sum(test.second_only for test in one.mcnemar),
        )
        rows.append(
            [
                TableCell(name, name, one.significant),
                TableCell(one.family if families else DASH, one.family),
                TableCell(points_with_interval(gap), gap.value, one.significant),
                number(one.clips if counted else None, 1, signed=True),
                TableCell(p_text(one.p), one.p),
                TableCell(p_text(one.p_holm), one.p_holm, one.significant),
                TableCell(f"{discordant[0]} : {discordant[1]}", float(discordant[0] - discordant[1]))
                if one.mcnemar
                else TableCell(DASH),
                number(one.detectable, 1, 100),
                number(one.detectable_clips if counted else None, 0),
                TableCell(comparison_words(one), comparison_words(one), one.significant),
            ]
        )
    tests = sorted({one.test for one in result.comparisons})
    caption = (
        f"Test: {'; '.join(tests)}. Detectable: the smallest true difference found here with 80 % probability. "
        "Only first : only second counts, over all runs, the videos that one of the two alone gets right."
    )
    if not any(one.mcnemar for one in result.comparisons):
        caption = caption.partition(" Only first")[0]
    labels = [label.replace("95", f"{100 * result.level:g}") for label, _ in columns]
    return Table(caption, labels, [numeric for _, numeric in columns], rows).filled()


def mcnemar_table(result: StudyResult) -> Table:
    """Return the exact McNemar test of every cell that two variants share."""
    rows = [
        [
            TableCell(f"{one.first} − {one.second}", f"{one.first} − {one.second}"),
            TableCell(test.cell, test.cell),
            number(test.first_only, 0),
            number(test.second_only, 0),
            TableCell(p_text(test.p), test.p),
        ]
        for one in result.comparisons
        for test in one.mcnemar
    ]
    return Table(
        "Exact two-sided McNemar tests of single runs, uncorrected.",
        ["first − second", "runs", "only first right", "only second right", "p"],
        [False, False, True, True, True],
        rows,
    )
