"""The non-dominated set over named metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgescale.bundle.policy import Figures, value_of


@dataclass(frozen=True)
class Objective:
    """A metric to minimise or maximise."""

    metric: str
    direction: Literal["min", "max"]


OBJECTIVES: tuple[Objective, ...] = (
    Objective("accuracy", "max"),
    Objective("error", "min"),
    Objective("latency", "min"),
    Objective("ram", "min"),
    Objective("flash", "min"),
    Objective("energy", "min"),
)
"""What a budget can trade. `drop` is absent: it is relative to each model's own float form."""


def pareto(points: Sequence[Figures], objectives: Sequence[Objective] = OBJECTIVES) -> tuple[int, ...]:
    """Indices, ascending, of the points that no other point dominates.

    One point dominates another when it is at least as good in every objective and better in one.
    Points equal in all objectives do not dominate each other: all of them stay, or none. A figure
    that is missing (or NaN) is worse than any value and equal to another missing one, so a metric
    that no point has decides nothing, and an unknown figure never wins.
    """
    if not points or not objectives:
        return tuple(range(len(points)))
    costs = np.array([[_cost(figures, objective) for objective in objectives] for figures in points])
    return tuple(int(i) for i in range(len(points)) if not _is_dominated(costs, i))


def pareto_names(points: Mapping[str, Figures], objectives: Sequence[Objective] = OBJECTIVES) -> frozenset[str]:
    """`pareto` over named points: the names that stay."""
    names = list(points)
    return frozenset(names[i] for i in pareto([points[name] for name in names], objectives))


def _cost(figures: Figures, objective: Objective) -> float:
    value = value_of(figures, objective.metric)
    if value is None:
        return np.inf
    return value if objective.direction == "min" else -value


def _is_dominated(costs: npt.NDArray[np.float64], index: int) -> bool:
    no_worse = (costs <= costs[index]).all(axis=1)
    better = (costs < costs[index]).any(axis=1)
    return bool((no_worse & better).any())
