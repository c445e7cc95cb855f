"""From a decoded picture to what a network sees of it: the same pixels as `predict` with a single centred view."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from two_stream.data.clips.transforms import seen_by
from two_stream.evaluation.scoring.video import VideoInput, picture_at
from two_stream.evaluation.scoring.views import crop_views
from two_stream.types import InputSpec
from two_stream.video.decoding.base import Image
from two_stream.video.flow import gray
from two_stream.video.region import Region, fit_frame


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
        self.spec = spec = seen_by(spec, "center", whole=reading.whole_frame)
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
        made = gray(picture_at(picture, self.reading))
        self._last = (picture, made)
        return made
