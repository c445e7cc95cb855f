"""`two-stream extract`: writes folders of frames and optical flow from videos."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from two_stream.commands.flags import parse
from two_stream.runtime.text import duration, plural

if TYPE_CHECKING:
    from two_stream.video.extraction.many_videos import ExtractSummary
    from two_stream.video.flow import FlowNetwork
    from two_stream.video.sources import Source

SUMMARY = "Write folders of frames and optical flow from videos."
EXAMPLES = (
    "extract videos --out frames",
    "extract videos --out frames --flow dis --processes 4",
    "extract --dataset mine --flow dis",
)


@dataclass(frozen=True)
class Options:
    """Flags of `two-stream extract`."""

    source: tyro.conf.Positional[Path | None] = None
    """folder of videos (searched recursively), a video, or a text file with one video per line (`path` or `path id`)"""
    dataset: str | None = None
    """instead of SOURCE: data set (a folder under --settings-root, or the path of a dataset.yaml); only the frames that
    its lists and segments need are written, with the patterns and the short side of its record"""
    settings_root: Path = Path("settings")
    """folder of the named data sets"""
    out: Path | None = None
    """output folder; each video gets a sub-folder; with --dataset, by default `frames.rgb` of its record"""
    flow: Literal["tvl1", "dis", "farneback", "raft", "none"] = "tvl1"
    """optical flow. `tvl1` is used in the paper and is slow (1 to 2 frames/s per process). `dis` is about 90 times as
    fast. `raft` is a network that requires --flow-weights, and a GPU to be fast"""
    flow_weights: Path | None = None
    """file of torchvision's raft_small or raft_large weights, for --flow raft"""
    flow_device: str = "auto"
    """device of raft: auto (CUDA, otherwise the CPU), cpu, cuda or cuda:N"""
    flow_batch: int = 8
    """batch size of raft, in pairs of images"""
    short_side: int | None = None
    """shorter side of the frames in pixels, with the aspect ratio of the video; 0: the size of the video; if
    --short-side and --size are omitted, 256"""
    size: tuple[int, int] | None = None
    """fixed HEIGHT WIDTH, for example 256 340, instead of --short-side"""
    fps: float | None = None
    """frames per second to write, and to compute flow between: each frame is the frame of the video that is nearest in
    time; if omitted, every frame of the video"""
    processes: int | None = None
    """number of worker processes; if omitted, one per processor; 0: use the main process"""
    ray: str | None = None
    """address of a Ray cluster to use: HOST:PORT, auto, or local (a cluster started on this machine); all machines must
    share the folders"""
    backend: Literal["pyav", "opencv", "torchcodec"] = "pyav"
    """video decoder"""
    quality: int = 95
    """JPEG quality, 1 to 100"""
    overwrite: bool = False
    """extract videos again if they were extracted with different settings or have changed since then"""
    rgb_pattern: str = "img_{:05d}.jpg"
    """file name pattern of RGB frames"""
    flow_x_pattern: str = "flow_x_{:05d}.jpg"
    """file name pattern of flow x; in the published HMDB51 layout, flow_x_{:05d}"""
    flow_y_pattern: str = "flow_y_{:05d}.jpg"
    """file name pattern of flow y"""
    patience: float = 600.0
    """seconds without a new frame after which a video is skipped"""
    json: Path | None = None
    """JSON file to write the summary to"""


