"""Extracts RGB frames and optical flow of one video into a folder of JPEG files.

The frames and a manifest of the settings (`.done.json`) are written to a hidden folder, which is renamed when it is
complete. Even if a run is interrupted, a folder with its final name is therefore complete. The manifest contains the
path, the size and the time of the video file, the numbers of frames, the size of the images, facts about the video,
warnings, versions and the `settings` of the extraction.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from two_stream.errors import SettingsError, TwoStreamError, VideoError
from two_stream.runtime.files import fsync_dir, unfinished, write_json
from two_stream.runtime.text import plural
from two_stream.runtime.workers import Beat
from two_stream.video.decoding.base import NO_TIMES, uneven_times
from two_stream.video.decoding.reader import Video, backend_version, open_video
from two_stream.video.flow import ALGORITHMS, FLOW_BOUND, FlowEstimator, FlowMaker, FlowNetwork
from two_stream.video.frames import (
    MANIFEST,
    FramePatterns,
    count_frames,
    names_by_number,
    read_extraction_manifest,
)
from two_stream.video.rate import seen_at
from two_stream.video.sources import Source


@dataclass(frozen=True)
class ExtractOptions:
    """Settings of extraction."""

    flow: Literal["tvl1", "dis", "farneback", "raft", "none"] = "tvl1"
    """flow algorithm; none: only RGB frames are written"""
    network: FlowNetwork | None = None
    """network and weights for flow raft; see `two_stream.pretrained.raft`"""
    short_side: int | None = 256
    """shorter side in pixels, with the same aspect ratio; None keeps the size of the video"""
    size: tuple[int, int] | None = None
    """fixed (height, width) of the frames; overrides `short_side`"""
    fps: float | None = None
    """frames per second at which the video is seen, see `video/rate.py`; None: every frame"""
    backend: str = "pyav"
    """decoder of the videos"""
    quality: int = 95
    """JPEG quality, 1 to 100"""
    patterns: FramePatterns = field(default_factory=FramePatterns)
    """patterns for the names of the files"""
    overwrite: bool = False
    """extract videos again that were extracted with different settings"""
    processes: int | None = None
    """number of worker processes; None uses all processors, 0 uses only the main process"""
    threads: int | None = None
    """number of OpenCV threads per process; None divides the processors between the processes"""
    patience: float = 600.0
    """seconds without a new frame after which a video is skipped"""

    def __post_init__(self) -> None:
        """Check the values of the options."""
        if self.flow not in (*ALGORITHMS, "raft", "none"):
            raise SettingsError(
                f"--flow is {self.flow!r}: expected one of {', '.join(ALGORITHMS)}, raft, none"
            )
        if (self.flow == "raft") != (self.network is not None):
            raise SettingsError(
                "--flow raft needs --flow-weights FILE, a local file of torchvision's RAFT weights"
                if self.flow == "raft"
                else f"--flow {self.flow} uses no weights: omit --flow-weights, or use --flow raft"
            )
        if not 1 <= self.quality <= 100:
            raise SettingsError(f"--quality is {self.quality}: expected 1 to 100")
        sides = self.size if self.size is not None else (self.short_side,)
        if any(side is not None and not 8 <= side <= 16384 for side in sides):
            raise SettingsError(
                f"the frame size is {self.size or self.short_side}: expected sides of 8 to 16384 pixels"
            )
        inside = next((one for one in self.patterns.written().values() if "/" in one), None)
        if inside is not None:
            raise SettingsError(
                f"frame pattern {inside!r}: expected a file name without a folder, because `two-stream extract` writes "
                "all files of a video to one folder"
            )
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise SettingsError(
                f"--fps is {self.fps:g}: expected more than 0 and at most 1000 frames per second"
            )
        if self.processes is not None and self.processes < 0:
            raise SettingsError(f"--processes is {self.processes}: expected 0 or more")
        if self.threads is not None and self.threads < 1:
            raise SettingsError(f"--threads is {self.threads}: expected 1 or more")

    def recorded(self) -> dict[str, Any]:
        """Return the settings that determine the pixels and names of the files."""
        return {
            "backend": self.backend,
            "flow": self.flow,
            "flow_bound": FLOW_BOUND,
            "short_side": None if self.size else self.short_side,
            "size": list(self.size) if self.size else None,
            "quality": self.quality,
            "patterns": self.patterns.written(),
            **({} if self.fps is None else {"fps": self.fps}),
            **({} if self.network is None else self.network.recorded()),
        }


@dataclass
class ExtractionOutcome:
    """The outcome of one video."""

    id: str
    path: str
    status: Literal["written", "skipped", "failed"]
    frames: int = 0
    flow_frames: int = 0
    seconds: float = 0.0
    reason: str = ""
    """reason why the video failed"""
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ExtractionJob:
    """One video to extract, as it is sent to other processes and machines."""

    source: Source
    out: Path
    options: ExtractOptions
    threads: int = 0
    """number of OpenCV threads for this video; 0 keeps the current number"""
    place: int = 0
    """number of the job, used to distribute networks over the GPUs of a machine"""

    @property
    def final(self) -> Path:
        """Path of the finished frame folder."""
        return self.out / self.source.id


def extract_video(job: ExtractionJob, beat: Beat) -> ExtractionOutcome:
    """Extract one video; errors of the input or the system are returned as a failed outcome."""
    if job.threads:
        cv2.setNumThreads(job.threads)
    start = time.monotonic()
    outcome = ExtractionOutcome(job.source.id, str(job.source.path), "failed")
    try:
        _extract(job, beat, outcome)
    except VideoError as error:
        outcome.reason = error.reason
    except OSError as error:
        outcome.reason = f"{error.filename or job.out}: {error.strerror or error}"
    except (TwoStreamError, cv2.error, MemoryError) as error:
        outcome.reason = str(error).strip() or type(error).__name__
    if outcome.reason:
        outcome.status = "failed"
    outcome.seconds = round(time.monotonic() - start, 3)
    return outcome


def _extract(job: ExtractionJob, beat: Beat, outcome: ExtractionOutcome) -> None:
    final = job.final
    if final.is_dir() and _is_finished(final, job, outcome):
        outcome.status = "skipped"
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    part = unfinished(final)
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        _write_all(job, part, beat, outcome)
        _move_into_place(part, final)
        outcome.status = "written"
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _is_finished(final: Path, job: ExtractionJob, outcome: ExtractionOutcome) -> bool:
    """Return whether a folder is complete and was extracted with the settings of the job.

    Raises:
        VideoError: It has different settings, or contains other files, and must not be replaced without --overwrite.
    """
    manifest = read_extraction_manifest(final)
    patterns = job.options.patterns
    if manifest is not None:
        changed = _changes(manifest, job)
        if changed and not job.options.overwrite:
            raise VideoError(
                final,
                f"{final} was extracted with different settings or from a different file: {changed}; "
                "use --overwrite to extract it again",
            )
        counts = (count_frames(final, "rgb", patterns), count_frames(final, "flow", patterns))
        if not changed and counts == (manifest["frames"], manifest["flow_frames"]):
            outcome.frames, outcome.flow_frames = counts
            outcome.warnings = list(manifest.get("warnings", []))
            return True
    names = [entry.name for entry in final.iterdir() if not entry.name.startswith(".")]
    known = [patterns.rgb, patterns.flow_x, patterns.flow_y]
    if manifest is not None:
        known += [str(name) for name in manifest["settings"]["patterns"].values()]
    ours = {name for pattern in known for name in names_by_number(names, pattern).values()}
    others = sorted(set(names) - ours)
    if others:
        reason = f"{final} contains a file that is not a frame ({others[0]}); move this file or choose another --out"
        raise VideoError(final, reason)
    if names and manifest is None:
        outcome.warnings.append(f"replaced {plural(len(names), 'file')} of an unfinished folder")
    return False


def _changes(manifest: dict[str, Any], job: ExtractionJob) -> str:
    """Describe how a folder's settings and source differ from the job's; return an empty string if they are equal."""
    wanted, made = job.options.recorded(), manifest["settings"]
    keys = dict.fromkeys([*wanted, "fps"])
    changes = [
        f"{key} {made.get(key)} -> {wanted.get(key)}" for key in keys if made.get(key) != wanted.get(key)
    ]
    if job.source.path.is_file():
        status = job.source.path.stat()
        if (manifest["size"], manifest["mtime_ns"]) != (status.st_size, status.st_mtime_ns):
            changes.append("the video file has changed")
    made = manifest.get("parts") or [(1, inf)]
    if any(
        not any(a <= first and last <= b for a, b in made) for first, last in job.source.parts or [(1, inf)]
    ):
        changes.append("only parts of the video were extracted, and other parts are needed now")
    return ", ".join(changes)


def _write_all(job: ExtractionJob, part: Path, beat: Beat, outcome: ExtractionOutcome) -> None:
    """Write the frames of a video and then the manifest to `part`, with only a few frames in memory at a time."""
    options, path = job.options, job.source.path
    maker = _flow_maker(job)
    with open_video(path, options.backend) as video:
        status = path.stat()
        height, width = frame_size(video.height, video.width, options)
        frames = flows = 0
        parts = job.source.parts
        spans: Sequence[tuple[int, int | None]] = parts or [(1, None)]
        wanted = (number - 1 for first, last in parts for number in range(first, last + 1))
        whole = video.frames() if options.fps is None else _seen(video, options.fps)
        decoded = video.pick(wanted) if parts else enumerate(whole)

        def pictures(count: int | None) -> Iterator[NDArray[np.uint8]]:
            """Write each RGB frame before it is used to compute flow."""
            nonlocal frames
            for index, frame in islice(decoded, count):
                frames += 1
                picture = resize_frame(frame, height, width)
                bgr = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), np.uint8)
                _write_jpeg(part / options.patterns.rgb.format(index + 1), bgr, options.quality)
                beat()
                yield picture

        for first, last in spans:
            count = None if last is None else last - first + 1
            if maker is None:
                deque(pictures(count), maxlen=0)
                continue
            for number, flow in enumerate(maker.flows(pictures(count)), start=first):
                flows += 1
                _write_jpeg(part / options.patterns.flow_x.format(number), flow[..., 0], options.quality)
                _write_jpeg(part / options.patterns.flow_y.format(number), flow[..., 1], options.quality)
                beat()
        outcome.frames, outcome.flow_frames = frames, flows
        times = video.times
        if video.damage:
            outcome.warnings.append(f"damaged: {video.damage}")
        elif not parts and (video.header_frames or 0) - video.num_frames > 1:
            outcome.warnings.append(
                f"{plural(video.num_frames, 'frame', 'decodes', 'decode')}, the header states {video.header_frames}"
            )
        if frames == 1 and maker is not None:
            outcome.warnings.append("too short for flow: one frame")
        manifest = {
            "source": str(path.absolute()),
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "frames": frames,
            "flow_frames": flows,
            "height": height,
            "width": width,
            "video": {
                "height": video.height,
                "width": video.width,
                "fps": options.fps or video.fps,
                "codec": video.codec,
                "times": [] if options.fps else uneven_times(times, video.fps or 0.0),
            },
            **({"parts": parts} if parts else {}),
            "damage": video.damage,
            "warnings": outcome.warnings,
            "backend_version": backend_version(options.backend),
            "opencv": cv2.__version__,
            "settings": options.recorded(),
        }
    write_json(part / MANIFEST, manifest)


def _seen(video: Video, fps: float) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of a video that is seen at `fps` frames per second."""

    def timed() -> Iterator[tuple[float, NDArray[np.uint8]]]:
        for seconds, picture in video.timed_frames():
            if seconds is None:
                raise VideoError(video.path, NO_TIMES)
            yield seconds, picture

    return (picture for _, picture in seen_at(timed(), fps))


