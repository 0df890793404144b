"""Weights in blocks: which elements share a scale, and rounding to nearest under that.

One `block_size` (a shape) says it all: the whole tensor, a channel, or a group along any axis. Scales have one
entry a block, in the blocks' order: shape ceil(shape / block_size).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UsageError
from edgescale.quantize.formats import Format
from edgescale.quantize.units import SMALLEST_SCALE

Array = npt.NDArray[np.generic]
Real = npt.NDArray[np.float64]
Shape = tuple[int, ...]

_CLIPS = np.linspace(0.3, 1.0, 36)
"""Parts of the largest weight that a search for the best scale tries."""


@dataclass(frozen=True)
class Blocks:
    """Quantized weights: real = scale * (values - zero_point), block by block.

    values: levels of the format (float64, of the weights' shape); scale and zero_point: one entry a block;
    zero_point None where all are 0. Scales are numbers that float32 holds, below zero only where asked for.
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
    signed: bool = False,
) -> Blocks:
    """Round weights to nearest in blocks of `block_size`.

    A block's scale covers its range (see `covering`), or with `search` is the one of 36 clips of that with the least
    squared error. symmetric: zero-point 0; else an integer zero-point a block, so that [min, max] fills the levels.
    `scale_rule`: "", "m1" (powers of two) or "m2" (powers of two below the largest). `signed`: scales may be below
    zero. Blocks of zeros take the scale of the largest block.
    """
    exact = np.asarray(weights, np.float64)
    block = check_block(exact.shape, block_size)
    if symmetric and not search:
        scale = stored(constrain(covering(exact, form, block, signed=signed), scale_rule))
        return at_scale(exact, form, block, scale)
    clips = _CLIPS[::-1] if search else (1.0,)
    tried = candidates(exact, form, block, clips, symmetric=symmetric, scale_rule=scale_rule, signed=signed)
    if len(tried) == 1:
        return at_scale(exact, form, block, *tried[0])

    def error(made: Blocks) -> Real:
        return reduce_blocks((made.real() - exact) ** 2, block, np.add)

    return best_of(exact, form, block, tried, error)


def at_scale(weights: Real, form: Format, block: Shape, scale: Real, zero_point: Real | None = None) -> Blocks:
    """Weights rounded to nearest under given scales and zero-points, one a block."""
    zero = None if zero_point is None else spread(zero_point, weights.shape, block)
    levels = nearest_levels(form, weights / spread(scale, weights.shape, block), zero)
    return Blocks(levels if zero is None else levels + zero, scale, zero_point, block)


def nearest_levels(
    form: Format, levels: npt.NDArray[np.floating], zero: npt.NDArray[np.floating] | None = None
) -> Real:
    """weights / scale -> the nearest of the format's levels, less the zero-points `zero` that these levels count.

    Raises UsageError for zero-points under a format that is no integer.
    """
    if zero is None:
        return form.nearest(levels)
    low, high = levels_of(form)
    return np.asarray(np.clip(np.rint(levels) + zero, low, high) - zero)


def candidates(
    weights: Real,
    form: Format,
    block: Shape,
    clips: Iterable[float],
    *,
    symmetric: bool,
    scale_rule: str = "",
    signed: bool = False,
) -> list[tuple[Real, Real | None]]:
    """(scale, zero_point) for each clip, the part of a block's range that its levels cover; of both signs, if signed.

    Scales are those that float32 will hold.
    """
    if symmetric:
        ends = orientations(weights, form, block, signed=signed)
        return [(stored(constrain(end * clip, scale_rule)), None) for clip in clips for end in ends]
    low, high = levels_of(form)
    bottom = np.minimum(reduce_blocks(weights, block, np.minimum), 0.0)
    top = np.maximum(reduce_blocks(weights, block, np.maximum), 0.0)
    found: list[tuple[Real, Real | None]] = []
    for clip in clips:
        scale = stored(constrain(_without_zeros((top - bottom) * clip / (high - low)), scale_rule))
        found.append((scale, np.clip(np.rint(low - bottom * clip / scale), low, high)))
    return found


def best_of(
    weights: Real,
    form: Format,
    block: Shape,
    tried: Sequence[tuple[Real, Real | None]],
    error: Callable[[Blocks], Real],
) -> Blocks:
    """Weights rounded to nearest, each block under the first of `tried` that gives it the least error.

    error: rounded weights -> one number a block.
    """
    scale, zero = tried[0]
    least = np.full(scale.shape, np.inf)
    for other, shift in tried:
        errors = error(at_scale(weights, form, block, other, shift))
        better = errors < least
        least, scale = np.where(better, errors, least), np.where(better, other, scale)
        if zero is not None and shift is not None:
            zero = np.where(better, shift, zero)
    return at_scale(weights, form, block, scale, zero)


def covering(weights: Real, form: Format, block: Shape, *, signed: bool) -> Real:
    """The scales that cover each block, [blocks along each axis].

    Not signed: the largest magnitude over `form.largest`, which both signs reach. Signed: the smallest step, with the
    sign that it needs, under which the lowest and the highest weight both lie between the ends of the levels: an
    integer's lowest level is one further from zero, and the larger side of a block may have it.
    """
    ends = orientations(weights, form, block, signed=signed)
    return ends[0] if len(ends) == 1 else np.where(-ends[1] < ends[0], ends[1], ends[0])


def orientations(weights: Real, form: Format, block: Shape, *, signed: bool) -> list[Real]:
    """Scales that cover each block: the positive one, and where `signed` makes a difference the negative one."""
    low, high = -form.levels[0], form.levels[-1]
    if not signed or low == high:
        return [_without_zeros(reduce_blocks(np.abs(weights), block, np.maximum) / form.largest)]
    bottom = np.maximum(-reduce_blocks(weights, block, np.minimum), 0.0)
    top = np.maximum(reduce_blocks(weights, block, np.maximum), 0.0)
    steps = (np.maximum(bottom / low, top / high), np.maximum(top / low, bottom / high))
    return [_without_zeros(steps[0]), -_without_zeros(steps[1])]


def stored(scale: Real) -> Real:
    """Scales as float32 will hold them, their magnitudes at least SMALLEST_SCALE."""
    sized = np.copysign(np.maximum(np.abs(scale), SMALLEST_SCALE), scale)
    return sized.astype(np.float32).astype(np.float64)


def constrain(scale: Real, rule: str) -> Real:
    """Scales (above 0) under a rule of ZeroQuant-FP: m1 rounds up to 2^n; m2 makes them s_max / 2^n."""
    if rule == "m1":
        return np.asarray(2.0 ** np.ceil(np.log2(scale) - 1e-9))
    if rule == "m2":
        largest = scale.max()
        return np.asarray(largest / 2.0 ** np.floor(np.log2(largest / scale) + 1e-9))
    return scale


def _without_zeros(scale: Real) -> Real:
    largest = float(scale.max(initial=0.0)) or 1.0
    return np.where(scale > largest * 2.0**-24, scale, np.where(scale > 0, largest * 2.0**-24, largest))


def levels_of(form: Format) -> tuple[int, int]:
    """(lowest, highest) level of a format of integers. Raises UsageError for another: it has no zero-points."""
    if form.limits is None:
        raise UsageError(f"{form.name} has no zero-points: only integers do")
    return form.limits
