"""Writing stored features: every view of every video through the frozen backbone once (`cache.py` reads them).

The views are those of training and evaluation, read by the same data sets and computed by the same network (folded, in
the precision of training or of evaluation), so that a head sees what it would see without the cache.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from two_stream.config.schema import EvaluateOptions, Experiment
from two_stream.data.catalog import Record, load_record
from two_stream.data.clips.dataset import ClipDataset, ClipFailure
from two_stream.data.clips.loader import centred_clips, drawn_clips
from two_stream.data.clips.views import ViewLoader, collate_views, evaluation_clips, view_loader
from two_stream.data.mirror import mirror_of
from two_stream.data.splits import load_part, not_for_test
from two_stream.errors import DataError, SettingsError
from two_stream.evaluation.features.cache import (
    CENTRED,
    FACTS,
    FeatureFacts,
    FeaturePart,
    PartFacts,
    StoredVideo,
    view_settings,
)
from two_stream.evaluation.scoring.batching import Canvas, VideoProgress, scored_views
from two_stream.evaluation.scoring.network import (
    example_clip,
    is_exact,
    prepare_for_inference,
    resolve_evaluation,
)
from two_stream.evaluation.scoring.score import check_incomplete
from two_stream.evaluation.scoring.views import crop_views
from two_stream.recognizer import Recognizer
from two_stream.runtime import distributed
from two_stream.runtime.console import note, progress, warn
from two_stream.runtime.device import autocast
from two_stream.runtime.files import replaced_folder, write_json
from two_stream.runtime.provenance import code_version, environment
from two_stream.types import FeatureLayout, VideoRecord, VideoViews

PARTS: tuple[FeaturePart, ...] = ("train", "test")
_SPARE = 64 * 2**20
"""bytes of the disk that are left alone"""


def backbone_sha256(model: Recognizer) -> str:
    """Return the SHA-256 of names and values of a backbone's weights and statistics, reduction block included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.backbone.state_dict().items()):
        if name.endswith("num_batches_tracked"):  # counts steps, changes no output
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
    """Store what a backbone gives for every video of a split; the folder is whole or absent.

    Part `train` holds, for each video of the official training list (whatever a run's holdout will be), the centred
    clip and the clips that `ClipDataset` draws in the first `train_views` epochs of a run with the experiment's seed;
    part `test` every view of `experiment.evaluate`. Training clips are computed in `train.precision`, test views in
    `evaluate.precision`.

    Args:
        model: On the device that computes; its head and classifier are not used.
        experiment: Data set, reading, augmentation, views, seed.
        out: The folder; an earlier cache there stays until the new one is whole.
        train_views: Augmented clips per training video.
        maps: Store feature maps, which heads that look at places need; else tokens.
        parts: What to store.
        overwrite: Replace a cache that is there.

    Raises:
        SettingsError: `out` is in use, there is no room on the disk, or several processes were started.
        DataError: The data set cannot be read, or a video with `data.on_error: raise`.
    """
    _check(model, experiment, out, train_views, overwrite=overwrite)
    begin = time.perf_counter()
    record = load_record(experiment.data.dataset, experiment.data.settings_root)
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
        raise SettingsError("stored features are written by one process; start it without torchrun")
    if train_views < 1:
        raise SettingsError(f"train_views is {train_views}: expected 1 or more")
    if model.options.dense:
        raise SettingsError(
            "`model.dense` classifies places without a head; there is nothing to store for it"
        )
    if experiment.train.selection == "paper":
        raise SettingsError(
            "`train.selection: paper` validates on the test list, and the centred clips of the training list are "
            "stored; set `train.selection: holdout`"
        )
    if out.exists() and not (out / FACTS).is_file() and (out.is_file() or any(out.iterdir())):
        raise SettingsError(f"{out}: holds something else than stored features; choose another --out")
    if (out / FACTS).is_file() and not overwrite:
        raise SettingsError(
            f"{out}: holds stored features already; use them, replace them with --overwrite, or choose another --out"
        )


