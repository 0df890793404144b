"""Allocation against enumeration and its own bound."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from edgescale.laws.allocation import allocate, best_single, coverage_of, unbiased_coverage
from edgescale.laws.errors import FitError
from edgescale.laws.samples.coverage import pass_at_k


def _chances(settings: int, problems: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.beta(0.4, 1.2, (settings, problems)) * (rng.random((settings, problems)) < 0.7)


@pytest.mark.parametrize("seed", range(6))
def test_exact_equals_enumeration_and_the_rest_stay_within_their_bounds(seed):
    chances, budget = _chances(3, 25, seed), 6
    every = [c for c in product(range(budget + 1), repeat=3) if sum(c) == budget]
    best = max(coverage_of(c, chances) for c in every)
    exact = allocate(chances, budget, "exact")
    assert sum(exact.counts) == budget and exact.coverage == pytest.approx(best)
    for method in ("greedy", "climb"):
        made = allocate(chances, budget, method)
        assert sum(made.counts) == budget
        assert (1 - 1 / np.e) * best <= made.coverage <= best + 1e-12 <= made.bound + 1e-9
    assert allocate(chances, budget, "climb").coverage == pytest.approx(best, abs=2e-3)


def test_a_mixture_beats_the_best_single_setting_and_the_bound_is_tight():
    chances = _chances(12, 80, 3)
    made, single = allocate(chances, 64), best_single(chances, 64)
    assert made.method == "climb" and made.coverage > single.coverage
    assert made.bound - made.coverage < 0.005


def test_more_budget_never_covers_less():
    chances = _chances(5, 40, 1)
    values = [allocate(chances, budget).coverage for budget in (1, 2, 4, 8, 16, 32)]
    assert values == sorted(values)


def test_unbiased_coverage_of_one_setting_is_pass_at_k():
    counts = np.array([3, 0, 10, 7])
    assert unbiased_coverage([4, 0], [counts, counts * 0], 10) == pytest.approx(pass_at_k(counts, 10, 4))


def test_sure_successes_and_hopeless_problems():
    made = allocate([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], 2)
    assert made.counts == (1, 1) and made.coverage == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("chances", "budget", "method"), [([[0.5]], 0, "auto"), ([[1.5]], 1, "auto"), ([[0.5]], 1, "magic")]
)
def test_nonsense_is_refused(chances, budget, method):
    with pytest.raises(FitError):
        allocate(chances, budget, method)
