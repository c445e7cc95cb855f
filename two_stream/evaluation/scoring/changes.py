"""Controlled changes of the clips of an evaluation, which show what a trained network uses.

A change replaces the frames of a clip before it is cropped, and keeps the number of frames. The views under all
changes are made from frames that are read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from two_stream.data.clips.sampling import reorder_frames
from two_stream.types import InputSpec, VideoViews

NATURAL = "natural"
_MARK = "\n"
"""separates the change and the id of a video; ids contain no line break"""
_SHRINK = 8
_ZERO = 128
"""stored value of a displacement of 0; see `video/flow.py`"""
Change = Callable[[VideoViews], VideoViews]


@dataclass(frozen=True)
class ClipChange:
    """A change, and what it takes away from a clip."""

    name: str
    removes: str
    """what the changed clip lacks, in words"""
    apply: Change
    leaves: str = ""
    """what the changed clip consists of, if its accuracy is compared with guessing"""


def _rows(order: Callable[[int], Sequence[int]]) -> Change:
    """Return a change that only shows the frames of a clip in another order; `order` receives the number of frames."""

    def change(item: VideoViews) -> VideoViews:
        return replace(item, clips=item.clips[:, torch.as_tensor(order(item.clips.shape[1]))])

    return change


def _shuffled(item: VideoViews) -> VideoViews:
    """Shuffle the frames as `data.frame_order: shuffled` does: with one permutation for each video."""
    places = reorder_frames(range(item.clips.shape[1]), "shuffled", item.id)
    return replace(item, clips=item.clips[:, torch.as_tensor(places)])


def _pixels(function: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> Change:
    """Return a change of the frames `(F, H, W, C)`, each of which is changed once."""

    def change(item: VideoViews) -> VideoViews:
        return replace(item, frames=torch.from_numpy(np.ascontiguousarray(function(item.frames.numpy()))))

    return change


def _median(item: VideoViews) -> VideoViews:
    """Repeat the median of a clip's frames: everything that moves less than half of the time, without its motion."""
    frames, middle = item.frames.numpy(), item.clips.shape[1] // 2
    found = [np.partition(frames[clip.numpy()], middle, axis=0)[middle] for clip in item.clips]
    rows = torch.arange(len(found))[:, None].expand(item.clips.shape)
    return replace(item, frames=torch.from_numpy(np.stack(found)), clips=rows)


def _grey(frames_FHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames_FHWC]
    return np.repeat(np.stack(grey)[..., None], 3, axis=-1)


def _blurred(frames_FHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = frames_FHWC.shape[1:3]
    size = (max(1, width // _SHRINK), max(1, height // _SHRINK))
    small = (cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames_FHWC)
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR) for frame in small])


def _scaled(factor: float) -> Change:
    """Return a change that multiplies stored displacements by a factor; longer ones than flow can store are cut."""
    values = np.rint(127.5 + factor * (np.arange(256) - 127.5)).clip(0, 255).astype(np.uint8)
    return _pixels(lambda frames: values[frames])


def _rewound(item: VideoViews) -> VideoViews:
    """Return the flow of the film played backwards: the fields in reverse order, with the opposite sign."""
    count, height, width, channels = item.frames.shape
    fields = item.frames.reshape(count, height, width, channels // 2, 2).flip(3)  # of a stack, also reversed
    frames = fields.reshape(
        item.frames.shape
    ).bitwise_not()  # 255 - v, in which the stored value of 0 is 127.5
    return replace(item, frames=frames, clips=item.clips.flip(1))


_SHARED = (
    ClipChange("shuffled", "the order of the frames", _shuffled),
    ClipChange("reversed", "the direction of time", _rows(lambda count: range(count)[::-1])),
    ClipChange(
        "first frame", "everything but the first frame", _rows(lambda count: [0] * count), "one frame"
    ),
    ClipChange(
        "middle frame",
        "everything but the middle frame",
        _rows(lambda count: [count // 2] * count),
        "one frame",
    ),
    ClipChange(
        "last frame", "everything but the last frame", _rows(lambda count: [count - 1] * count), "one frame"
    ),
    ClipChange("held", "every second frame", _rows(lambda count: [n - n % 2 for n in range(count)])),
    ClipChange("median", "motion", _median, "the background without motion"),
)
_CHANGES = {
    "rgb": (
        *_SHARED,
        ClipChange("grey", "colour", _pixels(_grey)),
        ClipChange("blurred", "fine detail", _pixels(_blurred)),
    ),
    "flow": (
        *_SHARED[:2],
        ClipChange("rewound", "the direction of the film", _rewound),
        *_SHARED[2:],
        ClipChange("zero", "all motion", _pixels(lambda frames: np.full_like(frames, _ZERO)), "no motion"),
        ClipChange("halved", "the right speed", _scaled(0.5)),
        ClipChange("doubled", "the right speed", _scaled(2.0)),
    ),
}
OTHER = ClipChange("other video", "the flow of this video", lambda item: item, "the flow of another video")
"""the clips of the latest earlier video of another class; `changed_views` applies it"""


def clip_changes(spec: InputSpec, labels: Iterable[int]) -> list[ClipChange]:
    """Return the changes for a network, without `NATURAL`; `labels` are the classes of the videos."""
    found = list(_CHANGES["flow" if spec.modality == "flow" else "rgb"])
    return [*found, OTHER] if spec.modality == "flow" and len(set(labels)) > 1 else found


def all_changes() -> list[ClipChange]:
    """Return all changes of RGB and flow, each once, in the order of the reports."""
    return list(dict.fromkeys((*_CHANGES["flow"], *_CHANGES["rgb"], OTHER)))


def known_change(name: str) -> ClipChange:
    """Return the change with a name; `RGB …` and `flow …` are changes of one of two fused networks."""
    stream, _, rest = name.partition(" ")
    known = {change.name: change for change in all_changes()}
    if stream not in ("RGB", "flow"):
        return known[name]
    return replace(known[rest], name=name, removes=f"{known[rest].removes} in {stream}", leaves="")


def changed_views(loader: Iterable[VideoViews], changes: Sequence[ClipChange]) -> Iterator[VideoViews]:
    """Yield the natural views of each batch of a loader, and the views under every change.

    The id of a video is preceded by the name of the change; see `split_name`.
    """
    swap = OTHER in changes
    plain = [change for change in changes if change is not OTHER]
    last: VideoViews | None = None
    other: VideoViews | None = None
    waiting: list[VideoViews] = []
    for item in loader:
        yield _named(NATURAL, item)
        for change in plain:
            yield _named(change.name, change.apply(item))
        if not swap:
            continue
        if last is not None and last.label != item.label:
            other = last
            for early in waiting:  # the first videos, which have no earlier video of another class
                yield _named(OTHER.name, _with_frames_of(item, early))
            waiting = []
        if item.first == 0:
            last = item
        if other is None:
            waiting.append(item)
        else:
            yield _named(OTHER.name, _with_frames_of(other, item))


def _named(change: str, item: VideoViews) -> VideoViews:
    return replace(item, id=f"{change}{_MARK}{item.id}")


def split_name(name: str) -> tuple[str, str]:
    """Return the name of the change and the id of the video."""
    change, _, video = name.partition(_MARK)
    return change, video


def _with_frames_of(source: VideoViews, item: VideoViews) -> VideoViews:
    """Return the views of a video with the clips of another video, which are repeated if it has fewer."""
    places = (torch.arange(len(item.clips)) + item.first) % len(source.clips)
    return replace(item, frames=source.frames, clips=source.clips[places])
