"""Cut ranges and input scales against brute force over candidates, on small layers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgescale.quantize.awq import InputStatistics, Weights, descend_scales, fit_scales, search_scales
from edgescale.quantize.blocks import Blocks, at_scale, quantize_blocks
from edgescale.quantize.clipping import search_clips
from edgescale.quantize.formats import integer, minifloat
from edgescale.quantize.rounding import Layout


def inputs(seed: int, terms: int, count: int = 400) -> np.ndarray:
    """Correlated rows in which two channels stand out."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, terms)) @ random.normal(size=(terms, terms)) * 0.3 + 0.2
    x[:, :2] *= 6
    return x


def statistics(x: np.ndarray) -> InputStatistics:
    return InputStatistics(x.T @ x / len(x), np.abs(x).mean(axis=0), x.mean(axis=0))


def row_losses(weights: np.ndarray, exact: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.mean((x @ (weights - exact).T) ** 2, axis=0)


def rounded(w: np.ndarray, scale: float, zero: int | None) -> np.ndarray:
    """3 bits, by the definition."""
    if zero is None:
        return np.clip(np.rint(w / scale), -4, 3) * scale
    return (np.clip(np.rint(w / scale) + zero, -4, 3) - zero) * scale


def tried(w: np.ndarray, symmetric: bool, signed: bool) -> list[tuple[float, int | None]]:
    """Every scale and zero-point of one block that the search goes through."""
    found: list[tuple[float, int | None]] = []
    for clip in 1 - np.arange(61) / 100:
        if not symmetric:
            low, high = min(w.min(), 0.0), max(w.max(), 0.0)
            scale = float(np.float32((high - low) * clip / 7))
            found.append((scale, int(np.clip(np.rint(-4 - low * clip / scale), -4, 3))))
        elif not signed:
            found.append((float(np.float32(np.abs(w).max() / 3 * clip)), None))
        else:
            for sign in (1, -1):
                full = max((-sign * w).max() / 4, (sign * w).max() / 3)
                found.append((float(np.float32(sign * full * clip)), None))
    return found


@pytest.mark.parametrize(("symmetric", "signed"), [(True, True), (True, False), (False, False)])
def test_the_best_range_of_one_block_a_row(symmetric, signed):
    w, x = np.random.default_rng(0).normal(size=(7, 12)), inputs(1, 12)
    layout = Layout(integer(3), (7, 12), (1, 12), "", signed)
    made = search_clips(w, layout, statistics(x).second, symmetric=symmetric)
    found = row_losses(made.real(), w, x)
    for i, row in enumerate(w):
        every = [row_losses(rounded(row, *one)[None], row[None], x)[0] for one in tried(row, symmetric, signed)]
        assert found[i] == pytest.approx(min(every), rel=1e-3)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 999), st.booleans())
def test_ranges_of_several_blocks_are_chosen_under_each_others_errors(seed, symmetric):
    w, x = np.random.default_rng(seed).normal(size=(9, 22)), inputs(seed, 22)
    layout = Layout(integer(3), (9, 22), (1, 8), "", True)
    second = statistics(x).second
    alone, made = (search_clips(w, layout, second, symmetric=symmetric, alone=own) for own in (True, False))
    assert row_losses(made.real(), w, x).sum() < row_losses(alone.real(), w, x).sum()
    again = search_clips(w, layout, second, symmetric=symmetric, start=made)
    before, after = (row_losses(part.real(), w, x) for part in (made, again))
    assert (after <= before * (1 + 1e-4)).all()
    # The last block was chosen last: nothing that was tried is better beside what the others became.
    for i, row in enumerate(w):
        for one in tried(row[16:], symmetric, True):
            other = made.real()[i].copy()
            other[16:] = rounded(row[16:], *one)
            assert row_losses(other[None], row[None], x)[0] >= before[i] * (1 - 1e-4)


def layers_of(seed: int, form, *, symmetric: bool, shapes=((10, 24), (6, 24)), group: int = 8) -> list[Weights]:
    random = np.random.default_rng(seed)
    return [
        Weights(random.normal(size=shape), Layout(form, shape, (1, group), "", symmetric), symmetric)
        for shape in shapes
    ]


def output_loss(layers: list[Weights], blocks, scale: np.ndarray, x: np.ndarray) -> float:
    """From the rows themselves: (x / s) Q^T beside x W^T."""
    return sum(
        float(np.mean(((x / scale) @ made.real().T - x @ layer.matrix.T) ** 2, axis=0).sum())
        for layer, made in zip(layers, blocks, strict=True)
    )


