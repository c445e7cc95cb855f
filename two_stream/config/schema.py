"""Every knob of an experiment, typed, with its help under it. YAML files and command-line flags share it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from two_stream.config.base import Fraction, NonNegative, Options, Positive, PositiveInt
from two_stream.config.model import ModelOptions
from two_stream.config.optimization import Cosine, OptimizerOptions, ScheduleOptions, Sgd

Crops = Literal["center", "three", "ten"]


class AugmentOptions(Options):
    """Random changes of a training clip; every frame of a clip gets the same ones."""

    crop: Literal["multiscale", "random", "center"] = "multiscale"
    """multiscale: corner crops of several scales (the paper's); random: random place, full scale"""
    scales: Annotated[tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...], Field(min_length=1)] = (
        1.0,
        0.875,
        0.75,
        0.66,
    )
    """side of a multi-scale crop relative to the short side of the resized frame"""
    flip: Fraction = 0.5
    """probability of a horizontal flip"""
    protocol: Literal["standard", "paper"] = "standard"
    """paper: published crop offsets (some boxes truncated) and flow x kept as it is when mirrored"""


class DataOptions(Options):
    """Where the videos are and how they are read."""

    dataset: str = "demo"
    """name of a folder under `settings_root`, or path of a `dataset.yaml`"""
    settings_root: Path = Path("settings")
    """folder that holds `<dataset>/dataset.yaml` and the split lists"""
    split: PositiveInt = 1
    """number of the official split"""
    source: Literal["frames", "videos"] = "frames"
    """frames: folders written by `two-stream extract`; videos: the files themselves, flow computed on the fly"""
    backend: Literal["pyav", "opencv", "torchcodec"] = "pyav"
    """video decoder when `source` is videos"""
    flow: Literal["tvl1", "dis", "farneback"] = "dis"
    """flow algorithm when `source` is videos"""
    sampling: Literal["standard", "paper"] = "standard"
    """paper: the published frame choice, which never reads the last frame"""
    on_error: Literal["raise", "skip"] = "raise"
    """skip: leave a broken clip out of its batch and count it; raise: stop and name it"""
    holdout: Annotated[float, Field(gt=0.0, lt=0.9)] = 0.2
    """part of the training list kept for validation, whole source videos at a time"""
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    """loader processes; 0 reads in the main process"""
    augment: AugmentOptions = AugmentOptions()
    """training-time augmentation"""


class TrainOptions(Options):
    """How a stream is trained."""

    epochs: PositiveInt = 30
    """passes over the training part"""
    batch_size: PositiveInt = 8
    """clips per forward pass"""
    accumulate: PositiveInt = 1
    """forward passes per optimizer step"""
    last_group: Literal["step", "drop"] = "step"
    """what becomes of the last forward passes of an epoch, too few for a whole step; drop: nothing, as published"""
    optimizer: OptimizerOptions = Sgd()
    """update rule"""
    schedule: ScheduleOptions = Cosine()
    """learning rate over time"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """autocast type of the forward pass; fp16 scales the loss"""
    clip_grad: NonNegative | None = None
    """largest norm of the gradient; none leaves it"""
    label_smoothing: Fraction = 0.0
    """share of the target spread over all classes"""
    mixup: NonNegative = 0.0
    """alpha of mixup's Beta distribution; 0 is off"""
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """decay of an exponential moving average of the weights, which is then evaluated and kept; 0 is off"""
    gradient_checkpointing: bool = False
    """recompute the activations of each stage in the backward pass: less memory, about a third more time"""
    freeze_until: str | None = None
    """name of the backbone stage up to which (inclusive) weights stay as they are"""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """factor on the learning rate per stage below the classifier"""
    init: Path | None = None
    """checkpoint to start from: a run folder, ours or a foreign file"""
    cross_modality: bool = False
    """`init` is an RGB checkpoint for a flow network: the first convolution is averaged over RGB and repeated"""
    inflate: bool = False
    """`init` holds 2D weights: each kernel is repeated over time and divided by its length"""
    new_classifier: bool = False
    """drop the classifier of `init` where its classes differ"""
    selection: Literal["holdout", "paper"] = "holdout"
    """holdout: pick the best epoch on a part of the training list; paper: on the test list, as published"""
    early_stopping: PositiveInt | None = None
    """epochs without a better validation loss after which training ends"""
    checkpoint_every: PositiveInt | None = None
    """optimizer steps between checkpoints inside an epoch; none writes one per epoch"""
    log_images: bool = True
    """write clip grids and confusion figures to TensorBoard"""

    @model_validator(mode="after")
    def _consistent(self) -> TrainOptions:
        for name in ("cross_modality", "new_classifier", "inflate"):
            if getattr(self, name) and self.init is None:
                raise ValueError(f"{name} needs `init`, the checkpoint to start from")
        return self


class EvaluateOptions(Options):
    """How videos are scored."""

    views: Literal["single", "multi", "uniform", "sliding"] = "multi"
    """single: one centred clip; multi: non-overlapping, centred; uniform: `num_clips` evenly spread; sliding: `step`"""
    num_clips: PositiveInt = 10
    """clips per video for uniform views"""
    step: PositiveInt | None = None
    """frames between the starts of sliding clips; none is half a clip"""
    crops: Crops = "ten"
    """center: 1; three: along the longer side; ten: centre and corners, each mirrored"""
    aggregate: Literal["logits", "probabilities"] = "logits"
    """what is averaged over the views"""
    batch_views: PositiveInt = 16
    """views per forward pass"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """autocast type of the forward pass"""
    keep_views: bool = False
    """store the logits of every view too"""


class Experiment(Options):
    """One stream of one split: model, data, training and evaluation."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[\w.+-]+$")] = "experiment"
    """name of the run folder"""
    runs: Path = Path("runs")
    """folder that holds the run folders"""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """seed of weights, order and augmentation"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of torch; 0 leaves torch's choice"""
    deterministic: bool = True
    """on a GPU: ask torch for deterministic algorithms where it has them (the CPU's are anyway)"""
    channels_last: bool = True
    """lay weights and clips out channel by channel: faster convolutions, equal numbers up to rounding"""
    model: ModelOptions = ModelOptions()
    """backbone, reduction, head and input"""
    data: DataOptions = DataOptions()
    """data set and reading"""
    train: TrainOptions = TrainOptions()
    """training"""
    evaluate: EvaluateOptions = EvaluateOptions()
    """evaluation"""


__all__ = [
    "AugmentOptions",
    "DataOptions",
    "EvaluateOptions",
    "Experiment",
    "Fraction",
    "ModelOptions",
    "Positive",
    "TrainOptions",
]
