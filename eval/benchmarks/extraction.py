"""TV-L1 + JPEG extraction with two processes against one, and against a plain loop over the videos.

    python eval/benchmarks/extraction.py [--quick]

Eight synthetic H.264 videos of 256×340. One process is the same pool with a single worker; each worker has one thread,
so that the figure is what a second processor adds. The files of both are compared byte for byte. The plain loop is
what people write: cv2.VideoCapture, cv2's TV-L1, cv2.imwrite, OpenCV's own threads.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
from common import Row, best_of, finish, flags, interleaved

from two_stream.video.extraction.many_videos import extract
from two_stream.video.extraction.one_video import ExtractOptions
from two_stream.video.sources import Source

VIDEOS, HEIGHT, WIDTH = 8, 256, 340


def write_video(path: Path, frames: int, seed: int, size: tuple[int, int]) -> None:
    """Write texture that drifts, as H.264."""
    height, width = size
    rng = np.random.default_rng(seed)
    big = cv2.GaussianBlur(rng.integers(0, 255, (height + 200, width + 200, 3)).astype(np.uint8), (0, 0), 3)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for k in range(frames):
            window = np.ascontiguousarray(
                big[2 * k % 100 : 2 * k % 100 + height, 3 * k % 100 : 3 * k % 100 + width]
            )
            out.mux(stream.encode(av.VideoFrame.from_ndarray(window, "rgb24")))
        out.mux(stream.encode())


def plain_loop(videos: list[Source], out: Path) -> None:
    """What people write."""
    shutil.rmtree(out, ignore_errors=True)
    tvl1 = cv2.optflow.DualTVL1OpticalFlow_create()
    for video in videos:
        folder = out / video.id
        folder.mkdir(parents=True)
        capture = cv2.VideoCapture(str(video.path))
        previous, number = None, 0
        while True:
            read, frame = capture.read()
            if not read:
                break
            number += 1
            cv2.imwrite(str(folder / f"img_{number:05d}.jpg"), frame)
            current = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
            if previous is not None:
                flow = np.clip(tvl1.calc(previous, current, None), -20, 20)
                stored = np.rint((flow + 20) * 255 / 40).astype(np.uint8)
                cv2.imwrite(
                    str(folder / f"flow_x_{number - 1:05d}.jpg"), np.ascontiguousarray(stored[..., 0])
                )
                cv2.imwrite(
                    str(folder / f"flow_y_{number - 1:05d}.jpg"), np.ascontiguousarray(stored[..., 1])
                )
            previous = current
        capture.release()


def ours(videos: list[Source], out: Path, processes: int) -> None:
    """Our pool."""
    shutil.rmtree(out, ignore_errors=True)
    options = ExtractOptions(flow="tvl1", short_side=None, processes=processes, threads=1)
    summary = extract(videos, out, options)
    assert not summary.failed, summary.failed


def digests(folder: Path) -> dict[str, str]:
    """Return the checksum of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    given = flags(__doc__, argv, rounds=2)
    frames = 3 if given.smoke else 7 if given.quick else 13
    count, height, width = (2, 48, 64) if given.smoke else (VIDEOS, HEIGHT, WIDTH)
    rounds = 1 if given.quick else given.rounds
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        videos = [Source(f"v{k}", root / f"v{k}.mp4") for k in range(count)]
        for k, video in enumerate(videos):
            write_video(video.path, frames, k, (height, width))
        sides = {
            "one": partial(ours, videos, root / "one", 1),
            "two": partial(ours, videos, root / "two", 2),
        }
        if given.smoke or not given.quick:
            sides["plain"] = partial(plain_loop, videos, root / "plain")
        times = interleaved(sides, rounds, warm=0)
        same = digests(root / "one") == digests(root / "two")
    total = count * frames
    rates = {side: total / best_of(seconds) for side, seconds in times.items()}
    rows = [
        Row(
            "TV-L1 + JPEG extraction with 2 processes",
            "1 process",
            rates["one"],
            rates["two"],
            rates["two"] / rates["one"],
            1.9,
            unit="frames/s",
            note=f"{count} videos of {frames} frames {width}×{height}, the pool's start too, best turns; equal files",
            problem="" if same else "the files differ",
        )
    ]
    if "plain" in times:
        rows.append(
            Row(
                "the same",
                "a plain loop with OpenCV's threads",
                rates["plain"],
                rates["two"],
                rates["two"] / rates["plain"],
                unit="frames/s",
            )
        )
    return finish("extraction", rows, given, seconds=times)


if __name__ == "__main__":
    sys.exit(main())
