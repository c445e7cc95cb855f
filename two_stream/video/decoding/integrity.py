"""Finds truncated and damaged video files from sizes, end markers, counters, checksums and timestamps in the container.

Decoders do not report missing parts: libav reads a truncated file until it ends, without an error. No frames are
decoded here, except those of GIF files. Formats that store neither a size nor an end marker (raw streams, MPEG program
streams) cannot be checked.
"""

from __future__ import annotations

import os
import re
import warnings
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

_TS = 188
"""bytes of a packet of an MPEG transport stream"""
_CHUNK = 20_000
"""packets of a transport stream that are checked together"""
_INDEX = 1 << 20
"""bytes of the longest segment index: 65,535 entries of 12 bytes"""
_APPENDED = 1024
"""bytes that a program may have appended to a GIF file"""
_BEGINNINGS = {".gif": "GIF8", ".ts": "a packet", ".mts": "a packet", ".m2ts": "a packet"}
"""first bytes of files with these suffixes"""
_GAPPED = frozenset({"matroska,webm", "mpegts", "mpeg", "flv", "asf", "ogg"})
"""containers in which a lost part leaves a gap in time; the others list their frames with their times"""
_FEWEST = 12
"""number of frames needed to recognise a constant rate"""
_number = int.from_bytes


class _FileDamageError(Exception):
    """A video file is damaged; the message describes the damage."""


