"""A stream network for export: all shapes are fixed, and the state is an input and an output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from two_stream.streaming.network.cells import TIME, FrameWise, Join, WindowCell
from two_stream.streaming.network.graph import LayerNode
from two_stream.streaming.network.heads import RunningRecurrent
from two_stream.streaming.network.recognizer import StreamRecognizer

FRAMES = "frames"
LOGITS = "logits"
STEPS = "steps"
"""Names of the input of frames, the output of logits, and the first state (the number of calls)."""


@dataclass(frozen=True)
class Pace:
    """The steps of a map that each call computes: `count` steps, the first with number `call * count - lag`."""

    count: int
    lag: int
    """delay in steps; steps with a negative number have no meaning"""

    def numbers(self, calls: torch.Tensor) -> torch.Tensor:
        """Return the numbers of a call's steps, `(count,)`."""
        return calls * self.count - self.lag + torch.arange(self.count, device=calls.device)


class Ledger:
    """The states of a call: returns the old states in order (or creates them), and collects the new states."""

    def __init__(self, states: list[torch.Tensor] | None) -> None:
        self.given = states
        self.first: list[torch.Tensor] = []
        self.new: list[torch.Tensor] = []
        self.names: list[str] = []

    def take(self, name: str, first: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the next state."""
        self.names.append(name)
        if self.given is not None:
            return self.given[len(self.names) - 1]
        self.first.append(first())
        return self.first[-1]

    def put(self, state: torch.Tensor) -> None:
        """Add the new value of the state that was taken last."""
        self.new.append(state)


class StepNetwork(nn.Module):
    """Makes one prediction per call from `frames_per_step` frames and the states; also returns the new states.

    ::

        network = StepNetwork(convert(model))
        states = network.initial_states(batch=1, height=112, width=112)
        for frames_BCTHW in stream:                  # uint8 (B, C, network.frames_per_step, H, W)
            logits_BK, *states = network(frames_BCTHW, *states)

    The logits of the first `warm_up` calls have no meaning. The logits of call `warm_up + j` are prediction `j` of
    `StreamRecognizer.step`. The control flow does not depend on tensor values, so the network can be exported. The
    batch size can vary.

    Attributes:
        frames_per_step: Number of frames per call.
        warm_up: Number of calls before the first prediction.
    """

    def __init__(self, stream: StreamRecognizer) -> None:
        super().__init__()
        self.model = stream.model
        self.cells = stream.cells
        self.nodes = stream.nodes
        self.frames_per_step = stream.stride
        self.paces: list[Pace] = []
        for node in self.nodes:
            self.paces.append(self._pace(node))
        self.warm_up = self.paces[-1].lag

    def _pace(self, node: LayerNode) -> Pace:
        inputs = [self._input_pace(number) for number in node.inputs]
        lag, cell = max(pace.lag for pace in inputs), node.cell
        if isinstance(cell, WindowCell):
            lag = -((cell.front + cell.step - cell.span - lag) // cell.step)
        return Pace(self.frames_per_step // node.reach.stride, lag)

    def _input_pace(self, number: int) -> Pace:
        return Pace(self.frames_per_step, 0) if number < 0 else self.paces[number]

    @torch.no_grad()
    def initial_states(self, batch: int, height: int, width: int) -> list[torch.Tensor]:
        """Return the states before the first frame for frames of this size, in the order of `state_names`."""
        return self._begun(batch, height, width).first

    def state_names(self) -> list[str]:
        """Return the names of the states; they are based on the names of the layers."""
        return self._begun(1, *self.model.spec.size).names

    @torch.no_grad()
    def _begun(self, batch: int, height: int, width: int) -> Ledger:
        shape = (batch, self.model.spec.channels, self.frames_per_step, height, width)
        ledger = Ledger(None)
        self._advance(torch.zeros(shape, dtype=torch.uint8, device=self.model.input_scale.device), ledger)
        return ledger

    def forward(self, frames_BCTHW: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Process the next frames.

        Args:
            frames_BCTHW: uint8 `(B, C, frames_per_step, H, W)`.
            *states: The states from `initial_states` or, after the first call, from the previous call.

        Returns:
            The logits `(B, K)` and the new states.
        """
        ledger = Ledger(list(states))
        logits_BMK = self._advance(frames_BCTHW, ledger)
        return (logits_BMK[:, 0], *ledger.new)

    def _advance(self, frames_BCTHW: torch.Tensor, ledger: Ledger) -> torch.Tensor:
        calls = ledger.take(STEPS, lambda: torch.zeros(1, dtype=torch.int64, device=frames_BCTHW.device))
        ledger.put(calls + 1)
        x = self.model.normalised(frames_BCTHW)
        values: list[torch.Tensor] = []
        for place, node in enumerate(self.nodes):
            inputs = [x if number < 0 else values[number] for number in node.inputs]
            values.append(self._computed(place, node, inputs, calls, ledger))
        return values[-1]

    def _computed(
        self, place: int, node: LayerNode, inputs: list[torch.Tensor], calls: torch.Tensor, ledger: Ledger
    ) -> torch.Tensor:
        paces = [self._input_pace(number) for number in node.inputs]
        cell, name = node.cell, node.name.replace(".", "_")
        if isinstance(cell, WindowCell):
            return _windowed(cell, name, inputs[0], paces[0], self.paces[place], calls, ledger)
        if isinstance(cell, Join):
            parts = [
                _delayed(x, self.paces[place].lag - pace.lag, f"{name}_{number}", ledger)
                for number, (x, pace) in enumerate(zip(inputs, paces, strict=True))
            ]
            return cell.function(*parts)
        assert isinstance(cell, FrameWise)
        return cell.function(inputs[0])


def _windowed(
    cell: WindowCell,
    name: str,
    x: torch.Tensor,
    inside: Pace,
    outside: Pace,
    calls: torch.Tensor,
    ledger: Ledger,
) -> torch.Tensor:
    """Return the output of a window cell for one call; the past inputs that it requires are a state."""
    kept = outside.lag * cell.step + cell.front - inside.lag
    padded = cell.front > 0
    if padded and inside.lag and cell.start == "zeros":
        x = torch.where(_along_time(inside.numbers(calls) >= 0, x), x, cell.fill)
    if kept > 0:
        shape = [kept if i == TIME else size for i, size in enumerate(x.shape)]
        before = ledger.take(name, lambda: x.new_full(shape, cell.fill))
        full = torch.cat((before, x), TIME)
        if padded and cell.start == "replicate":
            full = _replicated(full, kept + inside.lag - calls * inside.count)
        ledger.put(full.narrow(TIME, inside.count, kept))
    else:
        full = x.narrow(TIME, -kept, x.shape[TIME] + kept)
    full = full.narrow(TIME, 0, (outside.count - 1) * cell.step + cell.span)
    if isinstance(cell, RunningRecurrent):
        return _run_on(cell, name, full, outside, calls, ledger)
    return cell.compute(full)


def _run_on(
    cell: RunningRecurrent, name: str, x: torch.Tensor, pace: Pace, calls: torch.Tensor, ledger: Ledger
) -> torch.Tensor:
    """Return the output of an LSTM or GRU for one call; its states do not change before the first token."""
    options = cell.head.options
    shape = (options.layers, x.shape[0], options.hidden)
    begun = pace.numbers(calls)[:1] >= 0
    old = [ledger.take(f"{name}_{what}", lambda: x.new_zeros(shape)) for what in cell.head.states]
    out, new = cell.run(x, tuple(old))
    for before, after in zip(old, new, strict=True):
        ledger.put(torch.where(begun, after, before))
    return out


def _delayed(x: torch.Tensor, steps: int, name: str, ledger: Ledger) -> torch.Tensor:
    """Return the input, delayed by `steps` steps."""
    if steps == 0:
        return x
    count = x.shape[TIME]
    shape = [steps if i == TIME else size for i, size in enumerate(x.shape)]
    full = torch.cat((ledger.take(name, lambda: x.new_zeros(shape)), x), TIME)
    ledger.put(full.narrow(TIME, count, steps))
    return full.narrow(TIME, 0, count)


def _replicated(x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Replace the steps before position `first`, where the stream starts, with the step at this position."""
    length = x.shape[TIME]
    places = torch.maximum(torch.arange(length, device=x.device), first.clamp(0, length - 1))
    return x.index_select(TIME, places)


def _along_time(flags: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return flags.view(-1, *[1] * (x.ndim - TIME - 1))
