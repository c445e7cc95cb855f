"""Mixup of clips (arXiv 1710.09412): whole clips are blended, every frame with the same share."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from two_stream.runtime.seeding import rng


def mix(
    clips_BCTHW: torch.Tensor,
    labels_B: torch.Tensor,
    num_classes: int,
    alpha: float,
    *,
    key: tuple[object, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blend each clip with another of its batch.

    A clip's own share λ is drawn from Beta(alpha, alpha) and taken as max(λ, 1 - λ), so that its own label
    stays the larger part and training accuracy keeps a meaning. Shares and partners depend on `key` alone.

    Args:
        clips_BCTHW: Pixel values 0..255, uint8 or float.
        labels_B: int64.
        num_classes: K.
        alpha: Above 0; small values blend little.
        key: What the random numbers are for, such as seed, epoch and batch number.

    Returns:
        Float clips of pixel values 0..255 and soft targets `(B, K)`.
    """
    draw = rng("mixup", *key)
    count = len(labels_B)
    share = draw.beta(alpha, alpha, size=count)
    own = torch.as_tensor(share, dtype=torch.float32).to(clips_BCTHW.device)
    own_B = torch.maximum(own, 1.0 - own)
    partner = torch.as_tensor(draw.permutation(count)).to(clips_BCTHW.device)
    pixels = clips_BCTHW.float()
    own_B1111 = own_B.view(-1, 1, 1, 1, 1)
    targets_BK = F.one_hot(labels_B, num_classes).float()
    own_B1 = own_B.view(-1, 1)
    return (
        pixels * own_B1111 + pixels[partner] * (1.0 - own_B1111),
        targets_BK * own_B1 + targets_BK[partner] * (1.0 - own_B1),
    )
