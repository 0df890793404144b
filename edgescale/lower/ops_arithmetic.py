"""Add, Sub, Mul and Div of two activations, or of one and a constant."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgescale.lower.constants import Constant, Real
from edgescale.lower.context import Context, Units, Value
from edgescale.lower.errors import NodeError
from edgescale.lower.integer import add_rescaling, product_requant
from edgescale.lower.layout import Shape, View, view
from edgescale.lower.ops_conv import per_channel_affine
from edgescale.lower.program import LIMITS, Add, Array, DType, Mul
from edgescale.lower.registry import handles
from edgescale.lower.sink import Sink, arithmetic, follow, per_channel

if TYPE_CHECKING:
    import onnx_ir


@handles("Add", "Sub", "Mul")
def add_sub_mul(context: Context, node: onnx_ir.Node) -> None:
    """Two activations of one shape, or one of which has one value a channel or a single one; or an activation and a
    constant that broadcasts to its shape. int8 between DequantizeLinear and QuantizeLinear."""
    _binary(context, node)


@handles("Div")
def div(context: Context, node: onnx_ir.Node) -> None:
    """An activation divided by a constant without zeros that broadcasts to its shape. int8 between DequantizeLinear and
    QuantizeLinear."""
    _binary(context, node)


def _binary(context: Context, node: onnx_ir.Node) -> None:
    operands = [context.operand(node, index) for index in range(2)]
    first, second = operands
    if isinstance(first, Value) and isinstance(second, Value):
        if node.op_type == "Div":
            raise NodeError("a divisor computed at run time")
        _two_values(context, node, first, second)
    elif isinstance(first, Value) and isinstance(second, Constant):
        _with_constant(context, node, first, second, constant_first=False)
    elif isinstance(first, Constant) and isinstance(second, Value):
        _with_constant(context, node, second, first, constant_first=True)


def _two_values(context: Context, node: onnx_ir.Node, first: Value, second: Value) -> None:
    shape = _broadcast(first.shape, second.shape)
    given = f"shapes {list(first.shape)} and {list(second.shape)}"
    swapped = shape != (1,) * (len(shape) - len(first.shape)) + first.shape
    if swapped:
        first, second = second, first
    first, second = (_with_rank(value, len(shape)) for value in (first, second))
    if first.shape != shape:
        raise NodeError(given)
    sink = follow(context, node)
    units_a, units_b = context.units(first), context.units(second)
    integer = units_a is not None and units_b is not None and sink.units is not None
    # The layer subtracts its second operand; b - a with a broadcast first goes through float negation.
    negate = swapped and node.op_type == "Sub"
    if negate or not integer:
        first, second, integer = context.real(first, node), context.real(second, node), False
    left, right, order, stored = _aligned(context, first, second, node)
    if negate:
        negative = context.tensor(f"{left}.negated", stored, None)
        context.layers.append(
            Mul(
                f"{context.name_of(node)}/negate", (left,), negative.name, requant=None, clamp=(-math.inf, math.inf),
                constant=np.array([-1.0], np.float32),
            )
        )  # fmt: skip
        left = negative.name
    out = context.tensor(sink.value, stored, sink.units if integer else None)
    operator = "Add" if negate else node.op_type
    _append(context, node, operator, sink, (left, right), out.name, units_a, units_b if integer else None)
    sink.bind(context, out, order)


def _append(
    context: Context, node: onnx_ir.Node, operator: str, sink: Sink, inputs: tuple[str, ...], output: str,
    units_a: Units | None, units_b: Units | None, constant: Array | None = None,
) -> None:  # fmt: skip
    """Add or Mul; integer where `units_b` are given. `constant` replaces the second input."""
    out = context.tensors[output]
    name, clamp = context.name_of(node), sink.clamp(out)
    zero = units_b[1] if constant is not None and units_b is not None else 0
    integer = units_a is not None and units_b is not None
    if operator == "Mul":
        scaling = (
            product_requant(units_a.scale, units_b.scale, out.scale, units_a.dtype) if units_a and units_b else None
        )
        context.layers.append(
            Mul(
                name, inputs, output, nodes=sink.nodes, requant=scaling, clamp=clamp, constant=constant,
                constant_zero_point=zero,
            )
        )  # fmt: skip
        return
    shift, rescale, scaling = 0, None, None
    if integer and units_a and units_b:
        shift, rescale, scaling = add_rescaling(units_a.scale, units_b.scale, out.scale, units_a.dtype)
    context.layers.append(
        Add(
            name, inputs, output, nodes=sink.nodes, left_shift=shift, rescale=rescale, requant=scaling, clamp=clamp,
            subtract=operator == "Sub", constant=constant, constant_zero_point=zero,
        )
    )  # fmt: skip


def _with_constant(
    context: Context, node: onnx_ir.Node, value: Value, constant: Constant, *, constant_first: bool
) -> None:
    shape = _broadcast(value.shape, constant.shape)
    if shape != (1,) * (len(shape) - len(value.shape)) + value.shape:
        raise NodeError(f"an input {list(value.shape)} and a constant {list(constant.shape)}")
    value = _with_rank(value, len(shape))
    operator = node.op_type
    if operator == "Div" and (constant_first or np.any(constant.real() == 0)):
        raise NodeError("a divisor computed at run time" if constant_first else "a division by 0")
    integer = context.is_integer(value) and follow(context, node).units is not None
    reversed_sub = operator == "Sub" and constant_first
    if integer and not reversed_sub and operator != "Div" and _in_type(constant, context.units(value)):
        # A constant with units of its own is LiteRT's second operand.
        _full_constant(context, node, follow(context, node), value, constant, operator)
        return
    axis = _channel_axis(value, constant)
    along = per_channel(constant, shape, axis) if axis is not None else None
    if integer and along is not None:
        affine = arithmetic(operator, along, along.size, constant_first=constant_first)
        if affine is not None:
            per_channel_affine(context, node, value, affine, axis or 0)
            return
    real = constant.real()
    if operator == "Div":
        operator, real, constant = "Mul", 1 / real, Constant(1 / real)
    sink = follow(context, node)
    if not integer or reversed_sub:
        _real_constant(context, node, sink, value, real, operator, constant_first=constant_first)
    else:
        _full_constant(context, node, sink, value, constant, operator)


def _real_constant(
    context: Context, node: onnx_ir.Node, sink: Sink, value: Value, real: Real, operator: str, *, constant_first: bool
) -> None:
    value = context.real(value, node)
    source = context.tensors[value.tensor]
    name = source.name
    stored = _stored_constant(context, value, real).astype(np.float32)
    if operator == "Sub" and constant_first:
        negative = context.tensor(f"{name}.negated", source.shape, None)
        minus = np.array([-1.0], np.float32)
        context.layers.append(
            Mul(
                f"{context.name_of(node)}/negate", (name,), negative.name, requant=None, clamp=(-math.inf, math.inf),
                constant=minus,
            )
        )  # fmt: skip
        name, operator = negative.name, "Add"
    out = context.tensor(sink.value, source.shape, None)
    _append(context, node, operator, sink, (name,), out.name, None, None, stored)
    sink.bind(context, out, value.view)


def _full_constant(
    context: Context, node: onnx_ir.Node, sink: Sink, value: Value, constant: Constant, operator: str
) -> None:
    """Integer Add, Sub or Mul by a constant of the full shape, in its own units or symmetric ones of that type."""
    given = context.units(value)
    integers, units = _integer_constant(constant, "int8" if given is None else given.dtype)
    stored = _stored_constant(context, value, integers).astype(units.dtype)
    source = context.tensors[value.tensor]
    out = context.tensor(sink.value, source.shape, sink.units)
    _append(context, node, operator, sink, (source.name,), out.name, context.units(value), units, stored)
    sink.bind(context, out, value.view)


def _in_type(constant: Constant, units: Units | None) -> bool:
    """Whether a constant has one scale, above zero, and the integer type of an activation in `units`."""
    one = constant.scale is not None and constant.scale.size == 1 and bool((constant.scale > 0).all())
    if units is not None and units.dtype == "int16":
        point = constant.zero_point
        return one and constant.values.dtype == np.int16 and (point is None or not point.any())
    return one and constant.values.dtype in (np.int8, np.uint8)


def _integer_constant(constant: Constant, dtype: DType) -> tuple[Array, Units]:
    scale, zero = constant.scale, constant.zero_point
    if scale is not None and _in_type(constant, Units(1.0, 0, dtype)):
        shift = 128 if constant.values.dtype == np.uint8 else 0
        point = 0 if zero is None else int(zero.reshape(-1)[0])
        return constant.values.astype(np.int16) - shift, Units(float(scale.reshape(-1)[0]), point - shift, dtype)
    real = constant.real()
    step = max(float(np.abs(real).max(initial=0.0)) / LIMITS[dtype][1], 1e-30)
    return np.rint(real / step), Units(step, 0, dtype)


def _stored_constant(context: Context, value: Value, array: Array) -> Array:
    """A constant in the order and shape of the value's tensor: one entry, one a last stored axis, or all."""
    if array.size == 1:
        return array.reshape(1)
    shape = value.shape
    stored = context.tensors[value.tensor].shape
    full = value.view.to_storage(np.broadcast_to(array, shape)).reshape(stored)
    rows = full.reshape(-1, stored[-1])
    return rows[0].copy() if (rows == rows[0]).all() else full


