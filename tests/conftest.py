"""Fixtures every test may use."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)  # tiny tensors: threads cost more than they give, and xdist shares the cores

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference numbers and real videos beside the checkout."""
    for folder in (os.environ.get("TWO_STREAM_SHARED"), ROOT.parent / "shared", Path("/work/shared")):
        if folder and Path(folder, "fixtures").is_dir():
            return Path(folder)
    pytest.skip("the folder ../shared (fixtures and real videos) is not on this machine")


@pytest.fixture(scope="session")
def deterministic(shared: Path) -> ModuleType:
    """The module that fills state dicts and clips the way the fixtures were made."""
    spec = importlib.util.spec_from_file_location("deterministic", shared / "fixtures" / "deterministic.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
