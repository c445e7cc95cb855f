"""Tests of the scores under controlled changes of the clips, and what they show, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from two_stream.evaluation.runs.xray import cross_changes
from two_stream.evaluation.scores import metrics
from two_stream.evaluation.scores.statistics import LEVEL
from two_stream.evaluation.scores.words import difference_in_points, percent
from two_stream.evaluation.scoring.changes import NATURAL, ClipChange, known_change
from two_stream.studies.statistics.comparison import (
    Cell,
    Panel,
    compare_panels,
    correct_families,
    p_text,
    panel_of,
)
from two_stream.studies.statistics.results import Comparison, StudyResult, Xray, XrayRow
from two_stream.types import ScoreTable

Networks = Mapping[str, Mapping[str, Mapping[Cell, ScoreTable]]]
"""for each network and each change, with `NATURAL` first, the scores by `(split, seed)`"""


def xray_of(networks: Networks, level: float = LEVEL) -> Xray:
    """Compare the scores under each change with those of the natural clips, video by video.

    The p values of a network are corrected together by Holm's procedure.

    Raises:
        ScoreError: The scores of a network do not join.
    """
    rows: list[XrayRow] = []
    findings: dict[str, list[str]] = {}
    for network, changes in networks.items():
        panels = {change: panel_of(f"{network}, {change}", tables) for change, tables in changes.items()}
        natural = panels[NATURAL]
        tested = [
            compare_panels((change, NATURAL), (panel, natural), family=network, level=level)
            for change, panel in panels.items()
            if change != NATURAL
        ]
        compared = {one.first: one for one in correct_families(tested, level)}
        own = []
        for change, panel in panels.items():
            found = compared.get(change)
            own.append(
                XrayRow(
                    network,
                    change,
                    panel.interval(level),
                    found.difference if found else None,
                    found.p_holm if found else None,
                    bool(found and found.significant),
                    _same(panel, natural),
                )
            )
        rows += own
        chance = float(np.mean([metrics.chance(table) for table in natural.tables.values()]))
        findings[network] = [
            _finding(row, known_change(row.change), compared[row.change], chance, natural) for row in own[1:]
        ]
    return Xray(rows, findings)


def fused_networks(networks: Networks, streams: Mapping[str, str], rule: str) -> Networks:
    """Return the fusion of each RGB network with each flow network of the same splits and seeds, see `cross_changes`.

    `streams` contains the modality of each network.
    """
    made: dict[str, dict[str, dict[Cell, ScoreTable]]] = {}
    for rgb, changes in networks.items():
        for flow in networks if streams[rgb] == "rgb" else ():
            cells = changes[NATURAL].keys() & networks[flow][NATURAL].keys()
            if streams[flow] != "flow" or not cells:
                continue
            both = (changes, networks[flow])
            for cell in sorted(cells):
                pair = [{change: tables[cell] for change, tables in one.items()} for one in both]
                for change, table in cross_changes(pair[0], pair[1], rule).items():
                    made.setdefault(f"{rgb} + {flow}", {}).setdefault(change, {})[cell] = table
    return made


def _same(panel: Panel, natural: Panel) -> float:
    pairs = [(table, natural.tables[cell]) for cell, table in panel.tables.items()]
    return float(np.mean([(a.logits.argmax(1) == b.logits.argmax(1)).mean() for a, b in pairs]))


def _finding(row: XrayRow, change: ClipChange, compared: Comparison, chance: float, natural: Panel) -> str:
    """Return one or two sentences on what the accuracy under a change shows, and what it does not."""
    metric = "mAP" if natural.multi_label else "top-1"
    assert row.difference is not None
    points = f"{difference_in_points(row.difference)} points"
    if row.significant:
        verb = "needed" if row.difference.value < 0 else "harmful"
        text = f"{_start(change.removes)} is {verb}: {points} without it ({row.change})"
        text += f", p {p_text(compared.p_holm, sign=True)}."
    elif row.same == 1.0:
        text = f"{_start(change.removes)} is not used: every prediction stays the same ({row.change})."
    else:
        text = f"No need of {change.removes} shown: {points} without it ({row.change})"
        missed = 100 * compared.detectable
        text += f"; a difference below about {missed:.1f} points would be missed." if missed < 100 else "."
    if change.leaves and not natural.multi_label:
        exceeds = row.accuracy.known and row.accuracy.low > chance
        above = "more than guessing" if exceeds else "not shown to exceed guessing"
        text += f" {_start(change.leaves)} alone: {metric} {percent(row.accuracy)} %, {above} ({100 * chance:.1f} %)."
    return text


def _start(text: str) -> str:
    return text[:1].upper() + text[1:]


def with_xray(result: StudyResult, xray: Xray) -> StudyResult:
    """Return the result of a study with an X-ray; the answer of a study of one network is that of its X-ray."""
    if result.comparisons:
        return replace(result, xray=xray)
    return replace(result, xray=xray, answer=" ".join(_summary(name, xray) for name in xray.findings))


def _summary(network: str, xray: Xray) -> str:
    """Return the accuracy of a network, and the changes that lower or raise it significantly."""
    rows = [row for row in xray.rows if row.network == network]
    natural = next(row.accuracy for row in rows if row.difference is None)
    changed = [(row, row.difference) for row in rows if row.difference is not None]
    lower = [(row.change, gap.value) for row, gap in changed if row.significant and gap.value < 0]
    higher = [(row.change, gap.value) for row, gap in changed if row.significant and gap.value > 0]
    rest = sum(not row.significant for row, _ in changed)
    parts = [f"{network}: {100 * natural.value:.1f} % on natural clips."]
    for word, found in (("Lower", lower), ("Higher", higher)):
        if found:
            texts = [
                f"{change} (by {100 * abs(value):.1f} points)"
                for change, value in sorted(found, key=lambda one: -abs(one[1]))
            ]
            parts.append(f"{word} with: {', '.join(texts)}.")
    if rest:
        parts.append(f"No difference shown with {rest} of {len(changed)} changes.")
    return " ".join(parts)
