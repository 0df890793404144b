"""UNIDIRECTIONAL_SEQUENCE_LSTM: an ONNX LSTM whose two states are those of the file's variable tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from onnx import helper

from edgescale.core.recurrent import CELL_EXPONENTS, set_cell
from edgescale.core.state import StateSpec
from edgescale.frontend.tflite.graph import Graph, Refusal
from edgescale.frontend.tflite.reader import Operator, Tensor
from edgescale.frontend.tflite.registry import activation, handles, real_array, result, same_kind

Array = npt.NDArray[np.generic]

_TANH = 4
_GATES = ("input", "forget", "cell", "output")
_ONNX_ORDER = (0, 3, 1, 2)
"""The file's gate of each of ONNX's: input, output, forget, cell."""
_WEIGHTS, _RECURRENT, _PEEPHOLES, _BIASES, _PROJECTION, _HIDDEN, _CELL, _NORM = 1, 5, 9, 12, 16, 18, 19, 20
"""Where the operator's inputs of each kind begin."""


@handles("UNIDIRECTIONAL_SEQUENCE_LSTM")
def sequence_lstm(graph: Graph, op: Operator) -> None:
    """float32 (8-bit weights are dequantized), or int8 with weights of one scale a matrix, an int16 cell state in units
    of 2^-15 to 2^-9 and one scale for output, output state and hidden intermediate; batch 1, activation tanh. No
    peephole, projection, layer normalization or coupled gates (CIFG). The states are kept from run to run, as the
    interpreter keeps them."""
    found = _operands(graph, op)
    source, made = activation(graph, op.inputs[0]), result(graph, op)
    same_kind(source, made)
    _check_variant(op, found)
    units = _check_shapes(op, found, source, made)
    hidden, cell = found[_HIDDEN], found[_CELL]
    if hidden is None or cell is None or not (hidden.variable and cell.variable):
        raise Refusal("output state and cell state are variable tensors", "others")
    if hidden.shape != (1, units) or cell.shape != (1, units):
        raise Refusal(f"states [1, {units}]", f"{list(hidden.shape)} and {list(cell.shape)}")
    inputs = [_sequence(graph, op, source), *_constants(graph, op, found, source, hidden, units), ""]
    inputs += _states(graph, hidden, cell, made, op.intermediates[4:5])
    outputs = [graph.unique(f"{graph.operator}/{name}") for name in ("Y", "Y_h", "Y_c")]
    node = helper.make_node("LSTM", inputs, outputs, graph.label(graph.operator), hidden_size=units)
    metadata: dict[str, str] = {}
    set_cell(metadata, _exponent(cell) if made.quantized else None, float(op.options.get("CellClip", 0.0)))
    for key, value in metadata.items():
        entry = node.metadata_props.add()
        entry.key, entry.value = key, value
    graph.nodes.append(node)
    _leave(graph, op, outputs, (hidden, cell, made))


def _operands(graph: Graph, op: Operator) -> tuple[Tensor | None, ...]:
    """The operator's 24 inputs, None for omitted ones; files without layer normalization may list 20."""
    if len(op.inputs) not in (20, 24):
        raise Refusal("20 or 24 inputs", f"{len(op.inputs)}")
    found = [None if index < 0 else graph.tensor(index) for index in op.inputs]
    return (*found, *[None] * (24 - len(found)))


def _check_variant(op: Operator, found: Sequence[Tensor | None]) -> None:
    refused = {
        "peephole weights": found[_PEEPHOLES : _PEEPHOLES + 3],
        "a projection": found[_PROJECTION : _PROJECTION + 2],
        "layer normalization": found[_NORM : _NORM + 4],
    }
    for what, tensors in refused.items():
        if any(tensor is not None for tensor in tensors):
            raise Refusal("an LSTM without peepholes, projection and layer normalization", what)
    if found[_WEIGHTS] is None or found[_RECURRENT] is None:
        raise Refusal("an LSTM with an input gate of its own", "coupled input and forget gates (CIFG)")
    if op.options.get("ProjClip", 0.0):
        raise Refusal("no projection", "a bound of the projection")
    if int(op.options.get("FusedActivationFunction", 0)) != _TANH:
        raise Refusal("the activation is tanh", f"activation {int(op.options.get('FusedActivationFunction', 0))}")


