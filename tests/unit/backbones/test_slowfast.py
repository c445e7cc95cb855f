"""SlowFast: which frames each pathway sees, rates, joining, reductions."""

import pytest
import torch

from two_stream.backbones.blocks import Bottleneck
from two_stream.backbones.slowfast import FactoredBottleneck, SlowFast3D
from two_stream.config.backbones import SlowFast

TINY = {"width": 0.125}


def network(modality="rgb", **options) -> SlowFast3D:
    torch.manual_seed(0)
    return SlowFast3D(SlowFast(**(TINY | options)), modality).eval()


def clip(frames, channels=3, side=32):
    return torch.randn(1, channels, frames, side, side, generator=torch.Generator().manual_seed(1))


def test_pathways_see_every_second_and_every_eighth_frame():
    net, x = network(), clip(64)
    seen = {}
    for name in ("slow", "fast"):
        conv = net.stem.get_submodule(name)[0]
        conv.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
    net(x)
    assert torch.equal(seen["fast"], x[:, :, 0::2])
    assert torch.equal(seen["slow"], x[:, :, 0::8])


@pytest.mark.parametrize("frames", [1, 7, 16, 33])
@pytest.mark.parametrize("fusion", ["late", "early"])
@pytest.mark.parametrize("rates", [(2, 4), (1, 8), (1, 2)])
def test_declared_tokens_and_channels_are_those_of_the_maps(frames, fusion, rates):
    net = network("flow", fusion=fusion, fast_stride=rates[0], alpha=rates[1])
    maps = net(clip(frames, channels=2))
    assert [m.pathway for m in maps] == list(net.pathways)
    assert tuple(m.tensor.shape[1] for m in maps) == net.channels
    assert tuple(m.tensor.shape[2] for m in maps) == net.num_tokens(frames)


def test_early_fusion_averages_the_fast_frames_of_each_slow_one():
    late, early = network(), network(fusion="early")
    early.load_state_dict(late.state_dict())
    x = clip(32)
    slow, fast = (m.tensor for m in late(x))
    assert fast.shape[2] == 4 * slow.shape[2]
    averaged = fast.unflatten(2, (-1, 4)).mean(3)
    torch.testing.assert_close(early(x)[0].tensor, torch.cat((slow, averaged), dim=1))


def test_the_fast_pathway_feeds_the_slow_one_and_never_the_other_way():
    net, x = network(), clip(32)
    slow, fast = (m.tensor for m in net(x))
    moved = x.clone()
    moved[:, :, 2] += 1  # a frame of the fast pathway only
    slow_moved, fast_moved = (m.tensor for m in net(moved))
    assert not torch.equal(slow, slow_moved)
    assert not torch.equal(fast, fast_moved)
    for parameter in net.stem.slow.parameters():
        parameter.data.add_(1.0)
    assert torch.equal(net(x)[1].tensor, fast)


@pytest.mark.parametrize(("fusion", "widths"), [("late", (512, 256)), ("early", (640,))])
@pytest.mark.parametrize("how", ["append_block", "replace_last_block"])
def test_reductions_are_the_papers(fusion, widths, how):
    with torch.device("meta"):
        net = SlowFast3D(SlowFast(fusion=fusion), "rgb")
        getattr(net, how)(512)
        maps = net(torch.empty(1, 3, 64, 64, 64))
    assert net.channels == widths == tuple(m.tensor.shape[1] for m in maps)
    last = net.get_submodule("reduction" if how == "append_block" else "layer4")
    blocks = [last.slow, last.fast] if how == "append_block" else [last.slow[-1], last.fast[-1]]
    assert isinstance(blocks[0], Bottleneck)
    assert blocks[0].conv2.weight.shape == (256, 256, 3, 3, 3)
    assert isinstance(blocks[1], Bottleneck) == (fusion == "early")
    names = {name for name, _ in net.named_parameters()}
    assert all(any(name.startswith(prefix) for name in names) for prefix in net.reduced)


def test_published_size():
    with torch.device("meta"):
        net = SlowFast3D(SlowFast(), "rgb")
    assert sum(p.numel() for p in net.parameters()) == 33_762_043 - 2305 * 51
    assert net.layer3.slow[0].conv1.kernel_size == (3, 1, 1)
    assert net.layer2.slow[0].conv1.kernel_size == (1, 1, 1)
    assert isinstance(net.layer4.fast[2], FactoredBottleneck)


def test_checkpointing_changes_no_gradient():
    x = clip(16)
    gradients = []
    for on in (False, True):
        net = network().train()
        net.gradient_checkpointing = on
        sum(m.tensor.square().mean() for m in net(x)).backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
        assert all(g.isfinite().all() for g in gradients[-1])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)
