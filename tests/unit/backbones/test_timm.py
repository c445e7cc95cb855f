"""timm's networks frame by frame: its own features, temporal shift, inflation, reductions, weights, refusals."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from two_stream.backbones import BACKBONES
from two_stream.backbones.timm_net import create
from two_stream.backbones.timm_time import shifted
from two_stream.config.backbones import TimmNet
from two_stream.config.heads import AverageHead
from two_stream.config.model import ModelOptions
from two_stream.errors import CheckpointError, SettingsError
from two_stream.pretrained import load_library, load_weights, read_model, write_model
from two_stream.recognizer import Recognizer

SIDE = 64
NETWORKS = [
    TimmNet(name="test_resnet"),
    TimmNet(name="test_convnext"),
    TimmNet(name="test_efficientnet"),
    TimmNet(name="mobilenetv3_small_050"),
    TimmNet(name="regnetx_002"),
    TimmNet(name="test_vit", image_size=SIDE),
    TimmNet(name="test_vit2", image_size=SIDE),
    TimmNet(name="deit_tiny_distilled_patch16_224", image_size=SIDE),
    TimmNet(name="swin_s3_tiny_224", image_size=SIDE),
    TimmNet(name="hgnetv2_b0"),
    TimmNet(name="mixer_s32_224"),
]
"""Maps of both orders, tokens with none, one and two leading ones, and networks that are not divided."""


def build(options, modality="rgb", net=None):
    torch.manual_seed(0)
    if net is not None:  # as it is: what it is compared with has the same weights
        return BACKBONES["timm"](options, modality, net).eval()
    return alive(BACKBONES["timm"](options, modality))


@torch.no_grad()
def alive(net):
    """timm starts the last norm of each block at zero, which would hide what is in the block."""
    for name, value in net.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            torch.nn.init.uniform_(value, 0.8, 1.2) if "weight" in name or "var" in name else value.normal_(
                0, 0.1
            )
    return net.eval()


def named(options):
    return options.name


def clip(net, frames=3, batch=2, side=None):
    generator = torch.Generator().manual_seed(1)
    side = side or net.fixed[1] or SIDE
    return torch.randn(batch, 3 if net.modality == "rgb" else 2, frames, side, side, generator=generator)


@torch.no_grad()
def features_per_frame(net, x):
    """What timm's own `forward_features` gives for each frame, as `(B, C, T, H, W)`."""
    maps = []
    for frame in x.unbind(2):
        y = net.forward_features(frame)
        if y.ndim == 3:
            y = y[:, getattr(net, "num_prefix_tokens", 0) :]
            side = round(y.shape[1] ** 0.5)
            y = y.reshape(len(y), side, side, -1)
        if y.shape[1] != net.num_features:
            y = y.permute(0, 3, 1, 2)
        maps.append(y)
    return torch.stack(maps, dim=2)