def _check_shapes(op: Operator, found: Sequence[Tensor | None], source: Tensor, made: Tensor) -> int:
    """U, once all matrices and vectors fit it."""
    if len(source.shape) != 3 or len(made.shape) != 3:
        raise Refusal("input [1, T, I] and output [1, T, U]", f"{list(source.shape)} and {list(made.shape)}")
    late = bool(op.options.get("TimeMajor", 0))
    units, steps = made.shape[2], source.shape[0 if late else 1]
    if source.shape[1 if late else 0] != 1 or made.shape != ((steps, 1, units) if late else (1, steps, units)):
        raise Refusal("a batch of 1", f"input {list(source.shape)} and output {list(made.shape)}")
    for first, shape in ((_WEIGHTS, (units, source.shape[2])), (_RECURRENT, (units, units)), (_BIASES, (units,))):
        for name, tensor in zip(_GATES, found[first : first + 4], strict=True):
            if tensor is None or tensor.data is None or tensor.shape != shape:
                seen = "none" if tensor is None else f"{tensor.name!r} {list(tensor.shape)}"
                raise Refusal(f"constants of shape {list(shape)} for the {name} gate", seen)
    return units


def _exponent(cell: Tensor) -> int:
    """The units of an int16 cell state as an exponent of two."""
    found = cell.quantization
    scales = [] if found is None or cell.kind != "INT16" else [float(scale) for scale in found.scale]
    known = {2.0**exponent: exponent for exponent in CELL_EXPONENTS}
    if len(scales) != 1 or scales[0] not in known or (found is not None and found.zero_point.any()):
        seen = f"{cell.kind.lower()}{f' of scale {scales[0]:g}' if scales else ''}"
        raise Refusal("an int16 cell state in units of a power of two from 2^-15 to 2^-9, zero-point 0", seen)
    return known[scales[0]]


def _sequence(graph: Graph, op: Operator, source: Tensor) -> str:
    """The input as ONNX's X [T, 1, I]."""
    value = graph.real(op.inputs[0])
    return value if source.shape[1] == 1 and op.options.get("TimeMajor") else graph.node(
        "Transpose", [value], perm=[1, 0, 2]
    )  # fmt: skip


def _constants(
    graph: Graph, op: Operator, found: Sequence[Tensor | None], source: Tensor, hidden: Tensor, units: int
) -> list[str]:
    """W [1, 4U, I], R [1, 4U, U] and B [1, 8U]."""
    parts = [[t for t in found[first : first + 4] if t is not None] for first in (_WEIGHTS, _RECURRENT, _BIASES)]
    weights, recurrent, biases = ([part[k] for k in _ONNX_ORDER] for part in parts)
    name = graph.operator
    if not source.quantized:
        made = [np.concatenate([real_array(t) for t in part])[None] for part in (weights, recurrent, biases)]
        made[2] = np.concatenate([made[2], np.zeros_like(made[2])], axis=1)
        return [graph.constant(f"{name}/{key}", array) for key, array in zip("WRB", made, strict=True)]
    scales = [np.repeat(_scales(part, name), units) for part in (weights, recurrent)]
    integers = [np.concatenate([np.asarray(t.data) for t in part])[None] for part in (weights, recurrent)]
    bias = np.concatenate([np.asarray(t.data).reshape(-1) for t in biases])
    if bias.dtype != np.int32:
        raise Refusal("int32 biases", f"{biases[0].name!r} of type {biases[0].kind.lower()}")
    sources = (graph.quantization(source.index).scale[0], graph.quantization(hidden.index).scale[0])
    integers.append(np.concatenate([bias, np.zeros_like(bias)])[None])
    scales.append(np.concatenate([np.float32(s) * scale for s, scale in zip(sources, scales, strict=True)]))
    return [_dequantized(graph, f"{name}/{key}", q, s) for key, q, s in zip("WRB", integers, scales, strict=True)]


def _scales(tensors: Sequence[Tensor], where: str) -> npt.NDArray[np.float32]:
    """One scale a matrix."""
    scales = []
    for tensor in tensors:
        found = tensor.quantization
        if tensor.kind != "INT8" or found is None or found.scale.size != 1 or found.zero_point.any():
            raise Refusal("int8 weights of one scale a matrix and zero-point 0", f"{tensor.name!r}")
        if not found.scale[0] > 0:
            raise Refusal("weight scales are positive", f"{float(found.scale[0]):g} in {tensor.name!r}")
        scales.append(found.scale[0])
    return np.array(scales, np.float32)


