"""Operations that ONNX has no word for, said in others."""

from __future__ import annotations

from typing import Any

import torch


def adaptive_average(x_BCTHW: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Adaptive average pooling, one dimension after another: the mean of each of its windows.

    Window i of n over a length L goes from ⌊iL/n⌋ to ⌈(i+1)L/n⌉, as in torch.
    """
    for axis, count in zip((2, 3, 4), sizes, strict=True):
        length = x_BCTHW.shape[axis]
        if length == count:
            continue
        bounds = [(place * length // count, -(-(place + 1) * length // count)) for place in range(count)]
        parts = [x_BCTHW.narrow(axis, begin, end - begin).mean(axis) for begin, end in bounds]
        x_BCTHW = torch.stack(parts, dim=axis)
    return x_BCTHW


_TABLE: dict[Any, Any] = {torch.ops.aten._adaptive_avg_pool3d.default: adaptive_average}


def decomposed(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return a graph without the operations that ONNX lacks; the same graph where it has none of them."""
    used = {node.target for node in program.graph.nodes if node.op == "call_function"}
    if not used & (_TABLE.keys() | {torch.ops.aten.adaptive_avg_pool3d.default}):
        return program
    made: torch.export.ExportedProgram = program.run_decompositions(
        {**torch.export.default_decompositions(), **_TABLE}
    )
    return made
