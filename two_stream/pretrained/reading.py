"""Reads tensors from files without executing code in them.

Three formats are supported and recognised by their content: safetensors, files of `torch.save`, and pickles of Caffe2.
Files of `torch.save` are always read with `weights_only=True`.

A pickle can contain names of functions, which a normal reader calls. This reader never calls these functions. The few
names that describe arrays of numbers are replaced by the classes below, which check their arguments. All other names
are rejected before anything is called.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from two_stream.errors import CheckpointError
from two_stream.pretrained.files.hub import fetch_run, is_on_hub
from two_stream.pretrained.kinds import checkpoint_kind
from two_stream.runtime.console import note
from two_stream.runtime.files import complete_folder
from two_stream.runtime.text import is_utf8

WEIGHTS = "model.safetensors"
"""Name of the weights in a model folder."""
_INNER = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")
"""Keys under which trainers store the weights."""
_AVERAGED = re.compile(r"(^|[_-])(ema|swa|averaged?|model_?ema)([_-]|$)", re.IGNORECASE)
"""Keys and prefixes under which trainers store a moving average of the weights."""
_HOW = "to use them, set `train.init_averaged: true` or pass --averaged to `weights convert`"
_DAMAGED = (AttributeError, LookupError, TypeError, ValueError)
"""Errors of both readers for damaged files."""
_DAMAGED_TORCH = (*_DAMAGED, AssertionError, EOFError, OSError, RuntimeError, struct.error)
_DAMAGED_PICKLE = (*_DAMAGED, ArithmeticError, ImportError, MemoryError, RecursionError)
_STAND_INS = threading.Lock()
"""Protects the list of permitted names, which torch keeps per process."""


def read_state(path: Path | str, *, averaged: bool = False) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint on the CPU, without the `module.` prefix of multi-GPU training.

    Args:
        path: A safetensors, PyTorch or Caffe2 file, a model folder, or a run folder (its `best`, otherwise its `last`).
        averaged: Return the moving average of the weights that the checkpoint contains. Otherwise a note mentions it.
            `best` of a run that was trained with an average is that average.

    Raises:
        CheckpointError: Missing, damaged, not a checkpoint, rejected because it contains more than tensors, or without
            the requested average.
    """
    file = weights_file(Path(path))
    weights = _READERS[checkpoint_kind(file)](file)
    average, place = None, ""
    for find_average in _AVERAGES if averaged else _AVERAGES[1:]:
        weights, average, place = find_average(file, weights)
        if average is not None:
            break
    if averaged and average is None:
        raise CheckpointError(
            f"{file}: expected averaged weights (names with ema, swa or average), found none"
        )
    if averaged or (weights is None and average is not None):
        if not averaged:
            note(f"{file}: the averaged weights in `{place}` are read, because the file has no other weights")
        weights = _unwrap(average)
    elif place:
        note(f"{file}: the averaged weights in `{place}` are not read; {_HOW}")
    state = _tensors(file, weights)
    names = state.keys() - {"n_averaged"}  # a counter of torch's AveragedModel, which has no prefix
    if names and all(key.startswith("module.") for key in names):
        state = {key.removeprefix("module."): tensor for key, tensor in state.items() if key in names}
    if not state:
        raise CheckpointError(f"{file}: expected tensors, found none")
    return state


def weights_file(path: Path) -> Path:
    """Return the path of the weights: the path itself, or the weights file in a model folder or run folder.

    Raises:
        CheckpointError: There is none.
    """
    path = fetch_run(path) if is_on_hub(path) else path
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder; expected a checkpoint or a run folder")
    for folder in (path, complete_folder(path / "best"), complete_folder(path / "last")):
        if (folder / WEIGHTS).is_file():
            return folder / WEIGHTS
    raise CheckpointError(
        f"{path}: expected a run folder with {WEIGHTS} in best/ or last/, or a model folder with {WEIGHTS}"
    )


