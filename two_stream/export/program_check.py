"""Looking through a `torch.export` file before torch reads it: ours hold tensors, and arithmetic on them, alone.

`torch.export.load` trusts what it reads: it unpickles what the archive calls a pickle, takes any function below `torch`
for an operation of the graph, and evaluates the text of sizes as Python. What an export of ours never holds is refused.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from two_stream.errors import CheckpointError

_OPERATION = re.compile(
    r"torch\.ops\.(aten\.\w+\.\w+|higher_order\.wrap_with_(set_grad_enabled|autocast))"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|getitem|eq|ne|lt|le|gt|ge)"
    r"|torch\.sym_(int|float|max|min|ite|not|sum)|math\.(ceil|floor|trunc)"
)
_SYMBOL = re.compile(r"Symbol\('\w+'(, \w+=(True|False))*\)")
_ARITHMETIC = re.compile(r"(\b[A-Z][A-Za-z]*(?=\()|\b[su]\d+\b|\b\d+(\.\d+)?\b|[-+*/%(), <>=&|])*")
_PLAIN = ("weight_", "tensor_")


def check_program(path: Path) -> None:
    """Refuse a file that could do more than compute.

    Raises:
        CheckpointError: It holds a pickle, an operation or an expression that exports of ours never hold; names it.
    """
    found = next(_odd(path), None)
    if found is not None:
        raise CheckpointError(
            f"{path}: holds {found}, which no export of ours does and which torch would run; not loaded"
        )


def _odd(path: Path) -> Iterator[str]:
    with zipfile.ZipFile(path) as archive:
        names = [name.split("/", 1)[-1] for name in archive.namelist()]
        if len(set(names)) != len(names):
            yield "a member twice"
        for full, name in zip(archive.namelist(), names, strict=True):
            if name.startswith("data/sample_inputs/"):
                _check_example(archive.read(full), path)
            elif name.endswith((".pt", ".pkl", ".so")) or name == "version":
                yield name
            elif name.endswith("_config.json"):
                entries = json.loads(archive.read(full)).get("config", {})
                yield from (f"the pickle {key}" for key, entry in entries.items() if _is_pickle(entry))
            elif name.startswith("models/"):
                yield from _odd_graph(json.loads(archive.read(full)))


def _check_example(content: bytes, path: Path) -> None:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # whatever it was: torch would go on without the limits
        raise CheckpointError(
            f"{path}: its example input is no plain tensor, and torch would unpickle it; not loaded"
        ) from error


def _is_pickle(entry: dict[str, Any]) -> bool:
    return bool(entry.get("use_pickle")) or not str(entry.get("path_name")).startswith(_PLAIN)


def _odd_graph(value: Any) -> Iterator[str]:
    """Yield what is odd in a graph's JSON, whatever its depth."""
    if isinstance(value, dict):
        if "inputs" in value and "target" in value and not _OPERATION.fullmatch(str(value["target"])):
            yield f"the operation {value['target']}"
        text = value.get("expr_str")
        if text is not None and not _ARITHMETIC.fullmatch(_SYMBOL.sub("1", str(text))):
            yield f"the expression {str(text)[:60]}"
        for inner in value.values():
            yield from _odd_graph(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _odd_graph(inner)
