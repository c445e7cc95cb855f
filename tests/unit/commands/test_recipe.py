"""`two-stream train --recipe late-temporal`: the published trainers' flags become an experiment of ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from two_stream import zoo
from two_stream.cli import main
from two_stream.commands.flags import take_value
from two_stream.config.load import dump, load_experiment
from two_stream.config.schema import AugmentOptions, Experiment
from two_stream.errors import SettingsError
from two_stream.evaluation.scores.files import read_scores
from two_stream.late_temporal.training import SGD_ARCHITECTURES, STARTS, split_flags
from two_stream.pretrained.files.manifest import read_manifest
from two_stream.training.trainer import TrainResult
from two_stream.types import RunPaths

RECIPE = ["train", "--recipe", "late-temporal"]
BERT = "rgb_resneXt3D64f101_bert10_FRMB"
SMALL = "efficient3d/mobilenetv2_0.2x"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with split lists of HMDB51 and a record, as `two-stream prepare` leaves them."""
    monkeypatch.chdir(tmp_path)
    lists = tmp_path / "settings" / "hmdb51"
    lists.mkdir(parents=True)
    for name in ("train_rgb_split1.txt", "val_rgb_split1.txt", "train_flow_split1.txt"):
        (lists / name).write_text("video 70 3\n")
    record = {"name": "hmdb51", "classes": [str(i) for i in range(51)], "frames": {"rgb": "frames"}}
    (lists / "dataset.yaml").write_text(yaml.safe_dump(record))
    return tmp_path


Asked = Callable[..., tuple[Experiment, dict[str, bool]]]


@pytest.fixture
def asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Run the command and return what it asks the trainer for."""

    def run(*args: str) -> tuple[Experiment, dict[str, bool]]:
        got: list[Any] = []

        def train(experiment: Experiment, **how: bool) -> TrainResult:
            got.append((experiment, how))
            root = RunPaths(experiment.runs / experiment.name)
            return TrainResult(root, 1, 1, 0.5, 1.0, "test-selected", finished=True)

        monkeypatch.setattr("two_stream.training.train.train", train)
        assert main([*RECIPE, *args]) == 0
        return got[0]

    return run


def test_readme_command_is_the_published_training(asked: Asked) -> None:
    """The AdamW command of the published README, against every number of its trainer."""
    made, how = asked(
        *("--split=1", f"--arch={BERT}", "--workers=2", "--batch-size=8", "--iter-size=16"),
        *("--print-freq=400", "--dataset=hmdb51", "--lr=1e-5"),
    )
    assert made.name == f"hmdb51_{BERT}_split1"
    assert made.model == zoo.find(BERT).options
    train = made.train.model_dump()
    assert train["optimizer"] == {
        "kind": "adamw",
        "lr": 1e-5,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 1e-3,
        "decay_all": True,
    }
    assert train["schedule"] == {"kind": "plateau", "factor": 0.1, "patience": 5, "min_lr": 0.0}
    assert (train["epochs"], train["batch_size"], train["accumulate"]) == (200, 8, 16)
    assert (train["selection"], train["last_group"]) == ("paper", "drop")
    assert (made.data.dataset, made.data.split, made.data.sampling) == ("hmdb51", 1, "paper")
    augment = {"crop": "multiscale", "scales": (1.0, 0.875, 0.75, 0.66), "flip": 0.5, "protocol": "paper"}
    assert made.data.augment == AugmentOptions.model_validate(augment)
    assert how == {"resume": False, "overwrite": False}


def test_recipe_agrees_with_the_experiment_files(asked: Asked, repository: Path) -> None:
    """Those were written from the paper's tables and the published code; the flags of the README say the same."""
    compared = 0
    for path in sorted((repository / "settings" / "experiments" / "late_temporal").glob("hmdb51_*.yaml")):
        found = re.search(r"^# Network: (late_temporal/\w+)$", path.read_text(), re.MULTILINE)
        if found is None:
            continue
        made, _ = asked("--arch", found[1], "--batch-size=8", "--iter-size=16")
        file = load_experiment(path)
        same = made.train.model_copy(update={"last_group": file.train.last_group})
        assert same == file.train, path.name
        assert made.data.model_copy(update={"settings_root": file.data.settings_root}) == file.data, path.name
        assert made.evaluate == file.evaluate, path.name
        compared += 1
    assert compared >= 8


