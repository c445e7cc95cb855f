"""Frame folders of any names and first numbers: found by `prepare`, honoured by reading, named where they do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.helpers.annotations import frames, write
from two_stream.commands import check
from two_stream.commands import prepare as command
from two_stream.data.catalog import Record, load_record
from two_stream.data.options import FrameNames
from two_stream.data.packing import PackOptions, pack
from two_stream.data.prepare.counting import find_patterns
from two_stream.data.sources.files import FrameFolders
from two_stream.data.sources.shards import ShardSource
from two_stream.errors import DataError, SettingsError, VideoError
from two_stream.video.extraction.one_video import ExtractOptions

IDS = [f"v{number}" for number in range(8)]


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., tuple[int, Record]]:
    """Prepare a table of eight videos of two classes over `tmp_path / "f"`."""

    def run(*flags: str) -> tuple[int, Record]:
        rows = "".join(
            f"{name},{'ab'[at % 2]},{'train' if at < 4 else 'test'}\n" for at, name in enumerate(IDS)
        )
        write(tmp_path, {"t.csv": "id,label,split\n" + rows})
        given = ["table", "--annotations", str(tmp_path / "t.csv"), "--frames", str(tmp_path / "f")]
        code = command.main([*given, "--out", str(tmp_path / "out"), *flags])
        return code, load_record("t", tmp_path / "out")

    return run


def renumber(record: Record, begin: int, names: str = "img_{:05d}.jpg") -> None:
    """Rename a tiny data set's files so that they begin with another number."""
    kinds = {names: names} if "flow" not in names else {f"flow_{axis}_{{:05d}}.jpg": "" for axis in "xy"}
    for folder in record.frames_root("rgb").iterdir():
        for pattern in kinds:
            for number in sorted(range(1, 7), reverse=begin > 1):
                if (folder / pattern.format(number)).exists():
                    (folder / pattern.format(number)).rename(folder / pattern.format(number - 1 + begin))


def with_first(record: Record, text: str) -> Record:
    path = record.folder / "dataset.yaml"
    path.write_text(f"{path.read_text()}first: {text}\n")
    return load_record(path)


@pytest.mark.parametrize("begin", [0, 1000])
@pytest.mark.parametrize("modality", ["rgb", "flow"])
def test_only_the_names_of_files_shift(tiny: Record, tmp_path: Path, modality: Any, begin: int) -> None:
    wanted = FrameFolders(tiny, modality).read("v_run_g00_c01", [1, 3, 5], (12, 16))
    renumber(tiny, begin, "img_{:05d}.jpg" if modality == "rgb" else "flow")
    shifted = with_first(tiny, f"{{{modality}: {begin}}}")
    source = FrameFolders(shifted, modality)
    assert np.array_equal(source.read("v_run_g00_c01", [1, 3, 5], (12, 16)), wanted)
    last = 7 if modality == "rgb" else 6
    with pytest.raises(VideoError, match=rf"{last - 1 + begin:05d}\.jpg: no such frame"):
        source.read("v_run_g00_c01", [last], (12, 16))
    assert check.main([str(tiny.folder), "--processes", "0"]) == 0
    pack(shifted, modality, tmp_path / "packed", PackOptions(encoding="original", processes=0))
    packed = ShardSource(str(tmp_path / "packed"), modality)
    assert np.array_equal(packed.read("v_run_g00_c01", [1, 3, 5], (12, 16)), wanted)


def test_check_names_folders_that_begin_elsewhere(tiny: Record, capsys: pytest.CaptureFixture[str]) -> None:
    renumber(tiny, 0)
    assert check.main([str(tiny.folder), "--processes", "0"]) == 1
    shown = capsys.readouterr().out
    assert "v_run_g00_c01: starts with img_00000.jpg, but the data set says img_00001.jpg" in shown
    assert check.main([str(tiny.frames_root("rgb")), "--processes", "0"]) == 0  # no data set says otherwise
    with_first(tiny, "{rgb: 0}")
    assert check.main([str(tiny.folder), "--processes", "0"]) == 0
    renumber(tiny, 2)  # 0 stays 0, 1 becomes 2
    capsys.readouterr()
    assert check.main([str(tiny.folder), "--processes", "0"]) == 1
    assert "img_00001.jpg missing in the sequence" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["{rgb: -1}", "{rgb: x}", "{rgb: 1.5}", "{both: 0}", "0"])
def test_a_first_number_that_is_none_is_refused(tiny: Record, wrong: str) -> None:
    with pytest.raises(SettingsError, match="first"):
        with_first(tiny, wrong)


