"""Clips from folders and videos: right frames, repeatable draws, exact resume, broken files by name."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.helpers.clip_batches import centred_batches, train_batches
from two_stream.config.schema import AugmentOptions, DataOptions, EvaluateOptions, Experiment, TrainOptions
from two_stream.data.catalog import Record, load_record
from two_stream.data.clips.dataset import ClipDataset, ClipItem
from two_stream.data.clips.loader import Share, epoch_order
from two_stream.data.clips.transforms import resize_frames
from two_stream.data.clips.views import view_loader
from two_stream.data.demo import DemoOptions, encode, render
from two_stream.data.sources.files import FrameFolders, VideoFiles, find_video, index_videos
from two_stream.data.splits import load_part
from two_stream.errors import DataError, SettingsError, VideoError
from two_stream.types import Batch, InputSpec, Modality, VideoRecord
from two_stream.video.flow import FlowEstimator

FrameValue = Callable[[int, int, int], int]


def spec(modality: Modality = "rgb", length: int = 4, stride: int = 1) -> InputSpec:
    channels = 3 if modality == "rgb" else 2
    return InputSpec(
        modality, length, stride, (12, 16), 8, (0.0, 255.0), (0.0,) * channels, (1.0,) * channels
    )


def experiment(workers: int = 0, batch: int = 3, **data: object) -> Experiment:
    return Experiment(
        data=DataOptions(workers=workers, **data),  # type: ignore[arg-type]
        train=TrainOptions(batch_size=batch),
        evaluate=EvaluateOptions(views="multi", crops="ten"),
    )


def everything(record: Record, modality: Modality = "rgb") -> list[VideoRecord]:
    return load_part(record, modality, 1, "train", selection="paper")


def same(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    return [b.ids for b in first] == [b.ids for b in second] and all(
        torch.equal(a.clips, b.clips) and torch.equal(a.labels, b.labels) for a, b in zip(first, second)
    )


def test_folder_source_reads_the_right_frames_in_rgb_order(tiny: Record, frame_value: FrameValue) -> None:
    video = "v_sitdown_g01_c02"
    rgb = FrameFolders(tiny, "rgb").read(video, [6, 1, 1], (12, 16))
    assert rgb.shape == (3, 12, 16, 3)
    expected = [[frame_value(2, number, channel) for channel in range(3)] for number in (6, 1, 1)]
    assert np.abs(rgb[:, 5, 5].astype(int) - expected).max() <= 2
    flow = FrameFolders(tiny, "flow").read(video, [5], (6, 8))
    assert flow.shape == (1, 6, 8, 2)
    assert np.abs(flow[0, 3, 3].astype(int) - [frame_value(2, 5, 0), frame_value(2, 5, 1)]).max() <= 2


def test_folder_source_finds_class_folders_and_flat_ones(tiny: Record) -> None:
    root = tiny.frames_root("rgb")
    (root / "run").mkdir()
    (root / "v_run_g00_c01").rename(root / "run" / "v_run_g00_c01")
    source = FrameFolders(tiny, "rgb")
    assert source.folder("v_run_g00_c01") == root / "run" / "v_run_g00_c01"
    assert source.folder("jump/v_jump_g00_c00") == root / "v_jump_g00_c00"
    assert source.folder("nothing") == root / "nothing"


def test_no_video_stands_in_for_one_of_another_class(tiny: Record) -> None:
    root = tiny.frames_root("rgb")
    for folder in ("run/1", "jump/1", "jump/2"):
        (root / folder).mkdir(parents=True)
    source = FrameFolders(tiny, "rgb")
    assert source.folder("run/1") == root / "run" / "1"
    assert source.folder("run/2") == root / "run" / "2"  # absent, though `jump/2` is there
    with pytest.raises(VideoError, match=r"run/2"):
        source.read("run/2", [1], (12, 16))
    assert source.folder("2") == root / "jump" / "2"
    with pytest.raises(VideoError, match=r"several frame folders with this name \(jump/1, run/1\)"):
        source.folder("1")
    (root / "1").mkdir()
    assert source.folder("1") == root / "1"


def test_no_video_file_stands_in_for_one_of_another_class(tmp_path: Path) -> None:
    def find(video_id: str) -> str:
        return find_video(index_videos(tmp_path), tmp_path, video_id).relative_to(tmp_path).as_posix()

    for name in ("run/1.mp4", "jump/1.mp4", "jump/2.mp4", "jump/3.avi", "jump/3.mp4", "4.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find("run/1") == "run/1.mp4"
    assert find("2") == "jump/2.mp4"
    assert find("run/4") == find("4") == "4.mp4"
    assert find("jump/3.avi") == "jump/3.avi"
    for name, said in (
        ("run/2", "no video file with this name"),
        ("1", r"several .*\(jump/1.mp4, run/1.mp4\)"),
        ("jump/3", r"several .*\(jump/3.avi, jump/3.mp4\)"),
    ):
        with pytest.raises(VideoError, match=said):
            find(name)
    (tmp_path / "1.mp4").touch()
    assert find("1") == "1.mp4"


def test_train_batches_hold_every_video_once_and_differ_by_epoch(tiny: Record) -> None:
    records = everything(tiny)
    loader = train_batches(experiment(), spec(), records, tiny, epoch=1)
    batches = list(loader)
    assert len(loader) == len(batches) == 4
    assert [len(b.ids) for b in batches] == [3, 3, 3, 1]
    assert sorted(i for b in batches for i in b.ids) == sorted(r.id for r in records)
    assert batches[0].clips.shape == (3, 3, 4, 8, 8)
    assert batches[0].clips.dtype == torch.uint8
    assert batches[0].labels.dtype == torch.int64
    labels = {r.id: r.label for r in records}
    assert all(labels[i] == int(n) for b in batches for i, n in zip(b.ids, b.labels))
    again = list(train_batches(experiment(), spec(), records, tiny, epoch=1))
    assert same(batches, again)
    other = list(train_batches(experiment(), spec(), records, tiny, epoch=2))
    assert [b.ids for b in other] != [b.ids for b in batches]
    assert epoch_order(10, 0, 1) != epoch_order(10, 1, 1)


def test_clip_draw_depends_on_seed_epoch_and_id_only(tiny: Record) -> None:
    records = everything(tiny)
    first = {i: c for b in train_batches(experiment(), spec(), records, tiny, epoch=3) for i, c in pairs(b)}
    reordered = train_batches(experiment(batch=5), spec(), records[::-1], tiny, epoch=3)
    for batch in reordered:
        for video_id, clip in pairs(batch):
            assert torch.equal(clip, first[video_id])
    later = {i: c for b in train_batches(experiment(), spec(), records, tiny, epoch=4) for i, c in pairs(b)}
    assert any(not torch.equal(later[i], first[i]) for i in first)


def pairs(batch: Batch) -> list[tuple[str, torch.Tensor]]:
    return list(zip(batch.ids, batch.clips))


@pytest.mark.parametrize("modality", ["rgb", "flow"])
def test_workers_change_nothing(tiny: Record, modality: Modality) -> None:
    records = everything(tiny, modality)
    alone = list(train_batches(experiment(0), spec(modality), records, tiny, epoch=7))
    two = list(train_batches(experiment(2), spec(modality), records, tiny, epoch=7))
    assert len(alone) == 4
    assert same(alone, two)


def test_loader_leaves_the_global_generators_alone(tiny: Record) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(train_batches(experiment(workers), spec(), everything(tiny), tiny, epoch=1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_epoch_goes_on_where_it_was(
    tiny: Record, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = everything(tiny)
    whole = list(train_batches(experiment(), spec(), records, tiny, epoch=2))
    read: list[str] = []
    original = FrameFolders.read

    def noting(self: FrameFolders, video_id: str, *args: object) -> object:
        read.append(video_id)
        return original(self, video_id, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(FrameFolders, "read", noting)
    rest = train_batches(experiment(workers), spec(), records, tiny, epoch=2, skip_batches=2)
    assert len(rest) == 2
    assert same(list(rest), whole[2:])
    assert rest.position == 4
    if workers == 0:
        assert sorted(read) == sorted(i for b in whole[2:] for i in b.ids)
    assert list(train_batches(experiment(), spec(), records, tiny, epoch=2, skip_batches=4)) == []


@pytest.mark.parametrize(("world", "group"), [(2, 2), (2, 4), (3, 3), (2, 3), (4, 8)])
def test_processes_share_the_batches_of_one(tiny: Record, world: int, group: int) -> None:
    """Every batch of an epoch is read once, by the process whose turn it is within the step; none is filled up."""
    records = everything(tiny)[:9]
    whole = [b.ids for b in train_batches(experiment(), spec(), records, tiny, epoch=1)]
    for skip in (0, group):
        dealt: dict[int, list[str]] = {}
        for rank in range(world):
            share = Share(rank, world, group)
            loader = train_batches(
                experiment(), spec(), records, tiny, epoch=1, skip_batches=skip, share=share
            )
            for batch in loader:
                number = loader.position - 1
                assert (number - skip) % group % world == rank
                assert number not in dealt
                dealt[number] = batch.ids
        assert dealt == dict(enumerate(whole[skip:], start=skip))
    validation = [b.ids for b in centred_batches(experiment(), spec(), records, tiny)]
    for rank in range(world):
        part = centred_batches(experiment(), spec(), records, tiny, share=Share(rank, world))
        assert [b.ids for b in part] == validation[rank::world]


def test_validation_clip_is_centred_and_unchanged(tiny: Record, frame_value: FrameValue) -> None:
    records = everything(tiny)
    batches = list(centred_batches(experiment(), spec(), records, tiny))
    assert [i for b in batches for i in b.ids] == [r.id for r in records]
    video = int(records[0].id[-2:])
    expected = [[frame_value(video, number, channel) for number in (2, 3, 4, 5)] for channel in range(3)]
    assert np.abs(batches[0].clips[0, :, :, 4, 4].numpy().astype(int) - expected).max() <= 2
    paper = next(iter(centred_batches(experiment(sampling="paper"), spec(length=3), records, tiny)))
    assert abs(int(paper.clips[0, 0, 0, 4, 4]) - frame_value(video, 2, 0)) <= 2


def test_views_are_crop_major(tiny: Record, frame_value: FrameValue) -> None:
    records = everything(tiny)
    settings = experiment().model_copy(
        update={"evaluate": EvaluateOptions(views="sliding", step=1, crops="ten")}
    )
    item = next(iter(view_loader(settings.data, settings.evaluate, spec(length=5), records, tiny)))
    assert (item.id, item.label) == (records[0].id, records[0].label)
    assert item.views.shape == (20, 3, 5, 8, 8)
    video = int(item.id[-2:])
    for view in range(20):
        expected = frame_value(video, 1 + view % 2, 0)  # two clips, the second one frame later
        assert abs(int(item.views[view, 0, 0, 4, 4]) - expected) <= 2


def test_mirrored_flow_view_is_negated_unless_paper(tiny: Record, frame_value: FrameValue) -> None:
    records = everything(tiny, "flow")
    video = int(records[0].id[-2:])
    x = frame_value(video, 1, 0)
    for protocol, mirrored in (("standard", 255 - x), ("paper", x)):
        settings = experiment(augment=AugmentOptions(protocol=protocol))
        item = next(iter(view_loader(settings.data, settings.evaluate, spec("flow", 5), records, tiny)))
        assert abs(int(item.views[0, 0, 0, 4, 4]) - x) <= 2
        assert abs(int(item.views[5, 0, 0, 4, 4]) - mirrored) <= 2


def spoil(record: Record, how: str) -> str:
    """Damage the third frame of a video in the training list; return its id."""
    path = record.frames_root("rgb") / "v_sitdown_g04_c08" / "img_00003.jpg"
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.write_text("no image")
    return "v_sitdown_g04_c08"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "text"])
def test_broken_frame_stops_with_its_name_or_is_skipped(tiny: Record, how: str, workers: int) -> None:
    name = spoil(tiny, how)
    records = everything(tiny)
    with pytest.raises(DataError, match=name) as caught:
        list(centred_batches(experiment(workers), spec(), records, tiny))
    assert "img_00003.jpg" in str(caught.value)
    assert "\n" not in str(caught.value)
    loader = centred_batches(experiment(workers, on_error="skip"), spec(), records, tiny)
    ids = [i for b in loader for i in b.ids]
    assert ids == [r.id for r in records if r.id != name]
    assert [video for video, _ in loader.skipped] == [name]
    assert "img_00003.jpg" in loader.skipped[0][1]
    settings = experiment(workers, on_error="skip")
    views = view_loader(
        settings.data,
        settings.evaluate,
        spec(),
        records,
        tiny,
    )
    assert [v.id for v in views] == ids
    assert not multiprocessing.active_children()


def test_batch_of_broken_videos_yields_nothing_but_counts(tiny: Record) -> None:
    name = spoil(tiny, "missing")
    records = everything(tiny)
    loader = centred_batches(experiment(batch=1, on_error="skip"), spec(), records, tiny)
    batches = list(loader)
    assert len(batches) == len(records) - 1
    assert loader.position == len(loader) == len(records)
    assert loader.skipped[0][0] == name


def test_missing_folder_and_empty_part_are_named(tiny: Record) -> None:
    records = [VideoRecord("v_none_g00_c00", 6, 0)]
    with pytest.raises(DataError, match="v_none_g00_c00"):
        list(centred_batches(experiment(), spec(), records, tiny))
    with pytest.raises(DataError, match="training part has no videos"):
        train_batches(experiment(), spec(), [], tiny, epoch=1)


def test_wrong_setting_in_a_worker_is_not_skipped(tiny: Record) -> None:
    settings = experiment(2, sampling="paper", on_error="skip")
    with pytest.raises(SettingsError, match="stride 1") as caught:
        list(centred_batches(settings, spec(stride=2), everything(tiny), tiny))
    assert "\n" not in str(caught.value)


@pytest.fixture
def filmed(tmp_path: Path) -> Record:
    """Two videos of 25 frames and a text file that calls itself one."""
    options = DemoOptions(min_frames=25, max_frames=25)
    for name in ("rise", "fall"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        encode(tmp_path / "videos" / name / f"{name}_g01.mp4", render(name, 1, 1, options), "mpeg4")
    (tmp_path / "videos" / "rise" / "broken.mp4").write_text("no video")
    (tmp_path / "dataset.yaml").write_text(
        "name: filmed\nvideos: videos\nshort_side: null\nclasses: [rise, fall]\n"
    )
    return load_record(tmp_path)


def test_video_source_equals_the_decoder(filmed: Record) -> None:
    capture = cv2.VideoCapture(str(filmed.videos_root() / "fall" / "fall_g01.mp4"))
    frames = []
    while True:
        more, picture = capture.read()
        if not more:
            break
        frames.append(picture[..., ::-1])
    assert len(frames) == 25
    source = VideoFiles(filmed, "rgb", "opencv", "dis")
    for numbers in ([25, 1, 1, 7], list(range(1, 25))):  # sparse and dense requests
        read = source.read("fall/fall_g01", numbers, (48, 64))
        assert (read == np.stack([frames[n - 1] for n in numbers])).all()
    assert source.path("fall_g01") == source.path("fall/fall_g01")
    small = source.read("fall_g01", [3], (12, 16))
    assert (small == resize_frames(frames[2][None], (12, 16))).all()


def test_flow_on_the_fly_lies_between_neighbouring_frames(filmed: Record) -> None:
    rgb = VideoFiles(filmed, "rgb", "pyav", "dis").read("rise_g01", list(range(1, 26)), (48, 64))
    expected = np.stack(list(FlowEstimator("dis").flows(rgb)))
    read = VideoFiles(filmed, "flow", "pyav", "dis").read("rise_g01", [24, 3, 4, 3], (48, 64))
    assert (read == expected[[23, 2, 3, 2]]).all()


def test_short_side_decides_the_size_flow_is_computed_at(filmed: Record) -> None:
    halved = filmed.model_copy(update={"short_side": 24})
    full = VideoFiles(filmed, "flow", "pyav", "dis").read("rise_g01", list(range(1, 25)), (24, 32))
    half = VideoFiles(halved, "flow", "pyav", "dis").read("rise_g01", list(range(1, 25)), (24, 32))
    lengths = [np.abs(flow[..., 1].astype(float) - 127.5).mean() for flow in (full, half)]
    assert 1.4 < lengths[0] / lengths[1] < 2.8


def test_broken_videos_and_frames_beyond_the_end(filmed: Record) -> None:
    source = VideoFiles(filmed, "rgb", "pyav", "dis")
    for numbers in ([26], list(range(10, 30)), [5, 26]):
        with pytest.raises(VideoError, match=r"rise_g01\.mp4"):
            source.read("rise_g01", numbers, (48, 64))
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        source.read("rise/broken", [1], (48, 64))
    with pytest.raises(VideoError, match="no video file with this name"):
        source.read("rise/absent", [1], (48, 64))
    (filmed.videos_root() / "fall" / "rise_g01.avi").write_bytes(b"")
    with pytest.raises(VideoError, match="several video files"):
        VideoFiles(filmed, "rgb", "pyav", "dis").path("rise_g01")


def test_loader_reads_videos_of_both_streams(filmed: Record) -> None:
    for modality in ("rgb", "flow"):
        frames = 25 if modality == "rgb" else 24
        records = [
            VideoRecord("rise/rise_g01", frames, 0),
            VideoRecord("rise/broken", frames, 0),
            VideoRecord("fall_g01", frames, 1),
        ]
        wide = replace(spec(modality, 12), resize=(48, 64), crop=40)  # type: ignore[arg-type]
        settings = experiment(0, source="videos", on_error="skip")
        loader = view_loader(settings.data, settings.evaluate, wide, records, filmed)
        items = list(loader)
        assert [v.views.shape[0] for v in items] == [20, 20]
        assert [video for video, _ in loader.skipped] == ["rise/broken"]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_starts_without_opening_the_videos(
    filmed: Record, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def fail(*_: object) -> None:
        raise VideoError("video", "was opened")

    monkeypatch.setattr("two_stream.data.sources.files.open_video", fail)
    given = experiment(workers, source="videos", backend="pyav")
    videos = [VideoRecord("rise/rise_g01", 25, 0), VideoRecord("fall/fall_g01", 25, 1)]
    batches = train_batches(given, spec(), videos, filmed, epoch=1)
    with pytest.raises(DataError, match="was opened"):
        next(iter(batches))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_clips(filmed: Record) -> None:
    def megabytes() -> float:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    source = VideoFiles(filmed, "rgb", "pyav", "dis")
    used = []
    for _ in range(3):
        for _ in range(300):
            source.read("rise/rise_g01", [3, 9], (12, 16))
        used.append(megabytes())
    assert used[2] - used[1] < 4


def test_dead_worker_is_one_clear_line(tiny: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        os._exit(3)

    monkeypatch.setattr(FrameFolders, "read", die)
    with pytest.raises(DataError, match="loader process stopped") as caught:
        list(centred_batches(experiment(1), spec(), everything(tiny), tiny))
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()


def test_killed_worker_names_memory_and_what_to_do(tiny: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrameFolders, "read", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(
        DataError, match=r"memory ran out; use fewer loader processes \(--data.workers.*--resume"
    ):
        list(centred_batches(experiment(1), spec(), everything(tiny), tiny))


def test_leaving_an_epoch_early_ends_its_workers(tiny: Record) -> None:
    loader = train_batches(experiment(2, batch=1), spec(), everything(tiny), tiny, epoch=1)
    for _ in loader:
        assert len(multiprocessing.active_children()) == 2
        break
    gc.collect()
    assert not multiprocessing.active_children()
    assert loader.position == 1


def test_a_worker_stuck_in_a_decoder_does_not_outlive_its_epoch(
    tiny: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = FrameFolders.read

    def stick(self: FrameFolders, video_id: str, *args: object) -> object:
        if video_id.endswith("_g05_c11"):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # foreign code lets no handler run
            time.sleep(600)
        return original(self, video_id, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(FrameFolders, "read", stick)
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.3)
    records = sorted(everything(tiny), key=lambda r: r.id.endswith("_g05_c11"))
    loader = centred_batches(experiment(1, batch=len(records) - 1), spec(), records, tiny)
    for _ in loader:
        time.sleep(0.5)  # the next batch has begun
        assert len(multiprocessing.active_children()) == 1
        break
    gc.collect()
    assert not multiprocessing.active_children()


def test_datasets_survive_pickling(tiny: Record, filmed: Record) -> None:
    """Where processes are spawned (macOS, Windows) the dataset travels to the workers in a pickle."""
    for dataset in (
        train_batches(experiment(), spec(), everything(tiny), tiny, epoch=1).dataset,
        centred_batches(
            experiment(source="videos"), spec(), [VideoRecord("rise_g01", 25, 0)], filmed
        ).dataset,
    ):
        copy = pickle.loads(pickle.dumps(dataset))
        assert torch.equal(copy[0].clip, dataset[0].clip)  # type: ignore[union-attr]


def test_a_balanced_epoch_repeats_resumes_and_divides(tiny: Record) -> None:
    """Ten videos, of which one class has a single one: its draws are clips of their own."""
    records = [r for r in everything(tiny) if r.label != 2] + [r for r in everything(tiny) if r.label == 2][
        :1
    ]
    settings = experiment(balance="classes")
    whole = list(train_batches(settings, spec(), records, tiny, epoch=3))
    assert sum(len(b.ids) for b in whole) == len(records)
    assert same(whole, list(train_batches(experiment(2, balance="classes"), spec(), records, tiny, epoch=3)))
    assert same(whole[1:], list(train_batches(settings, spec(), records, tiny, epoch=3, skip_batches=1)))
    shares = [
        list(train_batches(settings, spec(), records, tiny, epoch=3, share=Share(rank, 2))) for rank in (0, 1)
    ]
    assert same(whole[::2], shares[0])
    assert same(whole[1::2], shares[1])
    drawn = [
        pair
        for epoch in range(6)
        for b in train_batches(settings, spec(), records, tiny, epoch=epoch)
        for pair in pairs(b)
    ]
    rare = [clip for video_id, clip in drawn if video_id == records[-1].id]
    assert len(rare) > len(drawn) / 6
    assert len({clip.numpy().tobytes() for clip in rare}) > 1
    plain = ClipDataset(FrameFolders(tiny, "rgb"), records, spec(length=1), DataOptions(), epoch=0)
    again = [plain[len(records) - 1 + times * len(records)] for times in range(12)]
    assert {item.id for item in again} == {records[-1].id}
    assert len({item.clip.numpy().tobytes() for item in again if isinstance(item, ClipItem)}) > 3


@pytest.mark.parametrize("modality", ["rgb", "flow"])
def test_augmented_clips_do_not_depend_on_workers(tiny: Record, modality: Modality) -> None:
    colours = {"brightness": 0.4, "hue": 0.1, "rand_augment": 1} if modality == "rgb" else {}
    augment = AugmentOptions.model_validate({"crop": "resized", "erase": 0.5, **colours})
    records = everything(tiny, modality)
    alone, two = (
        list(train_batches(experiment(workers, augment=augment), spec(modality), records, tiny, epoch=1))
        for workers in (0, 2)
    )
    assert same(alone, two)
    plain = list(train_batches(experiment(), spec(modality), records, tiny, epoch=1))
    assert not same(alone, plain)
    assert alone[0].clips.shape == plain[0].clips.shape
