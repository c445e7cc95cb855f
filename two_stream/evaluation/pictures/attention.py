"""Computes and draws the attention of a head to each time step of a clip."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from two_stream.config.schema import EvaluateOptions
from two_stream.data.clips.transforms import view_spec
from two_stream.data.clips.views import evaluation_clips
from two_stream.errors import SettingsError, VideoError, printable
from two_stream.evaluation.pictures.thumbnails import flow_picture
from two_stream.evaluation.scoring.network import evaluation_mode
from two_stream.evaluation.scoring.video import VideoInput, open_input, read_clip
from two_stream.evaluation.scoring.views import crop_views, views_of_clip
from two_stream.recognizer import Recognizer
from two_stream.runtime.plotting import (
    INK,
    MUTED,
    SERIES,
    plain_figures,
    save_figure,
    shades,
    shorten,
    text_on,
)
from two_stream.types import Frames, Modality
from two_stream.video.decoding.base import Video
from two_stream.video.decoding.memory import Source

SUFFIXES = (".png", ".pdf", ".svg")
"""File types of images."""
_THUMBNAIL = 288
"""Longer side of a thumbnail in pixels; half of it if there are many thumbnails."""
_LOUDEST = 4.0
"""Largest factor by which small movements are amplified; larger factors would show rounding errors."""
_STREAM = {"rgb": ("RGB", SERIES[0]), "flow": ("flow", SERIES[1])}
"""Name and colour (as in the report) of each stream."""
_STYLE: Any = {"font.size": 8.5, "axes.grid": False}
_LEFT, _RIGHT, _TOP = 0.72, 0.78, 0.66
"""Margins in inches for the names of the heads, the colour bar and the title."""
_HEADING, _BARS, _LABELS, _GAP = 0.52, 0.62, 0.66, 0.07
"""Heights in inches of the parts of a panel."""
_WIDTHS = 6.6, 12.0
"""Smallest and largest width of the panels in inches."""
_DPI = 144
_WIDE = 1.0
"""Smallest width in inches of a column whose label is the full span of frames."""


@dataclass(frozen=True)
class Pathway:
    """Attention of the head on one pathway of the backbone."""

    name: str
    """name of the pathway, such as `main`, `slow` or `fast`"""
    weights: NDArray[np.float64]
    """attention weights `(H, T)` of H attention heads and T time steps; see `Head.attention`"""
    frames: list[list[int]]
    """frame numbers (from 1) of each time step; its receptive field covers more frames"""

    @property
    def shown(self) -> list[int]:
        """Number of the middle frame of each step; this frame is drawn."""
        return [numbers[len(numbers) // 2] for numbers in self.frames]


@dataclass(frozen=True)
class StreamAttention:
    """Attention of one stream in one clip of a video."""

    modality: Modality
    numbers: list[int]
    """frame numbers of the clip (from 1); flow frame n is between images n and n + 1"""
    clip: int
    """number of the clip in the video, from 1"""
    clips: int
    """number of clips that the video was scored with"""
    times: NDArray[np.float64] | None
    """times in seconds of the video's images and of its end; see `Video.times`"""
    guess: tuple[str, float]
    """most likely class for the centred view of the clip, and its probability"""
    head: str
    """`kind` of the head"""
    class_token: bool
    """whether the weights are those of a class token; it also attends to itself, so uniform attention is 1 / (T + 1)"""
    pathways: list[Pathway]
    pictures: dict[int, Frames]
    """thumbnails of the network's input by frame number; RGB images, uint8 `(H, W, 3)`"""
    whole_frame: bool = False
    """whether the input is the whole frame instead of the centre crop"""
    fps: float | None = None
    """frames per second at which the network sees the video; frames are counted at this rate; None: all frames"""

    @property
    def whose(self) -> str:
        """Text for captions: the name of the head or of its class token."""
        return f"{self.head}'s class token" if self.class_token else f"head {self.head}"