def _check_room(plans: Sequence[_Plan], layout: FeatureLayout, out: Path) -> None:
    views = sum(plan.rows for plan in plans)
    needed = views * layout.width * 4
    videos = sum(len(plan.videos) for plan in plans)
    note(f"{videos} videos, {views} views of {layout}: {_size(needed)} in {out}")
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free - _SPARE
    if needed > free:
        raise SettingsError(
            f"{out}: stored features take {_size(needed)} and {_size(max(0, free))} are free; choose another --out, "
            "tokens in place of maps, or fewer views"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@dataclass(frozen=True)
class _Plan:
    """What will be stored of a part."""

    part: FeaturePart
    records: list[VideoRecord]
    videos: list[StoredVideo]
    crops: int
    options: EvaluateOptions
    """precision and folding of the network"""

    @property
    def rows(self) -> int:
        """Views of all videos."""
        return sum(video.clips for video in self.videos) * self.crops


class _Writer:
    """Computes the parts of one cache."""

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
        """Read a list and count its views."""
        data, spec = self.experiment.data, self.model.spec
        records = (
            not_for_test(self.record, spec.modality, data.split)
            if part == "train"
            else load_part(self.record, spec.modality, data.split, part)
        )
        crops = 1 if part == "train" else len(crop_views(self.test, spec, self.mirror))
        videos, first = [], 0
        for video in records:
            clips = CENTRED + self.train_views
            if part == "test":
                clips = len(evaluation_clips(self.test, spec, video.num_frames, data.sampling))
            videos.append(
                StoredVideo(
                    id=video.id,
                    labels=video.all_labels,
                    group=video.group,
                    num_frames=video.num_frames,
                    first=first,
                    clips=clips,
                )
            )
            first += clips * crops
        return _Plan(part, records, videos, crops, self.train if part == "train" else self.test)

    def network(self, options: EvaluateOptions) -> Recognizer:
        """Return the network as evaluation prepares it; one at a time is held."""
        if self._network is None or self._network[0] != options:
            self._network = None
            self._network = (options, cast(Recognizer, prepare_for_inference(self.model, options)))
        return self._network[1]

    def probe(self, options: EvaluateOptions) -> tuple[FeatureLayout, str]:
        """Return what a view gives and in which type, seen on a clip of noise."""
        network = self.network(options)
        training = network.training
        network.eval()
        clip = example_clip(network)
        with torch.inference_mode(), autocast(self.device, options.precision):
            found = network.features_to_store(network.normalised(clip), maps=self.maps)
        network.train(training)
        dtype = _joined(found).dtype
        return FeatureLayout(tuple(tuple(x.shape[1:]) for x in found)), str(dtype).removeprefix("torch.")

    def write(self, plan: _Plan, folder: Path, layout: FeatureLayout) -> PartFacts:
        """Compute and write a part.

        Raises:
            DataError: No video could be read, or one could not and `data.on_error` is `raise`.
        """
        _, dtype = self.probe(plan.options)
        loader = self._loader(plan)
        shape = (plan.rows, layout.width)
        rows = np.lib.format.open_memmap(folder / f"{plan.part}.npy", "w+", np.float32, shape)
        mirrored = np.zeros(plan.rows, np.bool_)
        videos = self._fill(plan, loader, rows, mirrored)
        if plan.part == "train":
            self._mark(plan, mirrored)
        rows.flush()
        np.save(folder / f"{plan.part}_mirrored.npy", mirrored, allow_pickle=False)
        whole = {name for name, video in videos.items() if video.complete}
        if not whole:
            raise DataError(f"no video of the {plan.part} part could be read; see `two-stream check`")
        skipped = {name: reason for name, reason in loader.skipped if name not in whole}
        if skipped:
            warn(f"left out of the {plan.part} part: {len(skipped)} videos, first {next(iter(skipped))}")
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
        """Compute every view; return all videos that were met."""
        network = self.network(plan.options)
        first = {video.id: video.first for video in plan.videos}
        videos: dict[str, VideoProgress] = {}
        training = network.training
        network.eval()
        canvas = Canvas(
            network,
            self.device,
            plan.options.precision,
            plan.options.batch_views or 1,
            compute=lambda x_BCTHW: _joined(network.features_to_store(x_BCTHW, maps=self.maps)),
        )
        try:
            with progress(f"storing {plan.part}", len(plan.videos)) as advance:
                for video in scored_views(_unnamed(loader), videos, canvas):
                    start = first[video.id]
                    rows[start : start + video.views] = video.logits
                    mirrored[start : start + video.views] = np.repeat(video.flips, video.clips)
                    video.logits = np.zeros((0, 0), np.float32)
                    advance()
        finally:
            network.train(training)
        check_incomplete(videos.values(), loader)
        return videos

    def _loader(self, plan: _Plan) -> ViewLoader:
        if plan.part == "test":
            return view_loader(self.experiment, self.model.spec, plan.records, self.record)
        views = TrainingViews(self._clips(plan))
        return ViewLoader(
            views, [[index] for index in range(len(views))], collate_views, self.experiment.data
        )

    def _clips(self, plan: _Plan) -> list[ClipDataset]:
        """Return the centred clips and those of the first epochs, one data set each."""
        where = (self.experiment, self.model.spec, plan.records, self.record)
        return [
            centred_clips(*where),
            *(drawn_clips(*where, epoch=epoch) for epoch in range(self.train_views)),
        ]

    def _mark(self, plan: _Plan, mirrored: NDArray[np.bool_]) -> None:
        """Note which of the augmented clips are mirror images."""
        for number, clips in enumerate(self._clips(plan)[CENTRED:], CENTRED):
            for place, video in enumerate(plan.videos):
                mirrored[video.first + number] = clips.is_mirrored(place)


class TrainingViews(Dataset[VideoViews | ClipFailure]):
    """The clips of each video in several data sets over the same videos, as views: all of one video in a row."""

    def __init__(self, clips: Sequence[ClipDataset]) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips) * len(self.clips[0])

    def __getitem__(self, index: int) -> VideoViews | ClipFailure:
        """Read a clip; a broken video gives a `ClipFailure`."""
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


def _unnamed(loader: Iterable[VideoViews]) -> Iterator[VideoViews]:
    """Drop what a mirror makes of class names: features have none."""
    for item in loader:
        yield replace(item, mirror_labels=None)


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.flatten(1) for part in parts], dim=1)
