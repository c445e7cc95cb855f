"""Let parts of a converted graph that only move values work on bytes.

torch turns values to float and back around every part it does not know: paddings, pooling and channel shuffle of ours.
What moves, picks or averages values gives the same on bytes, in the scale of its input.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from two_stream.backbones.densenet3d import HalvingPool
from two_stream.backbones.i3d import SameMaxPool3d
from two_stream.backbones.shufflenet_3d import shuffled

MODULES: tuple[type[nn.Module], ...] = (SameMaxPool3d, HalvingPool)
"""modules that do; not paddings, which torch has for bytes in some layouts only"""
FUNCTIONS: tuple[Any, ...] = (shuffled, torch.relu)


def moved_in_bytes(graph: fx.GraphModule) -> fx.GraphModule:
    """Return a converted graph without the way to float and back around parts that only move values."""
    for node in list(graph.graph.nodes):
        sources = [arg for arg in node.all_input_nodes if arg.target == "dequantize"]
        if not (sources and _moves(graph, node)):
            continue
        outputs = list(node.users) if node.target == "chunk" else [node]
        rounded = {out: [user for user in out.users if _rounds(user)] for out in outputs}
        if not any(rounded.values()):
            continue
        for source in sources:
            node.replace_input_with(source, source.all_input_nodes[0])
        for out, users in rounded.items():
            _give_floats(graph.graph, out, users)
            for user in users:
                user.replace_all_uses_with(out)
                graph.graph.erase_node(user)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _moves(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), MODULES)
    if node.op == "call_method":
        return node.target == "chunk"
    slices = node.target is operator.getitem and isinstance(node.args[1], tuple)
    return node.op == "call_function" and (node.target in FUNCTIONS or slices)


def _rounds(node: fx.Node) -> bool:
    """Whether a node brings floats to bytes in a scale of no importance: what is joined must share one."""
    joined = any(user.target is torch.cat for user in node.users)
    return node.target is torch.quantize_per_tensor and not joined


def _give_floats(graph: fx.Graph, node: fx.Node, rounded: list[fx.Node]) -> None:
    """Turn the bytes to float for those who took the floats; who asks for the shape gets it from the bytes."""
    others = [user for user in node.users if user not in rounded and user.target is not getattr]
    if not others:
        return
    with graph.inserting_after(node):
        floats = graph.call_method("dequantize", (node,))
    for user in others:
        user.replace_input_with(node, floats)
