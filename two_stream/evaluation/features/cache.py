"""Stored features: the outputs of a frozen backbone for each view of each video, read for training and scoring.

In a cache folder, `features.json` records how the features were computed and lists the videos. `<part>.npy` has one
float32 row for each view and is memory-mapped. `<part>_mirrored.npy` marks the mirrored views. `checksums.json`
contains the SHA-256 of each file. The part `train` covers the complete official training list, because the holdout
depends on the seed of a run. Row 0 of a training video is its centred clip, and row 1 + e is the clip that a run with
the cache's seed draws in epoch e. The part `test` has the views of an evaluation, in the order of `VideoViews`: the
clips of each crop are consecutive.

`StoredClips` returns the rows as training batches. `StoredViews` scores the rows with a head and a classifier.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from two_stream.backbones import Backbone
from two_stream.config.base import Options, PositiveInt
from two_stream.config.load import flatten, validate_settings
from two_stream.config.model import ModelOptions
from two_stream.config.schema import DataOptions, EvaluateOptions, Experiment
from two_stream.data.catalog import Record, mirror_of
from two_stream.data.clips.dataset import many_hot
from two_stream.data.clips.loader import batches_of, epoch_plan
from two_stream.errors import CheckpointError, DataError, SettingsError
from two_stream.evaluation.scoring.network import evaluation_mode
from two_stream.evaluation.scoring.score import Skipped, VideoProgress, VideoScores, collect_scores
from two_stream.recognizer import Recognizer, build_backbone
from two_stream.runtime import distributed
from two_stream.runtime.device import autocast
from two_stream.runtime.files import CHECKSUMS, complete_folder, map_array, verify_checksums
from two_stream.runtime.text import parse_json
from two_stream.types import Batch, FeatureLayout, InputSpec, Part, VideoRecord

FORMAT = 1
"""number of the folder's format; it is increased if older versions would misread the folder"""
FACTS = "features.json"
CENTRED = 1
"""number of rows before the rows of the augmented clips of a training video"""
AGAIN = "write the features again with `two-stream features`"
_IGNORED = ("model.backbone.pretrained", "model.backbone.weights")
"""settings on the origin of the weights; they are ignored, because the SHA-256 of the weights is compared"""
_ADDED = {"segments": 0, "stack": 1, "fps": None}
"""input settings that old caches do not contain, with the values that were used for these caches"""

FeaturePart = Literal["train", "test"]
_BATCH = 64
"""rows per forward pass"""
_KEPT_BYTES = 1 << 28
"""memory for batches of stored clips that several runs share"""
_UNCACHED = "or read the videos (`two-stream evaluate RUN --uncached`)"


class StoredVideo(Options):
    """A video of a part and the position of its rows."""

    id: str
    labels: tuple[int, ...]
    group: str
    num_frames: int
    first: int
    """index of the row with the video's first view"""
    clips: int
    """number of clips of the video; each clip has all crops of the part, and training clips have one crop"""


class PartFacts(Options):
    """Facts about a part: how it was computed, and its videos."""

    rows: int
    crops: int = 1
    precision: str
    """autocast dtype of the forward pass"""
    dtype: Literal["float32", "bfloat16", "float16"]
    """dtype of the backbone's output; the rows store the values as float32"""
    folded: bool
    """whether BatchNorm was folded into the convolutions"""
    videos: list[StoredVideo]
    skipped: dict[str, str] = Field(default_factory=dict)
    """reason for each video that could not be read, by video id"""


class FeatureFacts(Options):
    """Content of `features.json`."""

    format: int = FORMAT
    backbone_sha256: str
    """SHA-256 of the names and values of the frozen backbone's weights"""
    shapes: tuple[tuple[int, ...], ...]
    """shapes of the backbone's outputs, see `FeatureLayout`"""
    settings: dict[str, Any]
    """dotted settings that determine the features; see `view_settings`"""
    classes: list[str]
    seed: int
    """random seed of the augmented clips"""
    train_views: PositiveInt
    """number of augmented clips for each training video"""
    evaluate: dict[str, Any]
    """`views`, `num_clips`, `step` and `crops` of the test part"""
    channels_last: bool
    parts: dict[str, PartFacts]
    """`train` and `test`, as far as they are stored"""
    code_version: str
    environment: dict[str, str]
    seconds: float = 0.0
    """duration of writing the cache"""


