"""From a histogram of an activation to the range its 256 levels cover.

Each observer returns (low, high) with low <= 0 <= high, so that zero (padding, ReLU) is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgescale.core.variant import Recipe
from edgescale.quantize.histogram import Histogram

LEVELS = 256
GAIN = 2.0
"""How many times smaller the squared error must get before `robust` clips."""
Range = tuple[float, float]
Vector = npt.NDArray[np.float64]

_COARSE = 24  # candidates a side in the first sweep of a search
_FINE = 4  # candidates either side of the best one in each sweep after
_SWEEPS = 3
_BLOCK = 32  # candidates whose errors are computed together
_SMALLEST_PART = 1 / 64  # no search looks at ranges below this part of the full one
_SMOOTHING = 1e-4  # probability given to a level's bins where clipping left none, as in MXNet's calibration


def choose_range(histogram: Histogram, recipe: Recipe) -> Range:
    """The range that `recipe.observer` picks; (0, 0) where no value differs from zero."""
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    if low == high:
        return 0.0, 0.0
    if recipe.observer == "minmax":
        return low, high
    if recipe.observer == "robust":
        return robust_range(histogram)
    if recipe.observer == "percentile":
        return percentile_range(histogram, recipe.percentile)
    if recipe.observer == "mse":
        return mse_range(histogram)
    return entropy_range(histogram)


def percentile_range(histogram: Histogram, percentile: float) -> Range:
    """Cut (100 - percentile) / 2 percent of all values off each end, then include zero."""
    tail = (100.0 - percentile) / 200.0
    low, high = min(histogram.quantile(tail), 0.0), max(histogram.quantile(1.0 - tail), 0.0)
    if low == high:  # so sparse that both quantiles are zero: what little there is must not vanish
        return min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    return low, high


def robust_range(histogram: Histogram) -> Range:
    """Minimum and maximum, or the clip of least squared error where that is GAIN times smaller.

    A few hundred samples rarely show the largest value there will be, and what lies beyond the range saturates; so
    clipping has to pay, as it does where outliers take most of the levels.
    """
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    clip = mse_range(histogram)
    held = histogram.counts > 0
    values, weights = histogram.centers[held], histogram.counts[held].astype(np.float64)
    errors = squared_errors(values, weights, np.array([low, clip[0]]), np.array([high, clip[1]]))
    return clip if errors[0] >= GAIN * errors[1] else (low, high)


def mse_range(histogram: Histogram) -> Range:
    """The clip (low, high) with the least mean squared quantization error.

    The error is that of rounding each bin's middle to the levels of the candidate, zero-point rounding
    and saturation included, weighted by the bin's count.
    """
    held = histogram.counts > 0
    values, weights = histogram.centers[held], histogram.counts[held].astype(np.float64)

    def errors(low: Vector, high: Vector) -> Vector:
        # In blocks, so that candidates times bins never fill more than the cache.
        starts = range(0, low.size, _BLOCK)
        return np.concatenate(
            [squared_errors(values, weights, low[s : s + _BLOCK], high[s : s + _BLOCK]) for s in starts]
        )

    return _search(histogram, errors)


def squared_errors(values: Vector, weights: Vector, low: Vector, high: Vector) -> Vector:
    """Weighted sum of squared errors of quantizing `values` with each candidate range; low, high: [n] -> [n]."""
    scale = ((high - low) / (LEVELS - 1))[:, None]
    zero_point = np.clip(np.rint(-low[:, None] / scale), 0, LEVELS - 1)
    level = np.clip(np.rint(values[None, :] / scale) + zero_point, 0, LEVELS - 1)
    difference = values[None, :] - (level - zero_point) * scale
    return np.asarray(np.einsum("cv,cv,v->c", difference, difference, weights), np.float64)


def entropy_range(histogram: Histogram) -> Range:
    """The clip (low, high) with the least Kullback-Leibler divergence of the quantized from the clipped distribution.

    Migacz, "8-bit inference with TensorRT" (GTC 2017), with both ends free: P is the histogram within
    the clip, what lies outside added to the outermost bins; Q spreads the mass that P's histogram (without
    the outside) has in each of the 256 levels evenly over that level's bins that P fills. Exact zeros
    are representable and stay out of both.
    """
    counts, centers = histogram.counts.astype(np.float64), histogram.centers

    def divergences(low: Vector, high: Vector) -> Vector:
        return np.array([divergence(counts, centers, a, b) for a, b in zip(low, high, strict=True)])

    return _search(histogram, divergences)


def divergence(counts: Vector, centers: Vector, low: float, high: float) -> float:
    """KL(P || Q) of one candidate; infinite where the clip holds nothing."""
    inside = np.flatnonzero((centers >= low) & (centers <= high))
    if not inside.size:
        return float("inf")
    first, last = int(inside[0]), int(inside[-1])
    kept = counts[first : last + 1]
    if not kept.any():
        return float("inf")
    p = kept.copy()
    p[0] += counts[:first].sum()
    p[-1] += counts[last + 1 :].sum()
    scale = (high - low) / (LEVELS - 1)
    zero_point = np.clip(np.rint(-low / scale), 0, LEVELS - 1)
    level = np.clip(np.rint(centers[first : last + 1] / scale) + zero_point, 0, LEVELS - 1).astype(np.int64)
    filled = p > 0
    mass = np.bincount(level, kept, LEVELS)
    bins = np.bincount(level, filled, LEVELS)
    q = np.where(filled, mass[level] / np.maximum(bins[level], 1), 0.0)
    p_share, q_share = p[filled] / p.sum(), q[filled] / q.sum()
    missing = q_share <= 0
    if missing.any():
        q_share = np.where(missing, _SMOOTHING / missing.sum(), q_share * (1 - _SMOOTHING))
    return float(np.sum(p_share * np.log(p_share / q_share)))


def _search(histogram: Histogram, cost: Callable[[Vector, Vector], Vector]) -> Range:
    """Minimise `cost` over a grid of (low, high) between 1/64 of the full range and all of it, then around the best.

    Ties go to the wider range. A side without values is fixed at 0.
    """
    bottom, top = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    span = 1.0 - _SMALLEST_PART
    lows = highs = 1.0 - np.linspace(0.0, span, _COARSE)
    step = span / (_COARSE - 1)
    best = (1.0, 1.0)
    for _ in range(_SWEEPS):
        grid_low, grid_high = np.meshgrid(
            lows if bottom < 0 else np.ones(1), highs if top > 0 else np.ones(1), indexing="ij"
        )
        costs = cost(bottom * grid_low.reshape(-1), top * grid_high.reshape(-1))
        order = np.lexsort((-(grid_low + grid_high).reshape(-1), costs))
        at = int(order[0])
        best = (float(grid_low.reshape(-1)[at]), float(grid_high.reshape(-1)[at]))
        around = np.arange(-_FINE, _FINE + 1) * (step / _FINE)
        lows, highs = (np.clip(part + around, _SMALLEST_PART, 1.0) for part in best)
        step /= _FINE
    return bottom * best[0], top * best[1]
