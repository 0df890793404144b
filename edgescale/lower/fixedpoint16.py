"""Logistic and tanh of int16 fixed point (gemmlowp `fixedpoint.h` over int16), vectorised over NumPy arrays.

Qm.n has m integer and n = 15 - m fraction bits. Functions compute in int64; arguments and results lie in int16.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgescale.lower.fixedpoint import rounding_divide_by_pot

Int = npt.NDArray[np.int64]
INT16_MAX = 2**15 - 1
INT16_MIN = -(2**15)

_EXP_FACTORS = (25520, 19875, 12055, 4435, 600, 11, 0)
"""exp(-2^k) in Q0.15 for k = -2 .. 4."""


def saturate16(value: npt.ArrayLike) -> Int:
    """The value clipped to int16."""
    return np.clip(np.asarray(value, np.int64), INT16_MIN, INT16_MAX)


def high_mul16(a: npt.ArrayLike, b: npt.ArrayLike) -> Int:
    """a * b / 2^15, halves up, saturated (gemmlowp `SaturatingRoundingDoublingHighMul` of int16)."""
    return saturate16((np.multiply(a, b, dtype=np.int64) + (1 << 14)) >> 15)


def logistic16(a: npt.ArrayLike) -> Int:
    """1 / (1 + exp(-a)) of a in Q3.12, as Q0.15."""
    value = np.asarray(a, np.int64)
    positive = _reciprocal_of_one_plus(_exp_of_negative(-np.abs(value), 3))
    result = np.where(value > 0, positive, INT16_MAX - positive)
    return np.where(value == 0, 1 << 14, result)


def tanh16(a: npt.ArrayLike, integer_bits: int = 3) -> Int:
    """tanh of a in Q(integer_bits), as Q0.15; integer_bits from 0 to 6."""
    value = np.asarray(a, np.int64)
    # The same bits with one integer bit more are twice the number.
    half, x = _newton(_exp_of_negative(-np.abs(value), integer_bits + 1))
    del half
    magnitude = saturate16((x - (1 << 13)) << 2)
    return np.where(value == 0, 0, np.where(value < 0, -magnitude, magnitude))


def _exp_of_negative(a: Int, integer_bits: int) -> Int:
    """exp of a <= 0 in Q(integer_bits) as Q0.15."""
    fraction_bits = 15 - integer_bits
    quarter = 1 << (fraction_bits - 2)
    modulo = (a & (quarter - 1)) - quarter
    result = _exp_on_quarter(modulo << integer_bits)
    remainder = modulo - a
    for k, factor in zip(range(-2, 5), _EXP_FACTORS, strict=True):
        if k < integer_bits:
            bit = (remainder & (1 << (fraction_bits + k))) != 0
            result = np.where(bit, high_mul16(result, factor), result)
    if integer_bits > 5:
        result = np.where(a < -(32 << fraction_bits), 0, result)
    return np.where(a == 0, INT16_MAX, result)


def _exp_on_quarter(a: Int) -> Int:
    """exp of a in [-1/4, 0), both Q0.15: Taylor around -1/8 to the fourth order."""
    exp_of_minus_eighth, third = 28918, 10923
    x = a + (1 << 12)
    x2 = high_mul16(x, x)
    x3 = high_mul16(x2, x)
    x4 = high_mul16(x2, x2)
    inner = high_mul16(rounding_divide_by_pot(x4, 2) + x3, third) + x2
    series = high_mul16(exp_of_minus_eighth, x + rounding_divide_by_pot(inner, 1))
    return saturate16(exp_of_minus_eighth + series)


def _newton(a: Int) -> tuple[Int, Int]:
    """(half of 1 + a in Q0.15, its reciprocal in Q2.13) for a in [0, 1), Q0.15: three Newton steps."""
    half = (a + INT16_MAX + 1) >> 1
    x = 23130 + high_mul16(half, -15420)
    for _ in range(3):
        correction = (1 << 13) - high_mul16(half, x)
        x = x + saturate16(high_mul16(x, correction) << 2)
    return half, x


def _reciprocal_of_one_plus(a: Int) -> Int:
    """1 / (1 + a), all Q0.15."""
    return saturate16(_newton(a)[1] << 1)
