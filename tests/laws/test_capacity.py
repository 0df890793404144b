"""GMSE by quadrature against the check vectors, Monte Carlo and the quantizers' own integral."""

from __future__ import annotations

import numpy as np
import pytest

from edgescale.laws.capacity import (
    capacity,
    equivalent_sparsity,
    format_error,
    pattern_error,
    sparsity_error,
    uniform_error,
)
from edgescale.laws.errors import FitError

FP4 = (-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def test_the_table(vectors):
    found = {f"INT{b}": uniform_error(b) for b in (1, 2, 3, 4, 5, 6, 8)}
    found["FP4"], scale = format_error(FP4)
    found |= {f"S{s}".replace("S0", "S"): sparsity_error(s) for s in (0.5, 0.75, 0.875, 0.9)}
    found |= {f"{n}:{m}": pattern_error(n, m) for n, m in ((2, 4), (1, 4), (4, 8))}
    assert scale == pytest.approx(0.4871, abs=2e-3)
    for name, told in vectors["gmse"].items():
        assert found[name] == pytest.approx(told, rel=0.01), name


def test_quadrature_equals_monte_carlo():
    x = np.random.default_rng(0).standard_normal((400_000, 8))
    energy = (x**2).sum()
    order = np.sort(np.abs(x), axis=1)
    assert pattern_error(4, 8) == pytest.approx((order[:, :4] ** 2).sum() / energy, rel=0.01)
    assert sparsity_error(0.5) == pytest.approx(
        (np.sort(np.abs(x).ravel())[: x.size // 2] ** 2).sum() / energy, rel=0.01
    )
    error, scale = format_error(FP4)
    table = np.array(FP4) * scale
    rounded = table[np.searchsorted((table[1:] + table[:-1]) / 2, x)]
    assert error == pytest.approx(((x - rounded) ** 2).sum() / energy, rel=0.01)


def test_formats_of_the_quantizer_agree():
    formats = pytest.importorskip("edgescale.quantize.formats")
    for form in (formats.integer(4), formats.mid_rise(4), formats.minifloat(2, 1), formats.quantile(4)):
        assert format_error(form) == pytest.approx(formats.gmse(form), rel=1e-4)


def test_a_pattern_is_worth_less_than_free_sparsity():
    assert equivalent_sparsity(2, 4) > 0.4 or pattern_error(2, 4) > sparsity_error(0.5)
    assert sparsity_error(equivalent_sparsity(2, 4)) == pytest.approx(pattern_error(2, 4))
    assert equivalent_sparsity(4, 4) == 0.0


def test_capacity_falls_with_the_error():
    shares = [capacity(uniform_error(b), 0.6, 1.1) for b in (2, 3, 4, 8)]
    assert shares == sorted(shares) and shares[0] > 0 and capacity(0.0, 0.6, 1.1) == 1.0


@pytest.mark.parametrize("call", [lambda: sparsity_error(1.0), lambda: pattern_error(5, 4), lambda: uniform_error(0)])
def test_nonsense_is_refused(call):
    with pytest.raises(FitError):
        call()
