"""What one network can learn from another: losses between what a student and a teacher say and see of a clip.

Each is a sum over the clips of a batch, as training losses are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from two_stream.heads.base import space_mean
from two_stream.recognizer import Recognizer
from two_stream.types import FeatureMap


@dataclass
class LayerOutputs:
    """What a network made of the batch it saw last."""

    maps: list[torch.Tensor] = field(default_factory=list)
    """feature maps `(B, C, T, H, W)` of its pathways, float32"""
    vector: torch.Tensor | None = None
    """`(B, D)`: what the head gives, before dropout and classifier, float32"""

    def watch(self, model: Recognizer) -> LayerOutputs:
        """Take in what a model makes of every batch from now on; return itself."""

        # functions, not methods: a copy of the model (its moving average) must not copy what watches it
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
    """Return the soft targets `(B, K)` of several teachers.

    Args:
        logits: `(B, K)` of each.
        temperature: Logits are divided by it.
        fuse: `probabilities`: their weighted mean; `logits`: softmax of the logits' weighted mean.
        weights: One per teacher; none: equal ones.
    """
    shares = torch.tensor(list(weights) or [1.0] * len(logits)).to(logits[0])
    shares = shares / shares.sum()
    scaled = [values / temperature for values in logits]
    if fuse == "logits":
        return torch.einsum("n,nbk->bk", shares, torch.stack(scaled)).softmax(1)
    return torch.einsum("n,nbk->bk", shares, torch.stack([values.softmax(1) for values in scaled]))


def soft_target_loss(logits_BK: torch.Tensor, targets_BK: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return temperature² times the divergence of a student from soft targets (Hinton et al., 1503.02531).

    Args:
        logits_BK: The student's.
        targets_BK: Probabilities at the same temperature.
        temperature: Its square keeps the gradient's size.
    """
    logs_BK = F.log_softmax(logits_BK / temperature, dim=1)
    return temperature**2 * F.kl_div(logs_BK, targets_BK.to(logs_BK), reduction="sum")


def tokens_of(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the tokens `(B, T, D)` of a network's maps; several pathways stand side by side, at the first's rate."""
    tokens = [space_mean(x_BCTHW) for x_BCTHW in maps]
    return torch.cat([in_time(x_BTD, tokens[0].shape[1]) for x_BTD in tokens], dim=-1)


def in_time(x_BTD: torch.Tensor, steps: int) -> torch.Tensor:
    """Return tokens interpolated over time to a number of steps."""
    if x_BTD.shape[1] == steps:
        return x_BTD
    return F.interpolate(x_BTD.transpose(1, 2), size=steps, mode="linear").transpose(1, 2)


def feature_loss(student_BTD: torch.Tensor, teacher_BTD: torch.Tensor) -> torch.Tensor:
    """Return the mean square between tokens of one width (FitNets, Romero et al., 1412.6550)."""
    adapted = in_time(student_BTD, teacher_BTD.shape[1])
    return len(adapted) * F.mse_loss(adapted, teacher_BTD)


def attention_loss(student_BCTHW: torch.Tensor, teacher_BCTHW: torch.Tensor) -> torch.Tensor:
    """Return half the squared distance of two attention maps (Zagoruyko and Komodakis, 1612.03928, activation-based).

    A map is the mean over channels of squared activations, brought to length 1 over all places of a clip; a student of
    another size is interpolated first. 0: they look at the same places; 1: at none in common.
    """
    student, teacher = (x.pow(2).mean(1, keepdim=True) for x in (student_BCTHW, teacher_BCTHW))
    if student.shape[2:] != teacher.shape[2:]:
        student = F.interpolate(student, size=teacher.shape[2:], mode="trilinear")
    one, other = (F.normalize(x.flatten(1), dim=1) for x in (student, teacher))
    return 0.5 * (one - other).pow(2).sum()


def vector_loss(student_BD: torch.Tensor, teacher_BD: torch.Tensor) -> torch.Tensor:
    """Return the mean square between the vectors before the classifiers (MARS: Crasto et al., CVPR 2019, eq. 1)."""
    return len(student_BD) * F.mse_loss(student_BD, teacher_BD)