def _dequantized(graph: Graph, name: str, integers: Array, scale: npt.NDArray[np.float32]) -> str:
    """A constant [1, rows, ...] behind a DequantizeLinear of its rows."""
    parts = [graph.constant(name, integers), graph.constant(f"{name}/scale", scale)]
    parts.append(graph.constant(f"{name}/zero_point", np.zeros(scale.shape, integers.dtype)))
    label = f"{name}/DequantizeLinear"
    return graph.node("DequantizeLinear", parts, graph.unique(f"{name}/dequantized"), label=label, axis=1)


def _states(graph: Graph, hidden: Tensor, cell: Tensor, made: Tensor, intermediates: tuple[int, ...]) -> list[str]:
    """The states as float32 values [1, 1, U], from inputs of the graph. Refuses units that do not agree."""
    names = [graph.unique(f"{graph.operator}/{name}") for name in ("output_state", "cell_state")]
    for tensor, name in zip((hidden, cell), names, strict=True):
        graph.state_ports[tensor.index] = name
    if not made.quantized:
        for tensor in (hidden, cell):
            if tensor.kind != "FLOAT32":
                raise Refusal("states of the output's type", f"{tensor.name!r} of type {tensor.kind.lower()}")
        return names
    wanted = graph.quantization(made.index)
    for tensor in (hidden, *(graph.tensor(i) for i in intermediates)):
        found = tensor.quantization
        if tensor.kind != "INT8" or found is None or found.scale.size != 1:
            raise Refusal("int8 output state and hidden intermediate with a scale", f"{tensor.name!r}")
        if found.scale[0] != wanted.scale[0] or found.zero_point[0] != wanted.zero_point[0]:
            raise Refusal(
                "one scale and zero-point for output, output state and hidden intermediate",
                f"{found.scale[0]:g} and {found.zero_point[0]} in {tensor.name!r}",
            )
    values = []
    for name, parts in zip(names, (graph.units(hidden.index), _cell_units(graph, cell)), strict=True):
        values.append(graph.node("DequantizeLinear", [name, *parts], label=f"{name}/DequantizeLinear"))
    return values


def _cell_units(graph: Graph, cell: Tensor) -> tuple[str, str]:
    scale = np.float32(2.0 ** _exponent(cell))
    name = graph.name(cell.index)
    return graph.constant(f"{name}/scale", scale), graph.constant(f"{name}/zero_point", np.int16(0))


def _leave(graph: Graph, op: Operator, outputs: Sequence[str], tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    """Bind the sequence to the operator's output and give the states their next values."""
    hidden, cell, made = tensors
    values = list(outputs)
    if made.quantized:
        parts = [graph.units(op.outputs[0]), graph.units(hidden.index), _cell_units(graph, cell)]
        values = [
            graph.node("QuantizeLinear", [value, *units], label=f"{value}/QuantizeLinear")
            for value, units in zip(outputs, parts, strict=True)
        ]
    shape = graph.constant(f"shape_{'x'.join(map(str, made.shape))}", np.asarray(made.shape, np.int64))
    graph.bind_stored(op.outputs[0], lambda name: graph.node("Reshape", [values[0], shape], name), "last")
    for tensor, value in zip((hidden, cell), values[1:], strict=True):
        port = graph.state_ports[tensor.index]
        left = graph.node("Identity", [value], graph.unique(f"{port}/next"), label=f"{port}/next")
        graph.recurrent_states.append(StateSpec(port, port, left, _initial(tensor, made)))


def _initial(tensor: Tensor, made: Tensor) -> Array:
    """[1, 1, U] zeros in the state's units: what a variable tensor holds before the first run."""
    shape = (1, *tensor.shape)
    if not made.quantized:
        return np.zeros(shape, np.float32)
    if tensor.kind == "INT16":
        return np.zeros(shape, np.int16)
    zero = 0 if tensor.quantization is None else int(tensor.quantization.zero_point[0])
    return np.full(shape, zero + 128, np.uint8)
