"""Scores videos while they are decoded.

Flow is computed during decoding, and only a few clips are kept in memory. Views of several videos share batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from two_stream.config.schema import EvaluateOptions
from two_stream.data.catalog import Mirror
from two_stream.data.clips.loader import read_stream
from two_stream.data.clips.transforms import resize_frames, view_spec
from two_stream.data.clips.views import evaluation_clips
from two_stream.data.sources.files import stacked_numbers
from two_stream.errors import DataError, ScoreError, TwoStreamError, VideoError
from two_stream.evaluation.scores.fusion import fused_probabilities
from two_stream.evaluation.scoring.network import (
    ClipNetwork,
    evaluation_mode,
    prepared_network,
    resolve_evaluation,
)
from two_stream.evaluation.scoring.score import (
    Canvas,
    Storage,
    aggregate_views,
    scored_views,
)
from two_stream.evaluation.scoring.views import assemble_clips, crop_views, views_of_clip
from two_stream.recognizer import Recognizer
from two_stream.types import Frames, InputSpec, VideoViews
from two_stream.video.decoding.base import Video
from two_stream.video.decoding.memory import (
    FlowFolder,
    FolderVideo,
    SeenVideo,
    Source,
    open_any,
    seen,
    stored_flow,
    whole_of,
)
from two_stream.video.extraction.one_video import ExtractOptions, frame_size, resize_frame
from two_stream.video.flow import AUTO, FLOW_BOUND, FlowEstimator, choose_flow_algorithm, to_gray

Compute = Callable[[Any, torch.Tensor], torch.Tensor]
"""Computes vectors `(B, D)` from a network and a normalised batch; see `Recognizer.vectors_of_normalised`."""
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
    stored_flow: bool = True
    """whether a flow network reads the flow that is stored in a folder of frames instead of computing flow"""
    resizes_folders: bool = True
    """whether the images of a folder are resized like those of a video; otherwise they are used as they are"""

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
    compute: Compute | None = None,
) -> VideoResult:
    """Score one video with a network; see `score_sources`.

    Raises:
        VideoError: The file is missing, empty or not a video, or has only one frame and the network requires flow.
        ScoreError: The logits are not finite.
    """
    ((_, result),) = score_sources(model, [("video", path)], options, reading, device, compute)
    if isinstance(result, TwoStreamError):
        raise result
    return result


def score_sources(
    model: Recognizer | ClipNetwork,
    sources: Sequence[tuple[str, Source]],
    options: EvaluateOptions,
    reading: VideoInput | None = None,
    device: torch.device | None = None,
    compute: Compute | None = None,
    *,
    workers: int = 0,
    storage: Storage | None = None,
) -> Iterator[tuple[str, VideoResult | VideoError | DataError]]:
    """Score videos with a network, prepared as in an evaluation, and yield the result or the error of each video.

    A file is decoded twice: first to count the frames that can be decoded, then to score them. Results are yielded in
    the order in which the videos are finished.

    Args:
        model: An RGB or flow recognizer, or an exported network.
        sources: Unique ids, and videos; see `Source`.
        options: Evaluation options: clips, crops, aggregation, batch size and precision.
        reading: Decoder, flow algorithm and sizes.
        device: Device of the model. The default is that of its weights.
        compute: Function that computes vectors `(B, D)` from the network and a normalised batch instead of logits.
        workers: Number of processes that decode; 0 decodes in this process.
        storage: Returns where the logits or vectors of a video are kept; `VideoResult.logits` is then empty.

    Raises:
        ScoreError: The logits are not finite.
        SettingsError: The decoder is not installed.
    """
    reading = reading or VideoInput()
    device = device or model.device
    exact = "paper" in (reading.sampling, reading.protocol)
    options = resolve_evaluation(model, options, device, exact=exact)
    if compute is not None:
        options = options.model_copy(update={"compile": False})
    network = prepared_network(model, options)
    canvas = Canvas(
        network,
        device,
        options.precision,
        options.batch_views or 1,
        None if compute is None else partial(compute, network),
    )
    read: dict[str, VideoFacts] = {}
    scored: dict[str, Any] = {}
    failed: list[tuple[str, VideoError | DataError]] = []

    def views() -> Iterator[VideoViews]:
        stream = VideoStream(sources, model.spec, options, reading)
        with closing(read_stream(stream, min(workers, len(sources)))) as items:
            for item in items:
                if isinstance(item, VideoViews):
                    yield item
                elif isinstance(item, VideoFacts):
                    read[item.id] = item
                elif isinstance(item.error, (VideoError, DataError)):
                    failed.append((item.id, item.error))
                else:
                    raise item.error

    def finished() -> Iterator[tuple[str, VideoResult | VideoError | DataError]]:
        yield from failed
        failed.clear()
        for name in [name for name in scored if name in read]:
            facts, rows = read.pop(name), scored.pop(name)
            mean = aggregate_views(rows, options.aggregate) if storage is None else np.zeros(0)
            yield (
                name,
                VideoResult(
                    mean, facts.frames, facts.times, len(rows), facts.damage, rows, numbers=facts.numbers
                ),
            )

    with evaluation_mode(network):
        for video in scored_views(views(), {}, canvas, storage):
            scored[video.id], video.logits = video.logits, np.zeros((0, 0), np.float32)
            yield from finished()
        yield from finished()


@dataclass(frozen=True)
class VideoFacts:
    """What is known of a video when all its clips have been read."""

    id: str
    frames: int
    times: NDArray[np.float64] | None
    damage: str | None
    numbers: Sequence[int] | None


@dataclass(frozen=True)
class VideoFailure:
    """A video that cannot be read."""

    id: str
    error: TwoStreamError


class VideoStream(IterableDataset[VideoViews | VideoFacts | VideoFailure]):
    """The views of videos, one clip at a time; each loader process reads its share of the videos one after the other.

    A `VideoFacts` precedes the last clip of a video. If a video cannot be read, its last item is a `VideoFailure`.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str, Source]],
        spec: InputSpec,
        options: EvaluateOptions,
        reading: VideoInput,
    ) -> None:
        self.sources = sources
        self.spec = spec
        self.options = options
        self.reading = reading

    def __iter__(self) -> Iterator[VideoViews | VideoFacts | VideoFailure]:
        """Read the videos of this process."""
        worker = get_worker_info()
        share = slice(None) if worker is None else slice(worker.id, None, worker.num_workers)
        for name, source in self.sources[share]:
            try:
                yield from self._read(name, source)
            except TwoStreamError as error:  # raised by the main process if the video is not the cause
                yield VideoFailure(name, error)
            except (OSError, cv2.error) as error:
                yield VideoFailure(name, VideoError(name, " ".join(str(error).split())))

    def _read(self, name: str, source: Source) -> Iterator[VideoViews | VideoFacts]:
        spec, reading = self.spec, self.reading
        with open_input(source, spec, reading) as video:
            frames = video.num_frames
            available = frames - 1 if spec.modality == "flow" else frames
            if frames == 0:
                raise VideoError(
                    video.path, f"no frame can be decoded{f' ({video.damage})' if video.damage else ''}"
                )
            if available < 1:
                rate = f" at {video.fps:g} frames per second" if isinstance(video, SeenVideo) else ""
                raise VideoError(
                    video.path, f"has only one frame{rate}, but flow requires two; use an RGB run"
                )
            clips = evaluation_clips(self.options, spec, available, reading.sampling)
            last: VideoViews | None = None
            for views in _views(video, clips, available, spec, self.options, reading):
                if last is not None:
                    yield last
                last = replace(views, id=name)
            assert last is not None
            numbers = video.numbers if isinstance(video, SeenVideo) else None
            yield VideoFacts(name, whole_of(video).num_frames, video.times, video.damage, numbers)
            yield last


