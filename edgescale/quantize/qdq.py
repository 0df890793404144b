"""Writes a plan, its units and the stored weights into a graph as QuantizeLinear and DequantizeLinear nodes.

Files are to be small: what the nodes made here are called is short (`x3` an activation, `w3` weights, `b3` a bias,
with `q` its integers and `s`, `z` scale and zero-point), nodes made here carry no name, and zero-points that
are 0 are left out wherever ONNX Runtime fuses without them.
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.frontend.graph import add_initializer, constant, input_at
from edgescale.quantize.layers import Stored
from edgescale.quantize.plan import Plan
from edgescale.quantize.rules import BINARY, data_inputs
from edgescale.quantize.units import Units, units_of

Array = npt.NDArray[np.generic]

INT4_OPSET = 21
"""First opset with 4-bit integers and blocks in Q/DQ; in older models 4-bit weights are stored as int8."""

_INT4 = np.dtype(ml_dtypes.int4)


class WriteQdq(ir.passes.InPlacePass):
    """Insert Q/DQ pairs behind the planned values and quantized constants before the nodes that read them.

    Requires: `units` for every planned value, `weights` for every planned Conv, Gemm and MatMul; further nodes may
    have weights too (their activations stay float). Contract: node names and the names of graph inputs and
    outputs stay; planned nodes read DequantizeLinear outputs only; a float node that reads a planned node's result
    reads it dequantized. Constant operands take their node's output kind. Unused float constants are left for
    the caller to remove.
    """

    def __init__(self, plan: Plan, units: Mapping[ir.Value, Units], weights: Mapping[ir.Node, Stored]) -> None:
        super().__init__()
        self._plan = plan
        self._units = units
        self._stored = weights
        self._shared: dict[Units, tuple[ir.Value, ir.Value]] = {}
        self._weights: dict[tuple[str, bytes, bytes], list[ir.Value]] = {}
        self._taken: set[str] = set()
        self._count = {"x": 0, "w": 0, "b": 0, "c": 0}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Write the constants first (they need the units of the inputs only), then the pairs."""
        graph = model.graph
        self._taken = {str(v.name) for v in graph.inputs} | set(graph.initializers)
        self._taken |= {str(v.name) for node in graph.all_nodes() for v in node.outputs}
        for node, stored in self._stored.items():
            self._write_weights(graph, node, stored)
        for node in self._plan.nodes:
            if node not in self._stored:
                self._write_constants(graph, node)
        chosen = set(self._plan.nodes)
        for value, units in self._units.items():
            self._write_pair(graph, value, units, chosen)
        graph.sort()
        return ir.passes.PassResult(model, bool(self._plan.nodes or self._stored))

    def _label(self, kind: str) -> str:
        """A name no value carries that begins with `kind`; the caller appends one letter for each of its parts."""
        while True:
            label = f"{kind}{self._count[kind]}"
            self._count[kind] += 1
            if not self._taken & {label + part for part in ("", "q", "s", "z", "d", "f")}:
                return label

    def _scalars(self, graph: ir.Graph, units: Units, label: str) -> tuple[ir.Value, ir.Value]:
        """Scale and zero-point as initializers; values of equal units share them."""
        if units not in self._shared:
            self._shared[units] = (
                add_initializer(graph, f"{label}s", np.asarray(units.scale, np.float32)),
                add_initializer(graph, f"{label}z", np.asarray(units.zero_point, units.kind)),
            )
        return self._shared[units]

    def _write_pair(self, graph: ir.Graph, value: ir.Value, units: Units, chosen: set[ir.Node]) -> None:
        producer = value.producer()
        from_int8 = producer in chosen
        readers = [
            (use.node, use.idx)
            for use in value.uses()
            if from_int8 or (use.node in chosen and use.idx in data_inputs(use.node))
        ]
        is_output = value.is_graph_output() and from_int8
        if not readers and not is_output:
            return
        label = self._label("x")
        if units.kind == "fp8":
            made, result = _simulated_fp8(graph, value, units, label)
            self._place(graph, value, made, result, readers, label, is_output=is_output)
            return
        scale, zero_point = self._scalars(graph, units, label)
        quantize = ir.node("QuantizeLinear", [value, scale, zero_point])
        quantize.outputs[0].name = f"{label}q"
        quantize.outputs[0].dtype = ir.DataType.from_numpy(np.dtype(units.kind))
        dequantize = _dequantize([quantize.outputs[0], scale, zero_point], label, None, 0)
        result = dequantize.outputs[0]
        quantize.outputs[0].shape = value.shape
        self._place(graph, value, [quantize, dequantize], result, readers, label, is_output=is_output)

    @staticmethod
    def _place(
        graph: ir.Graph,
        value: ir.Value,
        made: list[ir.Node],
        result: ir.Value,
        readers: list[tuple[ir.Node, int]],
        label: str,
        *,
        is_output: bool,
    ) -> None:
        """Insert nodes behind a value, and let `result` be read in its place."""
        producer = value.producer()
        result.shape = value.shape
        for node, index in readers:
            node.replace_input_with(index, result)
        if is_output:
            for index, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[index] = result
            value.name, result.name = label, str(value.name)
        if producer is not None:
            graph.insert_after(producer, made)
        else:
            graph.insert_before(graph[0], made)

    def _write_constants(self, graph: ir.Graph, node: ir.Node) -> None:
        """Constant operands of Add, Sub, Mul in units of their own, those of Concat in the output's."""
        if node.op_type not in BINARY and node.op_type != "Concat":
            return
        own = self._units.get(node.outputs[0])
        kind = own.kind if own is not None else next(iter(self._units.values())).kind
        for index in data_inputs(node):
            operand = node.inputs[index]
            array = constant(operand)
            if operand is None or array is None:
                continue
            if node.op_type == "Concat":
                units = self._units[node.outputs[0]]
            else:
                units = units_of(float(array.min(initial=0.0)), float(array.max(initial=0.0)), kind)
            label = self._label("c")
            scale, zero_point = self._scalars(graph, units, label)
            stored = add_initializer(graph, f"{label}q", units.quantize(array))
            self._read(graph, node, index, [stored, scale, zero_point], label, None, 0, array.shape)

    def _write_weights(self, graph: ir.Graph, node: ir.Node, stored: Stored) -> None:
        weight_value, bias_value = node.inputs[1], input_at(node, 2)
        if weight_value is None:
            raise ValueError(f"{node.name}: planned without weights")
        # ONNX Runtime's QGemm wants every zero-point spelled out, its QLinearConv none.
        spelled = node.op_type != "Conv"
        if stored.scale is None:
            label = self._label("w")
            node.replace_input_with(1, add_initializer(graph, label, stored.values))
        else:
            key = (str(weight_value.name), stored.values.tobytes(), stored.scale.tobytes())
            if key not in self._weights:
                self._weights[key] = self._weight_constants(graph, stored, self._label("w"), spelled=spelled)
            label = self._label("w")
            parts = self._weights[key]
            self._read(graph, node, 1, parts, label, stored.axis, stored.block, stored.values.shape)
        if stored.bias is None:
            return
        label = self._label("b")
        while len(node.inputs) < 3:
            node.resize_inputs(3)
        if stored.bias_scale is None:
            node.replace_input_with(2, bias_value if _same(bias_value, stored.bias) else
                                    add_initializer(graph, label, stored.bias))  # fmt: skip
            return
        parts = [
            add_initializer(graph, f"{label}q", stored.bias),
            add_initializer(graph, f"{label}s", stored.bias_scale),
        ]
        if spelled:
            parts.append(add_initializer(graph, f"{label}z", np.zeros_like(stored.bias)))
        self._read(graph, node, 2, parts, label, 0, 0, stored.bias.shape)

    @staticmethod
    def _weight_constants(graph: ir.Graph, stored: Stored, label: str, *, spelled: bool) -> list[ir.Value]:
        opset = graph.opset_imports[""]
        kind = _INT4 if stored.bits <= 4 and opset >= INT4_OPSET else np.dtype(np.int8)
        if stored.scale is None:
            raise ValueError("simulated weights have no scale")
        parts = [
            add_initializer(graph, f"{label}q", stored.values.astype(kind)),
            add_initializer(graph, f"{label}s", stored.scale),
        ]
        zero = stored.zero_point
        if zero is not None or (spelled and not stored.block):
            zero = np.zeros(stored.scale.shape, np.int8) if zero is None else zero
            parts.append(add_initializer(graph, f"{label}z", zero.astype(kind)))
        return parts

    @staticmethod
    def _read(
        graph: ir.Graph,
        node: ir.Node,
        index: int,
        parts: list[ir.Value],
        label: str,
        axis: int | None,
        block: int,
        shape: tuple[int, ...],
    ) -> None:
        """Let input `index` of a node read a quantized constant through a DequantizeLinear of its own."""
        read = _dequantize(parts, label, axis, block)
        read.outputs[0].shape = ir.Shape(shape)
        graph.insert_before(node, read)
        node.replace_input_with(index, read.outputs[0])


