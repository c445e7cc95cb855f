"""Distillation: a network learns from its labels and from one or several trained networks.

A teacher with another modality (MARS: flow for an RGB student), clip length or size gets its own clips: the same
moment, crop and mirroring as the student's. Validation is the same as in any training run. Losses are sums over the
clips of a batch.
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
    """Feature maps and vector of a network for its last batch."""

    maps: list[torch.Tensor] = field(default_factory=list)
    """feature maps `(B, C, T, H, W)` of its pathways, float32"""
    vector: torch.Tensor | None = None
    """`(B, D)`: output of the head, before dropout and classifier, float32"""

    def watch(self, model: Recognizer) -> LayerOutputs:
        """Record the outputs of a model for every batch from now on; return itself."""

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
    """Return the soft targets `(B, K)` of several teachers' logits `(B, K)` at a temperature.

    With `probabilities` they are the weighted mean of the softmaxes, with `logits` the softmax of the weighted mean.
    Without weights teachers count equally.
    """
    shares = torch.tensor(list(weights) or [1.0] * len(logits)).to(logits[0])
    shares = shares / shares.sum()
    scaled = [values / temperature for values in logits]
    if fuse == "logits":
        return torch.einsum("n,nbk->bk", shares, torch.stack(scaled)).softmax(1)
    return torch.einsum("n,nbk->bk", shares, torch.stack([values.softmax(1) for values in scaled]))


def soft_target_loss(logits_BK: torch.Tensor, targets_BK: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return temperature² times the KL divergence of a student from soft targets (Hinton et al., arXiv 1503.02531).

    The targets are probabilities at the same temperature. The factor temperature² keeps the scale of the gradient.
    """
    logs_BK = F.log_softmax(logits_BK / temperature, dim=1)
    return temperature**2 * F.kl_div(logs_BK, targets_BK.to(logs_BK), reduction="sum")


