"""Prediction, features, timelines, exports and streams see films of five frame rates alike."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.helpers.bars import FILMS, film, moments, seconds_of, slack
from tests.helpers.runs import made_run
from two_stream.api import load_run
from two_stream.cli import main
from two_stream.config.schema import EvaluateOptions
from two_stream.data.bouts import LabelledRecording
from two_stream.data.catalog import load_record
from two_stream.errors import SettingsError, VideoError
from two_stream.evaluation.pictures.attention import read_attention
from two_stream.evaluation.pictures.timeline import score_windows
from two_stream.evaluation.runs import timeline
from two_stream.evaluation.runs.run import extraction_of, reading_of, score_with_runs
from two_stream.evaluation.scoring.score import VideoScores
from two_stream.evaluation.scoring.video import VideoInput, clip_spans, open_input, score_file
from two_stream.export import load
from two_stream.streaming.live.networks import NetworkTrack, Prepare, SlidingRecognizer
from two_stream.streaming.live.pipeline import Pipeline
from two_stream.types import InputSpec
from two_stream.video.decoding.live import FileSource
from two_stream.video.decoding.memory import FlowFolder
from two_stream.video.extraction.many_videos import extract
from two_stream.video.extraction.one_video import ExtractOptions
from two_stream.video.frames import MANIFEST
from two_stream.video.sources import Source

SIZE = (32, 160)
SPEC = InputSpec("rgb", 8, 2, SIZE, SIZE, (0.0, 255.0), (0.0,) * 3, (1.0,) * 3, fps=25.0)
WINDOWS = EvaluateOptions(views="sliding", step=10, crops="center", precision="fp32", batch_views=1)
READING = VideoInput(short_side=None)
STARTS = (0, 10, 20, 30, 36)
"""positions at which sliding windows of 15 of the 51 positions start"""


class Moments(torch.nn.Module):
    """Takes the place of a network: its logits are the moments that the frames of a clip show."""

    device = torch.device("cpu")
    cpu_only = False
    num_classes = 8

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.stack([moments(clip.permute(1, 2, 3, 0).numpy()) for clip in clip_BCTHW]))


@pytest.mark.parametrize("name", FILMS)
def test_prediction_sees_the_same_moments_at_the_times_of_the_video(tmp_path, name):
    path = film(tmp_path, name)
    result = score_file(Moments(SPEC), path, WINDOWS, READING)
    assert (result.frames, result.seen) == (len(seconds_of(name)), 51)
    clips = clip_spans(WINDOWS, SPEC, result.seen, "standard")
    for logits, clip, start in zip(result.view_logits, clips, STARTS, strict=True):
        assert logits == pytest.approx((start + np.arange(0, 16, 2)) / 25, abs=slack(name))
        first, last, begin, end = result.span(*clip)
        assert (begin, end) == pytest.approx((start / 25, min((start + 15) / 25, result.times[-1])))
        assert seconds_of(name)[[first - 1, last - 1]] == pytest.approx(
            [begin, (start + 14) / 25], abs=slack(name)
        )
    by_rate = score_file(Moments(replace(SPEC, fps=None)), path, WINDOWS, replace(READING, fps=25.0))
    assert (by_rate.view_logits == result.view_logits).all(), "a run on frames extracted at that rate"


def test_images_without_times_are_refused_and_a_video_too_short_for_flow_is_named(tmp_path):
    with pytest.raises(VideoError, match="array: has neither time stamps nor a frame rate"):
        score_file(Moments(SPEC), np.zeros((9, *SIZE, 3), np.uint8), WINDOWS, READING)
    flow = replace(SPEC, modality="flow", mean=(0.0,) * 2, std=(1.0,) * 2, fps=0.4)
    with pytest.raises(
        VideoError, match=r"has only one frame at 0.4 frames per second, but flow requires two"
    ):
        score_file(Moments(flow), film(tmp_path, "24"), WINDOWS, READING)


@pytest.mark.parametrize("name", FILMS)
def test_a_stream_sees_the_same_moments(tmp_path, name):
    network = SlidingRecognizer(Moments(SPEC), 5)
    prepare = Prepare(SPEC, READING)
    stream = NetworkTrack("rgb", network, prepare, every=2, fps=25.0)
    results = list(Pipeline(FileSource(str(film(tmp_path, name))), [stream]).run())
    windows = [(one.frame, one.windows["rgb"]) for one in results if one.windows]
    assert len(windows) == 4  # 26 network frames: 0 to 7, 5 to 12, …
    for number, (frame, window) in enumerate(windows):
        at = (10 * number + np.arange(0, 16, 2)) / 25
        assert window.logits == pytest.approx(at, abs=slack(name))
        assert frame.seconds == pytest.approx(at[-1])
        assert seconds_of(name)[[window.first - 1, frame.number - 1]] == pytest.approx(
            at[[0, -1]], abs=slack(name)
        )


def test_flow_of_a_stream_is_from_position_to_position(tmp_path):
    def moved(previous, current):
        return torch.tensor(np.diff(moments(np.stack([previous, current]))))[:, None, None]

    class Keep:
        delay, stride, seen = 0, 1, []

        def step(self, frames):
            self.seen += frames.flatten().tolist()
            return torch.zeros(1, frames.shape[2], 2)

        def finish(self):
            return torch.zeros(1, 0, 2)

        def reset(self):
            pass

    stream = NetworkTrack("flow", Keep(), moved, fps=12.5, pairs=True)
    list(Pipeline(FileSource(str(film(tmp_path, "25"))), [stream]).run())
    assert Keep.seen == pytest.approx([0.08] * 25, abs=0.01)
    with pytest.raises(
        SettingsError, match=r"see 12.5 frames per second and every frame; use runs with the same"
    ):
        Pipeline(FileSource(str(tmp_path / "25.mp4")), [stream, NetworkTrack("rgb", Keep(), moved)])


def test_features_and_timelines_have_the_times_of_the_video(tmp_path):
    folder = made_run(
        tmp_path / "run", input={"clip_length": 8, "crop": 32, "resize": (36, 48), "stride": 2, "fps": 25}
    )
    other = made_run(
        tmp_path / "other", input={"clip_length": 8, "crop": 32, "resize": (36, 48), "stride": 2}
    )
    run, every = load_run(folder), load_run(other)
    path = film(tmp_path, "60")
    found = run.features(path, step=10)
    assert found.vectors.shape == (5, found.vectors.shape[1])
    assert found.start == pytest.approx(np.array(STARTS) / 25)
    assert found.end == pytest.approx([*(np.array(STARTS[:-1]) + 15) / 25, 121 / 60])
    assert found.first.tolist() == [
        1,
        25,
        49,
        73,
        87,
    ]  # positions 10, 20, 30 and 36 at 0.4, 0.8, 1.2 and 1.44 s
    assert found.last.tolist() == [35, 59, 83, 107, 121]
    results = score_with_runs([run, every], path, [WINDOWS] * 2)
    windows = score_windows([run, every], results, [WINDOWS] * 2, ["standard"] * 2)
    spans = [(one.first, one.last, one.start, one.end) for one in windows]
    assert spans[0] == (1, 35, 0.0, pytest.approx(0.6)), (
        "15 positions are longer than 15 of 60 frames per second"
    )
    assert spans[1] == (11, 59, pytest.approx(10 / 60), pytest.approx(1.0))
    assert "8 frames with stride 2 at 25 per second" in repr(run)
    attention = made_run(tmp_path / "bert", head="bert", input={"clip_length": 8, "crop": 32, "fps": 25})
    shown = read_attention(load_run(attention).model, path, WINDOWS, READING, run.class_names)
    assert (shown.fps, shown.times[shown.numbers[0] - 1]) == (25.0, (shown.numbers[0] - 1) / 25)


def test_a_run_on_frames_extracted_at_a_rate_reads_videos_at_that_rate(tmp_path):
    run = load_run(made_run(tmp_path / "run"))
    run.meta["extraction"] = {"flow": "dis", "short_side": 32, "fps": 10.0}
    assert reading_of(run).fps == 10.0
    assert extraction_of(run)["fps"] == 10.0
    assert run.features(film(tmp_path, "30")).start == pytest.approx([0, 0.6]), "21 positions, 15 in a window"


@pytest.mark.slow
def test_an_export_sees_videos_at_the_rate_of_its_run(tmp_path):
    path = film(tmp_path, "60")
    run = made_run(tmp_path / "run", input={"clip_length": 8, "crop": 32, "resize": (36, 48), "fps": 25})
    assert main(["export", str(run), "--to", "onnx", "--out", str(tmp_path / "run.onnx")]) == 0
    exported = load(tmp_path / "run.onnx")
    assert exported.model.spec.fps == 25.0
    (here,), (there,) = (score_with_runs([one], path, [WINDOWS]) for one in (load_run(run), exported))
    assert there.numbers == here.numbers
    np.testing.assert_allclose(there.view_logits, here.view_logits, rtol=1e-3, atol=1e-4)


def test_a_folder_of_frames_is_read_at_the_rate_of_the_run(tmp_path, monkeypatch, capsys):
    path, spec = (
        film(tmp_path, "60"),
        replace(SPEC, modality="flow", mean=(0.0,) * 2, std=(1.0,) * 2, fps=12.5),
    )
    for name, fps in (("all", None), ("some", 12.5)):
        options = ExtractOptions(flow="dis", short_side=None, processes=0, fps=fps)
        extract([Source(name, path)], tmp_path / "frames", options)
    folder = tmp_path / "frames" / "all"
    result = score_file(Moments(SPEC), folder, WINDOWS, READING)
    assert (result.frames, result.seen) == (121, 51)
    assert result.view_logits[1] == pytest.approx((10 + np.arange(0, 16, 2)) / 25, abs=slack("60"))
    with pytest.raises(
        VideoError, match=r"all: its stored flow .* than 12.5; run `two-stream extract --fps 12.5`, or"
    ):
        open_input(folder, spec, READING)
    with open_input(tmp_path / "frames" / "some", spec, READING) as stored:
        assert (type(stored), stored.num_frames) == (FlowFolder, 26)
    with open_input(folder, spec, replace(READING, stored_flow=False)) as video:
        assert (video.numbers[:3], video.num_frames) == ([1, 6, 11], 26)
    (folder / MANIFEST).unlink()
    with pytest.raises(
        VideoError, match=r"all: has neither time stamps nor a frame rate.*to a file `fps` in the folder"
    ):
        open_input(folder, SPEC, READING)


def test_stored_features_of_videos_have_the_times_of_the_video(tmp_path):
    film(tmp_path, "60")
    run = made_run(
        tmp_path / "run", input={"clip_length": 8, "crop": 32, "resize": (36, 48), "stride": 2, "fps": 25}
    )
    command = ["features", str(run), "--videos", str(tmp_path / "60.mp4"), "--npy", str(tmp_path / "npy")]
    assert main([*command, "--layout", "actionformer", "--step", "10"]) == 0
    facts = json.loads((tmp_path / "npy" / "60.json").read_text())
    assert (facts["frames"], facts["first_frame"], facts["last_frame"]) == (
        121,
        [1, 25, 49, 73],
        [35, 59, 83, 107],
    )
    assert (facts["start_s"], facts["end_s"]) == ([0.0, 0.4, 0.8, 1.2], [0.6, 1.0, 1.4, 1.8])
    table = json.loads((tmp_path / "npy" / "_annotations.json").read_text())
    assert (table["feat_stride"], table["database"]["60"]["fps"], table["database"]["60"]["frame"]) == (
        10,
        25.0,
        50,
    )


def test_a_dense_time_line_assigns_frames_of_the_video_to_windows(tmp_path, monkeypatch):
    (tmp_path / "videos").mkdir()
    film(tmp_path / "videos", "60")
    (tmp_path / "dataset.yaml").write_text("name: films\nclasses: [a, b, c]\nvideos: videos\n")
    run = load_run(made_run(tmp_path / "run", input={"clip_length": 8, "crop": 32, "stride": 2, "fps": 25}))
    run.__dict__["record"] = load_record(tmp_path)
    experiment = run.experiment.model_copy(update={"evaluate": WINDOWS})
    logits = np.eye(5, 3, dtype=np.float32)
    scores = VideoScores(["60"], np.zeros(1, np.int64), logits[:1], logits, np.array([5]))
    monkeypatch.setattr(timeline, "read_and_score", lambda *_: (scores, []))
    recording = LabelledRecording(frames=121, flow=120, seconds=121 / 60, bouts=())
    owner = timeline._score(run, experiment, {"60": recording})["60"].owner
    middles = [
        (1 + 35) / 2,
        (25 + 59) / 2,
        (49 + 83) / 2,
        (73 + 107) / 2,
        (87 + 121) / 2,
    ]  # frames of 60 per second
    assert owner.tolist() == [int(np.abs(np.array(middles) - number).argmin()) for number in range(1, 122)]
