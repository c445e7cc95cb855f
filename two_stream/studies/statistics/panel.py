"""Panels: the scores of a variant as arrays, with one row per video of a split and one column per training run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from two_stream.errors import ScoreError
from two_stream.evaluation.scores import metrics
from two_stream.evaluation.scores.files import join, name_of, reorder
from two_stream.evaluation.scores.metrics import main_value, source_units, table_ranks
from two_stream.evaluation.scores.statistics import Estimate, Interval, Sample, estimate_mean
from two_stream.types import ScoreTable

Cell = tuple[int, int]
"""(split, seed)"""
Tables = Mapping[Cell, ScoreTable]


@dataclass(frozen=True)
class Panel:
    """Score tables of a variant for all combinations of splits and seeds. Rows are ordered by split and id.

    The training runs of all splits with the same seed form one column. The training runs of a column count as one
    replicate, whose value is the mean over splits.
    """

    tables: dict[Cell, ScoreTable]
    splits: list[int]
    seeds: list[int]
    unit: NDArray[np.int64]
    """source video of each row, `(V,)`; a source that occurs in several splits is one unit"""
    groups: int | None
    """number of source videos; None if unknown, in which case every video is a unit"""

    @cached_property
    def hits(self) -> NDArray[np.float64]:
        """Array `(V, S)` for V rows and S training runs: 1 if the prediction is right, otherwise 0."""
        columns = [
            np.concatenate([table_ranks(self.tables[split, seed]) == 0 for split in self.splits])
            for seed in self.seeds
        ]
        return np.stack(columns, axis=1).astype(np.float64)

    @property
    def first(self) -> ScoreTable:
        """The score table of the first cell."""
        return self.tables[self.splits[0], self.seeds[0]]

    @property
    def multi_label(self) -> bool:
        """Whether the metric is mAP instead of top-1."""
        return self.first.targets is not None

    @property
    def units(self) -> int:
        """Number of independent units: source videos, or videos if the sources are unknown."""
        return int(self.unit.max()) + 1

    @cached_property
    def stratum(self) -> NDArray[np.int64]:
        """Index of the split of each row, from 0."""
        return np.repeat(np.arange(len(self.splits)), self._sizes)

    @cached_property
    def weight(self) -> NDArray[np.float64]:
        """Weight of each row. Splits have equal weights, and so do the videos of a split; all weights sum to 1."""
        return 1.0 / (len(self.splits) * np.asarray(self._sizes, dtype=np.float64)[self.stratum])

    @property
    def videos(self) -> float:
        """Mean number of videos per split."""
        return len(self.unit) / len(self.splits)

    @property
    def _sizes(self) -> list[int]:
        return [len(self.tables[split, self.seeds[0]].ids) for split in self.splits]

    @cached_property
    def cell_values(self) -> dict[Cell, float]:
        """Top-1 accuracy or mAP of each cell."""
        return {cell: main_value(table.logits, table) for cell, table in self.tables.items()}

    @property
    def by_training(self) -> list[float]:
        """Top-1 accuracy or mAP of each training run, as a mean over splits."""
        return [
            float(np.mean([self.cell_values[split, seed] for split in self.splits])) for seed in self.seeds
        ]

    @property
    def sample(self) -> Sample:
        """Weights, strata (splits) and units of the rows."""
        return Sample(self.weight, self.stratum, self.unit)

    @cached_property
    def pseudo_values(self) -> NDArray[np.float64]:
        """Values `(G, S)` of G units and S training runs for mAP; the means over units are `by_training`."""
        found = []
        for seed in self.seeds:
            own = []
            for number, split in enumerate(self.splits):
                table, unit = self.tables[split, seed], self.unit[self.stratum == number]
                assert table.targets is not None
                own += metrics.pseudo_values([table.logits], table.targets, unit, self.units)
            found.append(np.mean(own, axis=0))
        return np.stack(found, axis=1)

    def estimate(self) -> Estimate:
        """Return the accuracy (or mAP) with its standard error, which treats units and training runs as random."""
        if not self.multi_label:
            return estimate_mean(self.hits, self.sample)
        return metrics.estimate_map(self.pseudo_values, self.unit)

    def interval(self, level: float) -> Interval:
        """Return the accuracy (or mAP) with its interval, which treats units and training runs as random."""
        return self.estimate().share_interval(level)


def panel_of(name: str, tables: Tables) -> Panel:
    """Build the panel of a variant from its score tables.

    Only seeds that occur in all splits are used. If no seed occurs in all splits, the first seeds of all splits form
    the first column, the second seeds the second column, and so on. Columns that combine different seeds are named by
    the seed of the first split.

    Raises:
        ScoreError: There are no tables or fewer than two videos, or the tables of a split have different videos.
    """
    if not tables:
        raise ScoreError(
            f"{name}: no scores found, so there is nothing to compare; write scores with "
            "`two-stream evaluate RUN`"
        )
    kept = _rectangle(tables)
    splits, seeds = sorted({split for split, _ in kept}), sorted({seed for _, seed in kept})
    made: dict[Cell, ScoreTable] = {}
    for split in splits:
        _refuse_other_holdouts([kept[split, seed] for seed in seeds])
        for seed, table in zip(seeds, join([kept[split, seed] for seed in seeds]), strict=True):
            made[split, seed] = _by_id(table)
    heads = [made[split, seeds[0]] for split in splits]
    ids = [video for table in heads for video in table.ids]
    if len(set(ids)) < 2:
        raise ScoreError(f"{name_of(heads[0])}: found {len(set(ids))} video; statistics require two or more")
    groups = [group for table in heads for group in table.groups or [""] * len(table.ids)]
    known = any(groups)
    unit = source_units(ids, groups if known else [""] * len(ids))
    return Panel(made, splits, seeds, unit, int(unit.max()) + 1 if known else None)


def _refuse_other_holdouts(tables: Sequence[ScoreTable]) -> None:
    """Raise an error that explains why the training runs have different holdout videos."""
    other = next((table for table in tables[1:] if set(table.ids) != set(tables[0].ids)), None)
    if other is not None and tables[0].meta.get("part") == "val":
        raise ScoreError(
            f"{name_of(other)}: the videos differ from those in {name_of(tables[0])}, because each seed has its "
            "own holdout part; compare the training runs on the test part, or compare one seed at a time"
        )


def _rectangle(tables: Tables) -> dict[Cell, ScoreTable]:
    """Return the tables of the seeds that occur in all splits; see `panel_of`."""
    seeds = seeds_by_split(tables)
    common = sorted(set.intersection(*map(set, seeds.values())))
    if common:
        return {(split, seed): tables[split, seed] for split in seeds for seed in common}
    columns = seeds[min(seeds)][: min(map(len, seeds.values()))]
    return {
        (split, column): tables[split, seed]
        for split, own in seeds.items()
        for column, seed in zip(columns, own)
    }


def match_cells(variants: Sequence[Tables]) -> list[dict[Cell, ScoreTable]]:
    """Return the cells that all variants have, for a paired comparison; empty if they have no split in common.

    Within a split, cells with the same seed are paired. If the variants have no seed in common, the first training runs
    of all variants are paired, then the second ones, and so on. Pairing different seeds is valid, because training runs
    are independent of each other. Pairs of different seeds are named by the seed of the first variant.
    """
    seeds = [seeds_by_split(tables) for tables in variants]
    found: list[dict[Cell, ScoreTable]] = [{} for _ in variants]
    for split in sorted(set.intersection(*map(set, seeds))) if seeds else []:
        own = [by_split[split] for by_split in seeds]
        common = sorted(set.intersection(*map(set, own)))
        pairs = [tuple(common)] * len(own) if common else [tuple(numbers) for numbers in own]
        for row in zip(*pairs):
            for tables, chosen, seed in zip(variants, found, row, strict=True):
                chosen[split, row[0]] = tables[split, seed]
    return found


def pair_panels(first: Panel, second: Panel, names: tuple[str, str]) -> tuple[Panel, Panel]:
    """Reduce two panels to the same cells, so that their rows are the same videos.

    Raises:
        ScoreError: The panels have no split in common, or the videos of a split differ.
    """
    cells = match_cells([first.tables, second.tables])
    if not cells[0]:
        raise ScoreError(
            f"{names[0]} and {names[1]} have no split in common, found splits {_listed(first.splits)} and "
            f"{_listed(second.splits)}; evaluate both on the same split"
        )
    for cell, table in cells[0].items():
        join([table, cells[1][cell]])
    one, two = (
        panel if _has_tables(panel, tables) else panel_of(name, tables)
        for name, panel, tables in zip(names, (first, second), cells, strict=True)
    )
    if (one.groups is None) != (two.groups is None):  # if only one panel knows the sources, use them for both
        known = one if one.groups is not None else two
        one, two = (replace(panel, unit=known.unit, groups=known.groups) for panel in (one, two))
    return one, two


def _has_tables(panel: Panel, tables: Tables) -> bool:
    """Return whether a panel consists of exactly these tables."""
    return panel.tables.keys() == tables.keys() and all(
        panel.tables[cell] is table for cell, table in tables.items()
    )


def seeds_by_split(cells: Iterable[Cell]) -> dict[int, list[int]]:
    """Return the seeds of each split; splits and seeds are in ascending order."""
    found: dict[int, list[int]] = {}
    for split, seed in sorted(cells):
        found.setdefault(split, []).append(seed)
    return found


def _by_id(table: ScoreTable) -> ScoreTable:
    plain = replace(table, view_logits=None, view_counts=None)
    return reorder(
        plain, np.asarray(sorted(range(len(table.ids)), key=table.ids.__getitem__), dtype=np.int64)
    )


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
