"""A backbone's forward pass as a graph of modules and functions (torch.fx), for code that rewrites networks.

Parts whose code asks for the size of what comes in (SAME padding, odd lengths, channel shuffle, cells of a grid) stay
whole: they are one node, and who rewrites the graph must know them.
"""

from __future__ import annotations

from torch import fx, nn

from two_stream.backbones.base import Backbone
from two_stream.backbones.densenet3d import HalvingPool
from two_stream.backbones.i3d import SameConv3d, SameMaxPool3d, SamePad3d
from two_stream.backbones.motion_grid import CellMeans
from two_stream.errors import SettingsError

WHOLE: tuple[type[nn.Module], ...] = (SameConv3d, SamePad3d, SameMaxPool3d, HalvingPool, CellMeans)
"""Modules of ours that are one node; beside them torch's own, and the functions that `shufflenet_3d` wraps."""


class BackboneTracer(fx.Tracer):
    """Steps into our modules down to torch's own, those of `WHOLE` and those of `leaves`."""

    def __init__(self, leaves: tuple[type[nn.Module], ...] = ()) -> None:
        super().__init__()
        self.leaves = WHOLE + leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node."""
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)


def traced(backbone: Backbone, leaves: tuple[type[nn.Module], ...] = ()) -> fx.GraphModule:
    """Return a backbone's graph; weights are shared with it. Its output is a list of `FeatureMap`'s tensors.

    Args:
        backbone: Of any family of ours.
        leaves: Modules that stay whole beside those of `WHOLE`.

    Raises:
        SettingsError: Its code depends on the values that pass (library networks, attention), so it has no one graph.
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
    """Let the graph return tensors: it cannot hold `FeatureMap`."""
    output = graph.output_node()
    maps = [node for node in output.args[0] if isinstance(node, fx.Node)]  # type: ignore[union-attr]
    output.args = ([node.kwargs["tensor"] for node in maps],)
    for node in maps:
        graph.erase_node(node)
