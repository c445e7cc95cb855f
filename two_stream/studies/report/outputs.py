"""A study's numbers for other programs: CSV with plain numbers, text that LaTeX takes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from two_stream.runtime.text import csv_text
from two_stream.studies.report.variant_tables import better_than_baseline
from two_stream.studies.statistics.results import StudyResult, VariantResult

_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "−": "$-$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "–": "--",
    "…": r"\dots{}",
}
_TEX_MARKS = re.compile("|".join(re.escape(mark) for mark in _TEX))


def tex(text: object) -> str:
    r"""Escape what LaTeX would take for a command; a line break becomes a space.

    A text that begins with a bracket or star would be taken for an option of the `\\` before it; it gets braces.
    """
    plain = " ".join(str(text).split())
    safe = _TEX_MARKS.sub(lambda found: _TEX[found.group()], plain)
    return "{}" + safe if plain.startswith(("[", "*")) else safe


def tidy(markdown: str) -> str:
    """Return Markdown without spaces at line ends and with single empty lines."""
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", markdown, flags=re.MULTILINE)).strip() + "\n"


def variants_csv(result: StudyResult) -> str:
    """Return a row per variant. Accuracies are shares (0 to 1); a value that is not known is empty."""
    better = better_than_baseline(result)
    more = list(dict.fromkeys(key for variant in result.variants for key in variant.more))
    header = ["variant", *_named(result.metric), "sd", "seeds_low", "seeds_high", "seeds", "splits", *more]
    header += ["parameters", "multiply_adds_per_view", "views", "latency_ms", "memory_mib"]
    header += ["published", "published_source", "significantly_better", "best"]
    return csv_text(header, [_variant_row(one, more, one.name in better) for one in result.variants])


def _variant_row(one: VariantResult, more: Sequence[str], better: bool) -> list[object]:
    cost, published, alone = one.cost, one.published, one.seed_interval
    costs = (
        [cost.parameters, cost.multiply_adds, cost.views, cost.latency_ms, cost.memory_mib]
        if cost
        else [None] * 5
    )
    return [
        *(one.name, one.accuracy.value, one.accuracy.low, one.accuracy.high, one.sd),
        *((alone.low, alone.high) if alone else (None, None)),
        *(" ".join(map(str, one.seeds)), " ".join(map(str, one.splits))),
        *(one.more.get(key) for key in more),
        *costs,
        *((published.value, published.source) if published else (None, None)),
        *(int(better), int(one.best)),
    ]


def comparisons_csv(result: StudyResult) -> str:
    """Return a row per comparison, first minus second; differences are shares (-1 to 1)."""
    header = ["first", "second", "family", "difference", "low", "high", "clips", "p", "p_holm", "test"]
    header += ["significant", "mcnemar_first_only", "mcnemar_second_only"]
    header += ["detectable", "detectable_clips", "videos", "groups", "seeds", "verdict"]
    rows: list[list[object]] = []
    for one in result.comparisons:
        gap = one.difference
        discordant: tuple[object, object] = (None, None)
        if one.mcnemar:
            discordant = sum(t.first_only for t in one.mcnemar), sum(t.second_only for t in one.mcnemar)
        rows.append(
            [
                *(one.first, one.second, one.family, gap.value, gap.low, gap.high),
                *(one.clips, one.p, one.p_holm, one.test, int(one.significant), *discordant),
                *(one.detectable, one.detectable_clips, one.videos, one.groups, one.seeds, one.verdict),
            ]
        )
    return csv_text(header, rows)


def _named(metric: str) -> list[str]:
    name = metric.replace("-", "").lower()
    return [name, f"{name}_low", f"{name}_high"]
