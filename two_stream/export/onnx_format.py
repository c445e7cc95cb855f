"""ONNX files, which torch's exporter writes, and which ONNX Runtime quantizes and runs."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from two_stream.errors import CheckpointError, ExportError, SettingsError
from two_stream.export.card import BATCH, KEY, UNSEALED, ExportCard, Target, parse_card
from two_stream.export.graph import Exportable, Format, Session, error_line, operators, silence_torch
from two_stream.runtime.files import write_bytes

_INSTALL = 'pip install "two-stream[export]"'
_LIMIT = 2**31 - 2**20
"""Largest size of a protobuf message, bytes."""


class Onnx(Format):
    """A single `.onnx` file that contains the weights; the card is an entry of `metadata_props`."""

    to: ClassVar[Target] = "onnx"
    runtime: ClassVar[str] = "onnxruntime"

    def check(self) -> None:
        """See `Format.check`."""
        for name in ("onnx", "onnxscript", "onnxruntime"):
            import_extra(name)

    def write(self, program: torch.export.ExportedProgram, exportable: Exportable, path: Path) -> None:
        """See `Format.write`."""
        onnx = import_extra("onnx")
        model = to_onnx_model(program, exportable.input_names, exportable.output_names)
        strange = sorted({node.op_type for node in model.graph.node} - operators("onnx"))
        if strange:
            raise ExportError(
                f"an ONNX file of this network would contain {', '.join(strange)}, which is not allowed "
                "(operators_onnx.txt lists the allowed operators; see CONTRIBUTING.md for layers of your own); "
                "export to pt2 or aoti"
            )
        _name_batch(model)
        if model.ByteSize() > _LIMIT:
            raise ExportError(
                f"this network has {model.ByteSize() / 1e9:.1f} GB, but an ONNX file can contain at most 2 GB; "
                "export to pt2 or aoti"
            )
        onnx.save(model, str(path))

    def seal(self, path: Path, card: ExportCard) -> None:
        """See `Format.seal`."""
        onnx = import_extra("onnx")
        model = onnx.load(str(path))
        del model.metadata_props[:]
        text = card.model_copy(update={"content_sha256": UNSEALED}).model_dump_json()
        model.metadata_props.add(key=KEY, value=text)
        content = model.SerializeToString()
        digest = hashlib.sha256(content).hexdigest()
        write_bytes(path, content.replace(UNSEALED.encode(), digest.encode(), 1))

    def read_card(self, path: Path) -> ExportCard:
        """See `Format.read_card`."""
        onnx = import_extra("onnx")
        content = path.read_bytes()
        try:
            model = onnx.load_model_from_string(content)
        except Exception as error:  # protobuf's own DecodeError, of whichever implementation
            raise CheckpointError(f"{path}: damaged, or not an ONNX file ({error_line(error)})") from error
        text = {entry.key: entry.value for entry in model.metadata_props}.get(KEY)
        if text is None:
            raise CheckpointError(
                f"{path}: found an ONNX file without a Two-Stream card, expected a file written by "
                "`two-stream export`"
            )
        card = parse_card(text, path)
        _check(model, path)
        written = card.content_sha256
        unsealed = content.replace(written.encode(), UNSEALED.encode(), 1)
        if hashlib.sha256(unsealed).hexdigest() != written:
            raise CheckpointError(
                f"{path}: the file is damaged, because its SHA-256 differs from the SHA-256 on its "
                "card; export the run again"
            )
        return card

    def open(self, path: Path, card: ExportCard | None = None) -> Session:
        """See `Format.open`."""
        del card
        onnx, runtime = import_extra("onnx"), import_extra("onnxruntime")
        content = path.read_bytes()
        _check(onnx.load_model_from_string(content), path)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints before a second attempt
                session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            session.disable_fallback()
        except Exception as error:  # its exceptions share no base class
            raise CheckpointError(
                f"{path}: ONNX Runtime cannot load this file ({error_line(error)})"
            ) from error
        return _computing(session, path)


def to_onnx_model(
    program: torch.export.ExportedProgram, inputs: Sequence[str] = (), outputs: Sequence[str] = ()
) -> Any:
    """Convert a graph to an ONNX model with the given names of inputs and outputs.

    Raises:
        ExportError: ONNX does not support the graph; gives the exporter's reason.
    """
    try:
        # torch's exporter prints what it is doing
        with silence_torch(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            made = torch.onnx.export(
                decomposed(program),
                dynamo=True,
                input_names=list(inputs) or None,
                output_names=list(outputs) or None,
                verbose=False,
            )
        assert made is not None
        return made.model_proto
    except Exception as error:  # the exporter wraps whatever goes wrong in classes of its own
        raise ExportError(f"ONNX does not support this network: {error_line(error)}") from error


def import_extra(name: str) -> Any:
    """Import a package from the `export` extra.

    Raises:
        SettingsError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        raise SettingsError(f"ONNX requires the package {name}, which is not installed: {_INSTALL}") from None


