"""Fitting a form: data checked, starts drawn, every start descended at once, the best one examined."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgescale.laws.duals import Real
from edgescale.laws.errors import FitError
from edgescale.laws.form import Columns, Form, Law, refuse_beyond
from edgescale.laws.problem import Problem, problem_of
from edgescale.laws.solver import huber
from edgescale.laws.starts import draw

FLAT = 1e6
"""Condition of the curvature (unit diagonal) beyond which a combination of parameters is called poorly determined."""
DEGENERATE = 1e11
"""... and beyond which the data cannot tell the parameters apart at all."""


@dataclass(frozen=True)
class Fit:
    """A fitted law. `params` by name, `objective` the loss reached, `residuals` [n] in the loss's space,
    `agreement` the share of starts that ended at the best objective (within 1e-4 of it)."""

    problem: Problem
    inner: Real
    objective: float
    residuals: Real
    starts: int
    agreement: float
    seed: int
    data_sha256: str
    warnings: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def form(self) -> Form:
        """The form that was fitted."""
        return self.problem.form

    @property
    def params(self) -> dict[str, float]:
        """Fitted values by name."""
        return dict(zip(self.form.names, (float(v) for v in self.form.outer(self.inner)), strict=True))

    @property
    def law(self) -> Law:
        """The law with the fitted values."""
        return Law(self.form, self.params, f"{self.form.cite}; fitted to data {self.data_sha256[:12]}")

    @property
    def free_count(self) -> int:
        """How many parameters were free."""
        return int(self.problem.free.sum())

    @property
    def r_squared(self) -> float:
        """1 - residual over total sum of squares, in the loss's space."""
        target = self.problem.targets(self.problem.y)
        return 1 - float((self.residuals**2).sum()) / max(float(((target - target.mean()) ** 2).sum()), 1e-300)

    def predict(self, data: Columns | None = None, **inputs: npt.ArrayLike) -> Real:
        """y [points] at the inputs; intervals: `edgescale.laws.intervals`."""
        columns = self.form.columns({**(data or {}), **inputs})
        refuse_beyond(self.form, self.params, columns)
        return np.array(self.form.values(self.inner, columns)[0])


def data_hash(form: Form, columns: Mapping[str, Real], y: Real) -> str:
    """SHA-256 of the columns a form reads and of the observations, in order."""
    digest = hashlib.sha256()
    for name, values in [*sorted(columns.items()), (form.output, y)]:
        digest.update(f"{name}\0{values.size}\0".encode())
        digest.update(np.ascontiguousarray(values, dtype="<f8").tobytes())
    return digest.hexdigest()


def fit(
    form: Form,
    data: Columns,
    y: npt.ArrayLike,
    *,
    starts: int = 200,
    seed: int = 0,
    space: str | None = None,
    delta: float | None = None,
    mean: bool = False,
    fixed: Mapping[str, float] | None = None,
) -> Fit:
    """Fit `form` to `y` [points] at the columns of `data` from `starts` starts.

    Raises FitError where the data cannot carry the law: too few points, no variation, or parameters that the data
    cannot tell apart. Combinations that are merely poorly determined are named in `warnings`.
    """
    problem = problem_of(form, data, y, space=space, delta=delta, mean=mean, fixed=fixed)
    if starts < 1:
        raise FitError("at least one start is needed")
    inner, agreement = descend(problem, draw(problem, starts, seed))
    residuals = problem.residuals(inner[None], problem.targets(problem.y))[0][0]
    _require_explanation(problem, residuals)
    warnings = _examine(problem, inner, residuals, agreement, starts)
    digest = data_hash(form, problem.columns, problem.y)
    return Fit(problem, inner, problem.cost(inner), residuals, starts, agreement, seed, digest, warnings)


