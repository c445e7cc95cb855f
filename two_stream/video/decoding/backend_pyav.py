"""The default backend: PyAV, whose wheel carries libav and its codecs (H.264, HEVC, AV1, VP8/9, MPEG-4 …).

One decoding thread: libav conceals damage differently with every number of threads, so more of them would make
the frames of a damaged file depend on the machine. Videos, not frames, are what is worked on in parallel.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from two_stream.errors import VideoError
from two_stream.video.decoding.base import Decoded, Image, Video, existing_file, silent, turned
from two_stream.video.decoding.containers import flaw
from two_stream.video.decoding.gaps import hole, stated_end
from two_stream.video.decoding.index import Index, load, store
from two_stream.video.decoding.packets import index_of_packets, starts_as

_TEXT_FORMATS = frozenset({"tty", "bin", "xbin", "adf", "idf"})  # libav draws text files as ANSI art
_LIST_FORMATS = frozenset({"concat", "hls", "applehttp", "dash", "sdp", "imf", "lavfi"})
_PICTURE_FORMATS = frozenset({"image2", "image2pipe", "ico"})
_PAYS = 48
"""frames to jump over below which decoding them is as quick as a seek and what leads to it"""
_ENTROPY_CODED = frozenset({"vp8", "vp9", "av1", "libdav1d"})
_ZEROS = bytes(256)
"""more in a row than these codecs ever write"""
_LOOKED_AT = 200
"""packets of a file with several video streams that are looked at to tell a cover picture"""
_OPEN_OPTIONS = {"protocol_whitelist": "file"}  # a play list must not reach the network


class PyavVideo(Video):
    """A video read through PyAV.

    Attributes:
        stream_index: Place of the video stream among all streams of the file.
        leads: Whether it is the first one of moving pictures.
        quarter_turns: Counter-clockwise quarter turns that delivered frames have been given.
    """

    def __init__(self, path: Path) -> None:
        with opened(path) as (container, stream):
            rate = stream.average_rate or stream.guessed_rate
            super().__init__(
                path,
                codec=stream.codec_context.codec.canonical_name,
                fps=float(rate) if rate and 0 < rate <= 1000 else None,
                header_frames=stream.frames or None,
            )
            self.stream_index = stream.index
            self.leads = stream.index == _moving(container)[0].index
            first, why = _first_frame(container, stream)
        if first is None:
            announced = f"; the header announces {self.header_frames}" if self.header_frames else ""
            raise VideoError(path, f"encrypted or empty: no frame decodes ({why}{announced})")
        self._size = (first.width, first.height)
        self.quarter_turns = _quarter_turns(first)
        self.width, self.height = self._size[:: -1 if self.quarter_turns % 2 else 1]
        self._index: Index | None = None
        self._looked = False
        self._reformatter = VideoReformatter()

    def _walk(self) -> Generator[Decoded]:
        for _, frame in self._decode():
            yield self._decoded(frame)

    def _decoded(self, frame: VideoFrame) -> Decoded:
        lasts = float(frame.duration * frame.time_base) if frame.time_base else None
        return Decoded(partial(self._picture, frame), frame.time, lasts)

    def _count_frames(self, beat: Callable[[], None]) -> int:
        pts: list[int | None] = []
        keys: list[int] = []
        prints: list[int] = []

        def noted() -> Iterator[Decoded]:
            for number, frame in self._decode():
                pts.append(frame.pts)
                prints.append(_fingerprint(frame))
                if frame.key_frame:
                    keys.append(number)
                yield self._decoded(frame)

        for _ in self._ticking(noted()):
            beat()
        self._index = index = Index(pts, keys, prints)
        store(self.path, version(), Index(kind="none") if self.damage else index)
        return len(pts)

    def _decode(self, start: int = 0) -> Generator[tuple[int, VideoFrame]]:
        """Decode frames from `start` (0, or a key frame of the index), with their numbers."""
        corrupt: list[int] = []
        torn = 0
        seconds: list[float] = []
        stamp: int | None = None
        number = start
        with opened(self.path) as (container, stream):
            if start and self._index is not None:
                known = self._index.pts[start]
                assert known is not None
                stamp = int(known)
                container.seek(stamp, stream=stream, backward=True, any_frame=False)
            try:
                for packet in container.demux(stream):
                    torn += packet.is_corrupt or _emptied(packet, stream)
                    for frame in packet.decode():
                        if stamp is not None and frame.pts is not None and frame.pts < stamp:
                            continue  # presented before the key frame: may lean on frames that were jumped
                        if frame.is_corrupt:
                            corrupt.append(number)
                        seconds += [frame.time] if frame.time is not None else []
                        yield number, frame
                        number += 1
            except (av.FFmpegError, ValueError, MemoryError) as error:
                self.damage = f"decoding stops after frame {number}: {_plain(error)}"
            if start or self.damage:
                return
            self.damage = flaw(self.path)
            if corrupt and not self.damage:
                more = f" and {len(corrupt) - 1} more" if len(corrupt) > 1 else ""
                self.damage = f"frame {corrupt[0] + 1}{more} marked corrupt by the decoder"
            if torn and not self.damage:
                self.damage = f"{torn} of its packets are not whole"
            if not self.damage:
                self.damage = hole(seconds, stated_end(container, stream), container.format.name)

    def _pick(self, wanted: list[int]) -> Iterator[tuple[int, Image]]:
        if self._index is None and wanted[0] >= _PAYS:
            self._index = self._find_index()
        while wanted:
            start, run = self._run(wanted)
            done = 0
            if start:
                for number, picture in self._pick_from(start, run):
                    done += 1
                    yield number, picture
                if done == len(run):
                    wanted = wanted[done:]
                    continue
                wanted = wanted[done:]
                if self._refute():
                    continue
            yield from super()._pick(wanted)
            return

    def _run(self, wanted: list[int]) -> tuple[int, list[int]]:
        """Return the key frame to start at (0: read on from the beginning) and the frames to read from there."""
        index = self._index
        if index is None or self.damage or not len(index.pts) or wanted[-1] >= len(index.pts):
            return 0, wanted
        start = index.start_before(wanted[0])
        for place, (before, after) in enumerate(pairwise(wanted), start=1):
            if index.start_before(after) > before + _PAYS:  # a second seek is cheaper than what lies between
                return start, wanted[:place]
        return start, wanted

    def _pick_from(self, start: int, run: list[int]) -> Iterator[tuple[int, Image]]:
        """Yield frames from a key frame on; ends early at a frame that is not provably the one the index knows."""
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
                        yield number, self._picture(frame)
                    if number == last:
                        return
        except av.FFmpegError:  # the container cannot seek
            pass
        self.damage = None  # a walk from the beginning finds it, where there is any

    def _find_index(self) -> Index | None:
        """Return the index kept from before, or one of the packets, or one of a full pass where that can be kept."""
        if self._looked:
            return None
        self._looked = True
        decoder = version()
        index = load(self.path, decoder)
        if index is not None:
            return index
        with opened(self.path) as (container, stream):
            index = index_of_packets(container, stream)
        if index is not None:
            with opened(self.path) as (container, stream):
                if starts_as(container, stream, index):
                    store(self.path, decoder, index)
                    return index
        if store(self.path, decoder, Index(kind="none")):  # else every opening would take the full pass again
            self._count = self._count_frames(silent)
        return self._index

    def _refute(self) -> bool:
        """Give up an index that a seek has contradicted, for later openings too; tell whether a better one is there."""
        index, self._index = self._index, None
        self._looked = True
        kept = store(self.path, version(), Index(kind="none"))
        if not kept or index is None or index.kind != "packets":
            return False
        self._count = self._count_frames(silent)
        return True

    def _picture(self, frame: VideoFrame) -> Image:
        """Convert to RGB by the file's own colour matrix, at the first frame's size, turned as its header says."""
        width, height = self._size
        try:
            made = self._reformatter.reformat(frame, width, height, "rgb24", threads=1)
        except (av.FFmpegError, ValueError):  # a colour space swscale does not know: take the usual one
            made = frame.reformat(
                width=width, height=height, format="rgb24", src_colorspace="ITU601", dst_colorspace="ITU601"
            )
        return turned(made.to_ndarray(), self.quarter_turns)


@contextmanager
def opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and pick the stream that FFmpeg calls the best, never a cover picture, flagged as one or not.

    Raises:
        VideoError: Not a video; the reason is plain.
    """
    existing_file(path)
    with _container(path) as container:
        yield container, _video_stream(path, container)


