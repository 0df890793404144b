"""Integer arithmetic that Python and C carry out alike, bit for bit: log2, exp2, square root, saturation.

Logarithms are Q16: 65536 is one octave. Scales are Q12: 4096 is one. See docs/controller.md. The polynomials
are minimax fits of f(1-f)(a + bf + cf^2), exact at both ends of an octave.
"""

from __future__ import annotations

OCTAVE = 1 << 16
ONE = 1 << 12
"""A scale of one, Q12."""

U32_MAX = 0xFFFFFFFF
SHORTEST, LONGEST = -8 * OCTAVE, 15 * OCTAVE
"""Range of the argument of `exp2`: 2^-8 to 2^15."""


def log2(value: int) -> int:
    """log2 of an integer in [1, 2^32), Q16; absolute error below 0.0003 octaves. Values below 1 count as 1."""
    value = max(value, 1)
    n = value.bit_length() - 1
    f = ((value << (31 - n)) - (1 << 31)) >> 15
    bend = (f * (65536 - f)) >> 16
    slope = 28752 - (((15667 - ((5383 * f) >> 16)) * f) >> 16)
    return (n << 16) + f + ((bend * slope) >> 16)


def exp2(x: int) -> int:
    """2^x of a Q16 number, clamped to [2^-8, 2^15], Q12; relative error below 0.01 %, and the last place."""
    x = min(max(x, SHORTEST), LONGEST)
    n, f = x >> 16, x & 0xFFFF
    bend = (f * (65536 - f)) >> 16
    slope = 20119 + (((4289 + ((898 * f) >> 16)) * f) >> 16)
    m = 65536 + f - ((bend * slope) >> 16)
    return m >> (4 - n) if n <= 4 else m << (n - 4)


def square_root(value: int) -> int:
    """Largest integer whose square is at most `value`, for [0, 2^32)."""
    root, bit = 0, 1 << 30
    while bit > value:
        bit >>= 2
    while bit:
        if value >= root + bit:
            value -= root + bit
            root = (root >> 1) + bit
        else:
            root >>= 1
        bit >>= 2
    return root


def scaled(value: int, scale: int) -> int:
    """value * scale / 4096, rounded down and saturated at 2^32 - 1."""
    return min((value * scale) >> 12, U32_MAX)
