"""One network in a pipeline: frames in, and what it says of which window."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from two_stream.data.clips.transforms import view_spec
from two_stream.errors import SettingsError, TwoStreamError
from two_stream.evaluation.scoring.video import VideoInput, picture_at
from two_stream.evaluation.scoring.views import crop_views
from two_stream.recognizer import Recognizer
from two_stream.runtime.device import autocast
from two_stream.types import InputSpec
from two_stream.video.decoding.base import Image
from two_stream.video.flow import to_gray
from two_stream.video.region import Region, fit_frame


class StreamNetwork(Protocol):
    """A network that takes a stream: `StreamRecognizer`, or a clip network over sliding windows."""

    @property
    def delay(self) -> int:
        """Number, from 0, of the frame after which the first prediction is there."""

    @property
    def stride(self) -> int:
        """Frames from one prediction to the next."""

    def step(self, frames_BCTHW: torch.Tensor) -> torch.Tensor:
        """Take the next frames, uint8 `(1, C, n, H, W)`, and return the logits `(1, m, K)` that they complete."""

    def finish(self) -> torch.Tensor:
        """Return the logits `(1, m, K)` of the windows that the end of the stream completes, and forget it."""

    def reset(self) -> None:
        """Forget everything seen."""


@dataclass(frozen=True)
class NetworkTrack:
    """One network and how frames reach it."""

    name: str
    """`rgb` or `flow`"""
    network: StreamNetwork
    prepare: Callable[[Image | None, Image], torch.Tensor]
    """previous and present picture to what the network sees of them, uint8 `(C, H, W)`"""
    every: int = 1
    """source frames per frame of the network"""
    pairs: bool = False
    """it needs the previous picture"""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"
    """autocast type"""

    def wants(self, index: int) -> bool:
        """Whether the frame of this number, from 0 since the source was opened, is one of the network's."""
        index -= int(self.pairs)
        return index >= 0 and index % self.every == 0


@dataclass(frozen=True)
class WindowLogits:
    """What a network says of one window."""

    logits: NDArray[np.float64]
    """`(K,)`"""
    first: int
    """number of the source frame the window begins with"""


