"""All settings of an experiment with their help, for YAML files and command-line flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from two_stream.config.base import Fraction, NonNegative, Options, Positive, PositiveInt
from two_stream.config.compress import CompressOptions, NoCompression
from two_stream.config.model import ModelOptions


class Sgd(Options):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: Positive = 0.01
    """learning rate"""
    momentum: Fraction = 0.9
    dampening: Fraction = 0.0
    """dampening of the momentum; the paper uses 0.9"""
    nesterov: bool = False
    weight_decay: NonNegative = 1e-3
    decay_all: bool = False
    """apply weight decay also to norms, biases and position embeddings, as the published code does"""

    @model_validator(mode="after")
    def _consistent(self) -> Sgd:
        if self.nesterov and (self.momentum == 0.0 or self.dampening != 0.0):
            raise ValueError("`nesterov` requires `momentum` above 0 and `dampening: 0`")
        return self


class AdamW(Options):
    """Adam with decoupled weight decay."""

    kind: Literal["adamw"] = "adamw"
    lr: Positive = 1e-5
    """learning rate"""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 1e-3
    decay_all: bool = False
    """apply weight decay also to norms, biases and position embeddings, as the published code does"""


class Logistic(Options):
    """Logistic regression on a frozen network's features, solved exactly; cross-validation chooses the penalty."""

    kind: Literal["logistic"] = "logistic"
    cs: Annotated[tuple[Positive, ...], Field(min_length=1)] = (
        1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0,
    )  # fmt: skip
    """candidate weights of the loss relative to the penalty `|w|² / 2`, from which cross-validation selects one; the
    inputs are standardised, so that a value has the same effect for every network"""
    folds: Annotated[int, Field(ge=2)] = 5
    """number of folds of the cross-validation, at most one per source video; all clips of a source video are in one
    fold"""
    repeats: PositiveInt = 3
    """number of cross-validations with different folds; their losses are averaged"""
    balanced: bool = True
    """give equal weight to all classes; false: to all videos"""
    views: Annotated[int, Field(ge=0)] | None = None
    """number of augmented clips per training video in addition to the centred clip. All clips of a video together have
    the weight of one video. None: all clips in `data.features`, or 0 without stored features"""


class Constant(Options):
    """A constant learning rate."""

    kind: Literal["constant"] = "constant"


class Plateau(Options):
    """Reduce the rate when the validation loss stops falling (as in the paper)."""

    kind: Literal["plateau"] = "plateau"
    factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    patience: Annotated[int, Field(ge=0)] = 5
    """number of epochs without a better validation loss before the rate is reduced"""
    min_lr: NonNegative = 0.0


class MultiStep(Options):
    """Reduce the rate at given epochs."""

    kind: Literal["multistep"] = "multistep"
    milestones: tuple[PositiveInt, ...] = (15, 25)
    """epochs after which the rate is reduced"""
    gamma: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1


class Cosine(Options):
    """Linear warm-up, then half a cosine down to `min_lr`; the rate changes at every optimizer step."""

    kind: Literal["cosine"] = "cosine"
    warmup_epochs: NonNegative = 0.0
    min_lr: NonNegative = 0.0


OptimizerOptions = Annotated[Sgd | AdamW | Logistic, Field(discriminator="kind")]
ScheduleOptions = Annotated[Constant | Plateau | MultiStep | Cosine, Field(discriminator="kind")]


Share = Annotated[float, Field(gt=0.0, le=1.0)]
COLOURS = ("brightness", "contrast", "saturation", "hue", "grayscale", "rand_augment")
"""settings that change colours, for RGB only"""


