"""Views: which clips and crops of a video are scored, and how a table names the choice."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch

from two_stream.config.schema import EvaluateOptions
from two_stream.data.catalog import Mirror
from two_stream.data.clips.transforms import View, evaluation_views
from two_stream.data.clips.views import boxes_and_flips, changes_flow_sign, evaluation_clips
from two_stream.types import Frames, InputSpec, VideoViews

_CLIPS = {
    "single": "single clip",
    "multi": "multi-clip",
    "uniform": "uniform clips",
    "sliding": "sliding window",
    "twice": "twice-sampled clips",
}
_WHOLE = "whole frame"
_CROPS = {
    "center": "centre crop",
    "three": "three-crop",
    "ten": "ten-crop",
    "full": f"{_WHOLE} + mirror",
}
_NO_MIRROR = {"ten": "five-crop (ten-crop without mirror images)", "full": _WHOLE}
"""crops with mirror images, without them"""


def clip_frames(
    options: EvaluateOptions, spec: InputSpec, num_frames: int, sampling: str = "standard"
) -> list[list[int]]:
    """Return the 1-based frame numbers of each clip of a video.

    Args:
        options: How videos are scored.
        spec: Clip length and stride.
        num_frames: Frames of the spec's modality; a video shorter than a clip is looped.
        sampling: `paper` takes the published frame choice for single and multi-clip views, a family its own.

    Raises:
        SettingsError: A number is out of range, or `paper` with a stride other than 1.
    """
    return evaluation_clips(options, spec, num_frames, sampling)


def crop_views(options: EvaluateOptions, spec: InputSpec, mirror: Mirror | None = None) -> list[View]:
    """Return the crop boxes `(y0, x0, y1, x1)` in the resized frame, mirrored ones marked, in the published order.

    Args:
        options: Crops.
        spec: Size of frame and crop; for whole frames what `view_spec` returns.
        mirror: Whether there are mirror images; none: there are.
    """
    allowed = mirror is None or mirror.allowed
    return evaluation_views(options.crops, spec.resize, spec.size, mirrored=allowed)


def views_of_clip(
    frames_THWC: Frames, crops: Sequence[View], spec: InputSpec, protocol: str = "standard"
) -> VideoViews:
    """Return every crop of one clip, as views of its frames.

    Args:
        frames_THWC: uint8 `(T, *spec.resize, C)`.
        crops: From `crop_views`.
        spec: Crop size and modality.
        protocol: `paper` leaves flow x as it is in mirrored crops.
    """
    rows = torch.arange(len(frames_THWC))[None]
    boxes, flips = boxes_and_flips(crops)
    signed = changes_flow_sign(spec, protocol)
    return VideoViews("video", 0, torch.from_numpy(frames_THWC), rows, boxes, flips, signed)


def assemble_clips(
    clips: Sequence[Sequence[int]], frames: Iterator[tuple[int, Frames]]
) -> Iterator[list[Frames]]:
    """Turn a stream of frames into clips, holding only the frames that a clip still needs.

    Args:
        clips: 1-based frame numbers of each clip.
        frames: (number, frame), in ascending order of the number, from 1.

    Yields:
        The frames of each clip, in the order in which the clips become complete. A stream that ends early leaves
        its last clips out.
    """
    waiting = deque(enumerate(sorted(clips, key=max)))
    last_use = {number: place for place, clip in waiting for number in clip}
    held: dict[int, Frames] = {}
    for number, frame in frames:
        if number in last_use:
            held[number] = frame
        while waiting and max(waiting[0][1]) <= number:
            place, clip = waiting.popleft()
            yield [held[wanted] for wanted in clip]
            for done in {wanted for wanted in clip if last_use[wanted] == place}:
                del held[done]
        if not waiting:
            return


def describe_views(
    options: EvaluateOptions,
    sampling: str = "standard",
    mirror: Mirror | None = None,
    *,
    whole_frame: bool = False,
) -> str:
    """Return the protocol as tables name it, for example `multi-clip × ten-crop, mean of logits`.

    Args:
        options: Clips, crops, aggregation, precision.
        sampling: Frame choice.
        mirror: Whether there are mirror images.
        whole_frame: Whether a centred crop is the whole frame; see `view_spec`.
    """
    mirror = mirror or Mirror()
    whole = sampling == "segments" and options.views != "sliding"
    clips = _CLIPS["single" if whole and options.views == "multi" else options.views]
    if options.views == "uniform":
        clips = f"{options.num_clips} uniform clips"
    elif options.views == "sliding":
        clips += f" every {options.step} frames" if options.step else " every half clip"
    mirrors = options.crops in _NO_MIRROR
    crops = _CROPS[options.crops] if mirror.allowed or not mirrors else _NO_MIRROR[options.crops]
    if whole_frame and options.crops == "center":
        crops = _WHOLE
    parts = [f"{clips} × {crops}", f"mean of {options.aggregate}"]
    if mirrors and mirror.labels is not None:
        parts.append("mirrored classes exchanged")
    if sampling == "paper":
        parts.append("published frame choice")
    elif whole:
        parts.append("segments of the whole video")
    elif sampling not in ("standard", "segments"):
        parts.append(f"frame choice of {sampling}")
    if options.precision != "fp32":
        parts.append(options.precision)
    return ", ".join(parts)


def same_boxes_note(options: EvaluateOptions, spec: InputSpec) -> str | None:
    """Return what to say where several crops of a frame are one and the same box, which costs time alone."""
    if spec.size != spec.resize or options.crops not in ("three", "ten"):
        return None
    others = (
        "full` gives the same scores with a fifth of the work, `center`, which has no mirror, takes a tenth"
    )
    if options.crops == "three":
        others = "center` gives the same scores with a third of the work"
    return (
        f"`evaluate.crops: {options.crops}` cuts the same box every time, for the network takes the whole resized "
        f"frame; `{others}"
    )


def slug(options: EvaluateOptions) -> str:
    """Return the protocol as a part of a file name, for example `multi_ten_logits`; no two protocols share one."""
    clips: str = options.views
    if options.views == "uniform":
        clips += str(options.num_clips)
    elif options.views == "sliding" and options.step:
        clips += str(options.step)
    precision = "" if options.precision == "fp32" else f"_{options.precision}"
    return f"{clips}_{options.crops}_{options.aggregate}{precision}"
