"""Layers of the heads `transformer` and `attentive`: attention with optional rotary positions, and pre-norm blocks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from two_stream.errors import SettingsError

STD = 0.02
"""standard deviation of initial weights"""


def rotate(x_BHTD: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of channels by angles proportional to the position, so that scores depend on distances in time.

    Source: Su et al., "RoFormer" (arXiv 2104.09864), base 10,000. Channel i is paired with channel i + D/2, as in the
    Llama networks. If D is odd, the last channel is not rotated.
    """
    half = x_BHTD.shape[-1] // 2
    dtype = torch.promote_types(x_BHTD.dtype, torch.float32)  # angles in half precision would be inexact
    steps = torch.arange(x_BHTD.shape[-2], device=x_BHTD.device, dtype=dtype)
    speed = 10000.0 ** (torch.arange(half, device=x_BHTD.device, dtype=dtype) / -max(half, 1))
    angle_TD = steps[:, None] * speed
    cos, sin = angle_TD.cos().to(x_BHTD.dtype), angle_TD.sin().to(x_BHTD.dtype)
    first, second, rest = x_BHTD[..., :half], x_BHTD[..., half : 2 * half], x_BHTD[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


class MultiHeadAttention(nn.Module):
    """Attention of queries to tokens.

    Args:
        width: Width of queries and tokens.
        heads: Number of heads.
        dropout: Dropout of the attention weights in training.
        rotary: Whether queries and keys get rotary positions.
        output: Whether a linear layer follows.
    """

    def __init__(
        self, width: int, heads: int, dropout: float, *, rotary: bool = False, output: bool = True
    ) -> None:
        super().__init__()
        self.heads, self.dropout, self.rotary = heads, dropout, rotary
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width) if output else nn.Identity()

    def _split(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _compared(self, query_BQD: torch.Tensor, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the queries and keys of each head, `(B, heads, ·, D / heads)`."""
        query, key = self._split(self.query(query_BQD)), self._split(self.key(x_BTD))
        return (rotate(query), rotate(key)) if self.rotary else (query, key)

    def forward(self, query_BQD: torch.Tensor, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `(B, Q, D)`."""
        query, key = self._compared(query_BQD, x_BTD)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(query, key, self._split(self.value(x_BTD)), dropout_p=dropout)
        out_BQD: torch.Tensor = self.output(y.transpose(1, 2).flatten(2))
        return out_BQD

    def weights(self, query_BQD: torch.Tensor, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return the attention of each query to each token, `(B, heads, Q, T)`."""
        query, key = self._compared(query_BQD, x_BTD)
        scores: torch.Tensor = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        return scores.softmax(-1)


class AttentionBlock(nn.Module):
    """Pre-norm block: attention and a feed-forward network with GELU, each with a residual connection.

    With `cross`, a query that is not normalised attends to the normalised tokens, and the attention has no output
    layer, as in the pooling of V-JEPA 2.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        dropout: float,
        *,
        rotary: bool = False,
        cross: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = MultiHeadAttention(width, heads, dropout, rotary=rotary, output=not cross)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, feed_forward), nn.GELU(), nn.Dropout(dropout), nn.Linear(feed_forward, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: torch.Tensor, query_BQD: torch.Tensor | None = None) -> torch.Tensor:
        """Return `(B, T, D)`, or `(B, Q, D)` for queries."""
        normed = self.norm1(x_BTD)
        before, query = (x_BTD, normed) if query_BQD is None else (query_BQD, query_BQD)
        y = before + self.dropout(self.attention(query, normed))
        out: torch.Tensor = y + self.dropout(self.feed_forward(self.norm2(y)))
        return out


def make_embedding(kind: str, features: int, hidden: int, heads: int) -> nn.Module:
    """Return the layer before the attention: linear if the widths differ, otherwise the identity.

    Raises:
        SettingsError: The heads do not divide the hidden width.
    """
    if hidden % heads:
        raise SettingsError(
            f"head {kind}: width {hidden} is not divisible by {heads} heads; change `head.hidden` or `head.heads`"
        )
    return nn.Linear(features, hidden) if hidden != features else nn.Identity()


def initialise(module: nn.Module) -> None:
    """Draw weights from a normal distribution that is cut off at ±2, and set biases to zero; norms stay as they are."""
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2:
            nn.init.trunc_normal_(parameter, std=STD)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
