"""Fusion studies: gains from fusing streams, and the contribution of each stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product

import numpy as np

from two_stream.errors import ScoreError
from two_stream.evaluation.scores.fusion import fuse
from two_stream.evaluation.scores.metrics import table_ranks
from two_stream.evaluation.scores.statistics import LEVEL, Interval, holm, smallest_gain
from two_stream.evaluation.scores.tables import join
from two_stream.studies.statistics.comparison import Cell, Panel, Tables, main_test, match_cells, panel_of
from two_stream.studies.statistics.results import Contribution, FusedPair, FusionResult
from two_stream.types import ScoreTable


@dataclass(frozen=True)
class _Streams:
    """Score tables of the cells that all streams have, joined by video id."""

    names: list[str]
    by_cell: dict[Cell, list[ScoreTable]]
    """the tables of the streams for each cell, in the order of `names`"""
    rule: str
    level: float

    def panel(self, chosen: Sequence[int], rule: str | None = None) -> Panel:
        """Return the panel of some streams, fused separately in each cell, or of a single stream."""
        names = " + ".join(self.names[index] for index in chosen)
        return panel_of(
            names,
            {
                cell: tables[chosen[0]]
                if len(chosen) == 1
                else fuse([tables[index] for index in chosen], rule or self.rule)
                for cell, tables in self.by_cell.items()
            },
        )

    def agreement(self, one: int, two: int) -> float:
        """Return the fraction of videos for which two streams predict the same class, as a mean over cells."""
        shares = [
            (tables[one].logits.argmax(axis=1) == tables[two].logits.argmax(axis=1)).mean()
            for tables in self.by_cell.values()
        ]
        return float(np.mean(shares))

    def oracle(self, chosen: Sequence[int]) -> float:
        """Return the fraction of videos that at least one of the streams gets right, as a mean over cells."""
        shares = [
            np.any([table_ranks(tables[index]) == 0 for index in chosen], axis=0).mean()
            for tables in self.by_cell.values()
        ]
        return float(np.mean(shares))


def fusion_study(
    streams: Mapping[str, Tables],
    rule: str,
    *,
    fit: Mapping[str, Tables] | None = None,
    level: float = LEVEL,
) -> FusionResult:
    """Fuse every pair of an RGB and a flow stream, all streams, and all streams but one (for each stream in turn).

    Args:
        streams: Score tables by stream and `(split, seed)`. Streams are fused separately for each `(split, seed)`. If
            there is no RGB or no flow stream, all pairs of streams are fused.
        rule: Fusion rule other than `learned`, with equal weights.
        fit: Scores of the same models on the holdout part. The weights of all streams are fitted to these scores for
            each training run, and the result of fusing with these weights is `tuned`.
        level: Coverage of the intervals.

    Raises:
        ScoreError: There are fewer than two streams or no common split, the score tables do not join, or `fit` is from
            a different part or different models.
    """
    if len(streams) < 2:
        raise ScoreError(f"a fusion study requires two or more streams, found {len(streams)}")
    names = list(streams)
    cells = match_cells(list(streams.values()))
    if not cells[0]:
        raise ScoreError(
            f"the streams {', '.join(names)} have no split in common, so they cannot be fused; "
            "evaluate them on the same split"
        )
    by_cell = {cell: join([tables[cell] for tables in cells]) for cell in cells[0]}
    found = _Streams(names, by_cell, rule, level)
    everything = found.panel(range(len(names)))
    weights, tuned = _tuned(found, cells, fit) if fit is not None else ({}, None)
    return FusionResult(
        rule=rule,
        streams=names,
        pairs=_pairs(found),
        contributions=_contributions(found, everything),
        all_streams=everything.interval(level),
        oracle=found.oracle(range(len(names))),
        weights=weights,
        fitted_on=_fitted_on(fit) if fit is not None else "",
        tuned=tuned.interval(level) if tuned is not None else None,
        agreement=[[found.agreement(one, two) for two in range(len(names))] for one in range(len(names))],
    )


def _pairs(found: _Streams) -> list[FusedPair]:
    modalities = [str(table.meta.get("modality")) for table in next(iter(found.by_cell.values()))]
    rgb, flow = ([i for i, kind in enumerate(modalities) if kind == wanted] for wanted in ("rgb", "flow"))
    known = len(rgb) + len(flow) == len(modalities)  # all pairs if there is a third kind, such as rgbdiff
    chosen = list(product(rgb, flow) if known else ()) or list(combinations(range(len(found.names)), 2))
    alone = {index: found.panel([index]) for pair in chosen for index in pair}
    return [_pair(found, alone, pair) for pair in chosen]


def _pair(found: _Streams, alone: Mapping[int, Panel], pair: tuple[int, int]) -> FusedPair:
    fused = found.panel(pair)
    better = max(pair, key=lambda index: alone[index].estimate().value)

    def test(place: int, level: float) -> Interval:
        return main_test(("fused", found.names[place]), (fused, alone[place]), level).interval

    return FusedPair(
        first=found.names[pair[0]],
        second=found.names[pair[1]],
        accuracy=fused.interval(found.level),
        better=found.names[better],
        gain=smallest_gain([partial(test, place) for place in pair], found.level),
        agreement=found.agreement(*pair),
        oracle=found.oracle(pair),
    )


def _contributions(found: _Streams, everything: Panel) -> list[Contribution]:
    """Return the contribution of each stream; Holm's procedure corrects all tests together."""
    places = range(len(found.names))
    tests = [
        main_test(
            ("all streams", f"without {found.names[left]}"),
            (everything, found.panel([place for place in places if place != left])),
            found.level,
        )
        for left in places
    ]
    adjusted = holm([test.p for test in tests])
    return [
        Contribution(name, test.interval, test.p, p_holm)
        for name, test, p_holm in zip(found.names, tests, adjusted, strict=True)
    ]


def _tuned(
    found: _Streams, cells: Sequence[Tables], fit: Mapping[str, Tables]
) -> tuple[dict[str, float], Panel]:
    """Fit weights for each training run; return their means and the panel fused with the weights of each run."""
    lacking = [name for name in found.names if not fit.get(name)]
    if lacking:
        raise ScoreError(
            f"no scores of the holdout part found for {', '.join(lacking)}; fitting weights requires "
            "the holdout scores of all streams"
        )
    fused, weights = {}, []
    for cell, tables in found.by_cell.items():
        holdout = [_holdout_of(fit[name], own[cell], name) for name, own in zip(found.names, cells)]
        fused[cell] = fuse(tables, found.rule, fit=holdout)
        weights.append(fused[cell].meta["weights"])
    means = np.mean(weights, axis=0)
    return dict(zip(found.names, map(float, means), strict=True)), panel_of("tuned", fused)


def _holdout_of(tables: Tables, scored: ScoreTable, name: str) -> ScoreTable:
    """Return the holdout scores of the model that computed a table, found by checksum or else by split and seed."""
    for table in tables.values():
        if table.meta.get("model_sha256") and table.meta["model_sha256"] == scored.meta.get("model_sha256"):
            return table
    cell = (int(scored.meta.get("split", 1)), int(scored.meta.get("seed", 0)))
    if cell not in tables:
        raise ScoreError(
            f"{name}: no scores of the holdout part found for split {cell[0]}, seed {cell[1]}; write "
            "them with `two-stream evaluate RUN --part val`"
        )
    return tables[cell]


def _fitted_on(fit: Mapping[str, Tables]) -> str:
    sizes = sorted({len(table.ids) for tables in fit.values() for table in tables.values()})
    videos = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return f"the holdout part ({videos} videos), for each training run separately"
