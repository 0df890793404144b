"""Choosing among N completions, and when to stop asking for more: pure functions on answers and scores.

A controller calls a rule of choice (`majority`, `weighted_majority`, `best_of`, `best_of_majority`, `verified`) on the
answers so far, and after each sample a measure (`agreement`, `semantic_entropy`, `leader_probability`,
`dirichlet_leader`, `verified_probability`) which it holds against a threshold of its own. An answer is any hashable
value; "" and None stand for a completion without one and are never chosen while there is another. Answers that mean
the same must be equal: pass them in one spelling, or the numbers of their clusters.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from edgescale.core.errors import UsageError

NOTHING = ("", None)
"""What stands for a completion without an answer."""
_DRAWS = 2000


@dataclass(frozen=True)
class Choice:
    """The chosen answer, the first sample that gave it (its best one where scores count) and its share of the votes."""

    answer: Hashable
    index: int
    share: float


def majority(answers: Sequence[Hashable]) -> Choice:
    """The most frequent answer; of equally frequent ones that given first."""
    return weighted_majority(answers, [1.0] * len(answers))


def weighted_majority(answers: Sequence[Hashable], weights: Sequence[float]) -> Choice:
    """The answer with the largest sum of `weights` >= 0; share is of the sum. Ties: that given first."""
    _check(answers, weights, least=0.0)
    totals = _totals(answers, weights)
    best = max(totals, key=lambda answer: totals[answer])
    whole = math.fsum(totals.values())
    return Choice(best, list(answers).index(best), totals[best] / whole if whole else 0.0)


def best_of(answers: Sequence[Hashable], scores: Sequence[float]) -> Choice:
    """The answer of the highest score; share is how many gave the same. Ties: that given first."""
    _check(answers, scores)
    given = _given(answers)
    index = max(given, key=lambda i: (scores[i], -i))
    return Choice(answers[index], index, sum(answers[i] == answers[index] for i in given) / len(given))


def best_of_majority(answers: Sequence[Hashable], scores: Sequence[float], share: float = 0.1) -> Choice:
    """Best-of-Majority: the highest score among answers that at least `share` of the samples gave.

    Where no answer is as frequent, among the most frequent ones. An imperfect scorer is so kept from an answer that
    hardly any sample gives. Raises UsageError for a share outside [0, 1].
    """
    _check(answers, scores)
    if not 0 <= share <= 1:
        raise UsageError(f"share must lie in [0, 1], not {share}")
    given = _given(answers)
    totals = _totals(answers, [1.0] * len(answers))
    least = min(share * len(given), max(totals.values()))
    index = max((i for i in given if totals[answers[i]] >= least), key=lambda i: (scores[i], -i))
    return Choice(answers[index], index, totals[answers[index]] / len(given))


def verified(answers: Sequence[Hashable], accepted: Sequence[bool]) -> Choice:
    """The most frequent answer among those a verifier accepted; where it accepted none, among all."""
    if len(answers) != len(accepted):
        raise UsageError(f"{len(answers)} answers but {len(accepted)} verdicts")
    if not any(accepted[i] for i in _given(answers)):
        return majority(answers)
    return weighted_majority(answers, [1.0 if passed else 0.0 for passed in accepted])


def agreement(answers: Sequence[Hashable]) -> float:
    """Share of the most frequent answer."""
    return majority(answers).share


def semantic_entropy(answers: Sequence[Hashable], weights: Sequence[float] | None = None) -> float:
    """Entropy over classes of equal answers, in nats: 0 where all agree. `weights` >= 0: for instance probabilities."""
    weights = [1.0] * len(answers) if weights is None else weights
    _check(answers, weights, least=0.0)
    totals = _totals(answers, weights)
    whole = math.fsum(totals.values())
    if whole <= 0:
        raise UsageError("weights must not all be 0")
    return math.fsum(-t / whole * math.log(t / whole) for t in totals.values() if t > 0)


def leader_probability(answers: Sequence[Hashable]) -> float:
    """Posterior probability that the leader is more frequent than the runner-up, among those two (Beta(1, 1) prior).

    Exact: P(Beta(a + 1, b + 1) > 1/2) for a and b votes. 1/2 for a tie; stop when it reaches, for example, 0.95.
    """
    _check(answers, [0.0] * len(answers))
    counts = sorted(_totals(answers, [1.0] * len(answers)).values(), reverse=True)
    return lead_probability(int(counts[0]), int(counts[1]) if len(counts) > 1 else 0)


@cache
def lead_probability(a: int, b: int) -> float:
    """P(Beta(a + 1, b + 1) > 1/2): how likely an answer with `a` votes is more frequent than one with `b`."""
    # The regularized incomplete beta function at 1/2 is a tail of a binomial of a + b + 1 fair coins.
    coins = a + b + 1
    below = sum(math.comb(coins, k) for k in range(a + 1))
    return below / (1 << coins)


def dirichlet_leader(answers: Sequence[Hashable], prior: float = 1.0, seed: int = 0) -> float:
    """Posterior probability that the leader is the most frequent of all answers, one not seen yet included.

    Dirichlet with `prior` a seen answer and `prior` for all unseen ones together, by 2,000 seeded draws (standard
    error below 0.012). Raises UsageError for a prior that is not positive.
    """
    if not prior > 0:
        raise UsageError(f"prior must be positive, not {prior}")
    _check(answers, [0.0] * len(answers))
    counts = sorted(_totals(answers, [1.0] * len(answers)).values(), reverse=True)
    draws = np.random.default_rng(seed).gamma([*(c + prior for c in counts), prior], size=(_DRAWS, len(counts) + 1))
    return float((draws.argmax(axis=1) == 0).mean())


def verified_probability(accepted: int, sensitivity: float, soundness: float, prior: float) -> float:
    """Probability that an answer accepted in `accepted` independent verdicts is right.

    sensitivity: how often a right answer is accepted; soundness: how often a wrong one is rejected; prior: share of
    right answers. Stop when it reaches the goal. Raises UsageError for numbers outside [0, 1].
    """
    if accepted < 0 or not all(0 <= value <= 1 for value in (sensitivity, soundness, prior)):
        raise UsageError(f"rates must lie in [0, 1]: {sensitivity}, {soundness}, {prior}; verdicts not below 0")
    right = prior * sensitivity**accepted
    wrong = (1 - prior) * (1 - soundness) ** accepted
    return right / (right + wrong) if right + wrong else 0.0


def _given(answers: Sequence[Hashable]) -> list[int]:
    given = [i for i, answer in enumerate(answers) if answer not in NOTHING]
    return given or list(range(len(answers)))


def _totals(answers: Sequence[Hashable], weights: Sequence[float]) -> dict[Hashable, float]:
    totals: dict[Hashable, float] = {}
    for i in _given(answers):
        totals[answers[i]] = totals.get(answers[i], 0.0) + weights[i]
    return totals


def _check(answers: Sequence[Hashable], values: Sequence[float], least: float = -math.inf) -> None:
    if not answers:
        raise UsageError("there is no answer to choose from")
    if len(answers) != len(values):
        raise UsageError(f"{len(answers)} answers but {len(values)} scores")
    for value in values:
        if not math.isfinite(value) or value < least:
            raise UsageError(f"score {value} is not finite or is below {least}")
