"""Scales and zero-points of activations, from a range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgescale.quantize.formats import weight_format

Array = npt.NDArray[np.generic]

# Dead tensors (nothing but zeros in calibration) and tensors below float32's useful range get this range.
_DEAD_RANGE = (0.0, 1.0)
SMALLEST_SCALE = 2.0**-96
# A bias takes at most half of an int32, so that the sum of products (up to 33,000 of 255 * 127) fits beside it.
BIAS_LIMIT = 2**30

Kind = Literal["uint8", "int8", "int16", "fp8"]
"""How an activation is stored: 8 bits with a zero-point (unsigned or signed), int16 or E4M3 without."""

_LIMITS: dict[str, tuple[int, int]] = {"uint8": (0, 255), "int8": (-128, 127), "int16": (-32767, 32767)}
_FP8_LARGEST = 448.0


@dataclass(frozen=True)
class Units:
    """real = scale * (q - zero_point), q of `kind`; `scale` is exactly a float32 above 0."""

    scale: float
    zero_point: int
    kind: Kind = "uint8"

    def quantize(self, array: Array) -> Array:
        """Nearest q, ties to even, saturated; the array's shape, of the kind's type. Not for fp8."""
        levels = np.rint(np.asarray(array, np.float64) / self.scale) + self.zero_point
        stored: Array = np.clip(levels, *_LIMITS[self.kind]).astype(self.kind)
        return stored

    def round_trip(self, array: Array) -> npt.NDArray[np.float32]:
        """What is left of real values after they were stored, float32 of the array's shape."""
        scaled = np.asarray(array, np.float32) / np.float32(self.scale)
        if self.kind == "fp8":
            levels = weight_format("fp8", 8).nearest(scaled.astype(np.float64)).astype(np.float32)
            return np.asarray(levels * np.float32(self.scale), np.float32)
        low, high = _LIMITS[self.kind]
        np.rint(scaled, out=scaled)
        np.clip(scaled, low - self.zero_point, high - self.zero_point, out=scaled)
        return np.asarray(scaled * np.float32(self.scale), np.float32)


def units_of(low: float, high: float, kind: Kind = "uint8") -> Units:
    """Units that cover [low, high], extended to hold zero exactly.

    An empty range (a dead tensor: all zeros) gets [0, 1].
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 255 * SMALLEST_SCALE:
        low, high = _DEAD_RANGE
    if kind in ("int16", "fp8"):
        reach = 32767 if kind == "int16" else _FP8_LARGEST
        return Units(float(np.float32(max(-low, high) / reach)), 0, kind)
    scale = float(np.float32((high - low) / 255))
    zero = int(np.clip(np.rint(-low / scale), 0, 255))
    return Units(scale, zero - 128 if kind == "int8" else zero, kind)


def prescribed(scale: float, zero_point: int, kind: Kind) -> Units:
    """Units that an operator prescribes as uint8 (see `rules.FIXED_UNITS`), in another kind of the same range."""
    low, high = -zero_point * scale, (255 - zero_point) * scale
    if kind in ("int16", "fp8"):
        return units_of(low, high, kind)
    return Units(scale, zero_point - 128 if kind == "int8" else zero_point, kind)
