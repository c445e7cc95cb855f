"""What `predict` and `stream` tell of a video of variable rate, by its time stamps."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.helpers.videos import make
from two_stream.cli import main
from two_stream.video.decoding.reader import open_video

STAMPS = [500 * n for n in range(8)] + [3500 + 20 * n for n in range(1, 17)]


@pytest.fixture(scope="module")
def variable(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("variable") / "v.mp4", stamps=STAMPS)


def test_predict_tells_the_time_stamps(world, variable, tmp_path):
    line, copy = tmp_path / "line.svg", tmp_path / "copy.mp4"
    flags = ["--rgb", str(world / "rgb"), "--timeline", str(line), "--annotate", str(copy), "--device", "cpu"]
    assert main(["predict", str(variable), *flags]) == 0
    edges = open_video(variable).times
    rows = list(csv.DictReader(line.with_suffix(".csv").open()))
    assert len(rows) > 2
    for row in rows:
        assert float(row["start_s"]) == pytest.approx(edges[int(row["first_frame"]) - 1], abs=1e-3)
        assert float(row["end_s"]) == pytest.approx(edges[int(row["last_frame"])], abs=1e-3)
    assert float(rows[-1]["end_s"]) == pytest.approx(3.84)
    assert open_video(copy).times == pytest.approx(edges, abs=1e-3)


def test_stream_tells_the_time_stamps_also_of_frames_no_network_asked_for(world, variable, tmp_path, capsys):
    out, copy = tmp_path / "lines.jsonl", tmp_path / "copy.mp4"
    flags = ["--mode", "sliding", "--json", str(out), "--annotate", str(copy), "--device", "cpu"]
    assert main(["stream", str(variable), "--rgb", str(world / "rgb"), *flags]) == 0
    edges = open_video(variable).times
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(found) > 2
    assert [line["seconds"] for line in found] == pytest.approx(
        [edges[line["frame"] - 1] for line in found], abs=1e-3
    )
    times = open_video(copy).times[:-1]
    assert len(times) > 20
    assert times == pytest.approx(edges[: len(times)], abs=1e-3)