def _flow_maker(job: ExtractionJob) -> FlowMaker | None:
    if job.options.flow == "none":
        return None
    if job.options.network is not None:
        return job.options.network.maker(job.place, job.threads)
    return FlowEstimator(job.options.flow)


def frame_size(height: int, width: int, options: ExtractOptions) -> tuple[int, int]:
    """Return the (height, width) of the extracted frames of a video with the given size."""
    if options.size is not None:
        return options.size
    if options.short_side is None:
        return height, width
    short = min(height, width)
    return round(height * options.short_side / short), round(width * options.short_side / short)


def resize_frame(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize an image `(H, W, 3)` bilinearly, or to a smaller size by area averaging, which avoids flicker."""
    if picture.shape[:2] == (height, width):
        return picture
    shrinks = height * width < picture.shape[0] * picture.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how), np.uint8)


def _write_jpeg(path: Path, picture: NDArray[np.uint8], quality: int) -> None:
    """Encode and write in two steps, because the name of the file does not always end in `.jpg`."""
    done, content = cv2.imencode(".jpg", np.ascontiguousarray(picture), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise VideoError(
            path, f"a frame of {picture.shape[1]}×{picture.shape[0]} pixels is too large for a JPEG file"
        )
    path.write_bytes(content.tobytes())


def _move_into_place(part: Path, final: Path) -> None:
    """Rename a complete folder to its final name; an existing folder is replaced."""
    aside = part.with_suffix(".old")
    if final.exists():
        final.rename(aside)
    part.rename(final)
    fsync_dir(final.parent)
    shutil.rmtree(aside, ignore_errors=True)