def _container(path: Path) -> InputContainer:
    try:  # "file:" keeps libav from reading a colon in the name as a protocol
        return av.open(f"file:{path}", options=dict(_OPEN_OPTIONS), metadata_errors="replace")
    except (av.FFmpegError, ValueError, OSError) as error:
        raise VideoError(path, f"not a video, or its header is damaged ({_plain(error)})") from None


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    form = container.format.name
    if form in _TEXT_FORMATS:
        raise VideoError(path, "not a video (a text file)")
    if form in _LIST_FORMATS:
        raise VideoError(path, f"not a video (a play list, {form})")
    if form in _PICTURE_FORMATS or form.endswith("_pipe"):
        raise VideoError(path, "an image, not a video")
    moving = _moving(container)
    if not moving:
        cover = " with a cover picture" if container.streams.video else ""
        what = "audio only" if container.streams.audio else "no audio stream either"
        raise VideoError(path, f"no video stream ({what}{cover})")
    stream = moving[0] if len(moving) == 1 else _best(path, container, moving)
    if stream.codec_context is None:
        raise VideoError(path, "its video codec is not known to this build of libav")
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return stream


def _moving(container: InputContainer) -> list[VideoStream]:
    return [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]


def _best(path: Path, container: InputContainer, moving: list[VideoStream]) -> VideoStream:
    """Return FFmpeg's best stream, among those of more than one picture where there are any."""
    packets: Counter[int] = Counter()
    with _container(path) as again, suppress(av.FFmpegError, ValueError, MemoryError):
        for packet in again.demux([again.streams[stream.index] for stream in moving]):
            packets[packet.stream.index] += packet.size > 0
            if packets.total() >= _LOOKED_AT:
                break
    several = [stream for stream in moving if packets[stream.index] > 1] or moving
    best = container.streams.best("video")
    return next((stream for stream in several if best is not None and stream.index == best.index), several[0])


