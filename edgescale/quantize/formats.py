"""Number formats as data: the values a code can stand for, before a scale is applied.

A format is its sorted levels; k-bit integers, FP4, FP8 and quantile tables differ in nothing else. A weight is
scale * level (with a zero-point: scale * (level - zero_point)).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UsageError

Real = npt.NDArray[np.float64]

NF_OFFSET = 0.9677083
"""Outermost quantile of the normal-float tables (QLoRA, bitsandbytes): between 1 - 1/30 and 1 - 1/32, averaged."""


@dataclass(frozen=True)
class Format:
    """`levels`: ascending representable values; `bits` one code takes in storage.

    `low`, `high`: the first and last level where the levels are all integers between the two, else None.
    """

    name: str
    bits: int
    levels: tuple[float, ...]

    @cached_property
    def table(self) -> Real:
        """The levels, [count]."""
        return np.array(self.levels)

    @cached_property
    def limits(self) -> tuple[int, int] | None:
        """(lowest, highest) where every integer between is a level and nothing else, else None."""
        low, high = self.levels[0], self.levels[-1]
        whole = low == int(low) and len(self.levels) == high - low + 1 and bool(np.all(np.diff(self.table) == 1))
        return (int(low), int(high)) if whole else None

    @property
    def largest(self) -> float:
        """The magnitude that both signs reach: a symmetric scale maps the largest weight onto it."""
        return min(-self.levels[0], self.levels[-1]) if self.levels[0] < 0 else self.levels[-1]

    def nearest(self, values: npt.NDArray[np.floating]) -> Real:
        """The level nearest to each value; ties to even for integers, to the lower level for tables."""
        if self.limits is not None:
            return np.asarray(np.clip(np.rint(values), *self.limits))
        table = self.table
        edges = (table[1:] + table[:-1]) / 2
        return np.asarray(table[np.searchsorted(edges, values, side="left")])


@cache
def integer(bits: int, *, narrow: bool = False) -> Format:
    """Two's complement of `bits`; `narrow` leaves out the lowest code, so that both signs reach equally far."""
    if not 1 <= bits <= 16:
        raise UsageError(f"integers of {bits} bits: 1 to 16 are offered")
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return Format(f"int{bits}", bits, tuple(float(v) for v in range(low + narrow, high + 1)))


@cache
def mid_rise(bits: int) -> Format:
    """2^bits equidistant levels around zero, zero itself between two of them (half-integer zero-point)."""
    half = 2 ** (bits - 1)
    return Format(f"int{bits}-midrise", bits, tuple(v + 0.5 for v in range(-half, half)))


@cache
def minifloat(exponent_bits: int, mantissa_bits: int, *, reserved: int = 0) -> Format:
    """Sign, exponent (bias 2^(e-1) - 1) and mantissa with subnormals, no infinities.

    `reserved`: how many of the largest magnitudes stand for NaN instead of a number (OCP FP8 E4M3: 1, FP4 E2M1: 0).
    """
    bias = 2 ** (exponent_bits - 1) - 1
    magnitudes = []
    for exponent in range(2**exponent_bits):
        for mantissa in range(2**mantissa_bits):
            fraction = mantissa / 2**mantissa_bits
            magnitudes.append((1 + fraction) * 2.0 ** (exponent - bias) if exponent else fraction * 2.0 ** (1 - bias))
    kept = magnitudes[: len(magnitudes) - reserved]
    bits = 1 + exponent_bits + mantissa_bits
    levels = sorted({-m for m in kept} | set(kept))
    return Format(f"fp{bits}", bits, tuple(v + 0.0 for v in levels))


@cache
def quantile(bits: int) -> Format:
    """Normal-float table: levels at equal shares of a standard normal, zero among them, scaled to [-1, 1].

    2^(bits-1) levels below and 2^(bits-1) + 1 from zero up share the zero (NF4 for 4 bits).
    """
    from scipy.stats import norm

    half = 2 ** (bits - 1)
    above = norm.ppf(np.linspace(NF_OFFSET, 0.5, half + 1)[:-1])
    below = -norm.ppf(np.linspace(NF_OFFSET, 0.5, half)[:-1])
    levels = np.concatenate([below, [0.0], above])
    levels = np.sort(levels / np.abs(levels).max())
    return Format(f"nf{bits}", bits, tuple(float(v) for v in levels))


def weight_format(name: str, bits: int) -> Format:
    """The format of a recipe's weights: `name` "int" (of `bits`), "fp4", "fp8" or "nf4".

    int8 leaves out -128, as LiteRT's specification does; smaller integers use every code.
    """
    if name == "int":
        return integer(bits, narrow=bits == 8)
    known = {"fp4": lambda: minifloat(2, 1), "fp8": lambda: minifloat(4, 3, reserved=1), "nf4": lambda: quantile(4)}
    if name not in known:
        raise UsageError(f"unknown weight format {name!r}; known: int, {', '.join(known)}")
    return known[name]()


def gmse(form: Format) -> tuple[float, float]:
    """(error, scale): the least E|X - R(X)|^2 / E|X|^2 over scales, X standard normal.

    The error of a level is integrated in closed form from the normal density and distribution.
    """
    from scipy.optimize import minimize_scalar

    # Errors of fine formats have several shallow valleys: start from the best of a grid.
    reach = 6.0 / form.largest
    grid = np.geomspace(reach / 64, reach, 400)
    costs = [gaussian_error(form, s) for s in grid]
    at = int(np.argmin(costs))
    bounds = (grid[max(at - 1, 0)], grid[min(at + 1, grid.size - 1)])
    found = minimize_scalar(lambda s: gaussian_error(form, s), bounds=bounds, method="bounded", options={"xatol": 1e-9})
    return float(found.fun), float(found.x)


def gaussian_error(form: Format, scale: float) -> float:
    """E|X - R(X)|^2 for a standard normal X at a given scale."""
    from scipy.stats import norm

    levels = form.table * scale
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    cumulative, density = norm.cdf(edges), norm.pdf(edges)
    weighted = np.where(np.isfinite(edges), edges, 0.0) * density
    mass = np.diff(cumulative)
    first = -np.diff(density)  # integral of x
    second = mass - np.diff(weighted)  # integral of x^2
    return float(np.sum(second - 2 * levels * first + levels**2 * mass))
