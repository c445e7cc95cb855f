"""Draws saliency maps over the frames of a video: a figure of one clip, a film of the whole video, and small strips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from two_stream.config.schema import EvaluateOptions
from two_stream.data.clips.transforms import view_spec
from two_stream.errors import VideoError
from two_stream.evaluation.pictures.annotate import Encoder, draw_text
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
    clips_of,
    draw_bars,
    draw_film,
    film_height,
    guess_of,
    label_time,
    middle_clip,
    panel_width,
    stream_title,
)
from two_stream.evaluation.pictures.thumbnails import FRAMES, encode, flow_picture
from two_stream.evaluation.scoring.saliency import SaliencyOptions, saliency_of_clips
from two_stream.evaluation.scoring.video import VideoInput, open_input, read_clips
from two_stream.evaluation.scoring.views import crop_views, views_of_clip
from two_stream.recognizer import Recognizer
from two_stream.runtime.files import atomic_path
from two_stream.runtime.plotting import DARK, plain_figures, save_figure
from two_stream.types import Frames
from two_stream.video.decoding.base import Video
from two_stream.video.decoding.memory import FlowFolder, Source, open_any, stored_flow

FILM = ".mp4"
_HEAT: Any = cv2.COLORMAP_INFERNO
_OPACITY = 0.7
"""opacity of the largest value of a map"""
_TILE = 320
"""height in pixels of a picture in a film"""
_ROW, _MARGIN = 18, 96
"""height of a row below the pictures of a film, and width of its name, in pixels"""


@dataclass(frozen=True)
class Map(Steps):
    """Saliency map of one pathway of the backbone."""

    values: NDArray[np.float32]
    """`(T, H, W)`, 0 or more; T, H and W are those of the stage"""
    attention: NDArray[np.float64] | None = None
    """mean attention of the head to each time step `(T,)`; None if the head has no attention"""

    @property
    def shares(self) -> NDArray[np.float64]:
        """Share of each time step in the sum of the map; all 0 if the map is."""
        sums = self.values.sum(axis=(1, 2), dtype=np.float64)
        return np.asarray(sums / (sums.sum() or 1.0))


@dataclass(frozen=True, kw_only=True)
class StreamSaliency(StreamClip):
    """Saliency of one stream in one clip of a video."""

    pathways: list[Map]
    title: str
    """method and class, such as `Grad-CAM for climb rather than rise`"""
    box: tuple[float, float, float, float]
    """part of the picture that the network sees `(y0, x0, y1, x1)`, from 0 to 1"""
    class_token: bool = False
    """whether the attention is that of a class token, which also attends to itself"""


def read_saliency(
    model: Recognizer,
    source: Source,
    options: EvaluateOptions,
    reading: VideoInput,
    names: Sequence[str],
    wanted: SaliencyOptions | None = None,
) -> StreamSaliency:
    """Compute the saliency maps of a network for the centred view of a video's middle clip.

    Args:
        model: The network.
        source: The video.
        options: Evaluation options. The middle clip is used, or the one before the middle if the number of clips is
            even.
        reading: Decoder, flow algorithm and sizes.
        names: Class names.
        wanted: Class, method and stage; by default the most likely class of the clip.

    Raises:
        SettingsError: The options do not fit the network.
        VideoError: The video cannot be read or is too short for flow.
    """
    wanted = wanted or SaliencyOptions()
    wanted.check(model, names, "saliency")
    with middle_clip(source, model.spec, options, reading) as clip:
        maps, logits_K = _maps(model, clip.views, clip.numbers, wanted, names)
        guess = guess_of(logits_K, names)
        return StreamSaliency(
            **clip.facts(maps, guess),
            pathways=maps,
            title=wanted.describe(guess[0]),
            box=_share(crop_views("center", clip.spec)[0].box, clip.spec.resize),
            class_token=model.head.has_class_token,
        )


def _maps(
    model: Recognizer,
    clip_BCTHW: torch.Tensor,
    numbers: Sequence[int],
    wanted: SaliencyOptions,
    names: Sequence[str],
) -> tuple[list[Map], torch.Tensor]:
    """Return the maps and the logits `(K,)` of a clip with these frame numbers."""
    weights = wanted.weights(names)
    found = saliency_of_clips(model, clip_BCTHW, weights, method=wanted.method, stage=wanted.stage)
    attention = [one[0].mean(0).double().cpu().numpy() for one in found.attention]
    pathways = model.backbone.pathways
    if len(pathways) < len(found.maps):  # the pathways are joined after this stage
        pathways = ("slow", "fast")
    maps = []
    for place, (name, one) in enumerate(zip(pathways, found.maps, strict=True)):
        steps = [list(map(int, part)) for part in np.array_split(np.asarray(numbers), one.shape[1])]
        # maps of another stage may have other time steps than the head
        seen = attention[place] if place < len(attention) and len(attention[place]) == len(steps) else None
        maps.append(Map(name, steps, one[0].cpu().numpy(), seen))
    return maps, found.logits[0].double().cpu()


def _share(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    (y0, x0, y1, x1), (height, width) = box, size
    return y0 / height, x0 / width, y1 / height, x1 / width


def overlay(picture_HWC: Frames, values_HW: NDArray[np.float32], largest: float) -> Frames:
    """Return a picture in pale colours with a map drawn on it, from transparent (0) to bright (`largest`)."""
    height, width = picture_HWC.shape[:2]
    heat_HW = cv2.resize(values_HW / (largest or 1.0), (width, height), interpolation=cv2.INTER_CUBIC)
    heat_HW1 = np.clip(heat_HW, 0, 1)[..., None]
    colours = cv2.applyColorMap(np.asarray(255 * heat_HW1, np.uint8), _HEAT)[..., ::-1]
    gray = cv2.cvtColor(picture_HWC, cv2.COLOR_RGB2GRAY)[..., None]
    pale = 0.35 * picture_HWC + 0.5 * gray
    return np.asarray(np.rint(pale * (1 - _OPACITY * heat_HW1) + colours * (_OPACITY * heat_HW1)), np.uint8)


def draw_saliency(out: Path, title: str, subtitle: str, streams: Sequence[StreamSaliency]) -> None:
    """Draw a panel for each stream and pathway.

    A panel has the frames, the frames with the map, the share of each time step in the map, and the attention of the
    head if it has any. `out` is a PNG, PDF or SVG file that is written completely or not at all.
    """
    panels = [(stream, pathway) for stream in streams for pathway in stream.pathways]
    steps = max(len(pathway.frames) for _, pathway in panels)
    films = [film_height(*one, panel_width(steps)) for one in panels]
    height = sum(
        HEADING + 2 * film + BARS * (1 + (one.attention is not None)) + 3 * GAP + LABELS
        for film, (_, one) in zip(films, panels)
    )
    with plain_figures(STYLE):
        column = Column.titled(steps, height, title, subtitle)
        for (stream, pathway), film in zip(panels, films):
            _panel(column, stream, pathway, film)
        save_figure(column.figure, out, DPI)


def _panel(column: Column, stream: StreamSaliency, pathway: Map, film: float) -> None:
    steps, colour = len(pathway.frames), STREAM[stream.modality][1]
    step_width = column.width / steps
    column.heading(stream, stream_title(stream, pathway, len(stream.pathways)))
    pictures = [stream.pictures[number] for number in pathway.shown]
    draw_film(column.axes(film, steps), pictures, film / step_width)
    column.used += GAP
    largest = float(pathway.values.max())
    drawn = [overlay(picture, values, largest) for picture, values in zip(pictures, pathway.values)]
    most = int(pathway.shares.argmax()) if largest else -1
    draw_film(column.axes(film, steps), drawn, film / step_width, most, colour)
    column.used += GAP
    bars: Axes = column.axes(BARS, steps)
    draw_bars(bars, 100 * pathway.shares, 100 / steps, colour, step_width, "saliency")
    if pathway.attention is not None:
        bars.set_xticks([])
        column.used += GAP
        bars = column.axes(BARS, steps)
        even = 100 / (steps + int(stream.class_token))
        draw_bars(bars, 100 * pathway.attention, even, colour, step_width, "attention")
    none = "" if largest else "; the map is 0: nothing in this clip raises the score"
    shown = "saliency" if pathway.attention is None else "saliency and attention"
    label_time(bars, stream, pathway, step_width, f"; {shown} in %{none}")
    column.used += LABELS


@dataclass(frozen=True)
class FilmStream:
    """Saliency of one stream in every clip of a video, by frame."""

    name: str
    modality: str
    maps: dict[str, NDArray[np.float32]]
    """`(F, H, W)` of each pathway for the F frames that the network sees"""
    probability: NDArray[np.float64]
    """probability of the class `(F,)`; of the first class rather than the second if there are two"""
    attention: NDArray[np.float64] | None
    """attention of the head `(F,)`, relative to equal attention to all steps"""
    times: NDArray[np.float64] | None
    box: tuple[float, float, float, float]


def read_film(
    model: Recognizer,
    source: Source,
    options: EvaluateOptions,
    reading: VideoInput,
    names: Sequence[str],
    wanted: SaliencyOptions,
    title: str = "",
) -> FilmStream:
    """Compute the saliency maps of all windows of a video; frames of several windows get the mean.

    Args:
        model: The network.
        source: The video.
        options: Evaluation options; clips are sliding windows, half a window apart, unless the network's clips are
            spread over the video.
        reading: Decoder, flow algorithm and sizes.
        names: Class names.
        wanted: Class, method and stage.
        title: Name of the stream; default: its modality.
    """
    spec = view_spec(model.spec, "center", whole=reading.whole_frame)
    chosen = "single" if spec.segments or reading.sampling == "segments" else "sliding"
    options = options.model_copy(update={"views": chosen, "crops": "center", "step": None})
    crops = crop_views("center", spec)
    sums: dict[str, dict[int, NDArray[np.float32]]] = {}
    scores: dict[int, list[tuple[float, float]]] = {}
    with open_input(source, spec, reading) as video:
        clips = sorted(clips_of(video, spec, options, reading), key=max)
        for numbers, frames in zip(clips, read_clips(video, clips, spec, reading)):
            views = views_of_clip(frames, crops, spec).views
            maps, logits_K = _maps(model, views, numbers, wanted, names)
            chance = _chance(logits_K, [names.index(name) for name in wanted.classes])
            for one in maps:
                own = sums.setdefault(one.name, {})
                for number, values in zip(numbers, _per_frame(one.values, len(numbers))):
                    own[number] = own[number] + values if number in own else values
            noticed = maps[0].attention
            weights = np.full(len(numbers), np.nan)
            if noticed is not None:
                places = np.linspace(0, len(noticed) - 1, len(numbers))
                weights = np.interp(places, range(len(noticed)), noticed * len(noticed))
            for number, weight in zip(numbers, weights):
                scores.setdefault(number, []).append((chance, float(weight)))
        count, times = video.num_frames, video.times
    counts = {number: len(rows) for number, rows in scores.items()}
    known = sorted(scores)
    means = np.asarray([np.mean(scores[number], axis=0) for number in known])
    every = np.arange(1, count + 1)
    return FilmStream(
        title or STREAM[spec.modality][0],
        spec.modality,
        {
            name: _interpolated(known, np.stack([own[n] / counts[n] for n in known]), every)
            for name, own in sums.items()
        },
        np.interp(every, known, means[:, 0]),
        None if np.isnan(means[:, 1]).any() else np.interp(every, known, means[:, 1]),
        times,
        _share(crops[0].box, spec.resize),
    )


def _chance(logits_K: torch.Tensor, asked: list[int]) -> float:
    """Return the probability of a class; of two classes, that of the first if only these two are possible."""
    chosen = logits_K[asked] if len(asked) == 2 else logits_K
    return float(chosen.softmax(0)[asked[0] if len(asked) == 1 else 0])


def _per_frame(values_THW: NDArray[np.float32], frames: int) -> NDArray[np.float32]:
    """Return a map for each frame of a clip, linearly interpolated in time."""
    tensor = torch.from_numpy(values_THW)[None, None]
    size = (frames, *values_THW.shape[1:])
    made = torch.nn.functional.interpolate(tensor, size, mode="trilinear", align_corners=False)
    return made[0, 0].numpy()


def _interpolated(
    known: Sequence[int], values_NHW: NDArray[np.float32], every: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return maps for all frames; those between known frames are linearly interpolated."""
    places = np.interp(every, known, np.arange(len(known)))
    left = np.floor(places).astype(np.int64)
    right = np.minimum(left + 1, len(known) - 1)
    share = (places - left).astype(np.float32)[:, None, None]
    return values_NHW[left] * (1 - share) + values_NHW[right] * share


