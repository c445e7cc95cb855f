"""Runs `torch.export` files: reads the graph as data and interprets its operations.

`torch.export.load` is not used, because it trusts the file. That function generates Python code, imports modules named
in the file, unpickles objects and evaluates expressions. Files of this package require only operations from a fixed
list, with tensors, numbers and earlier results as arguments.
"""

from __future__ import annotations

import math
import operator
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from two_stream.errors import CheckpointError
from two_stream.export.card import BATCH, ExportCard
from two_stream.export.graph import error_line, operators

MEMBERS = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|models/model\.json|data/sample_inputs/model\.pt|archive_format|archive_version|byteorder"
    r"|\.data/(version|serialization_id)|extra/two_stream\.json"
)
"""Allowed members of a file below its root; the sample inputs, a pickle, are never opened."""
MOST_TEXT = 2**26
"""Largest JSON member, bytes."""
MOST_BYTES = 2**32
"""Largest value of the graph at batch 1, bytes."""
MOST_WORK = 2**38
"""Largest sum of all values, bytes."""
_LARGEST = 2**48
"""Largest size that arithmetic may return."""
_KINDS = {
    "Tensor": frozenset({"as_tensor", "as_int", "as_float"}),  # torch accepts a number as a tensor
    "List[Tensor]": frozenset({"as_tensors"}),
    "List[Optional[Tensor]]": frozenset({"as_tensors"}),
    # types, layouts and memory formats are numbers to torch's signatures
    "int": frozenset({"as_int", "as_sym_int", "as_scalar_type", "as_memory_format", "as_layout"}),
    "List[int]": frozenset({"as_ints", "as_sym_ints"}),
    "float": frozenset({"as_float", "as_int"}),
    "List[float]": frozenset({"as_floats"}),
    "bool": frozenset({"as_bool"}),
    "str": frozenset({"as_string"}),
    "number": frozenset({"as_int", "as_float", "as_bool", "as_sym_int"}),
    "Device": frozenset({"as_device"}),
}
"""Allowed kinds of an argument by its type in an operation's signature."""
_TYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
"""Types by their numbers in torch's files."""
_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_STRIDED = 7
_TABLES: dict[str, dict[int, Any]] = {
    "as_scalar_type": _TYPES,
    "as_memory_format": _FORMATS,
    "as_layout": {_STRIDED: torch.strided},
}


# The part of the schema of torch/_export/serde that exports use. Values of type `Any` are not used.

_INFINITE = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
_Number = Annotated[
    float, BeforeValidator(lambda value: _INFINITE.get(value, value) if isinstance(value, str) else value)
]


