"""Activations predict run time where work does not (arXiv:2103.06877): a power law, and how models should grow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.laws.errors import FitError


@dataclass(frozen=True)
class Association:
    """Pearson correlation of a predictor with time: `linear`, and of logarithms; `slope` of the latter."""

    linear: float
    logarithmic: float
    slope: float


def association(predictor: npt.ArrayLike, time: npt.ArrayLike) -> Association:
    """How well one figure (FLOPs, parameters, activations) goes with measured time."""
    x, t = np.asarray(predictor, dtype=np.float64), np.asarray(time, dtype=np.float64)
    if x.size != t.size or x.size < 3 or not ((x > 0) & (t > 0)).all():
        raise FitError("predictor and time must be of equal length, at least 3, and above 0")
    if np.ptp(x) == 0 or np.ptp(t) == 0:
        raise FitError("predictor and time must vary")
    logs = np.log(x), np.log(t)
    slope = float(np.polyfit(*logs, 1)[0])
    return Association(float(np.corrcoef(x, t)[0, 1]), float(np.corrcoef(*logs)[0, 1]), slope)


def compound_scale(multiple: float, alpha: float = 0.8) -> tuple[float, float, float]:
    """(depth, width, resolution) factors for `multiple` times the FLOPs; alpha = 0.8 grows mostly width (dWr)."""
    if multiple <= 0 or not 0 <= alpha <= 1:
        raise FitError("the multiple must be above 0 and alpha within [0, 1]")
    rest = (1 - alpha) / 2
    return float(multiple**rest), float(multiple ** (alpha / 2)), float(multiple ** (rest / 2))
