"""Requantization tables and the cheapest exact form for what is known of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UnsupportedModelError
from edgescale.lower.program import LIMITS, Clamp, Requant

_BOUND = 2**30


@dataclass(frozen=True)
class RequantTables:
    """multiplier int32 [n], shift int8 [n] with n = 1 or the number of channels; `form` names an ES_ constant."""

    multiplier: npt.NDArray[np.int32]
    shift: npt.NDArray[np.int8]
    form: str

    @property
    def per_channel(self) -> bool:
        """Whether the tables hold an entry a channel."""
        return self.multiplier.size > 1


def tables(requant: Requant, bound: int, where: str) -> RequantTables:
    """Tables for accumulators of magnitude at most `bound`. Raises UnsupportedModelError naming `where`."""
    multiplier = requant.multiplier.astype(np.int64)
    shift = requant.shift.astype(np.int64)
    if (multiplier < 0).any() or (multiplier >= 2**31).any() or (shift > 30).any():
        raise UnsupportedModelError(
            f"{where}: rescaling needs a multiplier in [0, 2^31) and a shift of at most 30, "
            f"found {int(multiplier.min())}..{int(multiplier.max())} and {int(shift.max())}"
        )
    # Below 2^-32 nothing is left of any accumulator.
    multiplier = np.where(shift < -31, 0, multiplier)
    # A zero multiplier makes its shift meaningless: take one that does not spoil the layer's form.
    used = multiplier != 0
    shift = np.where(used, shift, shift[used].min() if used.any() else -2)
    if (multiplier == multiplier[0]).all() and (shift == shift[0]).all():
        multiplier, shift = multiplier[:1], shift[:1]
    return RequantTables(multiplier.astype(np.int32), shift.astype(np.int8), _form(requant.rounding, shift, bound))


def _form(rounding: str, shift: npt.NDArray[np.int64], bound: int) -> str:
    if rounding == "single":
        return "ES_SINGLE_SMALL" if (shift <= -2).all() else "ES_SINGLE"
    if bound < _BOUND and (shift <= -1).all():
        return "ES_DOUBLE_BOUNDED"
    if bound < _BOUND and (shift == 0).all():
        return "ES_DOUBLE_UNIT"
    # Without a right shift double rounding rounds once.
    return "ES_SINGLE" if (shift >= 0).all() else "ES_DOUBLE"


def rescaled_bound(requant: Requant, bound: int) -> int:
    """Greatest magnitude after rescaling a value of magnitude at most `bound`."""
    factors = requant.multiplier.astype(np.float64) * np.exp2(requant.shift.astype(np.float64) - 31)
    return int(np.ceil(bound * float(factors.max()))) + 1


def accumulator_bounds(
    weights: npt.NDArray[np.generic], bias: npt.NDArray[np.generic], zero_point: int
) -> npt.NDArray[np.int64]:
    """Greatest |bias + sum w * (x - zero_point)| over int8 x, for weights [O, taps]: int64 [O].

    Holds for any subset of the taps too, since x = zero_point is among the inputs.
    """
    w = weights.astype(np.int64)
    up, down = w * (127 - zero_point), w * (-128 - zero_point)
    highest = bias.astype(np.int64) + np.maximum(up, down).sum(axis=1)
    lowest = bias.astype(np.int64) + np.minimum(up, down).sum(axis=1)
    result: npt.NDArray[np.int64] = np.maximum(np.abs(highest), np.abs(lowest))
    return result


def clamp_of(clamp: Clamp, dtype: str = "int8") -> tuple[int, int]:
    """Integer clamp within the limits of `dtype`."""
    least, most = LIMITS[dtype]
    return max(least, int(clamp[0])), min(most, int(clamp[1]))
