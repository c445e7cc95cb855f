"""Every benchmark script still runs: in its smallest form, whose figures mean nothing."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
import torch

SCRIPTS = (
    "attention",
    "big_lists",
    "evaluation",
    "exports",
    "web_page",
    "extraction",
    "gpu",
    "head_study",
    "loading",
    "memory_format",
    "quantisation",
    "roofline",
    "score_files",
    "start_up",
    "streaming",
    "training_step",
    "video_reading",
)
QUICK = ("video_reading",)
CASES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SCRIPTS]


def load(folder, name, monkeypatch):
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def benchmarks(repository, monkeypatch):
    """The folder, with the module that scripts share in place; nothing they set is left behind."""
    folder = repository / "eval" / "benchmarks"
    load(folder, "common", monkeypatch)
    for name in ("OMP_NUM_THREADS", "TWO_STREAM_CACHE"):  # scripts set them
        monkeypatch.setenv(name, "1" if name == "OMP_NUM_THREADS" else "off")
    threads = torch.get_num_threads()
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield folder
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


def test_no_script_is_left_out(benchmarks, monkeypatch):
    assert {script.name for script in load(benchmarks, "run", monkeypatch).SCRIPTS} == set(SCRIPTS)
    assert {path.stem for path in benchmarks.glob("*.py")} == {*SCRIPTS, "common", "run", "coverage"}


@pytest.mark.parametrize("name", CASES)
def test_script_runs(benchmarks, monkeypatch, tmp_path, capsys, name):
    script = load(benchmarks, name, monkeypatch)
    code = script.main(["--smoke", "--threads", "1", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
    assert rows
    assert [(row["name"], row["problem"]) for row in rows if row["problem"]] == []
    assert all(row["ratio"] > 0 for row in rows if row["note"] != "continual-inference is not installed")
    assert code == 0
