"""The contract's fixed-point arithmetic as TVM expressions, in int64 so that nothing wraps (see `lower.fixedpoint`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UnsupportedModelError
from edgescale.lower.program import Clamp, Requant, Tensor

Expr = Any
"""A TVM expression; TVM has no types to check against."""
Factors = Sequence[Any]
"""Nothing, or multiplier and shift as tensors."""

INT32_MAX = 2**31 - 1


def constant(value: int, dtype: str = "int64") -> Expr:
    """An integer of that type."""
    from tvm import tirx

    return tirx.const(value, dtype)


def wide(value: Expr) -> Expr:
    """`value` as int64."""
    return value.astype("int64")


def clip(value: Expr, low: Expr, high: Expr) -> Expr:
    """`value` within [low, high]."""
    from tvm import te

    return te.min(te.max(value, low), high)


def high_mul(a: Expr, b: Expr) -> Expr:
    """SaturatingRoundingDoublingHighMul of int32 values."""
    from tvm import te

    return te.min((a * b + constant(1 << 30)) >> constant(31), constant(INT32_MAX))


def divide_by_power(value: Expr, exponent: int) -> Expr:
    """RoundingDivideByPOT: half away from zero; exponent in [0, 31]."""
    from tvm import tirx

    if exponent == 0:
        return value
    # Bound to a name: an expression that held it twice would double with every step.
    x = tirx.Var("x", "int64")
    nudge = constant(1 << (exponent - 1)) + (x >> constant(63))
    return tirx.Let(x, value, (x + nudge) >> constant(exponent))


def scaled(value: Expr, requant: Requant, factors: Factors = (), channel: Expr = 0) -> Expr:
    """An int64 accumulator in output units, without the zero-point.

    factors: multiplier and shift as tensors, where `channel` has its own (see `factors_of`).
    """
    if requant.rounding not in ("double", "single"):
        raise UnsupportedModelError(
            f"a rescaling rounded {requant.rounding!r}: the TVM back end rounds 'double' or 'single'"
        )
    if factors:
        return _scaled_by(value, wide(factors[0](channel)), wide(factors[1](channel)), requant.rounding == "single")
    multiplier, shift = int(requant.multiplier[0]), int(requant.shift[0])
    if requant.rounding == "single":
        total = 31 - shift
        return (value * constant(multiplier) + constant(1 << (total - 1))) >> constant(total)
    shifted = value << constant(shift) if shift > 0 else value
    return divide_by_power(high_mul(shifted, constant(multiplier)), max(-shift, 0))


def factors_of(requant: Requant | None) -> list[npt.NDArray[np.int32]]:
    """Multiplier and shift as constants of an expression, where they are more than one; else nothing."""
    if requant is None or requant.multiplier.size == 1:
        return []
    return [requant.multiplier.astype(np.int32), requant.shift.astype(np.int32)]


def _scaled_by(value: Expr, multiplier: Expr, shift: Expr, single: bool) -> Expr:
    """`scaled` by a factor that is known only when it runs."""
    from tvm import te, tirx

    nothing, one = constant(0), constant(1)
    if single:
        total = constant(31) - shift
        return (value * multiplier + (one << (total - one))) >> total
    left, right = te.max(shift, nothing), te.max(nothing - shift, nothing)
    x = tirx.Var("x", "int64")
    # The sign nudges only where something is shifted out.
    nudge = ((one << right) >> one) + tirx.Select(right > nothing, x >> constant(63), nothing)
    return tirx.Let(x, high_mul(value << left, multiplier), (x + nudge) >> right)


def stored(value: Expr, clamp: Clamp, out: Tensor) -> Expr:
    """An int64 value without the zero-point as an element of `out`."""
    low, high = constant(int(clamp[0])), constant(int(clamp[1]))
    return clip(value + constant(out.zero_point), low, high).astype(out.dtype)


def stored_real(value: Expr, clamp: Clamp) -> Expr:
    """A float32 value within its clamp, which may be infinite."""
    from tvm import te, tirx

    low, high = (float(bound) for bound in clamp)
    if low != float("-inf"):
        value = te.max(value, tirx.const(low, "float32"))
    if high != float("inf"):
        value = te.min(value, tirx.const(high, "float32"))
    return value
