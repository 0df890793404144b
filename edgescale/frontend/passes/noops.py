"""Nodes that hand their input on unchanged."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgescale.frontend.graph import (
    constant,
    input_at,
    int_attribute,
    ints_attribute,
    is_float,
    is_op,
    scalar,
    shape_of,
    take_place,
)

_RESHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile")
_ONE_INPUT = ("Concat", "Sum", "Max", "Min", "Mean")


class RemoveNoOps(ir.passes.InPlacePass):
    """Remove Identity, Dropout (as at inference), Cast to the same type, and reshapes that reshape nothing;
    also the identity Transpose, Pad by nothing, Concat and Sum of one tensor, Mul and Div by 1, Add and Sub of 0.

    Requires: shapes inferred. Contract: every output keeps its name and value. A node between a graph
    input (or initializer) and a graph output stays, for ONNX wants one there.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove what does nothing."""
        modified = False
        for node in list(model.graph):
            value = _passes_on(node)
            if value is None:
                continue
            output = node.outputs[0]
            if output.is_graph_output() and (
                value.is_graph_input() or value.is_initializer() or value.is_graph_output()
            ):
                continue
            take_place(output, value)
            model.graph.remove(node, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified)


def _passes_on(node: ir.Node) -> ir.Value | None:
    """The input that the node's first output equals, or None where the node does something."""
    if not node.inputs or (source := node.inputs[0]) is None:
        return None
    output = node.outputs[0]
    before, after = shape_of(source), shape_of(output)
    same_shape = before is not None and before == after
    if is_op(node, "Identity"):
        return source
    if is_op(node, "Dropout"):
        training = constant(input_at(node, 2))
        off = input_at(node, 2) is None or (training is not None and not training.any())
        masked = len(node.outputs) > 1 and bool(node.outputs[1].uses() or node.outputs[1].is_graph_output())
        return source if off and not masked else None
    if is_op(node, "Cast"):
        return source if source.dtype is not None and source.dtype == node.attributes["to"].as_int() else None
    if is_op(node, *_RESHAPING):
        return source if same_shape else None
    if is_op(node, "Transpose") and before is not None:
        order = ints_attribute(node, "perm") or tuple(reversed(range(len(before))))
        return source if order == tuple(range(len(before))) else None
    if is_op(node, "Pad"):
        pads = constant(input_at(node, 1))
        return source if pads is not None and not pads.any() else None
    if is_op(node, *_ONE_INPUT):
        return source if len(node.inputs) == 1 else None
    if is_op(node, "AveragePool", "MaxPool") and same_shape and len(node.outputs) == 1:
        window = ints_attribute(node, "kernel_shape") or (0,)
        strides = ints_attribute(node, "strides") or (1,)
        plain = not int_attribute(node, "ceil_mode", 0)
        return source if plain and set(window) == {1} and set(strides) == {1} else None
    return _neutral_operand(node)


def _neutral_operand(node: ir.Node) -> ir.Value | None:
    """x for x * 1, x / 1, x + 0 and x - 0 in float, where broadcasting does not change the shape."""
    if not is_op(node, "Mul", "Div", "Add", "Sub") or not is_float(node.outputs[0]):
        return None
    neutral = 1.0 if node.op_type in ("Mul", "Div") else 0.0
    candidates = [(0, 1)] if node.op_type in ("Div", "Sub") else [(0, 1), (1, 0)]
    for kept, other in candidates:
        value, array = node.inputs[kept], constant(node.inputs[other])
        if value is None or array is None or shape_of(value) != shape_of(node.outputs[0]) or shape_of(value) is None:
            continue
        if scalar(node.inputs[other]) == neutral or bool(np.all(array == neutral)):
            return value
    return None
