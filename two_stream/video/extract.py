"""Videos to frame folders: RGB and optical flow as JPEG, whole or absent, several videos at a time.

A video is written into a hidden folder beside its place and renamed when it is complete, with a manifest
(`.done.json`) of how it was made. Whatever kills a run, a folder under its final name is whole; the next run
skips it and redoes the rest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from two_stream.errors import DataError, SettingsError, TwoStreamError, VideoError
from two_stream.runtime.console import progress
from two_stream.runtime.files import fsync_dir, write_json
from two_stream.video.flow import ALGORITHMS, FLOW_BOUND, FlowEstimator, gray
from two_stream.video.frames import FramePatterns, count_frames, numbers_by_name
from two_stream.video.reader import backend_version, open_video
from two_stream.video.sources import Source, collisions
from two_stream.video.workers import Beat, Failure, run_tasks, usable_processes

MANIFEST = ".done.json"
"""Name of the manifest in a finished frame folder."""

_WINDOWS = os.name == "nt"
_ABANDONED = 3600.0
"""seconds without a new file after which, on Windows, an unfinished folder is nobody's"""

__all__ = ["MANIFEST", "ExtractOptions", "ExtractSummary", "Outcome", "Source", "extract", "read_manifest"]


@dataclass(frozen=True)
class ExtractOptions:
    """How videos become frame folders."""

    flow: Literal["tvl1", "dis", "farneback", "none"] = "tvl1"
    """flow algorithm; none writes RGB only"""
    short_side: int | None = 256
    """pixels of the shorter side, aspect ratio kept; None keeps the size of the video"""
    size: tuple[int, int] | None = None
    """fixed (height, width); goes before `short_side`"""
    backend: str = "pyav"
    """decoder"""
    quality: int = 95
    """JPEG quality, 1 to 100"""
    patterns: FramePatterns = field(default_factory=FramePatterns)
    """names of the files"""
    overwrite: bool = False
    """redo what was extracted with other settings"""
    processes: int | None = None
    """worker processes; None takes all processors, 0 works in this process"""
    patience: float = 600.0
    """seconds without a new frame after which a video is given up"""

    def __post_init__(self) -> None:
        """Check ranges; the message names the flag."""
        if self.flow not in (*ALGORITHMS, "none"):
            raise SettingsError(f"--flow is {self.flow!r}: expected one of {', '.join(ALGORITHMS)}, none")
        if not 1 <= self.quality <= 100:
            raise SettingsError(f"--quality is {self.quality}: expected 1 to 100")
        sides = self.size if self.size is not None else (self.short_side,)
        if any(side is not None and not 8 <= side <= 16384 for side in sides):
            raise SettingsError(
                f"frame size {self.size or self.short_side}: expected sides of 8 to 16384 pixels"
            )
        if self.processes is not None and self.processes < 0:
            raise SettingsError(f"--processes is {self.processes}: expected 0 or more")

    def recorded(self) -> dict[str, Any]:
        """Return what decides the pixels and names of the files: a change of any of it asks for a new extraction."""
        return {
            "backend": self.backend,
            "flow": self.flow,
            "flow_bound": FLOW_BOUND,
            "short_side": None if self.size else self.short_side,
            "size": list(self.size) if self.size else None,
            "quality": self.quality,
            "patterns": asdict(self.patterns),
        }


@dataclass
class Outcome:
    """What became of one video."""

    id: str
    path: str
    status: Literal["written", "skipped", "failed"]
    frames: int = 0
    flow_frames: int = 0
    seconds: float = 0.0
    reason: str = ""
    """why it failed"""
    warnings: list[str] = field(default_factory=list)


@dataclass
class ExtractSummary:
    """What became of every video, in the order given."""

    outcomes: list[Outcome]
    seconds: float
    settings: dict[str, Any]
    backend_version: str

    def by_status(self, status: str) -> list[Outcome]:
        """Return the outcomes "written", "skipped" or "failed"."""
        return [outcome for outcome in self.outcomes if outcome.status == status]

    @property
    def failed(self) -> list[Outcome]:
        """The videos without a frame folder, each with its reason."""
        return self.by_status("failed")

    @property
    def frames_per_second(self) -> float:
        """Frames written per second of wall clock, all processes together."""
        return sum(outcome.frames for outcome in self.by_status("written")) / max(self.seconds, 1e-9)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return {
            **{status: len(self.by_status(status)) for status in ("written", "skipped", "failed")},
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(self.frames_per_second, 2),
            "backend_version": self.backend_version,
            "settings": self.settings,
            "videos": [asdict(outcome) for outcome in self.outcomes],
        }


