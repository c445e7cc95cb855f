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
from two_stream.runtime.files import complete_folder
from two_stream.runtime.text import is_utf8

WEIGHTS = "model.safetensors"
"""Name of the weights in a model folder."""
_INNER = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")
"""Where trainers keep the weights beside their own bookkeeping."""
_AVERAGED = re.compile(r"(^|[_-])(ema|swa|averaged?|model_?ema)([_-]|$)", re.IGNORECASE)
"""Where trainers keep a moving average of the weights beside them."""
_HOW = "`train.init_averaged: true`, or --averaged of `weights convert`, takes those"
_STAND_INS = threading.Lock()
"""torch keeps one list of permitted names for the whole process."""


def read_state(path: Path | str, *, averaged: bool = False) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint on the CPU, without the `module.` prefix of multi-GPU training.

    Args:
        path: A safetensors, PyTorch or Caffe2 file, a model folder, or a run folder (its `best`, else its `last`).
        averaged: Of a file with a moving average beside the weights themselves, take the average. Otherwise it is only
            mentioned. `best` of a run of ours that had one is that average already.

    Raises:
        CheckpointError: Missing, damaged, no checkpoint, refused because it holds more than tensors, or without the
            averaged weights that are asked for; one line.
    """
    file = weights_file(Path(path))
    kind = kind_of(file)
    taken = False
    if kind == "torch":
        state, taken = _tensors(file, _loaded(file), averaged)
    else:
        state = _read_safetensors(file) if kind == "safetensors" else read_caffe2(file)
    if averaged and (own := _of_own_run(file)) is not None:
        state, taken = own or state, True
    if not taken:
        state = _split(file, state, averaged)
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
    for folder in (path, complete_folder(path / "best"), complete_folder(path / "last")):
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


def _loaded(file: Path) -> Any:
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
    return content


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


def _tensors(file: Path, content: Any, averaged: bool) -> tuple[dict[str, torch.Tensor], bool]:
    """Return the tensors of what a trainer saved, and whether they are an average where one was asked for."""
    taken = False
    while isinstance(content, dict):
        kept = [key for key in content if _AVERAGED.search(str(key)) and _holds_tensors(content[key])]
        inner = next((name for name in _INNER if isinstance(content.get(name), dict)), None)
        if kept and not taken and (averaged or (inner is None and not _has_tensor(content))):
            if not averaged:
                note(f"{file}: the averaged weights under `{kept[0]}` are read: there are no others")
            content, taken = content[kept[0]], True
        elif inner is not None:
            if kept and not taken:
                note(
                    f"{file}: the weights under `{inner}` are read, not the averaged ones under `{kept[0]}`; {_HOW}"
                )
            content = content[inner]
        elif taken and isinstance(content.get("module"), dict):
            content = content["module"]
        else:
            break
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
    return state, taken


def _has_tensor(content: Any) -> bool:
    return isinstance(content, dict) and any(
        isinstance(v, torch.Tensor) and v.ndim > 0 for v in content.values()
    )


def _holds_tensors(content: Any) -> bool:
    """Tell whether there are tensors in a dictionary, or in one in it (`module`, `state_dict`)."""
    return _has_tensor(content) or (isinstance(content, dict) and any(map(_has_tensor, content.values())))


def _split(file: Path, state: dict[str, torch.Tensor], averaged: bool) -> dict[str, torch.Tensor]:
    """Return one of the two networks that stand in one state dict, told by their first names (`ema_model.`).

    Raises:
        CheckpointError: Averaged weights are asked for and there are none.
    """
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        first, _, rest = key.partition(".")
        if rest and _AVERAGED.search(first):
            parts.setdefault(first, {})[rest] = tensor
    name = max(parts, key=lambda part: len(parts[part]), default="")
    if averaged:
        if not name:
            raise CheckpointError(
                f"{file}: no averaged weights beside the others (names with ema, swa or average)"
            )
        return parts[name]
    others = {key: tensor for key, tensor in state.items() if key.partition(".")[0] != name}
    doubled = {key.removeprefix("module.") for key in parts.get(name, ())} - {"n_averaged"}
    if doubled and others.keys() >= doubled:
        note(f"{file}: the averaged weights under `{name}.` are not read; {_HOW}")
        return others
    return state


def _of_own_run(file: Path) -> dict[str, torch.Tensor] | None:
    """Return the averaged weights of a checkpoint of ours, nothing where its file holds them; None for other files."""
    beside = file.with_name("state.pt")
    if file.name != WEIGHTS or not beside.is_file():
        return None
    state = _loaded(beside)
    if not isinstance(state, dict) or "holds" not in state:
        return None
    if state["holds"] == "averaged":
        return {}
    if not state.get("other"):
        raise CheckpointError(f"{file}: no averaged weights: the run had no `train.ema`")
    return dict(state["other"])
