"""3D ResNet, ResNeXt and MobileNetV2: shapes in time, shortcuts, reductions, checkpointing."""

import pytest
import torch
from torch import nn

from two_stream.backbones.base import Backbone, split_temporal_stride
from two_stream.backbones.blocks import (
    BasicBlock,
    Bottleneck,
    PaddedIdentity,
    PreActivationBlock,
    PreActivationBottleneck,
    Projection,
)
from two_stream.backbones.csn import ChannelSeparatedNet, SeparatedBottleneck
from two_stream.backbones.densenet3d import DenseLayer, DenseNet3D, HalvingPool
from two_stream.backbones.mobilenetv2_3d import InvertedResidual, MobileNetV2_3D
from two_stream.backbones.resnet3d import ResNet3D, ResNeXt3D
from two_stream.config.backbones import Csn, DenseNet, MobileNetV2, ResNet3d, ResNeXt3d


def on_meta(build, *args):
    with torch.device("meta"):
        return build(*args)


def test_shortcut_a_keeps_every_second_value_and_lets_the_gradient_pass():
    x = torch.arange(2.0 * 4 * 4 * 4).view(1, 2, 4, 4, 4).requires_grad_()
    y = PaddedIdentity(3, (2, 2, 2))(x)
    assert y.shape == (1, 3, 2, 2, 2)
    assert y[0, 0].flatten().tolist() == [0.0, 2.0, 8.0, 10.0, 32.0, 34.0, 40.0, 42.0]
    assert torch.equal(y[0, 2], torch.zeros(2, 2, 2))
    y.sum().backward()
    assert x.grad.sum() == 2 * 8


def test_basic_block_is_its_formula():
    torch.manual_seed(0)
    block = BasicBlock(3, 4, (1, 2, 2), Projection(3, 4, (1, 2, 2))).eval()
    x = torch.randn(1, 3, 4, 6, 6)
    inner = torch.relu(block.bn1(nn.functional.conv3d(x, block.conv1.weight, stride=(1, 2, 2), padding=1)))
    inner = block.bn2(nn.functional.conv3d(inner, block.conv2.weight, padding=1))
    outer = block.downsample[1](nn.functional.conv3d(x, block.downsample[0].weight, stride=(1, 2, 2)))
    torch.testing.assert_close(block(x), torch.relu(inner + outer))


def test_preactivation_blocks_are_their_formulas():
    torch.manual_seed(0)
    x = torch.randn(1, 4, 2, 4, 4)
    basic = PreActivationBlock(4, 4).eval()
    inner = basic.conv2(torch.relu(basic.bn2(basic.conv1(torch.relu(basic.bn1(x))))))
    torch.testing.assert_close(basic(x), inner + x)
    assert (basic(x) < 0).any()  # nothing after the sum
    block = PreActivationBottleneck(4, 2, 8, (1, 2, 2), Projection(4, 8, (1, 2, 2))).eval()
    inner = block.conv2(torch.relu(block.bn2(block.conv1(torch.relu(block.bn1(x))))))
    inner = block.conv3(torch.relu(block.bn3(inner)))
    torch.testing.assert_close(block(x), inner + block.downsample(x))


def test_separated_bottlenecks_mix_channels_pointwise_only():
    for preserved in (True, False):
        block = SeparatedBottleneck(8, 4, 8, (1, 1, 1), None, preserved)
        kernels = [(conv.kernel_size, conv.groups) for conv in block.conv2]
        assert kernels == [((1, 1, 1), 1)] * preserved + [((3, 3, 3), 4)]


def test_dense_layers_keep_what_they_got():
    torch.manual_seed(0)
    layer = DenseLayer(6, 3).eval()
    x = torch.randn(1, 6, 2, 4, 4)
    assert torch.equal(layer(x)[:, :6], x)
    added = layer.conv2(torch.relu(layer.norm2(layer.conv1(torch.relu(layer.norm1(x))))))
    torch.testing.assert_close(layer(x)[:, 6:], added)
    pooled = HalvingPool(2)(torch.arange(3.0).view(1, 1, 3, 1, 1).expand(1, 1, 3, 2, 3))
    assert pooled.flatten().tolist() == [0.5, 2.0]


def test_inverted_residual_adds_its_input_only_where_shapes_fit():
    torch.manual_seed(0)
    x = torch.randn(1, 4, 2, 4, 4)
    same = InvertedResidual(4, 4, expansion=6).eval()
    torch.testing.assert_close(same(x), x + same.conv(x))
    wider = InvertedResidual(4, 6, expansion=1, stride=(2, 2, 2)).eval()
    assert len(wider.conv) == 5  # no widening unit at expansion 1
    torch.testing.assert_close(wider(x), wider.conv(x))
    assert (wider(x) < 0).any()  # linear bottleneck: no activation after it


def test_split_temporal_stride_halves_early():
    assert split_temporal_stride(4, 4) == [2, 2, 1, 1]
    assert split_temporal_stride(1, 3) == [1, 1, 1]
    assert split_temporal_stride(16, 4) == [2, 2, 2, 2]


