"""Distillation: a network (the student) learns from its labels and from one or more trained networks (the teachers).

If a teacher has another modality than the student (as in MARS, where the teacher reads flow), another clip length or
another size, it gets its own clips. The teacher's clips show the same moment, crop and mirroring as the student's
clips. Validation is the same as in other training runs. Losses are sums over the clips of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from two_stream.config.compress import Distill
from two_stream.config.schema import Experiment
from two_stream.data.catalog import dataset_record
from two_stream.data.clips.dataset import ClipsBeside, companion, same_clip
from two_stream.errors import SettingsError
from two_stream.evaluation.runs.run import Run, load_run
from two_stream.heads.base import space_mean
from two_stream.recognizer import Recognizer, input_spec
from two_stream.runtime import distributed
from two_stream.runtime.device import autocast, derive, pick_device
from two_stream.training.data import TrainingData
from two_stream.training.losses import Loss
from two_stream.training.step import EXTENSIONS, Extension
from two_stream.types import Batch, FeatureMap, InputSpec


@dataclass
class LayerOutputs:
    """Feature maps and vector of a network for the last batch."""

    maps: list[torch.Tensor] = field(default_factory=list)
    """feature maps `(B, C, T, H, W)` of the pathways, float32"""
    vector: torch.Tensor | None = None
    """output of the head `(B, D)` before the dropout and the classifier, float32"""

    def watch(self, model: Recognizer) -> LayerOutputs:
        """Record the outputs of a model for each following batch. Returns this object."""

        # functions, not methods: a copy of the model (its moving average) must not copy this object
        def backbone(module: nn.Module, args: Any, maps: list[FeatureMap]) -> None:
            del module, args
            self.maps = [feature.tensor.float() for feature in maps]

        def dropout(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            del module
            self.vector = args[0].float()

        model.backbone.register_forward_hook(backbone)
        model.dropout.register_forward_pre_hook(dropout)
        return self


def fused_targets(
    logits: Sequence[torch.Tensor],
    temperature: float,
    fuse: str = "probabilities",
    weights: Sequence[float] = (),
) -> torch.Tensor:
    """Return soft targets `(B, K)` from the logits `(B, K)` of one or more teachers at a temperature.

    If `fuse` is `probabilities`, the targets are the weighted mean of the softmaxes; if it is `logits`, the softmax of
    the weighted mean. By default, all teachers have the same weight.
    """
    shares = torch.tensor(list(weights) or [1.0] * len(logits)).to(logits[0])
    shares = shares / shares.sum()
    scaled = [values / temperature for values in logits]
    if fuse == "logits":
        return torch.einsum("n,nbk->bk", shares, torch.stack(scaled)).softmax(1)
    return torch.einsum("n,nbk->bk", shares, torch.stack([values.softmax(1) for values in scaled]))


def soft_target_loss(logits_BK: torch.Tensor, targets_BK: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return temperature² times the KL divergence of the student from soft targets (Hinton et al., arXiv 1503.02531).

    The targets must be computed at the same temperature. The factor temperature² keeps the scale of the gradient.
    """
    logs_BK = F.log_softmax(logits_BK / temperature, dim=1)
    return temperature**2 * F.kl_div(logs_BK, targets_BK.to(logs_BK), reduction="sum")


