"""Frame choice of Efficient-3DCNNs, 3D-ResNets-PyTorch and co3d, as published, quirks included.

Protocols are named `<family>-<choice>`, after the namespaces of the zoo. Frame numbers are 1-based, starts 0-based.

- `efficient3d`: a window of `clip_length * stride` neighbouring frames, looped from its own front, then thinned. The
  random start is never the last possible one.
  `windows` keeps the video of one frame, which the published data set leaves out.
- `3dresnets`: the video is thinned first, so a start is a place in the thinned list. `even` and `sliding` take only
  their starts from it and cut neighbouring frames, which is what its `main.py` does under `--sample_t_stride`;
  `windows` cuts first and thins each window. A last, short window is looped from its own front.
- `co3d` (PySlowFast's): frames spread over `[start, start + clip_length * stride - 1]`, clamped to the video and
  truncated, so they lie a little further apart than `stride`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

import numpy as np

from two_stream.errors import SettingsError

FAMILY_PROTOCOLS = (
    "efficient3d-random",
    "efficient3d-begin",
    "efficient3d-center",
    "efficient3d-windows",
    "efficient3d-loop",
    "3dresnets-random",
    "3dresnets-begin",
    "3dresnets-center",
    "3dresnets-even",
    "3dresnets-sliding",
    "3dresnets-windows",
    "co3d-random",
    "co3d-even",
    "co3d-center",
)
TRAINING = ("random", "center", "begin")
"""choices that give one clip of every video, however short"""

EVEN_CLIPS = {"efficient3d-windows": 3, "3dresnets-even": 3, "co3d-even": 10, "co3d-center": 1}
"""clips per video when their number is not given: the published defaults"""

Choose = Callable[[int, range], int]
"""(segment, allowed starts) -> start"""


def family_clips(
    protocol: str,
    num_frames: int,
    clip_length: int,
    *,
    stride: int,
    num_clips: int | None,
    step: int | None,
    choose: Choose,
    draw: Callable[[float], float],
) -> list[list[int]]:
    """Return the frame numbers (1-based) of each clip; numbers are checked already.

    Args:
        protocol: One of `FAMILY_PROTOCOLS`.
        num_frames: Frames of the video.
        clip_length: Frames of a clip.
        stride: `downsample`, `sample_t_stride` or the sampling rate.
        num_clips: Clips of the even ones; 0 asks `efficient3d-windows` for neighbouring windows (its test part).
        step: Frames between the starts of sliding windows; default a window.
        choose: Picks a start of `efficient3d-random` and `3dresnets-random`.
        draw: Picks the start of `co3d-random`, a real number from 0 to its argument.

    Raises:
        SettingsError: `3dresnets-even` of one clip, where the published code divides by zero.
    """
    family, _, kind = protocol.partition("-")
    frames = range(1, num_frames + 1)
    count = EVEN_CLIPS.get(protocol, 1) if num_clips is None else num_clips
    if family == "co3d":
        return _co3d(kind, num_frames, clip_length, stride, count, draw)
    if kind in TRAINING:
        thinned = frames[::stride] if family == "3dresnets" else frames
        size = clip_length if family == "3dresnets" else clip_length * stride
        start = _start(kind, len(thinned), size, choose)
        window = looped(thinned[start : start + size], size)
        return [window if family == "3dresnets" else window[::stride]]
    if protocol == "efficient3d-loop":
        return [looped(frames, max(num_frames, clip_length * stride))]
    if protocol == "efficient3d-windows":
        windows = efficient_windows(num_frames, clip_length, count) or [(1, num_frames)]
        size = clip_length * stride
        return [looped(range(first, last + 1), size)[::stride] for first, last in windows]
    if protocol == "3dresnets-windows":
        size = clip_length * stride
        found = _windows(frames, size, step or size, None)
        return [window[::stride] for window in found]
    thinned = frames[::stride]
    if protocol == "3dresnets-sliding":
        return _windows(thinned, clip_length, step or clip_length, None)
    if count < 2:
        raise SettingsError(f"sample_clips: num_clips is {count}: expected at least 2 for {protocol!r}")
    apart = max(1, ceil((len(thinned) - 1 - clip_length) / (count - 1)))
    return _windows(thinned, clip_length, apart, count)


def looped(frames: Sequence[int], size: int) -> list[int]:
    """Return the first `size` frames, going back to the front where there are fewer (`LoopPadding`)."""
    return [frames[place % len(frames)] for place in range(size)]


def efficient_windows(num_frames: int, clip_length: int, samples: int) -> list[tuple[int, int]]:
    """Return the first and last frame of each sample Efficient-3DCNNs makes of a video.

    With 0 samples neighbouring windows, otherwise evenly spaced ones (often more than asked for, as published); the
    last frame never begins a window, so a video of one frame gives none. One sample is the whole video.
    """
    if samples == 1:
        return [(1, num_frames)]
    step = clip_length
    if samples > 1:
        step = max(1, ceil((num_frames - 1 - clip_length) / (samples - 1)))
    return [(first, min(num_frames, first + clip_length - 1)) for first in range(1, num_frames, step)]


def _start(kind: str, count: int, size: int, choose: Choose) -> int:
    if kind == "begin":
        return 0
    if kind == "center":
        return max(0, count // 2 - size // 2)
    return choose(0, range(max(0, count - size - 1) + 1))


def _windows(thinned: range, size: int, step: int, most: int | None) -> list[list[int]]:
    """Return windows of neighbouring frames that begin at every `step`-th frame of the list, up to a short one."""
    found: list[list[int]] = []
    last = thinned[-1]
    for first in thinned[::step]:
        window = range(first, min(first + size, last + 1))
        found.append(looped(window, size))
        if len(window) < size or len(found) == most:
            break
    return found


def _co3d(
    kind: str, num_frames: int, clip_length: int, stride: int, count: int, draw: Callable[[float], float]
) -> list[list[int]]:
    span = clip_length * stride
    room = float(max(num_frames - span, 0))
    if kind == "random":
        starts = [draw(room)]
    elif kind == "even":
        starts = [room * clip / count for clip in range(count)]
    else:
        starts = [max(0.0, num_frames * (2 * clip + 1) / (2 * count) - span / 2) for clip in range(count)]
    return [_spread(start, start + span - 1, num_frames, clip_length) for start in starts]


def _spread(start: float, end: float, num_frames: int, clip_length: int) -> list[int]:
    """Return evenly spread frames with torch.linspace's float32 rounding, which the truncation makes visible.

    It counts from both ends with fused multiply-adds, so sums are exact (float64 here) and rounded once.
    """
    first, last = np.float32(start), np.float32(end)
    apart = np.float64((last - first) / np.float32(max(clip_length - 1, 1)))
    place = np.arange(clip_length, dtype=np.float64)
    exact = np.where(
        place < clip_length // 2, first + apart * place, last - apart * (clip_length - 1 - place)
    )
    places = exact.astype(np.float32).clip(0, num_frames - 1)
    return [int(value) + 1 for value in places]