@dataclass(frozen=True)
class _Job:
    source: Source
    out: Path
    options: ExtractOptions
    threads: int = 0
    """OpenCV's threads while it works on this video; 0 leaves them as they are"""


def extract(videos: Sequence[Source], out: Path, options: ExtractOptions | None = None) -> ExtractSummary:
    """Write the frame folder `<out>/<id>` of every video, several at a time, with a progress display.

    Never raises for a single video: one that fails is listed in the summary with its reason. Ctrl-C leaves no
    half-written folder behind.

    Raises:
        DataError: The output folder cannot be written.
        SettingsError: The backend or the flow algorithm is unknown or not installed.
    """
    chosen = options or ExtractOptions()
    version = backend_version(chosen.backend)
    if chosen.flow != "none":
        FlowEstimator(chosen.flow)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be made an output folder ({error.strerror})") from None
    start = time.monotonic()
    clashes = collisions(videos)
    outcomes: dict[int, Outcome] = {
        index: Outcome(videos[index].id, str(videos[index].path), "failed", reason=reason)
        for index, reason in clashes.items()
    }
    todo = [index for index in range(len(videos)) if index not in clashes]
    processes = usable_processes() if chosen.processes is None else chosen.processes
    busy = min(processes, len(todo))
    threads = max(1, usable_processes() // busy) if busy else 0  # few videos share all processors
    jobs = [_Job(videos[index], out, chosen, threads) for index in todo]
    clear_leftovers({(out / job.source.id).parent for job in jobs})
    try:
        with (
            progress("extract", total=len(jobs)) as advance,
            closing(run_tasks(extract_one, jobs, processes=processes, patience=chosen.patience)) as answers,
        ):
            for place, answer in answers:
                source = jobs[place].source
                if isinstance(answer, Failure):
                    answer = Outcome(source.id, str(source.path), "failed", reason=answer.reason)
                outcomes[todo[place]] = answer
                frames = sum(one.frames for one in outcomes.values() if one.status == "written")
                advance(1, fps=f"{frames / (time.monotonic() - start):.1f}", failed=_failures(outcomes))
    finally:
        clear_leftovers({(out / job.source.id).parent for job in jobs})
    ordered = [outcomes[index] for index in range(len(videos))]
    return ExtractSummary(ordered, time.monotonic() - start, chosen.recorded(), version)


def _failures(outcomes: dict[int, Outcome]) -> int:
    return sum(outcome.status == "failed" for outcome in outcomes.values())


def extract_one(job: _Job, beat: Beat) -> Outcome:
    """Extract one video; what a person or a file can cause becomes a failed outcome."""
    if job.threads:
        cv2.setNumThreads(job.threads)
    start = time.monotonic()
    outcome = Outcome(job.source.id, str(job.source.path), "failed")
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


def _extract(job: _Job, beat: Beat, outcome: Outcome) -> None:
    final = job.out / job.source.id
    if final.is_dir() and _finished(final, job, outcome):
        outcome.status = "skipped"
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    part = final.parent / f".{final.name}.{socket.gethostname()}-{os.getpid()}.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        _write_all(job, part, beat, outcome)
        _settle(part, final)
        outcome.status = "written"
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _finished(final: Path, job: _Job, outcome: Outcome) -> bool:
    """Tell whether a folder is whole and wanted as it is.

    Raises:
        VideoError: It was made otherwise, or holds what extraction did not write, and must not be replaced unasked.
    """
    manifest = read_manifest(final)
    patterns = job.options.patterns
    if manifest is not None:
        changed = _changes(manifest, job)
        if changed and not job.options.overwrite:
            raise VideoError(
                final, f"{final} was extracted from other input: {changed}; --overwrite redoes it"
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
    ours = {name for pattern in known for name in numbers_by_name(names, pattern).values()}
    strange = sorted(set(names) - ours)
    if strange:
        raise VideoError(
            final, f"{final} holds what is no frame ({strange[0]}); move it away or choose another --out"
        )
    if names and manifest is None:
        outcome.warnings.append(f"replaced {len(names)} files of a folder that was never finished")
    return False


def _changes(manifest: dict[str, Any], job: _Job) -> str:
    """Say in what a folder's settings and source differ from those asked for; empty when in nothing."""
    wanted, made = job.options.recorded(), manifest["settings"]
    changes = [f"{key} {made.get(key)} -> {wanted[key]}" for key in wanted if made.get(key) != wanted[key]]
    if job.source.path.is_file():
        status = job.source.path.stat()
        if (manifest["size"], manifest["mtime_ns"]) != (status.st_size, status.st_mtime_ns):
            changes.append("the video file has changed")
    return ", ".join(changes)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a finished frame folder; None where there is none or it is not ours."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        patterns = found["settings"]["patterns"]
        FramePatterns(**patterns)
        int(found["frames"]), int(found["flow_frames"]), int(found["size"]), int(found["mtime_ns"])
    except (OSError, ValueError, KeyError, TypeError, SettingsError):
        return None
    return dict(found)


def _write_all(job: _Job, part: Path, beat: Beat, outcome: Outcome) -> None:
    """Stream the frames of a video into `part`, one frame in memory at a time, and its manifest last."""
    options, path = job.options, job.source.path
    with open_video(path, options.backend) as video:
        status = path.stat()
        height, width = target_size(video.height, video.width, options)
        estimator = FlowEstimator(options.flow) if options.flow != "none" else None
        previous: NDArray[np.uint8] | None = None
        frames = flows = 0
        for frames, frame in enumerate(video.frames(), start=1):
            picture = resized(frame, height, width)
            bgr = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), np.uint8)
            _write_jpeg(part / options.patterns.rgb.format(frames), bgr, options.quality)
            if estimator is not None:
                current = gray(picture)
                if previous is not None:
                    flows = frames - 1
                    flow = estimator(previous, current)
                    _write_jpeg(part / options.patterns.flow_x.format(flows), flow[..., 0], options.quality)
                    _write_jpeg(part / options.patterns.flow_y.format(flows), flow[..., 1], options.quality)
                previous = current
            beat()
        outcome.frames, outcome.flow_frames = frames, flows
        if video.damage:
            outcome.warnings.append(f"damaged: {video.damage}")
        if frames == 1 and estimator is not None:
            outcome.warnings.append("too short for flow: one frame")
        manifest = {
            "source": str(path.absolute()),
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "frames": frames,
            "flow_frames": flows,
            "height": height,
            "width": width,
            "video": {"height": video.height, "width": video.width, "fps": video.fps, "codec": video.codec},
            "damage": video.damage,
            "warnings": outcome.warnings,
            "backend_version": backend_version(options.backend),
            "opencv": cv2.__version__,
            "settings": options.recorded(),
        }
    write_json(part / MANIFEST, manifest)