def check_target(out: Path, videos: Sequence[Path], flag: str = "--attention") -> None:
    """Check that images can be written to `out`, without writing them.

    `out` must be a file for one video and a folder for several videos. `flag` is the command-line flag of `out`.

    Raises:
        SettingsError: The suffix is not one of `SUFFIXES`, or the folder is not writable.
    """
    into_folder = out.is_dir() or len(videos) > 1
    if not into_folder and out.suffix.lower() not in SUFFIXES:
        raise SettingsError(f"{flag} {out}: expected a file name ending in {', '.join(SUFFIXES)}")
    if into_folder and not out.is_dir() and out.suffix.lower() in SUFFIXES:
        raise SettingsError(
            f"{flag} {out}: expected a folder for {len(videos)} videos; use a name without {out.suffix}"
        )
    if out.is_file() and out.resolve() in {video.resolve() for video in videos}:
        raise SettingsError(f"{flag} {out}: this is the input video; choose another file name")
    folder = out if into_folder else out.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SettingsError(
            f"{flag} {out}: cannot write to {folder} ({os.strerror(error.errno or 0)}); choose another folder"
        ) from None


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
    spec = view_spec(model.spec, "center", whole=reading.whole_frame)
    with open_input(path, spec, reading) as video:
        available = video.num_frames - (spec.modality == "flow")
        if available < 1:
            raise VideoError(
                video.path,
                "has too few frames for a clip; expected at least one RGB frame, or two frames for flow",
            )
        clips = evaluation_clips(options, spec, available, reading.sampling)
        place = (len(clips) - 1) // 2
        numbers = clips[place]
        frames = read_clip(video, numbers, spec, reading)
        center = crop_views("center", spec)
        weights, guess = _compute_attention(model, views_of_clip(frames, center, spec).views, names)
        backbone = model.backbone
        pathways = [
            Pathway(name, own, [numbers[step * stride :][:stride] for step in range(own.shape[1])])
            for name, own, stride in zip(backbone.pathways, weights, backbone.temporal_stride, strict=True)
        ]
        wanted = sorted({number for pathway in pathways for number in pathway.shown})
        pictures = _thumbnails(video, dict(zip(numbers, frames)), wanted, center[0].box, spec.modality)
        times = video.times
    return StreamAttention(
        spec.modality,
        numbers,
        place + 1,
        len(clips),
        times,
        guess,
        model.options.head.kind,
        model.head.has_class_token,
        pathways,
        pictures,
        reading.whole_frame,
        spec.fps or reading.fps,
    )


@torch.no_grad()
def _compute_attention(
    model: Recognizer, clip_BCTHW: torch.Tensor, names: Sequence[str]
) -> tuple[list[NDArray[np.float64]], tuple[str, float]]:
    """Return the weights `(H, T)` of each pathway, and the most likely class of the clip with its probability."""
    clip_BCTHW = clip_BCTHW.to(model.device)
    weights = [one[0].double().cpu().numpy() for one in model.attention(clip_BCTHW)]
    with evaluation_mode(model):
        shares = model(clip_BCTHW)[0].double().softmax(0).cpu()
    best = int(shares.argmax())
    return weights, (names[best], float(shares[best]))


