"""Figures of a study: the front, names that do not cover each other, means of curves."""

import html
import json
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.helpers.studies import HEADS, made_result
from two_stream.evaluation.pictures.cost_figure import (
    CostPoint,
    _chosen_places,
    draw_costs,
    front,
    spread_apart,
)
from two_stream.evaluation.report.page import IntervalRow
from two_stream.evaluation.scores.statistics import Interval
from two_stream.runtime.plotting import INK, MUTED, SERIES
from two_stream.studies.report import study_report as figures
from two_stream.studies.report.study_report import cost_axes, pareto
from two_stream.studies.statistics.results import VariantCost


def point(name, cost, accuracy):
    return CostPoint(name, cost, accuracy, accuracy - 0.1, accuracy + 0.1)


def test_front_is_what_nothing_beats():
    points = [
        *(point("dear", 9.0, 0.8), point("worse and dear", 9.0, 0.7), point("cheap", 1.0, 0.5)),
        *(point("middle", 4.0, 0.8), point("equal", 1.0, 0.5), point("cheap and poor", 1.0, 0.4)),
    ]
    assert [one.name for one in front(points)] == ["cheap", "equal", "middle"]
    assert front([]) == []


def test_cost_of_a_video_where_all_views_are_known():
    result = made_result()
    (label, points), (second, latencies) = cost_axes(result.variants)
    assert (label, second) == ("G multiply-adds per video", "milliseconds per view")
    assert points[0].cost == pytest.approx(8.3 * 20)
    assert latencies[1].cost == 42.5
    first = result.variants[0]
    without = [
        type(first)(**{**vars(first), "cost": VariantCost(1, 2_000_000_000, None, None, None)}),
        *result.variants[1:],
    ]
    (label, points), (_, latencies) = cost_axes(without)
    assert label == "G multiply-adds per view"
    assert points[0].cost == 2.0
    assert len(latencies) == len(HEADS) - 1
    assert cost_axes(result.variants[:1]) == []
    assert pareto([], "top-1") is None


def test_places_are_moved_apart_as_little_as_possible():
    assert spread_apart([0.0, 1.0, 2.0], 0.5) == [0.0, 1.0, 2.0]
    assert spread_apart([1.0, 1.0], 0.5) == pytest.approx([0.75, 1.25])
    assert spread_apart([0.0, 0.9, 1.0, 1.1, 5.0], 0.5) == pytest.approx([0.0, 0.5, 1.0, 1.5, 5.0])
    draw = np.random.default_rng(0)
    for count in (3, 10, 20):
        places = sorted(draw.uniform(size=count).tolist())
        moved = spread_apart(places, 0.06)
        assert min(np.diff(moved)) > 0.06 - 1e-12
        assert np.mean(moved) == pytest.approx(np.mean(places))  # pushed both ways alike
    assert spread_apart([], 0.1) == []


def axes_with(points):
    axis = Figure(figsize=(6, 4)).subplots()
    draw_costs(axis, points, 4.0, (SERIES[2], MUTED, INK))
    return axis


def test_a_small_difference_of_cost_looks_small():
    assert axes_with([point("a", 117, 0.5), point("b", 119, 0.6)]).get_xlim()[0] == 0
    assert axes_with([point("a", 80, 0.5), point("b", 119, 0.6)]).get_xlim()[0] > 70


def test_numbers_of_a_logarithmic_axis_are_plain():
    axis = axes_with([point("a", 2, 0.5), point("b", 18, 0.6)])
    axis.figure.draw_without_rendering()
    shown = {label.get_text() for label in axis.get_xticklabels(which="both")}
    assert {"2", "5", "10", "20"} <= shown
    assert not any("$" in text for text in shown)


def test_names_lie_beside_the_axes_and_their_lines_avoid_points():
    points = [point("far", 10, 0.8), point("near", 100, 0.8), point("low", 60, 0.2)]
    axis = axes_with(points)
    places = {text.get_text(): text.get_position()[1] for text in axis.texts}
    assert places["far"] != places["near"]
    assert all(0 <= place <= 1 for place in places.values())
    dots, slots = np.array([[0.1, 0.5], [0.6, 0.55], [0.3, 0.1]]), np.array([0.1, 0.5, 0.6])
    np.testing.assert_allclose(_chosen_places(dots, slots, 3.5), [0.5, 0.6, 0.1])
    aside = np.array([[0.1, 0.5], [0.55, 0.5], [0.3, 0.1]])  # the line of the first would pass the second
    np.testing.assert_allclose(_chosen_places(aside, slots, 3.5), [0.6, 0.5, 0.1])
    crowd = [point(f"p{n}", 10 + n, float(n > 0)) for n in range(12)]
    places = sorted(text.get_position()[1] for text in axes_with(crowd).texts)
    assert min(places) >= 0
    assert max(places) <= 1
    assert min(np.diff(places)) > 0.04


def texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_every_comparison_and_family_is_named_in_the_forest():
    one, two, *_ = made_result().comparisons
    plain = texts(figures.forest([one, two]))
    assert f"{one.first} − {one.second}" in plain
    assert one.family not in plain
    both = texts(figures.forest([one, type(two)(**{**vars(two), "family": "other"})]))
    assert {one.family, "other"} <= set(both)


def test_a_name_too_long_for_its_row_is_cut():
    svg = figures.forest(
        [type(one)(**{**vars(one), "first": "x" * 90}) for one in made_result().comparisons[:1]]
    )
    assert "x" * 57 + "…" in texts(svg)


def test_single_runs_and_published_values_have_marks_only_where_there_are_any():
    result = made_result()
    rows = figures.variant_rows(result)
    svg = figures.accuracy_rows(rows, "top-1", (0.6, "guessing"))
    assert "guessing" in texts(svg)
    assert [f"{row.name}, published: " in svg for row in rows] == [row.published is not None for row in rows]
    assert figures.dots_note(rows).endswith("Ticks are training runs. Diamonds are published values.")
    bare = [IntervalRow(row.name, row.interval, runs=row.runs[:1]) for row in rows]
    assert figures.dots_note(bare).endswith("the line is its 95 % interval.")


def test_sources_with_nearly_the_same_value_are_one_larger_dot():
    rows = [IntervalRow("a", Interval(0.6, 0.4, 0.8), sources=[0.5, 0.505, 0.75])]
    svg = figures.accuracy_rows(rows, "top-1")
    (values,) = re.findall(r'data-values="([^"]*)"', svg)
    shown = [text for _, _, text in json.loads(html.unescape(values))]
    assert shown == [
        "a: 2 sources at about 50 %",
        "a: 1 source at about 75 %",
        "a: 60.0 % [40.0, 80.0]",
    ]


def test_mean_curves_take_the_epochs_that_all_runs_have():
    runs = [
        [{"epoch": 1.0, "val_top1": 0.2}, {"epoch": 2.0, "val_top1": 0.4}, {"epoch": 3.0, "val_top1": 0.9}],
        [{"epoch": 1.0, "val_top1": 0.4}, {"epoch": 2.0, "val_top1": 0.6}],
        [{"epoch": 1.0, "val_loss": 2.0}],
    ]
    assert figures._mean(runs, "val_top1") == ([1.0, 2.0], pytest.approx([30.0, 50.0]))
    assert figures._mean(runs, "val_loss") == ([1.0], [2.0])
    assert figures._mean(runs, "lr") == ([], [])
    assert figures.learning({"a": [[{"epoch": 1.0, "lr": 0.1}]]}) is None
    assert figures.learning({}) is None


@pytest.mark.parametrize("count", [1, 5, 6, 7, 20])
def test_learning_curves_of_few_and_many_variants(count):
    runs = [
        [{"epoch": 1.0, "val_top1": 0.2, "val_loss": 1.0}, {"epoch": 2.0, "val_top1": 0.4, "val_loss": 0.5}]
    ]
    svg = figures.learning({f"variant {place}": runs * 2 for place in range(count)})
    shown = texts(svg)
    assert all(f"variant {place}" in shown for place in range(count))
    assert ("validation loss" in shown) == (count <= 5)


def test_class_differences_are_sorted_and_cut():
    one = made_result(classes=30).comparisons[0]
    names = [f"c{place}" for place in range(30)]
    shown = [text for text in texts(figures.class_differences(one, names)) if re.fullmatch(r"c\d+", text)]
    values = [one.per_class[int(name[1:])] for name in shown]
    known = sorted((value for value in one.per_class if value is not None), reverse=True)
    assert values == known[:10] + known[-10:]
    nothing = type(one)(**{**vars(one), "per_class": [None] * 30})
    assert figures.class_differences(nothing, names) is None


def test_confusion_differences_write_signed_counts():
    gap = np.array([[3.0, -2.0], [0.2, 0.0]])
    shown = texts(figures.confusion_difference(gap, ["a", "b"], "x"))
    assert {"+3", "−2"} <= set(shown)
    assert "+0" not in shown
