"""MobileNet, ShuffleNet (both), SqueezeNet and C3D: shapes in time, shuffling, reductions, dense classification."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from two_stream.backbones import BACKBONES
from two_stream.backbones.base import Backbone
from two_stream.backbones.shufflenet_3d import InvertedShuffle, ShuffleUnit, shuffled
from two_stream.backbones.squeezenet_3d import Fire
from two_stream.config.backbones import C3d, MobileNet, ShuffleNet, ShuffleNetV2, SqueezeNet
from two_stream.config.heads import AverageHead, BertHead
from two_stream.config.model import ModelOptions
from two_stream.errors import SettingsError
from two_stream.recognizer import Recognizer


def build(options, modality="rgb") -> Backbone:
    with torch.device("meta"):
        return BACKBONES[options.kind](options, modality).eval()


NETWORKS = [
    MobileNet(width=0.5),
    MobileNet(width=0.25, temporal_stride=2),
    ShuffleNet(groups=3, width=0.5),
    ShuffleNet(groups=8, temporal_stride=4),
    ShuffleNetV2(width=0.25),
    ShuffleNetV2(width=0.25, temporal_stride=1),
    SqueezeNet(version="1.0", width=0.25),
    SqueezeNet(version="1.1", width=0.25, temporal_stride=8),
    C3d(width=0.125),
    C3d(width=0.125, temporal_stride=4),
]


@pytest.mark.parametrize("options", NETWORKS, ids=lambda value: f"{value.kind}-{value.temporal_stride}")
@pytest.mark.parametrize("length", [1, 7, 16, 33])
def test_declared_tokens_and_channels_are_those_of_the_map(options, length):
    net = build(options, "flow")
    side = 112 if options.kind == "c3d" else 64
    clip = torch.empty(1, 2, length, side, side, device="meta")
    if options.kind == "c3d" and length <= options.temporal_stride // 2:
        with pytest.raises(SettingsError, match="shorter than a token"):
            net.num_tokens(length)
        return
    (feature,) = net(clip)
    assert feature.tensor.shape[:3] == (1, net.channels[0], net.num_tokens(length)[0])
    assert feature.tensor.shape[3] == side // net.spatial_stride[0] + (options.kind == "c3d") * (side < 128)


@pytest.mark.parametrize("options", NETWORKS, ids=lambda value: f"{value.kind}-{value.temporal_stride}")
@pytest.mark.parametrize("how", ["append_block", "replace_last_block"])
def test_reductions_narrow_and_name_their_parameters(options, how):
    with torch.device("meta"):
        net = build(options)
        before = {name for name, _ in net.named_parameters()}
        getattr(net, how)(48)
        (feature,) = net(torch.empty(1, 3, 16, 112, 112))
    assert net.channels == (48,) == tuple(feature.tensor.shape[1:2])
    after = {name for name, _ in net.named_parameters()}
    assert all(name.startswith(net.reduced) for name in after - before)
    assert any(name.startswith(net.reduced) for name in after)


def test_shuffling_deals_the_channels_of_each_group_out():
    x = torch.arange(6.0).view(1, 6, 1, 1, 1)
    assert shuffled(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert shuffled(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    torch.testing.assert_close(shuffled(x, 3), nn.ChannelShuffle(3)(x.flatten(2)[..., None]).view_as(x))


def test_a_strided_unit_stands_beside_the_average_of_its_input():
    torch.manual_seed(0)
    unit = ShuffleUnit(24, 60, groups=3, stride=2).eval()
    x = torch.rand(2, 24, 6, 8, 8)
    y = unit(x)
    assert y.shape == (2, 60, 3, 4, 4)
    torch.testing.assert_close(y[:, 36:], F.avg_pool3d(x, (2, 3, 3), 2, (0, 1, 1)))
    alone = unit(x[:, :, :5])  # an odd last frame stands alone
    torch.testing.assert_close(alone[:, 36:, :2], F.avg_pool3d(x[:, :, :4], (2, 3, 3), 2, (0, 1, 1)))
    torch.testing.assert_close(alone[:, 36:, 2:], F.avg_pool3d(x[:, :, 4:5], (1, 3, 3), 2, (0, 1, 1)))
    small = unit(x[..., :2, :2])
    whole = F.avg_pool3d(F.pad(x[..., :2, :2], (1, 1, 1, 1)), (2, 3, 3), 2)
    torch.testing.assert_close(small[:, 36:], whole)


def test_half_of_the_channels_pass_a_v2_block_untouched():
    torch.manual_seed(0)
    block = InvertedShuffle(8, 8).eval()
    x = torch.randn(1, 8, 2, 4, 4)
    assert torch.equal(block(x)[:, ::2], x[:, :4])
    torch.testing.assert_close(block(x)[:, 1::2], block.branch2(x[:, 4:]))


def test_fire_adds_its_input_only_with_bypass():
    torch.manual_seed(0)
    x = torch.rand(1, 8, 2, 4, 4)
    fire = Fire(8, 2, (4, 4), bypass=True).eval()
    plain = Fire(8, 2, (4, 4)).eval()
    plain.load_state_dict(fire.state_dict())
    squeezed = torch.relu(fire.squeeze_bn(fire.squeeze(x)))
    inner = torch.cat(
        [fire.expand1x1_bn(fire.expand1x1(squeezed)), fire.expand3x3_bn(fire.expand3x3(squeezed))], 1
    )
    torch.testing.assert_close(fire(x), torch.relu(inner + x))
    torch.testing.assert_close(plain(x), torch.relu(inner))


def test_widths_that_do_not_divide_are_refused():
    with pytest.raises(SettingsError, match=r"do not divide into 8 groups at width 0\.3"):
        build(ShuffleNet(groups=8, width=0.3))
    with pytest.raises(ValidationError, match=r"0\.25, 0\.5, 1, 1\.5 or 2"):
        ShuffleNetV2(width=0.7)


def test_dense_classifies_places_and_averages_what_is_above_zero():
    torch.manual_seed(0)
    options = {"backbone": SqueezeNet(width=0.125), "head": AverageHead(), "dense": True}
    model = Recognizer(ModelOptions(**options, input={"clip_length": 16, "crop": 64}), 5).eval()
    x = torch.randn(2, 3, 16, 64, 64)
    with torch.inference_mode():
        (feature,) = model.backbone(x)
        weight = model.classifier.weight[..., None, None, None]
        logits = F.conv3d(feature.tensor, weight, model.classifier.bias).relu().mean((2, 3, 4))
        torch.testing.assert_close(model.forward_normalised(x), logits)
        assert not torch.allclose(logits, model.classifier(feature.tensor.mean((2, 3, 4))))
    with pytest.raises(ValidationError, match="dense"):
        ModelOptions(dense=True, head=BertHead())


def test_c3d_gives_a_token_for_every_sixteen_frames():
    net = build(C3d(width=0.125))
    assert [net.num_tokens(frames)[0] for frames in (16, 31, 33, 64)] == [1, 2, 2, 4]