def tokens_of(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the tokens `(B, T, D)` of a network's maps.

    The tokens of all pathways are interpolated to the time steps of the first pathway and concatenated.
    """
    tokens = [space_mean(x_BCTHW) for x_BCTHW in maps]
    return torch.cat([in_time(x_BTD, tokens[0].shape[1]) for x_BTD in tokens], dim=-1)


def in_time(x_BTD: torch.Tensor, steps: int) -> torch.Tensor:
    """Interpolate tokens `(B, T, D)` over time to a number of steps."""
    if x_BTD.shape[1] == steps:
        return x_BTD
    return F.interpolate(x_BTD.transpose(1, 2), size=steps, mode="linear").transpose(1, 2)


def feature_loss(student_BTD: torch.Tensor, teacher_BTD: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error between tokens of equal width (FitNets, Romero et al., arXiv 1412.6550)."""
    adapted = in_time(student_BTD, teacher_BTD.shape[1])
    return len(adapted) * F.mse_loss(adapted, teacher_BTD)


def attention_loss(student_BCTHW: torch.Tensor, teacher_BCTHW: torch.Tensor) -> torch.Tensor:
    """Return half the squared distance of two attention maps (Zagoruyko and Komodakis, arXiv 1612.03928).

    An attention map is the mean over channels of the squared activations, scaled to norm 1 for each clip. If the sizes
    differ, the student's map is interpolated first. The loss of a clip is 0 for equal maps and 1 for maps without
    overlap.
    """
    student, teacher = (x.pow(2).mean(1, keepdim=True) for x in (student_BCTHW, teacher_BCTHW))
    if student.shape[2:] != teacher.shape[2:]:
        student = F.interpolate(student, size=teacher.shape[2:], mode="trilinear")
    one, other = (F.normalize(x.flatten(1), dim=1) for x in (student, teacher))
    return 0.5 * (one - other).pow(2).sum()


def vector_loss(student_BD: torch.Tensor, teacher_BD: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of the vectors before the classifiers (MARS, Crasto et al., CVPR 2019, eq. 1)."""
    return len(student_BD) * F.mse_loss(student_BD, teacher_BD)


class Teacher:
    """A trained network in evaluation mode, without gradients."""

    def __init__(self, path: Path, student: InputSpec) -> None:
        """Load a teacher's run; `student` describes the input of the student.

        Raises:
            CheckpointError: The run cannot be read.
        """
        self.run: Run = load_run(path)
        self.model = self.run.model.requires_grad_(False)
        self.outputs = LayerOutputs().watch(self.model)
        self.shares_clips = same_clip(self.model.spec, student)
        self.logits_BK = torch.zeros(0)

    @torch.no_grad()
    def infer(self, clips_BCTHW: torch.Tensor, device: torch.device, precision: str) -> None:
        """Compute a batch. The results are stored in `outputs` and `logits_BK`."""
        if self.model.device != device:
            self.model.to(device)
        with autocast(device, "fp32" if self.model.cpu_only else precision):
            logits = self.model(clips_BCTHW.to(device, non_blocking=True))
        self.logits_BK = logits.float()


@EXTENSIONS.register(Distill)
class Distillation(Extension):
    """Adds the losses of the teachers to the training loss."""

    def __init__(self, experiment: Experiment) -> None:
        assert isinstance(experiment.compress, Distill)
        self.experiment = experiment
        self.options = experiment.compress
        if not self.options.teachers:
            raise SettingsError(
                "`compress.teachers` is empty; expected the run folders of one or more teachers"
            )
        self.spec = input_spec(experiment.model)
        self.teachers = [Teacher(path, self.spec) for path in self.options.teachers]
        self.outputs = LayerOutputs()
        self.adapters = nn.ModuleList()
        self._check()

    def _check(self) -> None:
        """Raise an error if the student cannot learn from a teacher with these settings."""
        train, data = self.experiment.train, self.experiment.data
        for teacher in self.teachers:
            taught = teacher.run.experiment.data
            if taught.split != data.split:
                raise SettingsError(
                    f"{teacher.run.paths.root}: the teacher was trained on split {taught.split}, so it may have "
                    f"seen test videos of the student's split {data.split}; use a teacher that was trained on the "
                    "same split"
                )
            if teacher.model.cpu_only and pick_device(self.experiment.device).type != "cpu":
                raise SettingsError(
                    f"{teacher.run.paths.root}: the teacher is an int8 network, which runs only on the CPU; use "
                    "the run that it was quantized from"
                )
            for name in ("mixup", "cutmix"):
                if getattr(train, name) and not teacher.shares_clips:
                    raise SettingsError(
                        f"`train.{name}` mixes the student's clips, but the teacher {teacher.run.paths.root} gets "
                        "its own clips; set the option to 0"
                    )
        if self.options.feature_weight and distributed.world_size() > 1:
            raise SettingsError(
                "`compress.feature_weight` trains an extra layer, which requires a single process; start the run "
                "without torchrun"
            )

    def data(self, data: TrainingData) -> TrainingData:
        """Return the data with additional clips for the teachers that cannot use the student's clips.

        Raises:
            SettingsError: A teacher has different classes, or soft targets are used with a multi-label data set.
            DataError: The data set has no frames for a teacher.
        """
        for teacher in self.teachers:
            if teacher.run.class_names != data.class_names:
                raise SettingsError(
                    f"{teacher.run.paths.root}: the teacher's {len(teacher.run.class_names)} classes differ from "
                    f"the {len(data.class_names)} classes of {data.dataset}; use a teacher that was trained on "
                    "the student's classes"
                )
        if self.options.distill_weight and data.labels is not None and data.labels.multi_label:
            raise SettingsError(
                f"`compress.distill_weight` requires one class per video, but {data.dataset} is multi-label; set "
                "`compress.distill_weight: 0` and transfer features (`compress.feature_weight`)"
            )
        others = [teacher for teacher in self.teachers if not teacher.shares_clips]
        if not others:
            return data
        record = dataset_record(self.experiment.data)
        companions = [
            companion(
                self.experiment, record, teacher.model.spec, teacher.run.experiment.data.augment.protocol
            )
            for teacher in others
        ]
        return replace(data, train=partial(data.train, wrap=partial(ClipsBeside, companions=companions)))

    def start(self, model: Recognizer, *, resumed: bool) -> None:
        """Start to record the student's outputs, and create the layers that map its tokens to the teachers' widths.

        Raises:
            SettingsError: `vector_weight` is set, but the vectors have different widths or a network has no vector.
        """
        del resumed
        self.outputs.watch(model)
        if self.options.vector_weight:
            for teacher in self.teachers:
                _check_vectors(model, teacher)
        if self.options.feature_weight:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(self.experiment.seed, "adapters"))
                width = sum(model.backbone.channels)
                for teacher in self.teachers:
                    self.adapters.append(nn.Linear(width, sum(teacher.model.backbone.channels)))

    def extra_parameters(self, device: torch.device) -> list[nn.Parameter]:
        """Return the weights of the layers that map the student's tokens to the teachers' widths."""
        return list(self.adapters.to(device).parameters())

    def state(self) -> dict[str, torch.Tensor]:
        """Return the state of the layers that map the student's tokens to the teachers' widths."""
        return self.adapters.state_dict()

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore the tensors that `state` returned."""
        self.adapters.load_state_dict(state)

    def loss(self, plain: Loss, logits_BK: torch.Tensor, targets: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the weighted sum of the ordinary loss and the losses of the teachers, summed over clips."""
        options, device = self.options, logits_BK.device
        beside = iter(batch.beside)
        for teacher in self.teachers:
            clips = batch.clips if teacher.shares_clips else next(beside)
            teacher.infer(clips, device, self.experiment.train.precision)
        total = options.student_weight * plain(logits_BK, targets)
        if options.distill_weight:
            logits = [teacher.logits_BK.to(logits_BK) for teacher in self.teachers]
            soft_BK = fused_targets(logits, options.temperature, options.fuse, options.teacher_weights)
            total = total + options.distill_weight * soft_target_loss(logits_BK, soft_BK, options.temperature)
        for number, teacher in enumerate(self.teachers):
            total = total + self._transferred(number, teacher)
        return total

    def _transferred(self, number: int, teacher: Teacher) -> torch.Tensor | float:
        """Return the weighted feature losses between the student and a teacher, divided by the number of teachers."""
        options, own, others = self.options, self.outputs, teacher.outputs
        total = torch.zeros((), device=own.maps[0].device)
        if options.feature_weight:
            adapted = self.adapters[number](tokens_of(own.maps))
            total = total + options.feature_weight * feature_loss(adapted, tokens_of(others.maps))
        if options.attention_weight:
            total = total + options.attention_weight * attention_loss(own.maps[0], others.maps[0])
        if options.vector_weight:
            assert own.vector is not None
            assert others.vector is not None
            total = total + options.vector_weight * vector_loss(own.vector, others.vector)
        return total / len(self.teachers)

    def facts(self) -> dict[str, str]:
        """Return the folders of the teachers and the checksums of their weights."""
        return {"teachers": "; ".join(f"{t.run.paths.root} {t.run.model_sha256}" for t in self.teachers)}


def _check_vectors(student: Recognizer, teacher: Teacher) -> None:
    widths = [
        _vector_width(model, where)
        for model, where in ((student, "the student"), (teacher.model, teacher.run.paths.root))
    ]
    if widths[0] != widths[1]:
        raise SettingsError(
            "`compress.vector_weight` requires vectors of the same width, but the student's vector has "
            f"{widths[0]} values and that of {teacher.run.paths.root} has {widths[1]}; use "
            "`compress.feature_weight`, which allows different widths"
        )


def _vector_width(model: Recognizer, where: object) -> int:
    if model.options.dense:
        raise SettingsError(
            f"`compress.vector_weight`: {where} classifies every position (`model.dense`), so it has no vector; "
            "use `compress.feature_weight`"
        )
    widths: Sequence[int] = [head.features for head in model.heads]  # type: ignore[misc]
    return sum(widths)
