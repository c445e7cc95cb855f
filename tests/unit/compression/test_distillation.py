"""Students: what they see beside, what they learn, and that their runs are ordinary ones."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from tests.helpers.datasets import SmallWorld
from two_stream.commands import compress as command
from two_stream.compression.distillation import Distillation
from two_stream.config.schema import Experiment
from two_stream.data.catalog import dataset_record, load_record
from two_stream.data.clips.dataset import (
    ClipItem,
    ClipsBeside,
    companion,
    open_clips,
    same_clip,
    same_moment,
    scaled_box,
)
from two_stream.data.splits import load_part
from two_stream.errors import DataError, SettingsError
from two_stream.evaluation.runs.run import evaluate_run, load_run
from two_stream.recognizer import input_spec
from two_stream.training.run_folder import load_checkpoint
from two_stream.training.train import train


def student(
    world: SmallWorld,
    teachers: list[Path],
    name: str,
    modality: str = "rgb",
    train_options: Any = None,
    **compress: Any,
) -> Experiment:
    given = world.experiment(name, modality, **(train_options or {}))
    return Experiment.model_validate(
        {**given.model_dump(), "compress": {"kind": "distill", "teachers": teachers, **compress}}
    )


MARKED = {"clip_length": 8, "resize": [36, 40], "crop": 32}


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose frames tell their number and the place of each pixel: grey is 6 × number + column / 4."""
    root = tmp_path_factory.mktemp("marked") / "settings"
    folder = root / "marked"
    for label in range(2):
        for group in range(3):
            video = folder / "frames" / f"c{label}_g{group}"
            video.mkdir(parents=True)
            for number in range(1, 31):
                picture = np.empty((36, 40, 3), np.uint8)
                picture[:] = (6 * number + np.arange(40) // 4)[None, :, None]
                cv2.imwrite(str(video / f"img_{number:05d}.png"), picture)
                for axis in "xy":
                    if number < 30:
                        cv2.imwrite(str(video / f"flow_{axis}_{number:05d}.png"), picture[..., 0])
    names = {"rgb": "img_{:05d}.png", "flow_x": "flow_x_{:05d}.png", "flow_y": "flow_y_{:05d}.png"}
    record: dict[str, Any] = {
        "name": "marked",
        "classes": ["a", "b"],
        "group": r"_(g\d+)$",
        "patterns": names,
    }
    record["frames"] = {"rgb": "frames", "flow": "frames"}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(record))
    for modality, count in (("rgb", 30), ("flow", 29)):
        lines = "".join(f"c{label}_g{group} {count} {label}\n" for label in range(2) for group in range(3))
        for part in ("train", "val"):
            (folder / f"{part}_{modality}_split1.txt").write_text(lines)
    return root


def beside(root: Path, modality: str, other: str, options: dict[str, Any], epoch: int = 0) -> ClipsBeside:
    experiment = Experiment.model_validate(
        {
            "model": {"modality": modality, "input": MARKED},
            "data": {
                "dataset": "marked",
                "settings_root": str(root),
                "augment": {"crop": "random", "erase": 1.0},
            },
        }
    )
    taught = experiment.model.model_copy(update={"modality": other})
    spec = input_spec(type(taught).model_validate({**taught.model_dump(), "input": {**MARKED, **options}}))
    record = load_record("marked", root)
    videos = load_part(record, modality, 1, "train")  # type: ignore[arg-type]
    clips = open_clips(experiment.data, input_spec(experiment.model), videos, record, epoch=epoch)
    return ClipsBeside(clips, [companion(experiment, record, spec, "standard")])


@pytest.mark.parametrize(("modality", "other"), [("rgb", "flow"), ("flow", "rgb")])
def test_both_modalities_show_the_same_frames_part_and_side(marked: Path, modality: str, other: str) -> None:
    flips = set()
    for epoch in range(3):
        clips = beside(marked, modality, other, {}, epoch)
        for index in range(len(clips)):
            item = clips[index]
            assert isinstance(item, ClipItem)
            _, numbers, view, _ = clips.clips.planned(index)
            flips.add(view.flip)
            columns = np.arange(40)[view.box[1] : view.box[3]] // 4
            columns = columns[::-1] if view.flip else columns
            last = 29 if other == "flow" else 30
            wanted = np.stack([6 * min(number, last) + columns for number in numbers])
            seen = item.beside[0][-1, :, 5].int().numpy()  # the last channel: flow y has no sign to turn
            np.testing.assert_array_equal(seen, wanted)
            if view.flip and other == "flow":
                np.testing.assert_array_equal(item.beside[0][0, :, 5].int().numpy(), 255 - wanted)
    assert flips == {True, False}


