"""The interface of frame sources, and functions that read a clip.

Every source returns frames with given numbers (1-based) as uint8 `(T, H, W, C)`, resized to the input specification.
Flow frame n is the flow between images n and n + 1, whether it is stored or computed on the fly.
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
        """Return the frames with these numbers (1-based, in any order); a repeated frame is read only once.

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
    """Return the frames with these numbers for a network, as uint8 `(len(numbers), H, W, spec.channels)`.

    If `spec.stack` is set, each returned frame contains the flow fields of `stacked_numbers`. See also
    `ClipSource.read`.
    """
    if spec.stack == 1:
        return source.read(record.id, numbers, spec.resize, region)
    fields = [field for number in numbers for field in stacked_numbers(number, spec.stack, record.num_frames)]
    frames = source.read(record.id, fields, spec.resize, region)
    _, height, width, channels = frames.shape
    stacks = frames.reshape(len(numbers), spec.stack, height, width, channels).transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(stacks.reshape(len(numbers), height, width, spec.channels))


def stacked_numbers(number: int, stack: int, last: int) -> list[int]:
    """Return the numbers of `stack` adjacent flow fields from `number` on, shifted back at the end of a video.

    If the video has fewer fields, the last field is repeated.
    """
    first = max(1, min(number, last - stack + 1))
    return [min(first + place, last) for place in range(stack)]
