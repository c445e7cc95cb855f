"""Views: the clips and crops of a video that are scored, and the names of protocols in tables and files."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch

from two_stream.config.schema import EvaluateOptions
from two_stream.data.catalog import Mirror
from two_stream.data.clips.transforms import View, evaluation_views
from two_stream.data.clips.views import boxes_and_flips, changes_flow_sign
from two_stream.types import Frames, InputSpec, VideoViews

_CLIPS = {
    "single": "single clip",
    "multi": "multi-clip",
    "uniform": "uniform clips",
    "sliding": "sliding window",
    "twice": "twice-sampled clips",
}
_WHOLE = "whole frame"
_CROPS = {"center": "centre crop", "three": "three-crop", "ten": "ten-crop", "full": f"{_WHOLE} + mirror"}
_NO_MIRROR = {"ten": "five-crop (ten-crop without mirror images)", "full": _WHOLE}
"""names of crops that usually include mirror images, if mirroring is not allowed"""


def crop_views(crops: str, spec: InputSpec, mirror: Mirror | None = None) -> list[View]:
    """Return boxes `(y0, x0, y1, x1)` in the resized frame, and whether each crop is mirrored, in the paper's order.

    `spec` contains the sizes of the frame and the crop (for whole frames, use the result of `view_spec`). If `mirror`
    is None, mirrored crops are included.
    """
    allowed = mirror is None or mirror.allowed
    return evaluation_views(crops, spec.resize, spec.size, mirrored=allowed)


def views_of_clip(
    frames_THWC: Frames, crops: Sequence[View], spec: InputSpec, protocol: str = "standard"
) -> VideoViews:
    """Return all crops of a clip as views of its frames.

    `frames_THWC` are uint8 `(T, *spec.resize, C)`. With the protocol `paper`, mirrored crops keep the sign of flow x.
    """
    rows = torch.arange(len(frames_THWC))[None]
    boxes, flips = boxes_and_flips(crops)
    signed = changes_flow_sign(spec, protocol)
    return VideoViews("video", 0, torch.from_numpy(frames_THWC), rows, boxes, flips, signed)


def assemble_clips(
    clips: Sequence[Sequence[int]], frames: Iterator[tuple[int, Frames]]
) -> Iterator[list[Frames]]:
    """Assemble a stream of frames into clips. Only frames that are still required are kept in memory.

    Args:
        clips: Frame numbers of each clip, from 1.
        frames: Pairs `(number, frame)` in ascending order, from 1.

    Yields:
        The frames of each clip when it is complete. If the stream ends early, the last clips are missing.
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
    """Return the name of a protocol in tables, such as `multi-clip × ten-crop, mean of logits`.

    `whole_frame` is true if a centred crop is the whole frame; see `view_spec`.
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
    """Return a note if several crops of a frame are the same box, which wastes time; otherwise None."""
    if spec.size != spec.resize or options.crops not in ("three", "ten"):
        return None
    cheaper = {
        "three": "`center` gives the same scores in a third of the time",
        "ten": "`full` gives the same scores in a fifth of the time; `center`, without mirrored views, takes a tenth",
    }
    return (
        f"`evaluate.crops: {options.crops}` repeats the same box, because the network's input is the whole "
        "resized frame; "
        f"{cheaper[options.crops]}"
    )


def protocol_slug(options: EvaluateOptions) -> str:
    """Return the name of a protocol in file names, such as `multi_ten_logits`."""
    clips: str = options.views
    if options.views == "uniform":
        clips += str(options.num_clips)
    elif options.views == "sliding" and options.step:
        clips += str(options.step)
    precision = "" if options.precision == "fp32" else f"_{options.precision}"
    return f"{clips}_{options.crops}_{options.aggregate}{precision}"
