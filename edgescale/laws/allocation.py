"""Where to spend samples: an allocation of a budget over settings (models, temperatures, prompts).

Maximises coverage mean_p[1 - prod_s (1 - p_sp)^k_s] over whole numbers k_s that sum to K (OSCA, arXiv:2410.22480).
The objective is concave in real k and submodular in whole ones, so greedy is within 1 - 1/e of the best, and the
concave relaxation bounds what any allocation can reach: every answer comes with that bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.laws.duals import Real
from edgescale.laws.errors import FitError
from edgescale.laws.samples.coverage import miss_at_k

EXACT_LIMIT = 300_000


@dataclass(frozen=True)
class Allocation:
    """`counts` [settings] sum to the budget; `coverage` reached; `bound` no allocation exceeds; `method`."""

    counts: tuple[int, ...]
    coverage: float
    bound: float
    method: str


def _failures(chances: npt.ArrayLike) -> Real:
    """ln(1 - p) [settings, problems], at least -50: a sure success is e^-50 from certain."""
    p = np.atleast_2d(np.asarray(chances, dtype=np.float64))
    if not np.isfinite(p).all() or (p < 0).any() or (p > 1).any() or not p.size:
        raise FitError("success chances [settings, problems] lie between 0 and 1")
    return np.maximum(np.log1p(-np.minimum(p, 1 - 1e-16)), -50.0)


def coverage_of(counts: Sequence[int], chances: npt.ArrayLike) -> float:
    """Coverage of an allocation."""
    return float(1 - np.exp(np.asarray(counts, dtype=np.float64) @ _failures(chances)).mean())


def unbiased_coverage(counts: Sequence[int], successes: npt.ArrayLike, draws: npt.ArrayLike) -> float:
    """Unbiased coverage of an allocation on counted draws [settings, problems]: 1 - prod_s C(n-c, k)/C(n, k)."""
    table = np.atleast_2d(np.asarray(successes, dtype=np.float64))
    total = np.broadcast_to(np.asarray(draws, dtype=np.float64), table.shape)
    miss = np.ones(table.shape[1])
    for k, c, n in zip(counts, table, total, strict=True):
        if k:
            miss = miss * miss_at_k(c, n, int(k))
    return float(1 - miss.mean())


def allocate(chances: npt.ArrayLike, budget: int, method: str = "auto") -> Allocation:
    """Spend `budget` samples; `method`: "exact" (all allocations), "greedy", "climb" or "auto" (exact where small)."""
    logs = _failures(chances)
    settings = logs.shape[0]
    if budget < 1:
        raise FitError("the budget is at least 1 sample")
    small = math.comb(budget + settings - 1, settings - 1) <= EXACT_LIMIT
    if method == "exact" and not small:
        raise FitError(f"{budget} samples over {settings} settings have too many allocations: use climb or greedy")
    if method == "exact" or (method == "auto" and small):
        counts = _exact(logs, budget)
        value = _value(counts, logs)
        return Allocation(tuple(int(c) for c in counts), value, value, "exact")
    bound = _bound(logs, budget)
    greedy = _greedy(logs, budget)
    if method == "greedy":
        return _made(greedy, logs, bound, "greedy")
    if method not in ("climb", "auto"):
        raise FitError(f"method {method!r} is unknown: exact, greedy, climb or auto")
    starts = [greedy, _even(settings, budget), _single(logs, budget)]
    best = max((_climb(start, logs) for start in starts), key=lambda c: _value(c, logs))
    return _made(best, logs, bound, "climb")


def best_single(chances: npt.ArrayLike, budget: int) -> Allocation:
    """All samples to the one setting that covers most."""
    logs = _failures(chances)
    return _made(_single(logs, budget), logs, _bound(logs, budget), "single")


def _value(counts: Real, logs: Real) -> float:
    return float(1 - np.exp(counts @ logs).mean())


def _made(counts: Real, logs: Real, bound: float, method: str) -> Allocation:
    value = _value(counts, logs)
    return Allocation(tuple(int(c) for c in counts), value, max(bound, value), method)


def _even(settings: int, budget: int) -> Real:
    counts = np.full(settings, budget // settings, dtype=np.float64)
    counts[: budget % settings] += 1
    return counts


def _single(logs: Real, budget: int) -> Real:
    counts = np.zeros(logs.shape[0])
    counts[int(np.argmin(np.exp(budget * logs).mean(axis=1)))] = budget
    return counts


def _greedy(logs: Real, budget: int) -> Real:
    counts = np.zeros(logs.shape[0])
    miss = np.ones(logs.shape[1])
    factors = np.exp(logs)
    for _ in range(budget):
        best = int(np.argmin(factors @ miss))
        counts[best] += 1
        miss = miss * factors[best]
    return counts


def _climb(counts: Real, logs: Real) -> Real:
    """Move one unit from a setting to another while that helps, the best move first."""
    counts = counts.copy()
    factors = np.exp(logs)
    value = np.exp(counts @ logs).mean()
    while True:
        donors = np.flatnonzero(counts > 0)
        without = np.exp(counts @ logs - logs[donors])  # [donors, problems]
        moved = without @ factors.T / logs.shape[1]  # [donors, settings]
        at = int(np.argmin(moved))
        donor, taker = int(donors[at // moved.shape[1]]), at % moved.shape[1]
        if moved.flat[at] >= value * (1 - 1e-13) or donor == taker:
            return counts
        counts[donor] -= 1
        counts[taker] += 1
        value = np.exp(counts @ logs).mean()


def _exact(logs: Real, budget: int) -> Real:
    """Depth first over all allocations, the last setting taking what is left."""
    settings = logs.shape[0]
    best, found = np.inf, np.zeros(settings)
    counts = np.zeros(settings)

    def descend(setting: int, left: int, total: Real) -> None:
        nonlocal best, found
        if setting == settings - 1:
            value = float(np.exp(total + left * logs[setting]).sum())
            if value < best - 1e-15:
                counts[setting] = left
                best, found = value, counts.copy()
            return
        if setting == settings - 2:
            shares = np.arange(left + 1)
            sums = total + shares[:, None] * logs[setting] + (left - shares)[:, None] * logs[setting + 1]
            values = np.exp(sums).sum(axis=1)
            at = int(np.argmin(values))
            if values[at] < best - 1e-15:
                counts[setting], counts[setting + 1] = at, left - at
                best, found = float(values[at]), counts.copy()
            return
        for share in range(left + 1):
            counts[setting] = share
            descend(setting + 1, left - share, total + share * logs[setting])

    descend(0, budget, np.zeros(logs.shape[1]))
    return found


def _bound(logs: Real, budget: int, steps: int = 200) -> float:
    """An upper bound from the concave relaxation: f(k) + max_v grad.(v - k) at points of a multiplicative ascent."""
    settings = logs.shape[0]
    share = np.full(settings, 1 / settings)
    bound = 1.0
    for _ in range(steps):
        counts = budget * share
        miss = np.exp(counts @ logs)
        slope = -(logs @ miss) / miss.size
        bound = min(bound, 1 - float(miss.mean()) + float(budget * slope.max() - slope @ counts))
        weight = slope / max(float(slope @ share), 1e-300)
        share = share * weight
        share = share / share.sum()
    return bound
