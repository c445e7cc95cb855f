"""`two-stream compress {prune,sensitivity,quantize,distill} RUN`: makes a smaller or faster run from a trained one."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

import tyro
from pydantic import BaseModel, Field, create_model

from two_stream.commands.flags import (
    parse,
    parse_over,
    run_subcommand,
    split_positional,
    take_flag,
    take_value,
    wants_help,
)
from two_stream.commands.help import Page, show_help
from two_stream.commands.networks import run_settings
from two_stream.commands.output import print_json, print_table
from two_stream.config.compress import Distill, Prune, Quantize
from two_stream.config.load import load_experiment, nearest
from two_stream.config.schema import Experiment, Logistic, Sgd
from two_stream.errors import SettingsError
from two_stream.runtime import distributed
from two_stream.runtime.console import note, say
from two_stream.runtime.files import write_json, write_text
from two_stream.runtime.text import csv_text, per_cent, plural, signed_number

if TYPE_CHECKING:
    from two_stream.compression.sensitivity import LevelChoice, Sensitivity
    from two_stream.evaluation.runs.run import Run
    from two_stream.types import Part

SUMMARY = (
    "Make a smaller or faster run from a trained one, and report the cost in accuracy. The result is an ordinary run: "
    "evaluate, fuse, compare and studies accept it."
)
PROG = "two-stream compress"
EXAMPLES = {
    "prune": (
        "compress prune demo/runs/rgb --what channels --target-macs 0.5",
        "compress prune demo/runs/rgb --amount 0.6 --train.epochs 4",
    ),
    "sensitivity": (
        "compress sensitivity demo/runs/rgb",
        "compress sensitivity demo/runs/rgb --what channels --macs 0.5",
    ),
    "quantize": (
        "compress quantize demo/runs/rgb --clips 128 --keep stem classifier",
        "compress quantize demo/runs/rgb --method qat",
    ),
    "distill": (
        "compress distill demo/runs/flow --student demo/runs/rgb",
        "compress distill demo/runs/rgb --student demo/rgb.yaml --temperature 4",
    ),
}
_PRUNE = "Remove weights or channels from a trained run, train the remaining network, and compare it with the original."
_SENSITIVITY = (
    "Prune one layer at a time to several levels, score the same clips each time, and write a table and a figure to "
    "RUN/sensitivity. With a budget, also choose a level for each layer; `two-stream compress prune RUN --levels "
    "FILE` applies them."
)
_QUANTIZE = (
    "Convert a trained run to one that computes in int8 on the CPU, and compare it with the original. --method static "
    "(the default) calibrates ranges on clips of the training part; --method qat first continues the training with "
    "rounded values."
)
_DISTILL = (
    "Train a network, the student, on its labels and on the outputs of trained runs, the teachers, and report it "
    "together with the first teacher. Give the teachers first or after --teachers. MARS: an RGB student, a flow "
    "teacher, --vector-weight 50 --student-weight 1 --distill-weight 0."
)
_PARTS = ("test", "val")
_OWN: dict[str, tuple[Any, Any]] = {
    "part": (
        Literal["test", "val"],
        Field("test", description="part of the data set that both runs are scored on"),
    ),
    "resume": (tyro.conf.FlagCreatePairsOff[bool], Field(False, description="continue an interrupted run")),
    "overwrite": (
        tyro.conf.FlagCreatePairsOff[bool],
        Field(False, description="start over in an existing run folder"),
    ),
}
"""Flags shared by all methods that create a run, for `--help`: flag name -> (type, field)."""
_LEVELS: tuple[Any, Any] = (
    Path | None,
    Field(
        None,
        description="levels by layer: a .json of `two-stream compress sensitivity`, or a CSV with the columns Name, "
        "Type and Sparsity",
    ),
)
_STUDENT: tuple[Any, Any] = (
    str,
    Field(
        description="an experiment file, a run folder (its network is trained further) or the name of a model (with "
        "the first teacher's data, input and training)"
    ),
)
_GIVEN = ("kind", "source", "teachers", "by_layer")
"""Keys of the `compress` section that other arguments of the command set, so they are not flags."""
_FINE = 0.1
"""Factor of the source's learning rate for continued training, which starts close to its optimum."""
_SHARE = 3
"""Continued training takes the source's number of epochs divided by this."""
_UNTRAINED = dict.fromkeys(("cross_modality", "inflate", "new_classifier", "init_averaged"), False)
"""Settings of `train` that only apply to the initial weights of the source run, with the values that disable them."""

