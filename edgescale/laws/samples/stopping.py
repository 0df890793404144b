"""When more samples stop paying: imperfect verifiers, saturation, solving against verifying, difficulty."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.laws.duals import Real
from edgescale.laws.errors import FitError


@dataclass(frozen=True)
class Verifier:
    """Sampling until an imperfect verifier accepts (arXiv:2411.17501).

    Classes of problems with `weights` (summing to 1) and chance `correct` that a sample is right; the verifier accepts
    a right answer with `completeness` and rejects a wrong one with `soundness`. A right answer is worth 1, an accepted
    wrong one `wrong_value`, each sample costs `sample_cost`.
    """

    weights: tuple[float, ...]
    correct: tuple[float, ...]
    completeness: float = 1.0
    soundness: float = 1.0
    wrong_value: float = -1.0
    sample_cost: float = 0.0

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.correct) or abs(sum(self.weights) - 1) > 1e-9 or min(self.weights) < 0:
            raise FitError("weights and correct rates must be of equal length, the weights not negative, summing to 1")
        for value in (*self.correct, self.completeness, self.soundness):
            if not 0 <= value <= 1:
                raise FitError(f"rates lie between 0 and 1, not {value:g}")

    def _parts(self) -> tuple[Real, Real, Real, Real]:
        p, r = np.array(self.weights), np.array(self.correct)
        right, wrong = self.completeness * r, (1 - self.soundness) * (1 - r)
        return p, right, wrong, 1 - right - wrong

    def reward(self, most: int) -> float:
        """Expected reward with at most `most` samples: sum_k sum_i p_i rejected_i^(k-1) (gain_i - cost)."""
        p, right, wrong, rejected = self._parts()
        gain = right + wrong * self.wrong_value - self.sample_cost
        if most < 0:
            raise FitError("a number of samples is not negative")
        powers = rejected[None, :] ** np.arange(most)[:, None]
        return float((p * gain * powers).sum())

    def best(self, most: int = 10_000) -> int:
        """K*: the number of samples with the highest expected reward, `most` where it never falls."""
        p, right, wrong, rejected = self._parts()
        gain = right + wrong * self.wrong_value - self.sample_cost
        steps = (p * gain * rejected[None, :] ** np.arange(most)[:, None]).sum(axis=1)
        totals = np.concatenate([[0.0], np.cumsum(steps)])
        return int(np.argmax(totals))

    def accuracy_limit(self) -> tuple[float, Real]:
        """(overall, by class): the share of accepted answers that are right when sampling never stops."""
        p, right, wrong, _ = self._parts()
        by_class = right / np.maximum(right + wrong, 1e-300)
        return float((p * by_class).sum()), by_class


def saturation(chance: float, tolerance: float, ceiling: float = 1.0) -> int:
    """N*: samples after which one more adds less than `tolerance` to ceiling (1 - (1-p)^N) (arXiv:2505.20522)."""
    if not (0 < chance < 1 and tolerance > 0 and 0 < ceiling <= 1):
        raise FitError("the chance lies strictly between 0 and 1, tolerance above 0, the ceiling in (0, 1]")
    first = tolerance / (ceiling * chance)
    return 0 if first >= 1 else math.ceil(math.log(first) / math.log(1 - chance) - 1e-12)


def saturating(chance: float, samples: npt.ArrayLike, ceiling: float = 1.0) -> Real:
    """F(N) = ceiling (1 - (1-p)^N)."""
    return np.asarray(ceiling * (1 - (1 - chance) ** np.asarray(samples, dtype=np.float64)))


@dataclass(frozen=True)
class Split:
    """`solutions` drawn, each verified `verifications` times, at `cost` in units of one solution."""

    solutions: int
    verifications: int
    cost: float


SOLVE_EXPONENT, VERIFY_EXPONENT = 0.57, 0.39
"""S_opt ~ C^0.57, V_opt ~ C^0.39 (arXiv:2504.01005)."""
VERIFY_FROM = 8.0
"""Generative verification needs at least 8x the compute at which self-consistency matches it: below, only solve."""


def scale_split(budget: float, ratio: float, reference: Split) -> Split:
    """Grow a split known to be good at its cost to `budget`, by the published exponents, within the budget.

    C = S (1 + ratio V); `ratio` is the cost of a verification over that of a solution.
    """
    if budget < 1 or ratio <= 0 or reference.cost <= 0:
        raise FitError("the budget is at least 1 solution, ratio and the reference's cost above 0")
    growth = budget / reference.cost
    verifications = max(0, round(reference.verifications * growth**VERIFY_EXPONENT))
    while verifications and budget < 1 + ratio * verifications:
        verifications -= 1
    solutions = max(
        1, min(round(reference.solutions * growth**SOLVE_EXPONENT), int(budget / (1 + ratio * verifications)))
    )
    return Split(solutions, verifications, solutions * (1 + ratio * verifications))


def best_split(budget: float, ratio: float, quality: Callable[[int, int], float]) -> Split:
    """The (solutions, verifications) of best `quality` within C = S (1 + ratio V) <= budget; the cheaper of equals."""
    if budget < 1 or ratio <= 0:
        raise FitError("the budget is at least 1 solution and the ratio above 0")
    options = [
        Split(s, v, s * (1 + ratio * v))
        for s in range(1, int(budget) + 1)
        for v in range(int((budget / s - 1) / ratio + 1e-9) + 1)
    ]
    return max(options, key=lambda o: (quality(o.solutions, o.verifications), -o.cost))


def difficulty_bins(chance: npt.ArrayLike, bins: int = 5) -> npt.NDArray[np.int64]:
    """Bin of every problem by its (predicted) success rate: equal counts, 0 the easiest (arXiv:2408.03314)."""
    p = np.asarray(chance, dtype=np.float64)
    if bins < 1 or p.size < bins:
        raise FitError(f"{p.size} problems cannot fill {bins} bins")
    made = np.empty(p.size, dtype=np.int64)
    made[np.argsort(-p, kind="stable")] = np.arange(p.size) * bins // p.size
    return made


def strategy_by_bin(scores: npt.ArrayLike, bins: npt.ArrayLike, names: Sequence[str]) -> tuple[list[str], float]:
    """(best strategy of every bin, its accuracy when chosen on one half and scored on the other).

    `scores` [strategies, problems]: accuracy of each strategy at one budget. Two folds, as the paper does, so that the
    choice is not scored on the problems it was made on.
    """
    table, where = np.asarray(scores, dtype=np.float64), np.asarray(bins)
    if table.ndim != 2 or table.shape != (len(names), where.size):
        raise FitError(f"scores must be [{len(names)} strategies, {where.size} problems], not {table.shape}")
    chosen, total = [], 0.0
    for b in range(int(where.max()) + 1):
        members = np.flatnonzero(where == b)
        if members.size == 0:
            raise FitError(f"bin {b} is empty")
        chosen.append(names[int(table[:, members].mean(axis=1).argmax())])
        halves = members[::2], members[1::2] if members.size > 1 else members[::2]
        for here, there in (halves, halves[::-1]):
            if members.size == 1 and there is halves[0]:
                continue
            total += float(table[int(table[:, here].mean(axis=1).argmax()), there].sum())
    return chosen, total / where.size
