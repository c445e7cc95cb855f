"""Comparisons of two variants on the same videos: tests and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from two_stream.evaluation.scores import metrics, statistics
from two_stream.evaluation.scores.metrics import per_class
from two_stream.evaluation.scores.statistics import LEVEL, Interval
from two_stream.studies.statistics.panel import Panel, pair_panels
from two_stream.studies.statistics.results import Comparison, McNemar

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
    cells: list[McNemar]
    """McNemar's test of each cell; empty for a multi-label data set"""
    exact: bool
    """whether `p` is from McNemar's exact test; otherwise it is from a t test"""


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
        return MainTest(first, second, found, found.interval(level), found.p_zero(), [], exact=False)
    test = statistics.difference_of(first.hits, second.hits, first.sample, level)
    return MainTest(first, second, test.estimate, test.interval, test.p, _mcnemar(first, second), test.exact)


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
        clips = f" ({_count(abs(comparison.clips))} of {comparison.videos} clips)" if top1 else ""
        size_ = f"by {100 * abs(gap.value):.1f} {unit} [{100 * low:.1f}, {100 * high:.1f}]{clips}, {p}"
        if few:
            return (
                f"{winner} is higher than {loser} on these runs {size_}; {trainings} each, others may differ"
            )
        return f"{winner} beats {loser} {size_}"
    start = f"no difference shown between {comparison.first} and {comparison.second}"
    if not gap.known:
        return f"{start}: {100 * gap.value:+.1f} {unit}, and too few sources for an interval"
    found = f"{100 * gap.value:+.1f} {unit} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}], {p}"
    if identical:
        found = f"they are right on the same clips (0 of {comparison.videos} differ)"
    if comparison.detectable >= 1:
        return f"{start}: {found}; with these data, not even a large difference could have been detected"
    missed = f"{100 * comparison.detectable:.1f} {unit}"
    missed += f" ({comparison.detectable_clips} clips)" if top1 else ""
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
    unit = f"{panel.units} source videos" if panel.groups is not None else f"{panel.units} videos"
    if len(panel.seeds) > 1:
        return f"t test over {unit} and {len(panel.seeds)} training runs, both random"
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
