"""Reconstruction's parts against brute force: rows of input, moments, coordinate descent, GPTQ."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgescale.frontend.graph import constant
from edgescale.quantize.formats import integer
from edgescale.quantize.moments import Moments
from edgescale.quantize.patches import product_of
from edgescale.quantize.rounding import Layout, descend, gptq, reconstruct


def weighted(model):
    return next(node for node in model.ir.graph if node.op_type in ("Conv", "Gemm", "MatMul"))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    pads=st.one_of(st.lists(st.integers(0, 2), min_size=4, max_size=4), st.sampled_from(["SAME_UPPER", "SAME_LOWER"])),
    seed=st.integers(0, 99),
)
def test_rows_times_weights_are_the_convolution(kernel, stride, dilation, groups, pads, seed):
    import onnx
    import onnxruntime
    from onnx import helper, numpy_helper

    if isinstance(pads, str):
        dilation = 1  # ONNX Runtime dilates only with explicit padding
    random = np.random.default_rng(seed)
    w = random.normal(size=(8, 4 // groups, kernel, kernel)).astype(np.float32)
    x = random.normal(size=(3, 4, 9, 8)).astype(np.float32)
    settings = {"auto_pad": pads} if isinstance(pads, str) else {"pads": pads}
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], group=groups, strides=[stride] * 2, dilations=[dilation] * 2, **settings
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", 1, [None, 4, 9, 8])],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(w, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    y = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    made = onnx_ir.from_proto(proto).graph[0]
    product = product_of(made, w.shape)
    for count in (5, 1000):
        rows, wanted = product.pick(x, y, count, 1)
        parts = product.matrix(w).reshape(groups, 8 // groups, -1)
        np.testing.assert_allclose((parts @ rows.transpose(0, 2, 1)).reshape(8, -1), wanted, atol=1e-4)
        assert rows.shape[1] == 3 * min(count, y.shape[2] * y.shape[3])
    np.testing.assert_array_equal(product.weights(product.matrix(w)), w)


def test_rows_of_fully_connected_layers(net, loaded):
    n = net()
    node = weighted(loaded(n.proto(n.gemm("x", 12, 5), shape=(12,))))
    w = constant(node.inputs[1])
    x = np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32)
    product = product_of(node, w.shape)
    matrix = product.matrix(w)
    rows, wanted = product.pick(x, x @ matrix.T, 10, 0)
    np.testing.assert_allclose(matrix @ rows[0].T, wanted, atol=1e-5)


def test_moments_are_those_of_all_rows_at_once():
    random = np.random.default_rng(0)
    x = (random.normal(size=(2, 500, 6)) + 3).astype(np.float32)
    y = random.normal(size=(4, 500)).astype(np.float32) - 5
    moments = Moments()
    for part in np.array_split(np.arange(500), 7):
        moments.update(x[:, part], y[:, part])
    found = moments.summary(centred=True)
    for group in range(2):
        np.testing.assert_allclose(found.xx[group], np.cov(x[group].T.astype(float), bias=True), atol=1e-5)
        for row in range(2):
            own = y[2 * group + row].astype(float)
            expected = ((own - own.mean())[:, None] * x[group]).mean(axis=0)
            np.testing.assert_allclose(found.yx[2 * group + row], expected, atol=1e-4)
    about_zero = moments.summary(centred=False)
    np.testing.assert_allclose(about_zero.xx[0], x[0].T.astype(float) @ x[0] / 500, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_descent_ends_where_no_single_level_can_improve(seed):
    random = np.random.default_rng(seed)
    a = random.normal(size=(1, 30, 5))
    hessian = a.transpose(0, 2, 1) @ a / 30
    target, scale = random.normal(size=(1, 3, 5)), np.full((1, 3, 5), 0.4)
    form = integer(3)
    levels, cost = descend(target, hessian, scale, form)

    def error(q, row):
        gap = q * 0.4 - target[0, row]
        return gap @ hessian[0] @ gap

    for row in range(3):
        found = error(levels[0, row], row)
        assert cost[0, row] == pytest.approx(found, abs=1e-9)
        assert found <= error(form.nearest(target[0, row] / 0.4), row) + 1e-9
        for column, level in itertools.product(range(5), form.table):
            other = levels[0, row].copy()
            other[column] = level
            assert found <= error(other, row) + 1e-9


def test_tiny_layers_come_close_to_the_best_of_all_roundings():
    """Every combination of 2-bit levels at the scale chosen, by brute force."""
    gaps = {"nearest": 0.0, "gptq": 0.0, "adaround": 0.0}
    for seed in range(40):
        random = np.random.default_rng(seed)
        w = random.normal(size=(3, 5))
        x = correlated(random, 5, 400)
        summary, covariance = summary_of(x, x @ w.T), np.cov(x.T, bias=True)
        layout = Layout(integer(2), (3, 5), (1, 5))
        made = reconstruct(w, summary, layout)
        rows = {
            "nearest": layout.form.nearest(w / made.scale) * made.scale,
            "gptq": gptq(w, summary, layout, made.scale).real(),
            "adaround": made.real(),
        }
        every = np.array(list(itertools.product(layout.form.table, repeat=5)))
        for row in range(3):
            off = every * made.scale[row] - w[row]
            power = w[row] @ covariance @ w[row]
            best = np.einsum("rt,ts,rs->r", off, covariance, off).min() / power
            for name, found in rows.items():
                gap = found[row] - w[row]
                error = gap @ covariance @ gap / power
                assert error >= best - 1e-9
                gaps[name] += error - best
    assert gaps["adaround"] < 0.05 * gaps["nearest"]
    assert gaps["gptq"] < 0.3 * gaps["nearest"]


def correlated(random, terms, count=4000):
    """Inputs with a few strong common directions, as activations have."""
    mix = random.normal(size=(terms, terms)) * np.geomspace(1, 0.02, terms)[:, None]
    return random.normal(size=(count, terms)) @ mix


def summary_of(x, y):
    moments = Moments()
    moments.update(x[None].astype(np.float32), y.T.astype(np.float32))
    return moments.summary(centred=True)


def test_methods_rank_by_output_error():
    random = np.random.default_rng(3)
    w = random.normal(size=(24, 32))
    x = correlated(random, 32)
    summary = summary_of(x, x @ w.T)
    layout = Layout(integer(4), (24, 32), (1, 32))
    scale = np.abs(w).max(axis=1, keepdims=True) / 7
    nearest = layout.form.nearest(w / scale) * scale

    def output_error(weights):
        return np.var((x @ (weights - w).T), axis=0).sum()

    errors = {
        "nearest": output_error(nearest),
        "gptq": output_error(gptq(w, summary, layout, scale).real()),
        "adaround": output_error(reconstruct(w, summary, layout).real()),
    }
    assert errors["gptq"] < 0.6 * errors["nearest"]
    assert errors["adaround"] < errors["gptq"]


def test_reconstruction_makes_up_for_a_changed_input():
    """The quantized layers before lost a part of the input; the target is still the output of the whole."""
    random = np.random.default_rng(4)
    w = random.normal(size=(8, 16))
    x = correlated(random, 16)
    seen = 0.8 * x + 0.05 * random.normal(size=x.shape)
    summary = summary_of(seen, x @ w.T)
    layout = Layout(integer(8, narrow=True), (8, 16), (1, 16))
    made = reconstruct(w, summary, layout).real()
    error = np.var(seen @ made.T - x @ w.T, axis=0).sum()
    assert error < 0.25 * np.var(seen @ w.T - x @ w.T, axis=0).sum()


@pytest.mark.parametrize("block", [(1, 8), (1, 16), (6, 16)])
@pytest.mark.parametrize("rule", ["", "m1", "m2"])
def test_blocks_and_scale_rules_hold(block, rule):
    random = np.random.default_rng(5)
    w = random.normal(size=(6, 16))
    x = correlated(random, 16)
    made = reconstruct(w, summary_of(x, x @ w.T), Layout(integer(4), (6, 16), block, rule))
    assert made.scale.shape == (6 // block[0], 16 // block[1])
    assert set(np.unique(made.values)) <= set(range(-8, 8))
    if rule == "m1":
        np.testing.assert_array_equal(np.log2(made.scale), np.rint(np.log2(made.scale)))


def test_dead_inputs_do_not_matter():
    random = np.random.default_rng(6)
    w = random.normal(size=(4, 6))
    x = np.zeros((100, 6))
    summary = summary_of(x, x @ w.T)
    for made in (
        reconstruct(w, summary, Layout(integer(4), (4, 6), (1, 6))),
        gptq(w, summary, Layout(integer(4), (4, 6), (1, 6)), np.abs(w).max(axis=1, keepdims=True) / 7),
    ):
        assert np.isfinite(made.real()).all()
        np.testing.assert_allclose(made.real(), w, atol=np.abs(w).max() / 7)
