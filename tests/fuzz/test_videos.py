"""240 damaged copies of six real videos: no crash, no hang, and whatever lost frames to a cut is named."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import av
import pytest

from two_stream.errors import VideoError
from two_stream.video.decoding.reader import open_video

EACH = 40
KINDS = ("cut", "zeros", "flips", "swap", "insert")


def packed_anew(source: Path, path: Path) -> None:
    with av.open(str(source)) as read, av.open(str(path), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(read.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                written.mux(packet)


def encoded_anew(source: Path, path: Path, codec: str, pix_fmt: str, frames: int) -> None:
    with av.open(str(source)) as read, av.open(str(path), "w") as written:
        stream = written.add_stream(codec, rate=read.streams.video[0].average_rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 170, 128, pix_fmt, 1_000_000
        for _, frame in zip(range(frames), read.decode(video=0)):
            written.mux(stream.encode(frame.reformat(170, 128, pix_fmt)))
        written.mux(stream.encode(None))


def sources(shared: Path, folder: Path) -> list[Path]:
    """Return real videos in six containers."""
    odd = shared / "data/odd"
    fights = sorted((shared / "data/fight2/fight").glob("*.mp4"), key=lambda path: path.stat().st_size)
    made = [folder / name for name in ("a.mp4", "b.avi", "c.mkv", "d.ts", "e.webm", "f.gif")]
    made[0].write_bytes((odd / "mmaction2/part_0.mp4").read_bytes())
    made[1].write_bytes((odd / "mmaction2/test.avi").read_bytes())
    packed_anew(fights[0], made[2])
    packed_anew(fights[1], made[3])
    encoded_anew(odd / "mmaction2/demo.mp4", made[4], "libvpx-vp9", "yuv420p", 60)
    encoded_anew(odd / "mmaction2/part_0.mp4", made[5], "gif", "rgb8", 30)
    return made


def damaged(content: bytes, kind: str, rng: random.Random) -> bytes:
    made, size = bytearray(content), len(content)
    at = rng.randrange(size // 10, size * 19 // 20)
    length = rng.randrange(256, 8192)
    if kind == "cut":
        return content[:at]
    if kind == "zeros":
        made[at : at + length] = bytes(len(made[at : at + length]))
    elif kind == "flips":
        for _ in range(rng.randrange(1, 20)):
            made[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif kind == "swap":
        one, two = (4096 * place for place in rng.sample(range(size // 4096), 2))
        made[one : one + 4096], made[two : two + 4096] = made[two : two + 4096], made[one : one + 4096]
    else:
        made[at:at] = rng.randbytes(length)
    return bytes(made)


def run(*args: str) -> str:
    """Run a command to its end, within its time, without a traceback; return what it said to stderr."""
    made = subprocess.run(
        [sys.executable, "-m", "two_stream", *args],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert made.returncode in (0, 1), made.stderr[-2000:]
    assert "Traceback" not in made.stderr + made.stdout
    return made.stderr


def frames_of(path: Path) -> int:
    try:
        return open_video(path).num_frames
    except VideoError:
        return 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_240_damaged_videos(shared, tmp_path):
    rng = random.Random(17)
    (tmp_path / "whole").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    whole = {path.stem: path for path in sources(shared, tmp_path / "whole")}
    for stem, path in whole.items():
        for number in range(EACH):
            kind = KINDS[number % len(KINDS)]
            made = broken / f"{stem}-{kind}-{number:02d}{path.suffix}"
            made.write_bytes(damaged(path.read_bytes(), kind, rng))
    files = sorted(broken.iterdir())
    assert len(files) == 240

    checked, extracted = tmp_path / "check.json", tmp_path / "extract.json"
    said = run("check", str(broken), "--decode", "--json", str(checked), "--patience", "60")
    flags = ["--flow", "none", "--short-side", "64", "--json", str(extracted)]
    said += run("extract", str(broken), "--out", str(tmp_path / "out"), *flags)
    bare = [line for line in said.splitlines() if line and str(broken) not in line and "videos: " not in line]
    assert [line for line in bare if "@ 0x" in line] == []  # FFmpeg's own lines
    findings = json.loads(checked.read_text())["findings"]
    assert [finding for finding in findings if finding["kind"] == "timed_out"] == []
    by_check = {Path(finding["subject"]).name for finding in findings if finding["kind"] != "doubled"}
    by_extract = {
        Path(video["path"]).name
        for video in json.loads(extracted.read_text())["videos"]
        if video["status"] == "failed" or video["warnings"]
    }
    assert by_check == by_extract | (by_check & {file.name for file in files if frames_of(file) == 1})
    table: Counter[tuple[str, bool]] = Counter()
    unnamed = []
    for file in files:
        stem, kind, _ = file.stem.split("-")
        named = file.name in by_check
        table[kind, named] += 1
        if not named:
            unnamed.append((file.name, frames_of(file), frames_of(whole[stem])))
    print({kind: (table[kind, True], table[kind, False]) for kind in KINDS}, unnamed)
    assert [one for one in unnamed if one[1] < one[2] - 1] == []
    assert {name.split("-")[1] for name, *_ in unnamed} <= {"flips"}
    for path in whole.values():
        run("check", str(path))
