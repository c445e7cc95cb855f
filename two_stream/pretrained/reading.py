"""Reading tensors from a file without ever running what is in it.

Three kinds of file are read: safetensors, what `torch.save` writes (with `weights_only=True` and with no way back to
an unrestricted pickle), and Caffe2's pickles (through `caffe2.py`, which admits arrays only). Which it is, the content
tells, not the name.
"""

from __future__ import annotations

import pickle
import re
import struct
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from two_stream.errors import CheckpointError
from two_stream.pretrained.caffe2 import TORCH_STAND_INS, Numbers, read_caffe2, refusal
from two_stream.pretrained.kinds import kind_of
from two_stream.runtime.console import note
from two_stream.runtime.folders import whole_folder
from two_stream.runtime.text import is_utf8

WEIGHTS = "model.safetensors"
"""Name of the weights in a model folder."""
_INNER = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")
"""Where trainers keep the weights beside their own bookkeeping."""
_AVERAGED = re.compile(r"(^|_)(ema|swa|averaged?)(_|$)")
"""Where trainers keep a moving average of the weights beside them."""
_STAND_INS = threading.Lock()
"""torch keeps one list of permitted names for the whole process."""


def read_state(path: Path | str) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint on the CPU, without the `module.` prefix of multi-GPU training.

    Args:
        path: A safetensors, PyTorch or Caffe2 file, a model folder, or a run folder (its `best`, else its `last`).

    Raises:
        CheckpointError: Missing, damaged, no checkpoint, or refused because it holds more than tensors; one line.
    """
    file = weights_file(Path(path))
    readers = {"safetensors": _read_safetensors, "torch": _read_torch, "pickle": read_caffe2}
    state = readers[kind_of(file)](file)
    names = state.keys() - {"n_averaged"}  # torch's AveragedModel counts beside its `module.`
    if names and all(key.startswith("module.") for key in names):
        state = {key.removeprefix("module."): tensor for key, tensor in state.items() if key in names}
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
    if kind_of(file) != "safetensors":
        return {}
    try:
        with _opened(file) as opened:
            return dict(opened.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(f"{file}: damaged safetensors file ({error})") from None


def _opened(file: Path) -> Any:
    if not is_utf8(file):
        raise CheckpointError(f"{file}: its path is not UTF-8, and safetensors opens no other; rename it")
    return safe_open(file, framework="pt", device="cpu")


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        with _opened(file) as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise CheckpointError(f"{file}: damaged safetensors file, perhaps truncated ({error})") from None


def _read_torch(file: Path) -> dict[str, torch.Tensor]:
    try:
        with _STAND_INS, torch.serialization.safe_globals(TORCH_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old storages warn on the way; what matters is raised
            content = torch.load(
                file,
                map_location="cpu",
                weights_only=True,
                encoding="latin1",  # numbers that Python 2 wrote as text keep their bytes
            )
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
        AssertionError,
        struct.error,
    ) as error:
        first = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{file}: damaged PyTorch file, perhaps truncated ({first})") from None
    return _tensors(file, content)


def _refusal(message: str) -> str:
    """Turn torch's page of advice into one line."""
    asked = re.search(r"GLOBAL ([\w.]+)", message)
    if asked:
        return refusal(f"it asks for `{asked[1]}`")
    ours = re.search(r"it (?:holds|builds|calls|changes|encodes) [^\n]*", message)
    if ours:
        return refusal(ours[0])
    if re.search(r"Unsupported operand (?:149|140|141|142|143|144|145|147|148)\b", message):
        return (
            "written with pickle protocol 4 or later, which cannot be read safely; save it anew with "
            "torch.save and its usual protocol"
        )
    return refusal("")


def _tensors(file: Path, content: Any) -> dict[str, torch.Tensor]:
    for name in _INNER:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            averaged = [key for key in content if key != name and _AVERAGED.search(str(key)) and content[key]]
            if averaged:
                note(
                    f"{file}: the weights under `{name}` are read, not the averaged ones under `{averaged[0]}`"
                )
            content = content[name]
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file}: it holds a {type(content).__name__}; expected a dictionary of tensors"
        )
    state: dict[str, torch.Tensor] = {}
    other: list[str] = []
    for key, value in content.items():
        tensor = value.tensor() if isinstance(value, Numbers) else value
        if isinstance(tensor, torch.Tensor) and not (isinstance(value, Numbers) and tensor.ndim == 0):
            state[str(key)] = tensor
        else:
            other.append(str(key))
    if other and not state:
        raise CheckpointError(f"{file}: no weights under {', '.join(_INNER)} (found {', '.join(other[:4])})")
    return state
