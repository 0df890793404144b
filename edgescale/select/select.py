"""Selection under a budget: which measured variant to use, how all compare, and what is in the way."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgescale.bundle.policy import (
    Figures,
    binding,
    blame_sentence,
    decide,
    miss_text,
    preference,
    quality,
    smallest,
    value_of,
)
from edgescale.core.budget import Budget, Constraint
from edgescale.core.errors import UsageError
from edgescale.core.measurement import Measurement
from edgescale.core.quantity import Quantity, format_value
from edgescale.core.recipe import SIMULATED
from edgescale.core.variant import Variant

SLOWER_FROM = 1.05
"""A compressed variant is called slower than its float form from this latency ratio on: medians of
repeated host measurements differ by a few percent."""

FLOAT_RECIPE = "fp32"
_FEW_BITS = re.compile(r"(?:auto[\d.]*|w[2-7]a(?P<a>8|16))$")

NEARLY_AS_GOOD = 0.005
"""A feasible variant at most this far below the chosen one in quality (half a point, the usual resolution of
a few thousand test samples) is pointed out when it is clearly cheaper."""

CLEARLY_CHEAPER = 1.25
"""Ratio of latency or flash from which a variant is clearly cheaper."""


@dataclass(frozen=True)
class Candidate:
    """A measured variant on one target. `name` is unique among the candidates of that target."""

    name: str
    model: str
    recipe: str
    target: str
    figures: Mapping[str, Quantity]
    unavailable: Mapping[str, str] = field(default_factory=dict)

    @property
    def simulated(self) -> bool:
        """Whether no back end executes what the recipe asks for, so that its quality is known but it cannot run."""
        return self.recipe.endswith(SIMULATED)


def candidate(variant: Variant, measurement: Measurement) -> Candidate:
    """The candidate a variant's measurement makes, under the variant's name."""
    return Candidate(
        name=variant.name,
        model=variant.model,
        recipe=str(variant.recipe),
        target=measurement.target,
        figures=measurement.metrics,
        unavailable=measurement.unavailable,
    )


@dataclass(frozen=True)
class Row:
    """One limit against one variant: a line of the verdict table.

    `value`, `quantity` and `margin` are None where the figure is missing, and `note` then says why.
    `margin` is the distance to the limit as a fraction of it, negative when missed.
    """

    constraint: Constraint
    quantity: Quantity | None
    margin: float | None
    holds: bool
    note: str

    @property
    def metric(self) -> str:
        """Name of the limited metric."""
        return self.constraint.metric

    @property
    def value(self) -> float | None:
        """The figure in canonical units."""
        return None if self.quantity is None else self.quantity.value

    @property
    def source(self) -> str:
        """How the figure is known: measured, emulated, ...; "unavailable" where it is missing."""
        return "unavailable" if self.quantity is None else self.quantity.source


@dataclass(frozen=True)
class Verdict:
    """A candidate against the whole budget.

    `violation` is the sum over missed limits of the relative distance to them; limits whose figure
    is missing are counted in `unknown` instead.
    """

    candidate: Candidate
    rows: tuple[Row, ...]
    violation: float
    unknown: int

    @property
    def name(self) -> str:
        """Name of the candidate."""
        return self.candidate.name

    @property
    def feasible(self) -> bool:
        """Whether every limit holds."""
        return all(row.holds for row in self.rows)

    @property
    def missed(self) -> tuple[Row, ...]:
        """The rows of the limits that do not hold."""
        return tuple(row for row in self.rows if not row.holds)

    def misses(self) -> str:
        """`latency<=1ms (has 3.2 ms)` for each missed limit; empty for a feasible candidate."""
        return ", ".join(miss_text(row.constraint, self.candidate.figures) for row in self.missed)


@dataclass(frozen=True)
class Selection:
    """The answer for one target.

    `ranking` holds every candidate: the feasible ones by preference (quality, then latency, flash,
    ram), then the rest, nearest to the budget first. `binding` names the limits in the way when none
    is feasible, `reason` says the outcome in one sentence, `warnings` what a user would want to know
    of it, `fallback` the candidate that needs least memory.
    """

    target: str
    budget: Budget
    ranking: tuple[Verdict, ...]
    binding: tuple[Constraint, ...]
    fallback: str
    reason: str
    warnings: tuple[str, ...]

    @property
    def feasible(self) -> bool:
        """Whether some candidate meets the budget."""
        return self.ranking[0].feasible

    @property
    def best(self) -> Verdict:
        """The chosen candidate; where none is feasible, the nearest: the best attempt to keep."""
        return self.ranking[0]

    @property
    def chosen(self) -> Verdict | None:
        """The best feasible candidate, None where there is none."""
        return self.best if self.feasible else None


def select(candidates: Sequence[Candidate], budget: Budget) -> Selection:
    """Choose among the candidates of one target. Raises UsageError for none, two alike, or mixed targets."""
    if not candidates:
        raise UsageError("there is no variant to select from")
    targets = {c.target for c in candidates}
    names = {c.name for c in candidates}
    if len(targets) > 1:
        raise UsageError(f"select compares variants of one target, not of {', '.join(sorted(targets))}")
    if len(names) < len(candidates):
        raise UsageError("two variants share a name; give the models distinct names")
    ranking = tuple(sorted((judge(c, budget) for c in candidates), key=_rank))
    order = {v.name: v.candidate.figures for v in sorted(_real(ranking), key=_preference)}
    fallback = smallest(order)
    blame = binding(budget, order)
    if blame:
        nearest = ranking[0]
        reason = f"{blame_sentence(blame, order)}; nearest is {nearest.name}, which misses {nearest.misses()}"
    else:
        reason = f"{ranking[0].name}: {decide(order, fallback, budget).reason}"
    target = next(iter(targets))
    return Selection(target, budget, ranking, blame, fallback, reason, _warnings(ranking, target))


def _real(ranking: Sequence[Verdict]) -> Sequence[Verdict]:
    """The variants that can run; all of them where none can."""
    return [v for v in ranking if not v.candidate.simulated] or ranking


def judge(subject: Candidate, budget: Budget) -> Verdict:
    """Hold one candidate against every limit."""
    rows = tuple(_row(subject, constraint) for constraint in budget.constraints)
    missed = [row.margin for row in rows if not row.holds and row.margin is not None]
    unknown = sum(row.quantity is None for row in rows)
    return Verdict(subject, rows, -math.fsum(missed), unknown)


def _row(subject: Candidate, constraint: Constraint) -> Row:
    value = value_of(subject.figures, constraint.metric)
    if value is None:
        note = subject.unavailable.get(constraint.metric, "the rig gave no such figure")
        return Row(constraint, None, None, False, note)
    quantity = subject.figures[constraint.metric]
    return Row(constraint, quantity, constraint.margin(value), constraint.holds(value), quantity.note)


def _preference(verdict: Verdict) -> tuple[float | str, ...]:
    return preference(verdict.candidate.figures, verdict.name)


def _rank(verdict: Verdict) -> tuple[object, ...]:
    """Simulated last. Feasible first; then fewest unknown figures, least total relative violation, and preference."""
    order = (not verdict.feasible, verdict.unknown, verdict.violation, *_preference(verdict))
    return (verdict.candidate.simulated, *order)


def _warnings(ranking: Sequence[Verdict], target: str) -> tuple[str, ...]:
    best = ranking[0].candidate
    found = []
    if all(quality(v.candidate.figures) is None for v in ranking):
        found.append(f"{target}: no accuracy or error is known, so variants are ordered by cost alone")
    if ranking[0].feasible:
        found += _nearly_as_good(ranking)
    found += [text for v in ranking for text in _worse(v.candidate, ranking, chosen=v.candidate is best)]
    return tuple(found)


def _nearly_as_good(ranking: Sequence[Verdict]) -> list[str]:
    """The next feasible variant that costs clearly less than the chosen one for a difference samples hardly resolve."""
    best = ranking[0].candidate
    merit = quality(best.figures)
    for other in (v.candidate for v in ranking[1:] if v.feasible):
        value = quality(other.figures)
        if merit is None or value is None or merit - value > NEARLY_AS_GOOD:
            continue
        gains = []
        for metric, word in (("latency", "faster"), ("flash", "smaller")):
            mine, theirs = value_of(best.figures, metric), value_of(other.figures, metric)
            if mine and theirs and mine >= CLEARLY_CHEAPER * theirs:
                gains.append(f"{mine / theirs:.1f} times {word}")
        if gains:
            scale, unit = (100, " points") if "accuracy" in best.figures else (1, "")
            gap = f"{(merit - value) * scale:.2f}{unit}"
            return [f"{other.name} is only {gap} worse than {best.name} and {' and '.join(gains)}: a limit chooses it"]
    return []


def _worse(subject: Candidate, ranking: Sequence[Verdict], *, chosen: bool) -> list[str]:
    """Compression that costs time or flash instead of saving it, told whether or not that variant was chosen."""
    for parent in _parents(subject, [v.candidate for v in ranking]):
        slower, larger = _ratio(subject, parent, "latency"), _ratio(subject, parent, "flash")
        words = []
        if slower >= SLOWER_FROM:
            words.append(("slower", f"x{slower:.2f}: " + _against(subject, parent, "latency", "ms")))
        if larger > 1:
            words.append(("larger", _against(subject, parent, "flash", "B")))
        if words:
            text = f"{subject.name} is {words[0][0]} than {parent.name} on {subject.target} ({words[0][1]})"
            text += "".join(f" and {word} ({figures})" for word, figures in words[1:])
            return [text + _why_chosen(subject.figures, parent.figures) if chosen else text]
    return []


def _parents(subject: Candidate, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The variants of the same model that `subject` compresses further: the float one, and below 8 bits the 8-bit one.

    Among several of 8 bits (with other suffixes or overrides) the one that differs in nothing else, else the plain one.
    """
    same = [c for c in candidates if c.model == subject.model and c is not subject]
    if subject.recipe == FLOAT_RECIPE:
        return []
    found = [c for c in same if c.recipe == FLOAT_RECIPE]
    base, _, suffix = subject.recipe.partition("-")
    few = _FEW_BITS.match(base)
    if few:
        wider = f"w8a{few['a'] or '8'}"
        for name in (f"{wider}-{suffix}", wider):
            found += [c for c in same if c.recipe == name][:1]
    return found


def _ratio(subject: Candidate, parent: Candidate, metric: str) -> float:
    mine, theirs = value_of(subject.figures, metric), value_of(parent.figures, metric)
    return mine / theirs if mine is not None and theirs is not None and theirs > 0 else 0.0


def _against(subject: Candidate, parent: Candidate, metric: str, unit: str) -> str:
    mine, theirs = (format_value(value_of(c.figures, metric) or 0.0, unit) for c in (subject, parent))
    return f"{mine} against {theirs}"


def _why_chosen(figures: Figures, plain: Figures) -> str:
    """What the slower variant gives in return, so that its choice is never silent."""
    gains = [m for m in ("latency", "flash", "ram", "energy") if _less(figures, plain, m)]
    better, worse = quality(figures), quality(plain)
    if better is not None and worse is not None and better > worse:
        gains.insert(0, "quality")
    return f"; it was chosen for its {', '.join(gains)}" if gains else "; it was chosen although it gains nothing else"


def _less(figures: Figures, plain: Figures, metric: str) -> bool:
    mine, other = value_of(figures, metric), value_of(plain, metric)
    return mine is not None and other is not None and mine < other
