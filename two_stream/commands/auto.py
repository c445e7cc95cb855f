"""`two-stream auto DATASET`: from a prepared data set to the best classifier."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from two_stream.commands.baseline import DataFlags, print_baseline, read_data
from two_stream.commands.flags import parse
from two_stream.commands.output import print_table
from two_stream.config.load import flatten, load_experiment
from two_stream.errors import SettingsError
from two_stream.runtime.console import say
from two_stream.runtime.files import write_json
from two_stream.types import RunPaths

if TYPE_CHECKING:
    from two_stream.data.catalog import Record
    from two_stream.studies.auto import Candidate
    from two_stream.types import Modality

SUMMARY = (
    "Check a prepared data set, run the baseline, train both streams with a recipe for this machine, evaluate, fuse, "
    "report, and choose the best classifier. Each step prints its command. To continue an interrupted call, run the "
    "same command again."
)
EXAMPLES = ("auto demo/data/dataset.yaml", "auto demo/data/dataset.yaml --minutes 60 --device cuda")


@dataclass(frozen=True)
class _AutoFlags(DataFlags):
    minutes: float = 20.0
    """time limit in minutes; if it is short, the streams are trained with fewer views or epochs, or skipped"""
    out: Path | None = None
    """report to write; if omitted, `RUNS/auto/<data set>-split<n>.html`"""
    official_split: bool = False
    """accept a published split that has clips of the same source video in both the training and the test list; the test
    accuracy is then too high"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code: 1 if the data set has errors. Files of finished steps are kept."""
    flags = parse(_AutoFlags, args, "two-stream auto", SUMMARY, EXAMPLES)
    from two_stream.commands import check
    from two_stream.runtime.console import say
    from two_stream.studies.auto import best_candidate, candidates
    from two_stream.studies.baseline import run_baseline

    if flags.minutes <= 0:
        raise SettingsError(f"two-stream auto: --minutes is {flags.minutes:g}: expected more than 0")
    end = time.monotonic() + 60 * flags.minutes
    record, changes = read_data(flags)
    checked = [flags.dataset, *_root(flags), *(["--official-split"] if flags.official_split else [])]
    _step("1/5 checking the data set", ["check", *checked])
    if check.main(checked):
        say("Fix these errors first, because they affect training.")
        return 1
    given = [flags.dataset, *_root(flags), "--split", str(flags.split), "--source", changes["data.source"]]
    given += ["--runs", str(flags.runs), "--device", flags.device, "--seed", str(flags.seed)]
    _step("2/5 running the baseline; a network should exceed its accuracy", ["baseline", *given])
    command = "`two-stream auto` with the same flags"
    baseline = run_baseline(record, changes, flags.runs, command)
    print_baseline(baseline)
    networks = _streams(flags, record, changes, baseline.runs, end)
    _step("4/5 fusing the streams, with weights fitted on the training videos", [])
    found = candidates(baseline.runs, networks)
    best = best_candidate(found)
    _print_candidates(found, best)
    shown = next((one for one in found if one.name == "networks"), best) if best.name == "baseline" else best
    return _answer(flags, record, shown, best)


def _streams(
    flags: _AutoFlags, record: Record, changes: dict[str, Any], baseline: Sequence[RunPaths], end: float
) -> list[RunPaths]:
    """Train and score each stream for which there is time; return the runs."""
    from two_stream.studies.auto import fit_to_time, pass_seconds, recipe, recipe_experiment
    from two_stream.studies.running.streams import train_and_score

    paces = {run.root.name: run for run in baseline}
    streams = [modality for modality in record.modalities() if modality in paces]
    recipes = {modality: recipe(modality, flags.settings_root, flags.device) for modality in streams}
    experiments = {
        modality: recipe_experiment(path, changes, f"{record.name}-split{flags.split}-{modality}", flags.runs)
        for modality, path in recipes.items()
    }
    needed = {
        modality: pass_seconds(experiment, paces[modality], _videos(record, modality, flags.split))
        for modality, experiment in experiments.items()
    }
    done: list[RunPaths] = []
    for place, (modality, experiment) in enumerate(experiments.items()):
        run = RunPaths(flags.runs / experiment.name)
        left = end - time.monotonic() - sum(needed[later] for later in streams[place + 1 :])
        fitting = fit_to_time(experiment, needed[modality], left)
        if run.last.exists():  # an earlier call already chose the settings
            places = {"runs": flags.runs, "data": experiment.data}
            fitting = load_experiment(run.experiment).model_copy(update=places)
        if fitting is None:
            say(f"3/5 no time is left for the {modality} stream; increase --minutes")
            continue
        changed = _flags_of(changes) + _differences(experiment, fitting)
        command = ["train", str(recipes[modality]), *changed, "--name", experiment.name]
        command += ["--runs", str(flags.runs)]
        _step(f"3/5 training the {modality} stream", command)
        _step("", ["evaluate", str(run.root)])
        train_and_score(fitting, command="`two-stream auto` with the same flags")
        done.append(run)
    return done