@pytest.mark.parametrize("options", NETWORKS, ids=named)
@torch.no_grad()
def test_the_map_is_timms_own_of_every_frame(options):
    torch.manual_seed(0)
    theirs = alive(create(options, 3))
    ours = build(options)
    ours.load_state_dict(build(options, net=_copy(theirs, options)).state_dict())
    x = clip(ours)
    (feature,) = ours(x)
    torch.testing.assert_close(feature.tensor, features_per_frame(theirs, x), rtol=1e-4, atol=1e-5)
    assert feature.tensor.shape[1] == ours.channels[0]
    side = x.shape[-1]
    assert feature.tensor.shape[-1] == -(-side // ours.spatial_stride[0])


def _copy(net, options):
    """The same network once more: taking it apart takes its head out."""
    again = create(options, 3)
    again.load_state_dict(net.state_dict())
    return again.eval()


@torch.no_grad()
def test_frames_are_averaged_by_the_temporal_stride():
    every, pairs = build(TimmNet(name="test_resnet")), build(TimmNet(name="test_resnet", temporal_stride=2))
    x = clip(every, frames=5)
    one, two = every(x)[0].tensor, pairs(x)[0].tensor
    assert pairs.num_tokens(5) == (3,)
    wanted = torch.stack([one[:, :, 0:2].mean(2), one[:, :, 2:4].mean(2), one[:, :, 4]], dim=2)
    torch.testing.assert_close(two, wanted)


def test_shift_moves_a_share_of_the_channels_by_a_frame():
    """Lin et al., figure 2: one part of the channels comes from the next frame, one from the frame before."""
    x = np.random.default_rng(0).normal(size=(2, 4, 10, 3, 3)).astype(np.float32)  # B, T, C, H, W
    wanted = x.copy()
    for t in range(4):
        wanted[:, t, 0:2] = x[:, t + 1, 0:2] if t < 3 else 0
        wanted[:, t, 2:4] = x[:, t - 1, 2:4] if t > 0 else 0
    got = shifted(torch.from_numpy(x.reshape(8, 10, 3, 3)), 4, 0.25)
    np.testing.assert_array_equal(got.numpy().reshape(x.shape), wanted)


@torch.no_grad()
def test_tsm_of_a_resnet_is_the_plain_formula():
    """A ResNet whose blocks are written out here, with the shift on the residual branch only."""
    options = TimmNet(name="resnet10t", tsm=0.125)
    ours = build(options)
    net = create(options.model_copy(update={"tsm": 0.0}), 3).eval()
    state = {key.replace("conv1.layer.", "conv1."): value for key, value in ours.state_dict().items()}
    stem = {"stem.0.": "conv1.", "stem.1.": "bn1."}
    for theirs, own in stem.items():
        state = {own + k[len(theirs) :] if k.startswith(theirs) else k: v for k, v in state.items()}
    net.load_state_dict(state)
    x = clip(ours, frames=4)
    frames = x.shape[2]
    y = net.maxpool(net.act1(net.bn1(net.conv1(x.transpose(1, 2).flatten(0, 1)))))
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in layer:
            moved = y.reshape(-1, frames, *y.shape[1:]).clone()
            count = moved.shape[2] // 8
            before = moved.clone()
            moved[:, :-1, :count], moved[:, -1, :count] = before[:, 1:, :count], 0
            part = slice(count, 2 * count)
            moved[:, 1:, part], moved[:, 0, part] = before[:, :-1, part], 0
            branch = block.act1(block.bn1(block.conv1(moved.flatten(0, 1))))
            branch = block.bn2(block.conv2(branch))
            kept = y if block.downsample is None else block.downsample(y)
            y = torch.relu(branch + kept)
    wanted = y.reshape(2, frames, *y.shape[1:]).transpose(1, 2)
    torch.testing.assert_close(ours(x)[0].tensor, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "mobilenetv2_035", "regnety_002"])
