"""What two variants' scores allow to be said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tests.helpers.studies import made_result
from two_stream.evaluation.scores.metrics import per_class
from two_stream.evaluation.scores.statistics import Interval
from two_stream.studies.report.tables import comparisons_table, short_verdict
from two_stream.studies.statistics.comparison import compare_panels, correct_families, panel_of
from two_stream.types import ScoreTable

NAMES = ("bert", "average")


def hits_table(hits: list[int], seed: int = 1, groups: list[str] | None = None) -> ScoreTable:
    """A table of two classes whose hits are as given."""
    right = np.asarray(hits)
    labels = np.arange(len(right)) % 2
    logits = np.eye(2)[np.where(right == 1, labels, 1 - labels)]
    return ScoreTable(
        [f"v{i:03d}" for i in range(len(right))], labels, ["a", "b"], logits, {"seed": seed}, groups=groups
    )


def compared(first: dict, second: dict, **options):
    return compare_panels(NAMES, (panel_of("bert", first), panel_of("average", second)), **options)


def alone(first: dict, second: dict):
    """The comparison of a family of one."""
    return correct_families([compared(first, second)])[0]


def one(first: list[int], second: list[int], groups: list[str] | None = None):
    return compared({(1, 1): hits_table(first, groups=groups)}, {(1, 1): hits_table(second, groups=groups)})


def test_one_training_of_independent_videos_is_mcnemars_test() -> None:
    first, second = [1] * 30 + [0] * 10, [1] * 21 + [0] * 9 + [1] * 1 + [0] * 9
    found = correct_families([one(first, second)])[0]
    assert found.test == "McNemar's exact test over videos"
    assert [(cell.cell, cell.first_only, cell.second_only) for cell in found.mcnemar] == [
        ("split 1, seed 1", 9, 1)
    ]
    assert found.p == found.mcnemar[0].p == pytest.approx(2 * 11 / 1024)
    assert found.difference.value == pytest.approx(8 / 40)
    assert found.clips == pytest.approx(8)
    assert found.significant
    assert found.difference.low > 0
    assert found.verdict.startswith("bert is higher than average on these runs by 20.0 points [")
    assert found.verdict.endswith("] (8 of 40 clips), p = 0.021; one training run each, others may differ")


def test_the_interval_holds_0_where_mcnemar_does_not_reject() -> None:
    found = correct_families([one([1] * 5 + [0] * 55, [0] * 60)])[0]
    assert found.p == pytest.approx(0.0625)
    assert found.difference.low <= 0
    assert stats.ttest_1samp([1] * 5 + [0] * 55, 0).pvalue < 0.05  # what the t test alone would have claimed


def test_the_worse_variant_named_first_loses() -> None:
    found = correct_families([one([0] * 20 + [1] * 20, [1] * 40)])[0]
    assert found.verdict.startswith("average is higher than bert on these runs by 50.0 points [")
    low, high = (float(text) for text in found.verdict.split("[")[1].split("]")[0].split(", "))
    assert 0 < low < 50 < high


def test_sources_turn_many_clips_into_few_witnesses() -> None:
    """Twelve discordant clips, all of one source: McNemar alone would claim a difference."""
    first, second = [1] * 12 + [1] * 28, [0] * 12 + [1] * 28
    groups = ["g0"] * 12 + [f"g{1 + i // 4}" for i in range(28)]
    found = correct_families([one(first, second, groups)])[0]
    assert found.mcnemar[0].p < 0.001
    assert found.test == "t test over 8 source videos (one training run)"
    assert not found.significant
    assert found.verdict.startswith("no difference shown between bert and average: +30.0 points [")


def test_several_trainings_are_a_crossed_test(studio) -> None:
    found = correct_families([compared(studio.tables(1.6), studio.tables(0.8))])[0]
    assert found.test == "t test over 60 source videos and 3 training runs, both random"
    assert found.significant
    assert (found.seeds, found.groups, found.videos) == (3, 60, 120)
    assert len(found.mcnemar) == 6
    assert found.verdict.startswith("bert beats average by ")
    assert "training" not in found.verdict


def pair_cells(comparison) -> list[str]:
    """The comparison's row on the terminal."""
    return comparisons_table(replace(made_result(("a", "b")), comparisons=[comparison]), "terminal").texts[0]


