"""Cells: the parts of a stream network, with what each keeps of past frames and computes for new ones.

Every map has time as its third dimension: `(B, C, n, H, W)`, or `(B, D, n)` for tokens, with n new steps. A cell
computes each of its steps once. It runs in two ways with equal results: `push` takes any number of steps and keeps the
state itself; `StepNetwork` takes a fixed number of steps and keeps the state outside.
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
"""What replaces the frames before the first: every layer's own padding, or its first input repeated."""
TIME = 2
_SLACK = 2
"""a view is kept if its tensor is at most this many times as long, otherwise it is copied"""


@dataclass(frozen=True)
class Reach:
    """Receptive field of step `i` of a map: `before` frames before frame `i * stride`, and `after` frames after it."""

    stride: int = 1
    """frames per step"""
    before: int = 0
    """frames covered before its own; padding for the first step"""
    after: int = 0
    """frames covered after its own, which it waits for"""
    endless: bool = False
    """covers everything from the first frame on (an LSTM with its own state)"""

    @property
    def receptive_field(self) -> int | None:
        """Number of frames that one step covers; None if it covers all since the first."""
        return None if self.endless else self.before + self.after + 1

    def windowed(self, span: int, step: int, front: int) -> Reach:
        """Return the reach after a window of `span` steps, moved by `step`, with `front` steps of padding."""
        before = self.before + front * self.stride
        after = self.after + (span - 1 - front) * self.stride
        return Reach(self.stride * step, before, after, self.endless)


class StreamCell(nn.Module, ABC):
    """One node of the network."""

    def reach(self, inputs: list[Reach]) -> Reach:
        """Return the reach of the output's steps, given that of the inputs."""
        return inputs[0]

    @abstractmethod
    def push(self, inputs: list[torch.Tensor | None], last: bool) -> torch.Tensor | None:
        """Take the next steps of every input (None: none) and return those that can be computed now.

        Args:
            inputs: One map per input of the node.
            last: The stream ends here, and padding follows the last step.
        """

    def reset(self) -> None:
        """Forget the stream."""

    def state_size(self) -> int:
        """Return how many numbers are kept between calls."""
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
    """A layer over windows of `span` steps, moved by `step`; `front` steps of padding precede the stream.

    Attributes:
        back: Steps of padding after the end of the stream.
        fill: Value of the padding; minus infinity for max pooling.
        start: Whether padding repeats the first (last) step instead.
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
        """Return the m outputs of `(m - 1) * step + span` inputs."""

    def reach(self, inputs: list[Reach]) -> Reach:
        """Return the input's reach, widened by the window."""
        return inputs[0].windowed(self.span, self.step, self.front)

    def pad(self, x: torch.Tensor, steps: int) -> torch.Tensor:
        """Return `steps` steps of padding; `x` is the single step next to it."""
        shape = list(x.shape)
        shape[TIME] = steps
        return x.expand(shape) if self.start == "replicate" else x.new_full(shape, self.fill)

    def close(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last inputs followed by padding."""
        if not self.back:
            return x
        return torch.cat((x, self.pad(x.narrow(TIME, x.shape[TIME] - 1, 1), self.back)), TIME)

    def push(self, inputs: list[torch.Tensor | None], last: bool) -> torch.Tensor | None:
        """Return the steps whose window is complete."""
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
        """Compute for `push`; subclasses that keep a state update it here."""
        return self.compute(x)

    def _join_kept(self, x: torch.Tensor | None) -> torch.Tensor | None:
        """Return the kept steps followed by the new ones."""
        if x is None:
            return self._kept
        if not self._begun:
            self._begun = True
            if self.front:
                self._kept = self.pad(x.narrow(TIME, 0, 1), self.front)
        return x if self._kept is None else torch.cat((self._kept, x), TIME)

    def _keep(self, full: torch.Tensor, used: int, own: bool) -> None:
        """Keep the steps after the first `used`; copy them if the tensor is not our own or much longer."""
        rest = full.shape[TIME] - used
        if rest == 0:
            self._kept = None
            return
        kept = full.narrow(TIME, used, rest)
        self._kept = kept if own and full.shape[TIME] <= _SLACK * rest else kept.clone()

    def reset(self) -> None:
        """Forget the stream."""
        self._kept, self._begun, self._skip = None, False, 0

    def state_size(self) -> int:
        """Return how many numbers are kept between calls."""
        return 0 if self._kept is None else self._kept.numel()


class Join(StreamCell):
    """A sum, product or concatenation of maps; steps of faster inputs wait for the slowest.

    Args:
        function: Computes the joined map.
        what: Name of the operation, for error messages.
    """

    def __init__(self, function: Callable[..., torch.Tensor], what: str) -> None:
        super().__init__()
        self.function = function
        self.what = what
        self._waiting: list[list[torch.Tensor]] = []
        """per input, the steps that wait, in order"""

    def reach(self, inputs: list[Reach]) -> Reach:
        """Return the widest reach of the inputs.

        Raises:
            SettingsError: They have different rates.
        """
        strides = sorted({reach.stride for reach in inputs})
        if len(strides) > 1:
            rates = " and per ".join(map(str, strides))
            raise SettingsError(
                f"this network cannot stream: {self.what} joins feature maps of different rates "
                f"(one step per {rates} frames)"
            )
        before, after = max(reach.before for reach in inputs), max(reach.after for reach in inputs)
        return Reach(strides[0], before, after, any(reach.endless for reach in inputs))

    def push(self, inputs: list[torch.Tensor | None], last: bool) -> torch.Tensor | None:
        """Join as many steps as all inputs have."""
        del last
        if not self._waiting:
            self._waiting = [[] for _ in inputs]
        for queue, x in zip(self._waiting, inputs, strict=True):
            if x is not None:
                queue.append(x)
        count = min(sum(x.shape[TIME] for x in queue) for queue in self._waiting)
        return self.function(*(_take(queue, count) for queue in self._waiting)) if count else None

    def reset(self) -> None:
        """Forget the waiting steps."""
        self._waiting = []

    def state_size(self) -> int:
        """Return how many numbers wait."""
        return sum(x.numel() for queue in self._waiting for x in queue)


def _take(queue: list[torch.Tensor], count: int) -> torch.Tensor:
    """Remove the first `count` steps from a queue; nothing is copied if they are one whole tensor."""
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
