"""Reads untrusted files of arrays: declared sizes are checked before memory is allocated."""

from __future__ import annotations

import math
import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = int(os.environ.get("TWO_STREAM_MOST_BYTES", 2**32))
"""Largest size of a file of arrays in memory, set by the environment."""

_MOST_HEADER = 4096
_HEADER = re.compile(
    rb"\{'descr': '(?P<kind>[<|](?:[biufc](?:1|2|4|8|16)|[US]\d{1,6}))', 'fortran_order': (?P<order>True|False), "
    rb"'shape': \((?P<shape>(?:\d{1,15}(?:, ?|,?(?=\))))*)\), \} *\n"
)


def read_arrays(file: Path | IO[bytes]) -> dict[str, NDArray[Any]]:
    """Read the arrays of an `.npz` file after checking their declared sizes.

    Raises:
        OSError: It cannot be read.
        ValueError: Not an archive of plain arrays, damaged, or over `MOST_BYTES` (`TWO_STREAM_MOST_BYTES`) in memory.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            total = sum(info.file_size for info in infos)
            if total > MOST_BYTES:
                raise ValueError(
                    f"the arrays have {total:,} bytes, more than TWO_STREAM_MOST_BYTES ({MOST_BYTES:,})"
                )
            if len({info.filename for info in infos}) != len(infos):
                raise ValueError("two arrays have the same name")
            found = {}
            for info in infos:
                with archive.open(info) as member:
                    found[info.filename.removesuffix(".npy")] = _read_array(member, info)
            return found
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"damaged: {error}") from None


def map_array(path: Path) -> NDArray[Any]:
    """Map the array of an `.npy` file into memory, read-only.

    Raises:
        OSError: It cannot be read.
        ValueError: Not a plain array, or its size differs from the file's.
    """
    with path.open("rb") as file:
        kind, shape, order = _read_header(file, path.name, path.stat().st_size)
        if not math.prod(shape):
            return np.zeros(shape, kind)
        return np.memmap(path, kind, "r", file.tell(), shape, order)


def _read_array(member: IO[bytes], info: zipfile.ZipInfo) -> NDArray[Any]:
    """Read one array of an archive."""
    kind, shape, order = _read_header(member, info.filename, info.file_size)
    flat = np.frombuffer(bytearray(member.read(math.prod(shape) * kind.itemsize)), dtype=kind)
    return flat.reshape(shape, order=order)


def _read_header(
    file: IO[bytes], name: str, length: int
) -> tuple[np.dtype[Any], tuple[int, ...], Literal["C", "F"]]:
    """Read the type, shape and order of an array that has `length` bytes including its header.

    numpy's reader evaluates the header as Python; this function accepts only what numpy writes.
    """
    magic = file.read(8)
    lengths = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4}
    if magic not in lengths:
        raise ValueError(f"{name}: not an array in numpy's format 1 or 2")
    count = int.from_bytes(file.read(lengths[magic]), "little")
    header = _HEADER.fullmatch(file.read(min(count, _MOST_HEADER)))
    if header is None:
        raise ValueError(f"{name}: invalid header, or a data type other than numbers or text")
    kind = np.dtype(header["kind"].decode())
    shape = tuple(int(size) for size in header["shape"].decode().replace(",", " ").split())
    if file.tell() + math.prod(shape) * kind.itemsize != length:
        raise ValueError(f"{name}: {length:,} bytes do not fit the shape {shape} of {kind}")
    return kind, shape, "F" if header["order"] == b"True" else "C"
