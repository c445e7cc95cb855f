"""A clip network on a stream: the whole clip is computed again for every prediction.

For networks that cannot be turned into one that takes a frame at a time, and to compare those that can with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from two_stream.errors import SettingsError
from two_stream.recognizer import Recognizer


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
