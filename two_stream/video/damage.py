"""Pictures that decode, but from damaged data: what C decoders say on standard error, and what they pass over.

libjpeg, libpng, libtiff and OpenCV write to file descriptor 2, without the file's name. It is caught per picture.
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

_SPOKEN = re.compile(
    r"Corrupt JPEG data|Premature end of JPEG|Inconsistent progression|Invalid SOS param|Unknown Adobe color"
    r"|Warning: unknown JFIF|Application transferred too|libpng |\[ ?(?:INFO|WARN|ERROR|FATAL) ?:\d+@|> "
)
"""how the lines of decoders begin; others come from other threads and are passed on"""
_DAMAGE = re.compile(
    r"(?:Corrupt JPEG data: (?!bad ICC)|Premature end of JPEG|Inconsistent progression|libpng error"
    r"|\[(?:ERROR|FATAL):).*"
)
"""lines that mean wrong pixels; odd profiles and unknown tags do not"""
_CODE_PLACE = re.compile(r"^\[[^]]*\] \S+ \S+:\d+ ")
_ZEROS = bytes(64)
"""no compressor writes that many in a row but for something flat"""
_PIXELS_A_ZERO = 4096
"""of a flat picture, WebP writes a zero for 10,000 pixels"""
_TOLD = 5
"""damaged pictures named per process"""
_LOCK = threading.Lock()
_told: set[str] = set()
_scratch: list[int] = []


def _renew() -> None:
    """Give a forked process a lock and a file of its own."""
    global _LOCK
    _LOCK = threading.Lock()
    while _scratch:
        os.close(_scratch.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def _scratch_file() -> int:
    """Open a file for the process's life: in memory where the system has such files, so that no full disk matters."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("decoder_words")
    descriptor, name = tempfile.mkstemp()
    with suppress(OSError):  # Windows removes no open file
        Path(name).unlink()
    return descriptor


@contextmanager
def decoder_words() -> Iterator[list[str]]:
    """Catch what decoders say meanwhile; the list is filled at the end. One picture of a process at a time."""
    words: list[str] = []
    with _LOCK:
        try:
            before = os.dup(2)
        except OSError:  # a process without standard error
            yield words
            return
        if not _scratch:
            _scratch.append(_scratch_file())
        scratch = _scratch[0]
        level = cv2.utils.logging.setLogLevel(
            cv2.utils.logging.LOG_LEVEL_ERROR
        )  # so libtiff's errors are written
        try:
            os.dup2(scratch, 2)
            yield words
        finally:
            os.dup2(before, 2)
            cv2.utils.logging.setLogLevel(level)
            said = os.lseek(scratch, 0, os.SEEK_CUR)
            if said:
                os.lseek(scratch, 0, os.SEEK_SET)
                lines = os.read(scratch, said).splitlines(keepends=True)
                os.lseek(scratch, 0, os.SEEK_SET)
                os.ftruncate(scratch, 0)
                texts = [line.decode(errors="replace").rstrip() for line in lines]
                words += [text for text in texts if _SPOKEN.match(text)]
                others = [line for line, text in zip(lines, texts) if text and not _SPOKEN.match(text)]
                if others:
                    os.write(before, b"".join(others))
            os.close(before)


def damage_in(content: bytes, words: list[str], pixels: int) -> str:
    """Return what shows that a picture, which decoded, is damaged; empty where nothing does.

    Args:
        content: The file's bytes.
        words: What the decoder said.
        pixels: Of the decoded picture.
    """
    for text in words:
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
    return (webp or jp2) and bytes(len(_ZEROS) + pixels // _PIXELS_A_ZERO) in content


def _busy_scan(content: bytes) -> bytes:
    """Return the data of a JPEG where zeros would be a block of nothing but edges; empty where they may be flat.

    The first symbol of a Huffman table is the code of zeros. If it is not "end of block" for brightness, 64 zero bytes
    set all 63 coefficients of a block at least. Files of several scans are left to libjpeg.
    """
    at, first = 2, {}
    while at + 4 <= len(content) and content[at] == 0xFF:
        kind = content[at + 1]
        if kind == 0xFF:
            at += 1
            continue
        part = content[at + 4 : at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")]
        if 0xC2 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            return b""
        while kind == 0xC4 and len(part) > 17:
            first[part[0]] = part[17]
            part = part[17 + sum(part[1:17]) :]
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if kind == 0xDA:
            scan = content[at : content.rfind(b"\xff\xd9")]
            table = 0x10 | (part[2] & 15) if len(part) > 2 else 0
            return scan if first.get(table, 0) and b"\xff\xda" not in scan else b""
    return b""


def tell_damage(name: str, damage: str) -> None:
    """Warn of a picture that decoded from damaged data, once; after some, that there are more."""
    if name in _told or len(_told) > _TOLD:
        return
    _told.add(name)
    if len(_told) <= _TOLD:
        warn(f"{name}: damaged ({damage}): pixels may be wrong")
    else:
        warn(f"{name} and perhaps more are damaged; `two-stream check --decode` names them all")
