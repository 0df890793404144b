"""Range choice against brute force, and what holds for any data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgescale.core.variant import OBSERVERS, Recipe
from edgescale.quantize.histogram import Histogram
from edgescale.quantize.observers import choose_range, divergence
from edgescale.quantize.units import units_of


def observed(data, parts=4):
    h = Histogram()
    for part in np.array_split(np.asarray(data, np.float32), parts):
        h.update(part)
    return h


def distributions():
    random = np.random.default_rng(4)
    return {
        "relu": np.maximum(random.normal(size=40_000), 0),
        "laplace": random.laplace(size=40_000),
        "skewed": random.gamma(1.5, size=40_000) - 0.5,
        "outlier": np.append(random.normal(size=40_000), [25.0]),
        "negative": -np.abs(random.standard_t(4, size=40_000)),
    }


def quantization_error(data, low, high):
    """Mean squared error of the very data, quantized by the book."""
    scale = (high - low) / 255
    zero = np.clip(np.round(-low / scale), 0, 255)
    q = np.clip(np.round(data / scale) + zero, 0, 255)
    return np.mean((data - (q - zero) * scale) ** 2)


@pytest.mark.parametrize("name", distributions())
def test_mse_is_as_good_as_a_dense_search_over_the_data(name):
    data = distributions()[name][-8000:].astype(np.float32).astype(np.float64)
    low, high = choose_range(observed(data), Recipe(8, 8, "mse"))
    parts = np.linspace(0.02, 1, 30)
    lows = data.min() * parts if data.min() < 0 else [0.0]
    highs = data.max() * parts if data.max() > 0 else [0.0]
    best = min(quantization_error(data, a, b) for a, b in itertools.product(lows, highs))
    assert quantization_error(data, low, high) <= 1.05 * best
    assert quantization_error(data, low, high) <= 1.001 * quantization_error(
        data, min(data.min(), 0), max(data.max(), 0)
    )


@pytest.mark.parametrize("name", distributions())
def test_percentile_cuts_what_numpy_cuts(name):
    data = distributions()[name].astype(np.float32)
    h = observed(data)
    for share in (99.0, 99.9):
        low, high = choose_range(h, Recipe(8, 8, "percentile", share))
        tail = (100 - share) / 2
        # Neighbouring order statistics, for in sparse tails a quantile between two values is a convention.
        least, most = np.percentile(data, [tail - 0.01, tail + 0.01])
        assert min(least, 0) - h.width <= low <= min(most, 0) + h.width
        least, most = np.percentile(data, [100 - tail - 0.01, 100 - tail + 0.01])
        assert max(least, 0) - h.width <= high <= max(most, 0) + h.width


def plain_divergence(data, low, high, bins):
    """KL of the quantized from the clipped distribution, straight from the definition, level by level."""
    edges, counts = bins
    centers = (edges[:-1] + edges[1:]) / 2
    inside = (centers >= low) & (centers <= high)
    p = counts[inside].astype(float)
    q_source = p.copy()
    p[0] += counts[centers < low].sum()
    p[-1] += counts[centers > high].sum()
    scale = (high - low) / 255
    zero = round(-low / scale)
    levels = [min(max(round(c / scale) + zero, 0), 255) for c in centers[inside]]
    q = np.zeros_like(p)
    for level in set(levels):
        members = [i for i, at in enumerate(levels) if at == level]
        filled = [i for i in members if p[i] > 0]
        for i in filled:
            q[i] = q_source[members].sum() / len(filled)
    p, q = p[p > 0] / p.sum(), q[p > 0] / q.sum()
    if (q == 0).any():
        missing = q == 0
        q = np.where(missing, 1e-4 / missing.sum(), q * (1 - 1e-4))
    return float((p * np.log(p / q)).sum())


@pytest.mark.parametrize("name", ["laplace", "outlier", "relu"])
def test_entropy_finds_the_least_divergence(name):
    data = distributions()[name].astype(np.float32)
    h = observed(data)
    bins = ((np.arange(2049) + h.start) * h.width, h.counts)
    low, high = choose_range(h, Recipe(8, 8, "entropy"))
    random = np.random.default_rng(0)
    for _ in range(5):
        a, b = h.minimum * random.uniform(0.1, 1), h.maximum * random.uniform(0.1, 1)
        a = min(a, 0.0)
        mine = divergence(h.counts.astype(float), h.centers, a, b)
        assert mine == pytest.approx(plain_divergence(data, a, b, bins), rel=1e-6)
    parts = np.linspace(0.05, 1, 24)
    grid = itertools.product(h.minimum * parts if h.minimum < 0 else [0.0], h.maximum * parts)
    best = min(divergence(h.counts.astype(float), h.centers, a, b) for a, b in grid)
    assert divergence(h.counts.astype(float), h.centers, low, high) <= 1.05 * best


def test_an_outlier_tells_the_observers_apart():
    data = np.append(np.random.default_rng(0).normal(size=200_000), [100.0])
    high = {o: choose_range(observed(data), Recipe(8, 8, o))[1] for o in OBSERVERS}
    assert high["minmax"] == 100
    assert high["percentile"] < 6
    assert high["entropy"] < 20
    assert high["mse"] < 100
    assert len({round(v, 3) for v in high.values()}) == 4


@settings(deadline=None, max_examples=80)
@given(
    hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(-1e6, 1e6, width=32)),
    st.sampled_from(OBSERVERS),
)
def test_ranges_of_any_data(data, observer):
    low, high = choose_range(observed(data, 1), Recipe(8, 8, observer))
    assert min(data.min(), 0) <= low <= 0 <= high <= max(data.max(), 0)
    assert (high > low) == bool((data != 0).any())
    units = units_of(low, high)
    assert 0 <= units.zero_point <= 255
    assert units.scale > 0
    assert float(np.float32(units.scale)) == units.scale
    assert (units.quantize(np.zeros(1)).astype(int) - units.zero_point)[0] == 0
    if high - low > 1e-20:
        ends = (np.array([0, 255]) - units.zero_point) * units.scale
        assert abs(ends[0] - low) <= 0.51 * units.scale
        assert abs(ends[1] - high) <= 0.51 * units.scale


def test_dead_and_vanishing_tensors_have_valid_units():
    for low, high in ((0.0, 0.0), (0.0, 1e-40), (-1e-35, 0.0)):
        units = units_of(low, high)
        assert (units.scale, units.zero_point) == (pytest.approx(1 / 255), 0)


@pytest.mark.parametrize("name", distributions())
def test_robust_clips_only_where_that_halves_the_error(name):
    data = distributions()[name].astype(np.float32).astype(np.float64)
    h = observed(data)
    full = (min(data.min(), 0.0), max(data.max(), 0.0))
    low, high = choose_range(h, Recipe(8, 8, "robust"))
    best = choose_range(h, Recipe(8, 8, "mse"))
    gain = quantization_error(data, *full) / max(quantization_error(data, *best), 1e-30)
    if gain > 2.2:
        assert (low, high) == best
    elif gain < 1.8:
        assert (low, high) == pytest.approx(full)


def test_robust_is_the_default_and_leaves_out_one_value_in_millions():
    data = np.random.default_rng(0).normal(size=2_000_000)
    assert Recipe(8, 8).observer == "robust"
    assert choose_range(observed(data), Recipe(8, 8))[1] == pytest.approx(data.max())
    assert choose_range(observed(np.append(data, 40.0)), Recipe(8, 8))[1] < 20
