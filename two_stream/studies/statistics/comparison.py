"""Comparisons of two variants on the same videos: the panels of scores, tests and verdicts.

A panel holds the scores of a variant, with one row per video of a split and one column per training run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from two_stream.errors import ScoreError
from two_stream.evaluation.scores import metrics, statistics
from two_stream.evaluation.scores.metrics import main_value, per_class, source_units, table_ranks
from two_stream.evaluation.scores.statistics import LEVEL, Estimate, Interval, Sample, estimate_mean
from two_stream.evaluation.scores.tables import join, name_of, reorder
from two_stream.runtime.text import plural, signed_number
from two_stream.studies.statistics.results import Comparison, McNemar
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

    def by_source(self, values_VS: NDArray[np.float64]) -> list[float]:
        """Return the mean value of each source; empty if the sources are unknown or the data set is multi-label."""
        if self.groups is None or self.multi_label:
            return []
        return list(np.bincount(self.unit, values_VS.mean(axis=1)) / np.bincount(self.unit))

    @property
    def sample(self) -> Sample:
        """Weights, strata (splits) and units of the rows."""
        return Sample(self.weight, self.stratum, self.unit)

    @cached_property
    def pseudo_values(self) -> NDArray[np.float64]:
        """Pseudo-values `(G, S)` of mAP for G units and S training runs; the means over units are `by_training`."""
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
    the first column, the second seeds the second column, and so on. Columns that combine different seeds are named
    after the seed of the first split.

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
    """Raise an error if the training runs of a split were scored on different holdout videos."""
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
    are independent of each other. Pairs of different seeds are named after the seed of the
    first variant.
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


ENOUGH_TRAININGS = 3
"""least number of training runs of a variant for a test whose result also applies to further training runs"""


@dataclass(frozen=True)
class MainTest:
    """The test of a comparison."""

    first: Panel
    second: Panel
    """panel with the same cells, videos and rows as `first`"""
    estimate: statistics.Estimate
    interval: Interval
    p: float
    exact: bool
    """whether `p` is from McNemar's exact test; otherwise it is from a t test"""

    @cached_property
    def cells(self) -> list[McNemar]:
        """McNemar's test of each cell; empty for a multi-label data set."""
        return [] if self.first.multi_label else _mcnemar(self.first, self.second)


@dataclass(frozen=True)
class Tested:
    """A comparison whose p value is not yet corrected within its family."""

    names: tuple[str, str]
    family: str
    main: MainTest


def main_test(names: tuple[str, str], panels: tuple[Panel, Panel], level: float = LEVEL) -> MainTest:
    """Test whether two variants differ, on the cells and videos that both variants have.

    With several training runs, the test is a t test of the mean difference, which treats units and training runs as
    random effects. Units are the source videos or, if the sources are unknown, the videos. With one training run, the
    test is a t test over units if the sources are known, and otherwise McNemar's exact test. The mAP of a multi-label
    data set is always tested with the t test.

    Raises:
        ScoreError: The variants share no split, or the videos of a split differ.
    """
    first, second = pair_panels(panels[0], panels[1], names)
    if first.multi_label:
        values = first.pseudo_values - second.pseudo_values
        found = metrics.estimate_map(values, first.unit)
        return MainTest(first, second, found, found.interval(level), found.p_zero(), exact=False)
    test = statistics.difference_of(first.hits, second.hits, first.sample, level)
    return MainTest(first, second, test.estimate, test.interval, test.p, test.exact)


def compare_panels(
    names: tuple[str, str], panels: tuple[Panel, Panel], *, family: str = "", level: float = LEVEL
) -> Tested:
    """Return the comparison of two variants with the test of `main_test`; see also `correct_families`."""
    return Tested(names, family, main_test(names, panels, level))


def correct_families(tested: Sequence[Tested], level: float = LEVEL) -> list[Comparison]:
    """Correct the p values within each family by Holm's procedure, and return the comparisons with verdicts.

    The detectable difference is computed for the smallest significance level of the procedure, (1 - level) / number of
    tests.
    """
    found: dict[int, Comparison] = {}
    for family in dict.fromkeys(item.family for item in tested):
        places = [place for place, item in enumerate(tested) if item.family == family]
        adjusted = statistics.holm([tested[place].main.p for place in places])
        for place, p_holm in zip(places, adjusted, strict=True):
            found[place] = _comparison(tested[place], p_holm, len(places), level)
    return [found[place] for place in range(len(tested))]


