"""The network on a stream: frames in, predictions out as soon as they can be known."""

from __future__ import annotations

import torch
from torch import nn

from two_stream.errors import SettingsError
from two_stream.recognizer import Recognizer
from two_stream.streaming.network.cells import TIME
from two_stream.streaming.network.graph import LayerNode


class StreamRecognizer(nn.Module):
    """Takes the next frames of one stream, or of a batch of streams side by side; made by `convert`.

    Prediction `j` is of the window that begins at frame `j * stride`; it comes with frame `delay + j * stride`, both
    counted from 0. What is kept between calls does not grow with the stream.

    Attributes:
        model: The clip network, whose weights these are.
        delay: Frames that must have come before the one that brings the first prediction.
        stride: Frames per prediction.
        receptive_field: Frames that a prediction sees; None: all there have been (an LSTM).
        padding: How many of them lie before the stream at the first prediction.
    """

    def __init__(self, model: Recognizer, nodes: list[LayerNode]) -> None:
        super().__init__()
        self.model = model
        self.nodes = nodes
        self.cells = nn.ModuleList(node.cell for node in nodes)
        reach = nodes[-1].reach
        self.delay, self.stride, self.padding = reach.after, reach.stride, reach.before
        self.receptive_field = reach.receptive_field
        self._shape: tuple[int, ...] | None = None
        """(batch, height, width) of the stream"""
        self._done: list[list[int]] = [[] for _ in nodes]
        last_reader = {number: place for place, node in enumerate(nodes) for number in node.inputs}
        for number, place in last_reader.items():
            if number >= 0:
                self._done[place].append(number)

    def reset(self) -> None:
        """Forget the stream: the next frame is a first one."""
        self._shape = None
        for node in self.nodes:
            node.cell.reset()

    @torch.inference_mode()
    def step(self, frames_BCTHW: torch.Tensor) -> torch.Tensor:
        """Take the next frames and return the predictions that they bring.

        Args:
            frames_BCTHW: Pixel values 0..255 (uint8 or float), `(B, C, n, H, W)` with any n: one frame of a camera, or
                a run of many of a file, with the same results. They stand `spec.stride` frames of the video apart, as
                in the model's clips.

        Returns:
            Logits `(B, m, K)`, in time order, of the classifier's type; m is 0 while none can be known.

        Raises:
            SettingsError: Channels or number of dimensions are wrong, or batch or size differ from the stream's.
        """
        return self._logits(frames_BCTHW.shape, self._run(self._checked(frames_BCTHW), last=False))

    @torch.inference_mode()
    def finish(self) -> torch.Tensor:
        """Say that the stream has ended and return the predictions left, which see padding behind it; then `reset`.

        With them there is one for every window of the whole stream, as the clip network's padding at its end allows.

        Returns:
            Logits `(B, m, K)`.
        """
        shape = (1,) if self._shape is None else self._shape
        logits = self._logits(shape, None if self._shape is None else self._run(None, last=True))
        self.reset()
        return logits

    def forward(self, frames_BCTHW: torch.Tensor) -> torch.Tensor:
        """As `step`."""
        return self.step(frames_BCTHW)

    def state_bytes(self) -> int:
        """Return how much is kept between calls, in bytes of float32 (half in bfloat16)."""
        return 4 * sum(node.cell.state_size() for node in self.nodes)

    def _checked(self, frames_BCTHW: torch.Tensor) -> torch.Tensor | None:
        x = self.model.normalised(frames_BCTHW)
        shape = (x.shape[0], *x.shape[3:])
        if self._shape not in (None, shape):
            raise SettingsError(
                f"frames (batch, height, width) {shape} came into a stream of {self._shape}; call `reset` before "
                "another stream"
            )
        self._shape = shape
        return x if x.shape[TIME] else None

    def _run(self, x: torch.Tensor | None, last: bool) -> torch.Tensor | None:
        values: list[torch.Tensor | None] = [None] * len(self.nodes)
        for place, node in enumerate(self.nodes):
            inputs = [x if number < 0 else values[number] for number in node.inputs]
            if last or any(value is not None for value in inputs):
                values[place] = node.cell.push(inputs, last)
            for number in self._done[place]:
                values[number] = None
        return values[-1]

    def _logits(self, shape: torch.Size | tuple[int, ...], found: torch.Tensor | None) -> torch.Tensor:
        weight = self.model.classifier.weight
        if found is None:
            return weight.new_zeros((shape[0], 0, self.model.num_classes))
        return found.to(weight.dtype)  # under autocast too
