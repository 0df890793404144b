"""Operators that take a part of a tensor: Slice and Split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgescale.lower.attributes import integer, integers, normal_axis
from edgescale.lower.context import Context, Value
from edgescale.lower.errors import NodeError
from edgescale.lower.layout import channels_last, stored_shape, view
from edgescale.lower.program import Slice
from edgescale.lower.registry import handles

if TYPE_CHECKING:
    import onnx_ir


@handles("Slice")
def slice_(context: Context, node: onnx_ir.Node) -> None:
    """Constant starts, ends, axes and positive steps; the whole batch."""
    value = context.value(node)
    rank = len(value.shape)
    starts, ends = integers(context, node, "starts", 1), integers(context, node, "ends", 2)
    if starts is None or ends is None or len(starts) != len(ends):
        raise NodeError("starts and ends that are missing or of two lengths")
    axes = integers(context, node, "axes", 3) or tuple(range(len(starts)))
    steps = integers(context, node, "steps", 4) or (1,) * len(starts)
    if not len(starts) == len(axes) == len(steps) or min(steps, default=1) < 1:
        raise NodeError(f"axes {list(axes)} and steps {list(steps)}")
    begin, step, shape = [0] * rank, [1] * rank, list(value.shape)
    for axis, low, high, stride in zip(axes, starts, ends, steps, strict=True):
        axis = normal_axis(axis, rank)
        part = range(value.shape[axis])[low:high:stride]
        if not part:
            raise NodeError(f"nothing left of axis {axis}")
        begin[axis], step[axis], shape[axis] = part.start, stride, len(part)
    _part(context, node, 0, value, begin, step, shape)


@handles("Split")
def split(context: Context, node: onnx_ir.Node) -> None:
    """Constant sizes, or equal parts, along any axis but the batch."""
    value = context.value(node)
    axis = normal_axis(integer(node, "axis", 0), len(value.shape))
    size, count = value.shape[axis], len(node.outputs)
    sizes = integers(context, node, "split", 1)
    if sizes is None:
        # The last part is smaller where they cannot be equal.
        part = -(-size // count)
        sizes = (*(part,) * (count - 1), size - part * (count - 1))
    if len(sizes) != count or sum(sizes) != size or min(sizes) < 1:
        raise NodeError(f"sizes {list(sizes)} of {size}, {count} outputs")
    begin, shape = [0] * len(value.shape), list(value.shape)
    for index, part in enumerate(sizes):
        shape[axis] = part
        _part(context, node, index, value, begin, [1] * len(shape), shape)
        begin[axis] += part


@handles("Gather")
def gather(context: Context, node: onnx_ir.Node) -> None:
    """One constant index, along any axis but the batch."""
    value = context.value(node)
    axis = normal_axis(integer(node, "axis", 0), len(value.shape))
    index = context.constant(node, 1)
    if index.values.size != 1 or axis == 0:
        raise NodeError(f"{index.values.size} indices along axis {axis}")
    at = int(index.values.reshape(-1)[0])
    if not -value.shape[axis] <= at < value.shape[axis]:
        raise NodeError(f"index {at} of {value.shape[axis]}")
    begin, shape = [0] * len(value.shape), list(value.shape)
    begin[axis], shape[axis] = at % value.shape[axis], 1
    _part(context, node, 0, value, begin, [1] * len(shape), shape)
    name = str(node.outputs[0].name)
    kept = (*shape[:axis], *index.shape, *shape[axis + 1 :])
    found = context.values[name].view.reshape(kept)
    if found is None:
        raise NodeError(f"a shape {list(kept)} of {shape}")
    context.values[name] = Value(context.values[name].tensor, found)


def _part(
    context: Context,
    node: onnx_ir.Node,
    output: int,
    value: Value,
    begin: Sequence[int],
    step: Sequence[int],
    shape: Sequence[int],
) -> None:
    """Bind output `output` of the node to the part of `value`."""
    name = str(node.outputs[output].name)
    if tuple(shape) == value.shape:
        context.values[name] = value
        return
    rank = len(shape)
    if shape[0] != value.shape[0]:
        raise NodeError(f"{shape[0]} of a batch of {value.shape[0]}")
    order = value.view.axes()
    if order is None or order[0] != 0:
        order = channels_last(rank) if rank == 4 else tuple(range(rank))
    source = context.arrange(value, view(value.shape, order), stored_shape(value.shape, order), node)
    out = context.tensor(name, stored_shape(tuple(shape), order), context.units(value))
    front = len(out.shape) - rank
    label = context.name_of(node)
    context.layers.append(
        Slice(
            label if len(node.outputs) == 1 else f"{label}/{output}", (source,), out.name, nodes=(label,),
            begin=(0,) * front + tuple(begin[axis] for axis in order),
            step=(1,) * front + tuple(step[axis] for axis in order),
        )
    )  # fmt: skip
    context.values[name] = Value(out.name, view(tuple(shape), order))