@torch.no_grad()
def test_tsm_shares_between_neighbours_only(name):
    net = build(TimmNet(name=name, tsm=0.125))
    x = clip(net, frames=4, batch=2)
    changed = x.clone()
    changed[0, :, 3] += 1.0
    apart = (net(changed)[0].tensor - net(x)[0].tensor).abs().amax((1, 3, 4))
    assert apart[0, 3] > 1e-4  # the frame itself
    assert apart[0, 2] > 1e-6  # its neighbour sees it through the shift
    assert not apart[1].any()  # the other clip does not


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        *((name, 1) for name in ("test_resnet", "mobilenetv2_035", "regnetx_002", "densenet121")),
        pytest.param("vgg11_bn", 1, marks=pytest.mark.slow),
        *((name, 3) for name in ("test_resnet", "mobilenetv2_035", "regnetx_002")),
        *(("tf_efficientnet_lite0", kernel) for kernel in (1, 3)),  # SAME padding, depthwise
    ],
)
@torch.no_grad()
def test_an_inflated_network_sees_a_still_clip_as_the_image(name, kernel):
    """Carreira and Zisserman: repeated kernels divided by their length; the ends of the clip see the padding."""
    options = TimmNet(name=name, inflate=True, inflate_kernel=kernel)
    theirs = alive(create(options, 3))
    net = build(options, net=_copy(theirs, options))
    middle = _kernels(net)
    image = torch.randn(1, 3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    got = net(image.expand(-1, -1, 2 * middle + 1, -1, -1))[0].tensor[:, :, middle]
    wanted = features_per_frame(theirs, image)[:, :, 0]
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
    changed = net(torch.cat([image, image, 2 * image], dim=2))[0].tensor[:, :, 1]
    still = net(torch.cat([image, image, image], dim=2))[0].tensor[:, :, 1]
    assert ((changed - still).abs().max() > 1e-4) == (kernel == 3)  # time is mixed by kernels over time only


def _kernels(net):
    """Convolutions over time on the way: each lets the padding reach one frame further in."""
    return sum(isinstance(m, torch.nn.Conv3d) and m.kernel_size[0] == 3 for m in net.modules())


@pytest.mark.parametrize("options", NETWORKS, ids=named)
@pytest.mark.parametrize("how", ["append_block", "replace_last_block"])
def test_reductions_narrow_and_name_their_parameters(options, how):
    net = build(options, "flow")
    before = {name for name, _ in net.named_parameters()}
    if how == "replace_last_block" and net.home is None:
        with pytest.raises(SettingsError, match=r"last block of .* is not known, .*; use `reduction: frab`"):
            net.replace_last_block(24)
        return
    x = clip(net)
    old = net(x)[0].tensor.shape
    getattr(net, how)(24)
    assert net.eval()(x)[0].tensor.shape == (old[0], 24, *old[2:])
    after = {name for name, _ in net.named_parameters()}
    assert {name for name in after if name.startswith(net.reduced)} >= after - before != set()


def test_only_the_head_of_an_undivided_network_gets_no_gradient():
    net = build(TimmNet(name="ghostnet_050"), "flow").train()
    (feature,) = net(clip(net))
    feature.tensor.square().sum().backward()
    idle = {name for name, p in net.named_parameters() if not p.requires_grad}
    assert all(p.grad is not None for name, p in net.named_parameters() if name not in idle)
    assert idle == {"net.net.conv_head.weight", "net.net.conv_head.bias"}


def test_stages_freeze_recompute_and_divide_all_parameters():
    for options in (TimmNet(name="test_vit", image_size=SIDE), TimmNet(name="mobilenetv2_035", tsm=0.125)):
        model = Recognizer(ModelOptions(backbone=options, input={"crop": SIDE, "clip_length": 3}), 3)
        inside = [id(p) for _, stage in model.stages() for p in stage.parameters()]
        assert sorted(inside) == sorted(id(p) for p in model.parameters())
        x = torch.randint(0, 256, (2, 3, 3, SIDE, SIDE), dtype=torch.uint8)
        gradients = []
        for on in (False, True):
            model.set_gradient_checkpointing(on)
            model.zero_grad()
            torch.manual_seed(0)
            model.train()(x).sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters()])
        for plain, recomputed in zip(*gradients, strict=True):
            torch.testing.assert_close(plain, recomputed, rtol=1e-4, atol=1e-5)
        stage = model.stages()[2][0]
        model.freeze_until(stage)
        free = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
        assert "stem" not in free
        assert stage not in free


def test_channels_last_changes_no_number():
    torch.manual_seed(0)
    options = ModelOptions(
        backbone=TimmNet(name="test_resnet"), head=AverageHead(), input={"crop": SIDE, "clip_length": 2}
    )
    model = Recognizer(options, 3).eval()
    x = torch.randint(0, 256, (2, 3, 2, SIDE, SIDE), dtype=torch.uint8)
    with torch.no_grad():
        plain = model(x)
        laid_out = model.channels_last()
        assert laid_out.backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(laid_out(x), plain, rtol=1e-4, atol=1e-5)


