"""Recording: what is on it is what was shown, and nothing half-written stays."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from two_stream.errors import VideoError
from two_stream.streaming.live.outputs import Recording

GUESSES = [("fight", 0.9), ("noFight", 0.1)]


def grey(level: int, size: tuple[int, int] = (65, 97)) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def test_every_picture_is_there_at_its_time(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    times = [0.0, 0.04, 0.08, 0.5, 0.54]  # frames were dropped between the third and the fourth
    recording = Recording(out, 25.0)
    for level, seconds in zip(range(20, 250, 50), times):
        recording.add(grey(level), seconds, GUESSES)
    assert not out.exists()
    recording.close()
    with av.open(str(out)) as file:
        frames = list(file.decode(video=0))
    assert [round(float(frame.time), 3) for frame in frames] == times
    levels = [int(frame.to_ndarray(format="rgb24")[-8:].mean()) for frame in frames]
    assert levels == pytest.approx(range(20, 250, 50), abs=4)
    shown = frames[0].to_ndarray(format="rgb24")
    assert shown.shape == (64, 96, 3)
    assert shown[:20].std() > 10 > shown[-8:].std()  # the band with the classes


def test_pictures_of_another_size_are_brought_to_the_first_ones(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    recording = Recording(out)
    for number, size in enumerate([(65, 97), (65, 97), (32, 32), (130, 194), (65, 97)]):
        recording.add(grey(20 + 40 * number, size), 0.1 * number, [])
    recording.close()
    with av.open(str(out)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert [frame.shape for frame in frames] == [(64, 96, 3)] * 5
    assert [frame[-8:].mean() for frame in frames] == pytest.approx([20, 60, 100, 140, 180], abs=4)


@pytest.mark.parametrize("where", ["", "no/such/out.mp4"])
def test_a_target_that_cannot_be_is_refused_at_once(tmp_path: Path, where: str) -> None:
    with pytest.raises(VideoError, match=r"is a directory|does not exist"):
        Recording(tmp_path / where)


def test_a_recording_without_pictures_writes_no_file(tmp_path: Path) -> None:
    Recording(tmp_path / "out.mp4").close()
    assert list(tmp_path.iterdir()) == []