def write_film(path: Source, out: Path, title: str, streams: Sequence[FilmStream], backend: str) -> None:
    """Write an MP4 file: the video with the maps of each stream side by side, above rows over time.

    The rows show the probability of the class, the sum of the map and the attention. The file is written completely or
    not at all.

    Raises:
        VideoError: The video cannot be read, or the file cannot be written.
    """
    with _open_pictures(path, backend) as video, atomic_path(out) as part:
        count, times = video.num_frames, video.times
        if not count:
            raise VideoError(video.path, "no frame can be decoded")
        scale = _TILE / video.height
        size = max(2, round(video.width * scale)), _TILE
        tiles = [(stream, name) for stream in streams for name in stream.maps]
        width = len(tiles) * size[0] // 2 * 2
        board = _Board(title, streams, width)
        height = (_TILE + board.top + board.bottom) // 2 * 2
        ends = [float(times[-1]) if times is not None else float(count)]
        largest = [float(stream.maps[name].max()) for stream, name in tiles]
        with Encoder(part, out, (height, width), video.fps) as encoder:
            for number, (seconds, picture) in enumerate(_timed_pictures(video)):
                at = number / encoder.fps if seconds is None else seconds
                share = (number + 0.5) / count if times is None else at / (ends[0] or 1.0)
                way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
                plain = np.asarray(cv2.resize(picture, size, interpolation=way), np.uint8)
                drawn = [
                    _tile(plain, stream, name, share, most) for (stream, name), most in zip(tiles, largest)
                ]
                frame = board.frame(np.concatenate(drawn, axis=1)[:, :width], share)
                encoder.add(frame[:height], at)
            if times is not None:
                encoder.end(ends[0])


