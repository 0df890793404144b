"""How hard a prompt is, told from its tokens: a rule fitted on the calibration prompts, and their bins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgescale.control.generators import DifficultyRule
from edgescale.control.policy import DIFFICULTIES
from edgescale.laws.errors import FitError

BUCKETS = 32
FOLDS = 5
RIDGE = 1.0
Real = npt.NDArray[np.float64]


def fit_difficulty(
    ids: Sequence[Sequence[int]], ease: npt.ArrayLike
) -> tuple[DifficultyRule, npt.NDArray[np.int64], Real]:
    """(rule, bin of every prompt, score of every prompt) from prompts' tokens and the share of right completions.

    Bins and scores of the calibration prompts are those of rules fitted without them (in FOLDS parts), so that what is
    then counted in a bin holds for prompts that the rule has not seen. Raises FitError for fewer than 5 prompts a bin.
    """
    x, y = _features(ids), np.asarray(ease, np.float64)
    if len(y) < 5 * DIFFICULTIES:
        raise FitError(f"{len(y)} prompts cannot tell {DIFFICULTIES} difficulties: give at least {5 * DIFFICULTIES}")
    score = np.empty(len(y))
    parts = np.random.default_rng(0).permutation(len(y)) % FOLDS
    for part in range(FOLDS):
        score[parts == part] = x[parts == part] @ _ridge(x[parts != part], y[parts != part])
    weights = _ridge(x, y)
    cuts = [1 - i / DIFFICULTIES for i in range(1, DIFFICULTIES)]
    edges = np.quantile(x @ weights, cuts)
    rule = DifficultyRule(weights=tuple(map(float, weights)), edges=(float(edges[0]), float(edges[1]), float(edges[2])))
    return rule, (score[:, None] < np.quantile(score, cuts)).sum(axis=1), score


def _features(ids: Sequence[Sequence[int]]) -> Real:
    """[prompts, 2 + BUCKETS]: one, the length, and how many tokens fall into each bucket."""
    counts = np.array([np.bincount(np.asarray(row) % BUCKETS, minlength=BUCKETS) for row in ids], np.float64)
    return np.column_stack([np.ones(len(ids)), counts.sum(axis=1), counts])


def _ridge(x: Real, y: Real) -> Real:
    """Least squares, all but the constant held back by RIDGE."""
    penalty = RIDGE * np.eye(x.shape[1])
    penalty[0, 0] = 0.0
    return np.asarray(np.linalg.solve(x.T @ x + penalty, x.T @ y), np.float64)
