"""Scoring from stored features: head and classifier over the rows of a feature cache, without a video or a backbone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from two_stream.config.schema import EvaluateOptions, Experiment
from two_stream.data.catalog import Record, mirror_of
from two_stream.errors import DataError, SettingsError
from two_stream.evaluation.features.cache import (
    FeatureCache,
    FeaturePart,
    StoredPart,
    StoredVideo,
    stored_video,
    view_settings,
)
from two_stream.evaluation.features.extract_features import backbone_sha256
from two_stream.evaluation.scoring.batching import VideoProgress
from two_stream.evaluation.scoring.processes import Skipped
from two_stream.evaluation.scoring.score import VideoScores, collected
from two_stream.recognizer import Recognizer
from two_stream.runtime import distributed
from two_stream.runtime.device import autocast
from two_stream.types import Part, VideoRecord

_BATCH = 64
"""rows of a forward pass"""
_UNCACHED = "or read the videos (`two-stream evaluate RUN --uncached`)"


class StoredViews:
    """The stored views of a part, checked against a run's network and settings.

    Attributes:
        experiment: The settings that the scores then have: views, precision and folding are the cache's.
        facts: What a score file says about where the scores come from.
    """

    def __init__(
        self, model: Recognizer, experiment: Experiment, record: Record, part: Part, precision: str
    ) -> None:
        """Open the cache that `experiment.data.features` names.

        Args:
            model: The run's network.
            experiment: Settings, `evaluate` as resolved for this device.
            record: The data set.
            part: Of the validation and the training part the centred clip and crop are stored, in the precision of
                training, and scored whatever was asked for.
            precision: As asked for; `auto` takes the cache's.

        Raises:
            SettingsError: Other views, another precision or other settings were stored; names them.
            CheckpointError: The cache is missing or damaged, or of another backbone.
        """
        assert experiment.data.features is not None
        cache = FeatureCache(experiment.data.features)
        model.check_stored(cache.layout, cache)
        settings = view_settings(model.options, model.spec, experiment.data, record, training=False)
        cache.check_settings(settings, record.classes)
        cache.check_backbone(
            backbone_sha256(model), f"give the cache that the run was trained on, {_UNCACHED}"
        )
        stored: FeaturePart = "test" if part == "test" else "train"
        self.model = model
        self.cache = cache
        self.part: StoredPart = cache.part(stored)
        self.mirror = mirror_of(record, experiment.data.augment.protocol)
        evaluate = self._evaluate(experiment.evaluate, part, precision)
        self.experiment = experiment.model_copy(update={"evaluate": evaluate})
        self.on_error = experiment.data.on_error

    @property
    def facts(self) -> dict[str, Any]:
        """Where the scores come from."""
        made = self.cache.facts
        return {
            "source": "features",
            "precision_reason": None,  # that of the cache
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
        """Return how the stored views were made, with the rest as asked."""
        facts = self.part.facts
        update: dict[str, Any] = {"precision": facts.precision, "fold": facts.folded, "compile": False}
        if part != "test":
            return options.model_copy(update={**update, "views": "single", "crops": "center"})
        if precision not in ("auto", facts.precision):
            raise SettingsError(
                f"{self.cache}: the test part was computed in {facts.precision} and `evaluate.precision` is "
                f"{precision}; give {facts.precision} or auto, {_UNCACHED}"
            )
        made = self.cache.facts.evaluate
        keys = ["views", "crops"]
        keys += ["num_clips"] if options.views == "uniform" else []
        keys += ["step"] if options.views == "sliding" else []
        wrong = [
            f"`evaluate.{key}` {made[key]} (here {getattr(options, key)})"
            for key in keys
            if made[key] != getattr(options, key)
        ]
        if wrong:
            raise SettingsError(
                f"{self.cache}: the views were stored with {', '.join(wrong)}; give the same, write the cache anew, "
                f"{_UNCACHED}"
            )
        return options.model_copy(update=update)

    def score(self, records: Sequence[VideoRecord], aggregate: str) -> tuple[VideoScores, Skipped]:
        """Score the videos of a list; of several processes the main one scores them all.

        Returns:
            The scores, and the videos that could not be read when the cache was written.

        Raises:
            DataError: A video is not stored; or could not be read and `data.on_error` is `raise`.
        """
        found: list[tuple[VideoRecord, StoredVideo]] = []
        skipped: Skipped = []
        for record in records if distributed.is_main() else []:
            video = stored_video(self.cache, self.part, record)
            if video is not None:
                found.append((record, video))
                continue
            reason = self.part.facts.skipped[record.id]
            if self.on_error == "raise":
                raise DataError(
                    f"video {record.id!r} could not be read when {self.cache} was written: {reason}"
                )
            skipped.append((record.id, reason))
        training = self.model.training
        self.model.eval()
        try:
            scores = collected(
                self._videos(found),
                aggregate=aggregate,
                keep_views=self.experiment.evaluate.keep_views,
                total=len(found),
            )
        finally:
            self.model.train(training)
        return scores, skipped

    def _videos(self, found: Sequence[tuple[VideoRecord, StoredVideo]]) -> Iterator[VideoProgress]:
        """Yield every video with the logits of its views; those of neighbours are computed together."""
        waiting: list[tuple[VideoProgress, range]] = []
        for record, stored in found:
            video, rows = self._video(record, stored)
            waiting.append((video, rows))
            if sum(len(each) for _, each in waiting) >= _BATCH:
                yield from self._filled(waiting)
                waiting = []
        if waiting:
            yield from self._filled(waiting)

    def _video(self, record: VideoRecord, stored: StoredVideo) -> tuple[VideoProgress, range]:
        if self.part.name == "train":
            return VideoProgress(record.id, record.label, 1, 1, flips=[False]), range(
                stored.first, stored.first + 1
            )
        crops = self.part.facts.crops
        rows = range(stored.first, stored.first + stored.clips * crops)
        flips = [bool(flag) for flag in self.part.mirrored[rows.start : rows.stop : stored.clips]]
        video = VideoProgress(record.id, record.label, stored.clips, crops, flips=flips)
        video.mirror_labels = self.mirror.labels
        return video, rows

    def _filled(self, waiting: Sequence[tuple[VideoProgress, range]]) -> Iterator[VideoProgress]:
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
