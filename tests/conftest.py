"""Fixtures every test may use."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
for name, usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    number = getattr(signal, name, None)  # started with nohup or in the background, they are ignored
    if number is not None and signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)
# OpenCV reads it when it opens its first video, which in a test may be before `backend_opencv` is imported.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
if "TWO_STREAM_CACHE" not in os.environ:  # nothing of a test is kept in the user's own cache
    os.environ["TWO_STREAM_CACHE"] = tempfile.mkdtemp(prefix="two-stream-tests-")
    atexit.register(shutil.rmtree, os.environ["TWO_STREAM_CACHE"], ignore_errors=True)
torch.set_num_threads(1)  # tiny tensors: threads cost more than they give, and xdist shares the cores
# Autograd counts the devices at its first backward pass. torch.export registers one more, and after that no process
# forked from this one could compute gradients: let it count before.
torch.ones(1, requires_grad=True).sum().backward()

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def parity(record_property: Callable[[str, object], None]) -> Callable[[str, float, float], None]:
    """Check a relative error against its limit; the end of the test run lists all of them."""

    def check(name: str, error: float, limit: float) -> None:
        record_property("parity", f"{name}: worst relative error {error:.1e} (limit {limit:.0e})")
        assert error < limit

    return check


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the relative errors of the parity tests."""
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    lines = [value for report in reports for key, value in report.user_properties if key == "parity"]
    if lines:
        terminalreporter.section("parity")
        for line in sorted(set(lines)):
            terminalreporter.write_line(str(line))


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out long sweeps and what needs the internet, unless `-m` names them: `-m parity` stays the quick one.

    Tests that share a fixture of their file or folder run in one process (`--dist loadgroup`), so it is made once.
    """
    for item in items:
        made = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009 - no public name
        places = {each.baseid for defined in made for each in defined if each.scope != "function"} - {
            "",
            "tests",
        }
        if places and config.pluginmanager.hasplugin("xdist"):
            item.add_marker(pytest.mark.xdist_group(min(places, key=len)))
    asked = config.option.markexpr
    for mark in ("slow", "network"):
        if mark not in asked:
            left = [item for item in items if item.get_closest_marker(mark)]
            config.hook.pytest_deselected(items=left)
            items[:] = [item for item in items if item not in left]


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
