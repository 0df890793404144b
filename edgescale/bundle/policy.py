"""The policy: one order of preference among variants, and the decision it makes under a budget.

`edgescale compile` (through `select.select`), the bundle's policy table and the run-time session all
use this module, so a budget chooses the same variant wherever it is asked. The rule is small enough
for a device: walk the table from the top, take the first row that meets every limit, else the
fallback.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from edgescale.core.budget import Budget, Constraint
from edgescale.core.quantity import Quantity, format_value

Figures = Mapping[str, Quantity]


def quality(figures: Figures) -> float | None:
    """What is maximised: `accuracy`, or minus `error` where that is the evaluation metric; None where unknown."""
    for metric, sign in (("accuracy", 1.0), ("error", -1.0)):
        value = value_of(figures, metric)
        if value is not None:
            return sign * value
    return None


def value_of(figures: Figures, metric: str) -> float | None:
    """The figure of `metric` in its canonical unit; None where it is absent or not a number."""
    quantity = figures.get(metric)
    return None if quantity is None or math.isnan(quantity.value) else quantity.value


def preference(figures: Figures, name: str) -> tuple[float | str, ...]:
    """Sort key, best first: quality, then latency, flash, ram (smaller first), then the name.

    A figure that is missing counts as the worst value of its metric.
    """
    merit = quality(figures)
    return (math.inf if merit is None else -merit, *_costs(figures, "latency", "flash", "ram"), name)


def compactness(figures: Figures, name: str) -> tuple[float | str, ...]:
    """Sort key, smallest first: flash + ram, then ram, then `preference`.

    A variant that lacks one of the two figures comes after all that have both, and is ordered by the
    one it has; so hosts, where only the model file's size may be known, still have an order.
    """
    known = [value for value in (value_of(figures, "flash"), value_of(figures, "ram")) if value is not None]
    return (float(2 - len(known)), sum(known), *_costs(figures, "ram"), *preference(figures, name))


def smallest(entries: Mapping[str, Figures]) -> str:
    """Name of the entry that needs least memory (see `compactness`): what runs when nothing fits.

    Raises ValueError for no entries.
    """
    if not entries:
        raise ValueError("there is no smallest of no entries")
    return min(entries, key=lambda name: compactness(entries[name], name))


def binding(budget: Budget, entries: Mapping[str, Figures]) -> tuple[Constraint, ...]:
    """The limits to blame when no entry meets `budget`; empty when one does.

    Every limit that no entry meets by itself; where each is met by some entry, the smallest set of
    limits that no entry meets together (of several, the one that comes first in the budget).
    """
    if any(budget.admits(figures) for figures in entries.values()):
        return ()
    alone = tuple(c for c in budget.constraints if not _met_by_any((c,), entries))
    if alone:
        return alone
    for size in range(2, len(budget.constraints)):
        for group in combinations(budget.constraints, size):
            if not _met_by_any(group, entries):
                return group
    return budget.constraints


@dataclass(frozen=True)
class Decision:
    """The variant a budget chooses. `met` tells whether it meets every limit, `unmet` which it does not."""

    name: str
    met: bool
    unmet: tuple[Constraint, ...]
    binding: tuple[Constraint, ...]
    reason: str


def decide(order: Mapping[str, Figures], fallback: str, budget: Budget) -> Decision:
    """First entry of `order` (iteration order is preference) that `budget` admits, else `fallback`."""
    feasible = [name for name, figures in order.items() if budget.admits(figures)]
    if feasible:
        chosen = feasible[0]
        count = f"among the {len(feasible)} of {len(order)} variants" if len(order) > 1 else "of the only variant"
        limits = f"within {budget}" if budget.constraints else "without limits"
        return Decision(chosen, True, (), (), f"{_merit(order[chosen])} {count} {limits}")
    blame = binding(budget, order)
    unmet = tuple(budget.unmet(order[fallback]))
    misses = ", ".join(miss_text(c, order[fallback]) for c in unmet)
    reason = f"{blame_sentence(blame, order)}; fell back to the smallest, {fallback}, which misses {misses}"
    return Decision(fallback, False, unmet, blame, reason)


def blame_sentence(blame: Sequence[Constraint], entries: Mapping[str, Figures]) -> str:
    """`no variant meets latency<=1ms (the best has 3.2 ms)`, or the limits that exclude one another."""
    if len(blame) > 1 and all(_met_by_any((c,), entries) for c in blame):
        return f"no variant meets {' and '.join(map(str, blame))} together"
    return "no variant meets " + " or ".join(f"{c} ({_best(c, entries)})" for c in blame)


def miss_text(constraint: Constraint, figures: Figures) -> str:
    """How one entry stands to a limit: `latency<=1ms (has 3.2 ms)`."""
    value = value_of(figures, constraint.metric)
    has = "has no such figure" if value is None else f"has {format_value(value, constraint.unit)}"
    return f"{constraint} ({has})"


def _merit(figures: Figures) -> str:
    for metric, word in (("accuracy", "highest"), ("error", "lowest")):
        value = value_of(figures, metric)
        if value is not None:
            return f"{word} {metric} ({value:.4g})"
    return "lowest cost"


def _best(constraint: Constraint, entries: Mapping[str, Figures]) -> str:
    values = [v for v in (value_of(figures, constraint.metric) for figures in entries.values()) if v is not None]
    if not values:
        return f"no variant has a figure for {constraint.metric}"
    best = min(values) if constraint.relation == "<=" else max(values)
    return f"the best has {format_value(best, constraint.unit)}"


def _met_by_any(group: Sequence[Constraint], entries: Mapping[str, Figures]) -> bool:
    subset = Budget(tuple(group))
    return any(subset.admits(figures) for figures in entries.values())


def _costs(figures: Figures, *metrics: str) -> tuple[float, ...]:
    values = (value_of(figures, metric) for metric in metrics)
    return tuple(math.inf if value is None else value for value in values)
