"""Weights in blocks: which elements share a scale, and rounding to nearest under that.

One `block_size` (a shape) says it all: the whole tensor, a channel, or a group along any axis. Scales have one
entry a block, in the blocks' order: shape ceil(shape / block_size).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UsageError
from edgescale.quantize.formats import Format

Array = npt.NDArray[np.generic]
Real = npt.NDArray[np.float64]
Shape = tuple[int, ...]

_CLIPS = np.linspace(0.3, 1.0, 36)
"""Parts of the largest weight that a search for the best scale tries."""


@dataclass(frozen=True)
class Blocks:
    """Quantized weights: real = scale * (values - zero_point), block by block.

    values: levels of the format (float64, of the weights' shape); scale and zero_point: one entry a block;
    zero_point None where all are 0.
    """

    values: Real
    scale: Real
    zero_point: Real | None
    block_size: Shape

    def real(self) -> Real:
        """The weights these stand for."""
        shape = self.values.shape
        offset = 0.0 if self.zero_point is None else spread(self.zero_point, shape, self.block_size)
        return np.asarray((self.values - offset) * spread(self.scale, shape, self.block_size))


def check_block(shape: Shape, block_size: Shape) -> Shape:
    """`block_size` cut to the tensor. Raises UsageError where ranks differ or a side is below 1."""
    if len(block_size) != len(shape) or any(side < 1 for side in block_size):
        raise UsageError(f"block size {list(block_size)} does not fit weights of shape {list(shape)}")
    return tuple(min(side, length) for side, length in zip(block_size, shape, strict=True))


def spread(parameter: Real, shape: Shape, block_size: Shape) -> Real:
    """One entry a block -> one an element, of `shape`."""
    for axis, side in enumerate(block_size):
        if parameter.shape[axis] != shape[axis]:
            parameter = np.repeat(parameter, side, axis).take(range(shape[axis]), axis)
    return parameter


def reduce_blocks(values: Real, block_size: Shape, operation: np.ufunc) -> Real:
    """`operation` (np.add, np.maximum, np.minimum) over each block, [blocks along each axis]."""
    for axis, side in enumerate(block_size):
        values = operation.reduceat(values, np.arange(0, values.shape[axis], side), axis=axis)
    return values


def quantize_blocks(
    weights: Array,
    form: Format,
    block_size: Shape,
    *,
    symmetric: bool = True,
    search: bool = False,
    scale_rule: str = "",
) -> Blocks:
    """Round weights to nearest in blocks of `block_size`.

    A block's scale covers its largest weight, or with `search` is the one of 36 clips with the least squared
    error. symmetric: zero-point 0; else an integer zero-point a block, so that [min, max] fills the levels.
    `scale_rule`: "", "m1" (powers of two) or "m2" (powers of two below the largest). Blocks of zeros take the scale
    of the largest block.
    """
    exact = np.asarray(weights, np.float64)
    block = check_block(exact.shape, block_size)
    if not symmetric:
        return _asymmetric(exact, form, block, search=search, scale_rule=scale_rule)
    full = reduce_blocks(np.abs(exact), block, np.maximum) / form.largest
    full = _without_zeros(full)
    scale = constrain(full, scale_rule)
    if search:
        scale = _best(exact, form, block, full, scale_rule)
    values = form.nearest(exact / spread(scale, exact.shape, block))
    return Blocks(values, scale, None, block)


def constrain(scale: Real, rule: str) -> Real:
    """Scales under a rule of ZeroQuant-FP: m1 rounds up to 2^n; m2 makes them s_max / 2^n."""
    if rule == "m1":
        return np.asarray(2.0 ** np.ceil(np.log2(scale) - 1e-9))
    if rule == "m2":
        largest = scale.max()
        return np.asarray(largest / 2.0 ** np.floor(np.log2(largest / scale) + 1e-9))
    return scale


def _without_zeros(scale: Real) -> Real:
    largest = float(scale.max(initial=0.0)) or 1.0
    return np.where(scale > largest * 2.0**-24, scale, np.where(scale > 0, largest * 2.0**-24, largest))


def _best(exact: Real, form: Format, block: Shape, full: Real, rule: str) -> Real:
    best, least = constrain(full, rule), np.full(full.shape, np.inf)
    for clip in _CLIPS[::-1]:
        scale = constrain(full * clip, rule)
        wide = spread(scale, exact.shape, block)
        errors = reduce_blocks((form.nearest(exact / wide) * wide - exact) ** 2, block, np.add)
        better = errors < least
        best, least = np.where(better, scale, best), np.where(better, errors, least)
    return best


def _asymmetric(exact: Real, form: Format, block: Shape, *, search: bool, scale_rule: str) -> Blocks:
    low, high = levels_of(form)
    bottom = np.minimum(reduce_blocks(exact, block, np.minimum), 0.0)
    top = np.maximum(reduce_blocks(exact, block, np.maximum), 0.0)
    best_scale, best_zero = np.ones(bottom.shape), np.zeros(bottom.shape)
    least = np.full(bottom.shape, np.inf)
    for clip in _CLIPS[::-1] if search else [1.0]:
        scale = constrain(_without_zeros((top - bottom) * clip / (high - low)), scale_rule)
        zero = np.clip(np.rint(low - bottom * clip / scale), low, high)
        errors = reduce_blocks((_shifted(exact, scale, zero, form, block).real() - exact) ** 2, block, np.add)
        better = errors < least
        least = np.where(better, errors, least)
        best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero, best_zero)
    return _shifted(exact, best_scale, best_zero, form, block)


def _shifted(exact: Real, scale: Real, zero: Real, form: Format, block: Shape) -> Blocks:
    wide, offset = spread(scale, exact.shape, block), spread(zero, exact.shape, block)
    levels = np.clip(np.rint(exact / wide) + offset, form.levels[0], form.levels[-1])
    return Blocks(levels, scale, zero, block)


def at_clip(weights: Real, form: Format, block_size: Shape, clip: float, *, symmetric: bool, scale_rule: str) -> Blocks:
    """Weights rounded to nearest where each block's scale covers `clip` of its range."""
    block = check_block(weights.shape, block_size)
    if symmetric:
        full = _without_zeros(reduce_blocks(np.abs(weights), block, np.maximum) / form.largest)
        scale = constrain(full * clip, scale_rule)
        return Blocks(form.nearest(weights / spread(scale, weights.shape, block)), scale, None, block)
    low, high = levels_of(form)
    bottom = np.minimum(reduce_blocks(weights, block, np.minimum), 0.0)
    top = np.maximum(reduce_blocks(weights, block, np.maximum), 0.0)
    scale = constrain(_without_zeros((top - bottom) * clip / (high - low)), scale_rule)
    zero = np.clip(np.rint(low - bottom * clip / scale), low, high)
    return _shifted(weights, scale, zero, form, block)


def levels_of(form: Format) -> tuple[int, int]:
    """(lowest, highest) level of a format of integers. Raises UsageError for another: it has no zero-points."""
    if form.limits is None:
        raise UsageError(f"{form.name} has no zero-points: only integers do")
    return form.limits
