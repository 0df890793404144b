"""Operators that only move or relabel elements: Reshape and its kin, Transpose, Concat, Pad, Identity."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgescale.lower.attributes import axes_of, integer, integers, normal_axis
from edgescale.lower.constants import Constant
from edgescale.lower.context import Context, Value
from edgescale.lower.errors import NodeError
from edgescale.lower.integer import rescaling
from edgescale.lower.layout import View, channels_last, stored_shape, view
from edgescale.lower.program import Concat, Pad
from edgescale.lower.registry import handles
from edgescale.lower.sink import follow

if TYPE_CHECKING:
    import onnx_ir


@handles("Identity", "Dropout")
def identity(context: Context, node: onnx_ir.Node) -> None:
    """Removed; a Dropout must not be in training mode and only its first output is read."""
    if any(output.uses() for output in node.outputs[1:]):
        raise NodeError("a reader of its mask")
    mode = context.optional(node, 2) if node.op_type == "Dropout" else None
    if mode is not None and bool(mode.values.reshape(-1)[0]):
        raise NodeError("training_mode = 1")
    context.values[str(node.outputs[0].name)] = context.value(node)


@handles("Cast")
def cast(context: Context, node: onnx_ir.Node) -> None:
    """Activations only to float32, which they are."""
    import onnx

    target = integer(node, "to", 0)
    if target != onnx.TensorProto.FLOAT:
        raise NodeError(f"to = {onnx.TensorProto.DataType.Name(target)}")
    context.values[str(node.outputs[0].name)] = context.value(node)


@handles("Constant")
def constant(context: Context, node: onnx_ir.Node) -> None:
    """Any tensor or number."""
    raise NodeError("one that cannot be read")


@handles("Shape")
def shape_of(context: Context, node: onnx_ir.Node) -> None:
    """A constant, as every shape is static; the batch counts as 1."""
    shape = context.value(node).shape
    rank = len(shape)
    start, end = integer(node, "start", 0), integer(node, "end", rank)
    context.constants[str(node.outputs[0].name)] = Constant(np.array(shape[slice(start, end)], np.int64))


@handles("Reshape")
def reshape(context: Context, node: onnx_ir.Node) -> None:
    """Constant shape that keeps the batch axis (1, 0 or -1). Free: no bytes move until an operator needs them in
    another order."""
    value = context.value(node)
    wanted = integers(context, node, "shape", 1)
    if wanted is None:
        raise NodeError("no shape")
    zero_is_copy = not integer(node, "allowzero", 0)
    shape = [
        value.shape[axis] if size == 0 and zero_is_copy and axis < len(value.shape) else size
        for axis, size in enumerate(wanted)
    ]
    total = math.prod(value.shape)
    known = math.prod(size for size in shape if size != -1)
    if shape.count(-1) == 1 and known and total % known == 0:
        shape[shape.index(-1)] = total // known
    if math.prod(shape) != total or min(shape, default=1) < 1:
        raise NodeError(f"shape {list(wanted)} for an input {list(value.shape)}")
    _relabel(context, node, value, tuple(shape))


@handles("Flatten")
def flatten(context: Context, node: onnx_ir.Node) -> None:
    """Any axis. Free: a Gemm behind it takes the elements in the order they are stored."""
    value = context.value(node)
    rank = len(value.shape)
    axis = integer(node, "axis", 1)
    if not -rank <= axis <= rank:
        raise NodeError(f"axis {axis} of {rank} axes")
    axis = axis + rank if axis < 0 else axis
    _relabel(context, node, value, (math.prod(value.shape[:axis]), math.prod(value.shape[axis:])))


@handles("Squeeze")
def squeeze(context: Context, node: onnx_ir.Node) -> None:
    """Constant axes of size 1. Free."""
    value = context.value(node)
    axes = axes_of(context, node, 1, len(value.shape))
    if axes is None:
        axes = tuple(axis for axis, size in enumerate(value.shape) if size == 1)
    if any(value.shape[axis] != 1 for axis in axes):
        raise NodeError(f"axes {list(axes)} of an input {list(value.shape)}")
    _relabel(context, node, value, tuple(size for axis, size in enumerate(value.shape) if axis not in axes))


@handles("Unsqueeze")
def unsqueeze(context: Context, node: onnx_ir.Node) -> None:
    """Constant axes. Free."""
    value = context.value(node)
    given = integers(context, node, "axes", 1) or ()
    rank = len(value.shape) + len(given)
    axes = {normal_axis(axis, rank) for axis in given}
    sizes = iter(value.shape)
    _relabel(context, node, value, tuple(1 if axis in axes else next(sizes) for axis in range(rank)))


@handles("Transpose")
def transpose(context: Context, node: onnx_ir.Node) -> None:
    """Any permutation. Free: no bytes move until an operator needs them in another order."""
    value = context.value(node)
    rank = len(value.shape)
    permutation = integers(context, node, "perm", len(node.inputs)) or tuple(reversed(range(rank)))
    if sorted(permutation) != list(range(rank)):
        raise NodeError(f"perm {list(permutation)} of {rank} axes")
    context.values[str(node.outputs[0].name)] = Value(value.tensor, value.view.transpose(permutation))


@handles("Concat")
def concat(context: Context, node: onnx_ir.Node) -> None:
    """Activations along any axis but the batch. int8 where all inputs are int8 and the output is quantized or all
    share its units."""
    values = [context.value(node, index) for index in range(len(node.inputs))]
    rank = len(values[0].shape)
    axis = normal_axis(integer(node, "axis", 0), rank)
    others = {tuple(size for a, size in enumerate(value.shape) if a != axis) for value in values}
    if len(others) != 1 or any(len(value.shape) != rank for value in values) or axis == 0:
        raise NodeError(f"axis {axis} and inputs {', '.join(str(list(value.shape)) for value in values)}")
    sink = follow(context, node, "nothing")
    found = [context.units(value) for value in values]
    if None in found or (sink.units is None and len(set(found)) > 1):
        units = None
        values = [context.real(value, node) for value in values]
    else:
        units = sink.units or found[0]
    axes = values[0].view.axes()
    if axes is None or axes[0] != 0:
        axes = channels_last(rank) if rank == 4 else tuple(range(rank))
    shape = list(values[0].shape)
    shape[axis] = sum(value.shape[axis] for value in values)
    scaling = tuple(
        None if units is None or unit is None or unit == units else rescaling(unit.scale, units.scale, unit.dtype)
        for unit in found
    )
    names = [context.arrange(v, view(v.shape, axes), stored_shape(v.shape, axes), node) for v in values]
    out = context.tensor(sink.value, stored_shape(tuple(shape), axes), units)
    # A stored rank-3 value has a height of 1 in front.
    position = axes.index(axis) + len(out.shape) - rank
    context.layers.append(
        Concat(context.name_of(node), tuple(names), out.name, nodes=sink.nodes, axis=position, rescale=scaling)
    )
    sink.bind(context, out, view(tuple(shape), axes))


@handles("Pad")
def pad(context: Context, node: onnx_ir.Node) -> None:
    """Constant mode, constant non-negative pads, no padding of the batch axis. int8 where the input is and the value is
    representable."""
    value = context.value(node)
    rank = len(value.shape)
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
    pads = integers(context, node, "pads", 1)
    if mode != "constant" or pads is None:
        raise NodeError(f"mode {mode!r}")
    axes = integers(context, node, "axes", 3)
    named = tuple(normal_axis(axis, rank) for axis in axes) if axes is not None else tuple(range(rank))
    before, after = [0] * rank, [0] * rank
    for position, axis in enumerate(named):
        before[axis], after[axis] = pads[position], pads[position + len(named)]
    if min(pads, default=0) < 0 or before[0] or after[0]:
        raise NodeError(f"pads {list(pads)}")
    filler = context.optional(node, 2)
    real = float(filler.values.reshape(-1)[0]) if filler is not None and filler.values.size else 0.0
    if "value" in node.attributes:
        real = node.attributes["value"].as_float()
    stored_value = _stored_filler(context, value, real)
    if stored_value is None:
        value, stored_value = context.real(value, node), real
    order = value.view.axes()
    if order is None or order[0] != 0:
        order = channels_last(rank) if rank == 4 else tuple(range(rank))
    shape = tuple(b + size + a for b, size, a in zip(before, value.shape, after, strict=True))
    source = context.arrange(value, view(value.shape, order), stored_shape(value.shape, order), node)
    out = context.tensor(str(node.outputs[0].name), stored_shape(shape, order), context.units(value))
    front = (0,) * (len(out.shape) - rank)
    context.layers.append(
        Pad(
            context.name_of(node), (source,), out.name, nodes=(context.name_of(node),),
            before=front + tuple(before[axis] for axis in order), after=front + tuple(after[axis] for axis in order),
            value=stored_value,
        )
    )  # fmt: skip
    context.values[str(node.outputs[0].name)] = Value(out.name, view(shape, order))


def _stored_filler(context: Context, value: Value, real: float) -> float | None:
    """The padding value in the value's own units; None where they cannot hold it (-inf, for a MaxPool, it can)."""
    units = context.units(value)
    if units is None:
        return real
    if math.isinf(real):
        return float(units.limits[0] if real < 0 else units.limits[1])
    steps = float(np.rint(np.float32(real) / np.float32(units.scale))) + units.zero_point
    return steps if units.limits[0] <= steps <= units.limits[1] else None


def _relabel(context: Context, node: onnx_ir.Node, value: Value, shape: tuple[int, ...]) -> None:
    """The same stored bytes under another ONNX shape; brought into ONNX order first where the view cannot follow."""
    name = str(node.outputs[0].name)
    moved = value.view.reshape(shape)
    if moved is not None:
        context.values[name] = Value(value.tensor, moved)
        return
    plain: View = view(value.shape, range(len(value.shape)))
    tensor = context.arrange(value, plain, stored_shape(value.shape, range(len(value.shape))), node)
    context.values[name] = Value(tensor, view(shape, range(len(shape))))
