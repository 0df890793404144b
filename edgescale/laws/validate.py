"""Leave-out validation: fit without the largest size, the lowest precision, ..., and predict what was left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.laws.duals import Real
from edgescale.laws.errors import FitError
from edgescale.laws.fit import Fit, fit


@dataclass(frozen=True)
class Holdout:
    """What was left out (`rule`, `count` rows) and how well the rest predicted it.

    `relative` and `absolute`: mean errors; `bias`: mean of prediction minus observation over observation.
    """

    rule: str
    count: int
    relative: float
    absolute: float
    bias: float


def leave_out(made: Fit, rows: npt.ArrayLike, rule: str) -> Holdout:
    """Refit without `rows` (boolean [points]) and predict them."""
    problem = made.problem
    out = np.asarray(rows, dtype=bool).ravel()
    if out.size != problem.y.size or not out.any() or out.all():
        raise FitError(f"{rule}: leave out some rows, not none and not all")
    kept = {name: values[~out] for name, values in problem.columns.items()}
    fixed = {
        name: float(value)
        for name, value, free in zip(made.form.names, made.form.outer(made.inner), problem.free, strict=True)
        if not free
    }
    loss = problem.loss
    again = fit(
        made.form, kept, problem.y[~out], starts=made.starts, seed=made.seed,
        space=loss.space, delta=loss.delta, mean=loss.mean, fixed=fixed,
    )  # fmt: skip
    predicted = again.form.values(again.inner, {name: values[out] for name, values in problem.columns.items()})[0]
    return _score(rule, predicted, problem.y[out])


def _score(rule: str, predicted: Real, observed: Real) -> Holdout:
    error = predicted - observed
    relative = error / np.where(observed == 0, 1.0, np.abs(observed))
    return Holdout(
        rule,
        int(observed.size),
        float(np.abs(relative).mean()),
        float(np.abs(error).mean()),
        float(relative.mean()),
    )


LOWEST = ("P_w", "P_a", "P_kv", "P_post")
"""Inputs whose small end is the hard one: precision."""


def edge_holdouts(made: Fit) -> tuple[Holdout, ...]:
    """Leave out, input by input, its extreme value (largest; lowest for bits), where enough rows remain."""
    found = []
    for name, values in made.problem.columns.items():
        levels = np.unique(values)
        if levels.size < 3:
            continue
        extreme = levels[0] if name in LOWEST else levels[-1]
        out = values == extreme
        if out.sum() > 0.5 * values.size:
            continue
        if out.mean() < 0.05:  # continuous inputs: the outermost tenth
            edge = np.quantile(values, 0.1 if name in LOWEST else 0.9)
            out = values <= edge if name in LOWEST else values >= edge
        try:
            found.append(leave_out(made, out, f"{'lowest' if name in LOWEST else 'largest'} {name}"))
        except FitError:
            continue
    return tuple(found)