S = TypeVar("S", bound=BaseModel)


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    return run_subcommand(PROG, SUMMARY, _METHODS, args, EXAMPLES)


@dataclass(frozen=True)
class _Call:
    """One call of a compression method that creates a run."""

    prog: str
    command: str
    """command line without `--resume` and `--overwrite`"""
    part: Part
    resume: bool
    overwrite: bool


def _take_common(method: str, args: list[str]) -> tuple[_Call, list[str]]:
    """Remove `--resume`, `--overwrite` and `--part` from the arguments and return them with the rest."""
    prog = f"{PROG} {method}"
    resume, args = take_flag(args, "--resume")
    overwrite, args = take_flag(args, "--overwrite")
    command = shlex.join([*prog.split(), *args])
    part, args = take_value(args, "--part", prog)
    if part not in (None, *_PARTS):
        raise SettingsError(f"{prog}: --part is {part}: expected {' or '.join(_PARTS)}")
    return _Call(prog, command, cast("Part", part or "test"), resume, overwrite), args


def _take_run(call: _Call, args: list[str], suffix: str, example: str) -> tuple[Path, Experiment, list[str]]:
    """Remove the run from the arguments; return it, the settings of the new run, and the remaining arguments."""
    name, rest = split_positional(args, call.prog, "the run folder", example)
    run = Path(name or "RUN")
    source = run_settings(run) if name else Experiment()
    return run, _continued(source, run, f"{source.name}_{suffix}"), rest


def _prune(args: list[str]) -> int:
    call, args = _take_common("prune", args)
    levels, args = take_value(args, "--levels", call.prog)
    run, default, rest = _take_run(call, args, "pruned", "demo/runs/rgb --amount 0.6")
    experiment, options = _derive(default, Prune(source=run), rest, call, _PRUNE, {"levels": _LEVELS})
    experiment = _check_prune(experiment, options, run, None if levels is None else Path(levels))
    return _train_and_report(experiment, run, call)


def _check_prune(experiment: Experiment, options: Prune, run: Path, levels: Path | None) -> Experiment:
    """Return the settings with the levels from a file; before any computation, check that the network can be pruned."""
    from two_stream.compression.channels import check_narrowable
    from two_stream.compression.layers import chosen_layers, layers_of, read_levels

    model = _load_prunable(run).model
    if levels is not None:
        found = read_levels(levels, list(layers_of(model)), options.what)
        options = Prune.model_validate({**options.model_dump(), "by_layer": found})
    if options.what == "channels":
        check_narrowable(model, options)
    chosen_layers(model, options)
    return Experiment.model_validate({**experiment.model_dump(), "compress": options.model_dump()})


def _load_prunable(run: Path) -> Run:
    from two_stream.evaluation.runs.run import load_run

    loaded = load_run(run)
    if any(not alteration.reshapes for alteration in loaded.model.alterations):
        raise SettingsError(f"{run}: an int8 run cannot be pruned; use the run from which it was quantized")
    return loaded


def _quantize(args: list[str]) -> int:
    call, args = _take_common("quantize", args)
    run, default, rest = _take_run(call, args, "int8", "demo/runs/rgb --method static")
    experiment, options = _derive(default, Quantize(source=run), rest, call, _QUANTIZE)
    if options.method == "qat":
        return _train_and_report(experiment, run, call)
    if call.resume:
        raise SettingsError(
            f"{call.prog}: --resume requires --method qat; for static quantization, which takes only seconds, omit "
            "--resume"
        )
    from two_stream.compression.quantization import quantise_run
    from two_stream.runtime.device import set_threads

    set_threads(experiment.threads)
    _report(run, quantise_run(experiment, overwrite=call.overwrite).root, call)
    return 0


def _distill(args: list[str]) -> int:
    call, args = _take_common("distill", args)
    student, args = take_value(args, "--student", call.prog)
    teachers, rest = _take_teachers(args)
    default = Experiment()
    if not wants_help(args):
        example = f"for example: {call.prog} demo/runs/flow --student demo/runs/rgb"
        if not teachers:
            raise SettingsError(f"{call.prog}: the run folder of a teacher is missing; {example}")
        if student is None:
            raise SettingsError(
                f"{call.prog}: --student is missing; expected an experiment file, a run folder or the name of a "
                f"model; {example}"
            )
        default = _student(student, teachers[0])
    experiment, _ = _derive(default, Distill(teachers=teachers), rest, call, _DISTILL, {"student": _STUDENT})
    return _train_and_report(experiment, teachers[0], call)


