"""Writes small .tflite files with the schema's classes, and runs them with LiteRT's reference kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Units = tuple[float, int]


class Writer:
    """Collects tensors and operators of one graph; `data` is the file."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.codes: list[Any] = []
        self.buffers: list[Any] = [schema.BufferT()]

    def tensor(
        self,
        shape: Sequence[int],
        units: Units | None = None,
        *,
        kind: str | None = None,
        values: np.ndarray | None = None,
        scales: Sequence[float] | None = None,
        axis: int = 0,
        name: str | None = None,
        signature: Sequence[int] | None = None,
    ) -> int:
        """A tensor's index. int8 with `units` or `scales` (per channel), else float32, else as `values` or `kind`."""
        made = self.schema.TensorT()
        made.name = (name if name is not None else f"t{len(self.tensors)}").encode()
        made.shape = np.array(shape, np.int32)
        if signature is not None:
            made.shapeSignature = np.array(signature, np.int32)
        if kind is None:
            kind = values.dtype.name.upper() if values is not None else "INT8" if units else "FLOAT32"
        made.type = getattr(self.schema.TensorType, kind)
        if units is not None or scales is not None:
            found = self.schema.QuantizationParametersT()
            found.scale = np.array([units[0]] if units else scales, np.float32)
            found.zeroPoint = np.array([units[1]] if units else [0] * len(found.scale), np.int64)
            found.quantizedDimension = axis
            made.quantization = found
        if values is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
            self.buffers.append(buffer)
            made.buffer = len(self.buffers) - 1
        self.tensors.append(made)
        return len(self.tensors) - 1

    def const(self, values: np.ndarray, units: Units | None = None, **options: Any) -> int:
        """A constant's index."""
        return self.tensor(values.shape, units, values=values, **options)

    def operator(
        self, kind: str, inputs: Sequence[int], output: int, table: str = "", version: int = 1, **options: Any
    ) -> int:
        """Append an operator with one output; returns that."""
        schema = self.schema
        made = schema.OperatorT()
        made.inputs, made.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        if table:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, table)
            made.builtinOptions = getattr(schema, f"{table}T")()
            for name, value in options.items():
                setattr(made.builtinOptions, name, value)
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), version
        if kind == "CUSTOM":
            code.customCode = b"Mystery"
        self.codes.append(code)
        made.opcodeIndex = len(self.codes) - 1
        self.operators.append(made)
        return output

    def data(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """The file's bytes."""
        import flatbuffers

        schema = self.schema
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        model = schema.ModelT()
        model.version, model.buffers, model.subgraphs, model.operatorCodes = 3, self.buffers, [graph], self.codes
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


class LiteRT:
    """The reference kernels (BUILTIN_REF) on one file, sample by sample."""

    def __init__(self, data: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        self.interpreter = Interpreter(
            model_content=data,
            experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
            experimental_preserve_all_tensors=True,
        )
        self.interpreter.allocate_tensors()
        self.inputs = self.interpreter.get_input_details()
        self.outputs = self.interpreter.get_output_details()

    def run(self, *samples: np.ndarray) -> np.ndarray:
        """First output [n, ...] for inputs [n, ...]."""
        rows = []
        for row in zip(*samples, strict=True):
            self.feed(*row)
            rows.append(self.tensor(self.outputs[0]["index"]).copy())
        return np.concatenate(rows)

    def feed(self, *row: np.ndarray) -> None:
        """Run one sample, without its batch axis."""
        for detail, value in zip(self.inputs, row, strict=True):
            self.interpreter.set_tensor(detail["index"], value[None])
        self.interpreter.invoke()

    def tensor(self, index: int) -> np.ndarray:
        """Any tensor of the last run."""
        return np.asarray(self.interpreter.get_tensor(index))


def single(
    kind: str,
    shapes: Sequence[Sequence[int]],
    units: Sequence[Units | None],
    out_shape: Sequence[int],
    out: Units | None,
    table: str = "",
    *,
    extra: Sequence[np.ndarray] = (),
    version: int = 2,
    dtype: str | None = None,
    **options: Any,
) -> bytes:
    """A file of one operator over activations x0, x1, ... and constants `extra`, its output y."""
    writer = Writer()
    inputs = [
        writer.tensor(shape, unit, name=f"x{i}", kind=dtype if unit else None)
        for i, (shape, unit) in enumerate(zip(shapes, units, strict=True))
    ]
    more = [writer.const(values) for values in extra]
    made = writer.tensor(out_shape, out, name="y", kind=dtype if out else None)
    writer.operator(kind, [*inputs, *more], made, table, version, **options)
    return writer.data(inputs, [made])
