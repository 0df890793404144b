"""A TensorFlow Lite flatbuffer under construction: tensors, constants, operators, variables, metadata.

Written with the schema's own classes. Buffers lie on 16 bytes, as the schema demands and devices without unaligned
loads need; equal constants are stored once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.frontend.tflite.reader import schema_classes

Array = npt.NDArray[np.generic]

SCHEMA_VERSION = 3
FILE_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16
_TYPES = {
    "int8": "INT8", "uint8": "UINT8", "int16": "INT16", "int32": "INT32", "int64": "INT64", "float32": "FLOAT32",
    "int4": "INT4", "resource": "RESOURCE",
}  # fmt: skip


@dataclass(frozen=True)
class Units:
    """real = scale * (q - zero_point): one scale, or one along `axis`, float32; zero_point for all."""

    scale: tuple[float, ...]
    zero_point: int = 0
    axis: int = 0


@dataclass
class Graph:
    """One graph of the file; `operators[i]` belongs to the layer `layers[i]`."""

    tensors: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


class Writer:
    """Collects one file. `graph` is the graph that tensors and operators go into."""

    def __init__(self) -> None:
        self.schema: ModuleType = schema_classes()
        self.graphs = [Graph()]
        self.graph = self.graphs[0]
        self.layer = ""
        """Name of the layer that operators appended from now on belong to."""
        self._buffers: list[bytes] = [b""]
        self._places: dict[bytes, int] = {}
        self.codes: dict[tuple[str, int], int] = {}
        """Operator and version -> number of its code."""
        self._names: set[str] = set()
        self._zero_points: dict[tuple[int, int], Any] = {}
        """Length and value -> where the vector was packed."""
        self._constants: dict[tuple[int, int, str, tuple[int, ...], Units | None], int] = {}

    def tensor(
        self, name: str, shape: Sequence[int], dtype: str, units: Units | None = None, *, variable: bool = False
    ) -> int:
        """Index of a new tensor that is fed or computed."""
        return self._tensor(name, shape, dtype, units, 0, variable)

    def constant(self, name: str, values: Array, units: Units | None = None, dtype: str | None = None) -> int:
        """Index of a constant tensor; dtype "int4" packs int8 values of [-8, 8) two a byte, the first one low."""
        kind = dtype or str(values.dtype)
        data = packed_nibbles(values) if kind == "int4" else np.ascontiguousarray(values).tobytes()
        place = self._places.setdefault(data, len(self._buffers))
        if place == len(self._buffers):
            self._buffers.append(data)
        key = (len(self.graphs), place, kind, values.shape, units)
        if key not in self._constants:
            self._constants[key] = self._tensor(name, values.shape, kind, units, place, False)
        return self._constants[key]

    def _tensor(
        self, name: str, shape: Sequence[int], dtype: str, units: Units | None, buffer: int, variable: bool
    ) -> int:
        made = self.schema.TensorT()
        made.name = self._unique(name).encode()
        made.shape = np.array(shape, np.int32)
        made.type = getattr(self.schema.TensorType, _TYPES[dtype])
        made.buffer, made.isVariable = buffer, variable
        if units is not None:
            made.quantization = self._quantization(units)
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def _unique(self, name: str) -> str:
        made, count = name, 0
        while made in self._names:
            count += 1
            made = f"{name}_{count}"
        self._names.add(made)
        return made

    def operator(
        self,
        kind: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        version: int,
        table: str = "",
        intermediates: Sequence[int] = (),
        **options: object,
    ) -> None:
        """Append an operator. `table` names its options in the schema, `options` are that table's fields."""
        made = self.schema.OperatorT()
        made.opcodeIndex = self.codes.setdefault((kind, version), len(self.codes))
        made.inputs, made.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        if intermediates:
            made.intermediates = np.array(intermediates, np.int32)
        if table:
            made.builtinOptionsType = getattr(self.schema.BuiltinOptions, table)
            made.builtinOptions = getattr(self.schema, f"{table}T")()
            for name, value in options.items():
                if not hasattr(made.builtinOptions, name):
                    raise KeyError(f"{table} has no field {name}")
                setattr(made.builtinOptions, name, value)
        self.graph.operators.append(made)
        self.graph.layers.append(self.layer)

    def enumerated(self, enumeration: str, name: str) -> int:
        """A value of one of the schema's enumerations."""
        return int(getattr(getattr(self.schema, enumeration), name))

    def new_graph(self) -> int:
        """Begin another graph; its number. Tensors and operators go there until `graph` is set again."""
        self.graphs.append(Graph())
        self.graph = self.graphs[-1]
        return len(self.graphs) - 1

    def data(
        self,
        description: str,
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        metadata: Mapping[str, bytes],
    ) -> bytes:
        """The file: names of the main graph's inputs and outputs, for the signature too, and entries of metadata."""
        import flatbuffers  # type: ignore[import-untyped]

        main = self.graphs[0]
        main.inputs, main.outputs = list(inputs.values()), list(outputs.values())
        model = self.schema.ModelT()
        model.version, model.description = SCHEMA_VERSION, description
        model.operatorCodes = [self._code(kind, version) for kind, version in self.codes]
        model.subgraphs = [self._subgraph(graph) for graph in self.graphs]
        model.metadata = [self._metadata(name, value) for name, value in metadata.items()]
        model.signatureDefs = [self._signature(inputs, outputs)]
        model.buffers = [self._buffer(data) for data in self._buffers]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=FILE_IDENTIFIER)
        return bytes(builder.Output())

    def _code(self, kind: str, version: int) -> Any:
        made = self.schema.OperatorCodeT()
        made.builtinCode = self.enumerated("BuiltinOperator", kind)
        made.deprecatedBuiltinCode, made.version = min(made.builtinCode, 127), version
        return made

    def _subgraph(self, graph: Graph) -> Any:
        made = self.schema.SubGraphT()
        made.tensors, made.operators = graph.tensors, graph.operators
        made.inputs, made.outputs = np.array(graph.inputs, np.int32), np.array(graph.outputs, np.int32)
        return made

    def _metadata(self, name: str, value: bytes) -> Any:
        made = self.schema.MetadataT()
        made.name, made.buffer = name, len(self._buffers)
        self._buffers.append(value)
        return made

    def _signature(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Any:
        made = self.schema.SignatureDefT()
        made.signatureKey, made.subgraphIndex = "serving_default", 0
        made.inputs, made.outputs = self._names_of(inputs), self._names_of(outputs)
        return made

    def _names_of(self, ports: Mapping[str, int]) -> list[Any]:
        found = []
        for name, index in ports.items():
            made = self.schema.TensorMapT()
            made.name, made.tensorIndex = name, index
            found.append(made)
        return found

    def _quantization(self, units: Units) -> Any:
        schema, shared = self.schema, self._zero_points

        class Shared(schema.QuantizationParametersT):  # type: ignore[name-defined,misc]
            """Units whose vector of zero-points is stored once for all tensors that have the same one."""

            def Pack(self, builder: Any) -> Any:  # noqa: N802  (the schema's name)
                scales = builder.CreateNumpyVector(np.array(units.scale, np.float32))
                key = (len(units.scale), units.zero_point)
                if key not in shared:
                    shared[key] = builder.CreateNumpyVector(np.full(key[0], key[1], np.int64))
                schema.QuantizationParametersStart(builder)
                schema.QuantizationParametersAddScale(builder, scales)
                schema.QuantizationParametersAddZeroPoint(builder, shared[key])
                schema.QuantizationParametersAddQuantizedDimension(builder, units.axis)
                return schema.QuantizationParametersEnd(builder)

        return Shared()

    def _buffer(self, data: bytes) -> Any:
        schema = self.schema

        class Aligned(schema.BufferT):  # type: ignore[name-defined,misc]
            """A buffer on 16 bytes; the generated class packs it on one."""

            def Pack(self, builder: Any) -> Any:  # noqa: N802  (the schema's name)
                if not data:
                    schema.BufferStart(builder)
                    return schema.BufferEnd(builder)
                builder.StartVector(1, len(data), _ALIGNMENT)
                builder.head -= len(data)
                builder.Bytes[builder.head : builder.head + len(data)] = data
                vector = builder.EndVector()
                schema.BufferStart(builder)
                schema.BufferAddData(builder, vector)
                return schema.BufferEnd(builder)

        return Aligned()


def packed_nibbles(values: Array) -> bytes:
    """int8 values of [-8, 8) as two's complement nibbles, the first of two in the low half."""
    flat = values.reshape(-1).astype(np.int8).view(np.uint8) & 15
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return bytes((flat[::2] | flat[1::2] << 4).astype(np.uint8).tobytes())