class AugmentOptions(Options):
    """Augmentation of training clips; all frames of a clip are changed in the same way."""

    clip: Literal["random", "center", "begin"] = "random"
    """position of the training clip in the video (`train_t_crop` of 3D-ResNets)"""
    crop: Literal[
        "multiscale", "random", "center", "corner", "multiscale_random", "resized", "short_side", "full"
    ] = "multiscale"
    """how training clips are cropped. `multiscale`: a box at one of 13 positions, whose height and width are scaled by
    `scales` (as in the paper). `random`: a box of the size `model.input.crop` at a random position. `center`: a box of
    this size in the centre. `corner`: a box of one of `scales` in a corner or the centre. `multiscale_random`: a box of
    one of `scales` at a random position. `resized`: a box with random `area` and `ratio`. `short_side`: a box at a
    random position after the short side is scaled by `short_sides`. `full`: the full frame resized to the network's
    input, also in validation and centred views"""
    scales: Annotated[tuple[Share, ...], Field(min_length=1)] = (1.0, 0.875, 0.75, 0.66)
    """sizes of multi-scale and corner crops, relative to the largest box in the resized frame. The box has the aspect
    ratio of the input; for a square input, its side is the frame's short side"""
    area: tuple[Share, Share] = (0.25, 1.0)
    """smallest and largest area of a resized crop relative to the frame"""
    ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    """smallest and largest ratio of width to height of a resized crop, relative to the ratio of the network's input"""
    short_sides: tuple[Positive, Positive] = (1.0, 1.25)
    """for `crop: short_side`: smallest and largest short side of the frame, relative to the network's input"""
    flip: Fraction = 0.5
    """probability of a horizontal flip"""
    brightness: NonNegative = 0.0
    """largest relative change of the brightness; RGB only, like contrast, saturation, hue and grayscale"""
    contrast: NonNegative = 0.0
    """largest relative change of the contrast"""
    saturation: NonNegative = 0.0
    """largest relative change of the saturation"""
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """largest change of the hue; 0.5 is half of the colour circle"""
    grayscale: Fraction = 0.0
    """probability of converting a clip to greyscale"""
    rand_augment: Annotated[int, Field(ge=0, le=10)] = 0
    """number of RandAugment operations (arXiv 1909.13719) per clip; 0 is off"""
    rand_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """strength of RandAugment's operations"""
    erase: Fraction = 0.0
    """probability of erasing a box in a clip, at the same position in every frame (arXiv 1708.04896): the box gets the
    mean colour, or zero flow"""
    erase_area: tuple[Share, Share] = (0.02, 0.33)
    """smallest and largest area of an erased box relative to the area of the crop"""
    protocol: Literal["standard", "paper"] = "standard"
    """paper: use the published crop offsets, which truncate some boxes, and do not negate flow x in mirrored clips"""

    @property
    def whole_frame(self) -> bool:
        """Whether training clips and all centred views show full frames."""
        return self.crop == "full"

    @property
    def colours(self) -> tuple[str, ...]:
        """Active settings that change colours."""
        return tuple(name for name in COLOURS if getattr(self, name))

    @model_validator(mode="after")
    def _ascending(self) -> AugmentOptions:
        for name in ("area", "ratio", "short_sides", "erase_area"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"`{name}` is {low:g}, {high:g}: expected the smaller number first")
        if self.short_sides[0] < 1.0:
            raise ValueError(
                f"`short_sides` starts with {self.short_sides[0]:g}: expected 1 or more, so that the crop fits"
            )
        return self


ClassWeights = Literal["none", "balanced"] | tuple[Positive, ...]


class AutoLoss(Options):
    """Cross entropy, or binary cross entropy for a multi-label data set."""

    kind: Literal["auto"] = "auto"


