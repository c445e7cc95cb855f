"""Non-local block, followed by concatenation or the mean.

Source: Wang et al., "Non-local Neural Networks" (arXiv 1711.07971), embedded Gaussian. As in the code of Kalfaoglu et
al. (arXiv 2008.01232), but unlike Wang et al., the scores are divided by √N for N positions.
"""

from __future__ import annotations

import torch
from torch import nn

from two_stream.config.heads import NonLocalHead
from two_stream.heads.base import HEADS, Head
from two_stream.heads.concat import Concatenation


class NonLocalBlock(nn.Module):
    """Attention between all positions; initially the identity, since the last BatchNorm's scale is zero."""

    def __init__(self, features: int, inner: int) -> None:
        super().__init__()
        self.theta = nn.Linear(features, inner)
        self.phi = nn.Linear(features, inner)
        self.g = nn.Linear(features, inner)
        self.out = nn.Linear(inner, features)
        self.norm = nn.BatchNorm1d(features)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        """Return `x + W(softmax(θ(x) φ(x)ᵀ / √N) g(x))`, `(B, N, D)` for N positions."""
        query, key, value = (part(x_BND).unsqueeze(1) for part in (self.theta, self.phi, self.g))
        attended = nn.functional.scaled_dot_product_attention(query, key, value, scale=x_BND.shape[1] ** -0.5)
        y_BND = attended.squeeze(1)  # one head: ONNX requires a head dimension
        change_BDN: torch.Tensor = self.norm(self.out(y_BND).transpose(1, 2))
        return x_BND + change_BDN.transpose(1, 2)


@HEADS.register(NonLocalHead)
class NonLocal(Head):
    """Non-local block over space-time (as published) or over the tokens, followed by concatenation or the mean."""

    def __init__(self, options: NonLocalHead, *, features: int, tokens: int) -> None:
        super().__init__(options, features=features, tokens=tokens)
        self.block = NonLocalBlock(features, options.inner or features)
        self.needs_maps = options.over == "space_time"
        self.join: Concatenation | None = None
        if options.pool == "concat":
            self.fixed_length = True
            self.join = Concatenation(features, tokens, options.features, options.dropout)
            self.features = self.join.features

    def pool(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return tokens `x_BTD`; with `over: space_time`, the block is applied to the map first."""
        if self.options.over == "time":
            return super().pool(x_BCTHW)
        t = x_BCTHW.shape[2]
        x_BND = self.block(x_BCTHW.flatten(2).transpose(1, 2))
        tokens: torch.Tensor = x_BND.unflatten(1, (t, -1)).mean(2)
        return tokens

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return `(B, features)`."""
        self.check_tokens(x_BTD)
        if self.options.over == "time":
            x_BTD = self.block(x_BTD)
        z_BD: torch.Tensor = x_BTD.mean(1) if self.join is None else self.join(x_BTD)
        return z_BD