def test_sgd_architectures_have_the_other_trainers_defaults(asked: Asked) -> None:
    made, _ = asked("-a", "rgb_resneXt3D64f101", "--momentum", "0.8", "--wd=5e-4")
    optimizer = made.train.optimizer.model_dump()
    assert optimizer == {
        "kind": "sgd",
        "lr": 1e-2,
        "momentum": 0.8,
        "dampening": 0.9,
        "nesterov": False,
        "weight_decay": 5e-4,
        "decay_all": True,
    }
    assert (made.train.batch_size, made.train.accumulate) == (4, 6)


def test_every_published_name_has_its_trainer_and_its_start() -> None:
    names = {record.name.partition("/")[2] for record in zoo.records("late_temporal/*")}
    assert names <= set(STARTS)
    assert len(STARTS) == 27
    assert set(STARTS) >= SGD_ARCHITECTURES
    for name in names:  # weights are of the network's own kind and modality
        options = zoo.find(name).options
        alike = {zoo.find(n).options.backbone.kind for n in names if STARTS[n] is STARTS[name]}
        assert alike == {options.backbone.kind}
        modality = {zoo.find(n).options.modality for n in names if STARTS[n] is STARTS[name]}
        assert modality == {options.modality}


def test_starts_are_in_the_manifest(repository: Path) -> None:
    manifest = read_manifest(repository / "weights" / "manifest.yaml")
    for start in STARTS.values():
        assert manifest.find(start.fetch).file in start.files
        assert all(
            manifest.find(file).modality == manifest.find(start.fetch).modality for file in start.files
        )


def test_our_flags_win_over_the_recipe(asked: Asked) -> None:
    made, how = asked(
        *("--train.precision", "bf16", "--lr", "1e-4", "--train.optimizer.kind", "sgd", "--overwrite"),
        *("--device=cpu", "--seed", "5", "--data.augment.scales", "1.0", "0.8", "-s", "1", "--name", "mine"),
    )
    assert (made.train.precision, made.train.optimizer.kind, made.device, made.seed) == (
        "bf16",
        "sgd",
        "cpu",
        5,
    )
    assert (made.data.augment.scales, made.name, made.data.split) == ((1.0, 0.8), "mine", 1)
    assert how == {"resume": False, "overwrite": True}


def test_flags_are_told_apart() -> None:
    args = ["--lr", "1e-5", "--train.clip-grad", "-1", "-b", "4", "--no-deterministic", "-e", "--seed=3"]
    assert split_flags(args) == (
        ["--lr", "1e-5", "-b", "4", "-e"],
        ["--train.clip-grad", "-1", "--no-deterministic", "--seed=3"],
    )


