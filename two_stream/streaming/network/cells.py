"""Cells: the layers of a stream network, with the state that each layer keeps between frames.

In all maps, time is the third dimension: `(B, C, n, H, W)`, or `(B, D, n)` for tokens, with n new time steps. A cell
computes each time step once. A cell can be run in two ways with equal results. `push` takes any number of steps and
keeps the state in the cell. `StepNetwork` takes a fixed number of steps and keeps the state outside the cell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from two_stream.errors import SettingsError

Start = Literal["zeros", "replicate"]
"""What replaces the frames before the first one: each layer's own padding, or each layer's first input, repeated."""
TIME = 2
_SLACK = 2
"""a view is copied if its tensor is more than this number of times longer than the view"""


@dataclass(frozen=True)
class Reach:
    """Receptive field of step `i` of a map: frame `i * stride`, `before` frames before and `after` frames after it."""

    stride: int = 1
    """number of frames per step"""
    before: int = 0
    """number of earlier frames that a step depends on; for the first step, these frames are padding"""
    after: int = 0
    """number of later frames that a step depends on, and therefore waits for"""
    endless: bool = False
    """whether a step depends on all frames since the first one (an LSTM or GRU with its own state)"""

    @property
    def receptive_field(self) -> int | None:
        """Number of frames that a step depends on; None if it depends on all frames so far."""
        return None if self.endless else self.before + self.after + 1

    def windowed(self, span: int, step: int, front: int) -> Reach:
        """Return the reach after a window of `span` steps with stride `step` and `front` steps of padding."""
        before = self.before + front * self.stride
        after = self.after + (span - 1 - front) * self.stride
        return Reach(self.stride * step, before, after, self.endless)


class StreamCell(nn.Module, ABC):
    """A node of a stream network."""

    def reach(self, inputs: list[Reach]) -> Reach:
        """Return the reach of the output for the reaches of the inputs."""
        return inputs[0]

    @abstractmethod
    def push(self, inputs: list[torch.Tensor | None], last: bool) -> torch.Tensor | None:
        """Process the next steps of the inputs and return the output steps that can be computed now, or None.

        Args:
            inputs: One map for each input of the node; None for an input without new steps.
            last: Whether the stream ends, so that padding follows the last step.
        """

    def reset(self) -> None:
        """Forget all steps of the stream."""

    def state_size(self) -> int:
        """Return the number of values that are kept between calls."""
        return 0


class FrameWise(StreamCell):
    """A layer or function that processes each frame separately."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def push(self, inputs: list[torch.Tensor | None], last: bool) -> torch.Tensor | None:
        """Apply the function."""
        del last
        x = inputs[0]
        return None if x is None else self.function(x)


