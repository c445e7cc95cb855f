"""Options of `two-stream prepare`, `check` and `pack`; the commands add their own flags to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from two_stream.errors import SettingsError

Decoder = Literal["pyav", "opencv", "torchcodec"]
Encoding = Literal["raw", "original", "jpeg"]
ENCODINGS: tuple[str, ...] = get_args(Encoding)


@dataclass(frozen=True, kw_only=True)
class FrameNames:
    """Patterns for the names of frame files, for names that cannot be detected."""

    rgb_pattern: str | None = None
    """name pattern of RGB frame files, for example img_{:05d}.jpg; by default detected from the files"""
    flow_pattern: str | None = None
    """name pattern of flow files, for example flow_{axis}_{:05d}.jpg"""

    def patterns(self) -> dict[str, str]:
        """Return the given patterns in the form of `patterns` in a record.

        Raises:
            SettingsError: A pattern has no placeholder for the number or for the axis.
        """
        from two_stream.video.frames import FramePatterns

        found = {} if self.rgb_pattern is None else {"rgb": self.rgb_pattern}
        if self.flow_pattern is not None:
            if "{axis}" not in self.flow_pattern:
                raise SettingsError(
                    f"--flow-pattern {self.flow_pattern!r}: expected the placeholder {{axis}} for x and y, as in "
                    "'flow_{axis}_{:05d}.jpg'"
                )
            found |= {f"flow_{axis}": self.flow_pattern.replace("{axis}", axis) for axis in "xy"}
        FramePatterns(**found)  # type: ignore[arg-type]
        return found


@dataclass(frozen=True)
class FolderOptions(FrameNames):
    """Options for preparing a data set from a folder of videos."""

    groups: Path | None = None
    """text file with one line `id group` per video; videos of a group come from the same source and stay on the same
    side of every split; ids may omit the class folder"""
    group_regex: str | None = None
    """instead of --groups: regular expression for the id (path without suffix), whose first group is the name of the
    source"""
    frames: Path | None = None
    """folder that contains, or will contain, the frame folders; default data/NAME"""
    splits: int = 3
    """number of splits to make"""
    test_fraction: float = 0.3
    """fraction of each class's videos in a test list"""
    seed: int = 0
    """random seed of the splits"""
    backend: Decoder = "pyav"
    """decoder that counts frames"""
    processes: int | None = None
    """videos decoded in parallel; by default one per processor"""

    def __post_init__(self) -> None:
        """Check the values of the options."""
        if self.groups is not None and self.group_regex is not None:
            raise SettingsError("--groups and --group-regex both define the source videos; use only one")
        if self.splits < 1:
            raise SettingsError(f"--splits is {self.splits}: expected at least 1")
        if not 0.0 < self.test_fraction < 1.0:
            raise SettingsError(f"--test-fraction is {self.test_fraction}: expected more than 0, less than 1")


@dataclass(frozen=True, kw_only=True)
class PlaceOptions(FrameNames):
    """Options for the location of a data set's videos and for counting frames."""

    name: str | None = None
    """name of the data set; default: the kind (for `json` and `table` the name of the file, for `list` the name of the
    folder that contains the training list)"""
    out: Path = Path("settings")
    """settings folder; the record, lists, groups and segments are written to OUT/NAME/"""
    videos: Path | None = None
    """folder of the videos, with or without class folders; all videos are decoded to count their frames"""
    frames: Path | None = None
    """instead of --videos: folder that contains the frame folders; the files in them are counted"""
    fps: float | None = None
    """frames per second of the frame folders; required if segments are given in seconds and no file states the frame
    rate"""
    backend: Decoder = "pyav"
    """decoder that counts frames"""
    processes: int | None = None
    """videos decoded in parallel; by default one per processor"""


@dataclass(frozen=True)
class AnnotationOptions(PlaceOptions):
    """Options for reading official files."""

    annotations: Path
    """official file, or folder of the official files (see `docs/datasets.md`)"""


@dataclass(frozen=True, kw_only=True)
class ListOptions(PlaceOptions):
    """Options for reading split lists of other programs."""

    train: Path
    """training list, with lines `path label` or `path num_frames label`"""
    val: Path | None = None
    """validation list; without --test, it is the test list, and the validation part is split off from the training
    list"""
    test: Path | None = None
    """test list, which is used once, after training"""
    classes: Path | None = None
    """file of class names in the order of the labels, one per line, or with lines `index name`; by default, the classes
    are the sorted names in the lists, or are called by their numbers"""

    def __post_init__(self) -> None:
        """Check the values of the options."""
        if self.val is None and self.test is None:
            raise SettingsError("--val or --test is required, because a data set needs a test list")


