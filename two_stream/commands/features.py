"""`two-stream features RUN|MODEL|FILE.yaml`: stores the features of a frozen backbone, for studies of heads.

With `--videos DIR --npy OUT`, the features of any videos are written as `.npy` files.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from two_stream.commands.flags import parse, parse_over, split_positional
from two_stream.commands.networks import run_settings
from two_stream.config.base import Options, PositiveInt
from two_stream.config.load import load_experiment, validate_settings
from two_stream.config.schema import DataOptions, EvaluateOptions, Experiment
from two_stream.errors import SettingsError
from two_stream.runtime.console import note, say
from two_stream.runtime.text import byte_size, duration, plural

if TYPE_CHECKING:
    from two_stream.evaluation.features.cache import FeatureFacts
    from two_stream.evaluation.scoring.video import VideoInput
    from two_stream.recognizer import Recognizer

SUMMARY = "Store the features of a frozen backbone for all videos and views, so that heads train without the backbone."
EXAMPLES = (
    "features demo/runs/rgb",
    "features demo/runs/rgb --train-views 4 --out features/rgb",
    "features demo/runs/rgb --videos videos/ --npy features/videos --step 16",
)
PROG = "two-stream features SOURCE"
DESCRIPTION = (
    f"{SUMMARY} To train a run on the features, set its `data.features` to the folder. With --videos DIR --npy OUT, "
    "the features of any videos are written as .npy files (`features SOURCE --videos DIR --help`)."
)
_NPY = (
    "Write the features of videos and frame folders: per video, one .npy file (windows × D) and one JSON file with the "
    "times of the windows. Finished videos are skipped. With torchrun, several processes share the videos."
)
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


@dataclass(frozen=True)
class _VideoFlags:
    videos: Path
    """folder that is searched for video files and frame folders, or a single one"""
    npy: Path
    """folder to write; the names are the paths below --videos"""
    views: Literal["sliding", "multi", "single"] = "sliding"
    """windows of a video: overlapping, adjacent, or one in the middle"""
    step: int | None = None
    """number of frames between the starts of sliding windows; if omitted, half a window"""
    maps: bool = False
    """write feature maps (windows × C × T × H × W) of the backbone instead of the vectors that the classifier gets"""
    layout: Literal["plain", "actionformer"] = "plain"
    """actionformer: windows on an exact grid, and `_annotations.json`, as ActionFormer and OpenTAD read them"""
    flow_algorithm: Literal["auto", "dis", "farneback", "tvl1"] = "auto"
    """as for `two-stream predict`"""
    short_side: int | None = None
    """as for `two-stream predict`"""
    backend: Literal["pyav", "opencv", "torchcodec"] | None = None
    """video decoder; if omitted, as for `two-stream predict`"""
    batch_views: int | None = None
    """number of windows per forward pass; if omitted, as in the run's settings"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """autocast type; if omitted, as in the run's settings"""
    workers: int | None = None
    """number of processes that decode videos; if omitted, as in the run's settings"""
    checkpoint: Literal["best", "last"] = "best"
    """checkpoint of a run folder: the selected epoch, or the last one"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code: 1 if a video could not be read."""
    name, rest = split_positional(args, "two-stream features", "the source", "demo/runs/rgb")
    if any(flag.partition("=")[0] in ("--videos", "--npy") for flag in rest):
        return _write_npy(name, rest)
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
    from two_stream.evaluation.runs.lookup import find_run
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
    _print_usage(str(find_run(name)), out, facts)
    return 0


