"""The network on a stream: frames in, predictions out as soon as they can be known."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from two_stream.backbones import Backbone
from two_stream.backbones.library import LibraryBackbone
from two_stream.backbones.timm_net import TimmBackbone
from two_stream.errors import SettingsError
from two_stream.profiling.costs import meta_model
from two_stream.recognizer import Recognizer
from two_stream.streaming.network.cells import TIME, Start
from two_stream.streaming.network.graph import Builder, LayerNode, add_graph, add_image_network
from two_stream.streaming.network.heads import add_heads
from two_stream.streaming.network.layers import CellChoice, Squeeze


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


def convert(
    model: Recognizer, *, window: int | None = None, squeeze: Squeeze = "frame", start: Start = "zeros"
) -> StreamRecognizer:
    """Return a network that takes frames one by one (or many at a time) and shares the model's weights.

    The model is switched to evaluation. It may have its BatchNorms folded away and its weights in bfloat16
    (`evaluation.network.ready`). With zero padding the stream's predictions are those that the clip network gives of
    the whole stream as one long clip, a window of it for each; squeeze-and-excitation differs, see `squeeze`.

    Args:
        model: A trained clip network.
        window: Frames that a prediction is of, as a clip's; None is the model's clip length, and for an LSTM everything
            since the stream began.
        squeeze: What squeeze-and-excitation (X3D) averages. `frame`: each frame by itself, which costs no delay and
            differs from the clip network by design. `clip`: the window that begins with the frame; each of these
            layers waits for it.
        start: What stands for the frames before the first and behind the last: `zeros`, every layer's own padding as
            in a clip, or `replicate`, the first (last) input of every layer again and again.

    Raises:
        SettingsError: A layer or head has no stream; the message names it and says why.
    """
    for name, value, expected in (
        ("squeeze", squeeze, ("frame", "clip")),
        ("start", start, ("zeros", "replicate")),
    ):
        if value not in expected:
            raise SettingsError(f"`{name}` {value!r}: expected {' or '.join(expected)}")
    if window is not None and window < 1:
        raise SettingsError(f"`window` {window}: expected a number of frames, 1 or more")
    if model.cpu_only:
        raise SettingsError("int8 networks have no stream; convert the network that this one was made from")
    model.eval()
    builder = Builder()
    choice = CellChoice(squeeze, start, window or model.spec.clip_length)
    add_heads(model, _backbone_maps(model.backbone, choice, builder), window, builder)
    return StreamRecognizer(model, builder.nodes)


def _backbone_maps(backbone: Backbone, choice: CellChoice, builder: Builder) -> list[int]:
    """Add a backbone's cells and return the numbers of its maps."""
    if isinstance(backbone, TimmBackbone):
        return add_image_network(backbone, choice, builder)
    if isinstance(backbone, LibraryBackbone):
        raise SettingsError(
            f"backbone {backbone.options.kind} has no stream: every frame attends to all frames of its clip"
        )
    return add_graph(backbone, choice, builder)


def multiply_adds_per_prediction(
    model: Recognizer, *, window: int | None = None, squeeze: Squeeze = "frame", start: Start = "zeros"
) -> int:
    """Return the multiply-adds of one more prediction of a running stream, counted on the meta device.

    By the convention of `profiling.costs`; to be compared with `profiling.multiply_adds`, which is of one clip, and so
    of one prediction of clips that slide along.

    Args:
        model: The clip network; its options count, not its weights.
        window: As for `convert`, like the rest.
        squeeze: What squeeze-and-excitation averages.
        start: What stands for the frames before the first.

    Raises:
        SettingsError: It has no stream.
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