class WindowCell(StreamCell):
    """A layer on windows of `span` steps with stride `step`; `front` steps of padding precede the stream.

    Attributes:
        back: Number of steps of padding after the end of the stream.
        fill: Value of the padding; minus infinity for max pooling.
        start: Whether padding is filled with `fill` ("zeros") or repeats the first or last step ("replicate").
    """

    def __init__(
        self,
        span: int,
        step: int = 1,
        *,
        front: int = 0,
        back: int = 0,
        fill: float = 0.0,
        start: Start = "zeros",
    ) -> None:
        super().__init__()
        self.span, self.step = span, step
        self.front, self.back, self.fill, self.start = front, back, fill, start
        self._kept: torch.Tensor | None = None
        self._begun = False
        self._skip = 0

    @abstractmethod
    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Return m output steps for `(m - 1) * step + span` input steps."""

    def reach(self, inputs: list[Reach]) -> Reach:
        """Return the reach of the input, extended by the window."""
        return inputs[0].windowed(self.span, self.step, self.front)

    def pad(self, x: torch.Tensor, steps: int) -> torch.Tensor:
        """Return `steps` steps of padding; `x` is the step next to the padding."""
        shape = list(x.shape)
        shape[TIME] = steps
        return x.expand(shape) if self.start == "replicate" else x.new_full(shape, self.fill)

    def close(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last input steps, followed by padding."""
        if not self.back:
            return x
        return torch.cat((x, self.pad(x.narrow(TIME, x.shape[TIME] - 1, 1), self.back)), TIME)

    def push(self, inputs: list[torch.Tensor | None], last: bool) -> torch.Tensor | None:
        """Return the output steps whose windows are complete."""
        full = self._join_kept(inputs[0])
        if full is None:
            return None
        if last:
            full = self.close(full)
        if self._skip:
            skipped = min(self._skip, full.shape[TIME])
            self._skip -= skipped
            full = full.narrow(TIME, skipped, full.shape[TIME] - skipped)
        length = full.shape[TIME]
        count = (length - self.span) // self.step + 1 if length >= self.span else 0
        used = count * self.step
        self._skip += max(0, used - length)
        self._keep(full, min(used, length), own=full is not inputs[0])
        return self.emit(full.narrow(TIME, 0, used - self.step + self.span)) if count else None

    def emit(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the output of `push`. Subclasses with a state of their own update this state."""
        return self.compute(x)

    def _join_kept(self, x: torch.Tensor | None) -> torch.Tensor | None:
        """Return the kept steps, followed by the new steps."""
        if x is None:
            return self._kept
        if not self._begun:
            self._begun = True
            if self.front:
                self._kept = self.pad(x.narrow(TIME, 0, 1), self.front)
        return x if self._kept is None else torch.cat((self._kept, x), TIME)

    def _keep(self, full: torch.Tensor, used: int, own: bool) -> None:
        """Keep the steps after the first `used` steps.

        The steps are copied if the tensor belongs to the caller, or if it is much longer than the kept steps.
        """
        rest = full.shape[TIME] - used
        if rest == 0:
            self._kept = None
            return
        kept = full.narrow(TIME, used, rest)
        self._kept = kept if own and full.shape[TIME] <= _SLACK * rest else kept.clone()

    def reset(self) -> None:
        """Forget all steps of the stream."""
        self._kept, self._begun, self._skip = None, False, 0

    def state_size(self) -> int:
        """Return the number of values that are kept between calls."""
        return 0 if self._kept is None else self._kept.numel()


class Join(StreamCell):
    """A sum, product or concatenation of maps. Steps of inputs with less delay wait for the input with the most delay.

    Args:
        function: Function that computes the joined map.
        what: Name of the operation, for error messages.
    """

    def __init__(self, function: Callable[..., torch.Tensor], what: str) -> None:
        super().__init__()
        self.function = function
        self.what = what
        self._waiting: list[list[torch.Tensor]] = []
        """for each input, the steps that wait, in order"""

    def reach(self, inputs: list[Reach]) -> Reach:
        """Return a reach that covers the reaches of all inputs.

        Raises:
            SettingsError: The inputs have different rates.
        """
        strides = sorted({reach.stride for reach in inputs})
        if len(strides) > 1:
            rates = " and per ".join(map(str, strides))
            raise SettingsError(
                f"this network cannot stream: {self.what} joins feature maps with different rates (one step per "
                f"{rates} frames); expected equal rates"
            )
        before, after = max(reach.before for reach in inputs), max(reach.after for reach in inputs)
        return Reach(strides[0], before, after, any(reach.endless for reach in inputs))

    def push(self, inputs: list[torch.Tensor | None], last: bool) -> torch.Tensor | None:
        """Join the steps that have arrived from all inputs."""
        del last
        if not self._waiting:
            self._waiting = [[] for _ in inputs]
        for queue, x in zip(self._waiting, inputs, strict=True):
            if x is not None:
                queue.append(x)
        count = min(sum(x.shape[TIME] for x in queue) for queue in self._waiting)
        return self.function(*(_take(queue, count) for queue in self._waiting)) if count else None

    def reset(self) -> None:
        """Forget the steps that wait for other inputs."""
        self._waiting = []

    def state_size(self) -> int:
        """Return the number of values that wait for other inputs."""
        return sum(x.numel() for queue in self._waiting for x in queue)


def _take(queue: list[torch.Tensor], count: int) -> torch.Tensor:
    """Remove the first `count` steps from a queue and return them."""
    parts: list[torch.Tensor] = []
    while count:
        x = queue.pop(0)
        length = x.shape[TIME]
        if length > count:
            rest = x.narrow(TIME, count, length - count)
            queue.insert(0, rest if length <= _SLACK * (length - count) else rest.clone())
            x = x.narrow(TIME, 0, count)
        parts.append(x)
        count -= x.shape[TIME]
    return parts[0] if len(parts) == 1 else torch.cat(parts, TIME)
