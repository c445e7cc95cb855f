"""The interface of frame sources, and the reading of a clip.

Every source gives uint8 `(T, H, W, C)` frames by 1-based number, resized to the input specification. Flow frame n lies
between the images n and n + 1, whether it is stored or computed on the fly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from two_stream.types import Frames, InputSpec, Modality, VideoRecord
from two_stream.video.region import Region


class ClipSource(ABC):
    """Reads frames of a data set's videos in one modality."""

    def __init__(self, modality: Modality) -> None:
        self.modality = modality

    @abstractmethod
    def read(
        self, video_id: str, numbers: Sequence[int], resize: tuple[int, int], region: Region | None = None
    ) -> Frames:
        """Return the frames of these numbers (1-based, any order, repeats allowed), each distinct one read once.

        Args:
            video_id: Id of the video in the split list.
            numbers: Frame numbers of the modality.
            resize: Height and width of whole frames.
            region: Part of the frames to return, and its size; None returns whole frames.

        Returns:
            uint8 `(len(numbers), H, W, C)`, contiguous; height and width are those of the region, otherwise
            `resize`; C is 3 for RGB, 2 for flow.

        Raises:
            VideoError: Missing, damaged or too short, with the file's name.
        """


def read_clip(
    source: ClipSource,
    record: VideoRecord,
    numbers: Sequence[int],
    spec: InputSpec,
    region: Region | None = None,
) -> Frames:
    """Return the frames of these numbers as they enter a network, uint8 `(len(numbers), H, W, spec.channels)`.

    A frame of a network with `spec.stack` contains the flow fields of `stacked_numbers`; see `ClipSource.read`.
    """
    if spec.stack == 1:
        return source.read(record.id, numbers, spec.resize, region)
    fields = [field for number in numbers for field in stacked_numbers(number, spec.stack, record.num_frames)]
    frames = source.read(record.id, fields, spec.resize, region)
    _, height, width, channels = frames.shape
    stacks = frames.reshape(len(numbers), spec.stack, height, width, channels).transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(stacks.reshape(len(numbers), height, width, spec.channels))


def stacked_numbers(number: int, stack: int, last: int) -> list[int]:
    """Return the flow fields of one stack: `stack` neighbours from `number` on, shifted back at the end of a video.

    A video with fewer fields repeats its last one.
    """
    first = max(1, min(number, last - stack + 1))
    return [min(first + place, last) for place in range(stack)]
