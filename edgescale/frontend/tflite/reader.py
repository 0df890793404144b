"""The flatbuffer as plain dataclasses, with every offset, length and index checked.

A file may be cut short or damaged anywhere, so vectors are never longer than the file could hold, arrays are
views of its bytes, and whatever the decoder raises becomes one sentence.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import MissingDependencyError, UnsupportedModelError
from edgescale.frontend.tflite.options import OPTIONS, REAL_OPTIONS

Array = npt.NDArray[np.generic]

SCHEMA_VERSION = 3
MOST_ELEMENTS = 2**31 - 1
_WITHOUT_OUTPUT = ("CALL_ONCE", "ASSIGN_VARIABLE")
_MOST_AXES = 8

# What flatbuffers, struct and NumPy raise for offsets and lengths that lead out of the file.
_DAMAGE = (
    struct.error, IndexError, ValueError, TypeError, KeyError, OverflowError, AttributeError, MemoryError,
    RecursionError,
)  # fmt: skip

_NUMPY = {
    "FLOAT32": np.float32, "FLOAT16": np.float16, "INT8": np.int8, "UINT8": np.uint8, "INT16": np.int16,
    "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_,
}  # fmt: skip


@dataclass(frozen=True)
class Quantization:
    """real = scale * (q - zero_point). scale float32 [n], zero_point int64 [n]: n = 1, or one along `axis`."""

    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.int64]
    axis: int


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file. kind: the schema's name of its type (FLOAT32, INT8, ...).

    data: a constant's values in `shape`, INT4 unpacked to int8; None for what is fed or computed.
    dynamic: the axes whose size the file leaves open (it then notes 1 in `shape`).
    """

    index: int
    name: str
    shape: tuple[int, ...]
    kind: str
    quantization: Quantization | None
    data: Array | None
    dynamic: tuple[int, ...] = ()
    variable: bool = False
    sparse: bool = False

    @property
    def quantized(self) -> bool:
        """Whether the tensor holds integers of up to 16 bits with a scale."""
        return self.quantization is not None and self.kind in ("INT8", "UINT8", "INT4", "INT16")


@dataclass(frozen=True)
class Operator:
    """A step of the graph. kind: the schema's name (CONV_2D, ...) or `CUSTOM code`.

    inputs: tensor indices, -1 for an omitted one. options: those in `options.OPTIONS`, by their schema names.
    """

    index: int
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, float] = field(default_factory=dict)
    variable: str = ""
    """The variable that a VAR_HANDLE names."""
    intermediates: tuple[int, ...] = ()
    """Tensors that hold no more than the units of what the operator computes on the way."""


