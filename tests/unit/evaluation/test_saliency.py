"""Saliency maps: their values against closed forms and differences, and that they show where a network looks."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from tests.helpers.models import SMALL_BACKBONES, network
from two_stream import load_run
from two_stream.backbones import BACKBONES
from two_stream.cli import main as cli
from two_stream.config.load import dump
from two_stream.config.schema import DataOptions, EvaluateOptions, Experiment
from two_stream.errors import SettingsError
from two_stream.evaluation.pictures.saliency import overlay, read_film, read_saliency
from two_stream.evaluation.scores.files import find_scores
from two_stream.evaluation.scoring.saliency import SaliencyOptions, saliency_of_clips
from two_stream.evaluation.scoring.video import VideoInput
from two_stream.pretrained import write_model
from two_stream.recognizer import Recognizer
from two_stream.video.decoding.reader import open_video

RESNET = {"kind": "resnet3d", "depth": 10, "width": 0.25, "temporal_stride": 2, "stem_kernel": 3}
NAMES = ["left", "right"]
SIDE, FRAMES, FPS = 64, 8, 10
READING = VideoInput(short_side=None)


def model_of(modality: str = "rgb", head: str = "average", seed: int = 0, **more: object) -> Recognizer:
    heads = {"bert": {"kind": "bert", "heads": 2, "hidden": 16}}
    return network(
        2,
        seed=seed,
        modality=modality,
        backbone=RESNET,
        head=heads.get(head, {"kind": head}),
        input={"clip_length": FRAMES, "resize": [SIDE, SIDE], "crop": SIDE},
        **more,
    ).eval()


def noise(model: Recognizer, batch: int = 2, seed: int = 0) -> torch.Tensor:
    shape = (batch, model.spec.channels, model.spec.clip_length, *model.spec.size)
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def test_maps_of_average_pooling_are_the_classifiers_own():
    """The logit is a mean over the map of sums over channels: Grad-CAM is this sum (class activation mapping)."""
    model, names = model_of(), NAMES
    clip = noise(model)
    weights_K = SaliencyOptions(("right", "left")).weights(names)
    assert weights_K.tolist() == [-1.0, 1.0]
    (map_BCTHW,) = model.maps_of_normalised(model.normalised(clip))
    slope_C = (model.classifier.weight[1] - model.classifier.weight[0]).view(1, -1, 1, 1, 1)
    places = map_BCTHW[0, 0].numel()
    expected = ((map_BCTHW * slope_C).sum(1) / places).relu()
    found = saliency_of_clips(model, clip, weights_K)
    torch.testing.assert_close(found.maps[0], expected.detach())
    assert 0.1 < float((found.maps[0] > 0).float().mean()) < 0.9
    positive = ((map_BCTHW * slope_C.relu()).sum(1) / places).relu()
    layer_cam = saliency_of_clips(model, clip, weights_K, method="layer-cam")
    torch.testing.assert_close(layer_cam.maps[0], positive.detach())
    torch.testing.assert_close(found.logits, model(clip).detach())


def test_grad_cam_weights_are_differences_of_the_score():
    """Raising a channel everywhere by a little changes the score by its weight times the number of positions."""
    model = model_of(head="bert").double()
    model.input_scale, model.input_shift = model.input_scale.double(), model.input_shift.double()
    (map_BCTHW,) = [one.detach() for one in model.maps_of_normalised(model.normalised(noise(model, 1)))]
    places, step = map_BCTHW[0, 0].numel(), 1e-5
    weights = []
    for channel in range(map_BCTHW.shape[1]):
        shift = torch.zeros_like(map_BCTHW)
        shift[:, channel] = step
        high, low = (model.logits_of_maps([map_BCTHW + sign * shift])[0, 0] for sign in (1, -1))
        weights.append(float((high - low).detach()) / (2 * step * places))
    expected = (map_BCTHW * torch.tensor(weights).view(1, -1, 1, 1, 1)).sum(1).relu()
    found = saliency_of_clips(model, noise(model, 1), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(found.maps[0].double(), expected, rtol=1e-4, atol=1e-8)
    assert len(found.attention[0][0, 0]) == map_BCTHW.shape[2]


@pytest.mark.parametrize("stage", ["stem", "layer3", "layer4"])
def test_values_are_those_of_captum(stage):
    attribution = pytest.importorskip("captum.attr", reason="captum is not installed")
    model = model_of(head="bert", seed=3)
    clip = noise(model)
    layer = model.backbone.get_submodule(stage)
    cam = attribution.LayerGradCam(model.forward_normalised, layer)
    expected = cam.attribute(model.normalised(clip), target=1, relu_attributions=True)[:, 0]
    found = saliency_of_clips(model, clip, torch.tensor([0.0, 1.0]), stage=stage)
    torch.testing.assert_close(found.maps[0], expected.detach(), rtol=1e-4, atol=1e-7)


def test_default_is_the_last_stage_and_the_predicted_class():
    model = model_of(head="bert")
    clip = noise(model, 1)
    best = model(clip).argmax().item()
    found = saliency_of_clips(model, clip)
    named = saliency_of_clips(model, clip, torch.eye(2)[best], stage="layer4")
    torch.testing.assert_close(found.maps[0], named.maps[0])
    assert saliency_of_clips(model, clip, stage="layer2").maps[0].shape[2] == 4 * named.maps[0].shape[2]


def test_nothing_of_the_model_changes_and_callers_may_be_in_inference_mode():
    model = model_of(head="lstm").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        found = saliency_of_clips(model, noise(model), stage="layer1")
    assert found.maps[0].isfinite().all()
    assert found.attention == []
    assert model.training
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.backbone.layer1._forward_hooks


def dot_clips(count: int, seed: int, modality: str) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Clips of a dot that moves left or right over a still texture; also where it is in the middle of the clip."""
    rng = np.random.default_rng(seed)
    clips, labels, places = [], [], []
    for index in range(count):
        label, row = index % 2, int(rng.integers(12, SIDE - 12))
        texture = cv2.resize(rng.integers(90, 140, (8, 8, 3), dtype=np.uint8), (SIDE, SIDE))
        frames = []
        for step in range(FRAMES):
            x = SIDE // 2 + (1 if label else -1) * 3 * (2 * step - FRAMES + 1) // 2
            if modality == "flow":
                frame = np.full((SIDE, SIDE, 2), 128, np.uint8)
                cv2.circle(frame, (x, row), 5, (220 if label else 36, 128), -1)
            else:
                frame = texture.copy()
                cv2.circle(frame, (x, row), 5, (255, 255, 255), -1)
            frames.append(frame)
        clips.append(np.stack(frames).transpose(3, 0, 1, 2))
        labels.append(label)
        places.append((row, SIDE // 2))
    return torch.from_numpy(np.stack(clips)), torch.tensor(labels), np.asarray(places)


@pytest.fixture(scope="module")
def trained() -> Recognizer:
    """A flow network that tells the two directions apart."""
    torch.manual_seed(0)
    model = model_of("flow").train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(25):
        clips, labels, _ = dot_clips(16, step, "flow")
        loss = torch.nn.functional.cross_entropy(model(clips), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    clips, labels, _ = dot_clips(16, 999, "flow")
    assert (model(clips).argmax(1) == labels).float().mean() > 0.9
    return model


def share_near(model: Recognizer, clips: torch.Tensor, places: np.ndarray, stage: str) -> float:
    """Share of the map in the rows of the dot (a third of the picture), by the maps' own resolution."""
    values = saliency_of_clips(model, clips, stage=stage).maps[0].sum(1)
    values = torch.nn.functional.interpolate(values[:, None], (SIDE, SIDE), mode="nearest")[:, 0]
    near = [float(one[max(0, y - 10) : y + 11].sum() / one.sum()) for one, (y, _) in zip(values, places)]
    return float(np.mean(near))


def test_flow_looks_at_what_moves(trained):
    clips, _, places = dot_clips(16, 1000, "flow")
    assert share_near(trained, clips, places, "layer2") > 0.7
    # uniform maps would have a share of 21/64


def test_random_weights_give_another_map(trained):
    """The sanity check of Adebayo et al. (arXiv 1810.03292): a map that survives other weights shows only edges."""
    clip = noise(trained, 4)
    one, two, three = (
        saliency_of_clips(model, clip, stage="layer2").maps[0].flatten()
        for model in (trained, model_of("flow", seed=5), model_of("flow", seed=6))
    )
    assert float(torch.corrcoef(torch.stack((one, two, three))).triu(1).abs().max()) < 0.5


def write_video(path: Path, frames: list[np.ndarray]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv444p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """21 frames: a white dot on row 16 moves to the right over a still texture."""
    texture = np.random.default_rng(0).integers(60, 180, (10, 10, 3), dtype=np.uint8)
    texture = cv2.resize(texture, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    frames = []
    for step in range(21):
        frame = texture.copy()
        cv2.circle(frame, (4 + 2 * step, 16), 5, (255, 255, 255), -1)
        frames.append(frame)
    return write_video(tmp_path_factory.mktemp("dot") / "dot.mp4", frames)


def test_flow_of_a_video_is_found_where_the_dot_is(trained, video):
    question = SaliencyOptions(("right",), stage="layer2")
    found = read_saliency(trained, video, EvaluateOptions(views="single"), READING, NAMES, question)
    assert (found.title, found.box) == ("Grad-CAM of layer2 for right", (0.0, 0.0, 1.0, 1.0))
    (pathway,) = found.pathways
    rows = pathway.values.sum(axis=(0, 2))
    assert abs(int(rows.argmax()) / len(rows) - 16 / SIDE) < 0.15
    assert pathway.shares.sum() == pytest.approx(1)
    assert [n for step in pathway.frames for n in step] == found.numbers
    film = read_film(trained, video, EvaluateOptions(), READING, NAMES, question)
    values = film.maps["main"]
    assert len(values) == len(film.probability) == 21
    columns = values.sum(axis=1).argmax(axis=1) / values.shape[2] * SIDE
    assert np.corrcoef(columns[2:18], np.arange(2, 18))[0, 1] > 0.8, "the map follows the dot"
    assert film.attention is None


def test_film_is_the_mean_of_windows(video):
    """By hand: the first frame is in one window only, and a network without strides has one map per frame."""
    model = model_of("rgb", "bert")
    question = SaliencyOptions(("left",))
    film = read_film(model, video, EvaluateOptions(), READING, NAMES, question)
    with open_video(video) as opened:
        frames = opened.read(range(FRAMES))
    clip = torch.from_numpy(np.ascontiguousarray(frames.transpose(3, 0, 1, 2)))[None]
    own = saliency_of_clips(model, clip, torch.tensor([1.0, 0.0]))
    np.testing.assert_allclose(film.maps["main"][0], own.maps[0][0, 0].numpy(), rtol=1e-4, atol=1e-7)
    chance = own.logits[0].double().softmax(0)[0]
    assert film.probability[0] == pytest.approx(float(chance), rel=1e-5)
    expected = own.attention[0][0].mean(0) * own.attention[0].shape[2]
    assert film.attention[0] == pytest.approx(float(expected[0]), rel=1e-5)


def test_overlay_is_bright_where_the_map_is():
    picture = np.full((40, 40, 3), 128, np.uint8)
    values = np.zeros((4, 4), np.float32)
    values[1, 2] = 2
    drawn = overlay(picture, values, 2.0).astype(int)
    assert drawn[15, 25].max() > 200
    assert (drawn[35, 5] == drawn[35, 5, 0]).all(), "the rest stays grey"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, trained) -> Path:
    root = tmp_path_factory.mktemp("runs")
    models = {"rgb": model_of("rgb", "bert"), "flow": trained}
    for name, model in models.items():
        data = DataOptions(dataset="none", settings_root=root)
        experiment = Experiment(name=name, runs=root, model=model.options, data=data)
        write_model(root / name / "best", model, {"class_names": NAMES, "epoch": 1})
        (root / name / "experiment.yaml").write_text(dump(experiment))
    return root


def test_command_writes_a_figure_and_a_film(runs, video, tmp_path, capsys):
    streams = ["--rgb", str(runs / "rgb"), "--flow", str(runs / "flow"), "--device", "cpu"]
    for name in ("a.png", "a.mp4"):
        out = tmp_path / name
        assert cli(["predict", str(video), *streams, "--saliency", str(out)]) == 0
        assert f"saliency: {out}" in " ".join(capsys.readouterr().out.split())
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert min(picture.shape[:2]) > 400
    with open_video(tmp_path / "a.mp4") as film:
        assert film.num_frames == 21
        assert film.width == 2 * 320
        assert film.times[-1] == pytest.approx(2.1, abs=0.02)
    folder = tmp_path / "both"
    folder.mkdir()
    chosen = ["--saliency-class", "left", "right", "--saliency-method", "layer-cam"]
    options = ["--saliency", str(folder), *chosen, "--saliency-stage", "layer3", "--json", "-"]
    assert cli(["predict", str(video), *streams, *options]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["saliency"] == f"{folder / 'dot.png'} and {folder / 'dot.mp4'}"
    assert sorted(one.name for one in folder.iterdir()) == ["dot.mp4", "dot.png"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--saliency", "a.png", "--saliency-class", "rihgt"],
            "there is no class 'rihgt'; did you mean 'right'?",
        ),
        (["--saliency", "a.png", "--saliency-stage", "layer9"], "there is no stage 'layer9'; did you mean"),
        (
            ["--saliency", "a.png", "--saliency-class", "left", "left"],
            "expected one class or two different ones",
        ),
        (["--saliency", "a.gif"], "expected a file name ending in .png, .pdf, .svg, .mp4"),
        (["--saliency-class", "left"], "--saliency-class and --saliency-stage require --saliency FILE"),
    ],
)
def test_wrong_flags_are_one_line(runs, video, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    assert cli(["predict", str(video), "--rgb", str(runs / "rgb"), *flags]) != 0
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert list(tmp_path.iterdir()) == []


def test_film_of_stored_flow_shows_the_flow(runs, video, tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in range(1, 13):
        for axis in "xy":
            cv2.imwrite(str(folder / f"flow_{axis}_{number:05d}.jpg"), np.full((SIDE, SIDE), 128, np.uint8))
    out = tmp_path / "f.mp4"
    assert cli(["predict", str(folder), "--flow", str(runs / "flow"), "--saliency", str(out)]) == 0
    with open_video(out) as film:
        assert film.num_frames == 12


def test_python_gives_the_map(runs, video):
    run = load_run(runs / "flow")
    found = run.saliency(video, ("left", "right"), method="layer-cam", stage="layer3")
    assert found.title == "LayerCAM of layer3 for left rather than right"
    assert found.pathways[0].values.min() >= 0
    assert run.saliency(video).title.startswith("Grad-CAM for ")
    with pytest.raises(SettingsError, match="no class 'up'"):
        run.saliency(video, "up")


VJEPA = {
    "crop_size": 32,
    "frames_per_clip": 8,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_ratio": 2.0,
}
HEAD = {"kind": "attentive", "hidden": 16, "heads": 2}
TOKENS = {
    "timm tokens": {"kind": "timm", "name": "test_vit", "image_size": 32},
    "timm shift": {"kind": "timm", "name": "test_resnet", "tsm": 0.125},
    "timm difference": {"kind": "timm", "name": "test_resnet", "difference": "beside"},
}
LARGE = {
    "timm channels last": {"kind": "timm", "name": "swin_tiny_patch4_window7_224", "image_size": 64},
    "torchvision class token": {"kind": "torchvision", "name": "mvit_v1_b", "frames": 8, "image_size": 64},
    "torchvision tokens": {
        "kind": "torchvision",
        "name": "mvit_v2_s",
        "frames": 8,
        "image_size": 64,
        "class_token": False,
    },
    "torchvision channels last": {"kind": "torchvision", "name": "swin3d_t"},
    "torchvision s3d": {"kind": "torchvision", "name": "s3d"},
    **{
        f"hf {name}": {**SMALL_BACKBONES["hf_video"], "kind": "hf_video", "architecture": name}
        for name in ("timesformer", "vivit", "vjepa2")
    },
}
SMALL = {kind: {"kind": kind, **SMALL_BACKBONES.get(kind, {})} for kind in BACKBONES if kind != "torchvision"}
SMALL["hf_video"] |= {"architecture": "videomae"}
SMALL["timm"] |= {"temporal_stride": 1}


def swept(name: str, modality: str) -> Recognizer:
    backbone = (SMALL | TOKENS | LARGE)[name]
    if (name == "motion_grid" and modality == "rgb") or (name == "timm difference" and modality == "flow"):
        pytest.skip(f"{name} does not read {modality}")
    size = {"clip_length": 8, "resize": [64, 64], "crop": 64}
    if name == "timm difference":
        size["segments"] = 4
    if backbone["kind"] == "hf_video" or name == "timm tokens":
        size = {"clip_length": 8, "resize": [32, 32], "crop": 32}
    if backbone["kind"] == "c3d":
        size = {"clip_length": 16, "resize": [128, 170], "crop": 112}
    if name == "hf vjepa2":
        backbone = {**backbone, "config": VJEPA}
        size = {"clip_length": 8, "resize": [32, 32], "crop": 32}
    return network(3, modality=modality, backbone=backbone, head=HEAD, input=size).eval()


def check_all_stages(name: str, modality: str) -> None:
    model = swept(name, modality)
    clip = noise(model)
    logits = model(clip).detach()
    weights = torch.tensor([1.0, -1.0, 0.0])
    outputs: list[object] = []
    last, module = model.backbone.stages()[-1]
    handle = module.register_forward_hook(lambda *given: outputs.append(given[2]))
    x = model.normalised(clip)
    expected = model.maps_of_normalised(x)
    handle.remove()
    parts = [model.backbone.maps_of_stage(last, one, x.shape) for one in outputs]
    if model.options.backbone.kind != "slowfast" or len(expected) == 2:
        for want, *given in zip(expected, *parts, strict=True):
            assert torch.equal(torch.cat(given, 1), want), (
                "the last stage gives the map that the head receives"
            )
    for stage in ("", *(one for one, _ in model.backbone.stages())):
        for method in ("grad-cam", "layer-cam"):
            found = saliency_of_clips(model, clip, weights, method=method, stage=stage)
            torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-5)
            for one in found.maps:
                assert one.ndim == 4
                assert one.shape[0] == 2
                assert one.isfinite().all()
                assert one.min() >= 0
            if stage == "":
                assert len(found.maps) == len(model.backbone.pathways)


@pytest.mark.parametrize("modality", ["rgb", "flow"])
@pytest.mark.parametrize("name", [*SMALL, *TOKENS])
def test_every_family_has_maps_of_every_stage(name, modality):
    check_all_stages(name, modality)


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["rgb", "flow"])
@pytest.mark.parametrize("name", LARGE)
def test_large_families_have_maps_of_every_stage(name, modality):
    check_all_stages(name, modality)


def test_report_shows_what_speaks_for_a_mistake(world, tmp_path, capsys):
    run = load_run(world / "rgb")
    table = run.evaluate()
    wrong = int((table.logits.argmax(1) != table.labels).sum())
    assert wrong >= 1, "a network with random weights makes mistakes"
    out = tmp_path / "r.html"
    assert cli(["report", str(world / "rgb"), "--out", str(out), "--saliency", "--mistakes", "1"]) == 0
    page = out.read_text()
    pictures = re.findall(r'alt="saliency maps of ([^"]*)"', page)
    assert len(pictures) == 2
    first = [re.search(r"rgb: for (\w+) rather than (\w+)", one).groups() for one in pictures]
    assert first[0] == first[1][::-1]
    assert cli(["report", str(world / "rgb"), "--out", str(out)]) == 0
    assert "saliency maps of" not in out.read_text()


def test_report_names_what_it_cannot_read(world, tmp_path):
    run = load_run(world / "rgb")
    run.evaluate()
    lone = tmp_path / "scores.npz"
    shutil.copy(find_scores(world / "rgb"), lone)
    out = tmp_path / "r.html"
    (world / "rgb" / "best").rename(world / "rgb" / "gone")
    try:
        assert cli(["report", str(lone), "--out", str(out), "--saliency", "--mistakes", "1"]) == 0
    finally:
        (world / "rgb" / "gone").rename(world / "rgb" / "best")
    assert re.search(r"no saliency maps of rgb: .*the run has no checkpoint", out.read_text())