def find_file_damage(path: Path) -> str | None:
    """Describe the damage of a video file's container; return None if there is none or the format cannot be checked."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(1024)
            for matches, check in _FORMATS:
                if matches(head):
                    check(file, size)
                    return None
            if path.suffix.lower() in _BEGINNINGS:  # libav goes by the suffix
                raise _lost(0, _BEGINNINGS[path.suffix.lower()])
    except _FileDamageError as error:
        return str(error)
    except RecursionError:
        return "the file is damaged: its lists are nested too deeply"
    except OSError:
        return None  # the decoder reports it
    return None


def _at(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _chain(file: BinaryIO, start: int, end: int, step: Callable[[bytes, int], tuple[str, int]]) -> None:
    """Go through the parts of a file; `step` maps the first 32 bytes and the position of a part to its name and end."""
    while start < end:
        name, after = step(_at(file, start, 32), start)
        if after > end:
            raise _cut(end, name, after)
        if after <= start:
            raise _lost(start, "a size")
        start = after


def _lost(place: int, what: str) -> _FileDamageError:
    return _FileDamageError(f"the file is damaged at byte {place}: expected {what}")


def _cut(size: int, name: str, end: int) -> _FileDamageError:
    return _FileDamageError(f"the file is truncated: it ends at byte {size}, but {name} ends at byte {end}")


def _without_end(size: int) -> _FileDamageError:
    return _FileDamageError(f"the file is truncated: it ends at byte {size} without an end marker")


def _mp4(file: BinaryIO, size: int) -> None:
    def box(head: bytes, place: int) -> tuple[str, int]:
        length, kind = _number(head[:4]), head[4:8]
        if length == 0:  # up to the end
            return "", size
        has_name = all(32 <= byte < 127 or byte == 0xA9 for byte in kind)
        if len(head) < 8 or length in range(2, 8) or not has_name:
            raise _lost(place, "a box")
        name = f"its box {kind.decode('latin-1')}"
        if kind == b"sidx":
            _segments(_at(file, place, min(length, _INDEX)), place + length, size)
        return name, place + (_number(head[8:16]) if length == 1 else length)

    _chain(file, 0, size, box)


def _segments(index: bytes, place: int, size: int) -> None:
    """Compare the segment index of a fragmented file with the size of the file."""
    wide = 8 if index[8:9] == b"\x01" else 4
    at = 20 + 2 * wide
    first = _number(index[at - wide : at])
    count = _number(index[at + 2 : at + 4])
    parts = (_number(index[at + 4 + 12 * n : at + 8 + 12 * n]) & 0x7FFFFFFF for n in range(count))
    end = place + first + sum(parts)
    if end > size:
        raise _cut(size, "its last segment", end)


def _avi(file: BinaryIO, size: int) -> None:
    def chunk(head: bytes, place: int) -> tuple[str, int]:
        kind, length = head[:4], _number(head[4:8], "little")
        if len(head) < 8 or not all(32 <= byte < 127 for byte in kind):
            raise _lost(place, "a chunk")
        name, end = f"its chunk {kind.decode('latin-1')}", place + 8 + length + length % 2
        if kind in (b"RIFF", b"LIST") and length:
            if end - length % 2 > size:
                raise _cut(size, name, end)
            if head[8:12] in (b"AVI ", b"AVIX", b"movi", b"rec "):
                _chain(file, place + 12, min(end, size), chunk)
        return name, min(end, size) if end - length % 2 <= size else end

    def chunk_or_rest(head: bytes, place: int) -> tuple[str, int]:  # programs may append anything
        return chunk(head, place) if head[:4] == b"RIFF" else ("", size)

    if _number(_at(file, 4, 4), "little"):  # 0: never finished, or a stream
        _chain(file, 0, size, chunk_or_rest)


_CLUSTER, _SEGMENT = 0x1F43B675, 0x18538067
_TOP = {0x1A45DFA3, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367}
_NAMED = {_CLUSTER: "cluster", _SEGMENT: "segment", 0xA3: "block", 0xA0: "group of blocks"}
_INSIDE = {0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF, 0xEC, 0xBF}


def _matroska(file: BinaryIO, size: int) -> None:
    rest = [size]

    def element(head: bytes, place: int) -> tuple[str, int]:
        if place >= rest[0]:  # after the segment
            return "", size
        wide = 9 - head[0].bit_length() if head and head[0] else 9
        kind, head = _number(head[:wide]), head[wide:]
        more = 9 - head[0].bit_length() if head and head[0] else 9
        if wide > 4 or more > 8 or len(head) < more or kind not in {_CLUSTER, _SEGMENT, *_TOP, *_INSIDE}:
            raise _lost(place, "an element")
        length = _number(head[:more]) & ((1 << 7 * more) - 1)
        body, name = place + wide + more, f"its {_NAMED.get(kind, f'element {kind:X}')}"
        known = length != (1 << 7 * more) - 1
        if known and body + length > size:
            raise _cut(size, name, body + length)
        if known and kind in _TOP | {_CLUSTER} and _at(file, body, 2) == b"\xbf\x84":
            content = _at(file, body, length)  # begins with a checksum of the rest
            if zlib.crc32(content[6:]) != _number(content[2:6], "little"):
                raise _FileDamageError(
                    f"the file is damaged after byte {place}: the checksum of this part is wrong"
                )
        if kind == _SEGMENT and known:
            rest[0] = body + length
        return name, body if kind in (_CLUSTER, _SEGMENT) else body + length

    _chain(file, 0, size, element)


def _gif(file: BinaryIO, size: int) -> None:
    content = _at(file, 0, size)
    at = 13 + _colour_table(content[10])
    while at < size and content[at] != 0x3B:
        if content[at] == 0x21:
            at += 2
        elif content[at] == 0x2C and at + 9 < size:
            at += 11 + _colour_table(content[at + 9])
        else:
            raise _lost(at, "a block")
        while at < size and content[at]:
            at += 1 + content[at]
        at += 1
    if at >= size:
        raise _without_end(size)
    if size - at > _APPENDED:
        raise _FileDamageError(f"the file is damaged: its end marker is at byte {at} of {size}")
    _unpack_pictures(file)


def _unpack_pictures(file: BinaryIO) -> None:
    """Unpack the images of a GIF file, because libav and OpenCV fill missing parts with arbitrary pixels."""
    from PIL import Image  # comes with matplotlib

    number = 0
    file.seek(0)
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
            while True:
                image.seek(number)
                image.load()
                number += 1
    except (EOFError, Image.DecompressionBombError):
        return
    except (OSError, ValueError, SyntaxError) as error:
        raise _FileDamageError(f"image {number + 1} in the file is damaged ({error})") from None


def _colour_table(flags: int) -> int:
    """Return the size of a colour table in bytes."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _flv(file: BinaryIO, size: int) -> None:
    def tag(head: bytes, place: int) -> tuple[str, int]:
        if len(head) >= 11 and head[0] & 0x1F not in (8, 9, 18):
            raise _lost(place, "a tag")
        end = place + 11 + _number(head[1:4])
        # then its size once more, which may be missing
        return "its tag", min(end + 4, size) if end <= size else end

    _chain(file, _number(_at(file, 5, 4)) + 4, size, tag)


