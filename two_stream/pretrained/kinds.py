"""Recognises formats of checkpoint files by their content, including unsupported formats for error messages."""

from __future__ import annotations

import re
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Literal

from two_stream.errors import CheckpointError

Kind = Literal["safetensors", "torch", "pickle"]

_TORCH_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
"""First number in files of `torch.save` before 1.6, as stored in a pickle."""
_TEXT_PICKLE = re.compile(rb"\([dl]p\d+\n|\(d[SV]|[}\]]q.|c[\w.]+\n\w+\n|\(c[\w.]+\n|\(i[\w.]+\n", re.S)
"""Start of a pickle of protocol 0 or 1."""
_PAGE = re.compile(rb"(?is)(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body|script)")
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "a git-lfs pointer, not the file it points to; fetch it with `git lfs pull`",
    ),
    (b"\x89HDF\r\n", "an HDF5 file (Keras, TensorFlow); this format is not supported"),
    (b"\x93NUMPY", "a numpy array; expected a checkpoint"),
    (b"model_checkpoint_path:", "the index of a TensorFlow checkpoint; this format is not supported"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"7z\xbc\xaf'\x1c", "a 7-Zip archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"%PDF", "a PDF document"),
)
_SUFFIXES = (".pth", ".pt", ".tar", ".ckpt", ".safetensors", ".bin", ".pkl")
_TENSORFLOW_INDEX = bytes.fromhex("57fb808b247547db")


def describe_page(start: bytes) -> str | None:
    """Describe a page that a server sent instead of a file, given its first bytes; return None for other content."""
    if _PAGE.match(start):
        return "looks like an HTML page: the download link is dead or requires a login"
    head = start.lstrip()[:200]
    if head.startswith((b"<?xml", b"<Error>")):
        return "looks like an XML error page: the download link is dead"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer and not the file itself"
    return None


def checkpoint_kind(file: Path) -> Kind:
    """Return the format of a checkpoint.

    Raises:
        CheckpointError: Unreadable, empty, or in a different format, which is named.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(2048)
            opened.seek(max(0, file.stat().st_size - 8))
            end = opened.read(8)
    except OSError as error:
        raise CheckpointError(f"{file}: the file cannot be read ({error.strerror})") from None
    if not start:
        raise CheckpointError(f"{file}: empty file (0 bytes)")
    if start[:4] == b"PK\x03\x04":
        _require_torch_archive(file)
        return "torch"
    # first, as the length of a safetensors header may start like a pickle
    if len(start) >= 9 and start[8:9] == b"{" and 2 <= struct.unpack("<Q", start[:8])[0] <= 100_000_000:
        return "safetensors"
    if start[:1] == b"\x80":
        return "torch" if _TORCH_MAGIC in start[:40] else "pickle"
    if _TEXT_PICKLE.match(start):
        return "pickle"
    raise CheckpointError(f"{file}: {_name(file, start, end)}")


def refuse_checkpoint(file: Path, wanted: str) -> None:
    """Raise an error if a file is a checkpoint and not a video or run, as expected (`wanted`).

    Raises:
        CheckpointError: Says how to convert it to a run.
    """
    if wanted == "video" and file.suffix not in _SUFFIXES:
        return
    try:
        checkpoint_kind(file)
    except CheckpointError:
        return
    raise CheckpointError(
        f"{file}: found a checkpoint, expected a {wanted}; convert it to a run with `two-stream "
        f"weights convert {file} --model "
        "MODEL --out RUN`"
    )


def _name(file: Path, start: bytes, end: bytes) -> str:
    page = describe_page(start)
    if page is not None:
        return page if page.startswith("looks") else _FOREIGN[0][1]
    for magic, what in _FOREIGN:
        if start.startswith(magic):
            return what
    if end == _TENSORFLOW_INDEX:
        return "the index of a TensorFlow checkpoint; this format is not supported"
    if start[4:8] == b"TFL3":
        return "a TensorFlow Lite model; this format is not supported"
    if start[257:262] == b"ustar" or tarfile.is_tarfile(file):
        return _name_archive(file)
    if start[0] == 0x08 and re.search(rb"pytorch|onnx|CNTK|keras2onnx", start[:256]):
        return "an ONNX model; use the PyTorch weights it was made from"
    if start[:1] in b"\x08\x0a" and re.search(rb"Placeholder|Const|MatMul|Conv|Identity|serve", start):
        return "a TensorFlow graph; this format is not supported"
    if re.match(rb"\x04\0\0\0.{4}\x03\0\0\0V \d", start, re.S):
        return "a Torch7 (Lua) file; this format is not supported"
    return "not a checkpoint (expected a safetensors, PyTorch or Caffe2 file)"


def _name_archive(file: Path) -> str:
    try:
        with tarfile.open(file) as archive:
            names = [member.name for member in archive]
    except (tarfile.TarError, OSError, EOFError):
        return "a damaged tar archive, perhaps truncated"
    if {"sys_info", "pickle", "storages"} <= set(names):
        return (
            "in the tar format of PyTorch's first releases, which cannot be read safely; "
            "load it with a PyTorch of that time and save its `state_dict()` again with torch.save"
        )
    return f"an ordinary tar archive (of {', '.join(names[:3]) or 'nothing'}); unpack it first"


def _require_torch_archive(file: Path) -> None:
    """Raise an error for a zip file that was not written by `torch.save`; damage is reported later, by the reader."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return
    leaves = {name.split("/", maxsplit=1)[-1] for name in names}
    if "constants.pkl" in leaves:
        raise CheckpointError(
            f"{file}: found a TorchScript program, expected a checkpoint; save its `state_dict()` with "
            "torch.save"
        )
    if "data.pkl" in leaves:
        return
    if names and all(name.endswith(".npy") for name in names):
        raise CheckpointError(f"{file}: found a numpy archive (.npz), expected a checkpoint")
    shown = ", ".join(names[:3]) or "nothing"
    raise CheckpointError(
        f"{file}: found a zip archive with {shown}, expected a checkpoint; unpack the archive first"
    )
