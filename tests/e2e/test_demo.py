"""The whole pipeline, small: videos, extraction, two trained streams, scores, fusion, report, prediction."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.helpers.hub import connected
from two_stream.cli import main
from two_stream.commands import demo as command
from two_stream.config.model import InputOptions
from two_stream.config.schema import Experiment
from two_stream.data import demo as data
from two_stream.evaluation.scores.files import read_scores
from two_stream.studies.running import plan as variants


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The demo with few videos, one epoch and small pictures."""
    out = tmp_path_factory.mktemp("demo") / "with space"
    usual = command.demo_experiment

    def small(*given: object) -> Experiment:
        experiment = usual(*given)
        pictures = InputOptions(clip_length=8, resize=(36, 48), crop=32)
        return experiment.model_copy(
            update={"model": experiment.model.model_copy(update={"input": pictures})}
        )

    baseline = yaml.safe_load(variants.SETTINGS.read_text())
    baseline["common"]["model"]["input"] |= {"resize": [48, 64], "crop": [48, 64]}
    settings = tmp_path_factory.mktemp("small") / "baseline.yaml"
    settings.write_text(yaml.safe_dump(baseline))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "demo_experiment", small)
        size = {"height": 36, "width": 48, "min_frames": 17, "max_frames": 19}
        patch.setattr(data, "DemoOptions", partial(data.DemoOptions, **size))
        extraction = data.ExtractOptions
        quick = {"flow": "dis"}  # TV-L1 takes ten times as long
        patch.setattr(data, "ExtractOptions", lambda **given: extraction(**given | quick))
        patch.setattr(variants, "SETTINGS", settings)
        assert main(["demo", "--out", str(out), "--groups", "3", "--epochs", "1"]) == 0
        yield out


def test_everything_is_there(demo: Path) -> None:
    report = json.loads((demo / "report.json").read_text())
    assert (demo / "report.html").read_text().count("<svg") >= 3
    assert report["title"] == "Two-Stream demo"
    fused = read_scores(demo / "fused.npz")
    assert len(fused.ids) == 8
    assert fused.meta["rule"] == "l2"
    for modality in ("rgb", "flow"):
        run = demo / "runs" / modality
        assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
        table = read_scores(run / "scores" / "test_multi_ten_logits.npz")
        assert table.ids == fused.ids
        assert table.meta["part"] == "test"


def test_again_is_quick_and_other_settings_are_refused(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (demo / "runs" / "rgb" / "last" / "model.safetensors").stat().st_mtime_ns
    assert main(["demo", "--out", str(demo), "--groups", "3", "--epochs", "1"]) == 0
    assert (demo / "runs" / "rgb" / "last" / "model.safetensors").stat().st_mtime_ns == before
    capsys.readouterr()
    assert main(["demo", "--out", str(demo), "--groups", "3", "--epochs", "2"]) == 2
    assert "a demo with different settings" in capsys.readouterr().err


def test_predict_from_both_streams(demo: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    video = next((demo / "data" / "videos").rglob("*.mp4"))
    runs = ["--rgb", str(demo / "runs" / "rgb"), "--flow", str(demo / "runs" / "flow")]
    assert main(["predict", str(video), *runs, "--annotate", str(tmp_path / "out.mp4")]) == 0
    assert "%" in capsys.readouterr().out
    assert (tmp_path / "out.mp4").stat().st_size > 1000
    capsys.readouterr()
    (tmp_path / "text.mp4").write_text("not a video at all")
    assert main(["predict", str(tmp_path / "text.mp4"), *runs]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert "not a video" in complaint


def test_a_pushed_run_is_reproduced(
    demo: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with connected(monkeypatch, tmp_path / "cache"):
        assert main(["push", str(demo / "runs" / "flow"), "ada/waves", "--license", "mit"]) == 0
        capsys.readouterr()
        assert main(["reproduce", "hf://ada/waves", "--data-root", str(demo / "data")]) == 0
    assert capsys.readouterr().out.startswith("equal bit for bit: all scores of 8 videos; ")
