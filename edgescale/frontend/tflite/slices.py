"""Operators that take a part of a tensor: slices and splits. They copy bytes, so they work on what is stored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgescale.frontend.tflite.graph import FIRST_OF_LAST, Graph, Layout, Refusal
from edgescale.frontend.tflite.reader import Operator, Tensor
from edgescale.frontend.tflite.registry import activation, checked_type, handles, numbers, operands, result, same_kind


@handles("STRIDED_SLICE")
def strided_slice(graph: Graph, op: Operator) -> None:
    """Constant begin, end and positive strides; masks of begin, end and shrunk axes; the whole batch; no ellipsis
    or new axis."""
    _, begin, end, strides = operands(graph, op, 4)
    source, made = activation(graph, op.inputs[0]), result(graph, op)
    same_kind(source, made)
    masks = {name: int(op.options.get(f"{name}Mask", 0)) for name in ("Begin", "End", "Ellipsis", "NewAxis")}
    shrunk, offset = int(op.options.get("ShrinkAxisMask", 0)), bool(op.options.get("Offset", 0))
    rank = len(source.shape)
    given = [numbers(t, what) for t, what in ((begin, "begin"), (end, "end"), (strides, "the strides"))]
    if masks["Ellipsis"] or masks["NewAxis"] or shrunk & 1 or any(len(one) > rank for one in given):
        raise Refusal("no ellipsis, no new axis, the batch kept", f"masks {masks}, shrunk axes {shrunk:b}")
    if len({len(one) for one in given}) != 1 or min(given[2], default=1) < 1:
        raise Refusal("one begin, end and positive stride an axis", f"strides {list(given[2])}")
    starts, stops, steps = [0] * rank, list(source.shape), [1] * rank
    for axis, (first, last, step) in enumerate(zip(*given, strict=True)):
        size, bit = source.shape[axis], 1 << axis
        last = first + last if offset else last
        low = 0 if masks["Begin"] & bit else _inside(first, size)
        high = size if masks["End"] & bit else _inside(last, size)
        if shrunk & bit:
            high, step = low + 1, 1
        starts[axis], stops[axis], steps[axis] = low, high, step
    _slice(graph, op, op.outputs[0], starts, stops, steps, [axis for axis in range(rank) if shrunk & 1 << axis])


@handles("SLICE")
def plain_slice(graph: Graph, op: Operator) -> None:
    """Constant begin and size (-1: to the end); the whole batch."""
    _, begin, size = operands(graph, op, 3)
    source, made = activation(graph, op.inputs[0]), result(graph, op)
    same_kind(source, made)
    starts, sizes = numbers(begin, "begin"), numbers(size, "the size")
    if not len(starts) == len(sizes) == len(source.shape) or min(starts) < 0:
        raise Refusal("a begin and a size for each axis", f"{list(starts)} and {list(sizes)}")
    stops = [
        whole if count == -1 else first + count for first, count, whole in zip(starts, sizes, source.shape, strict=True)
    ]
    _slice(graph, op, op.outputs[0], starts, stops, [1] * len(starts))


@handles("SPLIT")
def split(graph: Graph, op: Operator) -> None:
    """A constant axis behind the batch, into equal parts."""
    axis, _ = operands(graph, op, 2)
    source = activation(graph, op.inputs[1])
    position = _axis(axis, source)
    size, rest = divmod(source.shape[position], max(len(op.outputs), 1))
    if rest:
        raise Refusal("equal parts", f"{len(op.outputs)} of {source.shape[position]}")
    _parts(graph, op, op.inputs[1], position, [size] * len(op.outputs))


@handles("SPLIT_V")
def split_v(graph: Graph, op: Operator) -> None:
    """A constant axis behind the batch and constant sizes, one of which may be -1: the rest."""
    _, sizes, axis = operands(graph, op, 3)
    source = activation(graph, op.inputs[0])
    position, parts = _axis(axis, source), list(numbers(sizes, "the sizes"))
    if parts.count(-1) == 1:
        parts[parts.index(-1)] = source.shape[position] - sum(part for part in parts if part != -1)
    if len(parts) != len(op.outputs) or min(parts, default=0) < 1 or sum(parts) != source.shape[position]:
        raise Refusal("sizes that add up, one an output", f"{parts} of {source.shape[position]}")
    _parts(graph, op, op.inputs[0], position, parts)


def _axis(axis: Tensor | None, source: Tensor) -> int:
    found, rank = numbers(axis, "the axis"), len(source.shape)
    if len(found) != 1 or not -rank <= found[0] < rank or found[0] % rank == 0:
        raise Refusal("an axis behind the batch", f"{list(found)} of {list(source.shape)}")
    return found[0] % rank


def _inside(position: int, size: int) -> int:
    return min(max(position + size if position < 0 else position, 0), size)


def _parts(graph: Graph, op: Operator, index: int, axis: int, sizes: Sequence[int]) -> None:
    rank, at = len(graph.tensor(index).shape), 0
    for made, size in zip(op.outputs, sizes, strict=True):
        checked_type(graph.tensor(made))
        same_kind(graph.tensor(index), graph.tensor(made))
        starts, stops = [0] * rank, list(graph.tensor(index).shape)
        starts[axis], stops[axis] = at, at + size
        _slice(graph, op, made, starts, stops, [1] * rank, source=index)
        at += size


def _slice(
    graph: Graph,
    op: Operator,
    made: int,
    starts: Sequence[int],
    stops: Sequence[int],
    steps: Sequence[int],
    dropped: Sequence[int] = (),
    source: int | None = None,
) -> None:
    """[start, stop) of every axis, by steps, then without the `dropped` axes of size 1."""
    index = op.inputs[0] if source is None else source
    shape, wanted = graph.tensor(index).shape, graph.tensor(made).shape
    sizes = [len(range(a, b, step)) for a, b, step in zip(starts, stops, steps, strict=True)]
    kept = tuple(size for axis, size in enumerate(sizes) if axis not in dropped)
    if (
        min(sizes) < 1
        or kept != wanted
        or sizes[0] != shape[0]
        or any(b > s for b, s in zip(stops, shape, strict=True))
    ):
        raise Refusal(
            "a part inside the input, with the whole batch, of the output's shape", f"{sizes} of {list(shape)}"
        )
    layout: Layout = "last" if dropped else graph.native(index)
    cut = [axis for axis in range(len(shape)) if sizes[axis] != shape[axis]]
    value = graph.stored(index, layout)
    if cut:
        vectors = [[part[axis] for axis in cut] for part in (starts, stops)]
        vectors.append([FIRST_OF_LAST[axis] if layout == "first" else axis for axis in cut])
        vectors.append([steps[axis] for axis in cut])
        words = ("starts", "ends", "axes", "steps")
        inputs = [
            graph.constant(f"{graph.name(made)}/{word}", np.asarray(vector, np.int64))
            for word, vector in zip(words, vectors, strict=True)
        ]
        operator, inputs = "Slice", [value, *inputs]
    else:
        operator, inputs = "Identity", [value]
    label = f"{graph.readable(made)}" if made in op.outputs[1:] else graph.operator
    if dropped:
        part = graph.node(operator, inputs)
        target = graph.constant(f"shape_{'x'.join(map(str, wanted))}", np.asarray(wanted, np.int64))
        graph.bind_stored(made, lambda name: graph.node("Reshape", [part, target], name, label=label), layout)
        return
    graph.bind_stored(made, lambda name: graph.node(operator, inputs, name, label=label), layout)
