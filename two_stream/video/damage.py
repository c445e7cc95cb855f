"""Finds damaged images that decoders still accept, by decoder messages and by runs of zero bytes.

libjpeg, libpng, libtiff and OpenCV write messages to file descriptor 2, without the name of the file. No Python binding
returns these messages, so they are captured for each image.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2

from two_stream.runtime.console import warn

_MESSAGE = re.compile(
    r"Corrupt JPEG data|Premature end of JPEG|Inconsistent progression|Invalid SOS param|Unknown Adobe color"
    r"|Warning: unknown JFIF|Application transferred too|libpng |\[ ?(?:INFO|WARN|ERROR|FATAL) ?:\d+@|> "
)
"""beginnings of decoders' lines; other lines come from other threads and are passed on"""
_DAMAGE = re.compile(
    r"(?:Corrupt JPEG data: (?!bad ICC)|Premature end of JPEG|Inconsistent progression|libpng error"
    r"|\[(?:ERROR|FATAL):).*"
)
"""lines that mean wrong pixels; odd profiles and unknown tags do not"""
_CODE_PLACE = re.compile(r"^\[[^]]*\] \S+ \S+:\d+ ")
_ZEROS = bytes(64)
"""compressors write such a run only for flat areas"""
_PIXELS_PER_ZERO = 4096
"""pixels of a flat image per zero byte; WebP writes a zero for 10,000 pixels"""
_MOST_WARNINGS = 5
"""damaged images named per process"""
_LOCK = threading.Lock()
_warned: set[str] = set()
_scratch: list[int] = []


def _renew() -> None:
    """Create a new lock and file in a forked process."""
    global _LOCK
    _LOCK = threading.Lock()
    while _scratch:
        os.close(_scratch.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def _scratch_file() -> int:
    """Open a temporary file that stays open until the process ends; it is in memory if possible."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("decoder_words")
    descriptor, name = tempfile.mkstemp()
    with suppress(OSError):  # Windows cannot remove an open file
        Path(name).unlink()
    return descriptor


@contextmanager
def capture_decoder_messages() -> Iterator[list[str]]:
    """Capture the messages of decoders in a list, which is filled on exit."""
    messages: list[str] = []
    with _LOCK:
        try:
            before = os.dup(2)
        except OSError:  # a process without standard error
            yield messages
            return
        if not _scratch:
            _scratch.append(_scratch_file())
        scratch = _scratch[0]
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # for libtiff's errors
        try:
            os.dup2(scratch, 2)
            yield messages
        finally:
            os.dup2(before, 2)
            cv2.utils.logging.setLogLevel(level)
            written = os.lseek(scratch, 0, os.SEEK_CUR)
            if written:
                os.lseek(scratch, 0, os.SEEK_SET)
                lines = os.read(scratch, written).splitlines(keepends=True)
                os.lseek(scratch, 0, os.SEEK_SET)
                os.ftruncate(scratch, 0)
                texts = [line.decode(errors="replace").rstrip() for line in lines]
                messages += [text for text in texts if _MESSAGE.match(text)]
                others = [line for line, text in zip(lines, texts) if text and not _MESSAGE.match(text)]
                if others:
                    os.write(before, b"".join(others))
            os.close(before)


def find_picture_damage(content: bytes, messages: list[str], pixels: int) -> str:
    """Return a sign of damage in a file's content or its decoder's messages, or an empty string."""
    for text in messages:
        if _DAMAGE.match(text):
            return _CODE_PLACE.sub("", text)
    if _ZEROS in content and _has_hole(content, pixels):
        return "zeros where compressed data should be"
    return ""


def _has_hole(content: bytes, pixels: int) -> bool:
    if content.startswith(b"\xff\xd8"):
        return _ZEROS in _busy_scan(content)
    webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    jp2 = content[4:8] == b"jP  " or content.startswith(b"\xff\x4f\xff\x51")
    return (webp or jp2) and bytes(len(_ZEROS) + pixels // _PIXELS_PER_ZERO) in content


def _busy_scan(content: bytes) -> bytes:
    """Return a JPEG's compressed data if flat areas in it are never runs of zero bytes; otherwise return no bytes.

    Zero bits are the code of the first symbol in a Huffman table. If the first symbol for luminance is not "end of
    block", 64 zero bytes set all 63 coefficients of at least one block. Files with several scans are not checked here.
    """
    at, first = 2, {}
    while at + 4 <= len(content) and content[at] == 0xFF:
        kind = content[at + 1]
        if kind == 0xFF:
            at += 1
            continue
        length = int.from_bytes(content[at + 2 : at + 4])
        part = content[at + 4 : at + 2 + length]
        if 0xC2 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            return b""
        while kind == 0xC4 and len(part) > 17:
            first[part[0]] = part[17]
            part = part[17 + sum(part[1:17]) :]
        at += 2 + length
        if kind == 0xDA:
            scan = content[at : content.rfind(b"\xff\xd9")]
            table = 0x10 | (part[2] & 15) if len(part) > 2 else 0
            return scan if first.get(table, 0) and b"\xff\xda" not in scan else b""
    return b""


def warn_of_damage(name: str, damage: str) -> None:
    """Warn of a damaged image; after several warnings, one last warning says that other files may be damaged too."""
    if name in _warned or len(_warned) > _MOST_WARNINGS:
        return
    _warned.add(name)
    if len(_warned) <= _MOST_WARNINGS:
        warn(f"{name}: the image is damaged ({damage}), so its pixels may be wrong")
    else:
        warn(f"{name} and possibly other files are damaged; run `two-stream check --decode` to list them all")
