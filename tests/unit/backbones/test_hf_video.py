"""Video transformers: the library's own tokens, positions, input, reductions, weights, run folders, refusals."""

import json
import shutil

import pytest
import torch
import transformers

from two_stream.backbones import BACKBONES
from two_stream.backbones.hf_architectures import ARCHITECTURES
from two_stream.config.backbones import HfVideo
from two_stream.config.model import ModelOptions
from two_stream.errors import CheckpointError, SettingsError
from two_stream.pretrained import load_library, load_weights, read_model, write_model
from two_stream.recognizer import Recognizer, resolve_options

SHARED = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL = {
    "videomae": {**SHARED, "image_size": 32, "patch_size": 8, "num_frames": 6, "intermediate_size": 64},
    "timesformer": {**SHARED, "image_size": 32, "patch_size": 8, "num_frames": 3, "intermediate_size": 64},
    "vivit": {
        **SHARED,
        "image_size": 32,
        "tubelet_size": [2, 8, 8],
        "num_frames": 6,
        "intermediate_size": 64,
    },
    "vjepa2": {**SHARED, "crop_size": 32, "patch_size": 8, "frames_per_clip": 6},
}
"""Three steps in time of 4×4 places: no two axes of a map are confused unseen."""
KINDS = sorted(SMALL)


def options_of(kind, **more):
    return HfVideo(architecture=kind, config={**SMALL[kind], **more})


def library_model(kind, seed=0, **more):
    torch.manual_seed(seed)
    architecture = ARCHITECTURES[kind]
    small = {"pred_num_hidden_layers": 1} if kind == "vjepa2" else {}
    config = getattr(transformers, architecture.config)(**SMALL[kind], **small, **more)
    net = getattr(transformers, architecture.model)(config).eval()
    with torch.no_grad():
        for parameter in net.parameters():  # positions and class tokens start at zero
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def saved(kind, folder, **more):
    net = library_model(kind, **more)
    net.save_pretrained(folder)
    return net


def clip(net, batch=2, seed=1):
    frames, side = net.fixed
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3 if net.modality == "rgb" else 2, frames, side, side, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_map_is_the_librarys_last_hidden_state(kind, tmp_path):
    theirs = saved(kind, tmp_path)
    net = BACKBONES["hf_video"](HfVideo(model=str(tmp_path), pretrained=True), "rgb").eval()
    net.load_pretrained()
    x = clip(net)
    more = {"skip_predictor": True} if kind == "vjepa2" else {}
    hidden = theirs(x.transpose(1, 2), **more).last_hidden_state
    if kind in ("timesformer", "vivit"):
        hidden = hidden[:, 1:]
    (feature,) = net(x)
    assert feature.tensor.shape == (2, 48, 3, 4, 4)
    for time in range(3):
        for row in range(4):
            for column in range(4):
                token = (
                    (row * 4 + column) * 3 + time if kind == "timesformer" else (time * 4 + row) * 4 + column
                )
                torch.testing.assert_close(feature.tensor[:, :, time, row, column], hidden[:, token])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_places_of_the_map_are_places_of_the_clip(kind):
    """A patch that changes in the embedding changes the token of its own place: the order of axes is the clip's."""
    torch.manual_seed(0)
    net = BACKBONES["hf_video"](options_of(kind), "rgb").eval()
    for name, _ in net.stages():
        if name.startswith("block"):
            net.add_module(name, torch.nn.Identity())
    x = clip(net, batch=1)
    step = net.temporal_stride[0]
    changed = x.clone()
    changed[:, :, step : 2 * step, 16:24, 24:32] += torch.randn(1, 3, 1, 8, 8)
    moved = (net(changed)[0].tensor - net(x)[0].tensor).abs().sum(1)[0]
    assert moved.nonzero().tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["append_block", "replace_last_block"])
def test_reductions_narrow_and_name_their_parameters(kind, how):
    net = BACKBONES["hf_video"](options_of(kind), "flow")
    before = {name: p.shape for name, p in net.named_parameters()}
    getattr(net, how)(20)
    (feature,) = net(clip(net))
    assert feature.tensor.shape == (2, 20, 3, 4, 4)
    changed = {name for name, p in net.named_parameters() if before.get(name) != p.shape}
    assert changed
    assert all(name.startswith(net.reduced) for name in changed)


