"""The networks of a live pipeline: preparing their input and computing their predictions."""

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
from two_stream.video.frames import Region, fit_frame


class StreamNetwork(Protocol):
    """A network for a stream of frames: a `StreamRecognizer`, or a clip network on sliding windows."""

    @property
    def delay(self) -> int:
        """Number (from 0) of the frame that completes the first prediction."""

    @property
    def stride(self) -> int:
        """Number of frames from one prediction to the next."""

    def step(self, frames_BCTHW: torch.Tensor) -> torch.Tensor:
        """Process the next frames, uint8 `(1, C, n, H, W)`, and return the complete predictions, `(1, m, K)`."""

    def finish(self) -> torch.Tensor:
        """End the stream: return the logits `(1, m, K)` of the remaining windows, and reset the network."""

    def reset(self) -> None:
        """Forget all frames."""


@dataclass(frozen=True)
class WindowLogits:
    """A network's prediction for one window."""

    logits: NDArray[np.float64]
    """logits `(K,)`"""
    first: int
    """number of the window's first frame in the source"""


@dataclass
class NetworkTrack:
    """A network of the pipeline. The frames are counted in order to assign each prediction to a window."""

    name: str
    """name of the network: `rgb` or `flow`"""
    network: StreamNetwork
    prepare: Callable[[Image | None, Image], torch.Tensor]
    """function that computes the network's input, uint8 `(C, H, W)`, from the previous and the current image"""
    every: int = 1
    """number of source frames for each frame of the network"""
    fps: float | None = None
    """frames per second at which the source is seen; None: every frame of the source"""
    pairs: bool = False
    """whether the network requires the previous image"""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"
    """autocast precision"""

    def wants(self, index: int) -> bool:
        """Return whether the network uses a source frame; `index` counts frames from 0 since the source was opened."""
        index -= int(self.pairs)
        return index >= 0 and index % self.every == 0

    def reset(self) -> None:
        """Start a new stream."""
        self.network.reset()
        self._fed = 0
        self._numbers: deque[int] = deque(maxlen=self.network.delay + 1)

    def warm_up(self, size: tuple[int, int], channels: int) -> None:
        """Process a few empty frames, so that kernels are selected and memory is allocated before the first image."""
        for count in (8, 1, 1):
            frames_BCTHW = torch.zeros(1, channels, count, *size, dtype=torch.uint8)
            self._compute(partial(self.network.step, frames_BCTHW.to(self.device)))
        self.reset()

    def step(self, numbers: Sequence[int], pictures: Sequence[torch.Tensor]) -> dict[int, WindowLogits]:
        """Process the next frames.

        Args:
            numbers: Numbers of the frames in the source.
            pictures: Network input for each frame, uint8 `(C, H, W)`.

        Returns:
            The predictions. The key is the index in `numbers` of the frame that completes a prediction.

        Raises:
            TwoStreamError: The number of predictions does not match the network's delay and stride.
        """
        network = self.network
        frames_BCTHW = torch.stack(list(pictures), dim=1)[None].to(self.device)
        logits_MK = self._compute(partial(network.step, frames_BCTHW))
        due = []
        for place, number in enumerate(numbers):
            self._numbers.append(number)
            past = self._fed - network.delay
            self._fed += 1
            if past >= 0 and past % network.stride == 0:
                due.append((place, self._numbers[0]))
        if len(due) != len(logits_MK):
            raise TwoStreamError(
                f"{self.name}: the network returned {len(logits_MK)} predictions, expected {len(due)}"
            )
        return {place: WindowLogits(row, first) for (place, first), row in zip(due, logits_MK, strict=True)}

    def finish(self) -> list[WindowLogits]:
        """End the stream and return the predictions for the remaining windows.

        If the number of a window's first frame is not stored, the number of the newest frame is used.
        """
        network = self.network
        logits_MK = self._compute(network.finish)
        done = max(0, -(-(self._fed - network.delay) // network.stride))
        held, last = list(self._numbers), self._fed - len(self._numbers)
        windows = []
        for place, row in enumerate(logits_MK):
            at = (done + place) * network.stride - last  # index among the frames whose numbers are kept
            windows.append(WindowLogits(row, held[at] if 0 <= at < len(held) else held[-1]))
        return windows

    def _compute(self, work: Callable[[], torch.Tensor]) -> NDArray[np.float64]:
        with torch.inference_mode(), autocast(self.device, self.precision):
            logits_MK: NDArray[np.float64] = work()[0].double().cpu().numpy()
        return logits_MK


class Prepare:
    """Computes a network's input from images. The result has the same pixels as a single centred view in `predict`.

    An RGB image is resized like the run's training frames; for a flow network, the flow from the previous image is
    computed. The centre is then cropped. An instance must not be used by several threads.
    """

    def __init__(self, spec: InputSpec, reading: VideoInput) -> None:
        self.spec = spec = view_spec(spec, "center", whole=reading.whole_frame)
        self.reading = reading
        (view,) = crop_views("center", spec, reading.mirror)
        box = view.box
        self._region = Region(box, (box[2] - box[0], box[3] - box[1]))
        self._estimator = reading.estimator() if spec.modality == "flow" else None
        self._last: tuple[Image, Image] | None = None

    def __call__(self, previous: Image | None, picture: Image) -> torch.Tensor:
        """Return the input, uint8 `(C, *spec.size)`, for an RGB image `(H, W, 3)`. Flow requires the previous image."""
        if self._estimator is None:
            stored = picture_at(picture, self.reading)
        else:
            assert previous is not None
            if previous.shape != picture.shape:  # the source changed its size
                previous = np.asarray(cv2.resize(previous, picture.shape[1::-1]), np.uint8)
            stored = self._estimator(self._gray(previous), self._gray(picture))
        crop = fit_frame(stored, self.spec.resize, self._region)
        return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))

    def _gray(self, picture: Image) -> Image:
        """Return the grey image from which flow is computed; the last result is cached."""
        if self._last is None or self._last[0] is not picture:
            self._last = (picture, to_gray(picture_at(picture, self.reading)))
        return self._last[1]


