"""What the JSON of a `torch.export` file may say: what exports use of torch's schema (`torch/_export/serde`)."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

Number = Annotated[
    float, BeforeValidator(lambda value: _INFINITE.get(value, value) if isinstance(value, str) else value)
]
_INFINITE = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


class Strict(BaseModel):
    """Unknown keys and other types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Named(Strict):
    """A name."""

    name: str


class Symbol(Strict):
    """A size: a number, or the name of a computed one."""

    as_int: int | None = None
    as_name: str | None = None


class Device(Strict):
    """Where a tensor lies."""

    type: str
    index: int | None


class Value(Strict):
    """An argument or a result: one of these."""

    as_tensor: Named | None = None
    as_tensors: list[Named] | None = None
    as_sym_int: Symbol | None = None
    as_sym_ints: list[Symbol] | None = None
    as_int: int | None = None
    as_ints: list[int] | None = None
    as_float: Number | None = None
    as_floats: list[Number] | None = None
    as_bool: bool | None = None
    as_none: bool | None = None
    as_string: str | None = None
    as_scalar_type: int | None = None
    as_memory_format: int | None = None
    as_layout: int | None = None
    as_device: Device | None = None

    @property
    def kind(self) -> str:
        """Which of them; empty where there are none or several."""
        return next(iter(self.model_fields_set)) if len(self.model_fields_set) == 1 else ""


class Input(Strict):
    """An argument of an operation; `kind` (positional or keyword) decides nothing here."""

    name: str
    arg: Value
    kind: int | None = None


class ProgramNode(Strict):
    """An operation."""

    target: str
    inputs: list[Input]
    outputs: list[Value]
    metadata: dict[str, str]
    is_hop_single_tensor_return: bool | None = None
    name: str | None = None


class Graph(Strict):
    """Operations in their order; what is `Any` says again what they give."""

    inputs: list[Value]
    outputs: list[Value]
    nodes: list[ProgramNode]
    tensor_values: Any
    sym_int_values: Any
    sym_bool_values: Any
    is_single_tensor_return: bool
    custom_obj_values: dict[str, Any]
    sym_float_values: Any = None


class Parameter(Strict):
    """A weight."""

    arg: Named
    parameter_name: str


class Buffer(Strict):
    """A tensor that is no weight."""

    arg: Named
    buffer_name: str
    persistent: bool | None = None


class ConstantValue(Strict):
    """A tensor of the code."""

    arg: Named
    tensor_constant_name: str


class User(Strict):
    """What the caller gives or gets."""

    arg: Value


class Spec(Strict):
    """An input or output of the graph: one of these."""

    parameter: Parameter | None = None
    buffer: Buffer | None = None
    tensor_constant: ConstantValue | None = None
    user_input: User | None = None
    user_output: User | None = None


class Signature(Strict):
    """What inputs and outputs are."""

    input_specs: list[Spec]
    output_specs: list[Spec]


class Module(Strict):
    """A graph and its signature; the structure of Python's arguments is not looked at."""

    graph: Graph
    signature: Signature
    module_call_graph: Any
    metadata: Any
    treespec_namedtuple_fields: Any = None


class Model(Strict):
    """`models/model.json`; what is `Any` is not looked at."""

    graph_module: Module
    opset_version: Any
    range_constraints: Any
    schema_version: Any
    verifiers: Any = None
    torch_version: Any = None
    guards_code: Any = None


class TensorMeta(Strict):
    """How a tensor lies in its member."""

    dtype: int
    sizes: list[Symbol]
    requires_grad: bool
    device: Device
    strides: list[Symbol]
    storage_offset: Symbol
    layout: int


class Stored(Strict):
    """A tensor of the file."""

    path_name: str
    is_param: bool
    use_pickle: bool
    tensor_meta: TensorMeta


class Config(Strict):
    """The tensors of a folder."""

    config: dict[str, Stored]
