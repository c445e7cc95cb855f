"""Several processes make the steps of one: replicas, divided weights, BatchNorm, uneven ends, errors, stops."""

from __future__ import annotations

import copy
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from tests.helpers.processes import Outcome, in_processes
from tests.helpers.training import CLASSES, Clips, TinyNet, trainer_over
from two_stream.training.batchnorm import SpanningBatchNorm, synchronise_batchnorm
from two_stream.training.run_folder import load_checkpoint
from two_stream.training.tracking import TIME_FIELDS

LEARNING = {
    "optimizer": {"kind": "sgd", "lr": 0.3},
    "schedule": {"kind": "cosine", "warmup_epochs": 1},
    "label_smoothing": 0.1,
    "clip_grad": 0.2,
}
ADAMW = {"kind": "adamw", "lr": 0.02, "eps": 1e-3}
"""with the usual eps, Adam makes whole steps of the rounding of a gradient that is zero (a bias before BatchNorm)"""
CPU = torch.device("cpu")


class _Specified(TinyNet):
    """Says what clips it takes, as a recognizer does; a process without any must know."""

    spec = SimpleNamespace(channels=3, clip_length=4, size=(6, 6))

    def __init__(self) -> None:
        super().__init__(dtype=torch.float64)


def _lines(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIME_FIELDS} for line in lines]


def _assert_same(one: Path, other: Path, *, buffers: bool = True) -> None:
    """Both checkpoints and every line of metrics, up to the rounding of float64."""
    for checkpoint in ("last", "best"):
        (weights, state), (weights_other, state_other) = (
            load_checkpoint(folder / checkpoint) for folder in (one, other)
        )
        assert weights.keys() == weights_other.keys()
        for key, value in weights.items():
            if buffers or not ("running" in key or "tracked" in key):
                torch.testing.assert_close(weights_other[key], value, rtol=1e-9, atol=1e-12, msg=key)
        assert state_other["progress"]["step"] == state["progress"]["step"]
        groups, groups_other = (saved["optimizer"]["param_groups"] for saved in (state, state_other))
        assert [{**group, "fused": None} for group in groups_other] == [
            {**group, "fused": None} for group in groups
        ]
        for index, values in state["optimizer"]["state"].items():
            for name, value in values.items():
                other_value = state_other["optimizer"]["state"][index][name]
                torch.testing.assert_close(other_value, value, rtol=1e-8, atol=1e-11, msg=name)
    lines, others = _lines(one), _lines(other)
    assert lines[0]["train_loss"] != pytest.approx(lines[-1]["train_loss"], rel=1e-3), "nothing was learnt"
    for line, line_other in zip(lines, others, strict=True):
        if not buffers:
            line = {key: value for key, value in line.items() if "val" not in key and key != "best"}
        assert (
            line_other.items()
            >= {
                key: pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
                for key, value in line.items()
            }.items()
        )


def _together(world: int, clips: Clips, root: Path, **train: Any) -> list[Outcome]:
    outcomes = in_processes(world, lambda rank: trainer_over(clips, root, **train).fit().finished)
    assert [outcome.error for outcome in outcomes] == [""] * world
    return outcomes


@pytest.mark.parametrize(
    ("world", "accumulate", "count", "more"),
    [
        (2, 1, 8, {}),
        (2, 2, 15, {"mixup": 0.4, "ema": 0.8}),  # eight micro-batches, the last one of a single clip
        (2, 3, 14, {"last_group": "drop"}),
        (3, 2, 9, {"optimizer": ADAMW}),  # five micro-batches: the second row holds two
        (3, 1, 7, {}),  # four micro-batches: two processes idle in the last step
    ],
    ids=str,
)
def test_processes_equal_one_that_accumulates(
    tmp_path: Path, world: int, accumulate: int, count: int, more: dict[str, Any]
) -> None:
    """Losses, metrics, weights, momenta and BatchNorm's running statistics, uneven ends included."""
    clips, train = Clips(count, 2), {**LEARNING, **more}
    trainer_over(clips, tmp_path / "one", accumulate=accumulate * world, **train).fit()
    _together(world, clips, tmp_path / "more", accumulate=accumulate, **train)
    _assert_same(tmp_path / "one", tmp_path / "more")