def test_another_length_lies_around_the_same_middle_and_another_size_shows_the_same_part(
    marked: Path,
) -> None:
    options = {"clip_length": 4, "stride": 2, "resize": [72, 80], "crop": 64}
    clips = beside(marked, "rgb", "rgb", options)
    for index in range(len(clips)):
        item = clips[index]
        assert isinstance(item, ClipItem)
        _, numbers, view, _ = clips.clips.planned(index)
        assert item.beside[0].shape == (3, 4, 64, 64)
        seen = item.beside[0][0, :, 5, 8:-8].double().mean(1)
        steps = seen.diff() / 6
        assert steps.tolist() == pytest.approx([2.0, 2.0, 2.0], abs=0.01)
        columns = np.arange(40)[view.box[1] : view.box[3]].mean() / 4
        middle = (float(seen.mean()) - columns) / 6
        assert middle == pytest.approx(np.mean(numbers), abs=0.6)


def test_moments() -> None:
    def spec(length: int, stride: int = 1) -> Any:
        return input_spec(
            Experiment().model.model_copy(
                update={"input": type(Experiment().model.input)(clip_length=length, stride=stride)}
            )
        )

    one = spec(4)
    assert same_moment([27, 28, 29, 30], one, spec(4), 29) == [27, 28, 29, 29]
    assert same_moment([10, 11, 12, 13], one, spec(8), 30) == [8, 9, 10, 11, 12, 13, 14, 15]
    assert same_moment([1, 2, 3, 4], one, spec(8), 30) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert same_moment([27, 28, 29, 30], one, spec(8), 29) == [22, 23, 24, 25, 26, 27, 28, 29]
    assert same_moment([3, 4, 1, 2], one, spec(6), 4) == [3, 4, 1, 2, 3, 4]
    assert scaled_box((1, 2, 33, 34), (36, 40), (72, 120)) == (2, 6, 66, 102)


def test_a_student_learns_from_its_teacher(small_world: SmallWorld, rgb_run: Path, flow_run: Path) -> None:
    whole = {"student_weight": 0.0, "distill_weight": 1.0, "train_options": {"epochs": 6}}
    made = train(student(small_world, [flow_run], "taught", **whole)).run.root
    plain = train(small_world.experiment("plain", epochs=6)).run.root
    facts = json.loads((made / "environment.json").read_text())
    assert facts["teachers"] == f"{flow_run} {load_run(flow_run).model_sha256}"
    teacher, *others = (evaluate_run(path, part="train")[0] for path in (flow_run, made, plain))
    assert others[0].ids == teacher.ids
    gaps = [float(np.abs(_shares(other.logits) - _shares(teacher.logits)).mean()) for other in others]
    assert gaps[0] < gaps[1]
    assert not any("adapter" in key for key in load_run(made).model.state_dict())


