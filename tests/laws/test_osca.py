"""OSCA's counts (bcb_results.json of LeiLiLab/OSCA, put into osca/ of the data folder): allocation, extrapolation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgescale.laws.allocation import allocate, best_single, unbiased_coverage
from edgescale.laws.samples.coverage import fit_beta_coverage, pass_at_k


@pytest.fixture(scope="module")
def counts(law_data):
    path = law_data.folder / "osca" / "bcb_results.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there: no licence allows shipping it")
    found = json.loads(path.read_text())
    return tuple(np.array([found[part][str(s)] for s in range(10)], float) for part in ("train", "test"))


def test_allocation_values(counts, vectors):
    train, test = counts
    for budget, coverage in vectors["osca_bcb"].items():
        made = allocate(train / 300, int(budget))
        assert unbiased_coverage(made.counts, test, 300) == pytest.approx(coverage, abs=5e-6)
        assert made.bound - made.coverage < 1e-3
    single = best_single(train / 300, 64)
    assert unbiased_coverage(single.counts, test, 300) == pytest.approx(0.7389, abs=5e-5)


def test_extrapolation_from_fifty_draws(counts):
    everything = np.concatenate(counts, axis=1).astype(int)
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(5):
        for row in everything:
            made = fit_beta_coverage(rng.hypergeometric(row, 300 - row, 50), 50)
            errors.append(abs(float(made.predict(200)) - pass_at_k(row, 300, 200)))
    assert 100 * np.mean(errors) <= 2.5
