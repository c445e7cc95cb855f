"""Comparing an exported file with the model it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from two_stream.errors import ExportError
from two_stream.export.card import Verified

if TYPE_CHECKING:
    from two_stream.export.graph import Exportable, Session

TOLERANCE = 1e-4
"""Largest difference of an exported network's logits, relative to the model's largest logit on the same clips."""
AGREEMENT = 0.5
"""Least share of clips on which an int8 network must find the same class: below it the scales are wrong."""
ENOUGH = 10
"""clips from which on that share says something"""
BATCHES = (1, 3)
"""Sizes that clips are sent through in: the one that compilers like to take for a constant, and an odd one."""


@dataclass(frozen=True)
class Compared:
    """Logits of the same clips."""

    model: torch.Tensor
    """`(N, K)`"""
    exported: torch.Tensor

    @property
    def difference(self) -> float:
        """The largest one; infinite where a value is not a number."""
        worst = float((self.model - self.exported).abs().max())
        return worst if worst == worst else float("inf")

    @property
    def relative(self) -> float:
        """To the largest logit of the model."""
        scale = float(self.model.abs().max())
        return self.difference / scale if scale else (0.0 if self.difference == 0 else float("inf"))

    @property
    def agreement(self) -> float:
        """Share of clips with the same likeliest class."""
        return float((self.model.argmax(1) == self.exported.argmax(1)).float().mean())

    def verified(self, clips: str, limit: float | None = TOLERANCE) -> Verified:
        """Return the facts for the card.

        Args:
            clips: What was sent through.
            limit: Largest relative difference; None for int8, where the classes must agree.

        Raises:
            ExportError: The two differ by more.
        """
        if limit is None and self.agreement < AGREEMENT and len(self.model) >= ENOUGH:
            raise ExportError(
                f"int8 finds the model's class on {100 * self.agreement:.0f} % of {len(self.model)} clips; this "
                "network does not bear 8 bits, or the calibration clips are not like these: export it in fp32"
            )
        if limit is not None and not self.relative <= limit:
            raise ExportError(
                f"the exported network gives other logits: they differ by {self.difference:.3g}, {self.relative:.1e} "
                f"of the largest ({limit:.0e} allowed); nothing was written"
            )
        return Verified(
            clips=clips,
            largest_difference=self.difference,
            relative=self.relative,
            limit=limit,
            agreement=self.agreement,
        )


def compare(session: Session, exportable: Exportable, clips: torch.Tensor) -> Compared:
    """Send clips `(N, C, T, H, W)` through the model and the file, in batches of two sizes."""
    model, exported = [], []
    for batch in batches(clips):
        model.append(exportable.run((batch,))[0])
        exported.append(session((batch,))[0])
    return Compared(torch.cat(model).float(), torch.cat(exported).float())


def batches(clips: torch.Tensor) -> Sequence[torch.Tensor]:
    """Return clips in batches: the first alone, the others by threes."""
    first, rest = clips[: BATCHES[0]], clips[BATCHES[0] :]
    return [first, *(part for part in torch.split(rest, BATCHES[1]) if len(part))]


def compare_steps(
    session: Session,
    exportable: Exportable,
    steps: Sequence[torch.Tensor],
    states: tuple[torch.Tensor, ...],
    warm_up: int = 0,
) -> Compared:
    """Send frames through the step network and the file, each with its own states from step to step.

    Args:
        session: The file.
        exportable: The step network.
        steps: Frames `(B, C, S, H, W)` of each step.
        states: What the first step gets.
        warm_up: Steps whose logits mean nothing.

    Returns:
        The logits of the steps after them, in which all states show.
    """
    ours, theirs = states, tuple(state.clone() for state in states)
    model, exported = [], []
    for frames in steps:
        logits, *ours_next = exportable.run((frames, *ours))
        found, *theirs_next = session((frames, *theirs))
        model.append(logits)
        exported.append(found)
        ours, theirs = tuple(ours_next), tuple(theirs_next)
    return Compared(torch.cat(model[warm_up:]).float(), torch.cat(exported[warm_up:]).float())
