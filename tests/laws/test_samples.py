"""Sample laws against enumeration, simulation, and published worked values."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from edgescale.laws.errors import FitError
from edgescale.laws.samples.coverage import (
    BetaCoverage,
    fit_beta_coverage,
    fit_pass_until,
    fit_power_coverage,
    pass_at_k,
    pass_until,
)
from edgescale.laws.samples.stopping import (
    Split,
    Verifier,
    best_split,
    difficulty_bins,
    saturating,
    saturation,
    scale_split,
    strategy_by_bin,
)
from edgescale.laws.samples.voting import (
    best_of_majority,
    expansion_budget,
    majority_accuracy,
    voting_limit,
    voting_rate,
)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (6, 1, 3), (7, 3, 4), (4, 0, 2), (4, 4, 2), (6, 5, 6)])
def test_pass_at_k_counts_every_draw(n, c, k):
    draws = [i < c for i in range(n)]
    hits = [any(chosen) for chosen in combinations(draws, k)]
    assert pass_at_k([c], n, k) == pytest.approx(np.mean(hits))


def test_pass_at_k_needs_enough_draws():
    with pytest.raises(FitError, match="pass@9"):
        pass_at_k([1, 2], 8, 9)


def test_beta_coverage_recovers_the_population_and_extrapolates():
    rng = np.random.default_rng(0)
    chance = rng.beta(0.4, 1.6, 4000)
    made = fit_beta_coverage(rng.binomial(50, chance), 50)
    assert (made.alpha, made.beta) == pytest.approx((0.4, 1.6), rel=0.08)
    truth = float(np.mean(1 - (1 - chance) ** 1000))
    assert float(made.predict(1000)) == pytest.approx(truth, abs=0.01)
    assert float(made.plug_in(1)) == pytest.approx(made.alpha / (made.alpha + made.beta))
    assert made.samples_for(float(made.predict(700))) == pytest.approx(700)


def test_anchoring_is_continuous_and_beats_the_others_on_a_mixed_population():
    """The population is no Beta distribution: the anchor corrects what the plug-in gets wrong."""
    rng = np.random.default_rng(1)
    errors = {"naive": [], "plug-in": [], "anchored": [], "power": []}
    for _ in range(20):
        chance = np.where(rng.random(148) < 0.3, rng.beta(0.3, 12, 148), rng.beta(1.2, 1.0, 148))
        counts = rng.binomial(50, chance)
        truth = float(np.mean(1 - (1 - chance) ** 200))
        made = fit_beta_coverage(counts, 50)
        assert float(made.predict(50)) == pytest.approx(made.seen)
        guesses = {
            "naive": made.seen,
            "plug-in": float(made.plug_in(200)),
            "anchored": float(made.predict(200)),
            "power": float(fit_power_coverage(counts, 50).predict(200)),
        }
        for name, guess in guesses.items():
            errors[name].append(abs(guess - truth))
    mean = {name: float(np.mean(values)) for name, values in errors.items()}
    assert mean["anchored"] < min(mean["naive"], mean["power"]) and mean["anchored"] <= mean["plug-in"] * 1.1


def test_anchored_formula():
    made = BetaCoverage(0.5, 2.0, 100, 0.634)
    assert float(made.predict(1000)) == pytest.approx(1 - 0.366 * (100 / 1000) ** 0.5)


def test_power_coverage_gives_its_parameters_back():
    rng = np.random.default_rng(3)
    k = np.arange(1, 101)
    made = fit_power_coverage(rng.binomial(100, rng.beta(0.5, 1.0, 500)), 100)
    assert ((made.predict(k) > 0) & (made.predict(k) < 1)).all() and (np.diff(made.predict(k)) > 0).all()


@pytest.mark.parametrize("counts", [[0, 0, 0, 0], [9, 9, 9, 9], [1, 2]])
def test_a_distribution_not_observed_is_refused(counts):
    with pytest.raises(FitError):
        fit_beta_coverage(counts, 9)


def test_pass_until_is_unbiased_and_lies_on_its_line():
    rng = np.random.default_rng(0)
    draws = 3 + rng.negative_binomial(3, 0.02, 200_000)
    assert np.mean([(3 - 1) / (k - 1) for k in draws]) == pytest.approx(0.02, rel=0.01)
    assert pass_until(3, 101) == pytest.approx(0.02)
    sizes = np.geomspace(1e8, 3e9, 7)
    c, alpha = fit_pass_until(sizes, np.exp(-500 * sizes**-0.25))
    assert (c, alpha) == pytest.approx((500, 0.25), rel=1e-3)


@pytest.mark.parametrize("wrong", [-0.7, -1.0, -2.0])
def test_imperfect_verifiers(vectors, wrong):
    best, reward = vectors["flaws"][str(wrong)]
    made = Verifier((0.58, 0.42), (0.87, 0.13), 1.0, 0.75, wrong)
    # the notebook's classes: easy with weight .58, right in .87 of its samples; hard, right in .13
    assert made.best() == best
    assert made.reward(best) == pytest.approx(reward, abs=2e-4)
    limit, by_class = made.accuracy_limit()
    assert limit == pytest.approx(vectors["flaws"]["limit_accuracy"], abs=1e-6)
    assert by_class == pytest.approx([0.964, 0.374], abs=1e-3)


def test_verifier_reward_equals_simulation_and_cost_shortens():
    made = Verifier((0.5, 0.5), (0.7, 0.2), 0.9, 0.8, -0.5, 0.02)
    rng = np.random.default_rng(0)
    total, runs = 0.0, 40_000
    for _ in range(runs):
        rate = (0.7, 0.2)[rng.random() < 0.5]
        for _ in range(4):
            total -= 0.02
            right = rng.random() < rate
            if rng.random() < (0.9 if right else 0.2):
                total += 1.0 if right else -0.5
                break
    assert made.reward(4) == pytest.approx(total / runs, abs=0.01)
    free = Verifier((0.5, 0.5), (0.7, 0.2), 0.9, 0.8, -0.5)
    assert made.best() <= free.best()


@pytest.mark.parametrize(
    ("chance", "ceiling", "key"), [(0.3, 1, "F1_p.3_eps.01"), (0.1, 1, "F1_p.1_eps.01"), (0.5, 0.8, "F.8_p.5_eps.01")]
)
def test_saturation(vectors, chance, ceiling, key):
    found = saturation(chance, 0.01, ceiling)
    assert found == vectors["ttspm"][key]
    gains = np.diff(saturating(chance, np.arange(60), ceiling))
    assert (gains[found:] <= 0.01).all() and (gains[: found - 1] > 0.01).all()


def test_splits_stay_within_the_budget():
    reference = Split(8, 2, 8 * (1 + 0.5 * 2))
    for budget in (1, 4, 16, 100, 1000):
        made = scale_split(budget, 0.5, reference)
        assert made.solutions >= 1 and made.cost <= budget + 1e-9
    grown = scale_split(1600, 0.5, reference)
    assert grown.solutions / 8 > max(grown.verifications, 1) / 2

    def quality(s, v):
        return 1 - 0.7**s * (0.5 + 0.5 * 0.8**v)

    found = best_split(24, 0.5, quality)
    every = [(s, v) for s in range(1, 25) for v in range(50) if s * (1 + 0.5 * v) <= 24]
    assert quality(found.solutions, found.verifications) == pytest.approx(max(quality(*o) for o in every))


def test_difficulty_bins_choose_by_bin():
    chance = np.linspace(0.01, 0.99, 50)
    bins = difficulty_bins(chance, 5)
    assert np.bincount(bins).tolist() == [10] * 5 and bins[-1] == 0 and bins[0] == 4
    scores = np.stack([np.where(bins < 2, 0.9, 0.2), np.where(bins < 2, 0.5, 0.6)])
    chosen, accuracy = strategy_by_bin(scores, bins, ["parallel", "sequential"])
    assert chosen == ["parallel"] * 2 + ["sequential"] * 3
    assert accuracy == pytest.approx(0.4 * 0.9 + 0.6 * 0.6)


def test_voting_goes_to_its_limit_at_its_rate():
    chances, correct = [[0.5, 0.3, 0.2], [0.3, 0.45, 0.25], [0.6, 0.2, 0.2]], [0, 0, 0]
    limit = voting_limit(chances, correct)
    assert limit == pytest.approx(2 / 3)
    few, many = (majority_accuracy(chances, correct, n, draws=4000) for n in (3, 301))
    assert abs(many - limit) < abs(few - limit) and many == pytest.approx(limit, abs=0.01)
    assert voting_rate(chances, correct) > 1
    assert voting_limit(chances, correct, [[1, 1, 1], [9, 1, 1], [1, 1, 1]]) == pytest.approx(1.0)


def test_best_of_majority_ignores_rare_flattered_answers():
    answers, rewards = ["a", "a", "a", "b", "b", "z"], [0.4, 0.5, 0.3, 0.7, 0.1, 0.99]
    assert best_of_majority(answers, rewards, 0.3) == ["b"]
    assert best_of_majority(answers, rewards, 0.0) == ["z"]
    assert best_of_majority(answers, rewards, 0.9) == ["a"]


def test_expansion_budget_loses_no_child():
    made = expansion_budget([0.1, 0.2, 0.3, 0.3], 13)
    assert made.sum() == 13 and made[0] <= made[1] <= made[2]
