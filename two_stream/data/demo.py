"""The demo data set: small MP4 videos of two discs with handwritten digits on a drifting texture.

A source `gNN` is a pair of discs and a background that appear in `takes` videos of every class. There are three splits;
in each, all videos of a source are on the same side. The classes depend on the theme. In the themes `motion` and
`order`, a video played backwards belongs to another class, and classes cannot be told apart if the frames are shuffled.
Mirroring never changes the class.

In theme `motion`, which `two-stream demo` uses, classes differ only in the motion and its direction in time. The state
of a disc consists of its height in the frame, its size and its angle. In every frame of every class, these three values
are uniform and independent, so a single frame contains no information about the class. In each class, one of the values
follows a cycle; in the partner class, the cycle runs backwards:

    rise, fall              the height changes at a steady pace; a disc that leaves at the top returns at the bottom
    climb, sink             climb: slowly up and quickly down; sink: quickly up and slowly down
    swell, shrink           swell: grows slowly and shrinks quickly; shrink: grows quickly and shrinks slowly
    wheels_in, wheels_out   both discs turn, their upper edges towards each other (in) or away from each other (out)

In theme `order`, which shows whether a model uses time, classes differ only in the order of events. Both discs stand
still and show three colours one after another, each for about a third of the video. The class is the order of the
colours and is named by their first letters (`rgb`, `rbg`, …). Every colour is equally likely in every class, so a model
that averages single frames reaches only chance level.

In theme `appearance`, one frame suffices: the class is the colour of both discs (`red`, `green`, …), which move as in a
class of theme `motion` that is drawn at random.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from two_stream.config.load import read_yaml
from two_stream.data.catalog import Record, load_record, make_record
from two_stream.data.prepare.folders import write_dataset
from two_stream.data.splits import make_splits
from two_stream.errors import DataError, SettingsError
from two_stream.runtime.console import progress
from two_stream.runtime.device import rng
from two_stream.runtime.files import atomic_path, write_json
from two_stream.types import VideoRecord
from two_stream.video.extraction.many_videos import extract
from two_stream.video.extraction.one_video import ExtractOptions
from two_stream.video.sources import find_sources

MANIFEST = "demo.json"
NUM_SPLITS = 3


_FPS = 15

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Look:
    """Properties that all videos of a source share."""

    discs: tuple[Image, Image]
    """RGBA images"""
    background: Image
    """RGB texture, mirrored beyond its borders"""
    drift: tuple[float, float]
    """horizontal and vertical shift of the background, in pixels per frame"""


@lru_cache(maxsize=64)
def look_of(seed: int, group: int, height: int, width: int) -> Look:
    """Return the properties that all videos of a source share."""
    draw = rng("demo look", seed, group)
    discs = (_disc(draw), _disc(draw))
    noise = draw.normal(size=(height + 64, width + 64, 3)).astype(np.float32)
    coarse = cv2.GaussianBlur(noise, (0, 0), 5.0, borderType=cv2.BORDER_REFLECT)
    coarse = (coarse - coarse.mean()) / coarse.std()
    background = np.clip(draw.uniform(90, 165, 3) + 14.0 * coarse, 0, 255).astype(np.uint8)
    angle, speed = draw.uniform(0, 2 * np.pi), draw.uniform(0.0, 0.4)
    return Look(discs, background, (float(speed * np.cos(angle)), float(speed * np.sin(angle))))


def _disc(draw: np.random.Generator) -> Image:
    """Draw a digit on a disc of two colours, as an RGBA image of 64×64 pixels."""
    digit = _digits()[int(draw.integers(len(_digits())))]
    large = cv2.resize(digit, (44, 44), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    ink = np.zeros((64, 64), np.float32)
    ink[10:54, 10:54] = large
    dark, light = draw.uniform(0, 60, 3), draw.uniform(195, 255, 3)
    rgb = dark + (light - dark) * ink[..., None]
    yy, xx = np.mgrid[:64, :64] - 31.5
    rgb[(yy < 0) & (ink < 0.3)] += (
        45.0  # the lower half is darker, so that every digit shows how it is turned
    )
    alpha = np.clip(31.5 - np.hypot(yy, xx), 0, 1) * 255
    return np.dstack([np.clip(rgb, 0, 255), alpha]).astype(np.uint8)


@lru_cache(maxsize=1)
def _digits() -> NDArray[np.float32]:
    from sklearn.datasets import load_digits

    return np.asarray(load_digits().images / 16.0, np.float32)


def scrolled(background: Image, shift: NDArray[np.float64], width: int, height: int) -> NDArray[np.float32]:
    """Crop a frame from the texture at a fractional position; the texture is mirrored beyond its border."""
    matrix = np.array([[1, 0, -shift[0]], [0, 1, -shift[1]]])
    size = (width, height)
    cut = cv2.warpAffine(background, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(cut, np.float32)


def stamp(
    picture: NDArray[np.float32], disc: Image, x: float, y: float, diameter: float, degrees: float
) -> None:
    """Blend a disc into an image; a part beyond the top or bottom appears at the opposite edge."""
    height, width = picture.shape[:2]
    side = disc.shape[0]
    matrix = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), -degrees, diameter / side)
    for turn in (-1, 0, 1):
        moved = matrix.copy()
        moved[:, 2] += (x - (side - 1) / 2, y + turn * height - (side - 1) / 2)
        layer = cv2.warpAffine(disc, moved, (width, height), flags=cv2.INTER_AREA).astype(np.float32)
        alpha = layer[..., 3:] / 255.0
        picture += alpha * (layer[..., :3] - picture)


def codec_here() -> str:
    """Return the encoder to use: H.264, or MPEG-4 if libav was built without it."""
    import av

    for name in ("libx264", "mpeg4"):
        if name in av.codecs_available:
            return name
    raise DataError(
        "the installed PyAV can encode neither H.264 nor MPEG-4; pip install --force-reinstall av"
    )


def encode(path: Path, frames: list[Image], codec: str) -> None:
    """Write RGB frames `(H, W, 3)` as an MP4 file of high quality; the same frames always give the same file."""
    import av
    from av.video.stream import VideoStream

    # a fixed quantizer: x264's rate control wrote different bytes in about one of forty calls
    options = {"qp": "14", "preset": "veryfast"} if codec == "libx264" else {"qmin": "1", "qmax": "3"}
    with av.open(str(path), "w", format="mp4") as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=Fraction(_FPS), options=options))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = 12
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


MOTION_CLASSES = ("rise", "fall", "climb", "sink", "swell", "shrink", "wheels_in", "wheels_out")
MOTION_PAIRS = (("rise", "fall"), ("climb", "sink"), ("swell", "shrink"), ("wheels_in", "wheels_out"))
"""classes that become each other when played backwards"""
_SLOW = 0.75
"""part of a cycle that `climb` and `swell` spend on the slow way"""


def _draw_motion(
    name: str, look: Look, draw: np.random.Generator, shape: tuple[int, int, int]
) -> list[Image]:
    """Draw the frames of one video.

    Args:
        name: The class.
        look: What videos of the source share.
        draw: Decides everything else.
        shape: (frames, height, width).
    """
    frames, height, width = shape
    period = draw.uniform(10.0, 13.0)  # frames: a clip of 12 shows about one cycle, wherever it starts
    start = draw.uniform(0.0, 1.0, (2, 4))  # of each disc: height, size, angle, place in the cycle
    aside = draw.uniform(-0.03, 0.03, 2) * width
    scroll = draw.uniform(0, 64, 2)
    made = []
    for frame in range(frames):
        picture = scrolled(look.background, scroll + frame * np.asarray(look.drift), width, height)
        for side in (0, 1):
            y, size, angle = disc_state(name, side, start[side], frame / period)
            x = width * (0.25 + 0.5 * side) + aside[side]
            stamp(picture, look.discs[side], x, y * height, size * height, 360.0 * angle)
        made.append(np.asarray(np.rint(picture), np.uint8))
    return made


def disc_state(name: str, side: int, start: NDArray[np.float64], time: float) -> tuple[float, float, float]:
    """Return a disc's vertical position (0: top, 1: bottom), diameter (1: the frame's height) and angle (in turns).

    Args:
        name: The class.
        side: 0 left, 1 right.
        start: Four numbers, uniform in 0..1: height, size, angle, place in the cycle.
        time: In cycles since the first frame.
    """
    y, size, angle, phase = (float(value) for value in start)
    kind = next(pair for pair in MOTION_PAIRS if name in pair)[0]
    forward = 1.0 if name == kind else -1.0
    if kind == "rise":
        y -= forward * time
    elif kind == "climb":
        y -= 0.5 * _to_and_fro(phase + forward * time)
    elif kind == "swell":
        size = _to_and_fro(phase + forward * time)
    else:
        angle += forward * (1.0 if side == 0 else -1.0) * 0.6 * time
    return y % 1.0, 0.34 + 0.24 * size, angle % 1.0


def _to_and_fro(phase: float) -> float:
    """Return a value that rises slowly from 0 to 1 and falls back quickly, uniformly distributed over a cycle."""
    phase %= 1.0
    return phase / _SLOW if phase < _SLOW else (1.0 - phase) / (1.0 - _SLOW)


ORDER_CLASSES = tuple("".join(order) for order in itertools.permutations("rgb"))
COLOURS = {"r": (225, 45, 45), "g": (45, 190, 60), "b": (50, 80, 225)}
_JITTER = 0.06
"""largest shift of a colour change from 1/3 or 2/3 of the video, as a fraction of the video"""
_TINT = 0.65
"""weight of the colour when it is blended with a disc's image"""


