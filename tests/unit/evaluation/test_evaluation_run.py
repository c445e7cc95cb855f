"""Real (untrained) networks on small real videos: runs, score files, predictions, annotated copies."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import yaml

from two_stream.cli import main as cli
from two_stream.commands.predict import annotated_files
from two_stream.config.load import dump
from two_stream.config.model import AverageHead, InputOptions, MobileNetV2, ModelOptions
from two_stream.config.schema import DataOptions, EvaluateOptions, Experiment, TrainOptions
from two_stream.data.mirror import Mirror
from two_stream.data.splits import load_part
from two_stream.data.views import view_loader
from two_stream.errors import (
    CheckpointError,
    DataError,
    ScoreError,
    SettingsError,
    TwoStreamError,
    VideoError,
)
from two_stream.evaluation.annotate import annotate, panel
from two_stream.evaluation.run import Run, evaluate_run, extraction_of, load_run, predict, reading_of
from two_stream.evaluation.scores import read_scores
from two_stream.evaluation.video import Reading, VideoResult, fuse_results, score_file, top
from two_stream.pretrained import write_model
from two_stream.recognizer import create_model
from two_stream.runtime.files import sha256
from two_stream.video.extract import ExtractOptions, extract
from two_stream.video.reader import open_video
from two_stream.video.sources import Source

CLASSES = ["left", "right", "stay"]
SMALL = EvaluateOptions(views="multi", crops="three", batch_views=5, keep_views=True, precision="fp32")


def write_video(path: Path, frames: int, step: int, fps: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(frames).integers(0, 256, (48, 200, 1), dtype=np.uint8)
    texture = np.repeat(grey, 3, axis=2)  # JPEG halves the resolution of colour
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            start = 60 + step * number
            picture = np.ascontiguousarray(texture[:, start : start + 64])
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def settle(model) -> None:
    """Give BatchNorm the statistics of noise, so that the logits of an untrained network differ between clips."""
    norms = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm3d)]
    for norm in norms:
        norm.momentum = None
    model.train()
    clips = torch.randint(0, 256, (24, model.spec.channels, 4, 4, 4), dtype=torch.uint8)
    with torch.no_grad():
        model(torch.nn.functional.interpolate(clips.float(), size=(4, 32, 32)))
        model.classifier.weight.mul_(5)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


class Probe(torch.nn.Module):
    """Stands for a recognizer and keeps the clips it is given."""

    def __init__(self, spec) -> None:
        super().__init__()
        self.spec = spec
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[torch.Tensor] = []

    def forward(self, clip):
        self.seen.append(clip.clone())
        return torch.zeros(len(clip), 3)


def write_run(root: Path, modality: str, *, names=CLASSES, selection="holdout", **data) -> Path:
    options = ModelOptions(
        modality=modality,
        backbone=MobileNetV2(width=0.25),
        head=AverageHead(),
        input=InputOptions(clip_length=4, resize=(36, 48), crop=32),
    )
    given = {"dataset": "toy", "settings_root": root / "settings", "source": "videos", "workers": 0, **data}
    experiment = Experiment(
        name=modality,
        runs=root,
        seed=3,
        model=options,
        data=DataOptions(**given),
        evaluate=SMALL,
        train=TrainOptions(selection=selection),
    )
    torch.manual_seed(len(modality))
    model = create_model(options, num_classes=len(names))
    settle(model)
    folder = root / modality
    write_model(folder / "best", model, {"class_names": list(names), "epoch": 7})
    (folder / "experiment.yaml").write_text(dump(experiment))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Nine videos of three classes, their lists, an RGB and a flow run."""
    root = tmp_path_factory.mktemp("world")
    settings = root / "settings" / "toy"
    settings.mkdir(parents=True)
    record = {"name": "toy", "classes": CLASSES, "videos": str(root / "videos"), "group": r"_(g\d)$"}
    record["frames"] = {"rgb": str(root / "frames"), "flow": str(root / "frames")}
    (settings / "dataset.yaml").write_text(yaml.safe_dump(record))
    lists = {(part, modality): [] for part in ("train", "val") for modality in ("rgb", "flow")}
    for label, (name, step) in enumerate(zip(CLASSES, (-4, 4, 0))):
        for group, frames in enumerate((5, 9, 13), start=1):
            video = f"{name}/v_g{group}"
            write_video(root / "videos" / f"{video}.mp4", frames, step)
            part = "val" if group == 3 else "train"
            lists[part, "rgb"].append(f"{video} {frames} {label}")
            lists[part, "flow"].append(f"{video} {frames - 1} {label}")
    for (part, modality), found in lists.items():
        (settings / f"{part}_{modality}_split1.txt").write_text("\n".join(found) + "\n")
    write_run(root, "rgb")
    write_run(root, "flow")
    return root


