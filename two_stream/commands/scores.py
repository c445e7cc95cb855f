"""`two-stream scores FILE --to csv`: converts score files, also those of other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from two_stream.commands.flags import ScoreFlags, parse
from two_stream.errors import ScoreError
from two_stream.runtime.console import say

SUMMARY = "Convert a score file, also one of another program, to CSV, JSON or NumPy arrays."
EXAMPLES = ("scores demo/fused.npz --to csv", "scores rgb.csv --labels hmdb51 --to npz --out rgb.npz")


@dataclass(frozen=True)
class _ScoresFlags(ScoreFlags):
    source: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN|SCORES")]]
    """score file, or run folder, whose newest scores are used"""
    to: Literal["csv", "json", "npz"]
    """type of the file to write; csv and json contain logits, labels and sources, npz also the protocol"""
    out: Path | None = None
    """file to write; if omitted, the name of the score file with another suffix, in the current folder"""
    part: Literal["test", "val"] = "test"
    """for run folders: part of the data set whose scores are used"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    flags = parse(_ScoresFlags, args, "two-stream scores", SUMMARY, EXAMPLES)
    from two_stream.evaluation.scores.files import find_scores, read_scores, write_table

    source = find_scores(flags.source, flags.part)
    out = flags.out or Path(f"{source.stem}.{flags.to}")
    if out.suffix != f".{flags.to}":
        raise ScoreError(f"--out is {out}: expected a name that ends in .{flags.to}")
    if out.resolve() == source.resolve():
        raise ScoreError(f"{out}: this is the file to convert; name another file with --out")
    table = read_scores(source, flags.described(), flags.part)
    write_table(out, table)
    say(f"scores: {out} ({len(table.ids)} videos, {len(table.class_names)} classes)")
    return 0
