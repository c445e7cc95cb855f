"""The evaluators in the published words: as scripts, against the published scores; and what they say to mistakes."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from two_stream import create_model
from two_stream.commands.flags import parse
from two_stream.data.catalog import load_record
from two_stream.errors import CheckpointError, DataError, SettingsError, TwoStreamError, VideoError
from two_stream.evaluation.report.run_report import write_report
from two_stream.evaluation.scores.files import read_scores
from two_stream.late_temporal.evaluators import evaluate_one, evaluate_two, print_published
from two_stream.late_temporal.flags import EvaluatorFlags, OneStreamFlags, TwoStreamFlags
from two_stream.late_temporal.layout import (
    count_listed_frames,
    find_record,
    pattern_of,
    training_record,
    with_frames,
)
from two_stream.pretrained import write_model
from two_stream.types import ScoreTable, VideoRecord

BERT = "{}_resneXt3D64f101_bert10_FRMB"
SMALL = "efficient3d/mobilenetv2_0.2x"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def demo(shared):
    path = shared / "fixtures" / "late_temporal" / "evaluator_demo.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))


@pytest.fixture(scope="module")
def checkout(shared, deterministic, demo, tmp_path_factory):
    """A folder as the published trainers leave it: lists, frames, checkpoints of a training on several GPUs."""
    root = tmp_path_factory.mktemp("published")
    frames = root / "datasets" / "hmdb51_frames"
    with tarfile.open(shared / "fixtures" / "late_temporal" / "frames" / "demo.tar") as packed:
        packed.extractall(frames, filter="data")
    for path in (frames / "demo").glob("flow_*.jpg"):  # HMDB51's flow has no extension there
        path.rename(path.with_suffix(""))
    lists = root / "datasets" / "settings" / "hmdb51"
    lists.mkdir(parents=True)
    (lists / "val_rgb_split2.txt").write_text("demo 150 11\n")
    (lists / "val_flow_split2.txt").write_text("demo 149 11\n")
    for modality in ("rgb", "flow"):
        name = BERT.format(modality)
        model = shared / "fixtures" / "late_temporal" / "models" / f"{name}.json.gz"
        shapes = json.loads(gzip.decompress(model.read_bytes()))["state_dict"]
        state = {
            f"module.{key}": torch.from_numpy(deterministic.fill(key, shape, demo["weight_seed"]))
            for key, shape in shapes.items()
        }
        file = root / "checkpoint" / f"hmdb51_{name}_split2" / "model_best.pth.tar"
        file.parent.mkdir(parents=True)
        torch.save({"epoch": 4, "arch": name, "state_dict": state, "best_prec1": 50.0}, file)
    (root / "scripts" / "eval").mkdir(parents=True)
    return root


def script(repository, folder, name, *flags):
    command = [sys.executable, str(repository / "eval" / f"{name}.py"), *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def published(demo, kind, modality, ten, frames):
    wanted = (kind, modality, ten, frames)
    keys = ("kind", "modality", "ten_crop", "num_frames_arg")
    (run,) = [run for run in demo["videos"]["demo"]["runs"] if tuple(run[key] for key in keys) == wanted]
    return run["mean_scores"]


def fused(demo, kind, ten, variant):
    keys = ("kind", "ten_crop", "variant")
    (case,) = [
        case for case in demo["videos"]["demo"]["combined"] if [case[k] for k in keys] == [kind, ten, variant]
    ]
    return case["scores"]


@pytest.mark.parity
@pytest.mark.slow
def test_single_clip_script_gives_the_published_scores(repository, checkout, demo, tmp_path):
    """From the folder the published scripts ran in, with the flags of the published README."""
    out = tmp_path / "scores.npz"
    flags = (
        "--arch=" + BERT.format("rgb"),
        "--split=2",
        "--ten_crop_enabled",
        "False",
        "-j",
        "0",
        "--out",
        out,
    )
    done = script(repository, checkout / "scripts" / "eval", "single_clip", *map(str, flags))
    assert done.returncode == 0, done.stderr
    table = read_scores(out)
    expected = published(demo, "single_clip", "rgb", False, 150)
    np.testing.assert_allclose(table.logits[0], expected, atol=TOLERANCE)
    assert "Sample 1/1: GT: 11, Prediction: 11" in done.stdout
    assert "Accuracy with mean calculation is 1.0000" in done.stdout
    assert "one clips\nsingle crop\n" in done.stdout
    assert "note: Test-selected: the checkpoint was picked on the test split" in done.stdout
    assert table.meta["selection"] == "paper"
    assert table.meta["evaluator"] == "spatial_demo_bert"
    assert table.class_names[11] == "eat"


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("multi_clip", "multi_clip"), ("single_clip", "single_clip")])
@pytest.mark.parametrize(("modality", "frames"), [("rgb", 150), ("flow", 0)])
def test_ten_crop_scripts_give_the_published_scores(
    repository, checkout, demo, tmp_path, name, kind, modality, frames
):
    out = tmp_path / "scores.npz"
    done = script(repository, checkout, name, "-a", BERT.format(modality), "-s", "2", "--out", str(out))
    assert done.returncode == 0, done.stderr
    expected = published(demo, kind, modality, True, frames)
    np.testing.assert_allclose(read_scores(out).logits[0], expected, atol=TOLERANCE)
    assert "10 crops" in done.stdout


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("ten", [True, False])
@pytest.mark.parametrize("multi", [True, False])
@pytest.mark.parametrize(
    ("duration", "variant"),
    [("flow", "combined_demo_rgb_uses_flow_duration"), ("own", "rgb_own_duration")],
)
def test_two_stream_script_gives_the_published_scores(
    repository, checkout, demo, tmp_path, ten, multi, duration, variant
):
    out = tmp_path / "fused.npz"
    done = script(
        repository,
        checkout,
        "two_stream",
        f"--arch_rgb={BERT.format('rgb')}",
        f"--arch-flow={BERT.format('flow')}",
        "--split=2",
        f"--ten-crop-enabled={ten}",
        f"--multiple_clips_enabled={multi}",
        f"--rgb_duration={duration}",
        f"--out={out}",
    )
    assert done.returncode == 0, done.stderr
    kind = "multi_clip" if multi else "single_clip"
    np.testing.assert_allclose(read_scores(out).logits[0], fused(demo, kind, ten, variant), atol=TOLERANCE)
    rgb = read_scores(tmp_path / "fused_rgb.npz")
    frames = 149 if duration == "flow" else 150
    np.testing.assert_allclose(rgb.logits[0], published(demo, kind, "rgb", ten, frames), atol=TOLERANCE)


@pytest.mark.parametrize("name", ["multi_clip", "single_clip", "two_stream"])
def test_scripts_find_the_package_wherever_they_are_called(repository, tmp_path, name):
    """`eval/two_stream.py` lies beside them and would hide the package."""
    done = script(repository, tmp_path, name, "--split=x")
    assert done.returncode == 2
    assert done.stderr.startswith(f"{name}.py: ")
    assert done.stderr.count("\n") == 1
    done = script(repository, repository / "eval", name, "--no-such-flag")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "unknown flag --no-such-flag" in done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["--ten_crop_enabled=False", "--settings_root", "x", "--on_error=skip"],
        ["--ten-crop-enabled", "False", "--settings-root=x", "--on-error", "skip"],
        ["--crops=center", "--settings", "x", "--on-error=skip"],
    ],
)
def test_dash_and_underscore_are_one(args):
    flags = parse(OneStreamFlags, args, "multi_clip.py", "")
    assert (flags.chosen_crops, flags.settings, flags.on_error) == ("center", Path("x"), "skip")


def test_short_flags_are_the_published_ones():
    one = parse(OneStreamFlags, ["-a", "x", "-d", "ucf101", "-s", "3", "-v", "-w", "5"], "p", "")
    assert (one.arch, one.dataset, one.split, one.window_val, one.window) == ("x", "ucf101", 3, True, 5)
    two = parse(TwoStreamFlags, ["-a", "f", "-b", "r"], "p", "")
    assert (two.arch_flow, two.arch_rgb) == ("f", "r")


def test_flags_without_meaning_are_answered():
    flags = parse(EvaluatorFlags, ["-e", "-c", "--multiGPUTrain=True", "--multiGPUTest", "True"], "p", "")
    lines = flags.remarks()
    assert [line.split()[0] for line in lines] == ["--multiGPUTrain", "--multiGPUTest", "-e", "-c"]
    assert EvaluatorFlags().remarks() == []


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Two short videos in the published layout, and a checkpoint of a small network."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0)
    lines = []
    for place, frames in enumerate((40, 9)):
        folder = tmp_path / "datasets" / "window_frames" / f"video {place}"
        folder.mkdir(parents=True)
        for number in range(1, frames + 1):
            picture = pixels.integers(0, 255, (32, 40, 3), np.uint8)
            cv2.imwrite(str(folder / f"img_{number:05d}.jpg"), picture)
            for axis in "xy" if number < frames else "":
                ok, packed = cv2.imencode(".jpg", picture[..., 0])
                assert ok
                (folder / f"flow_{axis}_{number:05d}").write_bytes(packed.tobytes())
        lines.append(f"video {place} {frames} {place}\n")
    lists = tmp_path / "datasets" / "settings" / "window"
    lists.mkdir(parents=True)
    (lists / "test_rgb_split1.txt").write_text("".join(lines))
    (lists / "window14.txt").write_text(lines[1])
    torch.manual_seed(0)
    write_model(tmp_path / "net", create_model(SMALL, 3), {})
    return tmp_path


def flags_of(**changes):
    plain = {"arch": SMALL, "dataset": "window", "checkpoint": Path("net"), "workers": 0, "device": "cpu"}
    return OneStreamFlags(**plain | changes)


def test_scores_are_the_mean_over_published_clips_and_crops(small):
    """By hand: frames 5..20 and 21..36 of 40 (three are never read), centre crop."""
    table = evaluate_one(flags_of(crops="center"), "multi")
    model = create_model(SMALL, 3)
    from two_stream import load_weights

    load_weights(model, small / "net")
    model.eval()
    spec = model.spec
    y, x = (spec.resize[0] - spec.crop) // 2, (spec.resize[1] - spec.crop) // 2
    clips = []
    for first in (5, 21):
        frames = []
        for number in range(first, first + 16):
            picture = cv2.imread(str(small / "datasets/window_frames/video 0" / f"img_{number:05d}.jpg"))
            picture = cv2.resize(picture, spec.resize[::-1])[..., ::-1]
            frames.append(picture[y : y + spec.crop, x : x + spec.crop])
        clips.append(np.stack(frames).transpose(3, 0, 1, 2))
    with torch.no_grad():
        expected = model(torch.from_numpy(np.stack(clips))).double().mean(0)
    np.testing.assert_allclose(table.logits[0], expected.numpy(), atol=1e-5)
    assert table.ids == ["video 0", "video 1"]


def test_score_file_serves_report_and_says_its_selection(small, capsys):
    evaluate_one(flags_of(limit=1), "single")
    out = Path("results/window_mobilenetv2_0.2x_split1_single_ten_logits.npz")
    assert f"scores: {out}" in capsys.readouterr().out
    meta = read_scores(out).meta
    assert (meta["selection"], meta["part"], meta["views"], meta["crops"]) == (
        "paper",
        "test",
        "single",
        "ten",
    )
    assert meta["protocol"].endswith("published frame choice")
    assert len(meta["model_sha256"]) == 64
    page = write_report([out], small / "report.html")[0].read_text()
    assert "test-selected" in page


def test_windows_and_limit_choose_the_videos(small):
    assert evaluate_one(flags_of(window_val=True, crops="center"), "multi").ids == ["video 1"]
    assert evaluate_one(flags_of(limit=1, crops="center"), "multi").ids == ["video 0"]
    with pytest.raises(DataError, match=r"window3\.txt: no such split list"):
        evaluate_one(flags_of(window_val=True), "single")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"arch": "rgb_resneXt3D64f101_bert10_FRMP"},
            SettingsError,
            "did you mean rgb_resneXt3D64f101_bert10_FRMB",
        ),
        (
            {"checkpoint": None},
            CheckpointError,
            r"\./checkpoint/window_mobilenetv2_0\.2x_split1/model_best\.pth\.tar: no such",
        ),
        ({"checkpoint": Path("absent.pth.tar")}, CheckpointError, r"absent\.pth\.tar: no such checkpoint"),
        ({"data": Path("absent")}, DataError, r"absent: no such folder of rgb frames"),
        ({"split": 9}, DataError, r"test_rgb_split9\.txt: no such split list .*--list"),
        ({"list_file": Path("absent.txt")}, DataError, r"absent\.txt: no such file"),
        ({"dataset": "windo"}, DataError, "no such data set"),
        ({"limit": 0}, SettingsError, "--limit is 0"),
        (
            {"dataset": "hmdb51", "list_file": Path("one.txt"), "data": Path("datasets/window_frames")},
            CheckpointError,
            r"classifier does not fit .* mobilenetv2_0\.2x with the 51 classes of hmdb51",
        ),
        ({"arch": "efficient3d/mobilenetv2_0.45x"}, CheckpointError, "belong to a different network"),
    ],
)
def test_a_mistake_is_one_line(small, changes, error, words):
    (small / "one.txt").write_text("video 1 9 1\n")
    with pytest.raises(error, match=words) as found:
        evaluate_one(flags_of(**changes), "multi")
    assert isinstance(found.value, TwoStreamError)
    assert found.value.exit_code == 2
    assert "\n" not in str(found.value)
    assert not (small / "results").exists()


def test_streams_must_be_of_their_modality(small):
    with pytest.raises(SettingsError, match=r"--arch_flow is rgb_resneXt3D64f101, a network for rgb"):
        evaluate_two(TwoStreamFlags(arch_flow="rgb_resneXt3D64f101"))


def test_flow_frames_are_counted_under_either_name(small):
    record = find_record("window")
    root = small / "datasets" / "window_frames"
    found = with_frames(record, {"rgb": root, "flow": root}, ["video 0"])
    assert found.patterns.flow_x == "flow_x_{:05d}"
    videos = [VideoRecord("video 0", 99, 0), VideoRecord("video 1", 99, 1)]
    assert [v.num_frames for v in count_listed_frames(videos, found, "flow")] == [39, 8]
    assert [v.num_frames for v in count_listed_frames(videos, found, "rgb")] == [40, 9]
    for path in root.glob("*/flow_*"):
        path.rename(path.with_name(path.name + ".jpg"))
    assert with_frames(record, {"flow": root}, ["video 0"]).patterns.flow_y == "flow_y_{:05d}.jpg"


def test_published_lines_count_the_classes_that_occur(capsys):
    scores = np.array([[0, 0, 9, 1], [0, 0, 1, 9], [0, 1, 9, 0.5], [0, 0, 0, 9]])
    table = ScoreTable(list("abcd"), np.array([2, 2, 3, 3]), list("wxyz"), scores)
    print_published(table, ["./checkpoint/x"], 1.5, ("multi", "ten"))
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["Sample 1/4: GT: 2, Prediction: 2", "Sample 2/4: GT: 2, Prediction: 3"]
    assert shown[4:] == [
        *("[[1 1]", " [1 1]]", "Accuracy with mean calculation is 0.5000", "top3 accuracy 1.0000"),
        *("./checkpoint/x", "Mean Estimated Time 1.5000", "multiple clips", "10 crops"),
    ]


def test_a_list_may_leave_the_counting_to_the_evaluator(small):
    """Zero frames in a list: those of the folder count, as published."""
    listed = evaluate_one(flags_of(crops="center"), "multi").logits
    (small / "zero.txt").write_text("video 0 0 0\nvideo 1 0 1\n")
    found = evaluate_one(flags_of(crops="center", list_file=Path("zero.txt")), "multi").logits
    np.testing.assert_array_equal(found, listed)


def test_a_video_without_frames_is_named_or_skipped(small):
    (small / "list.txt").write_text("video 1 9 1\nabsent 9 0\n")
    (small / "datasets" / "window_frames" / "empty").mkdir()
    with pytest.raises(DataError, match=r"absent"):
        evaluate_one(flags_of(list_file=Path("list.txt")), "multi")
    table = evaluate_one(flags_of(list_file=Path("list.txt"), on_error="skip"), "multi")
    assert (table.ids, table.meta["skipped"]) == (["video 1"], ["absent"])
    (small / "list.txt").write_text("empty 0 1\n")
    with pytest.raises(VideoError, match=r"empty: no rgb frames found; .* such as img_00001\.jpg"):
        evaluate_one(flags_of(list_file=Path("list.txt")), "multi")


def test_published_frame_names_are_read():
    assert pattern_of("img_{0:05d}.jpg") == "img_{:05d}.jpg"
    assert pattern_of("flow_{0}_{1:05d}", "y") == "flow_y_{:05d}"
    assert pattern_of("flow_{axis}_{:04d}.png", "x") == "flow_x_{:04d}.png"
    for wrong, axis in (("img.jpg", None), ("flow_{1:05d}", "x")):
        with pytest.raises(SettingsError, match="expected a name such as"):
            pattern_of(wrong, axis)


def test_a_record_is_written_once_for_published_lists(small, capsys):
    lists = small / "datasets" / "settings" / "window"
    for part in ("train", "val"):
        (lists / f"{part}_rgb_split2.txt").write_text("video 0 40 0\n")
    (lists / "train_flow_split2.txt").write_text("video 0 39 0\n")
    assert training_record("window") == ("window", "window", Path("datasets/settings"))
    assert "dataset.yaml: written" in capsys.readouterr().err
    record = load_record("window", Path("datasets/settings"))
    assert record.frames_root("flow").resolve() == small / "datasets" / "window_frames"
    assert (record.num_splits, record.num_classes, record.patterns.flow_x) == (2, 3, "flow_x_{:05d}")
    training_record("window")
    assert capsys.readouterr().err == ""
    with pytest.raises(DataError, match=r"ucf102: no split lists .*--settings"):
        training_record("ucf102")
