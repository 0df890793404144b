"""Budgets: limits on metrics, as text and as data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgescale.core.errors import UsageError
from edgescale.core.quantity import CANONICAL_UNIT, Quantity, to_canonical

Relation = Literal["<=", ">="]

# Metrics a budget may name: name -> (dimension, the relation that makes sense, what it means).
BUDGET_METRICS: dict[str, tuple[str, Relation, str]] = {
    "latency": ("time", "<=", "one inference, median"),
    "ram": ("bytes", "<=", "arena, stack and other writable memory"),
    "flash": ("bytes", "<=", "code, constants and weights (host: model file)"),
    "energy": ("energy", "<=", "one inference"),
    "accuracy": ("fraction", ">=", "the evaluation metric where larger is better"),
    "error": ("fraction", "<=", "the evaluation metric where smaller is better"),
    "drop": ("fraction", "<=", "loss in the evaluation metric against the same model's float form"),
    "npu": ("fraction", ">=", "share of the operators that the NPU executes"),
}

_CONSTRAINT = re.compile(
    r"^\s*([A-Za-z_]+)\s*(<=|>=|=<|=>|<|>|==?)\s*([^\s%A-Za-z<>=]+(?:[eE][+-]?\d+)?)\s*(%|[A-Za-z]*)\s*$"
)


@dataclass(frozen=True)
class Constraint:
    """One limit: `metric relation limit`, the limit in the metric's canonical unit."""

    metric: str
    relation: Relation
    limit: float

    @property
    def unit(self) -> str:
        """The canonical unit of the limit: ms, B, uJ or 1."""
        return CANONICAL_UNIT[BUDGET_METRICS[self.metric][0]]

    def holds(self, value: float) -> bool:
        """Whether `value` (canonical unit) satisfies the limit; NaN never does."""
        return value <= self.limit if self.relation == "<=" else value >= self.limit

    def margin(self, value: float) -> float:
        """Distance to the limit, positive inside, as a fraction of the limit (of 1 where it is 0)."""
        scale = abs(self.limit) or 1.0
        gap = self.limit - value if self.relation == "<=" else value - self.limit
        return gap / scale

    def __str__(self) -> str:
        # Every digit that counts: the text must parse back to the same limit.
        number = f"{self.limit:.0f}" if float(self.limit).is_integer() and self.limit < 1e15 else repr(self.limit)
        return f"{self.metric}{self.relation}{number}{'' if self.unit == '1' else self.unit}"


@dataclass(frozen=True)
class Budget:
    """A conjunction of constraints; the empty budget admits everything."""

    constraints: tuple[Constraint, ...] = ()

    def __str__(self) -> str:
        return ", ".join(map(str, self.constraints)) or "none"

    def unmet(self, figures: Mapping[str, Quantity]) -> list[Constraint]:
        """The constraints `figures` violates; a metric that is absent counts as violated."""
        return [c for c in self.constraints if c.metric not in figures or not c.holds(figures[c.metric].value)]

    def admits(self, figures: Mapping[str, Quantity]) -> bool:
        """Whether every constraint has a figure and holds."""
        return not self.unmet(figures)


def parse_budget(text: str) -> Budget:
    """Parse `"latency<=50ms, ram<=64KiB, accuracy>=0.88"`.

    Units: s/ms/us, B/KiB/MiB/kB/MB, J/mJ/uJ, % and pt; accuracy and drop may be plain fractions. An
    empty text and "none" (how the empty budget prints) are the budget without limits.
    Raises UsageError naming the offending part.
    """
    constraints: list[Constraint] = []
    if text.strip() == "none":
        return Budget()
    for part in filter(None, (p.strip() for p in re.split(r"[,;]", text))):
        match = _CONSTRAINT.match(part)
        if match is None:
            raise UsageError(f'budget: cannot read {part!r}; write e.g. "latency<=50ms, ram<=64KiB, accuracy>=0.88"')
        metric, relation, number, unit = match.groups()
        if metric not in BUDGET_METRICS:
            raise UsageError(f"budget: unknown metric {metric!r}; known: {', '.join(BUDGET_METRICS)}")
        dimension, wanted, meaning = BUDGET_METRICS[metric]
        if relation != wanted:
            raise UsageError(f"budget: {metric} ({meaning}) takes {wanted}, not {relation} in {part!r}")
        try:
            value = float(number)
        except ValueError:
            raise UsageError(f"budget: {number!r} in {part!r} is not a number") from None
        if not math.isfinite(value) or value < 0:
            raise UsageError(f"budget: the limit in {part!r} must be finite and not negative")
        if not unit and dimension != "fraction":
            raise UsageError(f"budget: {part!r} needs a unit, e.g. {metric}{wanted}{number}{CANONICAL_UNIT[dimension]}")
        limit = to_canonical(value, unit or "1", dimension)
        if metric in ("accuracy", "drop", "npu") and limit > 1:
            raise UsageError(f"budget: {part!r} is above 1; write a fraction such as 0.88 or a percentage such as 88%")
        if any(c.metric == metric for c in constraints):
            raise UsageError(f"budget: {metric} is limited twice")
        constraints.append(Constraint(metric, wanted, limit))
    return Budget(tuple(constraints))


@dataclass(frozen=True)
class Budgets:
    """A budget for every target: `general` limits, which `by_target` adds to or overrides metric by metric."""

    general: Budget = field(default_factory=Budget)
    by_target: Mapping[str, Budget] = field(default_factory=dict)

    def of(self, target: str) -> Budget:
        """The limits that hold for a target: its own, then the general ones on other metrics."""
        own = self.by_target.get(target, Budget()).constraints
        limited = {c.metric for c in own}
        return Budget((*own, *(c for c in self.general.constraints if c.metric not in limited)))


def parse_budgets(texts: Sequence[str], targets: Sequence[str]) -> Budgets:
    """Parse budget texts, each for all targets or, as `TARGET: limits`, for one of `targets`.

    Raises UsageError for a wrong limit, an unknown target, or two texts for the same scope.
    """
    found: dict[str | None, Budget] = {}
    for text in texts:
        scope, separator, limits = text.partition(":")
        target = scope.strip() if separator else None
        if target is not None and target not in targets:
            raise UsageError(
                f"budget {text!r}: {target!r} is not a target of this compile; targets: {', '.join(targets)}"
            )
        if target in found:
            raise UsageError(f"budget: two texts for {target or 'all targets'}; write the limits in one")
        found[target] = parse_budget(limits if separator else text)
    return Budgets(found.pop(None, Budget()), {name: budget for name, budget in found.items() if name is not None})
