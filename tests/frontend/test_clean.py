"""The cleaned model computes what the file's model computes, with fewer and simpler nodes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import helper

from edgescale.frontend import load_model
from edgescale.frontend.load import serialize


@pytest.fixture
def cleaned(written, run):
    """Load a model, compare it with the original on a few random inputs, return the loaded one."""

    def check(proto, shape=(1, 3, 8, 8), tolerance=1e-4):
        path = written(proto)
        model = load_model(path)
        onnx.checker.check_model(onnx.load_from_string(serialize(model)), full_check=True)
        random = np.random.default_rng(7)
        for _ in range(3):
            x = random.normal(size=shape).astype(np.float32)
            name = proto.graph.input[0].name
            for want, got in zip(run(path, {name: x}), run(serialize(model), {name: x}), strict=True):
                np.testing.assert_allclose(got, want, atol=tolerance, rtol=tolerance)
        return model

    return check


def ops(model):
    return Counter(node.op_type for node in model.ir.graph)


def names(model):
    return [node.name for node in model.ir.graph]


@pytest.mark.parametrize("opset", [13, 15, 17, 18, 20, 21, 22])
def test_conv_net_with_everything_an_exporter_leaves(builder, cleaned, opset):
    b = builder()
    t = b.norm(b.conv("x", 3, 8, name="stem", pads=[1, 1, 1, 1], bias=False), 8, "stem_bn")
    t = b.node("Identity", [b.node("Relu", [t])])
    s = b.norm(b.conv(t, 8, 8, group=8, pads=[1, 1, 1, 1], name="dw"), 8)
    t = b.node("Relu", [b.node("Add", [s, t], "residual")])
    t = b.node("Dropout", [t])
    t = b.node("GlobalAveragePool", [t])
    t = b.node("Flatten", [t])
    t = b.node("Dropout", [t, b.const(np.float32(0.5))])
    b.node("Gemm", [t, b.const(b.normal(8, 5)), b.const(b.normal(5))], "head", out="y", alpha=0.5, beta=2.0)
    model = cleaned(b.build({"y": ["N", 5]}, opset=opset))
    assert ops(model) == Counter(Conv=2, Relu=2, Add=1, GlobalAveragePool=1, Flatten=1, Gemm=1)
    assert {"stem", "dw", "residual", "head"} <= set(names(model))
    assert model.ir.opset_imports[""] == max(opset, 21)
    assert model.inputs[0].shape == (1, 3, 8, 8)
    assert (model.outputs[0].name, model.outputs[0].shape) == ("y", (1, 5))


def test_every_constant_is_an_initializer_and_every_initializer_used(builder, cleaned):
    b = builder()
    b.const(b.normal(4), "unused")
    two = helper.make_node("Constant", [], ["two"], value_float=2.0)
    b.nodes.append(two)
    t = b.node("Add", ["x", b.node("Mul", ["two", "two"])])
    b.node("Relu", [t], out="y")
    model = cleaned(b.build({"y": ["N", 3, 8, 8]}))
    assert ops(model) == Counter(Add=1, Relu=1)
    used = {value.name for node in model.ir.graph for value in node.inputs}
    assert set(model.ir.graph.initializers) <= used
    assert "unused" not in model.ir.graph.initializers


def test_shape_arithmetic_of_a_dynamic_batch_folds_away(builder, cleaned):
    b = builder()
    t = b.conv("x", 3, 4, name="conv")
    batch = b.node("Gather", [b.node("Shape", [t]), b.const(np.int64(0))], axis=0)
    target = b.node("Concat", [b.node("Unsqueeze", [batch, b.const([0])]), b.const(np.array([-1]))], axis=0)
    b.node("Reshape", [t, target], out="y")
    model = cleaned(b.build({"y": ["N", 144]}))
    assert ops(model) == Counter(Conv=1, Reshape=1)
    assert model.outputs[0].shape == (1, 144)


def test_per_channel_arithmetic_joins_the_convolution(builder, cleaned):
    b = builder()
    t = b.conv("x", 3, 4, bias=False, name="conv")
    t = b.node("Mul", [t, b.const(b.normal(1, 4, 1, 1))])
    t = b.node("Add", [b.const(b.normal(4, 1, 1)), t])
    t = b.node("Sub", [t, b.const(b.normal(4, 1, 1))])
    t = b.node("Sub", [b.const(np.float32(1.5)), t])
    b.node("Div", [t, b.const(np.float32(0.7))], out="y")
    model = cleaned(b.build({"y": ["N", 4, 6, 6]}))
    assert ops(model) == Counter(Conv=1)
    assert names(model) == ["conv"]


def test_what_varies_along_the_image_does_not_join(builder, cleaned):
    b = builder()
    t = b.conv("x", 3, 4)
    b.node("Mul", [t, b.const(b.normal(1, 1, 6, 6))], out="y")
    assert ops(cleaned(b.build({"y": ["N", 4, 6, 6]}))) == Counter(Conv=1, Mul=1)


def test_a_convolution_read_twice_keeps_its_normalization_apart(builder, cleaned):
    b = builder()
    t = b.conv("x", 3, 4, name="conv")
    b.node("Add", [b.norm(t, 4, "bn"), t], out="y")
    model = cleaned(b.build({"y": ["N", 4, 6, 6]}))
    assert ops(model) == Counter(Conv=2, Add=1)
    assert names(model)[:2] == ["conv", "bn"]


def test_weights_shared_by_two_convolutions_stay_right(builder, cleaned):
    b = builder()
    w = b.const(b.normal(3, 3, 3, 3, scale=0.3), "shared")
    first = b.norm(b.node("Conv", ["x", w], "a", pads=[1, 1, 1, 1]), 3)
    b.norm(b.node("Conv", [first, w], "b", pads=[1, 1, 1, 1]), 3)
    b.nodes[-1].output[0] = "y"
    assert ops(cleaned(b.build({"y": ["N", 3, 8, 8]}))) == Counter(Conv=2)


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_normalization_on_its_own(builder, cleaned, rank):
    b = builder()
    b.norm("x", 6, "bn")
    b.node("Relu", [b.nodes[-1].output[0]], out="y")
    shape = [6, 5, 4][: rank - 1]
    model = cleaned(b.build({"y": ["N", *shape]}, {"x": ["N", *shape]}), (1, *shape))
    assert "BatchNormalization" not in ops(model)
    assert "bn" in names(model)


def test_matmul_and_add_become_gemm(builder, cleaned):
    b = builder()
    t = b.node("Flatten", ["x"])
    t = b.node("MatMul", [t, b.const(b.normal(192, 7, scale=0.1))], "fc")
    t = b.node("Add", [t, b.const(b.normal(7))])
    b.norm(t, 7)
    b.nodes[-1].output[0] = "y"
    model = cleaned(b.build({"y": ["N", 7]}))
    assert ops(model) == Counter(Flatten=1, Gemm=1)
    assert names(model)[1] == "fc"


@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("bias", [None, (5,), (1, 5), (), (1, 1)])
def test_gemm_forms(builder, cleaned, trans, bias):
    b = builder()
    flat = b.node("Flatten", ["x"])
    weights = b.normal(5, 192, scale=0.1) if trans else b.normal(192, 5, scale=0.1)
    inputs = [flat, b.const(weights)] + ([] if bias is None else [b.const(b.normal(*bias))])
    b.node("Gemm", inputs, out="y", transB=trans, alpha=1.5, beta=0.25)
    node = cleaned(b.build({"y": ["N", 5]})).ir.graph[-1]
    assert (node.attributes["transB"].as_int(), node.attributes["alpha"].as_float()) == (1, 1.0)
    assert node.inputs[1].shape.numpy() == (5, 192)


@pytest.mark.parametrize(
    ("mode", "op", "stride", "dilation"),
    [(mode, op, stride, 1) for mode in ("SAME_UPPER", "SAME_LOWER") for op in ("Conv", "MaxPool") for stride in (1, 2)]
    + [("VALID", "Conv", 2, 2), ("VALID", "MaxPool", 2, 1)],  # ONNX Runtime refuses dilation with SAME
)
def test_auto_pad_becomes_numbers(builder, cleaned, mode, op, stride, dilation):
    b = builder()
    extra = {"auto_pad": mode, "strides": [stride] * 2, "kernel_shape": [2, 3]}
    if op == "Conv":
        extra["dilations"] = [dilation] * 2
        b.node(op, ["x", b.const(b.normal(4, 3, 2, 3))], out="y", **extra)
    else:
        b.node(op, ["x"], out="y", **extra)
    model = cleaned(b.build({"y": ["N", 4 if op == "Conv" else 3, None, None]}, {"x": ["N", 3, 9, 8]}), (1, 3, 9, 8))
    assert "auto_pad" not in model.ir.graph[0].attributes


def test_padding_joins_the_convolution(builder, cleaned):
    b = builder()
    t = b.node("Pad", ["x", b.const(np.array([0, 0, 1, 0, 0, 0, 2, 1]))])
    t = b.conv(t, 3, 4, name="conv", pads=[1, 1, 1, 1])
    t = b.node("Pad", [t, b.const(np.array([0, 0, 1, 1, 0, 0, 1, 1])), b.const(np.float32(0.5))], "kept")
    b.conv(t, 4, 2)
    b.nodes[-1].output[0] = "y"
    model = cleaned(b.build({"y": ["N", 2, None, None]}))
    assert ops(model) == Counter(Conv=2, Pad=1)
    assert names(model)[:2] == ["conv", "kept"]


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [13, 18])
def test_mean_over_the_image_is_a_pool(builder, cleaned, keepdims, opset):
    b = builder()
    t = b.conv("x", 3, 4)
    if opset >= 18:
        b.node("ReduceMean", [t, b.const(np.array([-1, 2]))], "mean", out="y", keepdims=keepdims)
    else:
        b.node("ReduceMean", [t], "mean", out="y", axes=[-1, 2], keepdims=keepdims)
    model = cleaned(b.build({"y": ["N", 4] + [1, 1] * keepdims}, opset=opset))
    assert ops(model) == Counter(Conv=1, GlobalAveragePool=1, **({} if keepdims else {"Flatten": 1}))
    assert names(model)[1] == "mean"


def test_no_ops_vanish(builder, cleaned):
    b = builder()
    t = b.node("Cast", ["x"], to=1)
    t = b.node("Reshape", [t, b.const(np.array([0, 3, 8, 8]))])
    t = b.node("Transpose", [t], perm=[0, 1, 2, 3])
    t = b.node("Pad", [t, b.const(np.zeros(8, np.int64))])
    t = b.node("Concat", [t], axis=1)
    t = b.node("Mul", [t, b.const(np.float32(1))])
    t = b.node("Add", [b.const(np.float32(0)), t])
    t = b.node("Relu", [t], "only")
    b.node("Identity", [t], out="y")
    model = cleaned(b.build({"y": ["N", 3, 8, 8]}))
    assert names(model) == ["only"]


def test_an_identity_from_input_to_output_stays(builder, cleaned):
    b = builder()
    b.node("Dropout", ["x"], out="y")
    model = cleaned(b.build({"y": ["N", 3, 8, 8]}))
    assert len(model.ir.graph) == 1


def test_nodes_without_names_get_stable_ones(builder, written):
    b = builder()
    t = b.conv("x", 3, 4)
    t = b.node("Relu", [t], "Conv_1")
    t = b.conv(t, 4, 4)
    t = b.conv(t, 4, 4, name="mine")
    b.node("Relu", [t], "mine", out="y")
    path = written(b.build({"y": ["N", 4, 2, 2]}))
    first = names(load_model(path))
    assert first == ["Conv_0", "Conv_1", "Conv_1_1", "mine", "mine_1"]
    assert first == names(load_model(path))


def test_functions_are_inlined(builder, cleaned):
    body = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Mul", ["r", "r"], ["b"])]
    function = helper.make_function(
        "mine", "SquaredRelu", ["a"], ["b"], body, opset_imports=[helper.make_opsetid("", 17)]
    )
    b = builder()
    t = b.conv("x", 3, 4, name="conv")
    b.nodes.append(helper.make_node("SquaredRelu", [t], ["y"], domain="mine", name="call"))
    proto = b.build({"y": ["N", 4, 6, 6]})
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    proto.functions.append(function)
    assert ops(cleaned(proto)) == Counter(Conv=1, Relu=1, Mul=1)


def test_several_inputs_and_outputs_load(builder, written, run):
    b = builder()
    t = b.node("Add", ["x", "z"])
    b.node("Relu", [t], out="y")
    b.node("GlobalAveragePool", [t], out="pooled")
    shapes = {"x": ["N", 3, 8, 8], "z": ["N", 3, 8, 8]}
    path = written(b.build({"y": ["N", 3, 8, 8], "pooled": ["N", 3, 1, 1]}, shapes))
    model = load_model(path)
    assert [i.name for i in model.inputs] == ["x", "z"]
    assert [o.shape for o in model.outputs] == [(1, 3, 8, 8), (1, 3, 1, 1)]
    feeds = {name: np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32) for name in "xz"}
    for want, got in zip(run(path, feeds), run(serialize(model), feeds), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_quantized_models_keep_their_weights_quantized(builder, cleaned):
    b = builder()
    scale, zero = b.const(np.float32(0.05)), b.const(np.uint8(128))
    t = b.node("DequantizeLinear", [b.node("QuantizeLinear", ["x", scale, zero]), scale, zero])
    stored = b.const(b.random.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8), "w_int8")
    w = b.node(
        "DequantizeLinear",
        [stored, b.const(np.full(4, 0.01, np.float32)), b.const(np.zeros(4, np.int8))],
        axis=0,
    )
    t = b.node("Relu", [b.node("Conv", [t, w], "conv")])
    b.node("DequantizeLinear", [b.node("QuantizeLinear", [t, scale, zero]), scale, zero], out="y")
    model = cleaned(b.build({"y": ["N", 4, 6, 6]}))
    assert model.quantized
    assert ops(model) == Counter(QuantizeLinear=2, DequantizeLinear=3, Conv=1, Relu=1)
    assert model.ir.graph.initializers["w_int8"].dtype.name == "INT8"