def _take_teachers(args: list[str]) -> tuple[tuple[Path, ...], list[str]]:
    """Remove the teachers from the arguments: those before the first flag, and those after `--teachers`."""
    found: list[Path] = []
    rest: list[str] = []
    taking = True
    for arg in args:
        if arg.startswith("-"):
            taking = arg in ("--teachers", "--compress.teachers")
            if not taking:
                rest.append(arg)
        elif taking:
            found.append(Path(arg))
        else:
            rest.append(arg)
    return tuple(found), rest


def _student(given: str, teacher: Path) -> Experiment:
    """Return the settings of the student's run: from a file, from a run to continue, or from a named model."""
    path = Path(given)
    taught = run_settings(teacher)
    if path.suffix in (".yaml", ".yml"):
        experiment = load_experiment(path)
        return experiment.model_copy(update={"name": f"{experiment.name}_distilled"})
    if path.is_dir():
        experiment = run_settings(path)
        return _continued(experiment, path, f"{experiment.name}_distilled")
    if path.is_file():
        raise SettingsError(
            f"{PROG} distill: --student {given} is not an experiment file (.yaml), a run folder or the name "
            "of a model"
        )
    from two_stream import zoo

    model = zoo.resolve(given, modality=taught.model.modality)
    fresh = {"init": None, "init_part": "all", "freeze_until": None, **_UNTRAINED}
    return taught.model_copy(
        update={
            "name": f"{taught.name}_distilled",
            "runs": teacher.parent,
            "model": model.model_copy(update={"input": taught.model.input}),
            "train": taught.train.model_copy(update=fresh),
            "data": taught.data.model_copy(update={"features": None}),
        }
    )