def test_the_input_is_that_of_timms_weights():
    net = BACKBONES["timm"]
    rgb = net.default_input(TimmNet(name="resnet50.tv_in1k"), "rgb")
    assert (rgb.crop, rgb.resize, rgb.clip_length) == (224, (256, 341), 16)
    assert rgb.value_range == (0.0, 1.0)
    assert rgb.mean == (0.485, 0.456, 0.406)
    flow = net.default_input(TimmNet(name="resnet50.tv_in1k"), "flow")
    assert flow.mean == (0.5, 0.5)
    assert flow.std == pytest.approx((0.226, 0.226))
    assert net.default_input(TimmNet(name="test_vit", image_size=96), "rgb").crop == 96


@pytest.mark.parametrize("modality", ["rgb", "flow"])
@pytest.mark.parametrize("reduction", ["none", "frab", "frmb"])
def test_weights_of_a_file_fill_the_backbone(tmp_path, modality, reduction):
    """timm's own file for RGB; for flow the first convolution is averaged over RGB and repeated."""
    plain = TimmNet(name="test_resnet")
    theirs = create(plain, 3).eval()
    file = tmp_path / "weights.safetensors"
    save_file(theirs.state_dict(), file)
    options = plain.model_copy(update={"pretrained": True, "weights": file})
    model = Recognizer(
        ModelOptions(backbone=options, modality=modality, reduction=reduction, reduced_channels=16), 3
    )
    fresh = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    said = load_library(model)
    assert str(file) in said
    state = model.backbone.state_dict()
    wanted = theirs.conv1[0].weight
    if modality == "flow":
        wanted = wanted.mean(1, keepdim=True).expand(-1, 2, -1, -1)
    assert torch.equal(state["stem.0.0.weight"], wanted)
    assert torch.equal(state["layer3.0.conv2.weight"], theirs.layer3[0].conv2.weight)
    for key, value in state.items():
        if model.backbone.reduced and key.startswith(model.backbone.reduced):
            assert torch.equal(value, fresh[key])


@torch.no_grad()
def test_weights_of_a_file_are_shifted_and_inflated_too(tmp_path):
    theirs = create(TimmNet(name="test_resnet"), 3).eval()
    file = tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), file)
    x = clip(build(TimmNet(name="test_resnet")), frames=1)
    for more in ({"tsm": 0.0}, {"inflate": True, "inflate_kernel": 1}):
        options = TimmNet(name="test_resnet", pretrained=True, weights=file, **more)
        net = build(options)
        net.load_pretrained(torch.load(file, weights_only=True))
        torch.testing.assert_close(
            net(x)[0].tensor, features_per_frame(theirs, x), rtol=1e-4, atol=1e-5, msg=str(more)
        )
    net = build(TimmNet(name="test_resnet", pretrained=True, weights=file, tsm=0.125))
    net.load_pretrained(torch.load(file, weights_only=True))
    assert torch.equal(net.layer1[0].conv1.layer.weight, theirs.layer1[0].conv1.weight)


def test_weights_that_are_not_there_or_of_another_network_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = Recognizer(ModelOptions(backbone=TimmNet(name="test_resnet", pretrained=True)), 3)
    with pytest.raises(CheckpointError) as caught:
        load_library(model)
    assert "timm's weights of test_resnet cannot be fetched" in str(caught.value)
    assert "`backbone.weights`" in str(caught.value)
    assert "\n" not in str(caught.value)
    file = tmp_path / "other.safetensors"
    save_file({"conv1.weight": torch.zeros(2, 3, 1, 1)}, file)
    options = TimmNet(name="test_resnet", pretrained=True, weights=file)
    with pytest.raises(CheckpointError, match=r"other.safetensors does not fit \(.*\)$"):
        load_library(Recognizer(ModelOptions(backbone=options), 3))


