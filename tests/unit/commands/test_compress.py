"""`two-stream compress` before anything is computed: its help and what it says of wrong flags."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from two_stream.cli import main
from two_stream.config.load import dump
from two_stream.config.schema import Experiment


@pytest.mark.parametrize(
    ("method", "flag"), [("prune", "--target-macs"), ("quantize", "--keep"), ("distill", "--temperature")]
)
def test_help_begins_with_the_flags_of_the_method(
    method: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["compress", method, "--help", "all"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown.index(flag) < shown.index("--part") < shown.index("--model.modality")
    assert f"--compress{flag.replace('--', '.')}" not in shown  # once, by its bare name
    assert "--no-resume" not in shown
    assert "--source" not in shown


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["prune", "RUN", "--amont", "0.5"], "unknown flag --amont; did you mean `--amount`?"),
        (
            ["prune", "RUN", "--trian.epochs", "1"],
            "unknown flag --trian.epochs; did you mean `--train.epochs`?",
        ),
        (["quantize", "RUN", "--no-per-chanel"], "did you mean `--per-channel`?"),
        (["distill", "RUN", "--student", "FILE"], "is not an experiment file (.yaml)"),
    ],
)
def test_what_is_wrong_is_one_line(
    args: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiment.yaml").write_text(dump(Experiment()))
    (tmp_path / "model.onnx").write_bytes(b"")
    given = [{"RUN": str(tmp_path), "FILE": str(tmp_path / "model.onnx")}.get(arg, arg) for arg in args]
    assert main(["compress", *given]) == 2
    complaint = capsys.readouterr().err.strip()
    assert said in complaint
    assert "\n" not in complaint


def test_a_fresh_process_knows_the_compressions_before_it_trains():
    """The command of distillation imported nothing that registers it, which tests in one process cannot notice."""
    code = """
import two_stream.training.train as training
from two_stream.commands.compress import _train_and_report
from two_stream.training.step import EXTENSIONS

def train(*_, **__):
    EXTENSIONS["distill"]
    raise SystemExit(0)

training.train = train
_train_and_report(None, None, type("Call", (), {"resume": False, "overwrite": False}))
raise SystemExit("train was not called")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