def test_two_trainings_are_told_and_say_nothing_of_others(studio) -> None:
    first, second = ({(1, seed): studio.table(skill, seed=seed) for seed in (1, 2)} for skill in (1.6, 0.8))
    found = correct_families([compared(first, second)])[0]
    assert found.significant
    assert found.verdict.startswith("bert is higher than average on these runs by ")
    assert found.verdict.endswith("; 2 training runs each, others may differ")
    assert (
        short_verdict(found)
        == f"higher on these runs (p {'< 0.001' if found.p < 0.001 else f'= {found.p:.3f}'})"
    )
    turned = correct_families([compared(second, first)])[0]
    assert turned.verdict.startswith("average is higher than bert on these runs by ")
    assert short_verdict(turned).startswith("lower on these runs (p ")
    assert pair_cells(found)[1] == short_verdict(found)
    several = correct_families([compared(studio.tables(1.6), studio.tables(0.8))])[0]
    assert short_verdict(several) == pair_cells(several)[1] == "better (p < 0.001)"


def test_two_sources_have_no_interval_and_no_verdict() -> None:
    groups = ["g1"] * 20 + ["g2"] * 20
    found = correct_families([one([1] * 40, [0] * 10 + [1] * 30, groups)])[0]
    assert found.difference == Interval(pytest.approx(0.25), -1.0, 1.0, known=False)
    assert (found.p, found.significant, found.detectable) == (1.0, False, 1.0)
    told = "no difference shown between bert and average: +25.0 points, and too few sources for an interval"
    assert found.verdict == told
    assert short_verdict(found) == "no difference shown"
    assert "+25.0 [unknown]" in pair_cells(found)


def test_where_nothing_could_be_seen_it_says_so() -> None:
    """Three sources that disagree: two degrees of freedom and a wide spread."""
    groups = [f"g{place // 4}" for place in range(12)]
    found = correct_families([one([1] * 8 + [0] * 4, [0] * 4 + [1] * 2 + [0] * 2 + [1] * 4, groups)])[0]
    assert found.detectable == 1.0
    assert found.difference.known
    assert found.verdict.endswith("; with these data, not even a large difference could have been detected")


def test_significant_is_where_test_and_interval_agree(studio) -> None:
    for place, skill in enumerate((1.0, 1.1, 1.2, 1.3, 1.5)):
        for seeds in ((1,), (1, 2, 3)):
            first, second = (
                {(1, seed): studio.table(one, seed=seed, stream=stream) for seed in seeds}
                for one, stream in ((skill, place), (1.0, 7))
            )
            found = correct_families([compared(first, second)])[0]
            gap = found.difference
            assert found.significant == (found.p < 0.05) == (not gap.low <= 0 <= gap.high)


def test_equal_variants_differ_by_nothing_and_the_page_says_what_would_be_missed(studio) -> None:
    found = correct_families([compared(studio.tables(1.0), studio.tables(1.0))])[0]
    assert (found.difference.value, found.p, found.significant) == (0.0, 1.0, False)
    assert found.difference.low == -found.difference.high < 0
    assert "they are right on the same clips (0 of 120 differ)" in found.verdict
    assert (
        f"a difference below about {100 * found.detectable:.1f} points ({found.detectable_clips} clips)"
        in found.verdict
    )
    assert found.detectable > 0


def test_the_family_is_corrected_together(studio) -> None:
    panels = [
        panel_of("x", studio.tables(skill, stream=place))
        for place, skill in enumerate((1.0, 1.15, 1.2, 1.25))
    ]
    tested = [
        compare_panels((f"v{place}", "base"), (panels[place], panels[0]), family=family)
        for place, family in ((1, "f"), (2, "f"), (3, "f"), (3, "alone"))
    ]
    found = correct_families(tested)
    raw = sorted(item.p for item in found[:3])
    expected = [min(1, 3 * raw[0]), min(1, max(3 * raw[0], 2 * raw[1]))]
    assert sorted(item.p_holm for item in found[:3])[:2] == pytest.approx(expected)
    assert found[3].p_holm == found[3].p == found[2].p
    assert "after correction" in found[0].verdict
    assert "after correction" not in found[3].verdict
    assert found[2].detectable > found[3].detectable  # a stricter test sees less


