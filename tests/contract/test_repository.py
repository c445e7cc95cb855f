"""The rules of the house that a linter does not know."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from two_stream.cli import COMMANDS, main
from two_stream.config.load import load_experiment
from two_stream.zoo import records

FUNCTION_LINES = 80
PARAMETERS = 8


def sources(repository: Path) -> list[Path]:
    return sorted((repository / "two_stream").rglob("*.py"))


def test_public_names_occur_once(repository: Path) -> None:
    """A class, or a function that another package imports, is found by its name alone."""
    homes: dict[str, set[str]] = {}
    classes, shared = set(), set()
    for path in sources(repository):
        module = ".".join(path.relative_to(repository).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if module == "two_stream.api":  # short names for users, of the functions below
                break
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, set()).add(module)
                if isinstance(node, ast.ClassDef):
                    classes.add(node.name)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("two_stream."):
                assert node.module is not None
                if node.module.split(".")[1:2] != module.split(".")[1:2]:
                    shared |= {(node.module, alias.name) for alias in node.names}
    twice = {
        name: sorted(found)
        for name, found in homes.items()
        if len(found) > 1 and name not in ("Options", "main")
    }
    bad = {
        name: found
        for name, found in twice.items()
        if name in classes or any((home, name) in shared for home in found)
    }
    assert not bad, f"rename all but one of each: {bad}"


def test_functions_stay_small(repository: Path) -> None:
    bad = []
    for path in sources(repository):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines = (node.end_lineno or 0) - node.lineno + 1
            arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len([a for a in arguments if a not in ("self", "cls")])
            if lines > FUNCTION_LINES or count > PARAMETERS:
                bad.append(f"{path.name}:{node.lineno} {node.name} ({lines} lines, {count} parameters)")
    assert not bad, bad


def test_every_command_has_a_module_with_its_summary(repository: Path) -> None:
    modules = {p.stem for p in (repository / "two_stream" / "commands").glob("[a-z]*")} - {
        "flags",
        "help",
        "networks",
        "output",
    }
    assert modules == set(COMMANDS)
    for name in COMMANDS:
        module = import_module(f"two_stream.commands.{name}")
        assert callable(module.main)
        assert isinstance(module.SUMMARY, str)
        assert module.EXAMPLES


HELP = """
import contextlib, io, json, sys
from two_stream.cli import COMMANDS, main
for name in COMMANDS:
    before = set(sys.modules)
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            code = main([name, "--help"])
        except SystemExit as stop:
            code = stop.code
    heavy = {"torch", "cv2", "av", "transformers", "sklearn", "matplotlib", "scipy"} & (set(sys.modules) - before)
    print(json.dumps([name, code, shown.getvalue(), sorted(heavy)]))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int | None, str, list[str]]]:
    """Exit code, text and newly imported heavy modules of every command's help, asked for in one process."""
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {
        name: (code, shown, heavy) for name, code, shown, heavy in map(json.loads, done.stdout.splitlines())
    }


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_needs_no_heavy_module(helps: dict[str, tuple[int | None, str, list[str]]], name: str) -> None:
    """Half a second is the promise; torch, cv2, av and transformers are what would break it."""
    code, shown, heavy = helps[name]
    assert code in (0, None)
    assert not heavy
    assert "usage: two-stream " + name in shown


def test_unknown_command_names_its_neighbour(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "two-stream: unknown command 'trian'; did you mean `train`?\n"


def test_top_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_every_experiment_file_loads_and_has_its_header(repository: Path) -> None:
    files = sorted((repository / "settings" / "experiments").rglob("*.yaml"))
    assert files
    for path in files:
        load_experiment(path)
        header = [line for line in path.read_text().splitlines() if line.startswith("#")]
        text = "\n".join(header).lower()
        assert header, path
        assert path.read_text().startswith("#"), f"{path}: begins with its command, time and expected result"
        for word in ("two-stream train", "time", "result"):
            assert word in text, f"{path}: the header says nothing about {word!r}"


def test_docs_name_only_files_that_exist(repository: Path) -> None:
    """Every path in links and in backticks must exist; placeholders and globs are no paths."""
    missing = []
    roots, models = (repository, repository / "two_stream"), {record.name for record in records()}
    for page in [
        repository / "README.md",
        repository / "CONTRIBUTING.md",
        *(repository / "docs").glob("*.md"),
    ]:
        for found in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            if not (page.parent / found).exists():
                missing.append(f"{page.name}: {found}")
        for word in " ".join(re.findall(r"`([^`\n]+)`", page.read_text())).split():
            first = word.split("/")[0]
            outputs = ("demo", "runs")  # may exist in a checkout that was used
            homes = [
                root for root in roots if "/" in word and first not in outputs and (root / first).exists()
            ]
            if homes and not (
                word in models or re.search(r"[<*{…]", word) or any((h / word).exists() for h in homes)
            ):
                missing.append(f"{page.name}: {word}")
    assert not missing, missing


IMPORTS = """
import sys
sys.modules["resource"] = sys.modules["fcntl"] = None
import pkgutil, importlib, two_stream
for module in pkgutil.walk_packages(two_stream.__path__, "two_stream."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from pathlib import Path
import torch
from two_stream.profiling import timing as memory
from two_stream.runtime.files import lock_worker, study_lock
with study_lock(Path(sys.argv[1])):
    lock_worker(Path(sys.argv[1]))
memory._reset_mark = lambda: False
print(memory.PeakMemory(torch.device("cpu")).peak() >= 0)
"""


def test_every_module_imports_where_the_system_is_no_unix(tmp_path: Path) -> None:
    """`resource` and `fcntl` are absent on Windows; extras that are not installed are none of this test's concern."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "True", done.stderr[-2000:]


def test_the_readme_activates_before_it_calls(repository: Path) -> None:
    """A new shell does not find `two-stream` before the environment is active."""
    blocks = re.findall(r"```\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    commands = [line.strip() for block in blocks for line in block.splitlines()]
    first = next(place for place, line in enumerate(commands) if line.startswith("two-stream "))
    active = next(place for place, line in enumerate(commands) if line.startswith(". .venv/bin/activate"))
    assert active < first


def test_no_module_shadows_an_error(repository: Path) -> None:
    """No bare or blind except, unsafe load or exit in the package (each was seen to break a user's run)."""
    forbidden = ("weights_only=False", "allow_pickle=True", ".cuda()", "sys.exit(", "except:")
    bad = [
        f"{path.relative_to(repository)}:{number}: {word}"
        for path in sources(repository)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for word in forbidden
        if word in line
    ]
    assert not bad, bad
