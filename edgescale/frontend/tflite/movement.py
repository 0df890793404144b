"""Operators that only move elements: reshapes, transposes, padding, concatenation.

They work on what is stored, integers where the tensor is quantized: LiteRT copies bytes here and looks at no scale.
"""

from __future__ import annotations

import math

import numpy as np

from edgescale.frontend.tflite.graph import FIRST_OF_LAST, Graph, Refusal
from edgescale.frontend.tflite.reader import Operator, Tensor
from edgescale.frontend.tflite.registry import (
    activation,
    finish,
    handles,
    numbers,
    one_scale,
    operands,
    result,
    same_kind,
)


@handles("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
def reshape(graph: Graph, op: Operator) -> None:
    """The shape the file notes for the output, with as many elements as the input."""
    operands(graph, op, 1, 2)
    source, made = activation(graph, op.inputs[0]), result(graph, op)
    same_kind(source, made)
    if math.prod(source.shape) != math.prod(made.shape) or not made.shape:
        raise Refusal("as many elements as the input", f"{list(made.shape)} from {list(source.shape)}")
    value = graph.stored(op.inputs[0])
    shape = graph.constant(f"shape_{'x'.join(map(str, made.shape))}", np.asarray(made.shape, np.int64))
    graph.bind_stored(
        op.outputs[0], lambda name: graph.node("Reshape", [value, shape], name, label=graph.operator), "last"
    )


@handles("TRANSPOSE")
def transpose(graph: Graph, op: Operator) -> None:
    """A constant permutation that leaves the batch in front."""
    _, order = operands(graph, op, 2)
    source, made = activation(graph, op.inputs[0]), result(graph, op)
    same_kind(source, made)
    permutation = numbers(order, "the permutation")
    rank = len(source.shape)
    if sorted(permutation) != list(range(rank)) or made.shape != tuple(source.shape[axis] for axis in permutation):
        raise Refusal("a permutation of the input's axes", f"{list(permutation)} of {list(source.shape)}")
    value = graph.stored(op.inputs[0])
    graph.bind_stored(
        op.outputs[0],
        lambda name: graph.node("Transpose", [value], name, label=graph.operator, perm=list(permutation)),
        "last",
    )


@handles("PAD", "PADV2")
def pad(graph: Graph, op: Operator) -> None:
    """Constant, non-negative amounts, none for the batch; PADV2: a constant value of the input's type."""
    _, amounts, value = operands(graph, op, 2, 3)
    source, made = activation(graph, op.inputs[0]), result(graph, op)
    same_kind(source, made)
    rank = len(source.shape)
    flat = numbers(amounts, "the padding")
    pairs = list(zip(flat[::2], flat[1::2], strict=False))
    shape = tuple(before + size + after for (before, after), size in zip(pairs, source.shape, strict=False))
    if len(flat) != 2 * rank or min(flat, default=0) < 0 or pairs[:1] != [(0, 0)] or shape != made.shape:
        raise Refusal("[before, after] for each axis, none for the batch", f"{list(flat)} for {list(source.shape)}")
    filler = _filler(graph, op, source, value)
    layout = graph.native(op.inputs[0])
    axes = [FIRST_OF_LAST.index(axis) for axis in range(rank)] if layout == "first" else list(range(rank))
    pads = [pairs[axis][side] for side in range(2) for axis in axes]
    inputs = [graph.real(op.inputs[0], layout), graph.constant(f"{graph.operator}/pads", np.asarray(pads, np.int64))]
    finish(graph, op, layout, "Pad", [*inputs, graph.constant(f"{graph.operator}/value", np.float32(filler))])


def _filler(graph: Graph, op: Operator, source: Tensor, value: Tensor | None) -> float:
    """The real padding value: 0, or PADV2's constant."""
    if op.kind == "PAD" or value is None:
        return 0.0
    if value.data is None or value.data.size != 1 or value.kind != source.kind:
        raise Refusal("one constant value of the input's type", f"{value.name!r} of type {value.kind.lower()}")
    number = float(value.data.reshape(-1)[0])
    if not source.quantized:
        return number
    # LiteRT copies the integer; its meaning is that of the tensor it goes into.
    units = graph.quantization(op.outputs[0])
    return (number - float(units.zero_point[0])) * float(units.scale[0])


@handles("CONCATENATION")
def concatenation(graph: Graph, op: Operator) -> None:
    """Activations along any axis but the batch, float32 or of one integer type; int16 of one scale."""
    made = result(graph, op)
    if not op.inputs:
        raise Refusal("at least one input", "none")
    tensors = [activation(graph, index) for index in op.inputs if index >= 0]
    same_kind(made, *tensors)
    one_scale(graph, made, *tensors)
    rank, axis = len(made.shape), int(op.options.get("Axis", 0))
    if len(tensors) != len(op.inputs) or not -rank <= axis < rank or axis % rank == 0:
        raise Refusal("an axis behind the batch", f"axis {axis} of {list(made.shape)}")
    layout = graph.layout_of(op.inputs) if rank == 4 else "last"
    axis = FIRST_OF_LAST[axis % rank] if layout == "first" else axis % rank
    finish(graph, op, layout, "Concat", [graph.real(index, layout) for index in op.inputs], axis=axis)
