"""One optimizer step: groups of micro-batches equal the large batch; what stops it; mixup; moving average."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.helpers.training import CLASSES, TinyNet
from two_stream.config.schema import TrainOptions
from two_stream.errors import TrainingError
from two_stream.training.losses import Labels
from two_stream.training.optim import Schedule, build_optimizer
from two_stream.training.parallel import Parallel
from two_stream.training.step import Position, Stepper, cut_mix, mix, mix_batch
from two_stream.types import Batch

CPU = torch.device("cpu")


def _clips(count: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    clips = torch.randint(0, 256, (count, 3, 4, 6, 6), generator=draw, dtype=torch.uint8)
    return clips, torch.randint(0, 3, (count,), generator=draw)


def _stepper(model: torch.nn.Module, **train: Any) -> Stepper:
    options = TrainOptions.model_validate({"schedule": {"kind": "constant"}, **train})
    optimizer = build_optimizer(model, model.stages(), options.optimizer)
    schedule = Schedule(
        options.schedule, optimizer, base_lr=options.optimizer.lr, steps_per_epoch=1, epochs=1
    )
    return Stepper(Parallel(model, CPU), optimizer, schedule, options, labels=Labels(3), seed=0)


def _batches(clips: torch.Tensor, labels: torch.Tensor, sizes: list[int]) -> Iterator[Batch]:
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        yield Batch(clips[part], labels[part], [f"clip{i}" for i in range(start, start + size)])
        start += size


@pytest.mark.parametrize(
    "optimizer",
    [{"kind": "sgd", "lr": 0.5, "dampening": 0.9}, {"kind": "adamw", "lr": 0.01}],
    ids=["sgd", "adamw"],
)
@pytest.mark.parametrize("sizes", [[4, 4], [3, 3, 2], [1] * 8, [2, 6]], ids=str)
def test_accumulation_equals_the_large_batch(sizes: list[int], optimizer: dict[str, Any]) -> None:
    """Acceptance 6: batch 8 × 1 equals 2 × 4 and 3 + 3 + 2 in loss and weights after several steps.

    In float64: in float32 five steps took rounding to half of what a limit of 1e-5 allowed.
    """

    def run(division: list[int]) -> tuple[list[float], dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        model = TinyNet(dtype=torch.float64).eval()  # BatchNorm would see other statistics in smaller batches
        stepper = _stepper(model, optimizer=optimizer, label_smoothing=0.1, clip_grad=0.5)
        losses = []
        for step in range(5):
            batches = _batches(*_clips(seed=step), division)
            result = stepper.run(batches, len(division), 8, Position(0, step, 0))
            losses.append(result.loss / result.clips)
        return losses, model.state_dict()

    whole_losses, whole = run([8])
    losses, weights = run(sizes)
    assert whole_losses[0] != pytest.approx(whole_losses[-1], rel=1e-3), "nothing was learnt: no test"
    assert losses == pytest.approx(whole_losses, rel=1e-9)
    for key, value in whole.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-9, atol=1e-12)


def test_clips_left_out_do_not_weaken_the_gradient() -> None:
    """Eight clips were planned and five came: the gradient is the mean over the five."""
    clips, labels = _clips(5)
    model = TinyNet(dtype=torch.float64).eval()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss = F.cross_entropy(model(clips), labels)
    gradients = dict(zip(before, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    stepper = _stepper(model, optimizer={"kind": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0})
    result = stepper.run(_batches(clips, labels, [3, 2]), 2, 8, Position(0, 0, 0))
    assert result.clips == 5
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-9)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.detach(), before[name] - 0.1 * gradients[name], rtol=1e-9, atol=1e-12
        )


def test_gradient_is_clipped_to_the_norm() -> None:
    clips, labels = _clips()
    model = TinyNet().eval()
    before = [p.detach().clone() for p in model.parameters()]
    options = {"optimizer": {"kind": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}}
    result = _stepper(model, clip_grad=0.01, **options).run(
        _batches(clips, labels, [8]), 1, 8, Position(0, 0, 0)
    )
    assert result.grad_norm > 0.02
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(model.parameters(), before, strict=True)])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)


class _Poisoned(TinyNet):
    """Gives logits that are not finite for a clip that begins with 255."""

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        bad = (clip[:, 0, 0, 0, 0] == 255).view(-1, 1)
        return torch.where(bad, float("nan"), super().forward(clip))


def test_loss_that_is_not_finite_names_the_clips_and_changes_no_weight() -> None:
    clips, labels = _clips()
    clips[:, 0, 0, 0, 0] = 0
    clips[5, 0, 0, 0, 0] = 255
    model = _Poisoned()
    before = {k: v.clone() for k, v in model.named_parameters()}
    stepper = _stepper(model)
    with pytest.raises(
        TrainingError, match=r"loss is not finite \(nan\) in epoch 3, step 12; .*clip4, clip5"
    ) as caught:
        stepper.run(_batches(clips, labels, [4, 4]), 2, 8, Position(2, 11, 0))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_gradient_that_is_not_finite_stops_before_the_weights_change() -> None:
    clips, labels = _clips()
    model = TinyNet()
    model.classifier.weight.register_hook(lambda gradient: gradient / 0.0)
    before = model.stem.weight.detach().clone()
    with pytest.raises(TrainingError, match="gradient is not finite"):
        _stepper(model).run(_batches(clips, labels, [8]), 1, 8, Position(0, 0, 0))
    assert torch.equal(model.stem.weight, before)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_learns_and_keeps_float32_weights(precision: str) -> None:
    clips, labels = _clips()
    model = TinyNet()
    stepper = _stepper(model, precision=precision, optimizer={"kind": "adamw", "lr": 0.05})
    losses = [
        stepper.run(_batches(clips, labels, [4, 4]), 2, 8, Position(0, step, 0)).loss for step in range(12)
    ]
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert stepper.scaler.is_enabled() == (precision == "fp16")


def test_fp16_overflow_lowers_the_scale_and_skips_the_step() -> None:
    clips, labels = _clips()
    model = TinyNet()
    stepper = _stepper(model, precision="fp16")
    handle = model.classifier.weight.register_hook(lambda gradient: gradient * float("inf"))
    before, scale = model.stem.weight.detach().clone(), stepper.scaler.get_scale()
    stepper.run(_batches(clips, labels, [8]), 1, 8, Position(0, 0, 0))
    assert torch.equal(model.stem.weight, before)
    assert stepper.scaler.get_scale() == scale / 2
    handle.remove()
    stepper.run(_batches(clips, labels, [8]), 1, 8, Position(0, 1, 0))
    assert not torch.equal(model.stem.weight, before)


def test_dropout_depends_on_the_step_not_on_the_generator() -> None:
    def loss(step: int, disturbance: int) -> float:
        torch.manual_seed(0)
        model = TinyNet(dropout=0.5)
        stepper = _stepper(model)
        torch.rand(disturbance)
        return stepper.run(_batches(*_clips(), [8]), 1, 8, Position(0, step, 0)).loss

    assert loss(3, 0) == loss(3, 17)
    assert loss(3, 0) != loss(4, 0)


def test_moving_average_follows_the_warmed_up_decay() -> None:
    clips, labels = _clips()
    model = TinyNet()
    stepper = _stepper(model, ema=0.5, optimizer={"kind": "sgd", "lr": 0.5})
    assert stepper.ema is not None
    stepper.run(_batches(clips, labels, [8]), 1, 8, Position(0, 0, 0))
    expected = model.classifier.weight.detach().clone()
    torch.testing.assert_close(stepper.ema.module.classifier.weight, expected)  # the first step is copied
    for step in range(1, 6):
        stepper.run(_batches(clips, labels, [8]), 1, 8, Position(0, step, 0))
        decay = min(0.5, 1 - (1 + step) ** (-2 / 3)) if step else 0.0
        expected = decay * expected + (1 - decay) * model.classifier.weight.detach()
        torch.testing.assert_close(stepper.ema.module.classifier.weight.detach(), expected)


def test_mixup_blends_whole_clips_and_their_labels_alike() -> None:
    clips, labels = _clips(6, seed=4)
    mixed, targets = mix(clips, labels, 3, 0.4, key=(1, 2, 3))
    again, _ = mix(clips, labels, 3, 0.4, key=(1, 2, 3))
    other, _ = mix(clips, labels, 3, 0.4, key=(1, 2, 4))
    assert torch.equal(mixed, again)
    assert not torch.equal(mixed, other)
    assert targets.sum(1).tolist() == pytest.approx([1.0] * 6)
    assert (targets.gather(1, labels.view(-1, 1)) >= 0.5).all(), "its own label stays the larger part"
    pixels = clips.float()
    for index in range(6):
        found = False
        for partner in range(6):
            difference = pixels[partner] - pixels[index]
            if partner == index:
                found |= torch.allclose(mixed[index], pixels[index])
                continue
            share = float(((mixed[index] - pixels[index]) * difference).sum() / (difference**2).sum())
            if torch.allclose(mixed[index], pixels[index] + share * difference, atol=1e-2):
                found = True
                own, their = int(labels[index]), int(labels[partner])
                if own != their:
                    assert float(targets[index, their]) == pytest.approx(share, abs=1e-4)
        assert found, f"clip {index} is no blend of two clips with one share for every frame"


def test_mixup_leaves_accuracy_meaningful() -> None:
    """The trainer counts the clip's own label; mixed targets only enter the loss."""
    clips, labels = _clips()
    model = TinyNet().eval()
    result = _stepper(model, mixup=1.0).run(_batches(clips, labels, [8]), 1, 8, Position(0, 0, 0))
    assert 0 <= result.correct <= 8
    plain = F.cross_entropy(TinyNet().eval()(clips), labels, reduction="sum")
    assert result.loss != pytest.approx(float(plain.detach()), rel=1e-6)
    assert len(CLASSES) == 3
    assert np.isfinite(result.loss)


