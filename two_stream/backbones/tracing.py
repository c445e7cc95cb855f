"""A backbone's forward pass as a graph of modules and functions (torch.fx), for code that rewrites networks.

A module whose code depends on the input size (SAME padding, odd lengths, channel shuffle, cells of a grid) is a single
node, which the code that rewrites the graph must handle.
"""

from __future__ import annotations

from torch import fx, nn

from two_stream.backbones.base import Backbone
from two_stream.backbones.densenet3d import HalvingPool
from two_stream.backbones.i3d import SameConv3d, SameMaxPool3d, SamePad3d
from two_stream.backbones.motion_grid import CellMeans
from two_stream.errors import SettingsError

LEAVES: tuple[type[nn.Module], ...] = (SameConv3d, SamePad3d, SameMaxPool3d, HalvingPool, CellMeans)
"""Modules of this package that are one node, like those of torch and the functions that `shufflenet_3d` wraps."""


class BackboneTracer(fx.Tracer):
    """Traces modules of this package; modules of torch, `LEAVES` and `leaves` are single nodes."""

    def __init__(self, leaves: tuple[type[nn.Module], ...] = ()) -> None:
        super().__init__()
        self.leaves = LEAVES + leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is a single node."""
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)


def traced(backbone: Backbone, leaves: tuple[type[nn.Module], ...] = ()) -> fx.GraphModule:
    """Return a backbone's graph, which shares the backbone's weights and returns a list of feature tensors.

    Args:
        backbone: Of this package, not of another library.
        leaves: Additional modules that are one node.

    Raises:
        SettingsError: Its control flow depends on values (library networks, attention), so it has no single graph.
    """
    try:
        graph = BackboneTracer(leaves).trace(backbone)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SettingsError(
            f"backbone {backbone.options.kind} cannot be written as a graph of layers ({reason})"
        ) from None
    _plain_output(graph)
    return fx.GraphModule(backbone, graph)


def _plain_output(graph: fx.Graph) -> None:
    """Make the graph return tensors, because a graph cannot return `FeatureMap`."""
    output = graph.output_node()
    maps = [node for node in output.args[0] if isinstance(node, fx.Node)]  # type: ignore[union-attr]
    output.args = ([node.kwargs["tensor"] for node in maps],)
    for node in maps:
        graph.erase_node(node)
