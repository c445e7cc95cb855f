"""Distillation: a network learns its labels and what one or several trained networks make of the same moments.

A teacher of another modality (MARS: flow for an RGB student), clip length or size sees clips of its own beside the
student's: the same moment, part of the picture and mirroring. The student's validation is that of any training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from two_stream.compression.transfer import (
    LayerOutputs,
    attention_loss,
    feature_loss,
    fused_targets,
    soft_target_loss,
    tokens_of,
    vector_loss,
)
from two_stream.config.compress import Distill
from two_stream.config.schema import Experiment
from two_stream.data.catalog import dataset_record
from two_stream.data.clips.dataset import ClipsBeside, companion, same_clip
from two_stream.errors import SettingsError
from two_stream.evaluation.runs.run import Run, load_run
from two_stream.recognizer import Recognizer, input_spec
from two_stream.runtime import distributed
from two_stream.runtime.device import autocast, pick_device
from two_stream.runtime.seeding import derive
from two_stream.training.data import TrainingData
from two_stream.training.extension import EXTENSIONS, Extension
from two_stream.training.losses import Loss
from two_stream.types import Batch, InputSpec


class Teacher:
    """A trained network that looks on: in evaluation mode, without gradients."""

    def __init__(self, path: Path, student: InputSpec) -> None:
        """Read its run.

        Args:
            path: Run folder.
            student: Input of the student.

        Raises:
            CheckpointError: It cannot be read.
        """
        self.run: Run = load_run(path)
        self.model = self.run.model.requires_grad_(False)
        self.seen = LayerOutputs().watch(self.model)
        self.shares_clips = same_clip(self.model.spec, student)
        self.logits_BK = torch.zeros(0)

    @property
    def root(self) -> Path:
        """Its run folder."""
        return self.run.paths.root

    @torch.no_grad()
    def look(self, clips_BCTHW: torch.Tensor, device: torch.device, precision: str) -> None:
        """Take in a batch; `seen` and `logits_BK` hold what it makes of it."""
        if self.model.device != device:
            self.model.to(device)
        with autocast(device, "fp32" if self.model.cpu_only else precision):
            logits = self.model(clips_BCTHW.to(device, non_blocking=True))
        self.logits_BK = logits.float()


@EXTENSIONS.register(Distill)
class Distillation(Extension):
    """Adds what teachers say to the loss."""

    def __init__(self, experiment: Experiment) -> None:
        assert isinstance(experiment.compress, Distill)
        self.experiment = experiment
        self.options = experiment.compress
        if not self.options.teachers:
            raise SettingsError(
                "`compress.teachers` names no run: give the folders of the networks to learn from"
            )
        self.spec = input_spec(experiment.model)
        self.teachers = [Teacher(path, self.spec) for path in self.options.teachers]
        self.seen = LayerOutputs()
        self.adapters = nn.ModuleList()
        self._check()

    def _check(self) -> None:
        """Refuse teachers that cannot be learnt from, in one line."""
        train, data = self.experiment.train, self.experiment.data
        for teacher in self.teachers:
            taught = teacher.run.experiment.data
            if taught.split != data.split:
                raise SettingsError(
                    f"{teacher.root}: trained on split {taught.split}, and the student on split {data.split}, whose "
                    "test videos it may have learnt; give a teacher of the student's split"
                )
            if teacher.model.cpu_only and pick_device(self.experiment.device).type != "cpu":
                raise SettingsError(
                    f"{teacher.root}: computes in int8, on the CPU alone; give the run it was made from"
                )
            for name in ("mixup", "cutmix"):
                if getattr(train, name) and not teacher.shares_clips:
                    raise SettingsError(
                        f"`train.{name}` mixes the student's clips, and {teacher.root} sees its own; leave it out"
                    )
        if self.options.feature_weight and distributed.world_size() > 1:
            raise SettingsError(
                "`compress.feature_weight` trains a layer beside the network in one process; start without torchrun"
            )

    def data(self, data: TrainingData) -> TrainingData:
        """Return the data with clips for those teachers that cannot take the student's.

        Raises:
            SettingsError: A teacher knows other classes; or soft targets are asked for of a multi-label data set.
            DataError: The data set has no frames for a teacher.
        """
        for teacher in self.teachers:
            if teacher.run.class_names != data.class_names:
                raise SettingsError(
                    f"{teacher.root}: knows {len(teacher.run.class_names)} classes that are not the "
                    f"{len(data.class_names)} of {data.dataset}; give a teacher trained on the student's classes"
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
        """Watch the student; make the layers that bring its tokens to the teachers' widths.

        Raises:
            SettingsError: Vectors are to be compared and differ in width, or there are none.
        """
        del resumed
        self.seen.watch(model)
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
        """Return the weights of those layers."""
        return list(self.adapters.to(device).parameters())

    def state(self) -> dict[str, torch.Tensor]:
        """Return the state of those layers."""
        return self.adapters.state_dict()

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Put `state` back."""
        self.adapters.load_state_dict(state)

    def loss(self, plain: Loss, logits_BK: torch.Tensor, targets: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the sum over clips of the ordinary loss and of what the teachers say, each with its weight."""
        options, device = self.options, logits_BK.device
        beside = iter(batch.beside)
        for teacher in self.teachers:
            clips = batch.clips if teacher.shares_clips else next(beside)
            teacher.look(clips, device, self.experiment.train.precision)
        total = options.student_weight * plain(logits_BK, targets)
        if options.distill_weight:
            said = [teacher.logits_BK.to(logits_BK) for teacher in self.teachers]
            soft_BK = fused_targets(said, options.temperature, options.fuse, options.teacher_weights)
            total = total + options.distill_weight * soft_target_loss(logits_BK, soft_BK, options.temperature)
        for number, teacher in enumerate(self.teachers):
            total = total + self._transferred(number, teacher)
        return total

    def _transferred(self, number: int, teacher: Teacher) -> torch.Tensor | float:
        """Return what the student is to see as a teacher does, the mean over teachers."""
        options, total = self.options, torch.zeros((), device=self.seen.maps[0].device)
        if options.feature_weight:
            adapted = self.adapters[number](tokens_of(self.seen.maps))
            total = total + options.feature_weight * feature_loss(adapted, tokens_of(teacher.seen.maps))
        if options.attention_weight:
            pair = (self.seen.maps[0], teacher.seen.maps[0])
            total = total + options.attention_weight * attention_loss(*pair)
        if options.vector_weight:
            assert self.seen.vector is not None
            assert teacher.seen.vector is not None
            total = total + options.vector_weight * vector_loss(self.seen.vector, teacher.seen.vector)
        return total / len(self.teachers)

    def facts(self) -> dict[str, str]:
        """Name the teachers and their weights."""
        return {"teachers": "; ".join(f"{t.root} {t.run.model_sha256}" for t in self.teachers)}


def _check_vectors(student: Recognizer, teacher: Teacher) -> None:
    widths = [
        _vector_width(model, where)
        for model, where in ((student, "the student"), (teacher.model, teacher.root))
    ]
    if widths[0] != widths[1]:
        raise SettingsError(
            f"`compress.vector_weight`: the student's vector has {widths[0]} numbers and that of {teacher.root} "
            f"{widths[1]}; take `compress.feature_weight`, which brings one width to the other"
        )


def _vector_width(model: Recognizer, where: object) -> int:
    if model.options.dense:
        raise SettingsError(
            f"`compress.vector_weight`: {where} classifies every place (`model.dense`) and has no vector; take "
            "`compress.feature_weight`"
        )
    widths: Sequence[int] = [head.features for head in model.heads]  # type: ignore[misc]
    return sum(widths)
