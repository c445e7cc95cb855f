"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of the clips of a batch, the same for all frames of a clip.

A clip always contributes at least half of its mixture, so that training accuracy stays meaningful.
"""

from __future__ import annotations

from math import sqrt

import torch
import torch.nn.functional as F

from two_stream.config.schema import TrainOptions
from two_stream.runtime.seeding import rng


def mix_batch(
    clips_BCTHW: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    options: TrainOptions,
    *,
    key: tuple[object, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply mixup, CutMix or, by chance, neither to a batch.

    Args:
        clips_BCTHW: Pixel values 0..255, uint8 or float.
        labels: int64 `(B,)`, or float `(B, K)` of a multi-label set.
        num_classes: K.
        options: `mixup`, `cutmix`, `mix_prob` and `mix_switch`.
        key: Seed of the random numbers, such as seed, epoch and batch number.

    Returns:
        Clips and targets; targets of mixed clips are soft, `(B, K)`.
    """
    both = options.mixup and options.cutmix
    whether, which = rng("mix", *key).random(2)
    if not (options.mixup or options.cutmix) or whether >= options.mix_prob:
        return clips_BCTHW, labels
    if options.cutmix and (not both or which < options.mix_switch):
        return cut_mix(clips_BCTHW, labels, num_classes, options.cutmix, key=key)
    return mix(clips_BCTHW, labels, num_classes, options.mixup, key=key)


def mix(
    clips_BCTHW: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    alpha: float,
    *,
    key: tuple[object, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each clip with another of its batch; arguments as for `mix_batch`.

    A clip's own share λ is drawn from Beta(alpha, alpha) and taken as max(λ, 1 - λ).

    Returns:
        Float clips of pixel values 0..255 and soft targets `(B, K)`.
    """
    draw = rng("mixup", *key)
    count = len(labels)
    share = draw.beta(alpha, alpha, size=count)
    own = torch.as_tensor(share, dtype=torch.float32).to(clips_BCTHW.device)
    own_B = torch.maximum(own, 1.0 - own)
    partner = torch.as_tensor(draw.permutation(count)).to(clips_BCTHW.device)
    pixels = clips_BCTHW.float()
    own_B1111 = own_B.view(-1, 1, 1, 1, 1)
    return (
        pixels * own_B1111 + pixels[partner] * (1.0 - own_B1111),
        _mixed_targets(labels, partner, own_B, num_classes),
    )


def cut_mix(
    clips_BCTHW: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    alpha: float,
    *,
    key: tuple[object, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paste a box of another clip of the batch into each clip, the same box in every frame.

    The box has the frame's shape and the area 1 - λ, with λ as in `mix`; it may extend beyond the frame. Labels are
    mixed in proportion to the pixels.

    Returns:
        Clips of the input's type and soft targets `(B, K)`.
    """
    draw = rng("cutmix", *key)
    count, (height, width) = len(labels), clips_BCTHW.shape[-2:]
    share = draw.beta(alpha, alpha, size=count)
    partner = draw.permutation(count)
    mixed = clips_BCTHW.clone()
    own = []
    for index, lam in enumerate(share):
        side = sqrt(min(lam, 1.0 - lam))
        centre_y, centre_x = draw.random(2)
        top, bottom = _span(centre_y, side, height)
        left, right = _span(centre_x, side, width)
        box = (slice(None), slice(None), slice(top, bottom), slice(left, right))
        mixed[index][box] = clips_BCTHW[int(partner[index])][box]
        own.append(1.0 - (bottom - top) * (right - left) / (height * width))
    own_B = torch.tensor(own, device=clips_BCTHW.device)
    return mixed, _mixed_targets(labels, torch.as_tensor(partner).to(own_B.device), own_B, num_classes)


def _span(centre: float, share: float, length: int) -> tuple[int, int]:
    start = round((centre - share / 2) * length)
    return max(0, start), min(length, start + round(share * length))


def _mixed_targets(
    labels: torch.Tensor, partner: torch.Tensor, own_B: torch.Tensor, num_classes: int
) -> torch.Tensor:
    targets_BK = (F.one_hot(labels, num_classes) if labels.ndim == 1 else labels).float()
    own_B1 = own_B.view(-1, 1)
    return targets_BK * own_B1 + targets_BK[partner] * (1.0 - own_B1)
