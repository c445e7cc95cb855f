"""Compares an exported file with its model, on clips of the run's videos or on noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from two_stream.data.clips.views import view_loader
from two_stream.errors import ExportError, TwoStreamError
from two_stream.evaluation.runs.run import AnyRun
from two_stream.export.card import Verified
from two_stream.export.graph import Exportable, Session
from two_stream.recognizer import Recognizer
from two_stream.types import InputSpec, Part

TOLERANCE = 1e-4
"""Largest allowed difference of logits, relative to the model's largest logit on the same clips."""
AGREEMENT = 0.5
"""Fraction of clips on which an int8 network must predict the same class; below it the scales are wrong."""
ENOUGH = 10
"""Smallest number of clips for which that fraction is checked."""
BATCHES = (1, 3)
"""Batch sizes of the comparison: 1, which compilers may treat as a constant, and an odd one."""


@dataclass(frozen=True)
class Compared:
    """Logits `(N, K)` of the model and of the exported file for the same clips."""

    model: torch.Tensor
    exported: torch.Tensor

    @property
    def difference(self) -> float:
        """Largest absolute difference of logits; infinite if a logit is NaN."""
        worst = float((self.model - self.exported).abs().max())
        return worst if worst == worst else float("inf")

    @property
    def relative(self) -> float:
        """Largest difference divided by the largest logit of the model."""
        scale = float(self.model.abs().max())
        return self.difference / scale if scale else (0.0 if self.difference == 0 else float("inf"))

    @property
    def agreement(self) -> float:
        """Fraction of clips for which the file and the model predict the same class."""
        return float((self.model.argmax(1) == self.exported.argmax(1)).float().mean())

    def verified(self, clips: str, limit: float | None = TOLERANCE) -> Verified:
        """Return the result for the card.

        Args:
            clips: Description of the clips.
            limit: Largest relative difference; None for int8, where the classes must agree.

        Raises:
            ExportError: The difference is larger.
        """
        if limit is None and self.agreement < AGREEMENT and len(self.model) >= ENOUGH:
            raise ExportError(
                "the int8 network predicts the same class as the model for only "
                f"{100 * self.agreement:.0f} % of {len(self.model)} clips; the "
                "network may not be suitable for 8 bits, or the calibration clips may not be "
                "representative; export in fp32"
            )
        if limit is not None and not self.relative <= limit:
            raise ExportError(
                f"the logits of the exported network differ by {self.difference:.3g}, which is {self.relative:.1e} "
                f"of the largest logit: expected at most {limit:.0e}; no file was written"
            )
        return Verified(
            clips=clips,
            largest_difference=self.difference,
            relative=self.relative,
            limit=limit,
            agreement=self.agreement,
        )


def compare(session: Session, exportable: Exportable, clips: torch.Tensor) -> Compared:
    """Compute the logits of clips `(N, C, T, H, W)` with the model and with the file, in batches of two sizes."""
    model, exported = [], []
    first, rest = clips[: BATCHES[0]], clips[BATCHES[0] :]
    for batch in (first, *(part for part in torch.split(rest, BATCHES[1]) if len(part))):
        model.append(exportable.run((batch,))[0])
        exported.append(session((batch,))[0])
    return Compared(torch.cat(model).float(), torch.cat(exported).float())


def compare_steps(
    session: Session,
    exportable: Exportable,
    steps: Sequence[torch.Tensor],
    states: tuple[torch.Tensor, ...],
    warm_up: int = 0,
) -> Compared:
    """Compute consecutive steps of frames `(B, C, S, H, W)` with the step network and with the file.

    The network and the file start from the initial `states`, and then each of them uses its own new states. The logits
    of the first `warm_up` steps are not compared.
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


def run_clips(run: AnyRun[Recognizer], count: int, part: Part = "train") -> torch.Tensor | None:
    """Return centred clips of videos of the training list, cropped as in evaluation. The test list is never used.

    Args:
        run: The run.
        count: Largest number of clips; their videos are spread over the list.
        part: `train` or `val`, the two sides of the holdout.

    Returns:
        uint8 `(N, C, T, H, W)`; None if the data set is missing or cannot be read.
    """
    experiment = run.experiment
    evaluate = experiment.evaluate.model_copy(update={"views": "single", "crops": "center"})
    data = experiment.data.model_copy(update={"workers": 0, "on_error": "skip"})
    try:
        if run.record.classes != run.class_names:
            return None
        videos = run.videos(part)
        chosen = videos[:: max(1, len(videos) // count)][:count]
        loader = view_loader(data, evaluate, run.model.spec, chosen, run.record)
        found = [views.views[:1] for views in loader]
    except (TwoStreamError, OSError):
        return None
    return torch.cat(found) if found else None


def noise_clips(spec: InputSpec, count: int, seed: int = 0) -> torch.Tensor:
    """Return uint8 clips `(N, C, T, H, W)` of coloured noise, which depend only on the seed.

    Low frequencies are added, because most networks would average white noise to a constant grey.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, spec.channels, 4, 4, 4, generator=generator)
    size = (spec.clip_length, *spec.size)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="trilinear", align_corners=False)
    fine = torch.rand(smooth.shape, generator=generator)
    return (255 * (0.7 * smooth + 0.3 * fine)).to(torch.uint8)
