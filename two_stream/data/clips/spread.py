"""Clips of segments: a video is cut into equal parts, and every part gives some frames (TSN, arXiv 1608.00859).

The choice is that of two samplers of mmaction2, frame by frame: `SampleFrames` (one clip of the whole video, or two by
twice-sampling) and `UniformSample` (several clips, which share the parts between them). Starts are 0-based.
"""

from __future__ import annotations

import numpy as np

SEGMENT_PROTOCOLS = ("segments-train", "segments-single", "segments-twice", "segments-uniform")


def segment_starts(
    protocol: str, num_frames: int, segments: int, span: int, num_clips: int
) -> list[list[int]]:
    """Return the start (0-based) of every segment, per clip of an evaluation.

    `segments-single` takes the middle of each part; several frames of a segment are laid from the first frame to the
    last. `segments-twice` adds the clip of the parts' first frames; of several frames a segment that of
    `segments-uniform`. `segments-uniform` divides each part among `num_clips` clips.

    Args:
        protocol: One of `SEGMENT_PROTOCOLS` but `segments-train`.
        num_frames: Frames of the video.
        segments: Parts.
        span: Frames from the first to the last frame of a segment, both counted.
        num_clips: Clips of `segments-uniform`.
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

    At even odds as either sampler draws it: `UniformSample` reaches every frame of the video, while the parts of
    `SampleFrames` have whole numbers of frames, and leave up to a frame per part at the end to the other.
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
    """Return, per segment, the starts a training clip may have: those of either sampler, and what lies between."""
    both = (parts(num_frames, segments, frames, stride) for parts in (sampled_parts, uniform_parts))
    return [range(min(a[0], b[0]), max(a[-1], b[-1]) + 1) for a, b in zip(*both)]


def uniform_parts(num_frames: int, segments: int, frames: int, stride: int) -> list[range]:
    """Return, per segment, the starts that `UniformSample` draws from; neighbouring parts share the frame between."""
    part = max(0, num_frames - 1 - (frames - 1) * stride) / segments
    return [range(round(place * part), round((place + 1) * part) + 1) for place in range(segments)]


def sampled_parts(num_frames: int, segments: int, frames: int, stride: int) -> list[range]:
    """Return, per segment, the starts that `SampleFrames` draws from.

    Where the video has too few frames for parts of its own, but more than a segment takes in, every segment may start
    anywhere, and what is drawn is sorted. In a shorter one the starts are fixed, and the last of them may lie behind
    the end, where a video is looped.

    Args:
        num_frames: Frames of the video.
        segments: Parts.
        frames: Frames of a segment.
        stride: Step between them.
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
    """Return the starts of one of several clips that share the parts, rounded as `UniformSample` does."""
    part = max(0, num_frames - span) / segments
    inside = int(part / (num_clips + 1) * (clip + 1))
    return [round(place * part) + inside for place in range(segments)]
