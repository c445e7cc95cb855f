"""Parts of longer videos: right frames by time, RGB and flow, from folders and files; damage is named."""

from __future__ import annotations

import shutil
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest
import yaml

from tests.helpers.annotations import frames, write
from tests.helpers.clip_batches import train_batches
from tests.helpers.videos import write_video
from two_stream.cli import main
from two_stream.commands import extract as extract_command
from two_stream.config.schema import DataOptions, EvaluateOptions, Experiment
from two_stream.data.catalog import Record, Roots, load_record
from two_stream.data.clips.dataset import make_source
from two_stream.data.clips.views import view_loader
from two_stream.data.options import AnnotationOptions
from two_stream.data.packing import PackOptions, all_videos, pack
from two_stream.data.prepare.adapters.build import clock_of, prepare_annotations
from two_stream.data.prepare.audit import audit
from two_stream.data.sources.files import VideoFiles
from two_stream.data.sources.segments import (
    Segment,
    SegmentSource,
    frames_between,
    read_segments,
    write_segments,
)
from two_stream.data.splits import load_part
from two_stream.errors import DataError, SettingsError, VideoError
from two_stream.evaluation.pictures import thumbnails
from two_stream.types import InputSpec
from two_stream.video.decoding.backend_pyav import frame_times
from two_stream.video.extraction.many_videos import extract
from two_stream.video.extraction.one_video import ExtractOptions
from two_stream.video.sources import Source, find_sources


