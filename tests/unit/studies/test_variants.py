"""Variants of a study, and which pairs of them are compared."""

from __future__ import annotations

import pytest

from two_stream.config.study import Study
from two_stream.errors import SettingsError
from two_stream.studies.running.plan import Variant, merge_settings, nest_settings, pairs_of, variants_of


def study(**facts: object) -> Study:
    return Study.model_validate({"name": "s", "question": "?", **facts})


GRID = {
    "head": {
        "average": {"model.head.kind": "average"},
        "bert": {"model.head": {"kind": "bert", "layers": 2}},
    },
    "model.input.clip_length": [8, 16],
}


def test_a_grid_is_every_combination_in_the_order_of_the_file():
    found = variants_of(study(grid=GRID))
    assert [variant.name for variant in found] == ["average · 8", "average · 16", "bert · 8", "bert · 16"]
    assert found[3] == Variant(
        "bert · 16",
        {"head": "bert", "model.input.clip_length": "16"},
        {"model": {"head": {"kind": "bert", "layers": 2}, "input": {"clip_length": 16}}},
    )


def test_a_grid_of_more_than_anybody_trains_is_refused_before_it_is_made():
    grid = {f"train.{letter}": list(range(10)) for letter in "abcdefghijklmnopqrst"}
    with pytest.raises(SettingsError, match="has 300,000,000,000,000,000,000 training runs"):
        variants_of(study(grid=grid))


def test_named_variants_are_one_more_factor_beside_a_grid():
    found = variants_of(study(variants={"a": {}, "b": {"seed": 5}}, grid={"train.epochs": [1, 2]}))
    assert [variant.name for variant in found] == ["a · 1", "a · 2", "b · 1", "b · 2"]
    assert found[2].levels == {"variant": "b", "train.epochs": "1"}
    assert found[2].changes == {"seed": 5, "train": {"epochs": 1}}


@pytest.mark.parametrize(
    ("value", "name"),
    [(0.001, "0.001"), (True, "true"), (None, "null"), ([1, 2], "[1, 2]"), ({"kind": "sgd", "lr": 1}, "sgd")],
)
def test_values_of_a_setting_name_their_variants(value, name):
    assert variants_of(study(grid={"train.x": [value, "other"]}))[0].name == name


def test_excluded_variants_are_left_out_and_must_exist():
    assert len(variants_of(study(grid=GRID, exclude=["bert · 8"]))) == 3
    with pytest.raises(SettingsError, match=r"`exclude` names 'bert · 9'.*did you mean `bert · 8`"):
        variants_of(study(grid=GRID, exclude=["bert · 9"]))
    with pytest.raises(SettingsError, match="`published` names 'berd'"):
        variants_of(study(variants={"bert": {}}, published={"berd": {"value": 77.5, "source": "x"}}))
    with pytest.raises(SettingsError, match=r"`grid.train.epochs` has the level '1' twice"):
        variants_of(study(grid={"train.epochs": [1, 1]}))
    with pytest.raises(SettingsError, match="`exclude` removes all variants"):
        variants_of(study(variants={"a": {}}, exclude=["a"]))


def test_a_part_of_another_kind_keeps_nothing_of_the_old_one():
    base = {"model": {"head": {"kind": "bert", "heads": 4}, "dropout": 0.5}}
    assert merge_settings(base, nest_settings({"model.head.kind": "lstm"})) == {
        "model": {"head": {"kind": "lstm"}, "dropout": 0.5}
    }
    assert merge_settings(base, nest_settings({"model.head.layers": 2}))["model"]["head"] == {
        "kind": "bert",
        "heads": 4,
        "layers": 2,
    }
    assert merge_settings(base, nest_settings({"model.head.kind": "bert"}))["model"]["head"] == {
        "kind": "bert",
        "heads": 4,
    }
    assert base == {"model": {"head": {"kind": "bert", "heads": 4}, "dropout": 0.5}}  # untouched


def test_dotted_and_nested_settings_mean_the_same():
    assert nest_settings({"a.b": {"c.d": 1}, "a.e": 2}) == {"a": {"b": {"c": {"d": 1}}, "e": 2}}


def test_the_order_of_keys_does_not_matter():
    wanted = {"model": {"head": {"kind": "lstm", "hidden": 16}}}
    assert nest_settings({"model.head.hidden": 16, "model.head.kind": "lstm"}) == wanted
    base = {"model": {"head": {"kind": "bert", "heads": 4}}}
    hidden, kind = nest_settings({"model.head.hidden": 16}), nest_settings({"model.head.kind": "lstm"})
    assert (
        merge_settings(base, merge_settings(hidden, kind))
        == merge_settings(base, merge_settings(kind, hidden))
        == wanted
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"model.head.kind": "bert", "model": {"head": {"kind": "lstm"}}},
        {"model.head": {"kind": "bert"}, "model": {"head.kind": "bert"}},
    ],
)
def test_a_setting_that_stands_twice_is_refused(changes):
    with pytest.raises(SettingsError, match=r"`model.head.kind` is set twice"):
        nest_settings(changes)


def test_one_variant_is_nothing_to_compare():
    with pytest.raises(
        SettingsError, match=r"there is only one variant \(a\), so there is nothing to compare"
    ):
        pairs([], variants={"a": {}})


def pairs(compare: list[dict[str, object]], **facts: object) -> list[tuple[str, str, str]]:
    made = study(**(facts or {"grid": GRID}), compare=compare)
    return pairs_of(made, variants_of(made))


def test_without_a_wish_everything_is_compared_with_the_first():
    assert pairs([]) == [
        ("against average · 8", name, "average · 8") for name in ("average · 16", "bert · 8", "bert · 16")
    ]


def test_along_a_factor_only_that_factor_differs():
    found = pairs([{"factor": "head", "baseline": "average"}])
    assert [(a, b) for _, a, b in found] == [("bert · 8", "average · 8"), ("bert · 16", "average · 16")]
    found = pairs([{"factor": "head", "baseline": "average", "within": {"model.input.clip_length": "16"}}])
    assert found == [("against average (head)", "bert · 16", "average · 16")]
    every = pairs([{"factor": "model.input.clip_length", "name": "length"}])
    assert every == [("length", "average · 16", "average · 8"), ("length", "bert · 16", "bert · 8")]


def test_pairs_are_taken_as_they_are():
    found = pairs([{"pairs": [["bert · 8", "average · 16"]]}])
    assert found == [("chosen pairs", "bert · 8", "average · 16")]


@pytest.mark.parametrize(
    ("family", "words"),
    [
        (
            {"baseline": "lstm"},
            r"`compare\[0\].baseline`: 'lstm' does not "
            "exist",
        ),
        ({"factor": "haed"}, r"`compare\[0\].factor`: 'haed' does not exist; did you mean `head`"),
        ({"factor": "head", "baseline": "lstm"}, r"`compare\[0\].baseline`: 'lstm' does not exist"),
        (
            {"factor": "head", "within": {"head": "lstm"}},
            r"`compare\[0\].within.head`: 'lstm' does not exist",
        ),
        ({"pairs": [["bert · 8", "x"]]}, r"`compare\[0\].pairs`: 'x' does not exist"),
        (
            {"factor": "head", "baseline": "bert", "within": {"head": "bert"}},
            "so there is nothing to compare",
        ),
    ],
)
def test_a_comparison_that_does_not_exist_is_named(family, words):
    with pytest.raises(SettingsError, match=words):
        pairs([family])
