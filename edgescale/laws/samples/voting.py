"""Voting: where majority and weighted voting end, how fast, and answers chosen from those frequent enough."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from edgescale.laws.duals import Real
from edgescale.laws.errors import FitError


def _answers(chances: npt.ArrayLike) -> Real:
    table = np.atleast_2d(np.asarray(chances, dtype=np.float64))
    if (table < 0).any() or not np.allclose(table.sum(axis=1), 1, atol=1e-6):
        raise FitError("every problem's answer probabilities must be non-negative and sum to 1")
    return table


def voting_limit(chances: npt.ArrayLike, correct: npt.ArrayLike, scores: npt.ArrayLike | None = None) -> float:
    """Accuracy of voting as samples go to infinity (arXiv:2408.00724).

    `chances` [problems, answers]; `correct` [problems] the right answer's index; `scores` mean reward an answer
    ([problems, answers]) for weighted voting. Ties share.
    """
    table = _answers(chances)
    weight = table if scores is None else table * np.asarray(scores, dtype=np.float64)
    right = np.asarray(correct, dtype=np.int64)
    top = weight >= weight.max(axis=1, keepdims=True) * (1 - 1e-12)
    return float((top[np.arange(right.size), right] / top.sum(axis=1)).mean())


def voting_rate(chances: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """c of the error's decay O(c^-n) towards the limit: exp of the least Chernoff exponent over problems.

    A problem whose two most likely answers have p > q settles as (1 - (sqrt p - sqrt q)^2)^n.
    """
    table = np.sort(_answers(chances), axis=1)[:, ::-1]
    second = table[:, 1] if table.shape[1] > 1 else np.zeros(table.shape[0])
    gap = (np.sqrt(table[:, 0]) - np.sqrt(second)) ** 2
    return float(1 / max(float((1 - gap).max()), 1e-300))


def majority_accuracy(
    chances: npt.ArrayLike, correct: npt.ArrayLike, samples: int, seed: int = 0, draws: int = 2000
) -> float:
    """Accuracy of a majority of `samples`, by simulation; ties are broken evenly."""
    table, right = _answers(chances), np.asarray(correct, dtype=np.int64)
    if samples < 1:
        raise FitError("a vote needs at least 1 sample")
    rng = np.random.default_rng(seed)
    won = 0.0
    for row, answer in zip(table, right, strict=True):
        votes = rng.multinomial(samples, row / row.sum(), size=draws)
        top = votes == votes.max(axis=1, keepdims=True)
        won += float((top[:, answer] / top.sum(axis=1)).mean())
    return won / right.size


def best_of_majority(answers: Sequence[Hashable], rewards: Sequence[float], share: float, k: int = 1) -> list[Hashable]:
    """The k answers of highest reward among those given by at least `share` of the samples (arXiv:2510.03199).

    `share` ~ 1/C*, C* how much more often the reference model gives the best answer than ours; an answer's reward is
    the highest any of its samples got. Where none is frequent enough the most frequent ones compete.
    """
    if len(answers) != len(rewards) or not answers or not 0 <= share <= 1 or k < 1:
        raise FitError("give as many rewards as answers, at least one, a share in [0, 1] and k of at least 1")
    count: dict[Hashable, int] = {}
    best: dict[Hashable, float] = {}
    for answer, reward in zip(answers, rewards, strict=True):
        count[answer] = count.get(answer, 0) + 1
        best[answer] = max(best.get(answer, -np.inf), reward)
    frequent = [a for a, c in count.items() if c >= share * len(answers)]
    if not frequent:
        most = max(count.values())
        frequent = [a for a, c in count.items() if c == most]
    return sorted(frequent, key=lambda a: -best[a])[:k]


def expansion_budget(rewards: npt.ArrayLike, budget: int, temperature: float = 0.1) -> npt.NDArray[np.int64]:
    """REBASE: children of each node of a search tree, Round(budget softmax(reward/temperature)), summing to budget.

    Rounded by largest remainder, so that no child is lost or invented.
    """
    r = np.asarray(rewards, dtype=np.float64)
    if not r.size or budget < 0 or temperature <= 0:
        raise FitError("give at least one reward, a budget of at least 0 and a temperature above 0")
    weight = np.exp((r - r.max()) / temperature)
    exact = budget * weight / weight.sum()
    made: npt.NDArray[np.int64] = np.floor(exact).astype(np.int64)
    left = budget - int(made.sum())
    made[np.argsort(-(exact - made), kind="stable")[:left]] += 1
    return made
