"""From the integers of a layer back to the scales LiteRT derives them from.

A program holds multipliers and shifts, a file holds scales. Scales are found by inverting LiteRT's formula, rounding
to float32 and computing the integers again: only scales that give back the very same integers are written, anything
else is refused, so a file never computes something near the program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from edgescale.lower import fixedpoint
from edgescale.lower.errors import NodeError
from edgescale.lower.program import Requant

FRACTION_BITS = {"double": 31, "single": 31, "reduced": 31, "real": 53}
_NOTHING = 2.0**-40
"""A factor that LiteRT's multiplier holds as 0."""


class Inexpressible(Exception):  # noqa: N818  (what is raised is a verdict)
    """A layer that no file says: `rule` is what it must meet, `found` what it is."""

    def __init__(self, rule: str, found: str) -> None:
        super().__init__(f"rule: {rule}; found {found}")


def same(a: Requant, b: Requant) -> bool:
    """Whether two rescalings are the same arithmetic (shifts of a multiplier of 0 do not count)."""
    if a.rounding != b.rounding:
        return False
    multipliers = np.broadcast_arrays(a.multiplier, b.multiplier)
    shifts = np.broadcast_arrays(a.shift, b.shift)
    return bool(np.all((multipliers[0] == multipliers[1]) & ((shifts[0] == shifts[1]) | (multipliers[0] == 0))))


def factors(scaling: Requant) -> np.ndarray:
    """The real factors of a rescaling."""
    bits = FRACTION_BITS[scaling.rounding]
    found: np.ndarray = np.asarray(scaling.multiplier, np.float64) * np.exp2(scaling.shift.astype(np.float64) - bits)
    return found


def neighbours(value: float) -> Iterator[float]:
    """float32 numbers around a real one, nearest first."""
    near = np.float32(value)
    yield float(near)
    below = above = near
    for _ in range(2):
        below = np.nextafter(below, np.float32(0))
        above = np.nextafter(above, np.float32(np.inf))
        yield float(above)
        yield float(below)


def search(estimate: float, accepts: Callable[[float], bool], what: str) -> float:
    """The float32 scale nearest to `estimate` that LiteRT turns into the layer's integers."""
    for scale in neighbours(estimate):
        if scale > 0 and np.isfinite(scale) and accepts(scale):
            return scale
    raise Inexpressible(f"{what} follows from float32 scales", f"a factor for which no scale near {estimate:g} is one")


def weight_scales(scaling: Requant, scale_in: float, scale_out: float) -> tuple[float, ...]:
    """Scales of the weights of a layer, one a channel or one for all."""
    found = []
    for index, factor in enumerate(factors(scaling)):
        if not scaling.multiplier[index]:
            found.append(float(np.float32(_NOTHING * scale_out / scale_in)))
            continue
        wanted = Requant(scaling.multiplier[index : index + 1], scaling.shift[index : index + 1], scaling.rounding)

        def accepts(scale: float, wanted: Requant = wanted) -> bool:
            return same(_requant(scale_in * scale / scale_out, wanted), wanted)

        found.append(search(factor * scale_out / scale_in, accepts, "the rescaling of a channel"))
    return tuple(found)


def _requant(factor: float, like: Requant) -> Requant:
    if like.rounding in ("reduced", "real"):
        rounding = "reduced" if like.rounding == "reduced" else "real"
        return fixedpoint.requant_wide([factor], rounding)  # type: ignore[arg-type]
    return fixedpoint.requant(factor, single=like.rounding == "single")


def derived(make: Callable[[], Requant], wanted: Requant | None) -> bool:
    """Whether LiteRT's formula `make` gives the layer's rescaling."""
    try:
        return wanted is not None and same(make(), wanted)
    except (NodeError, ValueError):
        return False
