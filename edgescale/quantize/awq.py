"""Activation-aware scaling and clipping of weights (Lin et al., "AWQ"), on second moments alone.

Y = Q(W diag(s)) (diag(s)^-1 X): input channels that carry large activations are scaled up before rounding, so that
their weights lose less. Weights are [outputs, terms], H [terms, terms] the second moment of the layers' input.

Beyond the paper: weights that are large where activations are small may be scaled down (an exponent for each), scales
are compared after the blocks' ranges were cut, and then descend one channel at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.quantize.blocks import Blocks, nearest_levels, spread, stored
from edgescale.quantize.clipping import search_clips
from edgescale.quantize.rounding import Layout

Real = npt.NDArray[np.float64]

_OF_ACTIVATIONS = tuple(i / 10 for i in range(11))
_OF_WEIGHTS = tuple(i / 4 for i in range(5))
_LEAST = 1e-4
_ROWS = 64
"""Rows of each layer by which scales are compared; loss is a sum over rows."""
_FACTORS = np.array([0.8, 0.85, 0.9, 0.93, 0.96, 0.98, 1.02, 1.04, 1.07, 1.1, 1.15, 1.25])
"""What one step of the descent may multiply a channel's scale by."""
_SWEEPS = 3
_COLUMNS = 64
"""Columns updated one by one before the rest of the row follows in one matrix product."""


@dataclass(frozen=True)
class InputStatistics:
    """Of a layer's input x: E[x x^T] [terms, terms], E|x| and E[x] [terms]."""

    second: Real
    magnitude: Real
    mean: Real

    def scaled(self, scale: Real) -> InputStatistics:
        """Those of x / scale."""
        return InputStatistics(self.second / np.outer(scale, scale), self.magnitude / scale, self.mean / scale)

    def rotated(self, matrix: Real) -> InputStatistics:
        """Those of x M; E|x M| is bounded by its root mean square, which stands for it."""
        second = matrix.T @ self.second @ matrix
        return InputStatistics(second, np.sqrt(np.maximum(np.diag(second), 0)), self.mean @ matrix)

    def centred(self) -> InputStatistics:
        """Those of x less its mean, for layers whose bias takes the mean error."""
        return InputStatistics(self.second - np.outer(self.mean, self.mean), self.magnitude, np.zeros_like(self.mean))


@dataclass(frozen=True)
class Weights:
    """A layer's weights [outputs, terms] with the format and blocks that they are to be rounded to."""

    matrix: Real
    layout: Layout
    symmetric: bool

    def clipped(self, scale: Real, second: Real, *, coarse: bool = False, start: Blocks | None = None) -> Blocks:
        """W diag(scale), rounded with the best range of each block; second: of the unscaled input."""
        own = second / np.outer(scale, scale)
        return search_clips(self.matrix * scale, self.layout, own, symmetric=self.symmetric, coarse=coarse, start=start)

    def loss(self, blocks: Blocks, scale: Real, second: Real) -> float:
        """E|(Q(W s) / s - W) x|^2."""
        change = blocks.real() / scale - self.matrix
        return float(np.sum((change @ second) * change))

    def sample(self, count: int) -> Weights:
        """At most `count` of the rows, evenly."""
        rows = np.linspace(0, len(self.matrix) - 1, min(len(self.matrix), count)).astype(int)
        layout = Layout(
            self.layout.form, (len(rows), *self.layout.shape[1:]), self.layout.block_size, self.layout.scale_rule,
            self.layout.signed,
        )  # fmt: skip
        return Weights(self.matrix[rows], layout, self.symmetric)


def search_scales(layers: Sequence[Weights], x: InputStatistics) -> Real:
    """The scales [terms] of one input under which its layers lose least once their blocks' ranges are cut.

    s = E|x|^a / v^b, v the mean weight of a channel (as a share of its row's largest), at least 1e-4, divided by
    sqrt(max s * min s); a of 0, 0.1, ..., 1 and b of 0, 0.25, ..., 1 take turns, twice. The loss is the sum of
    E|(Q(W s) / s - W) x|^2 over a sample of the layers' rows; a = b = 0 makes all scales 1.
    """
    rows = np.concatenate([np.abs(layer.matrix) for layer in layers])
    weight = np.mean(rows / np.maximum(rows.max(axis=1, keepdims=True), 1e-30), axis=0)
    few = [layer.sample(_ROWS) for layer in layers]
    known: dict[tuple[float, float], float] = {}

    def scales(exponents: tuple[float, float]) -> Real:
        large = np.maximum(x.magnitude, _LEAST) ** exponents[0] / np.maximum(weight, _LEAST) ** exponents[1]
        large = np.maximum(large, _LEAST)
        return np.asarray(large / np.sqrt(large.max() * large.min()))

    def loss(exponents: tuple[float, float]) -> float:
        if exponents not in known:
            scale = scales(exponents)
            made = (layer.loss(layer.clipped(scale, x.second, coarse=True), scale, x.second) for layer in few)
            known[exponents] = sum(made)
        return known[exponents]

    best = (0.0, 0.0)
    for _ in range(2):
        best = min([(best[0], b) for b in _OF_WEIGHTS], key=loss)
        best = min([(a, best[1]) for a in _OF_ACTIVATIONS], key=loss)
    return scales(best)


