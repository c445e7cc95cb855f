"""The graph of a network: operations said in others, and reasons in one line."""

import pytest
import torch

from two_stream.errors import ExportError
from two_stream.export.archives import Pt2
from two_stream.export.graph import Exportable, capture_graph
from two_stream.export.onnx_format import adaptive_average


@pytest.mark.parametrize("sizes", [(8, 7, 5), (4, 7, 5), (3, 7, 5), (1, 1, 1), (5, 2, 3)])
def test_adaptive_average_pooling_is_torchs(sizes):
    x = torch.randn(2, 3, 8, 7, 5, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.adaptive_avg_pool3d(x, sizes)
    torch.testing.assert_close(adaptive_average(x, list(sizes)), wanted, rtol=1e-5, atol=1e-6)


class _LooksAtValues(torch.nn.Module):
    def forward(self, x):
        return x.float() if x.sum() > 0 else -x.float()


def test_a_network_that_looks_at_values_gives_torchs_reason_in_one_line():
    example = torch.ones(2, 3, dtype=torch.uint8)
    with pytest.raises(
        ExportError, match=r"torch\.export cannot capture this network as a graph: \S"
    ) as caught:
        capture_graph(Exportable(_LooksAtValues(), (example,), ("clip",), ("logits",)))
    assert "\n" not in str(caught.value)


class _LargestValues(torch.nn.Module):
    def forward(self, x):
        return x.float().topk(2).values


def test_an_operation_that_no_file_may_contain_is_named_before_anything_is_written(tmp_path):
    example = torch.ones(2, 3, dtype=torch.uint8)
    exportable = Exportable(_LargestValues(), (example,), ("clip",), ("logits",))
    with pytest.raises(ExportError, match=r"contain torch\.ops\.aten\.topk\.default, which is not allowed"):
        Pt2().write(capture_graph(exportable), exportable, tmp_path / "graph.pt2")
    assert not list(tmp_path.iterdir())
