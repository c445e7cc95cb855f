"""A running stream from source to predictions: the networks, their fusion, and the numbers that are shown."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from two_stream.evaluation.runs.run import Run
from two_stream.evaluation.scoring.video import VideoResult, fuse_results, top_classes
from two_stream.streaming.live.networks import NetworkTrack
from two_stream.streaming.live.pipeline import FrameResult, Pipeline
from two_stream.streaming.live.screen import Status
from two_stream.video.decoding.live import LiveSource


@dataclass(frozen=True)
class Prediction:
    """What the networks say after a frame."""

    first: int
    """number, from 1, of the frame that its window begins with"""
    frame: int
    """number of the frame that completed it"""
    seconds: float
    """when that one was, by the source's clock"""
    latency: float
    """seconds from the frame's arrival to the prediction"""
    probabilities: NDArray[np.float64]
    """`(K,)`, of all streams together"""
    logits: dict[str, NDArray[np.float64]]
    """`(K,)` by stream: of the present frame, or the newest there is"""


class Watcher:
    """Runs a pipeline and keeps the newest prediction.

    Of several networks the one that speaks least often sets the pace; of the others their newest word counts.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        runs: Sequence[Run],
        rule: str = "l2",
        weights: Sequence[float] | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.rule, self.weights = rule, weights
        self.multi_label = runs[0].multi_label
        self.class_names = runs[0].class_names
        self.status = Status(pipeline.source.name, describe_delay(pipeline.streams, pipeline.source))
        self._newest: dict[str, NDArray[np.float64]] = {}
        slowest = max(pipeline.streams, key=lambda one: (one.network.stride * one.every, one.pairs))
        self._pace = slowest.name

    def run(self, top_k: int) -> Iterator[tuple[FrameResult, Prediction | None]]:
        """Yield every frame that networks saw, with the prediction that it completes or none; `status` is kept.

        Raises:
            VideoError: See `Pipeline.run`.
        """
        status = self.status
        for seen in self.pipeline.run():
            status.frames.add(0 if seen.ended else 1)
            status.seconds = seen.frame.seconds
            status.dropped, status.interruptions = self.pipeline.dropped, self.pipeline.interruptions
            if seen.begins:
                self._newest.clear()
                status.delay = describe_delay(self.pipeline.streams, self.pipeline.source)
            made = self._predicted(seen)
            if made is not None:
                status.predictions.add()
                if not seen.ended:
                    status.latency.add(made.latency)
                status.guesses = top_classes(made.probabilities, self.class_names, top_k)
            yield seen, made

    def _predicted(self, seen: FrameResult) -> Prediction | None:
        self._newest |= {name: said.logits for name, said in seen.said.items()}
        if self._pace not in seen.said or len(self._newest) < len(self.pipeline.streams):
            return None
        results = [self._result(self._newest[stream.name]) for stream in self.pipeline.streams]
        chances = fuse_results(results, self.rule, self.weights)
        late = time.monotonic() - seen.frame.arrived
        first = seen.said[self._pace].first
        return Prediction(first, seen.frame.number, seen.frame.seconds, late, chances, dict(self._newest))

    def _result(self, logits_K: NDArray[np.float64]) -> VideoResult:
        views = logits_K[None].astype(np.float32)
        return VideoResult(logits_K, 1, None, 1, None, views, multi_label=self.multi_label)


def prediction_record(made: Prediction, names: Sequence[str], count: int, dropped: int) -> dict[str, Any]:
    """Return a prediction as one line of JSON holds it."""
    return {
        "first_frame": made.first,
        "frame": made.frame,
        "seconds": round(made.seconds, 4),
        "latency_ms": round(1000 * made.latency, 2),
        "dropped": dropped,
        "top": [
            {"class": name, "probability": share}
            for name, share in top_classes(made.probabilities, list(names), count)
        ],
    }


def describe_delay(streams: Sequence[NetworkTrack], source: LiveSource) -> str:
    """Return after how many frames each network speaks first, and how far a prediction lies behind, in words.

    Of a file, whose frames may come at any distance, its mean rate would tell no true seconds.
    """
    fps = source.fps if source.live else None
    parts = []
    for stream in streams:
        first = 1 + stream.network.delay * stream.every + int(stream.pairs)
        seconds = f" ({first / fps:.1f} s)" if fps else ""
        every = stream.network.stride * stream.every
        parts.append(f"{stream.name}: first after {first} frames{seconds}, then every {every}")
    return "; ".join(parts)
