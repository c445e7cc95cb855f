"""ONNX in 8 bits: ONNX Runtime's static quantisation (QDQ), its ranges found on clips of the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from two_stream.errors import ExportError
from two_stream.export.graph import quiet, reason
from two_stream.export.onnx_format import needed

OPERATIONS = ("Conv", "Gemm", "MatMul")
"""What is computed in 8 bits; all else stays fp32."""
_JOINED = ("Relu", "Clip")
"""Activations that become part of the rounding behind a convolution: its range is then what they let through."""


@dataclass(frozen=True)
class Int8Options:
    """How ranges are found and what is left in fp32."""

    clips: int = 32
    """clips that the ranges of activations are found on"""
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    """minmax: the whole range; entropy and percentile cut off what is rare"""
    keep_first: bool = False
    """leave the first convolution in fp32"""
    keep_last: bool = True
    """leave the classifier in fp32"""


def quantized(source: Path, target: Path, clips: torch.Tensor, options: Int8Options) -> None:
    """Write an fp32 ONNX file anew with 8-bit weights (per output channel) and activations (per tensor).

    Args:
        source: The fp32 file.
        target: The file to write.
        clips: uint8 `(N, C, T, H, W)`.
        options: Ranges and exceptions.

    Raises:
        ExportError: ONNX Runtime cannot; gives its reason.
    """
    tools: Any = needed("onnxruntime.quantization")
    methods = tools.CalibrationMethod
    method = {"minmax": methods.MinMax, "entropy": methods.Entropy, "percentile": methods.Percentile}
    prepared = source.with_name("prepared.onnx")
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it advises on the root logger
    try:
        with quiet():
            needed("onnxruntime.quantization.shape_inference").quant_pre_process(
                str(source), str(prepared), skip_symbolic_shape=True
            )
            tools.quantize_static(
                str(prepared),
                str(target),
                _reader(tools, clips),
                quant_format=tools.QuantFormat.QDQ,
                op_types_to_quantize=[*OPERATIONS, *_JOINED],
                per_channel=True,
                weight_type=tools.QuantType.QInt8,
                activation_type=tools.QuantType.QUInt8,
                nodes_to_exclude=_kept(prepared, options),
                calibrate_method=method[options.method],
            )
    except Exception as error:  # its errors are of many classes
        raise ExportError(f"ONNX Runtime cannot write this network in int8: {reason(error)}") from error
    finally:
        logging.getLogger().setLevel(level)


def _reader(tools: Any, clips: torch.Tensor) -> Any:
    class Clips(tools.CalibrationDataReader):  # type: ignore[misc]
        """One clip at a time; ranges do not depend on the batch."""

        def __init__(self) -> None:
            self._rest: Iterator[torch.Tensor] = iter(torch.split(clips, 1))

        def get_next(self) -> dict[str, Any] | None:
            """Return the next clip by the name of the input."""
            clip = next(self._rest, None)
            return None if clip is None else {"clip": clip.numpy()}

    return Clips()


def _kept(path: Path, options: Int8Options) -> list[str]:
    """Return the names of the nodes that stay in fp32."""
    nodes = [node for node in needed("onnx").load(str(path)).graph.node if node.op_type in OPERATIONS]
    kept = [nodes[0].name] if options.keep_first else []
    return [*kept, nodes[-1].name] if options.keep_last else kept
