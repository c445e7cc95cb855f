"""What the command line does with errors that no stage expected."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from two_stream import cli


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (PermissionError(13, "Permission denied", "/x/y"), "two-stream: /x/y: Permission denied\n", 1),
        (OSError(28, "No space left on device"), "two-stream: No space left on device\n", 1),
        (torch.OutOfMemoryError("CUDA out of memory.\nmore"), "two-stream: CUDA out of memory. (try", 1),
        (KeyboardInterrupt(), "two-stream: interrupted\n", 130),
    ],
)
def test_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    line: str,
    code: int,
) -> None:
    def fail(_args: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "import_module", lambda _name: SimpleNamespace(main=fail))
    assert cli.main(["train"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith(line)
    assert shown.count("\n") == 1


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_args: list[str]) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "import_module", lambda _name: SimpleNamespace(main=fail))
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["train"])


def test_a_flag_error_names_the_command_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate"]) == 2
    assert capsys.readouterr().err.startswith("two-stream evaluate: the run folder is missing")
    assert cli.main(["evaluate", "no/such/run"]) == 2
    assert capsys.readouterr().err.startswith("two-stream: no/such/run: no such run folder")
