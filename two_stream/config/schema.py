"""Every knob of an experiment, typed, with its help under it. YAML files and command-line flags share it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from two_stream.config.augment import AugmentOptions
from two_stream.config.base import Fraction, NonNegative, Options, Positive, PositiveInt
from two_stream.config.compress import CompressOptions, NoCompression
from two_stream.config.losses import AutoLoss, LossOptions
from two_stream.config.model import ModelOptions
from two_stream.config.optimization import Cosine, Logistic, OptimizerOptions, ScheduleOptions, Sgd

Crops = Literal["center", "three", "ten", "full"]


class DataOptions(Options):
    """Where the videos are and how they are read."""

    dataset: str = "demo"
    """name of a folder under `settings_root`, or path of a `dataset.yaml`"""
    settings_root: Path = Path("settings")
    """folder that holds `<dataset>/dataset.yaml` and the split lists"""
    split: PositiveInt = 1
    """number of the official split"""
    source: Literal["frames", "videos", "shards"] = "frames"
    """frames: folders written by `two-stream extract`; videos: the files themselves, flow computed on the fly; shards:
    what `two-stream pack` wrote"""
    shards: str | None = None
    """folder or URL (s3://…) of the shards when `source` is shards"""
    backend: Literal["pyav", "opencv", "torchcodec"] = "pyav"
    """video decoder when `source` is videos"""
    flow: Literal["tvl1", "dis", "farneback"] = "dis"
    """flow algorithm when `source` is videos"""
    sampling: Literal["standard", "segments", "paper", "efficient3d", "3dresnets", "co3d"] = "standard"
    """segments: frames from equal parts of the whole video (`model.input.segments`); paper: the published frame choice,
    which never reads the last frame; the others: that of the codebase"""
    frame_order: Literal["natural", "shuffled", "reversed"] = "natural"
    """order in which the frames of a clip enter the network, in training and evaluation; shuffled is drawn anew in each
    epoch of training and once per video in evaluation; a control that shows whether a network uses time"""
    features: Path | None = None
    """folder that `two-stream features` wrote: training and evaluation read the frozen backbone's features from it in
    place of clips; needs `train.freeze_until: backbone`"""
    balance: Literal["none", "classes"] = "none"
    """classes: an epoch draws videos with replacement, every class as often as any other"""
    on_error: Literal["raise", "skip"] = "raise"
    """skip: leave a broken clip out of its batch and count it; raise: stop and name it"""
    holdout: Annotated[float, Field(gt=0.0, lt=0.9)] = 0.2
    """part of the training list kept for validation, whole source videos at a time"""
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    """loader processes; 0 reads in the main process"""
    scaled_decoding: bool = False
    """let libjpeg shrink frames of twice the input size or more while it decodes them: a third less work, other pixels
    (about one grey level on average); not with `paper`"""
    resize_once: bool = False
    """bring a training crop from the stored frame to its size in one interpolation, not two: a little sharper and
    faster, other pixels (half a grey level on average); not with `paper`"""
    augment: AugmentOptions = AugmentOptions()
    """training-time augmentation"""

    @model_validator(mode="after")
    def _reading(self) -> DataOptions:
        if self.source == "shards" and self.shards is None:
            raise ValueError(
                "`source: shards` needs `shards`, the folder or URL that `two-stream pack` wrote"
            )
        paper = self.sampling == "paper" or self.augment.protocol == "paper"
        for name in ("scaled_decoding", "resize_once"):
            if getattr(self, name) and paper:
                raise ValueError(
                    f"`{name}` gives other pixels than the published code; leave it off under `paper`"
                )
        clip = self.augment.clip
        if clip != "random" and self.sampling == "paper":
            raise ValueError(
                f"`augment.clip: {clip}` is not known to `sampling: paper`, which draws it at random"
            )
        if clip == "begin" and self.sampling in ("co3d", "segments"):
            raise ValueError(
                f"`augment.clip: begin` is not known to `sampling: {self.sampling}`; expected random or center"
            )
        return self


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
    """update rule; logistic: the classifier's optimum in place of epochs, over a network that is frozen below it"""
    schedule: ScheduleOptions = Cosine()
    """learning rate over time"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """autocast type of the forward pass; fp16 scales the loss"""
    clip_grad: NonNegative | None = None
    """largest norm of the gradient; none leaves it"""
    loss: LossOptions = AutoLoss()
    """what is minimised"""
    label_smoothing: Fraction = 0.0
    """share of the target spread over all classes"""
    mixup: NonNegative = 0.0
    """alpha of mixup's Beta distribution (two whole clips blended); 0 is off"""
    cutmix: NonNegative = 0.0
    """alpha of CutMix's (a box of another clip put in, the same in every frame); 0 is off"""
    mix_prob: Fraction = 1.0
    """probability that a batch is mixed, where mixup or cutmix is on"""
    mix_switch: Fraction = 0.5
    """probability of cutmix where both are on"""
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """decay of an exponential moving average of the weights, which is then evaluated and kept; 0 is off"""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """several processes (torchrun): ddp keeps the whole network in each; fsdp divides weights, gradients and state"""
    sync_batchnorm: bool = False
    """several processes: BatchNorm over the clips of all of them; off: over each one's own"""
    compile: bool = False
    """compile the backbone stage by stage: faster steps after minutes of compiling, other last bits"""
    gradient_checkpointing: bool = False
    """recompute the activations of each stage in the backward pass: less memory, about a third more time"""
    freeze_until: str | None = None
    """name of the stage up to which (inclusive) weights and statistics stay as they are (`two-stream models NAME` lists
    them); backbone: head and classifier learn; head: the classifier alone (linear probe)"""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """factor on the learning rate per stage below the classifier"""
    stage_rates: dict[str, Positive] = Field(default_factory=dict)
    """factor on the learning rate by stage, for example `{stem: 0.1, classifier: 10}`; 1 where not named"""
    init: Path | None = None
    """checkpoint to start from: a run folder, ours or a foreign file"""
    init_part: Literal["all", "backbone"] = "all"
    """what is taken of `init`; backbone: head and classifier start anew, whatever `init` ends in"""
    init_averaged: bool = False
    """of a checkpoint that holds a moving average (EMA, SWA) beside the weights themselves, start from the average"""
    cross_modality: bool = False
    """`init` is an RGB checkpoint for a flow network: the first convolution is averaged over RGB and repeated"""
    inflate: bool = False
    """`init` holds 2D weights: each kernel is repeated over time and divided by its length"""
    new_classifier: bool = False
    """drop the classifier of `init` where its classes differ"""
    selection: Literal["holdout", "folds", "paper"] = "holdout"
    """holdout: pick the best epoch on a part of the training list; folds (optimizer logistic): learn from the whole
    training list, whose validation scores come from the folds that did not see the video; paper: pick on the test list,
    as published"""
    early_stopping: PositiveInt | None = None
    """epochs without a better validation loss after which training ends"""
    checkpoint_every: PositiveInt | None = None
    """optimizer steps between checkpoints inside an epoch; none writes one per epoch"""
    log_images: bool = True
    """write clip grids and confusion figures to TensorBoard"""

    @model_validator(mode="after")
    def _consistent(self) -> TrainOptions:
        for name in ("cross_modality", "new_classifier", "inflate", "init_averaged"):
            if getattr(self, name) and self.init is None:
                raise ValueError(f"{name} needs `init`, the checkpoint to start from")
        if self.selection == "folds" and not isinstance(self.optimizer, Logistic):
            raise ValueError(
                f"selection folds is the cross-validation of `optimizer: {{kind: logistic}}`, and the optimizer is "
                f"{self.optimizer.kind}; expected holdout or paper"
            )
        if self.init_part != "all" and self.init is None:
            raise ValueError("init_part needs `init`, the checkpoint to start from")
        if self.stage_rates and self.layer_decay != 1.0:
            raise ValueError(
                f"layer_decay {self.layer_decay:g} and stage_rates both set the rate per stage; keep one"
            )
        if self.strategy == "fsdp" and self.ema:
            raise ValueError("ema needs strategy ddp: the averaged weights are not divided")
        if self.strategy == "fsdp" and self.precision == "fp16":
            raise ValueError("strategy fsdp takes precision fp32 or bf16: fp16's loss scale is not divided")
        if isinstance(self.optimizer, Logistic):
            plain = TrainOptions()
            for name in ("loss", "label_smoothing", "mixup", "cutmix", "ema"):
                if getattr(self, name) != getattr(plain, name):
                    raise ValueError(
                        f"{name} changes training steps, and `optimizer: {{kind: logistic}}` has none; leave one out"
                    )
        return self


class EvaluateOptions(Options):
    """How videos are scored."""

    views: Literal["single", "multi", "uniform", "sliding", "twice"] = "multi"
    """single: one centred clip; multi: non-overlapping, centred; uniform: `num_clips` evenly spread; sliding: `step`;
    twice (segments only): a clip of the middle of every segment, and one of its first frames"""
    num_clips: PositiveInt = 10
    """clips per video for uniform views"""
    step: PositiveInt | None = None
    """frames between the starts of sliding clips; none is half a clip"""
    crops: Crops = "ten"
    """center: 1 (after `augment.crop: full` the whole frame); three: along the longer side; ten: centre and corners,
    each mirrored; full: the whole frame brought to the network's size, and its mirror"""
    aggregate: Literal["logits", "probabilities"] = "logits"
    """what is averaged over the views"""
    batch_views: PositiveInt | None = None
    """views per forward pass; none: 16 on a GPU, on a CPU the few whose values stay close to it (2 of 64 × 112²)"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """autocast type of the forward pass; auto: bf16 on a GPU that computes it by itself, and on a CPU where a
    measurement (once, kept in the cache folder) found it at least 1.2 times as fast as fp32; fp32 elsewhere, and where
    frame choice, flips or selection are `paper`"""
    fold: bool = True
    """join BatchNorm and the convolution before it: faster, logits equal up to rounding; never done for `paper`"""
    compile: bool = False
    """torch.compile (with CUDA graphs on a GPU): faster batches after up to a minute of compiling"""
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
    compress: CompressOptions = NoCompression()
    """how the run is made from another one; `two-stream compress` fills it in"""

    @model_validator(mode="after")
    def _segments(self) -> Experiment:
        """Refuse what contradicts segments; let the model say so where the data does."""
        data, given = self.data, self.model.input.segments
        if data.sampling == "segments" and not given:
            input_ = self.model.input.model_copy(update={"segments": "frames"})
            object.__setattr__(self, "model", self.model.model_copy(update={"input": input_}))
        elif given and data.sampling not in ("segments", "standard"):
            raise ValueError(
                f"`data.sampling: {data.sampling}` has no segments, and `model.input.segments` is {given}; "
                "expected `data.sampling: segments` or standard"
            )
        elif given and data.augment.clip == "begin":
            raise ValueError(
                "`data.augment.clip: begin` is not known to `model.input.segments`; expected random or center"
            )
        if self.evaluate.views == "twice" and not self.model.input.segments:
            raise ValueError(
                "`evaluate.views: twice` takes the segments of a video twice; set `data.sampling: segments`, or "
                "uniform views"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        loss, augment = self.train.loss, self.data.augment
        if self.model.modality == "flow" and augment.colours:
            raise ValueError(
                f"`data.augment.{augment.colours[0]}` changes colours, which flow has not; leave it off for "
                "`model.modality: flow` (crops, flips and `erase` act on both)"
            )
        if self.data.features is not None:
            self._features()
        if self.compress.kind != "none" and self.data.features is not None:
            raise ValueError(
                f"`compress.kind: {self.compress.kind}` trains the backbone and `data.features` stands in its place; "
                "leave one of them out"
            )
        source = getattr(self.compress, "source", None)
        if source is not None and self.train.init is None:
            raise ValueError(
                f"`compress.source` is {source} and `train.init` is not set: the weights that are changed are those "
                f"the run begins with; set `train.init: {source}` and `train.init_part: all` too"
            )
        if self.compress.kind != "none" and self.train.strategy == "fsdp":
            raise ValueError(
                f"`compress.kind: {self.compress.kind}` needs `train.strategy: ddp`, a whole network in each process"
            )
        if isinstance(self.train.optimizer, Logistic):
            if self.data.balance != "none":
                raise ValueError(
                    "`data.balance: classes` draws clips for training steps, and `train.optimizer.kind: logistic` has "
                    "none; set `train.optimizer.balanced: true` in its place"
                )
            if self.compress.kind != "none":
                raise ValueError(
                    f"`compress.kind: {self.compress.kind}` trains in steps; set `train.optimizer.kind` to sgd or adamw"
                )
        if self.data.balance == "classes" and "balanced" in (
            getattr(loss, "weights", None),
            getattr(loss, "pos_weight", None),
        ):
            raise ValueError(
                f"`data.balance: classes` and balanced weights of `train.loss: {loss.kind}` both make up for rare "
                "classes; keep one"
            )
        return self

    def _features(self) -> None:
        """Refuse what stored features cannot give: a backbone that learns, or clips mixed before it."""
        if self.train.freeze_until not in ("backbone", "head"):
            raise ValueError(
                f"`data.features` holds what a frozen backbone gives, and `train.freeze_until` is "
                f"{self.train.freeze_until or 'not set'}; expected backbone or head"
            )
        if self.train.selection == "paper":
            raise ValueError(
                "`train.selection: paper` validates on the test list, and `data.features` has centred clips of the "
                "training list alone; expected holdout"
            )
        for name in ("mixup", "cutmix"):
            if getattr(self.train, name):
                raise ValueError(
                    f"`train.{name}` mixes clips, and `data.features` has none; leave one of them out"
                )


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
