import gzip
import json

import numpy as np
import pytest
from scipy.special import softmax

from two_stream.errors import ScoreError
from two_stream.evaluation.scores import fusion
from two_stream.evaluation.scores.fusion import fuse, weight_curve
from two_stream.evaluation.scores.metrics import top_k_accuracy
from two_stream.types import ScoreTable


def make(logits, labels=None, ids=None, names=None, **meta):
    logits = np.asarray(logits, dtype=np.float64)
    count, classes = logits.shape
    labels = np.zeros(count, dtype=np.int64) if labels is None else np.asarray(labels, dtype=np.int64)
    ids = ids or [f"v{i}" for i in range(count)]
    return ScoreTable(list(ids), labels, names or [f"c{i}" for i in range(classes)], logits, meta)


RGB = [[3.0, 4.0], [1.0, 0.0]]
FLOW = [[0.0, 2.0], [-6.0, 8.0]]


@pytest.mark.parametrize(
    ("rule", "weights", "expected"),
    [
        ("l2", None, [[0.6, 1.8], [0.4, 0.8]]),
        ("l2", [2, 1], [[1.2, 2.6], [1.4, 0.8]]),
        ("logits", [1, 0.5], [[3.0, 5.0], [-2.0, 4.0]]),
        ("rank", None, [[0.0, 2.0], [1.0, 1.0]]),
        ("rank", [3, 1], [[0.0, 4.0], [3.0, 1.0]]),
    ],
)
def test_rules_by_hand(rule, weights, expected):
    fused = fuse([make(RGB, modality="rgb"), make(FLOW, modality="flow")], rule, weights)
    np.testing.assert_allclose(fused.logits, expected)
    assert fused.meta["rule"] == rule
    assert fused.meta["weights"] == (weights or [1.0, 1.0])
    assert [source["modality"] for source in fused.meta["sources"]] == ["rgb", "flow"]
    assert fused.meta["modality"] == "rgb + flow"


def test_probabilities_rule_stores_logarithms_of_the_mean():
    fused = fuse([make(RGB), make(FLOW)], "probabilities", [3, 1])
    expected = (3 * softmax(RGB, axis=1) + softmax(FLOW, axis=1)) / 4
    np.testing.assert_allclose(np.exp(fused.logits), expected)
    assert fused.meta["scale"] == "log-probabilities"


def test_a_stream_of_zeros_does_not_divide_by_zero():
    fused = fuse([make([[0.0, 0.0]]), make([[3.0, 4.0]])], "l2")
    np.testing.assert_allclose(fused.logits, [[0.6, 0.8]])


def test_ranks_share_ties():
    fused = fuse([make([[1.0, 1.0, 5.0]]), make([[0.0, 1.0, 2.0]])], "rank")
    np.testing.assert_allclose(fused.logits, [[0.5, 1.5, 4.0]])


def test_fusion_is_by_id_and_takes_more_than_two():
    first = make([[1.0, 0], [0, 2.0]], ids=["a", "b"])
    second = make([[0, 3.0], [4.0, 0]], ids=["b", "a"])
    fused = fuse([first, second, first], "logits")
    assert fused.ids == ["a", "b"]
    np.testing.assert_allclose(fused.logits, [[6, 0], [0, 7]])


def test_reference_scores_of_the_published_evaluator(shared):
    """`late_temporal/evaluator_demo.json.gz`: the published fused scores follow from its streams' own."""
    path = shared / "fixtures" / "late_temporal" / "evaluator_demo.json.gz"
    demo = json.loads(gzip.decompress(path.read_bytes()))["videos"]["demo"]
    runs = {(r["kind"], r["ten_crop"], r["modality"], r["num_frames_arg"]): r for r in demo["runs"]}
    assert len(demo["combined"]) == 8
    for case in demo["combined"]:
        duration = 150 if case["variant"] == "rgb_own_duration" else 149
        rgb = runs[case["kind"], case["ten_crop"], "rgb", duration]
        flow = runs[case["kind"], case["ten_crop"], "flow", 0]
        fused = fuse([make([rgb["mean_scores"]]), make([flow["mean_scores"]])])
        np.testing.assert_allclose(fused.logits[0], case["scores"], atol=2e-7)
        assert int(fused.logits[0].argmax()) == case["prediction"]
        assert np.argsort(-fused.logits[0])[:3].tolist() == case["top3"]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda a, b: fuse([a]), "two or more score tables, found 1"),
        (lambda a, b: fuse([a, b], "mean"), "unknown fusion rule 'mean'; expected one of: l2, logits"),
        (lambda a, b: fuse([a, b], weights=[1]), "1 weights for 2 score tables"),
        (lambda a, b: fuse([a, b], weights=[1, -1]), "0 or more"),
        (lambda a, b: fuse([a, b], weights=[0, 0]), "not all 0"),
        (lambda a, b: fuse([a, b], "learned"), "--part val"),
        (lambda a, b: fuse([a, b], "l2", [1, 1], fit=[a, b]), "cannot be both set and fitted"),
    ],
)
def test_unusable_calls_are_one_line(call, match):
    with pytest.raises(ScoreError, match=match) as caught:
        call(make(RGB), make(FLOW))
    assert "\n" not in str(caught.value)


