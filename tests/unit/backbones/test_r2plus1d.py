"""R(2+1)D: the values of torchvision's networks, channels in the middle, reductions, shapes in time, key maps."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F
from torchvision.models import video as tv
from torchvision.models.video import resnet as tvr

from two_stream.backbones.blocks import PaddedIdentity, Projection
from two_stream.backbones.r2plus1d import (
    BasicBlock2Plus1D,
    Bottleneck2Plus1D,
    R2Plus1D,
    middle_channels,
)
from two_stream.config.backbones import R2Plus1d
from two_stream.config.heads import AverageHead, BertHead
from two_stream.config.model import ModelOptions
from two_stream.pretrained.layouts import LAYOUTS, recognise_layout
from two_stream.recognizer import Recognizer

TINY = R2Plus1d(depth=18, width=0.125, temporal_stride=4)
TORCHVISION = R2Plus1d(depth=18, midplanes="block", norm_eps=1e-5)
HARA = {"temporal_stride": 16, "norm_eps": 1e-5, "stem_middle": None, "stem_kernel": 7, "stem_pool": True}


def on_meta(options=R2Plus1d(), modality="rgb"):  # noqa: B008 - settings are immutable
    with torch.device("meta"):
        return R2Plus1D(options, modality).eval()


def count(module):
    return sum(p.numel() for p in module.parameters())


def lively(network: nn.Module) -> nn.Module:
    """Give BatchNorm statistics and weights that a mistake would show in."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm3d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.001, 0.5)  # so small that epsilon counts
    return network.eval()


def ig65m() -> nn.Module:
    """A network of depth 18 made the way the IG-65M port makes its own of depth 34."""
    network = tv.r2plus1d_18(weights=None, num_classes=7)
    for layer, width in ((network.layer2, 128), (network.layer3, 256), (network.layer4, 512)):
        layer[0].conv2[0] = tvr.Conv2Plus1D(width, width, middle_channels(width, width))
    for part in network.modules():
        if isinstance(part, nn.BatchNorm3d):
            part.eps = 1e-3
    return network


def bottlenecks() -> nn.Module:
    return tvr.VideoResNet(tvr.Bottleneck, [tvr.Conv2Plus1D] * 4, [3, 4, 6, 3], tvr.R2Plus1dStem, 7)


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (lambda: tv.r2plus1d_18(weights=None, num_classes=7), TORCHVISION),
        (ig65m, R2Plus1d(depth=18)),
        (bottlenecks, R2Plus1d(depth=50, midplanes="block", norm_eps=1e-5)),
    ],
    ids=["torchvision", "ig65m", "bottlenecks"],
)
def test_logits_are_torchvisions(build, options):
    torch.manual_seed(0)
    theirs = lively(build())
    state = theirs.state_dict()
    layout = recognise_layout(state)
    assert layout.name == "R(2+1)D (torchvision, IG-65M)"
    with torch.device("meta"):
        model = Recognizer(ModelOptions(backbone=options, head=AverageHead()), 7).eval()
    ours = {layout.translate(key): value for key, value in state.items()}
    model.load_state_dict(ours, assign=True)
    x = torch.randn(1, 3, 9, 40, 40)
    with torch.inference_mode():
        expected, logits = theirs(x), model.forward_normalised(x)
        assert expected.std() > 1e-2
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())


def test_middle_channels_keep_the_number_of_weights():
    published = {(64, 64): 144, (64, 128): 230, (128, 128): 288, (128, 256): 460, (256, 512): 921}
    for (inputs, outputs), middle in published.items():
        assert middle_channels(inputs, outputs) == middle
        pair = inputs * middle * 9 + middle * outputs * 3
        one_more = pair + inputs * 9 + outputs * 3
        assert pair <= inputs * outputs * 27 < one_more
    assert middle_channels(3, 64, time=7, space=7) == 110


def test_parameter_counts_of_the_published_networks():
    assert count(on_meta()) == 63_518_138 - 513 * 51  # IG-65M
    assert count(on_meta(TORCHVISION)) == 31_505_325 - 513 * 400
    for depth, parameters, features in ((18, 33_575_064, 512), (50, 47_650_082, 2048)):  # 3D-ResNets
        assert count(on_meta(R2Plus1d(depth=depth, **HARA))) == parameters - (features + 1) * 700