def _comparison(item: Tested, p_holm: float, size: int, level: float) -> Comparison:
    main, gap = item.main, item.main.interval
    first, top1 = main.first, not main.first.multi_label
    smallest = (
        statistics.detectable(main.estimate.se, main.estimate.df, (1 - level) / size) if gap.known else 1.0
    )
    videos = round(first.videos)
    comparison = Comparison(
        *item.names,
        family=item.family,
        difference=gap,
        clips=main.estimate.value * first.videos if top1 else 0.0,
        p=main.p,
        p_holm=p_holm,
        test=_test_name(first, main.exact),
        significant=p_holm < 1 - level and not gap.low <= 0 <= gap.high,
        verdict="",
        mcnemar=main.cells,
        detectable=smallest,
        detectable_clips=statistics.in_clips(smallest, videos) if main.cells else 0,
        videos=videos,
        groups=first.groups,
        seeds=len(first.seeds),
        per_class=_class_difference(first, main.second),
        sources=first.by_source(first.hits - main.second.hits) if top1 else [],
        data_needed=statistics.data_needed(main.estimate, (1 - level) / size),
    )
    identical = top1 and bool((first.hits == main.second.hits).all())
    return replace(comparison, verdict=_verdict(comparison, size, identical=identical))


def _verdict(comparison: Comparison, size: int, *, identical: bool) -> str:
    """Return a sentence on the result of the corrected test."""
    gap, top1 = comparison.difference, bool(comparison.mcnemar)
    p = f"p {p_text(comparison.p_holm, sign=True)}" + (" after correction" if size > 1 else "")
    unit = "points" if top1 else "points of mAP"
    few = comparison.seeds < ENOUGH_TRAININGS
    trainings = "one training run" if comparison.seeds == 1 else f"{comparison.seeds} training runs"
    if comparison.significant:
        winner, loser, sign = comparison.first, comparison.second, 1.0
        if gap.value < 0:
            winner, loser, sign = loser, winner, -1.0
        low, high = sorted((sign * gap.low, sign * gap.high))
        clips = f" ({_count(abs(comparison.clips))} of {plural(comparison.videos, 'clip')})" if top1 else ""
        size_ = f"by {100 * abs(gap.value):.1f} {unit} [{100 * low:.1f}, {100 * high:.1f}]{clips}, {p}"
        if few:
            return (
                f"{winner} is higher than {loser} on these runs {size_}; {trainings} each, others may differ"
            )
        return f"{winner} beats {loser} {size_}"
    start = f"no difference shown between {comparison.first} and {comparison.second}"
    if not gap.known:
        return f"{start}: {signed_number(100 * gap.value)} {unit}, and too few sources for an interval"
    numbers = [signed_number(100 * one) for one in (gap.value, gap.low, gap.high)]
    found = f"{numbers[0]} {unit} [{numbers[1]}, {numbers[2]}], {p}"
    if identical:
        found = f"they are right on the same clips (0 of {comparison.videos} differ)"
    if comparison.detectable >= 1:
        return f"{start}: {found}; with these data, not even a large difference could have been detected"
    missed = f"{100 * comparison.detectable:.1f} {unit}"
    missed += f" ({plural(comparison.detectable_clips, 'clip')})" if top1 else ""
    return f"{start}: {found}; a difference below about {missed} would be missed here"


def p_text(p: float, *, sign: bool = False) -> str:
    """Return a p value with three decimals, or "< 0.001". If `sign` is true, other values start with "="."""
    if p < 0.001:
        return "< 0.001"
    return f"= {p:.3f}" if sign else f"{p:.3f}"


def _count(clips: float) -> str:
    return f"{clips:.0f}" if abs(clips - round(clips)) < 0.05 else f"{clips:.1f}"


def _test_name(panel: Panel, exact: bool) -> str:
    if exact:
        return "McNemar's exact test over videos"
    unit = plural(panel.units, "source video" if panel.groups is not None else "video")
    if len(panel.seeds) > 1:
        return f"t test over {unit} and {plural(len(panel.seeds), 'training run')}, both random"
    return f"t test over {unit} (one training run)"


def _mcnemar(first: Panel, second: Panel) -> list[McNemar]:
    found = []
    for split_place, split in enumerate(first.splits):
        rows = first.stratum == split_place
        for place, seed in enumerate(first.seeds):
            gap = first.hits[rows, place] - second.hits[rows, place]
            wins, losses = int((gap > 0).sum()), int((gap < 0).sum())
            cell = f"split {split}, seed {seed}"
            found.append(McNemar(cell, wins, losses, statistics.mcnemar_exact(wins, losses)))
    return found


def class_means(panel: Panel) -> list[float | None]:
    """Return the accuracy of each class (for a multi-label data set, the average precision) as a mean over cells.

    The result is None for classes without videos.
    """
    rows = [[row.accuracy for row in per_class(table)] for table in panel.tables.values()]
    return [_mean_known(column) for column in zip(*rows, strict=True)]


def _mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _class_difference(first: Panel, second: Panel) -> list[float | None]:
    pairs = zip(class_means(first), class_means(second), strict=True)
    return [None if one is None or two is None else one - two for one, two in pairs]
