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
from two_stream.errors import SettingsError
from two_stream.heads.base import HEADS, Head, TokenMask


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


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, hidden)
        self.dropout = dropout

    def _split(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD.view(*x_BTD.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x_BTD: torch.Tensor, kept_BT: torch.Tensor | None) -> torch.Tensor:
        """Attend only to the kept tokens, or to all tokens if `kept_BT` is None."""
        y = F.scaled_dot_product_attention(
            self._split(self.query(x_BTD)),
            self._split(self.key(x_BTD)),
            self._split(self.value(x_BTD)),
            attn_mask=None if kept_BT is None else kept_BT[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        out_BTD: torch.Tensor = self.output(y.transpose(1, 2).flatten(2))
        return out_BTD

    def weights(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return the attention of every token to every token, `(B, heads, T, T)`, without mask."""
        query, key = self._split(self.query(x_BTD)), self._split(self.key(x_BTD))
        scores: torch.Tensor = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        return scores.softmax(-1)


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
class Bert(Head):
    """Transformer blocks over tokens with learned positions; returns the output of the class token, or the mean."""

    other_lengths = "`head.interpolate: true`"

    def __init__(self, options: BertHead, *, features: int, tokens: int) -> None:
        super().__init__(options, features=features, tokens=tokens)
        hidden = options.hidden or features
        if hidden % options.heads:
            raise SettingsError(
                f"head bert: width {hidden} is not divisible by {options.heads} heads; "
                "change `head.hidden` or `head.heads`"
            )
        self.fixed_length = not options.interpolate
        self.has_class_token = options.class_token
        self.embed = nn.Linear(features, hidden) if hidden != features else nn.Identity()
        if options.class_token:
            self.class_token = nn.Parameter(torch.empty(1, 1, hidden))
        self.positions = nn.Parameter(torch.empty(1, tokens + int(options.class_token), hidden))
        self.mask = TokenMask(options.keep, options.class_token)
        self.dropout = nn.Dropout(options.dropout)
        self.blocks = nn.ModuleList(
            Block(hidden, options.heads, hidden * options.feed_forward, options.dropout)
            for _ in range(options.layers)
        )
        self.features = hidden
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def _embedded(self, x_BTD: torch.Tensor) -> torch.Tensor:
        self.check_tokens(x_BTD)
        if self.options.normalize:
            x_BTD = F.normalize(x_BTD, dim=-1)
        x_BTD = self.embed(x_BTD)
        if self.options.class_token:
            x_BTD = torch.cat((self.class_token.expand(x_BTD.shape[0], -1, -1).to(x_BTD.dtype), x_BTD), dim=1)
        embedded: torch.Tensor = self.dropout(x_BTD + self._positions(x_BTD.shape[1]))
        return embedded

    def _positions(self, count: int) -> torch.Tensor:
        """Return the positions of a sequence of `count` tokens, `(1, count, hidden)`.

        For another number than that of the weights, the positions of time tokens are resized as a picture of T columns
        would be (bilinear, corners not aligned). The position of the class token is kept.
        """
        first = int(self.options.class_token)
        if count == self.positions.shape[1]:
            return self.positions
        time_1DT = self.positions[:, first:].transpose(1, 2).unsqueeze(2)
        time_1DT = F.interpolate(
            time_1DT, size=(1, count - first), mode="bilinear", align_corners=False
        ).squeeze(2)
        return torch.cat((self.positions[:, :first], time_1DT.transpose(1, 2)), dim=1)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `(B, hidden)`; in training, some time tokens are masked."""
        x_BTD = self._embedded(x_BTD)
        kept_BT = self.mask(x_BTD.shape[0], x_BTD.shape[1], x_BTD.device)
        for block in self.blocks:
            x_BTD = block(x_BTD, kept_BT)
        return x_BTD[:, 0] if self.options.class_token else x_BTD.mean(1)

    @torch.no_grad()
    def attention(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return how much the last block's class token attends to each time token, `(B, heads, T)`.

        The class token's attention to itself is omitted, so a row sums to less than one. Without a class token, the
        result is the mean over the query tokens. Dropout and masks are not applied.
        """
        x_BTD = self._embedded(x_BTD)
        for block in self.blocks[:-1]:
            x_BTD = block(x_BTD, None)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        weights_BHTT = last.attention.weights(last.norm1(x_BTD))
        return weights_BHTT[:, :, 0, 1:] if self.options.class_token else weights_BHTT.mean(2)
