"""bfloat16 on a CPU: gradients of convolutions over maps shorter than their kernel."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from two_stream.training.step import ShortConv3d, protect_short_maps

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("kernel", "size", "more"),
    [
        ((3, 3, 3), (2, 14, 14), {}),
        ((3, 3, 3), (2, 7, 7), {"groups": 4}),
        ((3, 1, 1), (2, 14, 14), {}),
        ((5, 5, 5), (4, 14, 14), {}),
        ((7, 7, 7), (8, 2, 2), {}),
        ((1, 3, 3), (8, 1, 1), {"stride": 2}),
        ((3, 3, 3), (4, 14, 14), {}),
    ],
    ids=str,
)
def test_gradients_are_those_of_float32(
    kernel: tuple[int, int, int], size: tuple[int, int, int], more: dict[str, int]
) -> None:
    """Without the detour the first six are not finite, or wrong, in oneDNN's kernels for AVX-512 with bfloat16."""
    torch.manual_seed(0)
    exact = nn.Conv3d(64, 64, kernel, padding=tuple(k // 2 for k in kernel), bias=False, **more)
    exact.to(memory_format=torch.channels_last_3d)
    model = nn.Sequential(copy.deepcopy(exact))
    protect_short_maps(model, CPU, "bf16")
    assert list(model.state_dict()) == ["0.weight"]
    clips = torch.randn(1, 64, *size).to(memory_format=torch.channels_last_3d)
    wanted, fed = exact(clips), None
    fed = torch.randn_like(wanted)
    wanted.backward(fed)
    for _ in range(4):
        litter = [
            torch.full((1 << 18,), float("nan")) for _ in range(8)
        ]  # what a kernel finds beside its buffers
        del litter
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            found = model(clips)
        assert found.dtype == torch.bfloat16
        found.backward(fed.bfloat16())
        gradient = model[0].weight.grad
        assert float((gradient - exact.weight.grad).abs().max() / exact.weight.grad.abs().max()) < 2e-2


def test_only_training_in_bfloat16_on_a_cpu_is_touched() -> None:
    for device, precision in (("cpu", "fp32"), ("cuda", "bf16"), ("cpu", "fp16")):
        model = nn.Sequential(nn.Conv3d(2, 2, 3))
        protect_short_maps(model, torch.device(device), precision)
        assert type(model[0]) is nn.Conv3d
    model = nn.Sequential(nn.Conv3d(64, 64, 3, padding=1))
    protect_short_maps(model, CPU, "bf16")
    assert type(model[0]) is ShortConv3d
    clips = torch.randn(1, 64, 2, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = nn.Conv3d.forward(model[0], clips)
        assert torch.equal(model(clips), plain), "scoring stays as it is"
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied[0].weight.zero_()
    assert float(copied(clips).detach().std()) < 0.1 < float(model(clips).detach().std())