def test_score_file_of_a_run_says_how_it_was_made(world):
    table, path = evaluate_run(world / "rgb", device="cpu")
    assert path == world / "rgb" / "scores" / "test_multi_three_logits.npz"
    back = read_scores(path)
    assert back.ids == ["left/v_g3", "right/v_g3", "stay/v_g3"]
    assert back.labels.tolist() == [0, 1, 2]
    assert back.groups == ["g3"] * 3
    assert back.view_counts.tolist() == [9, 9, 9]  # 13 frames: three clips of four, three crops
    means = back.view_logits.reshape(3, 9, 3).astype(np.float64).mean(axis=1)
    np.testing.assert_allclose(back.logits, means, atol=1e-6)
    np.testing.assert_array_equal(back.logits, table.logits)
    meta = back.meta
    assert meta["model_sha256"] == sha256(world / "rgb" / "best" / "model.safetensors")
    expected = {
        "dataset": "toy",
        "modality": "rgb",
        "split": 1,
        "part": "test",
        "selection": "holdout",
        "epoch": 7,
    }
    expected |= {"views": "multi", "crops": "three", "aggregate": "logits", "seed": 3, "skipped": []}
    assert {key: meta[key] for key in expected} == expected
    assert meta["decoder"].startswith("pyav")
    assert meta["environment"]["torch"]


def test_parts_and_protocols_have_files_of_their_own(world):
    run = load_run(world / "flow")
    single = EvaluateOptions(views="single", crops="center", aggregate="probabilities", precision="fp32")
    table, path = evaluate_run(run, single, "val")
    assert path.name == "val_single_center_probabilities.npz"
    assert table.meta["part"] == "val"
    assert table.meta["flow_algorithm"] == "dis"
    assert set(table.groups) < {"g1", "g2"}
    np.testing.assert_allclose(np.exp(table.logits).sum(axis=1), 1.0)
    assert table.view_logits is None


def test_broken_videos_are_counted_and_named(world, tmp_path, capsys):
    folder = write_run(tmp_path, "rgb", settings_root=world / "settings", on_error="skip")
    listed = (world / "settings" / "toy" / "val_rgb_split1.txt").read_text()
    path = world / "settings" / "toy" / "val_rgb_split1.txt"
    try:
        path.write_text(listed + "left/gone_g4 20 0\n")
        table, _ = evaluate_run(folder, device="cpu")
        assert table.meta["skipped"] == ["left/gone_g4"]
        assert len(table.ids) == 3
        assert "1 of 4 videos could not be read" in capsys.readouterr().err
        path.write_text("left/gone_g4 20 0\n")
        with pytest.raises(ScoreError, match="none of the 1 videos could be read"):
            evaluate_run(folder, device="cpu")
        strict = write_run(tmp_path / "strict", "rgb", settings_root=world / "settings")
        with pytest.raises(TwoStreamError, match="gone_g4"):
            evaluate_run(strict, device="cpu")
    finally:
        path.write_text(listed)


