"""Exported files with something else in every place: refused in one line, or computed; nothing else happens."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from two_stream.export import read_card
from two_stream.export.archives import Pt2
from two_stream.export.card import KEY, UNSEALED

JSON_MEMBERS = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)
CARD = "extra/two_stream.json"
READ_BY_TORCH = (
    "data/aotinductor/model/x_compile_flags.json",
    "data/weights/model.pt",
    "data/constants/model.pt",
    "models/other.json",
    "extra/x.py",
    ".data/x",
    "version",
    "data.pkl",
    "constants.pkl",
    "code/x.py",
)
"""names that readers of torch look for, of this and other versions"""


_LEAF = {"type": None, "context": None, "children_spec": []}
KINDS = {True: "key", False: "string", None: "name"}
STRUCTURES = tuple(
    json.dumps([1, structure])
    for structure in (
        {
            "type": "builtins.tuple",
            "context": json.dumps({"__enum__": True, "fqn": "antigravity:x", "name": "y"}),
            "children_spec": [_LEAF],
        },
        {
            "type": "collections.defaultdict",
            "context": {
                "default_factory_module": "antigravity",
                "default_factory_name": "x",
                "dict_context": ["a"],
            },
            "children_spec": [_LEAF],
        },
    )
)
"""structures of Python's arguments whose reading imports a module"""


def compiled(marker: Path) -> Members:
    """Return the members of a package that torch compiles as it loads it, with a compiler that leaves a mark."""
    lists = (
        "cflags",
        "definitions",
        "include_dirs",
        "ldflags",
        "libraries",
        "libraries_dirs",
        "passthrough_args",
    )
    flags = {
        "compiler": f"touch {marker};",
        "compile_only": True,
        "compile_mode": "",
        **{name: [] for name in lists},
    }
    folder = "data/aotinductor/model/x"
    return {
        f"{folder}.wrapper.cpp": b"",
        f"{folder}.cpp": b"",
        f"{folder}.o": b"",
        f"{folder}.wrapper_metadata.json": b'{"AOTI_DEVICE_KEY": "cpu"}',
        f"{folder}_metadata.json": b'{"AOTI_DEVICE_KEY": "cpu"}',
        f"{folder}.wrapper_compile_flags.json": json.dumps(flags).encode(),
        f"{folder}.wrapper_linker_flags.json": json.dumps(flags).encode(),
        f"{folder}_compile_flags.json": json.dumps(flags).encode(),
        f"{folder}_linker_flags.json": json.dumps(flags).encode(),
    }


def payloads(marker: Path) -> list[Any]:
    """Return what would leave a mark if it were run, imported, opened or computed."""
    code = f"open({str(marker)!r}, 'w')"
    return [
        f"a={code}",
        f"__import__('os').system('touch {marker}')",
        "torch.ops.aten.from_file.default",
        "Pow(10, Pow(10, 12))",
        "antigravity",
        f"../../../../../../{marker}",
        "",
        "x" * 100_000,
        "\x00\x1b[31m",
        10**12,
        -1,
        1e308,
        None,
        [],
        {},
    ]


Members = dict[str, bytes]


def nested(text: str) -> Any:
    """Return the JSON in a string; None where there is none."""
    try:
        return json.loads(text) if text[:1] in ("[", "{") else None
    except json.JSONDecodeError:
        return None


def strings(value: Any) -> Iterator[tuple[bool, str]]:
    """Yield every key (true) and string (false) of JSON, and of JSON in its strings."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield True, key
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield False, value
        yield from strings(nested(value))


def replaced(value: Any, old: str, new: Any, *, key: bool | None) -> Any:
    """Return JSON with one of its keys (true), strings (false) or both (none) replaced, wherever it is."""
    if isinstance(value, dict):
        return {
            (str(new) if key is not False and name == old else name): replaced(inner, old, new, key=key)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [replaced(inner, old, new, key=key) for inner in value]
    if isinstance(value, str) and (inner := nested(value)) is not None and value != old:
        return json.dumps(replaced(inner, old, new, key=key))
    return new if key is not True and value == old else value


def numbers(value: Any, change: Callable[[int], Any]) -> Any:
    """Return JSON with every whole number changed."""
    if isinstance(value, dict):
        return {name: numbers(inner, change) for name, inner in value.items()}
    if isinstance(value, list):
        return [numbers(inner, change) for inner in value]
    return change(value) if type(value) is int else value


def pt2_mutations(
    source: Path, marker: Path, rng: np.random.Generator
) -> Iterator[tuple[str, Callable[[], Members]]]:
    """Yield a label and what makes the members of a file, in a random order: a part of them shows all kinds."""
    with zipfile.ZipFile(source) as archive:
        members = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    del members[CARD]
    possible: list[tuple[str, Callable[[], Members]]] = []

    def member(name: str, content: bytes) -> Callable[[], Members]:
        return lambda: {**members, name: content}

    for name in (*members, *READ_BY_TORCH):
        for other in dict.fromkeys(
            (name.upper(), name.title(), name.replace("_", "-"), f"x/../{name}", name)
        ):
            if other not in members:
                content = members.get(name, b'{"flags": ["; touch %s"]}' % str(marker).encode())
                possible.append((f"member {other}", member(other, content)))
    for name in JSON_MEMBERS:
        value = json.loads(members[name])
        found = set(strings(value))
        both = {(None, text) for key, text in found if key and (False, text) in found}
        for key, text in sorted(found | both, key=str):
            for new in (*payloads(marker), *(STRUCTURES if "children_spec" in text else ())):
                possible.append(
                    (
                        f"{name}: {KINDS[key]} {text[:40]!r} -> {str(new)[:60]!r}",
                        lambda name=name, value=value, text=text, new=new, key=key: {
                            **members,
                            name: json.dumps(replaced(value, text, new, key=key)).encode(),
                        },
                    )
                )
        for factor in (-1, 0, 10**6, 2**63):
            possible.append(
                (
                    f"{name}: numbers times {factor}",
                    lambda name=name, value=value, factor=factor: {
                        **members,
                        name: json.dumps(numbers(value, lambda number: number * factor)).encode(),
                    },
                )
            )
    model = json.loads(members[JSON_MEMBERS[0]])
    entry = model["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"]
    other = json.dumps(replaced(model, entry, payloads(marker)[0], key=None)).encode()
    possible += [("package", lambda: {**members, **compiled(marker)})]
    possible += [
        (f"other {name}", member(name, other)) for name in ("MODELS/model.json", "models/MODEL.json")
    ]
    for place in rng.permutation(len(possible)):
        yield possible[place]


def write_pt2(path: Path, members: Members, source: Path) -> None:
    """Write an archive and seal it with our own code: the digest is no signature."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"graph/{name}", content)
    Pt2().seal(path, read_card(source))


