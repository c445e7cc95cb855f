"""Training from stored features is the training of the frozen network."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.datasets import write_frame_dataset
from tests.helpers.models import difference, settled_model
from tests.helpers.runs import (
    BERT,
    LARGER,
    MOBILENET,
    NONLOCAL,
    SLOWFAST,
    experiment_of,
    save_run,
    with_features,
)
from two_stream.config.schema import Experiment
from two_stream.errors import CheckpointError, FullDiskError, SettingsError
from two_stream.evaluation.features.extract_features import write_features
from two_stream.evaluation.runs.run import evaluate_run, load_run
from two_stream.pretrained import load_weights
from two_stream.recognizer import create_model
from two_stream.training import trainer as trainer_module
from two_stream.training.train import start_model, train

LINES = ("train_loss", "val_loss", "train_top1", "val_top1", "lr")
CENTER = {"views": "single", "crops": "center"}


def start(world: Path, tmp_path: Path, backbone: dict[str, Any] | None = None, **settings: Any) -> Experiment:
    """An experiment that starts from a run with another head, whose backbone is kept."""
    source = experiment_of(
        world, backbone, {"kind": "average"}, name="source", runs=tmp_path, model=settings.get("model", {})
    )
    folder = save_run(source, settled_model(source.model))
    given = {"evaluate": CENTER, **settings}
    given["train"] = {"init": folder, "init_part": "backbone", **settings.get("train", {})}
    head = given.pop("head", BERT)
    return experiment_of(world, backbone, head, runs=tmp_path, **given)


def cache_of(experiment: Experiment, folder: Path, **options: Any) -> Path:
    write_features(start_model(experiment), experiment, folder, **options)
    return folder


def lines(run: Path) -> list[dict[str, float]]:
    return [
        {key: line[key] for key in LINES}
        for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    ]


def weights(run: Path, checkpoint: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / checkpoint / "model.safetensors")


CASES: dict[str, tuple[dict[str, Any] | None, dict[str, Any], dict[str, Any], bool]] = {
    "bert with dropout": (None, BERT, {}, False),
    "lstm, averaged weights": (None, {"kind": "lstm", "hidden": 16}, {"train": {"ema": 0.9}}, False),
    "non-local": (
        None,
        NONLOCAL,
        {"train": {"accumulate": 2, "optimizer": {"kind": "sgd", "lr": 1e-4}}, "model": {"input": LARGER}},
        True,
    ),
    "slowfast late": (SLOWFAST, BERT, {}, False),
    "frab": (None, BERT, {"model": {"reduction": "frab", "reduced_channels": 64}}, False),
    "rare classes weighed up": (
        None,
        {"kind": "average"},
        {"train": {"loss": {"kind": "cross_entropy", "weights": "balanced"}}},
        False,
    ),
    "linear probe": (None, {"kind": "average"}, {"train": {"freeze_until": "head"}}, False),
}


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_the_frozen_network(world: Path, tmp_path: Path, case: str) -> None:
    backbone, head, settings, maps = CASES[case]
    experiment = start(world, tmp_path, backbone, head=head, **settings)
    cache = cache_of(experiment, tmp_path / "cache", train_views=3, maps=maps)
    train(experiment.model_copy(update={"name": "read"}))
    train(with_features(experiment.model_copy(update={"name": "stored"}), cache))
    read, stored = lines(tmp_path / "read"), lines(tmp_path / "stored")
    assert len(read) == len(stored) == 3
    for ours, theirs in zip(stored, read, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5, abs=1e-5)
    assert len({line["train_loss"] for line in read}) == 3
    ours, theirs = weights(tmp_path / "stored"), weights(tmp_path / "read")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        if name.startswith("backbone."):
            assert torch.equal(ours[name], tensor), name
        else:
            assert float((ours[name] - tensor).abs().max()) < 3e-5, name


def test_run_is_an_ordinary_run(world: Path, tmp_path: Path) -> None:
    """Scored on the videos it gives what it gives on the stored views: the whole network was written."""
    experiment = start(world, tmp_path)
    cache = cache_of(experiment, tmp_path / "cache")
    result = train(with_features(experiment, cache))
    assert result.finished
    run = load_run(result.run.root)
    assert run.model.stored is None
    cached, _ = evaluate_run(run)
    read, _ = evaluate_run(run, uncached=True)
    assert difference(cached.logits, read.logits) < 1e-5
    facts = json.loads((result.run.root / "environment.json").read_text())
    assert len(facts["features"]) == 64


def test_epochs_go_round_over_the_stored_clips(world: Path, tmp_path: Path) -> None:
    """With one stored clip every epoch shows the same; with two the third shows the first again."""
    frozen = {"train": {"epochs": 4, "optimizer": {"kind": "sgd", "lr": 1e-12}}, "model": {"dropout": 0.0}}
    experiment = start(world, tmp_path, head={"kind": "average"}, **frozen)
    losses = {}
    for views in (1, 2):
        cache = cache_of(experiment, tmp_path / f"cache{views}", train_views=views)
        named = experiment.model_copy(update={"name": f"views{views}"})
        train(with_features(named, cache))
        losses[views] = [line["train_loss"] for line in lines(tmp_path / f"views{views}")]
    assert losses[1] == pytest.approx([losses[1][0]] * 4, rel=1e-6)
    assert losses[2][2:] == pytest.approx(losses[2][:2], rel=1e-6)
    assert losses[2][0] == pytest.approx(losses[1][0], rel=1e-6)
    assert abs(losses[2][1] - losses[2][0]) > 1e-4


def test_mirrored_clips_have_the_mirror_class(tmp_path: Path) -> None:
    world = write_frame_dataset(tmp_path / "pairs", pairs=True)
    experiment = start(world, tmp_path, data={"augment": {"flip": 0.5}})
    cache = cache_of(experiment, tmp_path / "cache", train_views=3)
    mirrored = np.load(cache / "train_mirrored.npy")
    assert 0 < mirrored.sum() < 27
    assert not mirrored.reshape(9, 4)[:, 0].any()  # the centred clips
    train(experiment.model_copy(update={"name": "read"}))
    train(with_features(experiment.model_copy(update={"name": "stored"}), cache))
    read, stored = lines(tmp_path / "read"), lines(tmp_path / "stored")
    for ours, theirs in zip(stored, read, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5, abs=1e-5)
    (cache / "train_mirrored.npy").unlink()
    np.save(cache / "train_mirrored.npy", ~mirrored)  # which classes the clips have does matter
    (cache / "checksums.json").write_text(_sums(cache))
    train(with_features(experiment.model_copy(update={"name": "wrong"}), cache))
    assert abs(lines(tmp_path / "wrong")[0]["train_loss"] - read[0]["train_loss"]) > 1e-3


def _sums(folder: Path) -> str:
    from two_stream.runtime.files import sha256

    return json.dumps({p.name: sha256(p) for p in folder.iterdir() if p.name != "checksums.json"})


def test_multi_label_targets(tmp_path: Path) -> None:
    world = write_frame_dataset(tmp_path / "multi", multi_label=True)
    experiment = start(world, tmp_path)
    cache = cache_of(experiment, tmp_path / "cache", train_views=3)
    train(experiment.model_copy(update={"name": "read"}))
    train(with_features(experiment.model_copy(update={"name": "stored"}), cache))
    for ours, theirs in zip(lines(tmp_path / "stored"), lines(tmp_path / "read"), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5, abs=1e-5)


def test_other_seeds_have_their_own_holdout(world: Path, tmp_path: Path) -> None:
    experiment = start(world, tmp_path)
    cache = cache_of(experiment, tmp_path / "cache")
    held = set()
    for seed in range(4):
        named = experiment.model_copy(update={"name": f"seed{seed}", "seed": seed})
        result = train(with_features(named, cache, epochs=1))
        table, _ = evaluate_run(result.run.root, part="val", device="cpu")
        held.add(tuple(table.ids))
    assert len(held) > 1


@pytest.mark.parametrize("every", [pytest.param(0.0, marks=pytest.mark.slow), 60.0])
def test_interrupted_run_goes_on_bit_for_bit(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: float
) -> None:
    """Also where `best/` was held back, as between the checkpoints of short epochs it is."""
    monkeypatch.setattr(trainer_module, "SHORT_EPOCHS", every)
    experiment = start(world, tmp_path, train={"epochs": 6, "ema": 0.5})
    cache = cache_of(experiment, tmp_path / "cache", train_views=2)
    whole = with_features(experiment.model_copy(update={"name": "whole"}), cache)
    parts = whole.model_copy(update={"name": "parts"})
    train(whole)
    for step in (5, 13):
        steps = _stop_after(monkeypatch, step)
        assert train(parts, resume=True).interrupted == signal.SIGTERM
        monkeypatch.undo()
        monkeypatch.setattr(trainer_module, "SHORT_EPOCHS", every)
        assert steps[0] == step
    assert train(parts, resume=True).finished
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    for checkpoint in ("best", "last"):
        ours, theirs = weights(tmp_path / "parts", checkpoint), weights(tmp_path / "whole", checkpoint)
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("where", ["checkpoint", "events"])
def test_a_full_disk_is_one_line_and_the_run_goes_on(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """torch's words for a full disk at the second epoch's checkpoint, and TensorBoard's."""
    monkeypatch.setattr(trainer_module, "SHORT_EPOCHS", 0.0)
    experiment = start(world, tmp_path, train={"epochs": 3})
    cache = cache_of(experiment, tmp_path / "cache", train_views=2)
    whole = with_features(experiment.model_copy(update={"name": "whole"}), cache)
    parts = whole.model_copy(update={"name": "parts"})
    train(whole)
    calls: list[int] = []
    home, name = (torch, "save") if where == "checkpoint" else (trainer_module.Tracker, "epoch")
    real = getattr(home, name)

    def full(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == (3 if where == "checkpoint" else 2):  # best and last of an epoch, last of the next
            raise (
                RuntimeError("inline_container.cc:672")
                if where == "checkpoint"
                else OSError(errno.ENOSPC, "full")
            )
        return real(*args, **kwargs)

    monkeypatch.setattr(home, name, full)
    with pytest.raises(
        FullDiskError, match=r"parts.*: no space left.* kept; free some space, then continue with --resume$"
    ):
        train(parts)
    monkeypatch.undo()
    assert train(parts, resume=True).finished
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def _stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> list[int]:
    """Send SIGTERM when so many steps of this process are made; return the steps."""
    made = [0]
    run = trainer_module.Stepper.run

    def counted(self: Any, *args: Any) -> Any:
        made[0] += 1
        if made[0] == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return run(self, *args)

    monkeypatch.setattr(trainer_module.Stepper, "run", counted)
    return made


def test_short_epochs_write_few_checkpoints(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = start(world, tmp_path, train={"epochs": 5})
    cache = cache_of(experiment, tmp_path / "cache")
    written: list[str] = []
    save = trainer_module.save_checkpoint

    def counted(folder: Path, *args: Any) -> None:
        written.append(folder.name)
        save(folder, *args)

    monkeypatch.setattr(trainer_module, "save_checkpoint", counted)
    train(with_features(experiment, cache))
    assert written == ["best", "last"]
    best = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert load_run(tmp_path / "run", "last").meta["epoch"] == best["epoch"] == 5


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_held_checkpoint_is_that_of_the_best_epoch(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    fast = {"epochs": 5, "ema": ema, "optimizer": {"kind": "sgd", "lr": 0.05}}
    experiment = start(world, tmp_path, train=fast)
    cache = cache_of(experiment, tmp_path / "cache")
    found = {}
    for every in (0.0, 60.0):
        monkeypatch.setattr(trainer_module, "SHORT_EPOCHS", every)
        result = train(with_features(experiment.model_copy(update={"name": f"every{every:.0f}"}), cache))
        assert 0 < result.best_epoch < 5
        found[every] = weights(result.run.root, "best")
        assert load_run(result.run.root).meta["epoch"] == result.best_epoch
        last = weights(result.run.root)
        assert not torch.equal(found[every]["classifier.weight"], last["classifier.weight"])
    assert all(torch.equal(found[60.0][name], tensor) for name, tensor in found[0.0].items())


def test_backbone_is_not_run(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = start(world, tmp_path)
    cache = cache_of(experiment, tmp_path / "cache")

    def refuse(*_: object) -> None:
        raise AssertionError("the backbone ran")

    monkeypatch.setattr(type(start_model(experiment).backbone), "forward", refuse)
    assert train(with_features(experiment, cache)).finished


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "backbone": (
        {"train": {"init": None, "init_part": "all"}},
        CheckpointError,
        "by a different backbone.*train.init",
    ),
    "augmentation": (
        {"data": {"augment": {"flip": 0.0}}},
        SettingsError,
        r"`data.augment.flip` 0.5 \(here 0.0\)",
    ),
    "input": (
        {"model": {"input": {"clip_length": 4, "resize": (36, 48), "crop": 32}}},
        SettingsError,
        r"`model.input.clip_length` 8 \(here 4\)",
    ),
    "places": ({"head": NONLOCAL}, SettingsError, "head nonlocal needs feature maps.*--maps"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(world: Path, tmp_path: Path, case: str) -> None:
    settings, kind, words = REFUSED[case]
    experiment = start(world, tmp_path)
    cache = cache_of(experiment, tmp_path / "cache")
    other = start(world, tmp_path, **settings)
    if case == "backbone":
        other = experiment_of(world, runs=tmp_path)
    with pytest.raises(kind, match=words) as caught:
        train(with_features(other, cache))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_features_written_anew_with_other_content_do_not_continue_a_run(world: Path, tmp_path: Path) -> None:
    experiment = start(world, tmp_path)
    cache = cache_of(experiment, tmp_path / "cache")
    stored = with_features(experiment, cache)
    train(stored)
    cache_of(experiment, cache, overwrite=True)
    assert train(stored, resume=True).already_finished  # the same rows
    cache_of(experiment.model_copy(update={"seed": 9}), cache, overwrite=True)
    with pytest.raises(SettingsError, match="stored features changed"):
        train(stored, resume=True)


@pytest.mark.parametrize(
    ("train_options", "words"),
    [
        ({"freeze_until": None}, "expected backbone or head"),
        ({"mixup": 0.2}, "`train.mixup` mixes clips"),
        ({"selection": "paper"}, "set `train.selection: holdout`"),
    ],
)
def test_settings_that_contradict_stored_features(
    world: Path, tmp_path: Path, train_options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        experiment_of(world, data={"features": tmp_path}, train=train_options)


def test_init_part_takes_the_backbone_alone(world: Path, tmp_path: Path) -> None:
    source = experiment_of(world, runs=tmp_path)
    trained = settled_model(source.model)
    folder = save_run(source, trained)
    torch.manual_seed(5)
    model = create_model(source.model, 7)  # another number of classes, the same head
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_weights(model, folder, part="backbone")
    given = trained.state_dict()
    for name, tensor in model.state_dict().items():
        wanted = given if name.startswith("backbone.") else before
        assert torch.equal(tensor, wanted[name]), name
    assert {name.partition(".")[0] for name in report.used} == {"backbone"}
    assert {name.partition(".")[0] for name in report.dropped} == {"heads", "classifier"}
    torch.manual_seed(5)
    frab = create_model(source.model.model_copy(update={"reduction": "frab"}), 3)
    with pytest.raises(CheckpointError, match="missing"):  # the block of FRAB is of the backbone
        load_weights(frab, folder, part="backbone")
    with pytest.raises(ValueError, match="`init_part` requires `init`"):
        experiment_of(world, train={"init_part": "backbone"})


def test_balanced_epochs_show_the_next_clip_of_a_repeated_video(world: Path, tmp_path: Path) -> None:
    from two_stream.data.catalog import load_record
    from two_stream.data.splits import load_part
    from two_stream.evaluation.features.cache import FeatureCache, StoredClips

    experiment = start(world, tmp_path, MOBILENET)
    cache = FeatureCache(cache_of(experiment, tmp_path / "cache", train_views=2))
    record = load_record("toy", world / "settings")
    records = load_part(record, "rgb", 1, "train", selection="paper")
    clips = StoredClips(cache, experiment, records, record)
    batch, _ = clips.batch([4, 4 + 9, 4 + 18], epoch=1)
    rows = clips.part.rows.reshape(9, 3, -1)
    np.testing.assert_array_equal(batch.clips.numpy(), rows[4, [2, 1, 2]])
    assert batch.ids == [records[4].id] * 3
    centred, _ = clips.batch([4], epoch=None)
    np.testing.assert_array_equal(centred.clips.numpy(), rows[4, :1])
