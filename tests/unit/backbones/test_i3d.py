"""Inception-I3D: SAME padding by hand, modules, reductions, shapes in time, key maps."""

from functools import partial
from itertools import product

import pytest
import torch
from torch.nn import functional as F

from two_stream.backbones.base import init_convolutions
from two_stream.backbones.i3d import (
    InceptionI3D,
    InceptionModule,
    SameConv3d,
    SameMaxPool3d,
    Unit,
    narrowing_branches,
    outputs_of,
    same_padding,
)
from two_stream.config.backbones import I3d
from two_stream.config.heads import AverageHead, BertHead
from two_stream.config.model import ModelOptions
from two_stream.errors import SettingsError
from two_stream.pretrained.layouts import LAYOUTS, recognise_layout
from two_stream.recognizer import Recognizer

TINY = I3d(width=0.25, temporal_stride=4)


def on_meta(options=I3d(), modality="rgb"):  # noqa: B008 - settings are immutable
    with torch.device("meta"):
        return InceptionI3D(options, modality).eval()


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (224, 7, 2, (2, 1)),  # five places lack: two before, three behind
        (225, 7, 2, (3, 0)),
        (112, 3, 2, (0, 1)),
        (113, 3, 2, (1, 0)),
        (14, 2, 2, (0, 0)),
        (7, 2, 2, (0, 1)),
        (7, 3, 1, (1, 0)),
        (7, 2, 1, (0, 1)),
        (1, 7, 2, (3, 0)),
        (2, 7, 2, (2, 1)),
        (9, 1, 2, (0, 0)),  # nothing lacks
    ],
)
def test_same_padding_is_tensorflows(size, kernel, stride, expected):
    assert same_padding(size, kernel, stride) == expected


def by_hand(values, kernel, stride, reduce):
    """One dimension after TensorFlow's definition: window i starts at `i * stride - missing // 2`."""
    size = len(values)
    places = (size + stride - 1) // stride
    front = max((places - 1) * stride + kernel - size, 0) // 2
    return [
        reduce(
            [(k, values[i * stride - front + k]) for k in range(kernel) if 0 <= i * stride - front + k < size]
        )
        for i in range(places)
    ]


def weighted(weights, seen):
    return sum(weights[k] * value for k, value in seen)


WINDOWS = [(7, 2), (7, 1), (3, 2), (3, 1), (2, 2), (2, 1)]


@pytest.mark.parametrize("axis", [2, 3, 4])
@pytest.mark.parametrize(("kernel", "stride"), WINDOWS)
def test_same_convolution_is_the_sum_by_hand(kernel, stride, axis):
    generator = torch.Generator().manual_seed(0)
    for size in range(1, 12):
        shape, window, step = [1, 1, 1, 1, 1], [1, 1, 1], [1, 1, 1]
        shape[axis], window[axis - 2], step[axis - 2] = size, kernel, stride
        conv = SameConv3d(1, 1, tuple(window), stride=tuple(step), bias=False)
        x = torch.randn(size, generator=generator)
        expected = by_hand(x.tolist(), kernel, stride, partial(weighted, conv.weight.flatten().tolist()))
        torch.testing.assert_close(conv(x.view(shape)).flatten(), torch.tensor(expected))


@pytest.mark.parametrize("axis", [2, 3, 4])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (3, 1), (2, 2), (2, 1)])
def test_same_pooling_sees_only_the_clip(kernel, stride, axis):
    """Negative values too: padding with zeros would show there."""
    generator = torch.Generator().manual_seed(0)
    for size in range(1, 12):
        shape, window, step = [1, 1, 1, 1, 1], [1, 1, 1], [1, 1, 1]
        shape[axis], window[axis - 2], step[axis - 2] = size, kernel, stride
        x = -torch.rand(size, generator=generator)
        expected = by_hand(x.tolist(), kernel, stride, lambda seen: max(v for _, v in seen))
        pooled = SameMaxPool3d(tuple(window), tuple(step))(x.view(shape)).flatten()
        torch.testing.assert_close(pooled, torch.tensor(expected))


