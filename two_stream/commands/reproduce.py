"""`two-stream reproduce RUN`: scores a run again as a stored score file was computed, and compares."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from two_stream.commands.flags import DataRoots, parse
from two_stream.commands.output import print_json, print_table
from two_stream.runtime.console import say

if TYPE_CHECKING:
    from two_stream.evaluation.runs.reproduce import Reproduction

SUMMARY = (
    "Score a run again with the protocol of one of its score files, and say whether the result is equal bit for bit, "
    "within the interval, or different, and by what. The score file is not changed."
)
EXAMPLES = ("reproduce demo/runs/rgb", "reproduce hf://ada/waves-rgb --data-root demo/data")


@dataclass(frozen=True)
class _ReproduceFlags:
    run: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
    """run folder, or run on the Hugging Face hub (hf://NAME/MODEL)"""
    scores: Path | None = None
    """score file to reproduce; if omitted, the newest one of the test part in the run"""
    data_root: DataRoots = ()
    """folder of the data set's dataset.yaml, of stored features or of shards, if they are not found because data or
    runs have been moved; repeat the flag for several folders"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """precision of the forward passes; if omitted, that of the score file"""
    batch_views: int | None = None
    """number of views per forward pass; if omitted, that of the score file"""
    device: str | None = None
    """auto, cpu, cuda, cuda:N or mps; if omitted, cpu for scores computed on a CPU, otherwise auto"""
    workers: int | None = None
    """number of loader processes; if omitted, as in the run's settings"""
    json: bool = False
    """print JSON instead of a table"""


def main(args: list[str]) -> int:
    """Run the command; return 0 if the scores are equal or within the interval, and 1 if they are different."""
    flags = parse(_ReproduceFlags, args, "two-stream reproduce", SUMMARY, EXAMPLES)
    from two_stream.errors import CheckpointError
    from two_stream.evaluation.runs.lookup import checkpoint_folder, run_paths
    from two_stream.evaluation.runs.reproduce import (
        DIFFERENT,
        Reproduction,
        read_stored,
        reproduce,
    )
    from two_stream.evaluation.runs.run import load_run
    from two_stream.evaluation.scores.files import newest_scores
    from two_stream.pretrained import WEIGHTS
    from two_stream.runtime.files import sha256

    root = run_paths(flags.run).root
    path = flags.scores or newest_scores(root)
    stored = read_stored(path)
    checkpoint = str(stored.meta.get("checkpoint", "best"))
    device = flags.device or ("cpu" if stored.meta.get("device") == "cpu" else "auto")
    changes = {
        key: getattr(flags, key) for key in ("precision", "batch_views") if getattr(flags, key) is not None
    }
    try:
        run = load_run(root, checkpoint, device, flags.data_root)
    except CheckpointError as error:
        weights = checkpoint_folder(root, checkpoint) / WEIGHTS
        if not weights.is_file() or sha256(weights) == stored.meta.get("model_sha256"):
            raise
        found = Reproduction(DIFFERENT, [f"the weights are not those of the score file: {error}"], str(path))
    else:
        found = reproduce(run, stored, changes, flags.workers)
    _show(found, as_json=flags.json)
    return int(found.verdict == DIFFERENT)


def _show(found: Reproduction, *, as_json: bool) -> None:
    from two_stream.evaluation.scores.words import percent

    if as_json:
        print_json(asdict(found))
        return
    say(str(found))
    rows: list[list[object]] = []
    if found.then is not None:
        rows.append([f"{found.metric} in % [95 % CI]", percent(found.then), percent(found.now)])
    rows += [[name, *values] for name, values in found.facts.items()]
    if rows:
        print_table("", ["", "then", "now"], rows)
    say(f"scores: {found.scores}")
