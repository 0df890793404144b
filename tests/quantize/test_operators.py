"""Every operator that runs in int8, operands of every kind, and weights and activations at their extremes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgescale.core.variant import Recipe
from edgescale.quantize import float_nodes


def one(n, op, **attributes):
    t = n.conv("x", 3, 8)
    return n.node("Flatten", [n.node(op, [t], **attributes)])


def squeeze_and_excite(n):
    t = n.relu(n.conv("x", 3, 8))
    s = n.node("GlobalAveragePool", [t])
    s = n.relu(n.conv(s, 8, 4, 1))
    s = n.node("HardSigmoid", [n.conv(s, 4, 8, 1)])
    return n.node("Mul", [t, s])


def constants_as_operands(n):
    t = n.relu(n.conv("x", 3, 8))
    t = n.node("Mul", [t, n.const(n.random.uniform(0.5, 2, (1, 8, 12, 1)).astype(np.float32))])
    t = n.node("Sub", [n.const(np.float32(1)), t])
    t = n.node("Add", [t, n.const(n.random.normal(size=(12, 12)).astype(np.float32))])
    return n.node("Concat", [t, n.const(n.random.normal(size=(1, 2, 12, 12)).astype(np.float32) * 3)], axis=1)


def padded(n):
    t = n.relu(n.conv("x", 3, 4))
    t = n.node("Pad", [t, n.const(np.array([0, 1, 1, 1, 0, 0, 1, 1])), n.const(np.float32(-2))])
    return n.conv(t, 5, 4)


def softmax_in_concat(n):
    t = n.node("Flatten", [n.node("GlobalAveragePool", [n.conv("x", 3, 6)])])
    return n.node("Concat", [n.node("Softmax", [t], axis=1), t, n.node("Sigmoid", [t])], axis=1)


def matmul_of_rows(n):
    t = n.node("Reshape", [n.relu(n.conv("x", 3, 8)), n.const(np.array([0, 8, 144]))])
    t = n.node("Transpose", [t], perm=[0, 2, 1])
    t = n.node("MatMul", [t, n.const(n.weights(8, 6, fan=8))])
    return n.relu(n.node("Add", [t, n.const(n.bias(6))]))


def read_thrice(n):
    t = n.relu(n.conv("x", 3, 8))
    a = n.conv(t, 8, 8)
    b = n.relu(n.conv(t, 8, 8, 1))
    return [n.node("Add", [n.node("Mul", [a, b]), t]), t]


def float_island(n):
    t = n.relu(n.conv("x", 3, 8))
    t = n.node("Erf", [n.node("Transpose", [n.node("Erf", [t])], perm=[0, 1, 3, 2])])
    return n.relu(n.conv(t, 8, 4))


def doubled(n):
    t = n.conv("x", 3, 8)
    return n.relu(n.node("Add", [t, t]))


NETS = {
    "sigmoid": lambda n: one(n, "Sigmoid"),
    "tanh": lambda n: one(n, "Tanh"),
    "hardswish": lambda n: one(n, "HardSwish"),
    "hardsigmoid": lambda n: one(n, "HardSigmoid", alpha=0.2),
    "leakyrelu": lambda n: one(n, "LeakyRelu", alpha=0.1),
    "average": lambda n: one(n, "AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
    "mean": lambda n: one(n, "ReduceMean", axes=[2, 3], keepdims=0),
    "mean_of_channels": lambda n: one(n, "ReduceMean", axes=[1]),
    "softmax": lambda n: n.node("Softmax", [one(n, "GlobalAveragePool")], axis=1),
    "depth_to_space": lambda n: one(n, "DepthToSpace", blocksize=2),
    "relu_alone": lambda n: n.relu(n.node("GlobalAveragePool", [n.conv("x", 3, 8)])),
    "clip_alone": lambda n: n.node(
        "Clip", [n.conv("x", 3, 8), n.const(np.float32(-1)), n.const(np.float32(0.5))], "clamped"
    ),
    "no_bias": lambda n: n.relu(n.conv("x", 3, 8, bias=False)),
    "groups": lambda n: n.conv(n.relu(n.conv("x", 3, 8, bias=False)), 8, 12, group=4),
    "dilated": lambda n: n.conv("x", 3, 8, dilations=[2, 2], pads=[2, 2, 2, 2], strides=[2, 1]),
    "squeeze_and_excite": squeeze_and_excite,
    "constants": constants_as_operands,
    "padded": padded,
    "softmax_in_concat": softmax_in_concat,
    "rows": matmul_of_rows,
    "read_thrice": read_thrice,
    "float_island": float_island,
    "doubled": doubled,
}


@pytest.mark.parametrize("name", NETS)
def test_every_operator_stays_close(net, int8, images, run, name, cosine):
    n = net(11)
    proto = n.proto(NETS[name](n))
    made = int8(proto, images())
    x = images(16, seed=5).x
    for optimise in (False, True):
        for want, got in zip(run(proto, x), run(made, x, optimise), strict=True):
            assert cosine(want, got) > 0.99


def test_graph_input_as_direct_operand(net, int8, images, run, optimised, cosine):
    n = net()
    t = n.node("Add", [n.conv("x", 3, 3), "x"])
    proto = n.proto([n.node("MaxPool", ["x"], kernel_shape=[2, 2]), t])
    made = int8(proto, images())
    for want, got in zip(run(proto, images().x), run(made, images().x), strict=True):
        assert cosine(want, got) > 0.995
    assert {"QLinearConv", "QLinearAdd"} <= set(optimised(made))


def test_one_dimensional_convolutions(net, int8, images, run, cosine):
    n = net()
    w = n.const(n.weights(8, 4, 5, fan=20))
    t = n.relu(n.node("Conv", ["x", w, n.const(n.bias(8))], pads=[2, 2]))
    t = n.node("Flatten", [n.node("GlobalAveragePool", [t])])
    proto = n.proto(n.gemm(t, 8, 3), (4, 50))
    data = images(40, (4, 50))
    assert cosine(run(proto, data.x)[0], run(int8(proto, data), data.x)[0]) > 0.99


def test_prescribed_units(net, int8, images, units):
    n = net()
    t = n.node("Flatten", [n.node("GlobalAveragePool", [n.conv("x", 3, 6)])])
    outputs = [n.node("Softmax", [t], axis=1), n.node("Sigmoid", [t]), n.node("Tanh", [t])]
    found = units(int8(n.proto(outputs), images()))
    for name, scale, zero in zip(outputs, (1 / 256, 1 / 256, 1 / 128), (0, 0, 128), strict=True):
        assert (float(found[name][0]), int(found[name][1])) == (scale, zero)


def gated(n):
    """x * sigmoid(x), of x well beyond where the sigmoid is all but one."""
    t = n.node("Mul", ["x", n.const(np.float32(6))])
    gates = []
    for _ in range(3):
        gates.append(n.node("Sigmoid", [t]))
        t = n.node("Mul", [t, gates[-1]])
    return n.node("Flatten", [n.conv(t, 3, 4)]), gates


def test_gates_reach_one(net, int8, images, units, run, monkeypatch):
    """Prescribed units of 1/256 end at 255/256 and would take 0.4 % off at each product."""
    n = net()
    last, gates = gated(n)
    proto = n.proto(last)
    data = images()
    made = int8(proto, data)
    found = units(made)
    stored = [node.output[0] for node in made.graph.node if node.op_type == "Sigmoid"]
    for name, inner in zip(gates, stored, strict=True):
        assert int(found[inner][1]) == 0
        largest = float(run(shown(proto, name), data.x)[-1].max())
        assert float(found[inner][0]) * 255 == pytest.approx(largest, rel=0.01)
    exact = run(proto, data.x)[0]

    def error(proto):
        return np.sum((run(proto, data.x)[0] - exact) ** 2)

    ours = error(made)
    monkeypatch.setattr("edgescale.quantize.plan._is_gate", lambda value: False)
    assert ours < 0.95 * error(int8(proto, data))


def shown(proto, name):
    """The same model with one more output."""
    made = onnx.ModelProto.FromString(proto.SerializeToString())
    made.graph.output.append(onnx.ValueInfoProto(name=name))
    return made


def test_relu6_uses_its_whole_range_at_most(net, int8, images, units):
    n = net()
    out = n.relu6(n.conv("x", 3, 8))
    scale, zero, _ = units(int8(n.proto(out), images(), Recipe(8, 8, "minmax")))[out]
    assert zero == 0
    assert scale * 255 <= 6 * (1 + 1e-6)


@pytest.mark.parametrize("kind", ["zero", "tiny", "huge_bias"])
def test_degenerate_channels(net, int8, images, run, kind, cosine, units):
    n = net()
    w, b = n.weights(6, 3, 3, 3, fan=27), n.bias(6)
    if kind == "zero":
        w[2] = 0
    elif kind == "tiny":
        w[2] *= 1e-30
    else:
        w[2] *= 1e-12
        b[2] = 3.0
    proto = n.proto(n.node("Conv", ["x", n.const(w), n.const(b)], pads=[1, 1, 1, 1]))
    made = int8(proto, images(), Recipe(8, 8, "minmax"))
    for tensor in made.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.name.endswith("_scale"):
            assert (array >= np.finfo(np.float32).tiny).all()
        if array.dtype == np.int32:
            assert np.abs(array.astype(np.int64)).max() <= 2**30
    want, got = run(proto, images().x)[0], run(made, images().x)[0]
    step = float(units(made)[proto.graph.output[0].name][0])
    assert np.abs(want[:, 2] - got[:, 2]).max() <= 0.51 * step
    assert cosine(want, got) > 0.999


def test_all_zero_weights(net, int8, images, run):
    n = net()
    proto = n.proto(n.relu(n.node("Conv", ["x", n.const(np.zeros((4, 3, 3, 3), np.float32)), n.const(n.bias(4))])))
    want, got = run(proto, images().x)[0], run(int8(proto, images()), images().x)[0]
    np.testing.assert_allclose(got, want, atol=0.01)


def test_dead_activations(net, int8, images, run):
    n = net()
    w = n.const(n.weights(4, 3, 3, 3, fan=27))
    t = n.relu(n.node("Conv", ["x", w, n.const(np.full(4, -1e3, np.float32))], pads=[1, 1, 1, 1]))
    proto = n.proto(n.conv(t, 4, 2))
    want, got = run(proto, images().x)[0], run(int8(proto, images()), images().x)[0]
    np.testing.assert_allclose(got, want, atol=0.01)


def test_what_stays_float_is_told(net, loaded):
    n = net()
    t = float_island(n)
    n.node("MatMul", [t, t], "product", out="last")
    found = {f.op: f.reason for f in float_nodes(loaded(n.proto("last")))}
    assert set(found) == {"Erf", "Transpose", "MatMul"}
    assert "second operand" in found["MatMul"]
    assert "float operators" in found["Transpose"]
