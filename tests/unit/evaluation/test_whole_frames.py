"""Rectangular networks trained, scored, streamed and exported on whole frames: every way shows the same pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import yaml

from tests.helpers.datasets import CLASSES
from tests.helpers.models import settle
from two_stream.config.load import dump, load_experiment
from two_stream.config.schema import EvaluateOptions, Experiment
from two_stream.data.catalog import Mirror
from two_stream.evaluation.pictures.attention import read_attention
from two_stream.evaluation.runs import run as run_module
from two_stream.evaluation.runs.run import evaluate_run, load_run, reading_of
from two_stream.evaluation.scores.files import read_scores
from two_stream.evaluation.scoring.network import example_clip
from two_stream.evaluation.scoring.video import VideoInput, picture_at, score_file
from two_stream.evaluation.scoring.views import describe_views, protocol_slug, same_boxes_note
from two_stream.export import export_run, load
from two_stream.export.verifying import run_clips
from two_stream.pretrained import write_model
from two_stream.recognizer import create_model
from two_stream.streaming.live.networks import Prepare
from two_stream.training.train import train
from two_stream.video.decoding.reader import open_video

FULL = EvaluateOptions(views="single", crops="full", batch_views=3, keep_views=True, precision="fp32")
MOBILENET = {"kind": "mobilenetv2_3d", "width": 0.2}
RESNET = {"kind": "timm", "name": "resnet10t"}


def experiment_of(world, name: str, **model) -> Experiment:
    """A run on whole frames of 48×64 or as `model.input` says."""
    settings = {
        "name": name,
        "runs": world / "whole",
        "device": "cpu",
        "model": {
            "backbone": MOBILENET,
            "head": {"kind": "average"},
            "input": {"clip_length": 4, "stride": 1, "resize": [48, 64], "crop": [48, 64]},
            **model,
        },
        "data": {
            "dataset": "toy",
            "settings_root": world / "settings",
            "source": "videos",
            "workers": 0,
            "holdout": 0.4,
            "augment": {"crop": "full"},
        },
        "train": {"epochs": 1, "batch_size": 4, "log_images": False},
        "evaluate": FULL,
    }
    return Experiment.model_validate(settings)


def written_run(world, name: str, **model):
    """An untrained run whose logits differ between clips."""
    experiment = experiment_of(world, name, **model)
    torch.manual_seed(0)
    network = create_model(experiment.model, num_classes=len(CLASSES))
    settle(network)
    folder = experiment.runs / name
    write_model(folder / "best", network, {"class_names": CLASSES, "epoch": 1})
    (folder / "experiment.yaml").write_text(dump(experiment))
    return load_run(folder)


def whole_clip(path, numbers, size) -> torch.Tensor:
    """Frames of a video at (height, width) as `(1, C, T, H, W)`: of the size of extraction, then whole at their own."""
    with open_video(path) as video:
        frames = list(video.read([number - 1 for number in numbers]))
    frames = [cv2.resize(picture_at(frame, VideoInput()), size[::-1]) for frame in frames]
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)[None]


@pytest.mark.parametrize("backbone", [MOBILENET, RESNET], ids=["mobilenet", "timm"])
def test_a_rectangle_trains_and_scores_as_the_network_by_hand(world, backbone) -> None:
    if backbone is RESNET:
        pytest.importorskip("timm")
    experiment = experiment_of(world, f"trained_{backbone['kind']}", backbone=backbone)
    folder = train(experiment).run.root
    assert load_experiment(folder / "experiment.yaml").model.input.crop == (48, 64)
    assert "crop: full" in (folder / "experiment.yaml").read_text()
    run = load_run(folder)
    table, path = evaluate_run(run)
    assert path.name == "test_single_full_logits.npz"
    meta = read_scores(path).meta
    assert meta["protocol"] == "single clip × whole frame + mirror, mean of logits"
    assert (meta["crops"], meta["crop"], meta["resize"]) == ("full", [48, 64], [48, 64])
    video = world / "videos" / "left" / "v_g3.mp4"
    clip = whole_clip(video, [5, 6, 7, 8], (48, 64))  # 13 frames: the clip in the middle begins at the fifth
    model = run.model.eval()
    with torch.no_grad():
        both = torch.cat([model(clip), model(clip.flip(4))])
    row = table.ids.index("left/v_g3")
    assert table.view_counts is not None
    assert table.view_logits is not None
    start = int(table.view_counts[:row].sum())
    np.testing.assert_allclose(table.view_logits[start : start + 2], both.numpy(), atol=1e-4)
    live = score_file(run.model, video, FULL, reading_of(run))
    np.testing.assert_allclose(live.view_logits, both.numpy(), atol=1e-4)


def test_a_square_network_sees_the_whole_frame_squeezed_wherever_a_view_is_centred(world) -> None:
    """`crops: center`, a stream, an export's clips and the picture of attention: the network never sees a crop."""
    bert = {"kind": "bert", "heads": 4, "hidden": 64}
    squeezed = {"clip_length": 4, "stride": 1, "resize": [40, 60], "crop": 32}
    run = written_run(world, "square", head=bert, input=squeezed)
    video = world / "videos" / "left" / "v_g3.mp4"
    clip = whole_clip(video, [5, 6, 7, 8], (32, 32))
    center = FULL.model_copy(update={"crops": "center"})
    reading = reading_of(run)
    with torch.no_grad():
        wanted = run.model.eval()(clip).numpy()
    np.testing.assert_allclose(score_file(run.model, video, center, reading).view_logits, wanted, atol=1e-4)
    table, path = evaluate_run(run, center)
    assert read_scores(path).meta["protocol"] == "single clip × whole frame, mean of logits"
    assert table.view_logits is not None
    np.testing.assert_allclose(table.view_logits[table.ids.index("left/v_g3")], wanted[0], atol=1e-4)
    with open_video(video) as opened:
        pictures = list(opened.read([4, 5, 6, 7]))
    prepare = Prepare(run.model.spec, reading)
    seen = torch.stack([prepare(None, picture) for picture in pictures], 1)
    np.testing.assert_array_equal(seen.numpy(), clip[0].numpy())
    attention = read_attention(run.model, video, center, reading, CLASSES)
    shares = np.exp(wanted[0]) / np.exp(wanted[0]).sum()
    assert attention.guess == (CLASSES[int(shares.argmax())], pytest.approx(float(shares.max()), abs=1e-4))
    assert attention.whole_frame
    picture = next(iter(attention.pictures.values()))
    assert picture.shape[:2] == (216, 288)  # 48×64 as in the video, nothing cut off
    clips = run_clips(run, 1, "val")
    assert clips is not None
    assert clips.shape == (1, 3, 4, 32, 32)
    first = sorted((world / "videos").glob("*/v_g1.mp4")) + sorted((world / "videos").glob("*/v_g2.mp4"))
    starts = {"v_g1": 1, "v_g2": 3}  # 5 and 9 frames
    candidates = [whole_clip(one, range(starts[one.stem], starts[one.stem] + 4), (32, 32)) for one in first]
    assert any(torch.equal(clips, one) for one in candidates)