class _Strict(BaseModel):
    """A model that rejects unknown keys and values of other types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class _Named(_Strict):
    name: str


class _Symbol(_Strict):
    """A size, which is a number or the name of a computed number."""

    as_int: int | None = None
    as_name: str | None = None


class _Device(_Strict):
    type: str
    index: int | None


class _Value(_Strict):
    """An argument or a result; exactly one field is set."""

    as_tensor: _Named | None = None
    as_tensors: list[_Named] | None = None
    as_sym_int: _Symbol | None = None
    as_sym_ints: list[_Symbol] | None = None
    as_int: int | None = None
    as_ints: list[int] | None = None
    as_float: _Number | None = None
    as_floats: list[_Number] | None = None
    as_bool: bool | None = None
    as_none: bool | None = None
    as_string: str | None = None
    as_scalar_type: int | None = None
    as_memory_format: int | None = None
    as_layout: int | None = None
    as_device: _Device | None = None

    @property
    def kind(self) -> str:
        """The name of the only field that is set; empty if no field or several fields are set."""
        return next(iter(self.model_fields_set)) if len(self.model_fields_set) == 1 else ""


class _Input(_Strict):
    name: str
    arg: _Value
    kind: int | None = None


class _ProgramNode(_Strict):
    target: str
    inputs: list[_Input]
    outputs: list[_Value]
    metadata: dict[str, str]
    is_hop_single_tensor_return: bool | None = None
    name: str | None = None


class _Graph(_Strict):
    inputs: list[_Value]
    outputs: list[_Value]
    nodes: list[_ProgramNode]
    tensor_values: Any
    sym_int_values: Any
    sym_bool_values: Any
    is_single_tensor_return: bool
    custom_obj_values: dict[str, Any]
    sym_float_values: Any = None


class _Parameter(_Strict):
    arg: _Named
    parameter_name: str


class _Buffer(_Strict):
    arg: _Named
    buffer_name: str
    persistent: bool | None = None


class _ConstantValue(_Strict):
    arg: _Named
    tensor_constant_name: str


class _User(_Strict):
    arg: _Value


class _Spec(_Strict):
    """An input or output of the graph; exactly one field is set."""

    parameter: _Parameter | None = None
    buffer: _Buffer | None = None
    tensor_constant: _ConstantValue | None = None
    user_input: _User | None = None
    user_output: _User | None = None


class _Signature(_Strict):
    input_specs: list[_Spec]
    output_specs: list[_Spec]


class _Module(_Strict):
    graph: _Graph
    signature: _Signature
    module_call_graph: Any
    metadata: Any
    treespec_namedtuple_fields: Any = None


class _Model(_Strict):
    """The content of `models/model.json`; fields of type `Any` are not used."""

    graph_module: _Module
    opset_version: Any
    range_constraints: Any
    schema_version: Any
    verifiers: Any = None
    torch_version: Any = None
    guards_code: Any = None


class _TensorMeta(_Strict):
    dtype: int
    sizes: list[_Symbol]
    requires_grad: bool
    device: _Device
    strides: list[_Symbol]
    storage_offset: _Symbol
    layout: int


class _Stored(_Strict):
    path_name: str
    is_param: bool
    use_pickle: bool
    tensor_meta: _TensorMeta


class _Config(_Strict):
    config: dict[str, _Stored]


T = TypeVar("T", bound=BaseModel)
Values = dict[Any, Any]
"""Values by name, and the device under `_DEVICE`."""
Getter = Callable[[Values], Any]
_DEVICE = object()


@dataclass(frozen=True)
class _Step:
    compute: Callable[..., Any]
    arguments: dict[str, Getter]
    results: list[str | list[str]]
    done: list[str]
    """names of the values that no later step needs"""


class Program:
    """The graph of a file, which is computed on the CPU."""

    def __init__(self, path: Path, card: ExportCard | None = None) -> None:
        """Read a file, and compare the shapes in its graph with its card.

        Args:
            path: A file of torch's archive format; nothing in it is executed.
            card: Its card; None while writing.

        Raises:
            CheckpointError: It contains something that no exported file does, or its graph does not match its card.
        """
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                root = self._check_members(archive)
                model = self._parse(archive, f"{root}/models/model.json", _Model)
                self._values = {
                    **self._tensors(archive, root, "weights", "weight_"),
                    **self._tensors(archive, root, "constants", "tensor_"),
                }
        except (zipfile.BadZipFile, EOFError, NotImplementedError, KeyError) as error:
            raise CheckpointError(f"{path}: the file is damaged ({error}); export the run again") from None
        module = model.graph_module
        self._stored, self._inputs = self._bind(module)
        self._outputs = [self._tensor_name(value) for value in module.graph.outputs]
        self._steps = list(self._compile(module.graph))
        self._check_sizes(card)

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the outputs from the inputs, in the order of the card.

        Raises:
            CheckpointError: An operation fails on its arguments.
        """
        try:
            return self._run(inputs, torch.device("cpu"), self._stored, lambda _: None)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{self.path}: the graph in this file cannot be computed ({error_line(error)})"
            ) from error

    def _odd(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: not a valid exported file: {what}; export the run again")

    def _check_members(self, archive: zipfile.ZipFile) -> str:
        infos = archive.infolist()
        root = infos[0].filename.split("/", 1)[0] if infos else ""
        seen: set[str] = set()
        for info in infos:
            begin, _, name = info.filename.partition("/")
            if begin != root or not MEMBERS.fullmatch(name):
                raise self._odd(f"the member {info.filename[:80]!r} is not allowed")
            if info.filename.casefold() in seen:
                raise self._odd(f"the member {name!r} occurs twice")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise self._odd(f"the member {name!r} is compressed")
            seen.add(info.filename.casefold())
        if sum(info.file_size for info in infos) > self.path.stat().st_size:
            raise self._odd("members overlap")
        if archive.read(f"{root}/byteorder") != b"little":
            raise self._odd("expected numbers in little-endian byte order")
        return root

    def _parse(self, archive: zipfile.ZipFile, name: str, form: type[T]) -> T:
        if archive.getinfo(name).file_size > MOST_TEXT:
            raise self._odd(f"{name} is larger than {MOST_TEXT >> 20} MB")
        try:
            return form.model_validate_json(archive.read(name))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))[:120]
            raise self._odd(
                f"the graph in {name.split('/', 1)[1]} is invalid at `{where}` ({first['msg'][:80]})"
            ) from None

    def _tensors(
        self, archive: zipfile.ZipFile, root: str, folder: str, prefix: str
    ) -> dict[str, torch.Tensor]:
        """Read the stored tensors."""
        config = self._parse(archive, f"{root}/data/{folder}/model_{folder}_config.json", _Config).config
        found: dict[str, torch.Tensor] = {}
        read: dict[str, bytearray] = {}
        for name, stored in config.items():
            meta, file = stored.tensor_meta, stored.path_name
            sizes, strides = ([one.as_int for one in many] for many in (meta.sizes, meta.strides))
            if stored.use_pickle or not re.fullmatch(rf"{prefix}\d+", file):
                raise self._odd(f"the tensor {name[:80]!r} is stored as a pickle")
            if (
                meta.dtype not in _TYPES
                or None in sizes
                or meta.layout != _STRIDED
                or meta.storage_offset.as_int != 0
            ):
                raise self._odd(f"the tensor {name[:80]!r} has an unsupported type or layout")
            numbers = read.setdefault(file, bytearray(archive.read(f"{root}/data/{folder}/{file}")))
            shape, kind = [int(size or 0) for size in sizes], _TYPES[meta.dtype]
            count = math.prod(shape)
            dense = torch.empty(shape, device="meta").stride() if min(shape, default=1) > 0 else None
            if len(numbers) != count * kind.itemsize or (
                dense is not None and tuple(strides) != dense and count > 1
            ):
                raise self._odd(
                    f"the {len(numbers)} bytes of tensor {name[:80]!r} do not match its shape {shape[:8]}"
                )
            flat = torch.frombuffer(numbers, dtype=kind) if count else torch.empty(0, dtype=kind)
            found[name] = flat.reshape(shape)
        return found

    def _bind(self, module: _Module) -> tuple[Values, list[str]]:
        """Return the stored tensors by their names in the graph, and the names of the inputs."""
        stored: Values = {}
        inputs: list[str] = []
        for spec in module.signature.input_specs:
            if len(spec.model_fields_set) != 1 or spec.user_output is not None:
                raise self._odd("an input of the graph has an unknown type")
            if spec.user_input is not None:
                inputs.append(self._tensor_name(spec.user_input.arg))
                continue
            given = spec.parameter or spec.buffer or spec.tensor_constant
            assert given is not None
            source = next(value for key, value in given if key.endswith("_name"))
            if source not in self._values:
                raise self._odd(
                    f"the tensor {source[:80]!r} is used in the graph, but is not stored in the file"
                )
            stored[given.arg.name] = self._values[source]
        if [*stored, *inputs] != [self._tensor_name(value) for value in module.graph.inputs]:
            raise self._odd("the inputs of the graph are not in the order of its signature")
        return stored, inputs

    def _tensor_name(self, value: _Value) -> str:
        if value.kind != "as_tensor" or value.as_tensor is None:
            raise self._odd(f"expected a tensor as input or output, found {value.kind or 'several kinds'}")
        return value.as_tensor.name

    def _compile(self, graph: _Graph) -> Iterator[_Step]:
        known = {*self._stored, *self._inputs}
        if len(known) != len(self._stored) + len(self._inputs):
            raise self._odd("two inputs have the same name")
        last = {name: place for place, node in enumerate(graph.nodes) for name in _read_by(node)}
        for place, node in enumerate(graph.nodes):
            if node.target not in operators("pt2"):
                raise self._odd(f"the operation {node.target[:80]!r} is not allowed")
            compute, allowed = _operation(node.target)
            arguments: dict[str, Getter] = {}
            for given in node.inputs:
                if given.arg.kind not in allowed.get(given.name, ()) or given.name in arguments:
                    raise self._odd(
                        f"the argument {given.name[:40]!r} of {node.target} has a type that is not allowed "
                        f"({given.arg.kind or 'several'})"
                    )
                arguments[given.name] = self._getter(given.arg)
            unknown = next((name for name in _read_by(node) if name not in known), None)
            if unknown is not None:
                raise self._odd(f"the value {unknown[:80]!r} is used before it is computed")
            results = [self._result(value) for value in node.outputs]
            made = [name for one in results for name in ([one] if isinstance(one, str) else one)]
            if len({*made}) != len(made) or known & {*made}:
                raise self._odd(f"two values have the same name ({', '.join(made)[:80]})")
            known |= {*made}
            kept = {*self._stored, *self._outputs}
            done = [
                name
                for name in (*_read_by(node), *made)
                if last.get(name, place) == place and name not in kept
            ]
            yield _Step(compute, arguments, results, list(dict.fromkeys(done)))
        lacking = next((name for name in self._outputs if name not in known), None)
        if lacking is not None:
            raise self._odd(f"the output {lacking[:80]!r} is not computed by any operation")

    def _getter(self, value: _Value) -> Getter:
        kind, given = value.kind, getattr(value, value.kind)
        if kind == "as_none":
            return lambda _: None
        if given is None:
            raise self._odd(f"the value of {kind} is empty")
        if kind == "as_tensor":
            return lambda values: values[given.name]
        if kind == "as_tensors":
            return lambda values: [values[one.name] for one in given]
        if kind == "as_sym_int":
            return self._number(given)
        if kind == "as_sym_ints":
            numbers = [self._number(one) for one in given]
            return lambda values: [number(values) for number in numbers]
        if kind == "as_device":
            if given.type != "cpu" or given.index is not None:
                raise self._odd(f"the device is {given.type[:20]!r}, expected 'cpu'")
            return lambda values: values[_DEVICE]
        if kind in _TABLES:
            if given not in _TABLES[kind]:
                raise self._odd(f"{kind} {given} is not supported")
            given = _TABLES[kind][given]
        return lambda _: given

    def _number(self, symbol: _Symbol) -> Getter:
        if len(symbol.model_fields_set) != 1:
            raise self._odd("a size has an unknown type")
        name, number = symbol.as_name, symbol.as_int
        return (lambda values: values[name]) if name is not None else (lambda _: number)

    def _result(self, value: _Value) -> str | list[str]:
        if value.as_tensors is not None:
            return [one.name for one in value.as_tensors]
        if value.as_sym_int is not None and value.as_sym_int.as_name is not None:
            return value.as_sym_int.as_name
        return self._tensor_name(value)

    def _run(
        self,
        inputs: Sequence[torch.Tensor],
        device: torch.device,
        stored: Mapping[str, torch.Tensor],
        look: Callable[[Any], None],
    ) -> tuple[torch.Tensor, ...]:
        values: Values = {_DEVICE: device, **stored, **dict(zip(self._inputs, inputs, strict=True))}
        for step in self._steps:
            found = step.compute(**{name: get(values) for name, get in step.arguments.items()})
            several = found if len(step.results) > 1 else [found]
            for result, value in zip(step.results, several, strict=False):
                look(value)
                if isinstance(result, str):
                    values[result] = value
                else:
                    values.update(zip(result, value, strict=True))
            for name in step.done:
                del values[name]
        return tuple(values[name] for name in self._outputs)

    def _check_sizes(self, card: ExportCard | None) -> None:
        """Run the graph with meta tensors and a batch of 1, to find mismatches before memory is allocated.

        Raises:
            CheckpointError: An operation fails, a value is too large, or the card differs.
        """
        if card is None:
            return
        work = 0

        def look(value: Any) -> None:
            nonlocal work
            for one in value if isinstance(value, (tuple, list)) else [value]:
                size = one.numel() * one.element_size() if isinstance(one, torch.Tensor) else 0
                work += size
                if size > MOST_BYTES or work > MOST_WORK:
                    raise self._odd(
                        f"the values for one clip need {max(size, work):,} bytes, which is too much"
                    )

        meta = torch.device("meta")
        stored = {name: value.to(meta) for name, value in self._stored.items()}
        inputs = [
            torch.empty(
                [1 if size == BATCH else int(size) for size in port.shape],
                dtype=getattr(torch, port.dtype),
                device=meta,
            )
            for port in card.inputs
        ]
        if len(inputs) != len(self._inputs):
            raise self._odd(
                f"the graph has {len(self._inputs)} inputs, expected {len(inputs)} as on the card"
            )
        try:
            found = self._run(inputs, meta, stored, look)
        except CheckpointError:
            raise
        except Exception as error:  # noqa: BLE001 - torch's operations raise errors of many classes
            raise self._odd(f"the graph cannot be computed ({error_line(error)[:160]})") from None
        wanted = [[1 if size == BATCH else int(size) for size in port.shape] for port in card.outputs]
        if [list(value.shape) for value in found] != wanted:
            raise self._odd("the shapes of the outputs differ from the shapes on the card")


