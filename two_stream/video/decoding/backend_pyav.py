"""The default backend, PyAV. Its wheel contains libav and codecs such as H.264, HEVC, AV1, VP8, VP9 and MPEG-4.

Only one thread decodes, because the way in which libav conceals damage depends on the number of threads. With more
threads, the frames of a damaged file would depend on the machine. Several videos are decoded in parallel instead.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from two_stream.errors import VideoError
from two_stream.video.decoding.base import Decoded, Image, Video, check_file, ignore_beat, rotate_picture
from two_stream.video.decoding.index import (
    Index,
    load_frame_index,
    read_packet_index,
    starts_like_index,
    store_frame_index,
)
from two_stream.video.decoding.integrity import find_missing_frames, read_stated_end

_TEXT_FORMATS = frozenset({"tty", "bin", "xbin", "adf", "idf"})  # libav draws text files as ANSI art
_LIST_FORMATS = frozenset({"concat", "hls", "applehttp", "dash", "sdp", "imf", "lavfi"})
_PICTURE_FORMATS = frozenset({"image2", "image2pipe", "ico"})
_PAYS = 48
"""gap in frames below which decoding all frames in between is as fast as a seek"""
_ENTROPY_CODED = frozenset({"vp8", "vp9", "av1", "libdav1d"})
_ZEROS = bytes(256)
"""a longer run of zeros than these codecs ever write"""
_PEEKED = 200
"""number of packets that are read to recognise a cover image in a file with several video streams"""
_DECODING_ERRORS = (av.FFmpegError, ValueError, MemoryError)


class PyavVideo(Video):
    """A video that PyAV decodes.

    Attributes:
        stream_index: Index of the video stream among all streams of the file.
        leads: Whether it is the first video stream that is not a cover image.
        quarter_turns: Counter-clockwise quarter turns applied to returned frames.
    """

    def __init__(self, path: Path) -> None:
        check_file(path)
        with _open_container(path) as container:
            stream, packets = _choose_stream(path, container)
            rate = stream.average_rate or stream.guessed_rate
            super().__init__(
                path,
                codec=stream.codec_context.codec.canonical_name,
                fps=float(rate) if rate and 0 < rate <= 1000 else None,
                header_frames=stream.frames or None,
            )
            self.stream_index = stream.index
            self.leads = stream.index == _moving_streams(container)[0].index
            first, why = _decode_first(chain(packets, container.demux(stream)))
        if first is None:
            announced = f"; the header states {self.header_frames} frames" if self.header_frames else ""
            raise VideoError(
                path, f"no frame can be decoded, because the video is encrypted or empty ({why}{announced})"
            )
        self._size = (first.width, first.height)
        self.quarter_turns = _quarter_turns(first)
        self.width, self.height = self._size[:: -1 if self.quarter_turns % 2 else 1]
        self._index: Index | None = None
        self._searched_index = False
        self._reformatter = VideoReformatter()

    def _walk(self) -> Generator[Decoded]:
        for _, frame in self._decode():
            yield self._describe(frame)

    def _describe(self, frame: VideoFrame) -> Decoded:
        lasts = float(frame.duration * frame.time_base) if frame.time_base else None
        return Decoded(partial(self._to_rgb, frame), frame.time, lasts)

    def _count_frames(self, beat: Callable[[], None]) -> int:
        pts: list[int | None] = []
        keys: list[int] = []
        prints: list[int] = []

        def collect() -> Iterator[Decoded]:
            for number, frame in self._decode():
                pts.append(frame.pts)
                prints.append(_fingerprint(frame))
                if frame.key_frame:
                    keys.append(number)
                yield self._describe(frame)

        for _ in self._timed(collect()):
            beat()
        self._index = index = Index(pts, keys, prints)
        store_frame_index(self.path, version(), Index(kind="none") if self.damage else index)
        return len(pts)

    def _decode(self, start: int = 0) -> Generator[tuple[int, VideoFrame]]:
        """Yield (number, frame) from `start` on, which is 0 or a key frame of the index."""
        corrupt: list[int] = []
        incomplete = 0
        seconds: list[float] = []
        stamp: int | None = None
        number = start
        with open_stream(self.path, self.stream_index) as (container, stream):
            if start and self._index is not None:
                known = self._index.pts[start]
                assert known is not None
                stamp = int(known)
                container.seek(stamp, stream=stream, backward=True, any_frame=False)
            try:
                for packet in container.demux(stream):
                    incomplete += packet.is_corrupt or _has_zeroed_part(packet, stream)
                    for frame in packet.decode():
                        if stamp is not None and frame.pts is not None and frame.pts < stamp:
                            continue  # shown before the key frame: may refer to frames that were skipped
                        if frame.is_corrupt:
                            corrupt.append(number)
                        seconds += [frame.time] if frame.time is not None else []
                        yield number, frame
                        number += 1
            except _DECODING_ERRORS as error:
                self._stopped = f"decoding stops after frame {number}: {_describe_error(error)}"
            if start or self._stopped:
                return
            self._at_end = True
            if corrupt:
                more = f" and {len(corrupt) - 1} more" if len(corrupt) > 1 else ""
                self._suspicion = f"frame {corrupt[0] + 1}{more} marked corrupt by the decoder"
            elif incomplete:
                self._suspicion = f"{incomplete} of its packets are incomplete"
            else:
                end = read_stated_end(container, stream)
                self._suspicion = find_missing_frames(seconds, end, container.format.name)

    def _pick(self, wanted: list[int]) -> Iterator[tuple[int, Image]]:
        if self._index is None and wanted[0] >= _PAYS:
            self._index = self._find_index()
        while wanted:
            start, run = self._next_run(wanted)
            if not start:
                yield from super()._pick(wanted)
                return
            done = 0
            for number, picture in self._pick_from(start, run):
                done += 1
                yield number, picture
            wanted = wanted[done:]
            if done < len(run) and not self._discard_index():
                yield from super()._pick(wanted)
                return

    def _next_run(self, wanted: list[int]) -> tuple[int, list[int]]:
        """Return the key frame (or 0) from which to decode, and the frames to read from there."""
        index = self._index
        if index is None or self.damage or not len(index.pts) or wanted[-1] >= len(index.pts):
            return 0, wanted
        start = index.start_before(wanted[0])
        for place, (before, after) in enumerate(pairwise(wanted), start=1):
            if (
                index.start_before(after) > before + _PAYS
            ):  # a second seek is faster than decoding what lies between
                return start, wanted[:place]
        return start, wanted

    def _pick_from(self, start: int, run: list[int]) -> Iterator[tuple[int, Image]]:
        """Yield frames from a key frame on; stop at a frame that does not match the index."""
        index, places, last = self._index, set(run), run[-1]
        assert index is not None
        try:
            with closing(self._decode(start)) as decoding:
                for number, frame in decoding:
                    if number > last or frame.pts != index.pts[number] or frame.is_corrupt:
                        break
                    if len(index.prints) and _fingerprint(frame) != index.prints[number]:
                        break
                    if number in places:
                        yield number, self._to_rgb(frame)
                    if number == last:
                        return
        except av.FFmpegError:  # the container cannot seek
            pass
        self._stopped = None  # decoding from the beginning finds any damage

    def _find_index(self) -> Index | None:
        """Return the stored index, or create one from the packets, otherwise (if it can be stored) from all frames."""
        if self._searched_index:
            return None
        self._searched_index = True
        index = load_frame_index(self.path, version())
        if index is not None:
            return index
        with open_stream(self.path, self.stream_index) as (container, stream):
            index = read_packet_index(container, stream)
        if index is not None:
            with open_stream(self.path, self.stream_index) as (container, stream):
                if starts_like_index(container, stream, index):
                    store_frame_index(self.path, version(), index)
                    return index
        # without a place to store an index, every opening would take the full pass again
        if store_frame_index(self.path, version(), Index(kind="none")):
            self._count = self._count_frames(ignore_beat)
        return self._index

    def _discard_index(self) -> bool:
        """Discard the index after a seek has shown that it is wrong; return whether there is a better index."""
        index, self._index = self._index, None
        self._searched_index = True
        stored = store_frame_index(self.path, version(), Index(kind="none"))
        if not stored or index is None or index.kind != "packets":
            return False
        self._count = self._count_frames(ignore_beat)
        return True

    def _to_rgb(self, frame: VideoFrame) -> Image:
        """Convert a frame to RGB, at the size of the first frame and with the rotation in the header."""
        width, height = self._size
        try:
            converted = self._reformatter.reformat(frame, width, height, "rgb24", threads=1)
        except (av.FFmpegError, ValueError):  # a colour space unknown to swscale: use the most common one
            converted = frame.reformat(
                width=width, height=height, format="rgb24", src_colorspace="ITU601", dst_colorspace="ITU601"
            )
        return rotate_picture(converted.to_ndarray(), self.quarter_turns)


@contextmanager
def open_stream(path: Path, stream_index: int) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file with one decoding thread.

    Raises:
        VideoError: Not a video.
    """
    check_file(path)
    with _open_container(path) as container:
        stream = container.streams[stream_index]
        assert isinstance(stream, VideoStream)
        _use_one_thread(stream)
        yield container, stream


