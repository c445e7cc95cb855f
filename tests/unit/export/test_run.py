"""Exported runs: the same logits as the run, by `evaluate` and `predict`; nothing left where they would differ."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.models import settle
from two_stream.cli import main as cli
from two_stream.config.backbones import ResNet3d
from two_stream.config.heads import AverageHead
from two_stream.config.model import InputOptions, ModelOptions
from two_stream.config.schema import EvaluateOptions, Experiment
from two_stream.errors import CheckpointError, ExportError, SettingsError
from two_stream.evaluation.runs.run import evaluate_run, load_run, predict, score_with_runs
from two_stream.evaluation.scores.files import read_scores
from two_stream.export import export_run, load, verifying
from two_stream.export.onnx_format import Int8Options
from two_stream.export.verifying import noise_clips, run_clips
from two_stream.export.writing import BareModel
from two_stream.recognizer import create_model
from two_stream.runtime.files import sha256
from two_stream.types import RunPaths


@pytest.fixture(params=["onnx", "pt2"])
def pair(request, world):
    """A run and the file exported from it."""
    file = request.getfixturevalue(f"{request.param}_file")
    return load_run(world / {"onnx": "rgb", "pt2": "flow"}[request.param]), file


def test_logits_of_any_batch_are_the_models(pair):
    run, file = pair
    exported = load(file)
    clips = noise_clips(run.model.spec, 6)
    for size in (1, 2, 5, 6):
        with torch.no_grad():
            wanted = run.model(clips[:size])
        error = (exported.model(clips[:size]) - wanted).abs().max() / wanted.abs().max()
        assert error < 1e-4, size
    assert wanted.std(0).min() > 0.1  # the clips tell the networks apart


def test_the_card_says_what_the_run_was(pair):
    run, file = pair
    card = load(file).card
    assert card.class_names == run.class_names
    assert card.model_sha256 == run.model_sha256
    assert card.input_spec() == run.model.spec
    assert card.inputs[0].shape == ("batch", run.model.spec.channels, 4, 32, 32)
    assert (card.inputs[0].dtype, card.outputs[0].shape) == ("uint8", ("batch", 3))
    assert card.verified is not None
    assert card.verified.relative <= 1e-4
    assert card.verified.clips == "3 clips of the val part of toy, in batches of 1 and 3"
    assert card.settings(file) == run.experiment.model_copy(
        update={"evaluate": run.experiment.evaluate.model_copy(update={"precision": "auto"})}
    )


def test_evaluate_gives_the_runs_scores_and_says_which_file_made_them(pair):
    run, file = pair
    wanted, _ = evaluate_run(run, EvaluateOptions(precision="fp32", views="multi", crops="three"))
    found, path = evaluate_run(load(file))
    assert found.ids == wanted.ids
    scale = np.abs(wanted.logits).max()
    assert np.abs(found.logits - wanted.logits).max() < 1e-4 * scale
    assert path == file.parent / "scores" / f"test_multi_three_logits_{file.name}.npz"
    meta = read_scores(path).meta
    assert meta["exported"]["file"] == str(file)
    assert meta["exported"]["sha256"] == sha256(file)
    assert meta["model_sha256"] == run.model_sha256
    assert (meta["precision"], meta["folded"], meta["run"]) == ("fp32", False, str(run.paths.root))


def test_predict_reads_a_video_as_the_run_does(pair, world):
    run, file = pair
    video = world / "videos" / "left" / "v_g3.mp4"
    fp32 = run.experiment.evaluate.model_copy(update={"precision": "fp32"})
    wanted = dict(predict(run, video, options=fp32))
    found = dict(predict(load(file), video))
    assert found == pytest.approx(wanted, abs=1e-5)


def test_an_exported_stream_is_fused_with_a_run(world, onnx_file):
    video = world / "videos" / "right" / "v_g3.mp4"
    runs = [load_run(world / "rgb"), load_run(world / "flow")]
    wanted = score_with_runs(runs, video)
    found = score_with_runs([load(onnx_file), runs[1]], video)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-4 * np.abs(theirs.logits).max())


def test_away_from_the_data_set_a_video_is_still_read_as_written(world, onnx_file, tmp_path, capsys):
    """The frames' size and the flow algorithm come with the file."""
    run = load_run(world / "rgb")
    run.meta["extraction"] = {"short_side": 40, "size": [30, 44]}
    run = replace(run, experiment=run.experiment.model_copy(update={"data": _elsewhere(run)}))
    file, card = export_run(run, "pt2", tmp_path / "model.pt2")
    assert card.meta["extraction"] == {"short_side": 40, "size": [30, 44]}
    from two_stream.evaluation.runs.run import reading_of

    assert reading_of(load(file)).size == (30, 44)
    assert "of noise" in card.verified.clips


def _elsewhere(run):
    return run.experiment.data.model_copy(update={"source": "frames", "settings_root": run.paths.root / "no"})


def test_clips_come_from_the_training_list(world):
    run = load_run(world / "rgb")
    for part, ids in (("train", 3), ("val", 3)):
        clips = run_clips(run, 8, part)
        assert clips.shape == (ids, 3, 4, 32, 32)
        assert clips.float().std() > 10


