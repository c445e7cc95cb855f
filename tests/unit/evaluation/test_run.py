"""Runs and what evaluating them writes: score files, protocols, complaints, several processes."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml

from tests.helpers.runs import write_run
from two_stream.cli import main as cli
from two_stream.config.schema import EvaluateOptions
from two_stream.data.catalog import Mirror
from two_stream.errors import (
    CheckpointError,
    DataError,
    ScoreError,
    SettingsError,
    TwoStreamError,
)
from two_stream.evaluation.runs.run import Run, evaluate_run, load_run, reading_of
from two_stream.evaluation.scores.files import read_scores
from two_stream.evaluation.scoring.video import score_file
from two_stream.runtime.files import sha256


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


def test_a_file_that_cannot_be_written_is_said_before_scoring(world, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("two_stream.evaluation.runs.run.read_and_score", lambda *_: pytest.fail("scored"))
    with pytest.raises(SettingsError, match="cannot be written"):
        evaluate_run(world / "rgb", device="cpu", out=tmp_path / "file" / "a.npz")
    assert cli(["evaluate", str(world / "rgb"), "--results", str(tmp_path)]) == 2


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
        with pytest.raises(ScoreError, match="none of 1 video could be read"):
            evaluate_run(folder, device="cpu")
        strict = write_run(tmp_path / "strict", "rgb", settings_root=world / "settings")
        with pytest.raises(TwoStreamError, match="gone_g4"):
            evaluate_run(strict, device="cpu")
    finally:
        path.write_text(listed)


def test_what_is_wrong_with_a_run_is_one_line(world, tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere: no such run folder; expected a folder"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no experiment\.yaml"):
        load_run(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint 'last'; use `best`"):
        load_run(world / "rgb", "last")
    with pytest.raises(CheckpointError, match="unknown checkpoint 'newest'"):
        load_run(world / "rgb", "newest")
    folder = write_run(tmp_path, "rgb", settings_root=world / "settings")
    weights = folder / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        load_run(folder)
    other = write_run(tmp_path / "b", "rgb", settings_root=world / "settings", names=["x", "y", "z"])
    with pytest.raises(DataError, match="classes differ from the 3 classes of the model in"):
        evaluate_run(other, device="cpu")


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
        assert not list((folder / "scores").glob("*"))
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


def test_results_of_a_run_are_evaluated_as_its_scores(world, tmp_path, capsys):
    run, results, scores = str(world / "rgb"), tmp_path / "val.json", tmp_path / "s.npz"
    assert (
        cli(["evaluate", run, "--results", str(results), "--out", str(scores), "--json", "--device", "cpu"])
        == 0
    )
    wanted = json.loads(capsys.readouterr().out)["top"]["1"]["value"]
    truth = str(world / "settings" / "toy" / "dataset.yaml")
    assert cli(["evaluate", "--from-json", str(results), "--truth", truth, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["top"]["1"] == pytest.approx(wanted)
    assert (found["videos"], found["unseen"]) == (3, [])
