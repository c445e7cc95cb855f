"""`two-stream profile`: measures the cost of a model or run, and of its data loading."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from two_stream.commands.flags import parse
from two_stream.commands.output import print_table, write_or_print_json
from two_stream.config.load import load_experiment
from two_stream.errors import SettingsError
from two_stream.runtime.console import note, say
from two_stream.runtime.text import plural

if TYPE_CHECKING:
    import torch

    from two_stream.config.schema import Experiment
    from two_stream.profiling.costs import StageCost
    from two_stream.profiling.loading import LoadingCost
    from two_stream.profiling.timing import Speed
    from two_stream.recognizer import Recognizer

SUMMARY = "Measure the parameters, multiply-adds, speed and memory of a model, and its data loading."
EXAMPLES = ("profile demo/runs/rgb", "profile rgb_r2plus1d_32f_34 --batch-size 1 4 16 --json speed.json")
PROG = "two-stream profile"


@dataclass(frozen=True)
class _Flags:
    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN|MODEL")]]
    """name of a model (see `two-stream models`) or a run folder"""
    batch_size: tuple[int, ...] = (1,)
    """number of clips per batch; several values are measured one after another"""
    precision: tuple[Literal["fp32", "bf16", "fp16"], ...] = ()
    """autocast types to measure; if omitted, fp32, and bf16 if the device supports it natively"""
    training: bool = False
    """also measure training steps: forward, loss and backward"""
    data: str | None = None
    """also measure training and data loading: a data set (name or dataset.yaml), experiment file or run folder"""
    settings_root: Path = Path("settings")
    """folder of data sets that are given by name"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    threads: int = 0
    """number of CPU threads; 0: torch's default"""
    num_classes: int = 400
    """number of classes of a model given by its name"""
    seconds: float = 5.0
    """duration of each measurement in seconds"""
    channels_last: bool = True
    """use the memory format channels_last_3d, as runs do by default"""
    json: Path | None = None
    """JSON file to write; - prints the JSON instead of tables"""
    plot: tuple[Path, ...] = ()
    """figure to write: each stage's share of the time, multiply-adds and parameters; for several batch sizes, clips
    per second against batch size; if score files or runs follow, accuracy against multiply-adds"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    options = parse(_Flags, args, PROG, SUMMARY, EXAMPLES)
    if not options.batch_size or min(options.batch_size) < 1 or options.seconds <= 0:
        raise SettingsError(f"{PROG}: --batch-size must be 1 or more, and --seconds more than 0")
    if options.plot and options.plot[0].suffix.lower() not in (".png", ".svg", ".pdf"):
        raise SettingsError(
            f"{PROG}: --plot {options.plot[0]}: expected the first file to end in .png, .svg or .pdf"
        )
    from two_stream.profiling.costs import stage_costs
    from two_stream.runtime.device import pick_device, set_threads

    device = pick_device(options.device)
    set_threads(options.threads)
    experiment = _experiment(options) if options.data is not None else None
    points = _accuracies(options.plot[1:])
    model = _model(options)
    if model.cpu_only:
        options, device = _as_it_is(options), model.device
    if experiment is not None:  # report a missing data set before anything is measured
        from two_stream.profiling.loading import training_part

        training_part(experiment, model.spec)
    if options.channels_last:
        model.channels_last()
    costs = stage_costs(model)
    speeds = _measure(options, model, device)
    loading, sentence = None, ""
    if experiment is not None:
        from two_stream.profiling.loading import loading_verdict, measure_loading

        loading = measure_loading(experiment, model.spec, device, seconds=options.seconds)
        steps = [speed for speed in speeds if speed.work == "training"]
        own = [speed for speed in steps if speed.precision == experiment.train.precision]
        best = max(own or steps, key=lambda speed: speed.clips_per_second)
        sentence = loading_verdict(loading, best.clips_per_second, f"training, {best.precision}")
    found = _facts(options, model, costs, speeds)
    if loading is not None:
        found["data"] = {**loading.as_dict(), "verdict": sentence}
    if points:
        found["accuracies"] = [asdict(point) for point in points]
    if str(options.json) != "-":
        _print_speeds(options, found, costs, speeds)
        if loading is not None:
            _print_loading(loading, sentence)
    if options.json is not None and write_or_print_json(options.json, found):
        note(f"wrote {options.json}")
    if options.plot:
        _plot(options, points, costs, speeds)
    return 0


def _measure(options: _Flags, model: Recognizer, device: torch.device) -> list[Speed]:
    from two_stream.profiling.peak import gemm_rate
    from two_stream.profiling.timing import Work, measure_speed
    from two_stream.runtime.device import native_bf16

    precisions = options.precision or (("fp32", "bf16") if native_bf16(device) else ("fp32",))
    works: tuple[Work, ...] = ("forward", "training") if options.training or options.data else ("forward",)
    turns = len(precisions) * len(options.batch_size) * options.seconds * (1.5 + (len(works) - 1))
    note(f"measuring {options.model} on {device} for about {turns + 2 * len(precisions):.0f} s")
    speeds = []
    for precision in precisions:
        peak = gemm_rate(device, precision)
        speeds += [
            measure_speed(
                model,
                batch_size=size,
                device=device,
                precision=precision,
                seconds=options.seconds,
                work=work,
                peak_flops=peak,
            )
            for work in works
            for size in options.batch_size
        ]
    return speeds


def _as_it_is(options: _Flags) -> _Flags:
    """Return the options for an int8 network, of which only the forward pass on the CPU can be measured."""
    asked = [f"--precision {name}" for name in options.precision or () if name != "fp32"]
    asked += ["--training"] * options.training + ["--data"] * (options.data is not None)
    if asked:
        raise SettingsError(
            f"{PROG}: {options.model} is an int8 network, for which only the forward pass on the CPU can be measured; "
            f"omit {asked[0]}"
        )
    return replace(options, precision=("fp32",))


def _facts(options: _Flags, model: Recognizer, costs: list[StageCost], speeds: list[Speed]) -> dict[str, Any]:
    from two_stream.profiling.costs import CONVENTION, FVCORE, fvcore_operations
    from two_stream.runtime.provenance import environment

    first = next(speed for speed in speeds if speed.work == "forward")
    for cost in costs:
        cost.milliseconds = first.stages.get(cost.name)
    return {
        "model": options.model,
        "parameters": sum(cost.parameters for cost in costs),
        "multiply_adds": sum(cost.multiply_adds for cost in costs),
        "multiply_adds_convention": CONVENTION,
        "fvcore_operations": fvcore_operations(model),
        "fvcore_convention": FVCORE,
        "channels_last": options.channels_last,
        "speed": first.as_dict(),
        "speeds": [speed.as_dict() for speed in speeds],
        "stages": [asdict(cost) for cost in costs],
        "environment": environment(),
    }


def _print_speeds(
    options: _Flags, found: dict[str, Any], costs: list[StageCost], speeds: list[Speed]
) -> None:
    from two_stream.commands.models import print_stages
    from two_stream.profiling.costs import StageCost

    first = next(speed for speed in speeds if speed.work == "forward")
    say(
        f"{options.model}: {found['parameters'] / 1e6:.2f} M parameters, "
        f"{found['multiply_adds'] / 1e9:.2f} G multiply-adds per clip"
    )
    say(f"  {found['multiply_adds_convention']}")
    say(f"  {found['fvcore_operations'] / 1e9:.2f} G {found['fvcore_convention']}")
    rows = [
        (
            speed.work,
            speed.precision,
            speed.batch_size,
            f"{speed.milliseconds:.1f}",
            f"{speed.clips_per_second:.2f}",
            f"{speed.peak_memory / 2**30:.2f}",
            f"{speed.memory_added / 2**30:.2f}",
            f"{speed.flops_per_second / 1e9:.0f}",
            f"{100 * (speed.share_of_peak or 0):.0f} %",
        )
        for speed in speeds
    ]
    columns = "pass,precision,batch,ms,clips/s,peak GiB,added GiB,GFLOP/s,of peak"
    say(f"  {first.device}")
    print_table("", columns.split(","), rows)
    peaks = {speed.precision: speed.peak_flops for speed in speeds}
    say(
        "  peak: matrix products on this machine, "
        + ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in peaks.items())
        + f"; memory: {first.memory_kind}; a training step counts as three forward passes"
    )
    shown = [*costs, StageCost("other", (), 0, 0, first.stages["other"])]
    print_stages(f"stages: forward, {first.precision}, batch {first.batch_size}", shown)


def _print_loading(loading: LoadingCost, sentence: str) -> None:
    rows = [
        ("read, decode, resize", f"{loading.read:.2f}"),
        ("cut, mirror, lay out", f"{loading.transform:.2f}"),
        ("join to a batch", f"{loading.collate:.2f}"),
        ("copy to the device", f"{loading.copy:.2f}"),
    ]
    say(
        f"data loading: {loading.dataset}, {loading.modality} from {loading.source}, {plural(loading.clips, 'clip')}"
    )
    print_table("", ("part", "ms per clip"), rows)
    say(
        f"  one worker: {1e3 / max(loading.worker_milliseconds, 1e-9):.1f} clips/s; "
        f"with `data.workers` {loading.workers}: {loading.clips_per_second:.1f} clips/s"
    )
    say(f"  {sentence}")


def _plot(options: _Flags, points: list[Any], costs: list[StageCost], speeds: list[Speed]) -> None:
    from two_stream.evaluation.pictures import cost_figure

    target = options.plot[0]
    if points:
        cost_figure.accuracy_against_cost(points, target)
    elif len(set(options.batch_size)) == 1:
        first = next(speed for speed in speeds if speed.work == "forward")
        time = f"{first.milliseconds:.1f} ms per batch"
        total, size = sum(cost.multiply_adds for cost in costs), sum(cost.parameters for cost in costs)
        stages = {
            cost.name: {
                time: first.stages.get(cost.name, 0.0),
                f"{total / 1e9:.2f} G multiply-adds": float(cost.multiply_adds),
                f"{size / 1e6:.2f} M parameters": float(cost.parameters),
            }
            for cost in costs
        }
        stages["other"] = {time: first.stages["other"]}
        title = f"{options.model}: {first.precision}, batch size {first.batch_size}, {first.device}"
        cost_figure.stage_shares(title, stages, target)
    else:
        cost_figure.throughput(options.model, [speed.as_dict() for speed in speeds], target)
    note(f"wrote {target}")


def _accuracies(files: tuple[Path, ...]) -> list[Any]:
    """Read the score files; called before anything is measured, so that wrong files are reported at once."""
    if not files:
        return []
    from two_stream.evaluation.pictures.cost_figure import point_of
    from two_stream.evaluation.scores.files import find_scores, read_scores
    from two_stream.pretrained import read_model
    from two_stream.profiling.costs import multiply_adds

    found = []
    for file in files:
        scores = read_scores(find_scores(file))
        run = Path(str(scores.meta.get("run", "")))
        if not (run / "experiment.yaml").is_file():
            raise SettingsError(
                f"{scores.meta['file']}: its run folder {run} is missing, so the cost of its model is unknown; "
                "restore the folder, or omit this file"
            )
        model = read_model(run / str(scores.meta.get("checkpoint") or "best"))[0]
        found.append(point_of(scores, multiply_adds(model)))
    return found


def _experiment(options: _Flags) -> Experiment:
    """Return the settings whose data loading is measured; for a data set, with the largest batch size of the flags."""
    from two_stream.config.schema import DataOptions, Experiment

    path = Path(options.data or "")
    if path.is_dir() and (path / "experiment.yaml").is_file():
        return load_experiment(path / "experiment.yaml")
    if path.suffix in (".yaml", ".yml") and path.name != "dataset.yaml":
        return load_experiment(path)
    data = DataOptions(dataset=options.data or "", settings_root=options.settings_root)
    train = Experiment().train.model_copy(update={"batch_size": max(options.batch_size)})
    return Experiment(data=data).model_copy(update={"train": train})


def _model(options: _Flags) -> Recognizer:
    """Return the model of a run folder, or a named model with random weights."""
    path = Path(options.model)
    if path.is_dir():
        from two_stream.pretrained import read_model

        return read_model(path)[0]
    from two_stream.recognizer import create_model

    return create_model(options.model, options.num_classes)
