"""Robust least squares over many starts at once: Levenberg-Marquardt on the Huber loss, batched.

Minimises sum_i w_i rho(r_i) with rho(r) = r^2/2 up to delta and delta(|r| - delta/2) beyond, for S parameter vectors
together. Curvature blends the two classical choices for Huber's loss: iteratively reweighted (weight delta/|r| of a
point beyond delta; every step descends, slowly) and Newton's (no weight; fast near the end). The blend moves towards
Newton while steps succeed and back when one fails. Scaling by the curvature's own diagonal (Marquardt) makes the path
independent of the units of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgescale.laws.duals import Real

Residuals = Callable[[Real, "np.ndarray"], tuple[Real, Real]]
"""(coordinates [k, P], which of the S problems [k]) -> residuals [k, n], slopes [k, P, n]."""

_FIRST_DAMPING, _LARGEST_DAMPING = 1e-2, 1e12
_SMALLEST_BLEND = 1e-3


@dataclass(frozen=True)
class Minimum:
    """`inner` [S, P], `cost` [S]: the loss there; `iterations` of the slowest."""

    inner: Real
    cost: Real
    iterations: int


def huber(residuals: Real, delta: float) -> Real:
    """rho(r); delta = inf is half the square."""
    size = np.abs(residuals)
    if not np.isfinite(delta):
        return 0.5 * size * size
    quadratic = np.minimum(size, delta)
    return quadratic * (size - 0.5 * quadratic)


def minimise(
    residuals: Residuals,
    start: Real,
    *,
    delta: float,
    bounds: tuple[Real, Real],
    weights: Real | None = None,
    free: np.ndarray | None = None,
    iterations: int = 150,
    tolerance: float = 1e-9,
    patience: int = 3,
) -> Minimum:
    """Descend from every row of `start` [S, P] within `bounds`; `weights` [S, n] or [n]; `free` [P] marks what moves.

    A row stops when `patience` accepted steps in a row lower its loss by less than `tolerance` of it.
    """
    inner = np.clip(start, *bounds).astype(np.float64)
    count, size = inner.shape
    moves = np.ones(size, dtype=bool) if free is None else free
    rows = np.arange(count)
    damping = np.full(count, _FIRST_DAMPING)
    blend = np.ones(count)
    small = np.zeros(count, dtype=int)
    final = inner.copy()
    final_cost = np.full(count, np.inf)
    state = _state(residuals, inner, rows, weights, delta)
    cost = state[0]
    step_count = 0
    for step_count in range(1, iterations + 1):  # noqa: B007
        gradient, curvature = _normal(state, blend, delta, moves, inner, bounds)
        diagonal = np.einsum("kii->ki", curvature)
        largest = diagonal.max(axis=1, keepdims=True)
        diagonal = np.maximum(diagonal, 1e-12 * largest + 1e-300)
        damped = curvature + (damping[:, None] * diagonal)[:, :, None] * np.eye(gradient.shape[1])
        scale = 1 / np.sqrt(diagonal)
        scaled = damped * scale[:, :, None] * scale[:, None, :]
        scaled = scaled + 1e-14 * np.eye(gradient.shape[1])
        try:
            step = -scale * np.linalg.solve(scaled, (scale * gradient)[:, :, None])[:, :, 0]
        except np.linalg.LinAlgError:
            step = -gradient / diagonal / (1 + damping[:, None])
        trial = inner.copy()
        reach = 20.0 + 4.0 * np.abs(inner[:, moves])
        trial[:, moves] += np.clip(np.nan_to_num(step), -reach, reach)
        trial = np.clip(trial, *bounds)
        tried = _state(residuals, trial, rows, weights, delta)
        better = tried[0] < cost
        gain = np.where(better, cost - tried[0], 0.0)
        ended = better & (gain <= tolerance * np.maximum(cost, 1e-300))
        small = np.where(ended, small + 1, np.where(better, 0, small))
        damping = np.where(better, np.maximum(damping * 0.25, 1e-9), damping * 6.0)
        blend = np.where(better, np.maximum(blend * 0.5, _SMALLEST_BLEND), np.minimum(blend * 8.0, 1.0))
        inner = np.where(better[:, None], trial, inner)
        cost = np.where(better, tried[0], cost)
        for old, new in zip(state[1:], tried[1:], strict=True):
            old[better] = new[better]
        done = (small >= patience) | (damping > _LARGEST_DAMPING) | (cost <= 1e-28)
        if done.any():
            final[rows[done]], final_cost[rows[done]] = inner[done], cost[done]
            keep = ~done
            rows, small = rows[keep], small[keep]
            inner, cost, damping, blend = inner[keep], cost[keep], damping[keep], blend[keep]
            state = (cost, state[1][keep], state[2][keep], state[3][keep])
            if not rows.size:
                break
    final[rows], final_cost[rows] = inner, cost
    return Minimum(final, final_cost, step_count)


def _state(
    residuals: Residuals, inner: Real, rows: np.ndarray, weights: Real | None, delta: float
) -> tuple[Real, Real, Real, Real]:
    """(cost [k], residuals [k, n], slopes [k, P, n], weights [k, n])."""
    r, slopes = residuals(inner, rows)
    bad = ~np.isfinite(r)
    if bad.any():
        r = np.where(bad, 1e6, r)
    w = (
        np.ones_like(r)
        if weights is None
        else (weights[rows] if weights.ndim == 2 else np.broadcast_to(weights, r.shape))
    )
    cost = (w * huber(r, delta)).sum(axis=1)
    return cost, np.array(r), np.nan_to_num(slopes, posinf=0.0, neginf=0.0), np.array(w)


def _normal(
    state: tuple[Real, Real, Real, Real],
    blend: Real,
    delta: float,
    moves: np.ndarray,
    inner: Real,
    bounds: tuple[Real, Real],
) -> tuple[Real, Real]:
    """Gradient [k, free] and blended curvature [k, free, free]; a coordinate pressed against its bound stands still."""
    _, r, slopes, w = state
    if np.isfinite(delta):
        beyond = delta / np.maximum(np.abs(r), delta)
        psi = w * r * beyond
        bend = w * np.where(beyond < 1, blend[:, None] * beyond, 1.0)
    else:
        psi, bend = w * r, w
    chosen = slopes if moves.all() else slopes[:, moves, :]
    gradient = np.matmul(chosen, psi[:, :, None])[:, :, 0]
    curvature = np.matmul(chosen * bend[:, None, :], chosen.transpose(0, 2, 1))
    low, high = bounds[0][moves], bounds[1][moves]
    place = inner[:, moves]
    stuck = ((place <= low) & (gradient > 0)) | ((place >= high) & (gradient < 0))
    if stuck.any():
        gradient = np.where(stuck, 0.0, gradient)
        loose = (~stuck).astype(np.float64)
        curvature = curvature * loose[:, :, None] * loose[:, None, :]
    return gradient, curvature
