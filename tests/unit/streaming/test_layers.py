"""Layers on a stream against torch's over the whole clip, and against the continual-inference library's steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from two_stream.streaming.network.cells import Reach, WindowCell
from two_stream.streaming.network.layers import CellChoice, make_cell

CHOICE = CellChoice("frame", "zeros", 4)
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3, "padding": 1},
    "no padding": {"kernel_size": (3, 1, 1)},
    "more padding than half": {"kernel_size": 3, "padding": (2, 1, 1)},
    "long": {"kernel_size": (7, 3, 3), "padding": (3, 1, 1), "stride": (1, 2, 2)},
    "stride": {"kernel_size": 3, "padding": 1, "stride": 2},
    "stride beyond the kernel": {"kernel_size": 1, "stride": (4, 2, 2)},
    "stride 3": {"kernel_size": (2, 1, 1), "stride": (3, 1, 1)},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 4},
    "dilation": {"kernel_size": 3, "padding": (4, 1, 1), "dilation": (4, 1, 1)},
}
POOLS: dict[str, nn.Module] = {
    "max": nn.MaxPool3d(3, stride=(2, 2, 2), padding=1),
    "max every step": nn.MaxPool3d((3, 1, 1), stride=1, padding=(1, 0, 0)),
    "max dilated": nn.MaxPool3d((3, 1, 1), stride=(1, 1, 1), dilation=(2, 1, 1)),
    "max, last one short": nn.MaxPool3d((2, 1, 1), ceil_mode=True),
    "mean": nn.AvgPool3d((3, 2, 2), stride=(2, 2, 2), padding=(1, 0, 0)),
}


def streamed(cell: Any, x: torch.Tensor, chunk: int) -> torch.Tensor:
    parts = x.split(chunk, 2)
    found = [cell.push([part], place == len(parts) - 1) for place, part in enumerate(parts)]
    return torch.cat([part for part in found if part is not None], 2)


def cell_of(part: nn.Module, choice: CellChoice = CHOICE) -> WindowCell:
    cell = make_cell("layer", part.eval(), choice, 1, False)
    assert isinstance(cell, WindowCell)
    return cell


@pytest.mark.parametrize("chunk", [1, 5, 23])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_equals_torch(name: str, chunk: int) -> None:
    torch.manual_seed(0)
    part = nn.Conv3d(4, 8, **CONVOLUTIONS[name])
    x = torch.randn(2, 4, 23, 6, 6)
    with torch.inference_mode():
        torch.testing.assert_close(streamed(cell_of(part), x, chunk), part(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [1, 5, 23])
@pytest.mark.parametrize("name", POOLS)
def test_pooling_equals_torch(name: str, chunk: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 23, 6, 6) - 3  # below zero: padding with zeros would show
    torch.testing.assert_close(streamed(cell_of(POOLS[name]), x, chunk), POOLS[name](x))


@pytest.mark.parametrize("start", ["zeros", "replicate"])
@pytest.mark.parametrize("name", ["plain", "no padding", "long", "groups"])
def test_convolution_equals_the_library(name: str, start: Any) -> None:
    co = pytest.importorskip("continual", reason="continual-inference is not installed")
    torch.manual_seed(0)
    part = nn.Conv3d(4, 8, **CONVOLUTIONS[name])
    theirs = co.Conv3d.build_from(part, temporal_fill=start)
    cell = cell_of(part, CellChoice("frame", start, 4))
    x = torch.randn(2, 4, 23, 6, 6)
    with torch.inference_mode():
        for number in range(23):
            wanted = theirs.forward_step(x[:, :, number])
            found = cell.push([x[:, :, number : number + 1]], False)
            assert (found is None) == (not isinstance(wanted, torch.Tensor))
            if found is not None:
                torch.testing.assert_close(found[:, :, 0], wanted, atol=1e-5, rtol=0)
    assert cell.reach([Reach()]).receptive_field == theirs.receptive_field
    assert cell.reach([Reach()]).after == theirs.delay


def test_pooling_equals_the_library() -> None:
    co = pytest.importorskip("continual", reason="continual-inference is not installed")
    torch.manual_seed(0)
    part = nn.AvgPool3d((4, 2, 2), stride=(1, 2, 2))
    theirs = co.AvgPool3d((4, 2, 2), stride=(1, 2, 2))
    cell, x = cell_of(part), torch.randn(2, 4, 23, 6, 6)
    for number in range(23):
        wanted, found = theirs.forward_step(x[:, :, number]), cell.push([x[:, :, number : number + 1]], False)
        assert (found is None) == (not isinstance(wanted, torch.Tensor))
        if found is not None:
            torch.testing.assert_close(found[:, :, 0], wanted)
