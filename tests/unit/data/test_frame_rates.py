"""Training and evaluation clips of films of five frame rates show the same motion at the same time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.helpers.bars import FILMS, STAMPS, film, moments, seconds_of, slack
from two_stream.config.schema import DataOptions, EvaluateOptions, Experiment
from two_stream.data.catalog import Record, load_record
from two_stream.data.clips.dataset import ClipFailure, companion, make_source, open_clips
from two_stream.data.clips.views import view_loader
from two_stream.data.packing import PackOptions, pack
from two_stream.data.sources import files
from two_stream.data.sources.segments import Segment, write_segments
from two_stream.data.sources.shards import ShardSource
from two_stream.errors import DataError, SettingsError
from two_stream.training.data import training_data
from two_stream.types import InputSpec, VideoRecord
from two_stream.video.extraction.many_videos import extract
from two_stream.video.extraction.one_video import ExtractOptions
from two_stream.video.frames import MANIFEST
from two_stream.video.sources import Source

SIZE = (32, 160)
SPEC = InputSpec("rgb", 8, 5, SIZE, SIZE, (0.0, 255.0), (0.0,) * 3, (1.0,) * 3, fps=25.0)
FLOW = replace(SPEC, modality="flow", mean=(0.0,) * 2, std=(1.0,) * 2)
SINGLE = EvaluateOptions(views="uniform", num_clips=3, crops="center")
CENTRED = np.arange(8) * 0.2 + 0.28
"""times of the centred clip: 51 positions, of which the clip spans 36"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The films, their frame folders, lists, record and shards."""
    root = tmp_path_factory.mktemp("films")
    (root / "videos").mkdir()
    sources = [Source(name, film(root / "videos", name)) for name in FILMS]
    extract(sources, root / "frames", ExtractOptions(flow="dis", short_side=None, processes=0, quality=100))
    record = {"name": "films", "classes": ["moves"], "short_side": 32, "videos": "videos"}
    record["frames"] = {"rgb": "frames", "flow": "frames"}
    (root / "dataset.yaml").write_text(yaml.safe_dump(record))
    for part in ("train", "val"):
        for modality, less in (("rgb", 0), ("flow", 1)):
            lines = [f"{name} {len(seconds_of(name)) - less} 0\n" for name in FILMS]
            (root / f"{part}_{modality}_split1.txt").write_text("".join(lines))
    for modality in ("rgb", "flow"):
        pack(load_record(root), modality, root / "shards", PackOptions(resize=SIZE, processes=0))
    videos = PackOptions(resize=SIZE, processes=0, source="videos")
    pack(load_record(root), "rgb", root / "from_videos", videos)
    return root


@pytest.fixture
def record(root) -> Record:
    return load_record(root)


def videos(less: int = 0) -> list[VideoRecord]:
    return [VideoRecord(name, len(seconds_of(name)) - less, 0) for name in FILMS]


SOURCES = {
    "videos": {"source": "videos"},
    "frames": {"source": "frames"},
    "shards": {"source": "shards", "shards": "shards"},
    "shards of videos": {"source": "shards", "shards": "from_videos"},
}


def data_of(root: Path, name: str, **changes) -> DataOptions:
    given = SOURCES[name] | changes
    given |= {"shards": str(root / given["shards"])} if "shards" in given else {}
    return DataOptions(**given, workers=0, augment={"crop": "center", "flip": 0})


@pytest.mark.parametrize("name", SOURCES)
def test_training_and_validation_clips_show_the_same_moments(root, record, name):
    data = data_of(root, name)
    validation = open_clips(data, SPEC, videos(), record)
    for place, video in enumerate(videos()):
        clip = validation[place].clip
        assert moments(clip.permute(1, 2, 3, 0).numpy()) == pytest.approx(CENTRED, abs=slack(video.id)), (
            video.id
        )
    starts = set()
    for epoch in range(4):
        training = open_clips(data, SPEC, videos(), record, seed=1, epoch=epoch)
        for place, video in enumerate(videos()):
            planned = np.array(training.planned(place)[1])
            starts.add(planned[0])
            shown = moments(training[place].clip.permute(1, 2, 3, 0).numpy())
            assert (np.diff(planned) == 5).all()
            assert shown == pytest.approx((planned - 1) / 25, abs=slack(video.id)), video.id
    assert len(starts) > 3


@pytest.mark.parametrize("name", SOURCES)
def test_views_show_the_same_moments(root, record, name):
    loader = view_loader(data_of(root, name), SINGLE, SPEC, videos(), record)
    for item in loader:
        clips = [moments(view.permute(1, 2, 3, 0).numpy()) for view in item.views]
        for clip, start in zip(clips, (0.0, 0.32, 0.6), strict=True):
            assert clip == pytest.approx(start + np.arange(8) * 0.2, abs=slack(item.id)), item.id


def test_a_film_at_its_own_rate_is_read_as_without_one(root, record):
    with_rate = open_clips(data_of(root, "videos"), SPEC, videos()[1:2], record, epoch=0)
    without = open_clips(data_of(root, "videos"), replace(SPEC, fps=None), videos()[1:2], record, epoch=0)
    assert with_rate.planned(0)[1] == without.planned(0)[1]
    assert torch.equal(with_rate[0].clip, without[0].clip)


