"""Choices among answers against counting by hand; stopping rules against SciPy and simulation."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, entropy

from edgescale.core.errors import UsageError
from edgescale.runtime import samples
from edgescale.runtime.lm.particles import effective_size, systematic

ANSWERS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=20)


@given(ANSWERS)
def test_majority_and_its_measures(answers: list[str]) -> None:
    counts = Counter(answers)
    chosen = samples.majority(answers)
    assert counts[str(chosen.answer)] == max(counts.values()) and answers.index(str(chosen.answer)) == chosen.index
    assert chosen.share == samples.agreement(answers) == pytest.approx(max(counts.values()) / len(answers))
    assert samples.semantic_entropy(answers) == pytest.approx(entropy(list(counts.values())), abs=1e-12)
    first, second, *_ = [*sorted(counts.values(), reverse=True), 0]
    assert samples.leader_probability(answers) == pytest.approx(beta.sf(0.5, first + 1, second + 1))


@given(ANSWERS, st.data())
def test_scores_by_brute_force(answers: list[str], data: st.DataObject) -> None:
    scores = data.draw(st.lists(st.integers(0, 9), min_size=len(answers), max_size=len(answers)))
    sums = {a: sum(s for b, s in zip(answers, scores, strict=True) if a == b) for a in answers}
    assert sums[str(samples.weighted_majority(answers, scores).answer)] == max(sums.values())
    best = samples.best_of(answers, scores)
    assert scores[best.index] == max(scores) and answers[best.index] == best.answer
    counts = Counter(answers)
    for share in (0.0, 0.3, 0.5, 1.0):
        often = [i for i, a in enumerate(answers) if counts[a] >= share * len(answers)]
        often = often or [i for i, a in enumerate(answers) if counts[a] == max(counts.values())]
        got = samples.best_of_majority(answers, scores, share)
        assert got.index == max(often, key=lambda i: (scores[i], -i))
    accepted = [score > 5 for score in scores]
    passed = [a for a, ok in zip(answers, accepted, strict=True) if ok] or answers
    assert Counter(passed)[str(samples.verified(answers, accepted).answer)] == max(Counter(passed).values())


def test_best_of_majority_resists_a_fooled_scorer() -> None:
    answers, scores = ["a"] * 6 + ["b"] * 3 + ["c"], [0.5] * 6 + [0.6] * 3 + [0.99]
    assert samples.best_of(answers, scores).answer == "c"
    assert samples.best_of_majority(answers, scores, 0.2).answer == "b"
    assert samples.majority(answers).answer == "a"


def test_completions_without_an_answer_do_not_vote() -> None:
    assert samples.majority(["", "", None, "x"]).answer == "x"
    assert samples.best_of(["", "x"], [9.0, 1.0]).answer == "x"
    assert samples.verified(["", "x", "x", "y"], [True, False, False, False]).answer == "x"
    assert samples.majority(["", ""]).answer == ""


def test_the_dirichlet_leader_by_another_route() -> None:
    rng = np.random.default_rng(9)
    for counts in ([5, 2, 1], [1], [3, 3], [30, 5, 5]):
        answers = [i for i, count in enumerate(counts) for _ in range(count)]
        draws = rng.dirichlet([*(np.array(counts) + 1.0), 1.0], 40_000)
        assert samples.dirichlet_leader(answers) == pytest.approx((draws.argmax(axis=1) == 0).mean(), abs=0.05)
        assert samples.dirichlet_leader(answers) == samples.dirichlet_leader(answers)


def test_stopping_early_keeps_the_promise() -> None:
    """Where it stops at 0.95, the leader of two answers is the more frequent one in at least as many runs."""
    rng = np.random.default_rng(4)
    right = stopped = 0
    for _ in range(1500):
        rate, answers = rng.random(), []
        while len(answers) < 60:
            answers.append("a" if rng.random() < rate else "b")
            if samples.leader_probability(answers) >= 0.95:
                stopped += 1
                right += samples.majority(answers).answer == ("a" if rate > 0.5 else "b")
                break
    assert stopped > 1000 and right / stopped > 0.95 - 0.02


def test_verdicts_by_bayes() -> None:
    rng = np.random.default_rng(2)
    good = rng.random(200_000) < 0.3
    passed = np.all(rng.random((2, good.size)) < np.where(good, 0.9, 0.2), axis=0)
    assert samples.verified_probability(2, 0.9, 0.8, 0.3) == pytest.approx(good[passed].mean(), abs=0.01)
    assert samples.verified_probability(0, 0.9, 0.8, 0.3) == pytest.approx(0.3)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=12).filter(lambda w: sum(w) > 1e-6), st.floats(0, 0.999))
def test_systematic_resampling_gives_each_its_due(weights: list[float], uniform: float) -> None:
    children = Counter(systematic(weights, uniform))
    assert children.total() == len(weights)
    for index, weight in enumerate(weights):
        due = len(weights) * weight / sum(weights)
        assert math.floor(due - 1e-6) <= children[index] <= math.ceil(due + 1e-6)
    assert 1 - 1e-9 <= effective_size(weights) <= len(weights) + 1e-9


def test_wrong_numbers_are_named() -> None:
    for call, word in [
        (lambda: samples.majority([]), "no answer"),
        (lambda: samples.best_of(["a"], []), "1 answers but 0"),
        (lambda: samples.best_of(["a"], [math.nan]), "nan"),
        (lambda: samples.weighted_majority(["a"], [-1.0]), "below"),
        (lambda: samples.best_of_majority(["a"], [1.0], 2.0), "share"),
        (lambda: samples.dirichlet_leader(["a"], prior=0.0), "prior"),
        (lambda: samples.verified_probability(1, 2.0, 0.5, 0.5), "rates"),
        (lambda: systematic([0.0, 0.0], 0.5), "weights"),
    ]:
        with pytest.raises(UsageError, match=word):
            call()