def test_published_weights_are_used_where_they_lie(
    asked: Asked, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = asked("--arch", BERT)
    assert made.train.init is None
    shown = capsys.readouterr().err
    assert "training starts from scratch, because weights/resnext-101-64f-kinetics.pth" in shown
    assert f"`two-stream weights fetch {STARTS[BERT].fetch}`" in shown
    (folder / "weights").mkdir()
    file = folder / "weights" / "resnext-101-64f-kinetics.pth"
    file.write_bytes(b"x")
    made, _ = asked("--arch", BERT)
    assert (made.train.init, made.train.new_classifier) == (Path("weights") / file.name, True)
    assert f"initial weights: weights/{file.name}" in capsys.readouterr().err
    made, _ = asked("--arch", BERT, "--pretrained", "other.pth")
    assert made.train.init == Path("other.pth")
    made, _ = asked("--arch", BERT, "--train.init", "third.pth")
    assert (made.train.init, made.train.new_classifier) == (Path("third.pth"), False)


def test_a_resumed_run_keeps_the_weights_it_began_with(asked: Asked, folder: Path) -> None:
    made, _ = asked("--arch", BERT)
    run = folder / "runs" / made.name
    run.mkdir(parents=True)
    (run / "experiment.yaml").write_text(dump(made))
    (folder / "weights").mkdir()
    (folder / "weights" / "resnext-101-64f-kinetics.pth").write_bytes(b"x")
    again, how = asked("--arch", BERT, "-c")
    assert again == made
    assert how == {"resume": True, "overwrite": False}
    assert asked("--arch", BERT, "--resume") == (made, how)


def test_continue_without_a_run_starts_from_the_published_checkpoint(
    asked: Asked, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path("checkpoint") / f"hmdb51_{BERT}_split1" / "model_best.pth.tar"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    made, _ = asked("--arch", BERT)
    assert made.train.init is None
    made, how = asked("--arch", BERT, "--continue")
    assert (made.train.init, how["resume"]) == (file, True)
    assert "weights, without the state of its optimizer" in capsys.readouterr().err


def test_flags_without_meaning_are_answered(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    asked("--print-freq", "1", "--save_freq=5", "--start-epoch=3", "--momentum=0.5")
    shown = capsys.readouterr().err
    for flag in ("--print-freq", "--save-freq", "--start-epoch 3", "--momentum"):
        assert f"{flag} is ignored" in shown


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["train", "--recipe", "late-tempora"],
            "unknown recipe 'late-tempora'; did you mean `late-temporal`?",
        ),
        (["train", "--recipe"], "--recipe: a value is missing"),
        ([*RECIPE, "--arch", "rgb_resneXt3D64f101_bert10_FRMA"], f"did you mean {BERT}"),
        ([*RECIPE, "--batchsize", "8"], "unknown flag --batchsize; did you mean `--batch-size`?"),
        ([*RECIPE, "--epochs", "0"], "`train.epochs` is 0"),
        ([*RECIPE, "--lr", "fast"], "late-temporal: --learning-rate/--lr is 'fast': expected FLOAT"),
        ([*RECIPE, "--num-seg", "3"], "--num-seg is 3: expected 1"),
        ([*RECIPE, "--dataset", "hmdb52"], "hmdb52: no split lists"),
        ([*RECIPE, "--train.epoch", "3"], "unknown flag --train.epoch"),
        ([*RECIPE, "-e"], "model_best.pth.tar: no such checkpoint"),
    ],
)
def test_a_mistake_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], args: list[str], words: str
) -> None:
    assert main(args) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == 1


def test_help_shows_the_published_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*RECIPE, "--help"])
    assert stop.value.code in (0, None)
    shown = capsys.readouterr().out
    for flag in (
        "--arch",
        "--iter-size",
        "--batch-size",
        "--lr",
        "--num-seg",
        "-e, --evaluate",
        "-c, --continue",
    ):
        assert flag in shown


def test_take_value_takes_both_spellings() -> None:
    assert take_value(["a", "--recipe", "x", "b"], "--recipe", "p") == ("x", ["a", "b"])
    assert take_value(["--recipe=x", "b"], "--recipe", "p") == ("x", ["b"])
    assert take_value(["b"], "--recipe", "p") == (None, ["b"])
    with pytest.raises(SettingsError, match="a value is missing"):
        take_value(["--recipe", "--help"], "--recipe", "p")


def test_train_continue_and_evaluate_for_real(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small network on the published layout: lists and frames where the published trainers have them."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0)
    lists = tmp_path / "datasets" / "settings" / "window"
    lists.mkdir(parents=True)
    for place in range(6):
        video = tmp_path / "datasets" / "window_frames" / f"v{place}"
        video.mkdir(parents=True)
        for number in range(1, 20):
            cv2.imwrite(str(video / f"img_{number:05d}.jpg"), pixels.integers(0, 255, (24, 32, 3), np.uint8))
        name = "train" if place < 4 else "val"
        with (lists / f"{name}_rgb_split1.txt").open("a") as file:
            file.write(f"v{place} 19 {place % 3}\n")
    args = [*RECIPE, "--arch", SMALL, "-d", "window", "-j", "0", "-b", "2", "--iter-size", "2", "--epochs=1"]
    args += ["--device", "cpu", "--model.input.resize", "40", "48", "--model.input.crop", "32"]
    assert main(args) == 0
    shown = capsys.readouterr()
    assert "best epoch 1 of 1" in shown.out
    assert "test-selected (published protocol)" in shown.out
    run = tmp_path / "runs" / "window_mobilenetv2_0.2x_split1"
    assert (run / "best" / "model.safetensors").is_file()
    assert main([*args, "-c"]) == 0
    assert "the run has finished" in capsys.readouterr().out
    assert main([*args, "-e"]) == 0
    assert "single clip × centre crop" in capsys.readouterr().out
    table = read_scores(next((run / "scores").glob("test_single_center_*.npz")))
    assert (table.ids, table.meta["selection"]) == (["v4", "v5"], "paper")
