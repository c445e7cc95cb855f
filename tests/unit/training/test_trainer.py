"""The loop over a tiny network and clips in memory: learning, selection, stopping, resuming in the middle."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.helpers.training import MemoryLoader, TinyNet, memory_data
from two_stream.errors import CheckpointError, DataError, SettingsError, TrainingError
from two_stream.training.run_folder import load_checkpoint
from two_stream.training.tracking import TIME_FIELDS
from two_stream.training.trainer import Trainer, checkpoint_meta
from two_stream.types import Batch

FAST = {"optimizer": {"kind": "adamw", "lr": 0.05}, "schedule": {"kind": "constant"}}


def _lines(trainer: Trainer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in trainer.paths.metrics.read_text().splitlines()]


def _timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIME_FIELDS} for line in lines]


class _HaltError(Exception):
    """Stands for a SIGKILL: nothing of the trainer runs after it."""


def _dying(trainer: Trainer, batches: int) -> None:
    """Let the loader die after so many micro-batches of the run."""
    inner, left = trainer.data.train, [batches]

    def train(epoch: int, skip: int) -> Any:
        loader = inner(epoch, skip)
        whole = loader.__iter__()

        class Dying:
            skipped = loader.skipped

            @property
            def position(self) -> int:
                return loader.position

            def __iter__(self) -> Iterator[Batch]:
                for batch in whole:
                    if not left[0]:
                        raise _HaltError
                    left[0] -= 1
                    yield batch

        return Dying()

    trainer.data = replace(trainer.data, train=train)


def test_a_tiny_net_learns_eight_clips_by_heart(make_trainer: Any) -> None:
    trainer = make_trainer(epochs=15, batch_size=4, **FAST)
    result = trainer.fit()
    lines = _lines(trainer)
    assert lines[0]["train_top1"] < 0.9
    assert lines[-1]["train_top1"] == 1.0
    assert lines[-1]["train_loss"] < 0.2 * lines[0]["train_loss"]
    assert (result.finished, result.epochs, result.best_top1) == (True, 15, 1.0)
    assert [line["epoch"] for line in lines] == list(range(1, 16))
    assert [line["step"] for line in lines] == [2 * epoch for epoch in range(1, 16)]


def test_best_keeps_the_epoch_with_the_highest_accuracy(make_trainer: Any) -> None:
    trainer = make_trainer(epochs=6, **FAST)
    result = trainer.fit()
    lines = _lines(trainer)
    key = [(line["val_top1"], -line["val_loss"]) for line in lines]
    assert result.best_epoch == 1 + key.index(max(key))
    _, state = load_checkpoint(trainer.paths.best)
    assert state["progress"]["epoch"] == result.best_epoch
    assert lines[result.best_epoch - 1]["best"]
    assert not any(line["best"] for line in lines[result.best_epoch :])


_AVERAGED = {"ema": 0.8, "mixup": 0.3, "optimizer": {"kind": "adamw", "lr": 0.02}}
_PLATEAU = {
    "schedule": {"kind": "plateau", "patience": 0},
    "optimizer": {"kind": "sgd", "lr": 3.0},  # far too high: the loss rises and the rate falls
    "precision": "fp16",
    "label_smoothing": 0.1,
}


@pytest.mark.parametrize(
    ("died_after", "train"), [(n, _AVERAGED) for n in (1, 3, 4, 6, 9, 13)] + [(6, _PLATEAU), (13, _PLATEAU)]
)
def test_resumed_equals_continuous(make_trainer: Any, died_after: int, train: dict[str, Any]) -> None:
    settings = {"epochs": 4, "accumulate": 2, "batch_size": 2, "checkpoint_every": 1, **train}
    data = memory_data(7, 2)
    whole = make_trainer("whole", model=TinyNet(dropout=0.3), data=data, **settings)
    whole.fit()
    first = make_trainer("parts", model=TinyNet(dropout=0.3), data=data, **settings)
    _dying(first, died_after)
    with pytest.raises(_HaltError):
        first.fit()
    second = make_trainer("parts", model=TinyNet(dropout=0.3), data=data, **settings)
    if died_after > 2:
        second.restore()
        assert (second.progress.step, second.progress.batch) != (0, 0)
    torch.rand(13)  # the state of the generators must not matter
    second.fit()
    for folder in ("last", "best"):
        ours, theirs = (load_checkpoint(t.paths.root / folder) for t in (second, whole))
        assert all(torch.equal(ours[0][key], value) for key, value in theirs[0].items())
        assert ours[1]["progress"]["step"] == theirs[1]["progress"]["step"]
        assert ours[1]["schedule"] == theirs[1]["schedule"]
        if train.get("ema"):
            assert all(torch.equal(ours[1]["other"][key], v) for key, v in theirs[1]["other"].items())
    assert _timeless(_lines(second)) == _timeless(_lines(whole))
    assert len({line["lr"] for line in _lines(whole)}) > 1, "the rate never changed: no test of its state"


def test_more_epochs_give_the_weights_of_a_longer_run(make_trainer: Any) -> None:
    settings = {"ema": 0.8, "mixup": 0.3, **FAST}
    make_trainer("short", epochs=2, **settings).fit()
    longer = make_trainer("short", epochs=4, **settings)
    longer.restore()
    assert longer.fit().epochs == 4
    whole = make_trainer("whole", epochs=4, **settings)
    whole.fit()
    ours, theirs = (load_checkpoint(trainer.paths.last)[0] for trainer in (longer, whole))
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    assert _timeless(_lines(longer)) == _timeless(_lines(whole))


def test_more_epochs_follow_the_cosine_of_the_longer_schedule(make_trainer: Any) -> None:
    settings = {"optimizer": {"kind": "adamw", "lr": 0.05}, "schedule": {"kind": "cosine"}}
    make_trainer("short", epochs=2, **settings).fit()
    longer = make_trainer("short", epochs=4, **settings)
    longer.restore()
    longer.fit()
    whole = make_trainer("whole", epochs=4, **settings)
    whole.fit()
    ours, theirs = ([line["lr"] for line in _lines(trainer)] for trainer in (longer, whole))
    assert ours[2:] == theirs[2:]
    assert ours[1] < theirs[1]


def test_validation_every_second_epoch_changes_only_what_is_measured(make_trainer: Any) -> None:
    trainer, whole = (make_trainer(f"every{n}", epochs=5, validate_every=n, **FAST) for n in (2, 1))
    result = trainer.fit()
    whole.fit()
    lines, every = _timeless(_lines(trainer)), _timeless(_lines(whole))
    assert [line["epoch"] for line in lines if "val_loss" in line] == [2, 4, 5]
    measured = {"val_loss", "val_top1", "val_top5", "val_skipped"}
    for ours, theirs in zip(lines, every, strict=True):
        missing = set() if ours["epoch"] in (2, 4, 5) else measured
        assert {**ours, "best": 0} == {
            key: v for key, v in {**theirs, "best": 0}.items() if key not in missing
        }
    seen = {line["epoch"]: (line["val_top1"], -line["val_loss"]) for line in lines if "val_loss" in line}
    assert result.best_epoch == max(seen, key=lambda epoch: (seen[epoch], -epoch))
    ours, theirs = (load_checkpoint(made.paths.last)[0] for made in (trainer, whole))
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_within_one_step(make_trainer: Any, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    trainer = make_trainer("stopped", epochs=3)
    steps = trainer.stepper.run
    made = []

    def run(*args: Any) -> Any:
        made.append(1)
        if len(made) == 2:
            os.kill(os.getpid(), number)
        return steps(*args)

    trainer.stepper.run = run
    result = trainer.fit()
    assert result.interrupted == number
    assert len(made) == 2
    assert signal.getsignal(number) is before
    _, state = load_checkpoint(trainer.paths.last)
    assert (state["progress"]["step"], state["progress"]["batch"]) == (2, 2)
    again = make_trainer("stopped", epochs=3)
    again.restore()
    again.fit()
    whole = make_trainer("whole", epochs=3)
    whole.fit()
    ours, theirs = load_checkpoint(again.paths.last)[0], load_checkpoint(whole.paths.last)[0]
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_a_signal_during_validation_resumes_with_the_validation(make_trainer: Any) -> None:
    trainer = make_trainer("stopped", epochs=2)
    inner = trainer.data.validation

    def validation() -> Any:
        for batch in inner():
            os.kill(os.getpid(), signal.SIGINT)
            yield batch

    trainer.data = replace(trainer.data, validation=validation)
    assert trainer.fit().interrupted == signal.SIGINT
    assert trainer.progress.batch == trainer.batches
    again = make_trainer("stopped", epochs=2)
    again.restore()
    again.fit()
    whole = make_trainer("whole", epochs=2)
    whole.fit()
    assert _timeless(_lines(again)) == _timeless(_lines(whole))


def test_a_second_signal_leaves_at_once(make_trainer: Any) -> None:
    before = signal.getsignal(signal.SIGINT)
    trainer = make_trainer()

    def run(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("still here")

    trainer.stepper.run = run
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert signal.getsignal(signal.SIGINT) is before


def test_early_stopping_and_its_counter_survive_a_resume(make_trainer: Any) -> None:
    settings = {"epochs": 9, "early_stopping": 2, "optimizer": {"kind": "sgd", "lr": 1e-12}}
    data = memory_data()
    model = TinyNet()
    model.norm.momentum = 0.0  # nothing moves: the validation loss can only stay the same
    trainer = make_trainer("early", model=model, data=data, **settings)
    result = trainer.fit()
    assert result.finished
    assert result.epochs == 3
    again = make_trainer("early", model=model, data=data, **settings)
    again.restore()
    assert again.fit().already_finished


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(make_trainer: Any) -> None:
    trainer = make_trainer(epochs=3)
    inner = trainer.data.train

    def train(epoch: int, skip: int) -> MemoryLoader:
        if epoch == 1:
            trainer.model.classifier.bias.data.fill_(float("nan"))
        return inner(epoch, skip)

    trainer.data = replace(trainer.data, train=train)
    with pytest.raises(TrainingError, match=r"epoch 2, step 5; clips of the step: clip\d"):
        trainer.fit()
    weights, state = load_checkpoint(trainer.paths.last)
    assert state["progress"]["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_broken_clips_are_counted_and_shift_neither_schedule_nor_resume(make_trainer: Any) -> None:
    broken = {"clip0", "clip1", "clip5"}
    settings = {"epochs": 3, "batch_size": 1, "accumulate": 2, "checkpoint_every": 1}
    settings["schedule"] = {"kind": "multistep", "milestones": [1, 2]}
    whole = make_trainer("whole", data=memory_data(8, 1, broken), **settings)
    whole.fit()
    lines = _lines(whole)
    assert [line["skipped"] for line in lines] == [3, 3, 3]
    assert [line["lr"] for line in lines] == pytest.approx([1e-2, 1e-3, 1e-4])
    assert [line["step"] for line in lines] == [4, 8, 12], "a step has its clips and its place, read or not"
    first = make_trainer("parts", data=memory_data(8, 1, broken), **settings)
    _dying(first, 7)
    with pytest.raises(_HaltError):
        first.fit()
    second = make_trainer("parts", data=memory_data(8, 1, broken), **settings)
    second.restore()
    second.fit()
    assert _timeless(_lines(second)) == _timeless(lines)
    ours, theirs = load_checkpoint(second.paths.last)[0], load_checkpoint(whole.paths.last)[0]
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_nothing_to_train_on_is_an_error(make_trainer: Any) -> None:
    everything = {f"clip{i}" for i in range(8)}
    with pytest.raises(DataError, match="no training clip could be read"):
        make_trainer(data=memory_data(broken=everything)).fit()
    with pytest.raises(DataError, match="validation part has no videos"):
        make_trainer(data=replace(memory_data(), num_val=0))


def test_lines_after_the_checkpoint_are_written_again(make_trainer: Any) -> None:
    trainer = make_trainer(epochs=2)
    trainer.fit()
    wanted = _lines(trainer)
    with trainer.paths.metrics.open("a") as file:
        file.write('{"epoch": 3, "trai')
    again = make_trainer(epochs=2)
    again.restore()
    assert _lines(again) == wanted


def test_changed_lists_and_another_network_cannot_resume(make_trainer: Any) -> None:
    make_trainer(epochs=1).fit()
    with pytest.raises(SettingsError, match="split lists or stored features changed"):
        make_trainer(epochs=1, data=replace(memory_data(), fingerprint="other")).restore()
    other = TinyNet()
    other.classifier = torch.nn.Linear(6, 9)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        make_trainer(epochs=1, model=other).restore()


def test_a_damaged_checkpoint_falls_back_loudly(
    make_trainer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make_trainer("whole", epochs=4, **FAST)
    whole.fit()
    wanted = load_checkpoint(whole.paths.last)[0]
    state = whole.paths.last / "state.pt"
    state.write_bytes(state.read_bytes()[:-50])
    again = make_trainer("whole", epochs=4, **FAST)
    again.restore()
    complaint = capsys.readouterr().err
    assert "state.pt: damaged" in complaint
    assert f"continuing from {whole.paths.best} instead" in complaint
    again.fit()
    repaired = load_checkpoint(whole.paths.last)[0]
    assert all(torch.equal(repaired[key], value) for key, value in wanted.items())
    for folder in (whole.paths.last, whole.paths.best):
        (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        make_trainer("whole", epochs=4, **FAST).restore()


def test_selection_on_the_test_list_is_labelled(make_trainer: Any) -> None:
    trainer = make_trainer(epochs=1, selection="paper")
    assert trainer.fit().selection == "test-selected"
    assert _lines(trainer)[0]["selection"] == "test-selected"
    assert checkpoint_meta(trainer.experiment, trainer.data, trainer.progress)["selection"] == "test-selected"
