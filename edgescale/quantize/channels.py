"""Which channels of a float net may be scaled together without changing it.

Every channel of every value is a variable; operators that pass a channel on with its scale (Relu, pooling, Concat,
Flatten) keep the variable, additions make two of them one. A variable is free where only layers make it and only
layers read it: a factor divided out of the former and multiplied into the latter cancels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.frontend.graph import constant, input_at, int_attribute, is_op, only_consumer, scalar, shape_of
from edgescale.quantize.equalize import HOMOGENEOUS, rescalable

Indices = npt.NDArray[np.int64]

_RESHAPES = ("Flatten", "Reshape", "Squeeze")
_MOVES = (*_RESHAPES, "Identity", "Dropout", "Split")


@dataclass(frozen=True)
class Maker:
    """A layer, and the channel of the family that each of its output channels is."""

    node: ir.Node
    channels: Indices


@dataclass(frozen=True)
class Reader:
    """A layer, the value it reads and the channel of the family that each of its input channels is."""

    node: ir.Node
    value: ir.Value
    channels: Indices


@dataclass(frozen=True)
class Family:
    """Values that share channels, with all layers that make and read them.

    `free`: which of the family's channels may be scaled. `values`: those that will be rounded, in graph order, and
    the family's channel of each of theirs (axis 1; the last axis of what has two).
    """

    free: npt.NDArray[np.bool_]
    makers: tuple[Maker, ...]
    readers: tuple[Reader, ...]
    values: Mapping[ir.Value, Indices]


class _Union:
    """Union-find over integers."""

    def __init__(self) -> None:
        self.parent: list[int] = []

    def fresh(self, count: int) -> Indices:
        first = len(self.parent)
        self.parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, item: int) -> int:
        while self.parent[item] != item:
            self.parent[item] = self.parent[self.parent[item]]
            item = self.parent[item]
        return item

    def roots(self, items: Indices) -> Indices:
        return np.array([self.root(int(item)) for item in items], np.int64)

    def join(self, ones: Iterable[int], others: Iterable[int]) -> None:
        for one, other in zip(ones, others, strict=True):
            self.parent[self.root(int(other))] = self.root(int(one))


class _Channels:
    """The variables of a graph's values while it is walked in order."""

    def __init__(self, graph: ir.Graph) -> None:
        self.union = _Union()
        self.of: dict[ir.Value, Indices] = {}
        self.pinned: list[Indices] = []
        self.makers: list[tuple[ir.Node, ir.Value]] = []
        self.readers: list[tuple[ir.Node, ir.Value]] = []
        for value in graph.inputs:
            self._open(value, free=False)
        for node in graph:
            self._pass(node)
        self.pin(graph.outputs)
        # What a loop's or a branch's body reads is read by no node of the walk.
        self.pin(v for v in self.of if any(use.node.graph is not graph for use in v.uses()))

    def pin(self, values: Iterable[ir.Value]) -> None:
        self.pinned += [self.of[value] for value in values if value in self.of]

    def _open(self, value: ir.Value, *, free: bool) -> None:
        """Variables of its own for a value, where it has channels."""
        shape = shape_of(value)
        if shape is not None and len(shape) > 1:
            self.of[value] = self.union.fresh(shape[1])
            if not free:
                self.pin([value])

    def _pass(self, node: ir.Node) -> None:
        fed = [v for v in node.inputs if v is not None and constant(v) is None]
        if fed and fed == [node.inputs[0]] and fed[0] in self.of and rescalable(node):
            self._open(node.outputs[0], free=True)
            if node.outputs[0] in self.of:
                self.makers.append((node, node.outputs[0]))
            if _reads_channels(node):
                self.readers.append((node, fed[0]))
            else:
                self.pin(fed)
            return
        passed = self._passed(node, fed)
        if passed is None:
            self.pin(fed)
            for value in node.outputs:
                self._open(value, free=False)
            return
        self.of |= passed

    def _passed(self, node: ir.Node, fed: list[ir.Value]) -> dict[ir.Value, Indices] | None:
        """The variables of a node's outputs where it passes channels on, else None."""
        source, out = node.inputs[0] if node.inputs else None, node.outputs[0]
        if is_op(node, "Concat"):
            return self._concat(node)
        if source is None or source not in self.of:
            return None
        shape, made = shape_of(source), shape_of(out)
        if shape is None or made is None:
            return None
        own = self.of[source]
        if any(value not in self.of and value.dtype == ir.DataType.FLOAT for value in fed):
            return None
        if is_op(node, "Split"):
            return self._split(node, own, len(shape))
        if len(node.outputs) > 1:
            return None
        if is_op(node, *HOMOGENEOUS):
            return {out: own}
        if is_op(node, *_RESHAPES):
            flat = len(made) == 2 and made == (shape[0], int(np.prod(shape[1:])))
            return {out: np.repeat(own, int(np.prod(shape[2:])))} if flat else None
        if is_op(node, "ReduceMean"):
            kept = len(shape) > 2 and made[:2] == shape[:2] and int(np.prod(made[2:])) == 1
            return {out: own} if kept else None
        if is_op(node, "Pad"):
            fill = input_at(node, 2)
            return {out: own} if made[:2] == shape[:2] and (fill is None or scalar(fill) == 0.0) else None
        if is_op(node, "Add", "Sub") and len(fed) == 2 and shape_of(fed[0]) == shape_of(fed[1]):
            self.union.join(own, self.of[fed[1]])
            return {out: own}
        if is_op(node, "Add", "Sub") and len(fed) == 1 and node.inputs[0] is node.inputs[1]:
            return {out: own}
        return self._gated(fed, out) if is_op(node, "Mul") and len(fed) == 2 else None

    def _gated(self, fed: list[ir.Value], out: ir.Value) -> dict[ir.Value, Indices] | None:
        """A product with one factor a channel, in either order, where that factor is known to be another value's."""
        for value, gate in (fed, fed[::-1]):
            shape, narrow = shape_of(value), shape_of(gate)
            if shape is None or narrow is None or len(shape) < 3 or value not in self.of or shape != shape_of(out):
                continue
            if int(np.prod(narrow[2:])) == 1 < int(np.prod(shape[2:])):
                self.pin([gate])
                return {out: self.of[value]}
        return None

    def _concat(self, node: ir.Node) -> dict[ir.Value, Indices] | None:
        made = shape_of(node.outputs[0])
        if made is None or int_attribute(node, "axis", 0) % len(made) != 1:
            return None
        parts = []
        for value in node.inputs:
            shape = shape_of(value)
            if value is None or shape is None:
                return None
            if value not in self.of:  # a constant
                self.of[value] = self.union.fresh(shape[1])
                self.pin([value])
            parts.append(self.of[value])
        return {node.outputs[0]: np.concatenate(parts)}

    @staticmethod
    def _split(node: ir.Node, own: Indices, rank: int) -> dict[ir.Value, Indices] | None:
        shapes = [shape_of(value) for value in node.outputs]
        if int_attribute(node, "axis", 0) % rank != 1 or any(shape is None for shape in shapes):
            return None
        edges = np.cumsum([shape[1] for shape in shapes if shape is not None])
        return dict(zip(node.outputs, np.split(own, edges[:-1]), strict=True))


