"""Tables of a study, for the page, the Markdown and LaTeX files and the terminal; CSV files are written separately."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any, Literal

from two_stream.config.load import departures, parse_yaml, validate_settings
from two_stream.config.schema import Experiment
from two_stream.config.study import SEPARATOR
from two_stream.errors import SettingsError
from two_stream.evaluation.scores.statistics import Interval
from two_stream.evaluation.scores.words import DASH, Table, TableCell, difference_in_points, percent
from two_stream.runtime.console import console, say, table
from two_stream.runtime.text import csv_text, signed_number
from two_stream.studies.statistics.comparison import ENOUGH_TRAININGS, p_text
from two_stream.studies.statistics.results import (
    Comparison,
    FusedPair,
    FusionResult,
    StudyResult,
    VariantCost,
    VariantResult,
    Xray,
    XrayRow,
)

Form = Literal["page", "paper", "terminal"]
NO_DIFFERENCE = "no difference shown"
_PER_RUN = ("name", "runs", "seed", "data.split")
"""Settings that differ between the runs of a variant."""
_VARIANTS = 6
"""Largest number of variants in one table of settings; more variants get further tables."""


Column = tuple[str, bool, Callable[[Any], TableCell]]
"""Label of a column, whether the column is numeric, and a function that returns the cell of an item."""


def _table(caption: str, items: Iterable[Any], columns: Sequence[Column]) -> Table:
    """Return a table with one row for each item."""
    labels, numeric, cells = zip(*columns, strict=True)
    return Table(caption, list(labels), list(numeric), [[cell(item) for cell in cells] for item in items])


def _text(text: str, strong: bool = False) -> TableCell:
    return TableCell(text, text, strong)


def number(value: float | None, digits: int = 1, scale: float = 1.0, *, signed: bool = False) -> TableCell:
    """Return a cell with a number; a dash for None."""
    if value is None:
        return TableCell(DASH)
    return TableCell(
        signed_number(value * scale, digits) if signed else f"{value * scale:,.{digits}f}", value
    )


def _p(p: float, strong: bool = False) -> TableCell:
    return TableCell(p_text(p), p, strong)


def _points(gap: Interval, strong: bool) -> TableCell:
    """Return a cell with a difference of fractions and its interval, in percentage points."""
    ends = f"{signed_number(100 * gap.low)}, {signed_number(100 * gap.high)}" if gap.known else "unknown"
    return TableCell(f"{signed_number(100 * gap.value)} [{ends}]", gap.value, strong)


def better_variants(result: StudyResult) -> set[str]:
    """Return the variants that are significantly better than the variant they are compared with."""
    return {one.first for one in result.comparisons if _is_better(one)}


def _is_better(comparison: Comparison) -> bool:
    return comparison.significant and comparison.difference.value > 0


def variants_table(result: StudyResult, form: Form = "page") -> Table:
    """Return a table with the results of each variant. Only significantly better variants are bold.

    The form `page` has all metrics but no costs (see `costs_table`), `paper` has the columns that fit a page of LaTeX,
    and `terminal` has only the accuracies, with the seeds and splits if their number differs between variants.
    """
    better = better_variants(result)
    seconds = {one.second for one in result.comparisons}
    against = f"against {next(iter(seconds))} (points)" if len(seconds) == 1 else "compared (points)"
    more = list(dict.fromkeys(key for variant in result.variants for key in variant.more))
    level = f"{100 * result.level:g} %"

    def accuracy(one: VariantResult) -> TableCell:
        return TableCell(percent(one.accuracy), one.accuracy.value, one.name in better)

    def published(one: VariantResult) -> TableCell:
        cell = number(one.published.value if one.published else None, 1, 100)
        if one.published is None or form != "terminal":
            return cell
        return replace(cell, text=f"{cell.text} ({one.published.source})")

    def differing(key: Literal["seeds", "splits"]) -> Collection[str]:
        """Return the forms with a column for `key`; none if the protocol line shows the number for all variants."""
        return ("terminal",) if len({len(getattr(one, key)) for one in result.variants}) > 1 else ()

    on_page, on_both, everywhere = ("page",), ("page", "paper"), ("page", "paper", "terminal")
    columns: list[tuple[Collection[str], Column]] = [
        (everywhere, ("variant", False, lambda one: _text(one.name, one.name in better))),
        (on_both, ("verdict", False, lambda one: _verdict(one.name, result.comparisons))),
        (everywhere, (f"{result.metric} (%) [{level}]", True, accuracy)),
        (everywhere, ("sd over seeds", True, lambda one: number(one.sd, 1, 100))),
        (differing("seeds"), ("seeds", True, lambda one: number(len(one.seeds), 0))),
        (differing("splits"), ("splits", True, lambda one: _text(", ".join(map(str, one.splits))))),
        (on_both, (against, True, lambda one: _against(one.name, result.comparisons, seconds))),
        (everywhere, ("published (%)", True, published)),
        *[(on_page, (key if "(" in key else f"{key} (%)", True, _other(key))) for key in more],
        (on_page, (f"seeds alone [{level}]", True, _seeds)),
        (("paper",), ("M parameters", True, _cost(lambda cost: cost.parameters, 2, 1e-6))),
        (("paper",), ("G multiply-adds per view", True, _cost(lambda cost: cost.multiply_adds, 3, 1e-9))),
    ]
    caption = _paper_caption(result, level) if form == "paper" else _variants_caption(result, level)
    return _table(caption, result.variants, [column for forms, column in columns if form in forms]).filled()


def costs_table(result: StudyResult) -> Table:
    """Return a table with the costs of each variant; a cost that is equal for all variants is only in the caption."""
    variants = [one for one in result.variants if one.cost is not None]
    columns: list[Column] = [
        ("variant", False, lambda one: _text(one.name)),
        ("M parameters", True, _cost(lambda cost: cost.parameters, 2, 1e-6)),
        ("G multiply-adds per view", True, _cost(lambda cost: cost.multiply_adds, 3, 1e-9)),
        ("views", True, _cost(lambda cost: cost.views, 0)),
        ("ms per view", True, _cost(lambda cost: cost.latency_ms, 1)),
        ("MiB", True, _cost(lambda cost: cost.memory_mib, 0)),
    ]
    table = _table("", variants, columns).filled()
    texts = {label: {row[place].text for row in table.rows} for place, label in enumerate(table.columns)}
    same = [label for label in table.columns[1:] if len(texts[label]) == 1 and len(table.rows) > 1]
    parts = (
        [f"All variants: {', '.join(f'{next(iter(texts[label]))} {label}' for label in same)}."]
        if same
        else []
    )
    devices = sorted({one.cost.device for one in variants if one.cost and one.cost.device})
    if devices:
        parts.append(f"Latency and memory: forward pass of one view on {', '.join(devices)}.")
    return replace(table.only({*table.columns} - {*same}), caption=" ".join(parts))


def _paper_caption(result: StudyResult, level: str) -> str:
    bold = " Bold: significantly better than the variant it is compared with." if result.comparisons else ""
    return f"Brackets contain {level} intervals.{bold} {result.protocol}."


def _variants_caption(result: StudyResult, level: str) -> str:
    parts = [f"Brackets contain {level} intervals."]
    if result.comparisons:
        parts.append(
            "Bold: significantly better than the variant it is compared with, after Holm's correction."
        )
    best = [one.name for one in result.variants if one.best]
    if best and len(result.variants) > 1:
        parts.append(f"Highest mean: {', '.join(best)}.")
    if result.metric == "top-1":
        parts.append(f"Always guessing the most frequent class: {percent(result.chance)} %.")
    if any(one.seed_interval for one in result.variants):
        parts.append("Seeds alone: interval of the mean over training runs, for exactly these videos.")
    sources = sorted({one.published.source for one in result.variants if one.published})
    if sources:
        parts.append(f"Published: {'; '.join(sources)}.")
    return " ".join(parts)


def _seeds(one: VariantResult) -> TableCell:
    found = one.seed_interval
    if found is None:
        return TableCell(DASH)
    return TableCell(f"[{percent(found.low)}, {percent(found.high)}]", found.low)


def _other(key: str) -> Callable[[VariantResult], TableCell]:
    return lambda one: number(one.more.get(key), 1, 100)


def _cost(
    read: Callable[[VariantCost], float | None], digits: int, scale: float = 1.0
) -> Callable[[VariantResult], TableCell]:
    return lambda one: number(read(one.cost) if one.cost else None, digits, scale)


def _against(name: str, comparisons: Sequence[Comparison], seconds: Collection[str]) -> TableCell:
    own = [one for one in comparisons if one.first == name]
    if not own:
        return TableCell("baseline", 0.0) if name in seconds else TableCell(DASH)
    first = own[0]
    text = signed_number(100 * first.difference.value) + (f" to {first.second}" if len(seconds) > 1 else "")
    more = f" (+ {len(own) - 1} below)" if len(own) > 1 else ""
    return TableCell(text + more, first.difference.value, _is_better(first))


def _verdict(name: str, comparisons: Sequence[Comparison]) -> TableCell:
    own = next((one for one in comparisons if one.first == name), None)
    return TableCell(DASH) if own is None else _text(short_verdict(own), _is_better(own))


def short_verdict(comparison: Comparison) -> str:
    """Return a short verdict on the first variant of a comparison."""
    if not comparison.significant:
        return NO_DIFFERENCE
    better, worse = ("better", "worse") if comparison.seeds >= ENOUGH_TRAININGS else ("higher", "lower")
    word = better if comparison.difference.value > 0 else worse
    where = "" if comparison.seeds >= ENOUGH_TRAININGS else " on these runs"
    return f"{word}{where} (p {p_text(comparison.p_holm, sign=True)})"


def comparisons_table(result: StudyResult, form: Form = "page") -> Table:
    """Return a table of the comparisons (first minus second). Significant differences are bold."""
    families = len({one.family for one in result.comparisons}) > 1
    counted = result.metric == "top-1"  # a difference of mAP is not a number of clips

    def p_values(one: Comparison) -> TableCell:
        plain, corrected = p_text(one.p), p_text(one.p_holm)
        text = plain if plain == corrected else f"{plain} ({corrected})"
        return TableCell(text, one.p_holm, one.significant)

    def detectable(one: Comparison) -> TableCell:
        if one.detectable >= 1:
            return TableCell("none", 1.0)
        clips = f" ({one.detectable_clips})" if counted else ""
        return TableCell(f"{100 * one.detectable:.1f}{clips}", one.detectable)

    columns: list[Column] = [
        ("first − second", False, lambda one: _text(f"{one.first} − {one.second}", one.significant)),
        ("verdict", False, lambda one: _text(short_verdict(one), one.significant)),
        (f"points [{100 * result.level:g} %]", True, lambda one: _points(one.difference, one.significant)),
        ("p (Holm)", True, p_values),
        ("clips", True, lambda one: number(one.clips if counted else None, 1, signed=True)),
        (f"detectable{' (clips)' if counted else ''}", True, detectable),
        ("family", False, lambda one: TableCell(one.family if families else DASH, one.family)),
    ]
    tests = sorted({one.test for one in result.comparisons})
    caption = (
        f"Test: {'; '.join(tests)}. p (Holm): the p value, and in brackets the value after Holm's correction if it "
        "differs. Detectable: the smallest true difference, in points, that would be found with 80 % probability."
    )
    table = _table(caption, result.comparisons, columns).filled()
    page_only = ("family", "detectable", "detectable (clips)")
    return table if form == "page" else table.only(set(table.columns) - set(page_only))


def _discordant(one: Comparison) -> tuple[int, int]:
    return sum(test.first_only for test in one.mcnemar), sum(test.second_only for test in one.mcnemar)


def mcnemar_table(result: StudyResult) -> Table:
    """Return a table of exact McNemar tests for all runs that two variants have in common."""
    return _table(
        "Exact two-sided McNemar tests of single runs, uncorrected.",
        [(one, test) for one in result.comparisons for test in one.mcnemar],
        [
            ("first − second", False, lambda item: _text(f"{item[0].first} − {item[0].second}")),
            ("runs", False, lambda item: _text(item[1].cell)),
            ("only first right", True, lambda item: number(item[1].first_only, 0)),
            ("only second right", True, lambda item: number(item[1].second_only, 0)),
            ("p", True, lambda item: _p(item[1].p)),
        ],
    )


def fusion_matrix(fusion: FusionResult) -> Table:
    """Return a table with the fused accuracy and the gain for each RGB stream (rows) and flow stream (columns)."""
    firsts = list(dict.fromkeys(pair.first for pair in fusion.pairs))
    seconds = list(dict.fromkeys(pair.second for pair in fusion.pairs))
    found = {(pair.first, pair.second): pair for pair in fusion.pairs}
    values = [pair.accuracy.value for pair in fusion.pairs]
    low, high = min(values), max(values)

    def fused(pair: FusedPair | None) -> TableCell:
        if pair is None:
            return TableCell(DASH)
        text = f"{percent(pair.accuracy.value)} ({signed_number(100 * pair.gain.value)})"
        shade = (pair.accuracy.value - low) / (high - low) if high > low else 0.0
        return TableCell(text, pair.accuracy.value, pair.gain.low > 0, shade)

    return Table(
        f"Rule {fusion.rule}: accuracy (%) of each fused pair, with the gain over the better stream (points) in "
        "brackets. Bold: the interval of the gain is above 0.",
        ["", *seconds],
        [False] + [True] * len(seconds),
        [[_text(one), *(fused(found.get((one, two))) for two in seconds)] for one in firsts],
    )


def pairs_table(fusion: FusionResult) -> Table:
    """Return a table of the fused pairs with their intervals."""
    return _table(
        "Gain: fused accuracy minus the accuracy of the better stream, paired. Agreement: videos for which both "
        "streams predict the same class. Oracle: videos that at least one of the two streams gets right.",
        fusion.pairs,
        [
            ("streams", False, lambda pair: _text(f"{pair.first} + {pair.second}", pair.gain.low > 0)),
            ("fused (%)", True, lambda pair: TableCell(percent(pair.accuracy), pair.accuracy.value)),
            ("better alone", False, lambda pair: _text(pair.better)),
            ("gain (points)", True, lambda pair: _points(pair.gain, pair.gain.low > 0)),
            ("agreement (%)", True, lambda pair: number(pair.agreement, 1, 100)),
            ("oracle (%)", True, lambda pair: number(pair.oracle, 1, 100)),
        ],
    )


def contributions_table(result: StudyResult) -> Table:
    """Return a table of the contribution of each stream to the fusion of all streams."""
    fusion = result.fusion
    assert fusion is not None
    level, weights = 1 - result.level, fusion.weights
    source = f" Weights were found on {fusion.fitted_on}." if weights and fusion.fitted_on else ""
    return _table(
        f"Difference between the fusion of all streams and the fusion without this stream.{source}",
        fusion.contributions,
        [
            ("stream", False, lambda one: _text(one.stream, one.p_holm < level)),
            ("adds (points)", True, lambda one: _points(one.difference, one.p_holm < level)),
            ("p", True, lambda one: _p(one.p)),
            ("p, Holm", True, lambda one: _p(one.p_holm, one.p_holm < level)),
            ("weight", True, lambda one: number(weights.get(one.stream), 2)),
        ],
    ).filled()


def agreement_table(fusion: FusionResult) -> Table:
    """Return a table of the percentage of videos for which two streams predict the same class."""
    return Table(
        "Videos (%) for which two streams predict the same class.",
        ["", *fusion.streams],
        [False] + [True] * len(fusion.streams),
        [
            [_text(name), *(number(value, 0, 100) for value in shares)]
            for name, shares in zip(fusion.streams, fusion.agreement)
        ],
    )


def settings_tables(result: StudyResult) -> list[Table]:
    """Return tables of the settings that differ between variants, with a few variants in each table."""
    differing = differing_settings(result)
    if not differing:
        return []
    names = list(next(iter(differing.values())))
    parts = [names[start : start + _VARIANTS] for start in range(0, len(names), _VARIANTS)]
    return [
        Table(
            "A dash: the variant has no such setting; null: the setting is not set.",
            ["setting", *part],
            [False] * (1 + len(part)),
            [[_text(key), *(TableCell(own[name]) for name in part)] for key, own in differing.items()],
        )
        for part in parts
    ]


def differing_settings(result: StudyResult) -> dict[str, dict[str, str]]:
    """Return `{setting: {variant: value}}` for settings that differ; a dash means that a variant lacks the setting.

    Variants with unknown settings are left out. Settings that only some variants have are left out if all these
    variants use the default.
    """
    flat: dict[str, dict[str, str]] = {}
    chosen: set[str] = set()
    for variant in result.variants:
        if variant.name in result.settings:
            mapping = parse_yaml(result.settings[variant.name], variant.name)
            flat[variant.name] = flat_settings(mapping)
            chosen |= not_default(mapping)
        elif not result.settings:
            flat[variant.name] = {key: _plain(value) for key, value in variant.changes.items()}
            chosen |= flat[variant.name].keys()
    return differing_values(flat, chosen)


def differing_values(
    flat: Mapping[str, Mapping[str, str]], chosen: Collection[str]
) -> dict[str, dict[str, str]]:
    """Return the settings that differ, as in `differing_settings`.

    `flat` contains the settings of each run or variant, and `chosen` those that are not the default in at
    least one of them.
    """
    found = {}
    for key in dict.fromkeys(key for values in flat.values() for key in values):
        own = {name: values.get(key, DASH) for name, values in flat.items()}
        different = set(own.values())
        if key not in _PER_RUN and len(different) > 1 and (key in chosen or len(different - {DASH}) > 1):
            found[key] = own
    return found


def not_default(mapping: dict[str, Any]) -> set[str]:
    """Return the settings that differ from their defaults; all settings if this version cannot read them."""
    try:
        return set(flat_settings(departures(validate_settings(Experiment, mapping, "settings"))))
    except SettingsError:
        return set(flat_settings(mapping))


def flat_settings(value: object, prefix: str = "") -> dict[str, str]:
    """Return nested settings as `{dotted key: text of the value}`."""
    if not isinstance(value, Mapping):
        return {prefix: _plain(value)}
    found: dict[str, str] = {}
    for key, inner in value.items():
        found |= flat_settings(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)


def runs_table(result: StudyResult) -> Table:
    """Return a table of the runs. If all run folders have the same parent folder, only the caption shows it."""
    parents = {str(PurePath(one.run).parent) for one in result.runs if one.run}
    shared = len(parents) == 1

    def cut(text: str, shown: str) -> TableCell:
        return TableCell(shown or DASH, text or None)

    return _table(
        ("Key: hash of resolved settings, code and data. " if any(one.key for one in result.runs) else "")
        + "Model: SHA-256 of the weights."
        + (f" Folders are in {parents.pop()}." if shared else ""),
        result.runs,
        [
            ("variant", False, lambda one: _text(one.variant)),
            ("split", True, lambda one: number(one.split, 0)),
            ("seed", True, lambda one: TableCell(str(one.seed), float(one.seed))),
            ("state", False, lambda one: _text(one.state, one.state != "done")),
            (f"{result.metric} (%)", True, lambda one: number(one.accuracy, 1, 100)),
            ("seconds", True, lambda one: number(one.seconds, 0)),
            ("key", False, lambda one: cut(one.key, one.key[:12])),
            ("model", False, lambda one: cut(one.model_sha256, one.model_sha256[:12])),
            ("folder", False, lambda one: cut(one.run, PurePath(one.run).name if shared else one.run)),
            ("why it failed", False, lambda one: cut(one.reason, " ".join(one.reason.split()))),
        ],
    ).filled()


def variants_csv(result: StudyResult) -> str:
    """Return the variants as CSV. Accuracies are fractions (0 to 1), and unknown values are empty."""
    better = better_variants(result)
    more = list(dict.fromkeys(key for variant in result.variants for key in variant.more))
    metric = result.metric.replace("-", "").lower()
    header = ["variant", metric, f"{metric}_low", f"{metric}_high", "sd", "seeds_low", "seeds_high"]
    header += ["seeds", "splits", *more]
    header += ["parameters", "multiply_adds_per_view", "views", "latency_ms", "memory_mib"]
    header += ["published", "published_source", "significantly_better", "best"]
    rows: list[list[object]] = []
    for one in result.variants:
        cost, published, alone = one.cost, one.published, one.seed_interval
        row: list[object] = [one.name, one.accuracy.value, one.accuracy.low, one.accuracy.high, one.sd]
        row += [alone.low, alone.high] if alone else [None] * 2
        row += [" ".join(map(str, one.seeds)), " ".join(map(str, one.splits)), *map(one.more.get, more)]
        row += (
            [cost.parameters, cost.multiply_adds, cost.views, cost.latency_ms, cost.memory_mib]
            if cost
            else [None] * 5
        )
        row += [published.value, published.source] if published else [None] * 2
        rows.append([*row, int(one.name in better), int(one.best)])
    return csv_text(header, rows)


def xray_table(result: StudyResult, form: Form = "page") -> Table:
    """Return a table of the scores under each change of the clips; significant differences are bold."""
    assert result.xray is not None
    several = len(result.xray.findings) > 1

    def name(one: XrayRow) -> TableCell:
        return _text(f"{one.network}{SEPARATOR}{one.change}" if several else one.change, one.significant)

    columns: list[Column] = [
        ("clips", False, name),
        (f"{result.metric} (%) [{100 * result.level:g} %]", True, lambda one: _text(percent(one.accuracy))),
        (
            "points",
            True,
            lambda one: _points(one.difference, one.significant) if one.difference else TableCell(""),
        ),
        (
            "p (Holm)",
            True,
            lambda one: TableCell("") if one.p_holm is None else _p(one.p_holm, one.significant),
        ),
        ("same prediction (%)", True, lambda one: number(one.same, 1, 100)),
    ]
    caption = (
        "Points: the difference from the natural clips of the same videos. Same prediction: the share of videos whose "
        "prediction is that of the natural clips."
    )
    table = _table(caption, result.xray.rows, columns)
    return table if form == "page" else table.only(table.columns[:4])


def xray_csv(xray: Xray) -> str:
    """Return the scores under each change as CSV. Accuracies and differences are fractions."""
    header = [
        "network",
        "change",
        "accuracy",
        "low",
        "high",
        "difference",
        "difference_low",
        "difference_high",
    ]
    header += ["p_holm", "significant", "same_prediction"]
    rows: list[list[object]] = []
    for one in xray.rows:
        gap = one.difference
        row: list[object] = [one.network, one.change, one.accuracy.value, one.accuracy.low, one.accuracy.high]
        row += [gap.value, gap.low, gap.high] if gap else [None] * 3
        rows.append([*row, one.p_holm, int(one.significant), one.same])
    return csv_text(header, rows)


def comparisons_csv(result: StudyResult) -> str:
    """Return the comparisons as CSV. Differences are fractions (-1 to 1), first minus second."""
    header = ["first", "second", "family", "difference", "low", "high", "clips", "p", "p_holm", "test"]
    header += ["significant", "mcnemar_first_only", "mcnemar_second_only"]
    header += ["detectable", "detectable_clips", "videos", "groups", "seeds", "verdict"]
    rows: list[list[object]] = []
    for one in result.comparisons:
        gap = one.difference
        row: list[object] = [one.first, one.second, one.family, gap.value, gap.low, gap.high, one.clips]
        row += [one.p, one.p_holm, one.test, int(one.significant)]
        row += _discordant(one) if one.mcnemar else [None] * 2
        row += [one.detectable, one.detectable_clips, one.videos, one.groups, one.seeds, one.verdict]
        rows.append(row)
    return csv_text(header, rows)


_NETWORKS = 3
"""Largest number of networks whose X-ray is printed; more of them are only in the report."""
_NAMES = 8
"""Largest number of settings that are listed in one line."""


def print_study(result: StudyResult) -> None:
    """Print the tables, protocol, notes and answer of a study."""
    if result.xray is None or len(result.variants) > 1:
        _print(f"{result.metric} in %", variants_table(result, "terminal"))
    if result.comparisons:
        _print("differences in points", comparisons_table(result, "terminal"))
    if result.fusion is not None:
        _print(f"fusion ({result.fusion.rule})", pairs_table(result.fusion))
        for line in _fusion_lines(result.fusion):
            say(line)
    if result.xray is not None and len(result.xray.findings) <= _NETWORKS:
        _print("under changes of the clips", xray_table(result, "terminal"))
    say(result.protocol)
    for text in result.notes:
        say(f"note: {text}")
    for text in filter(None, (result.answer, result.outlook)):
        say(text)


def settings_line(result: StudyResult) -> str:
    """Return one line with the names of the settings that differ between variants; empty if no setting differs."""
    names = list(differing_settings(result))
    more = f", … ({len(names)} in all)" if len(names) > _NAMES else ""
    return f"settings that differ: {', '.join(names[:_NAMES])}{more}" if names else ""


def _print(title: str, shown: Table) -> None:
    spare = ("clips", "p", "splits", "seeds")
    console.print(table(title, shown.columns, shown.texts, spare=spare))


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