@dataclass(frozen=True)
class File:
    """The main graph of a file, or one that it calls."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    called: Mapping[int, File] = field(default_factory=dict)
    """Graphs that CALL_ONCE operators run before the first inference, by their number in the file."""


def schema_classes() -> ModuleType:
    """The generated schema. Raises MissingDependencyError where the extra `tflite` is not installed."""
    try:
        import flatbuffers  # type: ignore[import-untyped]  # noqa: F401  (the schema's classes read through it)
        from ai_edge_litert import schema_py_generated
    except ImportError:
        raise MissingDependencyError(
            "ai-edge-litert, which .tflite files are read with,", "pip install 'edgescale[tflite]'"
        ) from None
    module: ModuleType = schema_py_generated
    return module


def read(data: bytes, where: str) -> File:
    """Decode the bytes of a .tflite file; `where` names it in errors.

    Raises UnsupportedModelError for a damaged file, another schema version and a file without a graph.
    """
    return _Reader(data, where, schema_classes()).file()


class _Reader:
    def __init__(self, data: bytes, where: str, schema: ModuleType) -> None:
        self.data = data
        self.where = where
        self.schema = schema
        self.kinds = _names(schema.TensorType)
        self.builtins = _names(schema.BuiltinOperator)
        self.unions = _names(schema.BuiltinOptions)

    @contextmanager
    def damage(self, what: str) -> Iterator[None]:
        """Turn what the decoder raises while it reads `what` into one sentence."""
        try:
            yield
        except _DAMAGE:
            raise self.fail(f"{what} cannot be read") from None

    def fail(self, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.where} is a damaged or cut-short TensorFlow Lite file: {reason}")

    def file(self) -> File:
        with self.damage("its root"):
            model = self.schema.Model.GetRootAs(self.data, 0)
            version, graphs = int(model.Version()), self.count(model.SubgraphsLength(), 4)
        if version != SCHEMA_VERSION:
            raise UnsupportedModelError(
                f"{self.where} is of TensorFlow Lite schema version {version}; version {SCHEMA_VERSION} is supported"
            )
        if not graphs:
            raise UnsupportedModelError(f"{self.where} holds no graph")
        with self.damage("its operator codes"):
            codes = [self.code(model.OperatorCodes(i)) for i in range(self.count(model.OperatorCodesLength(), 4))]
        main = self.graph(model, 0, codes)
        called: dict[int, File] = {}
        for step in main.operators:
            number = int(step.options.get("InitSubgraphIndex", 0))
            if step.kind == "CALL_ONCE" and number not in called:
                if not 0 < number < graphs:
                    raise self.fail(f"operator {step.index} (CALL_ONCE) refers to graph {number} of {graphs}")
                called[number] = self.graph(model, number, codes)
        return replace(main, called=called)

    def graph(self, model: Any, number: int, codes: list[str]) -> File:
        with self.damage("its graph"):
            graph = model.Subgraphs(number)
            tensor_count = self.count(graph.TensorsLength(), 4)
            operator_count = self.count(graph.OperatorsLength(), 4)
            inputs, outputs = self.indices(graph, "Inputs"), self.indices(graph, "Outputs")
        tensors = tuple(self.tensor(model, graph, i) for i in range(tensor_count))
        steps = tuple(self.operator(graph, i, codes) for i in range(operator_count))
        known = range(len(tensors))
        edges = [index for index in (*inputs, *outputs) if index not in known]
        for step in steps:
            edges += [index for index in step.inputs if index != -1 and index not in known]
            edges += [index for index in (*step.outputs, *step.intermediates) if index not in known]
        if edges:
            raise self.fail(f"it refers to tensor {edges[0]} of {len(tensors)}")
        return File(tensors, steps, inputs, outputs)

    def count(self, length: int, item_bytes: int) -> int:
        """A vector's length, once it is known to fit the file."""
        if not 0 <= length * item_bytes <= len(self.data):
            raise ValueError(f"a vector of {length} entries")
        return int(length)

    def numbers(self, table: Any, name: str, item_bytes: int) -> Array:
        """A vector of numbers as an array; empty where it is absent."""
        self.count(getattr(table, f"{name}Length")(), item_bytes)
        found = getattr(table, f"{name}AsNumpy")()
        return found if isinstance(found, np.ndarray) else np.zeros(0, np.int64)

    def indices(self, table: Any, name: str) -> tuple[int, ...]:
        return tuple(int(i) for i in self.numbers(table, name, 4))

    def code(self, entry: Any) -> str:
        # Old files fill only the deprecated field, new ones both, with 127 there for what exceeds it.
        number = max(int(entry.BuiltinCode()), int(entry.DeprecatedBuiltinCode()))
        if self.builtins.get(number) == "CUSTOM":
            return f"CUSTOM {(entry.CustomCode() or b'').decode('utf-8', 'replace')}".strip()
        return self.builtins.get(number, f"operator {number}")

    def tensor(self, model: Any, graph: Any, index: int) -> Tensor:
        with self.damage(f"tensor {index}"):
            entry = graph.Tensors(index)
            name = (entry.Name() or b"").decode("utf-8", "replace")
            label = f"tensor {name or index!r}"
            shape = tuple(int(d) for d in self.numbers(entry, "Shape", 4))
            signature = tuple(int(d) for d in self.numbers(entry, "ShapeSignature", 4))
            kind = self.kinds.get(int(entry.Type()), f"type {int(entry.Type())}")
            variable, sparse = bool(entry.IsVariable()), entry.Sparsity() is not None
            buffer = int(entry.Buffer())
            quantization = self.quantization(entry.Quantization())
        if len(shape) > _MOST_AXES or min(shape, default=1) < -1 or math.prod(abs(d) for d in shape) > MOST_ELEMENTS:
            raise self.fail(f"{label} claims the shape {list(shape)[:_MOST_AXES]}")
        noted = signature if len(signature) == len(shape) else shape
        dynamic = tuple(axis for axis, size in enumerate(noted) if size < 0)
        shape = tuple(abs(size) for size in shape)
        if quantization is not None and not self.sensible(quantization):
            raise self.fail(f"{label} has a broken scale or zero-point")
        with self.damage(f"the data of {label}"):
            raw = self.buffer(model, buffer)
        data = None if sparse or raw is None else self.constant(raw, shape, kind, label)
        return Tensor(index, name, shape, kind, quantization, data, dynamic, variable, sparse)

    def buffer(self, model: Any, index: int) -> Array | None:
        """The bytes of buffer `index`, inside the flatbuffer or (large files) behind it; None for an empty one."""
        if index >= self.count(model.BuffersLength(), 4):
            raise IndexError(index)
        entry = model.Buffers(index)
        start, size = int(entry.Offset()), int(entry.Size())
        if start > 1:
            if start + size > len(self.data):
                raise IndexError(start + size)
            return np.frombuffer(self.data, np.uint8, size, start) if size else None
        found = self.numbers(entry, "Data", 1)
        return found if found.size else None

    def constant(self, raw: Array, shape: tuple[int, ...], kind: str, label: str) -> Array | None:
        """Values of a constant; None for types nothing here computes with (strings, resources)."""
        count = math.prod(shape)
        if kind == "INT4":
            need = (count + 1) // 2
        elif kind in _NUMPY:
            need = count * np.dtype(_NUMPY[kind]).itemsize
        else:
            return None
        if len(raw) != need:
            raise self.fail(f"{label} of shape {list(shape)} needs {need} bytes and has {len(raw)}")
        if kind != "INT4":
            return np.frombuffer(raw.tobytes(), _NUMPY[kind]).reshape(shape)
        packed = raw.astype(np.uint8)
        # The low nibble comes first; each holds a two's complement number.
        nibbles = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count].astype(np.int8)
        return ((nibbles ^ 8) - 8).astype(np.int8).reshape(shape)

    def quantization(self, entry: Any) -> Quantization | None:
        if entry is None:
            return None
        scale = self.numbers(entry, "Scale", 4).astype(np.float32)
        if not scale.size:
            return None
        zero = self.numbers(entry, "ZeroPoint", 8).astype(np.int64)
        if zero.size in (0, 1):
            zero = np.full(scale.shape, zero[0] if zero.size else 0, np.int64)
        return Quantization(scale, zero, int(entry.QuantizedDimension()))

    @staticmethod
    def sensible(found: Quantization) -> bool:
        small = bool((np.abs(found.zero_point) <= 2**15).all())
        return found.scale.shape == found.zero_point.shape and bool(np.isfinite(found.scale).all()) and small

    def operator(self, graph: Any, index: int, codes: list[str]) -> Operator:
        with self.damage(f"operator {index}"):
            entry = graph.Operators(index)
            kind = codes[int(entry.OpcodeIndex())]
            inputs, outputs = self.indices(entry, "Inputs"), self.indices(entry, "Outputs")
            options = self.options(entry, kind)
            intermediates = self.indices(entry, "Intermediates")
            variable = self.variable(entry) if kind == "VAR_HANDLE" else ""
        if not outputs and kind not in _WITHOUT_OUTPUT:
            raise self.fail(f"operator {index} ({kind}) has no output")
        return Operator(index, kind, inputs, outputs, options, variable, intermediates)

    def variable(self, entry: Any) -> str:
        """Shared name of a VAR_HANDLE, behind its container where it has one."""
        table = entry.BuiltinOptions()
        if table is None or self.unions.get(int(entry.BuiltinOptionsType())) != "VarHandleOptions":
            return ""
        made = self.schema.VarHandleOptions()
        made.Init(table.Bytes, table.Pos)
        parts = [(part or b"").decode("utf-8", "replace") for part in (made.Container(), made.SharedName())]
        return "/".join(part for part in parts if part)

    def options(self, entry: Any, kind: str) -> dict[str, float]:
        """The scalar options of an operator that `OPTIONS` lists; the schema's defaults where the file has none."""
        if kind not in OPTIONS:
            return {}
        name, fields = OPTIONS[kind]
        table = entry.BuiltinOptions()
        given = self.unions.get(int(entry.BuiltinOptionsType()), "")
        made = getattr(self.schema, name)()
        if table is None or given == "NONE":
            return {}
        if given != name:
            raise ValueError(f"{kind} with {given}")
        made.Init(table.Bytes, table.Pos)
        read: dict[str, Callable[[], Any]] = {field: getattr(made, field) for field in fields}
        return {field: float(get()) if field in REAL_OPTIONS else int(get()) for field, get in read.items()}


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if not name.startswith("_")}
