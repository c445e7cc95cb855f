"""Pre-norm transformer encoder with rotary positions over the tokens, and layers that other attention heads share.

Source: the encoder of ViT (arXiv 2010.11929: pre-norm, GELU, a norm after the last block) with the rotary positions of
RoFormer (arXiv 2104.09864) instead of learned ones, so that the weights fit clips of any length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from two_stream.config.heads import TransformerHead
from two_stream.errors import SettingsError
from two_stream.heads.base import HEADS, Head


def rotate(x_BHTD: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of channels by angles proportional to the position, so that scores depend on distances in time.

    The base is 10,000. Channel i is paired with channel i + D/2, as in Llama. If D is odd, the last channel is kept.
    """
    half = x_BHTD.shape[-1] // 2
    # angles of half precision are inexact
    dtype = torch.float32 if x_BHTD.element_size() < 4 else x_BHTD.dtype
    steps = torch.arange(x_BHTD.shape[-2], device=x_BHTD.device, dtype=dtype)
    speeds = 10000.0 ** (torch.arange(half, device=x_BHTD.device, dtype=dtype) / -max(half, 1))
    angles_TD = steps[:, None] * speeds
    cos, sin = angles_TD.cos().to(x_BHTD.dtype), angles_TD.sin().to(x_BHTD.dtype)
    first, second, rest = x_BHTD[..., :half], x_BHTD[..., half : 2 * half], x_BHTD[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


class Attention(nn.Module):
    """Multi-head attention, with rotary positions if `rotary`, and followed by a linear layer if `output`."""

    def __init__(
        self, hidden: int, heads: int, dropout: float, *, rotary: bool = False, output: bool = True
    ) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, hidden) if output else nn.Identity()
        self.dropout = dropout
        self.rotary = rotary

    def _split(self, x_BTD: torch.Tensor, rotary: bool = False) -> torch.Tensor:
        x_BHTD = x_BTD.view(*x_BTD.shape[:2], self.heads, -1).transpose(1, 2)
        return rotate(x_BHTD) if rotary else x_BHTD

    def forward(
        self, x_BTD: torch.Tensor, kept_BT: torch.Tensor | None = None, query_BQD: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attend to the kept tokens, or to all tokens if `kept_BT` is None; the queries are the tokens or others."""
        query = self.query(x_BTD if query_BQD is None else query_BQD)
        y = F.scaled_dot_product_attention(
            self._split(query, self.rotary),
            self._split(self.key(x_BTD), self.rotary),
            self._split(self.value(x_BTD)),
            attn_mask=None if kept_BT is None else kept_BT[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        out_BQD: torch.Tensor = self.output(y.transpose(1, 2).flatten(2))
        return out_BQD

    def weights(self, x_BTD: torch.Tensor, query_BQD: torch.Tensor | None = None) -> torch.Tensor:
        """Return the attention of every query to every token, `(B, heads, Q, T)`, without mask."""
        query = self._split(self.query(x_BTD if query_BQD is None else query_BQD), self.rotary)
        key = self._split(self.key(x_BTD), self.rotary)
        scores: torch.Tensor = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        return scores.softmax(-1)


class AttentionBlock(nn.Module):
    """Pre-norm block: attention and a feed-forward network with GELU, each with a residual connection.

    With `cross`, queries that are not normalised attend to the normalised tokens, and the attention has no output
    layer, as in the pooling of V-JEPA 2.
    """

    def __init__(
        self, width: int, heads: int, inner: int, dropout: float, *, rotary: bool = False, cross: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads, dropout, rotary=rotary, output=not cross)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: torch.Tensor, query_BQD: torch.Tensor | None = None) -> torch.Tensor:
        """Return `(B, T, D)`, or `(B, Q, D)` for queries."""
        y = self.dropout(self.attention(self.norm1(x_BTD), query_BQD=query_BQD))
        y = y + (x_BTD if query_BQD is None else query_BQD)
        out: torch.Tensor = y + self.dropout(self.feed_forward(self.norm2(y)))
        return out


class AttentionHead(Head):
    """A head whose tokens pass a linear layer if its `hidden` is another width, and join a class token if it has one.

    `_embedded` returns the input of `blocks`, which have the parts `norm1` and `attention`.
    """

    blocks: nn.ModuleList

    def __init__(self, options: Any, *, features: int, tokens: int) -> None:
        super().__init__(options, features=features, tokens=tokens)
        hidden = self.features = options.hidden or features
        if hidden % options.heads:
            raise SettingsError(
                f"head {options.kind}: width {hidden} is not divisible by {options.heads} heads; "
                "change `head.hidden` or `head.heads`"
            )
        self.has_class_token = getattr(options, "class_token", False)
        self.embed = nn.Linear(features, hidden) if hidden != features else nn.Identity()
        if self.has_class_token:
            self.class_token = nn.Parameter(torch.empty(1, 1, hidden))

    def initialise(self) -> None:
        """Draw all weights from a normal distribution and set biases to zero; the scales of norms stay."""
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def _embedded(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_BTD = self.embed(x_BTD)
        if self.has_class_token:
            x_BTD = torch.cat((self.class_token.expand(x_BTD.shape[0], -1, -1).to(x_BTD.dtype), x_BTD), dim=1)
        return x_BTD

    @torch.no_grad()
    def attention(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return how much the last block's class token attends to each time token, `(B, heads, T)`.

        The class token's attention to itself is omitted, so a row sums to less than one. Without a class token, the
        result is the mean over the query tokens. Dropout and masks are not applied.
        """
        x_BTD = self._embedded(x_BTD)
        for block in self.blocks[:-1]:
            x_BTD = block(x_BTD, None)
        last: Any = self.blocks[-1]
        weights_BHTT: torch.Tensor = last.attention.weights(last.norm1(x_BTD))
        return weights_BHTT[:, :, 0, 1:] if self.has_class_token else weights_BHTT.mean(2)


@HEADS.register(TransformerHead)
class Transformer(AttentionHead):
    """Transformer encoder; returns the output of the class token (at position 0), or the mean of all outputs."""

    def __init__(self, options: TransformerHead, *, features: int, tokens: int) -> None:
        super().__init__(options, features=features, tokens=tokens)
        shape = self.features, options.heads, self.features * options.feed_forward, options.dropout
        self.dropout = nn.Dropout(options.dropout)
        self.blocks = nn.ModuleList(AttentionBlock(*shape, rotary=True) for _ in range(options.layers))
        self.norm = nn.LayerNorm(self.features, eps=1e-6)
        self.initialise()

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `(B, hidden)`."""
        x_BTD = self.dropout(self._embedded(x_BTD))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        x_BTD = self.norm(x_BTD)
        return x_BTD[:, 0] if self.has_class_token else x_BTD.mean(1)
