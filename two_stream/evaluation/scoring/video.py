"""Scores a video file while it is decoded.

Flow is computed during decoding, and only a few clips are kept in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from two_stream.config.schema import EvaluateOptions
from two_stream.data.catalog import Mirror
from two_stream.data.clips.transforms import resize_frames, view_spec
from two_stream.data.clips.views import evaluation_clips
from two_stream.data.sources.files import stacked_numbers
from two_stream.errors import ScoreError, VideoError
from two_stream.evaluation.scores.fusion import fused_probabilities
from two_stream.evaluation.scoring.network import ClipNetwork, evaluation_mode, resolve_evaluation
from two_stream.evaluation.scoring.score import Canvas, aggregate_views, scored_views
from two_stream.evaluation.scoring.views import assemble_clips, crop_views, views_of_clip
from two_stream.recognizer import Recognizer
from two_stream.types import Frames, InputSpec, VideoViews
from two_stream.video.decoding.base import Video
from two_stream.video.decoding.memory import SeenVideo, Source, open_any, seen
from two_stream.video.extraction.one_video import ExtractOptions, frame_size, resize_frame
from two_stream.video.flow import AUTO, FLOW_BOUND, FlowEstimator, choose_flow_algorithm, to_gray

_FEWER = "gave fewer frames in the second pass than in the first; the file is damaged"


@dataclass(frozen=True)
class VideoInput:
    """Settings for reading a video for a network. The defaults are those of `two-stream extract`."""

    backend: str = "pyav"
    """video decoder"""
    flow: str = AUTO
    """flow algorithm of a flow network; for `auto` see `choose_flow_algorithm` (DIS if there is no run)"""
    short_side: int | None = 256
    """shorter side in pixels to which images are resized before flow is computed; None for the size of the video"""
    size: tuple[int, int] | None = None
    """fixed size `(height, width)` in pixels, used instead of `short_side`"""
    sampling: str = "standard"
    """how the frames of a clip are chosen; `paper` for the published sampling"""
    protocol: str = "standard"
    """how crops are mirrored; with `paper`, mirrored crops keep the sign of flow x"""
    mirror: Mirror = field(default_factory=Mirror)
    """whether crops may be mirrored, and which classes are exchanged by mirroring"""
    whole_frame: bool = False
    """whether a centred crop is the whole frame; see `view_spec`"""
    bound: float = FLOW_BOUND
    """longest displacement in pixels that flow can store"""
    fps: float | None = None
    """frames per second at which videos are seen by a network without `InputSpec.fps`; None: every frame"""

    def estimator(self) -> FlowEstimator:
        """Return the flow estimator.

        Raises:
            SettingsError: The flow algorithm is unknown.
        """
        return FlowEstimator(choose_flow_algorithm(None, self.flow), self.bound)


@dataclass(frozen=True)
class VideoResult:
    """The scores of a network for a video."""

    logits: NDArray[np.float64]
    """aggregated logits `(K,)`"""
    frames: int
    """number of frames that could be decoded"""
    times: NDArray[np.float64] | None
    """times in seconds of the frames that the network sees, and of the end; None if the file has no times (see
    `Video`)"""
    views: int
    damage: str | None
    """description of the damage to the file, or None; all frames that could be decoded are scored"""
    view_logits: NDArray[np.float32] = field(repr=False)
    """logits `(V, K)` of the views; the clips of each crop are consecutive, as in a score file"""
    multi_label: bool = False
    """whether classes have independent probabilities (sigmoid instead of softmax)"""
    numbers: Sequence[int] | None = None
    """number (from 1) in the file of each frame that the network sees; None: it sees every frame"""

    @property
    def seen(self) -> int:
        """Number of frames that the network sees, from which clips are chosen."""
        return self.frames if self.numbers is None else len(self.numbers)

    def span(self, first: int, last: int) -> tuple[int, int, float | None, float | None]:
        """Return the first and the last image in the file, and start and end in seconds, of a span of `clip_spans`."""
        start, end = (
            (None, None) if self.times is None else (float(self.times[first - 1]), float(self.times[last]))
        )
        if self.numbers is not None:
            first, last = self.numbers[first - 1], self.numbers[last - 1]
        return first, last, start, end


def score_file(
    model: Recognizer | ClipNetwork,
    path: Source,
    options: EvaluateOptions,
    reading: VideoInput | None = None,
    device: torch.device | None = None,
    compute: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> VideoResult:
    """Score a video with a network.

    A file is decoded twice: first to count the frames that can be decoded, then to score them.

    Args:
        model: An RGB or flow recognizer, or an exported network.
        path: Video file, folder of images, array, or part of a video; see `Source`.
        options: Evaluation options: clips, crops, aggregation, batch size and precision.
        reading: Decoder, flow algorithm and sizes.
        device: Device of the model. The default is that of its weights.
        compute: Function that computes vectors `(B, D)` from a normalised batch instead of logits; see `Canvas`.

    Raises:
        VideoError: The file is missing, empty or not a video, or has only one frame and the network requires flow.
        ScoreError: The logits are not finite.
    """
    reading = reading or VideoInput()
    device = device or model.device
    exact = "paper" in (reading.sampling, reading.protocol)
    options = resolve_evaluation(model, options, device, exact=exact)
    with evaluation_mode(model), open_any(path, reading.backend) as file:
        video = seen(file, model.spec.fps or reading.fps)
        frames = video.num_frames
        available = frames - 1 if model.spec.modality == "flow" else frames
        if frames == 0:
            raise VideoError(
                video.path, f"no frame can be decoded{f' ({video.damage})' if video.damage else ''}"
            )
        if available < 1:
            rate = "" if video is file else f" at {video.fps:g} frames per second"
            raise VideoError(video.path, f"has only one frame{rate}, but flow requires two; use an RGB run")
        clips = evaluation_clips(options, model.spec, available, reading.sampling)
        views = _views(video, clips, available, model.spec, options, reading)
        canvas = Canvas(model, device, options.precision, options.batch_views or 1, compute)
        (scored,) = scored_views(views, {}, canvas)
        damage, times, count = video.damage, video.times, file.num_frames
    logits, numbers = scored.logits, video.numbers if isinstance(video, SeenVideo) else None
    vector_K = aggregate_views(logits, options.aggregate)
    return VideoResult(vector_K, count, times, len(logits), damage, logits, numbers=numbers)


def clip_spans(
    options: EvaluateOptions, spec: InputSpec, frames: int, sampling: str
) -> list[tuple[int, int]]:
    """Return the first and last image (from 1) of each clip of a video with this number of images (`VideoResult.seen`).

    A flow frame has the number of the first of its two images. A short video is looped, and its clips end at its last
    image.
    """
    flow = spec.modality == "flow"
    clips = evaluation_clips(options, spec, frames - flow, sampling)
    return [(min(clip), min(max(clip) + flow, frames)) for clip in clips]


def fuse_results(
    results: Sequence[VideoResult], rule: str = "l2", weights: Sequence[float] | None = None
) -> NDArray[np.float64]:
    """Return the class probabilities `(K,)` of a video from the results of one or more networks.

    Raises:
        ScoreError: The number of weights differs from the number of streams, or there are weights for a single stream.
    """
    vectors = [result.logits[None] for result in results]
    if len(vectors) == 1 and weights is not None:
        raise ScoreError(
            "weights are given for a single stream; expected weights only for several runs; omit the weights"
        )
    fused_NK = fused_probabilities(vectors, rule, weights, sigmoid=results[0].multi_label)
    return np.asarray(fused_NK[0])


def top_classes(chances: NDArray[np.float64], names: list[str], count: int) -> list[tuple[str, float]]:
    """Return the `count` most likely classes and their probabilities, the best class first."""
    order = np.argsort(-chances, kind="stable")[:count]
    return [(names[index], float(chances[index])) for index in order]


def _views(
    video: Video,
    clips: list[list[int]],
    available: int,
    spec: InputSpec,
    options: EvaluateOptions,
    reading: VideoInput,
) -> Iterator[VideoViews]:
    spec = view_spec(spec, options.crops, whole=reading.whole_frame)
    crops = crop_views(options.crops, spec, reading.mirror)
    source = _read(video, spec, reading, {number for clip in clips for number in clip}, available)
    found = 0
    for clip in assemble_clips(clips, source):
        views = views_of_clip(np.stack(clip), crops, spec, reading.protocol)
        yield replace(
            views,
            id=str(video.path),
            first=found,
            total_clips=len(clips),
            mirror_labels=reading.mirror.labels,
        )
        found += 1
    if found < len(clips):
        raise VideoError(video.path, _FEWER)


def read_clip(video: Video, numbers: list[int], spec: InputSpec, reading: VideoInput) -> Frames:
    """Return the resized frames of a clip before cropping, uint8 `(T, *spec.resize, C)`.

    `numbers` are the numbers (from 1) of the clip's frames, or of its flow frames for a flow network.

    Raises:
        VideoError: The video ends before the last frame.
    """
    available = video.num_frames - (spec.modality == "flow")
    for clip in assemble_clips([numbers], _read(video, spec, reading, set(numbers), available)):
        return np.stack(clip)
    raise VideoError(video.path, _FEWER)


def picture_at(frame: Frames, reading: VideoInput) -> Frames:
    """Resize a decoded image to the size that extraction would store."""
    extraction = ExtractOptions(short_side=reading.short_side, size=reading.size)
    height, width = frame.shape[:2]
    return resize_frame(frame, *frame_size(height, width, extraction))


def _read(
    video: Video, spec: InputSpec, reading: VideoInput, wanted: set[int], available: int
) -> Iterator[tuple[int, Frames]]:
    """Yield `(number, resized frame)` for the requested frames, in ascending order."""
    if spec.modality == "rgb":
        return _rgb(video, spec, reading, wanted)
    if spec.stack == 1:
        return _flow(video, spec, reading, wanted)
    stacks = {number: stacked_numbers(number, spec.stack, available) for number in sorted(wanted)}
    fields = _flow(video, spec, reading, {field for stack in stacks.values() for field in stack})
    made = assemble_clips(list(stacks.values()), fields)
    return ((number, np.concatenate(stack, axis=-1)) for number, stack in zip(stacks, made))


def _pictures(video: Video, spec: InputSpec, wanted: set[int]) -> Iterator[tuple[int, Frames]]:
    """Yield `(index, image)`, with indices from 0; if clips are spread over the video, only the requested images."""
    return video.pick(wanted) if spec.segments else enumerate(video.frames())


def _rgb(
    video: Video, spec: InputSpec, reading: VideoInput, wanted: set[int]
) -> Iterator[tuple[int, Frames]]:
    for index, frame in _pictures(video, spec, {number - 1 for number in wanted}):
        if index + 1 in wanted:
            yield index + 1, resize_frames(picture_at(frame, reading)[None], spec.resize)[0]


def _flow(
    video: Video, spec: InputSpec, reading: VideoInput, wanted: set[int]
) -> Iterator[tuple[int, Frames]]:
    """Yield `(n, flow frame)` for the requested n. Flow frame n is computed from the images n and n + 1."""
    estimator = reading.estimator()
    previous: Frames | None = None
    for number, frame in _pictures(video, spec, wanted | {number - 1 for number in wanted}):
        if number not in wanted and number + 1 not in wanted:
            continue
        current = to_gray(picture_at(frame, reading))
        if number in wanted:
            assert previous is not None
            yield number, resize_frames(estimator(previous, current)[None], spec.resize)[0]
        previous = current
