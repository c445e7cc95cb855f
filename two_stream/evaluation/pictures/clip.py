"""A clip of a video in figures: which frames the network saw, thumbnails of its input, and panels with a row of frames.

The figures of attention and saliency share these parts.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from two_stream.config.schema import EvaluateOptions
from two_stream.data.clips.transforms import view_spec
from two_stream.data.clips.views import evaluation_clips
from two_stream.errors import SettingsError, VideoError, printable
from two_stream.evaluation.pictures.thumbnails import flow_picture
from two_stream.evaluation.scoring.video import VideoInput, open_input, read_clip
from two_stream.evaluation.scoring.views import crop_views, views_of_clip
from two_stream.runtime.plotting import INK, MUTED, SERIES, shorten, text_on
from two_stream.types import Frames, InputSpec, Modality
from two_stream.video.decoding.base import Video
from two_stream.video.decoding.memory import Source

SUFFIXES = (".png", ".pdf", ".svg")
"""File types of images."""
STREAM = {"rgb": ("RGB", SERIES[0]), "flow": ("flow", SERIES[1])}
"""Name and colour (as in the report) of each stream."""
STYLE: Any = {"font.size": 8.5, "axes.grid": False}
LEFT, RIGHT, TOP = 0.72, 0.78, 0.66
"""Margins in inches for the names of the rows, the colour bar and the title."""
HEADING, BARS, LABELS, GAP = 0.52, 0.62, 0.66, 0.07
"""Heights in inches of the parts of a panel."""
DPI = 144
_WIDTHS = 6.6, 12.0
"""Smallest and largest width of the panels in inches."""
_THUMBNAIL = 288
"""Longer side of a thumbnail in pixels; half of it if there are many thumbnails."""
_LOUDEST = 4.0
"""Largest factor by which small movements are amplified; larger factors would show rounding errors."""
_WIDE = 1.0
"""Smallest width in inches of a column whose label is the full span of frames."""


@dataclass(frozen=True)
class Steps:
    """The time steps of a pathway of the backbone."""

    name: str
    """name of the pathway, such as `main`, `slow` or `fast`"""
    frames: list[list[int]]
    """frame numbers (from 1) of each time step; its receptive field covers more frames"""

    @property
    def shown(self) -> list[int]:
        """Number of the middle frame of each step; this frame is drawn."""
        return [numbers[len(numbers) // 2] for numbers in self.frames]


@dataclass(frozen=True)
class StreamClip:
    """One clip of a video, as a stream sees it."""

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
    pictures: dict[int, Frames] = field(repr=False)
    """thumbnails of the network's input by frame number; RGB images, uint8 `(H, W, 3)`"""
    whole_frame: bool = False
    """whether the input is the whole frame instead of the centre crop"""
    fps: float | None = None
    """frames per second at which the network sees the video; frames are counted at this rate; None: all frames"""


def check_target(
    out: Path, videos: Sequence[Path], flag: str = "--attention", suffixes: Sequence[str] = SUFFIXES
) -> None:
    """Check that pictures can be written to `out`, without writing them.

    `out` must be a file for one video and a folder for several videos. `flag` is the command-line flag of `out`.

    Raises:
        SettingsError: The suffix is not one of `suffixes`, or the folder is not writable.
    """
    into_folder = out.is_dir() or len(videos) > 1
    if not into_folder and out.suffix.lower() not in suffixes:
        raise SettingsError(f"{flag} {out}: expected a file name ending in {', '.join(suffixes)}")
    if into_folder and not out.is_dir() and out.suffix.lower() in suffixes:
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


def guess_of(logits_K: torch.Tensor, names: Sequence[str]) -> tuple[str, float]:
    """Return the most likely class and its probability."""
    shares = logits_K.detach().double().softmax(0).cpu()
    best = int(shares.argmax())
    return names[best], float(shares[best])