def test_a_run_folder_needs_neither_weights_nor_hub(tmp_path):
    """`pretrained` stays in the options as a fact; reading the model back looks at nothing outside the folder."""
    options = TimmNet(name="test_resnet", pretrained=True, weights=tmp_path / "gone.safetensors", tsm=0.125)
    given = ModelOptions(backbone=options, modality="flow", input={"crop": SIDE, "clip_length": 4})
    torch.manual_seed(0)
    model = Recognizer(given, 3).eval()
    write_model(tmp_path / "model", model, {})
    again, _ = read_model(tmp_path / "model")
    x = torch.randint(0, 256, (2, 2, 4, SIDE, SIDE), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert again.options == model.options


def test_an_rgb_run_starts_a_flow_network(tmp_path):
    rgb = Recognizer(ModelOptions(backbone=TimmNet(name="test_vit", image_size=SIDE)), 3)
    write_model(tmp_path / "rgb", rgb, {})
    flow = Recognizer(ModelOptions(backbone=TimmNet(name="test_vit", image_size=SIDE), modality="flow"), 3)
    load_weights(flow, tmp_path / "rgb", cross_modality=True)
    first = rgb.backbone.stem.net.patch_embed.proj.weight
    wanted = first.mean(1, keepdim=True).expand(-1, 2, -1, -1)
    torch.testing.assert_close(flow.backbone.stem.net.patch_embed.proj.weight, wanted)


BAD = [
    ({"name": "resnett50"}, r"'resnett50' is not a timm network; did you mean resnet50"),
    (
        {"name": "resnet18.foo"},
        r"timm has no weights 'resnet18.foo'; its weights for this network: .*resnet18.tv_in1k",
    ),
    (
        {"name": "test_resnet", "image_size": 64},
        r"timm's test_resnet has no option `image_size`; remove the option",
    ),
    ({"name": "test_vit", "tsm": 0.125}, r"`tsm` shifts the residual blocks .*, but test_vit has none"),
    (
        {"name": "test_vit", "inflate": True},
        r"`inflate` requires a plain convolutional network .*, but test_vit contains \w+, which cannot be inflated",
    ),
    ({"name": "efficientnet_b0", "inflate": True}, r"efficientnet_b0 contains SqueezeExcite"),
    ({"name": "regnety_002", "inflate": True}, r"regnety_002 contains SEModule"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
def test_what_a_network_cannot_do_is_one_line(options, message):
    with pytest.raises(SettingsError, match=message) as caught:
        Recognizer(ModelOptions(backbone=TimmNet(**options)), 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("crop", "told"), [(96, "96"), ([96, 128], r"\(96, 128\)")])
def test_a_crop_that_a_network_of_fixed_size_cannot_take_is_one_line(crop, told):
    options = ModelOptions(backbone=TimmNet(name="test_vit"), input={"crop": crop})
    with pytest.raises(
        SettingsError, match=rf"`input.crop` is {told}, .* accepts only 160; .*`backbone.image_size`"
    ) as caught:
        Recognizer(options, 3)
    assert "\n" not in str(caught.value)
    net = build(TimmNet(name="test_vit", image_size=SIDE))
    with pytest.raises(
        SettingsError, match="a clip of 2×32×32 was passed; this timm network expects 2×64×64"
    ):
        net(torch.zeros(1, 3, 2, 32, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tsm": 0.125, "inflate": True}, "remove one of them"),
        ({"weights": "w.pth"}, "`weights` requires `pretrained: true`"),
    ],
    ids=str,
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TimmNet(**options)


@pytest.mark.parametrize(
    "options",
    [
        TimmNet(name="test_resnet", tsm=0.125),
        TimmNet(name="test_vit", image_size=SIDE),
        TimmNet(name="test_resnet", inflate=True),
    ],
    ids=str,
)
def test_it_exports(options):
    model = Recognizer(ModelOptions(backbone=options, input={"crop": SIDE, "clip_length": 4}), 3).eval()
    x = torch.randint(0, 256, (1, 3, 4, SIDE, SIDE), dtype=torch.uint8)
    program = torch.export.export(model, (x,), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)