def _check(model: Any, path: Path) -> None:
    """Raise an error if a file contains anything except weights and a single graph of allowed operators.

    Raises:
        CheckpointError: It contains a nested graph (a loop may never end), a function, weights in other files, or an
            operator that is not on the list; names it.
    """
    graph = model.graph
    found = None
    if model.functions:
        found = f"the function {model.functions[0].name[:80]!r}"
    elif graph.sparse_initializer:
        found = "sparse weights"
    elif any(tensor.external_data or tensor.data_location for tensor in graph.initializer):
        found = "weights in other files"
    for node in graph.node:
        if found is not None:
            break
        if node.domain not in ("", "ai.onnx") or node.op_type not in operators("onnx"):
            found = f"the operator {f'{node.domain}::' if node.domain else ''}{node.op_type}"[:120]
        for attribute in node.attribute:
            if (
                attribute.HasField("g")
                or attribute.graphs
                or attribute.HasField("sparse_tensor")
                or attribute.ref_attr_name
            ):
                found = f"a graph in {node.op_type[:80]}"
            elif attribute.t.external_data or any(tensor.external_data for tensor in attribute.tensors):
                found = "weights in other files"
    if found is not None:
        raise CheckpointError(
            f"{path}: not a valid exported file, because it contains {found}; export the run again"
        )


def _computing(session: Any, path: Path) -> Session:
    names = [port.name for port in session.get_inputs()]

    def compute(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        given = {name: value.contiguous().numpy() for name, value in zip(names, inputs, strict=True)}
        try:
            found = session.run(None, given)
        except Exception as error:  # its exceptions share no base class
            raise CheckpointError(
                f"{path}: ONNX Runtime cannot compute the graph in this file ({error_line(error)})"
            ) from error
        return tuple(map(torch.from_numpy, found))

    return compute


def _name_batch(model: Any) -> None:
    """Rename the batch dimension, because the exporter uses the name of torch's symbol."""
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == symbol:
                dim.dim_param = BATCH


def adaptive_average(x_BCTHW: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Compute adaptive average pooling as means of windows in each dimension, because ONNX has no such operator.

    As in torch, window i of n in a dimension of length L goes from ⌊iL/n⌋ to ⌈(i+1)L/n⌉.
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
    """Replace the operations that ONNX does not have; a graph without such operations is returned unchanged."""
    used = {node.target for node in program.graph.nodes if node.op == "call_function"}
    if not used & (_TABLE.keys() | {torch.ops.aten.adaptive_avg_pool3d.default}):
        return program
    table = {**torch.export.default_decompositions(), **_TABLE}
    return program.run_decompositions(table)  # type: ignore[no-any-return]


OPERATIONS = ("Conv", "Gemm", "MatMul")
"""Operators computed in 8 bits; all others stay in fp32."""
_JOINED = ("Relu", "Clip")
"""Activations merged into the rounding after a convolution, which limits its range."""


@dataclass(frozen=True)
class Int8Options:
    """Options for the calibration of activation ranges, and for the layers that stay in fp32."""

    clips: int = 32
    """number of calibration clips"""
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    """how ranges are calibrated; minmax: the full range; entropy, percentile: rare large values are clipped"""
    keep_first: bool = False
    """keep the first convolution in fp32"""
    keep_last: bool = True
    """keep the classifier in fp32"""


def quantize_onnx(source: Path, target: Path, clips: torch.Tensor, options: Int8Options) -> None:
    """Write an int8 copy of an fp32 ONNX file with static quantization (QDQ).

    Weights are quantized per channel, and activations per tensor.

    Args:
        source: The fp32 file.
        target: The file to write.
        clips: Calibration clips, uint8 `(N, C, T, H, W)`.
        options: Calibration, and layers left in fp32.

    Raises:
        ExportError: ONNX Runtime cannot quantize the network; gives its reason.
    """
    tools: Any = import_extra("onnxruntime.quantization")
    methods = tools.CalibrationMethod
    method = {"minmax": methods.MinMax, "entropy": methods.Entropy, "percentile": methods.Percentile}
    prepared = source.with_name("prepared.onnx")
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it logs advice to the root logger
    try:
        with silence_torch():
            import_extra("onnxruntime.quantization.shape_inference").quant_pre_process(
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
        raise ExportError(f"ONNX Runtime cannot write this network in int8: {error_line(error)}") from error
    finally:
        logging.getLogger().setLevel(level)


def _reader(tools: Any, clips: torch.Tensor) -> Any:
    class Clips(tools.CalibrationDataReader):  # type: ignore[misc]
        """Yields single clips, because the calibrated ranges do not depend on the batch size."""

        def __init__(self) -> None:
            self._rest: Iterator[torch.Tensor] = iter(torch.split(clips, 1))

        def get_next(self) -> dict[str, Any] | None:
            """Return the next clip as a dictionary from the input's name to its array; None after the last clip."""
            clip = next(self._rest, None)
            return None if clip is None else {"clip": clip.numpy()}

    return Clips()


def _kept(path: Path, options: Int8Options) -> list[str]:
    """Return the names of the nodes that stay in fp32."""
    nodes = [node for node in import_extra("onnx").load(str(path)).graph.node if node.op_type in OPERATIONS]
    kept = [nodes[0].name] if options.keep_first else []
    return [*kept, nodes[-1].name] if options.keep_last else kept