def test_only_what_the_correction_leaves_is_claimed(studio) -> None:
    """The same four p values as a family of four and one by one; 5 % is the limit after correction."""
    item = compared(studio.tables(1.2), studio.tables(1.0, stream=1))

    def claims(ps: list[float], family: str) -> list[bool]:
        made = [
            replace(item, main=replace(item.main, p=p), family=family or f"f{place}")
            for place, p in enumerate(ps)
        ]
        found = correct_families(made)
        assert [" beats " in entry.verdict for entry in found] == [entry.significant for entry in found]
        return [entry.significant for entry in found]

    assert claims([0.012, 0.02, 0.03, 0.6], "together") == [True, False, False, False]
    assert claims([0.012, 0.02, 0.03, 0.6], "") == [True, True, True, False]


def test_the_smallest_clip_count_covers_the_detectable_difference(studio) -> None:
    found = correct_families([compared(studio.tables(1.1), studio.tables(1.0, stream=1))])[0]
    assert found.detectable_clips - 1 < found.detectable * 120 <= found.detectable_clips


def test_differences_by_class(studio) -> None:
    first, second = studio.table(1.2), studio.table(0.7, stream=1)
    found = alone({(1, 1): first}, {(1, 1): second})
    expected = [
        one.accuracy - two.accuracy for one, two in zip(per_class(first), per_class(second), strict=True)
    ]
    assert found.per_class == pytest.approx(expected)


def test_different_seeds_are_paired_in_their_order(studio) -> None:
    second = {(1, seed + 10): studio.table(0.9, seed=seed + 10) for seed in (1, 2, 3)}
    found = alone({(1, seed): studio.table(1.1, seed=seed) for seed in (1, 2, 3)}, second)
    assert found.seeds == 3


@pytest.mark.parametrize("sources", [True, False])
@pytest.mark.parametrize("seeds", [1, 3])
def test_turned_round_it_says_the_same(studio, seeds: int, sources: bool) -> None:
    one, two = (
        {(1, seed): studio.table(skill, seed=seed, stream=place, sources=sources) for seed in range(seeds)}
        for place, skill in enumerate((1.2, 0.9))
    )
    here, there = alone(one, two), alone(two, one)
    assert there.p == pytest.approx(here.p)
    assert there.difference.value == pytest.approx(-here.difference.value)
    assert (there.difference.low, there.difference.high) == pytest.approx(
        (-here.difference.high, -here.difference.low)
    )
    assert [cell.p for cell in there.mcnemar] == pytest.approx([cell.p for cell in here.mcnemar])


def test_the_result_does_not_depend_on_the_order_of_videos_or_cells(studio) -> None:
    tables = studio.tables(1.1)
    turned = dict(reversed(tables.items()))
    other = studio.tables(1.0, stream=1)
    assert alone(tables, other) == alone(turned, other)


def test_sources_known_to_one_file_only_hold_for_both(studio) -> None:
    known, unknown = studio.table(1.1), replace(studio.table(1.0, stream=1), groups=None)
    one_way = alone({(1, 1): known}, {(1, 1): unknown})
    assert one_way.groups == 30
    assert alone({(1, 1): unknown}, {(1, 1): known}).groups == 30


def test_multi_label_sets_are_compared_by_map() -> None:
    def table(seed: int, signal: float) -> ScoreTable:
        targets = np.random.default_rng(0).random((60, 3)) < 0.4
        targets[~targets.any(axis=1), 0] = True
        logits = np.random.default_rng(seed).normal(size=(60, 3)) + signal * targets
        ids = [f"v{i:02d}" for i in range(60)]
        return ScoreTable(ids, targets.argmax(axis=1), ["a", "b", "c"], logits, {}, targets=targets)

    strong = {(1, seed): table(seed, 3.0) for seed in (1, 2, 3)}
    weak = {(1, seed): table(10 + seed, 0.5) for seed in (1, 2, 3)}
    found = correct_families([compared(strong, weak)])[0]
    assert found.significant
    assert (found.mcnemar, found.clips, found.detectable_clips) == ([], 0.0, 0)
    assert "points of mAP" in found.verdict
    assert "clips" not in found.verdict
    assert not correct_families([compared(strong, strong)])[0].significant
