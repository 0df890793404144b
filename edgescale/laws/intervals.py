"""How sure a fit is: bootstrap refits, all at once, and profile likelihood.

The bootstrap draws rows again (with replacement) and refits from the best fit. A percentile interval of few rows is
too narrow; deviations from the fit are therefore widened by sqrt(n/(n-p)) and by the ratio of Student's to the normal
quantile. The profile of a parameter holds it at a value, refits the rest, and keeps values whose loss is within the
F quantile of the best, scaled to the Huber loss by E[psi^2]/E[psi'] (the robust likelihood-ratio test).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgescale.laws.duals import Real
from edgescale.laws.errors import FitError
from edgescale.laws.fit import Fit
from edgescale.laws.form import Columns, Form, refuse_beyond
from edgescale.laws.problem import Problem
from edgescale.laws.solver import huber

CHUNK_BYTES = 1 << 26


@dataclass(frozen=True)
class Interval:
    """`low` and `high` of a central interval; a side the data do not bound is infinite."""

    low: float
    high: float


@dataclass(frozen=True)
class Band:
    """Predictions [points] with the ends of their intervals."""

    value: Real
    low: Real
    high: Real
    level: float


@dataclass(frozen=True)
class Bootstrap:
    """Refits of a fit. `inner` [refits, parameters]; `seed` of the draws."""

    fit: Fit
    inner: Real
    seed: int

    def standard_errors(self) -> dict[str, float]:
        """Standard deviation of every parameter over the refits."""
        spread = self.fit.form.outer(self.inner).std(axis=0, ddof=1)
        return dict(zip(self.fit.form.names, (float(s) for s in spread), strict=True))

    def percentiles(self, *levels: float) -> dict[str, tuple[float, ...]]:
        """Plain percentiles (0..1) of every parameter over the refits."""
        found = np.quantile(self.fit.form.outer(self.inner), levels, axis=0)
        return {name: tuple(float(v) for v in found[:, i]) for i, name in enumerate(self.fit.form.names)}

    def intervals(self, level: float = 0.9) -> dict[str, Interval]:
        """Central intervals of the parameters, widened for few rows."""
        low, high = widened(self.inner, self.fit.inner, level, *_freedom(self.fit))
        ends = zip(self.fit.form.names, self.fit.form.outer(low), self.fit.form.outer(high), strict=True)
        return {name: Interval(float(a), float(b)) for name, a, b in ends}

    def band(
        self,
        data: Columns,
        level: float = 0.9,
        of: Literal["curve", "observation"] = "curve",
    ) -> Band:
        """Predictions at `data` with intervals of the curve, or of a new observation (the fit's residuals added)."""
        fit = self.fit
        columns = fit.form.columns(data)
        refuse_beyond(fit.form, fit.params, columns)
        noise = fit.residuals if of == "observation" else None
        return band_of(
            fit.form, fit.inner, self.inner, columns, level, logs=fit.problem.loss.space == "log", noise=noise,
            count=fit.problem.y.size, free=fit.free_count,
        )  # fmt: skip


def band_of(
    form: Form,
    inner: Real,
    refits: Real,
    columns: Mapping[str, Real],
    level: float,
    *,
    logs: bool,
    noise: Real | None,
    count: int,
    free: int,
) -> Band:
    """Predictions at checked columns with intervals from `refits` [refits, parameters].

    `logs`: deviations are taken in log space; `noise`: residuals to add for the interval of a new observation;
    `count` rows and `free` parameters of the fit.
    """
    value = form.values(inner, columns)[0]
    draws = form.values(refits, columns)
    logs = logs and bool((value > 0).all())
    centre, spread = (np.log(value), np.log(np.maximum(draws, 1e-300))) if logs else (value, draws)
    if noise is not None:
        spread = spread + np.random.default_rng(0).choice(noise, size=spread.shape)
    low, high = widened(spread, centre, level, count, free)
    if logs:
        low, high = np.exp(low), np.exp(high)
    return Band(np.array(value), low, high, level)


def check_level(level: float) -> None:
    """Raise FitError unless 0 < level < 1."""
    if not 0 < level < 1:
        raise FitError(f"the level of an interval lies between 0 and 1, e.g. 0.9, not {level:g}")


def widened(draws: Real, centre: Real, level: float, count: int, free: int) -> tuple[Real, Real]:
    """Ends [...] of central intervals from `draws` [refits, ...] around `centre`, widened for few rows."""
    from scipy.stats import norm, t

    check_level(level)
    rest = max(count - free, 1)
    tail = (1 - level) / 2
    widening = np.sqrt(count / rest) * t.ppf(1 - tail, rest) / norm.ppf(1 - tail)
    low, high = np.quantile(draws, (tail, 1 - tail), axis=0)
    return centre + widening * np.minimum(low - centre, 0), centre + widening * np.maximum(high - centre, 0)


def _freedom(fit: Fit) -> tuple[int, int]:
    return fit.problem.y.size, fit.free_count


def bootstrap(
    fit: Fit,
    count: int = 400,
    seed: int = 0,
    *,
    groups: npt.ArrayLike | None = None,
    tolerance: float = 1e-7,
) -> Bootstrap:
    """Refit `count` resamples of the rows; with `groups` [points], whole groups (runs, families) are drawn."""
    if count < 2:
        raise FitError("a bootstrap needs at least 2 refits")
    rng = np.random.default_rng(seed)
    rows = fit.problem.y.size
    if groups is None:
        weights = _counts(rng, count, rows)
    else:
        labels = np.unique(np.asarray(groups).ravel(), return_inverse=True)[1]
        if labels.size != rows:
            raise FitError(f"groups has {labels.size} entries for {rows} rows")
        if labels.max() < 2:
            raise FitError("fewer than 3 groups: nothing to draw from")
        weights = _counts(rng, count, int(labels.max()) + 1)[:, labels]
    return Bootstrap(fit, refit(fit.problem, fit.inner, weights, tolerance), seed)


def _counts(rng: np.random.Generator, count: int, rows: int) -> Real:
    """How often each of `rows` is drawn, [count, rows]."""
    return rng.multinomial(rows, np.full(rows, 1 / rows), size=count).astype(np.float64)


def refit(problem: Problem, inner: Real, weights: Real, tolerance: float = 1e-7) -> Real:
    """Minima [S, parameters] under row weights [S, n], each begun at `inner` [parameters]."""
    chunk = max(1, CHUNK_BYTES // (8 * problem.y.size * inner.size))
    found = []
    for first in range(0, weights.shape[0], chunk):
        part = weights[first : first + chunk]
        start = np.repeat(inner[None], part.shape[0], axis=0)
        found.append(problem.minimise(start, weights=part, iterations=120, tolerance=tolerance).inner)
    return np.concatenate(found)


def profile(fit: Fit, name: str, level: float = 0.9, points: int = 25) -> Interval:
    """Profile-likelihood interval of a parameter; infinite on a side where the loss never rises enough."""
    from scipy.stats import f as fisher

    check_level(level)
    problem, index = fit.problem, fit.form.names.index(name) if name in fit.form.names else -1
    if index < 0 or not problem.free[index]:
        raise FitError(f"{fit.form.name} has no free parameter {name!r}; free are {_free_names(problem)}")
    count, free = _freedom(fit)
    bound = fisher.ppf(level, 1, max(count - free, 1)) * _loss_scale(fit)
    best = float(huber(fit.residuals, problem.loss.delta).sum())
    moves = problem.free.copy()
    moves[index] = False
    step = _curvature_error(fit, index)
    ends = []
    for sign in (-1.0, 1.0):
        reach = 4.0 * step
        end = sign * np.inf
        for _ in range(4):
            offsets = np.linspace(0, reach, points)
            start = np.repeat(fit.inner[None], points, axis=0)
            start[:, index] += sign * offsets
            start = np.clip(start, *problem.bounds)
            rise = problem.minimise(start, free=moves, iterations=150, tolerance=1e-8).cost - best
            rise = np.maximum.accumulate(np.maximum(rise, 0.0))
            if rise[-1] >= bound:
                at = int(np.argmax(rise >= bound))
                share = (bound - rise[at - 1]) / max(rise[at] - rise[at - 1], 1e-300)
                end = fit.inner[index] + sign * (offsets[at - 1] + share * (offsets[at] - offsets[at - 1]))
                break
            reach *= 3
        ends.append(end)
    positive = fit.form.parameters[index].positive
    low, high = (float(np.exp(e)) if positive else float(e) for e in ends)
    return Interval(low, high)


def _free_names(problem: Problem) -> str:
    return ", ".join(name for name, free in zip(problem.form.names, problem.free, strict=True) if free)


def _loss_scale(fit: Fit) -> float:
    """E[psi^2] / (2 E[psi']): the loss a quantile of chi^2_1 (or F_1) corresponds to."""
    r, delta = fit.residuals, fit.problem.loss.delta
    count, free = _freedom(fit)
    psi = np.clip(r, -delta, delta)
    second = float((psi**2).sum()) / max(count - free, 1)
    spread = 1.4826 * float(np.median(np.abs(r)))
    width = 1.06 * max(spread, 1e-300) * count**-0.2
    # nearly absolute loss: psi' is a spike of height 1 and width 2 delta, times the density at zero
    inside = float((np.abs(r) <= max(delta, width)).mean())
    slope = inside * min(delta / width, 1.0)
    return float(second / (2 * max(slope, 1e-6)))


def _curvature_error(fit: Fit, index: int) -> float:
    """A rough standard error of one coordinate from the slopes and the residuals' spread."""
    slopes = fit.problem.residuals(fit.inner[None], fit.problem.targets(fit.problem.y))[1][0]
    free = np.flatnonzero(fit.problem.free)
    gram = slopes[free] @ slopes[free].T
    inverse = np.linalg.pinv(gram, rcond=1e-13)
    spread = max(1.4826 * float(np.median(np.abs(fit.residuals))), 1e-12)
    place = int(np.flatnonzero(free == index)[0])
    return float(spread * np.sqrt(max(inverse[place, place], 1e-300)))