def _ogg(file: BinaryIO, size: int) -> None:
    pages: dict[bytes, tuple[int, bool]] = {}

    def page(head: bytes, place: int) -> tuple[str, int]:
        if head[:4] != b"OggS"[: len(head)]:
            raise _lost(place, "a page")
        lacing = _at(file, place + 27, head[26]) if len(head) > 26 else b""
        stream, number = head[14:18], _number(head[18:22], "little")
        before = pages.get(stream)
        if before is not None and number > before[0] + 1:
            raise _FileDamageError(
                f"the file is damaged at byte {place}: page {number} follows page {before[0]}, so pages are missing"
            )
        pages[stream] = (number, bool(len(head) > 5 and head[5] & 4))
        return "its page", place + 27 + len(lacing) + sum(lacing)

    _chain(file, 0, size, page)
    if not any(last for _, last in pages.values()):
        raise _without_end(size)


def _asf(file: BinaryIO, size: int) -> None:
    def part(head: bytes, place: int) -> tuple[str, int]:
        length = _number(head[16:24], "little")
        if length in range(1, 24) or len(head) < 24:
            raise _lost(place, "an object")
        return "its object", place + length if length else size

    _chain(file, 0, size, part)


def _ivf(file: BinaryIO, size: int) -> None:
    _chain(file, 32, size, lambda head, place: ("its frame", place + 12 + _number(head[:4], "little")))


def _mxf(file: BinaryIO, size: int) -> None:
    def part(head: bytes, place: int) -> tuple[str, int]:
        if head[:4] != b"\x06\x0e\x2b\x34" or len(head) < 26:
            raise _lost(place, "a key")
        more = head[16] & 0x7F if head[16] & 0x80 else 0
        length = _number(head[17 : 17 + more]) if more else head[16]
        return "its part", place + 17 + more + length

    _chain(file, 0, size, part)


