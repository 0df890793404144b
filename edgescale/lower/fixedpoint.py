"""Fixed-point arithmetic of LiteRT's reference kernels, vectorised over NumPy arrays.

Sources: gemmlowp `fixedpoint.h` (the two rounding primitives and the exponential, which Softmax
needs) and LiteRT `quantization_util` (how a real factor becomes a multiplier and a shift). All
functions compute in int64 so that no intermediate wraps; arguments described as int32 must lie in
the int32 range.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgescale.lower.program import Requant

Int = npt.NDArray[np.int64]
INT32_MAX = 2**31 - 1
INT32_MIN = -(2**31)


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Real factor >= 0 -> (multiplier, shift) with real ~ multiplier * 2^(shift - 31).

    multiplier is an int32 in [2^30, 2^31), or 0 where `real` is below 2^-32; shift > 0 is left.
    The mantissa is rounded half up to 31 bits (LiteRT `QuantizeMultiplier`). A factor of 2^30 or more
    saturates at (2^31 - 1, 30). Raises ValueError for a negative or non-finite factor.
    """
    if not math.isfinite(real) or real < 0:
        raise ValueError(f"a rescaling factor must be finite and not negative, found {real}")
    if real == 0:
        return 0, 0
    mantissa, shift = math.frexp(real)
    multiplier = math.floor(mantissa * 2.0**31 + 0.5)
    if multiplier == 2**31:
        multiplier, shift = 2**30, shift + 1
    if shift < -31:
        return 0, 0
    if shift > 30:
        return INT32_MAX, 30
    return multiplier, shift


def requant(factors: float | Iterable[float], *, single: bool = False) -> Requant:
    """Requant of one real factor for all channels, or of one factor a channel; `single` picks its rounding."""
    values = [factors] if isinstance(factors, (int, float, np.floating)) else list(factors)
    pairs = [quantize_multiplier(float(value)) for value in values]
    return Requant(
        np.array([m for m, _ in pairs], np.int32),
        np.array([s for _, s in pairs], np.int32),
        "single" if single else "double",
    )


def saturating_rounding_doubling_high_mul(a: npt.ArrayLike, b: npt.ArrayLike) -> Int:
    """High 32 bits of 2*a*b with rounding, a and b int32 (gemmlowp `SaturatingRoundingDoublingHighMul`).

    gemmlowp adds a sign-dependent nudge and divides truncating; that equals floor((a*b + 2^30) / 2^31),
    that is: halves go up. Only a = b = -2^31 saturates.
    """
    product = np.multiply(a, b, dtype=np.int64)
    product += 1 << 30
    product >>= 31
    result: Int = np.minimum(product, INT32_MAX)
    return result


def rounding_divide_by_pot(x: npt.ArrayLike, exponent: npt.ArrayLike) -> Int:
    """x / 2^exponent rounded half away from zero, exponent in [0, 31] (gemmlowp `RoundingDivideByPOT`)."""
    value = np.asarray(x, np.int64)
    power = np.asarray(exponent, np.int64)
    # Adding half and, for a negative value, taking one away makes the floor round away from zero.
    result = np.asarray(value >> 63)
    result &= np.where(power > 0, -1, 0)
    result = result + value
    result += (np.int64(1) << power) >> 1
    result >>= power
    return result


def multiply_by_quantized_multiplier(x: npt.ArrayLike, multiplier: npt.ArrayLike, shift: npt.ArrayLike) -> Int:
    """x * multiplier * 2^(shift - 31), rounded twice (LiteRT `MultiplyByQuantizedMultiplier`).

    x int32; multiplier and shift broadcast against its last axis. Where shift is positive, x * 2^shift
    must stay within int32: `lower` refuses models where it might not.
    """
    power = np.asarray(shift, np.int64)
    left, right = np.maximum(power, 0), np.maximum(-power, 0)
    value = np.asarray(x, np.int64)
    if left.any():
        value = value << left
    high = saturating_rounding_doubling_high_mul(value, np.asarray(multiplier, np.int64))
    return rounding_divide_by_pot(high, right)


def multiply_by_quantized_multiplier_single(x: npt.ArrayLike, multiplier: npt.ArrayLike, shift: npt.ArrayLike) -> Int:
    """x * multiplier * 2^(shift - 31), rounded once, halves up: (x*m + 2^(t-1)) >> t with t = 31 - shift.

    x int32; t lies in [1, 62].
    """
    total = 31 - np.asarray(shift, np.int64)
    product = np.multiply(np.asarray(x, np.int64), np.asarray(multiplier, np.int64))
    result: Int = (product + (np.int64(1) << (total - 1))) >> total
    return result


def requant_wide(factors: Iterable[float], rounding: Literal["reduced", "real"]) -> Requant:
    """Requant, one factor a channel, for accumulators of more than 32 bits (see Requant).

    Raises ValueError for a negative or non-finite factor.
    """
    values = [float(value) for value in factors]
    if rounding == "reduced":
        pairs = [quantize_multiplier(value) for value in values]
        found = np.array([m for m, _ in pairs], np.int32), np.array([s for _, s in pairs], np.int32)
        return Requant(*found, "reduced")
    if any(not math.isfinite(value) or value < 0 for value in values):
        raise ValueError(f"a rescaling factor must be finite and not negative, found {min(values)}")
    mantissa, shift = np.frexp(np.array(values, np.float64))
    return Requant((mantissa * 2.0**53).astype(np.int64), shift.astype(np.int32), "real")


