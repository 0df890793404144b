"""States of a graph: pairs of an input and an output that its metadata name (`core.state`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.state import StateSpec
from edgescale.lower.context import Context, Value, units_of_tensor
from edgescale.lower.errors import NodeError
from edgescale.lower.layout import view
from edgescale.lower.program import Array, Port, Reshape, Slice, State, Transpose

if TYPE_CHECKING:
    import onnx_ir


class States:
    """Collects the ports of states while a graph is lowered.

    inputs: the port of each state's input by its ONNX name, None until it is read. outputs: ONNX names.
    Raises UnsupportedModelError for states whose input or output the graph does not have.
    """

    def __init__(self, specs: Sequence[StateSpec], graph: onnx_ir.Graph) -> None:
        self.specs = specs
        self.graph = graph
        self.inputs: dict[str, Port | None] = {spec.input: None for spec in specs}
        self.outputs = {spec.output for spec in specs}
        values = {str(value.name): value for value in (*graph.inputs, *graph.outputs)}
        for spec in specs:
            for name, ports in ((spec.input, graph.inputs), (spec.output, graph.outputs)):
                if not any(value.name == name for value in ports):
                    raise UnsupportedModelError(
                        f"state {spec.name!r}: rule: its ports are in the graph; found no {name!r}"
                    )
            given, left = values[spec.input], values[spec.output]
            if given.dtype != left.dtype:
                raise UnsupportedModelError(
                    f"state {spec.name!r}: rule: its input and output have one type; found {given.dtype} and "
                    f"{left.dtype}"
                )

    def finish(self, context: Context, refuse: Callable[[str], None]) -> tuple[State, ...]:
        """The program's states; adds the layers that bring each output into its input's order, type and own bytes."""
        made: list[State] = []
        for spec in self.specs:
            port = self.inputs[spec.input]
            held = context.values.get(spec.output)
            if port is None or held is None:
                refuse(f"state {spec.name!r}: rule: its output depends on an input or a state; found a constant")
                continue
            try:
                made.append(self._state(context, spec, port, held, {state.output for state in made}))
            except NodeError as rejection:
                refuse(f"state {spec.name!r}: rule: {rejection.rule or 'it keeps shape and units'}; found {rejection}")
        return tuple(made)

    def _state(self, context: Context, spec: StateSpec, port: Port, held: Value, taken: set[str]) -> State:
        source = context.tensors[port.tensor]
        if held.shape != port.shape or spec.initial.shape != port.shape or str(spec.initial.dtype) != port.dtype:
            raise NodeError(
                f"{list(port.shape)} {port.dtype}, then {list(held.shape)}, at first {list(spec.initial.shape)} "
                f"{spec.initial.dtype}"
            )
        node = next(iter(self.graph))
        if source.dtype == "float32":
            held = context.real(held, node)
        elif context.units(held) != units_of_tensor(source):
            raise NodeError(f"units {tuple(units_of_tensor(source) or ())}, then {tuple(context.units(held) or ())}")
        out = context.arrange(held, view(port.shape, port.axes), source.shape, node)
        if out != source.name and (self._root(context, out) in self._given(context) or out in taken):
            copied = context.tensor(f"{spec.output}.copied", source.shape, context.units(held))
            whole = (0,) * len(source.shape)
            steps = (1,) * len(source.shape)
            context.layers.append(Slice(f"{spec.name}/copy", (out,), copied.name, begin=whole, step=steps))
            out = copied.name
        return State(spec.name, source.name, out, _stored(spec.initial, port).reshape(source.shape))

    def _given(self, context: Context) -> set[str]:
        """Tensors that no layer makes."""
        return set(context.tensors) - {layer.output for layer in context.layers}

    def _root(self, context: Context, name: str) -> str:
        """The tensor whose elements `name` has, renamed or rearranged."""
        moves = (Reshape, Transpose)
        reshaped = {layer.output: layer.inputs[0] for layer in context.layers if isinstance(layer, moves)}
        while name in reshaped:
            name = reshaped[name]
        return name


def _stored(initial: Array, port: Port) -> Array:
    """The initial value of a port as its tensor holds it."""
    moved = initial.transpose(port.axes)
    if port.dtype == "uint8":
        return np.ascontiguousarray((moved.astype(np.int16) - 128).astype(np.int8))
    return np.ascontiguousarray(moved)
