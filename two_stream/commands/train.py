"""`two-stream train FILE.yaml`, or `--recipe late-temporal` with a published trainer's flags: trains one stream."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from two_stream.commands.flags import (
    found_settings,
    parse,
    parse_over,
    split_positional,
    take_flag,
    take_value,
)
from two_stream.config.load import load_experiment
from two_stream.config.schema import EvaluateOptions, Experiment
from two_stream.runtime import distributed
from two_stream.runtime.console import note, say
from two_stream.runtime.text import per_cent
from two_stream.types import RunPaths

if TYPE_CHECKING:
    from two_stream.late_temporal.training import PublishedTraining
    from two_stream.training.trainer import TrainResult

Action = Callable[[], int]
SUMMARY = "Train one stream (RGB or flow) on one split."
PROG = "two-stream train FILE.yaml"
DESCRIPTION = (
    f"{SUMMARY} Every setting of the file can be changed with a flag; --help shows the file's values."
)
EXAMPLES = (
    "train own_videos_rgb --data.dataset mine --name mine_rgb",
    "train demo/rgb.yaml --name rgb_lstm --model.head.kind lstm",
    "train demo/rgb.yaml --help train.optimizer",
)
RECIPE_EXAMPLES = (
    "train --recipe late-temporal --dataset hmdb51 --split 2 --runs runs",
    "train --recipe late-temporal --arch rgb_r2plus1d_32f_34_bert10 --evaluate",
)
_OWN = (
    ("FILE.yaml", "experiment file, or a name that `two-stream settings` lists"),
    ("--resume", "continue an interrupted run, with bit-identical results"),
    ("--overwrite", "start over in an existing run folder"),
    (
        "--recipe late-temporal",
        "instead of a file: the flags of the published trainers (--recipe late-temporal --help shows them)",
    ),
)
RECIPE_DESCRIPTION = (
    f"{SUMMARY} These are the flags and defaults of the published trainers: the optimizer depends on the architecture, "
    "the learning rate drops when the validation loss stagnates, and sampling and crops are the published ones. The "
    "best epoch is selected on the test list, and all score files say so. Flags of `two-stream train FILE`, such as "
    "--train.precision bf16, --runs DIR or --device cuda:1, override these flags; --overwrite starts over."
)


def main(args: list[str]) -> int:
    """Run the command; return 0 if it finishes, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    distributed.silence_other_ranks()
    with distributed.once_per_machine():
        action = _read(args)
    return action()


def _read(args: list[str]) -> Action:
    """Return the action that the arguments request."""
    given = list(args)
    resume, args = take_flag(args, "--resume")
    overwrite, args = take_flag(args, "--overwrite")
    recipe, args = take_value(args, "--recipe", "two-stream train")
    if recipe is not None:
        return _read_recipe(recipe, args, given, resume=resume, overwrite=overwrite)
    example = "settings/experiments/own_videos_rgb.yaml"
    name, rest = split_positional(args, "two-stream train", "the experiment file", example)
    if Path(name, "experiment.yaml").is_file():  # a run folder
        name = str(Path(name, "experiment.yaml"))
    default = load_experiment(found_settings(name, "experiments")) if name else Experiment()
    paths = RunPaths(Path(name).parent)
    if resume and name and paths.data.is_file():  # the settings of a run, which may have been moved
        from two_stream.evaluation.runs.lookup import locate_data

        root = paths.root if paths.root.name not in ("", "..") else paths.root.resolve()
        default = locate_data(paths, default).model_copy(update={"runs": root.parent, "name": root.name})
    experiment = parse_over(default, rest, PROG, DESCRIPTION, EXAMPLES, _OWN)
    return partial(_train, experiment, given, resume=resume, overwrite=overwrite)


def _read_recipe(recipe: str, args: list[str], given: list[str], *, resume: bool, overwrite: bool) -> Action:
    """Return the action that the flags of a published trainer request: to train or to score."""
    from two_stream import zoo
    from two_stream.late_temporal.training import (
        SOURCE,
        PublishedTraining,
        check_recipe,
        describe_training,
        split_flags,
        training_remarks,
    )

    check_recipe(recipe)
    published, ours = split_flags(args)
    flags = parse(PublishedTraining, published, SOURCE, RECIPE_DESCRIPTION, RECIPE_EXAMPLES)
    record = zoo.find(flags.arch)
    bare = record.name.partition("/")[2]

    from two_stream.late_temporal.layout import training_record

    dataset = training_record(flags.dataset, flags.settings)
    default = describe_training(flags, record.options, arch=bare, dataset=dataset, init=None)
    experiment = parse_over(default, ours, SOURCE, RECIPE_DESCRIPTION)
    if flags.evaluate:
        return partial(_evaluate, experiment, flags, bare)
    resume = resume or flags.contine
    experiment = _with_start(experiment, flags, bare, dataset[0], resume=resume)
    for line in training_remarks(flags, bare):
        note(line)
    return partial(_train, experiment, given, resume=resume, overwrite=overwrite)


