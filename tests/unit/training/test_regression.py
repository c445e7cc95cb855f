"""Logistic regression on vectors against scikit-learn's pipeline and a cross-validation written out."""

import time

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from two_stream.config.schema import Logistic
from two_stream.errors import TrainingError
from two_stream.training import regression
from two_stream.training.regression import ABSENT, Vectors, choose, fit_regression, sample_weights


def made(videos: int, width: int, classes: int, seed: int = 0, apart: float = 1.0) -> Vectors:
    """Vectors of unequal scale around the mean of their class; class k has about twice as many as class k + 1."""
    rng = np.random.default_rng(seed)
    share = 0.5 ** np.arange(classes)
    labels = rng.choice(classes, videos, p=share / share.sum())
    labels[:classes] = np.arange(classes)
    means = apart * rng.normal(size=(classes, width))
    rows = (means[labels] + rng.normal(size=(videos, width))) * rng.uniform(0.01, 100, width) + 50
    return Vectors(rows, labels, np.arange(videos))


def pipeline(c: float, **options: object) -> object:
    estimator = LogisticRegression(C=c, tol=1e-10, max_iter=100_000, **options)
    return make_pipeline(StandardScaler(), estimator)


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("width", [5, 300], ids=["more rows than columns", "fewer"])
@pytest.mark.parametrize("c", [1e-3, 1.0])
def test_it_is_scikit_learns_pipeline(balanced, width, c):
    vectors = made(80, width, 3)
    vectors.rows[:, 2] = 0.1  # a constant channel
    weight, bias = fit_regression(vectors, c, balanced, 3)
    wanted = pipeline(c, class_weight="balanced" if balanced else None).fit(vectors.rows, vectors.labels)
    logits = vectors.rows @ weight.T + bias
    np.testing.assert_allclose(logits, wanted.decision_function(vectors.rows), rtol=0, atol=1e-4)


def test_two_classes_share_the_one_logit():
    vectors = made(60, 4, 2)
    weight, bias = fit_regression(vectors, 0.3, True, 2)
    wanted = pipeline(0.3, class_weight="balanced").fit(vectors.rows, vectors.labels)
    logits = vectors.rows @ weight.T + bias
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], wanted.decision_function(vectors.rows), atol=1e-4)
    np.testing.assert_allclose(logits.sum(1), 0, atol=1e-6)


def test_a_class_without_videos_is_never_the_answer():
    vectors = made(60, 4, 3)
    moved = Vectors(vectors.rows, np.array([0, 2, 4])[vectors.labels], vectors.videos)
    weight, bias = fit_regression(moved, 1.0, True, 6)
    three, three_bias = fit_regression(vectors, 1.0, True, 3)
    np.testing.assert_array_equal(weight[[0, 2, 4]], three)
    np.testing.assert_array_equal(bias[[0, 2, 4]], three_bias)
    logits = moved.rows @ weight.T + bias
    assert (logits[:, [1, 3, 5]] == ABSENT).all()
    assert set(logits.argmax(1)) <= {0, 2, 4}


def test_one_class_is_refused():
    vectors = made(5, 4, 2)
    with pytest.raises(TrainingError, match=r"^the training part has videos of one class only; .*$"):
        fit_regression(Vectors(vectors.rows, np.zeros(5, np.int64), vectors.videos), 1.0, True, 2)


def test_clips_of_a_video_weigh_as_much_as_one():
    vectors = made(60, 4, 3)
    twice = np.concatenate((np.arange(60), np.arange(60), np.arange(60)))
    many = Vectors(vectors.rows[twice], vectors.labels[twice], vectors.videos[twice])
    for balanced in (True, False):
        for one, other in zip(
            fit_regression(vectors, 0.1, balanced, 3), fit_regression(many, 0.1, balanced, 3), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    uneven = Vectors(
        vectors.rows, vectors.labels, np.maximum(vectors.videos - 2, 0)
    )  # a video of three clips
    assert sample_weights(uneven, False)[:3].tolist() == [1 / 3] * 3
    mass = np.bincount(uneven.labels, sample_weights(uneven, True))
    np.testing.assert_allclose(mass, 58 / 3)


@pytest.mark.parametrize("width", [4, 90])
def test_the_choice_is_that_of_a_grouped_cross_validation(width, monkeypatch):
    vectors = made(60, width, 3, apart=1.2 if width < 60 else 0.25)
    groups = [f"source {video // 4}" for video in range(60)]
    parts = list(GroupKFold(5).split(vectors.rows, vectors.labels, groups))
    monkeypatch.setattr(regression, "_folds", lambda *_: iter([test for _, test in parts]))
    options = Logistic(cs=(1e-3, 1e-2, 0.1, 1.0, 10.0), balanced=False)
    chosen = choose(vectors, groups, options)
    losses = []
    for c in options.cs:
        loss = 0.0
        for train, test in parts:
            assert set(vectors.labels[train]) == {0, 1, 2}
            model = pipeline(c).fit(vectors.rows[train], vectors.labels[train])
            said = model.predict_proba(vectors.rows[test])
            loss += log_loss(vectors.labels[test], said, labels=[0, 1, 2], normalize=False)
        losses.append(loss / 60)
    np.testing.assert_allclose([row["loss"] for row in chosen.table], losses, rtol=1e-3)
    assert chosen.c == options.cs[int(np.argmin(losses))]
    assert chosen.c not in (1e-3, 10.0)  # the case tells


def test_no_source_stands_on_both_sides_and_every_video_is_held_out_once_per_repeat():
    labels, sources = np.arange(40) % 3, np.array([f"s{video // 5}" for video in range(40)])
    held_out = list(regression._folds(labels, sources, 4, 3, seed=0))
    assert len(held_out) == 12
    for repeat in range(3):
        assert sorted(np.concatenate(held_out[4 * repeat : 4 * repeat + 4])) == list(range(40))
    for test in held_out:
        assert not set(sources[test]) & set(np.delete(sources, test))
    assert [t.tolist() for t in held_out[:4]] != [t.tolist() for t in held_out[4:8]]


def test_fewer_sources_than_folds_and_a_class_of_one_source():
    vectors = made(30, 4, 3)
    groups = [
        "a" if label < 2 and video % 2 else "b" if label < 2 else "c"
        for video, label in enumerate(vectors.labels)
    ]
    chosen = choose(vectors, groups, Logistic())
    assert chosen.folds == 3
    assert all(np.isfinite(row["loss"]) for row in chosen.table)
    assert choose(vectors, ["one"] * 30, Logistic()).c == sorted(Logistic().cs)[6]
    assert choose(vectors, [""] * 30, Logistic(cs=(0.1, 1.0))).folds == 5
    assert choose(vectors, [""] * 30, Logistic(), stopped=lambda: True) is None


def test_of_equals_the_smaller_c_is_taken(monkeypatch):
    monkeypatch.setattr(regression, "_held_out", lambda *_: np.tile((2.0, 1.0, 4.0), (3, 1)))
    chosen = choose(made(30, 4, 2), [""] * 30, Logistic(cs=(1.0, 0.1, 10.0)))
    assert chosen.c == 0.1
    assert chosen.table[0] == {"c": 0.1, "loss": 0.5, "top1": 0.25}


@pytest.mark.slow
def test_a_usual_problem_takes_seconds():
    """200 videos of 3,840 numbers, 8 classes, 10 Cs, 15 folds: 6 s on one core of an AMD EPYC (Zen 4)."""
    begin = time.process_time()
    choose(made(200, 3840, 8, apart=0.05), [""] * 200, Logistic(cs=tuple(np.logspace(-5, 1, 10))))
    assert time.process_time() - begin < 60