def test_cutmix_puts_one_box_into_every_frame_and_shares_labels_by_area() -> None:
    clips = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1, 1).expand(6, 3, 4, 20, 30).clone()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    boxes = 0
    for number in range(20):
        mixed, targets = cut_mix(clips, labels, 3, 1.0, key=(number,))
        assert mixed.dtype == torch.uint8
        for index in range(6):
            foreign = mixed[index] != index
            assert (foreign == foreign[:1, :1]).all(), "another box in another frame or channel"
            if not foreign.any():
                continue
            partner = int(mixed[index][foreign][0])
            rows, columns = foreign[0, 0].any(1), foreign[0, 0].any(0)
            assert torch.equal(foreign[0, 0], rows[:, None] & columns[None]), "no rectangle"
            assert (mixed[index][foreign] == partner).all()
            expected = torch.zeros(3)
            share = float(foreign[0, 0].float().mean())
            expected[labels[index]] += 1 - share
            expected[labels[partner]] += share
            torch.testing.assert_close(targets[index], expected)
            assert share <= 0.55, "its own label stays the larger part"
            boxes += 1
    assert boxes > 60
    again, _ = cut_mix(clips, labels, 3, 1.0, key=(3,))
    assert torch.equal(again, cut_mix(clips, labels, 3, 1.0, key=(3,))[0])


def test_mixing_is_switched_by_chance_and_takes_several_classes() -> None:
    clips, labels = _clips(6)
    kinds = {"plain": 0, "mixup": 0, "cutmix": 0}
    options = TrainOptions(mixup=0.4, cutmix=1.0, mix_prob=0.6, mix_switch=0.25)
    for number in range(400):
        mixed, targets = mix_batch(clips, labels, 3, options, key=(number,))
        kind = "plain" if targets is labels else "cutmix" if mixed.dtype == torch.uint8 else "mixup"
        kinds[kind] += 1
    assert kinds["plain"] / 400 == pytest.approx(0.4, abs=0.08)
    assert kinds["cutmix"] / (400 - kinds["plain"]) == pytest.approx(0.25, abs=0.08)
    several = F.one_hot(labels, 3).float()
    for number in range(5):
        one = mix_batch(clips, labels, 3, options, key=(number,))
        other = mix_batch(clips, several, 3, options, key=(number,))
        assert torch.equal(one[0], other[0])
        assert one[1].ndim == 1 or torch.equal(one[1], other[1])