def test_conv2_of_a_first_block_is_where_the_ports_differ():
    for options, middle in ((R2Plus1d(depth=18), 288), (TORCHVISION, 230)):
        block = on_meta(options).layer2[0]
        assert block.conv1[0][0].out_channels == 230
        assert block.conv2[0][0].out_channels == middle


def test_epsilon_is_everywhere_and_momentum_is_torchs():
    net = on_meta()
    net.append_block(64)
    norms = [part for part in net.modules() if isinstance(part, nn.BatchNorm3d)]
    assert {norm.eps for norm in norms} == {1e-3}
    assert {norm.momentum for norm in norms} == {0.1}
    assert isinstance(net.reduction.downsample, Projection)


@pytest.mark.parametrize(
    "options",
    [
        R2Plus1d(depth=18),
        R2Plus1d(depth=34, width=0.25, temporal_stride=2),
        R2Plus1d(depth=50, temporal_stride=1),
        R2Plus1d(depth=50, **HARA),
        R2Plus1d(depth=18, stem_pool=True, temporal_stride=4, shortcut="A"),
    ],
    ids=str,
)
def test_declared_tokens_channels_and_strides_are_those_of_the_map(options):
    net = on_meta(options, "flow")
    for length in (1, 7, 16, 33, 64):
        (feature,) = net(torch.empty(1, 2, length, 64, 64, device="meta"))
        side = 64 // net.spatial_stride[0]
        assert feature.tensor.shape == (1, net.channels[0], net.num_tokens(length)[0], side, side)


def test_tokens_of_the_papers_clips():
    net = on_meta()
    assert (net.num_tokens(32), net.num_tokens(64)) == ((4,), (8,))
    (feature,) = net(torch.empty(1, 3, 32, 112, 112, device="meta"))
    assert feature.tensor.shape == (1, 512, 4, 7, 7)


def test_temporal_stride_keeps_the_early_steps_and_changes_no_weight():
    published, fast = on_meta(), on_meta(R2Plus1d(temporal_stride=2))
    assert {k: v.shape for k, v in published.state_dict().items()} == {
        k: v.shape for k, v in fast.state_dict().items()
    }
    strides = [fast.get_submodule(f"layer{i}")[0].conv1[0][3].stride[0] for i in (1, 2, 3, 4)]
    assert strides == [1, 2, 1, 1]


def test_a_stride_out_of_reach_is_refused():
    with pytest.raises(ValidationError, match="`temporal_stride` 16 requires `stem_pool: true`"):
        R2Plus1d(temporal_stride=16)


def test_stem_of_a_narrow_network_and_of_flow():
    net = on_meta(R2Plus1d(width=0.5), "flow")
    assert net.stem[0].weight.shape == (22, 2, 1, 7, 7)
    assert net.stem[3].weight.shape == (32, 22, 3, 1, 1)
    assert on_meta(R2Plus1d(**HARA), "flow").stem[0].weight.shape == (110, 2, 1, 7, 7)
    spec = R2Plus1D.default_input(R2Plus1d(), "flow")
    assert (spec.clip_length, spec.resize, spec.crop, spec.value_range) == (32, (128, 170), 112, (0.0, 1.0))
    assert (spec.mean, spec.std) == ((0.43216, 0.394666), (0.22803, 0.22145))


def test_stages_in_order_are_the_network():
    torch.manual_seed(0)
    net = R2Plus1D(TINY, "rgb")
    net.append_block(16)
    net.eval()
    assert [name for name, _ in net.stages()] == ["stem", "layer1", "layer2", "layer3", "layer4", "reduction"]
    x = clip = torch.rand(1, 3, 8, 32, 32)
    for _, stage in net.stages():
        x = stage(x)
    assert x.std() > 0
    assert torch.equal(net(clip)[0].tensor, x)


