"""Base class of heads, and the registry that finds a head by the `kind` in the settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from two_stream.config.heads import HeadOptions
from two_stream.errors import SettingsError
from two_stream.registry import Registry

HEADS: Registry[type[Head]] = Registry("head", HeadOptions)


def space_mean(x_BCTHW: torch.Tensor) -> torch.Tensor:
    """Return a feature map's mean over space as tokens `x_BTD`."""
    return x_BCTHW.mean((3, 4)).transpose(1, 2)


class Head(nn.Module, ABC):
    """Aggregates tokens over time: `x_BTD -> z_BD`. Heads are built as `HeadClass(options, features=D, tokens=T)`."""

    fixed_length: bool = False
    """Whether the weights fit only one number of tokens."""
    features: int
    """Width of the output vector."""
    needs_maps: bool = False
    """Whether `pool` needs feature maps, so that tokens averaged over space are not enough."""
    other_lengths: str = ""
    """What to set so that a head of fixed length accepts other lengths, for error messages; empty: nothing."""
    has_class_token: bool = False
    """Whether `attention` is the attention of a class token, which also attends to itself."""

    def __init__(self, options: Any, *, features: int, tokens: int) -> None:
        super().__init__()
        self.options = options
        self.features = features
        self.tokens = tokens

    def pool(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return tokens `x_BTD` of a feature map, by default its mean over space.

        A head that uses positions (non-local) overrides this and sets `needs_maps`.
        """
        return space_mean(x_BCTHW)

    @abstractmethod
    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return one vector `(B, features)` per clip."""

    def attention(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return the attention to each time token, `(B, heads, T)`, without dropout and masks.

        This method is optional; `two-stream predict --attention` draws its result. A row sums to 1, or with
        `has_class_token` to 1 minus the class token's attention to itself.
        """
        raise NotImplementedError

    def has_attention(self) -> bool:
        """Return whether this kind of head defines `attention`."""
        return type(self).attention is not Head.attention

    def check_attention(self) -> None:
        """Check that this kind of head defines `attention`.

        Raises:
            SettingsError: It does not; the message lists the heads that do.
        """
        if not self.has_attention():
            others = [kind for kind in HEADS if HEADS[kind].attention is not Head.attention]
            raise SettingsError(f"head {self.options.kind} has no attention; use {' or '.join(others)}")

    def check_tokens(self, x_BTD: torch.Tensor) -> None:
        """Check the number of tokens.

        Raises:
            SettingsError: The weights fit another number; names both.
        """
        if self.fixed_length and x_BTD.shape[1] != self.tokens:
            raise SettingsError(
                f"head {self.options.kind} is built for {self.tokens} time steps but got {x_BTD.shape[1]}; "
                "pass clips of the model's clip length, or build the model with a different `input.clip_length`"
                + (f", or set {self.other_lengths}" if self.other_lengths else "")
            )


class Standard(nn.Module):
    """Standardises each channel with a measured mean and standard deviation; the identity before they are measured."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))

    @property
    def measured(self) -> bool:
        """Whether mean and standard deviation have been measured."""
        return bool(self.mean.any()) or not bool((self.deviation == 1.0).all())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return standardised tokens `(B, T, D)` or a standardised map `(B, D, T, H, W)`."""
        shape = (-1, 1, 1, 1) if x.ndim == 5 else (-1,)
        return (x - self.mean.view(shape)) / self.deviation.view(shape)


class TokenMask(nn.Module):
    """Random mask of tokens in training: each time token is kept with probability `keep`.

    The class token is always kept. Without a class token, at least one token is kept.
    """

    def __init__(self, keep: float, class_token: bool) -> None:
        super().__init__()
        self.keep = keep
        self.class_token = class_token

    def forward(self, batch: int, tokens: int, device: torch.device) -> torch.Tensor | None:
        """Return booleans `(B, tokens)`, true for kept tokens; None if nothing is masked."""
        if not self.training or self.keep >= 1.0:
            return None
        kept = torch.rand(batch, tokens, device=device) < self.keep
        if self.class_token:
            kept[:, 0] = True
        else:
            kept |= ~kept.any(dim=1, keepdim=True)
        return kept
