"""Batches of clips as the settings of an experiment ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from two_stream.config.schema import Experiment
from two_stream.data.catalog import Record
from two_stream.data.clips.dataset import open_clips
from two_stream.data.clips.loader import Loader, clip_loader
from two_stream.types import Batch, InputSpec, VideoRecord


def train_batches(
    settings: Experiment,
    spec: InputSpec,
    videos: Sequence[VideoRecord],
    record: Record,
    *,
    epoch: int,
    **more: Any,
) -> Loader[Batch]:
    """The batches of a training epoch."""
    clips = open_clips(settings.data, spec, videos, record, seed=settings.seed, epoch=epoch)
    return clip_loader(clips, settings.train.batch_size, **more)


def centred_batches(
    settings: Experiment, spec: InputSpec, videos: Sequence[VideoRecord], record: Record, **more: Any
) -> Loader[Batch]:
    """The centred clips of the videos."""
    return clip_loader(open_clips(settings.data, spec, videos, record), settings.train.batch_size, **more)
