"""States of ONNX models that carry them by hand: an input that an LSTM or GRU starts from, an output of what it leaves.

`initial_h` and `Y_h`, `initial_c` and `Y_c` of one node, where they are a port of the graph each, are the same vector
before and after a run. They become a state of the model (`core.state`), of zeros at first, so that whoever runs it
feeds the sequence alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgescale.core.state import StateSpec, decode_states, encode_states
from edgescale.frontend.graph import DEFAULT_DOMAINS, input_at, shape_of

_PAIRS = ((5, 1), (6, 2))
"""Inputs and outputs of an LSTM or GRU that hold one vector."""
_MOVES = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten")


def pair_states(model: ir.Model) -> None:
    """Name the pairs of ports of one node's vector in the metadata, unless the metadata names states already.

    The ports have one shape and type, and between them and the node is nothing that does more than rename axes; the
    input has no other reader. Of a vector (a batch of 1, one direction) no such move changes the order.
    """
    if decode_states(model.metadata_props):
        return
    made = []
    for node in model.graph:
        if node.op_type not in ("LSTM", "GRU") or node.domain not in DEFAULT_DOMAINS:
            continue
        pairs = _PAIRS[: 2 if node.op_type == "LSTM" else 1]
        found = [_state(input_at(node, given), node.outputs[left : left + 1]) for given, left in pairs]
        fed = [_port_before(input_at(node, given)) is not None for given, _ in pairs]
        # All vectors of a node or none: half a state would be no state.
        if all(state is not None for state, port in zip(found, fed, strict=True) if port):
            made += [state for state in found if state is not None]
    # What remains must still be fed and read.
    others = len(model.graph.inputs) - len(made), len(model.graph.outputs) - len(made)
    if min(others) > 0:
        model.metadata_props.update(encode_states(made))


def _state(given: ir.Value | None, left: Sequence[ir.Value]) -> StateSpec | None:
    """The state that a node's input and output are, where both are ports that fit each other."""
    start, end = _port_before(given), _port_behind(left[0]) if left else None
    if start is None or end is None or (start.dtype, end.dtype) != (ir.DataType.FLOAT,) * 2:
        return None
    shape, name = shape_of(start), str(start.name)
    if shape is None or shape != shape_of(end) or sum(size > 1 for size in shape) > 1:
        return None
    return StateSpec(name, name, str(end.name), np.zeros(shape, np.float32))


def _port_before(value: ir.Value | None) -> ir.Value | None:
    """The graph input that `value` is, but for its axes; None where there is none or others read it."""
    while value is not None and len(value.uses()) == 1:
        if value.is_graph_input():
            return None if value.is_initializer() else value
        producer = value.producer()
        value = producer.inputs[0] if producer is not None and producer.op_type in _MOVES else None
    return None


def _port_behind(value: ir.Value) -> ir.Value | None:
    """The graph output that `value` is, but for its axes; None where there is none."""
    if value.is_graph_output():
        return value
    for use in value.uses():
        found = _port_behind(use.node.outputs[0]) if use.node.op_type in _MOVES and use.idx == 0 else None
        if found is not None:
            return found
    return None