def test_clips_left_out_weigh_right_in_every_process(tmp_path: Path) -> None:
    clips = Clips(12, 2, broken={0, 3, 5})
    trainer_over(clips, tmp_path / "one", accumulate=4, **LEARNING).fit()
    _together(2, clips, tmp_path / "more", accumulate=2, **LEARNING)
    _assert_same(tmp_path / "one", tmp_path / "more")
    assert [line["skipped"] for line in _lines(tmp_path / "more")] == [3, 3]


def test_a_micro_batch_that_is_lost_whole_holds_nobody_up(tmp_path: Path) -> None:
    """With one clip per micro-batch a broken clip leaves a process with nothing to do, known to nobody else."""
    clips = Clips(8, 1, broken={1, 2, 5})
    trainer_over(clips, tmp_path / "one", accumulate=4, **LEARNING).fit()
    _together(2, clips, tmp_path / "more", accumulate=2, **LEARNING)
    _assert_same(tmp_path / "one", tmp_path / "more", buffers=False)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(("world", "count"), [(2, 8), pytest.param(3, 14, marks=pytest.mark.slow)], ids=str)
def test_batchnorm_over_all_processes_equals_the_large_batch(
    tmp_path: Path, strategy: str, world: int, count: int
) -> None:
    """With 14 clips and three processes the last row leaves one process without a clip."""

    def run(rank: int) -> None:
        model = synchronise_batchnorm(_Specified(), CPU)
        assert isinstance(model.norm, SpanningBatchNorm)
        train = {**LEARNING, "strategy": strategy, "sync_batchnorm": True}
        trainer_over(Clips(count, 2), tmp_path / "more", model=model, accumulate=2, **train).fit()

    trainer_over(Clips(count, 2 * world), tmp_path / "one", accumulate=2, **LEARNING).fit()
    outcomes = in_processes(world, run)
    assert [outcome.error for outcome in outcomes] == [""] * world
    _assert_same(tmp_path / "one", tmp_path / "more")


def test_a_norm_of_timm_keeps_the_activation_inside_it() -> None:
    """The same clips in both processes have the statistics of one."""

    def run(rank: int) -> list[float]:
        apart = []
        for training in (True, False):
            norm = BatchNormAct2d(3, act_layer=nn.ReLU).train(training)
            x = torch.linspace(-1, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4)
            model = synchronise_batchnorm(nn.Sequential(copy.deepcopy(norm)), CPU)
            assert list(model.state_dict()) == [f"0.{key}" for key in norm.state_dict()]
            wanted = norm(x)
            assert (wanted == 0).any()
            apart.append(float((model(x) - wanted).abs().max()))
        return apart

    for outcome in in_processes(2, run):
        assert outcome.error == ""
        assert max(outcome.value) < 1e-6