def _draw_order(name: str, look: Look, draw: np.random.Generator, shape: tuple[int, int, int]) -> list[Image]:
    """Draw the frames of one video; see `_draw_motion`."""
    frames, height, width = shape
    changes = np.array([1 / 3, 2 / 3]) + draw.uniform(-_JITTER, _JITTER, 2)
    where = draw.uniform(0.0, 1.0, (2, 3))  # of each disc: height, size, angle
    scroll = draw.uniform(0, 64, 2)
    made = []
    for frame in range(frames):
        picture = scrolled(look.background, scroll + frame * np.asarray(look.drift), width, height)
        shining = colour_at(name, frame / frames, changes)
        for side, (y, size, angle) in enumerate(where):
            x = width * (0.25 + 0.5 * side)
            diameter = (0.34 + 0.24 * size) * height
            stamp(
                picture, _tinted(look.discs[side], COLOURS[shining]), x, y * height, diameter, 360.0 * angle
            )
        made.append(np.asarray(np.rint(picture), np.uint8))
    return made


def colour_at(name: str, time: float, changes: NDArray[np.float64]) -> str:
    """Return the letter of the colour that a class shows.

    Args:
        name: The class.
        time: Elapsed fraction of the video, from 0 to below 1.
        changes: Times of the two changes, ascending.
    """
    return name[int(np.searchsorted(changes, time, side="right"))]


