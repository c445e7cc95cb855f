"""Reading tensors from a file without ever running what is in it.

Two kinds of file are read: safetensors, and what `torch.save` writes, the latter with `weights_only=True` and with no
way back to an unrestricted pickle. Which it is, the content tells, not the name.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from two_stream.errors import CheckpointError
from two_stream.runtime.folders import whole_folder

WEIGHTS = "model.safetensors"
"""Name of the weights in a model folder."""
_INNER = ("state_dict", "model_state", "model")
"""Where trainers keep the weights beside their own bookkeeping."""


def read_state(path: Path | str) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint on the CPU, without the `module.` prefix of multi-GPU training.

    Args:
        path: A safetensors or PyTorch file, a model folder, or a run folder (its `best`, else its `last`).

    Raises:
        CheckpointError: Missing, damaged, no checkpoint, or refused because it holds more than tensors; one line.
    """
    file = weights_file(Path(path))
    state = _read_safetensors(file) if _kind(file) == "safetensors" else _read_torch(file)
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    if not state:
        raise CheckpointError(f"{file}: it holds no tensors")
    return state


def weights_file(path: Path) -> Path:
    """Return the file to read: the path itself, or the weights in a model folder or run folder.

    Raises:
        CheckpointError: There is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder; expected a checkpoint or a run folder")
    for folder in (path, whole_folder(path / "best"), whole_folder(path / "last")):
        if (folder / WEIGHTS).is_file():
            return folder / WEIGHTS
    raise CheckpointError(f"{path}: no {WEIGHTS} in it, nor in best/ or last/; expected a run folder")


def read_metadata(file: Path) -> dict[str, str]:
    """Return the text entries in the header of a safetensors file; empty for any other file."""
    if _kind(file) != "safetensors":
        return {}
    try:
        with safe_open(file, framework="pt") as opened:
            return dict(opened.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(f"{file}: damaged safetensors file ({error})") from None


def _kind(file: Path) -> str:
    """Tell a file's format by its first bytes."""
    try:
        with file.open("rb") as opened:
            start = opened.read(9)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None
    if not start:
        raise CheckpointError(f"{file}: empty file (0 bytes)")
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        return "torch"
    if len(start) == 9 and start[8:] == b"{" and 2 <= struct.unpack("<Q", start[:8])[0] <= 100_000_000:
        return "safetensors"
    raise CheckpointError(f"{file}: no checkpoint (neither a safetensors nor a PyTorch file)")


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise CheckpointError(f"{file}: damaged safetensors file, perhaps truncated ({error})") from None


def _read_torch(file: Path) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old storages warn on the way; what matters is raised
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{file}: {_refusal(str(error))}") from None
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        IndexError,
    ) as error:
        first = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{file}: damaged PyTorch file, perhaps truncated ({first})") from None
    return _tensors(file, content)


def _refusal(message: str) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", message)
    if found:
        return f"refused, it asks for `{found[1]}`: a checkpoint may hold tensors only, and nothing of it was run"
    return "refused or damaged: it is not a pickle of tensors only, and nothing of it was run"


def _tensors(file: Path, content: Any) -> dict[str, torch.Tensor]:
    for name in _INNER:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file}: it holds a {type(content).__name__}; expected a dictionary of tensors"
        )
    state = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    other = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if other and not state:
        raise CheckpointError(f"{file}: no weights under {', '.join(_INNER)} (found {', '.join(other[:4])})")
    return state
