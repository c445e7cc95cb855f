"""Computes and draws the attention of a head to each time step of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from two_stream.config.schema import EvaluateOptions
from two_stream.errors import SettingsError
from two_stream.evaluation.pictures.clip import (
    BARS,
    DPI,
    GAP,
    HEADING,
    LABELS,
    STREAM,
    STYLE,
    Column,
    Steps,
    StreamClip,
    draw_bars,
    draw_film,
    film_height,
    guess_of,
    label_time,
    middle_clip,
    panel_width,
    stream_title,
    write_number,
)
from two_stream.evaluation.scoring.network import evaluation_mode
from two_stream.evaluation.scoring.video import VideoInput
from two_stream.recognizer import Recognizer
from two_stream.runtime.plotting import MUTED, plain_figures, save_figure, shades, text_on
from two_stream.video.decoding.memory import Source


@dataclass(frozen=True)
class Pathway(Steps):
    """Attention of the head on one pathway of the backbone."""

    weights: NDArray[np.float64]
    """attention weights `(H, T)` of H attention heads and T time steps; see `Head.attention`"""


@dataclass(frozen=True, kw_only=True)
class StreamAttention(StreamClip):
    """Attention of one stream in one clip of a video."""

    head: str
    """`kind` of the head"""
    class_token: bool
    """whether the weights are those of a class token; it also attends to itself, so uniform attention is 1 / (T + 1)"""
    pathways: list[Pathway]

    @property
    def whose(self) -> str:
        """Text for captions: the name of the head or of its class token."""
        return f"{self.head}'s class token" if self.class_token else f"head {self.head}"


def check_head(model: Recognizer, where: str) -> None:
    """Check that a model's heads have attention weights.

    Raises:
        SettingsError: A head has no attention weights; the message starts with `where`.
    """
    try:
        model.head.check_attention()
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from None


def read_attention(
    model: Recognizer, path: Source, options: EvaluateOptions, reading: VideoInput, names: Sequence[str]
) -> StreamAttention:
    """Compute the attention of a network for the centred view of a video's middle clip.

    Args:
        model: An RGB or flow recognizer whose head has attention weights.
        path: The video.
        options: Evaluation options. The middle clip is used, or the one before the middle if the number of clips is
            even.
        reading: Decoder, flow algorithm and sizes.
        names: Class names.

    Raises:
        SettingsError: The head has no attention weights.
        VideoError: The video cannot be read or is too short for flow.
    """
    with middle_clip(path, model.spec, options, reading) as clip:
        weights, guess = _compute_attention(model, clip.views, names)
        backbone = model.backbone
        pathways = [
            Pathway(name, [clip.numbers[step * stride :][:stride] for step in range(own.shape[1])], own)
            for name, own, stride in zip(backbone.pathways, weights, backbone.temporal_stride, strict=True)
        ]
        return StreamAttention(
            **clip.facts(pathways, guess),
            head=model.options.head.kind,
            class_token=model.head.has_class_token,
            pathways=pathways,
        )


@torch.no_grad()
def _compute_attention(
    model: Recognizer, clip_BCTHW: torch.Tensor, names: Sequence[str]
) -> tuple[list[NDArray[np.float64]], tuple[str, float]]:
    """Return the weights `(H, T)` of each pathway, and the most likely class of the clip with its probability."""
    clip_BCTHW = clip_BCTHW.to(model.device)
    weights = [one[0].double().cpu().numpy() for one in model.attention(clip_BCTHW)]
    with evaluation_mode(model):
        return weights, guess_of(model(clip_BCTHW)[0], names)


def draw_attention(out: Path, title: str, subtitle: str, streams: Sequence[StreamAttention]) -> None:
    """Draw one panel for each stream and pathway: frames, a heat map of heads and time steps, and the mean over heads.

    `out` is a PNG, PDF or SVG file that is written completely or not at all. `subtitle` is a second, smaller line.
    """
    panels = [(stream, pathway) for stream in streams for pathway in stream.pathways]
    steps = max(pathway.weights.shape[1] for _, pathway in panels)
    sizes = [
        (film_height(*one, panel_width(steps)), float(np.clip(0.26 * len(one[1].weights), 0.4, 3.2)))
        for one in panels
    ]
    height = sum(HEADING + film + heat + BARS + 2 * GAP + LABELS for film, heat in sizes)
    with plain_figures(STYLE):
        column = Column.titled(steps, height, title, subtitle)
        for (stream, pathway), (film, heat) in zip(panels, sizes):
            _panel(column, stream, pathway, film, heat)
        save_figure(column.figure, out, DPI)


def _panel(column: Column, stream: StreamAttention, pathway: Pathway, film: float, heat: float) -> None:
    steps, colour = pathway.weights.shape[1], STREAM[stream.modality][1]
    step_width = column.width / steps
    mean = pathway.weights.mean(axis=0)
    column.heading(stream, stream_title(stream, pathway, len(stream.pathways)))
    pictures = [stream.pictures[number] for number in pathway.shown]
    draw_film(column.axes(film, steps), pictures, film / step_width, int(mean.argmax()), colour)
    column.used += GAP
    image = _heat(column.axes(heat, steps), pathway, shades(colour), step_width)
    scale = column.figure.colorbar(image, cax=column.narrow(heat))
    scale.outline.set_visible(False)
    scale.ax.set_title("%", size=7.5, color=MUTED, pad=3)
    column.used += GAP
    bars = column.axes(BARS, steps)
    even = 100 / (steps + int(stream.class_token))
    draw_bars(bars, 100 * mean, even, colour, step_width, "mean")
    rest = 100 * (1 - float(pathway.weights.sum(axis=1).mean()))
    own = f"; {rest:.0f} % is the class token's attention to itself" if stream.class_token else ""
    label_time(bars, stream, pathway, step_width, own)
    column.used += LABELS


def _heat(axis: Axes, pathway: Pathway, colours: Colormap, step_width: float) -> AxesImage:
    """Draw the heat map of heads and time steps, with percentages in the cells."""
    percent_HT = 100 * pathway.weights
    heads, steps = percent_HT.shape
    top = max(float(percent_HT.max()), 200 / (steps + 1))  # uniform attention stays pale
    image = axis.imshow(
        percent_HT, cmap=colours, vmin=0, vmax=top, aspect="auto", interpolation="nearest", resample=False
    )
    for head, step in np.ndindex(heads, steps):
        value = float(percent_HT[head, step])
        tint = text_on(colours(value / top))
        write_number(axis, (step, head), value, step_width, color=tint, va="center")
    axis.set_yticks(range(heads), [f"head {head + 1}" for head in range(heads)])
    axis.set_xticks([])
    axis.set_xticks(np.arange(steps - 1) + 0.5, minor=True)
    axis.set_yticks(np.arange(heads - 1) + 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=0.8)
    axis.tick_params(which="minor", length=0)
    axis.spines[:].set_visible(False)
    return image