def _tinted(disc: Image, colour: tuple[int, int, int]) -> Image:
    tinted = disc.astype(np.float64)
    tinted[..., :3] = (1.0 - _TINT) * tinted[..., :3] + _TINT * np.asarray(colour)
    return tinted.astype(np.uint8)


APPEARANCE_CLASSES = {
    "red": (225, 45, 45),
    "green": (45, 190, 60),
    "blue": (50, 80, 225),
    "yellow": (225, 210, 50),
    "purple": (170, 60, 200),
    "cyan": (60, 205, 215),
}
"""classes and their colours"""


def _draw_appearance(
    name: str, look: Look, draw: np.random.Generator, shape: tuple[int, int, int]
) -> list[Image]:
    """Draw the frames of one video; see `_draw_motion`."""
    motion = MOTION_CLASSES[int(draw.integers(len(MOTION_CLASSES)))]
    left, right = (_tinted(disc, APPEARANCE_CLASSES[name]) for disc in look.discs)
    return _draw_motion(motion, replace(look, discs=(left, right)), draw, shape)


_CLASSES = {"motion": MOTION_CLASSES, "order": ORDER_CLASSES, "appearance": tuple(APPEARANCE_CLASSES)}
_PICTURES = {"motion": _draw_motion, "order": _draw_order, "appearance": _draw_appearance}


