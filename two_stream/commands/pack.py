"""`two-stream pack`: frame folders or videos of a data set -> tar shards with an index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from two_stream.commands.flags import parse

if TYPE_CHECKING:
    from two_stream.data.catalog import Record
    from two_stream.data.packing import PackOptions, PackSummary
    from two_stream.types import Modality

SUMMARY = (
    "frame folders or videos -> shards that are read several times as fast, from a disk or object storage"
)
DESCRIPTION = (
    f"{SUMMARY}. Every video of the data set's lists becomes one sample of a WebDataset tar file in OUT/rgb or "
    "OUT/flow; train with `--data.source shards --data.shards OUT` (or the URL of a copy): the same batches for the "
    "same seed. Run it again to go on after a stop; finished shards are kept."
)


@dataclass(frozen=True)
class Options:
    """Flags of `two-stream pack`."""

    dataset: tyro.conf.Positional[str]
    """data set: a folder under --settings-root, or the path of a dataset.yaml"""
    out: str
    """folder for the shards"""
    modality: Literal["rgb", "flow", "both"] = "rgb"
    """which frames"""
    encoding: Literal["raw", "original", "jpeg"] = "raw"
    """raw: resized pixels, the fastest and largest (64 KiB a frame at 128x170 RGB); original: the JPEG files as they
    are, for any input size; both give the very pixels of the folders; jpeg: resized, then JPEG again, the smallest,
    with other pixels, which the index says"""
    resize: tuple[int, int] | None = None
    """HEIGHT WIDTH of raw and jpeg frames: the model's input before it is cropped; 128 170 by default"""
    like: Path | None = None
    """experiment file or run folder whose model says --resize"""
    quality: int = 95
    """JPEG quality of --encoding jpeg, 1 to 100"""
    source: Literal["frames", "videos"] = "frames"
    """frames: folders written by `two-stream extract`; videos: the files themselves, flow computed on the way"""
    backend: Literal["pyav", "opencv", "torchcodec"] = "pyav"
    """video decoder of --source videos"""
    flow: Literal["tvl1", "dis", "farneback"] = "dis"
    """flow algorithm of --source videos"""
    settings_root: Path = Path("settings")
    """folder of the named data sets"""
    shard_frames: int = 10_000
    """frames after which a new shard begins"""
    processes: int | None = None
    """shards written at a time; all processors by default, 0 works in the main process"""
    overwrite: bool = False
    """replace shards that were packed with other settings or lists"""
    verify: bool = False
    """afterwards compare every shard with its checksum"""
    json: Path | None = None
    """file for the summary"""


def main(args: list[str]) -> int:
    """Pack; 0 when every video is in the shards, 1 when one is not or a shard is damaged.

    Raises:
        TwoStreamError: Wrong flags, no such data set, an output folder that cannot be used.
    """
    options = parse(Options, args, prog="two-stream pack", description=DESCRIPTION)

    from two_stream.data.catalog import load_record
    from two_stream.data.packing import PackOptions, verify
    from two_stream.runtime.console import say
    from two_stream.runtime.files import write_json

    record = load_record(options.dataset, options.settings_root)
    how = PackOptions(
        encoding=options.encoding,
        resize=_resize(options),
        quality=options.quality,
        source=options.source,
        backend=options.backend,
        flow=options.flow,
        shard_frames=options.shard_frames,
        processes=options.processes,
        overwrite=options.overwrite,
    )
    chosen: tuple[Modality, ...] = ("rgb", "flow") if options.modality == "both" else (options.modality,)
    summaries = []
    damaged: list[str] = []
    for modality in chosen:
        summaries.append(_pack(record, modality, options.out, how))
        if options.verify:
            wrong = verify(summaries[-1].folder)
            damaged += wrong
            for line in wrong or [f"{summaries[-1].folder}: all checksums agree"]:
                say(line)
    if options.json is not None:
        write_json(options.json, {summary.folder.name: summary.as_dict() for summary in summaries})
    if not any(summary.failed for summary in summaries) and not damaged:
        say(f"train with: --data.source shards --data.shards {options.out}")
        return 0
    return 1


def _pack(record: Record, modality: Modality, out: str, how: PackOptions) -> PackSummary:
    from two_stream.data.packing import pack

    summary = pack(record, modality, out, how)
    _tell(summary, how)
    return summary


def _resize(options: Options) -> tuple[int, int]:
    """Return the size of the frames: as given, as a model takes them, or the default."""
    if options.like is None:
        return options.resize or (128, 170)

    from two_stream.config.load import load_experiment
    from two_stream.errors import SettingsError

    if options.resize is not None:
        raise SettingsError("--resize and --like contradict each other: give one")

    import torch

    from two_stream.recognizer import create_model

    file = options.like / "experiment.yaml" if options.like.is_dir() else options.like
    with torch.device("meta"):  # its input is asked for, not its weights
        return create_model(load_experiment(file).model, 2).spec.resize


def _tell(summary: PackSummary, how: PackOptions) -> None:
    from two_stream.runtime.console import say, warn

    for name, packed, listed in summary.short:
        warn(f"{name}: {packed} frames packed, its list says {listed}")
    for name, reason in summary.failed:
        say(f"failed: {name}: {reason}")
    there = summary.shards - summary.written
    parts = [f"{summary.videos} videos, {summary.frames} frames in {summary.shards} shards"]
    parts.append(f"{_size(summary.bytes)}, {_size(summary.bytes / max(1, summary.frames))} a frame")
    parts.append(f"{summary.written} written, {there} there before")
    if summary.failed:
        parts.append(f"{len(summary.failed)} videos failed (run again to retry their shards)")
    if how.encoding == "jpeg":
        parts.append("not the very pixels of the source")
    say(f"{summary.folder}: {'; '.join(parts)}")


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
