"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) for batches of clips; all frames of a clip are mixed alike.

Each clip contributes at least half of its mixture, so training accuracy is measured against the clip's own label.
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
    """Apply mixup or CutMix to a batch, or return the batch unchanged. The choice is random.

    Args:
        clips_BCTHW: Pixel values 0..255, uint8 or float.
        labels: Class indices, int64 `(B,)`; for a multi-label data set, float `(B, K)`.
        num_classes: Number of classes K.
        options: Settings; `mixup`, `cutmix`, `mix_prob` and `mix_switch` are used.
        key: Values that seed the random numbers, such as the seed, the epoch and the batch number.

    Returns:
        Clips and targets. If the clips were mixed, the targets are class probabilities `(B, K)`.
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
    """Mix each clip with a random clip of the batch. For the other arguments see `mix_batch`.

    λ is drawn from Beta(alpha, alpha) for each clip; the clip's own weight is max(λ, 1 - λ).

    Returns:
        Float clips with pixel values 0..255, and class probabilities `(B, K)`.
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
    """Paste a box from a random clip of the batch into each clip, at the same position in every frame.

    The box has the aspect ratio of the frame and covers min(λ, 1 - λ) of its area, with λ as in `mix`. The centre of
    the box is random, and parts outside the frame are cut off. Labels are mixed in proportion to the pixels.

    Returns:
        Clips with the dtype of the input, and class probabilities `(B, K)`.
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
