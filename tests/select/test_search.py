"""The guided search on families drawn from a known law: the front is found with few measurements."""

from __future__ import annotations

import numpy as np
import pytest

from edgescale.core.errors import UsageError
from edgescale.laws.errors import FitError
from edgescale.laws.forms.family import FAMILY, family_form, family_holds
from edgescale.select.search import guided_search, hypervolume

TRUE = {
    "E": 0.05,
    "A": 4.0,
    "alpha": 0.5,
    "C": 30.0,
    "gamma_w": 0.8,
    "beta": 0.3,
    "kappa": 0.4,
    "F": 2.0,
    "delta": 1.3,
    "eta": 0.35,
}


def family(seed: int):
    sizes, bits, kept = np.meshgrid([5e3, 2e4, 9e4], [2, 3, 4, 6, 8], [1.0, 0.8, 0.65, 0.5], indexing="ij")
    columns = {"N": sizes.ravel(), "P_w": bits.ravel().astype(float), "kept": kept.ravel()}
    errors = FAMILY.with_values(TRUE).predict(columns)
    errors = errors * np.exp(np.random.default_rng(seed).normal(0, 0.01, errors.size))
    return columns, errors, columns["N"] * columns["kept"] * columns["P_w"] / 8


@pytest.mark.parametrize("seed", range(3))
def test_the_front_is_found_with_two_fifths_of_the_measurements(seed):
    columns, errors, cost = family(seed)
    asked = []

    def measure(index: int) -> float:
        asked.append(index)
        return float(errors[index])

    found = guided_search(FAMILY, columns, cost, measure, 0.4, seed)
    assert len(asked) == len(set(asked)) == len(found.measured) <= 0.4 * len(errors)
    rest = [i for i in range(len(errors)) if i not in found.errors]
    assert np.abs(found.predicted[rest] - errors[rest]).mean() < 0.01
    inside = (found.low[rest] <= errors[rest]) & (errors[rest] <= found.high[rest])
    assert inside.mean() > 0.75
    corner = (errors.max() * 1.05, np.log(cost.max()) + 0.1)
    everything = hypervolume(np.column_stack([errors, np.log(cost)]), corner)
    reached = hypervolume(np.column_stack([errors, np.log(cost)])[list(found.front)], corner)
    assert reached >= 0.99 * everything


def test_too_few_measurements_are_refused_before_any_is_made():
    columns, _, cost = family(0)
    with pytest.raises(UsageError, match="needs 11 to begin with"):
        guided_search(FAMILY, columns, cost, lambda i: pytest.fail("measured"), 0.1)


def test_hypervolume_against_a_count_of_small_squares():
    points = np.array([[1, 4], [2, 2], [4, 1], [3, 3], [9, 0]])
    grid = np.stack(np.meshgrid(np.arange(6) + 0.5, np.arange(6) + 0.5), axis=-1).reshape(-1, 2)
    counted = sum(any((p <= cell).all() for p in points) for cell in grid)
    assert hypervolume(points, (6, 6)) == counted


def test_what_cannot_be_made_is_left_out_and_the_search_goes_on():
    columns, errors, cost = family(1)
    broken = set(range(0, 60, 7))
    found = guided_search(FAMILY, columns, cost, lambda i: np.nan if i in broken else float(errors[i]), 0.4)
    tried_broken = broken & set(found.measured)
    assert tried_broken and not tried_broken & (set(found.errors) | set(found.front) | set(found.open))
    assert len(found.measured) <= 24 and np.isfinite(found.predicted).all()


def test_a_law_that_does_not_fit_loses_no_measurement():
    columns, errors, cost = family(2)
    made = {0, 19, 56}  # too few for ten parameters, whatever is tried
    found = guided_search(FAMILY, columns, cost, lambda i: float(errors[i]) if i in made else np.nan, 0.4)
    assert "parameters" in found.trouble and len(found.measured) == 24
    assert set(found.errors) == made & set(found.measured) and set(found.front) <= set(found.errors)
    assert set(found.open) == set(range(60)) - set(found.measured)


def test_what_few_values_of_an_input_cannot_show_is_held():
    columns, _, _ = family(0)
    assert family_holds(columns)[0] == {}
    held, usual = family_holds({"N": [1e3, 1e4], "P_w": [4, 8], "kept": [1.0, 0.5]})
    assert set(held) == {"E", "gamma_w", "delta", "kappa"} and set(usual) == {"gamma_w", "delta", "kappa"}
    # Uniform rounding: the error's power falls by 6.02 dB a bit.
    assert np.exp(-1 / usual["gamma_w"]) == pytest.approx(0.25)


def test_the_law_in_fewer_inputs_is_the_whole_law_with_the_others_terms_gone():
    columns, _, _ = family(0)
    whole = FAMILY.with_values({**TRUE, "F": 0.0, "kappa": 0.0}).predict(columns)
    fewer = family_form(["N", "P_w"])
    part = fewer.with_values({name: TRUE[name] for name in fewer.names}).predict({n: columns[n] for n in ("N", "P_w")})
    np.testing.assert_allclose(part, whole, rtol=1e-12)
    with pytest.raises(FitError, match="inputs N, P_w, kept"):
        family_form([])