def multiply_by_reduced_multiplier(x: npt.ArrayLike, multiplier: npt.ArrayLike, shift: npt.ArrayLike) -> Int:
    """x * multiplier * 2^(shift - 31), the multiplier rounded to 15 bits (LiteRT's `MultiplyByQuantizedMultiplier`
    of int64).

    |x| < 2^47, shift in [-31, 7]; rounded once, halves up.
    """
    reduced = reduced_multiplier(multiplier)
    total = 15 - np.asarray(shift, np.int64)
    result: Int = (np.asarray(x, np.int64) * reduced + (np.int64(1) << (total - 1))) >> total
    return result


def reduced_multiplier(multiplier: npt.ArrayLike) -> Int:
    """A 31-bit multiplier in 15 bits, rounded half up, saturated."""
    reduced: Int = np.minimum((np.asarray(multiplier, np.int64) + 2**15) >> 16, 2**15 - 1)
    return reduced


def multiply_by_real(x: npt.ArrayLike, multiplier: npt.ArrayLike, shift: npt.ArrayLike) -> Int:
    """x * multiplier * 2^(shift - 53) in double precision, rounded half away from zero; |x| < 2^53."""
    # Below the least shift nothing is left of any x, and the power would leave the doubles.
    factor = np.asarray(multiplier, np.float64) * np.exp2(np.maximum(np.asarray(shift, np.float64), -900) - 53)
    product = np.asarray(x, np.int64).astype(np.float64) * factor
    whole = np.trunc(product)
    away = np.abs(product - whole) >= 0.5
    result: Int = (whole + np.where(away, np.sign(product), 0)).astype(np.int64)
    return result


def apply_requant(accumulator: npt.ArrayLike, scaling: Requant) -> Int:
    """Accumulators [..., C] -> output units without the zero-point, by the layer's rounding."""
    if scaling.rounding == "reduced":
        return multiply_by_reduced_multiplier(accumulator, scaling.multiplier, scaling.shift)
    if scaling.rounding == "real":
        return multiply_by_real(accumulator, scaling.multiplier, scaling.shift)
    if scaling.rounding == "single":
        return multiply_by_quantized_multiplier_single(accumulator, scaling.multiplier, scaling.shift)
    return multiply_by_quantized_multiplier(accumulator, scaling.multiplier, scaling.shift)


def exp_on_negative_values(a: npt.ArrayLike) -> Int:
    """exp of a <= 0 in Q5.26 (int32) as Q0.31 (gemmlowp `exp_on_negative_values`, 5 integer bits)."""
    value = np.asarray(a, np.int64)
    fraction_bits = 26
    quarter = 1 << (fraction_bits - 2)
    modulo = (value & (quarter - 1)) - quarter
    # exp on [-1/4, 0) needs its argument in Q0.31.
    result = _exp_on_quarter(modulo << 5)
    remainder = modulo - value
    # One factor exp(-2^k) for each set bit of the remainder, k = -2 .. 4.
    factors = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
    for k, factor in zip(range(-2, 5), factors, strict=True):
        bit = (remainder & (1 << (fraction_bits + k))) != 0
        result = np.where(bit, saturating_rounding_doubling_high_mul(result, factor), result)
    return np.where(value == 0, INT32_MAX, result)


def _exp_on_quarter(a: Int) -> Int:
    """exp of a in [-1/4, 0), both in Q0.31: Taylor around -1/8 to the fourth order."""
    constant_exp_minus_eighth = 1895147668
    third = 715827883
    x = a + (1 << 28)
    x2 = saturating_rounding_doubling_high_mul(x, x)
    x3 = saturating_rounding_doubling_high_mul(x2, x)
    x4 = saturating_rounding_doubling_high_mul(x2, x2)
    x4_over_4 = rounding_divide_by_pot(x4, 2)
    inner = saturating_rounding_doubling_high_mul(x4_over_4 + x3, third) + x2
    tail = rounding_divide_by_pot(inner, 1)
    product = saturating_rounding_doubling_high_mul(constant_exp_minus_eighth, x + tail)
    return np.minimum(product + constant_exp_minus_eighth, INT32_MAX)


def one_over_one_plus_x(a: npt.ArrayLike) -> Int:
    """1 / (1 + a) for a in [0, 1), both in Q0.31: three Newton steps (gemmlowp `one_over_one_plus_x_for_x_in_0_1`)."""
    value = np.asarray(a, np.int64)
    # Rounding half sum of a and 1, half away from zero; both are positive.
    half_denominator = (value + INT32_MAX + 1) >> 1
    constant_48_over_17 = 1515870810
    constant_neg_32_over_17 = -1010580540
    one_q2 = 1 << 29
    x = constant_48_over_17 + saturating_rounding_doubling_high_mul(half_denominator, constant_neg_32_over_17)
    for _ in range(3):
        half_denominator_times_x = saturating_rounding_doubling_high_mul(half_denominator, x)
        correction = one_q2 - half_denominator_times_x
        delta = saturating_rounding_doubling_high_mul(x, correction)
        # Q2.29 * Q2.29 is Q4.27; back to Q2.29 with saturation.
        x = x + np.clip(delta << 2, INT32_MIN, INT32_MAX)
    result: Int = np.clip(x << 1, INT32_MIN, INT32_MAX)
    return result