def _open_pictures(source: Source, backend: str) -> Video:
    """Open a video; of a folder with stored flow but no images, the flow."""
    folder = stored_flow(source)
    try:
        return open_any(source, backend)
    except VideoError:
        if folder is None:
            raise
        return FlowFolder(folder)


def _timed_pictures(video: Video) -> Iterator[tuple[float | None, Frames]]:
    if not isinstance(video, FlowFolder):
        yield from video.timed_frames()
        return
    for number, flow in video.pick(range(video.num_frames - 1)):
        seconds = None if video.times is None else float(video.times[number])
        yield seconds, flow_picture(flow[None])[0]


def _tile(plain_HWC: Frames, stream: FilmStream, name: str, share: float, largest: float) -> Frames:
    """Return the picture with the map of a pathway; what the network does not see is dark."""
    height, width = plain_HWC.shape[:2]
    y0, x0, y1, x1 = stream.box
    rows, columns = (
        slice(round(y0 * height), round(y1 * height)),
        slice(round(x0 * width), round(x1 * width)),
    )
    made = (plain_HWC * 0.3).astype(np.uint8)
    values = stream.maps[name][_place(stream, share)]
    made[rows, columns] = overlay(np.ascontiguousarray(plain_HWC[rows, columns]), values, largest)
    label = stream.name if len(stream.maps) == 1 else f"{stream.name}, {name} pathway"
    draw_text(made, label, (6, 20), 22, (255, 255, 255))
    return made


