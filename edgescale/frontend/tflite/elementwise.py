"""Arithmetic of two operands, activations, and the operators between float and integers."""

from __future__ import annotations

import numpy as np

from edgescale.frontend.tflite.graph import TO_FIRST, Graph, Layout, Refusal
from edgescale.frontend.tflite.reader import Operator, Tensor
from edgescale.frontend.tflite.registry import (
    activation,
    clip,
    finish,
    handles,
    operands,
    real_array,
    result,
    same_kind,
)

_BINARY = {"ADD": "Add", "SUB": "Sub", "MUL": "Mul"}


@handles("ADD", "SUB", "MUL")
def binary(graph: Graph, op: Operator) -> None:
    """Two activations, or one and a constant, that broadcast; both and the output float32 or of one integer type (a
    constant, or a smaller operand, minus an activation is computed in float32)."""
    operands(graph, op, 2)
    made = result(graph, op)
    fed = [index for index in op.inputs if graph.tensor(index).data is None]
    if not fed:
        raise Refusal("at least one operand is computed", "two constants")
    for index in fed:
        same_kind(activation(graph, index), made)
    if made.kind == "INT16" and op.options.get("PotScaleInt16", 0) and _powers_of_two(graph, op):
        raise Refusal("pot_scale_int16 is off where all scales are powers of two", "on")
    layout = graph.layout_of(fed) if len(made.shape) == 4 else "last"
    inputs = [
        graph.real(index, layout) if index in fed else _constant(graph, graph.tensor(index), made, layout)
        for index in op.inputs
    ]
    finish(graph, op, layout, _BINARY[op.kind], inputs)


def _powers_of_two(graph: Graph, op: Operator) -> bool:
    """Whether all scales are powers of two: then LiteRT adds int16 by shifts, where the option says so."""
    scales = [float(graph.quantization(index).scale[0]) for index in (*op.inputs, *op.outputs)]
    return all(np.frexp(scale)[0] == 0.5 for scale in scales)


def _constant(graph: Graph, tensor: Tensor, made: Tensor, layout: Layout) -> str:
    """A constant operand in the layout of the result; quantized where the result is."""
    order = range(len(tensor.shape))
    if len(tensor.shape) > len(made.shape):
        raise Refusal("a constant of at most as many axes as the result", f"{list(tensor.shape)}")

    def arranged(array: np.ndarray) -> np.ndarray:
        if layout == "last" or array.size == 1:
            return array
        return array.reshape((1,) * (4 - len(order)) + array.shape).transpose(TO_FIRST)

    name = graph.name(tensor.index)
    if not made.quantized:
        return graph.constant(name, arranged(real_array(tensor)))
    if tensor.data is None or tensor.kind != made.kind:
        raise Refusal("inputs and output have one type", f"{made.kind.lower()} and {tensor.kind.lower()}")
    scale, zero = graph.units(tensor.index)
    values = arranged(tensor.data)
    if made.kind == "INT8":
        values = (values.astype(np.int16) + 128).astype(np.uint8)  # as activations are written
    stored = graph.constant(name, values)
    label = f"{graph.readable(tensor.index)}/DequantizeLinear"
    return graph.node("DequantizeLinear", [stored, scale, zero], graph.unique(f"{name}/dequantized"), label=label)


@handles("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1")
def clamp(graph: Graph, op: Operator) -> None:
    """Any shape, float32 or integers."""
    layout = _unary(graph, op)
    made = graph.result_name(op.outputs[0], layout)
    clip(graph, graph.real(op.inputs[0], layout), op.kind, made, graph.operator)
    graph.bind(op.outputs[0], made, layout)


_FUNCTIONS = {"LOGISTIC": "Sigmoid", "TANH": "Tanh", "HARD_SWISH": "HardSwish"}


@handles("LOGISTIC", "TANH", "HARD_SWISH")
def function(graph: Graph, op: Operator) -> None:
    """Any shape, float32, 8 bits or (LOGISTIC and TANH) int16."""
    layout = _unary(graph, op)
    finish(graph, op, layout, _FUNCTIONS[op.kind], [graph.real(op.inputs[0], layout)])


@handles("LEAKY_RELU")
def leaky_relu(graph: Graph, op: Operator) -> None:
    """Any shape and alpha, float32 or 8 bits."""
    layout = _unary(graph, op)
    alpha = float(op.options.get("Alpha", 0.0))
    if not np.isfinite(alpha):
        raise Refusal("a finite alpha", f"{alpha}")
    finish(graph, op, layout, "LeakyRelu", [graph.real(op.inputs[0], layout)], alpha=alpha)


def _unary(graph: Graph, op: Operator) -> Layout:
    operands(graph, op, 1)
    source = activation(graph, op.inputs[0])
    made = result(graph, op)
    same_kind(source, made)
    if source.shape != made.shape:
        raise Refusal("an output of the input's shape", f"{list(made.shape)} from {list(source.shape)}")
    return graph.native(op.inputs[0])


@handles("QUANTIZE")
def quantize(graph: Graph, op: Operator) -> None:
    """float32 to 8 or 16 bits (halves to even, as ONNX rounds; LiteRT: away from zero), or either to other units."""
    operands(graph, op, 1)
    activation(graph, op.inputs[0])
    if not result(graph, op).quantized:
        raise Refusal("an output of 8 or 16 bits", "float32")
    layout = graph.native(op.inputs[0])
    value = graph.real(op.inputs[0], layout)
    scale, zero = graph.units(op.outputs[0])
    graph.bind_stored(
        op.outputs[0],
        lambda name: graph.node("QuantizeLinear", [value, scale, zero], name, label=graph.operator),
        layout,
    )


@handles("DEQUANTIZE")
def dequantize(graph: Graph, op: Operator) -> None:
    """8- and 16-bit activations to float32; constants of 8 bits or float16."""
    (source,) = operands(graph, op, 1)
    made = result(graph, op)
    if made.kind != "FLOAT32" or source is None:
        raise Refusal("an output of float32", made.kind.lower())
    if source.data is not None:
        graph.make_constant(op.outputs[0], real_array(source))
        return
    if not activation(graph, op.inputs[0]).quantized:
        raise Refusal("an input of 8 or 16 bits, or a constant of float16", source.kind.lower())
    layout = graph.native(op.inputs[0])
    scale, zero = graph.units(op.inputs[0])
    stored = graph.stored(op.inputs[0], layout)
    graph.bind_stored(
        op.outputs[0],
        lambda name: graph.node("DequantizeLinear", [stored, scale, zero], name, label=graph.operator),
        layout,
    )
