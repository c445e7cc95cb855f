"""`two-stream predict --timeline`: the picture and the CSV file of a video's windows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from two_stream.commands.predict import PredictFlags
    from two_stream.config.schema import EvaluateOptions
    from two_stream.evaluation.run import Run
    from two_stream.evaluation.video import VideoResult


def write_timeline(
    flags: PredictFlags,
    runs: Sequence[Run],
    scored: Sequence[VideoResult],
    how: tuple[Sequence[EvaluateOptions], Sequence[str]],
    files: tuple[Path, Path],
) -> None:
    """Write `files[1]` and the CSV file beside it about the video `files[0]`."""
    from two_stream.evaluation.timeline import windows, write_csv
    from two_stream.evaluation.timeline_figure import draw_timeline

    video, picture = files
    names, fps = runs[0].class_names, scored[0].fps
    found = windows(runs, scored, *how, rule=flags.rule, weights=flags.weights)
    write_csv(picture.with_suffix(".csv"), found, names, fps, flags.top)
    streams = " and ".join("RGB" if run.model.spec.modality == "rgb" else "flow" for run in runs)
    fused = f", fused by {flags.rule}" if len(runs) > 1 else ""
    clips = {
        f"{views.views} clips of {run.model.spec.clip_length} frames" for run, views in zip(runs, how[0])
    }
    title = f"{video.name}: {streams}{fused}; {len(found)} windows, {' and '.join(sorted(clips))}"
    draw_timeline(picture, title, found, names, fps)
