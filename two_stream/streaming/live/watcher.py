"""Fuses the predictions of the networks of a running stream, and updates the displayed status."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from two_stream.evaluation.runs.none_of_these import mark_none
from two_stream.evaluation.runs.run import Run
from two_stream.evaluation.scoring.video import VideoResult, fuse_results, top_classes
from two_stream.streaming.live.networks import NetworkTrack
from two_stream.streaming.live.pipeline import FrameResult, Pipeline
from two_stream.streaming.live.screen import Status
from two_stream.video.decoding.live import LiveSource


@dataclass(frozen=True)
class Prediction:
    """The fused prediction of all networks for a window."""

    first: int
    """number (from 1) of the window's first frame"""
    frame: int
    """number of the window's last frame"""
    seconds: float
    """time of the last frame in seconds since the start of the source"""
    latency: float
    """seconds from the arrival of the last frame to the prediction"""
    probabilities: NDArray[np.float64]
    """fused probabilities `(K,)`"""
    logits: dict[str, NDArray[np.float64]]
    """latest logits `(K,)` of each network, from this frame or an earlier frame"""


class Watcher:
    """Runs a pipeline and fuses its predictions.

    Each prediction of the network with the longest stride is fused with the latest logits of the other networks.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        runs: Sequence[Run],
        rule: str = "l2",
        weights: Sequence[float] | None = None,
        threshold: float = 0.0,
    ) -> None:
        self.pipeline, self.threshold = pipeline, threshold
        self.rule, self.weights = rule, weights
        self.multi_label = runs[0].multi_label
        self.class_names = runs[0].class_names
        delay, names = (
            describe_delay(pipeline.streams, pipeline.source),
            (one.name for one in pipeline.streams),
        )
        self.status = Status(pipeline.source.name, delay, networks=" + ".join(names))
        self._newest: dict[str, NDArray[np.float64]] = {}
        slowest = max(pipeline.streams, key=lambda one: (one.network.stride * one.every, one.pairs))
        self._slowest = slowest.name

    def run(self, top_k: int) -> Iterator[tuple[FrameResult, Prediction | None]]:
        """Yield each frame with the prediction that it completes, or None, and update `status`.

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
                status.guesses = ()  # those from before the interruption
                status.delay = describe_delay(self.pipeline.streams, self.pipeline.source)
            prediction = self._predict(seen)
            if prediction is not None:
                status.predictions.add()
                if not seen.ended:
                    status.latency.add(prediction.latency)
                best = top_classes(prediction.probabilities, self.class_names, top_k)
                status.guesses = mark_none(best, self.threshold)
            yield seen, prediction

    def _predict(self, seen: FrameResult) -> Prediction | None:
        self._newest |= {name: window.logits for name, window in seen.windows.items()}
        if self._slowest not in seen.windows or len(self._newest) < len(self.pipeline.streams):
            return None
        results = []
        for stream in self.pipeline.streams:
            logits_K = self._newest[stream.name]
            views = logits_K[None].astype(np.float32)
            results.append(VideoResult(logits_K, 1, None, 1, None, views, multi_label=self.multi_label))
        probabilities = fuse_results(results, self.rule, self.weights)
        latency = time.monotonic() - seen.frame.arrived
        first, frame = seen.windows[self._slowest].first, seen.frame
        return Prediction(first, frame.number, frame.seconds, latency, probabilities, dict(self._newest))


def prediction_record(
    made: Prediction, names: Sequence[str], count: int, dropped: int, threshold: float = 0.0
) -> dict[str, Any]:
    """Return the values of a prediction's JSON line, with the `count` most probable classes."""
    guesses = top_classes(made.probabilities, list(names), count)
    return {
        "first_frame": made.first,
        "frame": made.frame,
        "seconds": round(made.seconds, 4),
        "latency_ms": round(1000 * made.latency, 2),
        "dropped": dropped,
        "top": [{"class": name, "probability": share} for name, share in guesses],
        **({"none_of_these": guesses[0][1] < threshold} if threshold else {}),
    }


def describe_delay(streams: Sequence[NetworkTrack], source: LiveSource) -> str:
    """Return a description of when each network makes its first prediction, and how often it makes predictions."""
    fps = source.fps if source.live else None  # a file's frames need not come at its mean rate
    fps = (streams[0].fps if streams else None) or fps
    parts = []
    for stream in streams:
        first = 1 + stream.network.delay * stream.every + int(stream.pairs)
        seconds = f" ({first / fps:.1f} s)" if fps else ""
        every = stream.network.stride * stream.every
        parts.append(f"{stream.name}: first after {first} frames{seconds}, then every {every}")
    return "; ".join(parts)
