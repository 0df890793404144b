"""Which LSTM and GRU nodes may run in int8."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgescale.frontend.graph import constant, input_at, int_attribute

HIDDEN, CELL = 5, 6
"""Inputs of the initial states; the outputs that match lie four before."""
RECURRENT = ("LSTM", "GRU")
_DEFAULTS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}


def recurrent_rule(node: ir.Node) -> str | None:
    """None where an LSTM or GRU may run in int8, else why not."""
    for index in (1, 2):
        weights = constant(node.inputs[index])
        if weights is None or weights.dtype != np.float32:
            return "its weights are computed, not constant"
    for index, what in ((3, "bias"), (4, "sequence lengths"), (7, "peephole weights")):
        value = input_at(node, index)
        if value is not None and constant(value) is None:
            return f"its {what} are computed, not constant"
    peepholes = constant(input_at(node, 7))
    if peepholes is not None and np.any(peepholes):
        return "it has peephole weights"
    given = node.attributes.get("activations")
    names = [] if given is None else [str(name).lower() for name in given.as_strings()]
    wanted = _DEFAULTS[node.op_type]
    if names and names != wanted * (len(names) // len(wanted)):
        return "its activations are not sigmoid and tanh"
    if "clip" in node.attributes or int_attribute(node, "input_forget", 0):
        return "it clips its gates or couples them"
    return _state_rule(node)


def _state_rule(node: ir.Node) -> str | None:
    """What is kept in int16 starts from constants or is a state that the model carries; nothing else reads it."""
    index = CELL if node.op_type == "LSTM" else HIDDEN
    start = input_at(node, index)
    if start is not None and constant(start) is None and not start.is_graph_input():
        return "the state that it keeps in int16 starts from a computed value"
    end = node.outputs[index - 4] if len(node.outputs) > index - 4 else None
    if node.op_type == "LSTM" and end is not None and (end.uses() or end.is_graph_output()):
        carried = start is not None and start.is_graph_input() and end.is_graph_output() and not end.uses()
        return None if carried else "its cell state is read, which is int16 inside"
    return None


def initial_reach(node: ir.Node) -> tuple[float, ...]:
    """Least and greatest constant that the output is said to hold before the first step; nothing where it is 0."""
    start = constant(input_at(node, HIDDEN))
    return () if start is None or not start.size else (float(start.min()), float(start.max()))


def results_of(node: ir.Node) -> tuple[ir.Value, ...]:
    """Y and Y_h, which hold the same numbers and share units; the cell state is not among them."""
    return tuple(value for value in node.outputs[:2] if value.name)