def _simulated_fp8(graph: ir.Graph, value: ir.Value, units: Units, label: str) -> tuple[list[ir.Node], ir.Value]:
    """x / scale through E4M3 and back: casts, since ONNX Runtime's optimizer refuses Q/DQ pairs of float8."""
    scale = add_initializer(graph, f"{label}s", np.asarray(units.scale, np.float32))
    divided = ir.node("Div", [value, scale])
    narrow = ir.node("Cast", [divided.outputs[0]], attributes={"to": int(ir.DataType.FLOAT8E4M3FN), "saturate": 1})
    wide = ir.node("Cast", [narrow.outputs[0]], attributes={"to": int(ir.DataType.FLOAT)})
    result = ir.node("Mul", [wide.outputs[0], scale])
    nodes = [divided, narrow, wide, result]
    for part, node in zip(("d", "q", "f", ""), nodes, strict=True):
        node.outputs[0].name = label + part
        node.outputs[0].dtype = ir.DataType.FLOAT8E4M3FN if part == "q" else ir.DataType.FLOAT
    return nodes, result.outputs[0]


def _same(value: ir.Value | None, array: Array) -> bool:
    own = constant(value)
    return own is not None and own.dtype == array.dtype and np.array_equal(own, array)


def _dequantize(parts: list[ir.Value], output: str, axis: int | None, block: int) -> ir.Node:
    attributes = {} if axis is None else {"axis": axis}
    if block:
        attributes["block_size"] = block
    node = ir.node("DequantizeLinear", parts, attributes=attributes or None)
    node.outputs[0].name = output
    node.outputs[0].dtype = ir.DataType.FLOAT
    return node
