"""MACs, parameters and liveness counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from edgescale.frontend import describe, load_model


def test_convolutions_and_products(builder, written):
    b = builder()
    t = b.conv("x", 3, 8, name="conv", strides=[2, 2], pads=[1, 1, 1, 1])
    t = b.node("Relu", [t], "relu")
    t = b.conv(t, 8, 8, group=8, bias=False, name="dw", pads=[1, 1, 1, 1])
    t = b.node("GlobalAveragePool", [t], "pool")
    t = b.node("Flatten", [t], "flat")
    b.node("Gemm", [t, b.const(b.normal(5, 8)), b.const(b.normal(5))], "fc", out="y", transB=1)
    result = describe(load_model(written(b.build({"y": ["N", 5]}))))
    figures = {n.name: n for n in result.nodes}
    assert (figures["conv"].macs, figures["conv"].parameters) == (8 * 4 * 4 * 27, 8 * 27 + 8)
    assert (figures["dw"].macs, figures["dw"].parameters) == (8 * 4 * 4 * 9, 8 * 9)
    assert (figures["fc"].macs, figures["fc"].parameters) == (40, 45)
    assert (figures["relu"].macs, figures["relu"].parameters) == (0, 0)
    assert figures["conv"].output_shape == (1, 8, 4, 4)
    assert figures["conv"].activation_bytes == 4 * 128
    assert result.macs == 8 * 16 * 27 + 8 * 16 * 9 + 40
    assert result.parameters == 224 + 72 + 45
    # Widest: the image (192) beside the first result (128); the ReLU works in place.
    assert (result.peak_int8_bytes, result.peak_float_bytes) == (320, 1280)


def test_a_residual_keeps_three_tensors_alive(builder, written):
    b = builder()
    t = b.conv("x", 3, 4, 1)
    s = b.node("Sigmoid", [b.conv(t, 4, 4, 1)])
    b.node("Add", [s, t], out="y")
    result = describe(load_model(written(b.build({"y": ["N", 4, 8, 8]}))))
    assert result.peak_int8_bytes == 3 * 4 * 64


def test_shared_weights_count_once(builder, written):
    b = builder()
    w = b.const(b.normal(3, 3, 1, 1))
    t = b.node("Conv", ["x", w])
    b.node("Conv", [t, w], out="y")
    result = describe(load_model(written(b.build({"y": ["N", 3, 8, 8]}))))
    assert result.parameters == 9
    assert result.macs == 2 * 9 * 64


def test_bounds_and_shapes_are_no_parameters(builder, written):
    b = builder()
    t = b.node("Clip", ["x", b.const(np.float32(0)), b.const(np.float32(6))])
    b.node("Reshape", [t, b.const(np.array([1, -1]))], out="y")
    assert describe(load_model(written(b.build({"y": ["N", 192]})))).parameters == 0


@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_recurrent_nodes_count_every_step(builder, written, operator, gates):
    """[1, 3, 8, 8] read as 24 steps of 8 values; Y is left out."""
    b = builder()
    t = b.node("Transpose", [b.node("Reshape", ["x", b.const(np.array([1, 24, 8]))])], perm=[1, 0, 2])
    weights = [b.const(b.normal(1, gates * 5, columns)) for columns in (8, 5)]
    b.nodes.append(helper.make_node(operator, [t, *weights], ["", "last"], "rnn", hidden_size=5))
    b.node("Relu", ["last"], out="y")
    figures = {node.name: node for node in describe(load_model(written(b.build({"y": [1, 1, 5]})))).nodes}
    assert figures["rnn"].macs == 24 * gates * 5 * (8 + 5)
    assert figures["rnn"].output_shape == (1, 1, 5) and figures["rnn"].parameters == gates * 5 * 13
