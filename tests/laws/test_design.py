"""What to measure next, and the trends that need no form."""

from __future__ import annotations

import numpy as np
import pytest
from law_worlds import WORLDS

from edgescale.laws.design import first_design, may_be_pareto, most_informative, pareto_probability
from edgescale.laws.errors import ExtrapolationError, FitError
from edgescale.laws.fit import fit
from edgescale.laws.intervals import bootstrap
from edgescale.laws.trends import bit_curves, turning_point


def test_a_first_design_reaches_the_corners():
    grid = np.array([(n, b) for n in (1e5, 1e6, 1e7) for b in (2, 4, 8)], float)
    chosen = first_design({"N": grid[:, 0], "bits": grid[:, 1]}, 4)
    assert len(set(chosen)) == 4
    assert {tuple(grid[i]) for i in chosen} == {(1e5, 2.0), (1e5, 8.0), (1e7, 2.0), (1e7, 8.0)}
    with pytest.raises(FitError):
        first_design({"N": np.ones(4)}, 2)


def test_the_first_pick_leaves_the_least_variance():
    """Against conditioning a Gaussian with the refits' covariance on every candidate in turn."""
    world = WORLDS["weight-precision"]
    rng = np.random.default_rng(0)
    columns = world.inputs(rng)
    made = fit(world.form, columns, world.observe(columns, rng))
    refits = bootstrap(made, 200, 0)
    candidates = {name: values[:25] for name, values in world.inputs(rng).items()}
    logs = np.log(made.form.values(refits.inner, made.form.columns(candidates)))
    covariance = np.cov(logs.T)
    noise = (1.4826 * np.median(np.abs(made.residuals))) ** 2
    left = []
    for i in range(25):
        joint = covariance[:, [i]]
        left.append(np.trace(covariance - joint @ np.linalg.inv(covariance[[i]][:, [i]] + noise) @ joint.T))
    assert most_informative(refits, candidates, 1)[0] == int(np.argmin(left))


def test_chosen_measurements_predict_better_than_random_ones():
    world = WORLDS["power-law"]
    chosen_error, random_error = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        pool = {"n": np.geomspace(1e2, 1e6, 80)}
        truth = world.clean(pool)
        noisy = truth * np.exp(rng.normal(0, 0.01, 80))
        first = np.sort(rng.choice(40, 10, replace=False))  # only small models were measured so far

        def error(rows, noisy=noisy, truth=truth, pool=pool):
            made = fit(world.form, {"n": pool["n"][rows]}, noisy[rows], starts=40, delta=np.inf)
            return float(np.abs(made.predict(pool) / truth - 1).mean())

        made = fit(world.form, {"n": pool["n"][first]}, noisy[first], starts=40, delta=np.inf)
        rest = np.setdiff1d(np.arange(80), first)
        picks = rest[most_informative(bootstrap(made, 150, 0), {"n": pool["n"][rest]}, 4)]
        chosen_error.append(error(np.concatenate([first, picks])))
        random_error.append(error(np.concatenate([first, rng.choice(rest, 4, replace=False)])))
    assert np.mean(chosen_error) < np.mean(random_error)


def test_cost_decides_between_equals():
    world = WORLDS["power-law"]
    rng = np.random.default_rng(1)
    columns = world.inputs(rng)
    refits = bootstrap(fit(world.form, columns, world.observe(columns, rng)), 100, 0)
    candidates = {"n": np.array([1e6, 1e6, 1e3])}
    assert most_informative(refits, candidates, 1, cost=[5.0, 1.0, 1.0])[0] == 1


def test_only_what_is_surely_dominated_is_out():
    best = np.array([[1.0, 5.0], [2.0, 2.0], [3.0, 3.0], [2.5, 2.5], [9.0, 1.0]])
    worst = np.array([[1.0, 5.0], [2.0, 2.0], [4.0, 4.0], [9.0, 9.0], [9.0, 1.0]])
    worst[3] = best[3] + 1
    best[3] = [1.9, 2.5]
    assert may_be_pareto(best, worst).tolist() == [True, True, False, True, True]
    same = np.array([[1.0, 1.0], [1.0, 1.0]])
    assert may_be_pareto(same, same).all()
    with pytest.raises(FitError):
        may_be_pareto(worst + 1, best)


def test_pareto_probability_counts_draws():
    draws = np.array([[[1.0, 2.0], [2.0, 1.0], [3.0, 3.0]], [[1.0, 1.0], [2.0, 2.0], [0.5, 3.0]]])
    assert pareto_probability(draws).tolist() == [1.0, 0.5, 0.5]


def test_a_turn_is_found_where_there_is_one():
    rng = np.random.default_rng(0)
    x = np.geomspace(1, 1000, 40)
    bent = np.exp(0.05 * np.log(x / 50) ** 2 + rng.normal(0, 0.01, 40))
    found = turning_point(x, bent)
    assert found is not None and found.kind == "minimum" and found.at == pytest.approx(50, rel=0.1)
    assert turning_point(x, x**-0.3 * np.exp(rng.normal(0, 0.01, 40))) is None
    assert turning_point(x, 1 / bent).kind == "maximum"
    with pytest.raises(FitError):
        turning_point([1, 2, 3], [1, 2, 3])


def test_bits_are_compared_at_equal_total_bits():
    sizes = np.array([1e6, 4e6, 1.6e7, 6.4e7])
    rows = [(n, b, np.log2(n) * (1 - 0.4 * np.exp(-b / 1.5))) for n in sizes for b in (2, 4, 8)]
    params, bits, quality = map(np.array, zip(*rows, strict=True))
    made = bit_curves(params, bits, quality)
    assert made.predict(4, 4 * 4e6) == pytest.approx(np.log2(4e6) * (1 - 0.4 * np.exp(-4 / 1.5)))
    assert made.best_bits(3.2e7) == 4
    with pytest.raises(ExtrapolationError):
        made.predict(4, 1e12)
    with pytest.raises(FitError):
        made.predict(3, 1e7)
