"""Takes outlier channels out of activations, where the estimate says it pays, without changing the float net.

One scale and zero-point serve all channels of an activation, so a channel that reaches far leaves the others few
levels. Values joined by positively homogeneous operators and additions form a family: each of its channels may be
divided by s > 0 where layers make it and multiplied by s in the weights of the layers that read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.core.dataset import Dataset
from edgescale.core.model import Model
from edgescale.core.progress import Progress
from edgescale.frontend.graph import constant, input_at, int_attribute, is_op, only_consumer, scalar, shape_of
from edgescale.quantize.calibrate import ChannelSpread, channel_spreads
from edgescale.quantize.equalize import HOMOGENEOUS, divide_outputs, multiply_inputs, rescalable
from edgescale.quantize.patches import product_of
from edgescale.quantize.streams import spread_evenly

Real = npt.NDArray[np.float64]

SAMPLES = 32
"""Calibration samples that channels are looked at over; ranges are chosen later, over all of them."""
GAIN = 4.0
"""How many times smaller the estimated error must get before a family is rescaled: the estimate is rough, and small
gains are not worth weights that differ from the float net's."""
STRENGTHS = (0.5, 0.75, 1.0)
"""How much of the activations' spread goes into the weights, as candidates."""
FLOOR = 1 / 8
"""Least reach of a channel, relative to the median: few samples may not show what a quiet channel can do."""
_RESHAPES = ("Flatten", "Reshape", "Squeeze")


@dataclass(frozen=True)
class Family:
    """Values whose channels share a scale: `makers` write them, `readers` (node, value read) multiply them by weights.

    `values`: those that will be rounded, in graph order.
    """

    makers: tuple[ir.Node, ...]
    readers: tuple[tuple[ir.Node, ir.Value], ...]
    values: tuple[ir.Value, ...]


def balance(
    model: Model, graph: ir.Model, data: Dataset, bits: Callable[[ir.Node], int], progress: Progress
) -> tuple[str, ...]:
    """Rescale, in place, the families of a float graph that lose GAIN times less by it; names of the makers changed.

    bits: of a node's weights. The estimate adds up, for every reader and relative to its output's power, the error
    of rounding the activations to 8 bits and its weights to theirs (uniform errors, independent of one another).
    Channels that the samples show at zero only are scaled like the median one.
    """
    families = find_families(graph.graph)
    if not families:
        return ()
    few = Dataset(data.name, np.asarray(spread_evenly(data.x, SAMPLES)), None, data.sha256)
    names = [str(value.name) for family in families for value in family.values]
    spreads = channel_spreads(model, graph, few, names, progress)
    changed: list[str] = []
    for family in families:
        found = {value: spreads[str(value.name)] for value in family.values}
        widths = [bits(node) for node, _ in family.readers]
        factors = best_factors(family, found, widths)
        if factors is not None:
            for node in family.makers:
                divide_outputs(node, factors)
            for node, _ in family.readers:
                multiply_inputs(node, factors)
            changed += [str(node.name) for node in family.makers]
    return tuple(changed)


def best_factors(family: Family, spreads: Mapping[ir.Value, ChannelSpread], widths: Sequence[int]) -> Real | None:
    """The factors [channels] of least estimated error, None where none is GAIN times better than none at all."""
    readers = [
        _Reader(node, spreads[value], width) for (node, value), width in zip(family.readers, widths, strict=True)
    ]
    reach = np.max([spread.reach for spread in spreads.values()], axis=0)
    alive = reach > 0
    if alive.sum() < 2:
        return None
    floored = np.maximum(reach, FLOOR * float(np.median(reach[alive])))
    read = np.max([one.reach / max(float(one.reach.max()), 1e-30) for one in readers], axis=0)
    read = np.maximum(read, 1e-6)

    def error(factors: Real) -> float:
        steps = [spread.step(factors) for spread in spreads.values()]
        return sum(one.error(factors, steps) for one in readers)

    best, least = None, error(np.ones(reach.size)) / GAIN
    for strength in STRENGTHS:
        factors = floored**strength / read ** (1 - strength)
        factors /= np.exp(np.median(np.log(factors[alive])))
        factors[~alive] = 1.0
        # Powers of two keep the float net's own bits, up to overflow.
        factors = 2.0 ** np.rint(np.log2(factors))
        found = error(factors)
        if found < least:
            best, least = factors, found
    return best


