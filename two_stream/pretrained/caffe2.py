"""Caffe2 pickles, and the numpy values in PyTorch checkpoints, read without running anything of the file.

A pickle is a program: it names functions, and the reader calls them. Here no name leads to the function it stands
for. The few names that spell "an array of numbers" lead to stand-ins written below, which check what they are given;
every other name is refused before anything is called.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from two_stream.errors import CheckpointError

_NUMBER_CODES = frozenset(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)) | {
    "f2",
    "f4",
    "f8",
    "b1",
}
_SHORT_CODES = {"?": "b1", "e": "f2", "f": "f4", "d": "f8", "b": "i1", "B": "u1"}
_BOOKKEEPING = frozenset(("lr", "model_iter"))
"""Blobs that hold the trainer's state, not the network's."""


class Refused(pickle.UnpicklingError):
    """The file asks for more than numbers."""


class Dtype:
    """Stands for `numpy.dtype`: a kind of number, never an object, a record or text."""

    __slots__ = ("kind",)

    def __init__(self, code: object, *_: object) -> None:
        text = code.decode("ascii", "replace") if isinstance(code, bytes) else str(code)
        bare = text.lstrip("<>|=")
        bare = _SHORT_CODES.get(bare, bare)
        if bare not in _NUMBER_CODES:
            what = "objects" if bare.startswith("O") else f"values of type {text[:20]!r}"
            raise Refused(f"it holds an array of {what}; expected numbers")
        self.kind = np.dtype(("<" if text[:1] not in "<>" else text[0]) + bare)

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 5:
            raise Refused("it holds an array of an unknown type; expected numbers")
        order, *compound = state[1:5]
        if any(part is not None for part in compound):
            raise Refused("it holds an array of records; expected numbers")
        if _text(order) == ">":
            self.kind = self.kind.newbyteorder(">")


class Numbers:
    """Stands for `numpy.ndarray` and for numpy's scalars: bytes and how to look at them."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise Refused("it holds an array that is not described as numpy does")
        shape, dtype, fortran, data = state[-4:]
        self.fill(shape, dtype, data, "F" if fortran else "C")

    def fill(self, shape: object, dtype: object, data: object, order: str) -> None:
        """Take the content over; its length must be what shape and type say."""
        if isinstance(data, str):
            data = data.encode("latin1")  # Python 2 wrote bytes as text
        if not isinstance(dtype, Dtype) or not isinstance(data, bytes | bytearray):
            raise Refused("it holds an array whose content is no numbers")
        if not isinstance(shape, tuple) or any(type(size) is not int or size < 0 for size in shape):
            raise Refused("it holds an array without a shape")
        if math.prod(shape) * dtype.kind.itemsize != len(data):
            raise Refused(f"it holds an array of shape {shape} with {len(data)} bytes of content")
        flat = np.frombuffer(data, dtype.kind)
        self.array = flat.reshape(shape, order="F" if order == "F" else "C")

    def tensor(self) -> torch.Tensor | None:
        """Return a tensor that owns its memory; none where nothing was filled in."""
        if self.array is None:
            return None
        native = self.array.dtype.newbyteorder("=")
        return torch.from_numpy(self.array.astype(native, order="C", copy=True))


class Namespace:
    """Stands for `argparse.Namespace`, in which trainers keep their flags: whatever it holds is dropped."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Forget the flags."""


class Name:
    """What a name in a pickle leads to. It cannot be changed by the file, and calling it checks the arguments."""

    __slots__ = ("_make", "_name")

    def __init__(self, name: str, make: Callable[..., Any] | None = None) -> None:
        self._name = name
        self._make = make

    def __call__(self, *args: object) -> Any:
        """Make the stand-in's value, or refuse."""
        if self._make is None:
            raise Refused(f"it calls `{self._name}`")
        try:
            return self._make(*args)
        except TypeError:
            raise Refused(f"it calls `{self._name}` with arguments of another kind") from None

    def __setstate__(self, state: object) -> NoReturn:
        raise Refused(f"it changes `{self._name}`")


_NDARRAY = Name("numpy.ndarray")


def _empty(kind: object, *_: object) -> Numbers:
    if kind is not _NDARRAY:
        raise Refused("it builds a special kind of array")
    return Numbers()


def _scalar(dtype: object, data: object = b"") -> Numbers:
    made = Numbers()
    made.fill((), dtype, data, "C")
    return made


def _from_buffer(data: object, dtype: object, shape: object, order: object = "C") -> Numbers:
    made = Numbers()
    made.fill(shape, dtype, data, _text(order))
    return made


def _encode(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or _text(encoding).replace("-", "") not in ("latin1", "iso88591"):
        raise Refused("it encodes something other than bytes")
    return text.encode("latin1")


def _nothing() -> bytes:
    return b""


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
    "builtins.bytes": Name("bytes", _nothing),
    "collections.OrderedDict": Name("OrderedDict", dict),
}

TORCH_STAND_INS: list[Any] = [
    *((what, name) for name, what in _NUMPY.items()),
    (Dtype, "two_stream.Dtype"),
    (Numbers, "two_stream.Numbers"),
    (Namespace, "argparse.Namespace"),
]
"""For `torch.serialization.safe_globals`: what trainers file beside the tensors, as the stand-ins of this module."""


class _Reader(pickle.Unpickler):
    """An unpickler to which only the names above mean anything."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _PICKLED:
            raise Refused(f"it asks for `{full}`")
        return _PICKLED[full]

    def persistent_load(self, pid: object) -> NoReturn:  # noqa: ARG002 - pickle's signature
        raise Refused("it refers to something outside of the file")


def read_caffe2(file: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a Caffe2 model file by blob name, for example `res2_0_branch2a_bn_rm`.

    Blobs of the trainer are left out: `lr`, `model_iter`, whatever ends in `_momentum`, and what is no array of
    floating-point numbers. Both spellings of numpy's modules and pickle protocols 0 to 5 are read; text written by
    Python 2 counts as latin1, as bytes of arrays need.

    Raises:
        CheckpointError: Damaged, refused, or a pickle of something else; one line, and nothing of it was run.
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
    except (
        ArithmeticError,
        AttributeError,
        ImportError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise CheckpointError(f"{file}: damaged pickle ({type(error).__name__})") from None
    return _weights(file, content)


def refusal(reason: str) -> str:
    """Say why a file was not read, in one line."""
    if not reason:
        return "refused or damaged: it is not a pickle of tensors only, and nothing of it was run"
    hint = ""
    if "`torch." in reason or "`__main__." in reason:
        hint = "; where you trust its maker, save its `state_dict()` anew with torch.save"
    return f"refused, {reason}: a checkpoint may hold tensors only, and nothing of it was run{hint}"


def _weights(file: Path, content: object) -> dict[str, torch.Tensor]:
    blobs = content.get("blobs") if isinstance(content, dict) else None
    if not isinstance(blobs, dict):
        keys = ", ".join(str(key)[:40] for key in list(content)[:4]) if isinstance(content, dict) else ""
        found = (
            f"a dictionary of {keys or 'nothing'}" if isinstance(content, dict) else type(content).__name__
        )
        raise CheckpointError(f"{file}: a pickle of {found}; expected a Caffe2 model with `blobs`")
    state: dict[str, torch.Tensor] = {}
    for key, value in blobs.items():
        name = _text(key)
        if name in _BOOKKEEPING or name.endswith("_momentum") or not isinstance(value, Numbers):
            continue
        tensor = value.tensor()
        if tensor is not None and tensor.is_floating_point():
            state[name] = tensor
    return state
