"""Conversion of a clip network to a stream network with the same weights, without training.

The method is based on Hedegaard and Iosifidis, "Continual 3D Convolutional Neural Networks for Real-time Processing of
Videos" (arXiv 2106.00050). In the paper, networks compute the products of a kernel with a frame when the frame arrives,
and add the products later. The networks here keep the frames and compute each output once.
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
    """A network for a stream of frames, or for a batch of streams; `convert` creates such networks.

    Prediction `j` is for the window that starts at frame `j * stride`. Prediction `j` is complete at frame `delay + j *
    stride`. Frames are counted from 0. The memory that is kept between calls does not grow with the stream.

    Attributes:
        model: The clip network, which shares the weights.
        delay: Number (from 0) of the frame that completes the first prediction.
        stride: Number of frames from one prediction to the next.
        receptive_field: Number of frames that a prediction depends on; None if it depends on all frames so far (an
            LSTM).
        padding: Number of frames of the first receptive field that are before the start of the stream.
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
        """`(batch, height, width)` of the stream"""
        self._done: list[list[int]] = [[] for _ in nodes]
        last_reader = {number: place for place, node in enumerate(nodes) for number in node.inputs}
        for number, place in last_reader.items():
            if number >= 0:
                self._done[place].append(number)

    def reset(self) -> None:
        """Forget the stream; the next frame is the first frame of a new stream."""
        self._shape = None
        for node in self.nodes:
            node.cell.reset()

    @torch.inference_mode()
    def step(self, frames_BCTHW: torch.Tensor) -> torch.Tensor:
        """Process the next frames and return the predictions that they complete.

        Args:
            frames_BCTHW: Pixel values 0..255 (uint8 or float), `(B, C, n, H, W)`. The results do not depend on n, the
                number of frames per call. As in the model's clips, consecutive frames must be `spec.stride` frames of
                the video apart.

        Returns:
            Logits `(B, m, K)` of m predictions in the order of time, with the dtype of the classifier. m is 0 if no
            prediction is complete.

        Raises:
            SettingsError: The number of channels or dimensions is wrong, or the batch size or frame size differs from
                that of the stream.
        """
        return self._logits(frames_BCTHW.shape, self._run(self._checked(frames_BCTHW), last=False))

    @torch.inference_mode()
    def finish(self) -> torch.Tensor:
        """End the stream: return the logits `(B, m, K)` of the remaining windows, and reset the network.

        The remaining windows include padding.
        """
        shape = (1,) if self._shape is None else self._shape
        logits = self._logits(shape, None if self._shape is None else self._run(None, last=True))
        self.reset()
        return logits

    def forward(self, frames_BCTHW: torch.Tensor) -> torch.Tensor:
        """Call `step`."""
        return self.step(frames_BCTHW)

    def state_bytes(self) -> int:
        """Return the size in bytes of the state between calls in float32; bfloat16 takes half of this size."""
        return 4 * sum(node.cell.state_size() for node in self.nodes)

    def _checked(self, frames_BCTHW: torch.Tensor) -> torch.Tensor | None:
        x = self.model.normalised(frames_BCTHW)
        shape = (x.shape[0], *x.shape[3:])
        if self._shape not in (None, shape):
            raise SettingsError(
                f"found frames of (batch, height, width) {shape}; expected {self._shape}, as before in this "
                "stream; call `reset` before a new stream"
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
    """Convert a clip network to a stream network that shares the model's weights.

    The model is put into evaluation mode. The model may have folded BatchNorm layers and bfloat16 weights (see
    `evaluation.scoring.network.prepare_for_inference`). With `start="zeros"`, the predictions equal those of the clip
    network for the whole stream as one long clip. The exception is squeeze-and-excitation, see `squeeze`.

    Args:
        model: A trained clip network.
        window: Frames per prediction; None is the model's clip length, and for an LSTM or GRU all frames so far.
        squeeze: What squeeze-and-excitation (in X3D) averages over. With `frame`, it averages each frame separately,
            without delay; the result differs from that of the clip network. With `clip`, it averages over the window
            that starts with the frame, and each such layer waits for this window.
        start: What replaces frames before the first and after the last frame. With `zeros`, each layer pads as for a
            clip. With `replicate`, each layer repeats its first or last input.

    Raises:
        SettingsError: A layer or the head cannot stream.
    """
    if squeeze not in ("frame", "clip"):
        raise SettingsError(f"`squeeze` is {squeeze!r}; expected `frame` or `clip`")
    if start not in ("zeros", "replicate"):
        raise SettingsError(f"`start` is {start!r}; expected `zeros` or `replicate`")
    if window is not None and window < 1:
        raise SettingsError(f"`window` is {window}; expected a number of frames, 1 or more")
    if model.cpu_only:
        raise SettingsError("int8 networks cannot stream; convert the float network that was quantized")
    if model.options.modality == "rgbdiff":
        raise SettingsError(
            "a network of RGB differences cannot stream, because the first difference of each clip is repeated; use "
            "sliding clips (`two-stream stream --mode sliding`)"
        )
    model.eval()
    builder = Builder()
    choice = CellChoice(squeeze, start, window or model.spec.clip_length)
    add_heads(model, add_backbone(model.backbone, choice, builder), window, builder, start)
    return StreamRecognizer(model, builder.nodes)


def multiply_adds_per_prediction(
    model: Recognizer, *, window: int | None = None, squeeze: Squeeze = "frame", start: Start = "zeros"
) -> int:
    """Return the multiply-adds for one prediction of a running stream, counted on the meta device.

    The result can be compared with `profiling.multiply_adds`, which counts one clip and therefore one prediction of
    sliding clips. The weights of the model are not used. The other arguments are those of `convert`.

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
