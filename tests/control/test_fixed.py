"""The integer functions against floating point."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from edgescale.control.fixed import exp2, log2, scaled, square_root

WORDS = st.integers(1, 2**32 - 1) | st.integers(1, 4096)


@given(WORDS)
def test_log2_is_close(value):
    assert abs(log2(value) / 65536 - math.log2(value)) < 3e-4


@given(st.integers(-8 * 65536, 15 * 65536))
def test_exp2_is_close_to_the_last_place(x):
    exact = 4096 * 2 ** (x / 65536)
    assert abs(exp2(x) - exact) < 1e-4 * exact + 1


@given(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1))
def test_exp2_grows_with_its_argument(a, b):
    assert (exp2(min(a, b)) <= exp2(max(a, b))) and exp2(a) >= 16


@given(st.integers(0, 2**32 - 1))
def test_square_root_is_the_largest_integer(value):
    assert square_root(value) == math.isqrt(value)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_scaled_saturates(value, scale):
    assert scaled(value, scale) == min(value * scale // 4096, 2**32 - 1)
