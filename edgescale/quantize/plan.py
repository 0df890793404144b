"""Where a graph gets quantized: the values that carry units, grouped where they must share them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgescale.frontend.graph import constant, input_at, is_op, only_consumer, scalar
from edgescale.quantize.recurrent_rules import RECURRENT, initial_reach, results_of
from edgescale.quantize.rules import BINARY, FIXED_UNITS, FUSES_ACTIVATION, SAME_UNITS, data_inputs, quantizable

_UNSIGNED = frozenset(("Relu", "Sigmoid", "HardSigmoid", "Softmax"))


@dataclass(frozen=True)
class Group:
    """Values that share one scale and zero-point.

    `sources`: the members whose observed values make the range (the others only repeat those). `extra`:
    further numbers the range must hold (padding values, constants that are concatenated). `fixed`: uint8 units
    that the operator prescribes, else None.
    """

    members: tuple[ir.Value, ...]
    sources: tuple[ir.Value, ...]
    extra: tuple[float, ...] = ()
    fixed: tuple[float, int] | None = None
    gate: bool = False
    """Only added or multiplied: stored in 8 bits it takes the range observed, since prescribed units end a level short
    of 1, and a factor that never reaches 1 shrinks all that it multiplies."""


@dataclass(frozen=True)
class Plan:
    """The int8 nodes of a graph, in order, and the groups of values that Q/DQ pairs follow."""

    nodes: tuple[ir.Node, ...]
    groups: tuple[Group, ...]
    inner: frozenset[ir.Value] = field(default_factory=frozenset)
    """Values between an operator and the Relu or Clip that is its clamp; they stay without Q/DQ."""


def make_plan(graph: ir.Graph, excluded: frozenset[ir.Node] = frozenset()) -> Plan:
    """Decide on a float graph of canonical form (see `frontend.passes.clean`) with inferred shapes.

    `excluded`: nodes that stay float whatever they could do.
    """
    chosen = quantizable(node for node in graph if node not in excluded)
    nodes = tuple(node for node in graph if node in chosen)
    inner = frozenset(node.outputs[0] for node in nodes if _clamp_after(node, chosen) is not None)
    order: dict[ir.Value, None] = {}
    for node in nodes:
        for index in data_inputs(node):
            value = node.inputs[index]
            if value is not None and constant(value) is None and value not in inner:
                order.setdefault(value)
        for value in results_of(node) if node.op_type in RECURRENT else node.outputs:
            if value not in inner and (value.uses() or value.is_graph_output()):
                order.setdefault(value)
    return Plan(nodes, _groups(nodes, order), inner)


def _clamp_after(node: ir.Node, chosen: set[ir.Node]) -> ir.Node | None:
    """The Relu or Clip that alone reads the output of an operator with a clamp of its own."""
    if node.op_type not in FUSES_ACTIVATION:
        return None
    after = only_consumer(node.outputs[0])
    return after if is_op(after, "Relu", "Clip") and after in chosen and after.inputs[0] is node.outputs[0] else None


class _Sets:
    """Union-find over values; the earliest value of a set is its root."""

    def __init__(self, values: dict[ir.Value, None]) -> None:
        self.rank = {value: i for i, value in enumerate(values)}
        self.parent: dict[ir.Value, ir.Value] = {value: value for value in values}

    def root(self, value: ir.Value) -> ir.Value:
        while self.parent[value] is not value:
            self.parent[value] = self.parent[self.parent[value]]
            value = self.parent[value]
        return value

    def join(self, one: ir.Value, other: ir.Value) -> None:
        first, second = sorted((self.root(one), self.root(other)), key=self.rank.__getitem__)
        self.parent[second] = first


def _groups(nodes: tuple[ir.Node, ...], values: dict[ir.Value, None]) -> tuple[Group, ...]:
    sets = _Sets(values)
    repeated: set[ir.Value] = set()
    extra: dict[ir.Value, list[float]] = {}
    for node in nodes:
        source = node.inputs[0]
        if node.op_type in RECURRENT:
            held = [value for value in results_of(node) if value in sets.parent]
            for value in held[1:]:
                sets.join(held[0], value)
            for value in held[:1]:
                extra.setdefault(value, []).extend(initial_reach(node))
        if node.op_type not in SAME_UNITS or source is None or source not in sets.parent:
            continue
        for output in node.outputs:
            if output in sets.parent:
                sets.join(source, output)
                repeated.add(output)
        if node.op_type == "Pad":
            fill = input_at(node, 2)
            extra.setdefault(source, []).append((scalar(fill) or 0.0) if fill is not None else 0.0)
    fixed = {
        sets.root(node.outputs[0]): FIXED_UNITS[node.op_type]
        for node in nodes
        if node.op_type in FIXED_UNITS and node.outputs[0] in sets.parent
    }
    unsigned = _never_negative(nodes)
    for node in nodes:
        if node.op_type == "Concat":
            _join_concat(node, sets, fixed, repeated, extra, unsigned)
    members: dict[ir.Value, list[ir.Value]] = {}
    numbers: dict[ir.Value, list[float]] = {}
    for value in values:
        members.setdefault(sets.root(value), []).append(value)
        numbers.setdefault(sets.root(value), []).extend(extra.get(value, ()))
    return tuple(
        Group(
            tuple(held),
            tuple(v for v in held if v not in repeated),
            tuple(numbers[root]),
            _fitting(fixed.get(root), numbers[root]),
            len(held) == 1 and _is_gate(held[0]),
        )
        for root, held in members.items()
    )


def _is_gate(value: ir.Value) -> bool:
    """Whether a Sigmoid or Tanh made the value, and nothing but sums and products reads it."""
    readers = [use.node for use in value.uses()]
    made = is_op(value.producer(), "Sigmoid", "Tanh") and not value.is_graph_output()
    return made and bool(readers) and all(is_op(node, *BINARY) for node in readers)


def _join_concat(
    node: ir.Node,
    sets: _Sets,
    fixed: dict[ir.Value, tuple[float, int]],
    repeated: set[ir.Value],
    extra: dict[ir.Value, list[float]],
    unsigned: set[ir.Value],
) -> None:
    """Give the inputs of a Concat its output's units, but for two kinds that it then rescales.

    Inputs with prescribed units keep those, where not all inputs have the same. Inputs that are never
    negative keep a zero-point of 0 where others are signed: only so is a Relu before them nothing but the
    saturation of its QuantizeLinear, and the convolution before that fused by ONNX Runtime.
    """
    output = node.outputs[0]
    if output not in sets.parent:
        return
    computed = [value for value in node.inputs if value is not None and value in sets.parent]
    mixed = len({fixed.get(sets.root(value)) for value in computed}) > 1
    joined = [
        value
        for value in computed
        if not (mixed and sets.root(value) in fixed) and not (value in unsigned and output not in unsigned)
    ]
    for value in joined:
        prescribed = fixed.get(sets.root(value))
        sets.join(value, output)
        if prescribed is not None:
            fixed[sets.root(output)] = prescribed
    if len(joined) == len(computed):
        repeated.add(output)
    for operand in node.inputs:
        array = constant(operand)
        if array is not None and array.size:
            extra.setdefault(output, []).extend((float(array.min()), float(array.max())))


def _never_negative(nodes: tuple[ir.Node, ...]) -> set[ir.Value]:
    """Values that cannot be below zero, by the operators that make them; `nodes` in topological order."""
    found: set[ir.Value] = set()

    def unsigned(value: ir.Value | None) -> bool:
        array = constant(value)
        return value in found if array is None else bool(np.all(np.asarray(array, np.float64) >= 0))

    for node in nodes:
        if node.op_type == "Clip":
            bound = input_at(node, 1)
            held = (bound is not None and (scalar(bound) or 0.0) >= 0) or unsigned(node.inputs[0])
        elif node.op_type == "Pad":
            fill = input_at(node, 2)
            held = unsigned(node.inputs[0]) and (fill is None or (scalar(fill) or 0.0) >= 0)
        elif node.op_type in SAME_UNITS or node.op_type in ("GlobalAveragePool", "ReduceMean"):
            held = unsigned(node.inputs[0])
        else:
            held = node.op_type in _UNSIGNED or (node.op_type == "Concat" and all(map(unsigned, node.inputs)))
        if held:
            found.update(node.outputs)
    return found


def _fitting(units: tuple[float, int] | None, numbers: list[float]) -> tuple[float, int] | None:
    """Prescribed units, dropped where they cannot hold a padding value or constant of the group."""
    if units is None:
        return None
    scale, zero_point = units
    low, high = -zero_point * scale, (255 - zero_point) * scale
    return units if all(low - scale / 2 <= n <= high + scale / 2 for n in numbers) else None