@pytest.mark.parametrize("sizes", list(product((5, 6), (7, 8), (9, 10))))
@pytest.mark.parametrize(
    ("kernel", "stride"),
    [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((3, 3, 3), (1, 2, 2)), ((2, 2, 2), (1, 2, 2))],
)
def test_same_pooling_of_activations_is_that_of_the_port(sizes, kernel, stride):
    """The port pads with zeros; after a ReLU that gives the same values and gradients."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, *sizes, requires_grad=True)
    activated = torch.relu(x)
    total = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, kernel, stride, strict=True)]
    pads = [number for t in reversed(total) for number in (t // 2, t - t // 2)]
    ported = F.max_pool3d(F.pad(activated, pads), kernel, stride)
    ours = SameMaxPool3d(kernel, stride)(activated)
    assert torch.equal(ours, ported)
    weight = torch.randn_like(ours)
    (expected,) = torch.autograd.grad((ported * weight).sum(), x, retain_graph=True)
    (grad,) = torch.autograd.grad((ours * weight).sum(), x)
    torch.testing.assert_close(grad, expected)


def test_an_inception_module_is_its_four_branches_in_order():
    torch.manual_seed(0)
    module = InceptionModule(4, (2, 3, 5, 2, 3, 4)).eval()
    x = torch.rand(1, 4, 3, 5, 5)

    def unit(part, value):
        padding = part.conv3d.kernel_size[0] // 2
        return torch.relu(part.bn(F.conv3d(value, part.conv3d.weight, padding=padding)))

    expected = (
        unit(module.b0, x),
        unit(module.b1b, unit(module.b1a, x)),
        unit(module.b2b, unit(module.b2a, x)),
        unit(module.b3b, F.max_pool3d(x, 3, stride=1, padding=1)),
    )
    y = module(x)
    assert y.shape[1] == outputs_of((2, 3, 5, 2, 3, 4)) == 14
    torch.testing.assert_close(y, torch.cat(expected, dim=1))


def test_the_published_network():
    for modality, parameters in (("rgb", 12_339_539), ("flow", 12_317_587)):
        net = on_meta(modality=modality)
        assert count(net) == parameters - 1025 * 51
    norms = [part for part in net.modules() if isinstance(part, torch.nn.BatchNorm3d)]
    assert len(norms) == 3 + 9 * 6
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    spec = InceptionI3D.default_input(I3d(), "flow")
    assert (spec.clip_length, spec.stride, spec.resize, spec.crop) == (64, 1, (256, 340), 224)
    assert (spec.value_range, spec.mean, spec.std) == ((0.0, 1.0), (0.5, 0.5), (0.5, 0.5))


@pytest.mark.parametrize("side", [32, 50, 64])
@pytest.mark.parametrize("temporal_stride", [1, 2, 4, 8])
def test_declared_tokens_channels_and_strides_are_those_of_the_map(temporal_stride, side):
    net = on_meta(I3d(width=0.25, temporal_stride=temporal_stride), "flow")
    for length in (1, 7, 16, 33, 64):
        (feature,) = net(torch.empty(1, 2, length, side, side, device="meta"))
        places = -(-side // net.spatial_stride[0])
        assert feature.tensor.shape == (1, net.channels[0], net.num_tokens(length)[0], places, places)


def test_temporal_stride_keeps_the_early_steps_and_changes_no_weight():
    published, fast = on_meta(), on_meta(I3d(temporal_stride=2))
    assert {k: v.shape for k, v in published.state_dict().items()} == {
        k: v.shape for k, v in fast.state_dict().items()
    }
    assert fast.stem.conv1a.conv3d.stride == (2, 2, 2)
    assert fast.mixed4.pool.stride == fast.mixed5.pool.stride == (1, 2, 2)


def test_stages_in_order_are_the_network():
    torch.manual_seed(0)
    net = InceptionI3D(TINY, "flow")
    net.append_block(16)
    net.eval()
    assert [name for name, _ in net.stages()] == ["stem", "mixed3", "mixed4", "mixed5", "reduction"]
    x = clip = torch.rand(1, 2, 8, 32, 32)
    for _, stage in net.stages():
        x = stage(x)
    assert x.std() > 0
    assert torch.equal(net(clip)[0].tensor, x)
    held = {id(p) for _, stage in net.stages() for p in stage.parameters()}
    assert held == {id(p) for p in net.parameters()}


def test_reductions_are_the_papers():
    appended = on_meta()
    appended.append_block(512)
    assert isinstance(appended.reduction, InceptionModule)
    assert appended.reduction.b1b.conv3d.weight.shape == (192, 96, 3, 3, 3)
    assert appended.reduction.b2a.conv3d.weight.shape == (24, 1024, 1, 1, 1)
    assert appended.mixed5.c.b0.conv3d.weight.shape == (384, 832, 1, 1, 1)
    replaced = on_meta()
    replaced.replace_last_block(512)
    assert replaced.mixed5.c.b0.conv3d.weight.shape == (192, 832, 1, 1, 1)
    assert replaced.mixed5.c.b3b.conv3d.weight.shape == (64, 832, 1, 1, 1)
    for net, module in ((appended, appended.reduction), (replaced, replaced.mixed5.c)):
        assert net.channels == (512,)
        (feature,) = net.to("meta").eval()(torch.empty(1, 3, 64, 224, 224, device="meta"))
        assert feature.tensor.shape == (1, 512, 8, 7, 7)
        under = [p for name, p in net.named_parameters() if name.startswith(net.reduced)]
        assert list(map(id, under)) == list(map(id, module.parameters()))


@pytest.mark.parametrize("channels", [4, 5, 17, 64, 300, 512, 1024])
def test_narrowing_branches_give_exactly_the_asked_width(channels):
    assert outputs_of(narrowing_branches(channels)) == channels
    assert min(narrowing_branches(channels)) >= 1


def test_narrowing_branches_of_the_papers_width_and_a_hopeless_one():
    assert narrowing_branches(512) == (192, 96, 192, 24, 64, 64)
    with pytest.raises(SettingsError, match="3 channels is too narrow; set `reduced_channels` to 4 or more"):
        narrowing_branches(3)


def test_gradient_checkpointing_changes_neither_gradients_nor_statistics():
    results = []
    for on in (False, True):
        torch.manual_seed(0)
        net = InceptionI3D(TINY, "flow").train()
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
def test_a_training_step_moves_every_parameter(reduction):
    torch.manual_seed(0)
    options = ModelOptions(
        backbone=TINY,
        head=BertHead(normalize=True, heads=4, keep=1.0),
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


def test_weights_start_with_the_variance_of_he():
    torch.manual_seed(0)
    unit = Unit(8, 64, 3)
    init_convolutions(unit)
    assert unit.conv3d.weight.std().item() == pytest.approx((2 / (64 * 27)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("name", "reduction", "first", "last"),
    [
        ("late_temporal I3D", "frab", "features.0.conv3d.weight", "features.15.b3b.bn.bias"),
        ("late_temporal I3D", "frmb", "features.0.conv3d.weight", "features.15.b3b.bn.bias"),
        ("I3D (pytorch-i3d)", "none", "Conv3d_1a_7x7.conv3d.weight", "Mixed_5c.b3b.bn.bias"),
    ],
)
def test_published_names_lead_both_ways(name, reduction, first, last):
    head = AverageHead() if reduction == "none" else BertHead(normalize=True)
    with torch.device("meta"):
        model = Recognizer(ModelOptions(backbone=I3d(), head=head, reduction=reduction), 5)
    ours = model.state_dict()
    layout = next(layout for layout in LAYOUTS if layout.name.startswith(name))
    theirs = {key: layout.invert(key) for key in ours}
    assert all(len(names) == 1 for names in theirs.values())
    state = {names[0]: ours[key] for key, names in theirs.items()}
    assert len(state) == len(ours)
    assert recognise_layout(state) is layout
    assert [layout.translate(key) for key in state] == list(ours)
    assert first in state
    assert last in state
    assert ("mapper.b0.conv3d.weight" in state) == (reduction == "frab")
    assert ("logits.conv3d.bias" in state) == (reduction == "none")
