"""`two-stream evaluate RUN`: score the videos of a part of the run's data set; `--from-json`: a result file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from pydantic import Field

from two_stream.commands.common import parse_over, split_positional
from two_stream.config.schema import EvaluateOptions

if TYPE_CHECKING:
    from two_stream.evaluation.tables import Line

SUMMARY = "Score the videos of a split with a trained run and print the accuracies."
PROG = "two-stream evaluate RUN"


class EvaluateFlags(EvaluateOptions):
    """How videos are scored: the run's own settings, with these flags over them."""

    part: Literal["test", "val", "train"] = "test"
    """test: the official test list; val and train: the two sides of the holdout"""
    checkpoint: Literal["best", "last"] = "best"
    """best: the selected epoch; last: the newest"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    workers: Annotated[int, Field(ge=0, le=256)] | None = None
    """loader processes; none: as in the run's settings"""
    out: Path | None = None
    """score file to write; none: `RUN/scores/<part>_<protocol>.npz`"""
    results: Path | None = None
    """write the best five classes of each video too, as Efficient-3DCNNs and 3D-ResNets do (val.json)"""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """print the numbers as JSON instead of a table"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    if any(arg == "--from-json" or arg.startswith("--from-json=") for arg in args):
        from two_stream.commands import evaluate_results

        return evaluate_results.main(args)
    name, rest = split_positional(args, "two-stream evaluate", "the run folder", "demo/runs/rgb --part test")
    default = EvaluateFlags()
    if name is not None:
        from two_stream.config.load import load_experiment
        from two_stream.errors import CheckpointError

        settings = Path(name) / "experiment.yaml"
        if not settings.is_file():
            what = (
                "not a run folder: it has no experiment.yaml" if Path(name).exists() else "no such run folder"
            )
            raise CheckpointError(f"{name}: {what} (`two-stream train` writes one)")
        experiment = load_experiment(settings)
        default = EvaluateFlags(**experiment.evaluate.model_dump(), device=experiment.device)
    flags = parse_over(default, rest, PROG, SUMMARY)
    assert name is not None  # without it only --help gets here, and that has exited
    return _evaluate(Path(name), flags)


def _evaluate(folder: Path, flags: EvaluateFlags) -> int:
    from two_stream.evaluation.run import evaluate_run, load_run
    from two_stream.evaluation.tables import lines
    from two_stream.runtime import distributed
    from two_stream.runtime.device import pick_device, set_deterministic, set_threads

    distributed.init(cpu_only=flags.device == "cpu")
    with distributed.together():
        run = load_run(folder, flags.checkpoint, flags.device)
        set_threads(run.experiment.threads)
        set_deterministic(run.experiment.deterministic, pick_device(flags.device))
    options = EvaluateOptions(**{key: getattr(flags, key) for key in EvaluateOptions.model_fields})
    table, path = evaluate_run(run, options, flags.part, workers=flags.workers, out=flags.out)
    if distributed.is_main():
        (line,) = lines([table], seed=run.experiment.seed)
        if flags.results is not None:
            from two_stream.evaluation.result_files import results_of
            from two_stream.runtime.files import write_json

            write_json(flags.results, results_of(table))
        show(line, path, as_json=flags.as_json)
    distributed.shutdown()
    return 0


def show(line: Line, path: Path, *, as_json: bool) -> None:
    """Print one scored table: numbers, protocol, where the file is."""
    from two_stream.evaluation import tables
    from two_stream.runtime.console import console, say, table

    meta = line.table.meta
    if as_json:
        console.print_json(data={"scores": str(path), **line.summary.to_json(), "meta": _plain(meta)})
        return
    console.print(table(f"{meta['name']}: accuracy in %", tables.columns([line]), tables.rows([line])))
    say(tables.protocol_line(meta, line.summary))
    if meta.get("selection") == "paper":
        say(tables.PAPER_WARNING)
    say(f"scores: {path}")


def _plain(meta: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in meta.items() if key != "file"}
