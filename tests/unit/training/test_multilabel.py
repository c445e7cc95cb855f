"""Training on clips of several classes: validation by mAP, selection by it, what the lines say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from tests.helpers.processes import in_processes
from tests.helpers.training import Clips, MemoryLoader, TinyNet, memory_data, trainer_over
from two_stream.training.data import TrainingData
from two_stream.training.losses import Labels
from two_stream.training.trainer import Trainer, checkpoint_meta, validate
from two_stream.types import Batch

CPU = torch.device("cpu")


def several(count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips whose classes show in the brightness of their channels."""
    draw = torch.Generator().manual_seed(0)
    targets = (torch.rand(count, 3, generator=draw) < 0.5).float()
    targets[~targets.any(1), 0] = 1.0
    clips = torch.randint(0, 120, (count, 3, 4, 6, 6), generator=draw, dtype=torch.uint8)
    clips += (100 * targets).to(torch.uint8)[:, :, None, None, None]
    return clips, targets


def data() -> TrainingData:
    clips, targets = several()
    ids = [f"clip{i}" for i in range(len(clips))]
    return replace(
        memory_data(12),
        train=lambda epoch, skip: MemoryLoader(clips, targets, 2, epoch, skip, set()),
        validation=lambda: [Batch(clips[i : i + 5], targets[i : i + 5], ids[i : i + 5]) for i in (0, 5, 10)],
        num_val=12,
        labels=Labels(3, multi_label=True, counts=tuple(int(n) for n in targets.sum(0)), total=12),
    )


def test_validation_is_map_and_binary_cross_entropy() -> None:
    clips, targets = several()
    model = TinyNet().eval()
    found = validate(model, data().validation(), device=CPU, precision="fp32", num_classes=3)
    assert found is not None
    logits = model(clips).detach()
    assert (
        found.score == found.map == pytest.approx(average_precision_score(targets, logits, average="macro"))
    )
    assert found.loss == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, targets)), rel=1e-5)
    assert found.top1 == pytest.approx(float(targets[range(12), logits.argmax(1)].mean()))
    assert (found.confusion, found.clips) == (None, 12)


def test_a_multi_label_run_learns_and_picks_its_best_epoch_by_map(
    make_trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(
        data=data(), epochs=6, optimizer={"kind": "adamw", "lr": 0.05}, log_images=True, mixup=0.2
    )
    result = trainer.fit()
    assert checkpoint_meta(trainer.experiment, trainer.data, trainer.progress)["multi_label"] is True
    lines = [json.loads(line) for line in result.run.metrics.read_text().splitlines()]
    precisions = [line["val_map"] for line in lines]
    assert result.metric == "mAP"
    assert result.best_top1 == max(precisions) > 0.95
    assert len(set(precisions)) > 2, "nothing to pick from"
    assert [line["epoch"] for line in lines if line["best"]][-1] == result.best_epoch
    assert lines[-1]["train_loss"] < 0.8 * lines[0]["train_loss"]
    assert f"val mAP {100 * precisions[0]:.1f} %" in capsys.readouterr().out


class _Several(Clips):
    """Clips of several classes, from whichever process asks."""

    def __init__(self) -> None:
        super().__init__(12, 2)
        self.pixels, self.labels = several()

    def data(self) -> TrainingData:
        counts = tuple(int(n) for n in self.labels.sum(0))
        return replace(super().data(), labels=Labels(3, multi_label=True, counts=counts, total=12))


@pytest.mark.parametrize("train", [{}, {"cutmix": 1.0, "loss": {"kind": "focal", "weights": "balanced"}}])
def test_two_processes_equal_one_that_accumulates(tmp_path: Path, train: dict[str, Any]) -> None:
    options = {"optimizer": {"kind": "sgd", "lr": 0.3}, **train}
    trainer_over(_Several(), tmp_path / "one", accumulate=2, **options).fit()
    outcomes = in_processes(
        2, lambda rank: trainer_over(_Several(), tmp_path / "two", **options).fit().best_top1
    )
    assert [outcome.error for outcome in outcomes] == ["", ""]
    assert outcomes[0].value == outcomes[1].value, "the processes must agree on the best epoch"
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for line, other in zip(one, two, strict=True):
        for key in ("train_loss", "train_top1", "val_loss", "val_map", "val_top1"):
            assert other[key] == pytest.approx(line[key], rel=1e-9), key
    assert one[0]["train_loss"] != one[-1]["train_loss"]


def test_map_is_over_the_clips_of_all_processes() -> None:
    """Each process holds clips of its own; neither part has the mAP of the whole."""
    clips, targets = several(24)
    targets = targets[
        torch.randperm(24, generator=torch.Generator().manual_seed(3))
    ]  # nothing to see in them

    def part(indices: slice) -> float | None:
        batch = Batch(clips[indices], targets[indices], [str(i) for i in range(24)][indices])
        found = validate(TinyNet().eval(), [batch], device=CPU, precision="fp32", num_classes=3)
        return None if found is None else found.map

    whole, *parts = (part(indices) for indices in (slice(0, 24), slice(0, 10), slice(10, 24)))
    assert len({whole, *parts}) == 3
    outcomes = in_processes(2, lambda rank: part((slice(0, 10), slice(10, 24))[rank]))
    assert [outcome.value for outcome in outcomes] == pytest.approx([whole, whole])
