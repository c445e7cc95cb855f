"""Videos on the fly: scores as those of extracted frames, fused predictions, annotated copies, the command."""

import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import yaml

from tests.helpers.datasets import CLASSES
from tests.helpers.runs import SMALL, write_run
from tests.helpers.videos import write_video
from two_stream.cli import main as cli
from two_stream.commands.predict import annotated_files
from two_stream.config.schema import EvaluateOptions
from two_stream.data.clips.views import view_loader
from two_stream.data.splits import load_part
from two_stream.errors import (
    ScoreError,
    SettingsError,
    VideoError,
)
from two_stream.evaluation.pictures.annotate import annotate, panel
from two_stream.evaluation.runs.run import evaluate_run, extraction_of, load_run, predict, reading_of
from two_stream.evaluation.scoring import video as on_the_fly
from two_stream.evaluation.scoring.video import VideoInput, VideoResult, fuse_results, score_file, top_classes
from two_stream.video.decoding.reader import open_video
from two_stream.video.extraction.many_videos import extract
from two_stream.video.extraction.one_video import ExtractOptions
from two_stream.video.sources import Source


class Probe(torch.nn.Module):
    """Stands for a recognizer and keeps the clips it is given."""

    device = torch.device("cpu")
    cpu_only = False

    def __init__(self, spec) -> None:
        super().__init__()
        self.spec = spec
        self.seen: list[torch.Tensor] = []

    def forward(self, clip):
        self.seen.append(clip.clone())
        return torch.zeros(len(clip), 3)


@pytest.mark.parametrize("modality", ["rgb", "flow"])
def test_a_video_on_the_fly_scores_as_its_extracted_frames(world, modality):
    """Frames and flow reach the network as extraction stored them, but for the loss of the JPEG coding."""
    video = world / "videos" / "left" / "v_g3.mp4"
    made = extract(
        [Source("left/v_g3", video)],
        world / "frames",
        ExtractOptions(flow="dis", short_side=96, quality=100, processes=0),
    )
    assert not made.failed
    folder = write_run(
        world / f"framed-{modality}", modality, settings_root=world / "settings", source="frames"
    )
    run = load_run(folder)
    assert extraction_of(run)["short_side"] == 96
    record = run.record
    records = [r for r in load_part(record, modality, 1, "test") if r.id == "left/v_g3"]
    (views,) = list(
        view_loader(run.experiment.data, run.experiment.evaluate, run.model.spec, records, record)
    )
    order = [
        crop * 3 + clip for clip in range(3) for crop in range(3)
    ]  # stored crop by crop, live clip by clip
    stored = views.views[order].float()
    probe = Probe(run.model.spec)
    found = score_file(probe, video, SMALL, VideoInput(short_side=96))
    assert (found.frames, found.views) == (13, 9)
    live = torch.cat(probe.seen)
    assert live.dtype == torch.uint8
    gap = (live.float() - stored).abs().mean()
    shuffled = (live.float() - stored.flip(2)).abs().mean()
    assert gap < 1.5
    assert gap < 0.2 * shuffled
    probe = Probe(run.model.spec)
    score_file(probe, video, SMALL, VideoInput(short_side=48))
    other = (torch.cat(probe.seen).float() - stored).abs().mean()
    assert other > gap  # at half the size displacements are half as long


def test_segments_and_stacks_are_made_of_the_frames_of_the_whole_video(world, monkeypatch):
    """Of 13 pictures and 12 flow fields; only the chosen pictures are brought to size."""
    video = world / "videos" / "left" / "v_g3.mp4"
    middle = EvaluateOptions(views="single", crops="center")
    sized = []
    whole_picture = on_the_fly.picture_at
    monkeypatch.setattr(on_the_fly, "picture_at", lambda *given: sized.append(1) or whole_picture(*given))

    def seen(modality, **changes):
        probe = Probe(replace(load_run(world / modality).model.spec, stride=1, **changes))
        sized.clear()
        score_file(probe, video, middle, VideoInput(short_side=96))
        return probe.seen[0]

    every = seen("rgb", clip_length=13)
    assert len(sized) == 13
    torch.testing.assert_close(
        seen("rgb", clip_length=4, segments=4), every[:, :, [1, 4, 8, 11]], rtol=0, atol=0
    )
    assert len(sized) == 4
    fields = seen("flow", clip_length=12)
    stacks = seen("flow", clip_length=3, segments=3, stack=4)
    assert len(sized) == 11  # the first field and its picture, and the second, are in no stack
    for place, first in enumerate((2, 6, 8)):  # the third begins at 10, and the fields end at 11
        expected = fields[:, :, first : first + 4].transpose(1, 2).flatten(1, 2)
        torch.testing.assert_close(stacks[:, :, place], expected, rtol=0, atol=0)


