"""Temporal heads for a stream: on a sliding window of tokens, or with a state, over all tokens so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from two_stream.errors import SettingsError
from two_stream.heads import Head
from two_stream.heads.base import space_mean
from two_stream.heads.recurrent import Recurrent
from two_stream.heads.tcn import DilatedResidual, Tcn
from two_stream.recognizer import Recognizer
from two_stream.streaming.network.cells import TIME, FrameWise, Join, Reach, Start, WindowCell
from two_stream.streaming.network.graph import Builder, concatenate_channels

States = tuple[torch.Tensor, ...]
"""States of an LSTM (hidden state and cell state) or a GRU (hidden state), each `(layers, B, hidden)`."""


class TokenWindow(WindowCell):
    """A head on the newest `span` tokens, which maps tokens `(B, D, n)` to vectors `(B, F, m)`."""

    def __init__(self, head: Callable[[torch.Tensor], torch.Tensor], span: int, step: int) -> None:
        super().__init__(span, step)
        self.head = head

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the head to each window."""
        if x.shape[TIME] == self.span:
            return self.head(x.transpose(1, 2)).unsqueeze(TIME)
        windows = x.unfold(TIME, self.span, self.step)  # (B, D, m, span)
        batch, _, count, _ = windows.shape
        return _in_time(self.head(windows.permute(0, 2, 3, 1).flatten(0, 1)), batch, count)