def test_all_sources_choose_the_same_frames(root, record):
    chosen = []
    for name in SOURCES:
        source = make_source(record, "rgb", data_of(root, name), 25.0)
        assert [source.count(video) for video in videos()] == [51] * 5
        chosen.append([(source.count(video), source._last)[1] for video in videos()])
    assert chosen[1:] == chosen[:-1]
    stored = ShardSource(str(root / "shards"), "rgb")
    assert [stored.times(name) for name in ("24", "60")] == [24.0, 60.0]
    assert stored.times("variable") == pytest.approx(np.array(STAMPS) / 1000)


class Shift:
    """Takes the place of a flow estimator: its flow is how far the bar moves, as a time in units of 4 ms."""

    def __init__(self, algorithm: str) -> None:
        pass

    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        moved = np.diff(moments(np.stack([before, after])[..., None]))[0] * 250
        return np.full((*before.shape, 2), round(moved) + 128, np.uint8)


@pytest.mark.parametrize("name", FILMS)
def test_flow_of_videos_is_the_motion_from_position_to_position(root, record, monkeypatch, name):
    monkeypatch.setattr(files, "FlowEstimator", Shift)
    source = make_source(record, "flow", data_of(root, "videos"), 25.0)
    (video,) = (one for one in videos(less=1) if one.id == name)
    assert source.count(video) == 50
    numbers = [1, 2, 9, 25, 2, 50]
    flow = source.read(name, numbers, SIZE)[:, 16, 80, 0].astype(float)
    shown = np.searchsorted(seconds_of(name), (seconds_of(name)[np.array(source._last[1]) - 1]))
    wanted = [seconds_of(name)[shown[n]] - seconds_of(name)[shown[n - 1]] for n in numbers]
    assert (flow - 128) / 250 == pytest.approx(wanted, abs=0.006)
    single = source.read(name, [9], SIZE)
    assert (single[0] == source.read(name, numbers, SIZE)[2]).all()
    stacked = files.read_clip(source, video, [50, 1], replace(FLOW, stack=2))
    assert stacked.shape == (2, *SIZE, 4)
    assert (stacked[0, 16, 80, ::2].astype(float) - 128).sum() / 250 == pytest.approx(
        seconds_of(name)[shown[50]] - seconds_of(name)[shown[48]], abs=0.012
    ), "the last two fields"


@pytest.mark.parametrize("name", ["frames", "shards"])
def test_stored_flow_is_read_only_at_its_own_rate(root, record, name):
    wanted = open_clips(data_of(root, name), replace(FLOW, fps=None), videos(less=1)[1:2], record)[0].clip
    assert torch.equal(open_clips(data_of(root, name), FLOW, videos(less=1)[1:2], record)[0].clip, wanted)
    failure = open_clips(data_of(root, name, on_error="skip"), FLOW, videos(less=1)[3:4], record)[0]
    assert isinstance(failure.error, SettingsError), (
        "the settings are wrong, not the video, so it is never skipped"
    )
    assert failure.reason.startswith(
        "60: its stored flow belongs to another frame rate than `model.input.fps` 25; run"
    )


