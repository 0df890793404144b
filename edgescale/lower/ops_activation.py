"""Element-wise activations and Softmax."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from edgescale.lower.attributes import integer, normal_axis, real
from edgescale.lower.context import Context, Units, Value
from edgescale.lower.errors import NodeError
from edgescale.lower.integer import (
    SOFTMAX_UNITS,
    activation_rescaling,
    clamp_of,
    interpolated_softmax_scaling,
    rescaling,
    softmax_scaling,
)
from edgescale.lower.interpolated import sigmoid_scaling
from edgescale.lower.layout import View, view
from edgescale.lower.program import InterpolatedLut, Lut, Rescale, Softmax, Tensor, Unary
from edgescale.lower.registry import handles
from edgescale.lower.sink import Sink, activation_bounds, follow
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
            context.name_of(node), (source.name,), made.name,
            activation_rescaling(units.scale, out_units.scale, units.dtype), clamp_of(made, low, high),
            nodes=sink.nodes,
        )
    )  # fmt: skip
    sink.bind(context, made, value.view)


@handles("Sigmoid", "Tanh", "Exp", "HardSwish")
def plain(context: Context, node: onnx_ir.Node) -> None:
    """Any shape. int8 (a table of 256 entries) between DequantizeLinear and QuantizeLinear; int16 for Sigmoid and
    Tanh."""
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
    if units is not None and sink.units is not None and "int16" in (units.dtype, sink.units.dtype):
        _interpolated(context, node, function, value, sink)
        return
    if units is not None and sink.units is not None:
        source = context.tensors[value.tensor]
        made = context.tensor(sink.value, source.shape, sink.units)
        table = table_of(function, parameters, units[:2], sink.units[:2])
        context.layers.append(Lut(name, (source.name,), made.name, table, function, nodes=sink.nodes))
    else:
        value = context.real(value, node)
        source = context.tensors[value.tensor]
        made = context.tensor(sink.value, source.shape, None)
        context.layers.append(Unary(name, (source.name,), made.name, function, parameters, nodes=sink.nodes[:1]))
    sink.bind(context, made, value.view)


def _interpolated(context: Context, node: onnx_ir.Node, function: str, value: Value, sink: Sink) -> None:
    """sigmoid or tanh of int16."""
    units, output = context.units(value), sink.units
    name = function if function in ("sigmoid", "tanh") else ""
    if not name or units is None or output is None or units.dtype != "int16" or output.dtype != "int16":
        raise NodeError(
            f"{function} from {shown_units(units)} to {shown_units(output)}",
            "of functions, int16 has sigmoid and tanh, from int16 to int16",
        )
    try:
        multiplier, shift = sigmoid_scaling(units.scale)
    except ValueError:
        rule = "the input of int16 sigmoid and tanh has a scale below 16/3"
        raise NodeError(f"scale {units.scale:g}", rule) from None
    source, label = context.tensors[value.tensor], context.name_of(node)
    result = SOFTMAX_UNITS["int16"]
    exact = output == result
    made = context.tensor(sink.value if exact else f"{sink.value}.fixed", source.shape, result)
    kind: Literal["sigmoid", "tanh"] = "sigmoid" if name == "sigmoid" else "tanh"
    context.layers.append(InterpolatedLut(label, (source.name,), made.name, kind, multiplier, shift, nodes=sink.nodes))
    sink.bind(context, made if exact else _requantized(context, label, made, sink.value, output), value.view)


def _requantized(context: Context, label: str, source: Tensor, name: str, units: Units) -> Tensor:
    """A result of fixed units in others, such as 1/255 or 1/32767, which ONNX Runtime's quantizer writes."""
    made = context.tensor(name, source.shape, units)
    scaling = rescaling(source.scale, units.scale, source.dtype)
    context.layers.append(Rescale(f"{label}/requantize", (source.name,), made.name, scaling, units.limits))
    return made


def shown_units(units: Units | None) -> str:
    """Units as messages print them."""
    return "float32" if units is None else f"{units.dtype} of scale {units.scale:g}"


@handles("Softmax")
def softmax(context: Context, node: onnx_ir.Node) -> None:
    """Any one axis (before opset 13: the last one, or one behind which all are 1). int8 where the input is and the
    output is quantized with a scale of 1/256 or more, int16 where the input is and the output's scale is 1/32768 or
    more; else float32 between Dequantize and Quantize."""
    value = context.value(node)
    rank = len(value.shape)
    axis = normal_axis(integer(node, "axis", -1 if context.opset >= 13 else 1), rank)
    if context.opset < 13 and math.prod(value.shape[axis + 1 :]) != 1:
        raise NodeError(f"axis {axis} of an input {list(value.shape)} at opset {context.opset}")
    sink = follow(context, node, "nothing")
    units = context.units(value)
    result = SOFTMAX_UNITS[units.dtype] if units is not None else None
    # The sum of a row, at most its length, must fit Q12.19 of int8, Q16.15 of int16.
    longest = 4096 if units is None or units.dtype == "int8" else 2**16
    fixed = result is not None and sink.units is not None and value.shape[axis] < longest
    fixed = fixed and result is not None and sink.units is not None and sink.units.scale >= result.scale * (1 - 1e-6)
    if not fixed:
        value, units, result = context.real(value, node), None, None
    source, order = _rows_along(context, value, axis, node)
    multiplier, shift, least = _softmax_scaling(units) if units is not None else (0, 0, 0)
    exact = result is None or sink.units == result
    name = sink.value if exact else f"{sink.value}.fixed"
    made = context.tensor(name, context.tensors[source].shape, result)
    label = context.name_of(node)
    context.layers.append(
        Softmax(
            label, (source,), made.name, nodes=sink.nodes if fixed else sink.nodes[:1],
            input_multiplier=multiplier, input_left_shift=shift, diff_min=least,
        )
    )  # fmt: skip
    if not exact and sink.units is not None:
        made = _requantized(context, label, made, sink.value, sink.units)
    sink.bind(context, made, order)


def _softmax_scaling(units: Units) -> tuple[int, int, int]:
    return interpolated_softmax_scaling(units.scale) if units.dtype == "int16" else softmax_scaling(units.scale)


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