def test_short_videos_loop_and_one_frame_has_no_flow(world, tmp_path):
    two = write_video(tmp_path / "two.mp4", 2, 4)
    one = write_video(tmp_path / "one.mp4", 1, 4)
    rgb, flow = load_run(world / "rgb"), load_run(world / "flow")
    assert score_file(rgb.model, two, SMALL).views == 3
    assert score_file(flow.model, two, SMALL).views == 3
    assert score_file(rgb.model, one, SMALL).frames == 1
    with pytest.raises(VideoError, match="has only one frame, but flow requires two; use an RGB run"):
        score_file(flow.model, one, SMALL)


def test_a_model_is_left_in_its_mode_and_scores_do_not_depend_on_the_batch(world):
    model = load_run(world / "rgb").model
    model.train()
    video = world / "videos" / "stay" / "v_g2.mp4"
    small = score_file(model, video, EvaluateOptions(crops="ten", batch_views=3))
    assert model.training
    large = score_file(model, video, EvaluateOptions(crops="ten", batch_views=64))
    np.testing.assert_allclose(small.view_logits, large.view_logits, rtol=1e-4, atol=1e-4)
    assert small.view_logits.std() > 1


def result(*logits):
    return VideoResult(np.asarray(logits, dtype=np.float64), 1, None, 1, None, np.zeros((1, len(logits))))


def test_fused_probabilities_keep_the_order_of_the_rule_and_the_sharpness_of_the_streams():
    one = fuse_results([result(2.0, 0.0, 0.0)])
    np.testing.assert_allclose(one, np.exp([2, 0, 0]) / np.exp([2, 0, 0]).sum())
    same = fuse_results([result(2.0, 0.0, 0.0)] * 2)
    np.testing.assert_allclose(same, one)  # two equal streams say what one says
    rgb, flow = result(6.0, 0.0, 8.0), result(0.0, 5.0, 0.0)
    mixed = fuse_results([rgb, flow])
    assert np.argsort(-mixed).tolist() == [1, 2, 0]  # unit lengths: .6 0 .8 and 0 1 0
    assert fuse_results([rgb, flow], weights=[3, 1]).argmax() == 2
    for rule in ("l2", "logits", "probabilities", "rank"):
        assert fuse_results([rgb, flow], rule).sum() == pytest.approx(1.0)
    assert top_classes(mixed, ["a", "b", "c"], 2)[0] == ("b", pytest.approx(float(mixed[1])))


def test_public_predict_takes_a_model_a_run_or_several(world):
    video = world / "videos" / "left" / "v_g1.mp4"
    found = predict(world / "rgb", video, top_k=2)
    assert len(found) == 2
    run = load_run(world / "rgb")
    assert predict(run, video, top_k=3)[:2] == found
    bare = predict(run.model, video, options=SMALL, class_names=CLASSES, top_k=2)
    assert bare == found
    both = predict([world / "rgb", world / "flow"], video, top_k=3)
    assert {name for name, _ in both} == set(CLASSES)
    assert sum(share for _, share in both) == pytest.approx(1.0)
    with pytest.raises(ScoreError, match="no run given"):
        predict([], video)