def main(args: list[str]) -> int:
    """Run the command; return 0 if every video was extracted, 1 if one failed.

    Raises:
        TwoStreamError: A flag is wrong, there are no videos, or the output folder cannot be written.
    """
    options = parse(Options, args, prog="two-stream extract", description=SUMMARY, examples=EXAMPLES)

    from two_stream.errors import SettingsError
    from two_stream.runtime.files import write_json
    from two_stream.video.extraction.many_videos import extract
    from two_stream.video.extraction.one_video import ExtractOptions
    from two_stream.video.frames import FramePatterns
    from two_stream.video.sources import find_sources

    if options.size is not None and options.short_side is not None:
        raise SettingsError("--size and --short-side cannot be combined; use only one")
    if (options.source is None) == (options.dataset is None):
        raise SettingsError("extract needs either a SOURCE of videos or --dataset NAME, and not both")
    if options.dataset is not None and options.fps is not None:
        raise SettingsError(
            "--dataset extracts the frames that the lists count, so it cannot be combined with --fps; extract the "
            "folder of videos with --fps and prepare again, or set `model.input.fps`"
        )
    ignored, out = 0, options.out
    usual: int | None = 256
    if options.dataset is None:
        if options.source is None or out is None:
            raise SettingsError("extract needs an output folder; add --out FOLDER")
        sources, ignored = find_sources(options.source)
    else:
        sources, usual, out, options = _of_dataset(options.dataset, options)
    summary = extract(
        sources,
        out,
        ExtractOptions(
            flow=options.flow,
            short_side=usual if options.short_side is None else options.short_side or None,
            size=options.size,
            fps=options.fps,
            backend=options.backend,
            quality=options.quality,
            patterns=FramePatterns(options.rgb_pattern, options.flow_x_pattern, options.flow_y_pattern),
            overwrite=options.overwrite,
            processes=options.processes,
            patience=options.patience,
            network=_network(options),
        ),
        ray=options.ray,
    )
    _print_summary(summary, out, ignored)
    if options.json is not None:
        source = str(options.source or options.dataset)
        write_json(options.json, {"source": source, "ignored": ignored, **summary.as_dict()})
    return 1 if summary.failed else 0


def _of_dataset(name: str, options: Options) -> tuple[list[Source], int | None, Path, Options]:
    """Return the videos of a data set, its short side, the output folder, and the flags with the record's patterns."""
    from two_stream.data.catalog import load_record
    from two_stream.data.needed import needed_sources
    from two_stream.errors import SettingsError
    from two_stream.runtime.console import note

    record = load_record(name, options.settings_root)
    sources, frames = needed_sources(record), record.frames
    if options.out is None and (frames.rgb is None or (options.flow != "none" and frames.flow != frames.rgb)):
        raise SettingsError(
            f"{record.name}: `frames.rgb` and `frames.flow` are not one folder; add --out FOLDER"
        )
    out = options.out or record.resolve(frames.rgb or Path())
    cut = [source for source in sources if source.parts]
    if cut:
        count = sum(last - first + 1 for source in cut for first, last in source.parts)
        note(f"{plural(count, 'frame')} in parts of {plural(len(cut), 'video')} are needed")
    patterns = {f"{key}_pattern": value for key, value in record.patterns.model_dump().items()}
    return sources, record.short_side, out, replace(options, **patterns)


def _network(options: Options) -> FlowNetwork | None:
    """Return the flow network that the flags select; `ExtractOptions` checks the flags for contradictions."""
    if options.flow_weights is None:
        return None
    from two_stream.pretrained.raft import Raft

    return Raft.from_file(options.flow_weights, device=options.flow_device, batch=options.flow_batch)


def _print_summary(summary: ExtractSummary, out: Path, ignored: int) -> None:
    from two_stream.runtime.console import console, say, table, warn

    for outcome in summary.outcomes:
        if outcome.status != "failed":
            for warning in outcome.warnings:
                warn(f"{outcome.path}: {warning}")
    if summary.failed:
        rows = [(outcome.path, outcome.reason) for outcome in summary.failed]
        if console.is_terminal:
            console.print(table("failed", ("video", "reason"), rows))
        else:
            for path, reason in rows:
                say(f"failed: {path}: {reason}")
    written = summary.by_status("written")
    frames = sum(outcome.frames for outcome in written)
    parts = [f"{len(written)} written ({plural(frames, 'frame')}, {summary.frames_per_second:.1f} frames/s)"]
    parts.append(f"{len(summary.by_status('skipped'))} skipped (finished before)")
    parts.append(f"{len(summary.failed)} failed")
    if ignored:
        parts.append(f"{plural(ignored, 'other file')} ignored")
    say(f"{out}: {', '.join(parts)}; {summary.backend_version}, {duration(summary.seconds)}")
