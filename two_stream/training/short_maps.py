"""Convolutions over maps shorter than their kernel, when training in bfloat16 on a CPU.

oneDNN's kernel for the gradient of the weights (`jit_bf16:avx512_core_bf16`, seen with torch 2.14 on Zen 4) reads and
writes beside its buffers when a map has fewer steps than the kernel: two frames under a 3×3×3 kernel are enough. The
gradient is then not finite, or finite and wrong, or the process dies. Such maps are small, so these convolutions are
computed in float32, which is right and costs little.
"""

from __future__ import annotations

import torch
from torch import nn


class ShortConv3d(nn.Conv3d):
    """A convolution that leaves autocast where its map is shorter than its kernel."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve `(B, C, T, H, W)`."""
        if not torch.is_grad_enabled() or not self._short(input.shape[2:]):
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float()).to(torch.bfloat16)

    def _short(self, sizes: torch.Size) -> bool:
        """Whether a map is shorter than the kernel; one step under three at stride 1 is seen to work."""
        return any(
            size < kernel and (size, kernel, stride) != (1, 3, 1)
            for size, kernel, stride in zip(sizes, self.kernel_size, self.stride, strict=True)
        )


def mind_short_maps(model: nn.Module, device: torch.device, precision: str) -> None:
    """Make a model's convolutions safe for training in bfloat16 on a CPU; elsewhere nothing is done.

    Weights and their names stay.
    """
    if device.type != "cpu" or precision != "bf16":
        return
    for module in model.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = ShortConv3d