def test_a_run_on_video_files_predicts_as_it_is_scored(world, tmp_path):
    """Size, flow algorithm, decoder and protocol come from the run; with other ones the scores differ."""
    settings = tmp_path / "settings" / "toy"
    settings.mkdir(parents=True)
    for path in (world / "settings" / "toy").iterdir():
        (settings / path.name).write_bytes(path.read_bytes())
    record = yaml.safe_load((settings / "dataset.yaml").read_text()) | {"short_side": 40}
    (settings / "dataset.yaml").write_text(yaml.safe_dump(record))
    folder = write_run(
        tmp_path,
        "flow",
        settings_root=tmp_path / "settings",
        flow="farneback",
        backend="opencv",
        sampling="paper",
        augment={"protocol": "paper"},
    )
    run = load_run(folder)
    assert extraction_of(run) == {"short_side": 40, "flow": "farneback"}
    expected = VideoInput("opencv", "farneback", 40, None, "paper", "paper")
    assert reading_of(run) == expected
    assert reading_of(run, backend="pyav", flow="dis", short_side=96) == VideoInput(
        "pyav", "dis", 96, None, "paper", "paper", stored_flow=False
    )
    table, _ = evaluate_run(run, out=tmp_path / "s.npz")
    logits = table.logits[table.ids.index("left/v_g3")]
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    video = world / "videos" / "left" / "v_g3.mp4"
    found = dict(predict(run, video, top_k=3))
    assert [found[name] for name in CLASSES] == pytest.approx(shares.tolist(), abs=1e-4)
    plain = dict(predict(run, video, top_k=3, reading=VideoInput()))
    assert [plain[name] for name in CLASSES] != pytest.approx(shares.tolist(), abs=1e-4)
    (settings / "dataset.yaml").unlink()  # the data set is elsewhere: the algorithm is still known
    assert reading_of(load_run(folder)) == VideoInput("opencv", "farneback", 256, None, "paper", "paper")