@dataclass(frozen=True)
class StoredPart:
    """The rows of a part, and the facts about the part."""

    name: str
    facts: PartFacts
    rows: NDArray[np.float32]
    """features `(rows, D)`, memory-mapped"""
    mirrored: NDArray[np.bool_]
    """whether each row is a mirrored view, `(rows,)`"""
    videos: dict[str, StoredVideo]


class FeatureCache:
    """A folder of stored features with verified checksums and memory-mapped rows.

    Attributes:
        folder: Path of the folder.
        facts: How the features were computed.
        layout: Layout of a row.
        content: SHA-256 of the stored arrays and the backbone; it does not depend on the time of writing.
    """

    def __init__(self, folder: Path | str) -> None:
        """Open a folder of stored features.

        Raises:
            CheckpointError: The folder is missing, damaged, in a different format or not a feature cache.
        """
        self.folder = Path(folder)
        self._inside = complete_folder(self.folder)
        self.facts, self.content = _read_facts(self._inside, _file_stats(self._inside))
        self.layout = FeatureLayout(self.facts.shapes)

    def __str__(self) -> str:
        return str(self.folder)

    def part(self, name: FeaturePart) -> StoredPart:
        """Return a part.

        Raises:
            CheckpointError: The part was not stored, or the shapes of its files differ from `features.json`.
        """
        facts = self.facts.parts.get(name)
        if facts is None:
            raise CheckpointError(
                f"{self.folder}: the {name} part is not stored (only {', '.join(self.facts.parts)}); {AGAIN} "
                "and --parts train test"
            )
        rows = self._array(f"{name}.npy", np.float32, (facts.rows, self.layout.width))
        mirrored = self._array(f"{name}_mirrored.npy", np.bool_, (facts.rows,))
        return StoredPart(name, facts, rows, mirrored, {video.id: video for video in facts.videos})

    def check_backbone(self, sha256: str, advice: str) -> None:
        """Check that the features were computed by the backbone with this SHA-256.

        Raises:
            CheckpointError: The features were computed by another backbone; the message ends with `advice`.
        """
        if sha256 != self.facts.backbone_sha256:
            raise CheckpointError(
                f"{self.folder}: the stored features were computed by a different backbone (SHA-256 "
                f"{self.facts.backbone_sha256[:12]}…, expected {sha256[:12]}…); {advice}"
            )

    def check_settings(self, settings: Mapping[str, Any], classes: Sequence[str]) -> None:
        """Check that the features were computed with these settings; other settings are not compared.

        Raises:
            SettingsError: Some settings differ.
        """
        if list(classes) != self.facts.classes:
            raise SettingsError(
                f"{self.folder}: the features were written for another data set or another list "
                f"of classes; {AGAIN}"
            )
        made, usual = self.facts.settings, {f"model.input.{name}": value for name, value in _ADDED.items()}
        if "model.input.stride" in settings:
            made, settings = usual | made, usual | dict(settings)
        wrong = _differences(made, settings)
        if wrong:
            raise SettingsError(
                f"{self.folder}: the features were computed with {'; '.join(wrong[:4])}{'; …' if wrong[4:] else ''}; "
                f"use the same settings or {AGAIN}"
            )

    def _array(self, name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
        path = self._inside / name
        try:
            found = map_array(path)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); {AGAIN}") from None
        if found.dtype != dtype or found.shape != shape:
            raise CheckpointError(
                f"{path}: found {found.dtype} {found.shape}, but {FACTS} says {np.dtype(dtype)} {shape}; {AGAIN}"
            )
        return np.asarray(found) if dtype is np.bool_ else found


