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

from edgescale.core.errors import UsageError
from edgescale.laws.design import first_design, may_be_pareto, pareto_probability
from edgescale.laws.errors import FitError
from edgescale.laws.fit import fit
from edgescale.laws.form import Form
from edgescale.laws.intervals import Bootstrap, bootstrap

Real = npt.NDArray[np.float64]

LEVEL = 0.9
REFITS = 200
STARTS = 200


@dataclass(frozen=True)
class Found:
    """What a search knows at its end.

    measured: indices in the order of measuring; errors: of those. predicted, low, high [candidates]: the law's error
    with its interval, the measured value where there is one. front: measured candidates that none measured beats.
    """

    measured: tuple[int, ...]
    errors: Mapping[int, float]
    predicted: Real
    low: Real
    high: Real
    front: tuple[int, ...]


def guided_search(
    form: Form,
    candidates: Mapping[str, Sequence[float]],
    costs: npt.ArrayLike,
    measure: Callable[[int], float],
    share: float,
    seed: int = 0,
) -> Found:
    """Look for the Pareto front of error and `costs` [candidates, objectives] with a share of the measurements.

    candidates: the form's inputs, a value a candidate; costs are known without measuring (bytes, MACs) and lower is
    better; measure(i) gives candidate i's error. Raises UsageError where the share is too small for the law.
    """
    columns = form.columns(candidates)
    price = np.atleast_2d(np.asarray(costs, dtype=np.float64))
    count = len(next(iter(columns.values())))
    if price.shape[0] != count:
        price = price.T
    allowed = int(share * count)
    first = max(len(form.parameters) + 1, allowed // 2 - 1)
    if first > allowed:
        raise UsageError(
            f"{allowed} of {count} candidates may be measured, and the law {form.name} needs {first} to begin with: "
            "allow more, or offer more candidates"
        )
    errors = {int(i): measure(int(i)) for i in first_design(columns, first)}
    while True:
        refits = _refits(form, columns, errors, seed)
        known = np.array([errors.get(i, np.nan) for i in range(count)])
        draws, low, high, value = _predictions(form, columns, refits, known)
        left = allowed - len(errors)
        open_ = may_be_pareto(_with(low, price), _with(high, price)) & np.isnan(known)
        if left <= 0 or not open_.any():
            break
        promise = _promise(draws, known, price)
        promise[~open_] = -1.0
        best = int(np.argmax(promise))
        errors[best] = measure(best)
    return Found(tuple(errors), errors, value, low, high, tuple(_front(errors, price)))


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


def _refits(form: Form, columns: Mapping[str, Real], errors: Mapping[int, float], seed: int) -> Bootstrap:
    rows = list(errors)
    try:
        made = fit(form, {n: c[rows] for n, c in columns.items()}, [errors[i] for i in rows], starts=STARTS, seed=seed)
    except FitError as error:
        raise UsageError(f"the law {form.name} does not fit what was measured: {error}") from error
    return bootstrap(made, REFITS, seed=seed)


def _predictions(
    form: Form, columns: Mapping[str, Real], refits: Bootstrap, known: Real
) -> tuple[Real, Real, Real, Real]:
    """(draws [refits, candidates], low, high, value): of a new measurement, exact where one was made."""
    draws = form.values(refits.inner, columns)
    band = refits.band(columns, LEVEL, of="observation")
    there = ~np.isnan(known)
    low, high, value = (np.where(there, known, side) for side in (band.low, band.high, band.value))
    return np.where(there, known, draws), low, high, value


def _with(errors: Real, price: Real) -> Real:
    return np.column_stack([errors, price])


def _front(errors: Mapping[int, float], price: Real) -> list[int]:
    rows = sorted(errors)
    table = _with(np.array([errors[i] for i in rows]), price[rows])
    return [row for row, keep in zip(rows, may_be_pareto(table, table), strict=True) if keep]
