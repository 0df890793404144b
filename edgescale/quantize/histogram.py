"""A streaming histogram: bounded memory, exact counts, the same result in whatever order samples come."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

BINS = 2048
_SMALLEST_EXPONENT = -140  # bins of 2^-140 resolve every float32 above its subnormals


class Histogram:
    """Counts of values on a grid anchored at zero.

    State, whatever the number of values seen: `minimum` and `maximum` (exact, both 0 before the first
    value), `zeros` (count of exact zeros, which quantize without error and are in no bin) and BINS int64
    counts. Bin i covers [(start + i) * width, (start + i + 1) * width) with width = 2^exponent. The grid
    always covers [min(minimum, 0), max(maximum, 0)] with the smallest width that does so in BINS bins; when
    data outgrow it the width doubles and bins merge two by two, which on a grid of powers of two
    anchored at zero moves no count across an edge. Hence the state equals that of a histogram of all data
    at once on the final grid, and histograms merge exactly.
    """

    def __init__(self) -> None:
        self.minimum = 0.0
        self.maximum = 0.0
        self.zeros = 0
        self.exponent = _SMALLEST_EXPONENT
        self.start = 0
        self.counts: npt.NDArray[np.int64] = np.zeros(BINS, np.int64)
        self._empty = True

    @property
    def total(self) -> int:
        """Number of values seen."""
        return self.zeros + int(self.counts.sum())

    @property
    def width(self) -> float:
        """Width of a bin, a power of two."""
        return math.ldexp(1.0, self.exponent)

    @property
    def centers(self) -> npt.NDArray[np.float64]:
        """Middle of each bin, [BINS]."""
        return np.asarray((np.arange(BINS) + (self.start + 0.5)) * self.width, np.float64)

    def update(self, values: npt.NDArray[np.generic], extremes: tuple[float, float] | None = None) -> None:
        """Count `values`, any shape, finite. Raises ValueError on NaN or infinity, leaving the state as it was.

        `extremes`: (minimum, maximum) of a larger set that `values` were drawn from.
        """
        flat = np.asarray(values).reshape(-1)
        if not flat.size:
            return
        low, high = extremes or (float(flat.min()), float(flat.max()))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("values are not finite")
        self._cover(low, high)
        # A product by a power of two and floor are exact in float64, so no value lands in a neighbour's bin.
        index = np.floor(flat.astype(np.float64) * math.ldexp(1.0, -self.exponent)).astype(np.int64) - self.start
        self.counts += np.bincount(index, minlength=BINS)[:BINS]
        exact = int(flat.size - np.count_nonzero(flat))
        self.zeros += exact
        self.counts[-self.start] -= exact

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram."""
        if other._empty:
            return
        self._cover(other.minimum, other.maximum)
        self.zeros += other.zeros
        index = ((np.arange(BINS) + other.start) >> (self.exponent - other.exponent)) - self.start
        held = other.counts > 0
        np.add.at(self.counts, index[held], other.counts[held])

    def _cover(self, low: float, high: float) -> None:
        """Grow the grid so that it covers [low, high] and zero."""
        self.minimum = low if self._empty else min(self.minimum, low)
        self.maximum = high if self._empty else max(self.maximum, high)
        self._empty = False
        bottom, top = min(self.minimum, 0.0), max(self.maximum, 0.0)
        exponent = self.exponent
        while _first(bottom, exponent) + BINS <= _first(top, exponent):
            exponent += 1
        start = _first(bottom, exponent)
        if exponent == self.exponent and start == self.start:
            return
        held = np.flatnonzero(self.counts)
        index = ((held + self.start) >> (exponent - self.exponent)) - start
        counts = np.zeros(BINS, np.int64)
        np.add.at(counts, index, self.counts[held])
        self.counts, self.start, self.exponent = counts, start, exponent

    def quantile(self, fraction: float) -> float:
        """Value below which `fraction` of all values lie, linear within a bin, within [minimum, maximum].

        Off the exact quantile of the data by at most one bin width.
        """
        target = fraction * self.total
        counts = self.counts.astype(np.float64)
        zero_bin = -self.start
        below = counts[:zero_bin].sum()
        if below < target <= below + self.zeros:
            return 0.0
        if target > below:
            # Zeros lie at the lower edge of their bin, before its other values.
            target -= self.zeros
        reached = np.cumsum(counts)
        index = min(int(np.searchsorted(reached, target)), BINS - 1)
        before = reached[index] - counts[index]
        inside = (target - before) / counts[index] if counts[index] else 0.0
        value = (self.start + index + inside) * self.width
        return min(max(value, self.minimum), self.maximum)


def _first(value: float, exponent: int) -> int:
    """Index of the bin of width 2^exponent that holds `value`."""
    return math.floor(math.ldexp(value, -exponent))
