"""What a run shows: metrics lines, TensorBoard events, pictures, validation numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from two_stream.config.load import flatten
from two_stream.errors import DataError, SettingsError
from two_stream.evaluation.runs.lookup import history
from two_stream.runtime.plotting import contrast
from two_stream.runtime.text import duration
from two_stream.training import tracking
from two_stream.training.tracking import clip_grid, confusion_figure, flow_to_rgb, write_metrics
from two_stream.training.trainer import validate
from two_stream.types import Batch, RunPaths


def test_metrics_lines_are_strict_json(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    write_metrics(paths, [{"epoch": 1, "val_loss": float("nan")}, {"epoch": 2, "val_loss": float("inf")}])
    lines = paths.metrics.read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        {"epoch": 1, "val_loss": None, "crc32": "92aa2b96"},
        {"epoch": 2, "val_loss": None, "crc32": "3d03665c"},
    ]


def test_every_changed_byte_of_the_metrics_is_noticed(tmp_path: Path, capsys: Any) -> None:
    paths = RunPaths(tmp_path)
    write_metrics(paths, [{"epoch": 1, "loss": 0.25, "val": math.nan}, {"epoch": 2, "loss": 0.125}])
    rows = [{"epoch": 1.0, "loss": 0.25}, {"epoch": 2.0, "loss": 0.125}]
    assert history(paths) == rows
    assert capsys.readouterr().err == ""
    whole = paths.metrics.read_bytes()
    for place in range(len(whole)):
        for bit in (1, 2, 16):
            paths.metrics.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            found, said = history(paths), capsys.readouterr().err
            if found == rows:  # the end of a line may become another line end
                assert whole[place : place + 1] == b"\n" or said
            else:
                assert found == rows[: len(found)]
                assert f"{paths.metrics}: line {len(found) + 1} is damaged" in said
    paths.metrics.write_text('{"epoch": 1, "loss": 0.25}\n')  # of an earlier version
    assert history(paths) == rows[:1]


def test_tensorboard_holds_scalars_pictures_and_hparams(make_trainer: Any) -> None:
    trainer = make_trainer(epochs=2, log_images=True)
    trainer.fit()
    events = EventAccumulator(str(trainer.paths.root)).Reload()
    lines = [json.loads(line) for line in trainer.paths.metrics.read_text().splitlines()]
    found = [(event.step, event.value) for event in events.Scalars("loss/val")]
    assert found == [(line["step"], pytest.approx(line["val_loss"])) for line in lines]
    assert [event.step for event in events.Scalars("step/learning_rate")] == list(range(1, 9))
    assert len(events.Images("validation/confusion")) == 2
    assert len(events.Images("input/clips")) == 1
    assert events.Scalars("final/val_top1")[0].value == pytest.approx(max(line["val_top1"] for line in lines))
    assert "_hparams_/session_start_info" in events.summary_metadata


class Recorder:
    """A tracker of another package; keeps what it is given."""

    def __init__(self, paths: RunPaths, experiment: Any, first_step: int) -> None:
        self.made = (paths.root, experiment.name, first_step)
        self.numbers: list[tuple[str, float, int]] = []
        self.images: list[tuple[str, tuple[int, ...], int]] = []
        self.final: dict[str, float] = {}
        self.closed = False

    def scalars(self, values: Any, step: int) -> None:
        self.numbers += [(name, value, step) for name, value in values.items()]

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        self.images.append((name, picture.shape, step))

    def finish(self, settings: Any, metrics: Any) -> None:
        self.final = dict(metrics)

    def close(self) -> None:
        self.closed = True


def test_a_tracker_of_another_package_receives_what_tensorboard_does(
    make_trainer: Any, monkeypatch: Any
) -> None:
    made: list[Recorder] = []
    entry = SimpleNamespace(
        name="mine", load=lambda: lambda *given: made.append(Recorder(*given)) or made[-1]
    )
    monkeypatch.setattr(
        tracking, "entry_points", lambda group: [entry] if group == "two_stream.trackers" else []
    )
    trainer = make_trainer(epochs=2, log_images=True, trackers=("tensorboard", "mine"))
    trainer.fit()
    (mine,) = made
    events = EventAccumulator(str(trainer.paths.root)).Reload()
    assert mine.closed
    assert mine.made == (trainer.paths.root, trainer.experiment.name, 0)
    for name in events.Tags()["scalars"]:
        own = [(step, value) for tag, value, step in mine.numbers if tag == name]
        own += [(0, mine.final[name])] if name in mine.final else []
        assert own == [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)], name
    assert [(name, step) for name, _, step in mine.images].count(("validation/confusion", 4)) == 1
    assert all(shape[-1] == 3 for _, shape, _ in mine.images)


def test_no_tracker_and_an_unknown_one(make_trainer: Any) -> None:
    trainer = make_trainer(epochs=1, trackers=())
    trainer.fit()
    assert not list(trainer.paths.root.glob("events*"))
    assert len(trainer.paths.metrics.read_text().splitlines()) == 1
    with pytest.raises(
        SettingsError, match=r"`train\.trackers` contains 'wand'; expected some of: tensorboard, wandb"
    ):
        make_trainer(epochs=1, trackers=("wand",)).fit()


def stored_records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a file in LevelDB's log format: blocks of 32 KiB; whole, first, middle and last parts."""
    place, parts = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def test_wandb_stores_the_same_numbers_offline(make_trainer: Any, monkeypatch: Any) -> None:
    wandb = pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trainer = make_trainer(epochs=2, trackers=("tensorboard", "wandb"))
    trainer.fit()
    (file,) = trainer.paths.root.glob("wandb/offline-run-*/*.wandb")
    found = {}
    for data in stored_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        values = {(one.key or one.nested_key[0]): json.loads(one.value_json) for one in record.history.item}
        found |= {
            (name, values["_step"]): value for name, value in values.items() if not name.startswith("_")
        }
    events = EventAccumulator(str(trainer.paths.root)).Reload()
    names = [name for name in events.Tags()["scalars"] if not name.startswith("final/")]
    wanted = {(name, event.step): event.value for name in names for event in events.Scalars(name)}
    assert wandb.__version__
    assert {key: pytest.approx(value) for key, value in found.items()} == wanted


