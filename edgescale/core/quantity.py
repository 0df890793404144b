"""A figure that knows its unit and where it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from edgescale.core.errors import UsageError

Source = Literal["measured", "emulated", "modelled", "predicted", "published"]
SOURCES: tuple[str, ...] = get_args(Source)

# Every unit accepted in a budget or a profile: unit -> (dimension, factor to the canonical unit).
_UNITS: dict[str, tuple[str, float]] = {
    "s": ("time", 1e3),
    "ms": ("time", 1.0),
    "us": ("time", 1e-3),
    "B": ("bytes", 1.0),
    "KiB": ("bytes", 1024.0),
    "MiB": ("bytes", 1024.0**2),
    "kB": ("bytes", 1e3),
    "KB": ("bytes", 1e3),
    "MB": ("bytes", 1e6),
    "J": ("energy", 1e6),
    "mJ": ("energy", 1e3),
    "uJ": ("energy", 1.0),
    "%": ("fraction", 0.01),
    "pt": ("fraction", 0.01),
    "1": ("fraction", 1.0),
}
CANONICAL_UNIT = {"time": "ms", "bytes": "B", "energy": "uJ", "fraction": "1"}


def to_canonical(value: float, unit: str, dimension: str) -> float:
    """Convert `value` in `unit` to the canonical unit of `dimension` (ms, B, uJ or a fraction).

    Raises UsageError for an unknown unit or one of another dimension.
    """
    if unit not in _UNITS:
        raise UsageError(f"unknown unit {unit!r}; use one of {', '.join(u for u in _UNITS if u != '1')}")
    found, factor = _UNITS[unit]
    if found != dimension:
        fitting = ", ".join(u for u, (d, _) in _UNITS.items() if d == dimension and u != "1")
        raise UsageError(f"unit {unit!r} measures {found}, not {dimension}; use {fitting}")
    return value * factor


@dataclass(frozen=True)
class Quantity:
    """A value in a canonical unit with its source.

    `unit` is "ms", "B", "uJ", "1" (fractions, counts) or "mW"; `note` says how it was obtained.
    """

    value: float
    unit: str
    source: Source
    note: str = ""

    def __str__(self) -> str:
        return f"{format_value(self.value, self.unit)} ({self.source})"


def format_value(value: float, unit: str) -> str:
    """The value as people read it: 12.3 KiB, 4.56 ms, 1,234,567."""
    if not math.isfinite(value):
        return f"{value} {unit}" if unit != "1" else str(value)
    if unit == "B":
        if value >= 1024**2:
            return f"{value / 1024**2:.2f} MiB"
        return f"{value / 1024:.1f} KiB" if value >= 10 * 1024 else f"{value:,.0f} B"
    if unit == "ms":
        return f"{value:.3g} ms" if value < 100 else f"{value:,.0f} ms"
    if unit == "uJ":
        return f"{value / 1000:.3g} mJ" if value >= 1000 else f"{value:.3g} uJ"
    if unit == "1":
        return f"{value:,.0f}" if value >= 1000 or (value == int(value) and value > 1) else f"{value:.4f}"
    return f"{value:.4g} {unit}"
