"""Query-key reparameterization: the same answers before rounding, one matrix a head in place of two."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest

from edgescale.core.errors import UsageError
from edgescale.core.sparsity import parse_sparsity
from edgescale.core.variant import parse_recipe
from edgescale.sparsify.masks import prune_weights

torch = pytest.importorskip("torch", reason="PyTorch (extra `train`) is not installed")

from edgescale.finetune import Settings  # noqa: E402
from edgescale.finetune.attention import ReparameterizeQueryKey  # noqa: E402
from edgescale.finetune.recover import recover  # noqa: E402
from edgescale.finetune.train import train  # noqa: E402

TOKENS, HEADS, WIDTH = 36, 2, 4


def transformer(n, *, biases=True, between=("Mul",), other_source=False):
    t = n.node("Reshape", [n.conv("x", 3, 8, 2, strides=[2, 2], pads=[0, 0, 0, 0]), n.const(np.array([0, 8, -1]))])
    t = n.node("Transpose", [t], perm=[0, 2, 1])
    t = n.node("LayerNormalization", [t, n.const(n.bias(8) + 1), n.const(n.bias(8))], axis=-1)
    parts = []
    for index, perm in enumerate(([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])):
        source = n.node("Tanh", [t]) if other_source and index == 1 else t
        p = n.node("MatMul", [source, n.const(n.weights(8, 8, fan=8))])
        p = n.node("Add", [p, n.const(n.bias(8) * 3)]) if biases else p
        parts.append(n.node("Transpose", [n.node("Reshape", [p, n.const(np.array([0, -1, HEADS, WIDTH]))])], perm=perm))
    scores = n.node("MatMul", parts[:2], name="scores")
    for op in between:
        scores = n.node(op, [scores, n.const(np.float32(0.5) if op == "Mul" else n.bias(TOKENS))])
    y = n.node("MatMul", [n.node("Softmax", [scores], axis=-1), parts[2]])
    y = n.node("Reshape", [n.node("Transpose", [y], perm=[0, 2, 1, 3]), n.const(np.array([0, TOKENS, 8]))])
    return n.node("ReduceMean", [n.node("Add", [t, y]), n.const(np.array([1]))], keepdims=0)


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("between", [(), ("Mul",), ("Mul", "Add")])
def test_answers_stay(biases, between, net, loaded, onnx_rows, samples):
    n = net(2)
    model = loaded(n.proto(transformer(n, biases=biases, between=between), opset=18))
    graph = model.ir.clone()
    rewrite = ReparameterizeQueryKey()
    rewrite(graph)
    assert rewrite.rewritten == 1
    onnx.checker.check_model(onnx_ir.to_proto(graph), full_check=True)
    x = samples(8).x
    wanted, found = onnx_rows(onnx_ir.to_proto(model.ir), x), onnx_rows(onnx_ir.to_proto(graph), x)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_query_and_key_of_different_values_stay(net, loaded, samples):
    n = net(2)
    model = loaded(n.proto(transformer(n, other_source=True), opset=18))
    assert not ReparameterizeQueryKey()(model.ir.clone()).modified
    data = samples(32)
    with pytest.raises(UsageError, match="holds no attention"):
        train(model, data, data, parse_recipe("w4a8-qat-qkr"), Settings(epochs=1))


def test_a_transformer_trains_and_returns(net, loaded, onnx_rows, samples):
    n = net(2)
    model = loaded(n.proto(transformer(n), opset=18))
    data = samples(64)
    settings = Settings(epochs=2, batch=16)
    rows = {}
    for joint in (False, True):
        made = train(model, data, data, parse_recipe("w8a8-qat-qkr" if joint else "w8a8-qat"), settings)
        proto = onnx_ir.to_proto(made)
        onnx.checker.check_model(proto, full_check=True)
        rows[joint] = onnx_rows(proto, data.x)
        assert any("query_key" in node.name or ".joint" in node.name for node in proto.graph.node) == joint
    wanted = onnx_rows(onnx_ir.to_proto(model.ir), data.x)
    for found in rows.values():
        assert np.sum((found - wanted) ** 2) < 0.01 * np.sum(wanted**2)


@pytest.mark.parametrize("method", ["ft", "gmp", "rigl"])
def test_zeros_of_a_transformer_stay(method, net, loaded, onnx_rows, samples):
    """Weights [inputs, outputs] of MatMul: of every four along the inputs two are zero, also once trained."""
    n = net(2)
    model = loaded(n.proto(n.node("Softmax", [transformer(n)], axis=-1), opset=18))
    data, part = samples(64), parse_sparsity("2:4")
    start = model if method == "gmp" else prune_weights(model, data, part)[0]
    settings = Settings(epochs=2, batch=16)
    made = recover(model, start, data, settings, zeros=part, method=method)
    rounded = train(made, data, data, parse_recipe("w8a8-qat+2:4"), settings, teacher=model)
    for graph in (made.ir, rounded):
        found = []
        for node in graph.graph:
            source = node.inputs[1] if node.op_type == "MatMul" else None
            if source is not None and source.producer() is not None and source.producer().op_type == "DequantizeLinear":
                source = source.producer().inputs[0]
            if source is not None and source.const_value is not None:
                found.append(source.const_value.numpy())
        assert [weights.shape for weights in found] == [(8, 8)] * 3
        for weights in found:
            assert ((weights.T.reshape(-1, 4) != 0).sum(axis=1) <= 2).all()
    dense, plain, got = (onnx_rows(onnx_ir.to_proto(graph), data.x) for graph in (model.ir, made.ir, rounded))
    assert np.sum((got - dense) ** 2) < 1.5 * np.sum((plain - dense) ** 2) + 0.01 * np.sum(dense**2)