@cache
def _operation(target: str) -> tuple[Callable[..., Any], dict[str, frozenset[str]]]:
    """Return a listed operation, and the allowed kinds of its arguments, which are taken from torch's signature."""
    name, overload = target.split(".")[-2:]
    if name == "_operator":
        return _arithmetic(getattr(operator, overload)), dict.fromkeys("ab", _KINDS["int"])
    found = getattr(getattr(torch.ops.aten, name), overload)
    return found, {argument.name: _kinds(str(argument.type)) for argument in found._schema.arguments}


def _kinds(kind: str) -> frozenset[str]:
    if kind.startswith("Optional["):
        return _kinds(kind[9:-1]) | {"as_none"}
    return _KINDS.get(kind, frozenset())


def _arithmetic(compute: Callable[[int, int], int]) -> Callable[..., int]:
    def checked(a: int, b: int) -> int:
        found = compute(a, b)
        if abs(found) >= _LARGEST:  # repeated multiplication could take forever
            raise OverflowError(f"a computed size is larger than {_LARGEST:,}")
        return found

    return checked


def _read_by(node: _ProgramNode) -> list[str]:
    """Return the names of the values that an operation uses."""
    found: list[str] = []
    for given in node.inputs:
        value = given.arg
        tensors = [value.as_tensor] if value.as_tensor is not None else value.as_tensors or []
        symbols = [value.as_sym_int] if value.as_sym_int is not None else value.as_sym_ints or []
        found += [one.name for one in tensors]
        found += [one.as_name for one in symbols if one.as_name is not None]
    return found