@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_found_lose_less_than_none(symmetric):
    layers, x = layers_of(3, integer(3), symmetric=symmetric), inputs(4, 24)
    seen = statistics(x)
    scale = search_scales(layers, seen)
    assert scale.max() * scale.min() == pytest.approx(1.0)
    one = np.ones(24)
    without = output_loss(layers, [layer.clipped(one, seen.second, coarse=True) for layer in layers], one, x)
    with_scales = output_loss(layers, [layer.clipped(scale, seen.second, coarse=True) for layer in layers], scale, x)
    assert with_scales <= without * (1 + 1e-6)
    # Outliers of the input weigh more than others.
    assert scale[:2].mean() >= scale[2:].mean()


def rounded_under(layers: list[Weights], blocks, scale: np.ndarray) -> list[np.ndarray]:
    """Each layer rounded to nearest once more: W s under the blocks' scales, as real weights of x."""
    made = []
    for layer, block in zip(layers, blocks, strict=True):
        owner = np.arange(layer.matrix.shape[1]) // block.block_size[1]
        step = block.scale[:, owner]
        if block.zero_point is None:
            levels = layer.layout.form.nearest(layer.matrix * scale / step)
        else:
            zero = block.zero_point[:, owner]
            levels = np.clip(np.rint(layer.matrix * scale / step) + zero, *layer.layout.form.limits) - zero
        made.append(levels * step / scale)
    return made


@pytest.mark.parametrize(
    ("form", "symmetric"), [(integer(3), True), (integer(3), False), (minifloat(2, 1), True)], ids=str
)
def test_a_descent_ends_where_no_single_scale_can_improve(form, symmetric):
    layers, x = layers_of(5, form, symmetric=symmetric), inputs(6, 24)
    second = statistics(x).second
    blocks = [layer.clipped(np.ones(24), second) for layer in layers]

    def loss(scale: np.ndarray) -> float:
        made = rounded_under(layers, blocks, scale)
        return sum(float(row_losses(m, one.matrix, x).sum()) for m, one in zip(made, layers, strict=True))

    scale = np.ones(24)
    for _ in range(20):
        before, scale = loss(scale), descend_scales(layers, [*blocks], scale, second)
        assert loss(scale) <= before * (1 + 1e-9)
        blocks = [quantized_as(layer, made, scale) for layer, made in zip(layers, blocks, strict=True)]
        if loss(scale) >= before * (1 - 1e-12):
            break
    found = loss(scale)
    assert found < 0.95 * loss(np.ones(24))
    for j in range(24):
        for factor in (0.8, 0.9, 0.98, 1.02, 1.1, 1.25):
            other = scale.copy()
            other[j] *= factor
            assert loss(other) >= found * (1 - 1e-6)


def quantized_as(layer: Weights, made: Blocks, scale: np.ndarray) -> Blocks:
    """The same blocks with the levels that the new scale gives."""
    return at_scale(layer.matrix * scale, layer.layout.form, made.block_size, made.scale, made.zero_point)


def test_fitted_scales_beat_their_parts():
    layers, x = layers_of(7, integer(3), symmetric=True, shapes=((40, 96), (24, 96)), group=32), inputs(8, 96, 2000)
    seen = statistics(x)
    one = np.ones(96)
    nearest = [quantize_blocks(part.matrix, part.layout.form, part.layout.block_size, signed=True) for part in layers]
    cut = [layer.clipped(one, seen.second) for layer in layers]
    scale, blocks = fit_scales(layers, seen, nearest=True)
    assert scale is not None
    np.testing.assert_array_equal(scale, scale.astype(np.float32))
    losses = [output_loss(layers, *made, x) for made in ((nearest, one), (cut, one), (blocks, scale))]
    assert losses[1] < 0.7 * losses[0]
    assert losses[2] < 0.85 * losses[1]
    # What is said to be rounded is: the levels are those nearest to W s.
    for layer, made in zip(layers, blocks, strict=True):
        again = quantized_as(layer, made, scale)
        np.testing.assert_array_equal(again.values, made.values)
    only, none = fit_scales(layers, seen, nearest=False)
    assert only is not None
    assert none == []


def test_an_input_of_zeros_scales_nothing():
    layers = layers_of(9, integer(4), symmetric=True)
    scale, blocks = fit_scales(layers, statistics(np.zeros((50, 24))), nearest=True)
    assert scale is None
    assert all(np.isfinite(made.real()).all() for made in blocks)
