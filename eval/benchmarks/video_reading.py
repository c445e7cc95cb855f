"""A 64-frame clip at a random place of a 1,000-frame H.264 file: decode all and slice, against seeking.

    python eval/benchmarks/video_reading.py [--quick] [--rounds 5]

The files have a key frame every 12, 25 and 50 frames and B-frames, 340×256. The baseline is the usual line:
`[frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][start : start + 64]`. Ours opens the file
and picks the frames: once with an index kept from before, once at the first sight of the file, when it has to make one
from the packets. Pixels must be equal. For information: a baseline that decodes no further than the clip and converts
nothing but its frames.
"""

from __future__ import annotations

import os
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from common import Row, finish, flags, interleaved, median_of, ratio_of
from numpy.typing import NDArray

from two_stream.runtime.files import CACHE_VARIABLE
from two_stream.video.decoding.reader import open_video

FRAMES, LENGTH, HEIGHT, WIDTH = 1000, 64, 256, 340
Clip = NDArray[np.uint8]


def write_video(path: Path, gop: int, frames: int) -> None:
    """Encode a wandering window of a texture."""
    rng = np.random.default_rng(gop)
    coarse = cv2.resize(rng.normal(0, 40, (30, 30, 3)), (1200, 1200), interpolation=cv2.INTER_CUBIC)
    fine = cv2.resize(rng.normal(0, 14, (300, 300, 3)), (1200, 1200), interpolation=cv2.INTER_CUBIC)
    scene = np.clip(120 + coarse + fine, 0, 255).astype(np.uint8)
    with av.open(str(path), "w") as container:
        options = {"g": str(gop), "keyint_min": "12", "bf": "2", "preset": "veryfast", "crf": "21"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number in range(frames):
            y, x = (int(400 + 380 * np.sin(number / step)) for step in (41, 57))
            picture = np.ascontiguousarray(scene[y : y + HEIGHT, x : x + WIDTH])
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def decode_all(path: Path, start: int) -> Clip:
    """Decode every frame, then slice."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames[start : start + LENGTH])


def decode_until(path: Path, start: int) -> Clip:
    """Decode up to the end of the clip, and convert its frames only."""
    frames = []
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number >= start:
                frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == LENGTH:
                break
    return np.stack(frames)


def ours(path: Path, start: int) -> Clip:
    """Seek to the key frame and decode what the clip needs."""
    with open_video(path) as video:
        return np.stack([picture for _, picture in video.pick(range(start, start + LENGTH))])


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    given = flags(__doc__, argv, threads=1)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        frames, gops = (120, (12,)) if given.smoke else (FRAMES, (12, 25, 50))
        files = [Path(folder) / f"gop{gop}.mp4" for gop in gops]
        for gop, path in zip(gops, files):
            write_video(path, gop, frames)
        places = [(path, int(rng.integers(frames - LENGTH))) for path in files * (1 if given.quick else 3)]

        def run(read: object, cache: str) -> None:
            os.environ[CACHE_VARIABLE] = cache
            for path, start in places:
                read(path, start)  # type: ignore[operator]

        kept = f"{folder}/cache"
        os.environ[CACHE_VARIABLE] = kept
        wrong = [
            (path.name, start)
            for path, start in places
            for read in (ours, decode_until)
            if not np.array_equal(read(path, start), decode_all(path, start))
        ]
        times = interleaved(
            {
                "all": lambda: run(decode_all, "off"),
                "until": lambda: run(decode_until, "off"),
                "indexed": lambda: run(ours, kept),
                "first": lambda: run(ours, "off"),
            },
            rounds=given.rounds,
        )
    seconds = {name: 1000 * median_of(turns) / len(places) for name, turns in times.items()}
    problem = f"other pixels: {wrong[0]}" if wrong else ""
    title = f"a 64-frame clip at random from a {frames:,}-frame H.264 file"
    cases = (
        (title, "decode all, then slice", "all", "indexed", 4.0, "index kept from before; same pixels"),
        (f"{title}, first sight", "decode all, then slice", "all", "first", 4.0, "index made on the way"),
        (title, "decode to its end, convert only it", "until", "indexed", None, "for information"),
    )
    rows = [
        Row(
            name,
            against,
            seconds[base],
            seconds[mine],
            ratio_of(times, base, mine),
            target,
            note,
            "ms",
            problem=problem,
        )
        for name, against, base, mine, target, note in cases
    ]
    return finish("video_reading", rows, given, places=[(path.name, start) for path, start in places])


if __name__ == "__main__":
    sys.exit(main())
