"""The guided search on families drawn from a known law: the front is found with few measurements."""

from __future__ import annotations

import numpy as np
import pytest

from edgescale.core.errors import UsageError
from edgescale.laws.forms.family import FAMILY
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