@dataclass(frozen=True)
class MiddleClip:
    """The centred view of the middle clip of a video."""

    video: Video
    spec: InputSpec
    numbers: list[int]
    place: int
    clips: int
    frames: Frames
    """resized frames of the clip before cropping"""
    reading: VideoInput

    @property
    def views(self) -> torch.Tensor:
        """The network's input, uint8 `(1, C, T, H, W)`."""
        return views_of_clip(self.frames, crop_views("center", self.spec), self.spec).views

    def facts(self, steps: Sequence[Steps], guess: tuple[str, float]) -> dict[str, Any]:
        """Return the fields of a `StreamClip`, with thumbnails of the middle frames of the steps."""
        wanted = sorted({number for pathway in steps for number in pathway.shown})
        box = crop_views("center", self.spec)[0].box
        frames = dict(zip(self.numbers, self.frames))
        return {
            "modality": self.spec.modality,
            "numbers": self.numbers,
            "clip": self.place + 1,
            "clips": self.clips,
            "guess": guess,
            "pictures": _thumbnails(self.video, frames, wanted, box, self.spec.modality),
            "times": self.video.times,
            "whole_frame": self.reading.whole_frame,
            "fps": self.spec.fps or self.reading.fps,
        }


@contextmanager
def middle_clip(
    source: Source, spec: InputSpec, options: EvaluateOptions, reading: VideoInput
) -> Iterator[MiddleClip]:
    """Open a video and read its middle clip, or the one before the middle if the number of clips is even.

    Raises:
        VideoError: The video cannot be read or is too short for flow.
    """
    spec = view_spec(spec, "center", whole=reading.whole_frame)
    with open_input(source, spec, reading) as video:
        clips = clips_of(video, spec, options, reading)
        place = (len(clips) - 1) // 2
        frames = read_clip(video, clips[place], spec, reading)
        yield MiddleClip(video, spec, clips[place], place, len(clips), frames, reading)


def clips_of(video: Video, spec: InputSpec, options: EvaluateOptions, reading: VideoInput) -> list[list[int]]:
    """Return the frame numbers of each clip of an open video.

    Raises:
        VideoError: The video has too few frames.
    """
    available = video.num_frames - (spec.modality == "flow")
    if available < 1:
        raise VideoError(
            video.path,
            "has too few frames for a clip; expected at least one RGB frame, or two frames for flow",
        )
    return evaluation_clips(options, spec, available, reading.sampling)


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


@dataclass
class Column:
    """Arranges text and axes from top to bottom; all sizes are in inches."""

    figure: Figure
    full: tuple[float, float]
    width: float
    used: float = 0.0

    @classmethod
    def titled(cls, steps: int, height: float, title: str, subtitle: str) -> Column:
        """Return a column for panels of up to `steps` time steps, which are `height` high in total, with two lines."""
        width = panel_width(steps)
        full = LEFT + width + RIGHT, TOP + height
        column = cls(Figure(figsize=full), full, width)
        column.text(0.32, shorten(title, round(width * 8)), size=13, weight="bold")
        column.text(0.22, subtitle, color=MUTED)
        column.used = TOP
        return column

    def text(self, height: float, text: str, **style: Any) -> None:
        """Write a line of text whose baseline is `height` below the current position."""
        self.used += height
        self.figure.text(LEFT / self.full[0], 1 - self.used / self.full[1], printable(text), **style)

    def heading(self, stream: StreamClip, first: str) -> None:
        """Write the heading of a panel: a bold line, and a line on the clip."""
        start = self.used
        self.text(0.24, first, size=10, weight="bold")
        self.text(0.18, _span_line(stream), color=MUTED)
        self.used = start + HEADING

    def axes(self, height: float, steps: int) -> Axes:
        """Return axes over the full width, on which time step t is centred at x = t."""
        self.used += height
        axis = self.figure.add_axes(self._box(LEFT, self.width, height))
        axis.set_xlim(-0.5, steps - 0.5)
        return axis

    def narrow(self, height: float) -> Axes:
        """Return narrow axes to the right of the last axes."""
        return self.figure.add_axes(self._box(LEFT + self.width + 0.12, 0.11, height))

    def _box(self, left: float, width: float, height: float) -> tuple[float, float, float, float]:
        across, down = self.full
        return left / across, 1 - self.used / down, width / across, height / down


def panel_width(steps: int) -> float:
    """Return the width in inches of a panel with this number of time steps."""
    return float(np.clip(1.65 * steps, *_WIDTHS))


def film_height(stream: StreamClip, pathway: Steps, width: float) -> float:
    """Return the height in inches of the row of frames in a panel of this width."""
    rows, columns = stream.pictures[pathway.shown[0]].shape[:2]
    return min(2.2, width / len(pathway.frames) * float(rows / columns))


