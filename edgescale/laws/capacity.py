"""How much of a Gaussian a compressed representation keeps: GMSE = E|X - R(X)|^2 / E|X|^2, X standard normal.

The error orders number formats and sparsity on one axis (arXiv:2506.01863); capacities of independent compressions
multiply. Everything here is integrated in closed form or by quadrature, nothing is tabulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from edgescale.laws.duals import Real
from edgescale.laws.errors import FitError


class Levels(Protocol):
    """Any number format: its ascending representable values."""

    @property
    def levels(self) -> tuple[float, ...]: ...


def format_error(form: Levels | Sequence[float]) -> tuple[float, float]:
    """(GMSE, scale) of a format at its best scale: X is rounded to the nearest scale * level."""
    from scipy.optimize import minimize_scalar

    levels = np.unique(np.asarray(form.levels if hasattr(form, "levels") else form, dtype=np.float64))
    if levels.size < 2:
        raise FitError("a format needs at least two levels")
    largest = float(np.abs(levels).max())
    grid = np.geomspace(0.05, 8.0, 600) / largest
    costs = [_error_at(levels, scale) for scale in grid]
    best = int(np.argmin(costs))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)])
    found = minimize_scalar(lambda s: _error_at(levels, s), bounds=bounds, method="bounded", options={"xatol": 1e-10})
    return float(found.fun), float(found.x)


def _error_at(levels: Real, scale: float) -> float:
    from scipy.special import ndtr

    placed = levels * scale
    edges = np.concatenate([[-np.inf], (placed[1:] + placed[:-1]) / 2, [np.inf]])
    mass = np.diff(ndtr(edges))
    density = np.exp(-0.5 * edges**2) / np.sqrt(2 * np.pi)
    finite = np.where(np.isfinite(edges), edges, 0.0)
    first = -np.diff(density)
    second = mass - np.diff(finite * density)
    return float((second - 2 * placed * first + placed**2 * mass).sum())


def uniform_error(bits: int) -> float:
    """GMSE of 2^bits equidistant levels around zero."""
    if not 1 <= bits <= 16:
        raise FitError(f"{bits} bits: 1 to 16 are offered")
    half = 2 ** (bits - 1)
    return format_error(tuple(v + 0.5 for v in range(-half, half)))[0]


def sparsity_error(share: float) -> float:
    """GMSE of zeroing the smallest `share` of values."""
    from scipy.special import ndtri

    if not 0 <= share < 1:
        raise FitError(f"a sparsity lies in [0, 1), not {share:g}")
    edge = float(ndtri((1 + share) / 2))
    return share - 2 * edge * float(np.exp(-0.5 * edge * edge) / np.sqrt(2 * np.pi))


def pattern_error(keep: int, group: int) -> float:
    """GMSE of keeping the `keep` largest of every `group` (2:4 is pattern_error(2, 4))."""
    from scipy.integrate import quad
    from scipy.special import bdtr, ndtr

    if not 1 <= keep <= group:
        raise FitError(f"a pattern keeps 1 to {group} of {group}, not {keep}")
    if keep == group:
        return 0.0

    def energy(x: float) -> float:
        below = 2 * float(ndtr(x)) - 1
        dropped = float(bdtr(group - keep - 1, group - 1, below))  # fewer than group - keep others are smaller
        return 2 * x * x * float(np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)) * dropped

    return float(quad(energy, 0, 12, epsabs=1e-12)[0])


def capacity(gmse: float, strength: float, bend: float, ceiling: float = 1.0) -> float:
    """rho = ceiling * tanh(strength * (log_1/4 gmse)^bend): the share of parameters that count."""
    if not 0 <= gmse < 1:
        raise FitError(f"a GMSE lies in [0, 1), not {gmse:g}")
    if gmse == 0:
        return ceiling
    return float(ceiling * np.tanh(strength * (-np.log(gmse) / np.log(4.0)) ** bend))


def equivalent_sparsity(keep: int, group: int) -> float:
    """The unstructured sparsity with the same GMSE as a keep:group pattern."""
    from scipy.optimize import brentq

    aim = pattern_error(keep, group)
    return 0.0 if aim == 0 else float(brentq(lambda s: sparsity_error(s) - aim, 0.0, 1 - 1e-9, xtol=1e-10))
