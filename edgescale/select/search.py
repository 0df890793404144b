"""A search that measures few variants: a law fitted to what was measured predicts the rest, with intervals.

In turns: a first spread of the candidates is measured; the law is fitted and refitted by bootstrap; then, of the
candidates that may still be on the Pareto front of error and cost, that one is measured next which the refits expect
to gain most hypervolume (with several costs: which is likeliest to be on the front), until none is left that may be or
the share allowed is used. `edgescale.laws` does the fitting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from edgescale.core.errors import UsageError
from edgescale.laws.design import first_design, may_be_pareto, pareto_probability
from edgescale.laws.errors import FitError
from edgescale.laws.fit import fit
from edgescale.laws.form import Form
from edgescale.laws.intervals import Bootstrap, bootstrap

Real = npt.NDArray[np.float64]

REFITS = 200
STARTS = 200


@dataclass(frozen=True)
class Found:
    """What a search knows at its end.

    measured: indices in the order of measuring; errors: of those that could be. predicted, low, high [candidates]: the
    law's error with its interval, the measured value where there is one. front: measured candidates that none measured
    beats. open: candidates not measured that may be on the front. trouble: why the law could not be fitted (then
    nothing is predicted), else "".
    """

    measured: tuple[int, ...]
    errors: Mapping[int, float]
    predicted: Real
    low: Real
    high: Real
    front: tuple[int, ...]
    open: tuple[int, ...]
    trouble: str = ""


def guided_search(
    form: Form,
    candidates: Mapping[str, Sequence[float]],
    costs: npt.ArrayLike,
    measure: Callable[[int], float],
    share: float,
    seed: int = 0,
    fixed: Mapping[str, float] | None = None,
    fallback: Mapping[str, float] | None = None,
    samples: int | None = None,
    level: float = 0.9,
) -> Found:
    """Look for the Pareto front of error and `costs` [candidates, objectives] with a share of the measurements.

    candidates: the form's inputs, a value a candidate; costs are known without measuring (bytes, MACs) and lower is
    better; measure(i) gives candidate i's error, NaN where it cannot be made. fixed: parameters of the law to hold;
    fallback: others to hold while the measurements cannot tell them apart. samples: errors are shares of so many
    samples, and no interval (at `level`) is narrower than their sampling error.
    Raises UsageError where the share is too small for the law; what was measured is never lost to a law that does not
    fit it (see `Found.trouble`).
    """
    columns = form.columns(candidates)
    price = np.atleast_2d(np.asarray(costs, dtype=np.float64))
    count = len(next(iter(columns.values())))
    if price.shape[0] != count:
        price = price.T
    allowed, least = int(share * count + 1e-9), len(form.parameters) - len(fixed or {}) + 1
    first = max(least, allowed // 2 - 1)
    if first > allowed:
        raise UsageError(
            f"{allowed} of {count} candidates may be measured, and the law {form.name} needs {first} to begin with: "
            "allow more, or offer more candidates"
        )
    spread = [int(i) for i in first_design(columns, allowed)]
    tried = {i: measure(i) for i in spread[:first]}
    while True:
        errors = {i: error for i, error in tried.items() if not np.isnan(error)}
        known = np.array([errors.get(i, np.nan) for i in range(count)])
        waiting = np.array([i not in tried for i in range(count)])
        try:
            refits = _refits(form, columns, errors, seed, fixed or {}, fallback or {})
        except FitError as error:
            if len(tried) < allowed:
                further = next(i for i in spread if i not in tried)
                tried[further] = measure(further)
                continue
            nothing, front = np.full(count, np.nan), tuple(_front(errors, price)) if errors else ()
            rest = tuple(int(i) for i in np.flatnonzero(waiting))
            return Found(tuple(tried), errors, known, nothing, nothing, front, rest, str(error))
        draws, low, high, value = _predictions(form, columns, refits, known, samples, level)
        # What cannot be made is on no front and beats nothing.
        there = waiting | ~np.isnan(known)
        open_ = np.zeros(count, dtype=bool)
        open_[there] = may_be_pareto(_with(low, price)[there], _with(high, price)[there])
        open_ &= waiting
        if len(tried) >= allowed or not open_.any():
            break
        promise = _promise(draws, known, price)
        promise[~open_] = -1.0
        best = int(np.argmax(promise))
        tried[best] = measure(best)
    rest = tuple(int(i) for i in np.flatnonzero(open_))
    return Found(tuple(tried), errors, value, low, high, tuple(_front(errors, price)), rest)


def _promise(draws: Real, known: Real, price: Real) -> Real:
    """[candidates]: hypervolume that measuring each is expected to add, over the draws [refits, candidates]."""
    if price.shape[1] != 1:
        return pareto_probability(np.stack([_with(draw, price) for draw in draws]))
    there = ~np.isnan(known)
    corner = (1.05 * float(max(known[there].max(), draws.max())), float(price.max() + 0.05 * np.ptp(price) + 1e-9))
    front = np.column_stack([known[there], price[there, 0]])
    base = hypervolume(front, corner)
    gains = np.zeros(len(known))
    for index in np.flatnonzero(~there):
        for error in np.quantile(draws[:, index], (0.1, 0.3, 0.5, 0.7, 0.9)):
            gains[index] += hypervolume(np.vstack([front, [error, price[index, 0]]]), corner) - base
    return gains


def hypervolume(points: npt.ArrayLike, worst: npt.ArrayLike) -> float:
    """Area between two-dimensional points (lower is better) and the corner `worst` that they dominate."""
    corner = np.asarray(worst, dtype=np.float64)
    inside = [p for p in np.atleast_2d(np.asarray(points, dtype=np.float64)) if (p < corner).all()]
    area, height = 0.0, float(corner[1])
    for x, y in sorted((float(p[0]), float(p[1])) for p in inside):
        if y < height:
            area += (float(corner[0]) - x) * (height - y)
            height = y
    return area


def _refits(
    form: Form,
    columns: Mapping[str, Real],
    errors: Mapping[int, float],
    seed: int,
    fixed: Mapping[str, float],
    fallback: Mapping[str, float],
) -> Bootstrap:
    rows = list(errors)
    if not rows:
        raise FitError("none of the candidates tried could be made")
    chosen, found = {name: column[rows] for name, column in columns.items()}, [errors[i] for i in rows]
    try:
        made = fit(form, chosen, found, starts=STARTS, seed=seed, fixed=fixed)
    except FitError:
        if not fallback:
            raise
        made = fit(form, chosen, found, starts=STARTS, seed=seed, fixed={**fallback, **fixed})
    return bootstrap(made, REFITS, seed=seed)


def _predictions(
    form: Form, columns: Mapping[str, Real], refits: Bootstrap, known: Real, samples: int | None, level: float
) -> tuple[Real, Real, Real, Real]:
    """(draws [refits, candidates], low, high, value): of a new measurement, exact where one was made."""
    draws = form.values(refits.inner, columns)
    band = refits.band(columns, level, of="observation")
    there = ~np.isnan(known)
    share = np.clip(band.value, 0.0, 1.0)
    chance = 0.0 if samples is None else norm.ppf(0.5 + level / 2) * np.sqrt(share * (1 - share) / samples)
    low, high = np.minimum(band.low, band.value - chance), np.maximum(band.high, band.value + chance)
    low, high, value = (np.where(there, known, side) for side in (low, high, band.value))
    return np.where(there, known, draws), low, high, value


def _with(errors: Real, price: Real) -> Real:
    return np.column_stack([errors, price])


def _front(errors: Mapping[int, float], price: Real) -> list[int]:
    rows = sorted(errors)
    table = _with(np.array([errors[i] for i in rows]), price[rows])
    return [row for row, keep in zip(rows, may_be_pareto(table, table), strict=True) if keep]
