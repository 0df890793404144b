"""Graphs as PyTorch modules: the values of ONNX Runtime, on batches, whatever the graph does with its first axis."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgescale.core.errors import UnsupportedModelError

torch = pytest.importorskip("torch", reason="PyTorch (extra `train`) is not installed")

from edgescale.finetune.graph import TorchGraph  # noqa: E402


def compare(proto, loaded, onnx_rows, samples, count=5):
    model = loaded(proto)
    x = samples(count).x
    wanted = onnx_rows(onnx_ir.to_proto(model.ir), x)
    graph = TorchGraph(model.ir)
    with torch.no_grad():
        found = graph(torch.from_numpy(x))[model.ir.graph.outputs[0]].numpy()
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5 * max(1.0, float(np.abs(wanted).max())))
    return graph


def attention(n):
    t = n.node("Reshape", [n.conv("x", 3, 8, 2, strides=[2, 2], pads=[0, 0, 0, 0]), n.const(np.array([1, 8, 36]))])
    t = n.node("Transpose", [t], perm=[0, 2, 1])
    t = n.node("Concat", [n.const(n.random.normal(size=(1, 1, 8)).astype(np.float32)), t], axis=1)
    t = n.node("Add", [t, n.const(n.random.normal(size=(37, 8)).astype(np.float32))])
    t = n.node("LayerNormalization", [t, n.const(n.bias(8) + 1), n.const(n.bias(8))], axis=-1)
    q, k, v = (n.node("MatMul", [t, n.const(n.weights(8, 8, fan=8))]) for _ in range(3))
    q, k, v = (n.node("Reshape", [p, n.const(np.array([37, 2, 4]))]) for p in (q, k, v))
    q, v = (n.node("Transpose", [p], perm=[1, 0, 2]) for p in (q, v))
    a = n.node("Softmax", [n.node("MatMul", [q, n.node("Transpose", [k], perm=[1, 2, 0])])], axis=-1)
    y = n.node(
        "Reshape", [n.node("Transpose", [n.node("MatMul", [a, v])], perm=[1, 0, 2]), n.const(np.array([1, 37, 8]))]
    )
    return n.node("Gather", [n.node("Gelu", [n.node("Add", [t, y])], approximate="none"), n.const(np.array(0))], axis=1)


def shapes(n):
    t = n.relu(n.conv("x", 3, 8))
    a, b = "half0", "half1"
    n.nodes.append(__import__("onnx").helper.make_node("Split", [t], [a, b], "Split", axis=1, num_outputs=2))
    t = n.node("Concat", [n.node("Sigmoid", [a]), n.node("Mul", [b, b])], axis=1)
    t = n.node("Pad", [t, n.const(np.array([0, 0, 1, 0, 0, 0, 0, 2])), n.const(np.float32(0.5))])
    t = n.node("Slice", [t, n.const(np.array([1, -1])), n.const(np.array([99, -20])), n.const(np.array([2, 3])),
                         n.const(np.array([2, -3]))])  # fmt: skip
    return n.node("ReduceMean", [n.node("Tanh", [t]), n.const(np.array([1, 3]))], keepdims=0)


def pools(n):
    t = n.node("MaxPool", [n.conv("x", 3, 6)], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0])
    t = n.node("AveragePool", [t], kernel_shape=[2, 2], pads=[0, 1, 1, 0], count_include_pad=0)
    t = n.node("AveragePool", [t], kernel_shape=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1)
    t = n.node("BatchNormalization", [t, *(n.const(abs(n.bias(6)) + 0.5) for _ in range(4))])
    return n.node("HardSwish", [n.node("LeakyRelu", [n.node("DepthToSpace", [n.conv(t, 6, 8, 1)], blocksize=2)])])


def scalars(n):
    t = n.node("Div", [n.conv("x", 3, 4, group=1, dilations=[2, 2], pads=[2, 2, 2, 2]), n.const(np.float32(2.5))])
    t = n.node("Sqrt", [n.node("Add", [n.node("Pow", [t, n.const(np.float32(2))]), n.const(np.float32(1))])])
    t = n.node("Erf", [n.node("Sub", [n.const(np.float32(3)), t])])
    return n.node("Softmax", [n.node("Flatten", [t])], axis=1)


@pytest.mark.parametrize("build", [attention, shapes, pools, scalars])
def test_operators(build, net, loaded, onnx_rows, samples):
    n = net(1)
    compare(n.proto(build(n), opset=20), loaded, onnx_rows, samples)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_drawn_convolutional_nets(net, loaded, onnx_rows, samples, data):
    n = net(data.draw(st.integers(0, 99)))
    t, channels, size = "x", 3, 12
    for _ in range(data.draw(st.integers(1, 4))):
        kernel, stride = data.draw(st.sampled_from([1, 2, 3, 5])), data.draw(st.integers(1, 2))
        dilation = data.draw(st.integers(1, 2))
        pads = [data.draw(st.integers(0, kernel // 2)) for _ in range(4)]
        span = (kernel - 1) * dilation + 1
        if size + min(pads[0] + pads[2], pads[1] + pads[3]) < span or kernel > size:
            continue
        group = data.draw(st.sampled_from([1, channels]))
        outputs = channels * data.draw(st.integers(1, 2)) if group > 1 else data.draw(st.integers(1, 6))
        t = n.conv(t, channels, outputs, kernel, group=group, bias=data.draw(st.booleans()), pads=pads,
                   strides=[stride, stride], dilations=[dilation, dilation])  # fmt: skip
        size = min((size + pads[0] + pads[2] - span), (size + pads[1] + pads[3] - span)) // stride + 1
        channels = outputs
        activation = data.draw(st.sampled_from(["Relu", "Sigmoid", "HardSwish", "Softmax", "Add"]))
        t = n.node("Add", [t, t]) if activation == "Add" else n.node(activation, [t])
    if t == "x":
        t = n.relu(t)
    compare(n.proto(t, opset=17), loaded, onnx_rows, samples, count=3)


def test_parameters_are_the_initializers(toy, loaded, onnx_rows, samples):
    graph = compare(toy(), loaded, onnx_rows, samples)
    held = graph.trained()
    initializers = graph.model.graph.initializers
    assert len(held) == 9  # four convolutions with three biases, one linear layer
    for name, array in held.items():
        np.testing.assert_array_equal(array, initializers[name].const_value.numpy())


def test_an_operator_without_a_form_is_named(net, loaded):
    n = net()
    t = n.node("LpNormalization", [n.conv("x", 3, 4)], name="odd_one")
    with pytest.raises(UnsupportedModelError, match=r"'odd_one' \(LpNormalization\)"):
        TorchGraph(loaded(n.proto(t)).ir)
