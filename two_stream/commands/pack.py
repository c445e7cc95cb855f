"""`two-stream pack`: writes the frame folders or videos of a data set as tar shards with an index."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from two_stream.commands.flags import parse
from two_stream.data.options import PackOptions
from two_stream.runtime.text import byte_size, plural

if TYPE_CHECKING:
    from two_stream.data.catalog import Record
    from two_stream.data.packing import PackSummary
    from two_stream.types import Modality

SUMMARY = "Pack frame folders or videos into shards, which are read several times as fast, also from object storage."
EXAMPLES = (
    "pack demo/data/dataset.yaml --out shards",
    "pack demo/data/dataset.yaml --out shards --modality both",
)
DESCRIPTION = (
    f"{SUMMARY} Every video of the data set's lists becomes one sample of a WebDataset tar file in OUT/rgb or "
    "OUT/flow. To train on the shards, use `--data.source shards --data.shards OUT` (or the URL of a copy); the "
    "batches "
    "for a seed stay the same. To continue after an interruption, run the same command again; finished shards are kept."
)


@dataclass(frozen=True, kw_only=True)
class Options(PackOptions):
    """Flags of `two-stream pack`."""

    dataset: tyro.conf.Positional[str]
    """data set: a folder under --settings-root, or the path of a dataset.yaml"""
    out: str
    """folder to write the shards to"""
    modality: Literal["rgb", "flow", "both"] = "rgb"
    """modality of the frames to pack"""
    like: Path | None = None
    """experiment file or run folder whose model determines --resize"""
    settings_root: Path = Path("settings")
    """folder of the named data sets"""
    verify: bool = False
    """after packing, compare every shard with its checksum"""
    json: Path | None = None
    """JSON file to write the summary to"""


def main(args: list[str]) -> int:
    """Run the command; return 0 if every video is in the shards, 1 if one is missing or a shard is damaged.

    Raises:
        TwoStreamError: A flag is wrong, there is no such data set, or the output folder cannot be used.
    """
    options = parse(Options, args, prog="two-stream pack", description=DESCRIPTION, examples=EXAMPLES)

    from two_stream.data.catalog import load_record
    from two_stream.data.packing import verify_shards
    from two_stream.runtime.console import say
    from two_stream.runtime.files import write_json

    record = load_record(options.dataset, options.settings_root)
    how = options if options.like is None else replace(options, resize=_size_of(options.like, options))
    chosen: tuple[Modality, ...] = ("rgb", "flow") if options.modality == "both" else (options.modality,)
    summaries = []
    damaged: list[str] = []
    for modality in chosen:
        summaries.append(_pack(record, modality, options.out, how))
        if options.verify:
            wrong = verify_shards(summaries[-1].folder)
            damaged += wrong
            for line in wrong or [f"{summaries[-1].folder}: all checksums agree"]:
                say(line)
    if options.json is not None:
        write_json(options.json, {summary.folder.name: summary.as_dict() for summary in summaries})
    if not any(summary.failed for summary in summaries) and not damaged:
        say(f"to train on the shards, use: --data.source shards --data.shards {options.out}")
        return 0
    return 1


def _pack(record: Record, modality: Modality, out: str, how: PackOptions) -> PackSummary:
    from two_stream.data.packing import pack

    summary = pack(record, modality, out, how)
    _report(summary, how)
    return summary


def _size_of(like: Path, options: Options) -> tuple[int, int]:
    """Return the frame size that the model of a run or experiment expects."""
    from two_stream.config.load import load_experiment
    from two_stream.errors import SettingsError

    if options.resize is not None:
        raise SettingsError("--resize and --like cannot be combined; use only one")

    import torch

    from two_stream.recognizer import create_model

    file = like / "experiment.yaml" if like.is_dir() else like
    with torch.device("meta"):  # only its input size is needed
        return create_model(load_experiment(file).model, 2).spec.resize


def _report(summary: PackSummary, how: PackOptions) -> None:
    from two_stream.runtime.console import say, warn

    for name, packed, listed in summary.short:
        warn(f"{name}: packed {plural(packed, 'frame')}, but the split list says {listed}")
    for name, reason in summary.failed:
        say(f"failed: {name}: {reason}")
    there = summary.shards - summary.written
    parts = [
        f"{plural(summary.videos, 'video')}, {plural(summary.frames, 'frame')} in {plural(summary.shards, 'shard')}"
    ]
    parts.append(f"{byte_size(summary.bytes)}, {byte_size(summary.bytes / max(1, summary.frames))} per frame")
    parts.append(f"{summary.written} written, {there} existed")
    if summary.failed:
        parts.append(f"{plural(len(summary.failed), 'video')} failed (run again to retry their shards)")
    if how.encoding == "jpeg":
        parts.append("pixels differ from the source")
    say(f"{summary.folder}: {'; '.join(parts)}")
