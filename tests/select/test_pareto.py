"""The non-dominated set against its definition."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from edgescale.core.measurement import METRIC_UNITS
from edgescale.core.quantity import Quantity
from edgescale.select import OBJECTIVES, Objective, pareto, pareto_names

Values = Mapping[str, float]


def figures(values: Values) -> dict[str, Quantity]:
    return {metric: Quantity(value, METRIC_UNITS[metric], "measured") for metric, value in values.items()}


def dominates(a: Values, b: Values) -> bool:
    """The definition, metric by metric; a missing figure loses to any and ties with another missing one."""
    better = False
    for objective in OBJECTIVES:
        m = objective.metric
        if m not in a and m not in b:
            continue
        if m not in a:
            return False
        if m not in b:
            better = True
            continue
        sign = 1 if objective.direction == "min" else -1
        if sign * a[m] > sign * b[m]:
            return False
        better = better or sign * a[m] < sign * b[m]
    return better


small_values = st.dictionaries(
    st.sampled_from([o.metric for o in OBJECTIVES]), st.integers(0, 3).map(float), min_size=0, max_size=6
)


@given(st.lists(small_values, max_size=9))
def test_equals_brute_force(points: list[dict[str, float]]) -> None:
    expected = tuple(i for i, p in enumerate(points) if not any(dominates(q, p) for q in points))
    assert pareto([figures(p) for p in points]) == expected


@given(st.lists(small_values, min_size=1, max_size=9))
def test_never_empty_and_idempotent(points: list[dict[str, float]]) -> None:
    kept = pareto([figures(p) for p in points])
    assert kept
    assert pareto([figures(points[i]) for i in kept]) == tuple(range(len(kept)))


def test_named_example() -> None:
    points = {
        "big": figures({"accuracy": 0.92, "latency": 9, "flash": 400}),
        "int8": figures({"accuracy": 0.91, "latency": 3, "flash": 100}),
        "slow": figures({"accuracy": 0.90, "latency": 4, "flash": 100}),
        "tiny": figures({"accuracy": 0.80, "latency": 1, "flash": 20}),
        "twin": figures({"accuracy": 0.80, "latency": 1, "flash": 20}),
    }
    assert pareto_names(points) == {"big", "int8", "tiny", "twin"}


def test_nan_is_a_missing_figure() -> None:
    known, broken = figures({"latency": 5.0}), figures({"latency": math.nan})
    assert pareto([known, broken]) == (0,)
    assert pareto([broken, broken]) == (0, 1)


def test_no_points_and_no_objectives() -> None:
    assert pareto([]) == ()
    assert pareto([figures({"ram": 1}), figures({"ram": 2})], []) == (0, 1)
    assert pareto([figures({"ram": 1}), figures({"ram": 2})], [Objective("ram", "max")]) == (1,)
