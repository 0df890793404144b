"""Interpolated tables of int16 functions, equal to what LiteRT's reference kernels compute.

- SOFTMAX looks up exp over [-10, 0] and 1 / (1 + x) over [0, 1] in tables of 513 entries, 512 steps of 128 int16
  inputs each (`LUTPopulate`): an entry is the function at a step's start, moved by half of what linear
  interpolation misses at the step's middle, so that the error is spread over the step.
- LOGISTIC and TANH share one table of 256 entries, the sigmoid of 0, 1/24, 2/24, ... in 16 unsigned bits. The
  input is brought to units of 1 / (3 * 4096) by a 15-bit multiplier; the function's symmetry gives its negative half.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]
Real = npt.NDArray[np.floating]
Table = npt.NDArray[np.int16]

SOFTMAX_SPAN = 10.0
"""Differences to the maximum beyond this count as this: exp(-10) is below one step of the output."""

_STEPS = 512


@cache
def exponential_table() -> Table:
    """int16 [513]: exp over [-10, 0] in Q0.15."""
    return _table(lambda x: np.exp(x), -SOFTMAX_SPAN, 0.0)


@cache
def reciprocal_table() -> Table:
    """int16 [513]: 1 / (1 + x) over [0, 1] in Q0.15."""
    return _table(lambda x: 1 / (1 + x), 0.0, 1.0)


def _table(function: Callable[[Real], Real], low: float, high: float) -> Table:
    step = (high - low) / _STEPS
    at = low + np.arange(_STEPS + 1) * step
    exact = function(at) * 32768
    start = _rounded(exact[:-1])
    missed = _rounded((exact[1:] + start) / 2) - _rounded(function(at[:-1] + step / 2) * 32768)
    table = np.append(start - _rounded(missed / 2), _rounded(exact[-1:]))
    made: Table = np.clip(table, -32768, 32767).astype(np.int16)
    return made


def _rounded(x: Real) -> Real:
    """Halves away from zero."""
    return np.asarray(np.sign(x) * np.floor(np.abs(x) + 0.5), np.float64)


def interpolate(value: Int, table: Table) -> Int:
    """A table of 513 entries at int16 `value`: 512 steps of 128, rounded half up within a step."""
    index = 256 + (value >> 7)
    base = table.astype(np.int64)[index]
    slope = table.astype(np.int64)[index + 1] - base
    result: Int = base + ((slope * (value & 127) + 64) >> 7)
    return result


@cache
def sigmoid_table() -> npt.NDArray[np.uint16]:
    """uint16 [256]: sigmoid of i / 24 in Q0.16, less half of what interpolation misses in the middle of a step."""
    step = 1 / 24
    x = np.arange(256) * step

    def exact(at: Real) -> Real:
        return np.asarray(65536 / (1 + np.exp(-at)), np.float64)

    missed = (exact(x) + exact(x + step)) / 2 - exact(x + step / 2)
    made: npt.NDArray[np.uint16] = np.rint(exact(x) - missed / 2).astype(np.uint16)
    made[-1] = 65535  # where the function is taken to have reached its end
    return made


def sigmoid_scaling(scale: float) -> tuple[int, int]:
    """(multiplier, right shift) that bring int16 inputs of `scale` to units of 1 / (3 * 4096) (`SigmoidPrepare`).

    The multiplier is 3 * 2^k where the scale is a power of two from 2^-12 on, else it has 15 bits, cut off, with
    a shift of at most 31. Raises ValueError where inputs would leave 32 bits.
    """
    mantissa, exponent = math.frexp(scale)
    power = exponent - 1 + 12
    if mantissa == 0.5 and power in (0, 1):
        return 3 << power, 0
    factor, shift = scale * 4096.0 * 3.0, 0
    while factor <= 32767.0 / 2.0 and shift <= 30:
        factor, shift = factor * 2.0, shift + 1
    if factor >= 65536:
        raise ValueError(f"scale {scale:g}")
    return int(factor), shift


def scaled(value: Int, multiplier: int, shift: int) -> Int:
    """Inputs in units of 1 / (3 * 4096)."""
    return (value * multiplier + ((1 << shift) >> 1)) >> shift


def sigmoid(argument: Int) -> Int:
    """Sigmoid of `argument` in units of 1 / (3 * 4096), as Q0.15 (`reference_integer_ops::Logistic`)."""
    upper = _upper_half(argument, 9, 0x7FFF << 10)
    result = np.where(argument >= 0, upper + (1 << 9), (1 << 25) - upper + (1 << 9) - 1)
    return result >> 10


def tanh(argument: Int) -> Int:
    """tanh of `argument` in units of 1 / (3 * 4096), as Q0.15 (`reference_integer_ops::Tanh`)."""
    upper = _upper_half(argument, 8, 0xFFFF << 8)
    result = np.where(argument >= 0, upper - (1 << 23) + (1 << 7), -upper + (1 << 23) + (1 << 7) - 1)
    return result >> 8


def _upper_half(argument: Int, bits: int, most: int) -> Int:
    """The sigmoid of |argument|, `bits` fraction bits below the table's."""
    magnitude = np.abs(argument)
    index = np.minimum(magnitude >> bits, 254)
    table = sigmoid_table().astype(np.int64)
    here, after = table[index], table[index + 1]
    inner = (here << bits) + (magnitude & ((1 << bits) - 1)) * (after - here)
    return np.where(magnitude >> bits >= 255, most, inner)
