"""Outlier channels planted in a net are taken out again: the float net stays, the quantized one gets close to it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import numpy_helper

from edgescale.core.progress import SILENT
from edgescale.core.variant import parse_recipe
from edgescale.frontend.passes import CanonicalGemm
from edgescale.quantize import quantize
from edgescale.quantize.balance import balance
from edgescale.quantize.channels import find_families


def separable(n):
    """Conv, depthwise, pointwise and a classifier behind global pooling: three families of channels."""
    t = n.relu(n.conv("x", 3, 16, strides=[2, 2]))
    t = n.relu(n.conv(t, 16, 16, group=16))
    t = n.relu(n.conv(t, 16, 16, 1))
    return n.gemm(n.node("Flatten", [n.node("GlobalAveragePool", [t])]), 16, 6)


def residual(n):
    """A stream that two branches are added to: one family with three makers and four readers, and one a branch."""
    t = n.relu(n.conv("x", 3, 16, strides=[2, 2]))
    for _ in range(2):
        t = n.relu(n.node("Add", [n.conv(n.relu(n.conv(t, 16, 16)), 16, 16), t]))
    return n.gemm(n.node("Flatten", [n.node("GlobalAveragePool", [t])]), 16, 6)


def branching(n):
    """Branches of their own ranges side by side, gathered by Concat, and flattened pixels that a Gemm reads."""
    t = n.relu(n.conv("x", 3, 16, strides=[2, 2]))
    left, right = n.relu(n.conv(t, 16, 8, 1)), n.relu(n.conv(t, 16, 12))
    t = n.node("Concat", [left, right, n.node("MaxPool", [t], kernel_shape=[3, 3], pads=[1] * 4)], axis=1)
    t = n.node("MaxPool", [n.relu(n.conv(t, 36, 16))], kernel_shape=[2, 2], strides=[2, 2])
    return n.gemm(n.node("Flatten", [t]), 144, 6)


def planted(proto, families, seed=0, grown=64):
    """The same function, with two channels of each family grown and all spread out a little."""
    tensors = {t.name: t for t in proto.graph.initializer}
    random = np.random.default_rng(seed)

    def scale(name, shape, factors):
        array = numpy_helper.to_array(tensors[name]) * factors.reshape(shape)
        tensors[name].CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))

    for family in families:
        factors = 2.0 ** random.integers(-1, 2, family.free.size)
        factors[random.choice(factors.size, 2, replace=False)] *= grown
        factors[~family.free] = 1.0
        for maker in family.makers:
            own = factors[maker.channels]
            scale(maker.node.inputs[1].name, (-1, *(1,) * (len(maker.node.inputs[1].shape) - 1)), own)
            scale(maker.node.inputs[2].name, (-1,), own)
        for reader in family.readers:
            node = reader.node
            depthwise = node.op_type == "Conv" and node.attributes["group"].as_int() > 1
            shape = (-1, 1, 1, 1) if depthwise else (1, -1) if node.op_type == "Gemm" else (1, -1, 1, 1)
            scale(node.inputs[1].name, shape, 1 / factors[reader.channels])
    return proto


def canonical(model):
    graph = model.ir.clone()
    CanonicalGemm()(graph)
    return graph


def relative_error(proto, made, run, x):
    exact, got = run(proto, x)[0], run(onnx_ir.to_proto(made), x)[0]
    return float(np.sum((got - exact) ** 2) / np.sum(exact**2))


@pytest.mark.parametrize("build", [separable, residual, branching])
@pytest.mark.parametrize("recipe", ["w8a8", "w4a8"])
def test_planted_outliers_cost_little(net, loaded, images, run, build, recipe):
    n = net(8)
    proto = n.proto(build(n), opset=21)
    x = images(64, seed=5).x
    model = loaded(proto)
    plain = relative_error(proto, quantize(model, images(), parse_recipe(recipe)), run, x)
    spoilt = onnx.ModelProto.FromString(proto.SerializeToString())
    planted(spoilt, find_families(canonical(model).graph))
    np.testing.assert_allclose(run(spoilt, x)[0], run(proto, x)[0], rtol=1e-3, atol=1e-4)
    made = quantize(loaded(spoilt), images(), parse_recipe(recipe))
    assert made.metadata_props["edgescale.balanced"]
    assert relative_error(spoilt, made, run, x) < 3 * plain


@pytest.mark.parametrize("build", [separable, residual, branching])
def test_the_float_net_stays_the_same(net, loaded, images, run, build):
    n = net(8)
    proto = n.proto(build(n))
    graph = canonical(loaded(proto))
    spoilt = planted(proto, find_families(graph.graph))
    graph = canonical(loaded(spoilt))
    changed = balance(loaded(spoilt), graph, images(), lambda node: 8, SILENT)
    assert changed
    np.testing.assert_allclose(run(onnx_ir.to_proto(graph), images().x)[0], run(spoilt, images().x)[0], rtol=1e-5)


@pytest.mark.parametrize("build", [separable, residual, branching])
def test_what_is_rescaled_gets_closer(net, loaded, images, run, build, monkeypatch):
    """Mild outliers: where the estimate says it pays, the measured error falls."""
    x, ratios = images(64, seed=5).x, []
    for seed in range(6):
        n = net(seed)
        proto = n.proto(build(n))
        planted(proto, find_families(canonical(loaded(proto)).graph), seed, grown=4)
        made = quantize(loaded(proto), images(), parse_recipe("w8a8"))
        if "edgescale.balanced" in made.metadata_props:
            monkeypatch.setattr("edgescale.quantize.balance.GAIN", np.inf)
            before = quantize(loaded(proto), images(), parse_recipe("w8a8"))
            monkeypatch.undo()
            ratios.append(relative_error(proto, made, run, x) / relative_error(proto, before, run, x))
    assert len(ratios) > 1
    assert np.exp(np.mean(np.log(ratios))) < 0.75
    assert max(ratios) < 1.5


def test_families_end_where_a_factor_would_change_the_function(net, loaded):
    n = net(8)
    t = n.relu6(n.conv("x", 3, 16))  # clamped at 6
    t = n.node("HardSwish", [n.conv(t, 16, 16)])  # not homogeneous
    u = n.relu(n.conv(t, 16, 16, group=4))  # groups of four channels read below: no factor a channel
    u = n.conv(u, 16, 16, group=4)
    u = n.node("Add", [u, n.const(n.weights(1, 16, 12, 12, fan=1))])  # a constant would have to scale too
    u = n.conv(u, 16, 8)
    proto = n.proto(n.node("Concat", [u, n.conv(t, 16, 8)], axis=1))  # leaves the net
    graph = loaded(proto).ir.graph
    assert [node.op_type for node in graph].count("Conv") == 6
    assert find_families(graph) == []


def test_gates_scale_with_what_they_gate(net, loaded, images, run):
    """Squeeze and excite: the gate is computed from the family and multiplies it, one factor a channel throughout."""
    n = net(3)
    t = n.relu(n.conv("x", 3, 16))
    gate = n.node("Sigmoid", [n.conv(n.node("GlobalAveragePool", [t]), 16, 16, 1)])
    t = n.conv(n.node("Mul", [t, gate]), 16, 16, 1)
    proto = n.proto(n.gemm(n.node("Flatten", [n.node("GlobalAveragePool", [t])]), 16, 6))
    families = find_families(canonical(loaded(proto)).graph)
    assert [(len(f.makers), len(f.readers)) for f in families] == [(1, 2), (1, 1)]
    spoilt = onnx.ModelProto.FromString(proto.SerializeToString())
    planted(spoilt, families)
    np.testing.assert_allclose(run(spoilt, images().x)[0], run(proto, images().x)[0], rtol=1e-3, atol=1e-4)
    made = quantize(loaded(spoilt), images(), parse_recipe("w8a8"))
    plain = quantize(loaded(proto), images(), parse_recipe("w8a8"))
    x = images(64, seed=5).x
    assert relative_error(spoilt, made, run, x) < 3 * relative_error(proto, plain, run, x)
