"""Settings files that are not what they seem: one line each, in no time and little memory."""

from pathlib import Path

import numpy as np
import pytest

from two_stream.config.load import read_yaml
from two_stream.errors import SettingsError

EXPERIMENTS = Path(__file__).resolve().parents[2] / "settings" / "experiments"
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGES = "m0: &m0 {k: 1, l: 2}\n" + "".join(
    f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}], k{n}: 1}}\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "aliases and merge keys expand to more than 1,000,000 values"),
        (MERGES, "aliases and merge keys expand to more than 1,000,000 values"),
        ("a: &a [*a]\n", "a recursive alias"),
        ("a: " + "[" * 100 + "]" * 100, "more than 60 levels"),
        ("a: " + "[" * 100_000, "more than 60 levels"),
        ("a: " + "{b: " * 5000, "more than 60 levels"),
        ("a: 2001-99-99\n", "not valid YAML"),
        ("a: !!python/object/apply:os.system [true]\n", "not valid YAML"),
        ("a: 1\na: 2\n", "key 'a' is given twice"),
        ("[a, b]: 1\n", "a key must be a string"),
        ("x" * (2**22 + 1), "larger than 4 MB"),
    ],
)
def test_a_trap_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "trap.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=words) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(str(path))


def test_aliases_that_make_little_are_read(tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    path.write_text("base: &base {a: 1, b: [1, 2]}\nmore: {<<: *base, c: 3}\nlist: [*base, *base]\n")
    assert read_yaml(path)["more"] == {"a": 1, "b": [1, 2], "c": 3}


@pytest.mark.parametrize("count", [200, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutated_experiments(count, tmp_path, guarded) -> None:
    rng = np.random.default_rng(0)
    sources = [path.read_bytes() for path in sorted(EXPERIMENTS.glob("*.yaml"))]
    pieces = [
        b"&a ",
        b"*a",
        b"<<: *a",
        b"!!python/name:os.system",
        b"\0",
        b"\xff",
        b": ",
        b"\n",
        b"- ",
        b"[" * 50,
        b"1e999",
        b"{",
    ]
    paths = []
    for place in range(count):
        content = bytearray(sources[int(rng.integers(len(sources)))])
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(len(content)))
            piece = (
                pieces[int(rng.integers(len(pieces)))]
                if rng.random() < 0.7
                else bytes([int(rng.integers(256))])
            )
            content[at : at + int(rng.integers(0, 8))] = piece
        path = tmp_path / f"{place}.yaml"
        path.write_bytes(content)
        paths.append(path)
    found = guarded("settings", EXPERIMENTS / "own_videos_rgb.yaml", paths)
    wrong = [
        (path, what)
        for path, what in zip(paths, found, strict=True)
        if not what.startswith(("opened", "refused"))
    ]
    assert not wrong, wrong[:5]
    assert all(what.isprintable() and "⏎" not in what for what in found if what != "opened")
    assert sum(what.startswith("refused") for what in found) > count / 4