def test_segments_begin_with_their_own_first_frame(root, record, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "FlowEstimator", Shift)
    first = {name: int(np.searchsorted(seconds_of(name), 0.4 - 1e-6)) + 1 for name in FILMS}
    segments = {f"{name}_s": Segment(name, 0.4, 2.1, number) for name, number in first.items()}
    write_segments(tmp_path / "segments.csv", segments)
    places = {
        "frames": {"rgb": str(root / "frames"), "flow": str(root / "frames")},
        "videos": str(root / "videos"),
    }
    known = {"name": "cut", "classes": ["moves"], "short_side": 32, "segments": "segments.csv", **places}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(known))
    lines = [f"{name}_s {len(seconds_of(name)) - number + 1} 0\n" for name, number in first.items()]
    (tmp_path / "train_rgb_split1.txt").write_text("".join(lines))
    cut = load_record(tmp_path)
    pack(cut, "rgb", tmp_path / "shards", PackOptions(resize=SIZE, processes=0))
    spec = replace(SPEC, stride=2)
    for name, number in first.items():
        left = len(seconds_of(name)) - number + 1
        start = seconds_of(name)[number - 1]
        for source in ("videos", "frames", "shards"):
            data = data_of(root, source)
            data = data.model_copy(update={"shards": str(tmp_path / "shards")} if source == "shards" else {})
            clip = open_clips(data, spec, [VideoRecord(f"{name}_s", left, 0)], cut)[0]
            positions = int((2 - start) * 25 + 1e-6) + 1
            wanted = start + ((positions - 15) // 2 + np.arange(0, 16, 2)) / 25
            assert moments(clip.clip.permute(1, 2, 3, 0).numpy()) == pytest.approx(wanted, abs=slack(name)), (
                name
            )
        flow = make_source(cut, "flow", data_of(root, "videos"), 25.0)
        assert flow.count(VideoRecord(f"{name}_s", left - 1, 0)) == positions - 1
        moved = flow.read(f"{name}_s", range(1, 11), SIZE)[:, 16, 80, 0].astype(float) - 128
        assert moved.sum() / 250 == pytest.approx(10 / 25, abs=2 * slack(name) + 0.02)


def test_folders_without_a_record_of_their_rate_need_data_fps(root, record, tmp_path):
    for name in FILMS:
        folder = tmp_path / "frames" / name
        folder.mkdir(parents=True)
        for path in (root / "frames" / name).glob("*.jpg"):
            (folder / path.name).hardlink_to(path)
    bare = record.model_copy(update={"frames": type(record.frames)(rgb=tmp_path / "frames")})
    bare._folder = record.folder
    data = data_of(root, "frames")
    with pytest.raises(
        SettingsError, match=r"frames/24: `model.input.fps` needs the time of each frame.*`data.fps`"
    ):
        view_loader(data, SINGLE, SPEC, videos(), bare)
    known = data.model_copy(update={"fps": 30.0})
    clip = open_clips(known, SPEC, videos()[2:3], bare)[0].clip
    assert moments(clip.permute(1, 2, 3, 0).numpy()) == pytest.approx(CENTRED, abs=slack("30"))
    (tmp_path / "frames" / "60" / "fps").write_text("60\n")
    clip = open_clips(known, SPEC, videos()[3:4], bare)[0].clip
    assert moments(clip.permute(1, 2, 3, 0).numpy()) == pytest.approx(CENTRED, abs=slack("60")), (
        "the folder's own"
    )
    assert not (tmp_path / "frames" / "60" / MANIFEST).exists()
    with pytest.raises(ValueError, match="`fps` is the rate of frame folders and shards"):
        DataOptions(source="videos", fps=25)


def test_a_video_that_cannot_be_read_is_skipped_or_named(root, record):
    lost, longer = VideoRecord("none", 30, 0), VideoRecord("24", 60, 0)
    for name in ("videos", "frames"):
        skipping = data_of(root, name, on_error="skip")
        loader = view_loader(skipping, SINGLE, SPEC, [lost, *videos()], record)
        assert [item.id for item in loader] == list(FILMS)
        assert [video for video, _ in loader.skipped] == ["none"]
        with pytest.raises(DataError, match="none"):
            list(view_loader(data_of(root, name), SINGLE, SPEC, [lost], record))
    failure = open_clips(data_of(root, "videos"), SPEC, [longer], record)[0]
    assert isinstance(failure, ClipFailure)
    assert failure.reason == "24: has 49 images, but the split list says 60 rgb frames"
    failure = open_clips(data_of(root, "videos"), replace(FLOW, fps=0.4), videos(less=1), record)[0]
    assert failure.reason == "24: is too short for flow at 0.4 frames per second"


def test_a_teacher_has_the_rate_of_its_student(root, record):
    data = {"dataset": str(root), "source": "videos"}
    student = Experiment.model_validate(
        {"data": data, "model": {"input": {"fps": 25}}, "train": {"selection": "paper"}}
    )
    shown = companion(student, record, replace(FLOW, clip_length=4), "standard")
    assert shown.source.count(shown.records["60"]) == 50
    with pytest.raises(
        SettingsError, match=r"`model.input.fps` is 25.0, but the teacher was trained with None"
    ):
        companion(student, record, replace(SPEC, fps=None), "standard")


def test_settings_that_cannot_work_are_reported_before_a_run_folder_is_written(root, record):
    data = {"dataset": str(root), "source": "frames"}
    model = {"modality": "flow", "input": {"fps": 10}}
    experiment = Experiment.model_validate({"data": data, "model": model, "train": {"selection": "paper"}})
    with pytest.raises(
        SettingsError, match=r"^24: its stored flow .* `two-stream extract --fps 10` and prepare again"
    ):
        training_data(experiment, record, replace(FLOW, fps=10.0))
    training_data(experiment, record, replace(FLOW, fps=24.0))


def test_the_cache_of_videos_keeps_flow_from_position_to_position(root, record, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "FlowEstimator", Shift)
    cached = data_of(root, "videos", cache=str(tmp_path / "cache"))
    for name in FILMS:
        plain = make_source(record, "flow", data_of(root, "videos"), 25.0)
        kept = make_source(record, "flow", cached, 25.0)
        (video,) = (one for one in videos(less=1) if one.id == name)
        assert kept.count(video) == plain.count(video) == 50
        wanted = plain.read(name, [1, 2, 9, 25, 2, 50], SIZE)
        assert (kept.read(name, [1, 2, 9, 25, 2, 50], SIZE) == wanted).all()
        with monkeypatch.context() as patch:
            patch.setattr(files.VideoFiles, "stored", None)  # nothing is computed again
            assert (kept.read(name, [25, 9], SIZE) == wanted[[3, 2]]).all()
        shown = make_source(record, "rgb", cached, 25.0).read(name, [11, 51], SIZE)
        assert moments(shown) == pytest.approx([0.4, 2.0], abs=slack(name))
