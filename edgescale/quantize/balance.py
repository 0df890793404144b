"""Takes outlier channels out of activations, where the estimate says it pays, without changing the float net.

One scale and zero-point serve all channels of an activation, so a channel that reaches far leaves the others few
levels. A channel may be divided by s > 0 where a layer makes it and multiplied by s in the weights that read it, with
nothing but positively homogeneous operators between: `quantize.channels` finds which channels those are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.core.dataset import Dataset
from edgescale.core.model import Model
from edgescale.core.progress import Progress
from edgescale.frontend.graph import constant
from edgescale.quantize.calibrate import ChannelSpread, channel_spreads
from edgescale.quantize.channels import Family, Indices, find_families
from edgescale.quantize.equalize import divide_outputs, multiply_inputs
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
        factors = best_factors(family, found, [bits(reader.node) for reader in family.readers])
        if factors is None:
            continue
        for maker in family.makers:
            divide_outputs(maker.node, factors[maker.channels])
        for reader in family.readers:
            multiply_inputs(reader.node, factors[reader.channels])
        changed += [str(maker.node.name) for maker in family.makers]
    return tuple(changed)


def best_factors(family: Family, spreads: Mapping[ir.Value, ChannelSpread], widths: Sequence[int]) -> Real | None:
    """The factors [channels of the family] of least estimated error, None where none is GAIN times better than ones."""
    readers = [
        _Reader(reader.node, reader.channels, spreads[reader.value], width)
        for reader, width in zip(family.readers, widths, strict=True)
    ]
    count = family.free.size
    reach, read = np.zeros(count), np.full(count, 1e-6)
    for value, channels in family.values.items():
        np.maximum.at(reach, channels, spreads[value].reach)
    for one in readers:
        np.maximum.at(read, one.channels, one.reach / max(float(one.reach.max()), 1e-30))
    moved = family.free & (reach > 0)
    held = ~family.free & (reach > 0)
    if not moved.any() or moved.sum() + held.sum() < 2:
        return None
    floored = np.maximum(reach, FLOOR * float(np.median(reach[moved])))

    def error(factors: Real) -> float:
        noise = np.zeros(count)
        for value, channels in family.values.items():
            noise[np.unique(channels)] += spreads[value].step(factors[channels]) ** 2 / 12
        return sum(one.error(factors[one.channels], noise[one.channels]) for one in readers)

    best, least = None, error(np.ones(count)) / GAIN
    for strength in STRENGTHS:
        wanted = floored**strength / read ** (1 - strength)
        # Beside channels that cannot be scaled the others come to reach as far as those, else as far as they did.
        middle = np.median(floored[moved] / wanted[moved]) / np.median(reach[held]) if held.any() else 0.0
        wanted = wanted * middle if held.any() else wanted / np.exp(np.median(np.log(wanted[moved])))
        # Powers of two keep the float net's own bits, up to overflow.
        factors = np.where(moved, 2.0 ** np.rint(np.log2(wanted)), 1.0)
        found = error(factors)
        if found < least:
            best, least = factors, found
    return best


class _Reader:
    """A layer that reads a family, as the estimate sees it; `channels`: the family's channel of each input channel."""

    def __init__(self, node: ir.Node, channels: Indices, spread: ChannelSpread, bits: int) -> None:
        weights = constant(node.inputs[1])
        if weights is None:
            raise ValueError(f"{node.name}: no constant weights")
        product = product_of(node, weights.shape)
        matrix = product.matrix(weights)
        # [outputs, channels of one group, taps]; a depthwise layer has one channel a group.
        self._weights = matrix.reshape(product.outputs, channels.size // product.groups, -1)
        self._groups = product.groups
        self._power = spread.power
        self._largest = 2 ** (bits - 1) - 1
        self.channels = channels
        self.reach = self._by_channel(np.abs(self._weights).max(axis=2), np.max)
        self._squares = self._by_channel((self._weights**2).sum(axis=2), np.sum)
        self._signal = max(float(self._squares @ spread.power), 1e-30)

    def _by_channel(self, parts: Real, combine: Callable[..., Real]) -> Real:
        """[outputs, channels of a group] -> [channels]."""
        grouped = parts.reshape(self._groups, -1, parts.shape[1])
        return np.asarray(combine(grouped, axis=1)).reshape(-1)

    def error(self, factors: Real, noise: Real) -> float:
        """Error of the output relative to its power; factors and mean square errors of its input channels."""
        activations = float(self._squares @ (factors**2 * noise))
        own = np.repeat(factors.reshape(self._groups, -1), len(self._weights) // self._groups, axis=0)
        largest = (np.abs(self._weights).max(axis=2) * own).max(axis=1)
        inputs = (self._power / factors**2).reshape(self._groups, -1).sum(axis=1)
        rounding = (largest / self._largest) ** 2 / 12
        weights = self._weights.shape[2] * float(rounding.reshape(self._groups, -1).sum(axis=1) @ inputs)
        return (activations + weights) / self._signal