def frame_times(path: Path) -> list[float] | None:
    """Return the time of each frame in seconds from the first frame; None if the file states no times.

    The times are taken from packets if these are reliable, otherwise from decoded frames.

    Raises:
        VideoError: Not a video.
    """
    video = PyavVideo(path)
    with open_stream(path, video.stream_index) as (container, stream):
        index = load_frame_index(path, version()) or read_packet_index(container, stream)
        base = stream.time_base
    if index is None or not len(index.pts) or not index.unique or base is None:
        return None if video.times is None else video.times[:-1].tolist()
    stamps = [int(stamp) for stamp in index.pts if stamp is not None]
    return [float((stamp - stamps[0]) * base) for stamp in stamps]


def _open_container(path: Path) -> InputContainer:
    options = {"protocol_whitelist": "file"}  # a playlist must not reach the network
    try:  # "file:" keeps libav from reading a colon in the name as a protocol
        return av.open(f"file:{path}", options=options, metadata_errors="replace")
    except (av.FFmpegError, ValueError, OSError) as error:
        raise VideoError(path, f"not a video, or its header is damaged ({_describe_error(error)})") from None


def _choose_stream(path: Path, container: InputContainer) -> tuple[VideoStream, list[Packet[VideoStream]]]:
    """Choose the stream that FFmpeg considers the best; never choose a cover image, even if it is not marked as one.

    Returns:
        The stream, and its packets that were read to choose it.
    """
    form = container.format.name
    if form in _TEXT_FORMATS:
        raise VideoError(path, "not a video, but a text file")
    if form in _LIST_FORMATS:
        raise VideoError(path, f"not a video, but a playlist ({form})")
    if form in _PICTURE_FORMATS or form.endswith("_pipe"):
        raise VideoError(path, "not a video, but an image")
    moving = _moving_streams(container)
    if not moving:
        cover = " with a cover image" if container.streams.video else ""
        what = "audio only" if container.streams.audio else "no audio stream either"
        raise VideoError(path, f"no video stream ({what}{cover})")
    stream, packets = moving[0], []
    if len(moving) > 1:
        packets = _peek(container, moving)
        counts = Counter(packet.stream.index for packet in packets)
        several = [one for one in moving if counts[one.index] > 1] or moving
        best = container.streams.best("video")
        stream = next((one for one in several if best is not None and one.index == best.index), several[0])
    if stream.codec_context is None:
        raise VideoError(path, "the installed libav does not support the video codec of this file")
    _use_one_thread(stream)
    return stream, [packet for packet in packets if packet.stream.index == stream.index]