def _videos(record: Record, modality: Modality, split: int) -> int:
    from two_stream.data.splits import all_training_videos, load_part

    return len(all_training_videos(record, modality, split)) + len(load_part(record, modality, split, "test"))


def _differences(recipe: Any, fitting: Any) -> list[str]:
    """Return the flags that adapt a recipe to the time limit."""
    before, after = (flatten(one.model_dump(mode="json")) for one in (recipe, fitting))
    changed = {
        key: after[key] for key in ("train.epochs", "train.optimizer.views", "evaluate.crops") if key in after
    }
    return _flags_of({key: value for key, value in changed.items() if value != before.get(key)})


def _flags_of(changes: Mapping[str, Any]) -> list[str]:
    return [part for key, value in changes.items() for part in (f"--{key.replace('_', '-')}", str(value))]


def _root(flags: _AutoFlags) -> list[str]:
    return [] if flags.settings_root == Path("settings") else ["--settings-root", str(flags.settings_root)]


def _step(title: str, command: Sequence[str]) -> None:
    if title:
        say(f"\n{title}")
    if command:
        say(f"  $ two-stream {shlex.join(command)}")


def _print_candidates(found: Sequence[Candidate], best: Candidate) -> None:
    from two_stream.evaluation.scores import words

    lines = words.lines([one.test for one in found])
    columns = ["candidate", "held-out training videos", *words.columns(lines)[1:]]
    rows = [
        [one.name, f"{100 * one.validated:.1f}", *cells[1:]] for one, cells in zip(found, words.rows(lines))
    ]
    print_table("candidates: accuracy in %", columns, rows)
    if len(found) == 1:
        say("Only the baseline was run, so it is chosen.")
    elif best.name == "baseline":
        say(f"The baseline is chosen: no network is better on the {best.videos} held-out training videos.")
    else:
        say(f"Chosen: {best.name}, the best on the {best.videos} held-out training videos.")
    say("The test part was not used for this choice.")


def _answer(flags: _AutoFlags, record: Record, shown: Candidate, best: Candidate) -> int:
    """Write the report and the chosen classifier, and print how to use it.

    The report starts with the candidate `shown` and always has a row for the baseline.
    """
    from two_stream.commands import report

    out = flags.out or flags.runs / "auto" / f"{record.name}-split{flags.split}.html"
    page = [*(str(run.root) for run in shown.runs), "--out", str(out), "--rule", shown.rule]
    _step("5/5 writing the report", ["report", *page])
    report.main(page)
    runs = sorted(
        zip(best.runs, best.weights),
        key=lambda pair: load_experiment(pair[0].experiment).model.modality != "rgb",
    )
    command = ["two-stream", "predict", "VIDEO"]
    for run, _ in runs:
        command += [f"--{load_experiment(run.experiment).model.reads}", str(run.root)]
    if len(runs) > 1:
        rule = "logits" if best.rule == "learned" else best.rule
        command += ["--rule", rule, "--weights", *(f"{weight:.4g}" for _, weight in runs)]
    write_json(
        out.with_name(f"{out.stem}_answer.json"),
        {
            "answer": best.name,
            "runs": [str(run.root) for run, _ in runs],
            "rule": best.rule,
            "weights": [weight for _, weight in runs],
            "held_out_accuracy": best.validated,
            "predict": shlex.join(command),
        },
    )
    say("\nTo classify a video with the chosen classifier:")
    say(f"  $ {shlex.join(command)}")
    return 0
