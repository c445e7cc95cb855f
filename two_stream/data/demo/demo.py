"""The embedded data set: small real MP4 files, two discs with a handwritten digit each on a drifting texture.

Its theme says what the classes are: `motion` (`motion.py`, the one of `two-stream demo`) or `order`
(`order.py`, for studies of what uses time). In both, a class played backwards is another one, shuffled frames
tell them apart no more, and mirroring changes none. A source `gNN` is a pair of discs and a background shared by one
video of every class (or `takes` of them), and each of three splits keeps a source on one side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from two_stream.config.load import read_yaml, validate_settings
from two_stream.data.catalog import RECORD_FILE, Record, load_record
from two_stream.data.demo import motion, order
from two_stream.data.demo.drawing import Image, codec_here, encode, look_of
from two_stream.data.prepare.folders import write_dataset
from two_stream.data.splits import make_splits
from two_stream.errors import DataError, SettingsError
from two_stream.runtime.console import progress
from two_stream.runtime.files import atomic_path, write_json
from two_stream.runtime.seeding import rng
from two_stream.types import VideoRecord
from two_stream.video.extraction.many_videos import extract
from two_stream.video.extraction.one_video import ExtractOptions
from two_stream.video.sources import find_sources

MANIFEST = "demo.json"
NUM_SPLITS = 3
_CLASSES = {"motion": motion.CLASSES, "order": order.CLASSES}
_PICTURES = {"motion": motion.pictures, "order": order.pictures}


@dataclass(frozen=True)
class DemoOptions:
    """Theme and size of the data set."""

    seed: int = 0
    theme: str = "motion"
    """motion or order"""
    groups: int = 15
    """sources; each gives `takes` videos of every class"""
    takes: int = 1
    """videos per class and source"""
    height: int = 48
    """small, because TV-L1 takes most of the demo's time and its cost follows the pixels"""
    width: int = 64
    min_frames: int = 25
    """two clips of 12 frames in RGB and in flow"""
    max_frames: int = 27

    def __post_init__(self) -> None:
        """Check what splits and the encoder need."""
        if self.theme not in _CLASSES:
            raise SettingsError(f"theme is {self.theme!r}: expected {' or '.join(_CLASSES)}")
        if self.groups < NUM_SPLITS:
            raise SettingsError(
                f"groups is {self.groups}: expected at least {NUM_SPLITS}, one per split's test part"
            )
        if self.height % 2 or self.width % 2 or min(self.height, self.width) < 32:
            raise SettingsError(
                f"demo frames of {self.width}×{self.height}: expected even sides of at least 32"
            )
        if not 2 <= self.min_frames <= self.max_frames:
            raise SettingsError(
                f"demo videos of {self.min_frames} to {self.max_frames} frames: expected 2 or more"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the theme."""
        return _CLASSES[self.theme]


def write_demo(out: Path, *, seed: int = 0, groups: int = 15, options: DemoOptions | None = None) -> Path:
    """Write the data set: `videos/<class>/<class>_gNN_cNN.mp4`, split lists and the record.

    The same options write the same videos. Finished videos are kept, so an interrupted call can be repeated; the
    record comes last.

    Args:
        out: Folder of the data set.
        seed: Seed of everything random.
        groups: Sources; each gives one video of every class.
        options: Everything else; goes before `seed` and `groups`.

    Returns:
        The path of `dataset.yaml`.

    Raises:
        DataError: No video encoder, or the folder cannot be written.
        SettingsError: Options out of range.
    """
    chosen = options or DemoOptions(seed=seed, groups=groups)
    codec = codec_here()
    wanted = {**asdict(chosen), "codec": codec, "version": 2}
    try:
        keep = _same_manifest(out / MANIFEST, wanted)
        if not keep:
            write_json(out / MANIFEST, wanted)
        (out / "frames").mkdir(parents=True, exist_ok=True)  # where extraction is to write
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
        raise DataError(f"{out}: the demo cannot be written here ({error.strerror or error})") from None


def write_demo_frames(out: Path, options: DemoOptions, *, flow: bool = True) -> Record:
    """Write the data set with the frames of its videos, and their TV-L1 flow if asked for; what is there is kept.

    Raises:
        DataError: No video encoder, the folder cannot be written, or a video cannot be read back.
    """
    record = load_record(write_demo(out, options=options))
    sources, _ = find_sources(record.videos_root())
    summary = extract(
        sources, record.frames_root("rgb"), ExtractOptions(flow="tvl1" if flow else "none", short_side=None)
    )
    if summary.failed:
        first = summary.failed[0]
        raise DataError(f"{first.path}: {first.reason} (extraction of the demo's own video failed)")
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
    """Return the frames of a video."""
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
    record = validate_settings(Record, mapping, out / RECORD_FILE)
    record._folder = out
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
    """Draw the frames `(H, W, 3)`, RGB, of one video."""
    look = look_of(options.seed, group, options.height, options.width)
    draw = rng("demo motion", options.seed, name, group, take)
    shape = (num_frames(name, group, take, options), options.height, options.width)
    return _PICTURES[options.theme](name, look, draw, shape)
