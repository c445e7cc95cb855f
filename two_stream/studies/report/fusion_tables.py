"""Tables of fused streams, of the settings that differ between variants, and of the runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from two_stream.config.load import parse_yaml
from two_stream.evaluation.scores.words import DASH, percent
from two_stream.studies.report.variant_tables import (
    Table,
    TableCell,
    number,
    p_text,
    points_with_interval,
    signed_text,
)
from two_stream.studies.statistics.results import FusedPair, FusionResult, StudyResult

_ASIDE = ("name", "runs", "seed", "data.split")
"""Settings that differ from run to run of one variant."""
BESIDE = 6
"""Variants beside each other in a table of settings; more stand in further tables."""


def fusion_matrix(fusion: FusionResult) -> Table:
    """Return a row per RGB stream and a column per flow stream: accuracy fused and the gain over the better one."""
    firsts = list(dict.fromkeys(pair.first for pair in fusion.pairs))
    seconds = list(dict.fromkeys(pair.second for pair in fusion.pairs))
    found = {(pair.first, pair.second): pair for pair in fusion.pairs}
    values = [pair.accuracy.value for pair in fusion.pairs]
    low, high = min(values), max(values)
    rows = [
        [TableCell(one, one), *(_fused(found.get((one, two)), low, high) for two in seconds)]
        for one in firsts
    ]
    return Table(
        f"Rule {fusion.rule}: accuracy (%) of each pair fused, in brackets the points over the better of the two "
        "alone. Bold: the interval of the gain lies above 0.",
        ["", *seconds],
        [False] + [True] * len(seconds),
        rows,
    )


def _fused(pair: FusedPair | None, low: float, high: float) -> TableCell:
    if pair is None:
        return TableCell(DASH)
    text = f"{percent(pair.accuracy.value)} ({signed_text(100 * pair.gain.value)})"
    shade = (pair.accuracy.value - low) / (high - low) if high > low else 0.0
    return TableCell(text, pair.accuracy.value, pair.gain.low > 0, shade)


def pairs_table(fusion: FusionResult) -> Table:
    """Return a row per pair with the intervals."""
    rows = [
        [
            TableCell(f"{pair.first} + {pair.second}", f"{pair.first} + {pair.second}", pair.gain.low > 0),
            TableCell(percent(pair.accuracy), pair.accuracy.value),
            TableCell(pair.better, pair.better),
            TableCell(points_with_interval(pair.gain), pair.gain.value, pair.gain.low > 0),
            number(pair.agreement, 1, 100),
            number(pair.oracle, 1, 100),
        ]
        for pair in fusion.pairs
    ]
    return Table(
        "Gain: fused minus the better one, paired. Agreement: videos with the same prediction. Oracle: videos that at "
        "least one of the two gets right.",
        ["streams", "fused (%)", "better alone", "gain (points)", "agreement (%)", "oracle (%)"],
        [False, True, False, True, True, True],
        rows,
    )


def contributions_table(result: StudyResult) -> Table:
    """Return what each stream adds to the fusion of all."""
    fusion = result.fusion
    assert fusion is not None
    rows = []
    for one in fusion.contributions:
        gap, sure = one.difference, one.p_holm < 1 - result.level
        rows.append(
            [
                TableCell(one.stream, one.stream, sure),
                TableCell(points_with_interval(gap), gap.value, sure),
                TableCell(p_text(one.p), one.p),
                TableCell(p_text(one.p_holm), one.p_holm, sure),
                number(fusion.weights.get(one.stream), 2),
            ]
        )
    weights = f" Weights were found on {fusion.fitted_on}." if fusion.weights and fusion.fitted_on else ""
    return Table(
        f"The fusion of all minus that without the stream.{weights}",
        ["stream", "adds (points)", "p", "p, Holm", "weight"],
        [False, True, True, True, True],
        rows,
    ).filled()


def agreement_table(fusion: FusionResult) -> Table:
    """Return the share of videos on which two streams predict the same class."""
    rows = [
        [TableCell(name, name), *(number(value, 0, 100) for value in shares)]
        for name, shares in zip(fusion.streams, fusion.agreement)
    ]
    return Table(
        "Videos (%) on which two streams predict the same class.",
        ["", *fusion.streams],
        [False] + [True] * len(fusion.streams),
        rows,
    )


def settings_tables(result: StudyResult) -> list[Table]:
    """Return the settings that differ between variants, a few variants to a table."""
    flat = {
        variant.name: _flat(parse_yaml(result.settings[variant.name], variant.name))
        if variant.name in result.settings
        else {key: _plain(value) for key, value in variant.changes.items()}
        for variant in result.variants
    }
    keys = list(dict.fromkeys(key for values in flat.values() for key in values))
    differing = [
        key
        for key in keys
        if key not in _ASIDE and len({values.get(key, DASH) for values in flat.values()}) > 1
    ]
    names = list(flat)
    if not differing:
        return []
    return [
        Table(
            "",
            ["setting", *names[start : start + BESIDE]],
            [False] * (1 + len(names[start : start + BESIDE])),
            [
                [
                    TableCell(key, key),
                    *(TableCell(flat[name].get(key, DASH)) for name in names[start : start + BESIDE]),
                ]
                for key in differing
            ],
        )
        for start in range(0, len(names), BESIDE)
    ]


def _flat(value: object, prefix: str = "") -> dict[str, str]:
    if not isinstance(value, Mapping):
        return {prefix: _plain(value)}
    found: dict[str, str] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def runs_table(result: StudyResult) -> Table:
    """Return a row per run of the study; the folder that holds all run folders is named once, under the table."""
    parents = {str(PurePath(one.run).parent) for one in result.runs if one.run}
    shared = len(parents) == 1
    rows = [
        [
            TableCell(one.variant, one.variant),
            number(one.split, 0),
            TableCell(str(one.seed), float(one.seed)),
            TableCell(one.state, one.state, one.state != "done"),
            number(one.accuracy, 1, 100),
            number(one.seconds, 0),
            TableCell(one.key[:12] or DASH, one.key or None),
            TableCell(one.model_sha256[:12] or DASH, one.model_sha256 or None),
            TableCell((PurePath(one.run).name if shared else one.run) or DASH, one.run or None),
            TableCell(" ".join(one.reason.split()) or DASH, one.reason or None),
        ]
        for one in result.runs
    ]
    return Table(
        "Key: hash of resolved settings, code and data. Model: SHA-256 of the weights."
        + (f" Folders lie in {parents.pop()}." if shared else ""),
        [
            *("variant", "split", "seed", "state", f"{result.metric} (%)", "seconds"),
            *("key", "model", "folder", "why it failed"),
        ],
        [False, True, True, False, True, True, False, False, False, False],
        rows,
    ).filled()
