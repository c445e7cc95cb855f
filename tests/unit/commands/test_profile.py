"""`two-stream profile`: what it prints and writes, from a model and from its data."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest
import yaml

from two_stream.commands import profile
from two_stream.config.backbones import ResNet3d
from two_stream.config.heads import AverageHead
from two_stream.config.model import ModelOptions
from two_stream.errors import DataError, ScoreError, SettingsError
from two_stream.evaluation.scores.files import write_scores
from two_stream.pretrained import write_model
from two_stream.profiling import peak
from two_stream.recognizer import Recognizer
from two_stream.types import ScoreTable

OPTIONS = ModelOptions(
    # oneDNN's bf16 gradients of a temporal kernel of 7 over 4 frames write where they must not (torch 2.14)
    backbone=ResNet3d(depth=10, width=0.125, stem_kernel=3),
    head=AverageHead(),
    input={"clip_length": 4, "crop": 32, "resize": (32, 40)},
)


@pytest.fixture(autouse=True)
def small_products(monkeypatch):
    monkeypatch.setattr(peak, "_SIZES", {"cpu": (64,)})


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    write_model(folder / "best", Recognizer(OPTIONS, 3), {})
    return folder


def quick(run, *more):
    return [str(run), "--device", "cpu", "--seconds", "0.02", "--batch-size", "2", *more]


def dataset(folder):
    """Six videos of six frames, three classes."""
    lines = []
    for video in range(6):
        place = folder / "frames" / f"v{video}_g{video}"
        place.mkdir(parents=True)
        for number in range(1, 7):
            cv2.imwrite(str(place / f"img_{number:05d}.jpg"), np.full((24, 32, 3), 9 * video, np.uint8))
        lines.append(f"v{video}_g{video} 6 {video % 3}\n")
    for part in ("train", "val"):
        (folder / f"{part}_rgb_split1.txt").write_text("".join(lines))
    (folder / "dataset.yaml").write_text(
        "name: small\nframes: {rgb: frames}\nclasses: [a, b, c]\ngroup: '_(g\\d+)$'\n"
    )
    return folder / "dataset.yaml"


def test_one_row_per_precision_and_batch_size(run, tmp_path, capsys):
    found = tmp_path / "found.json"
    args = [str(run), "--device", "cpu", "--seconds", "0.02", "--batch-size", "1", "3"]
    more = ["--json", str(found), "--plot", str(tmp_path / "p.svg")]
    assert profile.main([*args, "--precision", "fp32", "bf16", *more]) == 0
    assert "clips per second" in (tmp_path / "p.svg").read_text(), "over the batch size"
    text = capsys.readouterr().out
    assert "layer4" in text
    assert "peak: matrix products on this machine" in text
    rows = json.loads(found.read_text())
    kinds = [(one["work"], one["precision"], one["batch_size"]) for one in rows["speeds"]]
    assert kinds == [("forward", p, b) for p in ("fp32", "bf16") for b in (1, 3)]
    for one in rows["speeds"]:
        operations = 2 * rows["multiply_adds"] * one["batch_size"]
        assert one["flops_per_second"] == pytest.approx(operations / one["milliseconds"] * 1e3)
        assert one["share_of_peak"] == pytest.approx(one["flops_per_second"] / one["peak_flops"])
    assert rows["fvcore_operations"] > rows["multiply_adds"]
    assert all(stage["milliseconds"] > 0 for stage in rows["stages"])


def test_json_to_standard_output_is_all_there_is(run, capsys):
    assert profile.main(quick(run, "--json", "-", "--precision", "fp32", "--training")) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["work"] for one in found["speeds"]] == ["forward", "training"]
    assert found["speed"]["batch_size"] == 2


def test_the_data_path_and_what_holds_a_run_back(run, tmp_path, capsys):
    record = dataset(tmp_path)
    assert profile.main(quick(run, "--precision", "fp32", "--data", str(record), "--json", "-")) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert (data["dataset"], data["modality"], data["source"], data["workers"]) == (
        "small",
        "rgb",
        "frames",
        2,
    )
    assert min(data["read"], data["transform"], data["collate"], data["copy"], data["clips_per_second"]) > 0
    assert data["worker_milliseconds"] == pytest.approx(data["read"] + data["transform"] + data["collate"])
    assert data["verdict"].startswith("the loader delivers ")
    experiment = tmp_path / "exp.yaml"
    settings = {"data": {"dataset": str(record), "workers": 0}, "train": {"batch_size": 2}}
    experiment.write_text(yaml.safe_dump(settings))
    assert profile.main(quick(run, "--precision", "fp32", "--data", str(experiment))) == 0
    text = capsys.readouterr().out
    assert "data loading: small, rgb from frames" in text
    assert "with 0 workers" in text
    with pytest.raises(DataError, match="absent"):
        profile.main(quick(run, "--data", "absent", "--settings-root", str(tmp_path)))


def scores(folder, name, right, **meta):
    labels = np.arange(40) % 2
    said = np.where(np.arange(40) < right, labels, 1 - labels)
    table = ScoreTable(
        [f"v{n}" for n in range(40)], labels, ["a", "b"], np.eye(2)[said] * 3.0, {"name": name, **meta}
    )
    write_scores(folder / f"{name}.npz", table)
    return folder / f"{name}.npz"


def test_accuracy_against_cost(run, tmp_path, capsys):
    (run / "experiment.yaml").write_text("name: run\n")
    good = scores(tmp_path, "good", 36, run=str(run), checkpoint="best", views_per_video=10.0)
    poor = scores(tmp_path, "poor", 20, run=str(run), checkpoint="best", views_per_video=1.0)
    picture = tmp_path / "plot.png"
    args = quick(run, "--precision", "fp32", "--json", "-", "--plot", str(picture), str(good), str(poor))
    assert profile.main(args) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(p["name"], p["accuracy"], p["views"]) for p in found["accuracies"]] == [
        ("good", 0.9, 10.0),
        ("poor", 0.5, 1.0),
    ]
    assert all(p["low"] < p["accuracy"] < p["high"] for p in found["accuracies"])
    assert all(p["multiply_adds"] == found["multiply_adds"] for p in found["accuracies"])
    height, width = cv2.imread(str(picture)).shape[:2]
    assert (width, height) == (960, 630)


@pytest.mark.slow
def test_plot_of_one_batch_size_shows_the_stages(run, tmp_path):
    assert profile.main(quick(run, "--precision", "fp32", "--plot", str(tmp_path / "p.svg"))) == 0
    text = (tmp_path / "p.svg").read_text()
    shown = re.findall(r">([^<\n]+)</text", text)
    assert {"stem", "layer4", "classifier", "other"} <= set(shown)
    titles = r"\d+\.\d ms per batch", r"\d+\.\d\d G multiply-adds", r"\d+\.\d\d M parameters"
    assert all(any(re.fullmatch(title, one) for one in shown) for title in titles)
    shares = [float(one[:-2]) for one in shown if re.fullmatch(r"[\d.]+ %", one)]
    assert len(shares) == 8 + 7 + 7, "other has only a time"
    assert sum(shares) == pytest.approx(300, abs=1.5)


def test_wrong_flags_cost_no_time(run, tmp_path):
    with pytest.raises(SettingsError, match="--batch-size must be 1 or more"):
        profile.main([str(run), "--batch-size", "2", "0"])
    with pytest.raises(SettingsError, match=r"expected the first file to end in \.png, \.svg or \.pdf"):
        profile.main(quick(run, "--plot", "scores.npz"))
    with pytest.raises(ScoreError, match="no such score file"):
        profile.main(quick(run, "--plot", str(tmp_path / "p.png"), str(tmp_path / "absent.npz")))
    lost = scores(tmp_path, "lost", 20, run=str(tmp_path / "elsewhere"))
    with pytest.raises(SettingsError, match=r"its run folder .*elsewhere is missing"):
        profile.main(quick(run, "--plot", str(tmp_path / "p.png"), str(lost)))


@pytest.mark.slow
def test_training_with_batches_of_one_is_refused(run):
    with pytest.raises(SettingsError, match=r"training with batch size 1: .* use a larger batch"):
        profile.main([str(run), "--device", "cpu", "--batch-size", "1", "--training", "--precision", "fp32"])
