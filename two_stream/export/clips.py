"""Clips of a run's own videos, to verify and calibrate with."""

from __future__ import annotations

import torch

from two_stream.data.clips.views import view_loader
from two_stream.errors import TwoStreamError
from two_stream.evaluation.runs.run import AnyRun
from two_stream.recognizer import Recognizer
from two_stream.types import InputSpec, Part


def run_clips(run: AnyRun[Recognizer], count: int, part: Part = "train") -> torch.Tensor | None:
    """Return the centred clips of videos of a side of the run's holdout, as evaluation would cut them.

    The test list is not touched: calibration on it would be a look at the answers.

    Args:
        run: The run.
        count: How many clips at most, from videos spread over the list.
        part: `train` or `val`.

    Returns:
        uint8 `(N, C, T, H, W)`; None where the data set is not on this machine or cannot be read.
    """
    experiment = run.experiment
    try:
        if run.record.classes != run.class_names:
            return None
        videos = run.videos(part)
        chosen = videos[:: max(1, len(videos) // count)][:count]
        # a video is its centred clip and crop
        evaluate = experiment.evaluate.model_copy(update={"views": "single", "crops": "center"})
        data = experiment.data.model_copy(update={"workers": 0, "on_error": "skip"})
        loader = view_loader(data, evaluate, run.model.spec, chosen, run.record)
        found = [views.views[:1] for views in loader]
    except (TwoStreamError, OSError):
        return None
    return torch.cat(found) if found else None


def noise_clips(spec: InputSpec, count: int, seed: int = 0) -> torch.Tensor:
    """Return clips of coloured noise, the same for a seed: slow changes in time and space on fine ones.

    White noise alone would reach most networks as one and the same grey.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, spec.channels, 4, 4, 4, generator=generator)
    size = (spec.clip_length, *spec.size)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="trilinear", align_corners=False)
    fine = torch.rand(smooth.shape, generator=generator)
    return (255 * (0.7 * smooth + 0.3 * fine)).to(torch.uint8)
