"""Converts a clip network to a stream network with the same weights, without training.

Source of the idea: Hedegaard and Iosifidis, "Continual 3D Convolutional Neural Networks for Real-time Processing of
Videos" (arXiv 2106.00050). Their networks compute every product of a kernel with a frame when the frame arrives and add
them up later; ours keep the frames and compute each output once.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from two_stream.errors import SettingsError
from two_stream.profiling.costs import meta_model
from two_stream.recognizer import Recognizer
from two_stream.streaming.network.cells import TIME, Start
from two_stream.streaming.network.graph import Builder, LayerNode, add_backbone
from two_stream.streaming.network.heads import add_heads
from two_stream.streaming.network.layers import CellChoice, Squeeze


class StreamRecognizer(nn.Module):
    """Takes the next frames of one stream, or of a batch of streams; made by `convert`.

    Prediction `j` is for the window that begins at frame `j * stride`, and is made at frame `delay + j * stride`, both
    counted from 0. The memory kept between calls does not grow with the stream.

    Attributes:
        model: The clip network, with shared weights.
        delay: Frames before the one at which the first prediction is made.
        stride: Frames per prediction.
        receptive_field: Frames on which a prediction depends; None if all so far (an LSTM).
        padding: Frames of the first receptive field that lie before the stream.
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
        """Forget the stream: the next frame is the first of a new one."""
        self._shape = None
        for node in self.nodes:
            node.cell.reset()

    @torch.inference_mode()
    def step(self, frames_BCTHW: torch.Tensor) -> torch.Tensor:
        """Take the next frames and return the predictions that they complete.

        Args:
            frames_BCTHW: Pixel values 0..255 (uint8 or float), `(B, C, n, H, W)` with any n: single frames of a camera
                and many frames of a file give the same results. They are `spec.stride` frames of the video apart, as
                in the model's clips.

        Returns:
            Logits `(B, m, K)`, in time order, of the classifier's type; m is 0 if no prediction is complete.

        Raises:
            SettingsError: Wrong channels or number of dimensions, or batch or size differ from the stream's.
        """
        return self._logits(frames_BCTHW.shape, self._run(self._checked(frames_BCTHW), last=False))

    @torch.inference_mode()
    def finish(self) -> torch.Tensor:
        """End the stream: return the logits `(B, m, K)` of the remaining windows, which include padding, and reset."""
        shape = (1,) if self._shape is None else self._shape
        logits = self._logits(shape, None if self._shape is None else self._run(None, last=True))
        self.reset()
        return logits

    def forward(self, frames_BCTHW: torch.Tensor) -> torch.Tensor:
        """As `step`."""
        return self.step(frames_BCTHW)

    def state_bytes(self) -> int:
        """Return the size of the state between calls, in bytes of float32 (half in bfloat16)."""
        return 4 * sum(node.cell.state_size() for node in self.nodes)

    def _checked(self, frames_BCTHW: torch.Tensor) -> torch.Tensor | None:
        x = self.model.normalised(frames_BCTHW)
        shape = (x.shape[0], *x.shape[3:])
        if self._shape not in (None, shape):
            raise SettingsError(
                f"frames (batch, height, width) {shape} do not match the stream's {self._shape}; call `reset` before a "
                "new stream"
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
        return found.to(weight.dtype)  # also under autocast


def convert(
    model: Recognizer, *, window: int | None = None, squeeze: Squeeze = "frame", start: Start = "zeros"
) -> StreamRecognizer:
    """Return a network that takes frames one by one (or many at a time) and shares the model's weights.

    The model is put into evaluation mode. Its BatchNorms may be folded and its weights in bfloat16
    (`evaluation.scoring.network.prepare_for_inference`). With zero padding, the predictions are the clip network's for
    the whole stream as one long clip, one per window; squeeze-and-excitation differs, see `squeeze`.

    Args:
        model: A trained clip network.
        window: Frames per prediction; None is the model's clip length, and for an LSTM all frames so far.
        squeeze: What squeeze-and-excitation (X3D) averages. `frame`: each frame separately, without delay; by design
            not the clip network's result. `clip`: the window that begins with the frame; each such layer waits for it.
        start: What replaces frames before the first and after the last: `zeros`, every layer's own padding as in a
            clip, or `replicate`, the first (last) input of every layer repeated.

    Raises:
        SettingsError: A layer or head cannot stream; the message names it and the reason.
    """
    if squeeze not in ("frame", "clip"):
        raise SettingsError(f"`squeeze` {squeeze!r}: expected frame or clip")
    if start not in ("zeros", "replicate"):
        raise SettingsError(f"`start` {start!r}: expected zeros or replicate")
    if window is not None and window < 1:
        raise SettingsError(f"`window` {window}: expected a number of frames, 1 or more")
    if model.cpu_only:
        raise SettingsError(
            "int8 networks cannot stream; convert the network that this one was quantized from"
        )
    model.eval()
    builder = Builder()
    choice = CellChoice(squeeze, start, window or model.spec.clip_length)
    add_heads(model, add_backbone(model.backbone, choice, builder), window, builder)
    return StreamRecognizer(model, builder.nodes)


def multiply_adds_per_prediction(
    model: Recognizer, *, window: int | None = None, squeeze: Squeeze = "frame", start: Start = "zeros"
) -> int:
    """Return the multiply-adds of one prediction of a running stream, counted on the meta device.

    The result is comparable to `profiling.multiply_adds`, which counts one clip, and so one prediction of sliding
    clips. Only the options of the model matter. The other arguments are those of `convert`.

    Raises:
        SettingsError: The model cannot stream.
    """
    twin = meta_model(model.options, model.num_classes)
    stream = convert(twin, window=window, squeeze=squeeze, start=start)
    spec = model.spec

    def frames(count: int) -> torch.Tensor:
        return torch.empty(1, spec.channels, count, *spec.size, dtype=torch.uint8, device="meta")

    stream.step(frames(stream.delay + 1))
    with FlopCounterMode(display=False) as counter:
        found = stream.step(frames(stream.stride))
    assert found.shape[1] == 1
    flops: int = counter.get_total_flops()
    return flops // 2