def _emptied(packet: Packet[VideoStream], stream: VideoStream) -> bool:
    """Tell whether part of a packet was overwritten with zeros, which decoders may take for pictures."""
    codec = stream.codec_context.name
    # H.264 and HEVC as in MP4: nothing stands between their units
    whole = codec in ("h264", "hevc") and (stream.codec_context.extradata or b"").startswith(b"\x01")
    return (whole or codec in _ENTROPY_CODED) and packet.size >= len(_ZEROS) and _ZEROS in bytes(packet)


def _first_frame(container: InputContainer, stream: VideoStream) -> tuple[VideoFrame | None, str]:
    """Return the first frame, or None and why there is none."""
    packets = 0
    try:
        for packet in container.demux(stream):
            packets += packet.size > 0
            for frame in packet.decode():
                return frame, ""
    except (av.FFmpegError, ValueError, MemoryError) as error:
        return None, _plain(error)
    return None, f"{packets} packets, no frame" if packets else "the file holds no video packets"


def _quarter_turns(frame: VideoFrame) -> int:
    """Counter-clockwise quarter turns that the display matrix asks for; 0 for anything but a multiple of 90°.

    A broken matrix yields -2147483648.
    """
    degrees = frame.rotation
    if not math.isfinite(degrees) or abs(degrees) > 360 or degrees % 90:
        return 0
    return int(degrees // 90) % 4


def _fingerprint(frame: VideoFrame) -> int:
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8)[: plane.height * plane.line_size].reshape(
        plane.height, plane.line_size
    )
    used = min(plane.line_size, plane.width * max(1, frame.format.components[0].bits // 8))
    return zlib.crc32(rows[::4, :used].tobytes())


def _plain(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text)[:1].lower() + str(text)[1:]


def version() -> str:
    """Return PyAV's version and that of the libavcodec it carries."""
    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    return f"pyav {av.__version__} (libavcodec {codec})"