@pytest.mark.parametrize("kind", KINDS)
def test_stages_hold_all_parameters_and_recompute_the_same_gradients(kind):
    torch.manual_seed(0)
    model = Recognizer(ModelOptions(backbone=options_of(kind)), 3)
    inside = [id(p) for _, stage in model.stages() for p in stage.parameters()]
    assert sorted(inside) == sorted(id(p) for p in model.parameters())
    x = torch.randint(0, 256, (2, 3, *_shape(model)), dtype=torch.uint8)
    gradients = []
    for on in (False, True):
        model.set_gradient_checkpointing(on)
        model.zero_grad()
        torch.manual_seed(0)
        model.train()(x).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
    model.freeze_until("block1")
    free = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert {"stem", "block1"}.isdisjoint(free)
    assert "block2" in free


def _shape(model):
    return model.spec.clip_length, model.spec.crop, model.spec.crop


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["none", "frmb"])
@torch.no_grad()
def test_a_flow_network_starts_from_rgb_weights(kind, reduction, tmp_path):
    theirs = saved(kind, tmp_path)
    options = HfVideo(model=str(tmp_path), pretrained=True)
    model = Recognizer(
        ModelOptions(backbone=options, modality="flow", reduction=reduction, reduced_channels=16), 3
    )
    assert load_library(model) == f"the backbone starts from {tmp_path}"
    first = next(p for p in theirs.parameters() if p.ndim >= 4 and p.shape[1] == 3)
    own = next(p for p in model.backbone.stem.parameters() if p.ndim >= 4)
    assert own.shape[1] == 2
    torch.testing.assert_close(own[:, 0], first.mean(1))
    torch.testing.assert_close(own[:, 1], first.mean(1))
    norms = [p for p in theirs.parameters() if p.ndim == 1]
    inside = [p for p in model.backbone.block1.parameters() if p.ndim == 1]
    assert any(torch.equal(a, b) for a in inside for b in norms if a.shape == b.shape and a.std() > 0.01)


