"""Stored features: what a frozen backbone gives for each view of each video, in a folder that is whole or absent.

`features.json` says what made them and which videos they are of; `<part>.npy` holds a row per view (float32, mapped
into memory, never unpickled), `<part>_mirrored.npy` whether a view is a mirror image, `checksums.json` the SHA-256 of
each. Part `train` is the whole official training list, since the seed of a run chooses its holdout: row 0 of a video is
its centred clip, row 1 + e the clip that a run of the cache's seed draws in epoch e. Part `test` holds the views of an
evaluation, crop-major as `VideoViews` counts them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from two_stream.config.base import Options, PositiveInt
from two_stream.config.load import flatten, validate_settings
from two_stream.config.model import ModelOptions
from two_stream.config.schema import DataOptions
from two_stream.data.catalog import Record
from two_stream.data.mirror import mirror_of
from two_stream.errors import CheckpointError, DataError, SettingsError
from two_stream.runtime.arrays import map_array
from two_stream.runtime.files import CHECKSUMS, complete_folder, verify_checksums
from two_stream.runtime.text import parse_json
from two_stream.types import FeatureLayout, InputSpec, VideoRecord

FORMAT = 1
"""raised when a reader of an older version could misread the folder"""
FACTS = "features.json"
CENTRED = 1
"""rows of a training video before those of the augmented clips"""
AGAIN = "write it anew with `two-stream features`"
_NO_MATTER = ("model.backbone.pretrained", "model.backbone.weights")
"""where weights come from; what they are is compared by their SHA-256"""
_ADDED = {"segments": 0, "stack": 1}
"""parts of the input that the first caches do not name, with what holds for them"""

FeaturePart = Literal["train", "test"]


class StoredVideo(Options):
    """A video of a part."""

    id: str
    labels: tuple[int, ...]
    group: str
    num_frames: int
    first: int
    """row of its first view"""
    clips: int
    """clips, of which each has the crops of the part; of the training part its rows"""


class PartFacts(Options):
    """How a part was computed, and its videos."""

    rows: int
    crops: int = 1
    precision: str
    """autocast type of the forward pass"""
    dtype: Literal["float32", "bfloat16", "float16"]
    """type that the backbone gave; the rows hold its values as float32"""
    folded: bool
    videos: list[StoredVideo]
    skipped: dict[str, str] = Field(default_factory=dict)
    """videos that could not be read, with the reason"""


class FeatureFacts(Options):
    """Everything `features.json` says."""

    format: int = FORMAT
    backbone_sha256: str
    """of names and values of the frozen backbone's weights"""
    shapes: tuple[tuple[int, ...], ...]
    """see `FeatureLayout`"""
    settings: dict[str, Any]
    """dotted settings that decide what a view is; see `view_settings`"""
    classes: list[str]
    seed: int
    """of the augmented clips"""
    train_views: PositiveInt
    """augmented clips per training video"""
    evaluate: dict[str, Any]
    """views of the test part: views, num_clips, step, crops"""
    channels_last: bool
    parts: dict[str, PartFacts]
    code_version: str
    environment: dict[str, str]
    seconds: float = 0.0
    """what writing took"""


@dataclass(frozen=True)
class StoredPart:
    """The rows of a part."""

    name: str
    facts: PartFacts
    rows: NDArray[np.float32]
    """`(rows, D)`, mapped into memory"""
    mirrored: NDArray[np.bool_]
    """`(rows,)`"""
    videos: dict[str, StoredVideo]


class FeatureCache:
    """A folder of stored features, opened: checksums compared, rows mapped into memory.

    Attributes:
        folder: Where it is.
        facts: What made it.
        layout: What a row holds.
        content: SHA-256 of what the rows are; the same for the same rows, whenever they were written.
    """

    def __init__(self, folder: Path | str) -> None:
        """Open a folder.

        Raises:
            CheckpointError: It is missing, no feature cache, damaged, or of another format; names the file.
        """
        self.folder = Path(folder)
        inside = complete_folder(self.folder)
        self.facts, self.content = _checked(inside, _stamp(inside))
        self.layout = FeatureLayout(self.facts.shapes)
        self._inside = inside

    def __str__(self) -> str:
        return str(self.folder)

    def part(self, name: FeaturePart) -> StoredPart:
        """Return a part.

        Raises:
            CheckpointError: It was not stored, or its files are of another shape than `features.json` says.
        """
        facts = self.facts.parts.get(name)
        if facts is None:
            raise CheckpointError(
                f"{self.folder}: holds no {name} part ({', '.join(self.facts.parts)} only); {AGAIN} --parts train test"
            )
        rows = self._array(f"{name}.npy", np.float32, (facts.rows, self.layout.width))
        mirrored = self._array(f"{name}_mirrored.npy", np.bool_, (facts.rows,))
        return StoredPart(name, facts, rows, mirrored, {video.id: video for video in facts.videos})

    def check_backbone(self, sha256: str, advice: str) -> None:
        """Refuse another backbone than the one the features come from.

        Raises:
            CheckpointError: Says what to do: `advice`.
        """
        if sha256 != self.facts.backbone_sha256:
            raise CheckpointError(
                f"{self.folder}: holds the features of another backbone (weights {self.facts.backbone_sha256[:12]}…, "
                f"here {sha256[:12]}…); {advice}"
            )

    def check_settings(self, settings: Mapping[str, Any], classes: Sequence[str]) -> None:
        """Refuse settings under which a view would be another one; keys that are not given are not compared.

        Raises:
            SettingsError: Names the settings that differ, with both values.
        """
        if list(classes) != self.facts.classes:
            raise SettingsError(f"{self.folder}: made for another data set or list of classes; {AGAIN}")
        made, usual = self.facts.settings, {f"model.input.{name}": value for name, value in _ADDED.items()}
        if "model.input.stride" in settings:
            made, settings = usual | made, usual | dict(settings)
        wrong = [
            f"`{key}` {made.get(key)} (here {value})"
            for key, value in settings.items()
            if made.get(key) != value
        ]
        if wrong:
            raise SettingsError(
                f"{self.folder}: the features were made with {'; '.join(wrong[:4])}{'; …' if wrong[4:] else ''}; "
                f"give the same settings or {AGAIN}"
            )

    def _array(self, name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
        path = self._inside / name
        try:
            found = map_array(path)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); {AGAIN}") from None
        if found.dtype != dtype or found.shape != shape:
            raise CheckpointError(
                f"{path}: holds {found.dtype} {found.shape}, {FACTS} says {np.dtype(dtype)} {shape}; {AGAIN}"
            )
        return np.asarray(found) if dtype is np.bool_ else found


