"""`two-stream fuse SCORES|RUN …`: fuses the scores of two or more streams."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from two_stream.commands.flags import JoinFlags, parse
from two_stream.commands.output import print_json
from two_stream.errors import ScoreError
from two_stream.runtime.console import say, warn
from two_stream.runtime.files import keep_inputs
from two_stream.runtime.text import plural

if TYPE_CHECKING:
    from two_stream.types import ScoreTable

SUMMARY = "Fuse the scores of two or more streams, and print the accuracy of each stream and of the fusion."
EXAMPLES = (
    "fuse demo/runs/rgb demo/runs/flow",
    "fuse demo/runs/rgb demo/runs/flow --rule learned --out fused.npz",
)


@dataclass(frozen=True)
class _FuseFlags(JoinFlags):
    scores: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN|SCORES …")]]
    """two or more score files or run folders; for a run folder, the newest scores of --part are used"""
    rule: Literal["l2", "logits", "probabilities", "rank", "learned"] = "l2"
    """which scores are summed; l2: L2-normalised logits (see the paper); learned: logistic stacking fitted on the
    holdout part"""
    weights: tuple[float, ...] | None = None
    """one weight per stream; if omitted, equal weights"""
    holdout: Annotated[tuple[Path, ...] | None, tyro.conf.arg(aliases=("--fit",))] = None
    """score files of the holdout part, in the order of the streams, or run folders, to fit the weights on"""
    fit_on_val: bool = False
    """fit the weights on the newest holdout scores of the given run folders"""
    part: Literal["test", "val"] = "test"
    """for run folders: part of the data set whose scores are used"""
    out: Path | None = None
    """score file to write (.npz, .csv or .json)"""
    json: bool = False
    """print the numbers as JSON instead of a table"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    flags = parse(_FuseFlags, args, "two-stream fuse", SUMMARY, EXAMPLES)
    from two_stream.evaluation.scores.files import find_scores, read_scores, write_table
    from two_stream.evaluation.scores.fusion import fuse
    from two_stream.evaluation.scores.tables import join, keep_common_videos

    if flags.out is not None:
        keep_inputs([flags.out], [*flags.scores, *(flags.holdout or ())])
    described = flags.described()
    found = [read_scores(find_scores(path, flags.part), described, flags.part) for path in flags.scores]
    tables = keep_common_videos(found) if flags.common else join(found)
    if flags.rule == "l2" and any(table.meta.get("scale") == "log-probabilities" for table in tables):
        warn("the rule l2 is for logits, but a file contains probabilities; use --rule probabilities")
    protocols = dict.fromkeys(str(table.meta.get("protocol")) for table in tables)
    if len(protocols) > 1:
        warn(
            f"the streams were scored with different protocols ({'; '.join(protocols)}); score all streams with the "
            "same protocol"
        )
    fused = fuse(tables, flags.rule, flags.weights, fit=_fit_tables(flags))
    if flags.out is not None:
        write_table(flags.out, fused)
    _show(tables, fused, flags)
    return 0


def _fit_tables(flags: _FuseFlags) -> list[ScoreTable] | None:
    """Return the holdout scores to fit the weights on: from --holdout, or from the given runs."""
    from two_stream.evaluation.scores.files import find_scores, read_scores

    if flags.holdout:
        described = flags.described()
        return [read_scores(find_scores(path, "val"), described, "val") for path in flags.holdout]
    wanted = flags.fit_on_val or flags.rule == "learned"
    if wanted and all(path.is_dir() for path in flags.scores):
        return [read_scores(find_scores(path, "val")) for path in flags.scores]
    if flags.fit_on_val:
        raise ScoreError("--fit-on-val requires run folders; for score files use --holdout")
    return None


def _show(tables: list[ScoreTable], fused: ScoreTable, flags: _FuseFlags) -> None:
    from two_stream.evaluation.scores import words

    found = words.lines([*tables, fused])
    sentence = words.fusion_verdict(fused, tables)
    if flags.json:
        print_json(
            {
                "streams": [{"name": line.name, **line.summary.to_json()} for line in found],
                "rule": fused.meta["rule"],
                "weights": fused.meta["weights"],
                "temperature": fused.meta.get("temperature"),
                "fitted_on": fused.meta.get("fitted_on"),
                "verdict": sentence,
                "protocol": words.protocol_line(fused.meta, found[-1].summary),
                "out": str(flags.out) if flags.out else None,
            }
        )
        return
    words.print_accuracies("accuracy in %", found)
    weights = " : ".join(f"{weight:.4g}" for weight in fused.meta["weights"])
    if fused.meta.get("fitted_on"):
        heat = fused.meta.get("temperature")
        extra = f", temperature {heat:.3g}" if heat is not None else ""
        say(
            f"weights {weights}{extra}, fitted on {plural(fused.meta['fitted_videos'], 'video')} of the holdout part"
        )
    elif len(set(fused.meta["weights"])) > 1:
        say(f"weights {weights}, set with --weights")
    say(sentence)
    if flags.out is not None:
        say(f"scores: {flags.out}")
