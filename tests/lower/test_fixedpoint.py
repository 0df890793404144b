"""Fixed-point functions against gemmlowp's definitions in plain integers, and against real arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgescale.lower import fixedpoint
from edgescale.lower.integer import add_rescaling, mean_requant, softmax_scaling

INT32 = st.integers(-(2**31), 2**31 - 1)


def truncated(a: int, b: int) -> int:
    """C's integer division."""
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def high_mul(a: int, b: int) -> int:
    """gemmlowp SaturatingRoundingDoublingHighMul, as its source states it."""
    if a == b == -(2**31):
        return 2**31 - 1
    nudge = 1 << 30 if a * b >= 0 else 1 - (1 << 30)
    return truncated(a * b + nudge, 1 << 31)


def divide_by_pot(x: int, exponent: int) -> int:
    """gemmlowp RoundingDivideByPOT, as its source states it."""
    mask = (1 << exponent) - 1
    threshold = (mask >> 1) + (1 if x < 0 else 0)
    return (x >> exponent) + (1 if (x & mask) > threshold else 0)


@given(a=INT32, b=INT32)
def test_saturating_rounding_doubling_high_mul(a: int, b: int) -> None:
    assert int(fixedpoint.saturating_rounding_doubling_high_mul(a, b)) == high_mul(a, b)


def test_high_mul_saturates_only_at_the_corner() -> None:
    least = -(2**31)
    assert int(fixedpoint.saturating_rounding_doubling_high_mul(least, least)) == 2**31 - 1


@given(x=INT32, exponent=st.integers(0, 31))
def test_rounding_divide_by_pot(x: int, exponent: int) -> None:
    assert int(fixedpoint.rounding_divide_by_pot(x, exponent)) == divide_by_pot(x, exponent)


@given(x=st.integers(-(2**24), 2**24), real=st.floats(1e-9, 60.0))
def test_both_multiplications_follow_their_definition(x: int, real: float) -> None:
    multiplier, shift = fixedpoint.quantize_multiplier(real)
    double = divide_by_pot(high_mul(x << max(shift, 0), multiplier), max(-shift, 0))
    assert int(fixedpoint.multiply_by_quantized_multiplier(x, multiplier, shift)) == double
    total = 31 - shift
    single = (x * multiplier + (1 << (total - 1))) >> total
    assert int(fixedpoint.multiply_by_quantized_multiplier_single(x, multiplier, shift)) == single
    assert abs(single - x * real) <= 0.5 + abs(x) * real * 2.0**-31


@given(real=st.floats(2.0**-31, 2.0**29))
def test_quantize_multiplier_keeps_31_bits(real: float) -> None:
    multiplier, shift = fixedpoint.quantize_multiplier(real)
    assert 2**30 <= multiplier < 2**31
    assert abs(multiplier * 2.0 ** (shift - 31) - real) <= real * 2.0**-31


def test_quantize_multiplier_at_its_ends() -> None:
    assert fixedpoint.quantize_multiplier(1.0) == (2**30, 1)
    assert fixedpoint.quantize_multiplier(0.0) == (0, 0)
    assert fixedpoint.quantize_multiplier(2.0**-40) == (0, 0)
    assert fixedpoint.quantize_multiplier(2.0**40) == (2**31 - 1, 30)
    # A mantissa that rounds up to 1 moves into the shift.
    assert fixedpoint.quantize_multiplier(1.0 - 2.0**-40) == (2**30, 1)
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="rescaling factor"):
            fixedpoint.quantize_multiplier(wrong)


def test_exponential_and_reciprocal_are_accurate() -> None:
    a = -np.arange(0, 2**31, 9_999_991, dtype=np.int64)
    real = np.exp(a / 2.0**26)
    np.testing.assert_allclose(fixedpoint.exp_on_negative_values(a) / 2.0**31, real, atol=2e-7)
    a = np.arange(0, 2**31, 9_999_991, dtype=np.int64)
    np.testing.assert_allclose(fixedpoint.one_over_one_plus_x(a) / 2.0**31, 1 / (1 + a / 2.0**31), atol=1e-7)


@given(scale_in=st.floats(1e-4, 1.0), scale_out=st.floats(1e-4, 1.0), count=st.integers(1, 4096))
def test_mean_factor(scale_in: float, scale_out: float, count: int) -> None:
    scaling = mean_requant(scale_in, scale_out, count)
    real = float(scaling.multiplier[0]) * 2.0 ** (int(scaling.shift[0]) - 31)
    assert real == pytest.approx(scale_in / scale_out / count, rel=1e-8)
    assert 2**29 <= scaling.multiplier[0] < 2**31


def test_add_operands_never_overflow() -> None:
    for a, b in ((1e-6, 10.0), (10.0, 1e-6), (0.5, 0.5)):
        shift, rescale, _ = add_rescaling(a, b, 0.1)
        parts = [fixedpoint.apply_requant(np.array([255 << shift]), part) for part in rescale]
        assert all(abs(int(part[0])) < 2**30 for part in parts)


def test_softmax_scaling_of_a_known_scale() -> None:
    # 0.1 * 2^26 = 6710886.4 = 1717986918.4 * 2^-8, LiteRT's PreprocessSoftmaxScaling.
    multiplier, shift, least = softmax_scaling(0.1)
    assert (multiplier, shift) == (1717986918, 23)
    assert least == -math.floor(31 * 2.0**26 / 2.0**23)