class SlidingRecognizer:
    """Applies a clip network to a stream: each prediction processes a complete clip.

    The class is used for networks that cannot be converted to stream networks, and for comparisons.

    Attributes:
        delay: Number (from 0) of the frame that completes the first clip.
        stride: Number of frames from one clip to the next.
        receptive_field: Number of frames from the first to the last frame of a clip.
    """

    def __init__(
        self, model: Recognizer, stride: int | None = None, picked: Sequence[int] | None = None
    ) -> None:
        """Wrap a model.

        Args:
            model: The clip network, in evaluation mode.
            stride: Number of frames from one clip to the next; None for half a clip.
            picked: Indices (from 0, ascending) of the frames of a window that form a clip; None for consecutive frames.

        Raises:
            SettingsError: The stride is less than 1.
        """
        length = model.spec.clip_length if picked is None else picked[-1] + 1
        self.model = model
        self.picked = None if picked is None else torch.tensor(picked)
        self.stride = max(1, length // 2) if stride is None else stride
        if self.stride < 1:
            raise SettingsError(f"the step of sliding clips is {self.stride} frames; expected 1 or more")
        self.delay, self.receptive_field = length - 1, length
        self.reset()

    def reset(self) -> None:
        """Forget all frames."""
        self._held: torch.Tensor | None = None
        self._skip = 0

    def step(self, frames_BCTHW: torch.Tensor) -> torch.Tensor:
        """Process the next frames, uint8 `(B, C, n, H, W)`, and return the logits `(B, m, K)` of completed clips."""
        if self._skip:  # a stride longer than the clip skips frames
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
        self._held = held.clone()  # a view would keep the whole chunk in memory
        return torch.stack(logits, dim=1) if logits else self._no_logits(len(frames_BCTHW))

    def finish(self) -> torch.Tensor:
        """Reset the network and return no logits, `(B, 0, K)`, because incomplete clips give no prediction."""
        batch = 1 if self._held is None else len(self._held)
        self.reset()
        return self._no_logits(batch)

    def _no_logits(self, batch: int) -> torch.Tensor:
        return torch.zeros(batch, 0, self.model.num_classes)