def _thumbnails(
    video: Video,
    frames: dict[int, Frames],
    wanted: Sequence[int],
    box: tuple[int, int, int, int],
    modality: str,
) -> dict[int, Frames]:
    """Return thumbnails of the crop by frame number; flow is shown in colours.

    The thumbnails have the aspect ratio of the video, although the network's input may have another one.
    """
    resized_height, resized_width = next(iter(frames.values())).shape[:2]
    y, x = video.height / resized_height, video.width / resized_width
    y0, x0, y1, x1 = box
    height, width = (y1 - y0) * y, (x1 - x0) * x
    scale = (_THUMBNAIL if len(wanted) <= 8 else _THUMBNAIL // 2) / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if modality == "flow":
        cut = [cv2.resize(frames[n][y0:y1, x0:x1, :2], size, interpolation=cv2.INTER_LINEAR) for n in wanted]
        return dict(zip(wanted, flow_picture(_brightened(np.stack(cut)))))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    rows, columns = slice(round(y0 * y), round(y1 * y)), slice(round(x0 * x), round(x1 * x))
    found: dict[int, Frames] = {}
    for number, picture in enumerate(video.frames(), start=1):
        if number in wanted:
            cut_HWC = np.ascontiguousarray(picture[rows, columns])
            found[number] = np.asarray(cv2.resize(cut_HWC, size, interpolation=way), np.uint8)
        if number == wanted[-1]:
            break
    return found


def _brightened(flow_THWC: Frames) -> Frames:
    """Scale stored flow by a factor of up to `_LOUDEST`, so that its longest vectors have full brightness."""
    centred = flow_THWC.astype(np.float32) - 127.5
    longest = float(np.percentile(np.hypot(centred[..., 0], centred[..., 1]), 99.5))
    factor = min(_LOUDEST, max(1.0, 127.5 / max(longest, 1.0)))
    return np.asarray(np.clip(np.rint(127.5 + factor * centred), 0, 255), np.uint8)


def draw_attention(out: Path, title: str, subtitle: str, streams: Sequence[StreamAttention]) -> None:
    """Draw one panel for each stream and pathway: frames, a heat map of heads and time steps, and the mean over heads.

    `out` is a PNG, PDF or SVG file that is written completely or not at all. `subtitle` is a second, smaller line.
    """
    panels = [(stream, pathway) for stream in streams for pathway in stream.pathways]
    width = float(np.clip(1.65 * max(pathway.weights.shape[1] for _, pathway in panels), *_WIDTHS))
    sizes = [_heights(stream, pathway, width) for stream, pathway in panels]
    height = _TOP + sum(_HEADING + film + heat + _BARS + 2 * _GAP + _LABELS for film, heat in sizes)
    with plain_figures(_STYLE):
        full = _LEFT + width + _RIGHT, height
        column = _Column(Figure(figsize=full), full, width)
        column.text(0.32, shorten(title, round(width * 8)), size=13, weight="bold")
        column.text(0.22, subtitle, color=MUTED)
        column.used = _TOP
        for (stream, pathway), (film, heat) in zip(panels, sizes):
            _panel(column, stream, pathway, film, heat)
        save_figure(column.figure, out, _DPI)


@dataclass
class _Column:
    """Arranges text and axes from top to bottom; all sizes are in inches."""

    figure: Figure
    full: tuple[float, float]
    width: float
    used: float = 0.0

    def text(self, height: float, text: str, **style: Any) -> None:
        """Write a line of text whose baseline is `height` below the current position."""
        self.used += height
        self.figure.text(_LEFT / self.full[0], 1 - self.used / self.full[1], printable(text), **style)

    def axes(self, height: float, steps: int) -> Axes:
        """Return axes over the full width, on which time step t is centred at x = t."""
        self.used += height
        axis = self.figure.add_axes(self._box(_LEFT, self.width, height))
        axis.set_xlim(-0.5, steps - 0.5)
        return axis

    def narrow(self, height: float) -> Axes:
        """Return narrow axes to the right of the last axes."""
        return self.figure.add_axes(self._box(_LEFT + self.width + 0.12, 0.11, height))

    def _box(self, left: float, width: float, height: float) -> tuple[float, float, float, float]:
        across, down = self.full
        return left / across, 1 - self.used / down, width / across, height / down


def _heights(stream: StreamAttention, pathway: Pathway, width: float) -> tuple[float, float]:
    """Return the heights in inches of the row of frames and of the heat map."""
    heads, steps = pathway.weights.shape
    rows, columns = stream.pictures[pathway.shown[0]].shape[:2]
    return min(2.2, width / steps * rows / columns), float(np.clip(0.26 * heads, 0.4, 3.2))


def _panel(column: _Column, stream: StreamAttention, pathway: Pathway, film: float, heat: float) -> None:
    steps = pathway.weights.shape[1]
    step_width = column.width / steps
    first, second = _headings(stream, pathway)
    start = column.used
    column.text(0.24, first, size=10, weight="bold")
    column.text(0.18, second, color=MUTED)
    column.used = start + _HEADING
    _film(column.axes(film, steps), stream, pathway, film / step_width)
    column.used += _GAP
    image = _heat(column.axes(heat, steps), pathway, shades(_STREAM[stream.modality][1]), step_width)
    scale = column.figure.colorbar(image, cax=column.narrow(heat))
    scale.outline.set_visible(False)
    scale.ax.set_title("%", size=7.5, color=MUTED, pad=3)
    column.used += _GAP
    bars = column.axes(_BARS, steps)
    _bars(bars, stream, pathway, step_width)
    _time(bars, stream, pathway, step_width)
    column.used += _LABELS


def _headings(stream: StreamAttention, pathway: Pathway) -> tuple[str, str]:
    """Return two lines of text that describe the stream and the clip."""
    name = _STREAM[stream.modality][0]
    part = f", {pathway.name} pathway" if len(stream.pathways) > 1 else ""
    label, share = stream.guess
    numbers = stream.numbers
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    nth = {2: "2nd", 3: "3rd"}.get(step, f"{step}th")
    every = f", every {nth}" if step > 1 else ""
    again = any(b <= a for a, b in itertools.pairwise(numbers))
    looped = f", looped to {len(numbers)}" if again else ""
    span = f"{_unit(stream)} {numbers[0]} to {max(numbers) if again else numbers[-1]}{every}{looped}"
    note = "; hue: direction, brightness: length" if stream.modality == "flow" else ""
    view = "whole frame" if stream.whole_frame else "centre crop"
    return (
        f"{name}{part}: this view alone says {shorten(label, 40)}, {100 * share:.0f} %",
        f"clip {stream.clip} of {stream.clips}, {view}: {span}{note}",
    )


def _film(axis: Axes, stream: StreamAttention, pathway: Pathway, ratio: float) -> None:
    """Draw the middle frame of each time step, with a border around the frame with the most attention.

    `ratio` is the height of the axes divided by the width of a time step.
    """
    mean = pathway.weights.mean(axis=0)
    gap = 0.02 if len(mean) <= 16 else 0.04
    for step, number in enumerate(pathway.shown):
        picture = stream.pictures[number]
        half = min(0.5, ratio * picture.shape[1] / picture.shape[0] / 2) - gap
        left, right = step - half, step + half
        axis.imshow(picture, extent=(left, right, 0, 1), aspect="auto", interpolation="lanczos")
        if step == mean.argmax():
            colour = _STREAM[stream.modality][1]
            style: Any = {"edgecolor": colour, "linewidth": 2, "fill": False, "clip_on": False}
            axis.add_patch(Rectangle((left, 0), 2 * half, 1, **style))
    axis.set(xlim=(-0.5, len(mean) - 0.5), ylim=(0, 1))
    axis.axis("off")


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
        _number(axis, (step, head), value, step_width, color=tint, va="center")
    axis.set_yticks(range(heads), [f"head {head + 1}" for head in range(heads)])
    axis.set_xticks([])
    axis.set_xticks(np.arange(steps - 1) + 0.5, minor=True)
    axis.set_yticks(np.arange(heads - 1) + 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=0.8)
    axis.tick_params(which="minor", length=0)
    axis.spines[:].set_visible(False)
    return image


def _bars(axis: Axes, stream: StreamAttention, pathway: Pathway, step_width: float) -> None:
    """Draw bars of the mean over heads, and a line at the value of uniform attention."""
    mean = 100 * pathway.weights.mean(axis=0)
    even = 100 / (len(mean) + int(stream.class_token))
    top = 1.12 * max(float(mean.max()), even)
    colour = _STREAM[stream.modality][1]
    most = int(mean.argmax())
    tints = [colour if step == most else f"{colour}66" for step in range(len(mean))]
    axis.bar(range(len(mean)), mean, width=0.8, color=tints)
    for step, value in enumerate(mean):
        tint = text_on(colour) if step == most else INK
        _number(axis, (step, 0.05 * top), float(value), step_width, color=tint, va="bottom")
    axis.axhline(even, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)), zorder=0)
    where = ((1, even), (4, 0), axis.get_yaxis_transform(), "offset points")
    axis.annotate("even share", *where, va="center", size=7.5, color=MUTED)
    axis.set_ylim(0, top)
    axis.set_yticks([top / 2], ["mean"])
    axis.spines[["top", "left", "right"]].set_visible(False)