def descend_scales(layers: Sequence[Weights], blocks: Sequence[Blocks], scale: Real, second: Real) -> Real:
    """The scales [terms] after a descent on the layers' loss, one channel at a time, the blocks' scales as they are.

    A channel's scale is multiplied by what lowers the loss most, if anything does; the channel is rounded anew, and the
    errors of the others, through the input's correlation, count. Channels go by falling input power.
    """
    order = np.argsort(-np.diag(second), kind="stable")
    inner: Real = second[np.ix_(order, order)]
    found = scale[order].copy()
    parts = [_Part(layer, made, order, scale, inner) for layer, made in zip(layers, blocks, strict=True)]
    power = np.diag(inner)
    least = 1e-9 * sum(part.loss() for part in parts)
    for _ in range(_SWEEPS):
        moved = 0.0
        for start in range(0, len(order), _COLUMNS):
            block = slice(start, min(start + _COLUMNS, len(order)))
            for part in parts:
                part.begin(block)
            for j in range(block.start, block.stop):
                tried = found[j] * _FACTORS
                changes = [part.change(j, tried) for part in parts]
                gain = np.zeros(len(tried))
                for part, change in zip(parts, changes, strict=True):
                    gain += part.gain(j, change, power[j])
                best = int(np.argmin(gain))
                if gain[best] < -least:
                    moved -= float(gain[best])
                    found[j] = tried[best]
                    for part, change in zip(parts, changes, strict=True):
                        part.take(j, change[best], inner)
            for part in parts:
                part.end(block, inner)
        if moved <= least:
            break
    result = np.empty_like(found)
    result[order] = found
    return result


class _Part:
    """One layer in a descent, columns in its order: weights, steps, errors, and errors times H."""

    def __init__(self, layer: Weights, made: Blocks, order: npt.NDArray[np.intp], scale: Real, inner: Real) -> None:
        shape, block = layer.matrix.shape, made.block_size
        self._form = layer.layout.form
        self._weights = np.ascontiguousarray(layer.matrix[:, order].T)
        self._steps = np.ascontiguousarray(spread(made.scale, shape, block)[:, order].T)
        zero = made.zero_point
        self._zeros = None if zero is None else np.ascontiguousarray(spread(zero, shape, block)[:, order].T)
        self._errors = np.ascontiguousarray((made.real() / scale)[:, order].T) - self._weights
        self._slope = inner @ self._errors
        self._block = slice(0, 0)
        self._before = self._errors[:0]

    def loss(self) -> float:
        return float(np.sum(self._errors * self._slope))

    def begin(self, block: slice) -> None:
        self._block, self._before = block, self._errors[block].copy()

    def change(self, j: int, scales: Real) -> Real:
        """How a column's errors change under each of the scales, [scales, outputs]."""
        step = self._steps[j] / scales[:, None]
        rounded = nearest_levels(self._form, self._weights[j] / step, None if self._zeros is None else self._zeros[j])
        return np.asarray(rounded * step - self._weights[j] - self._errors[j])

    def gain(self, j: int, change: Real, power: float) -> Real:
        """How the loss changes with each, [scales]."""
        return np.asarray(2 * change @ self._slope[j] + power * np.einsum("so,so->s", change, change))

    def take(self, j: int, change: Real, inner: Real) -> None:
        self._errors[j] += change
        self._slope[self._block] += inner[self._block, j, None] * change

    def end(self, block: slice, inner: Real) -> None:
        """Bring the slopes of the columns outside the block up to date."""
        change = self._errors[block] - self._before
        if change.any():
            update = inner[:, block] @ change
            update[block] = 0.0
            self._slope += update


def fit_scales(layers: Sequence[Weights], x: InputStatistics, *, nearest: bool) -> tuple[Real | None, list[Blocks]]:
    """(scales [terms] of the layers' input as float32 holds them, None where all are 1; the layers rounded under them).

    nearest: the layers are rounded to nearest, and the scales descend to what suits that; else the rounding is the
    caller's, and no blocks are given.
    """
    scale = stored(search_scales(layers, x))
    if not nearest:
        return (None if np.all(scale == 1.0) else scale), []
    blocks = [layer.clipped(scale, x.second) for layer in layers]
    scale = stored(descend_scales(layers, blocks, scale, x.second))
    blocks = [layer.clipped(scale, x.second, start=made) for layer, made in zip(layers, blocks, strict=True)]
    return (None if np.all(scale == 1.0) else scale), blocks
