"""Compiling a backbone stage by stage: small graphs that compile one after another, names of weights unchanged."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterable

import torch
from torch import nn

from two_stream.runtime.console import note, warn


def compile_stages(stages: Iterable[tuple[str, nn.Module]], device: torch.device) -> bool:
    """Let torch compile each stage when it first runs; false, with a warning, where the machine has no compiler."""
    missing = _missing(device)
    if missing:
        warn(f"`train.compile`: {missing}, so nothing is compiled")
        return False
    for _, stage in stages:
        stage.compile()
    note("the backbone is compiled during the first steps; that takes minutes")
    return True


def _missing(device: torch.device) -> str:
    """Say what torch would need to compile for a device; empty when it is there."""
    if device.type == "cuda":
        return "" if importlib.util.find_spec("triton") else "Triton is not installed"
    if device.type != "cpu":
        return f"torch compiles nothing for {device.type}"
    names = [os.environ.get("CXX", ""), "g++", "clang++"]
    return "" if any(name and shutil.which(name) for name in names) else "there is no C++ compiler (g++)"