def test_a_file_that_differs_is_refused_and_none_is_left(world, tmp_path, monkeypatch):
    run = load_run(world / "rgb")
    out = tmp_path / "model.pt2"
    out.write_bytes(b"what was there")

    def wrong(session, exportable, clips):
        found = verifying.compare(session, exportable, clips)
        return verifying.Compared(found.model, found.exported + 2e-4 * found.model.abs().max())

    monkeypatch.setattr("two_stream.export.writing.compare", wrong)
    with pytest.raises(
        ExportError,
        match=r"the logits of the exported network differ .* expected at most 1e-04; no file was written",
    ):
        export_run(run, "pt2", out)
    assert out.read_bytes() == b"what was there"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


def test_ctrl_c_leaves_nothing(world, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("two_stream.export.writing.compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_run(load_run(world / "rgb"), "pt2", tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("difference", "accepted"), [(0.99e-4, True), (1.01e-4, False), (float("nan"), False)]
)
def test_the_rule_is_relative_to_the_largest_logit(difference, accepted):
    model = torch.tensor([[50.0, -200.0], [1.0, 0.0]])
    found = verifying.Compared(model, model + torch.tensor([[0.0, 0.0], [200.0 * difference, 0.0]]))
    if accepted:
        assert found.verified("clips").relative == pytest.approx(difference, rel=0.01)
    else:
        with pytest.raises(ExportError, match="the logits of the exported network differ"):
            found.verified("clips")


@pytest.fixture(scope="module")
def resnet():
    """An untrained 3D ResNet whose logits tell clips of noise apart."""
    options = ModelOptions(
        backbone=ResNet3d(depth=10),
        head=AverageHead(),
        input=InputOptions(clip_length=4, resize=(36, 48), crop=32),
    )
    torch.manual_seed(0)
    model = create_model(options, num_classes=4)
    settle(model)
    names = ["a", "b", "c", "d"]
    return BareModel(Experiment(name="r", model=options), model, names, RunPaths(Path()), "", {})


def test_int8_finds_the_models_classes_and_is_smaller(resnet, tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
    file, card = export_run(resnet, "onnx", tmp_path / "model.int8.onnx", int8=Int8Options(clips=12))
    assert card.precision == "int8"
    assert card.verified.limit is None
    assert card.verified.agreement >= 0.75
    assert 1e-4 < card.verified.relative < 0.2  # rounded to 8 bits, and near the model all the same
    weights = sum(weight.numel() for weight in resnet.model.parameters())
    assert file.stat().st_size < 1.1 * weights + 200_000  # a byte each, and the graph
    graph = onnx.load(str(file)).graph
    inputs = {name for node in graph.node if node.op_type == "Conv" for name in node.input[:2]}
    rounded = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    assert inputs <= rounded  # every convolution is computed on 8-bit values
    assert load(file).facts["precision"] == "int8"


def test_int8_that_finds_other_classes_is_refused():
    model = torch.eye(4).repeat(3, 1)
    wrong = verifying.Compared(model, model.roll(1, dims=1))
    with pytest.raises(
        ExportError, match="the int8 network predicts the same class as the model for only 0 % of 12 clips"
    ):
        wrong.verified("clips", None)
    assert verifying.Compared(model, model + 0.1).verified("clips", None).agreement == 1.0


def test_int8_of_another_format_is_refused(world):
    with pytest.raises(SettingsError, match=r"--int8 is supported only for ONNX, but --to is pt2"):
        export_run(load_run(world / "rgb"), "pt2", int8=Int8Options())


def test_the_command_shows_what_was_written(world, tmp_path, capsys):
    out = tmp_path / "made.pt2"
    assert cli(["export", str(world / "rgb"), "--to", "pt2", "--out", str(out), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["file"] == str(out)
    assert card["spec"] == json.loads(json.dumps(asdict(load_run(world / "rgb").model.spec)))
    video = str(world / "videos" / "left" / "v_g1.mp4")
    answer = tmp_path / "answer.json"
    assert cli(["predict", video, "--rgb", str(out), "--json", str(answer)]) == 0
    capsys.readouterr()
    assert json.loads(answer.read_text())[0]["streams"]["rgb"]["views"] == 3
    assert cli(["evaluate", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["meta"]["exported"]["to"] == "pt2"


@pytest.mark.slow
def test_aoti_gives_the_runs_scores(world, tmp_path):
    run = load_run(world / "rgb")
    file, _ = export_run(run, "aoti", tmp_path / "model.aoti.pt2")
    wanted, _ = evaluate_run(run, EvaluateOptions(precision="fp32", views="multi", crops="three"))
    for name in ("model.aoti.pt2", "model.onnx"):
        renamed = file.rename(file.with_name(name))
        with pytest.raises(CheckpointError, match=r"an AOTInductor package contains machine code.*--trust"):
            load(renamed)
    found, _ = evaluate_run(load(renamed, trust=True))
    assert np.abs(found.logits - wanted.logits).max() < 1e-4 * np.abs(wanted.logits).max()
    assert found.meta["exported"]["to"] == "aoti"