def film(path: Path, shown: list[float]) -> Path:
    """Write a video whose frame k is shown at a given second and has the grey level 8 k."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=100, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, second in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 8 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(1000 * second), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


STEADY = [k / 10 for k in range(24)]
VARIABLE = [0, 0.1, 0.2, 0.3, 0.4, *(0.5 + k / 2 for k in range(1, 16))]
"""ten frames per second for half a second, then two"""


@pytest.mark.parametrize(
    ("start", "end", "numbers"),
    [
        (0, 1, range(1, 11)),
        (0.5, 3.0, range(6, 31)),  # 3D-ResNets' rule
        (0.3, 0.7, range(4, 8)),  # 0.3 × 10 is no less than 3
        (0.55, 0.61, range(6, 7)),
        (3.9, 99, range(40, 41)),
        (4.0, 5.0, range(41, 41)),  # behind the end
    ],
)
def test_the_frames_of_a_time_by_rate_and_by_time_stamps(start: float, end: float, numbers: range) -> None:
    assert list(frames_between(start, end, 40, fps=10.0)) == list(numbers)
    assert list(frames_between(start, end, 40, times=[k / 10 for k in range(40)])) == list(numbers)


def test_segments_that_follow_each_other_share_no_frame_and_leave_none_out() -> None:
    for times in (STEADY, VARIABLE):
        borders = [0, 0.25, 0.5, 0.9, 1.3, 2.2, 99]
        parts = [frames_between(a, b, len(times), times=times) for a, b in pairwise(borders)]
        assert [number for part in parts for number in part] == list(range(1, len(times) + 1))


def test_time_stamps_of_a_video_of_variable_rate(tmp_path: Path) -> None:
    path = film(tmp_path / "v.mp4", VARIABLE)
    assert frame_times(path) == pytest.approx(VARIABLE)
    clock = clock_of(path, None, len(VARIABLE), 25.0, None)
    assert list(clock.between(0.5, 2.1)) == [
        5,
        6,
        7,
    ]  # from 0.4, 1.0 and 1.5 on; the one at 2.1 s is the next
    assert (
        clock_of(path, None, 7, 25.0, None).times is None
    )  # another count: the stamps are not these frames'
    assert clock_of(path, None, 7, 25.0, None).fps == 25.0


def test_the_rate_of_a_frame_folder(tmp_path: Path) -> None:
    folder = frames(tmp_path, {"v": 3}) / "v"
    with pytest.raises(VideoError, match=r"the frames per second of .* are unknown; use --fps"):
        clock_of(None, folder, 3, None, None)
    assert clock_of(None, folder, 3, None, 12.0).fps == 12.0
    assert clock_of(None, folder, 3, 15.0, None).fps == 15.0
    (folder / "fps").write_text("29.97\n")  # as 3D-ResNets' scripts write it
    assert clock_of(None, folder, 4, None, None).fps == 29.97


@pytest.fixture
def untrimmed(tmp_path: Path) -> Record:
    """A steady and a variable video with four segments, read from the files."""
    film(tmp_path / "videos" / "steady.mp4", STEADY)
    film(tmp_path / "videos" / "variable.mp4", VARIABLE)
    table = "id,label,start,end,split\nsteady,a,0.5,1.5,train\nsteady,b,1.5,9,train\n"
    table += "variable,a,0.0,0.5,train\nvariable,b,0.9,5,test\n"
    write(tmp_path, {"t.csv": table})
    options = AnnotationOptions(
        tmp_path / "t.csv", name="cut", out=tmp_path, videos=tmp_path / "videos", processes=0
    )
    made = prepare_annotations("table", options)
    assert not made.failures
    return load_record("cut", tmp_path)


def test_lists_count_the_frames_of_segments(untrimmed: Record) -> None:
    train = (untrimmed.folder / "train_rgb_split1.txt").read_text().splitlines()
    assert train == ["steady#1 10 0", "steady#2 9 1", "variable#1 4 0"]
    assert (untrimmed.folder / "val_rgb_split1.txt").read_text() == "variable#2 9 1\n"
    assert (untrimmed.folder / "val_flow_split1.txt").read_text() == "variable#2 8 1\n"
    assert read_segments(untrimmed.folder / "segments.csv")["variable#2"] == Segment("variable", 0.9, 5.0, 5)
    assert untrimmed.group_of("steady#2") == "steady"


def test_pixels_of_a_segment_are_those_of_its_time(untrimmed: Record) -> None:
    options = DataOptions(source="videos", flow="farneback")
    rgb = make_source(untrimmed, "rgb", options)
    read = rgb.read("steady#1", [1, 10, 2], (48, 64))
    assert np.abs(read[:, 24, 32, 0].astype(int) - [8 * 5, 8 * 14, 8 * 6]).max() <= 3
    read = rgb.read("variable#2", [1, 9], (48, 64))
    assert np.abs(read[:, 24, 32, 0].astype(int) - [8 * 4, 8 * 12]).max() <= 3
    flow = make_source(untrimmed, "flow", options)
    assert isinstance(flow, SegmentSource)
    whole = VideoFiles(untrimmed, "flow", "pyav", "farneback")
    expected = whole.read("steady", [6, 14], (48, 64))  # the last lies between pictures 14 and 15
    np.testing.assert_array_equal(flow.read("steady#1", [1, 9], (48, 64)), expected)
    np.testing.assert_array_equal(flow.read("steady", [6, 14], (48, 64)), expected)  # whole videos stay known
    with pytest.raises(VideoError, match="frames of a segment are counted from 1"):
        rgb.read("steady#1", [0], (48, 64))


@pytest.mark.parametrize("source", ["videos", "frames"])
def test_segments_are_evaluated_from_videos_and_from_frame_folders(
    untrimmed: Record, tmp_path: Path, source: Literal["videos", "frames"]
) -> None:
    if source == "frames":
        files = [Source(name, tmp_path / "videos" / f"{name}.mp4") for name in ("steady", "variable")]
        extract(files, tmp_path / "frames", ExtractOptions(flow="none", quality=100, processes=0))
        path = untrimmed.folder / "dataset.yaml"
        roots = {"rgb": str(tmp_path / "frames")}
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"frames": roots}))
    record = load_record(untrimmed.folder)
    spec = InputSpec("rgb", 3, 1, (48, 64), 32, (0.0, 1.0), (0.5,) * 3, (0.5,) * 3)
    chosen = Experiment(
        data=DataOptions(source=source, workers=0), evaluate=EvaluateOptions(views="multi", crops="center")
    )
    videos = load_part(record, "rgb", 1, "train", selection="paper")
    read = {item.id: item for item in view_loader(chosen.data, chosen.evaluate, spec, videos, record)}
    assert list(read) == ["steady#1", "steady#2", "variable#1"]
    levels = read["steady#2"].frames[:, 24, 32, 0].int().numpy()
    assert np.abs(levels - 8 * np.arange(15, 24)).max() <= 3


def test_the_doctor_looks_at_videos_not_at_segments(untrimmed: Record) -> None:
    errors = [finding for finding in audit(untrimmed) if finding.severity == "error"]
    assert not errors
    path = untrimmed.folder / "segments.csv"
    segments = read_segments(path)
    write_segments(path, {**segments, "steady#9": Segment("steady", 0, 1, 1)})
    details = [finding.detail for finding in audit(untrimmed)]
    assert "1 segment is in no list: 'steady#9'" in details
    write_segments(path, {**segments, "steady#1": Segment("gone", 0.5, 1.5, 6)})
    missing = [f for f in audit(untrimmed) if f.kind == "missing" and f.severity == "error"]
    assert [Path(f.subject).name for f in missing] == ["gone"]
    path.write_text("id,video\n")
    assert any(f.kind == "unreadable" and f.subject == str(path) for f in audit(untrimmed))


def test_frame_folders_hold_more_than_their_segments(tmp_path: Path) -> None:
    root = frames(tmp_path / "frames", {"x": 40})
    for number in range(1, 40):
        for axis in "xy":
            (root / "x" / f"flow_{axis}_{number:05d}.jpg").touch()
    write(
        tmp_path,
        {"t.csv": "id,label,start,end,fps,split\nx,a,0,1,10,train\nx,b,1,9,10,test\nx,b,5,9,10,test\n"},
    )
    made = prepare_annotations(
        "table", AnnotationOptions(tmp_path / "t.csv", name="cut", out=tmp_path, frames=root)
    )
    assert made.failures == [
        ("x#3", f"the part starts at 5 s, but the video ends at 4 s ({tmp_path / 't.csv'}:4)")
    ]
    record = load_record("cut", tmp_path)
    assert not [f for f in audit(record) if f.kind == "count_mismatch"]
    (root / "x" / "img_00040.jpg").unlink()
    (found,) = [f for f in audit(record) if f.kind == "count_mismatch"]
    assert (found.severity, found.detail) == ("error", "39 rgb frames, the lists have 40")


@pytest.fixture
def textured(tmp_path: Path) -> Record:
    """Two videos of 30 moving frames with three parts that leave frames out, and one video that is used whole."""
    for name in ("x", "y", "z"):
        write_video(tmp_path / "videos" / f"{name}.mp4", 30, step=3)
    rows = "x,a,0.3,0.9,train\nx,b,0.7,1.2,train\nx,b,1.5,2.1,test\ny,a,1.0,1.6,train\nz,b,,,test\n"
    write(tmp_path, {"t.csv": "id,label,start,end,split\n" + rows})
    options = AnnotationOptions(
        annotations=tmp_path / "t.csv", name="cut", out=tmp_path, videos=tmp_path / "videos", processes=0
    )
    assert not prepare_annotations("table", options).failures
    path = tmp_path / "cut" / "dataset.yaml"
    roots = {"rgb": "../frames", "flow": "../frames"}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"frames": roots, "short_side": 40}))
    return load_record("cut", tmp_path)


def extracted(record: Record, *more: str) -> int:
    return main(
        ["extract", "--dataset", str(record.folder), "--flow", "farneback", "--processes", "0", *more]
    )


def test_only_needed_frames_are_extracted_and_their_clips_are_equal(
    textured: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = find_sources(tmp_path / "videos")[0]
    extract(videos, tmp_path / "whole", ExtractOptions(flow="farneback", short_side=40, processes=0))
    assert extracted(textured) == 0
    # x: frames 4 to 14 (12 frames per second: 0.3 s is frame 4, 1.2 s frame 15), and 19 to 25; y: 13 to 19
    assert "25 frames in parts of 2 videos are needed" in capsys.readouterr().err
    images = {
        name: sorted(int(p.stem[4:]) for p in (tmp_path / "frames" / name).glob("img_*")) for name in "xyz"
    }
    assert images == {"x": [*range(4, 15), *range(19, 26)], "y": [*range(13, 20)], "z": [*range(1, 31)]}
    flows = sorted(int(p.stem[7:]) for p in (tmp_path / "frames" / "x").glob("flow_x_*"))
    assert flows == [*range(4, 14), *range(19, 25)]
    for path in (tmp_path / "frames").rglob("*.jpg"):
        assert path.read_bytes() == (tmp_path / "whole" / path.relative_to(tmp_path / "frames")).read_bytes()
    other = load_record(write(tmp_path, {"other/dataset.yaml": ""}) / "cut").model_copy(
        update={"frames": Roots(rgb=tmp_path / "whole", flow=tmp_path / "whole")}
    )
    other._folder = textured.folder
    for modality, channels in (("rgb", 3), ("flow", 2)):
        spec = InputSpec(modality, 4, 1, (36, 40), 32, (0.0, 255.0), (0.0,) * channels, (1.0,) * channels)
        settings = Experiment(data=DataOptions(workers=0))
        listed = load_part(textured, modality, 1, "train", selection="paper")
        assert [video.id for video in listed] == ["x#1", "x#2", "y#1"]
        both = [list(train_batches(settings, spec, listed, one, epoch=1)) for one in (textured, other)]
        assert len(both[0]) == len(both[1]) > 0
        for one, two in zip(*both):
            assert one.ids == two.ids
            assert one.clips.equal(two.clips)


def test_extracting_parts_again(textured: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert extracted(textured) == 0
    assert not [f for f in audit(textured) if f.severity == "error" and f.kind != "leakage"]
    capsys.readouterr()
    assert extracted(textured) == 0
    assert "0 written" in capsys.readouterr().out
    (tmp_path / "frames" / "x" / "img_00020.jpg").unlink()
    (found,) = [f for f in audit(textured) if f.kind == "missing"]
    assert found.detail == "img_00020.jpg missing in the sequence"
    assert extracted(textured) == 0
    path = textured.folder / "segments.csv"
    segments = read_segments(path)
    write_segments(path, {**segments, "y#1": Segment("y", 0, 0.6, 1)})
    assert extracted(textured) == 1
    assert "other parts are needed now; use --overwrite" in " ".join(capsys.readouterr().out.split())
    assert extracted(textured, "--overwrite") == 0
    assert (tmp_path / "frames" / "y" / "img_00001.jpg").is_file()


def test_extract_takes_videos_or_a_data_set(textured: Record) -> None:
    for args in ([], ["videos", "--dataset", "cut"]):
        with pytest.raises(SettingsError, match="either a SOURCE of videos or --dataset NAME"):
            extract_command.main([*args, "--out", "x"])
    with pytest.raises(SettingsError, match="add --out FOLDER"):
        extract_command.main(["videos"])
    path = textured.folder / "dataset.yaml"
    path.write_text(path.read_text() + "first: {rgb: 0}\n")
    with pytest.raises(DataError, match=r"dataset\.yaml: `first` is set"):
        extract_command.main(["--dataset", str(textured.folder)])


@pytest.mark.parametrize("source", ["videos", "frames"])
@pytest.mark.parametrize("encoding", ["raw", "original"])
def test_shards_of_segments_give_the_same_frames(
    textured: Record,
    tmp_path: Path,
    source: Literal["videos", "frames"],
    encoding: Literal["raw", "original"],
) -> None:
    if encoding == "original" and source == "videos":
        return
    assert extracted(textured) == 0
    options = PackOptions(
        source=source, encoding=encoding, flow="farneback", resize=(36, 40), processes=0, shard_frames=12
    )
    shards = str(tmp_path / "shards")
    for modality in ("rgb", "flow"):
        made = pack(textured, modality, shards, options)
        assert (made.videos, made.failed, made.short) == (5, [], [])
        usual = make_source(textured, modality, DataOptions(source=source, flow="farneback"))
        packed = make_source(textured, modality, DataOptions(source="shards", shards=shards))
        for video in all_videos(textured, modality):
            numbers = [video.num_frames, 1, 2]
            expected = usual.read(video.id, numbers, (36, 40))
            np.testing.assert_array_equal(
                packed.read(video.id, numbers, (36, 40)), expected, err_msg=video.id
            )
    path = textured.folder / "segments.csv"
    write_segments(path, {**read_segments(path), "y#1": Segment("y", 0.9, 1.5, 12)})
    with pytest.raises(DataError, match="contains shards packed differently: the split lists have changed"):
        pack(textured, "rgb", shards, options)


@pytest.mark.parametrize("source", ["videos", "frames"])
def test_thumbnails_show_the_segment(
    untrimmed: Record, tmp_path: Path, source: Literal["videos", "frames"], monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "frames":
        path = untrimmed.folder / "dataset.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"frames": {"rgb": "../frames"}}))
        assert (
            main(["extract", "--dataset", str(untrimmed.folder), "--flow", "none", "--quality", "100"]) == 0
        )
        shutil.rmtree(tmp_path / "videos")  # otherwise videos would be read instead of missing frames
    shown: list[np.ndarray] = []
    monkeypatch.setattr(thumbnails, "encode", lambda frames: shown.append(frames) or "")
    settings = Experiment(data=DataOptions(dataset=str(untrimmed.folder), source=source))
    assert thumbnails.strip(settings, "steady#2") == ("", "")
    # frames 16 to 24 of the video, of which 1, 3, 4, 6, 7 and 9 are shown
    assert np.abs(shown[0][:, 24, 32, 0].astype(int) - 8 * np.asarray([15, 17, 18, 20, 21, 23])).max() <= 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a,v,0,1", r"segments\.csv:4: .*expected id,video,start,end,first"),
        ("a,v,zero,1,1", r"segments\.csv:4: 'a,v,zero,1,1': expected"),
        ("a,v,2,1,1", r"segments\.csv:4: 'a' has start 2 s and end 1 s"),
        ("a,v,0,nan,1", r"segments\.csv:4: 'a' has start 0 s and end nan s"),
        ("a,v,0,1,0", r"segments\.csv:4: 'a' starts at frame 0: expected 1 or more"),
        (",v,0,1,1", r"segments\.csv:4: expected an id and a video"),
        ("first,v,0,1,1", r"segments\.csv:4: 'first' is listed twice"),
    ],
)
def test_wrong_segments_name_the_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "segments.csv"
    whole = {"first": Segment('v, "1"', 0.25, 1.0, 7), "counted": Segment("v", None, None, 3)}
    write_segments(path, whole)
    assert read_segments(path) == whole
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=said):
        read_segments(path)


def test_other_columns_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "segments.csv").write_text("id,start,end\n")
    with pytest.raises(DataError, match=r"segments\.csv:1: expected the columns id,video,start,end,first"):
        read_segments(tmp_path / "segments.csv")
    with pytest.raises(DataError, match=r"gone\.csv: no such file"):
        read_segments(tmp_path / "gone.csv")