def test_an_exported_rectangle_is_read_back_and_scores_as_its_run(world) -> None:
    run = written_run(world, "exported")
    file, card = export_run(run, "pt2")
    assert card.inputs[0].shape == ("batch", 3, 4, 48, 64)
    exported = load(file)
    assert exported.model.spec == run.model.spec
    assert exported.model.spec.crop == (48, 64)
    wanted, _ = evaluate_run(run)
    found, _ = evaluate_run(exported)
    np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-4 * float(np.abs(wanted.logits).max()))
    old = card.model_copy(update={"spec": {**card.spec, "crop": 48}})  # as every card before rectangles
    assert old.input_spec().size == (48, 48)


def test_the_same_box_many_times_is_told_and_full_gives_its_scores(world, monkeypatch) -> None:
    run = written_run(world, "told")
    said: list[str] = []
    monkeypatch.setattr(run_module, "note", said.append)
    ten, _ = evaluate_run(run, FULL.model_copy(update={"crops": "ten"}))
    assert len(said) == 1
    assert "repeats the same box" in said[0]
    full, _ = evaluate_run(run, FULL)
    assert len(said) == 1
    np.testing.assert_allclose(full.logits, ten.logits, atol=1e-4 * float(np.abs(ten.logits).max()))
    assert same_boxes_note(EvaluateOptions(crops="ten"), run.model.spec) == said[0]


def test_protocols_have_names_of_their_own() -> None:
    assert protocol_slug(EvaluateOptions(crops="full", precision="fp32")) == "multi_full_logits"
    without = describe_views(FULL, mirror=Mirror(allowed=False))
    assert without == "single clip × whole frame, mean of logits"
    pairs = describe_views(FULL, mirror=Mirror(labels=(1, 0)))
    assert pairs == "single clip × whole frame + mirror, mean of logits, mirrored classes exchanged"
    center = EvaluateOptions(views="single", crops="center", precision="fp32")
    assert describe_views(center) == "single clip × centre crop, mean of logits"


def test_the_example_clip_has_the_networks_size_or_less() -> None:
    model = create_model(
        "efficient3d/squeezenet_1.0", num_classes=2, input={"resize": [60, 90], "crop": [40, 80]}
    )
    assert example_clip(model).shape[3:] == (40, 80)
    assert example_clip(model, 64).shape[3:] == (40, 64)


def test_old_settings_mean_the_same(tmp_path) -> None:
    """A file from before rectangles: an int, and what is written for it is that int."""
    experiment = Experiment.model_validate({"model": {"input": {"resize": [128, 170], "crop": 112}}})
    file = tmp_path / "old.yaml"
    file.write_text(dump(experiment))
    assert yaml.safe_load(file.read_text())["model"]["input"]["crop"] == 112
    assert load_experiment(file) == experiment
