"""torchvision's video networks: logits, weights, inputs, reductions and flow are compared with torchvision's own."""

import pytest
import torch
from torch import nn
from torchvision.models import get_model_weights, video

from two_stream import create_model, load_weights, zoo
from two_stream.config.backbones import MVIT, TorchvisionVideo
from two_stream.config.model import ModelOptions
from two_stream.errors import SettingsError
from two_stream.pretrained.converting import published_state
from two_stream.pretrained.layouts import LAYOUTS, recognise_layout
from two_stream.recognizer import Recognizer, input_spec

NAMES = ("mvit_v1_b", "mvit_v2_s", "swin3d_t", "s3d", "r3d_18", "mc3_18", "r2plus1d_18")
TRANSFORMERS = ("mvit_v1_b", "mvit_v2_s", "swin3d_t")
LARGE = ("swin3d_s", "swin3d_b")
FRAMES, SIDE = 8, 64


def theirs(name: str, classes: int = 7) -> nn.Module:
    """torchvision's network at the small size, its BatchNorms and zeros changed so that every layer shows."""
    torch.manual_seed(1)
    net = getattr(video, name)(num_classes=classes)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm3d):
            part.running_mean.normal_(0.0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
        if isinstance(part, nn.Conv3d) and name == "s3d":
            nn.init.kaiming_normal_(part.weight)  # torch's default loses the signal over its 60 layers
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, (nn.BatchNorm3d, nn.LayerNorm)):
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0.0, 0.1)
    if name in MVIT:
        code = net.pos_encoding
        code.temporal_size, code.spatial_size = FRAMES // 2, (SIDE // 4, SIDE // 4)
        if code.spatial_pos is not None:
            code.temporal_pos = nn.Parameter(0.02 * torch.randn(FRAMES // 2, 96))
            code.spatial_pos = nn.Parameter(0.02 * torch.randn((SIDE // 4) ** 2, 96))
    return net.eval()


def small(name: str, classes: int = 7, **more) -> Recognizer:
    """The record of the zoo for small clips."""
    sizes = {"clip_length": FRAMES, "crop": SIDE}
    backbone = {"frames": FRAMES, "image_size": SIDE} if name in MVIT else {}
    return create_model(name, classes, input=sizes, backbone=backbone | more.pop("backbone", {}), **more)


def clip(channels: int = 3, frames: int = FRAMES, side: int = SIDE) -> torch.Tensor:
    return torch.randn(2, channels, frames, side, side, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_torchvisions_with_its_weights(name, tmp_path):
    net, model = theirs(name), small(name).eval()
    file = tmp_path / "weights.pth"
    torch.save(net.state_dict(), file)
    report = load_weights(model, file)
    assert not report.missing
    frames, side = (24, 224) if name == "s3d" else (FRAMES, SIDE)  # it averages windows of 2×7×7
    with torch.inference_mode():
        x = clip(frames=frames, side=side)
        expected = net(x)
        found = model.forward_normalised(x)
    assert expected.std(0).max() > 1e-3 * expected.abs().max()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    layout = recognise_layout(net.state_dict())
    back = published_state(model.state_dict(), layout)
    assert back.keys() == net.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", [*NAMES, *LARGE])
def test_every_published_tensor_has_a_place(name):
    with torch.device("meta"):
        state = getattr(video, name)().state_dict()
        model = create_model(name, 400)
    layout = recognise_layout(state)
    assert layout in LAYOUTS
    ours = {key: value.shape for key, value in model.state_dict().items()}
    assert {layout.translate(key) for key in state} == ours.keys()
    for key, value in state.items():
        assert value.numel() == ours[layout.translate(key)].numel()


@pytest.mark.parametrize("name", [*NAMES, *LARGE])
def test_input_is_that_of_torchvisions_weights(name):
    weights = get_model_weights(name).DEFAULT
    wanted, spec = weights.transforms(), input_spec(zoo.find(name).options)
    assert (spec.mean, spec.std) == (tuple(wanted.mean), tuple(wanted.std))
    assert [spec.crop, spec.crop] == list(wanted.crop_size)
    height, width = spec.resize
    assert [height, width][: len(wanted.resize_size)] == list(wanted.resize_size)
    told = weights.meta["_docs"]
    assert f"clip_len={spec.clip_length}`" in told
    assert f"frame_rate={30 / spec.stride:g}`" in told


@pytest.mark.parametrize("name", ["mvit_v2_s", "swin3d_t", "s3d", "r3d_18"])
def test_rgb_weights_start_flow(name, tmp_path):
    """The kernels are averaged over R, G and B: x = y = g / 2 gives the map of a clip whose channels are g / 3."""
    net = theirs(name)
    file = tmp_path / "weights.pth"
    torch.save(net.state_dict(), file)
    rgb, flow = small(name).eval(), small(name, modality="flow").eval()
    load_weights(rgb, file)
    load_weights(flow, file, cross_modality=True)
    grey = clip(1)
    with torch.inference_mode():
        expected = rgb.backbone((grey / 3).expand(-1, 3, -1, -1, -1))[0].tensor
        found = flow.backbone((grey / 2).expand(-1, 2, -1, -1, -1))[0].tensor
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["none", "frab", "frmb"])
@pytest.mark.parametrize(("name", "modality"), [(n, m) for n in TRANSFORMERS for m in ("rgb", "flow")])
def test_every_weight_learns(name, modality, reduction):
    torch.manual_seed(0)
    more = {"backbone": {"class_token": False} if name in MVIT else {}}
    head = {"kind": "lstm", "hidden": 8}
    model = small(name, modality=modality, reduction=reduction, reduced_channels=16, head=head, **more)
    model.eval()  # no residual branch is dropped
    model(clip(model.spec.channels).mul(60).add(120).clamp(0, 255)).square().sum().backward()
    for key, weight in model.named_parameters():
        assert weight.grad is not None, key
        assert weight.grad.isfinite().all(), key
        # at this size, the last windows and grids hold one position in space
        assert weight.grad.any() or "relative_position" in key or "rel_pos" in key, key


def test_maps_of_mvit_are_the_tokens_of_its_positions():
    net, model = theirs("mvit_v2_s"), small("mvit_v2_s", backbone={"class_token": False}).eval()
    seen = []
    net.norm.register_forward_hook(lambda module, given, out: seen.append(out))
    layout = recognise_layout(net.state_dict())
    model.load_state_dict({layout.translate(key): value for key, value in net.state_dict().items()})
    with torch.inference_mode():
        net(clip())
        (found,) = model.backbone(clip())
    assert found.tensor.shape == (2, 768, 4, 2, 2)
    expected = seen[0][:, 1:].unflatten(1, (4, 2, 2)).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(found.tensor, expected)


@pytest.mark.parametrize("count", [5, 8, 13, 14, 16, 20])
def test_time_steps_of_s3d(count):
    with torch.device("meta"):
        net = small("s3d").backbone.eval()
        assert net(torch.empty(1, 3, count, 32, 32))[0].tensor.shape[2] == net.num_tokens(count)[0]


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("s3d", {"class_token": True}, "options of MViT, not of s3d"),
        ("swin3d_t", {"frames": 8}, "options of MViT, not of swin3d_t"),
        ("mvit_v2_s", {"frames": 7}, "`frames` must be even"),
        ("mvit_v2_s", {"image_size": 100}, "a multiple of 32"),
    ],
)
def test_options_of_another_network_are_refused(name, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        TorchvisionVideo(name=name, **options)


def test_clips_of_another_size_are_refused_with_the_setting():
    with pytest.raises(
        SettingsError, match=r"accepts only 16; remove `input.clip_length`.*`backbone.frames`"
    ):
        Recognizer(ModelOptions(backbone=TorchvisionVideo(), input={"clip_length": 8}), 3)
    with pytest.raises(SettingsError, match=r"s3d: `input.clip_length` must be 5 or more"):
        Recognizer(ModelOptions(backbone=TorchvisionVideo(name="s3d"), input={"clip_length": 4}), 3)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_refuse_streams_and_int8_by_name(name):
    from two_stream import streaming
    from two_stream.compression.quantization import check_quantisable

    model = small(name)
    with pytest.raises(SettingsError, match="torchvision cannot stream, because every frame attends"):
        streaming.convert(model)
    with pytest.raises(SettingsError, match="backbone torchvision"):
        check_quantisable(model)
