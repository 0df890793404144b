"""Which channels of a graph must go together: a label for every channel, one class for all that are tied."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.frontend.graph import constant, input_at, int_attribute, ints_attribute, is_op, shape_of
from edgescale.quantize.rules import weight_axis

Labels = npt.NDArray[np.int64]

_SAME = frozenset(
    {"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Selu", "Gelu", "Erf"}
) | {"Identity", "Dropout", "Neg", "Abs", "Exp", "Sqrt", "Softplus", "Mish", "Softsign", "Reciprocal", "Floor"}
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool"})
_BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu", "Pow"})
_MOVES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})


def _usual_axis(rank: int) -> int:
    """Of the channels: behind the batch, or last in sequences."""
    return 2 if rank == 3 else min(1, rank - 1)


@dataclass(frozen=True)
class Channels:
    """The channels of a value: they lie along `axis`, `labels` [size of that axis] names each."""

    axis: int
    labels: Labels


@dataclass(frozen=True)
class Trim:
    """Input `index` of node `node` is a constant whose `axis` runs over the channels `labels`."""

    node: str
    index: int
    axis: int
    labels: Labels


@dataclass(frozen=True)
class Weighted:
    """A Conv, Gemm or MatMul of constant weights: labels of the channels it makes and of those it reads.

    `reads`: of one group where there are several; `groups` independent parts (`depthwise`: each channel its own);
    `positions`: outputs of a channel, `kernel` taps of one input channel.
    """

    node: str
    makes: Labels
    reads: Labels
    groups: int
    depthwise: bool
    positions: int
    kernel: int


@dataclass(frozen=True)
class Structure:
    """What may leave a graph, and what has to go with it.

    `units`: {class: labels in it}, of those that may go; `families`: classes made by the same nodes, {names of the
    nodes: classes}; `shapes`: Reshape nodes and the channels of what they give.
    """

    root: Labels
    units: tuple[int, ...]
    families: dict[tuple[str, ...], tuple[int, ...]]
    weighted: tuple[Weighted, ...]
    trims: tuple[Trim, ...]
    shapes: dict[str, Channels]

    def kept(self, labels: Labels, removed: Labels) -> npt.NDArray[np.bool_]:
        """Which of the channels `labels` stay when the classes `removed` go."""
        return np.asarray(~np.isin(self.root[labels], removed))


class _Finder:
    """One walk over the graph; labels are integers, their classes a union-find."""

    def __init__(self, graph: ir.Graph) -> None:
        self.parent: list[int] = []
        self.frozen: set[int] = set()
        self.channels: dict[ir.Value, Channels] = {}
        self.weighted: list[Weighted] = []
        self.trims: list[Trim] = []
        self.shapes: dict[str, Channels] = {}
        for value in graph.inputs:
            self._fresh(value, frozen=True)
        for node in graph:
            if not self._follow(node):
                self._end(node)
        for value in graph.outputs:
            self._freeze(value)

    def root(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def _new(self, count: int) -> Labels:
        first = len(self.parent)
        self.parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def _join(self, one: Iterable[int], other: Iterable[int]) -> None:
        for a, b in zip(one, other, strict=True):
            first, second = sorted((self.root(int(a)), self.root(int(b))))
            self.parent[second] = first

    def _fresh(self, value: ir.Value, *, frozen: bool, axis: int | None = None) -> Channels | None:
        shape = shape_of(value)
        if shape is None or len(shape) < 2:
            return None
        at = _usual_axis(len(shape)) if axis is None else axis % len(shape)
        made = Channels(at, self._new(shape[at]))
        self.channels[value] = made
        if frozen:
            self.frozen.update(int(i) for i in made.labels)
        return made

    def _freeze(self, value: ir.Value | None) -> None:
        found = self.channels.get(value) if value is not None else None
        if found is not None:
            self.frozen.update(int(i) for i in found.labels)

    def _end(self, node: ir.Node) -> None:
        """Nothing is known of the node: its channels stay."""
        for value in node.inputs:
            self._freeze(value)
        for value in node.outputs:
            self._fresh(value, frozen=True)

    def _follow(self, node: ir.Node) -> bool:
        """Label the outputs of a node; False where it is not one that channels can be followed through."""
        shapes = [shape_of(v) for v in node.outputs if v.uses() or v.is_graph_output()]
        if len(shapes) != 1 or None in shapes or node.domain not in ("", "ai.onnx"):
            return False
        out = node.outputs[0]
        if is_op(node, "Conv"):
            return self._conv(node, out)
        if is_op(node, "Gemm", "MatMul"):
            return self._dense(node, out)
        if is_op(node, *_BINARY):
            return self._binary(node, out)
        if is_op(node, "Concat"):
            return self._concat(node, out)
        source = self.channels.get(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
        if source is None:
            return False
        if is_op(node, *_SAME) or (is_op(node, *_POOLS) and source.axis == 1):
            self.channels[out] = source
            return True
        return is_op(node, *_MOVES) and self._move(node, source, out)

    def _conv(self, node: ir.Node, out: ir.Value) -> bool:
        source = self.channels.get(node.inputs[0]) if node.inputs[0] is not None else None
        weights, bias = constant(node.inputs[1]), input_at(node, 2)
        if source is None or source.axis != 1 or weights is None or (bias is not None and constant(bias) is None):
            return False
        groups, outputs, each = int_attribute(node, "group", 1), weights.shape[0], weights.shape[1]
        made = self._fresh(out, frozen=False, axis=1)
        if made is None:
            return False
        depthwise = groups == len(source.labels) and groups > 1
        if depthwise:
            multiplier = outputs // groups
            if multiplier > 1:  # a channel's filters go with it, all of them
                for j in range(multiplier):
                    self._join(source.labels, made.labels[j::multiplier])
            else:
                self._join(source.labels, made.labels)
        elif groups > 1:  # groups stay as many and equally wide: the same position goes in each
            per = made.labels.reshape(groups, -1)
            own = source.labels.reshape(groups, -1)
            for g in range(1, groups):
                self._join(per[0], per[g])
                self._join(own[0], own[g])
        name = str(node.name)
        reads = source.labels if depthwise else source.labels[:each]
        self._trim(node, 1, 0, made.labels)
        if not depthwise:
            self._trim(node, 1, 1, reads)
        if bias is not None:
            self._trim(node, 2, 0, made.labels)
        shape = shape_of(out) or ()
        kernel = int(np.prod(weights.shape[2:]))
        positions = int(np.prod(shape[2:]))
        self.weighted.append(Weighted(name, made.labels, reads, groups, depthwise, positions, kernel))
        return True

    def _dense(self, node: ir.Node, out: ir.Value) -> bool:
        source = self.channels.get(node.inputs[0]) if node.inputs[0] is not None else None
        weights, bias = constant(node.inputs[1]), input_at(node, 2)
        shape = shape_of(out)
        if source is None or weights is None or weights.ndim != 2 or shape is None:
            return False
        values = constant(bias)
        if bias is not None and (values is None or values.ndim != 1):
            return False
        if is_op(node, "Gemm") and (int_attribute(node, "transA", 0) or source.axis != 1):
            return False
        if source.axis != len(shape_of(node.inputs[0]) or ()) - 1:
            return False
        axis = weight_axis(node)
        made = self._fresh(out, frozen=False, axis=len(shape) - 1)
        if made is None:
            return False
        self._trim(node, 1, axis, made.labels)
        self._trim(node, 1, 1 - axis, source.labels)
        if values is not None and values.size == len(made.labels):
            self._trim(node, 2, 0, made.labels)
        positions = int(np.prod(shape[:-1]))
        self.weighted.append(Weighted(str(node.name), made.labels, source.labels, 1, False, positions, 1))
        return True

    def _trim(self, node: ir.Node, index: int, axis: int, labels: Labels) -> None:
        self.trims.append(Trim(str(node.name), index, axis, labels))

    def _binary(self, node: ir.Node, out: ir.Value) -> bool:
        shape = shape_of(out)
        first, second = node.inputs[0], node.inputs[1]
        if shape is None or first is None or second is None:
            return False
        for index, (value, other) in enumerate(((first, second), (second, first))):
            array = constant(other)
            source = self.channels.get(value)
            if array is None or source is None:
                continue
            if shape_of(value) != shape or array.ndim > len(shape):
                return False
            axis = source.axis - (len(shape) - array.ndim)
            if axis >= 0 and array.shape[axis] > 1:
                self._trim(node, 1 - index, axis, source.labels)
            self.channels[out] = source
            return True
        one, two = self.channels.get(first), self.channels.get(second)
        ranks = {len(shape_of(v) or ()) for v in (first, second)}
        if one is None or two is None or ranks != {len(shape)} or one.axis != two.axis:
            return False
        if len(one.labels) != len(two.labels):
            return False
        self._join(one.labels, two.labels)
        self.channels[out] = one
        return True

    def _concat(self, node: ir.Node, out: ir.Value) -> bool:
        parts = [self.channels.get(value) if value is not None else None for value in node.inputs]
        found = [part for part in parts if part is not None]
        rank = len(shape_of(out) or ())
        axis = int_attribute(node, "axis", 0) % max(rank, 1)
        if len(found) != len(parts) or any(part.axis != found[0].axis for part in found):
            return False
        if found[0].axis == axis:
            self.channels[out] = Channels(axis, np.concatenate([part.labels for part in found]))
            return True
        for part in found[1:]:
            self._join(found[0].labels, part.labels)
        self.channels[out] = found[0]
        return True

    def _move(self, node: ir.Node, source: Channels, out: ir.Value) -> bool:
        """A change of shape: follow every element's label, and see whether one axis still tells them apart."""
        before, after = shape_of(node.inputs[0]), shape_of(out)
        if before is None or after is None:
            return False
        spread = tuple(-1 if a == source.axis else 1 for a in range(len(before)))
        every = np.broadcast_to(source.labels.reshape(spread), before)
        if is_op(node, "Transpose"):
            every = every.transpose(ints_attribute(node, "perm") or tuple(reversed(range(len(before)))))
        every = every.reshape(after)
        # A single channel is told apart by any axis; the usual one is meant.
        axes = range(len(after)) if len(set(source.labels.tolist())) > 1 else [_usual_axis(len(after))]
        for axis in axes:
            line = np.moveaxis(every, axis, 0).reshape(after[axis], -1)
            if (line == line[:, :1]).all():
                made = Channels(axis, np.ascontiguousarray(line[:, 0]))
                self.channels[out] = made
                if is_op(node, "Reshape"):
                    self.shapes[str(node.name)] = made
                return True
        return False


def find_structure(graph: ir.Graph) -> Structure:
    """The dependencies of a float graph in canonical form with static shapes and unique node names.

    Channels are followed through convolutions of any grouping, dense layers, elementwise operators, pooling,
    concatenation, and changes of shape that keep them apart; those that reach a graph input, a graph output or any
    other operator stay.
    """
    finder = _Finder(graph)
    root = np.array([finder.root(i) for i in range(len(finder.parent))], np.int64)
    frozen = {finder.root(i) for i in finder.frozen}
    makers: dict[int, list[str]] = {}
    readers: set[int] = set()
    for layer in finder.weighted:
        if not layer.depthwise:
            for unit in np.unique(root[layer.makes]):
                makers.setdefault(int(unit), []).append(layer.node)
            readers.update(int(i) for i in root[layer.reads])
    units = tuple(sorted(u for u in makers if u not in frozen and u in readers))
    families: dict[tuple[str, ...], list[int]] = {}
    for unit in units:
        families.setdefault(tuple(makers[unit]), []).append(unit)
    return Structure(
        root,
        units,
        {names: tuple(members) for names, members in families.items()},
        tuple(finder.weighted),
        tuple(finder.trims),
        finder.shapes,
    )