@pytest.mark.parametrize("optimizer", [LEARNING["optimizer"], ADAMW], ids=["sgd", "adamw"])
def test_divided_weights_equal_one_process_and_write_its_files(
    tmp_path: Path, optimizer: dict[str, Any]
) -> None:
    clips, train = Clips(13, 2), {**LEARNING, "optimizer": optimizer}
    trainer_over(clips, tmp_path / "one", accumulate=4, **train).fit()

    def run(rank: int) -> list[tuple[int, ...]]:
        trainer = trainer_over(
            clips, tmp_path / "more", model=_Specified(), accumulate=2, strategy="fsdp", **train
        )
        held = [tuple(p.to_local().shape) for p in trainer.model.parameters()]
        trainer.fit()
        return held

    outcomes = in_processes(2, run)
    assert [outcome.error for outcome in outcomes] == ["", ""]
    whole = [tuple(p.shape) for p in TinyNet().parameters()]
    for full, *parts in zip(whole, *(outcome.value for outcome in outcomes), strict=True):
        assert sum(part[0] for part in parts) == full[0], "every process holds a part of every weight"
    _assert_same(tmp_path / "one", tmp_path / "more")


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path, strategy: str) -> None:
    """It keeps the steps it began with: two processes × 2, then one, then three; as if one had made all of it."""
    clips, train = Clips(15, 2), {**LEARNING, "epochs": 4, "accumulate": 2, "strategy": strategy}
    trainer_over(clips, tmp_path / "one", **{**train, "accumulate": 4}).fit()
    root = tmp_path / "more"

    def go(steps: int, *, restore: bool) -> int:
        trainer = trainer_over(clips, root, model=_Specified(), **train)
        if restore:
            trainer.restore()
        run, made = trainer.stepper.run, []

        def counted(*args: Any) -> Any:
            made.append(1)
            if len(made) == steps:
                os.kill(os.getpid(), signal.SIGTERM)
            return run(*args)

        trainer.stepper.run = counted  # type: ignore[method-assign]
        assert trainer.fit().interrupted == (signal.SIGTERM if steps else None)
        return trainer.progress.step

    outcomes = in_processes(2, lambda rank: go(3, restore=False))
    assert [outcome.value for outcome in outcomes] == [3, 3], outcomes
    assert go(2, restore=True) == 5
    outcomes = in_processes(3, lambda rank: go(0, restore=True))
    assert [outcome.value for outcome in outcomes] == [8, 8, 8], outcomes
    _assert_same(tmp_path / "one", root)


def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path: Path) -> None:
    clips = Clips(12, 2)

    def run(rank: int) -> tuple[int | None, int]:
        trainer = trainer_over(clips, tmp_path / "run", **LEARNING)
        inner = trainer.stepper.run

        def step(*args: Any) -> Any:
            if rank == 1 and trainer.progress.step == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return inner(*args)

        trainer.stepper.run = step  # type: ignore[method-assign]
        return trainer.fit().interrupted, trainer.progress.step

    outcomes = in_processes(2, run)
    assert [outcome.value for outcome in outcomes] == [(signal.SIGINT, 2)] * 2, outcomes
    assert load_checkpoint(tmp_path / "run" / "last")[1]["progress"]["step"] == 2


def test_a_signal_during_validation_stops_all(tmp_path: Path) -> None:
    clips = Clips(6, 2)

    def run(rank: int) -> tuple[int | None, int]:
        trainer = trainer_over(clips, tmp_path / "run", **LEARNING)
        inner = clips.validation

        def validation() -> Any:
            for batch in inner():
                if rank == 0:
                    os.kill(os.getpid(), signal.SIGINT)
                yield batch

        clips.validation = validation  # type: ignore[method-assign]
        trainer.data = clips.data()
        return trainer.fit().interrupted, trainer.progress.epoch

    outcomes = in_processes(2, run)
    assert [outcome.value for outcome in outcomes] == [(signal.SIGINT, 0)] * 2, outcomes


class _Poisoned(TinyNet):
    """Gives logits that are not finite for a clip that begins with 255."""

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        bad = (clip[:, 0, 0, 0, 0] == 255).view(-1, 1)
        return torch.where(bad, float("nan"), super().forward(clip))


def test_a_loss_that_is_not_finite_in_one_process_ends_all_with_its_clips(tmp_path: Path) -> None:
    clips = Clips(8, 2)
    clips.pixels[:, 0, 0, 0, 0] = 0
    clips.pixels[5, 0, 0, 0, 0] = 255

    def run(rank: int) -> None:
        trainer_over(clips, tmp_path / "run", model=_Poisoned(), **LEARNING).fit()

    outcomes = in_processes(2, run)
    assert outcomes[0].error == outcomes[1].error
    assert "TrainingError: the loss is not finite (nan) in epoch 1" in outcomes[0].error
    named = outcomes[0].error.partition("clips of the step: ")[2].partition(";")[0].split(", ")
    assert "clip5" in named
    assert len(named) == 2, "only the process with that loss names its clips"
    assert [outcome.told for outcome in outcomes] == [False, True], "one line, from the main process"