class _Reader:
    """A layer that reads a family, as the estimate sees it."""

    def __init__(self, node: ir.Node, spread: ChannelSpread, bits: int) -> None:
        weights = constant(node.inputs[1])
        if weights is None:
            raise ValueError(f"{node.name}: no constant weights")
        product = product_of(node, weights.shape)
        channels = spread.power.size
        matrix = product.matrix(weights)
        # [outputs, channels of one group, taps]; a depthwise layer has one channel a group.
        self._weights = matrix.reshape(product.outputs, channels // product.groups, -1)
        self._groups = product.groups
        self._power = spread.power
        self._largest = 2 ** (bits - 1) - 1
        self.reach = self._by_channel(np.abs(self._weights).max(axis=2), np.max)
        self._squares = self._by_channel((self._weights**2).sum(axis=2), np.sum)
        self._signal = max(float(self._squares @ spread.power), 1e-30)

    def _by_channel(self, parts: Real, combine: Callable[..., Real]) -> Real:
        """[outputs, channels of a group] -> [channels]."""
        grouped = parts.reshape(self._groups, -1, parts.shape[1])
        return np.asarray(combine(grouped, axis=1)).reshape(-1)

    def error(self, factors: Real, steps: Sequence[float]) -> float:
        """Error of the output relative to its power, for activations rounded in `steps`."""
        activations = sum(step**2 for step in steps) / 12 * float(self._squares @ factors**2)
        own = np.repeat(factors.reshape(self._groups, -1), len(self._weights) // self._groups, axis=0)
        largest = (np.abs(self._weights).max(axis=2) * own).max(axis=1)
        inputs = (self._power / factors**2).reshape(self._groups, -1).sum(axis=1)
        rounding = (largest / self._largest) ** 2 / 12
        weights = self._weights.shape[2] * float(rounding.reshape(self._groups, -1).sum(axis=1) @ inputs)
        return (activations + weights) / self._signal


@dataclass
class _Members:
    """What is known of a set of values before it proves to be a family."""

    values: list[ir.Value] = field(default_factory=list)
    makers: list[ir.Node] = field(default_factory=list)
    readers: list[tuple[ir.Node, ir.Value]] = field(default_factory=list)
    pinned: bool = False


def find_families(graph: ir.Graph) -> list[Family]:
    """Every set of values with all their makers and readers rescalable, in graph order."""
    parent: dict[ir.Value, ir.Value] = {}

    def root(value: ir.Value) -> ir.Value:
        parent.setdefault(value, value)
        while parent[value] is not value:
            parent[value] = parent[parent[value]]
            value = parent[value]
        return value

    def join(*values: ir.Value) -> None:
        for value in values[1:]:
            parent[root(value)] = root(values[0])

    makers: list[tuple[ir.Value, ir.Node]] = []
    readers: list[tuple[ir.Value, ir.Node]] = []
    pinned = [*graph.inputs, *graph.outputs]
    for node in graph:
        source, out = node.inputs[0] if node.inputs else None, node.outputs[0]
        fed = [v for v in node.inputs if v is not None and constant(v) is None]
        together = _joined(node)
        if source is not None and fed == [source] and rescalable(node):
            makers.append((out, node))
            if _reads_channels(node):
                readers.append((source, node))
            else:
                pinned.append(source)
        elif together:
            join(*together)
            pinned += [v for v in fed if v not in together]
        else:
            pinned += [*fed, *node.outputs]
    members: dict[ir.Value, _Members] = {}
    for value in [v for node in graph for v in node.outputs]:
        members.setdefault(root(value), _Members()).values.append(value)
    for value, node in makers:
        members[root(value)].makers.append(node)
    for value, node in readers:
        if root(value) in members:
            members[root(value)].readers.append((node, value))
    for value in pinned:
        if root(value) in members:
            members[root(value)].pinned = True
    return [
        Family(tuple(m.makers), tuple(m.readers), _rounded(m))
        for m in members.values()
        if m.makers and m.readers and not m.pinned
    ]


def _rounded(members: _Members) -> tuple[ir.Value, ...]:
    """The values that get units of their own: not what is clamped by a Relu next, nor what only moves."""
    read = {value for _, value in members.readers}
    kept = []
    for value in members.values:
        after, made = only_consumer(value), value.producer()
        clamped = is_op(after, "Relu") and is_op(made, "Conv", "Gemm", "Add")
        if value in read or not (clamped or is_op(made, *_RESHAPES, "Identity", "Dropout")):
            kept.append(value)
    return tuple(kept)


def _joined(node: ir.Node) -> tuple[ir.Value, ...]:
    """The values whose channels a node passes on with their scale; empty where it does not."""
    source, out = node.inputs[0] if node.inputs else None, node.outputs[0]
    if source is None or constant(source) is not None or len(node.outputs) > 1:
        return ()
    shape, made = shape_of(source), shape_of(out)
    if shape is None or made is None or len(shape) < 2:
        return ()
    if is_op(node, *HOMOGENEOUS):
        return (source, out)
    if is_op(node, *_RESHAPES):
        alone = len(shape) > 2 and int(np.prod(shape[2:])) == 1 and made == shape[:2]
        return (source, out) if alone else ()
    if is_op(node, "ReduceMean"):
        kept = len(shape) > 2 and made[:2] == shape[:2] and int(np.prod(made[2:])) == 1
        return (source, out) if kept else ()
    if is_op(node, "Pad"):
        fill = input_at(node, 2)
        return (source, out) if made[:2] == shape[:2] and (fill is None or scalar(fill) == 0.0) else ()
    other = input_at(node, 1)
    if other is None or constant(other) is not None or other is source:
        return (source, out) if other is source and is_op(node, "Add", "Sub") else ()
    if is_op(node, "Add", "Sub") and shape_of(other) == shape:
        return (source, other, out)
    if is_op(node, "Mul") and len(shape) > 2 and made == shape:
        gate = shape_of(other)
        return (source, out) if gate is not None and int(np.prod(gate[2:])) == 1 < int(np.prod(shape[2:])) else ()
    return ()


def _reads_channels(node: ir.Node) -> bool:
    """Whether each weight belongs to one input channel that a factor can be given for."""
    shape = shape_of(node.inputs[0])
    if shape is None or len(shape) < 2:
        return False
    if is_op(node, "Gemm"):
        return len(shape) == 2
    return int_attribute(node, "group", 1) in (1, shape[1])
