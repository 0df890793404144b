"""LSTM and GRU in int8: weights behind DequantizeLinear, states as integers.

QDQ says the units of what goes in and out of a node; an LSTM's cell state is int16 in units of a power of two that the
node's metadata hold (`core.recurrent`). States that a model carries from run to run become integers too: an LSTM's
output uint8, its cell state and a GRU's hidden state int16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgescale.core.recurrent import CELL_EXPONENT, HIDDEN_EXPONENT, set_cell
from edgescale.core.state import PREFIX, StateSpec, decode_states, encode_states
from edgescale.frontend.graph import add_initializer, constant, fresh_name, input_at, is_op
from edgescale.quantize.recurrent_rules import CELL, HIDDEN, RECURRENT

_SMALLEST_SCALE = 2.0**-96


class FinishRecurrent(ir.passes.InPlacePass):
    """Give the int8 LSTM and GRU among `nodes` what Q/DQ pairs do not say.

    Requires: pairs are written behind what the nodes read and leave; `exponents` are the units of the LSTMs' cell
    states by node name (`recurrent_ranges.cell_exponents`). Contract: W and R are int8 behind a DequantizeLinear with
    one scale a row of the stacked gates, B stays float32; an LSTM's metadata hold its cell state's units; states that
    the nodes carry are integers. Names of ports stay.
    """

    def __init__(self, nodes: Sequence[ir.Node], exponents: Mapping[str, int]) -> None:
        super().__init__()
        self._nodes = [node for node in nodes if node.op_type in RECURRENT]
        self._exponents = exponents

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Metadata, weights, states."""
        if not self._nodes:
            return ir.passes.PassResult(model, False)
        for node in self._nodes:
            if node.op_type == "LSTM":
                set_cell(node.metadata_props, self._exponents[str(node.name)])
            for index in (1, 2):
                _write_weights(model.graph, node, index)
        self._convert_states(model)
        model.graph.sort()
        return ir.passes.PassResult(model, True)

    def _convert_states(self, model: ir.Model) -> None:
        states = {state.input: state for state in decode_states(model.metadata_props)}
        made: Mapping[str, StateSpec] = dict(states)
        for node in self._nodes:
            for index in (HIDDEN, CELL):
                start = input_at(node, index)
                state = states.get(str(start.name)) if start is not None and start.is_graph_input() else None
                if state is not None and start is not None and len(start.uses()) == 1:
                    made = {**made, state.input: _convert_state(model.graph, node, index, start, state)}
        for key in [key for key in model.metadata_props if key.startswith(PREFIX)]:
            del model.metadata_props[key]
        model.metadata_props.update(encode_states(made.values()))


def _write_weights(graph: ir.Graph, node: ir.Node, index: int) -> None:
    value = node.inputs[index]
    array = constant(value)
    if value is None or array is None:
        raise ValueError(f"{node.name}: planned without constant weights")
    exact = np.asarray(array, np.float64)
    scale = np.abs(exact).max(axis=(0, 2)) / 127
    # A row of zeros takes the largest scale, so that its bias has units that fit.
    scale = np.maximum(np.where(scale > 0, scale, scale.max() or 1 / 127), _SMALLEST_SCALE).astype(np.float32)
    integers = np.clip(np.rint(exact / scale.astype(np.float64)[None, :, None]), -127, 127).astype(np.int8)
    parts = [
        add_initializer(graph, f"{value.name}_quantized", integers),
        add_initializer(graph, f"{value.name}_scale", scale),
        add_initializer(graph, f"{value.name}_zero_point", np.zeros(scale.shape, np.int8)),
    ]
    read = _dequantize(graph, parts, f"{value.name}_dequantized", axis=1)
    read.outputs[0].shape = ir.Shape(array.shape)
    graph.insert_before(node, read)
    node.replace_input_with(index, read.outputs[0])


def _convert_state(graph: ir.Graph, node: ir.Node, index: int, start: ir.Value, state: StateSpec) -> StateSpec:
    """Let a state go through integers into the node and out of it; the state as it then is."""
    place = next(k for k, value in enumerate(graph.outputs) if value.name == state.output)
    old, result = graph.outputs[place], node.outputs[index - 4]
    if index == CELL or node.op_type == "GRU":
        exponent = HIDDEN_EXPONENT if node.op_type == "GRU" else int(node.metadata_props[CELL_EXPONENT])
        scale, zero = np.asarray(2.0**exponent, np.float32), np.asarray(0, np.int16)
        parts = [
            add_initializer(graph, f"{state.input}_scale", scale),
            add_initializer(graph, f"{state.input}_zero_point", zero),
        ]
        quantize = ir.node("QuantizeLinear", [result, *parts], name=f"{state.output}_state_QuantizeLinear")
        graph.insert_after(node, quantize)
        left = quantize.outputs[0]
        left.dtype, left.shape = ir.DataType.INT16, result.shape
    else:
        # The pair behind Y_h is there already: what is carried is its integers.
        read = old.producer()
        stored = read.inputs[0] if read is not None and is_op(read, "DequantizeLinear") else None
        if read is None or stored is None:
            raise ValueError(f"{node.name}: its output state is not quantized")
        parts = [value for value in read.inputs[1:3] if value is not None]
        scale, zero = (np.asarray(constant(value)) for value in parts)
        left = stored
    graph.outputs[place] = left
    old.name = fresh_name(graph, f"{state.output}_real")
    left.name = state.output
    # A type of its own: the one it has may be shared with the model this one was cloned from.
    start.type = ir.TensorType(ir.DataType.INT16 if zero.dtype == np.int16 else ir.DataType.UINT8)
    read = _dequantize(graph, [start, *parts], f"{state.input}_dequantized", axis=None)
    read.outputs[0].shape = start.shape
    graph.insert_before(node, read)
    node.replace_input_with(index, read.outputs[0])
    limits = np.iinfo(zero.dtype)
    steps = np.rint(state.initial.astype(np.float64) / float(scale)) + int(zero)
    return replace(state, initial=np.clip(steps, limits.min, limits.max).astype(zero.dtype))


def _dequantize(graph: ir.Graph, parts: Sequence[ir.Value], output: str, axis: int | None) -> ir.Node:
    name = fresh_name(graph, output)
    node = ir.node(
        "DequantizeLinear", list(parts), attributes=None if axis is None else {"axis": axis},
        name=f"{name.removesuffix('_dequantized')}_DequantizeLinear",
    )  # fmt: skip
    node.outputs[0].name = name
    node.outputs[0].dtype = ir.DataType.FLOAT
    return node
