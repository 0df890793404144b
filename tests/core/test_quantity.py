"""Units and how figures are printed."""

from __future__ import annotations

import math

import pytest

from edgescale.core.errors import UsageError
from edgescale.core.quantity import SOURCES, Quantity, format_value, to_canonical


@pytest.mark.parametrize(
    ("value", "unit", "dimension", "canonical"),
    [
        (2, "s", "time", 2000),
        (2, "us", "time", 0.002),
        (1, "KiB", "bytes", 1024),
        (1, "kB", "bytes", 1000),
        (3, "MiB", "bytes", 3 * 1024**2),
        (1, "J", "energy", 1e6),
        (5, "%", "fraction", 0.05),
        (0.5, "1", "fraction", 0.5),
    ],
)
def test_to_canonical(value: float, unit: str, dimension: str, canonical: float) -> None:
    assert to_canonical(value, unit, dimension) == pytest.approx(canonical)


def test_units_of_another_dimension_or_none() -> None:
    with pytest.raises(UsageError, match="'ms' measures time, not bytes; use B, KiB, MiB"):
        to_canonical(1, "ms", "bytes")
    with pytest.raises(UsageError, match="unknown unit 'kib'"):
        to_canonical(1, "kib", "bytes")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (512, "B", "512 B"),
        (4096, "B", "4,096 B"),
        (12_595, "B", "12.3 KiB"),
        (3 * 1024**2, "B", "3.00 MiB"),
        (4.5612, "ms", "4.56 ms"),
        (0.001234, "ms", "0.00123 ms"),
        (1234.5, "ms", "1,234 ms"),
        (42.0, "uJ", "42 uJ"),
        (4200.0, "uJ", "4.2 mJ"),
        (1_234_567, "1", "1,234,567"),
        (0.9, "1", "0.9000"),
        (1.0, "1", "1.0000"),
        (-0.005, "1", "-0.0050"),
        (12.0, "1", "12"),
        (3.25, "mW", "3.25 mW"),
        (math.nan, "1", "nan"),
        (math.inf, "1", "inf"),
        (math.nan, "B", "nan B"),
    ],
)
def test_format_value(value: float, unit: str, text: str) -> None:
    assert format_value(value, unit) == text


def test_a_quantity_prints_its_source() -> None:
    assert str(Quantity(4.5, "ms", "modelled")) == "4.5 ms (modelled)"
    assert set(SOURCES) == {"measured", "emulated", "modelled", "predicted", "published"}
