"""Faster networks for scoring: BatchNorm folding, weights in a smaller type, compilation."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from two_stream.runtime.console import warn

Convolution = nn.Conv2d | nn.Conv3d
BatchNorm = nn.BatchNorm2d | nn.BatchNorm3d
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
FOLD_TOLERANCE = 1e-4
"""Largest difference of a folded network on its example, relative to the largest output."""


@torch.no_grad()
def fold_batchnorm(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """Return a copy in evaluation mode whose BatchNorms are folded into the convolutions before them.

    A forward pass on `example` determines which norm follows which convolution. If the outputs of copy and original
    differ by more than rounding, the original is returned with a warning.

    Args:
        model: Maps the example to a tensor.
        example: An input on the model's device; it may be small.
    """
    plain = copy.deepcopy(model).eval()
    before = plain(example)
    pairs = _pairs(plain, example)
    names: dict[nn.Module, str] = {module: name for name, module in plain.named_modules()}
    for convolution, norm in pairs:
        joined = fuse_conv_bn_eval(convolution, norm)
        _replace(plain, names[convolution], joined)
        _replace(plain, names[norm], _inner_modules(norm))
    after = plain(example)
    scale = float(before.abs().max())
    if not torch.allclose(after, before, rtol=0.0, atol=FOLD_TOLERANCE * scale):
        warn("BatchNorm is not folded: the folded network would give different results")
        return model
    return plain


def lower_convolutions(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert the weights of convolutions to a smaller type in place, so that autocast does not convert them again."""
    for part in model.modules():
        if isinstance(part, _CONVOLUTIONS):
            part.to(dtype)
    return model


def compile_for_device(function: Callable[..., Any], device: torch.device) -> Callable[..., Any] | None:
    """Return a function compiled for one input size, with CUDA graphs on a GPU; None without a compiler.

    The first call compiles the function, which takes seconds to a minute. Each call overwrites the output of the
    previous call.
    """
    problem = missing_compiler(device)
    if problem:
        warn(f"not compiled: {problem}")
        return None
    # freezing makes weights constants: laid out for the kernels once, activations fused with convolutions
    options: dict[str, Any] = {"triton.cudagraphs": True} if device.type == "cuda" else {"freezing": True}
    made: Callable[..., Any] = torch.compile(function, dynamic=False, options=options)
    return made


def missing_compiler(device: torch.device) -> str:
    """Return the reason why this machine cannot compile for a device; empty if it can."""
    if device.type == "cuda":
        return "" if find_spec("triton") else "Triton is not installed (pip install triton)"
    if device.type != "cpu":
        return f"torch.compile is not used on {device.type}"
    names = (os.environ.get("CXX", ""), "g++", "clang++", "cl")
    return "" if any(map(shutil.which, names)) else "no C++ compiler found (g++ or clang++)"


def _pairs(model: nn.Module, example: torch.Tensor) -> list[tuple[Convolution, BatchNorm]]:
    """Return each convolution that is used once, paired with the BatchNorm that receives its output."""
    made: dict[tuple[int, int], Convolution] = {}  # a later change in place (a shortcut) raises the version
    kept: list[torch.Tensor] = []  # kept alive, so that ids are unique
    calls: dict[nn.Module, int] = {}
    found: list[tuple[Convolution, BatchNorm]] = []

    def convolved(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        assert isinstance(module, _CONVOLUTIONS)
        calls[module] = calls.get(module, 0) + 1
        kept.append(output)
        made[id(output), output._version] = module

    def normalised(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, _NORMS)
        calls[module] = calls.get(module, 0) + 1
        convolution = made.get((id(inputs[0]), inputs[0]._version))
        if convolution is not None:
            found.append((convolution, module))

    handles = []
    for part in model.modules():
        if isinstance(part, _CONVOLUTIONS):
            handles.append(part.register_forward_hook(convolved))
        elif isinstance(part, _NORMS):
            handles.append(part.register_forward_pre_hook(normalised))
    try:
        model(example)
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in found if all(calls[part] == 1 for part in pair) and pair[1].track_running_stats]


def _inner_modules(norm: nn.Module) -> nn.Module:
    """Return the modules inside a norm of timm: dropout, then activation."""
    inside = [part for name, part in norm.named_children() if name in ("drop", "act")]
    return nn.Sequential(*inside) if inside else nn.Identity()


def _replace(model: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent).register_module(child, part)