def test_an_rgb_run_starts_a_flow_network(tmp_path):
    rgb = Recognizer(ModelOptions(backbone=options_of("videomae")), 3)
    write_model(tmp_path / "rgb", rgb, {})
    flow = Recognizer(ModelOptions(backbone=options_of("videomae"), modality="flow"), 3)
    load_weights(flow, tmp_path / "rgb", cross_modality=True)
    first = rgb.backbone.stem.embed.patch_embeddings.projection.weight
    own = flow.backbone.stem.embed.patch_embeddings.projection.weight
    torch.testing.assert_close(own, first.mean(1, keepdim=True).expand(-1, 2, -1, -1, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_folder_is_enough_when_the_models_folder_has_gone(kind, tmp_path):
    saved(kind, tmp_path / "library")
    (tmp_path / "library" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.3]})
    )
    options = HfVideo(model=str(tmp_path / "library"), pretrained=True)
    model = Recognizer(ModelOptions(backbone=options), 3).eval()
    load_library(model)
    write_model(tmp_path / "model", model, {})
    shutil.rmtree(tmp_path / "library")
    again, _ = read_model(tmp_path / "model")
    x = torch.randint(0, 256, (2, 3, *_shape(model)), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert again.spec == model.spec
    assert again.spec.mean == (0.4, 0.5, 0.6)
    assert resolve_options(again.options) == again.options
    with pytest.raises(CheckpointError, match=r"the weights of .*library cannot be read or fetched \(.*\)"):
        load_library(again)


def test_pixels_are_what_the_models_file_says(tmp_path):
    saved("vivit", tmp_path)
    file = tmp_path / "preprocessor_config.json"
    options = HfVideo(model=str(tmp_path))

    def pixels(modality="rgb"):
        spec = BACKBONES["hf_video"].default_input(options, modality)
        return spec.value_range, spec.mean, spec.std

    assert pixels() == ((-1.0, 1.0), (0.0,) * 3, (1.0,) * 3)  # no file: the authors' values
    file.write_text(json.dumps({"rescale_factor": 1 / 127.5, "offset": True, "do_normalize": False}))
    assert pixels() == ((-1.0, pytest.approx(1.0)), (0.0,) * 3, (1.0,) * 3)
    file.write_text(json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3]}))
    assert pixels() == ((0.0, pytest.approx(1.0)), (0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    assert pixels("flow")[1:] == ((pytest.approx(0.5),) * 2, (pytest.approx(0.2),) * 2)
    file.write_text("[]")
    with pytest.raises(SettingsError, match=r"preprocessor_config.json: expected a JSON object"):
        pixels()


def test_a_changed_number_in_config_overrides_the_models_file(tmp_path):
    saved("timesformer", tmp_path)
    options = resolve_options(
        ModelOptions(backbone=HfVideo(model=str(tmp_path), config={"attention_type": "joint_space_time"}))
    )
    assert options.backbone.architecture == "timesformer"
    assert options.backbone.config == {**SMALL["timesformer"], "attention_type": "joint_space_time"}
    assert options.input.clip_length == 3


@pytest.mark.parametrize("kind", ["videomae", "vjepa2"])
def test_weights_of_another_network_are_one_line(kind, tmp_path):
    saved(kind, tmp_path)
    state = tmp_path / "model.safetensors"
    other = tmp_path / "other"
    saved("vivit", other)
    shutil.copy(other / "model.safetensors", state)
    model = Recognizer(ModelOptions(backbone=HfVideo(model=str(tmp_path), pretrained=True)), 3)
    with pytest.raises(CheckpointError, match="the weights belong to a different network") as caught:
        load_library(model)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_not_run(tmp_path):
    """Only tensors are read from a torch file, whatever else it holds."""
    saved("videomae", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"layernorm.weight": _Trap(tmp_path / "sprung")}, tmp_path / "pytorch_model.bin")
    model = Recognizer(ModelOptions(backbone=HfVideo(model=str(tmp_path), pretrained=True)), 3)
    with pytest.raises(CheckpointError) as caught:
        load_library(model)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()


class _Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


BAD = [
    (
        {"architecture": "vivit", "config": {"num_frame": 3}},
        "vivit has no 'num_frame'; did you mean num_frames?",
    ),
    (
        {"architecture": "videomae", "config": {"hidden_size": 50}},
        "videomae rejects the configuration .*multiple",
    ),
    (
        {"architecture": "videomae", "config": {"hidden_size": "wide"}},
        "videomae rejects the configuration .*hidden_size",
    ),
    ({"architecture": "videomae", "config": {"num_frames": 7}}, "7 frames of 224² are not a whole number"),
    (
        {"architecture": "timesformer", "config": {"attention_type": "space_only"}},
        "space_only has no tokens over",
    ),
    ({"model": "/nowhere"}, "`backbone.model` /nowhere: no such folder, and .* `backbone.architecture`"),
    (
        {"model": "nobody/nothing"},
        "`backbone.model` nobody/nothing: no such folder, and the Hugging Face hub",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
def test_what_cannot_be_built_is_one_line(options, message):
    with pytest.raises(SettingsError, match=message) as caught:
        Recognizer(ModelOptions(backbone=HfVideo(**options)), 3)
    assert "\n" not in str(caught.value)


def test_folders_of_other_things_are_one_line(tmp_path):
    options = ModelOptions(backbone=HfVideo(model=str(tmp_path)))
    with pytest.raises(
        SettingsError, match=r"no config.json; expected a folder that `save_pretrained` wrote"
    ):
        Recognizer(options, 3)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(SettingsError, match="model_type 'bert'; expected a video transformer: videomae"):
        Recognizer(options, 3)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SettingsError, match=r"config.json: not readable as JSON"):
        Recognizer(options, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"clip_length": 8},
            r"`input.clip_length` is 8, .* accepts only 6; .*`backbone.config.frames_per_clip`",
        ),
        ({"crop": 24}, r"`input.crop` is 24, .* accepts only 32; .*`backbone.config.crop_size`"),
        (
            {"crop": [32, 24]},
            r"`input.crop` is \(32, 24\), .* accepts only 32; .*`backbone.config.crop_size`",
        ),
    ],
    ids=str,
)
def test_an_input_that_contradicts_the_positions_is_one_line(given, message):
    with pytest.raises(SettingsError, match=message):
        Recognizer(ModelOptions(backbone=options_of("vjepa2"), input=given), 3)
    net = BACKBONES["hf_video"](options_of("vjepa2"), "rgb")
    with pytest.raises(
        SettingsError, match="a clip of 4×32×32 was passed; this hf_video network expects 6×32×32"
    ):
        net(torch.zeros(1, 3, 4, 32, 32))


def test_weights_need_a_model():
    with pytest.raises(ValueError, match="`pretrained` requires `model`"):
        HfVideo(architecture="vivit", pretrained=True)


@pytest.mark.parametrize("kind", KINDS)
def test_it_exports(kind):
    torch.manual_seed(0)
    model = Recognizer(ModelOptions(backbone=options_of(kind)), 3).eval()
    x = torch.randint(0, 256, (1, 3, *_shape(model)), dtype=torch.uint8)
    program = torch.export.export(model, (x,), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)