def _continued(source: Experiment, run: Path, name: str) -> Experiment:
    """Return settings for further training of a finished run, with a lower learning rate and fewer epochs."""
    rule = source.train.optimizer
    if isinstance(rule, Logistic):
        rule = Sgd()
    train = source.train.model_copy(
        update={
            "epochs": max(1, source.train.epochs // _SHARE),
            "optimizer": rule.model_copy(update={"lr": rule.lr * _FINE}),
            "init": run,
            "init_part": "all",
            "freeze_until": None,
            **_UNTRAINED,
        }
    )
    data = source.data.model_copy(update={"features": None})
    return source.model_copy(update={"name": name, "runs": run.parent, "train": train, "data": data})


def _derive(
    default: Experiment,
    section: S,
    args: list[str],
    call: _Call,
    description: str,
    own: dict[str, tuple[Any, Any]] | None = None,
) -> tuple[Experiment, S]:
    """Apply flags to the settings of the new run; return the settings and their `compress` section.

    Every setting is a flag, as for `two-stream train`. Flags of the `compress` section may omit the prefix `compress.`:
    `--amount 0.5` means `--compress.amount 0.5`. `own` contains the flags that only this method has, for `--help`.
    """
    prog, own = f"{call.prog} RUN", {**(own or {}), **_OWN}
    kind = type(section)
    if wants_help(args):
        hidden = dict.fromkeys((*_GIVEN, "compress"), (Annotated[Any, tyro.conf.Suppress], None))
        shown: dict[str, Any] = {"__base__": (Experiment, kind), **own, **hidden}
        flags = create_model("Flags", **shown)
        values = {**dict(default), **dict(section)}
        examples = EXAMPLES[call.prog.rpartition(" ")[2]]
        run = "TEACHER …" if kind is Distill else "RUN"
        page = Page(f"{call.prog} {run}", description, examples, [(run, "run folder")])
        show_help(page, flags, flags.model_construct(**values), args)
    known = [name.replace("_", "-") for name in (*kind.model_fields, *own, *Experiment.model_fields)]
    for arg in args:
        name = arg.partition("=")[0].removeprefix("--").replace("_", "-")
        if arg.startswith("--") and "." not in name and name.removeprefix("no-") not in known:
            raise SettingsError(
                f"{prog}: unknown flag --{name}{nearest(f'--{name}', [f'--{one}' for one in known])}"
            )
    whole = default.model_copy(update={"compress": section})
    experiment = parse_over(whole, [_full_name(arg, kind) for arg in args], prog, description)
    options = experiment.compress
    if not isinstance(options, kind):
        expected = kind.model_fields["kind"].default
        raise SettingsError(f"{call.prog}: --compress.kind is {options.kind}: expected {expected}")
    return experiment, options


def _full_name(arg: str, section: type[BaseModel]) -> str:
    """Return a flag with the prefix `compress.` if it belongs to that section."""
    name, equals, value = arg.partition("=")
    bare = name[2:].replace("-", "_")
    if not name.startswith("--") or bare in Experiment.model_fields:
        return arg
    if bare in section.model_fields:
        return f"--compress.{name[2:]}{equals}{value}"
    if bare.removeprefix("no_") in section.model_fields:
        return f"--compress.{name[2:].replace('_', '-')}{equals}{value}"
    return arg


def _train_and_report(experiment: Experiment, source: Path, call: _Call) -> int:
    """Train the run, score it and its source, and write and print the report; return the exit code."""
    from two_stream import compression  # noqa: F401 - registers the training extensions
    from two_stream.training.train import train

    result = train(experiment, resume=call.resume, overwrite=call.overwrite)
    if result.interrupted is not None:
        note(f"saved after epoch {result.epochs}; continue with: {call.command} --resume")
        return 128 + result.interrupted
    if distributed.is_main():
        _report(source, result.run.root, call)
    return 0


def _report(source: Path, made: Path, call: _Call) -> None:
    """Score a run and its source, and write and print the report."""
    from two_stream.commands.compress.comparison import layer_changes, show_compression, write_compression
    from two_stream.evaluation.runs.run import load_run

    before, model = load_run(source).model, load_run(made).model
    layers = layer_changes(before, model) if before.options == model.options else []
    device = "cpu" if model.cpu_only else None  # measure both networks on a device that can run both
    report = write_compression(
        source, made, part=call.part, device=device, layers=layers, command=call.command
    )
    show_compression(report, made)


@dataclass(frozen=True)
class _SensitivityFlags:
    what: Literal["weights", "channels"] = "weights"
    """what to prune: single weights or complete channels"""
    levels: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    """fractions of each layer to prune"""
    importance: Literal["l1", "l2", "bn", "random"] = "l1"
    """criterion that ranks channels; for --what channels"""
    layers: str = ""
    """regular expression of layer names; empty: every convolution and linear layer except the classifier"""
    part: Literal["val", "train", "test"] = "val"
    """part that is scored; val: the holdout. Levels chosen on the test part make test scores too optimistic"""
    clips: int | None = None
    """number of videos to score, drawn once at random; if omitted, all videos of the part"""
    seed: int = 0
    """random seed for drawing the videos of --clips"""
    parameters: float | None = None
    """budget: largest remaining fraction of the parameters"""
    macs: float | None = None
    """budget: largest remaining fraction of the multiply-adds; for --what channels"""
    latency: float | None = None
    """budget: largest remaining fraction of the latency on this machine's CPU; for --what channels"""
    threads: int = 0
    """number of CPU threads; 0: torch's default"""
    out: Path | None = None
    """folder to write; if omitted, `RUN/sensitivity`"""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """print JSON instead of a table"""


def _sensitivity(args: list[str]) -> int:
    prog = f"{PROG} sensitivity"
    name, rest = split_positional(args, prog, "the run folder", "demo/runs/rgb --parameters 0.5")
    flags = parse(
        _SensitivityFlags, rest, f"{prog} RUN", _SENSITIVITY, EXAMPLES["sensitivity"], [("RUN", "run folder")]
    )
    budget = _budget(flags, prog)
    _check_sensitivity(flags, prog)
    from two_stream.compression.channels import check_narrowable
    from two_stream.compression.sensitivity import choose_levels, fixed_clips, measure_sensitivity
    from two_stream.runtime.device import set_threads

    set_threads(flags.threads)
    run = _load_prunable(Path(name))
    options = Prune(what=flags.what, importance=flags.importance, layers=flags.layers)
    if flags.what == "channels":
        check_narrowable(run.model, options)
    found = measure_sensitivity(
        run,
        options,
        flags.levels,
        fixed_clips(run, flags.part, flags.clips, flags.seed),
        part=flags.part,
        seed=flags.seed,
        latency=flags.latency is not None,
    )
    folder = flags.out or run.paths.own / "sensitivity"
    _write_sensitivity(found, folder)
    choice = None if budget is None else choose_levels(run.model, found, options, *budget)
    _show_sensitivity(found, choice, folder, name, as_json=flags.as_json)
    return 0


def _budget(flags: _SensitivityFlags, prog: str) -> tuple[Any, float] | None:
    """Return which cost the budget limits, and the fraction to keep; None without a budget."""
    given = [(key, getattr(flags, key)) for key in ("parameters", "macs", "latency")]
    asked = [(key, share) for key, share in given if share is not None]
    if len(asked) > 1:
        raise SettingsError(
            f"{prog}: --{asked[0][0]} and --{asked[1][0]} cannot be combined; use only one budget"
        )
    if not asked:
        return None
    key, share = asked[0]
    if not 0 < share < 1:
        raise SettingsError(f"{prog}: --{key} is {share:g}: expected a fraction above 0 and below 1")
    if flags.what == "weights" and key != "parameters":
        raise SettingsError(
            f"{prog}: --{key} requires --what channels, because weights that are 0 take as much computation as other "
            "weights"
        )
    return key, share


def _check_sensitivity(flags: _SensitivityFlags, prog: str) -> None:
    """Reject flags that contradict each other or are out of range."""
    most = 1.0 if flags.what == "weights" else 0.99
    if not flags.levels or any(not 0 < level <= most for level in flags.levels):
        raise SettingsError(
            f"{prog}: --levels {' '.join(map(str, flags.levels))}: expected fractions above 0 and up to {most:g}"
        )
    if list(flags.levels) != sorted(set(flags.levels)):
        raise SettingsError(
            f"{prog}: --levels {' '.join(map(str, flags.levels))}: expected increasing fractions"
        )
    if flags.clips is not None and flags.clips < 1:
        raise SettingsError(f"{prog}: --clips is {flags.clips}: expected 1 or more")
    if flags.what == "weights" and flags.importance != "l1":
        raise SettingsError(
            f"{prog}: --importance requires --what channels; single weights are always ranked by magnitude"
        )


def _write_sensitivity(found: Sensitivity, folder: Path) -> None:
    from two_stream.compression.sensitivity import draw_sensitivity

    stem = folder / found.what
    columns = ("layer", "level", "top1", "top5", "loss", "parameters", "multiply_adds", "latency_ms", "map")
    rows = [[getattr(point, key) for key in columns] for point in (found.base, *found.points)]
    write_text(stem.with_suffix(".csv"), csv_text(columns, rows))
    write_json(stem.with_suffix(".json"), asdict(found))
    for suffix in (".png", ".svg"):
        draw_sensitivity(found, stem.with_suffix(suffix))


def _show_sensitivity(
    found: Sensitivity, choice: LevelChoice | None, folder: Path, run: str, *, as_json: bool
) -> None:
    file = folder / f"levels_{found.what}.json"
    if choice is not None:
        write_json(file, {"what": found.what, "run": found.run, **asdict(choice)})
    if as_json:
        print_json({"sensitivity": asdict(found), "choice": None if choice is None else asdict(choice)})
        return
    levels = sorted({point.level for point in found.points})
    columns = ["layer", *(f"{100 * level:g} %" for level in levels), "loss"]
    rows = []
    for layer, points in found.by_robustness:
        cells = {point.level: signed_number(found.change_of(point)[0]) for point in points}
        loss = max(found.change_of(point)[1] for point in points)
        rows.append([layer, *(cells.get(level, "–") for level in levels), signed_number(loss, 3)])
    print_table(f"change of {found.metric} in points after pruning {found.what} of one layer", columns, rows)
    say(
        "loss: largest change of the loss at any level; the layers are sorted by it, with the smallest change first"
    )
    say(found.reference)
    if found.fixed:
        say(
            f"{plural(len(found.fixed), 'layer', 'keeps', 'keep')} all channels, because the last feature map keeps "
            "its width: "
            f"{found.fixed[0]}, …"
        )
    if found.shared:
        one, other = next(iter(found.shared.items()))
        sharing = plural(len(found.shared), "layer", "shares", "share")
        say(f"{sharing} the channels and the results of a measured layer, for example {one} those of {other}")
    say(f"table and figure: {folder / found.what}.csv, .json, .png, .svg")
    if choice is not None:
        say(
            f"pruning {plural(len(choice.levels), 'layer')} leaves {per_cent(choice.reached)} of the {choice.measure} "
            f"(budget {100 * choice.budget:g} %); levels: {file}"
        )
        what = "" if found.what == "weights" else " --what channels"
        say(f"next: two-stream compress prune {run}{what} --levels {file}")


_METHODS = {
    "prune": (_prune, "remove the least important weights or channels, and train further"),
    "sensitivity": (
        _sensitivity,
        "measure how pruning each layer changes the loss, and choose levels for a budget",
    ),
    "quantize": (_quantize, "compute in int8, after calibration or quantization-aware training"),
    "distill": (_distill, "train a network on the outputs of one or several others"),
}