def test_reductions_are_blocks_of_the_same_kind():
    appended = on_meta()
    appended.append_block(256)
    block = appended.reduction
    assert isinstance(block, BasicBlock2Plus1D)
    assert block.conv1[0][0].weight.shape == (middle_channels(512, 256), 512, 1, 3, 3)
    assert block.conv2[0][3].weight.shape == (256, 576, 3, 1, 1)
    assert block.downsample[0].weight.shape == (256, 512, 1, 1, 1)
    replaced = on_meta(R2Plus1d(depth=50, shortcut="A"))
    assert isinstance(replaced.layer2[0].downsample, PaddedIdentity)
    replaced.replace_last_block(512)
    block = replaced.layer4[2]
    assert isinstance(block, Bottleneck2Plus1D)
    assert block.conv1[0].weight.shape == (128, 2048, 1, 1, 1)
    assert block.conv2[0][0].weight.shape == (288, 128, 1, 3, 3)
    assert isinstance(block.downsample, Projection)
    for net, channels, made in ((appended, 256, appended.reduction), (replaced, 512, block)):
        (feature,) = net.to("meta").eval()(torch.empty(1, 3, 16, 64, 64, device="meta"))
        assert feature.tensor.shape[1] == channels
        assert net.channels == (channels,)
        under = [p for name, p in net.named_parameters() if name.startswith(net.reduced)]
        assert list(map(id, under)) == list(map(id, made.parameters()))


@pytest.mark.parametrize("depth", [18, 50])
def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(depth):
    results = []
    for on in (False, True):
        torch.manual_seed(0)
        net = R2Plus1D(R2Plus1d(depth=depth, width=0.125), "flow").train()
        net.gradient_checkpointing = on
        x = torch.rand(2, 2, 4, 32, 32, requires_grad=True)
        net(x)[0].tensor.square().sum().backward()
        results.append((net, x.grad))
    (plain, grad), (saved, saved_grad) = results
    assert grad.any()
    assert torch.equal(saved_grad, grad)
    for (name, a), b in zip(plain.named_parameters(), saved.parameters(), strict=True):
        assert torch.equal(b.grad, a.grad), name
    for (name, a), b in zip(plain.named_buffers(), saved.named_buffers(), strict=True):
        assert torch.equal(b[1], a), name


@pytest.mark.parametrize("reduction", ["none", "frab", "frmb"])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_a_training_step_moves_every_parameter(reduction, shortcut):
    torch.manual_seed(0)
    options = ModelOptions(
        backbone=TINY.model_copy(update={"shortcut": shortcut}),
        head=BertHead(heads=4, keep=1.0),
        reduction=reduction,
        reduced_channels=32,
        input={"clip_length": 8, "crop": 32},
    )
    model = Recognizer(options, 5).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    clips = torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8)
    F.cross_entropy(model(clips), torch.tensor([0, 3])).backward()
    optimizer.step()
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert still == []


@pytest.mark.parametrize(
    ("name", "backbone", "key"),
    [
        ("late_temporal R(2+1)D", R2Plus1d(), "features.4.2.conv2.0.3.weight"),
        ("R(2+1)D (torchvision, IG-65M)", R2Plus1d(), "layer4.2.conv2.0.3.weight"),
        ("R(2+1)D (3D-ResNets)", R2Plus1d(depth=34, **HARA), "layer4.2.conv2_t.weight"),
        ("R(2+1)D with bottlenecks (3D-ResNets)", R2Plus1d(depth=50, **HARA), "layer3.5.bn3.running_var"),
    ],
)
def test_published_names_lead_both_ways(name, backbone, key):
    head = BertHead() if name.startswith("late") else AverageHead()
    with torch.device("meta"):
        ours = Recognizer(ModelOptions(backbone=backbone, head=head), 5).state_dict()
    layout = next(layout for layout in LAYOUTS if layout.name.startswith(name))
    theirs = {name: layout.invert(name) for name in ours}
    assert all(len(names) == 1 for names in theirs.values())
    state = {names[0]: ours[name] for name, names in theirs.items()}
    assert len(state) == len(ours)
    assert recognise_layout(state) is layout
    assert [layout.translate(name) for name in state] == list(ours)
    assert key in state


@pytest.mark.parametrize("build", [tv.r3d_18, tv.mc3_18])
def test_torchvisions_other_networks_are_not_mistaken(build):
    with torch.device("meta"):
        layout = recognise_layout(build(weights=None).state_dict())
    assert layout.name == "R3D, MC3 (torchvision)"
