"""How far a step of a network sees in time, counted in frames of the stream."""

from __future__ import annotations

from dataclasses import dataclass

from two_stream.errors import SettingsError


@dataclass(frozen=True)
class Reach:
    """Step `i` of a map comes `i * stride` frames into the stream and sees `before` frames back and `after` ahead."""

    stride: int = 1
    """frames per step"""
    before: int = 0
    """frames seen before its own; of the first step they are padding"""
    after: int = 0
    """frames seen after its own: so many must be waited for"""
    endless: bool = False
    """sees everything from the first frame on (an LSTM with its own state)"""

    @property
    def receptive_field(self) -> int | None:
        """Frames that one step sees; None where it sees all there have been."""
        return None if self.endless else self.before + self.after + 1

    def windowed(self, span: int, step: int, front: int) -> Reach:
        """Return the reach behind a window of `span` steps that moves by `step`, with `front` steps of padding."""
        return Reach(
            self.stride * step,
            self.before + front * self.stride,
            self.after + (span - 1 - front) * self.stride,
            self.endless,
        )


def join_reaches(reaches: list[Reach], what: str) -> Reach:
    """Return the reach of maps that are added or put beside each other.

    Raises:
        SettingsError: They have different rates.
    """
    strides = {reach.stride for reach in reaches}
    if len(strides) > 1:
        raise SettingsError(
            f"this network has no stream: {what} joins maps of one step per "
            f"{' and per '.join(map(str, sorted(strides)))} frames"
        )
    return Reach(
        strides.pop(),
        max(reach.before for reach in reaches),
        max(reach.after for reach in reaches),
        any(reach.endless for reach in reaches),
    )
