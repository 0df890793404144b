"""Element-wise activations and Softmax."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgescale.lower.attributes import integer, normal_axis, real
from edgescale.lower.context import Context, Value
from edgescale.lower.errors import NodeError
from edgescale.lower.integer import SOFTMAX_UNITS, activation_rescaling, clamp_of, rescaling, softmax_scaling
from edgescale.lower.layout import View, view
from edgescale.lower.program import Lut, Rescale, Softmax, Unary
from edgescale.lower.registry import handles
from edgescale.lower.sink import activation_bounds, follow
from edgescale.lower.tables import table_of

if TYPE_CHECKING:
    import onnx_ir


@handles("Relu", "Clip")
def clamp(context: Context, node: onnx_ir.Node) -> None:
    """Clip bounds are constants. Folded into the layer in front where that layer's result has no other reader. int8
    where the input is."""
    value = context.value(node)
    bounds = activation_bounds(context, node)
    if bounds is None:
        raise NodeError("bounds computed at run time")
    units = context.units(value)
    source = context.tensors[value.tensor]
    if units is None:
        if node.op_type == "Relu":
            _unary(context, node, "relu", ())
        else:
            _unary(context, node, "clip", bounds)
        return
    sink = follow(context, node)
    out_units = sink.units or units
    made = context.tensor(sink.value, source.shape, out_units)
    low, high = (min(max(bound, sink.low), sink.high) for bound in bounds)
    context.layers.append(
        Rescale(
            context.name_of(node), (source.name,), made.name, activation_rescaling(units[0], out_units[0]),
            clamp_of(made, low, high), nodes=sink.nodes,
        )
    )  # fmt: skip
    sink.bind(context, made, value.view)


@handles("Sigmoid", "Tanh", "Exp", "HardSwish")
def plain(context: Context, node: onnx_ir.Node) -> None:
    """Any shape. int8 (a table of 256 entries) between DequantizeLinear and QuantizeLinear."""
    _unary(context, node, node.op_type.lower(), ())


@handles("HardSigmoid")
def hard_sigmoid(context: Context, node: onnx_ir.Node) -> None:
    """Any shape, alpha and beta. int8 (a table of 256 entries) between DequantizeLinear and QuantizeLinear."""
    _unary(context, node, "hardsigmoid", (real(node, "alpha", 0.2), real(node, "beta", 0.5)))


@handles("LeakyRelu", "Elu")
def one_parameter(context: Context, node: onnx_ir.Node) -> None:
    """Any shape and alpha. int8 (a table of 256 entries) between DequantizeLinear and QuantizeLinear."""
    default = 0.01 if node.op_type == "LeakyRelu" else 1.0
    _unary(context, node, node.op_type.lower(), (real(node, "alpha", default),))


def _unary(context: Context, node: onnx_ir.Node, function: str, parameters: tuple[float, ...]) -> None:
    value = context.value(node)
    sink = follow(context, node, "nothing")
    units = context.units(value)
    name = context.name_of(node)
    if units is not None and sink.units is not None:
        source = context.tensors[value.tensor]
        made = context.tensor(sink.value, source.shape, sink.units)
        table = table_of(function, parameters, units, sink.units)
        context.layers.append(Lut(name, (source.name,), made.name, table, function, nodes=sink.nodes))
    else:
        value = context.real(value, node)
        source = context.tensors[value.tensor]
        made = context.tensor(sink.value, source.shape, None)
        context.layers.append(Unary(name, (source.name,), made.name, function, parameters, nodes=sink.nodes[:1]))
    sink.bind(context, made, value.view)


@handles("Softmax")
def softmax(context: Context, node: onnx_ir.Node) -> None:
    """Any one axis (before opset 13: the last one, or one behind which all are 1). int8 where the input is and the
    output is quantized with a scale of 1/256 or more; else float32 between Dequantize and Quantize."""
    value = context.value(node)
    rank = len(value.shape)
    axis = normal_axis(integer(node, "axis", -1 if context.opset >= 13 else 1), rank)
    if context.opset < 13 and math.prod(value.shape[axis + 1 :]) != 1:
        raise NodeError(f"axis {axis} of an input {list(value.shape)} at opset {context.opset}")
    sink = follow(context, node, "nothing")
    units = context.units(value)
    # The sum of a row, at most its length, must fit Q12.19.
    fixed = units is not None and sink.units is not None and value.shape[axis] < 4096
    fixed = fixed and sink.units is not None and sink.units[0] >= SOFTMAX_UNITS[0] * (1 - 1e-6)
    if not fixed:
        value, units = context.real(value, node), None
    source, order = _rows_along(context, value, axis, node)
    multiplier, shift, least = softmax_scaling(units[0]) if units is not None else (0, 0, 0)
    exact = not fixed or sink.units == SOFTMAX_UNITS
    name = sink.value if exact else f"{sink.value}.fixed"
    made = context.tensor(name, context.tensors[source].shape, SOFTMAX_UNITS if fixed else None)
    label = context.name_of(node)
    context.layers.append(
        Softmax(
            label, (source,), made.name, nodes=sink.nodes if fixed else sink.nodes[:1],
            input_multiplier=multiplier, input_left_shift=shift, diff_min=least,
        )
    )  # fmt: skip
    if not exact and sink.units is not None:
        # Such as 1/255, which ONNX Runtime's quantizer writes.
        last = context.tensor(sink.value, made.shape, sink.units)
        scaling = rescaling(SOFTMAX_UNITS[0], last.scale)
        context.layers.append(Rescale(f"{label}/requantize", (made.name,), last.name, scaling, (-128, 127)))
        made = last
    sink.bind(context, made, order)


def _rows_along(context: Context, value: Value, axis: int, node: onnx_ir.Node) -> tuple[str, View]:
    """(stored tensor whose last axis is ONNX `axis`, its order), moving bytes only where `axis` is not innermost."""
    size = value.shape[axis]
    rows = math.prod(value.shape) // size
    kept = value.view.axes()
    if kept is not None and size > 1 and [a for a in kept if value.shape[a] > 1][-1:] == [axis]:
        order = value.view
    else:
        order = view(value.shape, [a for a in range(len(value.shape)) if a != axis] + [axis])
    current = context.tensors[value.tensor].shape
    if order == value.view and current[-1] == size:
        return value.tensor, order
    return context.arrange(value, order, (1, size) if rows == 1 else (1, 1, rows, size), node), order
