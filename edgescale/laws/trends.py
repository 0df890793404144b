"""Laws without a formula: interpolation over total bits, and a test for a curve that turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.laws.duals import Real
from edgescale.laws.errors import ExtrapolationError, FitError


@dataclass(frozen=True)
class Turn:
    """`at`: where ln y over ln x turns, inside the data; `kind` "minimum" or "maximum"; `t` how clearly it bends."""

    at: float
    kind: str
    t: float


def turning_point(x: npt.ArrayLike, y: npt.ArrayLike, clear: float = 3.0) -> Turn | None:
    """The turning point of a curve, where a parabola in logs bends with |t| >= `clear` and its vertex lies within x.

    None: the curve is monotonic as far as these data say.
    """
    a, b = np.asarray(x, dtype=np.float64).ravel(), np.asarray(y, dtype=np.float64).ravel()
    if a.size != b.size or a.size < 5 or not ((a > 0) & (b > 0)).all():
        raise FitError("a turning point needs at least 5 pairs of values above 0")
    u = np.log(a) - np.log(a).mean()
    if np.unique(a).size < 4:
        raise FitError("a turning point needs at least 4 distinct inputs")
    rows = np.column_stack([np.ones_like(u), u, u * u])
    found, *_ = np.linalg.lstsq(rows, np.log(b), rcond=None)
    rest = np.log(b) - rows @ found
    variance = float((rest @ rest) / (a.size - 3)) * np.linalg.inv(rows.T @ rows)[2, 2]
    t = float(found[2] / max(np.sqrt(max(variance, 0.0)), 1e-12 * abs(found[2]) + 1e-300))
    vertex = -found[1] / (2 * found[2]) if found[2] != 0 else np.inf
    if abs(t) < clear or not u.min() < vertex < u.max():
        return None
    return Turn(float(np.exp(vertex + np.log(a).mean())), "minimum" if found[2] > 0 else "maximum", t)


@dataclass(frozen=True)
class BitCurves:
    """Quality over log2(total bits), a monotone interpolation for each precision (arXiv:2212.09720)."""

    curves: Mapping[float, tuple[Real, Real]]

    def predict(self, bits: float, total_bits: float) -> float:
        """Quality of a model of `total_bits` = parameters x `bits`; outside the measured sizes an error."""
        from scipy.interpolate import PchipInterpolator

        if bits not in self.curves:
            raise FitError(f"no measurements at {bits:g} bits; measured: {', '.join(f'{b:g}' for b in self.curves)}")
        x, y = self.curves[bits]
        at = float(np.log2(total_bits))
        if not x[0] <= at <= x[-1]:
            raise ExtrapolationError(
                f"2^{at:.2f} total bits lie outside the measured 2^{x[0]:.2f} to 2^{x[-1]:.2f} at {bits:g} bits"
            )
        return float(PchipInterpolator(x, y)(at))

    def best_bits(self, total_bits: float) -> float:
        """The precision of highest quality at a fixed number of total bits, among those measured there."""
        scores = {}
        for bits in self.curves:
            try:
                scores[bits] = self.predict(bits, total_bits)
            except ExtrapolationError:
                continue
        if not scores:
            raise ExtrapolationError(f"no precision was measured around {total_bits:.3g} total bits")
        return max(scores, key=lambda bits: scores[bits])


def bit_curves(params: npt.ArrayLike, bits: npt.ArrayLike, quality: npt.ArrayLike) -> BitCurves:
    """Curves from measured (parameters, bits, quality); at least two sizes a precision."""
    n, b, q = (np.asarray(v, dtype=np.float64).ravel() for v in (params, bits, quality))
    if not n.size == b.size == q.size:
        raise FitError("parameters, bits and quality must be of equal length")
    made = {}
    for level in np.unique(b):
        here = b == level
        x, first = np.unique(np.log2(n[here] * level), return_inverse=True)
        if x.size < 2:
            raise FitError(f"{level:g} bits were measured at one size only")
        made[float(level)] = (x, np.bincount(first, q[here]) / np.bincount(first))
    return BitCurves(made)
