"""Writes a plan and its units into a graph as QuantizeLinear and DequantizeLinear nodes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.frontend.graph import add_initializer, constant, fresh_name, input_at
from edgescale.quantize.plan import Plan
from edgescale.quantize.rules import BINARY, WEIGHTED, data_inputs, weight_axis
from edgescale.quantize.units import Units, quantize_weights, units_of

Array = npt.NDArray[np.generic]


class WriteQdq(ir.passes.InPlacePass):
    """Insert Q/DQ pairs behind the planned values and quantized constants before the planned nodes.

    Requires: `units` for every planned value. Contract: node names and the names of graph inputs and outputs
    stay; int8 nodes read DequantizeLinear outputs only; a float node that reads an int8 node's result reads
    it dequantized. Weights become int8 behind a DequantizeLinear of the channel axis, biases int32, constant
    operands uint8. Unused float constants are left for the caller to remove.
    """

    def __init__(self, plan: Plan, units: Mapping[ir.Value, Units]) -> None:
        super().__init__()
        self._plan = plan
        self._units = units
        self._shared: dict[Units, tuple[ir.Value, ir.Value]] = {}
        self._weights: dict[tuple[str, bytes, bytes], tuple[ir.Value, ir.Value, ir.Value]] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Write the constants first (they need the units of the inputs only), then the pairs."""
        graph = model.graph
        for node in self._plan.nodes:
            if node.op_type in WEIGHTED:
                self._write_weights(graph, node)
            else:
                self._write_constants(graph, node)
        chosen = set(self._plan.nodes)
        for value, units in self._units.items():
            self._write_pair(graph, value, units, chosen)
        graph.sort()
        return ir.passes.PassResult(model, bool(self._plan.nodes))

    def _scalars(self, graph: ir.Graph, units: Units, label: str) -> tuple[ir.Value, ir.Value]:
        """Scale and zero-point as initializers; values of equal units share them."""
        if units not in self._shared:
            self._shared[units] = (
                add_initializer(graph, f"{label}_scale", np.asarray(units.scale, np.float32)),
                add_initializer(graph, f"{label}_zero_point", np.asarray(units.zero_point, np.uint8)),
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
        label = str(value.name)
        scale, zero_point = self._scalars(graph, units, label)
        quantize = ir.node("QuantizeLinear", [value, scale, zero_point], name=f"{label}_QuantizeLinear")
        quantize.outputs[0].name = fresh_name(graph, f"{label}_quantized")
        quantize.outputs[0].dtype = ir.DataType.UINT8
        dequantize = _dequantize(
            graph, quantize.outputs[0], scale, zero_point, fresh_name(graph, f"{label}_dequantized"), None
        )
        result = dequantize.outputs[0]
        for made in (quantize.outputs[0], result):
            made.shape = value.shape
        for node, index in readers:
            node.replace_input_with(index, result)
        if is_output:
            for index, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[index] = result
            value.name = fresh_name(graph, f"{label}_float")
            result.name = label
        if producer is not None:
            graph.insert_after(producer, [quantize, dequantize])
        else:
            graph.insert_before(graph[0], [quantize, dequantize])

    def _write_constants(self, graph: ir.Graph, node: ir.Node) -> None:
        """Constant operands of Add, Sub, Mul in units of their own, those of Concat in the output's."""
        if node.op_type not in BINARY and node.op_type != "Concat":
            return
        for index in data_inputs(node):
            operand = node.inputs[index]
            array = constant(operand)
            if operand is None or array is None:
                continue
            if node.op_type == "Concat":
                units = self._units[node.outputs[0]]
            else:
                units = units_of(float(array.min(initial=0.0)), float(array.max(initial=0.0)))
            label = str(operand.name)
            scale, zero_point = self._scalars(graph, units, label)
            stored = add_initializer(graph, f"{label}_quantized", units.quantize(array))
            read = _dequantize(graph, stored, scale, zero_point, fresh_name(graph, f"{label}_dequantized"), None)
            read.outputs[0].shape = ir.Shape(array.shape)
            graph.insert_before(node, read)
            node.replace_input_with(index, read.outputs[0])

    def _write_weights(self, graph: ir.Graph, node: ir.Node) -> None:
        weights, bias = constant(node.inputs[1]), constant(input_at(node, 2))
        source, weight_value, bias_value = node.inputs[0], node.inputs[1], input_at(node, 2)
        if weights is None or source is None or weight_value is None:
            raise ValueError(f"{node.name}: planned without constant weights")
        axis = weight_axis(node)
        made = quantize_weights(weights, bias, axis, self._units[source].scale)
        label = str(weight_value.name)
        key = (label, made.values.tobytes(), made.scale.tobytes())
        if key not in self._weights:
            self._weights[key] = (
                add_initializer(graph, f"{label}_quantized", made.values),
                add_initializer(graph, f"{label}_scale", made.scale),
                add_initializer(graph, f"{label}_zero_point", np.zeros_like(made.scale, np.int8)),
            )
        stored, scale, zero_point = self._weights[key]
        self._read_constant(graph, node, 1, (stored, scale, zero_point), label, axis, weights.shape)
        if made.bias is not None and bias_value is not None:
            label = str(bias_value.name)
            stored = add_initializer(graph, f"{label}_quantized", made.bias)
            scale = add_initializer(graph, f"{label}_scale", made.bias_scale)
            zero_point = add_initializer(graph, f"{label}_zero_point", np.zeros_like(made.bias))
            self._read_constant(graph, node, 2, (stored, scale, zero_point), label, 0, made.bias.shape)

    @staticmethod
    def _read_constant(
        graph: ir.Graph,
        node: ir.Node,
        index: int,
        parts: tuple[ir.Value, ir.Value, ir.Value],
        label: str,
        axis: int,
        shape: tuple[int, ...],
    ) -> None:
        """Let input `index` of a node read a quantized constant through a DequantizeLinear of its own."""
        stored, scale, zero_point = parts
        read = _dequantize(graph, stored, scale, zero_point, fresh_name(graph, f"{label}_dequantized"), axis)
        read.outputs[0].shape = ir.Shape(shape)
        graph.insert_before(node, read)
        node.replace_input_with(index, read.outputs[0])


def _dequantize(
    graph: ir.Graph, stored: ir.Value, scale: ir.Value, zero_point: ir.Value, output: str, axis: int | None
) -> ir.Node:
    node = ir.node(
        "DequantizeLinear",
        [stored, scale, zero_point],
        attributes=None if axis is None else {"axis": axis},
        name=f"{output.removesuffix('_dequantized')}_DequantizeLinear",
    )
    node.outputs[0].name = output
    node.outputs[0].dtype = ir.DataType.FLOAT
    return node
