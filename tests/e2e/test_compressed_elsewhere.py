"""A pruned run goes where any run goes; an int8 one runs on sliding clips, and says in one line where it cannot go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.runs import made_run
from two_stream import load_run
from two_stream.cli import main
from two_stream.compression.channels import narrow_channels
from two_stream.compression.quantization import quantise
from two_stream.config.compress import Prune, Quantize
from two_stream.pretrained import write_model
from two_stream.streaming import convert


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made_run(tmp_path_factory.mktemp("runs") / "pruned")
    run = load_run(folder)
    narrow_channels(run.model, Prune(what="channels", target_macs=0.6))
    write_model(folder / "best", run.model, run.meta)
    return folder


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made_run(
        tmp_path_factory.mktemp("runs") / "int8", head="bert"
    )  # whose linear layers are int8 too
    run = load_run(folder)
    quantise(run.model, Quantize(), [torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8)])
    write_model(folder / "best", run.model, run.meta)
    return folder


@pytest.fixture
def video(shared: Path) -> Path:
    return sorted((shared / "data" / "fight2" / "fight").glob("*.mp4"))[0]


def test_a_pruned_network_streams_as_its_clips(pruned: Path) -> None:
    model = load_run(pruned).model
    assert model.alterations
    stream = convert(model)
    clip = torch.randint(0, 256, (1, 3, 8, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        found = torch.cat([*(stream.step(frame) for frame in clip.split(1, dim=2)), stream.finish()], dim=1)
        torch.testing.assert_close(found[:, 0], model(clip), rtol=1e-4, atol=1e-4)


def test_a_pruned_network_is_exported_and_verified(pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(pruned), "--to", "onnx"]) == 0
    assert "verified on" in capsys.readouterr().out


@pytest.mark.slow
def test_an_int8_network_watches_over_sliding_clips(
    int8: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stream", str(video), "--rgb", str(int8)]) == 0
    shown = capsys.readouterr()
    assert "int8 networks cannot stream" in shown.err
    assert "predictions in" in shown.out
    assert main(["stream", str(video), "--rgb", str(int8), "--mode", "continual"]) == 2


@pytest.mark.parametrize("more", [[], ["--stream"], ["--to", "pt2"]])
def test_an_int8_network_stays_in_torch(
    int8: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(int8), *more]) == 2
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    assert complaint.startswith("two-stream: ")
    assert "int8" in complaint
    assert not list(int8.glob("*.onnx")) + list(int8.glob("*.pt2"))


def test_no_published_code_and_no_head_takes_an_altered_network(
    pruned: Path, int8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, kind in ((pruned, "narrowed"), (int8, "int8")):
        out = tmp_path / "back.pth"
        assert main(["weights", "convert", str(run), "--to", "published", "--out", str(out)]) == 2
        assert f"no published code supports a compressed network ({kind})" in capsys.readouterr().err
        assert not out.exists()
    assert main(["features", str(int8), "--out", str(tmp_path / "features")]) == 2
    assert "an int8 run has no features to store" in capsys.readouterr().err
