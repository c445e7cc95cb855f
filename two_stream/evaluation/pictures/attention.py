"""Where BERT looks: the class token's attention to each step in time of one clip of a video, with its frames."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from two_stream.config.schema import EvaluateOptions
from two_stream.data.clips.transforms import view_spec
from two_stream.errors import SettingsError, VideoError
from two_stream.evaluation.pictures.thumbnails import flow_picture
from two_stream.evaluation.scoring.video import VideoInput, read_clip
from two_stream.evaluation.scoring.views import clip_frames, crop_views, views_of_clip
from two_stream.recognizer import Recognizer
from two_stream.types import Frames, Modality
from two_stream.video.decoding.reader import Video, open_video

SUFFIXES = (".png", ".pdf", ".svg")
"""Kinds of picture that can be written."""
_THUMBNAIL = 288
"""Pixels of a thumbnail's longer side; less where there are many of them."""
_LOUDEST = 4.0
"""Small movements are drawn as if they were up to so many times as long; more would show the rounding."""


@dataclass(frozen=True)
class Pathway:
    """What the head of one pathway looks at."""

    name: str
    """`main`, or for example `slow` and `fast`"""
    weights: NDArray[np.float64]
    """`(H, T)`, heads × steps in time; a row sums to one less the class token's attention to itself"""
    frames: list[list[int]]
    """1-based numbers of the frames each step stands for, in their order (it sees some way beyond them too)"""

    @property
    def shown(self) -> list[int]:
        """The frame in the middle of each step: its picture."""
        return [numbers[len(numbers) // 2] for numbers in self.frames]


@dataclass(frozen=True)
class StreamAttention:
    """What one stream looks at in one clip of a video."""

    modality: Modality
    numbers: list[int]
    """1-based frame numbers of the clip; flow frame n lies between the pictures n and n + 1"""
    clip: int
    """which clip of the video this is, from 1"""
    clips: int
    """clips the video was scored with"""
    times: NDArray[np.float64] | None
    """seconds at which the video's pictures appear and the last one ends; see `Video.times`"""
    guess: tuple[str, float]
    """likeliest class of this clip's centred view alone, and its probability"""
    even: bool
    """whether the class token may look at itself as well, so that an even share is 1 / (steps + 1)"""
    pathways: list[Pathway]
    pictures: dict[int, Frames]
    """RGB thumbnails of what the network sees, uint8 `(H, W, 3)`, by frame number"""
    whole_frame: bool = False
    """it sees whole frames, not their centre crop"""


def check_target(out: Path, videos: Sequence[Path], flag: str = "--attention") -> None:
    """Find out, before any work, whether pictures can be written to `out`; writes nothing.

    Args:
        out: A file for one video; a folder for several (or where the folder exists).
        videos: What will be drawn.
        flag: Who asks.

    Raises:
        SettingsError: A suffix that is none of `SUFFIXES`, or a folder that cannot be written to.
    """
    into_folder = out.is_dir() or len(videos) > 1
    if not into_folder and out.suffix.lower() not in SUFFIXES:
        raise SettingsError(f"{flag} {out}: expected a name that ends in {', '.join(SUFFIXES)}")
    if into_folder and not out.is_dir() and out.suffix.lower() in SUFFIXES:
        raise SettingsError(f"{flag} {out}: {len(videos)} videos need a folder; leave out {out.suffix}")
    if out.is_file() and out.resolve() in {video.resolve() for video in videos}:
        raise SettingsError(f"{flag} {out}: this is the video itself; name another file")
    folder = out if into_folder else out.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SettingsError(
            f"{flag} {out}: nothing can be written to {folder} ({os.strerror(error.errno or 0)}); "
            "name a file in another folder"
        ) from None


def check_head(model: Recognizer, where: str) -> None:
    """Find out whether a model has attention to read.

    Raises:
        SettingsError: Its head has none; `where` and the recognizer's own reason.
    """
    if all(hasattr(head, "attention") for head in model.heads):
        return
    try:
        model.attention(torch.empty(0))  # says why, before it looks at the clip
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from None


def read_attention(
    model: Recognizer, path: Path | str, options: EvaluateOptions, reading: VideoInput, names: Sequence[str]
) -> StreamAttention:
    """Read what a network looks at in the middle clip of a video, of its centred view.

    Args:
        model: An RGB or a flow recognizer whose head is BERT.
        path: The video.
        options: How the video is scored; of its clips the middle one is taken (of two the first).
        reading: Decoder, flow algorithm, sizes.
        names: Class names.

    Raises:
        SettingsError: The head has no attention.
        VideoError: The video cannot be read, or is too short for flow.
    """
    spec = view_spec(model.spec, "center", whole=reading.whole_frame)
    with open_video(path, reading.backend) as video:
        available = video.num_frames - (spec.modality == "flow")
        if available < 1:
            raise VideoError(path, "too few frames to show what the network looks at")
        clips = clip_frames(options, spec, available, reading.sampling)
        place = (len(clips) - 1) // 2
        numbers = clips[place]
        frames = read_clip(video, numbers, spec, reading)
        center = crop_views(EvaluateOptions(crops="center"), spec)
        weights, guess = _ask(model, views_of_clip(frames, center, spec).views, names)
        pathways = [
            Pathway(name, weights_HT, _windows(numbers, weights_HT.shape[1], stride))
            for name, weights_HT, stride in zip(
                model.backbone.pathways, weights, model.backbone.temporal_stride, strict=True
            )
        ]
        wanted = sorted({number for pathway in pathways for number in pathway.shown})
        pictures = _thumbnails(video, dict(zip(numbers, frames)), wanted, center[0].box, spec.modality)
        times = video.times
    even = bool(getattr(model.options.head, "class_token", True))
    return StreamAttention(
        spec.modality,
        numbers,
        place + 1,
        len(clips),
        times,
        guess,
        even,
        pathways,
        pictures,
        reading.whole_frame,
    )


@torch.no_grad()
def _ask(
    model: Recognizer, clip_BCTHW: torch.Tensor, names: Sequence[str]
) -> tuple[list[NDArray[np.float64]], tuple[str, float]]:
    """Return the weights `(heads, T)` of each pathway and the likeliest class of one clip."""
    clip_BCTHW = clip_BCTHW.to(model.device)
    weights = [one[0].double().cpu().numpy() for one in model.attention(clip_BCTHW)]
    was_training = model.training
    model.eval()
    try:
        shares = model(clip_BCTHW)[0].double().softmax(0).cpu()
    finally:
        model.train(was_training)
    best = int(shares.argmax())
    return weights, (names[best], float(shares[best]))


def _windows(numbers: Sequence[int], steps: int, stride: int) -> list[list[int]]:
    """Return the frame numbers each step in time stands for: `stride` of the clip, one step after another."""
    return [list(numbers[step * stride : (step + 1) * stride]) for step in range(steps)]


def _thumbnails(
    video: Video,
    frames: dict[int, Frames],
    wanted: Sequence[int],
    box: tuple[int, int, int, int],
    modality: str,
) -> dict[int, Frames]:
    """Return pictures of what is inside the crop: cut from the video itself, or the flow in colour.

    The network sees every frame squeezed to a fixed size; here it has the shape it has in the video.
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
    """Lengthen stored flow until its longest vectors show at full brightness, four times at most."""
    centred = flow_THWC.astype(np.float32) - 127.5
    longest = float(np.percentile(np.hypot(centred[..., 0], centred[..., 1]), 99.5))
    factor = min(_LOUDEST, max(1.0, 127.5 / max(longest, 1.0)))
    return np.asarray(np.clip(np.rint(127.5 + factor * centred), 0, 255), np.uint8)
