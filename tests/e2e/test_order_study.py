"""The suite can detect what the paper claims: order-aware heads beat averaging where order matters, and only there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from two_stream.cli import main


@pytest.mark.slow
def test_order_aware_heads_win_on_ordered_frames_and_no_head_on_shuffled_ones(
    repository: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    study = repository / "settings" / "studies" / "demo_order.yaml"
    assert main(["ablate", str(study), "--no-cost"]) == 0
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