def test_what_is_wrong_with_a_run_is_one_line(world, tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere: no such folder; expected a run folder"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no experiment\.yaml"):
        load_run(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint 'last'; it has `best`"):
        load_run(world / "rgb", "last")
    with pytest.raises(CheckpointError, match="unknown checkpoint 'newest'"):
        load_run(world / "rgb", "newest")
    folder = write_run(tmp_path, "rgb", settings_root=world / "settings")
    weights = folder / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        load_run(folder)
    other = write_run(tmp_path / "b", "rgb", settings_root=world / "settings", names=["x", "y", "z"])
    with pytest.raises(DataError, match="not the 3 the model of"):
        evaluate_run(other, device="cpu")


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
    (views,) = list(view_loader(run.experiment, run.model.spec, records, record))
    order = [
        crop * 3 + clip for clip in range(3) for crop in range(3)
    ]  # stored crop by crop, live clip by clip
    stored = views.views[order].float()
    probe = Probe(run.model.spec)
    found = score_file(probe, video, SMALL, Reading(short_side=96))
    assert (found.frames, found.views) == (13, 9)
    live = torch.cat(probe.seen)
    assert live.dtype == torch.uint8
    gap = (live.float() - stored).abs().mean()
    shuffled = (live.float() - stored.flip(2)).abs().mean()
    assert gap < 1.5
    assert gap < 0.2 * shuffled
    probe = Probe(run.model.spec)
    score_file(probe, video, SMALL, Reading(short_side=48))
    other = (torch.cat(probe.seen).float() - stored).abs().mean()
    assert other > gap  # at half the size displacements are half as long


def test_short_videos_loop_and_one_frame_has_no_flow(world, tmp_path):
    two = write_video(tmp_path / "two.mp4", 2, 4)
    one = write_video(tmp_path / "one.mp4", 1, 4)
    rgb, flow = load_run(world / "rgb"), load_run(world / "flow")
    assert score_file(rgb.model, two, SMALL).views == 3
    assert score_file(flow.model, two, SMALL).views == 3
    assert score_file(rgb.model, one, SMALL).frames == 1
    with pytest.raises(VideoError, match="one frame only, and flow needs two; use an RGB run"):
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
    assert top(mixed, ["a", "b", "c"], 2)[0] == ("b", pytest.approx(float(mixed[1])))


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
    expected = Reading("opencv", "farneback", 40, None, "paper", "paper")
    assert reading_of(run) == expected
    assert reading_of(run, backend="pyav", flow="dis", short_side=96) == Reading(
        "pyav", "dis", 96, None, "paper", "paper"
    )
    table, _ = evaluate_run(run, out=tmp_path / "s.npz")
    logits = table.logits[table.ids.index("left/v_g3")]
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    video = world / "videos" / "left" / "v_g3.mp4"
    found = dict(predict(run, video, top_k=3))
    assert [found[name] for name in CLASSES] == pytest.approx(shares.tolist(), abs=1e-4)
    plain = dict(predict(run, video, top_k=3, reading=Reading()))
    assert [plain[name] for name in CLASSES] != pytest.approx(shares.tolist(), abs=1e-4)
    (settings / "dataset.yaml").unlink()  # the data set is elsewhere: the algorithm is still known
    assert reading_of(load_run(folder)) == Reading("opencv", "farneback", 256, None, "paper", "paper")


def test_predict_and_the_command_read_a_video_alike(world, tmp_path, capsys):
    """The size of the run's frames reaches both; flow is DIS unless asked for, and the command says so."""
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
    assert reading_of(load_run(folder)) == Reading(short_side=None, size=(40, 56))
    found = predict(folder, video, top_k=3)
    assert cli(["predict", str(video), "--flow", str(folder), "--top", "3", "--json", "-"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert [(guess["class"], guess["probability"]) for guess in answer["top"]] == [
        (name, pytest.approx(share)) for name, share in found
    ]
    usual = predict(folder, video, top_k=3, reading=Reading())
    assert dict(usual) != pytest.approx(dict(found), abs=1e-4)
    assert cli(["predict", str(video), "--flow", str(folder), "--flow-algorithm", "dis", "--json", "-"]) == 0
    assert "--flow-algorithm farneback is closer" in capsys.readouterr().err


def test_weights_are_checked_and_need_two_runs(world, capsys):
    video = str(world / "videos" / "left" / "v_g1.mp4")
    both = ["--rgb", str(world / "rgb"), "--flow", str(world / "flow")]
    for values, words in ((["0", "0"], "not all 0"), (["nan", "1"], "finite"), (["-1", "2"], "0 or more")):
        assert cli(["predict", video, *both, "--weights", *values, "--device", "cpu"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line
    assert cli(["predict", video, *both[:2], "--weights", "1", "2", "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "give both --rgb and --flow" in line
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
        assert f"{flag} is for {views} views" in line
        assert cli(["predict", video, *rgb, flag, "2", "--views", views]) == 0
        capsys.readouterr()
    assert cli(["evaluate", str(world / "rgb"), "--workers", "-1", "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "workers" in line
    assert "-1" in line
    with pytest.raises(SettingsError, match="workers is -1"):
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
    with pytest.raises(VideoError, match="is the video itself"):
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
    words = {"missing": "no such file", "text": "not a video", "empty": "0 bytes", "folder": "directory"}
    assert len(lines) == 1
    assert str(path) in lines[0]
    assert words.get(kind, "audio") in lines[0]
    good = str(world / "videos" / "left" / "v_g1.mp4")
    assert cli(["predict", good, str(path), "--rgb", str(world / "rgb"), "--device", "cpu"]) == 2
    caught = capsys.readouterr()
    assert "5 frames" in caught.out  # the good one is answered
    assert str(path) in caught.err


def test_predict_without_run_or_with_the_wrong_one_is_one_line(world, capsys):
    video = str(world / "videos" / "left" / "v_g1.mp4")
    assert cli(["predict", video]) == 2
    assert "no run given" in capsys.readouterr().err
    assert cli(["predict", video, "--flow", str(world / "rgb")]) == 2
    assert "this is a run on rgb; give it with --rgb" in capsys.readouterr().err
    assert cli(["predict", "--rgb", str(world / "rgb")]) == 2
    assert "no video given" in capsys.readouterr().err


def test_evaluate_command_shows_the_run_s_values_and_takes_flags(world, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        cli(["evaluate", str(world / "rgb"), "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "(default: three)" in shown
    assert "(default: 5)" in shown
    assert cli(["evaluate", str(world / "rgb"), "--views", "single", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "single clip × three-crop, mean of logits" in shown
    assert (world / "rgb" / "scores" / "test_single_three_logits.npz").exists()
    assert cli(["evaluate", str(world / "rgb"), "--json", "--device", "cpu"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["videos"] == 3
    assert facts["top"]["3"] is None
    assert cli(["evaluate", str(world / "rgb"), "--veiws", "single"]) == 2
    assert "--views" in capsys.readouterr().err
    assert cli(["evaluate", str(world)]) == 2
    assert "no experiment.yaml" in capsys.readouterr().err


def test_an_unknown_device_is_refused(world):
    with pytest.raises(SettingsError, match="device 'tpu'"):
        load_run(world / "rgb", device="tpu")


def launched(count: int, *args: object) -> subprocess.CompletedProcess[str]:
    """Run the command in several processes."""
    line = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", "--no-python"]
    command = [*line, sys.executable, "-m", "two_stream", *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)


@pytest.mark.slow
def test_two_processes_write_the_file_of_one(world, tmp_path):
    one, _ = evaluate_run(world / "rgb", part="train", device="cpu", out=tmp_path / "one.npz")
    two = tmp_path / "two.npz"
    done = launched(2, "evaluate", world / "rgb", "--part", "train", "--device", "cpu", "--out", two)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("accuracy in %") == 1  # one of them talks
    found = read_scores(two)
    assert found.ids == one.ids
    assert len(found.ids) == 3
    assert found.labels.tolist() == one.labels.tolist()
    assert found.groups == one.groups
    assert found.view_counts.tolist() == one.view_counts.tolist()
    largest = np.abs(one.view_logits).max()
    np.testing.assert_allclose(found.logits, one.logits, rtol=0, atol=1e-5 * largest)
    np.testing.assert_allclose(found.view_logits, one.view_logits, rtol=0, atol=1e-5 * largest)
    assert found.meta["processes"] == 2


@pytest.mark.slow
def test_a_broken_video_of_one_process_ends_all_with_its_name(world, tmp_path):
    path = world / "settings" / "toy" / "val_rgb_split1.txt"
    listed = path.read_text()
    try:
        path.write_text(listed + "left/gone_g4 20 0\n")
        folder = write_run(tmp_path, "rgb", settings_root=world / "settings")
        done = launched(2, "evaluate", folder, "--device", "cpu")
        assert done.returncode != 0
        assert done.stderr.count("video 'left/gone_g4' cannot be read") == 1
        assert not (folder / "scores").exists()
        skipping = write_run(tmp_path / "b", "rgb", settings_root=world / "settings", on_error="skip")
        done = launched(2, "evaluate", skipping, "--device", "cpu", "--out", tmp_path / "scores.npz")
        assert done.returncode == 0, done.stderr
        assert read_scores(tmp_path / "scores.npz").meta["skipped"] == ["left/gone_g4"]
        assert done.stderr.count("1 of 4 videos could not be read") == 1
    finally:
        path.write_text(listed)


def test_several_classes_and_mirror_pairs_reach_score_files_and_predictions(world, tmp_path):
    settings = tmp_path / "settings" / "toy"
    shutil.copytree(world / "settings" / "toy", settings)
    record = yaml.safe_load((settings / "dataset.yaml").read_text())
    facts = {**record, "multi_label": True, "mirror_pairs": [["left", "right"]]}
    (settings / "dataset.yaml").write_text(yaml.safe_dump(facts))
    listed = "left/v_g3 13 0,2\nright/v_g3 13 1\nstay/v_g3 13 0,1,2\n"
    (settings / "val_rgb_split1.txt").write_text(listed)
    options = EvaluateOptions(views="single", crops="ten", keep_views=True, precision="fp32")
    run = load_run(write_run(tmp_path, "rgb", settings_root=tmp_path / "settings"))
    table, path = evaluate_run(run, options)
    back = read_scores(path)
    assert back.targets.tolist() == [[True, False, True], [False, True, False], [True, True, True]]
    assert back.labels.tolist() == [0, 1, 0]
    assert table.meta["protocol"] == "single clip × ten-crop, mean of logits, mirrored classes exchanged"
    video = world / "videos" / "left" / "v_g3.mp4"
    exchanged = score_file(run.model, video, options, reading_of(run)).view_logits
    np.testing.assert_allclose(exchanged, back.view_logits[:10], atol=2e-3)
    plain = score_file(run.model, video, options, replace(reading_of(run), mirror=Mirror())).view_logits
    np.testing.assert_array_equal(plain[:5], exchanged[:5])
    np.testing.assert_array_equal(plain[5:], exchanged[5:, [1, 0, 2]])
    assert np.abs(plain[5:] - exchanged[5:]).max() > 0.01
    (settings / "dataset.yaml").unlink()  # elsewhere: what training wrote beside the weights counts
    moved = Run(run.experiment, run.model, run.class_names, run.paths, "best", {"mirror_labels": [1, 0, 2]})
    assert reading_of(moved).mirror == Mirror(labels=(1, 0, 2))
