"""Selects the frames of a clip. Frame numbers are 1-based, as in file names; starts are 0-based.

The protocols `single`, `multi`, `uniform`, `sliding` and `train` are two-stream's own. The other protocols select
exactly the same frames as published code, including its errors:

- `paper-*` (LateTemporalModeling3DCNN): In a video longer than a clip, the last frame is never read. Test clips of
  most videos also skip the first frame. A video has a second test clip only if it has at least twice the clip length
  plus three frames.
- `efficient3d-*` (Efficient-3DCNNs): `clip_length * stride` adjacent frames are selected, and then every `stride`-th of
  them. If fewer frames are left in the video, they are looped from the start of the window. A random clip never starts
  at the last possible frame. `windows` selects only `clip_length` adjacent frames, and loops them if `stride` is above
  1. It accepts a video of one frame, which the published data set leaves out.
- `3dresnets-*` (3D-ResNets-PyTorch): First, a list of every `stride`-th frame of the video is made. Starts are
  positions in this list. `even` and `sliding` use the list only for their starts and select adjacent frames, like the
  published `main.py` with `--sample_t_stride`. `windows` selects windows of adjacent frames first, and then every
  `stride`-th frame of each window. A short last window is looped from its own first frame.
- `co3d-*` (PySlowFast): Frames are spread evenly over `[start, start + clip_length * stride - 1]`, clamped to the video
  and rounded down. The distance between frames is slightly larger than `stride`.
- `segments-*` (TSN, arXiv 1608.00859): The video is divided into equal parts, and some frames of each part are
  selected, as in mmaction2. Its `SampleFrames` returns one clip of the whole video, or two clips with twice-sampling.
  Its `UniformSample` returns several clips, each with other frames of the same parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

import numpy as np

from two_stream.errors import SettingsError
from two_stream.runtime.device import rng
from two_stream.types import InputSpec

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

SEGMENT_PROTOCOLS = ("segments-train", "segments-single", "segments-twice", "segments-uniform")
STANDARD = ("single", "multi", "uniform", "sliding", "train")
PAPER = ("paper-single", "paper-multi", "paper-train", "paper-val")
PROTOCOLS = (*STANDARD, *PAPER, *FAMILY_PROTOCOLS, *SEGMENT_PROTOCOLS)

FAMILIES = ("efficient3d", "3dresnets", "co3d")
"""codebases whose frame choice `data.sampling` accepts"""

DEFAULT_CLIPS = 10
"""clips of the `uniform` protocol when their number is not given"""


def sample_clips(
    protocol: str,
    num_frames: int,
    clip_length: int,
    *,
    stride: int = 1,
    num_clips: int | None = None,
    step: int | None = None,
    offset: int | Sequence[int] | None = None,
    rng: np.random.Generator | None = None,
) -> list[list[int]]:
    """Return the frame numbers (1-based) of each clip of a video.

    A video shorter than a clip is looped. `single` returns one centred clip. `multi` returns as many adjacent clips as
    fit, and leaves out the same number of frames at both ends. `uniform` spreads `num_clips` clips evenly from the
    first to the last frame. `sliding` starts a clip every `step` frames, and its last clip ends at the last frame.
    `train` returns one random clip. Protocols for segments take one frame from each of `clip_length` equal parts of the
    video.

    Args:
        protocol: `single`, `multi`, `uniform`, `sliding`, `train`, the published `paper-single`, `paper-multi`,
            `paper-train`, `paper-val`, one of `FAMILY_PROTOCOLS` or one of `SEGMENT_PROTOCOLS`.
        num_frames: Frames of the video, at least 1.
        clip_length: Frames of a clip.
        stride: Step between neighbouring frames of a clip; the paper's protocols support only 1.
        num_clips: Clips of `uniform` and `segments-uniform` (default 10), segments of `paper-train` and `paper-val`
            (default 1), clips of a family's even choice (default: the published number).
        step: Frames between the starts of `sliding` clips; default half a clip (a family's: a whole one).
        offset: Frames before the clip (0-based start) for `train` and `<family>-random`; one per segment for
            `paper-train` and `segments-train`.
        rng: Where `train`, `paper-train`, `segments-train` and `<family>-random` draw the offset from when none is
            given.

    Raises:
        SettingsError: Unknown protocol, a number out of range, or a training protocol without offset and rng.
    """
    for name, value in (("num_frames", num_frames), ("clip_length", clip_length), ("stride", stride)):
        if value < 1:
            raise SettingsError(f"sample_clips: {name} is {value}: expected at least 1")
    if protocol not in PROTOCOLS:
        raise SettingsError(f"unknown sampling protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    if protocol in SEGMENT_PROTOCOLS:
        return segment_clips(
            protocol, num_frames, (clip_length, 1), stride=stride, num_clips=num_clips, offset=offset, rng=rng
        )
    if protocol in FAMILY_PROTOCOLS:
        return _family_clips(
            protocol,
            num_frames,
            clip_length,
            stride=stride,
            num_clips=num_clips,
            step=step,
            choose=_chooser(offset, rng),
            draw=_real_chooser(offset, rng),
        )
    if protocol in PAPER:
        if stride != 1:
            raise SettingsError(
                f"sampling protocol {protocol!r} requires `stride` 1, found {stride}; use stride 1 "
                "or a standard protocol"
            )
        if protocol in ("paper-train", "paper-val"):
            return _paper_segments(protocol, num_frames, clip_length, num_clips or 1, _chooser(offset, rng))
        starts = _paper_test_starts(protocol, num_frames, clip_length)
    elif protocol == "train":
        starts = [_chooser(offset, rng)(0, train_offsets(num_frames, clip_length, stride))]
    else:
        starts = _standard_starts(protocol, num_frames, clip_length, stride, num_clips, step)
    return [_looped(start, num_frames, clip_length, stride) for start in starts]


def segment_clips(
    protocol: str,
    num_frames: int,
    segments: tuple[int, int],
    *,
    stride: int = 1,
    num_clips: int | None = None,
    offset: int | Sequence[int] | None = None,
    rng: np.random.Generator | None = None,
) -> list[list[int]]:
    """Return the frame numbers (1-based) of clips made of segments; a video that ends inside a segment is looped.

    `segments` contains the number of segments and the number of frames in each. For `segments-train`, `offset` is the
    start (0-based) of each segment; without `offset`, the starts are drawn from `rng`. The other arguments are
    explained in `sample_clips`.
    """
    count, frames = segments
    clips = DEFAULT_CLIPS if num_clips is None else num_clips
    if clips < 1:
        raise SettingsError(f"sample_clips: num_clips is {clips}: expected at least 1")
    if protocol != "segments-train":
        starts = _segment_starts(protocol, num_frames, count, clip_span(frames, stride), clips)
    elif offset is None and rng is not None:
        starts = [drawn_starts(num_frames, count, frames, stride, rng)]
    else:
        choose = _chooser(offset, rng)
        allowed = allowed_starts(num_frames, count, frames, stride)
        starts = [[choose(place, part) for place, part in enumerate(allowed)]]
    return [
        [number for start in clip for number in _looped(start, num_frames, frames, stride)] for clip in starts
    ]


def clips_for(
    spec: InputSpec,
    protocol: str,
    num_frames: int,
    *,
    num_clips: int | None = None,
    step: int | None = None,
    rng: np.random.Generator | None = None,
) -> list[list[int]]:
    """Return the frame numbers (1-based) of each clip of a video for a network with this input; see `sample_clips`."""
    if protocol in SEGMENT_PROTOCOLS and spec.segments:
        parts = (spec.segments, spec.clip_length // spec.segments)
        return segment_clips(protocol, num_frames, parts, stride=spec.stride, num_clips=num_clips, rng=rng)
    if spec.segments not in (0, spec.clip_length):
        raise SettingsError(
            f"sliding clips of a network with {spec.clip_length // spec.segments} frames in each of {spec.segments} "
            "segments are not supported; set `views` to single, twice or uniform"
        )
    return sample_clips(
        protocol, num_frames, spec.clip_length, stride=spec.stride, num_clips=num_clips, step=step, rng=rng
    )


def training_protocol(sampling: str, clip: str = "random") -> str:
    """Return the protocol of a training clip.

    Args:
        sampling: `standard`, `paper`, `segments` or a family, as in `DataOptions.sampling`.
        clip: `random`, `center` or `begin`.
    """
    if sampling == "segments":
        return {"random": "segments-train", "center": "segments-single"}[clip]
    if sampling == "paper":
        return "paper-train"
    if sampling == "standard":  # a clip from the first frame on has no quirk in either family
        return {"random": "train", "center": "single", "begin": "efficient3d-begin"}[clip]
    return f"{sampling}-{clip}"


def evaluation_protocol(sampling: str, views: str, num_clips: int | None = None) -> tuple[str, int | None]:
    """Return the sampling protocol of an evaluation, and the number of clips if it is given or fixed.

    If the published code has no protocol for the requested views, the standard protocol is used. A clip of segments
    spans the whole video, so for `multi` there is only one clip. For `sliding`, clips are windows of adjacent frames.

    Args:
        sampling: `standard`, `paper`, `segments` or a family, as in `DataOptions.sampling`.
        views: `single`, `multi`, `uniform`, `sliding` or `twice`, as in `EvaluateOptions.views`.
        num_clips: Clips of `uniform`.

    Raises:
        SettingsError: `twice` without segments.
    """
    if sampling == "segments" and views != "sliding":
        return f"segments-{'single' if views == 'multi' else views}", num_clips
    if views == "twice":
        raise SettingsError(
            "`views: twice` requires a network whose clips consist of segments; use uniform views"
        )
    if sampling == "paper" and views in ("single", "multi"):
        return f"paper-{views}", None
    if sampling in FAMILIES and views == "single":
        return f"{sampling}-center", 1
    family = {
        ("efficient3d", "sliding"): ("efficient3d-windows", 0),
        ("efficient3d", "uniform"): ("efficient3d-windows", num_clips),
        ("3dresnets", "sliding"): ("3dresnets-sliding", None),
        ("3dresnets", "uniform"): ("3dresnets-even", num_clips),
        ("co3d", "uniform"): ("co3d-even", num_clips),
    }
    return family.get((sampling, views), (views, num_clips))


def sampling_of(spec: InputSpec, sampling: str) -> str:
    """Return `segments` for a network whose clips consist of segments, otherwise the given sampling."""
    return "segments" if spec.segments else sampling


def reorder_frames(clip: Sequence[int], order: str, *key: object) -> list[int]:
    """Return the frame numbers of a clip in the order in which they enter the network.

    Args:
        clip: Frame numbers in the order of time.
        order: `natural`, `reversed`, or `shuffled`: a permutation that depends on `key` alone.
        key: What the permutation is drawn from, for example seed, epoch and video.
    """
    if order == "reversed":
        return list(clip[::-1])
    if order == "shuffled":
        return [clip[place] for place in rng("frame order", *key).permutation(len(clip))]
    return list(clip)


def clip_span(clip_length: int, stride: int) -> int:
    """Return the number of frames from the first to the last frame of a clip, both included."""
    return (clip_length - 1) * stride + 1


def train_offsets(num_frames: int, clip_length: int, stride: int = 1) -> range:
    """Return the starts (0-based) that a training clip can have.

    A clip can start wherever it fits into the video. A video shorter than a clip is looped, and the clip can start at
    every frame.
    """
    last = num_frames - clip_span(clip_length, stride)
    return range(last + 1) if last >= 0 else range(num_frames)


def paper_train_offsets(num_frames: int, clip_length: int, segments: int = 1) -> list[range]:
    """Return, for each segment, the starts (0-based) from which the published training protocol draws.

    If the video is longer than a clip, the published code counts one frame too few. For a shorter video, the published
    code multiplies the random offset by the index of the segment, so that the first segment always starts at the first
    frame.
    """
    if num_frames <= clip_length:
        return [
            range(0, segment * (num_frames - 1) + 1, max(segment, 1)) if segment else range(1)
            for segment in range(segments)
        ]
    shift, slack = _paper_grid(num_frames, clip_length, segments)
    return [range(segment * shift, segment * shift + slack + 1) for segment in range(segments)]


def _chooser(
    offset: int | Sequence[int] | None, rng: np.random.Generator | None
) -> Callable[[int, range], int]:
    """Return a function (segment, allowed starts) -> start, which returns the given offset or a random start."""

    def choose(segment: int, allowed: range) -> int:
        if offset is None:
            if rng is None:
                raise SettingsError("sample_clips: a training protocol needs `offset` or `rng`")
            return allowed[int(rng.integers(len(allowed)))]
        given = offset if isinstance(offset, int) else offset[segment]
        if given not in allowed:
            raise SettingsError(f"sample_clips: offset is {given}: expected {allowed[0]} to {allowed[-1]}")
        return given

    return choose


def _real_chooser(
    offset: int | Sequence[int] | None, rng: np.random.Generator | None
) -> Callable[[float], float]:
    """Return a function (largest start) -> start, which returns the given offset or a random start as a float."""

    def choose(largest: float) -> float:
        if isinstance(offset, int):
            return float(offset)
        if rng is None:
            raise SettingsError("sample_clips: a training protocol needs `offset` or `rng`")
        return float(rng.uniform(0.0, largest))

    return choose


def _looped(start: int, num_frames: int, clip_length: int, stride: int) -> list[int]:
    return [(start + index * stride) % num_frames + 1 for index in range(clip_length)]


def _standard_starts(
    protocol: str, num_frames: int, clip_length: int, stride: int, num_clips: int | None, step: int | None
) -> list[int]:
    slack = num_frames - clip_span(clip_length, stride)
    if protocol == "uniform":
        count = DEFAULT_CLIPS if num_clips is None else num_clips
        if count < 1:
            raise SettingsError(f"sample_clips: num_clips is {count}: expected at least 1")
        if slack <= 0 or count == 1:
            return [max(slack, 0) // 2] * count
        return [round(slack * index / (count - 1)) for index in range(count)]
    if slack <= 0:
        return [0]
    if protocol == "single":
        return [slack // 2]
    if protocol == "multi":
        length = clip_length * stride
        count = 1 + slack // length
        return [(slack - (count - 1) * length) // 2 + index * length for index in range(count)]
    step = max(1, clip_span(clip_length, stride) // 2) if step is None else step
    if step < 1:
        raise SettingsError(f"sample_clips: step is {step}: expected at least 1")
    starts = list(range(0, slack + 1, step))
    return starts if starts[-1] == slack else [*starts, slack]


def _paper_grid(num_frames: int, clip_length: int, segments: int) -> tuple[int, int]:
    """Return the distance between segments and the largest offset in a segment, computed as in the published code."""
    average = (num_frames - 1) // segments
    if average >= clip_length:
        return average, average - clip_length
    shift = (num_frames - 1 - clip_length) // segments
    return shift, shift


def _paper_segments(
    protocol: str, num_frames: int, clip_length: int, segments: int, choose: Callable[[int, range], int]
) -> list[list[int]]:
    if protocol == "paper-train":
        allowed = paper_train_offsets(num_frames, clip_length, segments)
        starts = [choose(segment, starts) for segment, starts in enumerate(allowed)]
    elif num_frames <= clip_length:
        starts = [segment * ((num_frames - 1) // segments) for segment in range(segments)]
    else:
        shift, slack = _paper_grid(num_frames, clip_length, segments)
        # as published: rounded up where the segments do not overlap, otherwise down
        middle = (slack + 1) // 2 if shift - slack == clip_length else slack // 2
        starts = [segment * shift + middle for segment in range(segments)]
    return [_looped(start, num_frames, clip_length, 1) for start in starts]


def _paper_test_starts(protocol: str, num_frames: int, clip_length: int) -> list[int]:
    if num_frames <= clip_length:
        return [0]
    if protocol == "paper-single":
        return [(num_frames - clip_length) // 2]
    count = (num_frames - 3) // clip_length
    if count < 1:
        return [0]
    first = (num_frames - count * clip_length) // 2
    return [first + index * clip_length for index in range(count)]


def _family_clips(
    protocol: str,
    num_frames: int,
    clip_length: int,
    *,
    stride: int,
    num_clips: int | None,
    step: int | None,
    choose: Callable[[int, range], int],
    draw: Callable[[float], float],
) -> list[list[int]]:
    """Return the frame numbers (1-based) of each clip for a protocol in `FAMILY_PROTOCOLS`; see `sample_clips`.

    `choose` returns the start for `efficient3d-random` and `3dresnets-random`. `draw` returns the start for
    `co3d-random`, a real number from 0 to its argument. If `num_clips` is 0, `efficient3d-windows` returns adjacent
    windows, as in the published test code.
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
    if count < 2:  # the published code divides by zero
        raise SettingsError(f"sample_clips: num_clips is {count}: expected at least 2 for {protocol!r}")
    apart = max(1, ceil((len(thinned) - 1 - clip_length) / (count - 1)))
    return _windows(thinned, clip_length, apart, count)


def looped(frames: Sequence[int], size: int) -> list[int]:
    """Return the first `size` frames, starting over if there are fewer (`LoopPadding`)."""
    return [frames[place % len(frames)] for place in range(size)]


def efficient_windows(num_frames: int, clip_length: int, samples: int) -> list[tuple[int, int]]:
    """Return the first and last frame of each sample that Efficient-3DCNNs takes from a video.

    If `samples` is 0, the windows are adjacent; if it is 1, the sample is the whole video; otherwise the windows are
    evenly spaced. As in the published code, there are often more windows than requested. No window starts at the last
    frame, so a video of one frame has no windows.
    """
    if samples == 1:
        return [(1, num_frames)]
    step = clip_length
    if samples > 1:
        step = max(1, ceil((num_frames - 1 - clip_length) / (samples - 1)))
    return [(first, min(num_frames, first + clip_length - 1)) for first in range(1, num_frames, step)]


def _start(kind: str, count: int, size: int, choose: Callable[[int, range], int]) -> int:
    if kind == "begin":
        return 0
    if kind == "center":
        return max(0, count // 2 - size // 2)
    return choose(0, range(max(0, count - size - 1) + 1))


def _windows(thinned: range, size: int, step: int, most: int | None) -> list[list[int]]:
    """Return windows of adjacent frames that start at every `step`-th frame of `thinned`; a short one is looped."""
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
    """Return evenly spread frames with the float32 rounding of `torch.linspace`, which can change a frame number.

    `torch.linspace` counts from both ends with fused multiply-adds. This function therefore computes sums in float64
    and rounds them once.
    """
    first, last = np.float32(start), np.float32(end)
    apart = np.float64((last - first) / np.float32(max(clip_length - 1, 1)))
    place = np.arange(clip_length, dtype=np.float64)
    exact = np.where(
        place < clip_length // 2, first + apart * place, last - apart * (clip_length - 1 - place)
    )
    places = exact.astype(np.float32).clip(0, num_frames - 1)
    return [int(value) + 1 for value in places]


def _segment_starts(
    protocol: str, num_frames: int, segments: int, span: int, num_clips: int
) -> list[list[int]]:
    """Return, for each clip of an evaluation, the start (0-based) of every segment.

    `segments-single` takes the middle frame of each part; segments of several frames are spread evenly from the first
    frame to the last. `segments-twice` adds a clip of the first frame of each part, or, with several frames per
    segment, the clip that `segments-uniform` returns if `num_clips` is 1. `segments-uniform` divides each part among
    `num_clips` clips. A segment spans `span` frames.
    """
    if protocol == "segments-uniform":
        return [_shared(num_frames, segments, span, clip, num_clips) for clip in range(num_clips)]
    places = range(segments)
    room = max(0, num_frames - span)
    if span == 1:
        part = num_frames / segments
        clips = [[int(place * part + part / 2) for place in places], [int(place * part) for place in places]]
    else:
        apart = room / max(1, segments - 1)
        single = [round(place * apart) for place in places] if segments > 1 else [room // 2]
        clips = [single, _shared(num_frames, segments, span, 0, 1)]
    return clips if protocol == "segments-twice" else clips[:1]


def drawn_starts(
    num_frames: int, segments: int, frames: int, stride: int, rng: np.random.Generator
) -> list[int]:
    """Draw the start (0-based) of every segment of a training clip.

    `UniformSample` and `SampleFrames` are each used with probability 1/2. The parts of `UniformSample` cover every
    frame of the video. The parts of `SampleFrames` have a whole number of frames, so up to one frame per part may be
    left out at the end of the video.
    """
    if rng.random() < 0.5:
        return [
            int(rng.integers(part.start, part.stop))
            for part in uniform_parts(num_frames, segments, frames, stride)
        ]
    allowed = sampled_parts(num_frames, segments, frames, stride)
    starts = [int(rng.integers(part.start, part.stop)) for part in allowed]
    return sorted(starts) if allowed[0] == allowed[-1] else starts


def allowed_starts(num_frames: int, segments: int, frames: int, stride: int) -> list[range]:
    """Return, for each segment, the range of starts that a training clip can have with either sampler."""
    both = (parts(num_frames, segments, frames, stride) for parts in (sampled_parts, uniform_parts))
    return [range(min(a[0], b[0]), max(a[-1], b[-1]) + 1) for a, b in zip(*both)]


def uniform_parts(num_frames: int, segments: int, frames: int, stride: int) -> list[range]:
    """Return, for each segment, the starts that `UniformSample` draws from; adjacent ranges share one start."""
    part = max(0, num_frames - 1 - (frames - 1) * stride) / segments
    return [range(round(place * part), round((place + 1) * part) + 1) for place in range(segments)]


def sampled_parts(num_frames: int, segments: int, frames: int, stride: int) -> list[range]:
    """Return, for each segment, the starts that `SampleFrames` draws from.

    If the video has too few frames for separate parts, but more than a segment covers, every segment may start
    anywhere, and the draws are sorted. In a shorter video, the starts are fixed; if a start is after the last frame,
    the video is looped.
    """
    taken = frames * stride
    part = (num_frames - taken + 1) // segments
    if part > 0:
        return [range(place * part, (place + 1) * part) for place in range(segments)]
    if num_frames > max(segments, taken):
        return [range(num_frames - taken + 1)] * segments
    apart = (num_frames - taken + 1) / segments if part == 0 else 0.0
    return [range(start, start + 1) for start in (round(place * apart) for place in range(segments))]


def _shared(num_frames: int, segments: int, span: int, clip: int, num_clips: int) -> list[int]:
    """Return the starts of the segments of one clip out of `num_clips`, rounded as in `UniformSample`."""
    part = max(0, num_frames - span) / segments
    inside = int(part / (num_clips + 1) * (clip + 1))
    return [round(place * part) + inside for place in range(segments)]