def judge(labels: list[str], found: list[str]) -> None:
    """Every file was refused in a line that names it, or computed."""
    wrong = [
        (label, what)
        for label, what in zip(labels, found, strict=True)
        if not (what == "opened" or (what.startswith("refused ") and "⏎" not in what and what.isprintable()))
    ]
    assert not wrong, f"{len(wrong)} of {len(found)}: {wrong[:5]}"
    assert sum(what != "opened" for what in found) > len(found) / 4, "the mutations change nothing"


@pytest.mark.parametrize("count", [4, pytest.param(3000, marks=pytest.mark.slow)])
def test_pt2_files(count, pt2_file, tmp_path, guarded):
    labels, paths = [], []
    (tmp_path / "files").mkdir()
    marker = tmp_path / "empty" / "marker"
    for place, (label, make) in enumerate(pt2_mutations(pt2_file, marker, np.random.default_rng(0))):
        if place == count:
            break
        path = tmp_path / "files" / f"{place}.pt2"
        write_pt2(path, make(), pt2_file)
        labels.append(label)
        paths.append(path)
    judge(labels, guarded("exported", pt2_file, paths))


@pytest.mark.parametrize("count", [8, pytest.param(10_000, marks=pytest.mark.slow)])
def test_cards(count, pt2_file, tmp_path, guarded):
    """The card's own keys, strings and numbers; its digest fits."""
    card = json.loads(read_card(pt2_file).model_dump_json())
    labels, paths = [], []
    marker = tmp_path / "empty" / "marker"
    makes: list[tuple[str, Any]] = [
        (f"{text[:30]!r} -> {str(new)[:30]!r}", replaced(card, text, new, key=key))
        for key, text in sorted(set(strings(card)))
        for new in payloads(marker)
        if text != card["content_sha256"]
    ]
    makes += [
        (f"times {factor}", numbers(card, lambda n, f=factor: n * f)) for factor in (-1, 0, 3, 10**6, 2**63)
    ]
    order = np.random.default_rng(0).permutation(len(makes) - 5)[: count - 5]
    makes = [*makes[-5:], *(makes[place] for place in order)]
    with zipfile.ZipFile(pt2_file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for place, (label, changed) in enumerate(makes):
        path = tmp_path / f"{place}.pt2"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, json.dumps(changed) if name.endswith(CARD) else content)
        labels.append(label)
        paths.append(path)
    judge(labels, guarded("exported", pt2_file, paths))


@pytest.mark.parametrize("count", [6, pytest.param(5000, marks=pytest.mark.slow)])
def test_onnx_files(count, onnx_file, tmp_path, guarded):
    """Bytes of nodes, sizes and types of weights, inputs and outputs."""
    import onnx

    rng = np.random.default_rng(0)
    card = read_card(onnx_file).model_copy(update={"content_sha256": UNSEALED}).model_dump_json()
    content = onnx_file.read_bytes()
    labels, paths = [], []
    while len(paths) < count:
        place, model = len(paths), onnx.load_model_from_string(content)
        graph = model.graph
        parts = [graph.node, graph.node, graph.initializer, [*graph.input, *graph.output]][
            int(rng.integers(4))
        ]
        part = parts[int(rng.integers(len(parts)))]
        if parts is graph.initializer:
            part.dims[:] = [int(size) for size in rng.choice([-1, 0, 1, 2**40], len(part.dims))] or [2**40]
            if rng.random() < 0.5:
                part.data_type = int(rng.integers(24))
        else:
            changed = bytearray(part.SerializeToString())
            for _ in range(int(rng.integers(1, 4))):
                changed[int(rng.integers(len(changed)))] = int(rng.integers(256))
            try:
                part.ParseFromString(bytes(changed))
            except Exception:  # noqa: BLE001 - protobuf's own: no message
                continue
        del model.metadata_props[:]
        model.metadata_props.add(key=KEY, value=card)
        sealed = model.SerializeToString()
        digest = hashlib.sha256(sealed).hexdigest()
        path = tmp_path / f"{place}.onnx"
        path.write_bytes(sealed.replace(UNSEALED.encode(), digest.encode(), 1))
        labels.append(f"{place}: {str(part)[:60]!r}")
        paths.append(path)
    judge(labels, guarded("exported", onnx_file, paths))