@pytest.mark.parametrize("where", ["training", "validation"])
def test_a_clip_that_one_process_cannot_read_ends_all(tmp_path: Path, where: str) -> None:
    clips = Clips(8, 2, fatal={6} if where == "training" else set())

    def run(rank: int) -> None:
        trainer = trainer_over(clips, tmp_path / "run", **LEARNING)
        if where == "validation" and rank == 1:
            broken = Clips(8, 2, fatal={0, 1, 2, 3, 4, 5, 6, 7}).data().train
            trainer.data = clips.data().__class__(
                **{**vars(trainer.data), "validation": lambda: broken(0, 0, 2)}
            )
        trainer.fit()

    outcomes = in_processes(2, run)
    assert outcomes[0].error == outcomes[1].error
    assert "DataError: clip of batch" in outcomes[0].error
    assert [outcome.told for outcome in outcomes] == [False, True]


def test_an_overflow_in_one_process_skips_the_step_in_all(tmp_path: Path) -> None:
    clips = Clips(6, 2)

    def run(rank: int) -> tuple[list[float], bool, bool]:
        model = TinyNet()
        trainer = trainer_over(clips, tmp_path / "run", model=model, precision="fp16", epochs=2, **LEARNING)
        steps: list[float] = []
        if rank == 1:  # the first step only
            model.classifier.weight.register_hook(lambda g: g / 0.0 if not steps else g)
        before, inner, kept = model.classifier.weight.detach().clone(), trainer.stepper.run, []

        def step(*args: Any) -> Any:
            result = inner(*args)
            steps.append(trainer.stepper.scaler.get_scale())
            kept.append(torch.equal(before, model.classifier.weight))
            return result

        trainer.stepper.run = step  # type: ignore[method-assign]
        trainer.fit()
        return steps, kept[0], kept[1]

    outcomes = in_processes(2, run)
    assert not outcomes[0].error, outcomes
    assert outcomes[0].value == outcomes[1].value
    scales, first_skipped, second_skipped = outcomes[0].value
    assert scales[0] == 2.0**15
    assert first_skipped
    assert not second_skipped


@pytest.mark.parametrize("accumulate", [1, 4])
def test_gradients_are_exchanged_once_per_step(tmp_path: Path, accumulate: int) -> None:
    clips = Clips(16, 2)

    def run(rank: int) -> int:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        trainer = trainer_over(clips, tmp_path / "run", accumulate=accumulate, **{**LEARNING, "epochs": 1})
        exchanged = []

        def hook(group, bucket):  # type: ignore[no-untyped-def]
            exchanged.append(bucket.buffer().numel())
            return allreduce_hook(group, bucket)

        trainer.parallel._wrapped.register_comm_hook(None, hook)
        trainer.fit()
        assert sum(exchanged) == trainer.steps * sum(p.numel() for p in trainer.model.parameters())
        return len(exchanged)

    outcomes = in_processes(2, run)
    assert [outcome.error for outcome in outcomes] == ["", ""]
    steps = 8 // (2 * accumulate)
    assert outcomes[0].value == outcomes[1].value == steps


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    clips = Clips(6, 2)

    def run(rank: int) -> list[str]:
        trainer_over(clips, tmp_path / str(rank), **LEARNING).fit()
        return sorted(path.name.partition(".")[0] for path in (tmp_path / str(rank)).iterdir())

    outcomes = in_processes(2, run)
    assert outcomes[0].value == ["best", "events", "last", "metrics"], outcomes
    assert outcomes[1].value == []


def test_dropout_differs_between_processes_and_repeats(tmp_path: Path) -> None:
    clips = Clips(8, 2)

    def run(rank: int) -> list[float]:
        model = TinyNet(dropout=0.5)
        seen: list[float] = []
        model.dropout.register_forward_hook(
            lambda m, i, o: seen.append(float((o == 0).double().sum())) and None
        )
        trainer_over(clips, tmp_path / "run", model=model, **LEARNING).fit()
        return seen

    first, second = in_processes(2, run), in_processes(2, run)
    assert [o.value for o in first] == [o.value for o in second]
    assert first[0].value != first[1].value
    assert len(CLASSES) == 3
