"""Reading, preparing and predicting side by side: order, drops, gaps, errors, and that all of it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from two_stream.errors import TwoStreamError, VideoError
from two_stream.streaming.live.networks import NetworkTrack
from two_stream.streaming.live.pipeline import FrameResult, Pipeline
from two_stream.streaming.live.watcher import Watcher
from two_stream.video.decoding.base import Image
from two_stream.video.decoding.live import LiveSource


def marked(number: int) -> Image:
    return np.full((4, 4, 3), number, np.uint8)


class Script(LiveSource):
    """Gives frames numbered on; each opening plays the next part of the script. An empty part cannot be opened."""

    def __init__(self, parts: Sequence[int], *, live: bool = True, pause: float = 0.0) -> None:
        super().__init__("script")
        self.parts = list(parts)
        self.live = live
        self.pause = pause
        self.count = 0
        self.fps = 10.0

    def frames(self) -> Iterator[tuple[float | None, Image]]:
        part = self.parts.pop(0) if self.parts else 0
        for index in range(part):
            time.sleep(self.pause)
            yield index / 10.0, marked(self.count)
            self.count += 1
        if self.live:
            raise VideoError(self.name, "the stream has ended" if part else "connection refused")


class Summing:
    """Its logits are the sum of the last `delay + 1` frames' marks; it counts how often it forgot."""

    def __init__(self, delay: int = 2, stride: int = 1, pause: float = 0.0) -> None:
        self.delay, self.stride, self.pause = delay, stride, pause
        self.held: list[float] = []
        self.resets = 0
        self.chunks: list[int] = []

    def step(self, frames_BCTHW: torch.Tensor) -> torch.Tensor:
        time.sleep(self.pause)
        self.chunks.append(frames_BCTHW.shape[2])
        out = []
        for frame in frames_BCTHW[0].unbind(1):
            self.held.append(float(frame[0, 0, 0]))
            past = len(self.held) - 1 - self.delay
            if past >= 0 and past % self.stride == 0:
                out.append(sum(self.held[-self.delay - 1 :]))
        return torch.tensor(out).reshape(1, -1, 1)

    def finish(self) -> torch.Tensor:
        """The windows that begin in the stream and end behind it."""
        first = max(0, -(-(len(self.held) - self.delay) // self.stride)) * self.stride
        return torch.tensor(
            [sum(self.held[at:]) for at in range(first, len(self.held), self.stride)]
        ).reshape(1, -1, 1)

    def reset(self) -> None:
        self.held.clear()
        self.resets += 1


def present(previous: Image | None, picture: Image) -> torch.Tensor:
    del previous
    return torch.from_numpy(picture).permute(2, 0, 1)


def difference(previous: Image | None, picture: Image) -> torch.Tensor:
    assert previous is not None
    return torch.from_numpy(picture - previous).permute(2, 0, 1)


def said_of(seen: Sequence[FrameResult], name: str = "rgb") -> dict[int, float]:
    return {one.frame.number: float(one.windows[name].logits[0]) for one in seen if name in one.windows}


def test_every_frame_of_a_file_is_seen_in_order_and_predictions_are_the_windows() -> None:
    network = Summing(delay=2, stride=2)
    pipeline = Pipeline(Script([40], live=False), [NetworkTrack("rgb", network, present)])
    seen = list(pipeline.run())
    *seen, end = seen
    assert [one.frame.number for one in seen] == list(range(1, 41))
    assert said_of(seen) == {n + 1: float(n + n - 1 + n - 2) for n in range(2, 40, 2)}
    assert [one.windows["rgb"].first for one in seen if one.windows] == list(range(1, 38, 2))
    assert pipeline.dropped == 0
    assert [one.begins for one in seen] == [True] + [False] * 39
    assert (end.ended, end.frame.number) == (True, 40)
    assert (float(end.windows["rgb"].logits[0]), end.windows["rgb"].first) == (38.0 + 39.0, 39)


def test_every_nth_frame_and_the_flow_beside_it() -> None:
    """Flow frame n lies between the pictures n and n + 1, so the flow network's frames are complete one later."""
    rgb, flow = Summing(delay=0), Summing(delay=0)
    streams = [
        NetworkTrack("rgb", rgb, present, every=3),
        NetworkTrack("flow", flow, difference, every=3, pairs=True),
    ]
    seen = list(Pipeline(Script([10], live=False), streams).run())
    assert said_of(seen) == {1: 0.0, 4: 3.0, 7: 6.0, 10: 9.0}
    assert said_of(seen, "flow") == {2: 1.0, 5: 1.0, 8: 1.0}  # neighbours, whatever the step


def test_pictures_that_no_network_wants_are_handed_on_when_asked() -> None:
    stream = NetworkTrack("rgb", Summing(delay=0), present, every=4)
    seen = list(Pipeline(Script([9], live=False), [stream], keep_passed=True).run())
    assert [[int(p.picture[0, 0, 0]) for p in one.passed] for one in seen] == [[], [1, 2, 3], [5, 6, 7]]
    assert not any(one.passed for one in Pipeline(Script([9], live=False), [stream]).run())


def test_a_live_source_drops_late_frames_and_the_count_adds_up() -> None:
    network = Summing(delay=0, pause=0.02)
    pipeline = Pipeline(
        Script([200], pause=0.001), [NetworkTrack("rgb", network, present)], queue=2, patience=0
    )
    seen: list[FrameResult] = []
    with pytest.raises(VideoError, match="the stream has ended"):
        for one in pipeline.run():
            seen.append(one)  # noqa: PERF402 - what came before the error is wanted
    assert pipeline.dropped > 0
    assert len(seen) + pipeline.dropped == 200
    assert [one.frame.number for one in seen] == sorted({one.frame.number for one in seen})
    assert max(network.chunks) <= 8


def test_a_source_that_comes_back_is_picked_up_and_the_networks_begin_anew() -> None:
    network, told, attempts = Summing(delay=2), [], []
    pipeline = Pipeline(
        Script([5, 0, 4], pause=0.001),
        [NetworkTrack("rgb", network, present)],
        queue=50,
        patience=1.2,
        notify=lambda text: (told.append(text), attempts.append(pipeline.attempt)),
    )
    seen: list[FrameResult] = []
    with pytest.raises(VideoError, match=r"script: was lost for \d+ seconds \(connection refused\)"):
        for one in pipeline.run():
            seen.append(one)  # noqa: PERF402 - what came before the error is wanted
    assert said_of(seen) == {3: 3.0, 4: 6.0, 5: 9.0, 8: 18.0, 9: 21.0}  # no window over the gap
    assert [one.frame.number for one in seen if one.begins] == [1, 6]
    assert (network.resets, pipeline.interruptions) == (2 + 1, 2)  # and once before anything came
    times = [one.frame.seconds for one in seen]
    assert times == sorted(times)
    assert times[5] - times[4] > 0.4  # the gap counts
    assert len(told) == 3  # gone, back, gone
    assert "are reset" in told[1]
    assert attempts == [1, 2, 1]


def test_predictions_from_before_a_gap_are_not_shown_after_it() -> None:
    pipeline = Pipeline(
        Script([4, 4], pause=0.001), [NetworkTrack("rgb", Summing(delay=2), present)], queue=50, patience=0.1
    )
    watcher = Watcher(pipeline, [SimpleNamespace(multi_label=False, class_names=["wave"])])
    shown = []
    with pytest.raises(VideoError):
        shown.extend(len(watcher.status.guesses) for _ in watcher.run(1))
    assert shown == [0, 0, 1, 1] * 2


def test_a_source_that_was_never_there_is_one_error_at_once() -> None:
    begin = time.monotonic()
    with pytest.raises(VideoError, match="connection refused"):
        list(Pipeline(Script([0]), [NetworkTrack("rgb", Summing(), present)]).run())
    assert time.monotonic() - begin < 5.0


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    def broken(previous: Image | None, picture: Image) -> torch.Tensor:
        raise ValueError("no such size")

    with pytest.raises(ValueError, match="no such size"):
        list(Pipeline(Script([5], live=False), [NetworkTrack("rgb", Summing(), broken)]).run())


def test_a_network_that_miscounts_is_an_error() -> None:
    network = Summing(delay=2)
    network.delay = 2
    stream = NetworkTrack("rgb", network, present)
    wrong = Summing(delay=3)
    network.step = wrong.step  # type: ignore[method-assign]
    with pytest.raises(TwoStreamError, match="rgb: the network returned 0 predictions, expected 1"):
        list(Pipeline(Script([3], live=False), [stream], queue=1).run())


def test_stop_ends_it_and_its_threads() -> None:
    before = threading.active_count()
    pipeline = Pipeline(Script([10_000], pause=0.001), [NetworkTrack("rgb", Summing(delay=0), present)])
    count = 0
    for _ in pipeline.run():
        count += 1
        if count == 20:
            pipeline.stop()
    assert 20 <= count <= 30
    deadline = time.monotonic() + 5.0
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_paced_file_keeps_its_own_time() -> None:
    begin = time.monotonic()
    list(
        Pipeline(Script([6], live=False), [NetworkTrack("rgb", Summing(delay=0), present)], paced=True).run()
    )
    assert time.monotonic() - begin >= 0.5  # six frames at 10 a second
