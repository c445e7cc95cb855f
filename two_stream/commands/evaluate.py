"""`two-stream evaluate RUN`: scores videos with a run or exported file; `--from-json`: evaluates a result file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from pydantic import Field

from two_stream.commands.flags import DataRoots, parse, parse_over, split_positional
from two_stream.commands.networks import load_network, network_settings
from two_stream.commands.output import print_json, print_table
from two_stream.config.schema import EvaluateOptions
from two_stream.errors import SettingsError
from two_stream.runtime import distributed
from two_stream.runtime.console import note, say, warn
from two_stream.runtime.files import check_writable, write_json
from two_stream.runtime.text import plural

if TYPE_CHECKING:
    from two_stream.evaluation.runs.timeline import TimelineResult
    from two_stream.types import ScoreTable

SUMMARY = "Score the videos of a split with a run or an exported file, and print the accuracies."
RESULTS = "Evaluate a result file of Efficient-3DCNNs or 3D-ResNets (val.json) against a list of videos."
PROG = "two-stream evaluate RUN_OR_EXPORT"
EXAMPLES = (
    "evaluate demo/runs/rgb",
    "evaluate demo/runs/rgb --part val --views uniform --num-clips 5",
    "evaluate runs/mine --timeline --step 8 --crops center",
)
RESULT_EXAMPLES = (
    "evaluate --from-json val.json --truth ucf101_01.json",
    "evaluate --from-json val.json --truth hmdb51 --split 2",
)
_OWN = (
    (
        "RUN_OR_EXPORT",
        "run folder, run on the Hugging Face hub (hf://NAME/MODEL), or file of `two-stream export`",
    ),
    (
        "--from-json FILE",
        "instead of a run: evaluate a result file (--from-json FILE --help shows the flags)",
    ),
)


class _EvaluateFlags(EvaluateOptions):
    part: Literal["test", "val", "train"] = "test"
    """test: the official test list; val: the holdout part of the training list; train: the rest of the training list"""
    checkpoint: Literal["best", "last"] = "best"
    """checkpoint of a run folder: the selected epoch, or the last one"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    trust: tuple[Path, ...] = ()
    """AOTInductor packages that may be loaded; they contain machine code, so name only packages that you trust"""
    data_root: DataRoots = ()
    """folder of the data set's dataset.yaml, of stored features or of shards, if they are not found because data or
    runs have been moved; repeat the flag for several folders"""
    workers: Annotated[int, Field(ge=0, le=256)] | None = None
    """number of loader processes; if omitted, as in the run's settings"""
    uncached: bool = False
    """read the videos even if the run was trained on stored features (`data.features`)"""
    out: Path | None = None
    """score file to write; if omitted, `scores/<part>_<protocol>.npz` in the run folder, or next to an exported file"""
    false_alarms: float | None = None
    """with `--part val`: store a threshold in the run, below which `predict` and `stream` answer "none of these"; a
    wrong class is then shown for at most this fraction of videos, such as 0.1"""
    timeline: bool = False
    """score whole recordings with dense labels (`two-stream prepare timeline`) with sliding views: frame F1, segmental
    F1, edit score and mAP; thresholds and shortest bout are chosen on the holdout; `--out` is a JSON file, and the
    bouts are written to the CSV file of the same name"""
    csv: Path | None = None
    """also write the logits of each video as a table (.csv)"""
    results: Path | None = None
    """also write the top five classes of each video in the format of Efficient-3DCNNs and 3D-ResNets (val.json)"""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """print JSON instead of a table"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    if any(arg == "--from-json" or arg.startswith("--from-json=") for arg in args):
        return _results(args)
    name, rest = split_positional(args, "two-stream evaluate", "the run folder", "demo/runs/rgb --part test")
    default = _EvaluateFlags()
    if name:
        experiment = network_settings(Path(name))
        default = _EvaluateFlags(**experiment.evaluate.model_dump(), device=experiment.device)
    flags = parse_over(default, rest, PROG, SUMMARY, EXAMPLES, _OWN)
    return _evaluate(Path(name), flags)


def _evaluate(folder: Path, flags: _EvaluateFlags) -> int:
    from two_stream.evaluation.runs.run import evaluate_run
    from two_stream.evaluation.scores.files import read_scores
    from two_stream.runtime.device import set_deterministic, set_threads

    for path in filter(None, (flags.out, flags.csv, flags.results)):
        check_writable(path)
    if flags.csv is not None and flags.csv.suffix != ".csv":
        raise SettingsError(f"--csv is {flags.csv}: expected a file name that ends in .csv")
    if flags.false_alarms is not None and (flags.part != "val" or not folder.is_dir()):
        raise SettingsError(
            "--false-alarms needs a run folder and --part val: the threshold is chosen on the holdout part"
        )
    if flags.timeline:
        _check_timeline(flags)
    distributed.init(cpu_only=flags.device == "cpu")
    with distributed.raise_on_all_ranks():
        run = load_network(folder, flags.checkpoint, flags.device, flags.trust, flags.data_root)
        set_threads(run.experiment.threads)
        set_deterministic(run.experiment.deterministic, run.model.device)
    options = EvaluateOptions(**{key: getattr(flags, key) for key in EvaluateOptions.model_fields})
    if flags.timeline:
        from two_stream.evaluation.runs.timeline import evaluate_timeline

        _show_timeline(
            evaluate_timeline(run, options, flags.part, workers=flags.workers, out=flags.out), flags
        )
        return 0
    table, path = evaluate_run(
        run, options, flags.part, workers=flags.workers, out=flags.out, uncached=flags.uncached
    )
    if distributed.is_main():
        if flags.false_alarms is not None:
            from two_stream.evaluation.runs.none_of_these import write_threshold

            found = write_threshold(folder, read_scores(path), flags.false_alarms)
            note(
                f"threshold {found.value:.3f}: a class is shown for {100 * found.shown:.0f} % of the holdout videos, "
                f"and for {100 * found.kept:.0f} % of those that are right"
            )
        if flags.csv is not None:
            from two_stream.evaluation.scores.files import write_table

            write_table(flags.csv, table)
        if flags.results is not None:
            from two_stream.evaluation.scores.result_files import results_of

            write_json(flags.results, results_of(table))
        print_scores(table, path, as_json=flags.as_json)
    distributed.shutdown()
    return 0


def _check_timeline(flags: _EvaluateFlags) -> None:
    for name in ("csv", "results", "false_alarms"):
        if getattr(flags, name) is not None:
            raise SettingsError(
                f"--{name.replace('_', '-')} and --timeline cannot be combined; omit one of them"
            )
    if flags.out is not None and flags.out.suffix != ".json":
        raise SettingsError(
            f"--out is {flags.out}: expected a file name that ends in .json (the bouts go to .csv)"
        )


def _show_timeline(found: TimelineResult, flags: _EvaluateFlags) -> None:
    from two_stream.evaluation.scores.words import DASH, few_sources, interval_words, percent

    meta, rule = found.meta, found.rule
    if flags.as_json:
        shown = {key: value for key, value in asdict(found).items() if key != "path"}
        print_json({"scores": str(found.path), **shown})
        return
    metrics = [[key, percent(value)] for key, value in found.metrics.items()]
    print_table(f"{meta['name']}: time line in %", ["metric", "value [95 % CI]"], metrics)
    rows = []
    for name, one in found.classes.items():
        shares = [
            DASH if one[key] is None else percent(one[key]) for key in ("frame_f1", "constant_f1", "ap@0.5")
        ]
        rows.append([name, *shares, one["true_bouts"], one["found_bouts"], f"{rule.thresholds[name]:.3f}"])
    print_table("", ["class", "frame F1", "constant", "AP@0.5", "true bouts", "found", "threshold"], rows)
    sources, value = meta["sources"], found.metrics["frame_f1"]
    counted = f"{plural(len(meta['recordings']), 'recording')} of {plural(sources, 'source')}"
    chosen = (
        f"thresholds and shortest bout from {plural(len(meta['holdout_recordings']), 'holdout recording')}"
    )
    parts = [f"{meta['dataset']} split {meta['split']}, {meta['part']} part", counted, meta["protocol"]]
    parts += [f"shortest bout {rule.shortest:g} s", chosen, interval_words(sources, value)]
    say(" · ".join(parts))
    for text in few_sources(len(meta["recordings"]), sources):
        say(f"note: {text}")
    if rule.undetermined:
        names = ", ".join(rule.undetermined)
        warn(f"not in the holdout or never recognised there, so without a threshold of their own: {names}")
    say(f"scores: {found.path} and {found.path.with_suffix('.csv').name}")


def print_scores(scores: ScoreTable, path: Path, *, as_json: bool = False) -> None:
    """Print the accuracies and protocol of a score table, and the path of its file."""
    from two_stream.evaluation.scores import words

    (line,) = words.lines([scores])
    meta = scores.meta
    if as_json:
        shown = {key: value for key, value in meta.items() if key != "file"}
        print_json({"scores": str(path), **line.summary.to_json(), "meta": shown})
        return
    words.print_accuracies(f"{meta['name']}: accuracy in %", [line], [path])


@dataclass(frozen=True)
class _ResultFlags:
    from_json: Path
    """result file with the top classes of each video or clip"""
    truth: str | None = None
    """file with the correct classes: annotation JSON of Efficient-3DCNNs or 3D-ResNets, or a data set (name or
    dataset.yaml)"""
    subset: str = "validation"
    """subset to evaluate if --truth is an annotation JSON"""
    split: int = 1
    """split whose test list is evaluated if --truth is a data set"""
    settings_root: Path = Path("settings")
    """folder of data sets that are given by name"""
    top: tuple[int, ...] = (1, 5)
    """values of k for the top-k accuracies"""
    ignore_unseen: bool = False
    """ignore listed videos without a result (like `--ignore` of 3D-ResNets) instead of counting them as wrong"""
    json: bool = False
    """print JSON instead of a table"""


def _results(args: list[str]) -> int:
    """Evaluate a result file; return 1 if listed videos have no result."""
    flags = parse(_ResultFlags, args, "two-stream evaluate", RESULTS, RESULT_EXAMPLES)
    from two_stream.evaluation.scores.result_files import evaluate_results, read_results

    results, truth = read_results(flags.from_json), _truth(flags)
    found = evaluate_results(results, truth, flags.top, ignore_unseen=flags.ignore_unseen)
    if flags.json:
        top = {str(k): value for k, value in found.top.items()}
        print_json({**vars(found), "top": top})
        return 1 if found.unseen else 0
    rows = [[f"top-{k}", f"{100 * value:.1f}"] for k, value in found.top.items()]
    print_table(f"{flags.from_json}: accuracy in %", ["", "%"], rows)
    say(f"evaluated {found.counted} of {plural(found.videos, 'video')} listed in {flags.truth}")
    if found.unseen:
        how = "ignored" if flags.ignore_unseen else "counted as wrong"
        warn(f"no result for {_some(found.unseen)}: {how}")
    if found.unlisted:
        warn(f"not counted, because not listed: {_some(found.unlisted)}")
    return 1 if found.unseen else 0


def _truth(flags: _ResultFlags) -> dict[str, tuple[str, ...]]:
    if flags.truth is None:
        raise SettingsError(
            "--from-json requires --truth; add --truth with an annotation JSON or a data set (name or path)"
        )
    if flags.truth.endswith(".json"):
        from two_stream.evaluation.scores.result_files import read_truth

        return read_truth(Path(flags.truth), flags.subset)
    from two_stream.data.catalog import load_record
    from two_stream.data.splits import load_part

    record = load_record(flags.truth, flags.settings_root)
    modalities = record.modalities() or ["rgb"]
    videos = load_part(record, modalities[0], flags.split, "test")
    return {video.id: tuple(record.classes[label] for label in video.all_labels) for video in videos}


def _some(videos: tuple[str, ...]) -> str:
    more = f" and {len(videos) - 3} more" if len(videos) > 3 else ""
    return f"{plural(len(videos), 'video')} ({', '.join(videos[:3])}{more})"