class CrossEntropy(Options):
    """Cross entropy of the softmax: one class per video."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    weights: ClassWeights = "none"
    """balanced: larger weights for rare classes (mean 1 over the training clips); or one number per class"""
    beta: Fraction = 1.0
    """balance by the effective number of clips `(1 - beta^n) / (1 - beta)` (arXiv 1901.05555); 1: by the number of
    clips n"""


class Focal(Options):
    """Focal loss (arXiv 1708.02002): correctly classified clips have a small weight; multi-label data use a sigmoid."""

    kind: Literal["focal"] = "focal"
    gamma: NonNegative = 2.0
    """exponent; 0 is the cross entropy"""
    alpha: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """multi-label: weight of the classes of a video; other classes have the weight `1 - alpha`; none: all weights are
    1"""
    weights: ClassWeights = "none"
    """balanced: larger weights for rare classes (mean 1 over the training clips); or one number per class"""
    beta: Fraction = 1.0
    """balance by the effective number of clips `(1 - beta^n) / (1 - beta)` (arXiv 1901.05555); 1: by the number of
    clips n"""


class BinaryCrossEntropy(Options):
    """Binary cross entropy of one sigmoid per class, averaged over the classes; a video may have several classes."""

    kind: Literal["bce"] = "bce"
    pos_weight: ClassWeights = "none"
    """weight of the positive videos of a class; balanced: number of videos without the class / number of videos with
    it"""


LossOptions = Annotated[AutoLoss | CrossEntropy | Focal | BinaryCrossEntropy, Field(discriminator="kind")]


Crops = Literal["center", "three", "ten", "full"]


class DataOptions(Options):
    """Where the videos are, and how they are read."""

    dataset: str = "demo"
    """name of a folder under `settings_root`, or path of a `dataset.yaml`"""
    settings_root: Path = Path("settings")
    """folder that contains `<dataset>/dataset.yaml` and the split lists"""
    split: PositiveInt = 1
    """number of the official split"""
    source: Literal["frames", "videos", "shards"] = "frames"
    """frames: frame folders from `two-stream extract`; videos: video files, from which flow is computed on the fly;
    shards: files from `two-stream pack`"""
    shards: str | None = None
    """folder or URL (s3://…) of the shards when `source` is shards"""
    backend: Literal["pyav", "opencv", "torchcodec"] = "pyav"
    """video decoder when `source` is videos"""
    flow: Literal["tvl1", "dis", "farneback"] = "dis"
    """flow algorithm when `source` is videos"""
    cache: Path | None = None
    """folder that keeps the decoded frames and the flow of videos for later epochs and other runs, when `source` is
    videos"""
    cache_gigabytes: Annotated[float, Field(gt=0.0)] = 50.0
    """size in GB at which the cache stops growing"""
    sampling: Literal["standard", "segments", "paper", "efficient3d", "3dresnets", "co3d"] = "standard"
    """how the frames of a clip are chosen. `segments`: from equal parts of the video (`model.input.segments`). `paper`:
    as in the published code, which never uses the last frame. `efficient3d`, `3dresnets`, `co3d`: as in these
    codebases"""
    frame_order: Literal["natural", "shuffled", "reversed"] = "natural"
    """order in which the frames of a clip enter the network, to test whether the network uses time. `shuffled`: a new
    order in each training epoch, and a fixed order per video in evaluation"""
    features: Path | None = None
    """folder from `two-stream features`, from which training and evaluation read the frozen backbone's features instead
    of clips; requires `train.freeze_until: backbone` or `head`"""
    balance: Literal["none", "classes"] = "none"
    """classes: an epoch samples videos with replacement, so that all classes occur equally often"""
    on_error: Literal["raise", "skip"] = "raise"
    """skip: omit unreadable clips from their batch and count them; raise: stop with an error that names the video"""
    holdout: Annotated[float, Field(gt=0.0, lt=0.9)] = 0.2
    """fraction of the training list used for validation; clips of the same source video stay together"""
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    """number of loader processes; 0: read in the main process"""
    scaled_decoding: bool = False
    """let libjpeg downscale frames of at least twice the input size while decoding, which saves a third of the work.
    Pixels differ by about one grey level on average. Not available if `sampling` or `protocol` is paper"""
    resize_once: bool = False
    """resize a training crop from the stored frame in one interpolation instead of two, which is slightly sharper and
    faster. Pixels differ by half a grey level on average. Not available if `sampling` or `protocol` is paper"""
    augment: AugmentOptions = AugmentOptions()
    """training-time augmentation"""

    @model_validator(mode="after")
    def _reading(self) -> DataOptions:
        if self.source == "shards" and self.shards is None:
            raise ValueError(
                "`source: shards` requires `shards`, the folder or URL that `two-stream pack` wrote"
            )
        if self.cache is not None and self.source != "videos":
            raise ValueError(
                f"`cache` keeps what is computed from video files, but `source` is {self.source}; set "
                "`source: videos`, or remove `cache`"
            )
        paper = self.sampling == "paper" or self.augment.protocol == "paper"
        for name in ("scaled_decoding", "resize_once"):
            if getattr(self, name) and paper:
                raise ValueError(
                    f"`{name}` changes pixels, but `sampling: paper` and `protocol: paper` require the published "
                    f"pixels; turn `{name}` off"
                )
        clip = self.augment.clip
        if clip != "random" and self.sampling == "paper":
            raise ValueError(
                f"`augment.clip: {clip}` is not supported by `sampling: paper`, which uses random clips"
            )
        if clip == "begin" and self.sampling in ("co3d", "segments"):
            raise ValueError(
                f"`augment.clip: begin` is not supported by `sampling: {self.sampling}`; expected random or center"
            )
        return self


class TrainOptions(Options):
    """How a stream is trained."""

    epochs: PositiveInt = 30
    """number of passes over the training part"""
    batch_size: PositiveInt = 8
    """number of clips per forward pass"""
    accumulate: PositiveInt = 1
    """number of forward passes per optimizer step"""
    last_group: Literal["step", "drop"] = "step"
    """what to do if the last forward passes of an epoch are fewer than `accumulate`; step: make a smaller step; drop:
    skip them, as published"""
    optimizer: OptimizerOptions = Sgd()
    """optimizer; logistic: solve for the classifier's optimum on a frozen network, without epochs"""
    schedule: ScheduleOptions = Cosine()
    """learning rate over time"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """autocast type of the forward pass; fp16 scales the loss"""
    clip_grad: NonNegative | None = None
    """largest norm of the gradient; none: no clipping"""
    loss: LossOptions = AutoLoss()
    """training loss"""
    label_smoothing: Fraction = 0.0
    """fraction of the target that is spread over all classes"""
    mixup: NonNegative = 0.0
    """alpha of mixup's Beta distribution (blends two clips); 0 is off"""
    cutmix: NonNegative = 0.0
    """alpha of CutMix's Beta distribution (pastes a box of another clip, the same in every frame); 0 is off"""
    mix_prob: Fraction = 1.0
    """probability that a batch is mixed, if mixup or cutmix is on"""
    mix_switch: Fraction = 0.5
    """probability of cutmix instead of mixup if both are on"""
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """decay of an exponential moving average of the weights; the average is evaluated and saved; 0 is off"""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """for several processes (torchrun); ddp: a complete network in each process; fsdp: shard weights, gradients and
    optimizer state"""
    sync_batchnorm: bool = False
    """for several processes: compute BatchNorm statistics over the clips of all processes; false: over the clips of
    each process separately"""
    compile: bool = False
    """compile the backbone stage by stage: steps are faster after minutes of compilation, and rounding differs"""
    gradient_checkpointing: bool = False
    """recompute the activations of each stage in the backward pass: less memory, about a third more time"""
    freeze_until: str | None = None
    """name of the last frozen stage (`two-stream models NAME` lists the stages); backbone: train only the head and the
    classifier; head: train only the classifier (linear probe)"""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """learning rate of a stage, relative to the learning rate of the next stage; 1 is off"""
    stage_rates: dict[str, Positive] = Field(default_factory=dict)
    """learning rate multiplier of individual stages, for example `{stem: 0.1, classifier: 10}`; 1 for other stages"""
    init: Path | None = None
    """checkpoint to start from: a run folder, or a file of this or another codebase"""
    init_part: Literal["all", "backbone"] = "all"
    """part of `init` to load; backbone: head and classifier keep random weights"""
    init_averaged: bool = False
    """if the checkpoint also contains a moving average (EMA, SWA), start from the average"""
    cross_modality: bool = False
    """start a flow network from an RGB checkpoint: average the first convolution over R, G, B, and repeat the
    average"""
    inflate: bool = False
    """start from 2D weights: repeat each kernel over time, and divide it by its temporal length"""
    new_classifier: bool = False
    """use a new classifier if `init` has other classes than the data set"""
    selection: Literal["holdout", "folds", "paper"] = "holdout"
    """how the best epoch is selected. `holdout`: on a part of the training list. `folds` (only for the optimizer
    `logistic`): training uses the full training list, and cross-validation validates each video. `paper`: on the test
    list, as published"""
    validate_every: PositiveInt = 1
    """number of epochs between validations; the last epoch is always validated"""
    early_stopping: PositiveInt | None = None
    """number of epochs without a better validation loss after which training ends"""
    checkpoint_every: PositiveInt | None = None
    """number of optimizer steps between checkpoints within an epoch; none: one checkpoint per epoch"""
    log_images: bool = True
    """record clip grids and, for up to 1,000 classes, confusion figures"""
    trackers: tuple[str, ...] = ("tensorboard",)
    """where metrics are recorded: tensorboard, wandb (Weights & Biases, an optional package), or a tracker of another
    installed package; `metrics.jsonl` is always written"""

    @model_validator(mode="after")
    def _consistent(self) -> TrainOptions:
        for name in ("cross_modality", "new_classifier", "inflate", "init_averaged"):
            if getattr(self, name) and self.init is None:
                raise ValueError(f"`{name}` requires `init`, the checkpoint to start from")
        if self.selection == "folds" and not isinstance(self.optimizer, Logistic):
            raise ValueError(
                f"`selection: folds` requires `optimizer: {{kind: logistic}}`, but the optimizer is "
                f"{self.optimizer.kind}; set `selection` to holdout or paper, or use the logistic optimizer"
            )
        if self.init_part != "all" and self.init is None:
            raise ValueError("`init_part` requires `init`, the checkpoint to start from")
        if self.stage_rates and self.layer_decay != 1.0:
            raise ValueError(
                f"`layer_decay` {self.layer_decay:g} and `stage_rates` both set the rate of each stage; remove one of "
                "them"
            )
        if self.strategy == "fsdp" and self.ema:
            raise ValueError("`ema` requires `strategy: ddp`, because averaged weights are not sharded")
        if self.strategy == "fsdp" and self.precision == "fp16":
            raise ValueError(
                "`strategy: fsdp` requires `precision` fp32 or bf16, because the loss scale of fp16 is not sharded"
            )
        if isinstance(self.optimizer, Logistic):
            plain = TrainOptions()
            for name in ("loss", "label_smoothing", "mixup", "cutmix", "ema"):
                if getattr(self, name) != getattr(plain, name):
                    raise ValueError(
                        f"`{name}` changes training steps, but `optimizer: {{kind: logistic}}` has no steps; remove "
                        "one of them"
                    )
        return self


class EvaluateOptions(Options):
    """How videos are evaluated."""

    views: Literal["single", "multi", "uniform", "sliding", "twice"] = "multi"
    """clips of a video. `single`: one centred clip. `multi`: centred clips without overlap. `uniform`: `num_clips`
    evenly spread clips. `sliding`: clips at a distance of `step`. `twice` (only with segments): a clip of the middle
    frames of all segments, and a clip of their first frames"""
    num_clips: PositiveInt = 10
    """number of clips per video for uniform views"""
    step: PositiveInt | None = None
    """number of frames between the starts of sliding clips; none: half a clip"""
    crops: Crops = "ten"
    """crops of a clip. `center`: the centre, or with `augment.crop: full` the full frame. `three`: three crops along
    the longer side. `ten`: the centre and the corners, each also mirrored. `full`: the full frame resized to the
    network's input, and its mirror image"""
    aggregate: Literal["logits", "probabilities"] = "logits"
    """values that are averaged over the views"""
    batch_views: PositiveInt | None = None
    """number of views per forward pass; none: 16 on a GPU, and on a CPU the number that fits its cache (one view of
    64 × 112² per thread)"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """autocast type of the forward pass. `auto` is bf16 on a GPU with bf16 instructions, and on a CPU if a measurement
    (stored in the cache folder) shows that bf16 is at least 1.2 times as fast as fp32. Otherwise, and if `sampling`,
    `protocol` or `selection` is paper, `auto` is fp32"""
    fold: bool = True
    """fold BatchNorm into the convolution before it, which is faster; logits are equal up to rounding. Not applied if
    `sampling`, `protocol` or `selection` is paper"""
    compile: bool = False
    """torch.compile (with CUDA graphs on a GPU): faster batches after up to a minute of compilation"""
    keep_views: bool = False
    """also store the logits of every view"""


FREE_ON_RESUME = (
    "device",
    "threads",
    "runs",
    "data.workers",
    "data.cache",
    "data.cache_gigabytes",
    "train.strategy",
    "train.compile",
    "train.trackers",
    "evaluate",
)
"""settings (with everything below them) that may change on resume, because they do not affect the trained weights"""


class Experiment(Options):
    """One stream of one split: model, data, training and evaluation."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[\w.+-]+$")] = "experiment"
    """name of the run folder"""
    runs: Path = Path("runs")
    """folder that contains the run folders"""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """random seed of the initial weights, the data order, the augmentation and the holdout"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    threads: Annotated[int, Field(ge=0)] = 0
    """number of CPU threads of torch; 0: torch's default"""
    deterministic: bool = True
    """use torch's deterministic algorithms on a GPU; algorithms on a CPU are always deterministic"""
    channels_last: bool = True
    """use the channels-last memory format, which makes convolutions faster; results are equal up to rounding"""
    model: ModelOptions = ModelOptions()
    """backbone, reduction, head and input"""
    data: DataOptions = DataOptions()
    """data set, and how it is read"""
    train: TrainOptions = TrainOptions()
    """training"""
    evaluate: EvaluateOptions = EvaluateOptions()
    """evaluation"""
    compress: CompressOptions = NoCompression()
    """how the run compresses another run; set by `two-stream compress`"""

    @model_validator(mode="after")
    def _segments(self) -> Experiment:
        """Check settings of segments; set `model.input.segments` if only `data.sampling` requests segments."""
        data, given = self.data, self.model.input.segments
        if data.sampling == "segments" and not given:
            input_ = self.model.input.model_copy(update={"segments": "frames"})
            object.__setattr__(self, "model", self.model.model_copy(update={"input": input_}))
        elif given and data.sampling not in ("segments", "standard"):
            raise ValueError(
                f"`data.sampling: {data.sampling}` has no segments, but `model.input.segments` is {given}; "
                "expected `data.sampling: segments` or standard"
            )
        elif given and data.augment.clip == "begin":
            raise ValueError(
                "`data.augment.clip: begin` is not supported with `model.input.segments`; expected random or center"
            )
        if self.evaluate.views == "twice" and not self.model.input.segments:
            raise ValueError(
                "`evaluate.views: twice` needs segments; set `data.sampling: segments`, or use uniform views"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        loss, augment = self.train.loss, self.data.augment
        if self.model.modality == "flow" and augment.colours:
            raise ValueError(
                f"`data.augment.{augment.colours[0]}` changes colours, which flow does not have; turn it off for "
                "`model.modality: flow` (crops, flips and `erase` work for both)"
            )
        if self.data.features is not None:
            self._features()
        if self.compress.kind != "none" and self.data.features is not None:
            raise ValueError(
                f"`compress.kind: {self.compress.kind}` trains the backbone, which `data.features` replaces; "
                "remove one of them"
            )
        source = getattr(self.compress, "source", None)
        if source is not None and self.train.init is None:
            raise ValueError(
                f"`compress.source` is {source} and `train.init` is not set, but compression changes the weights "
                f"of `train.init`; set `train.init: {source}` and `train.init_part: all` too"
            )
        if self.compress.kind != "none" and self.train.strategy == "fsdp":
            raise ValueError(f"`compress.kind: {self.compress.kind}` requires `train.strategy: ddp`")
        if isinstance(self.train.optimizer, Logistic):
            if self.data.balance != "none":
                raise ValueError(
                    "`data.balance: classes` samples clips for training steps, but `train.optimizer.kind: logistic` "
                    "has no steps; set `train.optimizer.balanced: true` instead"
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
                f"`data.balance: classes` and balanced weights of `train.loss: {loss.kind}` both compensate for rare "
                "classes; remove one of them"
            )
        return self

    def _features(self) -> None:
        """Check that cached features suffice: frozen backbone, no mixed clips, no validation on the test list."""
        if self.train.freeze_until not in ("backbone", "head"):
            raise ValueError(
                f"`data.features` contains features of a frozen backbone, but `train.freeze_until` is "
                f"{self.train.freeze_until or 'not set'}; expected backbone or head"
            )
        if self.train.selection == "paper":
            raise ValueError(
                "`train.selection: paper` validates on the test list, but `data.features` contains no validation clips "
                "of the test list; set `train.selection: holdout`"
            )
        for name in ("mixup", "cutmix"):
            if getattr(self.train, name):
                raise ValueError(
                    f"`train.{name}` mixes clips, but `data.features` contains no clips; remove one of them"
                )
