"""Packed shards: the batches of the folders they were packed from, and plain words for what is wrong with them."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.helpers.clip_batches import centred_batches, train_batches
from two_stream.cli import main
from two_stream.config.schema import AugmentOptions, DataOptions, Experiment, TrainOptions
from two_stream.data import packing
from two_stream.data.catalog import Record, load_record
from two_stream.data.demo import DemoOptions, encode, render
from two_stream.data.packing import (
    PackOptions,
    Shard,
    Tar,
    _without_culprit,
    all_videos,
    pack,
    plan_shards,
    verify_shards,
)
from two_stream.data.sources.files import FrameFolders, VideoFiles
from two_stream.data.sources.shards import INDEX, ShardSource, Storage, frame_ranges, key_of, parse_index
from two_stream.data.splits import load_part
from two_stream.errors import DataError, SettingsError, TwoStreamError, VideoError
from two_stream.runtime.workers import TaskFailure
from two_stream.types import Batch, InputSpec, Modality, VideoRecord
from two_stream.video.frames import Region

SIZE = (9, 13)
QUICK = PackOptions(resize=SIZE, processes=0, shard_frames=20)


@pytest.fixture
def noisy(tiny: Record) -> Record:
    """The tiny data set with texture: its frames are 24×34 pixels of noise."""
    rng = np.random.default_rng(0)
    for path in sorted(tiny.frames_root("rgb").rglob("*.jpg")):
        shape = (24, 34, 3) if path.name.startswith("img") else (24, 34)
        cv2.imwrite(str(path), rng.integers(0, 256, shape, np.uint8))
    return tiny


def spec(modality: Modality = "rgb", resize: tuple[int, int] = SIZE) -> InputSpec:
    channels = 3 if modality == "rgb" else 2
    return InputSpec(modality, 4, 1, resize, 8, (0.0, 255.0), (0.0,) * channels, (1.0,) * channels)


def experiment(out: Path | str | None = None, workers: int = 0, **data: object) -> Experiment:
    if out is not None:
        data = {"source": "shards", "shards": str(out), **data}
    return Experiment(
        data=DataOptions(workers=workers, **data),  # type: ignore[arg-type]
        train=TrainOptions(batch_size=3),
    )


def videos(record: Record, modality: Modality = "rgb") -> list[VideoRecord]:
    return load_part(record, modality, 1, "train", selection="paper")


def batches(settings: Experiment, record: Record, modality: Modality = "rgb", epoch: int = 1) -> list[Batch]:
    return list(train_batches(settings, spec(modality), videos(record, modality), record, epoch=epoch))


def same(first: list[Batch], second: list[Batch]) -> bool:
    assert first
    return [b.ids for b in first] == [b.ids for b in second] and all(
        torch.equal(a.clips, b.clips) and torch.equal(a.labels, b.labels) for a, b in zip(first, second)
    )


@pytest.mark.parametrize("modality", ["rgb", "flow"])
@pytest.mark.parametrize("encoding", ["raw", "original"])
def test_batches_are_those_of_the_folders(
    noisy: Record, tmp_path: Path, encoding: str, modality: Modality
) -> None:
    summary = pack(noisy, modality, tmp_path / "out", replace(QUICK, encoding=encoding))  # type: ignore[arg-type]
    assert (summary.videos, summary.failed, summary.short) == (12, [], [])
    assert summary.frames == (72 if modality == "rgb" else 60)
    assert summary.shards == summary.written > 1
    for epoch in (1, 2):
        folders = batches(experiment(), noisy, modality, epoch)
        assert same(folders, batches(experiment(tmp_path / "out"), noisy, modality, epoch))
    assert same(folders, batches(experiment(tmp_path / "out", workers=2), noisy, modality, 2))
    centred = [
        list(centred_batches(settings, spec(modality), videos(noisy, modality), noisy))
        for settings in (experiment(), experiment(tmp_path / "out"))
    ]
    assert same(*centred)


def test_whole_frames_repeats_and_regions(noisy: Record, tmp_path: Path) -> None:
    pack(noisy, "rgb", tmp_path / "out", QUICK)
    packed, folders = ShardSource(str(tmp_path / "out"), "rgb"), FrameFolders(noisy, "rgb")
    name = "v_run_g02_c04"
    for region in (None, Region((1, 2, 9, 10), (8, 8)), Region((0, 1, 7, 8), (8, 8))):
        for numbers in ([6, 1, 1], [3], range(1, 7)):
            expected = folders.read(name, numbers, SIZE, region)
            np.testing.assert_array_equal(packed.read(name, numbers, SIZE, region), expected)


def test_a_shard_is_a_plain_webdataset(noisy: Record, tmp_path: Path) -> None:
    pack(noisy, "rgb", tmp_path / "raw", QUICK)
    pack(noisy, "flow", tmp_path / "files", replace(QUICK, encoding="original"))
    shard = tmp_path / "raw" / "rgb" / "000000.tar"
    with tarfile.open(shard) as tar:
        names = tar.getnames()
        array = np.load(io.BytesIO(tar.extractfile(names[1]).read()), allow_pickle=False)  # type: ignore[union-attr]
        about = json.loads(tar.extractfile(names[0]).read())  # type: ignore[union-attr]
    assert names[:2] == ["v_jump_g00_c00.json", "v_jump_g00_c00.rgb.npy"]
    expected = FrameFolders(noisy, "rgb").read("v_jump_g00_c00", range(1, 7), SIZE)
    np.testing.assert_array_equal(array, expected)
    assert (about["label"], about["class"], about["frames"], about["exact"]) == (0, "jump", 6, True)
    listed = subprocess.run(["tar", "tf", str(shard)], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == names
    assert listed.stderr == ""
    with tarfile.open(tmp_path / "files" / "flow" / "000000.tar") as tar:
        member = tar.extractfile("v_jump_g00_c00.flow_y_00003.jpg")
        assert member is not None
        stored = noisy.frames_root("flow") / "v_jump_g00_c00" / "flow_y_00003.jpg"
        assert member.read() == stored.read_bytes()


def test_the_webdataset_library_reads_it(noisy: Record, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    pack(noisy, "rgb", tmp_path / "out", QUICK)
    urls = [str(path) for path in sorted((tmp_path / "out" / "rgb").glob("*.tar"))]
    found = {s["__key__"]: s for s in webdataset.WebDataset(urls, shardshuffle=False).decode()}
    assert set(found) == {video.id for video in all_videos(noisy, "rgb")}
    expected = FrameFolders(noisy, "rgb").read("v_run_g02_c04", range(1, 7), SIZE)
    np.testing.assert_array_equal(found["v_run_g02_c04"]["rgb.npy"], expected)


@pytest.mark.parametrize("encoding", ["raw", "original"])
def test_only_the_frames_asked_for_are_read(
    noisy: Record, tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(noisy, "rgb", tmp_path / "out", replace(QUICK, encoding=encoding))  # type: ignore[arg-type]
    source = ShardSource(str(tmp_path / "out"), "rgb")
    asked: list[int] = []
    original = Storage.read
    monkeypatch.setattr(
        Storage,
        "read",
        lambda self, name, start, count: asked.append(count) or original(self, name, start, count),
    )
    source.read("v_run_g00_c01", [2, 3], SIZE)
    frame = SIZE[0] * SIZE[1] * 3
    stored = noisy.frames_root("rgb") / "v_run_g00_c01" / "img_00002.jpg"
    assert len(asked) == 1
    assert asked[0] == 2 * frame if encoding == "raw" else asked[0] < 3 * stored.stat().st_size


def test_stretches_of_numbers() -> None:
    assert list(frame_ranges([9, 1, 2, 2, 4])) == [(1, 4), (9, 9)]
    assert list(frame_ranges([5])) == [(5, 5)]
    assert list(frame_ranges([])) == []


def test_jpeg_is_smaller_and_says_that_it_differs(noisy: Record, tmp_path: Path) -> None:
    pack(noisy, "rgb", tmp_path / "out", replace(QUICK, encoding="jpeg", quality=100))
    source = ShardSource(str(tmp_path / "out"), "rgb")
    assert source.index.settings["exact"] is False
    exact = FrameFolders(noisy, "rgb").read("v_jump_g00_c00", [2], SIZE).astype(int)
    gap = np.abs(source.read("v_jump_g00_c00", [2], SIZE) - exact)
    assert 0 < gap.mean() < 30


def shards_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_ino, path.read_bytes()) for path in sorted(folder.glob("*.tar"))}


def test_a_stopped_pack_goes_on_and_ends_the_same(
    noisy: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = packing._write_video

    def stop(tar: Tar, shard: Shard, video: VideoRecord, *rest: object) -> object:
        if video.id == "v_run_g02_c04":
            raise KeyboardInterrupt
        return original(tar, shard, video, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(packing, "_write_video", stop)
    with pytest.raises(KeyboardInterrupt):
        pack(noisy, "rgb", tmp_path / "out", QUICK)
    monkeypatch.undo()
    folder = tmp_path / "out" / "rgb"
    before = shards_of(folder)
    assert len(before) == 1
    with pytest.raises(
        DataError, match=r"rgb/index\.npz: the index of shards cannot be read .*when all shards are complete"
    ):
        ShardSource(str(tmp_path / "out"), "rgb")
    summary = pack(noisy, "rgb", tmp_path / "out", QUICK)
    assert summary.written == summary.shards - 1
    pack(noisy, "rgb", tmp_path / "whole", QUICK)
    after, whole = shards_of(folder), shards_of(tmp_path / "whole" / "rgb")
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in whole.items()
    }
    assert all(after[name][0] == inode for name, (inode, _) in before.items())
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    assert pack(noisy, "rgb", tmp_path / "out", QUICK).written == 0
    assert verify_shards(folder) == []


def test_processes_change_nothing(noisy: Record, tmp_path: Path) -> None:
    pack(noisy, "flow", tmp_path / "one", QUICK)
    pack(noisy, "flow", tmp_path / "two", replace(QUICK, processes=2))
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "flow").glob("*.tar")}
        for name in ("one", "two")
    ]
    assert contents[0] == contents[1]


def test_other_settings_and_lists_are_refused_unless_overwritten(noisy: Record, tmp_path: Path) -> None:
    pack(noisy, "rgb", tmp_path / "out", QUICK)
    other = replace(QUICK, resize=(8, 10), shard_frames=1000)
    with pytest.raises(
        DataError, match=r"contains shards packed differently: resize \[9, 13\] -> \[8, 10\], .*--overwrite"
    ):
        pack(noisy, "rgb", tmp_path / "out", other)
    assert verify_shards(tmp_path / "out" / "rgb") == []
    pack(noisy, "rgb", tmp_path / "out", replace(other, overwrite=True))
    assert [path.name for path in (tmp_path / "out" / "rgb").glob("*.tar")] == ["000000.tar"]
    path = noisy.list_path("train", "rgb", 1)
    path.write_text(path.read_text().replace(" 6 0", " 5 0"))
    noisy.list_path("train", "rgb", 2).unlink()
    with pytest.raises(DataError, match="the split lists have changed"):
        pack(noisy, "rgb", tmp_path / "out", other)


def test_a_broken_video_is_left_out_by_name_and_retried(noisy: Record, tmp_path: Path) -> None:
    broken = noisy.frames_root("rgb") / "v_run_g02_c04" / "img_00003.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-30])
    summary = pack(noisy, "rgb", tmp_path / "out", QUICK)
    assert [name for name, _ in summary.failed] == ["v_run_g02_c04"]
    assert "img_00003.jpg: truncated JPEG" in summary.failed[0][1]
    assert summary.videos == 11
    with pytest.raises(DataError, match=r"video 'v_run_g02_c04' is not among the 11 packed"):
        batches(experiment(tmp_path / "out"), noisy)
    broken.write_bytes(whole)
    summary = pack(noisy, "rgb", tmp_path / "out", QUICK)
    assert (summary.failed, summary.written, summary.videos) == ([], 1, 12)
    assert same(batches(experiment(), noisy), batches(experiment(tmp_path / "out"), noisy))


def test_a_folder_shorter_than_its_list_is_packed_as_far_as_it_goes(noisy: Record, tmp_path: Path) -> None:
    (noisy.frames_root("rgb") / "v_run_g02_c04" / "img_00006.jpg").unlink()
    summary = pack(noisy, "rgb", tmp_path / "out", QUICK)
    assert summary.short == [("v_run_g02_c04", 5, 6)]
    source = ShardSource(str(tmp_path / "out"), "rgb")
    assert source.read("v_run_g02_c04", [5], SIZE).shape == (1, *SIZE, 3)
    with pytest.raises(
        VideoError, match=r"v_run_g02_c04: frame 6 was requested, but only 5 frames are packed"
    ):
        source.read("v_run_g02_c04", [6], SIZE)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_a_spoilt_shard_is_named_not_hung_on(noisy: Record, tmp_path: Path, how: str, workers: int) -> None:
    pack(noisy, "rgb", tmp_path / "out", QUICK)
    shard = tmp_path / "out" / "rgb" / "000001.tar"
    if how == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(DataError, match=rf"000001\.tar: .*{how}") as caught:
        batches(experiment(tmp_path / "out", workers), noisy)
    assert "\n" not in str(caught.value)
    settings = experiment(tmp_path / "out", workers, on_error="skip")
    loader = train_batches(settings, spec(), videos(noisy), noisy, epoch=1)
    seen = [name for batch in loader for name in batch.ids]
    lost = {name for name, _ in loader.skipped}
    index = parse_index((shard.parent / INDEX).read_bytes(), "index")
    assert lost == {name for name, packed in index.videos.items() if packed.shard == 1} & {
        video.id for video in videos(noisy)
    }
    assert len(seen) + len(lost) == len(videos(noisy))
    assert verify_shards(shard.parent) != []


@pytest.mark.parametrize("encoding", ["raw", "original", "jpeg"])
@pytest.mark.parametrize("modality", ["rgb", "flow"])
def test_one_changed_bit_of_a_frame_is_noticed(
    noisy: Record, tmp_path: Path, encoding: str, modality: Modality
) -> None:
    options = PackOptions(encoding=encoding, resize=SIZE, processes=0)  # type: ignore[arg-type]
    pack(noisy, modality, tmp_path, options)
    source = ShardSource(str(tmp_path), modality)
    assert source.index.crcs is not None
    shard = tmp_path / modality / "000000.tar"
    whole = shard.read_bytes()
    for name, video in source.index.videos.items():
        numbers = range(1, video.frames + 1)
        intact = source.read(name, numbers, SIZE)
        row = video.first
        place = int(source.index.starts[row]) + int(source.index.sizes[row]) // 2
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(
            VideoError, match=r"000000.tar: damaged shard: the checksum of frame \d+ .* pack the shard again"
        ):
            source.read(name, numbers, SIZE)
        shard.write_bytes(whole)
        assert np.array_equal(source.read(name, numbers, SIZE), intact)
    index = parse_index((tmp_path / modality / INDEX).read_bytes(), "x")
    (tmp_path / modality / INDEX).write_bytes(replace(index, crcs=None).dump(_listed(tmp_path / modality)))
    assert np.array_equal(
        ShardSource(str(tmp_path), modality).read(name, numbers, SIZE), intact
    )  # an older pack
    wrong = replace(index, crcs=index.crcs[1:]).dump(_listed(tmp_path / modality))
    with pytest.raises(DataError, match="checksums of"):
        parse_index(wrong, "x")


def _listed(folder: Path) -> list[dict[str, object]]:
    notes = [json.loads(path.read_text()) for path in sorted(folder.glob("[0-9]*.json"))]
    return [{key: note[key] for key in ("name", "bytes", "sha256")} for note in notes]


def test_a_shard_cut_while_it_is_read_is_named(noisy: Record, tmp_path: Path) -> None:
    pack(noisy, "rgb", tmp_path / "out", QUICK)
    source = ShardSource(str(tmp_path / "out"), "rgb")
    source.read("v_jump_g00_c00", [1], SIZE)
    with (tmp_path / "out" / "rgb" / "000000.tar").open("r+b") as file:
        file.truncate(1600)
    with pytest.raises(
        VideoError, match=r"000000\.tar: truncated shard: a frame in the index is after the end"
    ):
        source.read("v_jump_g00_c00", [6], SIZE)


def test_other_sizes_indexes_and_settings_are_refused_in_one_line(noisy: Record, tmp_path: Path) -> None:
    pack(noisy, "rgb", tmp_path / "out", QUICK)
    loader = train_batches(experiment(tmp_path / "out"), spec(resize=(12, 16)), videos(noisy), noisy, epoch=1)
    with pytest.raises(
        SettingsError,
        match=r"the packed frames have 9×13 pixels .* requires 12×16; pack again with --resize 12 16",
    ):
        list(loader)
    with pytest.raises(DataError, match=r"flow/index\.npz: the index of shards cannot be read"):
        ShardSource(str(tmp_path / "out"), "flow")
    for content in (b"", b"PK\x03\x04", b"no index"):
        (tmp_path / "out" / "rgb" / INDEX).write_bytes(content)
        with pytest.raises(DataError, match=r"index\.npz: not an index of shards, or damaged"):
            ShardSource(str(tmp_path / "out"), "rgb")
    with pytest.raises(ValueError, match="requires `shards`"):
        DataOptions(source="shards")
    for name in ("scaled_decoding", "resize_once"):
        for paper in ({"sampling": "paper"}, {"augment": AugmentOptions(protocol="paper")}):
            with pytest.raises(ValueError, match=f"`{name}` changes pixels"):
                DataOptions(**{name: True}, **paper)  # type: ignore[arg-type]


@pytest.fixture
def memory() -> Iterator[str]:
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    yield "memory://shards-test"
    system.rm("/shards-test", recursive=True)


@pytest.mark.timeout(60)
def test_shards_behind_a_url(noisy: Record, tmp_path: Path, memory: str) -> None:
    import fsspec

    pack(noisy, "rgb", tmp_path / "out", QUICK)
    fsspec.filesystem("memory").put(str(tmp_path / "out"), "/shards-test", recursive=True)
    shutil.rmtree(tmp_path / "out")
    expected = batches(experiment(), noisy)
    assert same(expected, batches(experiment(memory), noisy))
    assert same(expected, batches(experiment(f"{memory}/", workers=2), noisy))
    system = fsspec.filesystem("memory")
    cut = system.cat_file("/shards-test/rgb/000000.tar")[:3000]
    system.pipe_file("/shards-test/rgb/000000.tar", cut)
    with pytest.raises(
        DataError, match=r"memory://shards-test/rgb/000000\.tar: truncated shard: found 3000 bytes"
    ):
        batches(experiment(memory), noisy)
    with pytest.raises(
        DataError, match=r"memory://nowhere/rgb/index\.npz: the index of shards cannot be read"
    ):
        ShardSource("memory://nowhere", "rgb")
    with pytest.raises(SettingsError, match=r"nosuch://x"):
        ShardSource("nosuch://x", "rgb")


def test_more_shards_than_files_may_be_open(
    noisy: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(noisy, "rgb", tmp_path / "out", replace(QUICK, shard_frames=1))
    monkeypatch.setattr("two_stream.data.sources.shards._OPEN_FILES", 3)
    source = ShardSource(str(tmp_path / "out"), "rgb")
    for video in all_videos(noisy, "rgb"):
        expected = FrameFolders(noisy, "rgb").read(video.id, [2], SIZE)
        np.testing.assert_array_equal(source.read(video.id, [2], SIZE), expected)
    assert len(source.storage._files) == 3


def test_keys_and_plans() -> None:
    assert key_of("run/v_1") == "run/v_1"
    assert key_of("a.b/c.d.avi") == "a%2Eb/c%2Ed%2Eavi"
    assert key_of("50%.x") == "50%25%2Ex"
    assert key_of("__x__") == "%5F_x__"
    assert len({key_of(name) for name in ("a.b", "a%2Eb", "a_b")}) == 3
    records = [VideoRecord(str(n), frames, 0) for n, frames in enumerate((6, 6, 9, 30, 1))]
    assert [[v.id for v in shard] for shard in plan_shards(records, 15)] == [["0", "1"], ["2"], ["3"], ["4"]]


def test_long_and_foreign_ids_survive(tmp_path: Path) -> None:
    names = ["täst/" + "x" * 120 + ".mp4", "__meta__", "a b#c"]
    lines = []
    for label, name in enumerate(names):
        folder = tmp_path / "frames" / name
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / "img_00001.jpg"), np.full((12, 16, 3), 40 * label, np.uint8))
        lines.append(f"{name} 1 0\n")
    (tmp_path / "train_rgb_split1.txt").write_text("".join(lines))
    (tmp_path / "dataset.yaml").write_text("name: odd\nframes: {rgb: frames}\nclasses: [x]\n")
    record = load_record(tmp_path)
    pack(record, "rgb", tmp_path / "out", replace(QUICK, encoding="original"))
    source = ShardSource(str(tmp_path / "out"), "rgb")
    for label, name in enumerate(names):
        assert abs(int(source.read(name, [1], (12, 16)).mean()) - 40 * label) <= 2
    with tarfile.open(tmp_path / "out" / "rgb" / "000000.tar") as tar:
        keys = {name.split("/")[-1].split(".")[0] for name in tar.getnames()}
    assert len(keys) == 3


@pytest.mark.parametrize("modality", ["rgb", "flow"])
def test_videos_are_packed_as_they_would_be_read(tmp_path: Path, modality: Modality) -> None:
    (tmp_path / "videos").mkdir()
    frames = render("rise", 1, 1, DemoOptions(min_frames=20, max_frames=20))
    encode(tmp_path / "videos" / "one.mp4", frames, "mpeg4")
    count = 20 if modality == "rgb" else 19
    (tmp_path / f"train_{modality}_split1.txt").write_text(f"one {count} 0\ntwo {count} 0\n")
    (tmp_path / "dataset.yaml").write_text("name: filmed\nvideos: videos\nshort_side: null\nclasses: [x]\n")
    record = load_record(tmp_path)
    summary = pack(record, modality, tmp_path / "out", replace(QUICK, source="videos", resize=(24, 32)))
    assert summary.failed == [("two", f"{tmp_path / 'videos' / 'two'}: no video file with this name")]
    packed = ShardSource(str(tmp_path / "out"), modality).read("one", [count, 3, 4], (24, 32))
    expected = VideoFiles(record, modality, "pyav", "dis").read("one", [count, 3, 4], (24, 32))
    np.testing.assert_array_equal(packed, expected)
    with pytest.raises(SettingsError, match="--encoding original requires --source frames"):
        PackOptions(source="videos", encoding="original")


def test_a_video_that_kills_its_process_is_left_out_once(noisy: Record, tmp_path: Path) -> None:
    records = tuple(all_videos(noisy, "rgb")[:2])
    shard = Shard(tmp_path, 0, records, noisy, "rgb", QUICK, packing._settings(QUICK, noisy, "rgb"))
    with pytest.raises(TwoStreamError, match=r"000000\.tar: cannot be packed \(killed\)"):
        _without_culprit(shard, TaskFailure("killed"))
    shard.at.write_text(records[1].id)
    again = _without_culprit(shard, TaskFailure("killed"))
    note = packing.write_shard(again, lambda: None)
    assert note["failed"] == [(records[1].id, "killed")]
    assert [video["id"] for video in note["videos"]] == [records[0].id]
    with pytest.raises(TwoStreamError, match="No space left"):
        _without_culprit(again, TaskFailure("OSError: No space left", "raised"))


def test_the_command(noisy: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = str(noisy.folder / "dataset.yaml"), str(tmp_path / "out")
    common = [file, "--out", out, "--processes", "0"]
    args = ["pack", *common, "--resize", "9", "13", "--modality", "both", "--verify", "--json"]
    assert main([*args, str(tmp_path / "s.json")]) == 0
    shown = capsys.readouterr().out
    assert "12 videos, 72 frames in 1 shard;" in shown
    assert "all checksums agree" in shown
    assert f"--data.source shards --data.shards {out}" in shown
    assert json.loads((tmp_path / "s.json").read_text())["flow"]["frames"] == 60
    assert main(["pack", *common, "--resize", "9", "13"]) == 0
    assert "0 written, 1 existed" in capsys.readouterr().out
    shard = tmp_path / "out" / "rgb" / "000000.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
    assert main(["pack", *common, "--resize", "9", "13", "--verify"]) == 1
    assert f"{shard}: damaged" in capsys.readouterr().out
    shard.unlink()
    assert main(["pack", *common, "--resize", "9", "13", "--verify"]) == 0
    capsys.readouterr()
    (tmp_path / "e.yaml").write_text("model: {input: {resize: [9, 14], crop: 8}}\n")
    for wrong, said in (
        (["--resize", "9"], "resize"),
        (["--resize", "2", "2"], "--resize is (2, 2): expected HEIGHT WIDTH"),
        (["--encoding", "zip"], "encoding"),
        (["--quality", "0"], "--quality is 0"),
        (["--like", str(tmp_path / "e.yaml")], "resize [9, 13] -> [9, 14]"),
        (["--like", str(tmp_path / "e.yaml"), "--resize", "9", "14"], "cannot be combined"),
        (["--outt", "x"], "--outt"),
    ):
        assert main(["pack", *common, *wrong]) == 2
        complaint = capsys.readouterr().err
        assert said in complaint
        assert complaint.count("\n") == 1
    assert main(["pack", file, "--out", "s3://bucket/x"]) == 2
    assert "expected a local folder; copy the shards to the URL afterwards" in capsys.readouterr().err
    assert main(["pack", str(tmp_path / "none"), "--out", out]) == 2
    assert "no such data set" in capsys.readouterr().err