def find_families(graph: ir.Graph) -> list[Family]:
    """Every set of values that share channels, where some of these are free, in graph order."""
    found = _Channels(graph)
    roots = {value: found.union.roots(labels) for value, labels in found.of.items()}
    together = _Union()
    together.fresh(len(found.union.parent))
    for labels in roots.values():
        together.join(labels[:-1], labels[1:])
    pinned = {int(label) for labels in found.pinned for label in found.union.roots(labels)}

    def family(value: ir.Value) -> int:
        return together.root(int(roots[value][0])) if roots[value].size else -1

    members: dict[int, list[ir.Value]] = {}
    for value in roots:
        members.setdefault(family(value), []).append(value)
    made = []
    for key, values in members.items():
        labels = np.unique(np.concatenate([roots[value] for value in values]))
        place = {value: np.searchsorted(labels, roots[value]) for value in values}
        makers = tuple(Maker(node, place[value]) for node, value in found.makers if family(value) == key)
        readers = tuple(Reader(node, value, place[value]) for node, value in found.readers if family(value) == key)
        free = np.array([int(label) not in pinned for label in labels])
        if makers and readers and free.any():
            read = {reader.value for reader in readers}
            kept = {value: place[value] for value in values if value in read or _is_rounded(value)}
            made.append(Family(free, makers, readers, kept))
    return made


def _is_rounded(value: ir.Value) -> bool:
    """Whether a value gets units of its own: not one that a Relu clamps next, nor one that was only moved."""
    after, producer = only_consumer(value), value.producer()
    if producer is None or constant(value) is not None:
        return False
    clamped = is_op(after, "Relu") and is_op(producer, "Conv", "Gemm", "Add")
    return not (clamped or is_op(producer, *_MOVES))


def _reads_channels(node: ir.Node) -> bool:
    """Whether each weight belongs to one input channel that a factor can be given for."""
    shape = shape_of(node.inputs[0])
    if shape is None or len(shape) < 2:
        return False
    if is_op(node, "Gemm"):
        return len(shape) == 2
    return int_attribute(node, "group", 1) in (1, shape[1])