def _moving_streams(container: InputContainer) -> list[VideoStream]:
    return [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]


def _peek(container: InputContainer, streams: list[VideoStream]) -> list[Packet[Any]]:
    packets: list[Packet[Any]] = []
    with suppress(*_DECODING_ERRORS):
        for packet in container.demux(streams):
            if packet.size:  # empty ones flush the decoder at the end of the file
                packets.append(packet)
            if len(packets) >= _PEEKED:
                break
    return packets


def _use_one_thread(stream: VideoStream) -> None:
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1


def _has_zeroed_part(packet: Packet[VideoStream], stream: VideoStream) -> bool:
    """Return whether part of a packet was overwritten with zeros, which decoders may interpret as images."""
    codec = stream.codec_context.name
    # H.264 and HEVC as in MP4: there are no bytes between their units
    gapless = codec in ("h264", "hevc") and (stream.codec_context.extradata or b"").startswith(b"\x01")
    return (gapless or codec in _ENTROPY_CODED) and packet.size >= len(_ZEROS) and _ZEROS in bytes(packet)


def _decode_first(packets: Iterable[Packet[VideoStream]]) -> tuple[VideoFrame | None, str]:
    """Return the first frame, or None and the reason why there is none."""
    count = 0
    try:
        for packet in packets:
            count += packet.size > 0
            for frame in packet.decode():
                return frame, ""
    except _DECODING_ERRORS as error:
        return None, _describe_error(error)
    return None, f"{count} packets, no frame" if count else "the file contains no video packets"


def _quarter_turns(frame: VideoFrame) -> int:
    """Return the counter-clockwise quarter turns of the display matrix, or 0 if the angle is not a multiple of 90°.

    For a damaged matrix, the angle is -2147483648.
    """
    degrees = frame.rotation
    if not math.isfinite(degrees) or abs(degrees) > 360 or degrees % 90:
        return 0
    return int(degrees // 90) % 4


def _fingerprint(frame: VideoFrame) -> int:
    plane = frame.planes[0]
    content = np.frombuffer(memoryview(plane), np.uint8)[: plane.height * plane.line_size]
    used = min(plane.line_size, plane.width * max(1, frame.format.components[0].bits // 8))
    return zlib.crc32(content.reshape(plane.height, plane.line_size)[::4, :used].tobytes())


def _describe_error(error: BaseException) -> str:
    text = str(getattr(error, "strerror", None) or str(error) or type(error).__name__)
    return text[:1].lower() + text[1:]


def version() -> str:
    """Return the versions of PyAV and of its libavcodec."""
    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    return f"pyav {av.__version__} (libavcodec {codec})"