def _channel_axis(value: Value, constant: Constant) -> int | None:
    """The one axis a constant varies along (the innermost stored one for a single value); None for several."""
    aligned = (1,) * (len(value.shape) - len(constant.shape)) + constant.shape
    varying = [axis for axis, size in enumerate(aligned) if size != 1]
    if len(varying) > 1:
        return None
    if varying:
        return varying[0]
    owners = value.view.axes_of_factors()
    return owners[value.view.order[-1]] if value.view.order else len(value.shape) - 1


def _broadcast(first: Shape, second: Shape) -> Shape:
    try:
        return tuple(int(size) for size in np.broadcast_shapes(first, second))
    except ValueError:
        raise NodeError(f"shapes {list(first)} and {list(second)}") from None


def _with_rank(value: Value, rank: int) -> Value:
    """The value with leading axes of 1."""
    shape = (1,) * (rank - len(value.shape)) + value.shape
    moved = value.view.reshape(shape)
    assert moved is not None
    return Value(value.tensor, moved)


def _aligned(context: Context, first: Value, second: Value, node: onnx_ir.Node) -> tuple[str, str, View, Shape]:
    """Both operands in one order: (first, second, the order, the first's stored shape).

    A second operand of fewer elements is stored as the innermost part of the first.
    """
    stored = context.tensors[first.tensor].shape
    if second.shape == first.shape:
        if second.view == first.view:
            return first.tensor, context.arrange(second, first.view, stored, node), first.view, stored
        return first.tensor, context.arrange(second, first.view, stored, node), first.view, stored
    shape = first.shape
    varying = [axis for axis, size in enumerate(second.shape) if size != 1]
    inner = math.prod(second.shape)
    if not varying:
        return first.tensor, second.tensor, first.view, stored
    owners = first.view.axes_of_factors()
    outer: list[int] = []
    for index in first.view.order:
        if owners[index] not in varying and owners[index] not in outer:
            outer.append(owners[index])
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    order = view(shape, [*ones, *outer, *varying])
    right = context.arrange(second, view(second.shape, range(len(shape))), (1, inner), node)
    wanted = stored if stored[-1] == inner and order == first.view else (1, 1, math.prod(shape) // inner, inner)
    return context.arrange(first, order, wanted, node), right, order, wanted
