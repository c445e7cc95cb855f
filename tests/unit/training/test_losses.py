"""Losses equal torch's, torchvision's and the papers' formulas; weighted ones keep the exact sum over micro-batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from tests.helpers.training import TinyNet
from two_stream.config.schema import Experiment, TrainOptions
from two_stream.errors import SettingsError
from two_stream.training.losses import (
    Labels,
    Loss,
    build_loss,
    effective_weights,
    evaluation_loss,
    hits,
)
from two_stream.training.optim import Schedule, build_optimizer
from two_stream.training.parallel import Parallel
from two_stream.training.step import Position, Stepper
from two_stream.types import Batch

COUNTS = (6, 1, 3)
SINGLE = Labels(3, counts=COUNTS, total=10)
MULTI = Labels(3, multi_label=True, counts=COUNTS, total=8)


def make(labels: Labels, loss: dict[str, Any] | None = None, **train: Any) -> Loss:
    options = TrainOptions.model_validate({**({"loss": loss} if loss else {}), **train})
    return build_loss(options, labels)


@pytest.fixture
def sample() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(8, 3, generator=draw)
    return logits, torch.randint(0, 3, (8,), generator=draw), (torch.rand(8, 3, generator=draw) < 0.4).float()


def test_auto_follows_the_labels(sample: tuple[torch.Tensor, ...]) -> None:
    logits, labels, targets = sample
    assert float(make(SINGLE)(logits, labels)) == pytest.approx(8 * float(F.cross_entropy(logits, labels)))
    entropy = 8 * float(F.binary_cross_entropy_with_logits(logits, targets))
    assert float(make(MULTI)(logits, targets)) == pytest.approx(entropy)
    assert float(evaluation_loss(logits, targets)) == pytest.approx(entropy)
    assert float(evaluation_loss(logits, labels)) == pytest.approx(8 * float(F.cross_entropy(logits, labels)))


def test_weighted_cross_entropy_is_torchs_sum(sample: tuple[torch.Tensor, ...]) -> None:
    logits, labels, _ = sample
    weights = torch.tensor([1.0, 2.0, 4.0])
    loss = make(SINGLE, {"kind": "cross_entropy", "weights": [1, 2, 4]}, label_smoothing=0.1)(logits, labels)
    torch.testing.assert_close(
        loss, F.cross_entropy(logits, labels, weight=weights, label_smoothing=0.1, reduction="sum")
    )


def test_balanced_weights_follow_the_effective_number() -> None:
    inverse = effective_weights(SINGLE, 1.0)
    assert [w * n for w, n in zip(inverse, COUNTS)] == pytest.approx([10 / 3] * 3), "classes weigh the same"
    beta = 0.9
    paper = [(1 - beta) / (1 - beta**n) for n in COUNTS]
    ours = effective_weights(SINGLE, beta)
    assert [w / ours[0] for w in ours] == pytest.approx([w / paper[0] for w in paper])
    assert sum(n * w for n, w in zip(COUNTS, ours)) == pytest.approx(10.0), "mean 1 over the clips"
    assert effective_weights(SINGLE, 0.0) == pytest.approx([1.0] * 3)
    assert effective_weights(Labels(3, counts=(2, 0, 2), total=4), 1.0) == pytest.approx([1.0] * 3)


def test_focal_of_the_softmax_is_the_papers(sample: tuple[torch.Tensor, ...]) -> None:
    logits, labels, _ = sample
    own = F.softmax(logits.double(), 1).gather(1, labels[:, None])[:, 0]
    expected = sum(-((1 - p) ** 1.5) * math.log(p) for p in own.tolist())
    assert float(make(SINGLE, {"kind": "focal", "gamma": 1.5})(logits, labels)) == pytest.approx(
        expected, rel=1e-5
    )
    plain = make(SINGLE, {"kind": "focal", "gamma": 0.0, "weights": "balanced"})
    weighted = make(SINGLE, {"kind": "cross_entropy", "weights": "balanced"})
    torch.testing.assert_close(plain(logits, labels), weighted(logits, labels))


def test_focal_gradient_of_a_sure_clip_is_finite() -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    make(SINGLE, {"kind": "focal", "gamma": 0.5})(logits, torch.tensor([0])).backward()
    assert torch.isfinite(logits.grad).all()


def test_focal_of_the_sigmoid_is_torchvisions(sample: tuple[torch.Tensor, ...]) -> None:
    logits, _, targets = sample
    for alpha in (0.25, None):
        expected = sigmoid_focal_loss(logits, targets, alpha=-1 if alpha is None else alpha, reduction="none")
        loss = make(MULTI, {"kind": "focal", "alpha": alpha})
        torch.testing.assert_close(loss(logits, targets), expected.mean(1).sum())


def test_bce_takes_one_class_per_video_and_weights(sample: tuple[torch.Tensor, ...]) -> None:
    logits, labels, targets = sample
    shares = F.one_hot(labels, 3).float()
    torch.testing.assert_close(
        make(SINGLE, {"kind": "bce"})(logits, labels), 8 * F.binary_cross_entropy_with_logits(logits, shares)
    )
    weight = torch.tensor([2 / 6, 7.0, 5 / 3])
    torch.testing.assert_close(
        make(MULTI, {"kind": "bce", "pos_weight": "balanced"})(logits, targets),
        8 * F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight),
    )


def test_hits_count_any_class_of_the_video() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 1.0]])
    assert hits(logits, torch.tensor([1, 1])).tolist() == [True, False]
    assert hits(logits, torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])).tolist() == [True, False]


@pytest.mark.parametrize(
    ("labels", "train", "message"),
    [
        (MULTI, {"loss": {"kind": "cross_entropy"}}, "one class per video"),
        (MULTI, {"label_smoothing": 0.1}, "but the loss is bce"),
        (SINGLE, {"loss": {"kind": "focal"}, "label_smoothing": 0.1}, "but the loss is focal"),
        (SINGLE, {"loss": {"kind": "focal", "alpha": 0.25}}, "multi-label"),
        (SINGLE, {"loss": {"kind": "cross_entropy", "weights": [1, 2]}}, "has 2 numbers; expected .*3"),
        (Labels(3), {"loss": {"kind": "bce", "pos_weight": "balanced"}}, "training list"),
    ],
)
def test_contradictions_are_one_line(labels: Labels, train: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        build_loss(TrainOptions.model_validate(train), labels)
    assert "\n" not in str(caught.value)


def test_balancing_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="remove one of them"):
        Experiment.model_validate(
            {"data": {"balance": "classes"}, "train": {"loss": {"kind": "focal", "weights": "balanced"}}}
        )


@pytest.mark.parametrize("sizes", [[4, 4], [3, 3, 2], [1] * 8], ids=str)
@pytest.mark.parametrize(
    "loss",
    [
        {"kind": "cross_entropy", "weights": "balanced", "beta": 0.9},
        {"kind": "focal", "weights": "balanced"},
        {"kind": "bce", "pos_weight": "balanced"},
        {"kind": "focal", "alpha": 0.25},
    ],
    ids=lambda loss: "-".join(map(str, loss.values())),
)
def test_weighted_accumulation_equals_the_large_batch(sizes: list[int], loss: dict[str, Any]) -> None:
    multi = loss["kind"] == "bce" or "alpha" in loss

    def batches(division: list[int], step: int) -> Iterator[Batch]:
        draw = torch.Generator().manual_seed(step)
        clips = torch.randint(0, 256, (8, 3, 4, 6, 6), generator=draw, dtype=torch.uint8)
        single = torch.randint(0, 3, (8,), generator=draw)
        labels = (torch.rand(8, 3, generator=draw) < 0.4).float() if multi else single
        for part in torch.arange(8).split(division):
            yield Batch(clips[part], labels[part], [str(int(i)) for i in part])

    def run(division: list[int]) -> tuple[list[float], dict[str, torch.Tensor]]:
        model = TinyNet(dtype=torch.float64).eval()
        options = TrainOptions.model_validate(
            {"schedule": {"kind": "constant"}, "optimizer": {"kind": "sgd", "lr": 0.5}, "loss": loss}
        )
        optimizer = build_optimizer(model, model.stages(), options.optimizer)
        schedule = Schedule(options.schedule, optimizer, base_lr=0.5, steps_per_epoch=1, epochs=1)
        stepper = Stepper(
            Parallel(model, torch.device("cpu")),
            optimizer,
            schedule,
            options,
            labels=MULTI if multi else SINGLE,
            seed=0,
        )
        losses = []
        for step in range(4):
            result = stepper.run(batches(division, step), len(division), 8, Position(0, step, 0))
            losses.append(result.loss)
        return losses, model.state_dict()

    whole_losses, whole = run([8])
    losses, weights = run(sizes)
    assert whole_losses[0] != pytest.approx(whole_losses[-1], rel=1e-3)
    assert losses == pytest.approx(whole_losses, rel=1e-9)
    for key, value in whole.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-9, atol=1e-12)
