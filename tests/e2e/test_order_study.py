"""The suite can detect what the paper claims: order-aware heads beat averaging where order matters, and only there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from two_stream.cli import main


@pytest.mark.slow
def test_order_aware_heads_win_on_ordered_frames_and_no_head_on_shuffled_ones(
    repository: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    study = yaml.safe_load((repository / "settings" / "studies" / "demo_order.yaml").read_text())
    heads = study["grid"]["head"]
    study["grid"]["head"] = {name: heads[name] for name in ("average", "LSTM", "BERT")}
    (tmp_path / "order.yaml").write_text(yaml.safe_dump(study))
    assert main(["ablate", "order.yaml", "--no-cost"]) == 0
    result = json.loads((tmp_path / "runs" / "studies" / "demo_order" / "report.json").read_text())
    shown = {one["first"]: one for one in result["comparisons"]}
    for head in ("LSTM", "BERT"):
        ordered, shuffled = shown[f"{head} · in order"], shown[f"{head} · shuffled"]
        assert ordered["second"] == "average · in order"
        assert ordered["significant"]
        assert ordered["p_holm"] < 0.05
        assert ordered["difference"]["low"] > 0
        assert not shuffled["significant"]
    chance = {one["name"]: one["accuracy"]["low"] for one in result["variants"]}
    assert chance["average · in order"] < 1 / 6


@pytest.mark.slow
def test_the_xray_of_a_study_finds_who_uses_the_order(repository: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = yaml.safe_load((repository / "settings" / "studies" / "demo_heads.yaml").read_text())
    study["features"]["backbone"] = {
        "model.head": study["variants"]["LSTM"]["model.head"],
        "train": {"epochs": 20},
    }
    study["variants"] = {name: study["variants"][name] for name in ("average", "LSTM")}
    study |= {"compare": [], "seeds": [1], "xray": True, "measure_cost": False}
    (tmp_path / "order.yaml").write_text(yaml.safe_dump(study))
    assert main(["ablate", "order.yaml"]) == 0
    folder = tmp_path / "runs" / "studies" / "demo_heads"
    result = json.loads((folder / "report.json").read_text())
    rows = {(row["network"], row["change"]): row for row in result["xray"]["rows"]}
    assert rows["LSTM", "natural"]["accuracy"]["low"] > 1 / 2
    for change in ("shuffled", "median"):
        assert rows["LSTM", change]["significant"]
        assert rows["LSTM", change]["accuracy"]["low"] < 1 / 6 < rows["LSTM", change]["accuracy"]["high"]
    assert rows["LSTM", "reversed"]["accuracy"]["high"] < rows["LSTM", "natural"]["accuracy"]["low"]
    for change in ("shuffled", "reversed"):
        assert rows["average", change]["same"] == 1
    assert "The order of the frames is not used" in (folder / "report.md").read_text()
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("xray/*.npz")}
    assert len(before) == 2 * 10
    assert main(["ablate", "order.yaml"]) == 0  # nothing is scored again
    assert before == {file: file.stat().st_mtime_ns for file in folder.rglob("xray/*.npz")}