def test_the_loss_is_the_weighted_sum(small_world: SmallWorld, rgb_run: Path, flow_run: Path) -> None:
    from two_stream.training.data import training_data
    from two_stream.training.losses import evaluation_loss

    weights = {"student_weight": 0.5, "distill_weight": 0.25, "vector_weight": 3.0, "attention_weight": 2.0}
    experiment = student(small_world, [rgb_run, flow_run], "sum", **weights)
    extension = Distillation(experiment)
    data = extension.data(training_data(experiment, dataset_record(experiment.data), extension.spec))
    model = load_run(rgb_run).model
    extension.start(model, resumed=False)
    batch = next(iter(data.train(0, 0)))
    assert len(batch.beside) == 1
    assert batch.beside[0].shape == (4, 2, 8, 32, 32)
    logits = model(batch.clips)
    found = extension.loss(evaluation_loss, logits, batch.labels, batch)
    own, flow = (load_run(path).model for path in (rgb_run, flow_run))
    with torch.no_grad():
        said = [own(batch.clips), flow(batch.beside[0])]
        maps = [
            own.backbone(own.normalised(batch.clips))[0].tensor,
            flow.backbone(flow.normalised(batch.beside[0]))[0].tensor,
        ]
        vectors = [tokens.mean((3, 4)).mean(2) for tokens in maps]
        looks = [torch.nn.functional.normalize(x.pow(2).mean(1).flatten(1)) for x in maps]
        soft = sum((values / 4).softmax(1) for values in said) / 2
        wanted = 0.5 * evaluation_loss(logits, batch.labels)
        wanted = wanted + 0.25 * 16 * (soft * (soft.log() - (logits / 4).log_softmax(1))).sum()
        # the student is the first teacher still: it differs from the second alone, which counts for a half
        wanted = wanted + 3.0 / 2 * 4 * (vectors[0] - vectors[1]).pow(2).mean()
        wanted = wanted + 2.0 / 2 * 0.5 * (looks[0] - looks[1]).pow(2).sum()
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    found.backward()
    assert all(p.grad is None for teacher in extension.teachers for p in teacher.model.parameters())


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run(
    small_world: SmallWorld, flow_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"feature_weight": 1.0, "attention_weight": 1.0, "train_options": {"epochs": 3}}
    whole = train(student(small_world, [flow_run], "one", **options)).run
    part = student(small_world, [flow_run], "two", **options)
    count = {"steps": 0}
    stepped = Distillation.stepped

    def interrupting(self: Distillation, models: Any, step: int) -> None:
        stepped(self, models, step)
        count["steps"] += 1
        if step == 4:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Distillation, "stepped", interrupting)
        assert train(part).interrupted == signal.SIGINT
    made = train(part, resume=True).run
    (one, state), (other, again) = (load_checkpoint(run.last) for run in (whole, made))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert state["extension"].keys() == {"0.weight", "0.bias"}
    groups = state["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups if group["name"] == "beside"] == [
        next(group["weight_decay"] for group in groups if group["name"].startswith("decay")),
        0.0,
    ]
    assert all(torch.equal(state["extension"][key], again["extension"][key]) for key in state["extension"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"teachers": []}, "`compress.teachers` is empty"),
        ({"train_options": {"mixup": 0.2}}, "`train.mixup` mixes the student's clips"),
    ],
)
def test_what_does_not_go_together(
    small_world: SmallWorld, flow_run: Path, options: dict[str, Any], words: str
) -> None:
    teachers = options.pop("teachers", [flow_run])
    with pytest.raises(SettingsError, match=words):
        Distillation(student(small_world, teachers, "wrong", **options))


def test_data_without_the_other_modality_is_told(
    small_world: SmallWorld, flow_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "settings" / "tiny"
    folder.mkdir(parents=True)
    source = small_world.root / "settings" / "tiny"
    record = yaml.safe_load((source / "dataset.yaml").read_text())
    record["frames"] = {"rgb": str(source / "frames")}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(record))
    for path in source.glob("*_split1.txt"):
        (folder / path.name).write_text(path.read_text())
    given = student(small_world, [flow_run], "none").model_dump()
    given["data"]["settings_root"] = str(tmp_path / "settings")
    with pytest.raises(DataError, match=r"`frames.flow` is missing"):
        train(Experiment.model_validate(given))
    record["classes"] = ["up", "down", "still"]
    (folder / "dataset.yaml").write_text(yaml.safe_dump(record))
    with pytest.raises(SettingsError, match="the teacher's 3 classes differ from the 3 classes of tiny"):
        train(Experiment.model_validate(given))


def test_the_command(
    small_world: SmallWorld, rgb_run: Path, flow_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "student.yaml"
    from two_stream.config.load import dump

    file.write_text(dump(small_world.experiment("thin")))
    flags = ["--student", str(file), "--train.epochs", "1", "--temperature", "2"]
    assert command.main(["distill", str(flow_run), str(rgb_run), *flags]) == 0
    made = small_world.root / "runs" / "thin_distilled"
    report = json.loads((made / "compression.json").read_text())
    assert report["kind"] == "distill"
    assert load_run(made).experiment.compress.temperature == 2.0  # type: ignore[union-attr]
    assert "thin_distilled against flow" in capsys.readouterr().out
    named = command._student("efficient3d/shufflenetv2_0.25x", rgb_run)
    assert named.model.backbone.kind == "shufflenetv2_3d"
    assert (named.name, named.runs, named.train.init) == ("rgb_distilled", rgb_run.parent, None)
    assert same_clip(input_spec(named.model), load_run(rgb_run).model.spec)
    again = command._student(str(flow_run), rgb_run)
    assert (again.name, again.model.modality, again.train.init) == ("flow_distilled", "flow", flow_run)
    taken = command._take_teachers(["a", "b", "--fuse", "logits", "--teachers", "c", "--seed", "1"])
    assert taken == ((Path("a"), Path("b"), Path("c")), ["--fuse", "logits", "--seed", "1"])
    for args, words in (
        ([], "the run folder of a teacher is missing"),
        ([str(rgb_run)], "--student is missing"),
    ):
        with pytest.raises(SettingsError, match=words):
            command.main(["distill", *args])


def _shares(logits: Any) -> Any:
    return torch.from_numpy(np.asarray(logits)).softmax(1).numpy()
