"""What to measure next: a first spread, then the variants that teach the most, then only what may still be Pareto.

A search works in turns: `first_design` before anything is known; after each fit `most_informative` chooses by how much
a measurement would shrink the uncertainty of everything not yet measured; `may_be_pareto` says which variants are
worth measuring at all. Costs are minimised in every objective; negate what is to be maximised.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgescale.laws.duals import Real
from edgescale.laws.errors import FitError
from edgescale.laws.form import Columns
from edgescale.laws.intervals import Bootstrap


def first_design(data: Columns, count: int) -> npt.NDArray[np.int64]:
    """Indices of `count` candidates spread over the inputs: the two farthest apart, then always the farthest from all.

    Distances are taken on ranks-free unit scales, logarithmic where an input spans more than a factor of 10.
    """
    scaled = _unit(data)
    rows = scaled.shape[0]
    if not 1 <= count <= rows:
        raise FitError(f"{count} of {rows} candidates: choose 1 to {rows}")
    centre = np.linalg.norm(scaled - scaled.mean(axis=0), axis=1)
    chosen = [int(np.argmax(centre))]
    nearest = np.linalg.norm(scaled - scaled[chosen[0]], axis=1)
    while len(chosen) < count:
        nearest[chosen] = -1.0
        pick = int(np.argmax(nearest))
        chosen.append(pick)
        nearest = np.minimum(nearest, np.linalg.norm(scaled - scaled[pick], axis=1))
    return np.array(chosen, dtype=np.int64)


def _unit(data: Columns) -> Real:
    columns = []
    for name, raw in data.items():
        values = np.asarray(raw, dtype=np.float64).ravel()
        if not np.isfinite(values).all():
            raise FitError(f"column {name!r} of the candidates holds a value that is not finite")
        if values.min() > 0 and values.max() > 10 * values.min():
            values = np.log(values)
        width = float(np.ptp(values))
        if width > 0:
            columns.append((values - values.min()) / width)
    if not columns:
        raise FitError("the candidates do not differ in any input")
    return np.column_stack(columns)


def most_informative(
    refits: Bootstrap, candidates: Columns, count: int, *, cost: npt.ArrayLike | None = None
) -> npt.NDArray[np.int64]:
    """Indices of `count` candidates, best first, whose measurement shrinks the variance of all candidates most.

    The refits' predictions stand for what is still possible: measuring x with noise s^2 lowers the variance of t by
    cov(x, t)^2/(var x + s^2). Chosen one after the other, each given those before; with `cost` per unit of it.
    """
    fit = refits.fit
    draws = fit.form.values(refits.inner, fit.form.columns(candidates))
    if fit.problem.loss.space == "log":
        draws = np.log(np.maximum(draws, 1e-300))
    spread = np.cov(draws, rowvar=False).reshape(draws.shape[1], draws.shape[1])
    noise = float((1.4826 * np.median(np.abs(fit.residuals))) ** 2) + 1e-18
    price = np.ones(spread.shape[0]) if cost is None else np.asarray(cost, dtype=np.float64)
    if price.size != spread.shape[0] or (price <= 0).any():
        raise FitError("give every candidate a cost above 0")
    if not 1 <= count <= spread.shape[0]:
        raise FitError(f"{count} of {spread.shape[0]} candidates: choose 1 to {spread.shape[0]}")
    chosen: list[int] = []
    for _ in range(count):
        gain = (spread**2).sum(axis=1) / (np.diag(spread) + noise) / price
        gain[chosen] = -1.0
        pick = int(np.argmax(gain))
        chosen.append(pick)
        column = spread[:, pick].copy()
        spread = spread - np.outer(column, column) / (column[pick] + noise)
    return np.array(chosen, dtype=np.int64)


def may_be_pareto(optimistic: npt.ArrayLike, pessimistic: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """[candidates] that no other surely dominates. Both [candidates, objectives], costs: lower is better.

    A candidate is out when another's worst case is no worse than its best case everywhere and better somewhere. What
    is measured has both cases equal.
    """
    best, worst = np.atleast_2d(np.asarray(optimistic, float)), np.atleast_2d(np.asarray(pessimistic, float))
    if best.shape != worst.shape or (best > worst).any():
        raise FitError("optimistic costs must have the shape of the pessimistic ones and not exceed them")
    no_worse = (worst[:, None, :] <= best[None, :, :]).all(axis=2)
    better = (worst[:, None, :] < best[None, :, :]).any(axis=2)
    dominated = np.asarray(no_worse & better)
    np.fill_diagonal(dominated, False)
    return np.asarray(~dominated.any(axis=0))


def pareto_probability(costs: npt.ArrayLike) -> Real:
    """[candidates]: in which share of the draws [draws, candidates, objectives] each is not dominated."""
    table = np.asarray(costs, dtype=np.float64)
    if table.ndim != 3:
        raise FitError("costs must be [draws, candidates, objectives]")
    share = np.zeros(table.shape[1])
    for draw in table:
        no_worse = (draw[:, None, :] <= draw[None, :, :]).all(axis=2)
        better = (draw[:, None, :] < draw[None, :, :]).any(axis=2)
        share += ~(no_worse & better).any(axis=0)
    return np.asarray(share / table.shape[0])
