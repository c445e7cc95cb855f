"""Contact strips for the report: a few frames of a video next to each other, as a data URI."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from two_stream.config.schema import Experiment
from two_stream.data.catalog import Record, dataset_record
from two_stream.data.sources.files import FrameFolders, VideoFiles
from two_stream.data.sources.segments import segments_of
from two_stream.data.splits import numbered_records
from two_stream.errors import TwoStreamError
from two_stream.types import Modality, Part
from two_stream.video.decoding.reader import open_video
from two_stream.video.frames import count_frames, read_frames

FRAMES = 6
HEIGHT = 72
_QUALITY = 80
_GAP = 2
_PARTS: tuple[Part, ...] = ("test", "train")


def strip(experiment: Experiment | None, video_id: str, modality: str = "rgb") -> tuple[str, str]:
    """Return `(data URI of a JPEG strip, "")`, or `("", reason)` if there is no strip.

    Frames are evenly spaced from the first to the last. The strip shows stored RGB frames or
    frames of the video. If a flow run has neither on this machine, the strip shows flow (hue: direction, brightness:
    length).

    `experiment` contains the settings of the run that scored the video, and `modality` is the run's modality.
    """
    if experiment is None:
        return "", "the run folder of these scores is not on this machine"
    reasons = []
    for source, kind in _sources(experiment, modality):
        try:
            frames = _frames(experiment, video_id, source, kind)
            return encode(frames), ""
        except (TwoStreamError, OSError, cv2.error) as error:
            reasons.append(" ".join(str(error).split()))
    return "", reasons[0] if reasons else "no frames"


def encode(frames_THWC: NDArray[np.uint8]) -> str:
    """Return RGB frames `(T, H, W, 3)` next to each other as the data URI of a JPEG image of height `HEIGHT`."""
    height, width = frames_THWC.shape[1:3]
    size = (max(1, round(width * HEIGHT / height)), HEIGHT)
    gap = np.full((HEIGHT, _GAP, 3), 255, np.uint8)
    parts: list[Any] = []
    for frame in frames_THWC:
        parts += [cv2.resize(frame, size, interpolation=cv2.INTER_AREA), gap]
    picture = cv2.cvtColor(np.concatenate(parts[:-1], axis=1), cv2.COLOR_RGB2BGR)
    done, content = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert done
    return "data:image/jpeg;base64," + base64.b64encode(content.tobytes()).decode("ascii")


def flow_picture(flow_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return stored flow `(T, H, W, 2)` as RGB.

    The hue shows the direction. The brightness shows the square root of the length; it is full at the flow bound
    (20 pixels by default).
    """
    vectors = flow_THWC.astype(np.float32) / 255 * 2 - 1
    length, angle = np.hypot(vectors[..., 0], vectors[..., 1]), np.arctan2(vectors[..., 1], vectors[..., 0])
    hsv = np.empty((*flow_THWC.shape[:3], 3), np.uint8)
    hsv[..., 0] = np.rint((angle + np.pi) / (2 * np.pi) * 179)
    hsv[..., 1] = 255
    hsv[..., 2] = np.rint(255 * np.sqrt(np.clip(length, 0, 1)))
    return np.stack([np.asarray(cv2.cvtColor(frame, cv2.COLOR_HSV2RGB), np.uint8) for frame in hsv])


def _sources(experiment: Experiment, modality: str) -> list[tuple[str, Modality]]:
    order: list[tuple[str, Modality]] = [("frames", "rgb"), ("videos", "rgb")]
    if experiment.data.source == "videos":
        order.reverse()
    return [*order, ("frames", "flow")] if modality == "flow" else order


def _frames(experiment: Experiment, video_id: str, source: str, modality: Modality) -> NDArray[np.uint8]:
    record = dataset_record(experiment.data)
    segment, length = segments_of(record).get(video_id), 0
    if segment is not None:
        length = _listed_frames(record, video_id, experiment.data.split, experiment.model.reads)
        video_id = segment.video
    before = segment.first - 1 if segment else 0
    if source == "videos":
        files = VideoFiles(record, "rgb", experiment.data.backend, experiment.data.flow)
        with open_video(files.path(video_id), experiment.data.backend) as video:
            return video.read([before + number - 1 for number in _spread(length or video.num_frames)])
    folder: Path = FrameFolders(record, modality).folder(video_id)
    patterns = record.frame_patterns
    numbers = [before + number for number in _spread(length or count_frames(folder, modality, patterns))]
    frames = read_frames(folder, numbers, modality, patterns)
    return flow_picture(frames) if modality == "flow" else frames


def _listed_frames(record: Record, video_id: str, split: int, modality: Modality) -> int:
    """Return the number of frames of a segment in the split lists; 0 if it is not listed."""
    paths = [record.list_path(part, modality, split) for part in _PARTS] + [
        record.holdout_path(modality, split)
    ]
    for path in filter(Path.is_file, paths):
        for _, listed in numbered_records(path, multi_label=record.multi_label):
            if listed.id == video_id:
                return listed.num_frames
    return 0


def _spread(count: int) -> list[int]:
    """Return up to `FRAMES` evenly spaced numbers from 1 to `count`."""
    return np.unique(np.rint(np.linspace(1, count, FRAMES)).astype(np.int64)).tolist() if count > 0 else []