def open_input(source: Source, spec: InputSpec, reading: VideoInput) -> Video:
    """Open a video as a network sees it: at its frame rate, and as flow for a flow network and a folder with flow.

    Raises:
        VideoError: See `open_any`; or stored flow belongs to another frame rate.
    """
    folder = stored_flow(source) if spec.modality == "flow" and reading.stored_flow else None
    fps = spec.fps or reading.fps
    if folder is None:
        return seen(open_any(source, reading.backend), fps)
    video = FlowFolder(folder)
    shown = seen(video, fps)
    if isinstance(shown, SeenVideo) and list(shown.numbers) != list(range(1, video.num_frames + 1)):
        raise VideoError(
            folder,
            f"its stored flow belongs to another frame rate than {fps:g}; run `two-stream extract --fps {fps:g}`, or "
            "set --flow-algorithm to compute flow from the images",
        )
    return video


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
    return next(read_clips(video, [numbers], spec, reading))


def read_clips(
    video: Video, clips: Sequence[list[int]], spec: InputSpec, reading: VideoInput
) -> Iterator[Frames]:
    """Yield the frames of clips, see `read_clip`; clips must be in the order of their last frames.

    Raises:
        VideoError: The video ends before the last frame.
    """
    available = video.num_frames - (spec.modality == "flow")
    found = 0
    wanted = {number for clip in clips for number in clip}
    for clip in assemble_clips(clips, _read(video, spec, reading, wanted, available)):
        yield np.stack(clip)
        found += 1
    if found < len(clips):
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
    as_stored = isinstance(whole_of(video), FolderVideo) and not reading.resizes_folders
    for index, frame in _pictures(video, spec, {number - 1 for number in wanted}):
        if index + 1 in wanted:
            picture = frame if as_stored else picture_at(frame, reading)
            yield index + 1, resize_frames(picture[None], spec.resize)[0]


def _flow(
    video: Video, spec: InputSpec, reading: VideoInput, wanted: set[int]
) -> Iterator[tuple[int, Frames]]:
    """Yield `(n, flow frame)` for the requested n. Flow frame n is computed from the images n and n + 1."""
    if isinstance(video, FlowFolder):
        for index, field in video.pick({number - 1 for number in wanted}):
            yield index + 1, resize_frames(field[None], spec.resize)[0]
        return
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