def _differences(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    differ = {key: value for key, value in wanted.items() if made.get(key) != value}
    return [f"`{key}` {made.get(key)} (here {value})" for key, value in differ.items()]


def stored_video(
    cache: FeatureCache, part: StoredPart, record: VideoRecord, on_error: str = "skip"
) -> StoredVideo | None:
    """Return the stored video of a list entry; None if the video could not be read when the cache was written.

    Raises:
        DataError: The video is not stored, its number of frames or its labels have changed in the list, or it could not
            be read and `on_error` is `raise`.
    """
    video = part.videos.get(record.id)
    if video is None:
        if record.id not in part.facts.skipped:
            raise DataError(
                f"{cache}: video {record.id!r} of the split list is not in the {part.name} part, because the "
                f"lists have changed; {AGAIN}"
            )
        if on_error == "raise":
            raise DataError(
                f"video {record.id!r} could not be read when {cache} was written: "
                f"{part.facts.skipped[record.id]}; to skip unreadable videos, set `data.on_error: skip`"
            )
        return None
    if (video.num_frames, video.labels) != (record.num_frames, record.all_labels):
        raise DataError(
            f"{cache}: video {record.id!r} was stored with {video.num_frames} frames and labels "
            f"{list(video.labels)}, but the split list says {record.num_frames} frames and labels "
            f"{list(record.all_labels)}; {AGAIN}"
        )
    return video


def view_settings(
    model: ModelOptions, spec: InputSpec, data: DataOptions, record: Record, *, training: bool
) -> dict[str, Any]:
    """Return the settings that determine the features of a view, with dotted keys and JSON values.

    The options of `model` must be resolved. If `training` is true, the settings of augmented clips are included.
    """
    network = model.model_dump(mode="json", include={"modality", "backbone", "reduction", "reduced_channels"})
    if model.reduction == "none":
        del network["reduced_channels"]
    expected = {name: value for name, value in asdict(spec).items() if _ADDED.get(name) != value}
    read = {"split", "sampling", "frame_order", "scaled_decoding"}
    reading = data.model_dump(mode="json", include={*read, *({"augment", "resize_once"} if training else ())})
    if spec.fps is not None and data.fps is not None:
        reading["fps"] = data.fps
    if data.sampling == "segments":
        reading["sampling"] = "standard"  # segments are part of the input
    if not training:
        kept = {"protocol", "crop"} if data.augment.whole_frame else {"protocol"}  # of centred views
        reading["augment"] = data.augment.model_dump(mode="json", include=kept)
    mirror = mirror_of(record, data.augment.protocol)
    found = flatten(
        {
            "model": {**network, "input": expected},
            "data": {"dataset": record.name, **reading, "mirror": asdict(mirror)},
        }
    )
    plain: dict[str, Any] = json.loads(json.dumps({k: v for k, v in found.items() if k not in _IGNORED}))
    return plain


def _file_stats(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return the names, sizes and times of the files; the checksums are verified again only if these change."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise CheckpointError(f"{folder}: {what}; expected a folder written by `two-stream features`")
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


@lru_cache(maxsize=8)
def _read_facts(folder: Path, _stats: tuple[tuple[str, int, int], ...]) -> tuple[FeatureFacts, str]:
    path = folder / FACTS
    if not path.is_file() and not (folder / CHECKSUMS).is_file():
        raise CheckpointError(
            f"{folder}: no stored features ({FACTS} is missing); write them with `two-stream features`"
        )
    verify_checksums(folder, "feature cache", AGAIN)
    try:
        mapping = parse_json(path.read_text(encoding="utf-8"))
        made = int(mapping["format"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: missing or damaged; {AGAIN}") from None
    if made != FORMAT:
        raise CheckpointError(
            f"{path}: found format {made}, but this version of two-stream reads format {FORMAT}; {AGAIN}"
        )
    facts = validate_settings(FeatureFacts, mapping, path)
    sums = parse_json((folder / CHECKSUMS).read_text(encoding="utf-8"))
    held = [f"{name} {digest}" for name, digest in sorted(sums.items()) if name != FACTS]
    return facts, hashlib.sha256("\n".join([facts.backbone_sha256, *held]).encode()).hexdigest()


def backbone_sha256(model: Recognizer) -> str:
    """Return the SHA-256 of the names and values of a backbone's weights and buffers, including the reduction block."""
    return weights_sha256(model.backbone)


def weights_sha256(module: nn.Module, skip: str = "num_batches_tracked") -> str:
    """Return the SHA-256 of the names and values of a module's weights and buffers.

    Names that start with `skip` are left out.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        # num_batches_tracked counts steps and does not change the output
        if name.endswith("num_batches_tracked") or name.startswith(skip):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class StoredClips:
    """Stored training clips of videos; the clips are numbered as in `epoch_plan`.

    Epoch e uses the augmented clip with index e modulo the number of augmented clips. If a video is drawn again in the
    same epoch, its next clip is used.
    """

    def __init__(
        self, cache: FeatureCache, experiment: Experiment, records: Sequence[VideoRecord], record: Record
    ) -> None:
        """Find the rows of the videos.

        Raises:
            DataError: A video is not stored, or could not be read and `data.on_error` is `raise`.
            CheckpointError: The training part was not stored.
        """
        self.records = records
        self.part = cache.part("train")
        self.views = cache.facts.train_views
        self.mirror = mirror_of(record, experiment.data.augment.protocol)
        self.num_classes = record.num_classes
        self.multi_label = record.multi_label
        same = experiment.train.precision == self.part.facts.precision
        self.dtype = getattr(torch, self.part.facts.dtype) if same else torch.float32
        on_error = experiment.data.on_error
        self.videos = [stored_video(cache, self.part, video, on_error) for video in records]
        self.kept: OrderedDict[tuple[int | None, ...], tuple[Batch, Skipped]] = OrderedDict()
        """latest batches, for other runs of this process; see `SharedFeatures`"""
        self.bytes_to_keep = 0

    def batch(self, numbers: Sequence[int], epoch: int | None) -> tuple[Batch, Skipped]:
        """Return a batch as `_read` does; runs that share the clips get the same tensors."""
        if not self.bytes_to_keep:
            return self._read(numbers, epoch)
        key = (epoch, *numbers)
        if key not in self.kept:
            self.kept[key] = self._read(numbers, epoch)
            most = max(1, self.bytes_to_keep // max(1, self.kept[key][0].clips.nbytes))
            while len(self.kept) > most:
                self.kept.popitem(last=False)
        return self.kept[key]

    def _read(self, numbers: Sequence[int], epoch: int | None) -> tuple[Batch, Skipped]:
        """Return a batch, and `(id, reason)` for each of its videos that could not be read.

        Numbers of `len(records)` or more start again with the first video, as in `ClipDataset`. If `epoch` is
        None, the clips are centred.
        """
        rows: list[int] = []
        ids: list[str] = []
        labels: list[tuple[int, ...]] = []
        skipped: Skipped = []
        for number in numbers:
            again, place = divmod(number, len(self.records))
            record, stored = self.records[place], self.videos[place]
            if stored is None:
                skipped.append((record.id, self.part.facts.skipped[record.id]))
                continue
            row = stored.first if epoch is None else stored.first + CENTRED + (epoch + again) % self.views
            rows.append(row)
            ids.append(record.id)
            shown = record.all_labels
            labels.append(self.mirror.of(shown) if self.part.mirrored[row] else shown)
        features_BD = torch.from_numpy(np.asarray(self.part.rows[rows])).to(self.dtype)
        return Batch(features_BD, self._targets(labels), ids), skipped

    def _targets(self, labels: Sequence[tuple[int, ...]]) -> torch.Tensor:
        if self.multi_label and labels:
            return torch.stack([many_hot(each, self.num_classes) for each in labels])
        return torch.tensor([each[0] for each in labels], dtype=torch.int64)


class SharedFeatures:
    """The frozen backbones and the batches of stored features that several runs of a process share.

    The runs must have equal settings of the data, the backbone, its initial weights, the batch size, the precision and
    the device, and the same seed, because the seed determines the holdout and the order of the clips.

    Attributes:
        scored: Backbone of a network that was scored, to be used by the next network.
    """

    def __init__(self) -> None:
        self.scored: Backbone | None = None
        self._built: tuple[Backbone, torch.Tensor] | None = None
        self._clips: dict[tuple[str, ...], StoredClips] = {}

    def backbone(self, options: ModelOptions) -> Backbone:
        """Return the backbone, which the first call builds. Every call leaves torch's generator in the same state."""
        if self._built is None:
            self._built = build_backbone(options), torch.get_rng_state()
        backbone, state = self._built
        torch.set_rng_state(state)
        return backbone

    def clips(
        self, cache: FeatureCache, experiment: Experiment, records: Sequence[VideoRecord], record: Record
    ) -> StoredClips:
        """Return the stored clips of videos, which keep the latest batches in memory. See `StoredClips`."""
        key = (cache.content, *(video.id for video in records))
        if key not in self._clips:
            self._clips[key] = StoredClips(cache, experiment, records, record)
            self._clips[key].bytes_to_keep = _KEPT_BYTES
        return self._clips[key]


class StoredLoader:
    """One pass over stored clips. Clips are read in this process, and no empty batches are yielded.

    Attributes:
        position: Number of the next batch in the pass.
        skipped: `(id, reason)` for each video skipped since the iteration began.
    """

    def __init__(
        self,
        clips: StoredClips,
        plan: Sequence[Sequence[int]],
        *,
        epoch: int | None,
        skip: int = 0,
        pin: bool = False,
    ) -> None:
        """Plan a pass.

        `plan` contains the video numbers of each batch; the first `skip` batches are left out. If `epoch` is None, the
        clips are centred. If `pin` is true, batches are in pinned memory.
        """
        self.clips, self.plan, self.epoch = clips, plan, epoch
        self.skip, self.pin = skip, pin
        self.position = skip
        self.skipped: Skipped = []

    def __len__(self) -> int:
        """Largest number of batches; fewer are yielded if `on_error: skip` leaves out all videos of a batch."""
        return len(self.plan) - self.skip

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the plan."""
        self.skipped, self.position = [], self.skip
        for number in range(self.skip, len(self.plan)):
            batch, skipped = self.clips.batch(self.plan[number], self.epoch)
            self.position = number + 1
            self.skipped += skipped
            if batch.ids:
                yield batch.pin_memory() if self.pin else batch


def stored_epoch(
    clips: StoredClips, experiment: Experiment, epoch: int, skip: int, *, pin: bool
) -> StoredLoader:
    """Return the batches of a training epoch."""
    plan = epoch_plan(clips.records, experiment.data, experiment.train.batch_size, experiment.seed, epoch)
    return StoredLoader(clips, plan, epoch=epoch, skip=skip, pin=pin)


def stored_centred(clips: StoredClips, experiment: Experiment, *, pin: bool) -> StoredLoader:
    """Return batches of the centred clips of all videos, with the batch size of the training."""
    plan = batches_of(range(len(clips.records)), experiment.train.batch_size)
    return StoredLoader(clips, plan, epoch=None, pin=pin)


class StoredViews:
    """Scores the stored views of a part with the head and the classifier of a run.

    Attributes:
        experiment: Settings used for scoring, with the views, the precision and the BatchNorm folding of the cache.
    """

    def __init__(
        self, model: Recognizer, experiment: Experiment, record: Record, part: Part, precision: str
    ) -> None:
        """Open the cache `experiment.data.features` and check that it fits the run.

        `experiment.evaluate` must be resolved for this device. `precision` is the requested precision; `auto` means
        the precision of the cache. For the validation and training parts, only the centred clips are scored, in the
        precision of the training.

        Raises:
            SettingsError: The cache has different views, a different precision or different settings.
            CheckpointError: The cache is missing or damaged, or was computed by a different backbone.
        """
        assert experiment.data.features is not None
        cache = FeatureCache(experiment.data.features)
        model.check_stored(cache.layout, cache)
        settings = view_settings(model.options, model.spec, experiment.data, record, training=False)
        cache.check_settings(settings, record.classes)
        cache.check_backbone(backbone_sha256(model), f"use the cache of the run's training, {_UNCACHED}")
        stored: FeaturePart = "test" if part == "test" else "train"
        self.model = model
        self.cache = cache
        self.part: StoredPart = cache.part(stored)
        self.mirror = mirror_of(record, experiment.data.augment.protocol)
        evaluate = self._evaluate(experiment.evaluate, part, precision)
        self.experiment = experiment.model_copy(update={"evaluate": evaluate})

    @property
    def facts(self) -> dict[str, Any]:
        """Facts about the origin of the scores, for the score file."""
        made = self.cache.facts
        return {
            "source": "features",
            "precision_reason": None,  # the precision is that of the cache
            "features": {
                "folder": str(self.cache.folder),
                "content_sha256": self.cache.content,
                "backbone_sha256": made.backbone_sha256,
                "holds": str(self.cache.layout),
                "code_version": made.code_version,
                "device": made.environment.get("device"),
            },
        }

    def _evaluate(self, options: EvaluateOptions, part: Part, precision: str) -> EvaluateOptions:
        """Return the evaluation options with the views and the precision of the cache."""
        facts = self.part.facts
        update: dict[str, Any] = {"precision": facts.precision, "fold": facts.folded, "compile": False}
        if part != "test":
            return options.model_copy(update={**update, "views": "single", "crops": "center"})
        if precision not in ("auto", facts.precision):
            raise SettingsError(
                f"{self.cache}: the test part was computed in {facts.precision}, but `evaluate.precision` is "
                f"{precision}; use {facts.precision} or auto, {_UNCACHED}"
            )
        keys = ["views", "crops", *{"uniform": ["num_clips"], "sliding": ["step"]}.get(options.views, [])]
        made = {f"evaluate.{key}": self.cache.facts.evaluate[key] for key in keys}
        wrong = _differences(made, {f"evaluate.{key}": getattr(options, key) for key in keys})
        if wrong:
            raise SettingsError(
                f"{self.cache}: the views were stored with {', '.join(wrong)}; use the same settings, {AGAIN}, "
                f"{_UNCACHED}"
            )
        return options.model_copy(update=update)

    def score(self, records: Sequence[VideoRecord], aggregate: str) -> tuple[VideoScores, Skipped]:
        """Score the videos of a list. With several processes, the main process scores all videos.

        Returns:
            The scores, and `(id, reason)` for each video that could not be read when the cache was written.

        Raises:
            DataError: A video is not stored, or could not be read and `data.on_error` is `raise`.
        """
        found: list[tuple[VideoRecord, StoredVideo]] = []
        skipped: Skipped = []
        for record in records if distributed.is_main() else []:
            video = stored_video(self.cache, self.part, record, self.experiment.data.on_error)
            if video is None:
                skipped.append((record.id, self.part.facts.skipped[record.id]))
            else:
                found.append((record, video))
        keep_views = self.experiment.evaluate.keep_views
        with evaluation_mode(self.model):
            videos = self._videos(found)
            scores = collect_scores(videos, aggregate=aggregate, keep_views=keep_views, total=len(found))
        return scores, skipped

    def _videos(self, found: Sequence[tuple[VideoRecord, StoredVideo]]) -> Iterator[VideoProgress]:
        """Yield each video with the logits of its views; a forward pass can contain views of several videos."""
        waiting: list[tuple[VideoProgress, range]] = []
        for number, (record, stored) in enumerate(found, 1):
            waiting.append(self._video(record, stored))
            if number == len(found) or sum(len(rows) for _, rows in waiting) >= _BATCH:
                yield from self._scored(waiting)
                waiting = []

    def _video(self, record: VideoRecord, stored: StoredVideo) -> tuple[VideoProgress, range]:
        first = stored.first
        if self.part.name == "train":
            return VideoProgress(record.id, record.label, 1, 1, flips=[False]), range(first, first + 1)
        crops = self.part.facts.crops
        rows = range(first, first + stored.clips * crops)
        flips = [bool(flag) for flag in self.part.mirrored[rows.start : rows.stop : stored.clips]]
        labels = self.mirror.labels
        return VideoProgress(record.id, record.label, stored.clips, crops, flips, labels), rows

    def _scored(self, waiting: Sequence[tuple[VideoProgress, range]]) -> Iterator[VideoProgress]:
        rows = [row for _, rows in waiting for row in rows]
        blocks = [self._logits(rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH)]
        logits = np.concatenate(blocks)
        start = 0
        for video, own in waiting:
            video.take(list(range(len(own))), logits[start : start + len(own)])
            start += len(own)
            yield video

    @torch.inference_mode()
    def _logits(self, rows: Sequence[int]) -> NDArray[np.float32]:
        facts = self.part.facts
        device = self.model.device
        values = torch.from_numpy(self.part.rows[rows]).to(device, getattr(torch, facts.dtype))
        with autocast(device, facts.precision):
            logits_VK = self.model.forward_stored(values, self.cache.layout)
        return logits_VK.float().cpu().numpy()
