"""An integer program as the bytes of a .tflite file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgescale.lower.program import Port, Program
from edgescale_tflite import elementwise as _elementwise  # noqa: F401  (these fill the registry of handlers)
from edgescale_tflite import recurrent as _recurrent
from edgescale_tflite import spatial as _spatial  # noqa: F401
from edgescale_tflite import weighted as _weighted  # noqa: F401
from edgescale_tflite.emission import Dialect, Emission, check_scales, units_of, write_layers

METADATA = "edgescale"
METADATA_SCHEMA = 1
STATES_GRAPH = 1


@dataclass(frozen=True)
class Written:
    """A file. operators: for each one of the main graph, the name of the layer it belongs to and its kind.

    reset_each_run: a layer starts from zeros at every inference, where the interpreter keeps variables: whoever runs
    the file calls `reset_all_variables` before each.
    """

    data: bytes
    operators: tuple[tuple[str, str], ...]
    weights_bytes: int
    reset_each_run: bool


def write_program(program: Program, dialect: Dialect | None = None) -> Written:
    """The file of a program. Raises UnsupportedModelError with a line for each layer that LiteRT cannot compute.

    Inputs and outputs keep the names of the model's, tensors those of the program's; each is in the program's stored
    units and layout. The metadata entry `edgescale` is JSON: schema, model, `layers`: pairs of a layer and those of
    the model's nodes folded into it that have another name; and `operators`: for each operator of the main graph the
    number of its layer.
    """
    check_scales(program)
    emission = Emission(_with_port_names(program), dialect or Dialect())
    program = emission.program
    for port in program.inputs:
        emission.tensor(port.tensor)
    _recurrent.prepare(emission)
    _read_states(emission)
    write_layers(emission)
    _assign_states(emission)
    main = emission.writer.graphs[0]
    names = list(dict.fromkeys(main.layers))
    nodes = {layer.name: [node for node in layer.nodes if node != layer.name] for layer in program.layers}
    note = {
        "schema": METADATA_SCHEMA,
        "model": program.name,
        "layers": [[name, nodes.get(name, [])] for name in names],
        "operators": [names.index(name) for name in main.layers],
        "reset_each_run": emission.reset_each_run,
    }
    data = emission.writer.data(
        f"{program.name}, by edgescale",
        _ports(emission, program.inputs),
        _ports(emission, program.outputs),
        {METADATA: json.dumps(note, separators=(",", ":")).encode()},
    )
    kinds = _kinds(emission)
    operators = tuple(zip(main.layers, kinds, strict=True))
    return Written(data, operators, emission.weights_bytes, emission.reset_each_run)


def _with_port_names(program: Program) -> Program:
    """The program with the tensors of its ports under the ports' names, where those are free."""
    names: dict[str, str] = {}
    taken = set(program.tensors)
    for port in (*program.inputs, *program.outputs):
        if port.tensor not in names and port.name not in taken:
            names[port.tensor] = port.name
            taken.add(port.name)
    if not names:
        return program

    def new(name: str) -> str:
        return names.get(name, name)

    return replace(
        program,
        tensors={new(name): replace(tensor, name=new(name)) for name, tensor in program.tensors.items()},
        inputs=tuple(replace(port, tensor=new(port.tensor)) for port in program.inputs),
        outputs=tuple(replace(port, tensor=new(port.tensor)) for port in program.outputs),
        layers=tuple(
            replace(layer, inputs=tuple(map(new, layer.inputs)), output=new(layer.output)) for layer in program.layers
        ),
        states=tuple(replace(s, input=new(s.input), output=new(s.output)) for s in program.states),
    )


def _ports(emission: Emission, ports: tuple[Port, ...]) -> Mapping[str, int]:
    return {port.name: emission.tensor(port.tensor) for port in ports}


def _kinds(emission: Emission) -> list[str]:
    codes = list(emission.writer.codes)
    return [codes[int(op.opcodeIndex)][0] for op in emission.writer.graphs[0].operators]


def _read_states(emission: Emission) -> None:
    """Variables: a graph that gives them their initial values once, and what reads them before the first layer."""
    states = [state for state in emission.program.states if state.name not in emission.kept_inside]
    if not states:
        return
    writer = emission.writer
    main = writer.graph
    writer.new_graph()
    for state in states:
        handle = _handle(emission, state.name)
        tensor = emission.of(state.input)
        value = writer.constant(f"{state.name}/initial", state.initial.reshape(tensor.shape), units_of(tensor))
        writer.operator("ASSIGN_VARIABLE", [handle, value], [], 1, "AssignVariableOptions")
    writer.graph = main
    writer.operator("CALL_ONCE", [], [], 1, "CallOnceOptions", initSubgraphIndex=STATES_GRAPH)
    for state in states:
        writer.layer = state.name
        emission.handles[state.name] = _handle(emission, state.name)
        given = emission.tensor(state.input)
        writer.operator("READ_VARIABLE", [emission.handles[state.name]], [given], 1, "ReadVariableOptions")


def _handle(emission: Emission, name: str) -> int:
    handle = emission.writer.tensor(f"{name}/handle", (), "resource")
    options: dict[str, Any] = {"sharedName": name, "container": ""}
    emission.writer.operator("VAR_HANDLE", [], [handle], 1, "VarHandleOptions", **options)
    return handle


def _assign_states(emission: Emission) -> None:
    for state in emission.program.states:
        if state.name in emission.handles and state.output != state.input:
            emission.writer.layer = state.name
            parts = [emission.handles[state.name], emission.tensor(state.output)]
            emission.writer.operator("ASSIGN_VARIABLE", parts, [], 1, "AssignVariableOptions")