def _place(stream: FilmStream, share: float) -> int:
    """Return the index of the frame that a stream sees at this share of the video's duration."""
    count = len(stream.probability)
    if stream.times is None:
        return min(count - 1, int(share * count))
    at = share * float(stream.times[-1])
    return int(np.clip(np.searchsorted(stream.times[:-1], at + 1e-6, side="right") - 1, 0, count - 1))


class _Board:
    """The title and the rows over time of a film."""

    def __init__(self, title: str, streams: Sequence[FilmStream], width: int) -> None:
        self.top = 30
        dark: Any = tuple(bytes.fromhex(DARK["page"][1:]))
        ink: Any = tuple(bytes.fromhex(DARK["ink"][1:]))
        self.header = np.full((self.top, width, 3), dark, np.uint8)
        draw_text(self.header, title, (6, 21), 24, ink)
        self.left, self.width = min(_MARGIN + 40, width // 3), width
        rows: list[Frames] = [np.full((6, width, 3), dark, np.uint8)]
        for stream in streams:
            colour = np.asarray(to_rgb(STREAM[stream.modality][1]))
            shown = [("probability", stream.probability)]
            total = np.sum([one.mean(axis=(1, 2)) for one in stream.maps.values()], axis=0)
            shown.append(("saliency", total / (total.max() or 1.0)))
            if stream.attention is not None:
                shown.append(("attention", stream.attention / (stream.attention.max() or 1.0)))
            for place, (what, values) in enumerate(shown):
                row = np.full((_ROW, width, 3), dark, np.uint8)
                label = f"{stream.name}: {what}" if place == 0 else what
                draw_text(row[:, : self.left], label, (6, 13), _ROW, ink)
                row[2:-2, self.left :] = self._strip(stream, values, colour)
                rows.append(row)
            rows.append(np.full((4, width, 3), dark, np.uint8))
        self.rows = np.concatenate(rows)
        self.rows = np.pad(self.rows, ((0, (len(self.rows) + self.top + _TILE) % 2), (0, 0), (0, 0)))
        self.bottom = len(self.rows)

    def _strip(self, stream: FilmStream, values: NDArray[np.float64], colour: NDArray[Any]) -> Frames:
        """Return values from 0 to 1 over time as bars."""
        columns = self.width - self.left
        shares = (np.arange(columns) + 0.5) / columns
        found = np.asarray([values[_place(stream, float(share))] for share in shares])
        rows = _ROW - 4
        filled = np.arange(rows)[::-1, None] < np.rint(found * rows)[None]
        back, front = np.asarray(to_rgb(DARK["grid"])), 0.35 + 0.65 * colour
        return np.asarray(np.rint(255 * np.where(filled[..., None], front, back)), np.uint8)

    def frame(self, pictures_HWC: Frames, share: float) -> Frames:
        """Return a frame of the film, with a line at the current time."""
        rows = self.rows.copy()
        x = self.left + min(self.width - self.left - 1, int(share * (self.width - self.left)))
        rows[4:-4, max(self.left, x - 1) : x + 1] = 255
        return np.concatenate((self.header, pictures_HWC, rows))


def strip_of_clip(
    model: Recognizer, clip_CTHW: torch.Tensor, names: Sequence[str], wanted: SaliencyOptions
) -> str:
    """Return a few frames of a clip with the map of its first pathway, as the data URI of a JPEG image."""
    weights = wanted.weights(names)
    found = saliency_of_clips(model, clip_CTHW[None], weights, method=wanted.method, stage=wanted.stage)
    frames = clip_CTHW[: 2 if model.spec.modality == "flow" else 3].permute(1, 2, 3, 0).numpy()
    pictures = flow_picture(frames) if model.spec.modality == "flow" else frames
    values = _per_frame(found.maps[0][0].cpu().numpy(), len(pictures))
    chosen = np.unique(np.rint(np.linspace(0, len(pictures) - 1, FRAMES)).astype(np.int64))
    largest = float(values.max())
    return encode(np.stack([overlay(np.ascontiguousarray(pictures[n]), values[n], largest) for n in chosen]))
