"""`two-stream features RUN|MODEL|FILE.yaml`: stores the features of a frozen backbone, for studies of heads."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from two_stream.commands.flags import parse_over, split_positional
from two_stream.commands.networks import run_settings
from two_stream.config.base import Options, PositiveInt
from two_stream.config.load import load_experiment
from two_stream.config.schema import DataOptions, EvaluateOptions, Experiment
from two_stream.errors import SettingsError
from two_stream.runtime.console import note, say
from two_stream.runtime.text import byte_size, duration, plural

if TYPE_CHECKING:
    from two_stream.evaluation.features.cache import FeatureFacts
    from two_stream.recognizer import Recognizer

SUMMARY = "Store the features of a frozen backbone for all videos and views, so that heads train without the backbone."
EXAMPLES = ("features demo/runs/rgb", "features demo/runs/rgb --train-views 4 --out features/rgb")
PROG = "two-stream features SOURCE"
DESCRIPTION = f"{SUMMARY} To train a run on the features, set its `data.features` to the folder."
_OWN = (
    (
        "SOURCE",
        "run folder, experiment file (its network before training), or name of a model (see `two-stream models`)",
    ),
)


class _FeatureFlags(Options):
    out: Path | None = None
    """folder to write; if omitted, `features/<name of the source>-<data set>-split<n>`"""
    train_views: PositiveInt = 1
    """number of augmented clips stored per training video; epoch e uses clip e modulo this number"""
    maps: bool = False
    """store feature maps, which the non-local head needs, instead of temporal tokens, which are much smaller"""
    parts: tuple[Literal["train", "test"], ...] = ("train", "test")
    """train: the official training list, including the holdout; test: the official test list"""
    overwrite: bool = False
    """replace existing features"""
    checkpoint: Literal["best", "last"] = "best"
    """checkpoint of a run folder: the selected epoch, or the last one"""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """seed of the augmentation, and of a backbone without pretrained weights"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """autocast type for training clips (`train.precision`); for test views see `--evaluate.precision`"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    data: DataOptions = DataOptions()
    """data set, and how clips are read and augmented; stored clips are augmented only once"""
    evaluate: EvaluateOptions = EvaluateOptions()
    """views of the test part"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    name, rest = split_positional(args, "two-stream features", "the source", "demo/runs/rgb")
    source = _experiment(name) if name else Experiment()
    default = _FeatureFlags(
        seed=source.seed,
        precision=source.train.precision,
        device=source.device,
        data=source.data.model_copy(update={"features": None}),
        evaluate=source.evaluate,
    )
    flags = parse_over(default, rest, PROG, DESCRIPTION, EXAMPLES, _OWN)
    from two_stream.evaluation.features.extract_features import write_features
    from two_stream.runtime.device import set_deterministic, set_threads

    changes: dict[str, Any] = {key: getattr(flags, key) for key in ("seed", "device", "evaluate")}
    changes["data"] = flags.data.model_copy(update={"features": None})
    changes["train"] = source.train.model_copy(update={"precision": flags.precision})
    experiment = source.model_copy(update=changes)
    set_threads(experiment.threads)
    model = _model(name, experiment, flags)
    if model.cpu_only:
        raise SettingsError(
            f"{name}: an int8 run has no features to store; use the run from which it was quantized"
        )
    set_deterministic(experiment.deterministic, model.device)
    out = flags.out or _usual_folder(name, experiment)
    facts = write_features(
        model,
        experiment,
        out,
        train_views=flags.train_views,
        maps=flags.maps,
        parts=flags.parts,
        overwrite=flags.overwrite,
    )
    _print_usage(name, out, facts)
    return 0


def _experiment(name: str) -> Experiment:
    """Return the settings of a run, of an experiment file, or for a named model."""
    path = Path(name)
    if path.is_dir():
        return run_settings(path)
    if path.suffix.lower() in (".yaml", ".yml"):
        return load_experiment(path)
    if path.exists():
        raise SettingsError(
            f"{PROG}: {name} is a file; expected a run folder, an experiment file (.yaml) or the name of a model"
        )
    from two_stream import zoo

    return Experiment(model=zoo.resolve(name))


def _model(name: str, experiment: Experiment, flags: _FeatureFlags) -> Recognizer:
    from two_stream.runtime.device import pick_device

    if Path(name).is_dir():
        from two_stream.evaluation.runs.run import load_run

        return load_run(name, flags.checkpoint, flags.device).model
    from two_stream.training.train import start_model

    model = start_model(experiment)
    if experiment.train.init is None and not getattr(experiment.model.backbone, "pretrained", False):
        note("the backbone has no pretrained weights: it is initialised at random from the seed")
    return model.to(pick_device(flags.device))


def _usual_folder(name: str, experiment: Experiment) -> Path:
    data = experiment.data
    dataset = Path(data.dataset)
    label = dataset.parent.name if dataset.suffix else dataset.name
    return Path("features") / f"{Path(name).stem or 'model'}-{label}-split{data.split}"


def _print_usage(name: str, out: Path, facts: FeatureFacts) -> None:
    videos = sum(len(part.videos) for part in facts.parts.values())
    views = sum(part.rows for part in facts.parts.values())
    size = sum(path.stat().st_size for path in out.iterdir())
    say(
        f"{out}: {plural(videos, 'video')}, {plural(views, 'view')}, {byte_size(size)}, {duration(facts.seconds)}"
    )
    start = f", init: {name}, init_part: backbone" if Path(name).is_dir() else ""
    say(f"to use the features, set data: {{features: {out}}}, train: {{freeze_until: backbone{start}}}")
    given = shlex.quote(str(out))
    flags = f"--data.features {given} --train.freeze-until backbone"
    if start:
        flags += f" --train.init {shlex.quote(name)} --train.init-part backbone"
    say(f"or as flags of `two-stream train`: {flags}")