def tokens_of(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the tokens `(B, T, D)` of a network's maps; pathways are concatenated, with the steps of the first."""
    tokens = [space_mean(x_BCTHW) for x_BCTHW in maps]
    return torch.cat([in_time(x_BTD, tokens[0].shape[1]) for x_BTD in tokens], dim=-1)


def in_time(x_BTD: torch.Tensor, steps: int) -> torch.Tensor:
    """Return tokens interpolated over time to a number of steps."""
    if x_BTD.shape[1] == steps:
        return x_BTD
    return F.interpolate(x_BTD.transpose(1, 2), size=steps, mode="linear").transpose(1, 2)


def feature_loss(student_BTD: torch.Tensor, teacher_BTD: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error between tokens of equal width (FitNets, Romero et al., arXiv 1412.6550)."""
    adapted = in_time(student_BTD, teacher_BTD.shape[1])
    return len(adapted) * F.mse_loss(adapted, teacher_BTD)


def attention_loss(student_BCTHW: torch.Tensor, teacher_BCTHW: torch.Tensor) -> torch.Tensor:
    """Return half the squared distance of two attention maps (Zagoruyko and Komodakis, 1612.03928, activation-based).

    A map is the mean over channels of squared activations, scaled to norm 1 over a clip; a student with a
    different size is interpolated first. The result is 0 for equal maps and 1 for maps without overlap.
    """
    student, teacher = (x.pow(2).mean(1, keepdim=True) for x in (student_BCTHW, teacher_BCTHW))
    if student.shape[2:] != teacher.shape[2:]:
        student = F.interpolate(student, size=teacher.shape[2:], mode="trilinear")
    one, other = (F.normalize(x.flatten(1), dim=1) for x in (student, teacher))
    return 0.5 * (one - other).pow(2).sum()


def vector_loss(student_BD: torch.Tensor, teacher_BD: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of the vectors before the classifiers (MARS: Crasto et al., CVPR 2019, eq. 1)."""
    return len(student_BD) * F.mse_loss(student_BD, teacher_BD)


class Teacher:
    """A trained network in evaluation mode, without gradients."""

    def __init__(self, path: Path, student: InputSpec) -> None:
        """Load the run of a teacher for a student with this input.

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
        """Run a batch; the results are in `outputs` and `logits_BK`."""
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
            raise SettingsError("`compress.teachers` is empty: use the run folders of the teachers")
        self.spec = input_spec(experiment.model)
        self.teachers = [Teacher(path, self.spec) for path in self.options.teachers]
        self.outputs = LayerOutputs()
        self.adapters = nn.ModuleList()
        self._check()

    def _check(self) -> None:
        """Reject teachers that the student cannot learn from."""
        train, data = self.experiment.train, self.experiment.data
        for teacher in self.teachers:
            taught = teacher.run.experiment.data
            if taught.split != data.split:
                raise SettingsError(
                    f"{teacher.run.paths.root}: trained on split {taught.split}, but the student on {data.split}, "
                    "whose test videos the teacher may have seen; use a teacher of the same split"
                )
            if teacher.model.cpu_only and pick_device(self.experiment.device).type != "cpu":
                raise SettingsError(
                    f"{teacher.run.paths.root}: an int8 network runs on the CPU only; use the run it was made from"
                )
            for name in ("mixup", "cutmix"):
                if getattr(train, name) and not teacher.shares_clips:
                    raise SettingsError(
                        f"`train.{name}` mixes the student's clips, but {teacher.run.paths.root} gets its own clips; "
                        "turn it off"
                    )
        if self.options.feature_weight and distributed.world_size() > 1:
            raise SettingsError(
                "`compress.feature_weight` trains an extra layer, which needs a single process; start without torchrun"
            )

    def data(self, data: TrainingData) -> TrainingData:
        """Return the data with clips for the teachers that cannot use the student's.

        Raises:
            SettingsError: A teacher has different classes, or the data set is multi-label (no soft targets).
            DataError: The data set has no frames for a teacher.
        """
        for teacher in self.teachers:
            if teacher.run.class_names != data.class_names:
                raise SettingsError(
                    f"{teacher.run.paths.root}: its {len(teacher.run.class_names)} classes are not the "
                    f"{len(data.class_names)} of {data.dataset}; use a teacher trained on the student's classes"
                )
        if self.options.distill_weight and data.labels is not None and data.labels.multi_label:
            raise SettingsError(
                f"`compress.distill_weight`: {data.dataset} is multi-label, whose probabilities do not sum "
                "to 1; set it to 0 and transfer features (`compress.feature_weight`)"
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
        """Record the student's outputs; create the layers that map its tokens to the teachers' widths.

        Raises:
            SettingsError: `vector_weight` is set, and the vectors differ in width or a network has none.
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
        """Restore `state`."""
        self.adapters.load_state_dict(state)

    def loss(self, plain: Loss, logits_BK: torch.Tensor, targets: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the sum over clips of the ordinary loss and the teachers' terms, each with its weight."""
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
        """Return the feature losses between the student and one teacher, divided by the number of teachers."""
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
        """Name the teachers and their weights."""
        return {"teachers": "; ".join(f"{t.run.paths.root} {t.run.model_sha256}" for t in self.teachers)}


def _check_vectors(student: Recognizer, teacher: Teacher) -> None:
    widths = [
        _vector_width(model, where)
        for model, where in ((student, "the student"), (teacher.model, teacher.run.paths.root))
    ]
    if widths[0] != widths[1]:
        raise SettingsError(
            f"`compress.vector_weight`: the student's vector has {widths[0]} values and that of "
            f"{teacher.run.paths.root} has {widths[1]}; use `compress.feature_weight`, which allows different widths"
        )


def _vector_width(model: Recognizer, where: object) -> int:
    if model.options.dense:
        raise SettingsError(
            f"`compress.vector_weight`: {where} classifies every position (`model.dense`) and has no vector; use "
            "`compress.feature_weight`"
        )
    widths: Sequence[int] = [head.features for head in model.heads]  # type: ignore[misc]
    return sum(widths)