@dataclass(frozen=True)
class DemoOptions:
    """Theme and size of the data set."""

    seed: int = 0
    theme: str = "motion"
    """motion, order or appearance"""
    groups: int = 15
    """number of sources; each source has `takes` videos of every class"""
    takes: int = 1
    """number of videos of each source in each class"""
    height: int = 48
    """height of a frame in pixels; small, because TV-L1 takes most of the demo's time"""
    width: int = 64
    min_frames: int = 25
    """smallest number of frames of a video, enough for two clips of 12 frames in RGB and in flow"""
    max_frames: int = 27

    def __post_init__(self) -> None:
        """Check the values of the options."""
        if self.theme not in _CLASSES:
            raise SettingsError(f"theme is {self.theme!r}: expected {' or '.join(_CLASSES)}")
        if self.groups < NUM_SPLITS:
            raise SettingsError(
                f"groups is {self.groups}: expected at least {NUM_SPLITS}, one for the test part of each split"
            )
        if self.height % 2 or self.width % 2 or min(self.height, self.width) < 32:
            raise SettingsError(
                f"width and height are {self.width} and {self.height}: expected even numbers of at least 32"
            )
        if not 2 <= self.min_frames <= self.max_frames:
            raise SettingsError(
                f"min_frames and max_frames are {self.min_frames} and {self.max_frames}: expected 2 "
                "<= min_frames <= max_frames"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the theme."""
        return _CLASSES[self.theme]


def write_demo(out: Path, options: DemoOptions | None = None) -> Path:
    """Write the data set: `videos/<class>/<class>_gNN_cNN.mp4`, split lists and the record.

    The same options always give the same videos. Existing videos are kept, so an interrupted call can be repeated. The
    record is written last.

    Returns:
        The path of `dataset.yaml` in the folder `out`.

    Raises:
        DataError: No video encoder, or the folder cannot be written.
    """
    chosen = options or DemoOptions()
    codec = codec_here()
    wanted = {**asdict(chosen), "codec": codec, "version": 2}
    try:
        keep = _same_manifest(out / MANIFEST, wanted)
        if not keep:
            write_json(out / MANIFEST, wanted)
        (out / "frames").mkdir(parents=True, exist_ok=True)  # extraction writes here
        plan = list(_plan(chosen))
        with progress("write demo videos", total=len(plan)) as advance:
            for name, group, take, _ in plan:
                path = out / "videos" / f"{_id(name, group, take)}.mp4"
                if not (keep and path.is_file()):
                    frames = render(name, group, take, chosen)
                    with atomic_path(path) as part:
                        encode(part, frames, codec)
                advance()
        return _write_lists(out, chosen, plan)
    except OSError as error:
        raise DataError(
            f"{out}: the demo cannot be written to this folder ({error.strerror or error})"
        ) from None


def write_demo_frames(out: Path, options: DemoOptions, *, flow: bool = True) -> Record:
    """Write the data set, the extracted frames of its videos, and optionally their TV-L1 flow; existing files are kept.

    Raises:
        DataError: No video encoder, the folder cannot be written, or a video cannot be read back.
    """
    record = load_record(write_demo(out, options))
    sources, _ = find_sources(record.videos_root())
    summary = extract(
        sources, record.frames_root("rgb"), ExtractOptions(flow="tvl1" if flow else "none", short_side=None)
    )
    if summary.failed:
        first = summary.failed[0]
        raise DataError(f"{first.path}: extraction of a demo video failed: {first.reason}")
    return record


def _id(name: str, group: int, take: int) -> str:
    return f"{name}/{name}_g{group:02d}_c{take:02d}"


def _plan(options: DemoOptions) -> Iterator[tuple[str, int, int, int]]:
    """Yield (class, group, take, frames) of every video."""
    for name in options.classes:
        for group in range(1, options.groups + 1):
            for take in range(1, options.takes + 1):
                yield name, group, take, num_frames(name, group, take, options)


def num_frames(name: str, group: int, take: int, options: DemoOptions) -> int:
    """Return the number of frames of a video."""
    draw = rng("demo length", options.seed, name, group, take)
    return int(draw.integers(options.min_frames, options.max_frames + 1))


def _write_lists(out: Path, options: DemoOptions, plan: list[tuple[str, int, int, int]]) -> Path:
    mapping: dict[str, Any] = {
        "name": "demo",
        "num_splits": NUM_SPLITS,
        "frames": {"rgb": "frames", "flow": "frames"},
        "videos": "videos",
        "short_side": None,
        "group": r"_(g\d+)_c\d+$",
        "classes": list(options.classes),
    }
    record = make_record(mapping, out)
    ids = [_id(name, group, take) for name, group, take, _ in plan]
    counts = {video_id: (frames, frames - 1) for video_id, (*_, frames) in zip(ids, plan)}
    records = [
        VideoRecord(video_id, frames, options.classes.index(name), record.group_of(video_id))
        for video_id, (name, _, _, frames) in zip(ids, plan)
    ]
    splits = make_splits(records, NUM_SPLITS, 1 / NUM_SPLITS, options.seed)
    return write_dataset(record, mapping, out, splits, counts).path


def _same_manifest(path: Path, wanted: dict[str, Any]) -> bool:
    try:
        return read_yaml(path) == wanted
    except SettingsError:
        return False


def render(name: str, group: int, take: int, options: DemoOptions) -> list[Image]:
    """Draw the RGB frames `(H, W, 3)` of one video."""
    look = look_of(options.seed, group, options.height, options.width)
    draw = rng("demo motion", options.seed, name, group, take)
    shape = (num_frames(name, group, take, options), options.height, options.width)
    return _PICTURES[options.theme](name, look, draw, shape)
