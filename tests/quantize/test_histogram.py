"""Streaming histograms against the data they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgescale.quantize.histogram import BINS, Histogram

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


def filled(data, parts=1):
    histogram = Histogram()
    for part in np.array_split(np.asarray(data, np.float32), parts):
        histogram.update(part)
    return histogram


def state(h):
    return (h.minimum, h.maximum, h.zeros, h.exponent, h.start, h.counts.tolist())


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.float32, st.integers(1, 200), elements=FLOATS), st.integers(1, 7), st.randoms())
def test_any_split_and_order_give_the_same_state(data, parts, random):
    shuffled = data.tolist()
    random.shuffle(shuffled)
    assert state(filled(data)) == state(filled(shuffled, parts))


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.float32, st.integers(1, 200), elements=FLOATS))
def test_counts_equal_numpys_on_the_final_grid(data):
    h = filled(data, 3)
    edges = (np.arange(BINS + 1) + h.start) * h.width
    assert h.total == data.size
    assert (h.minimum, h.maximum) == (data.min(), data.max())
    assert edges[0] <= min(0, data.min())
    assert edges[-1] > max(0, data.max())
    nonzero = data[data != 0].astype(np.float64)
    expected = np.histogram(np.append(nonzero, edges[-1]), edges)[0]
    expected[-1] -= 1  # NumPy closes the last bin on the right; the extra value went there
    np.testing.assert_array_equal(h.counts, expected)


@settings(deadline=None, max_examples=40)
@given(
    hnp.arrays(np.float32, st.integers(0, 100), elements=FLOATS),
    hnp.arrays(np.float32, st.integers(0, 100), elements=FLOATS),
)
def test_merging_equals_counting_together(first, second):
    merged = filled(first)
    merged.merge(filled(second))
    assert state(merged) == state(filled(np.concatenate([first, second])))


def test_the_grid_is_fine_enough():
    for data in (np.random.default_rng(0).normal(size=1000), np.abs(np.random.default_rng(0).normal(size=1000)) * 1e-6):
        h = filled(data)
        span = max(data.max(), 0) - min(data.min(), 0)
        assert BINS / 2 - 2 <= span / h.width <= BINS


@pytest.mark.parametrize("shape", ["normal", "relu", "outliers", "far"])
def test_quantiles(shape):
    random = np.random.default_rng(2)
    data = {
        "normal": random.normal(size=50_000),
        "relu": np.maximum(random.normal(size=50_000), 0),
        "outliers": np.append(random.laplace(size=50_000), [200.0, -50.0]),
        "far": random.normal(size=50_000) + 30,
    }[shape].astype(np.float32)
    h = filled(data, 9)
    for fraction in (0.0005, 0.01, 0.3, 0.5, 0.9, 0.999, 0.9999):
        exact = np.quantile(data.astype(np.float64), fraction)
        neighbours = np.quantile(data.astype(np.float64), [max(fraction - 2e-5, 0), min(fraction + 2e-5, 1)])
        slack = h.width + (neighbours[1] - neighbours[0])
        assert abs(h.quantile(fraction) - exact) <= slack, fraction
    assert h.quantile(1.0) == data.max()


def test_memory_does_not_grow():
    h = Histogram()
    for scale in 10.0 ** np.arange(-20, 20):
        h.update(np.random.default_rng(0).normal(size=1000) * scale)
    assert h.counts.shape == (BINS,)
    assert h.total == 40_000


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_not_counted(bad):
    h = filled([1.0, 2.0])
    before = state(h)
    with pytest.raises(ValueError, match="not finite"):
        h.update(np.array([0.5, bad], np.float32))
    assert state(h) == before


def test_zeros_and_nothing():
    assert Histogram().total == 0
    h = filled(np.zeros(10))
    assert (h.zeros, h.total, h.minimum, h.maximum, h.counts.sum()) == (10, 10, 0, 0, 0)
