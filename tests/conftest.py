"""Fixtures every test may use."""

from __future__ import annotations

import atexit
import gc
import importlib.util
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from filelock import FileLock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported: more threads only wait
for name, usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    number = getattr(signal, name, None)  # started with nohup or in the background, they are ignored
    if number is not None and signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)
# OpenCV reads it when it opens its first video, which in a test may be before `backend_opencv` is imported.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
if "TWO_STREAM_CACHE" not in os.environ:  # nothing of a test is kept in the user's own cache
    os.environ["TWO_STREAM_CACHE"] = tempfile.mkdtemp(prefix="two-stream-tests-")
    atexit.register(shutil.rmtree, os.environ["TWO_STREAM_CACHE"], ignore_errors=True)
import torch  # noqa: E402 - after the environment is set

if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 4 << 30:
    os.environ.setdefault(
        "PYTEST_DEBUG_TEMPROOT", "/dev/shm"
    )  # 2 ms per deleted file on a disk, ten thousands of files
os.fsync = lambda fd: None  # no test cuts the power; flushing each file to the disk took a tenth of the time
torch.set_num_threads(1)  # tiny tensors: threads cost more than they give, and xdist shares the cores
# Autograd counts the devices at its first backward pass. torch.export registers one more, and after that no process
# forked from this one could compute gradients: let it count before.
torch.ones(1, requires_grad=True).sum().backward()

MadeOnce = Callable[[str, Callable[[Path], object]], Path]
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
    """Leave out `slow`, `network` and `integration` tests unless `-m` names them: `-m parity` stays the quick one.

    Tests that share a fixture of their file or folder run in one process (`--dist loadgroup`), so it is made once.
    Fixtures of this file are shared by all processes (`made_once`).
    """
    for item in items:
        made = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009 - no public name
        local = [each for defined in made for each in defined if each.baseid not in ("", "tests")]
        places = {each.baseid for each in local if each.scope == "session"}
        places |= {item.nodeid.split("::")[0] for each in local if each.scope == "module"}
        if places and config.pluginmanager.hasplugin("xdist"):
            item.add_marker(pytest.mark.xdist_group(min(places, key=len)))
    asked = config.option.markexpr
    for mark in ("slow", "network", "integration"):
        if mark not in asked:
            left = [item for item in items if item.get_closest_marker(mark)]
            config.hook.pytest_deselected(items=left)
            items[:] = [item for item in items if item not in left]


def pytest_configure(config: pytest.Config) -> None:
    """Stop if tests would not be grouped: pytest-xdist 3.8 writes the group into an attribute that pytest 9.2 lacks."""
    if config.getoption("dist", "no") == "loadgroup" and not hasattr(pytest.Item, "_nodeid"):
        raise pytest.UsageError(
            "pytest-xdist does not group tests under this pytest; install the pinned versions"
        )


def pytest_collection_finish() -> None:
    """Keep the collector away from the modules that are loaded by now.

    Full collections over a million objects of torch and transformers took a seventh of the processor's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


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


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Fill a folder once per test run: the processes of xdist wait for the one that fills it, and read it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def once(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = base / name, base / f"{name}.done"
        with FileLock(base / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def exported_world(made_once: MadeOnce) -> Path:
    """Nine videos of three classes, their lists, an RGB and a flow run."""
    from tests.helpers.runs import make_world  # not above: few tests need the package's heavy modules

    return made_once("exported", make_world)


@pytest.fixture(scope="session")
def onnx_file(exported_world: Path, made_once: MadeOnce) -> Path:
    """The RGB run as an ONNX file."""
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    return _exported(exported_world / "rgb", "onnx", made_once)


@pytest.fixture(scope="session")
def pt2_file(exported_world: Path, made_once: MadeOnce) -> Path:
    """The flow run as a PT2 file."""
    return _exported(exported_world / "flow", "pt2", made_once)


def _exported(run: Path, kind: str, made_once: MadeOnce) -> Path:
    def fill(folder: Path) -> None:
        from two_stream.evaluation.runs.run import load_run
        from two_stream.export import export_run

        (folder / "path").write_text(str(export_run(load_run(run), kind)[0]))

    return Path((made_once(f"exported-{kind}", fill) / "path").read_text())
