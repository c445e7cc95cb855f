"""The paper's BERT over the tokens of a clip.

Source: Kalfaoglu, Kalkan, Alatan, "Late Temporal Modeling in 3D CNN Architectures with BERT for Action Recognition"
(arXiv 2008.01232), section 3, and its published code. The blocks are pre-norm, and their norm divides by (unbiased
standard deviation + eps). GELU is computed by its tanh approximation, positions are learned, the class token comes
first, and no norm follows the last block. The interpolation of positions is an addition of this project.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from two_stream.config.heads import BertHead
from two_stream.heads.base import HEADS, TokenMask
from two_stream.heads.transformer import Attention, AttentionHead


class UnbiasedNorm(nn.Module):
    """`weight * (x - mean) / (std + eps) + bias`, with the unbiased standard deviation and eps outside the root.

    This is the norm of the published weights; `nn.LayerNorm` divides by √(biased variance + eps).
    """

    def __init__(self, features: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.eps = eps

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension, in float32 even under autocast."""
        x = x_BTD.float() if x_BTD.dtype in (torch.float16, torch.bfloat16) else x_BTD
        std, mean = torch.std_mean(x, dim=-1, keepdim=True)
        return self.weight * (x - mean) / (std + self.eps) + self.bias


class Block(nn.Module):
    """Pre-norm transformer block, with an additional dropout at its end as in the published code."""

    def __init__(self, hidden: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = UnbiasedNorm(hidden)
        self.attention = Attention(hidden, heads, dropout)
        self.norm2 = UnbiasedNorm(hidden)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden, feed_forward),
            nn.GELU(approximate="tanh"),
            nn.Dropout(dropout),
            nn.Linear(feed_forward, hidden),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: torch.Tensor, kept_BT: torch.Tensor | None) -> torch.Tensor:
        """Return `(B, T, D)`."""
        x_BTD = x_BTD + self.dropout(self.attention(self.norm1(x_BTD), kept_BT))
        x_BTD = x_BTD + self.dropout(self.feed_forward(self.norm2(x_BTD)))
        out_BTD: torch.Tensor = self.dropout(x_BTD)
        return out_BTD


@HEADS.register(BertHead)
class Bert(AttentionHead):
    """Transformer blocks over tokens with learned positions; returns the output of the class token, or the mean."""

    other_lengths = "`head.interpolate: true`"

    def __init__(self, options: BertHead, *, features: int, tokens: int) -> None:
        super().__init__(options, features=features, tokens=tokens)
        self.fixed_length = not options.interpolate
        hidden = self.features
        self.positions = nn.Parameter(torch.empty(1, tokens + int(options.class_token), hidden))
        self.mask = TokenMask(options.keep, options.class_token)
        self.dropout = nn.Dropout(options.dropout)
        self.blocks = nn.ModuleList(
            Block(hidden, options.heads, hidden * options.feed_forward, options.dropout)
            for _ in range(options.layers)
        )
        self.initialise()

    def _positions(self, count: int) -> torch.Tensor:
        """Return the positions of `count` tokens, `(1, count, hidden)`.

        For another number of tokens than that of the weights, the time positions are resized like a row of pixels
        (linear, corners not aligned). The position of the class token is kept.
        """
        if count == self.positions.shape[1]:
            return self.positions
        first = int(self.options.class_token)
        rows_1DHT = self.positions[:, first:].transpose(1, 2).unsqueeze(2)
        rows_1DHT = F.interpolate(rows_1DHT, size=(1, count - first), mode="bilinear", align_corners=False)
        return torch.cat((self.positions[:, :first], rows_1DHT.squeeze(2).transpose(1, 2)), dim=1)

    def _embedded(self, x_BTD: torch.Tensor) -> torch.Tensor:
        self.check_tokens(x_BTD)
        if self.options.normalize:
            x_BTD = F.normalize(x_BTD, dim=-1)
        x_BTD = super()._embedded(x_BTD)
        embedded: torch.Tensor = self.dropout(x_BTD + self._positions(x_BTD.shape[1]))
        return embedded

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `(B, hidden)`; in training, some time tokens are masked."""
        x_BTD = self._embedded(x_BTD)
        kept_BT = self.mask(x_BTD.shape[0], x_BTD.shape[1], x_BTD.device)
        for block in self.blocks:
            x_BTD = block(x_BTD, kept_BT)
        return x_BTD[:, 0] if self.options.class_token else x_BTD.mean(1)
