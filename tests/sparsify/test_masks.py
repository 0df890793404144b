"""Zeros lie as the pattern says, the others make up for them, and quantizers keep them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.core.recipe import parse_recipe
from edgescale.core.sparsity import parse_sparsity
from edgescale.frontend.graph import constant
from edgescale.quantize import quantize
from edgescale.sparsify import sparsify
from edgescale.sparsify.masks import Row, choose, prune_weights, refit, update

_SPEC = importlib.util.spec_from_file_location("sparse_nets", Path(__file__).with_name("sparse_nets.py"))
sparse_nets = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sparse_nets)


def convolutions(seed: int = 0):
    net = sparse_nets.Net(seed)
    x = net.unary("Relu", net.conv("x", 16))
    x = net.unary("Relu", net.conv(x, 16))
    return net.model(net.head(net.unary("Relu", net.conv(x, 24, 1)), 5, flat=False))


def problem(seed: int = 0, outputs: int = 6, inputs: int = 16):
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((400, inputs)) @ rng.standard_normal((inputs, inputs))
    return rng.standard_normal((outputs, inputs)), mixed.T @ mixed / 400


@pytest.mark.parametrize(("text", "n", "m"), [("2:4", 2, 4), ("1:4", 1, 4), ("4:8", 4, 8)])
def test_n_of_m_along_the_input_channels(text, n, m):
    model, densities = prune_weights(convolutions(), sparse_nets.samples(), parse_sparsity(text))
    for node in model.ir.graph:
        if str(node.name) in densities:
            weights = np.moveaxis(constant(node.inputs[1]), 1, -1).reshape(-1, m)
            assert ((weights != 0).sum(axis=1) <= n).all()
            assert densities[str(node.name)] == pytest.approx(n / m)


def test_blocks_of_four_input_channels():
    model, densities = prune_weights(convolutions(), sparse_nets.samples(), parse_sparsity("1x4:0.75"))
    for node in model.ir.graph:
        if str(node.name) in densities:
            blocks = (np.moveaxis(constant(node.inputs[1]), 1, -1).reshape(-1, 4) != 0).any(axis=1)
            assert blocks.mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("text", ["2:4", "1x4:0.5", "u0.6"])
def test_an_update_beats_magnitude(text):
    part = parse_sparsity(text)
    for seed in range(5):
        weights, xx = problem(seed)
        row = Row(weights.shape[1], 1)
        updated = update(weights, xx, weights @ xx, part, row)
        plain = np.where(choose(weights**2, part, row), weights, 0.0)
        assert (updated != 0).sum() == (plain != 0).sum()
        error = [float(np.einsum("ot,tu,ou->", d, xx, d)) for d in (updated - weights, plain - weights)]
        assert error[0] < error[1]


def test_the_refit_is_the_least_squares_solution():
    weights, xx = problem()
    mask = np.random.default_rng(1).random(weights.shape) < 0.5
    found = refit(weights @ xx, xx, mask)
    root = np.linalg.cholesky(xx).T
    for row, kept, expected in zip(found, mask, weights, strict=True):
        solved = np.linalg.lstsq(root[:, kept], root @ expected, rcond=None)[0]
        np.testing.assert_allclose(row[kept], solved, rtol=1e-6, atol=1e-9)
        assert not row[~kept].any()


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8-adaround", "w4a8-gptq", "w8a8-cle", "w4a16-g4", "w8a8-bc"])
def test_every_quantizer_keeps_the_zeros(recipe):
    model, densities = prune_weights(convolutions(), sparse_nets.samples(), parse_sparsity("2:4"))
    quantized = quantize(model, sparse_nets.samples(), parse_recipe(recipe))
    found = 0
    for node in quantized.graph:
        if str(node.name) not in densities:
            continue
        stored = node.inputs[1].producer().inputs[0].const_value.numpy().astype(np.int32)
        weights = stored if node.op_type != "Conv" else np.moveaxis(stored, 1, -1)
        if node.op_type == "Conv":
            assert ((weights.reshape(-1, 4) != 0).sum(axis=1) <= 2).all(), node.name
            found += 1
    assert found == 2


def test_recipes_name_their_sparsity():
    for text in (
        "w8a8+ch0.5",
        "w4a8-gptq+2:4",
        "fp32+1x4:0.75",
        "w8a8+ch0.5b+u0.9",
        "w8a8+auto",
        "w8a8+ch0.5i",
        "w4a8-qat+ch0.5",
    ):
        assert str(parse_recipe(text)) == text
        assert parse_recipe(text).sparsity
    assert str(parse_recipe("fp4-g32+ch0.5-simulated")) == "fp4-g32+ch0.5-simulated"
    assert parse_recipe("fp32+ch0.5").is_float
    for text in ("w8a8+4:4", "w8a8+3", "w8a8+ch0", "w8a8+2:4+u0.5", "w8a8+"):
        with pytest.raises(UsageError):
            parse_recipe(text)


def test_recipes_name_how_training_makes_up_for_it():
    for text, recovery in {
        "w8a8+ch0.5-ft": "ft",
        "fp32+u0.9-gmp": "gmp",
        "w4a8+ch0.6+2:4-rigl": "rigl",
        "w8a8+1x4:0.75-dsl": "dsl",
        "w4a8-qat+2:4": "ft",
        "w8a8-qat+u0.8-gmp": "gmp",
        "w8a8+auto-ft": "ft",
    }.items():
        assert (str(parse_recipe(text)), parse_recipe(text).recovery) == (text, recovery)
        assert parse_recipe(text).needs_training
    assert str(parse_recipe("w4a8-qat+2:4-ft")) == "w4a8-qat+2:4"
    assert not parse_recipe("w8a8+u-0.5").needs_training
    for text, words in {
        "w8a8+ch0.5-rigl": "moves zeros",
        "w8a8+2:4-dsl": "fixes the density",
        "w8a8+auto-gmp": "towards a share",
        "w8a8+ch0.5-ft+2:4": "unknown sparsity",
        "w8a8+ch0.5-xx": "unknown sparsity",
        "w4a8-qat-qkr+2:4": "fills their zeros",
    }.items():
        with pytest.raises(UsageError, match=words):
            parse_recipe(text)


def test_channels_first_then_zeros():
    model, report = sparsify(convolutions(), sparse_nets.samples(), parse_recipe("fp32+2:4+ch0.6").sparsity)
    before, after = (sum(pair[i] for pair in report["macs"].values()) for i in (0, 1))
    assert after <= 0.6 * before
    assert set(report["density"].values()) == {0.5}
    assert not model.quantized


def test_automatic_sparsity_bears_the_tolerance():
    from edgescale.sparsify.tolerance import prune_automatically

    model, data = convolutions(), sparse_nets.samples(32)
    loose = prune_automatically(model, data, tolerance=0.5)
    assert loose.share < 1
    assert prune_automatically(model, data, tolerance=0.0).share == 1
    with pytest.raises(UsageError, match="at least 8"):
        prune_automatically(model, sparse_nets.samples(4))


def test_layers_too_narrow_are_refused():
    net = sparse_nets.Net(0)
    narrow = net.model(net.conv("x", 5))
    with pytest.raises(UnsupportedModelError, match="no layer"):
        prune_weights(narrow, sparse_nets.samples(), parse_sparsity("2:4"))