def _write_npy(name: str, args: list[str]) -> int:
    """Write the features of videos that belong to no data set."""
    flags = parse(_VideoFlags, args, PROG, _NPY, EXAMPLES[-1:], _OWN)
    if flags.step is not None and flags.views != "sliding":
        raise SettingsError(
            f"--step applies only to sliding views, but --views is {flags.views}; omit one of them"
        )
    if flags.layout == "actionformer" and (flags.maps or flags.views != "sliding"):
        raise SettingsError(
            "--layout actionformer requires vectors of sliding windows; omit --maps and --views"
        )
    if flags.workers is not None and flags.workers < 0:
        raise SettingsError(f"--workers is {flags.workers}; expected 0 (decode in the main process) or more")
    if not flags.videos.exists():
        raise SettingsError(f"--videos {flags.videos}: no such file or folder")
    experiment = _experiment(name)
    changes = {
        key: getattr(flags, key) for key in ("precision", "batch_views") if getattr(flags, key) is not None
    }
    fixed = {"views": flags.views, "step": flags.step, "crops": "center", "aggregate": "logits"}
    options = validate_settings(EvaluateOptions, experiment.evaluate.model_dump() | fixed | changes, PROG)
    from two_stream.evaluation.features.video_features import VideoFeatures, write_video_features
    from two_stream.runtime.device import set_deterministic, set_threads
    from two_stream.video.sources import find_inputs

    sources = [(flags.videos.stem, flags.videos)]
    if flags.videos.is_dir():
        found, _ = find_inputs(flags.videos)
        sources = [(path.name if path == flags.videos else video, path) for video, path in found]
    set_threads(experiment.threads)
    model, reading = _npy_network(name, experiment, flags, [path for _, path in sources])
    set_deterministic(experiment.deterministic, model.device)
    features = VideoFeatures(model, name, options, reading, flags.maps, flags.layout == "actionformer")
    workers = experiment.data.workers if flags.workers is None else flags.workers
    failed = write_video_features(features, sources, flags.npy, workers)
    left_out = f"; {plural(len(failed), 'video')} could not be read" if failed else ""
    say(f"{flags.npy}: features of {plural(len(sources) - len(failed), 'video')}{left_out}")
    return 1 if failed else 0


def _npy_network(
    name: str, experiment: Experiment, flags: _VideoFlags, videos: Sequence[Path]
) -> tuple[Recognizer, VideoInput]:
    """Return the network, and how it reads videos."""
    from two_stream.evaluation.runs.lookup import find_run
    from two_stream.evaluation.runs.run import load_run, reading_of
    from two_stream.evaluation.scoring.video import VideoInput
    from two_stream.runtime.device import pick_device

    ways = {"flow": flags.flow_algorithm, "short_side": flags.short_side, "backend": flags.backend}
    if find_run(name).is_dir():
        run = load_run(name, flags.checkpoint, flags.device)
        return run.model, reading_of(run, **ways, videos=videos)  # type: ignore[arg-type]
    given = {key: value for key, value in ways.items() if value is not None}
    reading = VideoInput(
        **given,  # type: ignore[arg-type]
        stored_flow=flags.flow_algorithm == "auto",
        sampling=experiment.data.sampling,
        protocol=experiment.data.augment.protocol,
        whole_frame=experiment.data.augment.whole_frame,
    )
    init = experiment.train.init
    if init is not None or getattr(experiment.model.backbone, "pretrained", False):
        from two_stream.training.train import start_model

        model = start_model(experiment, classes=1)
        if init is None and not flags.maps and list(model.head.parameters()):
            raise SettingsError(
                f"{name}: the head {experiment.model.head.kind} has no trained weights, so the vectors would be "
                "random; use --maps, a head without weights such as average, or a run"
            )
    elif Path(name).is_file():
        raise SettingsError(
            f"{name}: `train.init` is not set, so the network has no trained weights; use a run"
        )
    else:
        from two_stream.pretrained.files.fetch import fetch_model
        from two_stream.pretrained.loading import load_weights
        from two_stream.recognizer import create_model

        known, file, classes = fetch_model(name)
        model = create_model(known, classes).channels_last()
        load_weights(model, file)
    return model.to(pick_device(flags.device)), reading


def _experiment(name: str) -> Experiment:
    """Return the settings of a run, of an experiment file, or for a named model."""
    from two_stream.evaluation.runs.lookup import find_run

    path = find_run(name)
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
    from two_stream.evaluation.runs.lookup import find_run
    from two_stream.runtime.device import pick_device

    if find_run(name).is_dir():
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
