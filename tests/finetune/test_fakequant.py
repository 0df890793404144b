"""Rounding in the loop: values are those of the deployed integers, gradients those of the relaxed function."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgescale.quantize.formats import integer
from edgescale.quantize.rounding import Layout
from edgescale.quantize.units import units_of

torch = pytest.importorskip("torch", reason="PyTorch (extra `train`) is not installed")

from edgescale.finetune.fakequant import Activation, Weights, fake_quantize  # noqa: E402


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["uint8", "int8", "int16"]))
def test_activations_round_as_quantize_linear_does(seed, kind):
    random = np.random.default_rng(seed)
    values = (random.normal(size=500) * random.lognormal()).astype(np.float32)
    units = units_of(float(np.quantile(values, 0.05)), float(np.quantile(values, 0.9)), kind)
    found = Activation(units, learned=True)(torch.from_numpy(values)).detach().numpy()
    np.testing.assert_array_equal(found, units.round_trip(values))


@pytest.mark.parametrize(("low", "high"), [(-8, 7), (0, 255), (-128, 127)])
def test_gradients_are_those_of_the_relaxed_function(low, high):
    """With the rounding's residue r = round(v) - v held where it is, y = scale * (clip(x / scale) + r) is smooth."""
    random = np.random.default_rng(5)
    scale = 0.37
    x = random.uniform(1.3 * low * scale, 1.3 * high * scale, 400)
    weights = random.normal(size=x.shape)
    clipped = np.clip(x / scale, low, high)
    residue = np.rint(clipped) - clipped

    def relaxed(values, s):
        return float(np.sum(weights * s * (np.clip(values / s, low, high) + residue)))

    step = 1e-6
    inside = np.minimum(np.abs(x / scale - low), np.abs(x / scale - high)) > 1e-3
    by_x = np.array([
        (relaxed(x + step * row, scale) - relaxed(x - step * row, scale)) / (2 * step) for row in np.eye(len(x))
    ])  # fmt: skip
    by_scale = (relaxed(x, scale + step) - relaxed(x, scale - step)) / (2 * step)
    value = torch.tensor(x, requires_grad=True)
    learned = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    (fake_quantize(value, learned, low, high) * torch.tensor(weights)).sum().backward()
    np.testing.assert_allclose(value.grad.numpy()[inside], by_x[inside], atol=1e-6)
    np.testing.assert_allclose(learned.grad.item(), by_scale, rtol=1e-5)


@pytest.mark.parametrize("rule", ["statsq", "lsq"])
@pytest.mark.parametrize("block", [(1, 6, 3, 3), (1, 4, 3, 3), (5, 6, 3, 3)])
def test_weights_start_at_the_scales_given(rule, block):
    random = np.random.default_rng(0)
    sides = tuple(-(-s // b) for s, b in zip((5, 6, 3, 3), block, strict=True))
    start = random.uniform(0.05, 0.1, sides).astype(np.float32)
    wide = start
    for axis, side in enumerate(block):
        wide = np.repeat(wide, side, axis).take(range((5, 6, 3, 3)[axis]), axis)
    codes = random.integers(-8, 8, (5, 6, 3, 3))
    weights = codes * wide.astype(np.float64)
    rounder = Weights(weights, start, Layout(integer(4), weights.shape, block), rule)
    latent = torch.from_numpy(weights.astype(np.float32))
    np.testing.assert_array_equal(rounder.codes(latent).numpy(), codes)
    np.testing.assert_allclose(rounder.scale(latent).detach().numpy(), start, rtol=1e-6)


def test_statistic_scales_follow_the_weights_and_learned_ones_do_not():
    weights = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    weights[2] = 0
    latent = torch.from_numpy(weights)
    scales = {}
    for rule in ("statsq", "lsq"):
        rounder = Weights(weights, np.full((4, 1), 0.2), Layout(integer(3), (4, 8), (1, 8)), rule)
        scales[rule] = (rounder.scale(3 * latent) / rounder.scale(latent)).detach().numpy()
    np.testing.assert_allclose(scales["statsq"], [[3], [3], [1], [3]], rtol=1e-6)
    np.testing.assert_allclose(scales["lsq"], 1)


def test_scales_held_let_a_weight_move_alone():
    random = np.random.default_rng(1)
    real = random.normal(size=(3, 4)).astype(np.float32)
    layout = Layout(integer(3, narrow=True), (3, 4), (1, 4))
    rounder = Weights(real, np.abs(real).max(axis=1, keepdims=True) / 3, layout, "statsq")
    fresh = {name: value.clone() for name, value in rounder.state_dict().items()}
    before, moved = torch.from_numpy(real), torch.from_numpy(real * np.array([1, 1, 1, 3], np.float32))
    assert not torch.equal(rounder.codes(moved)[:, :3], rounder.codes(before)[:, :3])
    rounder.hold(before)
    assert torch.equal(rounder.codes(moved)[:, :3], rounder.codes(before)[:, :3])
    rounder.load_state_dict(fresh)
    assert not torch.equal(rounder.codes(moved)[:, :3], rounder.codes(before)[:, :3])