def _y4m(file: BinaryIO, size: int) -> None:
    head = _at(file, 0, 1024).partition(b"\n")[0].decode("ascii", "replace")
    fields = {field[0]: field[1:] for field in head.split()[1:]}
    colour = fields.get("C", "420")
    if not (fields.get("W", "").isdigit() and fields.get("H", "").isdigit()):
        return
    width, height = int(fields["W"]), int(fields["H"])
    across = {"420": 2, "422": 2, "411": 4}.get(colour[:3], 1)
    down = 2 if colour[:3] == "420" else 1
    planes = width * height * (2 if "alpha" in colour else 1)
    if colour[:4] != "mono":
        planes += 2 * -(-width // across) * -(-height // down)
    planes *= 2 if re.search(r"(p|mono)1\d", colour) else 1

    def frame(head: bytes, place: int) -> tuple[str, int]:
        if head[:5] != b"FRAME"[: len(head)]:
            raise _lost(place, "FRAME")
        return "its frame", place + len(head.partition(b"\n")[0]) + 1 + planes

    _chain(file, len(head) + 1, size, frame)


def _ts(file: BinaryIO, size: int, each: int = _TS, skip: int = 0) -> None:
    """Check the marker and counter of every packet; only packets with a payload increase the counter."""
    counters: dict[int, int] = {}
    file.seek(0)
    for first in range(0, size // each, _CHUNK):
        packets = np.frombuffer(file.read(each * _CHUNK), np.uint8)
        packets = packets[: len(packets) // each * each].reshape(-1, each)[:, skip : skip + 12].astype(int)
        wrong = np.flatnonzero((packets[:, 0] != 0x47) | (packets[:, 1] & 0x80 != 0))
        if len(wrong):
            raise _lost((first + int(wrong[0])) * each, "a packet")
        names = (packets[:, 1] & 0x1F) << 8 | packets[:, 2]
        restarts = (packets[:, 3] & 0x20 != 0) & (packets[:, 4] > 0) & (packets[:, 5] & 0x80 != 0)
        for name in np.unique(names[names != 0x1FFF]).tolist():
            carry = np.flatnonzero((names == name) & (packets[:, 3] & 0x10 != 0))
            count = packets[carry, 3] & 0x0F
            if not len(count):
                continue
            steps = np.diff(count, prepend=counters.get(name, (count[0] - 1) & 0x0F)) & 0x0F
            gaps = np.flatnonzero((steps > 1) & ~restarts[carry])  # 0: sent twice
            if len(gaps):
                place = (first + int(carry[gaps[0]])) * each
                raise _FileDamageError(f"the file is damaged before byte {place}: packets are missing")
            counters[name] = int(count[-1])
    if size % each:
        raise _FileDamageError(
            f"the file is truncated: it ends at byte {size}, inside a packet of {each} bytes"
        )


_BOXES = (b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"styp", b"sidx", b"pnot")
_FORMATS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, int], None]], ...] = (
    (lambda head: head[4:8] in _BOXES, _mp4),
    (lambda head: head[:4] == b"RIFF" and head[8:12] == b"AVI ", _avi),
    (lambda head: head[:4] == b"\x1a\x45\xdf\xa3", _matroska),
    (lambda head: head[:4] == b"GIF8" and len(head) > 13, _gif),
    (lambda head: head[:3] == b"FLV", _flv),
    (lambda head: head[:4] == b"OggS", _ogg),
    (lambda head: head[:4] == b"\x30\x26\xb2\x75", _asf),
    (lambda head: head[:4] == b"DKIF", _ivf),
    (lambda head: head[:4] == b"\x06\x0e\x2b\x34", _mxf),
    (lambda head: head[:10] == b"YUV4MPEG2 ", _y4m),
    (lambda head: head[:1] + head[_TS : _TS + 1] == b"GG", _ts),
    (lambda head: head[4:5] + head[196:197] == b"GG", lambda file, size: _ts(file, size, 192, 4)),
    (lambda head: head[:1] + head[204:205] == b"GG", lambda file, size: _ts(file, size, 204)),
)


def read_stated_end(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the end of the video in seconds, as stated in the header of a Matroska or Flash file."""
    if container.format.name not in ("matroska,webm", "flv"):
        return None
    for key, value in stream.metadata.items():
        if key.upper().startswith("DURATION"):
            with suppress(ValueError):  # the tag is free text
                hours, minutes, seconds = map(float, value.split(":"))
                return 3600 * hours + 60 * minutes + seconds
    if len(container.streams) > 1 or container.duration is None:  # sound may last longer
        return None
    return container.duration / 1e6


def find_missing_frames(stamps: Sequence[float], end: float | None, kind: str) -> str | None:
    """Describe where frames are missing; return None if no frames are missing.

    Gaps are reported only if the frame rate is otherwise constant. `stamps` are the times of the frames in seconds,
    `end` is the end of the video according to the header, and `kind` is the container format.
    """
    if kind not in _GAPPED or not stamps:
        return None
    gaps = np.diff(np.sort(np.asarray(stamps)))
    if end is not None and end - max(stamps) > 2.5 * (gaps.max() if len(gaps) else end):
        return f"the header says that the video ends at {end:.3g} s, but its last frame is at {max(stamps):.3g} s"
    if len(stamps) < _FEWEST:
        return None
    usual = float(np.median(gaps))
    odd = np.flatnonzero(np.abs(gaps - usual) > usual / 4 + 0.0015)
    if not len(odd) or len(odd) > max(1, len(gaps) // 50) or gaps.max() <= 2.5 * usual:
        return None
    place = int(gaps.argmax())
    return (
        f"no frame for {gaps[place]:.3g} s after frame {place + 1}, where the others are {usual:.3g} s apart"
    )