def descend(problem: Problem, start: Real) -> tuple[Real, float]:
    """The best minimum from the rows of `start`, and the share of rows that reached it.

    All rows first descend the loss with a wide quadratic zone (its valleys are smooth), then those that differ
    descend the loss itself.
    """
    if np.isfinite(problem.loss.delta):
        wide = problem.minimise(
            start, delta=max(30 * problem.loss.delta, 1e-1), iterations=40, tolerance=1e-3, patience=2
        )
    else:
        wide = problem.minimise(start, iterations=40, tolerance=1e-3, patience=2)
    keys = np.round(np.column_stack([np.log(np.maximum(wide.cost, 1e-280))[:, None], wide.inner]), 2)
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(wide.cost[first])
    ended = problem.minimise(wide.inner[first], iterations=60, tolerance=1e-6)
    best = np.argsort(ended.cost)[: min(8, order.size)]
    polished = problem.minimise(ended.inner[best], iterations=400, tolerance=1e-13, patience=6)
    costs = ended.cost.copy()
    costs[best] = polished.cost
    winner = int(np.argmin(polished.cost))
    reached = costs <= polished.cost[winner] * (1 + 1e-4) + 1e-28
    return polished.inner[winner], float(reached[inverse.ravel()].mean())


UNEXPLAINED = 0.98
"""Share of a constant's misfit at which a law is said to explain nothing."""


def _require_explanation(problem: Problem, residuals: Real) -> None:
    target = problem.targets(problem.y)
    constant = float(huber(target - np.median(target), problem.loss.delta).sum())
    left = float(huber(residuals, problem.loss.delta).sum())
    if left > UNEXPLAINED * constant:
        raise FitError(
            f"{problem.form.name!r} explains these data no better than a constant ({left / constant:.0%} of its "
            f"misfit remains): {problem.form.output} does not follow {problem.form.equation}. "
            "Does it rise where the law falls?"
        )


def _examine(problem: Problem, inner: Real, residuals: Real, agreement: float, starts: int) -> tuple[str, ...]:
    """Warnings; raises FitError where the curvature is singular."""
    form, warnings = problem.form, []
    slopes = problem.residuals(inner[None], problem.targets(problem.y))[1][0]
    low, high = problem.bounds
    free = np.flatnonzero(problem.free)
    norms = np.sqrt((slopes[free] ** 2).sum(axis=1))
    dead = norms <= 1e-9 * max(norms.max(), 1e-300)
    pressed = (inner[free] <= low[free] + 1e-9) | (inner[free] >= high[free] - 1e-9)
    for index in free[dead & ~pressed]:
        warnings.append(f"{form.names[index]} has no influence at the fit: its term vanishes")
    for index in free[pressed]:
        warnings.append(f"{form.names[index]} ended at its bound {form.outer(inner)[index]:g}")
    alive = free[~dead & ~pressed]
    if alive.size == 0:
        raise FitError(f"no parameter of {form.name!r} has any influence on these data")
    unit = slopes[alive] / np.sqrt((slopes[alive] ** 2).sum(axis=1, keepdims=True))
    spectrum, directions = np.linalg.eigh(unit @ unit.T)
    condition = float(spectrum[-1] / max(spectrum[0], 1e-300))
    flat = [form.names[i] for i in alive[np.abs(directions[:, 0]) > 0.3]]
    if condition > DEGENERATE:
        raise FitError(
            f"the data cannot tell {', '.join(flat)} of {form.name!r} apart (condition {condition:.1e}): "
            "vary the inputs independently of each other, or hold one with fixed="
        )
    if condition > FLAT:
        warnings.append(
            f"flat direction: {', '.join(flat)} are determined only together (condition {condition:.1e}); "
            "compare predictions, not these values"
        )
    if starts >= 20 and agreement < 0.05:
        warnings.append(f"only {agreement:.0%} of the starts reached the best minimum: try more starts")
    if float(np.abs(residuals).max()) > 0 and problem.y.size < 5 * free.size:
        warnings.append(f"{problem.y.size} points for {free.size} parameters: intervals rest on few degrees of freedom")
    return tuple(warnings)