def read_metadata(file: Path) -> dict[str, str]:
    """Return the text entries in the header of a safetensors file; empty for other files."""
    if checkpoint_kind(file) != "safetensors":
        return {}
    try:
        with _opened(file) as opened:
            return dict(opened.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(f"{file}: damaged safetensors file ({error})") from None


def _opened(file: Path) -> Any:
    if not is_utf8(file):
        raise CheckpointError(f"{file}: safetensors requires a path in UTF-8; rename the file or folder")
    return safe_open(file, framework="pt", device="cpu")


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        with _opened(file) as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise CheckpointError(f"{file}: damaged safetensors file, perhaps truncated ({error})") from None


def _read_torch(file: Path) -> Any:
    try:
        with _STAND_INS, torch.serialization.safe_globals(TORCH_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old storages; problems raise an error
            content = torch.load(
                file,
                map_location="cpu",
                weights_only=True,
                encoding="latin1",  # keeps the bytes of numbers that Python 2 wrote as text
            )
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{file}: {_refusal(str(error))}") from None
    except _DAMAGED_TORCH as error:
        first = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{file}: damaged PyTorch file, perhaps truncated ({first})") from None
    return content


def _refusal(message: str) -> str:
    """Shorten the message of an error in torch to one line."""
    asked = re.search(r"GLOBAL ([\w.]+)", message)
    if asked:
        return refusal(f"the file contains the Python object `{asked[1]}`")
    ours = re.search(r"the file (?:contains|builds|calls|tries|encodes) [^\n]*", message)
    if ours:
        return refusal(ours[0])
    if re.search(r"Unsupported operand (?:149|140|141|142|143|144|145|147|148)\b", message):
        return (
            "written with pickle protocol 4 or later, which cannot be read safely; save it again with "
            "torch.save and its default protocol"
        )
    return refusal("")


def _tensors(file: Path, content: Any) -> dict[str, torch.Tensor]:
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: found a {type(content).__name__}, expected a dictionary of tensors")
    tensors = {str(key): _as_tensor(value) for key, value in content.items()}
    state = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    if tensors and not state:
        found = ", ".join(list(tensors)[:4])
        raise CheckpointError(
            f"{file}: expected weights in one of the keys {', '.join(_INNER)}, found only the keys {found}"
        )
    return state


def _as_tensor(value: Any) -> torch.Tensor | None:
    """Convert a tensor or an array to a tensor; return None for other values, such as counters."""
    tensor = value.tensor() if isinstance(value, Numbers) else value
    if not isinstance(tensor, torch.Tensor) or (isinstance(value, Numbers) and tensor.ndim == 0):
        return None
    return tensor


def _has_tensor(content: Any) -> bool:
    return isinstance(content, dict) and any(
        isinstance(v, torch.Tensor) and v.ndim > 0 for v in content.values()
    )


def _inner(content: dict[Any, Any]) -> str | None:
    """Return the key under which a trainer stored the weights."""
    return next((name for name in _INNER if isinstance(content.get(name), dict)), None)


def _unwrap(content: Any) -> Any:
    """Return the weights of a moving average, which may be stored together with counters or as a wrapped module."""
    while isinstance(content, dict):
        inner = _inner(content) or ("module" if isinstance(content.get("module"), dict) else None)
        if inner is None:
            break
        content = content[inner]
    return content


# Where averages are stored. Each function takes a file and its content, and returns the weights (None if there is only
# an average), the average (None if there is none) and its place, for messages.


def _average_of_run(file: Path, content: Any) -> tuple[Any, Any, str]:
    """Find the moving average in the training state of a run of this package."""
    training = file.with_name("state.pt")
    state = _read_torch(training) if file.name == WEIGHTS and training.is_file() else None
    if not isinstance(state, dict) or "holds" not in state:
        return content, None, ""
    if state["holds"] == "averaged":
        return content, content, ""
    if not state.get("other"):
        raise CheckpointError(
            f"{file}: the run has no averaged weights, because it was trained without `train.ema`"
        )
    return content, state["other"], ""


def _average_by_key(file: Path, content: Any) -> tuple[Any, Any, str]:  # noqa: ARG001
    """Find a moving average that is stored in a separate key, for example `{"model_ema": …, "state_dict": …}`."""
    average, place = None, ""
    while isinstance(content, dict):
        keys = [
            str(key)
            for key, value in content.items()
            if _AVERAGED.search(str(key))
            and (_has_tensor(value) or (isinstance(value, dict) and any(map(_has_tensor, value.values()))))
        ]
        if keys and average is None:
            average, place = content[keys[0]], keys[0]
        inner = _inner(content)
        if inner is None:
            return (None if keys and not _has_tensor(content) else content), average, place
        content = content[inner]
    return content, average, place


def _average_by_prefix(file: Path, content: Any) -> tuple[Any, Any, str]:  # noqa: ARG001
    """Find a moving average whose tensors have a separate prefix, for example `ema_model.conv.weight`."""
    parts: dict[str, dict[str, Any]] = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        first, _, rest = str(key).partition(".")
        if rest and _AVERAGED.search(first) and _as_tensor(value) is not None:
            parts.setdefault(first, {})[rest] = value
    if not parts:
        return content, None, ""
    prefix = max(parts, key=lambda part: len(parts[part]))
    others = {key: value for key, value in content.items() if str(key).partition(".")[0] != prefix}
    doubled = {key.removeprefix("module.") for key in parts[prefix]} - {"n_averaged"}
    if doubled and {str(key) for key in others} >= doubled:
        return others, parts[prefix], f"{prefix}."
    return content, parts[prefix], ""


_AVERAGES = (_average_of_run, _average_by_key, _average_by_prefix)


_NUMBER_CODES = frozenset(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)) | {
    "f2",
    "f4",
    "f8",
    "b1",
}
_SHORT_CODES = {"?": "b1", "e": "f2", "f": "f4", "d": "f8", "b": "i1", "B": "u1"}
_BOOKKEEPING = frozenset(("lr", "model_iter"))
"""Blobs with the trainer's state."""


class Refused(pickle.UnpicklingError):
    """The file contains more than arrays of numbers."""


class Dtype:
    """Replaces `numpy.dtype`; only types of numbers are allowed, not objects, records or text."""

    __slots__ = ("kind",)

    def __init__(self, code: object, *_: object) -> None:
        text = code.decode("ascii", "replace") if isinstance(code, bytes) else str(code)
        bare = text.lstrip("<>|=")
        bare = _SHORT_CODES.get(bare, bare)
        if bare not in _NUMBER_CODES:
            what = "objects" if bare.startswith("O") else f"values of type {text[:20]!r}"
            raise Refused(f"the file contains an array of {what}; expected numbers")
        self.kind = np.dtype(("<" if text[:1] not in "<>" else text[0]) + bare)

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 5:
            raise Refused("the file contains an array of an unknown type; expected numbers")
        order, *compound = state[1:5]
        if any(part is not None for part in compound):
            raise Refused("the file contains an array of records; expected numbers")
        if _text(order) == ">":
            self.kind = self.kind.newbyteorder(">")


class Numbers:
    """Replaces `numpy.ndarray` and numpy's scalars."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise Refused("the file contains an array that is not in numpy's format")
        shape, dtype, fortran, data = state[-4:]
        self.fill(shape, dtype, data, "F" if fortran else "C")

    def fill(self, shape: object, dtype: object, data: object, order: str) -> Numbers:
        """Set the content, whose length must match the shape and type."""
        if isinstance(data, str):
            data = data.encode("latin1")  # Python 2 wrote bytes as text
        if not isinstance(dtype, Dtype) or not isinstance(data, bytes | bytearray):
            raise Refused("the file contains an array whose content is not numbers")
        if not isinstance(shape, tuple) or any(type(size) is not int or size < 0 for size in shape):
            raise Refused("the file contains an array without a shape")
        if math.prod(shape) * dtype.kind.itemsize != len(data):
            raise Refused(
                f"the file contains an array whose {len(data)} bytes do not match its shape {shape}"
            )
        flat = np.frombuffer(data, dtype.kind)
        self.array = flat.reshape(shape, order="F" if order == "F" else "C")
        return self

    def tensor(self) -> torch.Tensor | None:
        """Return the array as a new tensor; None if there is no content."""
        if self.array is None:
            return None
        native = self.array.dtype.newbyteorder("=")
        return torch.from_numpy(self.array.astype(native, order="C", copy=True))


class Namespace:
    """Replaces `argparse.Namespace`, in which trainers store their flags; the flags are ignored."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Ignore the flags."""


class Name:
    """Replaces the object that a permitted name in a pickle stands for, such as `numpy.ndarray`.

    The file cannot change this object, and a call checks its arguments.
    """

    __slots__ = ("_make", "_name")

    def __init__(self, name: str, make: Callable[..., Any] | None = None) -> None:
        self._name = name
        self._make = make

    def __call__(self, *args: object) -> Any:
        """Create the replacement object, or raise an error."""
        if self._make is None:
            raise Refused(f"the file calls `{self._name}`")
        try:
            return self._make(*args)
        except TypeError:
            raise Refused(f"the file calls `{self._name}` with invalid arguments") from None

    def __setstate__(self, state: object) -> NoReturn:
        raise Refused(f"the file tries to set the state of `{self._name}`")


_NDARRAY = Name("numpy.ndarray")


def _empty(kind: object, *_: object) -> Numbers:
    if kind is not _NDARRAY:
        raise Refused("the file builds an array of an unsupported class")
    return Numbers()


def _scalar(dtype: object, data: object = b"") -> Numbers:
    return Numbers().fill((), dtype, data, "C")


def _from_buffer(data: object, dtype: object, shape: object, order: object = "C") -> Numbers:
    return Numbers().fill(shape, dtype, data, _text(order))


def _encode(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or _text(encoding).replace("-", "") not in ("latin1", "iso88591"):
        raise Refused("the file encodes text with an encoding other than latin1")
    return text.encode("latin1")


def _text(value: object) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


_NUMPY: dict[str, Any] = {"numpy.ndarray": _NDARRAY, "numpy.dtype": Name("numpy.dtype", Dtype)}
for _core in ("numpy.core", "numpy._core"):
    _NUMPY[f"{_core}.multiarray._reconstruct"] = Name("_reconstruct", _empty)
    _NUMPY[f"{_core}.multiarray.scalar"] = Name("scalar", _scalar)
    _NUMPY[f"{_core}.numeric._frombuffer"] = Name("_frombuffer", _from_buffer)

_PICKLED: dict[str, Any] = {
    **_NUMPY,
    "_codecs.encode": Name("encode", _encode),
    "builtins.bytes": Name("bytes", lambda: b""),
    "collections.OrderedDict": Name("OrderedDict", dict),
}

TORCH_STAND_INS: list[Any] = [
    *((what, name) for name, what in _NUMPY.items()),
    (Dtype, "two_stream.Dtype"),
    (Numbers, "two_stream.Numbers"),
    (Namespace, "argparse.Namespace"),
]
"""Replacements for `torch.serialization.safe_globals`: values that trainers store along with the tensors."""


class _Reader(pickle.Unpickler):
    """An unpickler that accepts only the names in `_PICKLED`."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _PICKLED:
            raise Refused(f"the file contains the Python object `{full}`")
        return _PICKLED[full]

    def persistent_load(self, pid: object) -> NoReturn:  # noqa: ARG002 - pickle's signature
        raise Refused("the file contains a reference to data outside of the file")


def read_caffe2(file: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a Caffe2 model file by the names of their blobs, for example `res2_0_branch2a_bn_rm`.

    Blobs of the trainer are left out: `lr`, `model_iter`, names that end in `_momentum`, and everything except arrays
    of floating-point numbers. Old and new names of numpy modules and pickle protocols 0 to 5 are supported. Text
    written by Python 2 is decoded as latin1, which keeps the bytes of arrays.

    Raises:
        CheckpointError: Damaged, rejected, or a pickle of something else; nothing in it was executed.
    """
    try:
        with file.open("rb") as opened:
            content = _Reader(opened, encoding="latin1").load()
    except Refused as error:
        raise CheckpointError(f"{file}: {refusal(str(error))}") from None
    except pickle.UnpicklingError as error:
        reason = str(error)
        if "truncated" in reason:
            raise CheckpointError(f"{file}: damaged pickle, perhaps truncated ({reason})") from None
        raise CheckpointError(f"{file}: {refusal('')}") from None
    except EOFError:
        raise CheckpointError(f"{file}: damaged pickle, perhaps truncated (it ends too early)") from None
    except _DAMAGED_PICKLE as error:
        raise CheckpointError(f"{file}: damaged pickle ({type(error).__name__})") from None
    return _weights(file, content)


def refusal(reason: str) -> str:
    """Return a one-line message about why a file was rejected."""
    if not reason:
        return "rejected or damaged: the pickle contains more than tensors, and nothing in it was executed"
    hint = ""
    if "`torch." in reason or "`__main__." in reason:
        hint = "; if you trust its author, save its `state_dict()` again with torch.save"
    return f"rejected, {reason}: a checkpoint may contain only tensors, and nothing in it was executed{hint}"


def _weights(file: Path, content: object) -> dict[str, torch.Tensor]:
    blobs = content.get("blobs") if isinstance(content, dict) else None
    if not isinstance(blobs, dict):
        keys = ", ".join(str(key)[:40] for key in list(content)[:4]) if isinstance(content, dict) else ""
        found = (
            f"a dictionary of {keys or 'nothing'}" if isinstance(content, dict) else type(content).__name__
        )
        raise CheckpointError(f"{file}: found a pickle of {found}, expected a Caffe2 model with `blobs`")
    state: dict[str, torch.Tensor] = {}
    for key, value in blobs.items():
        name = _text(key)
        if name in _BOOKKEEPING or name.endswith("_momentum") or not isinstance(value, Numbers):
            continue
        tensor = value.tensor()
        if tensor is not None and tensor.is_floating_point():
            state[name] = tensor
    return state


_READERS: dict[str, Callable[[Path], Any]] = {
    "safetensors": _read_safetensors,
    "torch": _read_torch,
    "pickle": read_caffe2,
}
