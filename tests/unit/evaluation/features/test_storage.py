"""The folder of stored features: whole or absent, and every damage told in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.datasets import write_frame_dataset
from tests.helpers.models import difference, settled_model
from tests.helpers.runs import MOBILENET, SLOWFAST, experiment_of
from two_stream.config.schema import Experiment
from two_stream.data.catalog import load_record
from two_stream.data.clips.dataset import open_clips
from two_stream.data.splits import load_part
from two_stream.errors import CheckpointError, DataError, SettingsError
from two_stream.evaluation.features import extract_features as writing
from two_stream.evaluation.features.cache import FeatureCache, backbone_sha256, stored_video, view_settings
from two_stream.evaluation.features.extract_features import write_features
from two_stream.recognizer import Recognizer
from two_stream.runtime.files import sha256
from two_stream.types import FeatureLayout

CENTER = {"views": "single", "crops": "center", "precision": "fp32", "fold": False}


@pytest.fixture(scope="module")
def made(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Recognizer, Path]:
    """An experiment, its network and a cache with two augmented clips per video."""
    experiment = experiment_of(world, {**SLOWFAST, "width": 0.125}, evaluate=CENTER)
    model = settled_model(experiment.model)
    out = tmp_path_factory.mktemp("made") / "cache"
    write_features(model, experiment, out, train_views=2)
    return experiment, model, out


@pytest.fixture
def copy(made: tuple[Experiment, Recognizer, Path], tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in made[2].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_rows_are_the_tokens_of_the_clips(made: tuple[Experiment, Recognizer, Path]) -> None:
    experiment, model, out = made
    cache = FeatureCache(out)
    record = load_record("toy", experiment.data.settings_root)
    records = load_part(record, "rgb", 1, "train", selection="paper")
    where = (experiment.data, model.spec, records, record)
    sets = [open_clips(*where, seed=experiment.seed, epoch=epoch) for epoch in (None, 0, 1)]
    part = cache.part("train")
    assert list(part.videos) == [video.id for video in records]
    assert part.rows.shape == (27, cache.layout.width)
    assert isinstance(part.rows, np.memmap)
    for place, video in enumerate(records):
        first = part.videos[video.id].first
        for number, clips in enumerate(sets):
            item = clips[place]
            with torch.no_grad():
                tokens = model.forward_features(item.clip[None])
            wanted = torch.cat([x.flatten(1) for x in tokens], dim=1)[0].numpy()
            assert difference(part.rows[first + number], wanted) < 1e-4
            assert part.mirrored[first + number] == (number > 0 and clips.is_mirrored(place))
    assert 0 < part.mirrored.sum() < 18
    assert len({row.tobytes() for row in part.rows}) == 27


def test_facts_say_what_made_them(made: tuple[Experiment, Recognizer, Path]) -> None:
    _, model, out = made
    facts = FeatureCache(out).facts
    assert facts.backbone_sha256 == backbone_sha256(model)
    assert facts.settings["model.backbone.kind"] == "slowfast"
    assert facts.settings["model.input.crop"] == 32
    assert facts.settings["data.augment.flip"] == 0.5
    assert (facts.seed, facts.train_views, facts.channels_last) == (3, 2, False)
    assert facts.evaluate == {"views": "single", "num_clips": 10, "step": None, "crops": "center"}
    assert facts.parts["test"].precision == "fp32"
    assert facts.parts["test"].folded is False
    assert [video.num_frames for video in facts.parts["test"].videos] == [25, 25, 25]
    assert facts.environment["device"] == "cpu"


def test_layout_counts_its_numbers() -> None:
    tokens = FeatureLayout(((4, 64), (8, 8)))
    assert (tokens.sizes, tokens.width, tokens.maps) == ([256, 64], 320, False)
    maps = FeatureLayout(((64, 4, 2, 2),))
    assert (maps.width, maps.maps, str(maps)) == (1024, True, "feature maps (C, T, H, W) 64×4×2×2")


def test_backbone_sha_sees_values_names_and_nothing_of_the_head(world: Path) -> None:
    options = experiment_of(world, MOBILENET).model
    model = settled_model(options)
    before = backbone_sha256(model)
    with torch.no_grad():
        model.classifier.weight.add_(1.0)
    model.channels_last()
    assert backbone_sha256(model) == before
    assert backbone_sha256(settled_model(options, seed=1)) != before
    norm = next(part for part in model.modules() if isinstance(part, torch.nn.BatchNorm3d))
    assert norm.running_mean is not None
    norm.running_mean[0] += 1e-3
    assert backbone_sha256(model) != before


def _truncate(folder: Path) -> None:
    path = folder / "train.npy"
    path.write_bytes(path.read_bytes()[:-8])


def _flip_byte(folder: Path) -> None:
    path = folder / "test.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def _sums(folder: Path) -> None:
    names = [path for path in folder.iterdir() if path.name != "checksums.json"]
    (folder / "checksums.json").write_text(json.dumps({path.name: sha256(path) for path in names}))


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "features.json"
        facts = json.loads(path.read_text())
        change(facts)
        path.write_text(json.dumps(facts))
        _sums(folder)

    return damage


def _pickled(folder: Path) -> None:
    np.save(folder / "train.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    _sums(folder)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_truncate, r"train\.npy: damaged \(SHA-256 differs"),
    "changed byte": (_flip_byte, r"test\.npy: damaged \(SHA-256 differs"),
    "missing file": (lambda folder: (folder / "train.npy").unlink(), r"train\.npy: the file is missing"),
    "missing facts": (
        lambda folder: (folder / "features.json").unlink(),
        r"features\.json: the file is missing",
    ),
    "missing sums": (lambda folder: (folder / "checksums.json").unlink(), r"checksums\.json: missing"),
    "no json": (
        lambda folder: ((folder / "features.json").write_text("{"), _sums(folder)),
        r"features\.json: missing or damaged",
    ),
    "newer format": (
        _edit(lambda facts: facts.update(format=2)),
        "found format 2, but this version of two-stream reads format 1",
    ),
    "wrong key": (_edit(lambda facts: facts.update(seed="x")), "`seed` is 'x'"),
    "other rows": (
        _edit(lambda facts: facts["parts"]["train"].update(rows=26)),
        r"features\.json says float32 \(26",
    ),
    "pickle": (_pickled, r"train\.npy: cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_line_that_names_the_file(copy: Path, name: str) -> None:
    FeatureCache(copy).part("train")  # whole until now, and remembered as such
    damage, words = DAMAGES[name]
    damage(copy)
    with pytest.raises((CheckpointError, SettingsError), match=words) as caught:
        for part in ("train", "test"):
            FeatureCache(copy).part(part)
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)
    assert "train again" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such folder"),
        (lambda path: path.write_text(""), "is a file"),
        (lambda path: path.mkdir(), "no stored features"),
    ],
)
def test_what_is_no_cache_is_said(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    make(tmp_path / "there")
    with pytest.raises(CheckpointError, match=words):
        FeatureCache(tmp_path / "there")


def test_part_that_was_not_stored(world: Path, tmp_path: Path) -> None:
    experiment = experiment_of(world, evaluate=CENTER)
    write_features(settled_model(experiment.model), experiment, tmp_path / "cache", parts=["test"])
    with pytest.raises(
        CheckpointError, match=r"the train part is not stored \(only test\).*--parts train test"
    ):
        FeatureCache(tmp_path / "cache").part("train")


def test_lists_that_changed_are_refused(made: tuple[Experiment, Recognizer, Path]) -> None:
    experiment, _, out = made
    cache = FeatureCache(out)
    record = load_record("toy", experiment.data.settings_root)
    video = load_part(record, "rgb", 1, "train", selection="paper")[0]
    part = cache.part("train")
    assert stored_video(cache, part, video) is not None
    for change, words in (
        ({"id": "left/new"}, "is not in the train part"),
        ({"num_frames": 99}, "7 frames and labels .0., but the split list says 99"),
        ({"label": 1}, r"the split list says 7 frames and labels \[1\]"),
    ):
        with pytest.raises(DataError, match=words):
            stored_video(cache, part, replace(video, **change))


def test_settings_that_differ_are_named(made: tuple[Experiment, Recognizer, Path]) -> None:
    experiment, model, out = made
    cache = FeatureCache(out)
    record = load_record("toy", experiment.data.settings_root)
    for change, words in (
        ({"split": 2}, r"`data.split` 1 \(here 2\)"),
        ({"frame_order": "shuffled"}, r"`data.frame_order` natural \(here shuffled\)"),
        ({"sampling": "efficient3d"}, r"`data.sampling` standard \(here efficient3d\)"),
    ):
        data = experiment.data.model_copy(update=change)
        settings = view_settings(model.options, model.spec, data, record, training=False)
        with pytest.raises(SettingsError, match=words):
            cache.check_settings(settings, record.classes)
    settings = view_settings(model.options, model.spec, experiment.data, record, training=True)
    assert not {"model.input.segments", "model.input.stack"} & {*settings, *cache.facts.settings}
    cache.check_settings(settings, record.classes)
    spread = replace(model.spec, segments=model.spec.clip_length)
    other = view_settings(model.options, spread, experiment.data, record, training=True)
    with pytest.raises(SettingsError, match=r"`model\.input\.segments` 0 \(here \d+\)"):
        cache.check_settings(other, record.classes)
    cache.facts.settings["model.input.segments"] = spread.segments
    cache.check_settings(other, record.classes)
    with pytest.raises(SettingsError, match=r"`model\.input\.segments` \d+ \(here 0\)"):
        cache.check_settings(settings, record.classes)
    del cache.facts.settings["model.input.segments"]
    with pytest.raises(SettingsError, match="another data set or another list of classes"):
        cache.check_settings(settings, record.classes[::-1])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_writing_leaves_nothing_or_what_was_there(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    experiment = experiment_of(world, evaluate=CENTER)
    model = settled_model(experiment.model)
    out = tmp_path / "cache"
    scored = writing.scored_views

    def broken(*args: Any) -> Any:
        for number, video in enumerate(scored(*args)):
            if number == 4:
                raise error
            yield video

    monkeypatch.setattr(writing, "scored_views", broken)
    with pytest.raises(error):
        write_features(model, experiment, out)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    write_features(model, experiment, out)
    content = FeatureCache(out).content
    monkeypatch.setattr(writing, "scored_views", broken)
    with pytest.raises(error):
        write_features(model, experiment, out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert FeatureCache(out).content == content


def test_folder_in_use_is_left_alone(made: tuple[Experiment, Recognizer, Path], tmp_path: Path) -> None:
    experiment, model, out = made
    with pytest.raises(SettingsError, match=r"already contains stored features.*--overwrite"):
        write_features(model, experiment, out)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SettingsError, match="exists but is not a folder of stored features"):
        write_features(model, experiment, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_full_disk_is_told_before_anything_is_written(
    made: tuple[Experiment, Recognizer, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, model, _ = made

    class Full:
        free = writing._SPARE + 4000

    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: Full)
    with pytest.raises(SettingsError, match=r"stored features require .* only 3\.9 KiB are free"):
        write_features(model, experiment, tmp_path / "deep" / "cache")
    assert not (tmp_path / "deep").exists()


def test_writing_twice_gives_the_same_rows(made: tuple[Experiment, Recognizer, Path], tmp_path: Path) -> None:
    experiment, model, out = made
    workers = experiment.model_copy(update={"data": experiment.data.model_copy(update={"workers": 2})})
    write_features(model, workers, tmp_path / "again", train_views=2)
    assert FeatureCache(tmp_path / "again").content == FeatureCache(out).content


def test_unreadable_training_video_is_listed(tmp_path: Path) -> None:
    world = write_frame_dataset(tmp_path)
    (world / "frames" / "left" / "v_g2" / "img_00004.jpg").unlink()
    experiment = experiment_of(world, evaluate=CENTER, data={"on_error": "skip"})
    write_features(settled_model(experiment.model), experiment, tmp_path / "cache", train_views=2)
    part = FeatureCache(tmp_path / "cache").part("train")
    assert list(part.facts.skipped) == ["left/v_g2"]
    assert "img_00004" in part.facts.skipped["left/v_g2"]
    assert len(part.videos) == 8
    assert part.videos["left/v_g3"].first == 6  # places stay those of the list
    assert part.rows[6:].any(axis=1).all()
