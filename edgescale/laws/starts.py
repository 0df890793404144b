"""Where descents begin: shape parameters drawn within the form's ranges, factors solved for (variable projection)."""

from __future__ import annotations

import numpy as np

from edgescale.laws.duals import Real
from edgescale.laws.problem import Problem


def draw(problem: Problem, count: int, seed: int) -> Real:
    """`count` starts [count, parameters], reproducible from `seed`."""
    rng = np.random.default_rng(seed)
    form = problem.form
    inner = np.empty((count, len(form.parameters)))
    for i, p in enumerate(form.parameters):
        low, high = p.start
        if p.positive:
            inner[:, i] = rng.uniform(np.log(low), np.log(high), count)
            if p.like is not None:
                inner[:, i] += np.log(problem.columns[p.like]).mean()
        else:
            inner[:, i] = rng.uniform(low, high, count)
    if form.draw is not None:
        for name, values in form.draw(rng, count, problem.columns, problem.y).items():
            i = form.names.index(name)
            inner[:, i] = np.log(values) if form.parameters[i].positive else values
    inner = np.where(problem.free, inner, problem.held)
    inner = np.clip(inner, *problem.bounds)
    solved = [i for i, p in enumerate(form.parameters) if p.amplitude and problem.free[i]]
    return _project(problem, inner, solved, rng) if solved else inner


def _project(problem: Problem, inner: Real, solved: list[int], rng: np.random.Generator) -> Real:
    """Replace the factors `solved` by their non-negative least-squares values, given all other coordinates."""
    base = inner.copy()
    base[:, solved] = 0.0
    value, slopes = problem.form.derivatives(base, problem.columns)
    basis = np.nan_to_num(slopes[:, solved, :], posinf=0.0, neginf=0.0)
    rest = np.nan_to_num(value - basis.sum(axis=1), posinf=0.0, neginf=0.0)
    weight = 1 / np.abs(problem.y) if problem.loss.space == "log" else np.ones_like(problem.y)
    basis, target = basis * weight, (problem.y - rest) * weight
    size = np.sqrt((basis**2).sum(axis=2))
    usable = size > 1e-280
    size = np.where(usable, size, 1.0)
    basis = basis / size[:, :, None]
    level = float(np.sqrt((target**2).mean()) * np.sqrt(problem.y.size))
    factors = np.full(size.shape, 1e-3 * level)
    active = usable.copy()
    for _ in range(len(solved)):  # drop what turns negative, solve again
        mask = active.astype(np.float64)
        gram = np.matmul(basis, basis.transpose(0, 2, 1)) * mask[:, :, None] * mask[:, None, :]
        gram = gram + 1e-9 * np.eye(len(solved)) + (1 - mask)[:, :, None] * np.eye(len(solved))
        right = np.matmul(basis, target[:, :, None])[:, :, 0] * mask
        found = np.linalg.solve(gram, right[:, :, None])[:, :, 0]
        negative = active & (found <= 0)
        factors = np.where(active & ~negative, found, factors)
        if not negative.any():
            break
        active &= ~negative
    factors = np.where(active, factors, 1e-2 * level * rng.uniform(0.1, 1.0, size.shape))
    inner = inner.copy()
    inner[:, solved] = np.log(np.maximum(factors / size, 1e-280))
    return np.clip(inner, *problem.bounds)