@dataclass(frozen=True)
class TimelineOptions(AnnotationOptions):
    """Options for cutting recordings with dense labels into clips for training."""

    annotations: Path
    """file of labels (CSV, or an export of BORIS, ELAN, CVAT or Label Studio), or folder of such files"""
    track: str | None = None
    """ELAN tier, BORIS subject or Label Studio control whose labels are used; default: all"""
    longest: float = 10.0
    """longest clip in seconds; longer bouts are cut into equal clips"""
    shortest: float = 1.0
    """shortest clip in seconds; shorter bouts are widened evenly on both sides, and shorter gaps give no background"""
    background: float = 1.0
    """largest number of background clips per clip of the other classes; 0: no class `background`"""

    def __post_init__(self) -> None:
        """Check the values of the options."""
        if not 0 < self.shortest <= self.longest < float("inf"):
            raise SettingsError(
                f"--shortest is {self.shortest:g} and --longest is {self.longest:g}: expected 0 < shortest <= longest"
            )
        if not 0 <= self.background < float("inf"):
            raise SettingsError(f"--background is {self.background:g}: expected 0 or more")


@dataclass(frozen=True)
class AuditOptions:
    """Options of `two-stream check`."""

    min_frames: int = 2
    """videos with fewer frames are reported as too short"""
    decode: bool = False
    """when checking a data set, also decode every video and every frame file; videos given by path are always
    decoded"""
    backend: Decoder = "pyav"
    """video decoder"""
    processes: int | None = None
    """videos checked in parallel; by default one per processor; 0 checks in the main process"""
    patience: float = 60.0
    """seconds without a new frame after which a video is skipped"""
    official_split: bool = False
    """the split is a published one: a source on both sides of the split is a warning instead of an error"""


@dataclass(frozen=True)
class PackOptions:
    """Options of `two-stream pack`."""

    encoding: Encoding = "raw"
    """raw: resized pixels, the fastest and largest (64 KiB per frame at 128x170 RGB); original: unchanged JPEG files,
    for any input size; jpeg: resized and compressed again, the smallest, but with a loss of quality"""
    resize: tuple[int, int] | None = None
    """HEIGHT WIDTH of raw and jpeg frames, equal to the model's input size before cropping; default 128 170"""
    quality: int = 95
    """JPEG quality of --encoding jpeg, 1 to 100"""
    source: Literal["frames", "videos"] = "frames"
    """frames: frame folders written by `two-stream extract`; videos: video files, from which flow is computed on the
    fly"""
    backend: Decoder = "pyav"
    """video decoder of --source videos"""
    flow: Literal["tvl1", "dis", "farneback"] = "dis"
    """flow algorithm of --source videos"""
    shard_frames: int = 10_000
    """number of frames after which a new shard starts"""
    processes: int | None = None
    """shards written in parallel; by default one per processor; 0 writes in the main process"""
    overwrite: bool = False
    """replace shards that were packed with different settings or lists"""

    def __post_init__(self) -> None:
        """Check the values of the options."""
        if self.encoding not in ENCODINGS:
            raise SettingsError(f"--encoding is {self.encoding!r}: expected one of {', '.join(ENCODINGS)}")
        if self.encoding == "original" and self.source == "videos":
            raise SettingsError(
                "--encoding original requires --source frames; for --source videos, use --encoding raw or jpeg"
            )
        if not 1 <= self.quality <= 100:
            raise SettingsError(f"--quality is {self.quality}: expected 1 to 100")
        if any(not 8 <= side <= 16384 for side in self.size):
            raise SettingsError(
                f"--resize is {self.size}: expected HEIGHT WIDTH, each from 8 to 16384 pixels"
            )
        if self.shard_frames < 1:
            raise SettingsError(f"--shard-frames is {self.shard_frames}: expected 1 or more")
        if self.processes is not None and self.processes < 0:
            raise SettingsError(f"--processes is {self.processes}: expected 0 or more")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of raw and jpeg frames."""
        return self.resize or (128, 170)