@pytest.mark.parametrize(("rgb", "flow"), [(0, 1), (1, 0), (0, 0), (5, 5), (1, 1)])
def test_prepare_finds_the_first_number(prepare: Any, tmp_path: Path, rgb: int, flow: int) -> None:
    for name in IDS:
        (tmp_path / "f" / name).mkdir(parents=True)
        for number in range(6):
            (tmp_path / "f" / name / f"img_{number + rgb:05d}.jpg").touch()
            for axis in "xy" if number < 5 else "":
                (tmp_path / "f" / name / f"flow_{axis}_{number + flow:05d}.jpg").touch()
    code, record = prepare()
    assert (code, record.first.rgb, record.first.flow) == (0, rgb, flow)
    assert record.list_path("train", "flow", 1).read_text().splitlines()[0] == "v0 5 0"


def test_prepare_leaves_out_by_name_what_begins_elsewhere(
    prepare: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames(tmp_path / "f", dict.fromkeys(IDS[:7], 6), first=0, flow=False)
    frames(tmp_path / "f", {"v7": 6}, first=3, flow=False)
    code, record = prepare()
    assert (code, record.first.rgb) == (1, 0)
    shown = capsys.readouterr().out
    assert (
        "left out: v7: its files start with img_00003.jpg, but those of the data set with img_00000.jpg"
        in shown
    )
    own = tmp_path / "out" / "t" / "dataset.yaml"
    own.write_text("# mine\nname: t\nclasses: [a, b]\nfirst: {rgb: 3}\nframes: {rgb: ../../f}\n")
    (tmp_path / "f" / "v0" / "notes.txt").touch()
    for path in (tmp_path / "f" / "v0").glob("img_*"):
        path.unlink()
    code, record = prepare()  # a person's number goes before what most folders have
    assert code == 1
    assert record.list_path("test", "rgb", 1).read_text() == "v7 6 1\n"
    assert (
        "expected img_00003.jpg or flow_x_00001.jpg; its files are ['notes.txt']" in capsys.readouterr().out
    )


def test_folders_with_the_names_of_few_are_left_out(
    prepare: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for names, pattern in ((IDS[:2], "frame{:03d}.jpeg"), (IDS[2:], "img_{:05d}.jpg")):
        frames(tmp_path / "f", dict.fromkeys(names, 6), pattern, flow=False)
    code, record = prepare()
    assert (code, record.patterns.rgb) == (1, "img_{:05d}.jpg")
    said = capsys.readouterr().out
    assert "v0: 0 RGB and 0 flow frames in its folder, expected img_00001.jpg" in said
    assert "its files are ['frame001.jpeg', 'frame002.jpeg']" in said
    assert "v2" not in said


def test_flow_in_folders_u_and_v_is_the_flow_of_one_folder(
    prepare: Any, tiny: Record, tmp_path: Path
) -> None:
    source = sorted(tiny.frames_root("flow").iterdir())[: len(IDS)]
    for name, folder in zip(IDS, source, strict=True):
        for axis, inside in zip("xy", "uv"):
            (tmp_path / "f" / name / inside).mkdir(parents=True)
            for number in range(1, 6):
                content = (folder / f"flow_{axis}_{number:05d}.jpg").read_bytes()
                (tmp_path / "f" / name / inside / f"frame_{number:010d}.jpg").write_bytes(content)
    code, record = prepare()
    assert (code, record.patterns.flow_x) == (0, "u/frame_{:010d}.jpg")
    assert record.list_path("train", "flow", 1).read_text().splitlines()[0] == "v0 5 0"
    wanted = FrameFolders(tiny, "flow").read(source[0].name, [1, 4], (12, 16))
    assert np.array_equal(FrameFolders(record, "flow").read("v0", [1, 4], (12, 16)), wanted)
    pack(record, "flow", tmp_path / "packed", PackOptions(encoding="original", processes=0))
    assert np.array_equal(ShardSource(str(tmp_path / "packed"), "flow").read("v0", [1, 4], (12, 16)), wanted)
    assert check.main([str(record.folder), "--processes", "0"]) == 0
    with pytest.raises(SettingsError, match="expected a file name without a folder"):
        ExtractOptions(patterns=record.frame_patterns)


def test_no_lists_of_flow_without_flow(
    prepare: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames(tmp_path / "f", dict.fromkeys(IDS, 6))
    assert prepare()[1].modalities() == ["rgb", "flow"]
    for path in (tmp_path / "f").rglob("flow_*"):
        path.unlink()
    code, record = prepare()
    assert (code, record.modalities()) == (0, ["rgb"])
    assert not list(record.folder.glob("*flow*"))  # those of before are gone
    assert "no flow lists are written" in capsys.readouterr().err
    for path in (tmp_path / "f").rglob("img_*"):
        path.write_bytes(cv2.imencode(".jpg", np.zeros((9, 9, 3), np.uint8))[1].tobytes())
    assert check.main([str(record.folder), "--processes", "0"]) == 0


NAMES = {
    "png": ("img_{:05d}.png", "flow_{}_{:05d}.png"),
    "capitals": ("frame_{:03d}.JPG", "flow_{}_{:03d}.JPG"),
    "webp": ("{:06d}.webp", "{}_{:06d}.webp"),
    "plain numbers": ("{}.bmp", "flow-{}-{}.bmp"),
    "no ending": ("img_{:05d}.jpeg", "flow_{}_{:05d}"),
    "their own": ("shot{:04d}_left.png", "motion_{}{:04d}.png"),
    "behind": ("{:05d}_rgb.png", "{1:05d}_flow_{0}.png"),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_are_found_by_looking(prepare: Any, tmp_path: Path, case: str) -> None:
    rgb, flow = NAMES[case]
    for name in IDS:
        (tmp_path / "f" / name).mkdir(parents=True)
        (tmp_path / "f" / name / "notes.txt").touch()
        for number in range(1, 13):
            (tmp_path / "f" / name / rgb.format(number)).touch()
            for axis in "xy":
                (tmp_path / "f" / name / flow.format(axis, number)).touch()
    code, record = prepare()
    assert code == 0
    assert record.patterns.rgb.format(7) == rgb.format(7)
    assert record.patterns.flow_y.format(7) == flow.format("y", 7)
    assert record.list_path("train", "rgb", 1).read_text().startswith("v0 12 0\n")
    assert record.list_path("train", "flow", 1).read_text().startswith("v0 11 0\n")


def test_names_that_cannot_be_told_are_named_and_may_be_given(prepare: Any, tmp_path: Path) -> None:
    for name in IDS:
        (tmp_path / "f" / name).mkdir(parents=True)
        for number in range(1, 6):
            for kind in ("left", "right"):
                (tmp_path / "f" / name / f"{kind}{number}.png").touch()
            for axis in "hv":
                (tmp_path / "f" / name / f"{axis}{number}.tiff").touch()
    with pytest.raises(
        DataError,
        match=r"v0: no frames found; expected files such as img_00001\.jpg, .*'h1\.tiff', 'h2\.tiff', …",
    ) as e:
        prepare()
    assert "--rgb-pattern" in str(e.value)
    assert "\n" not in str(e.value)
    with pytest.raises(
        DataError,
        match=r"no file matches the frame pattern 'middle\{\}\.png'; the folder contains 'h1\.tiff'",
    ):
        prepare("--rgb-pattern", "middle{}.png")
    with pytest.raises(
        SettingsError, match=r"--flow-pattern 'h\{\}\.tiff': expected the placeholder \{axis\} for x and y"
    ):
        prepare("--rgb-pattern", "left{}.png", "--flow-pattern", "h{}.tiff")
    with pytest.raises(SettingsError, match="one field for the number"):
        prepare("--rgb-pattern", "left.png")
    with pytest.raises(DataError, match=r"no file matches the frame pattern 'flow_x_\{\}\.tiff'"):
        prepare("--rgb-pattern", "left{}.png", "--flow-pattern", "flow_{axis}_{}.tiff")
    for name in IDS:
        for axis in "xy":
            (tmp_path / "f" / name / f"flow_{axis}_00001.jpg").touch()
    with pytest.raises(DataError, match="no frames found"):  # flow alone would be half the data set
        prepare()
    for path in (tmp_path / "f").rglob("flow_*"):
        path.unlink()
    code, record = prepare("--rgb-pattern", "left{}.png")
    assert (code, record.patterns.rgb, record.modalities()) == (0, "left{}.png", ["rgb"])


def test_files_that_are_no_pictures_are_no_frames(tmp_path: Path) -> None:
    for name in ("a.npy", "00001.npy", "{0}1.jpg", "x.1.txt"):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / name).touch()
    with pytest.raises(DataError, match=r"'00001\.npy'"):
        find_patterns([tmp_path / "a"], FrameNames())
    (tmp_path / "b").mkdir()
    assert find_patterns([tmp_path / "b"], FrameNames()) == {}