def _number(axis: Axes, place: tuple[float, float], value: float, step_width: float, **style: Any) -> None:
    """Write a percentage into a cell, with a decimal if there is room."""
    if step_width < 0.15:
        return
    text = f"{value:.1f}" if step_width >= 0.3 else f"{value:.0f}"
    axis.text(*place, text, ha="center", size=8 if step_width > 0.5 else 6, **style)


def _time(axis: Axes, stream: StreamAttention, pathway: Pathway, step_width: float) -> None:
    """Label the time steps with frame numbers and, if the file has times, with seconds."""
    wide = step_width >= _WIDE
    every = 1 if wide else max(1, round(0.62 / step_width))
    places = range(0, len(pathway.frames), every)
    axis.set_xticks(places, [_label(pathway.frames[step], stream.times, wide) for step in places])
    seconds = " and seconds" if stream.times is not None else ""
    first = "" if wide else ", where it begins"
    rest = 100 * (1 - float(pathway.weights.sum(axis=1).mean()))
    own = f"; {rest:.0f} % is the class token's attention to itself" if stream.class_token else ""
    axis.set_xlabel(f"{_unit(stream)}{seconds} of each step{first}{own}", size=8)


def _unit(stream: StreamAttention) -> str:
    rate = "" if stream.fps is None else f" at {stream.fps:g} per second"
    return f"{'flow frames' if stream.modality == 'flow' else 'frames'}{rate}"


def _label(numbers: Sequence[int], times: NDArray[np.float64] | None, wide: bool) -> str:
    """Return the span of a time step, or only its start if the label would be too wide."""
    lines = [_spans(numbers) if wide else f"{numbers[0]}"]
    if times is not None:
        start, end = times[numbers[0] - 1], times[numbers[-1]]
        lines.append(f"{start:.2f}–{end:.2f} s" if wide and end > start else f"{start:.2f} s")
    return "\n".join(lines)


def _spans(numbers: Sequence[int]) -> str:
    """Return a span of frames such as `5–20`, or `29–30, 1–14` if a short video is looped."""
    starts = [0, *(i for i in range(1, len(numbers)) if numbers[i] <= numbers[i - 1]), len(numbers)]
    spans = [(numbers[a], numbers[b - 1]) for a, b in itertools.pairwise(starts)]
    text = ", ".join(f"{a}–{b}" if a < b else f"{a}" for a, b in spans[:2])
    return text if len(spans) <= 2 else f"{text}, …"