def stream_title(stream: StreamClip, pathway: Steps, pathways: int) -> str:
    """Return the name of the stream and, if there are several, of the pathway, and the class of the view."""
    part = f", {pathway.name} pathway" if pathways > 1 else ""
    label, share = stream.guess
    return (
        f"{STREAM[stream.modality][0]}{part}: this view alone says {shorten(label, 40)}, {100 * share:.0f} %"
    )


def _span_line(stream: StreamClip) -> str:
    """Return a line that describes the clip."""
    numbers = stream.numbers
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    nth = {2: "2nd", 3: "3rd"}.get(step, f"{step}th")
    every = f", every {nth}" if step > 1 else ""
    again = any(b <= a for a, b in itertools.pairwise(numbers))
    looped = f", looped to {len(numbers)}" if again else ""
    span = f"{_unit(stream)} {numbers[0]} to {max(numbers) if again else numbers[-1]}{every}{looped}"
    note = "; hue: direction, brightness: length" if stream.modality == "flow" else ""
    view = "whole frame" if stream.whole_frame else "centre crop"
    return f"clip {stream.clip} of {stream.clips}, {view}: {span}{note}"


def draw_film(
    axis: Axes, pictures: Sequence[Frames], ratio: float, framed: int = -1, color: str = ""
) -> None:
    """Draw a picture for each time step, with a border in `color` around the step `framed`.

    `ratio` is the height of the axes divided by the width of a time step.
    """
    gap = 0.02 if len(pictures) <= 16 else 0.04
    for step, picture in enumerate(pictures):
        half = min(0.5, ratio * picture.shape[1] / picture.shape[0] / 2) - gap
        left, right = step - half, step + half
        axis.imshow(picture, extent=(left, right, 0, 1), aspect="auto", interpolation="lanczos")
        if step == framed:
            style: Any = {"edgecolor": color, "linewidth": 2, "fill": False, "clip_on": False}
            axis.add_patch(Rectangle((left, 0), 2 * half, 1, **style))
    axis.set(xlim=(-0.5, len(pictures) - 0.5), ylim=(0, 1))
    axis.axis("off")


def draw_bars(
    axis: Axes, percent_T: NDArray[np.float64], even: float, color: str, step_width: float, name: str
) -> None:
    """Draw a bar for each time step, and a line at the value that all bars have if the steps are equal."""
    top = 1.12 * max(float(percent_T.max()), even)
    most = int(percent_T.argmax())
    tints = [color if step == most else f"{color}66" for step in range(len(percent_T))]
    axis.bar(range(len(percent_T)), percent_T, width=0.8, color=tints)
    for step, value in enumerate(percent_T):
        tint = text_on(color) if step == most else INK
        write_number(axis, (step, 0.05 * top), float(value), step_width, color=tint, va="bottom")
    axis.axhline(even, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)), zorder=0)
    where = ((1, even), (4, 0), axis.get_yaxis_transform(), "offset points")
    axis.annotate("even share", *where, va="center", size=7.5, color=MUTED)
    axis.set_ylim(0, top)
    axis.set_yticks([top / 2], [name])
    axis.spines[["top", "left", "right"]].set_visible(False)


def write_number(
    axis: Axes, place: tuple[float, float], value: float, step_width: float, **style: Any
) -> None:
    """Write a percentage into a cell, with a decimal if there is room."""
    if step_width < 0.15:
        return
    text = f"{value:.1f}" if step_width >= 0.3 else f"{value:.0f}"
    axis.text(*place, text, ha="center", size=8 if step_width > 0.5 else 6, **style)


def label_time(axis: Axes, stream: StreamClip, pathway: Steps, step_width: float, note: str = "") -> None:
    """Label the time steps with frame numbers and, if the file has times, with seconds."""
    wide = step_width >= _WIDE
    every = 1 if wide else max(1, round(0.62 / step_width))
    places = range(0, len(pathway.frames), every)
    axis.set_xticks(places, [_label(pathway.frames[step], stream.times, wide) for step in places])
    seconds = " and seconds" if stream.times is not None else ""
    first = "" if wide else ", where it begins"
    axis.set_xlabel(f"{_unit(stream)}{seconds} of each step{first}{note}", size=8)


def _unit(stream: StreamClip) -> str:
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