def _with_start(
    experiment: Experiment, flags: PublishedTraining, arch: str, dataset: str, *, resume: bool
) -> Experiment:
    """Return the experiment with its initial weights; print a note that names the weights or says how to get them.

    A resumed run keeps its initial weights. With `-c` and no run to resume, the checkpoint of the published trainer is
    used.
    """
    from two_stream.late_temporal.evaluators import checkpoint_path
    from two_stream.late_temporal.training import STARTS

    if experiment.train.init is not None:  # --train.init was given
        return experiment
    before = experiment.runs / experiment.name / "experiment.yaml"
    started = resume and before.is_file()
    file = flags.pretrained
    if file is None and started:
        old = load_experiment(before).train
        return _start(experiment, old.init, new_classifier=old.new_classifier)
    if file is None and resume:
        file = checkpoint_path(dataset, arch, flags.split)
        if file is not None:
            note(
                "no run to resume: starting from the published trainer's weights, without the state of its optimizer"
            )
    if file is None and arch in STARTS:
        start = STARTS[arch]
        file = next((flags.weights / name for name in start.files if (flags.weights / name).is_file()), None)
        if file is None:
            note(
                f"training starts from scratch, because {flags.weights / start.files[0]} is missing; to start from the "
                f"published weights, run `two-stream weights fetch {start.fetch}`, or use --pretrained FILE"
            )
    if file is None:
        return experiment
    if not started:
        note(f"initial weights: {file}")
    return _start(experiment, file, new_classifier=True)


def _start(experiment: Experiment, init: Path | None, *, new_classifier: bool) -> Experiment:
    changed = experiment.train.model_copy(update={"init": init, "new_classifier": new_classifier})
    return experiment.model_copy(update={"train": changed})


def _evaluate(experiment: Experiment, flags: PublishedTraining, arch: str) -> int:
    """Score the checkpoint of the run, or without a run that of the published trainer, with one clip and one crop."""
    run = experiment.runs / experiment.name
    options = EvaluateOptions(views="single", crops="center", precision=experiment.evaluate.precision)
    if (run / "experiment.yaml").is_file():
        from two_stream.commands.evaluate import print_scores
        from two_stream.evaluation.runs.run import evaluate_run, load_run

        loaded = load_run(run, "best", experiment.device)
        print_scores(*evaluate_run(loaded, options, "test", workers=flags.workers))
        return 0
    from two_stream.late_temporal.evaluators import evaluate_one
    from two_stream.late_temporal.flags import OneStreamFlags

    evaluate_one(
        OneStreamFlags(
            arch=arch,
            dataset=flags.dataset,
            split=flags.split,
            settings=flags.settings,
            crops="center",
            device=experiment.device,
            workers=flags.workers,
            precision=options.precision,
        ),
        "single",
    )
    return 0


def _train(experiment: Experiment, given: list[str], *, resume: bool, overwrite: bool) -> int:
    from two_stream.training.train import train

    if experiment.compress.kind != "none":
        from two_stream import compression  # noqa: F401 - registers the training extensions
    result = train(experiment, resume=resume, overwrite=overwrite)
    if result.interrupted is not None:
        again = shlex.join([*(arg for arg in given if arg not in ("--resume", "--overwrite")), "--resume"])
        note(f"saved after epoch {result.epochs}; continue with: {_program()} train {again}")
        return 128 + result.interrupted
    _summary(result)
    return 0


def _program() -> str:
    if distributed.world_size() == 1:
        return "two-stream"
    return f"torchrun --nproc-per-node {distributed.local_size()} -m two_stream"


def _summary(result: TrainResult) -> None:
    if result.already_finished:
        say(f"{result.run.root}: the run has finished; there is nothing to resume")
    published = "test-selected (published protocol)"
    labels = {"test-selected": published, "cross-validated": "folds of the training list"}
    label = labels.get(result.selection, result.selection)
    say(
        f"best epoch {result.best_epoch} of {result.epochs}: "
        f"validation {result.metric} {per_cent(result.best_top1)}, loss {result.best_loss:.4f} "
        f"(single centred clip, {label})"
    )
    say(f"next: two-stream evaluate {shlex.quote(str(result.run.root))}")
