"""What a file is, told by its content: the formats that are read, and the names of those that are not."""

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
"""The number with which files of `torch.save` before 1.6 begin, as a pickle holds it."""
_TEXT_PICKLE = re.compile(rb"\([dl]p\d+\n|\(d[SV]|[}\]]q.|c[\w.]+\n\w+\n|\(c[\w.]+\n|\(i[\w.]+\n", re.S)
"""How a pickle of protocol 0 or 1 begins."""
_PAGE = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body|script)", re.I | re.S
)
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "a git-lfs pointer, not the file it points to; fetch it with `git lfs pull`",
    ),
    (b"\x89HDF\r\n", "an HDF5 file (Keras, TensorFlow); there is no reader for it here"),
    (b"\x93NUMPY", "a numpy array; expected a checkpoint"),
    (b"model_checkpoint_path:", "the index of a TensorFlow checkpoint; there is no reader for it here"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"7z\xbc\xaf'\x1c", "a 7-Zip archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"%PDF", "a PDF document"),
)
_TENSORFLOW_INDEX = bytes.fromhex("57fb808b247547db")


def page_instead(start: bytes) -> str | None:
    """Say what a server sent in place of a file, from its first bytes; none when they look like content."""
    if _PAGE.match(start):
        return "looks like an HTML page: the download link is dead or asks for a login"
    head = start.lstrip()[:200]
    if head.startswith((b"<?xml", b"<Error>")):
        return "looks like an XML error page: the download link is dead"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the file it points to"
    return None


def kind_of(file: Path) -> Kind:
    """Tell which reader a checkpoint needs.

    Raises:
        CheckpointError: Unreadable, empty, or a file of another kind, which is named.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(2048)
            opened.seek(max(0, file.stat().st_size - 8))
            end = opened.read(8)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None
    if not start:
        raise CheckpointError(f"{file}: empty file (0 bytes)")
    if start[:4] == b"PK\x03\x04":
        _require_torch_archive(file)
        return "torch"
    # before pickles: the length of a safetensors header may begin with their first byte
    if len(start) >= 9 and start[8:9] == b"{" and 2 <= struct.unpack("<Q", start[:8])[0] <= 100_000_000:
        return "safetensors"
    if start[:1] == b"\x80":
        return "torch" if _TORCH_MAGIC in start[:40] else "pickle"
    if _TEXT_PICKLE.match(start):
        return "pickle"
    raise CheckpointError(f"{file}: {_name(file, start, end)}")


def refuse_checkpoint(file: Path, wanted: str) -> None:
    """Refuse a checkpoint that was given as something else.

    Raises:
        CheckpointError: Says how to make a run of it.
    """
    if wanted == "video" and file.suffix not in (
        ".pth",
        ".pt",
        ".tar",
        ".ckpt",
        ".safetensors",
        ".bin",
        ".pkl",
    ):
        return
    try:
        kind_of(file)
    except CheckpointError:
        return
    raise CheckpointError(
        f"{file}: a checkpoint, not a {wanted}; make a run of it with `two-stream weights convert {file} --model MODEL "
        "--out RUN`"
    )


def _name(file: Path, start: bytes, end: bytes) -> str:
    page = page_instead(start)
    if page is not None:
        return page if page.startswith("looks") else _FOREIGN[0][1]
    for magic, what in _FOREIGN:
        if start.startswith(magic):
            return what
    if end == _TENSORFLOW_INDEX:
        return "the index of a TensorFlow checkpoint; there is no reader for it here"
    if start[4:8] == b"TFL3":
        return "a TensorFlow Lite model; there is no reader for it here"
    if start[257:262] == b"ustar" or tarfile.is_tarfile(file):
        return _name_archive(file)
    if start[0] == 0x08 and re.search(rb"pytorch|onnx|CNTK|keras2onnx", start[:256]):
        return "an ONNX model; take the PyTorch weights it was made from"
    if start[:1] in b"\x08\x0a" and re.search(rb"Placeholder|Const|MatMul|Conv|Identity|serve", start):
        return "a TensorFlow graph; there is no reader for it here"
    if re.match(rb"\x04\0\0\0.{4}\x03\0\0\0V \d", start, re.S):
        return "a Torch7 (Lua) file; there is no reader for it here"
    return "no checkpoint (neither a safetensors, nor a PyTorch, nor a Caffe2 file)"


def _name_archive(file: Path) -> str:
    try:
        with tarfile.open(file) as archive:
            names = [member.name for member in archive]
    except (tarfile.TarError, OSError, EOFError):
        return "a damaged tar archive, perhaps truncated"
    if {"sys_info", "pickle", "storages"} <= set(names):
        return (
            "in the tar format of PyTorch's first releases, which cannot be read safely; "
            "load it with the PyTorch of its time and save its `state_dict()` anew with torch.save"
        )
    return f"an ordinary tar archive (of {', '.join(names[:3]) or 'nothing'}); unpack it first"


def _require_torch_archive(file: Path) -> None:
    """Refuse a zip file that `torch.save` did not write; a damaged one is left to the reader to name."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return
    leaves = {name.split("/", maxsplit=1)[-1] for name in names}
    if "constants.pkl" in leaves:
        raise CheckpointError(
            f"{file}: a TorchScript program; save the `state_dict()` of its model with torch.save"
        )
    if "data.pkl" in leaves:
        return
    if names and all(name.endswith(".npy") for name in names):
        raise CheckpointError(f"{file}: a numpy archive (.npz); expected a checkpoint")
    shown = ", ".join(names[:3]) or "nothing"
    raise CheckpointError(f"{file}: an ordinary zip archive (of {shown}); unpack it first")