def test_epoch_lines_are_printed_without_a_terminal(make_trainer: Any, capsys: Any) -> None:
    make_trainer(epochs=2).fit()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2
    assert "epoch 1/2" in lines[0]
    assert "left" in lines[0]
    assert "left" not in lines[1]
    assert "clips/s" in lines[1]


def test_flow_wheel_colours() -> None:
    """Right is red, down (+y) yellow-green, left cyan, up violet; stillness is white, faster is more saturated."""
    flow = np.full((1, 6, 2), 128, np.uint8)
    flow[0, 1] = (255, 128)
    flow[0, 2] = (128, 255)
    flow[0, 3] = (0, 128)
    flow[0, 4] = (128, 0)
    flow[0, 5] = (150, 128)
    still, right, down, left, up, slow = flow_to_rgb(flow)[0].astype(int)
    assert still.tolist() == [255, 255, 255]
    assert right[0] == 255
    assert max(right[1:]) < 5
    assert down[1] == 255
    assert abs(down[0] - 128) < 5
    assert left[0] < 5
    assert min(left[1:]) > 250
    assert up[2] == 255
    assert slow[0] == 255
    assert 100 < slow[1] < 220


def test_clip_grid_places_clips_in_rows_and_frames_in_columns() -> None:
    clips = np.zeros((5, 3, 9, 4, 6), np.uint8)
    for clip in range(5):
        for time in range(9):
            clips[clip, :, time] = 20 * clip + time
    grid = clip_grid(clips, clips=3, frames=5)
    assert grid.shape == (12, 30, 3)
    assert grid[0, ::6, 0].tolist() == [0, 2, 4, 6, 8]
    assert grid[::4, 0, 0].tolist() == [0, 20, 40]


def test_confusion_figure_shows_shares_of_the_true_class() -> None:
    figure = confusion_figure(np.array([[3, 1], [0, 0]]), ["a", "b"], "title")
    (image,) = figure.axes[0].images
    assert image.get_array().tolist() == [[0.75, 0.25], [0.0, 0.0]]
    assert [text.get_text() for text in figure.axes[0].texts] == ["3", "1"]
    for text, share in zip(figure.axes[0].texts, (0.75, 0.25), strict=True):
        assert contrast(text.get_color(), image.to_rgba(share)) >= 4.5


class _Fixed(nn.Module):
    """Gives the pixels of a clip as logits."""

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        return clip.flatten(1).float()


def test_validation_equals_numbers_by_hand() -> None:
    logits = torch.tensor([[9, 0, 1, 2, 3, 4], [8, 7, 6, 5, 4, 3], [0, 1, 2, 3, 4, 5]], dtype=torch.uint8)
    labels = torch.tensor([0, 5, 4])
    batches = [Batch(logits[:2], labels[:2], ["a", "b"]), Batch(logits[2:], labels[2:], ["c"])]
    result = validate(_Fixed(), batches, device=torch.device("cpu"), precision="fp32", num_classes=6)
    assert result is not None
    assert result.top1 == pytest.approx(1 / 3)
    assert result.top5 == pytest.approx(2 / 3)  # the true class of b comes sixth
    assert result.loss == pytest.approx(float(F.cross_entropy(logits.float(), labels)))
    assert result.confusion.sum() == 3
    assert result.confusion[0, 0] == result.confusion[5, 0] == result.confusion[4, 5] == 1
    with pytest.raises(DataError, match="no validation clip"):
        validate(_Fixed(), [], device=torch.device("cpu"), precision="fp32", num_classes=6)


def test_flatten_and_clock() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2], "e": {}}
    assert [duration(s) for s in (4.4, 75, 7500)] == ["4.4 s", "1 min 15 s", "2 h 05 min"]