def streams(seed: int, part: str, count: int = 400, noise=(1.0, 3.0), classes: int = 4, **extra):
    """Two streams of informative logits; stream m's noise has standard deviation noise[m]."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, size=count)
    ids = [f"{part}{seed}-{i}" for i in range(count)]
    return [
        make(
            2 * np.eye(classes)[labels] + sigma * generator.normal(size=(count, classes)),
            labels,
            ids,
            modality=name,
            part=part,
            selection="holdout",
            model_sha256=f"hash-{name}",
            **extra,
        )
        for name, sigma in zip(("rgb", "flow"), noise)
    ]


def test_learned_weights_are_the_bayes_ones():
    """With Gaussian noise the log-likelihood is sum of 2/sigma² · logits: weights 2 and 2/9."""
    fused = fuse(streams(1, "test"), "learned", fit=streams(2, "val", count=20000))
    weights = fused.meta["weights"]
    assert weights[0] == pytest.approx(2.0, rel=0.05)
    assert weights[1] == pytest.approx(2 / 9, rel=0.15)
    assert fused.meta["temperature"] == pytest.approx(1 / sum(weights))
    assert fused.meta["fitted_videos"] == 20000
    assert fused.meta["scale"] == "logits"
    test = streams(1, "test")
    np.testing.assert_allclose(fused.logits, weights[0] * test[0].logits + weights[1] * test[1].logits)
    best = max(top_k_accuracy(t.logits, t.labels) for t in test)
    assert top_k_accuracy(fused.logits, fused.labels) >= best


def test_learned_weights_stay_finite_on_a_perfect_holdout_and_drop_a_harmful_stream():
    val, test = streams(2, "val", noise=(0.01, 1.0)), streams(1, "test")
    assert all(np.isfinite(fuse(test, "learned", fit=val).meta["weights"]))
    val[1].logits = -val[1].logits
    assert fuse(test, "learned", fit=val).meta["weights"][1] == 0.0


def test_fitting_tables_are_matched_by_model_not_by_place():
    test, val = streams(1, "test"), streams(2, "val")
    one, two = fuse(test, "learned", fit=val), fuse(test, "learned", fit=val[::-1])
    assert one.meta["weights"] == two.meta["weights"]
    val[0].meta["model_sha256"] = "another"
    with pytest.raises(ScoreError, match="not from any of the fused models"):
        fuse(test, "learned", fit=val)


def test_the_test_part_is_refused_as_fitting_data():
    test = streams(1, "test")
    with pytest.raises(ScoreError, match="rgb: scores of the test part cannot be used to fit"):
        fuse(test, "learned", fit=streams(3, "test"))
    with pytest.raises(ScoreError, match="part 'train'"):
        fuse(test, "learned", fit=streams(3, "train"))
    paper = streams(3, "val")
    paper[0].meta["selection"] = "paper"  # its "val" is the test list
    with pytest.raises(ScoreError, match="scores of the test part"):
        fuse(test, "learned", fit=paper)
    with pytest.raises(ScoreError, match="test part"):
        weight_curve(*test)
    val = streams(2, "val")
    renamed = [make(t.logits, t.labels, val[0].ids, **{**t.meta, "part": "test"}) for t in streams(1, "test")]
    with pytest.raises(ScoreError, match="is used both for fitting and for fusing"):
        fuse(renamed, "learned", fit=val)
    with pytest.raises(ScoreError, match="1 holdout score files for 2 streams"):
        fuse(test, "learned", fit=val[:1])


def test_searched_weights_lean_on_the_better_stream():
    fused = fuse(streams(1, "test"), "logits", fit=streams(2, "val", count=4000))
    assert sum(fused.meta["weights"]) == pytest.approx(1.0)
    assert fused.meta["weights"][0] > 0.75
    assert "temperature" not in fused.meta
    three = [
        *streams(2, "val"),
        make(np.zeros((400, 4)), streams(2, "val")[0].labels, streams(2, "val")[0].ids),
    ]
    found = fusion.search_weights(three, "logits")
    assert sum(found) == pytest.approx(1.0)
    assert found[0] > found[1]


def test_curve_ends_are_the_streams_and_its_choice_is_its_maximum():
    rgb, flow = streams(2, "val")
    curve = weight_curve(rgb, flow, "l2")
    assert curve.accuracies[0] == top_k_accuracy(flow.logits, flow.labels)
    assert curve.accuracies[-1] == top_k_accuracy(rgb.logits, rgb.labels)
    assert curve.accuracy == max(curve.accuracies)
    assert curve.accuracies[round(curve.chosen * 100)] == curve.accuracy
    assert curve.names == ("rgb", "flow")
    assert (curve.part, curve.videos) == ("val", 400)


def test_the_choice_is_the_middle_of_the_plateau_nearest_to_one_half():
    shares = np.linspace(0, 1, 11)
    found = np.asarray([0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0.0])
    assert fusion._middle_of_best(found, shares) == 2
    assert fusion._middle_of_best(np.ones(11), shares) == 5


def test_meta_joins_the_sources_and_marks_test_selection():
    rgb, flow = make(RGB, modality="rgb", split=1, selection="holdout"), make(FLOW, modality="flow", split=1)
    flow.meta["selection"] = "paper"
    fused = fuse([rgb, flow])
    assert fused.meta["split"] == 1
    assert fused.meta["selection"] == "paper"
    assert fused.meta["scale"] == "ranking"
