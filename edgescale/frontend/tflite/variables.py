"""Variables: what a streaming model keeps from one inference to the next.

Each variable that is read before it is assigned becomes a state (`core.state`): a graph input with what the last
inference left, a graph output with what this one leaves, 8-bit integers as uint8 like all inner values. Its
initial value is what the graph of CALL_ONCE assigns.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgescale.core.state import StateSpec
from edgescale.frontend.tflite.graph import Graph, Refusal, Variable
from edgescale.frontend.tflite.reader import File, Operator, Tensor
from edgescale.frontend.tflite.registry import activation, handles, operands, result, same_kind

_TYPES = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int16": TensorProto.INT16}


@handles("CALL_ONCE")
def call_once(graph: Graph, op: Operator) -> None:
    """A graph that only assigns constants to variables."""
    del op
    for called in graph.file.called.values():
        initial_values(called)


@handles("VAR_HANDLE")
def var_handle(graph: Graph, op: Operator) -> None:
    """A name."""
    if len(op.outputs) != 1 or not op.variable:
        raise Refusal("one output and a name", f"{len(op.outputs)} outputs and the name {op.variable!r}")
    graph.handles[op.outputs[0]] = op.variable
    graph.variables.setdefault(op.variable, Variable())


@handles("READ_VARIABLE")
def read_variable(graph: Graph, op: Operator) -> None:
    """float32, or int8 or uint8 with a scale, not int16; the shape of the initial value, which CALL_ONCE assigns."""
    operands(graph, op, 1)
    made = result(graph, op)
    variable = _variable(graph, op)
    if variable.assigned is None and variable.read is None:
        _initial(graph, op.inputs[0], made)
        variable.read = op.outputs[0]
        variable.port = graph.unique(graph.handles[op.inputs[0]])
        graph.bind_stored(op.outputs[0], lambda _: variable.port, "last")
        return
    held = variable.read if variable.assigned is None else variable.assigned
    _check_held(graph, held, op.outputs[0])
    value = graph.stored(held) if held is not None else ""
    graph.bind_stored(op.outputs[0], lambda name: graph.node("Identity", [value], name, label=graph.operator), "last")


@handles("ASSIGN_VARIABLE")
def assign_variable(graph: Graph, op: Operator) -> None:
    """An activation of the variable's type, shape and units."""
    operands(graph, op, 2)
    activation(graph, op.inputs[1])
    variable = _variable(graph, op)
    if variable.read is not None:
        _check_held(graph, op.inputs[1], variable.read)
    variable.assigned = op.inputs[1]


def finish_states(graph: Graph) -> list[StateSpec]:
    """Give the states their outputs, once all operators are there: those of recurrent operators, then variables."""
    states = list(graph.recurrent_states)
    for name, variable in graph.variables.items():
        if variable.read is None:
            continue  # never seen by anyone before it is overwritten
        held = variable.read if variable.assigned is None else variable.assigned
        handle = next(index for index, found in graph.handles.items() if found == name)
        initial = _initial(graph, handle, graph.tensor(variable.read))
        graph.operator = f"{name}/next"
        value = graph.node("Identity", [graph.stored(held)], graph.unique(f"{name}/next"), label=graph.operator)
        states.append(StateSpec(name, variable.port, value, initial))
    return states


def port(state: StateSpec, name: str) -> onnx.ValueInfoProto:
    """Input or output `name` of a state."""
    return helper.make_tensor_value_info(name, _TYPES[str(state.initial.dtype)], list(state.initial.shape))


def initial_values(called: File) -> dict[str, Tensor]:
    """What a graph of CALL_ONCE assigns: a constant tensor by variable."""
    names: dict[int, str] = {}
    found: dict[str, Tensor] = {}
    for op in called.operators:
        if op.kind == "VAR_HANDLE":
            names[op.outputs[0]] = op.variable
            continue
        if op.kind != "ASSIGN_VARIABLE" or len(op.inputs) != 2 or op.inputs[0] not in names:
            raise Refusal("what runs once assigns constants to variables", f"the operator {op.kind}")
        value = called.tensors[op.inputs[1]] if op.inputs[1] >= 0 else None
        if value is None or value.data is None:
            raise Refusal("what runs once assigns constants to variables", f"a computed {names[op.inputs[0]]!r}")
        found[names[op.inputs[0]]] = value
    return found


def _variable(graph: Graph, op: Operator) -> Variable:
    if op.inputs[0] not in graph.handles:
        raise Refusal("its first input is made by VAR_HANDLE", f"{graph.tensor(op.inputs[0]).name!r}")
    return graph.variables[graph.handles[op.inputs[0]]]


def _initial(graph: Graph, handle: int, made: Tensor) -> np.ndarray:
    """The initial value of a variable as its port holds it: float32, or uint8."""
    name = graph.handles[handle]
    if made.kind == "INT16":
        raise Refusal("variables are float32, int8 or uint8", f"{name!r} of type int16")
    values: dict[str, Tensor] = {}
    for called in graph.file.called.values():
        values |= initial_values(called)
    if name not in values:
        raise Refusal("CALL_ONCE gives every variable that is read an initial value", f"{name!r} without")
    found = values[name]
    if found.kind != made.kind or found.shape != made.shape or found.data is None:
        raise Refusal(
            f"the initial value is {made.kind.lower()} {list(made.shape)} as its reader says",
            f"{found.kind.lower()} {list(found.shape)}",
        )
    if made.kind == "INT8":
        return (found.data.astype(np.int16) + 128).astype(np.uint8)
    return np.asarray(found.data)


def _check_held(graph: Graph, given: int | None, wanted: int) -> None:
    """The tensor `given` may be read as `wanted`: LiteRT hands the bytes over and looks at no scale."""
    if given is None:
        raise Refusal("a variable is assigned before", "none")
    before, after = graph.tensor(given), graph.tensor(wanted)
    same_kind(before, after)
    units = [
        (float(found.scale[0]), int(found.zero_point[0])) if (found := tensor.quantization) is not None else None
        for tensor in (before, after)
    ]
    if before.shape != after.shape or units[0] != units[1]:
        raise Refusal(
            "a variable is read and assigned in one shape and one scale",
            f"{list(before.shape)} in {units[0]} and {list(after.shape)} in {units[1]}",
        )
