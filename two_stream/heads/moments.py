"""Statistics of the tokens over time."""

from __future__ import annotations

import math

import torch

from two_stream.config.heads import MomentsHead
from two_stream.heads.base import HEADS, Head


@HEADS.register(MomentsHead)
class Moments(Head):
    """Mean, standard deviation, change from beginning to end, maximum and means of parts, for clips of any length.

    The head has no weights. With a frozen backbone, only the classifier is trained, which is a convex problem that
    `train.optimizer: {kind: logistic}` solves.
    """

    def __init__(self, options: MomentsHead, *, features: int, tokens: int) -> None:
        super().__init__(options, features=features, tokens=tokens)
        added = options.spread + (options.differences > 0) + options.maximum + options.parts
        self.features = features * (1 + added)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `(B, features)`: D values of each statistic, in the order of the options.

        The standard deviation divides by T, so that it is 0 for a single token. Part i of n contains the tokens from
        `i * T // n` to `(i + 1) * T // n` (exclusive), but at least one. For `differences`, the first and the last part
        have the same length, `max(1, T // n)`.
        """
        options: MomentsHead = self.options
        count = x_BTD.shape[1]
        mean_BD = x_BTD.mean(1)
        found = [mean_BD]
        if options.spread:
            # the gradient of a norm at 0 is 0; that of a square root is not finite
            spread_BD = torch.linalg.vector_norm(x_BTD - mean_BD.unsqueeze(1), dim=1) / math.sqrt(count)
            found.append(spread_BD)
        if options.differences:
            end = max(1, count // options.differences)
            found.append(x_BTD[:, -end:].mean(1) - x_BTD[:, :end].mean(1))
        if options.maximum:
            found.append(x_BTD.amax(1))
        for part in range(options.parts):
            begin = part * count // options.parts
            found.append(x_BTD[:, begin : max(begin + 1, (part + 1) * count // options.parts)].mean(1))
        return torch.cat(found, dim=1)
