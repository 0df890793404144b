"""Number formats against published levels and errors, and blocks against brute force."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgescale.core.errors import UsageError
from edgescale.quantize.blocks import constrain, quantize_blocks, spread
from edgescale.quantize.formats import gmse, integer, mid_rise, minifloat, quantile, weight_format

# Least mean squared errors of quantizing a standard normal: uniform quantizers (Max 1960), FP4 E2M1, 15 levels.
PUBLISHED = {
    mid_rise(8): 8.8e-5,
    mid_rise(6): 1.04e-3,
    mid_rise(5): 3.50e-3,
    mid_rise(4): 0.01154,
    mid_rise(3): 0.03744,
    mid_rise(2): 0.1188,
    mid_rise(1): 0.3634,
    integer(4, narrow=True): 0.01289,
    minifloat(2, 1): 0.01269,
}


@pytest.mark.parametrize("form", PUBLISHED, ids=lambda f: f"{f.name}-{len(f.levels)}")
def test_gaussian_error_is_the_published_one(form):
    assert gmse(form)[0] == pytest.approx(PUBLISHED[form], rel=0.01)


def test_best_scale_of_fp4():
    assert gmse(minifloat(2, 1))[1] == pytest.approx(0.4871, abs=1e-3)


@pytest.mark.parametrize("form", [integer(3), minifloat(4, 3, reserved=1), quantile(4), mid_rise(2)])
def test_gaussian_error_is_that_of_samples(form):
    error, scale = gmse(form)
    x = np.random.default_rng(0).normal(size=400_000)
    measured = np.mean((form.nearest(x / scale) * scale - x) ** 2)
    assert measured == pytest.approx(error, rel=0.05)


@pytest.mark.parametrize(
    ("form", "kind"),
    [(minifloat(2, 1), ml_dtypes.float4_e2m1fn), (minifloat(4, 3, reserved=1), ml_dtypes.float8_e4m3fn)],
)
def test_minifloats_have_the_levels_of_their_standard(form, kind):
    codes = np.arange(2**form.bits, dtype=np.uint8).view(kind) if form.bits == 8 else None
    known = codes.astype(np.float64) if codes is not None else np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    known = known[np.isfinite(known)]
    assert set(form.levels) == set(known) | set(-known)


def test_normal_float_levels():
    published = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
    published += [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
    np.testing.assert_allclose(quantile(4).levels, published, atol=1e-6)


@given(st.lists(st.floats(-600, 600), min_size=1, max_size=20))
def test_nearest_is_nearest(values):
    x = np.array(values)
    for form in (integer(4), integer(8, narrow=True), minifloat(2, 1), minifloat(4, 3, reserved=1), quantile(4)):
        got = form.nearest(x)
        least = np.abs(x[:, None] - form.table[None]).min(axis=1)
        assert np.isin(got, form.table).all()
        np.testing.assert_allclose(np.abs(x - got), least, atol=1e-12)


def brute_spread(scale, shape, block):
    out = np.empty(shape)
    for index in np.ndindex(shape):
        out[index] = scale[tuple(i // b for i, b in zip(index, block, strict=True))]
    return out


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_block_shape(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    block = tuple(data.draw(st.integers(1, side + 1)) for side in shape)
    w = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=shape)
    symmetric = data.draw(st.booleans())
    made = quantize_blocks(w, integer(4), block, symmetric=symmetric)
    cut = tuple(min(b, s) for b, s in zip(block, shape, strict=True))
    assert made.scale.shape == tuple(-(-s // b) for s, b in zip(shape, cut, strict=True))
    wide = brute_spread(made.scale, shape, cut)
    np.testing.assert_array_equal(spread(made.scale, shape, cut), wide)
    assert made.values.min() >= -8
    assert made.values.max() <= 7
    # Covered ranges lose at most half a step, the coarser zero-point of an asymmetric block another half.
    assert (np.abs(made.real() - w) <= wide * (0.5 if symmetric else 1.0) + 1e-9).all()


def test_asymmetric_blocks_use_all_levels():
    w = np.random.default_rng(1).uniform(0, 1, size=(4, 64))
    plain, shifted = (quantize_blocks(w, integer(4), (1, 64), symmetric=s) for s in (True, False))
    assert np.mean((shifted.real() - w) ** 2) < 0.5 * np.mean((plain.real() - w) ** 2)


def test_searched_scales_err_less_in_every_block():
    w = np.random.default_rng(2).standard_t(3, size=(16, 128))
    full, best = (quantize_blocks(w, integer(4), (1, 32), search=s) for s in (False, True))
    errors = [np.add.reduceat((made.real() - w) ** 2, [0, 32, 64, 96], axis=1) for made in (full, best)]
    assert (errors[1] <= errors[0] + 1e-12).all()
    assert errors[1].sum() < 0.9 * errors[0].sum()


def step_that_covers(row, low, high):
    """The smallest scale, of either sign, under which a row's weights lie between the levels; brute force over weights.

    A covering scale that cannot shrink puts some weight on an end of the levels.
    """
    ends = [float(w) / end for w in row for end in (low, high) if w]
    inside = [s for s in ends if all(low * (1 + 1e-12) <= w / s <= high * (1 + 1e-12) for w in row)]
    return min(inside, key=abs)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 7), st.integers(1, 9), st.integers(0, 999))
def test_signed_scales_are_the_smallest_that_cover(bits, length, seed):
    form = integer(bits)
    w = np.random.default_rng(seed).normal(size=(3, length))
    made = quantize_blocks(w, form, (1, length), signed=True)
    np.testing.assert_array_equal(made.scale, made.scale.astype(np.float32))
    for row, scale in zip(w, made.scale[:, 0], strict=True):
        assert abs(scale) == pytest.approx(abs(step_that_covers(row, *form.limits)), rel=1e-6)
    assert (np.abs(made.real() - w) <= np.abs(made.scale) * 0.5 * (1 + 1e-5)).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_signed_scales_err_less(bits):
    w = np.random.default_rng(3).normal(size=(64, 64))
    for search in (False, True):
        plain, signed = (
            quantize_blocks(w, integer(bits), (1, 16), search=search, signed=signed) for signed in (False, True)
        )
        assert np.mean((signed.real() - w) ** 2) < 0.95 * np.mean((plain.real() - w) ** 2)
        assert (plain.scale > 0).all()
        assert (signed.scale < 0).any()
    # int8 without -128 and tables reach equally far on both sides: nothing to gain from a sign.
    for form in (integer(8, narrow=True), minifloat(2, 1), quantile(4)):
        assert (quantize_blocks(w, form, (1, 16), search=True, signed=True).scale > 0).all()


def test_searched_signed_scales_are_the_best_tried():
    w = np.random.default_rng(4).normal(size=(6, 8)).astype(np.float32).astype(np.float64)
    made = quantize_blocks(w, integer(3), (1, 8), search=True, signed=True)
    for row, found in zip(w, made.real(), strict=True):
        errors = []
        for sign in (1, -1):
            full = max((-sign * row).max() / 4, (sign * row).max() / 3)
            for clip in np.linspace(0.3, 1.0, 36):
                scale = float(np.float32(sign * full * clip))
                errors.append(np.sum((np.clip(np.rint(row / scale), -4, 3) * scale - row) ** 2))
        assert np.sum((found - row) ** 2) == pytest.approx(min(errors), abs=1e-12)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12))
def test_scale_constraints_of_zeroquant_fp(scales):
    s = np.array(scales)
    m1, m2 = constrain(s, "m1"), constrain(s, "m2")
    np.testing.assert_array_equal(np.log2(m1), np.rint(np.log2(m1)))
    assert (m1 >= s * (1 - 1e-6)).all()
    assert (m1 < 2 * s * (1 + 1e-6)).all()
    steps = np.log2(s.max() / m2)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)
    assert (m2 >= s * (1 - 1e-6)).all()


def test_refusals():
    with pytest.raises(UsageError, match="block size"):
        quantize_blocks(np.ones((2, 3)), integer(4), (1,))
    with pytest.raises(UsageError, match="zero-points"):
        quantize_blocks(np.ones((2, 3)), minifloat(2, 1), (1, 3), symmetric=False)
    with pytest.raises(UsageError, match="unknown weight format"):
        weight_format("fp6", 6)