def stored_video(cache: FeatureCache, part: StoredPart, record: VideoRecord) -> StoredVideo | None:
    """Return where a video of a list is stored; None where it could not be read when the cache was written.

    Raises:
        DataError: It is not there at all, or has other frames or labels in the list now.
    """
    video = part.videos.get(record.id)
    if video is None:
        if record.id in part.facts.skipped:
            return None
        raise DataError(
            f"{cache}: video {record.id!r} of the list is not in its {part.name} part; the lists changed: {AGAIN}"
        )
    if (video.num_frames, video.labels) != (record.num_frames, record.all_labels):
        raise DataError(
            f"{cache}: video {record.id!r} was stored with {video.num_frames} frames and labels {list(video.labels)}, "
            f"the list says {record.num_frames} and {list(record.all_labels)}; {AGAIN}"
        )
    return video


def view_settings(
    model: ModelOptions, spec: InputSpec, data: DataOptions, record: Record, *, training: bool
) -> dict[str, Any]:
    """Return, dotted, what decides how a view of a video looks and what a backbone makes of it, as JSON has it.

    Args:
        model: Settled options of the network.
        spec: What it expects.
        data: Reading.
        record: The data set.
        training: With what only augmented clips depend on.
    """
    network = model.model_dump(mode="json", include={"modality", "backbone", "reduction", "reduced_channels"})
    if model.reduction == "none":
        del network["reduced_channels"]
    expected = {name: value for name, value in asdict(spec).items() if _ADDED.get(name) != value}
    read = {"split", "sampling", "frame_order", "scaled_decoding"}
    reading = data.model_dump(mode="json", include={*read, *({"augment", "resize_once"} if training else ())})
    if data.sampling == "segments":
        reading["sampling"] = "standard"  # the input says it
    if not training:
        kept = {"protocol", "crop"} if data.augment.whole_frame else {"protocol"}  # centred views follow it
        reading["augment"] = data.augment.model_dump(mode="json", include=kept)
    mirror = mirror_of(record, data.augment.protocol)
    found = flatten(
        {
            "model": {**network, "input": expected},
            "data": {"dataset": record.name, **reading, "mirror": asdict(mirror)},
        }
    )
    plain: dict[str, Any] = json.loads(json.dumps({k: v for k, v in found.items() if k not in _NO_MATTER}))
    return plain


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return what changes when a file of the folder does, so that one process compares checksums once."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise CheckpointError(
            f"{folder}: {what}; expected stored features, as `two-stream features` writes them"
        )
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


@lru_cache(maxsize=8)
def _checked(folder: Path, _stamp: tuple[tuple[str, int, int], ...]) -> tuple[FeatureFacts, str]:
    path = folder / FACTS
    if not path.is_file() and not (folder / CHECKSUMS).is_file():
        raise CheckpointError(
            f"{folder}: holds no stored features ({FACTS}); `two-stream features` writes them"
        )
    verify_checksums(folder, "feature cache", AGAIN)
    try:
        mapping = parse_json(path.read_text(encoding="utf-8"))
        made = int(mapping["format"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: missing or damaged; {AGAIN}") from None
    if made != FORMAT:
        raise CheckpointError(f"{path}: of format {made}, this version reads {FORMAT}; {AGAIN}")
    facts = validate_settings(FeatureFacts, mapping, path)
    sums = parse_json((folder / CHECKSUMS).read_text(encoding="utf-8"))
    held = [f"{name} {digest}" for name, digest in sorted(sums.items()) if name != FACTS]
    return facts, hashlib.sha256("\n".join([facts.backbone_sha256, *held]).encode()).hexdigest()
