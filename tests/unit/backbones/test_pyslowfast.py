"""X3D, Slow and I3D-R50: kernels, squeeze-and-excitation, rates, reductions, the head that X3D ends in."""

import pytest
import torch
from torch import nn

from two_stream.backbones import BACKBONES
from two_stream.backbones.x3d import SqueezeExcitation, X3DBlock, rounded
from two_stream.config.backbones import Slow, SlowFast, X3d
from two_stream.config.heads import AverageHead
from two_stream.heads import HEADS


def build(options, modality="rgb"):
    with torch.device("meta"):
        return BACKBONES[options.kind](options, modality).eval()


NETWORKS = [X3d(depth=0.5, width=0.7), Slow(width=0.125), Slow(width=0.125, variant="i3d")]


@pytest.mark.parametrize("options", NETWORKS, ids=str)
@pytest.mark.parametrize("length", [1, 7, 16])
def test_declared_tokens_and_channels_are_those_of_the_map(options, length):
    net = build(options, "flow")
    (feature,) = net(torch.empty(1, 2, length, 64, 64, device="meta"))
    assert feature.tensor.shape == (1, net.channels[0], net.num_tokens(length)[0], 2, 2)


@pytest.mark.parametrize("options", NETWORKS, ids=str)
@pytest.mark.parametrize("how", ["append_block", "replace_last_block"])
def test_reductions_narrow_and_name_their_parameters(options, how):
    with torch.device("meta"):
        net = build(options)
        before = {name for name, _ in net.named_parameters()}
        getattr(net, how)(48)
        (feature,) = net(torch.empty(1, 3, 8, 64, 64))
    assert net.channels == (48,) == tuple(feature.tensor.shape[1:2])
    after = {name for name, _ in net.named_parameters()}
    assert all(name.startswith(net.reduced) for name in after - before)
    assert any(name.startswith(net.reduced) for name in after)


def test_kernels_over_time_are_the_published_ones():
    def lengths(net):
        layers = [net.get_submodule(f"layer{number}") for number in (1, 2, 3, 4)]
        return [[block.conv1.kernel_size[0] for block in layer] for layer in layers]

    assert lengths(build(Slow())) == [[1] * 3, [1] * 4, [3] * 6, [3] * 3]
    assert lengths(build(Slow(variant="i3d"))) == [[3] * 3, [3, 1, 3, 1], [3, 1, 3, 1, 3, 1], [1, 3, 1]]
    assert build(Slow(variant="i3d")).stem[0].kernel_size == (5, 7, 7)


def test_widths_round_to_eights_and_never_far_down():
    assert [rounded(width) for width in (3.375, 12, 24, 54, 108, 27)] == [8, 16, 24, 56, 112, 32]


def test_squeeze_and_excitation_is_its_formula():
    torch.manual_seed(0)
    part = SqueezeExcitation(16)
    x = torch.randn(2, 16, 3, 4, 4)
    inner = torch.relu(nn.functional.linear(x.mean((2, 3, 4)), part.fc1.weight.flatten(1), part.fc1.bias))
    weight = torch.sigmoid(nn.functional.linear(inner, part.fc2.weight.flatten(1), part.fc2.bias))
    torch.testing.assert_close(part(x), x * weight[:, :, None, None, None])


def test_every_other_block_squeezes_and_swish_stands_before_the_last_convolution():
    net = build(X3d())
    assert [block.squeeze is not None for block in net.layer3][:4] == [True, False, True, False]
    torch.manual_seed(0)
    block = X3DBlock(8, 8, 1, squeeze=False).eval()
    x = torch.randn(1, 8, 2, 4, 4)
    inner = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), torch.relu(block.bn3(block.conv3(inner * inner.sigmoid())) + x))


def test_x3d_ends_in_a_linear_layer_after_the_mean():
    head = HEADS["average"](AverageHead(features=6), features=4, tokens=3)
    assert head.features == 6
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(head(x), torch.relu(x.mean(1) @ head.linear.weight.T))
    assert head.linear.bias is None


def test_spread_slow_frames_reach_from_the_first_to_the_last():
    clip = torch.arange(32.0).view(1, 1, 32, 1, 1)
    spread = BACKBONES["slowfast"](SlowFast(width=0.125, fast_stride=1, spread=True), "rgb")
    assert spread._slow_frames(clip).flatten().tolist() == [0, 4, 8, 13, 17, 22, 26, 31]
    strided = BACKBONES["slowfast"](SlowFast(width=0.125, fast_stride=1), "rgb")
    assert strided._slow_frames(clip).flatten().tolist() == [0, 4, 8, 12, 16, 20, 24, 28]