def target_size(height: int, width: int, options: ExtractOptions) -> tuple[int, int]:
    """Return (height, width) of the stored frames of a video of the given size."""
    if options.size is not None:
        return options.size
    if options.short_side is None:
        return height, width
    short = min(height, width)
    return round(height * options.short_side / short), round(width * options.short_side / short)


def resized(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize `(H, W, 3)`: averaging over areas when shrinking, so that fine texture does not flicker, else bilinear."""
    if picture.shape[:2] == (height, width):
        return picture
    shrinks = height * width < picture.shape[0] * picture.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how), np.uint8)


def _write_jpeg(path: Path, picture: NDArray[np.uint8], quality: int) -> None:
    """Encode first, then write: the name of the file need not end in `.jpg`."""
    done, content = cv2.imencode(".jpg", np.ascontiguousarray(picture), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise VideoError(
            path, f"a frame of {picture.shape[1]}×{picture.shape[0]} does not fit in a JPEG file"
        )
    path.write_bytes(content.tobytes())


def _settle(part: Path, final: Path) -> None:
    """Rename a complete folder to its place; one that stands there steps aside first and is then removed."""
    aside = part.with_suffix(".old")
    if final.exists():
        final.rename(aside)
    part.rename(final)
    fsync_dir(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def clear_leftovers(parents: set[Path]) -> None:
    """Remove the unfinished folders that dead processes of this machine left directly under `parents`."""
    unfinished = re.compile(rf"\..+\.{re.escape(socket.gethostname())}-(\d+)\.(part|old)")
    for parent in parents:
        names = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
        for match in filter(None, map(unfinished.fullmatch, names)):
            if not _lives(int(match[1]), parent / match[0]):
                shutil.rmtree(parent / match[0], ignore_errors=True)


def _lives(pid: int, folder: Path) -> bool:
    """Tell whether the process that writes a folder may still run."""
    if _WINDOWS:  # there, os.kill does not ask: it sends Ctrl-C or ends the process
        try:
            return time.time() - folder.stat().st_mtime < _ABANDONED
        except OSError:
            return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
