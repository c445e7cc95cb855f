"""From score tables to the result a report shows."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from two_stream.errors import ScoreError
from two_stream.evaluation.scores.metrics import calibration_error, mean_class_accuracy, top_k_accuracy
from two_stream.evaluation.scores.statistics import t_interval
from two_stream.studies.statistics.results import RunRow
from two_stream.studies.statistics.summary import Question, VariantRuns, study_result

ASKED = Question("heads", "Does BERT beat pooling?", command="two-stream ablate x.yaml")
PAIR = ("against average", "bert", "average")


def variant(name: str, tables: dict, **options) -> VariantRuns:
    return VariantRuns(name, {"head": name}, {"model.head.kind": name}, tables, **options)


def study(studio, better: float = 1.6):
    variants = [
        variant("average", studio.tables(0.8)),
        variant("bert", studio.tables(better, stream=1), settings="name: bert\n"),
    ]
    return study_result(ASKED, variants, [PAIR], runs=[RunRow("bert", 1, 1, "done")], notes=["A note."])


def test_every_number_of_a_variant(studio) -> None:
    tables = studio.tables(0.8)
    result = study(studio)
    found = result.variants[0]
    by_seed = [
        np.mean([top_k_accuracy(tables[split, seed].logits, tables[split, seed].labels) for split in (1, 2)])
        for seed in (1, 2, 3)
    ]
    assert found.accuracy.value == pytest.approx(np.mean(by_seed))
    assert found.accuracy.low < found.accuracy.value < found.accuracy.high
    assert found.seed_interval == t_interval(by_seed)
    assert found.sd == pytest.approx(np.std(by_seed, ddof=1))
    assert (found.seeds, found.splits, found.best) == ([1, 2, 3], [1, 2], False)
    assert result.variants[1].best
    every = tables.values()
    assert found.more["mean class"] == pytest.approx(
        np.mean([mean_class_accuracy(t.logits, t.labels) for t in every])
    )
    assert found.more["ECE"] == pytest.approx(np.mean([calibration_error(t.logits, t.labels) for t in every]))
    assert found.more["top-5"] is None  # of four classes every class is among the first five
    assert np.sum(found.confusion) == pytest.approx(120)
    assert np.trace(found.confusion) / 120 == pytest.approx(found.accuracy.value)
    assert np.mean(found.per_class) == pytest.approx(found.more["mean class"])


def test_the_study_as_a_whole(studio) -> None:
    result = study(studio)
    assert result.protocol == (
        "toy splits 1, 2, test part · multi-clip × ten-crop, mean of logits · selection holdout · 120 videos per split "
        "of 60 sources · 3 training runs each · 95 % intervals over sources and training runs"
    )
    assert (result.metric, result.part, result.videos, result.groups, result.chance) == (
        "top-1",
        "test",
        120,
        60,
        0.25,
    )
    assert result.answer == f"{result.comparisons[0].verdict}."
    assert result.answer.startswith("bert beats average by ")
    assert result.notes == ["A note."]
    assert result.settings == {"bert": "name: bert\n"}
    assert result.runs[0].variant == "bert"
    assert (result.command, result.name, result.question) == (ASKED.command, "heads", ASKED.question)
    assert json.loads(json.dumps(asdict(result)))["comparisons"][0]["significant"] is True


def test_the_result_is_the_same_twice(studio) -> None:
    assert replace(study(studio), created="") == replace(study(studio), created="")


def test_variants_without_scores_are_named_not_compared(studio) -> None:
    variants = [variant("average", studio.tables()), variant("lstm", {}), variant("bert", studio.tables(1.5))]
    result = study_result(ASKED, variants, [PAIR, ("f", "lstm", "average")])
    assert [found.name for found in result.variants] == ["average", "bert"]
    assert [(item.first, item.second) for item in result.comparisons] == [("bert", "average")]
    assert "lstm has no scores, so it is missing in the tables and comparisons." in result.notes
    assert "Not compared, because scores are missing: lstm – average." in result.notes


def test_runs_that_are_not_counted_are_told(studio) -> None:
    tables = studio.tables()
    del tables[2, 3]  # failed
    result = study_result(ASKED, [variant("average", tables), variant("bert", studio.tables(1.5))], [PAIR])
    told = "average: 1 of 5 runs are not used, because their seeds do not occur in all splits."
    assert result.notes[0] == told
    assert result.comparisons[0].seeds == 2


@pytest.mark.parametrize(
    ("variants", "pairs", "message"),
    [
        ([("a", {})], [], "heads: no variant has scores"),
        ([("a", {}), ("a", {})], [], "two variants have the same name, 'a'"),
        (
            [("a", {})],
            [("f", "a", "b")],
            "a comparison contains 'b', which is not a variant; known variants: a",
        ),
    ],
)
def test_what_cannot_be_said_is_refused(variants, pairs, message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        study_result(ASKED, [variant(*item) for item in variants], pairs)


def notes_of(studio, first: dict, second: dict) -> str:
    pairs = [PAIR]
    return "\n".join(study_result(ASKED, [variant("average", first), variant("bert", second)], pairs).notes)


def test_caveats(studio) -> None:
    def cells(**meta) -> dict:
        return {(1, seed): studio.table(seed=seed, **meta) for seed in (1, 2)}

    assert notes_of(studio, cells(), cells(stream=1)) == ""
    once = {(1, 1): studio.table()}
    assert "Each variant has only one training run" in notes_of(
        studio, once, {(1, 1): studio.table(stream=1)}
    )
    assert (
        "Variants with only one training run, so that the spread between runs is unknown: average."
        in notes_of(studio, once, cells())
    )
    assert "different seeds (average: 1; bert: 1, 2)" in notes_of(studio, once, cells())
    few = notes_of(studio, cells(videos=40), cells(videos=40, stream=1))
    assert "Only 10 source videos" in few
    assert "sources of the videos are unknown" in notes_of(studio, cells(sources=False), cells(sources=False))
    assert "Test-selected" in notes_of(studio, cells(selection="paper"), cells(selection="paper", stream=1))
    mixed = notes_of(studio, cells(), cells(code_version="0.2.0", precision="bf16"))
    assert "different versions of the code: 0.1.0; 0.2.0." in mixed
    assert "different precision: fp32; bf16." in mixed
    assert "1 video not counted" in notes_of(studio, cells(skipped=["x"]), cells(skipped=["x"]))
    other = {(1, seed): studio.table(seed=seed, stream=1) for seed in (5, 6)}
    assert "training runs are paired in order: bert – average" in notes_of(studio, cells(), other)
    splits = cells() | {(2, seed): studio.table(split=2, seed=seed) for seed in (1, 2)}
    assert "different splits (average: 1, 2; bert: 1)" in notes_of(studio, splits, cells(stream=1))


def test_many_comparisons_are_remarked(studio) -> None:
    variants = [
        variant(f"v{place:02d}", {(1, s): studio.table(seed=s, stream=place) for s in (1, 2)})
        for place in range(12)
    ]
    pairs = [("all", f"v{place:02d}", "v00") for place in range(1, 12)]
    result = study_result(ASKED, variants, pairs)
    assert any(note.startswith("11 comparisons are corrected together") for note in result.notes)


def test_the_answer_claims_only_what_tests_show(studio) -> None:
    skills = {"base": 0.7, "same": 0.72, "better": 1.6, "best": 2.0}
    variants = [
        variant(name, studio.tables(skill, stream=place))
        for place, (name, skill) in enumerate(skills.items())
    ]
    pairs = [("f", name, "base") for name in ("same", "better", "best")]
    result = study_result(ASKED, variants, pairs)
    assert [item.significant for item in result.comparisons] == [False, True, True]
    better, best = (f"{100 * item.difference.value:.1f} points" for item in result.comparisons[1:])
    assert result.answer == (
        f"best has the highest top-1, {100 * result.variants[3].accuracy.value:.1f} %. Higher than 'base': better (by "
        f"{better}); best (by {best}). No difference from 'base' shown: same. These were not compared with each other."
    )
    nothing = study_result(
        ASKED,
        [*variants[:2], variant("third", studio.tables(0.7, stream=9))],
        [("f", "same", "base"), ("f", "third", "base")],
    )
    assert nothing.answer.startswith("No difference shown in any of 2 comparisons; ")
    missed = sorted(100 * item.detectable for item in nothing.comparisons)
    assert (
        f"about {missed[0]:.1f} to {missed[1]:.1f} points, by comparison, would be missed" in nothing.answer
    )
    assert study_result(ASKED, variants[:2], []).answer.startswith("Nothing was compared")


def test_the_answer_where_nothing_could_be_seen(studio) -> None:
    few = [
        variant(f"v{place}", {(1, 1): replace(studio.table(stream=place), groups=["a"] * 60 + ["b"] * 60)})
        for place in range(3)
    ]
    result = study_result(ASKED, few, [("f", "v1", "v0"), ("f", "v2", "v0")])
    assert result.answer.startswith("No difference shown in any of 2 comparisons; v")
    assert result.answer.endswith("With these data, not even a large difference could have been detected.")
    assert [item.accuracy.known for item in result.variants] == [False] * 3


def test_one_size_is_named_where_all_comparisons_see_alike(studio) -> None:
    result = study_result(
        ASKED,
        [variant(name, studio.tables(1.0)) for name in ("a", "b", "c")],
        [("f", "b", "a"), ("f", "c", "a")],
    )
    missed = 100 * result.comparisons[0].detectable
    assert result.answer.endswith(f"Differences below about {missed:.1f} points would be missed here.")


def test_fusion_is_part_of_the_study(studio) -> None:
    def cells(seeds=(1, 2), **options) -> dict:
        return {(1, seed): studio.table(seed=seed, **options) for seed in seeds}

    rgb = variant("rgb", cells(), holdout=cells(part="val"))
    flow = variant(
        "flow", cells(stream=1, modality="flow"), holdout=cells(stream=1, modality="flow", part="val")
    )
    asked = replace(ASKED, fusion_rule="l2")
    found = study_result(asked, [rgb, flow], []).fusion
    assert found.fitted_on == "the holdout part (120 videos), for each training run separately"
    assert found.tuned is not None
    plain = study_result(asked, [rgb, replace(flow, holdout={})], []).fusion
    assert (plain.tuned, plain.weights) == (None, {})
    alone = study_result(asked, [rgb], [])
    assert alone.fusion is None
    assert "The study requests a fusion, but only one variant has scores." in alone.notes


def test_values_of_sources_average_to_those_of_variants_and_differences(studio) -> None:
    variants = [
        variant(name, studio.tables(skill, stream=n))
        for n, (name, skill) in enumerate({"a": 1, "b": 2}.items())
    ]
    result = study_result(ASKED, variants, [("f", "b", "a")])
    (compared,) = result.comparisons
    for found, wanted in [(one.sources, one.accuracy) for one in result.variants] + [
        (compared.sources, compared.difference)
    ]:
        assert len(found) == result.groups == 60
        assert np.mean(found) == pytest.approx(wanted.value)
    blind = [
        replace(one, tables={cell: replace(t, groups=None) for cell, t in one.tables.items()})
        for one in variants
    ]
    unknown = study_result(ASKED, blind, [("f", "b", "a")])
    assert unknown.variants[0].sources == unknown.comparisons[0].sources == []