def test_predict_and_the_command_read_a_video_alike(world, tmp_path, capsys):
    """The size and the flow of the run's frames reach both; other flow is asked for, and the command says so."""
    video = world / "videos" / "right" / "v_g3.mp4"
    extract(
        [Source("right/v_g3", video)],
        tmp_path / "frames",
        ExtractOptions(flow="farneback", short_side=None, size=(40, 56), processes=0),
    )
    settings = tmp_path / "settings" / "toy"
    settings.mkdir(parents=True)
    frames = {"rgb": str(tmp_path / "frames"), "flow": str(tmp_path / "frames")}
    record = {"name": "toy", "classes": CLASSES, "frames": frames}
    (settings / "dataset.yaml").write_text(yaml.safe_dump(record))
    folder = write_run(tmp_path, "flow", settings_root=tmp_path / "settings", source="frames")
    assert reading_of(load_run(folder)) == VideoInput(flow="farneback", short_side=None, size=(40, 56))
    found = predict(folder, video, top_k=3)
    assert cli(["predict", str(video), "--flow", str(folder), "--top", "3", "--json", "-"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert [(guess["class"], guess["probability"]) for guess in answer["top"]] == [
        (name, pytest.approx(share)) for name, share in found
    ]
    usual = predict(folder, video, top_k=3, reading=VideoInput())
    assert dict(usual) != pytest.approx(dict(found), abs=1e-4)
    assert cli(["predict", str(video), "--flow", str(folder), "--flow-algorithm", "dis", "--json", "-"]) == 0
    assert "--flow-algorithm farneback is closer" in capsys.readouterr().err


def test_several_runs_of_a_modality_are_fused(world, capsys):
    video, run = str(world / "videos" / "left" / "v_g1.mp4"), str(world / "rgb")
    assert cli(["predict", video, "--rgb", run, "--device", "cpu", "--json", "-"]) == 0
    (alone,) = json.loads(capsys.readouterr().out)
    again = ["--rgb", run, "--rgb", run, "--flow", str(world / "flow"), "--weights", "1", "3", "0"]
    assert cli(["predict", video, *again, "--rule", "probabilities", "--device", "cpu", "--json", "-"]) == 0
    (fused,) = json.loads(capsys.readouterr().out)
    name = f"rgb · {load_run(run).experiment.name}"
    assert list(fused["streams"]) == [name, f"{name} 2", "flow"]
    for one, other in zip(alone["top"], fused["top"]):
        assert one["class"] == other["class"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)


def test_weights_are_checked_and_need_two_runs(world, capsys):
    video = str(world / "videos" / "left" / "v_g1.mp4")
    both = ["--rgb", str(world / "rgb"), "--flow", str(world / "flow")]
    for values, words in ((["0", "0"], "not all 0"), (["nan", "1"], "finite"), (["-1", "2"], "0 or more")):
        assert cli(["predict", video, *both, "--weights", *values, "--device", "cpu"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line
    assert cli(["predict", video, *both[:2], "--weights", "1", "2", "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "requires several runs" in line
    with pytest.raises(ScoreError, match="not all 0"):
        predict([world / "rgb", world / "flow"], video, weights=[0, 0])
    with pytest.raises(ScoreError, match="1 weights for 2"):
        fuse_results([result(1.0, 0.0)] * 2, weights=[1])
    with pytest.raises(ScoreError, match="single stream"):
        predict(world / "rgb", video, weights=[1])


def test_view_flags_without_their_views_and_negative_workers_are_one_line(world, capsys):
    video = str(world / "videos" / "left" / "v_g1.mp4")
    rgb = ["--rgb", str(world / "rgb"), "--device", "cpu"]
    for flag, views in (("--num-clips", "uniform"), ("--step", "sliding")):
        assert cli(["predict", video, *rgb, flag, "2"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"{flag} applies only to {views} views" in line
        assert cli(["predict", video, *rgb, flag, "2", "--views", views]) == 0
        capsys.readouterr()
    assert cli(["evaluate", str(world / "rgb"), "--workers", "-1", "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "workers" in line
    assert "-1" in line
    with pytest.raises(SettingsError, match="`workers` is -1"):
        evaluate_run(world / "rgb", workers=-1, device="cpu")


def test_annotated_copies_do_not_overwrite_each_other_nor_a_video(tmp_path):
    videos = [Path("a/x.mp4"), Path("b/x.avi"), Path("b/X.mp4"), Path("c/x_2.mp4")]
    names = [path.name for path in annotated_files(videos, tmp_path)]
    assert names == ["x.mp4", "x_2.mp4", "X_3.mp4", "x_2_2.mp4"]
    inside = [tmp_path / "x.mp4", Path("b/x.mp4"), tmp_path / "x_2.mp4"]
    assert not set(annotated_files(inside, tmp_path)) & set(inside)
    assert annotated_files([Path("x.mp4")], tmp_path / "out.mp4") == [tmp_path / "out.mp4"]
    assert annotated_files(videos, None) == [None] * 4


def test_annotated_copy_keeps_length_rate_and_size(world, tmp_path):
    source = world / "videos" / "left" / "v_g3.mp4"
    out = tmp_path / "made" / "out.mp4"
    codec = annotate(source, out, [("left", 0.9), ("stäy", 0.1)])
    assert codec in ("libx264", "mpeg4")
    with open_video(out) as copy, open_video(source) as original:
        assert copy.num_frames == original.num_frames == 13
        assert copy.fps == pytest.approx(12)
        assert (copy.width, copy.height) == (original.width, original.height)
        gap = np.abs(copy.read([5]).astype(int) - original.read([5]).astype(int))[0].mean(axis=(1, 2))
    assert gap[:20].mean() > 25
    assert gap[40:].mean() < 10
    assert [path.name for path in out.parent.iterdir()] == ["out.mp4"]
    with pytest.raises(VideoError, match="is the input video"):
        annotate(source, source, [("left", 1.0)])
    with pytest.raises(VideoError, match="is a directory"):
        annotate(source, tmp_path, [("left", 1.0)])
    text = tmp_path / "text.mp4"
    text.write_text("hello")
    with pytest.raises(VideoError):
        annotate(text, tmp_path / "never.mp4", [("left", 1.0)])
    assert not (tmp_path / "never.mp4").exists()


def test_bars_are_as_long_as_the_probability():
    color, opacity = panel(240, 321, [("a", 0.75), ("b", 0.25)])
    lengths = [(row == (79, 191, 174)).all(axis=1).sum() for row in color]
    assert sorted(set(lengths) - {0}) == [81, 241]
    assert opacity[-1].max() == 0


def test_predict_command(world, tmp_path, capsys):
    video = str(world / "videos" / "left" / "v_g1.mp4")
    both = ["--rgb", str(world / "rgb"), "--flow", str(world / "flow")]
    assert (
        cli(["predict", video, *both, "--top", "2", "--device", "cpu", "--annotate", str(tmp_path / "a.mp4")])
        == 0
    )
    shown = capsys.readouterr().out
    assert "5 frames" in shown
    assert "fused by l2" in shown
    assert (tmp_path / "a.mp4").exists()
    assert cli(["predict", video, *both, "--json", "-", "--device", "cpu", "--crops", "center"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert [guess["class"] for guess in answer["top"]] != []
    assert answer["streams"]["rgb"]["views"] == 1
    expected = predict(
        [world / "rgb", world / "flow"], video, options=SMALL.model_copy(update={"crops": "center"})
    )
    assert [guess["class"] for guess in answer["top"]] == [name for name, _ in expected]
    assert [guess["probability"] for guess in answer["top"]] == pytest.approx(
        [share for _, share in expected]
    )


@pytest.mark.parametrize("kind", ["missing", "text", "empty", "folder", "audio"])
def test_what_is_no_video_is_one_clear_line_and_code_2(world, tmp_path, capsys, kind):
    path = tmp_path / "thing.mp4"
    if kind == "text":
        path.write_text("once upon a time\n" * 50)
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "audio":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=16000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            for packet in [*stream.encode(frame), *stream.encode()]:
                container.mux(packet)
    assert cli(["predict", str(path), "--rgb", str(world / "rgb"), "--device", "cpu"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    words = {
        "missing": "no such file",
        "text": "not a video",
        "empty": "0 bytes",
        "folder": "contains no video",
    }
    assert len(lines) == 1
    assert str(path) in lines[0]
    assert words.get(kind, "audio") in lines[0]
    good = str(world / "videos" / "left" / "v_g1.mp4")
    code = cli(["predict", good, str(path), "--rgb", str(world / "rgb"), "--device", "cpu"])
    caught = capsys.readouterr()
    assert code == (2 if kind == "folder" else 1)  # an empty folder is a mistake in the command line
    assert ("1 video · 1 video could not be read, see above" in caught.out) == (kind != "folder")
    assert str(path) in caught.err


def test_predict_without_run_or_with_the_wrong_one_is_one_line(world, capsys):
    video = str(world / "videos" / "left" / "v_g1.mp4")
    assert cli(["predict", video]) == 2
    assert "no run given" in capsys.readouterr().err
    assert cli(["predict", video, "--flow", str(world / "rgb")]) == 2
    assert "this run uses rgb; pass it with --rgb" in capsys.readouterr().err
    assert cli(["predict", "--rgb", str(world / "rgb")]) == 2
    assert "no video given" in capsys.readouterr().err


def test_a_time_line_has_a_picture_and_a_line_per_window(world, tmp_path, capsys):
    video = world / "videos" / "left" / "v_g3.mp4"
    command = [
        "predict",
        str(video),
        "--rgb",
        str(world / "rgb"),
        "--flow",
        str(world / "flow"),
        "--device",
        "cpu",
    ]
    assert cli([*command, "--timeline", str(tmp_path / "when.png"), "--step", "3", "--top", "2"]) == 0
    assert "timeline: " in capsys.readouterr().out
    assert (tmp_path / "when.png").read_bytes().startswith(b"\x89PNG")
    header, *lines = (tmp_path / "when.csv").read_text().splitlines()
    assert header.endswith("class_1,probability_1,class_2,probability_2")
    frames = [tuple(map(int, line.split(",")[1:3])) for line in lines]
    assert frames[:2] == [(1, 5), (4, 8)], "4 pictures, or 4 flow frames between 5"
    assert frames[-1][1] == 13, "the video's last picture"
    assert cli([*command, "--timeline", str(tmp_path / "when.txt")]) == 2
    assert "--timeline" in capsys.readouterr().err