class Track:
    """Counts the frames of a network, so that each prediction is known by its window."""

    def __init__(self, stream: NetworkTrack) -> None:
        self.stream = stream
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.stream.network.reset()
        self._fed = 0
        self._numbers: deque[int] = deque(maxlen=self.stream.network.delay + 1)

    def warm_up(self, size: tuple[int, int], channels: int) -> None:
        """Send a few frames through, so that the first ones that count find kernels chosen and memory there."""
        for count in (8, 1, 1):
            frames_BCTHW = torch.zeros(1, channels, count, *size, dtype=torch.uint8)
            self._computed(partial(self.stream.network.step, frames_BCTHW.to(self.stream.device)))
        self.reset()

    def step(self, numbers: Sequence[int], pictures: Sequence[torch.Tensor]) -> dict[int, WindowLogits]:
        """Give the network its next frames.

        Args:
            numbers: Of the source frames.
            pictures: What the network sees of them, uint8 `(C, H, W)`.

        Returns:
            What it says, by the place of the frame that completes it.

        Raises:
            TwoStreamError: The network does not keep to its delay and stride.
        """
        stream, network = self.stream, self.stream.network
        frames_BCTHW = torch.stack(list(pictures), dim=1)[None].to(stream.device)
        logits_MK = self._computed(lambda: network.step(frames_BCTHW))
        due = []
        for place, number in enumerate(numbers):
            self._numbers.append(number)
            past = self._fed - network.delay
            self._fed += 1
            if past >= 0 and past % network.stride == 0:
                due.append((place, self._numbers[0]))
        if len(due) != len(logits_MK):
            raise TwoStreamError(
                f"{stream.name}: the network gave {len(logits_MK)} predictions where {len(due)} were due"
            )
        return {place: WindowLogits(row, first) for (place, first), row in zip(due, logits_MK, strict=True)}

    def finish(self) -> list[WindowLogits]:
        """Return what the end of the stream completes; windows begin where frames came, or where they should have."""
        network = self.stream.network
        logits_MK = self._computed(network.finish)
        done = max(0, -(-(self._fed - network.delay) // network.stride))
        held, last = list(self._numbers), self._fed - len(self._numbers)
        found = []
        for place, row in enumerate(logits_MK):
            at = (done + place) * network.stride - last  # among the frames still known by number
            found.append(WindowLogits(row, held[at] if 0 <= at < len(held) else held[-1]))
        return found

    def _computed(self, work: Callable[[], torch.Tensor]) -> NDArray[np.float64]:
        stream = self.stream
        with torch.inference_mode(), autocast(stream.device, stream.precision):
            found: NDArray[np.float64] = work()[0].double().cpu().numpy()
        return found


class SlidingRecognizer:
    """Keeps the last clip of a stream and predicts every `stride` frames; a clip is what it is anywhere else.

    Attributes:
        delay: Number, from 0, of the frame that completes the first clip.
        stride: Frames from one clip to the next.
        receptive_field: Frames from the first to the last of a clip.
    """

    def __init__(
        self, model: Recognizer, stride: int | None = None, picked: Sequence[int] | None = None
    ) -> None:
        """Wrap a model.

        Args:
            model: In evaluation mode.
            stride: Frames between the starts of clips; None: half a clip.
            picked: Which frames from the first on make a clip, ascending from 0; None: all, one after the other.

        Raises:
            SettingsError: The stride is none.
        """
        length = model.spec.clip_length if picked is None else picked[-1] + 1
        self.model = model
        self.picked = None if picked is None else torch.tensor(picked)
        self.stride = max(1, length // 2) if stride is None else stride
        if self.stride < 1:
            raise SettingsError(f"the step of sliding clips is {self.stride} frames: expected 1 or more")
        self.delay, self.receptive_field = length - 1, length
        self._held: torch.Tensor | None = None
        self._skip = 0

    def reset(self) -> None:
        """Forget everything seen."""
        self._held, self._skip = None, 0

    def step(self, frames_BCTHW: torch.Tensor) -> torch.Tensor:
        """Take the next frames, uint8 `(B, C, n, H, W)`, and return the logits `(B, m, K)` of clips now complete."""
        if self._skip:  # a stride longer than the clip leaves frames out
            left = min(self._skip, frames_BCTHW.shape[2])
            frames_BCTHW, self._skip = frames_BCTHW[:, :, left:], self._skip - left
        held = frames_BCTHW if self._held is None else torch.cat((self._held, frames_BCTHW), dim=2)
        logits = []
        while held.shape[2] >= self.receptive_field:
            clip = held[:, :, : self.receptive_field]
            if self.picked is not None:
                clip = clip.index_select(2, self.picked.to(clip.device))
            logits.append(self.model(clip))
            self._skip += max(0, self.stride - held.shape[2])
            held = held[:, :, self.stride :]
        self._held = held.clone()  # not a view that keeps the chunk alive
        return torch.stack(logits, dim=1) if logits else self._none(len(frames_BCTHW))

    def finish(self) -> torch.Tensor:
        """Return `(B, 0, K)`, for the end of a stream completes no clip, and forget it."""
        batch = 1 if self._held is None else len(self._held)
        self.reset()
        return self._none(batch)

    def _none(self, batch: int) -> torch.Tensor:
        return torch.zeros(batch, 0, self.model.num_classes)


class Prepare:
    """Resizes a picture as the run's frames were, or computes the flow to it, and cuts the centre out.

    Not for several threads at once.
    """

    def __init__(self, spec: InputSpec, reading: VideoInput) -> None:
        """Set up.

        Args:
            spec: What the network expects.
            reading: Sizes, and the flow algorithm of a flow network.
        """
        self.spec = spec = view_spec(spec, "center", whole=reading.whole_frame)
        self.reading = reading
        (view,) = crop_views("center", spec, reading.mirror)
        box = view.box
        self._region = Region(box, (box[2] - box[0], box[3] - box[1]))
        self._estimator = reading.estimator() if spec.modality == "flow" else None
        self._last: tuple[Image, Image] | None = None

    def __call__(self, previous: Image | None, picture: Image) -> torch.Tensor:
        """Return uint8 `(C, *spec.size)`.

        Args:
            previous: The picture before, for flow.
            picture: RGB `(H, W, 3)`.
        """
        if self._estimator is None:
            seen = picture_at(picture, self.reading)
        else:
            assert previous is not None
            if previous.shape != picture.shape:  # the source changed its size between the two
                previous = np.asarray(cv2.resize(previous, picture.shape[1::-1]), np.uint8)
            seen = self._estimator(self._gray(previous), self._gray(picture))
        cut = fit_frame(seen, self.spec.resize, self._region)
        return torch.from_numpy(np.ascontiguousarray(cut.transpose(2, 0, 1)))

    def _gray(self, picture: Image) -> Image:
        """Return the grey picture that flow is computed on; of two neighbours the first is known from last time."""
        if self._last is not None and self._last[0] is picture:
            return self._last[1]
        made = to_gray(picture_at(picture, self.reading))
        self._last = (picture, made)
        return made