NETWORKS = [
    (ResNet3D, ResNet3d(depth=18)),
    (ResNet3D, ResNet3d(depth=50, shortcut="A")),
    (ResNet3D, ResNet3d(depth=18, stem_kernel=3, stem_stride=2, stem_pool=False)),
    (ResNet3D, ResNet3d(depth=10, stem_stride=2, temporal_stride=1)),
    (ResNet3D, ResNet3d(depth=18, preactivation=True)),
    (ResNet3D, ResNet3d(depth=50, width=2.0, expansion=2)),
    (ChannelSeparatedNet, Csn(depth=26, width=0.5)),
    (ChannelSeparatedNet, Csn(depth=26, width=0.25, mode="ir", temporal_stride=2)),
    (DenseNet3D, DenseNet(growth=8)),
    (DenseNet3D, DenseNet(growth=4, temporal_stride=2)),
    (ResNeXt3D, ResNeXt3d(depth=50)),
    (ResNeXt3D, ResNeXt3d(depth=50, temporal_stride=4)),
    (MobileNetV2_3D, MobileNetV2(width=0.45)),
    (MobileNetV2_3D, MobileNetV2(width=0.2, temporal_stride=2)),
]


@pytest.mark.parametrize(("build", "options"), NETWORKS, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("length", [1, 7, 16, 33])
def test_declared_tokens_channels_and_strides_are_those_of_the_map(build, options, length):
    net: Backbone = on_meta(build, options, "flow").eval()
    (feature,) = net(torch.empty(1, 2, length, 64, 64, device="meta"))
    side = 64 // net.spatial_stride[0]
    assert feature.tensor.shape == (1, net.channels[0], net.num_tokens(length)[0], side, side)


def test_parameter_counts_of_the_published_networks():
    counts = {
        (ResNet3D, ResNet3d(depth=10)): 14_758_524 - 513 * 700,
        (ResNeXt3D, ResNeXt3d(depth=101)): 47_625_715 - 2049 * 51,
        (MobileNetV2_3D, MobileNetV2(width=1.0)): 2_388_635 - 1281 * 27,
    }
    for (build, options), expected in counts.items():
        net = on_meta(build, options, "rgb")
        assert sum(p.numel() for p in net.parameters()) == expected


def test_temporal_stride_changes_no_weight():
    slow, fast = (on_meta(ResNeXt3D, ResNeXt3d(depth=50, temporal_stride=s), "rgb") for s in (16, 2))
    assert {k: v.shape for k, v in slow.state_dict().items()} == {
        k: v.shape for k, v in fast.state_dict().items()
    }


def test_reductions_of_resnext_are_the_papers():
    net = on_meta(ResNeXt3D, ResNeXt3d(depth=101), "rgb")
    net.replace_last_block(512)
    block = net.layer4[2]
    assert isinstance(block, Bottleneck)
    assert block.conv1.weight.shape == (256, 2048, 1, 1, 1)
    assert block.conv2.weight.shape == (256, 8, 3, 3, 3)
    assert block.downsample[0].weight.shape == (512, 2048, 1, 1, 1)
    assert net.channels == (512,)
    appended = on_meta(ResNeXt3D, ResNeXt3d(depth=101), "rgb")
    appended.append_block(512)
    assert [name for name, _ in appended.stages()][-1] == "reduction"
    assert appended.layer4[2].conv1.weight.shape == (1024, 2048, 1, 1, 1)


def test_frmb_of_a_single_block_layer_keeps_its_stride():
    with torch.device("meta"):
        net = ResNet3D(ResNet3d(depth=10), "rgb").eval()
        net.replace_last_block(32)
        (feature,) = net(torch.empty(1, 3, 16, 64, 64))
    assert feature.tensor.shape == (1, 32, 1, 2, 2)


def test_frmb_of_mobilenet_replaces_the_last_block_and_what_widens_it():
    net = on_meta(MobileNetV2_3D, MobileNetV2(width=1.0), "rgb")
    net.replace_last_block(512)
    assert [name for name, _ in net.stages()][-1] == "layer7"
    assert net.layer7[0].conv[0].weight.shape == (960, 160, 1, 1, 1)
    assert net.channels == (512,)


@pytest.mark.parametrize(
    "build", [(ResNet3D, ResNet3d(depth=10, width=0.1)), (MobileNetV2_3D, MobileNetV2(width=0.2))]
)
def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(build):
    kind, options = build
    results = []
    for on in (False, True):
        torch.manual_seed(0)
        net = kind(options, "flow").train()
        net.gradient_checkpointing = on
        x = torch.rand(2, 2, 4, 32, 32, requires_grad=True)
        net(x)[0].tensor.square().sum().backward()
        results.append((net, x.grad))
    (plain, grad), (saved, saved_grad) = results
    torch.testing.assert_close(saved_grad, grad, rtol=0, atol=0)
    for (name, a), b in zip(plain.named_parameters(), saved.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=0, msg=name)
    for (name, a), b in zip(plain.named_buffers(), saved.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=0, msg=name)


def test_checkpointing_stores_less():
    def saved_bytes(on: bool) -> int:
        net = ResNet3D(ResNet3d(depth=10, width=0.1), "flow").train()
        net.gradient_checkpointing = on
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            net(torch.rand(2, 2, 4, 32, 32))
        return total

    assert saved_bytes(True) < saved_bytes(False) / 3