class MapWindow(WindowCell):
    """A head on the newest `span` steps of maps `(B, C, n, H, W)`."""

    def __init__(self, head: Head, span: int, step: int) -> None:
        super().__init__(span, step)
        self.head = head

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the pooling and the head to each window."""
        if x.shape[TIME] == self.span:
            vector: torch.Tensor = self.head(self.head.pool(x))
            return vector.unsqueeze(TIME)
        windows = x.unfold(TIME, self.span, self.step)  # (B, C, m, H, W, span)
        batch, _, count = windows.shape[:3]
        maps = windows.permute(0, 2, 1, 5, 3, 4).flatten(0, 1)
        return _in_time(self.head(self.head.pool(maps)), batch, count)


class RunningRecurrent(WindowCell):
    """An LSTM or GRU over all tokens so far, with an output after every `step` tokens."""

    def __init__(self, head: Recurrent, step: int) -> None:
        super().__init__(step, step)
        self.head = head
        self._states: States | None = None

    def reach(self, inputs: list[Reach]) -> Reach:
        """Return a reach that covers all frames so far."""
        return replace(super().reach(inputs), endless=True)

    def run(self, x: torch.Tensor, states: States | None) -> tuple[torch.Tensor, States]:
        """Return the outputs `(B, hidden, m)` for the next `m * step` tokens, and the new states."""
        out_BTD, new = self.head.run(x.transpose(1, 2), states)
        return out_BTD[:, self.step - 1 :: self.step].transpose(1, 2), new

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the outputs, starting with the first token."""
        return self.run(x, None)[0]

    def emit(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the outputs, continuing with the states of the last call."""
        out, self._states = self.run(x, self._states)
        return out

    def reset(self) -> None:
        """Forget the stream."""
        super().reset()
        self._states = None

    def state_size(self) -> int:
        """Return the number of values that are kept between calls."""
        return super().state_size() + sum(state.numel() for state in self._states or ())


class TokenConvolution(WindowCell):
    """The dilated convolution of a causal `tcn` layer over tokens `(B, D, n)`."""

    def __init__(self, layer: DilatedResidual, start: Start) -> None:
        super().__init__(layer.padding[0] + 1, front=layer.padding[0], start=start)
        self.conv = layer.dilated

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve."""
        y_BDN: torch.Tensor = self.conv(x)
        return y_BDN


class Classified(nn.Module):
    """The classifier, which maps vectors `(B, F, m)` to logits `(B, m, K)`."""

    def __init__(self, model: Recognizer) -> None:
        super().__init__()
        self.classifier = model.classifier

    def forward(self, z_BFM: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        logits_BMK: torch.Tensor = self.classifier(z_BFM.transpose(1, 2))
        return logits_BMK


class DenselyClassified(Classified):
    """The classifier for `dense`: the spatial mean of its outputs after ReLU, `(B, C, n, H, W)` to `(B, K, n)`."""

    def forward(self, z_BFM: torch.Tensor) -> torch.Tensor:
        """Return the logits of each step."""
        places_BTNC = z_BFM.flatten(3).permute(0, 2, 3, 1)
        logits_BTK = torch.relu(self.classifier(places_BTNC)).mean(2)
        return logits_BTK.transpose(1, 2)


def add_heads(
    model: Recognizer, maps: list[int], window: int | None, builder: Builder, start: Start = "zeros"
) -> None:
    """Add the nodes after the backbone. The last node returns logits `(B, m, K)`.

    Args:
        model: The clip network.
        maps: Numbers of the backbone's maps, one for each pathway.
        window: Number of frames per prediction. None means the model's clip length or, for a recurrent or causal head,
            all frames so far.
        builder: Builder that the nodes are added to.
        start: What replaces the tokens before the first one in a causal `tcn`.

    Raises:
        SettingsError: The head does not support a stream or the window.
    """
    strides = [builder.reach(number).stride for number in maps]
    tokens = model.backbone.num_tokens(window or model.spec.clip_length)
    if model.options.dense:
        if len(maps) > 1:
            raise SettingsError(
                "this network cannot stream: `model.dense` classifies two pathways together; "
                "expected one pathway"
            )
        each = builder.add("places", FrameWise(DenselyClassified(model)), maps[0])
        mean = builder.add("mean", TokenWindow(_time_mean, tokens[0], 1), each)
        builder.add("logits", FrameWise(_swap_time), mean)
        return
    vectors = []
    for place, (head, number, count) in enumerate(zip(model.heads, maps, tokens, strict=True)):
        assert isinstance(head, Head)
        name = f"head{place}"
        if head.fixed_length and count != head.tokens:
            raise SettingsError(
                f"`window` {window}: head {head.options.kind} is built for {head.tokens} tokens but would get "
                f"{count}; omit `window`, or set it to {model.spec.clip_length}"
                + (f", or set {head.other_lengths}" if head.other_lengths else "")
            )
        if len(model.standards):  # standardises the map: its spatial mean is then the standardised token
            number = builder.add(f"{name}_standard", FrameWise(model.standards[place]), number)
        if not head.needs_maps:
            number = builder.add(f"{name}_tokens", FrameWise(_tokens), number)
        step = max(strides) // strides[place]
        if isinstance(head, Tcn) and head.options.causal and window is None:
            vectors.append(_add_causal(head, name, number, step, builder, start))
            continue
        cell = _head_cell(head, count, step, running=window is None)
        vectors.append(builder.add(name, cell, number))
    joined = vectors[0]
    if len(vectors) > 1:
        joined = builder.add("vectors", Join(concatenate_channels, "the heads' vectors"), *vectors)
    builder.add("classifier", FrameWise(Classified(model)), joined)


def _head_cell(head: Head, count: int, step: int, *, running: bool) -> WindowCell:
    if head.needs_maps:
        return MapWindow(head, count, step)
    if not running or not isinstance(head, Recurrent):
        return TokenWindow(head, count, step)
    if head.options.bidirectional:
        raise SettingsError(
            f"head {head.options.kind} cannot stream with `bidirectional: true`, because it also reads from the end of "
            "the video; set `window`, so that the head reads the newest frames again for each prediction"
        )
    return RunningRecurrent(head, step)


def _add_causal(head: Tcn, name: str, number: int, step: int, builder: Builder, start: Start) -> int:
    """Add the layers of a causal `tcn`, which compute each token once, and return the number of the last node."""
    number = builder.add(f"{name}_embed", FrameWise(head.embed), number)
    for place, layer in enumerate(head.layers):
        assert isinstance(layer, DilatedResidual)
        change = builder.add(f"{name}_{place}_dilated", TokenConvolution(layer, start), number)
        change = builder.add(f"{name}_{place}_change", FrameWise(layer.change), change)
        number = builder.add(f"{name}_{place}", Join(torch.add, "a sum"), number, change)
    return (
        builder.add(name, TokenWindow(lambda x_BTD: x_BTD[:, -1], step, step), number) if step > 1 else number
    )


def _in_time(vectors: torch.Tensor, batch: int, count: int) -> torch.Tensor:
    """Reshape vectors of windows, which are ordered by stream, to `(B, F, m)`."""
    return vectors.reshape(batch, count, -1).transpose(1, 2)


def _tokens(x_BCTHW: torch.Tensor) -> torch.Tensor:
    return space_mean(x_BCTHW).transpose(1, 2)


def _time_mean(x_BTD: torch.Tensor) -> torch.Tensor:
    return x_BTD.mean(1)


def _swap_time(x_BKM: torch.Tensor) -> torch.Tensor:
    return x_BKM.transpose(1, 2)
