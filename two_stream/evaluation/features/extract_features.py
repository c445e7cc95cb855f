"""Writes stored features: computes all views of all videos with a frozen backbone (`cache.py` reads the features).

The views are read in the same way as in training and evaluation, and computed by the same network with the same
precision. A head therefore receives the same features as without the cache.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from two_stream.config.schema import EvaluateOptions, Experiment
from two_stream.data.catalog import Record, dataset_record, mirror_of
from two_stream.data.clips.dataset import BROKEN, ClipDataset, ClipFailure, make_source, open_clips
from two_stream.data.clips.views import ViewLoader, collate_views, evaluation_clips, view_loader
from two_stream.data.sources.files import ClipSource
from two_stream.data.splits import all_training_videos, load_part
from two_stream.errors import DataError, SettingsError
from two_stream.evaluation.features.cache import (
    CENTRED,
    FACTS,
    FeatureFacts,
    FeaturePart,
    PartFacts,
    StoredVideo,
    backbone_sha256,
    view_settings,
)
from two_stream.evaluation.scoring.network import (
    evaluation_mode,
    example_clip,
    is_exact,
    prepare_for_inference,
    resolve_evaluation,
)
from two_stream.evaluation.scoring.score import Canvas, VideoProgress, check_incomplete, scored_views
from two_stream.evaluation.scoring.views import crop_views
from two_stream.recognizer import Recognizer
from two_stream.runtime import distributed
from two_stream.runtime.console import note, progress, warn
from two_stream.runtime.device import autocast
from two_stream.runtime.files import replaced_folder, write_json
from two_stream.runtime.provenance import code_version, environment
from two_stream.runtime.text import byte_size, plural
from two_stream.types import FeatureLayout, VideoRecord, VideoViews

PARTS: tuple[FeaturePart, ...] = ("train", "test")
_SPARE = 64 * 2**20
"""number of bytes of disk space to keep free"""


def write_features(
    model: Recognizer,
    experiment: Experiment,
    out: Path,
    *,
    train_views: int = 1,
    maps: bool = False,
    parts: Sequence[FeaturePart] = PARTS,
    overwrite: bool = False,
) -> FeatureFacts:
    """Store the backbone's outputs for all videos of a split. The folder is written completely or not at all.

    The part `train` contains all videos of the official training list, including those that a run uses as its holdout.
    The clips of the part `train` are the centred clip of each video, and the clips that `ClipDataset` draws in the
    first `train_views` epochs with the experiment's seed. Training clips are computed in `train.precision`. The part
    `test` contains all views of `experiment.evaluate`, computed in `evaluate.precision`.

    Args:
        model: The network, on the device to compute on. Its head and classifier are not used.
        experiment: Settings of the data set, the augmentation, the views and the seed.
        out: Folder to write. An existing cache is replaced when the new one is complete.
        train_views: Number of augmented clips for each training video.
        maps: Whether to store feature maps, for heads that use spatial positions; otherwise tokens are stored.
        parts: Parts to store.
        overwrite: Whether to replace an existing cache.

    Raises:
        SettingsError: A setting is invalid, `out` is in use, the disk has too little space, or several processes were
            started.
        DataError: The data set cannot be read, or a video cannot be read and `data.on_error` is `raise`.
    """
    _check(model, experiment, out, train_views, overwrite=overwrite)
    begin = time.perf_counter()
    record = dataset_record(experiment.data)
    writer = _Writer(model, experiment, record, train_views, maps)
    plans = [writer.plan(part) for part in PARTS if part in parts]
    layout, _ = writer.probe(plans[0].options)
    _check_room(plans, layout, out)
    with replaced_folder(out) as folder:
        written: dict[str, PartFacts] = {plan.part: writer.write(plan, folder, layout) for plan in plans}
        options = experiment.evaluate
        facts = FeatureFacts(
            backbone_sha256=backbone_sha256(model),
            shapes=layout.shapes,
            settings=view_settings(model.options, model.spec, experiment.data, record, training=True),
            classes=list(record.classes),
            seed=experiment.seed,
            train_views=train_views,
            evaluate=options.model_dump(mode="json", include={"views", "num_clips", "step", "crops"}),
            channels_last=model.memory_format == torch.channels_last_3d,
            parts=written,
            code_version=code_version(),
            environment={**environment(), "device": str(writer.device)},
            seconds=time.perf_counter() - begin,
        )
        write_json(folder / FACTS, facts.model_dump(mode="json"), indent=None)
    return facts


def _check(
    model: Recognizer, experiment: Experiment, out: Path, train_views: int, *, overwrite: bool
) -> None:
    if distributed.world_size() > 1:
        raise SettingsError(
            "stored features are written by one process only; start the command without torchrun"
        )
    if train_views < 1:
        raise SettingsError(f"`train_views` is {train_views}; expected 1 or more")
    if model.options.dense:
        raise SettingsError(
            "`model.dense` classifies without a head, so there are no features to store; set "
            "`model.dense: false`"
        )
    if experiment.train.selection == "paper":
        raise SettingsError(
            "`train.selection: paper` validates on the test list, but only the centred clips of the training "
            "list are stored; set `train.selection: holdout`"
        )
    if out.exists() and not (out / FACTS).is_file() and (out.is_file() or any(out.iterdir())):
        raise SettingsError(f"{out}: exists but is not a folder of stored features; choose another --out")
    if (out / FACTS).is_file() and not overwrite:
        raise SettingsError(
            f"{out}: already contains stored features; use these features, replace them with --overwrite, or "
            "choose another --out"
        )


def _check_room(plans: Sequence[_Plan], layout: FeatureLayout, out: Path) -> None:
    views = sum(plan.rows for plan in plans)
    needed = views * layout.width * 4
    videos = sum(len(plan.videos) for plan in plans)
    note(
        f"storing {plural(views, 'view')} of {plural(videos, 'video')} as {layout}: {byte_size(needed)} in {out}"
    )
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free - _SPARE
    if needed > free:
        raise SettingsError(
            f"{out}: the stored features require {byte_size(needed)}, but only {byte_size(max(0, free))} are free; "
            "choose another --out, store tokens instead of maps, or use fewer views"
        )


@dataclass(frozen=True)
class _Plan:
    """Videos and rows of a part to write."""

    part: FeaturePart
    records: list[VideoRecord]
    videos: list[StoredVideo]
    crops: int
    options: EvaluateOptions
    """evaluation options with the precision and the BatchNorm folding of the network"""

    @property
    def rows(self) -> int:
        """Number of views of all videos."""
        return sum(video.clips for video in self.videos) * self.crops


class _Writer:
    """Computes the parts of a cache."""

    def __init__(
        self, model: Recognizer, experiment: Experiment, record: Record, train_views: int, maps: bool
    ) -> None:
        self.model = model
        self.record = record
        self.train_views = train_views
        self.maps = maps
        self.device = model.device
        exact = is_exact(experiment)
        evaluate = resolve_evaluation(model, experiment.evaluate, self.device, exact=exact)
        self.test = evaluate.model_copy(update={"compile": False})
        self.train = self.test.model_copy(update={"precision": experiment.train.precision})
        self.experiment = experiment.model_copy(update={"evaluate": self.test})
        self.mirror = mirror_of(record, experiment.data.augment.protocol)
        self._network: tuple[EvaluateOptions, Recognizer] | None = None

    def plan(self, part: FeaturePart) -> _Plan:
        """Read the split list of a part and count the views of its videos."""
        data, spec = self.experiment.data, self.model.spec
        records = (
            all_training_videos(self.record, spec.modality, data.split)
            if part == "train"
            else load_part(self.record, spec.modality, data.split, part)
        )
        crops = 1 if part == "train" else len(crop_views(self.test.crops, spec, self.mirror))
        videos, first = [], 0
        for video in records:
            clips = CENTRED + self.train_views
            if part == "test":
                clips = 1
                with suppress(*BROKEN):  # a video that cannot be read has no views
                    clips = len(evaluation_clips(self.test, spec, self.source.count(video), data.sampling))
            labels, frames = video.all_labels, video.num_frames
            stored = StoredVideo(
                id=video.id, labels=labels, group=video.group, num_frames=frames, first=first, clips=clips
            )
            videos.append(stored)
            first += clips * crops
        return _Plan(part, records, videos, crops, self.train if part == "train" else self.test)

    @cached_property
    def source(self) -> ClipSource:
        """The source of the frames."""
        spec = self.model.spec
        return make_source(self.record, spec.modality, self.experiment.data, spec.fps)

    def network(self, options: EvaluateOptions) -> Recognizer:
        """Return the network prepared with evaluation options; only the most recent one is kept in memory."""
        if self._network is None or self._network[0] != options:
            self._network = None
            self._network = (options, cast(Recognizer, prepare_for_inference(self.model, options)))
        return self._network[1]

    def probe(self, options: EvaluateOptions) -> tuple[FeatureLayout, str]:
        """Return the layout and the dtype of the features, found with a clip of noise."""
        network = self.network(options)
        with evaluation_mode(network), torch.inference_mode(), autocast(self.device, options.precision):
            clip = network.normalised(example_clip(network))
            found = network.features_to_store(clip, maps=self.maps)
        dtype = _joined(found).dtype
        return FeatureLayout(tuple(tuple(x.shape[1:]) for x in found)), str(dtype).removeprefix("torch.")

    def write(self, plan: _Plan, folder: Path, layout: FeatureLayout) -> PartFacts:
        """Compute and write a part."""
        _, dtype = self.probe(plan.options)
        loader = self._loader(plan)
        shape = (plan.rows, layout.width)
        rows = np.lib.format.open_memmap(folder / f"{plan.part}.npy", "w+", np.float32, shape)
        mirrored = np.zeros(plan.rows, np.bool_)
        videos = self._fill(plan, loader, rows, mirrored)
        whole = {name for name, video in videos.items() if video.complete}
        if plan.part == "train":
            self._mark(plan, mirrored, whole)
        rows.flush()
        np.save(folder / f"{plan.part}_mirrored.npy", mirrored, allow_pickle=False)
        if not whole:
            raise DataError(
                f"no video of the {plan.part} part could be read; run `two-stream check` on the data set"
            )
        skipped = {name: reason for name, reason in loader.skipped if name not in whole}
        if skipped:
            warn(
                f"{plan.part} part: {plural(len(skipped), 'video')} could not be read and are left out; the first is "
                f"{next(iter(skipped))}"
            )
        return PartFacts(
            rows=plan.rows,
            crops=plan.crops,
            precision=plan.options.precision,
            dtype=cast(Any, dtype),
            folded=plan.options.fold,
            videos=[video for video in plan.videos if video.id in whole],
            skipped=skipped,
        )

    def _fill(
        self, plan: _Plan, loader: ViewLoader, rows: NDArray[np.float32], mirrored: NDArray[np.bool_]
    ) -> dict[str, VideoProgress]:
        """Compute all views and return all videos of the loader."""
        network = self.network(plan.options)
        first = {video.id: video.first for video in plan.videos}
        videos: dict[str, VideoProgress] = {}
        canvas = Canvas(
            network,
            self.device,
            plan.options.precision,
            plan.options.batch_views or 1,
            compute=lambda x_BCTHW: _joined(network.features_to_store(x_BCTHW, maps=self.maps)),
        )
        with evaluation_mode(network), progress(f"storing {plan.part}", len(plan.videos)) as advance:
            for video in scored_views(_without_mirror(loader), videos, canvas):
                start = first[video.id]
                rows[start : start + video.views] = video.logits
                mirrored[start : start + video.views] = np.repeat(video.flips, video.clips)
                video.logits = np.zeros((0, 0), np.float32)
                advance()
        check_incomplete(videos.values(), loader)
        return videos

    def _loader(self, plan: _Plan) -> ViewLoader:
        if plan.part == "test":
            return view_loader(self.experiment.data, self.test, self.model.spec, plan.records, self.record)
        views = TrainingViews(self._clips(plan))
        return ViewLoader(views, [[n] for n in range(len(views))], collate_views, self.experiment.data)

    def _clips(self, plan: _Plan) -> list[ClipDataset]:
        """Return one data set with the centred clips and one data set for each of the first `train_views` epochs."""
        return [
            open_clips(
                self.experiment.data,
                self.model.spec,
                plan.records,
                self.record,
                seed=self.experiment.seed,
                epoch=epoch,
            )
            for epoch in (None, *range(self.train_views))
        ]

    def _mark(self, plan: _Plan, mirrored: NDArray[np.bool_], whole: Collection[str]) -> None:
        """Mark the augmented clips that are mirrored, of the videos `whole`."""
        for number, clips in enumerate(self._clips(plan)[CENTRED:], CENTRED):
            for place, video in enumerate(plan.videos):
                if video.id in whole:
                    mirrored[video.first + number] = clips.is_mirrored(place)


class TrainingViews(Dataset[VideoViews | ClipFailure]):
    """Clips of several data sets with the same videos, as views. The clips of each video are consecutive."""

    def __init__(self, clips: Sequence[ClipDataset]) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips) * len(self.clips[0])

    def __getitem__(self, index: int) -> VideoViews | ClipFailure:
        """Read a clip; if the video cannot be read, return a `ClipFailure`."""
        place, number = divmod(index, len(self.clips))
        item = self.clips[number][place]
        if isinstance(item, ClipFailure):
            return item
        frames_THWC = item.clip.permute(1, 2, 3, 0)
        count, height, width, _ = frames_THWC.shape
        return VideoViews(
            item.id,
            item.label,
            frames_THWC,
            torch.arange(count)[None],
            [(0, 0, height, width)],
            [False],
            first=number,
            total_clips=len(self.clips),
        )


def _without_mirror(loader: Iterable[VideoViews]) -> Iterator[VideoViews]:
    for item in loader:
        yield replace(item, mirror_labels=None)  # features have no classes to exchange


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.flatten(1) for part in parts], dim=1)
