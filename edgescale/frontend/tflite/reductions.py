"""Pools, means and Softmax."""

from __future__ import annotations

import math

from edgescale.frontend.tflite.graph import FIRST_OF_LAST, Graph, Layout, Refusal
from edgescale.frontend.tflite.reader import Operator
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
from edgescale.frontend.tflite.weighted import window


@handles("AVERAGE_POOL_2D", "MAX_POOL_2D")
def pool(graph: Graph, op: Operator) -> None:
    """[1, H, W, C]; any kernel and stride; SAME or VALID padding, which an average does not count; float32, 8
    bits or int16 of one scale."""
    operands(graph, op, 1)
    source, made = activation(graph, op.inputs[0]), result(graph, op)
    same_kind(source, made)
    if len(source.shape) != 4:
        raise Refusal("an input of four axes", f"{list(source.shape)}")
    one_scale(graph, source, made)
    kernel = (int(op.options.get("FilterHeight", 0)), int(op.options.get("FilterWidth", 0)))
    strides, pads, _ = window(op, source, made, kernel)
    inputs = [graph.real(op.inputs[0], "first")]
    operator = "MaxPool" if op.kind == "MAX_POOL_2D" else "AveragePool"
    finish(graph, op, "first", operator, inputs, kernel_shape=list(kernel), strides=strides, pads=pads)


@handles("MEAN")
def mean(graph: Graph, op: Operator) -> None:
    """Constant axes without the batch; with or without keep_dims; float32 or integers."""
    _, axes_tensor = operands(graph, op, 2)
    source, made = activation(graph, op.inputs[0]), result(graph, op)
    same_kind(source, made)
    rank = len(source.shape)
    given = numbers(axes_tensor, "the list of axes")
    if not given or any(not -rank <= axis < rank for axis in given) or 0 in {axis % rank for axis in given}:
        raise Refusal("axes of the input without the batch", f"{list(given)} of {list(source.shape)}")
    axes = sorted({axis % rank for axis in given})
    keep = bool(op.options.get("KeepDims", 0))
    # [1, C] is the same in both layouts.
    layout: Layout = "first" if graph.native(op.inputs[0]) == "first" and (keep or axes == [1, 2]) else "last"
    moved = sorted(FIRST_OF_LAST[axis] for axis in axes) if layout == "first" else axes
    inputs = [graph.real(op.inputs[0], layout), graph.constant(f"axes_{'_'.join(map(str, moved))}", moved)]
    finish(graph, op, layout if keep else "last", "ReduceMean", inputs, keepdims=int(keep))


@handles("SOFTMAX")
def softmax(graph: Graph, op: Operator) -> None:
    """Over the last axis, any positive beta (1 for int16); float32 or integers."""
    operands(graph, op, 1)
    source, made = activation(graph, op.inputs[0]), result(graph, op)
    same_kind(source, made)
    beta = float(op.options.get("Beta", 1.0))
    if not (math.isfinite(beta) and beta > 0) or not source.shape or source.shape != made.shape:
        raise Refusal("a positive beta and an output of the input's shape", f"beta {beta:g}, {list(made.shape)}")
    if source.kind == "INT16" and beta != 1:
        raise Refusal("a beta of 1 for int16", f"beta {beta:g}")
    finish(graph, op, "last", "Softmax", [graph.real(op.inputs[0], "last", beta)], axis=-1)
