"""Integer programs against ONNX Runtime on QDQ models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgescale.lower import reference
from edgescale.lower.ports import to_stored
from edgescale.lower.program import Conv2D, DepthwiseConv2D, Port, Program

INTEGER_ONLY = {"Conv2D", "DepthwiseConv2D", "FullyConnected", "Add", "Mul", "Pool2D", "Mean", "Lut", "Softmax",
                "Rescale", "Reshape", "Transpose", "Concat", "Pad"}  # fmt: skip


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    fan_in = max(1, int(np.prod(shape[1:])))
    return (rng.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)


def mixed_net(g: Any, rng: np.random.Generator) -> str:
    """Convolution of every kind, residual addition, gating, pools, concatenation, head."""
    h = g.node("Conv", "x", normal(rng, 8, 3, 3, 3), normal(rng, 8), strides=[2, 2], pads=[1, 1, 1, 1])
    stem = g.node("Clip", h, np.float32(0), np.float32(6))
    h = g.node("Conv", stem, normal(rng, 8, 1, 3, 3), normal(rng, 8), group=8, pads=[1, 1, 1, 1])
    h = g.node("Relu", h)
    h = g.node("Conv", h, normal(rng, 8, 8, 1, 1), normal(rng, 8))
    h = g.node("Relu", g.node("Add", h, stem))
    gate = g.node("Conv", g.node("GlobalAveragePool", h), normal(rng, 8, 8, 1, 1), normal(rng, 8))
    h = g.node("Mul", h, g.node("Sigmoid", gate))
    left = g.node("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2])
    right = g.node("AveragePool", h, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0])
    h = g.node("Concat", left, right, axis=1)
    h = g.node("Conv", h, normal(rng, 12, 8, 3, 3), normal(rng, 12), group=2, dilations=[2, 2], pads=[2, 2, 2, 2])
    h = g.node("LeakyRelu", h)
    h = g.node("Gemm", g.node("Flatten", h), normal(rng, 10, 192), normal(rng, 10), transB=1)
    return g.node("Softmax", h)


def quantized(tools: Any, folder: Path, kind: str, per_channel: bool) -> tuple[onnx.ModelProto, np.ndarray]:
    from onnxruntime.quantization import QuantType

    rng = np.random.default_rng(11)
    g = tools.graph((1, 3, 16, 16))
    model = g.model(mixed_net(g, rng))
    x = rng.normal(size=(48, 3, 16, 16)).astype(np.float32)
    types = {"activation_type": getattr(QuantType, kind), "weight_type": QuantType.QInt8, "per_channel": per_channel}
    return tools.quantize(model, x, folder, **types), x


def with_all_outputs(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model with every QuantizeLinear result of an activation as output; float name -> integer name."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {c.name for c in copy.graph.initializer}
    found = {}
    for node in copy.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            # A program names an int8 tensor after either end of the QuantizeLinear.
            found[node.input[0]] = found[node.output[0]] = node.output[0]
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(found.values()))
    return copy, found


def ort_tensors(model: onnx.ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    import onnxruntime as ort

    exposed, names = with_all_outputs(model)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = [session.run(None, {session.get_inputs()[0].name: row[None]}) for row in x]
    integers = {o.name: np.concatenate([row[i] for row in rows]) for i, o in enumerate(exposed.graph.output)}
    return {name: integers[output] for name, output in names.items()}


def stored(program: Program, name: str, value: np.ndarray) -> np.ndarray:
    """ONNX Runtime's integers as the program stores them."""
    value = (value.astype(np.int16) - 128).astype(np.int8) if value.dtype == np.uint8 else value
    if value.ndim == 4:
        value = value.transpose(0, 2, 3, 1)
    return value.reshape(-1, *program.tensors[name].shape[1:])


@pytest.mark.parametrize("kind", ["QInt8", "QUInt8"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_each_layer_alone_is_within_one_step_of_onnx_runtime(
    tools: Any, tmp_path: Path, kind: str, per_channel: bool
) -> None:
    model, x = quantized(tools, tmp_path, kind, per_channel)
    program = tools.lower(model)
    theirs = ort_tensors(model, x[:8])
    integer = {name for name, tensor in program.tensors.items() if tensor.dtype == "int8"}
    values = {name: stored(program, name, theirs[name]) for name in integer & set(theirs)}
    compared = 0
    for layer in program.layers:
        # Tensors that exist in the program only (other layout or units) follow from compared ones.
        inputs = [values[name] for name in layer.inputs]
        found = reference.run_layer(program, layer, inputs)
        if layer.output in values:
            difference = np.abs(found.astype(int) - values[layer.output])
            assert difference.max() <= 1, layer
            assert difference.mean() < (0.2 if "softmax" in layer.name else 0.05), layer
            compared += 1
        else:
            values[layer.output] = found
    assert compared >= 12
    assert {layer.op for layer in program.layers} <= INTEGER_ONLY


@pytest.mark.parametrize("kind", ["QInt8", "QUInt8"])
def test_whole_net_agrees_with_onnx_runtime(tools: Any, tmp_path: Path, kind: str) -> None:
    model, x = quantized(tools, tmp_path, kind, True)
    program = tools.lower(model)
    found, expected = reference.run_real(program, x), tools.run(model, x)
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.9
    assert np.abs(found - expected).max() < 0.05
    assert program.tensors[program.inputs[0].tensor].dtype == "int8"
    assert program.tensors[program.outputs[0].tensor].dtype == "int8"


@st.composite
def integer_convolutions(draw: st.DrawFn) -> dict[str, Any]:
    groups, per_group = draw(st.sampled_from([(1, 1), (1, 4), (2, 3), (4, 1), (3, 2)]))
    kernel = [draw(st.integers(1, 3)) for _ in range(2)]
    dilation = [draw(st.integers(1, 2)) for _ in range(2)]
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    return {
        "groups": groups, "per_group": per_group, "outputs": groups * draw(st.integers(1, 3)), "kernel": kernel,
        "dilations": dilation, "strides": [draw(st.integers(1, 2)) for _ in range(2)],
        "pads": [draw(st.integers(0, 1)) for _ in range(4)], "size": [s + draw(st.integers(0, 4)) for s in span],
        "kind": draw(st.sampled_from([np.uint8, np.int8])), "zero": draw(st.integers(-128, 127)),
        "weights": draw(st.sampled_from(["int8", "per_channel", "uint8"])), "relu": draw(st.booleans()),
        "bias": draw(st.sampled_from([None, "float", "int32"])), "seed": draw(st.integers(0, 999)),
    }  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(case=integer_convolutions())
def test_convolution_is_within_one_step_of_exact_arithmetic(tools: Any, case: dict[str, Any]) -> None:
    """Against ONNX Runtime's float convolution of dequantized values: half a step, and a little for two roundings."""
    rng = np.random.default_rng(case["seed"])
    shift = 128 if case["kind"] is np.uint8 else 0
    channels = case["groups"] * case["per_group"]
    g = tools.graph((1, channels, *case["size"]))
    h = g.quantize("x", 0.0213, case["zero"] + shift, case["kind"])
    integers = rng.integers(-127, 128, (case["outputs"], case["per_group"], *case["kernel"]))
    scales = rng.uniform(0.002, 0.02, case["outputs"]).astype(np.float32)
    if case["weights"] == "uint8":
        scales = np.full(case["outputs"], 0.01, np.float32)
        weights = g.weights((integers + 128).astype(np.uint8), np.float32(0.01), 128)
    else:
        scales = scales if case["weights"] == "per_channel" else np.full(case["outputs"], 0.01, np.float32)
        given_scale = scales if case["weights"] == "per_channel" else scales[0]
        weights = g.weights(integers.astype(np.int8), given_scale)
    inputs = [h, weights]
    if case["bias"] == "float":
        inputs.append(rng.normal(size=case["outputs"]).astype(np.float32))
    elif case["bias"] == "int32":
        integers = rng.integers(-9999, 9999, case["outputs"]).astype(np.int32)
        inputs.append(g.weights(integers, np.float32(0.0213) * scales))
    names = ("dilations", "strides", "pads")
    y = g.node("Conv", *inputs, group=case["groups"], **{name: case[name] for name in names})
    y = g.node("Relu", y) if case["relu"] else y
    model = g.model(g.quantize(y, 0.05, 3 + shift, case["kind"]))
    x = rng.normal(size=(2, channels, *case["size"])).astype(np.float32) * 2
    program = tools.lower(model)
    (layer,) = program.layers
    assert isinstance(layer, DepthwiseConv2D if case["groups"] > 1 and case["per_group"] == 1 else Conv2D)
    real = np.clip(tools.run(g.model(y), x), (-131) * np.float32(0.05), 124 * np.float32(0.05))
    assert np.abs(reference.run_real(program, x) - real).max() < 0.52 * 0.05


def one_operator(tools: Any, build: Any, shape: tuple[int, ...], out: tuple[float, int], opset: int = 17) -> Any:
    """A program and an ONNX model of Q-DQ, `build`, Q-DQ, uint8."""
    g = tools.graph((1, *shape), opset=opset)
    model = g.model(g.quantize(build(g, g.quantize("x", 0.03, 120)), *out))
    return tools.lower(model), model


OPERATORS: dict[str, tuple[Any, tuple[int, ...], tuple[float, int], set[str]]] = {
    "relu": (lambda g, h: g.node("Relu", h), (3, 4, 5), (0.02, 0), {"Rescale"}),
    "clip": (lambda g, h: g.node("Clip", h, np.float32(-1), np.float32(1.3)), (9,), (0.02, 100), {"Rescale"}),
    "sigmoid": (lambda g, h: g.node("Sigmoid", h), (3, 4, 5), (1 / 256, 0), {"Lut"}),
    "tanh": (lambda g, h: g.node("Tanh", h), (3, 4, 5), (1 / 128, 128), {"Lut"}),
    "hardswish": (lambda g, h: g.node("HardSwish", h), (3, 4, 5), (0.02, 20), {"Lut"}),
    "hardsigmoid": (lambda g, h: g.node("HardSigmoid", h), (7, 5), (1 / 255, 0), {"Lut"}),
    "leaky": (lambda g, h: g.node("LeakyRelu", h, alpha=0.3), (7, 5), (0.03, 40), {"Lut"}),
    "elu": (lambda g, h: g.node("Elu", h), (7,), (0.03, 40), {"Lut"}),
    "softmax": (lambda g, h: g.node("Softmax", h), (12,), (1 / 256, 0), {"Softmax"}),
    "softmax float": (lambda g, h: g.node("Softmax", h), (12,), (0.003, 1), {"Dequantize", "Softmax", "Quantize"}),
    "softmax in 1/255": (lambda g, h: g.node("Softmax", h, axis=1), (12, 3), (1 / 255, 0),
                         {"Transpose", "Reshape", "Softmax", "Rescale"}),
    "requantize": (lambda g, h: g.node("Identity", h), (3, 4, 5), (0.05, 7), {"Rescale"}),
    "add constant": (lambda g, h: g.node("Add", h, np.float32(0.7)), (3, 4), (0.03, 99), {"DepthwiseConv2D"}),
    "scale channels": (
        lambda g, h: g.node("Mul", h, np.array([[[0.5]], [[-1.5]], [[0.0]]], np.float32)),
        (3, 4, 5), (0.04, 128), {"DepthwiseConv2D"},
    ),
    "constant minus": (lambda g, h: g.node("Sub", np.float32(1.0), h), (3, 4), (0.04, 128), {"DepthwiseConv2D"}),
    "divide": (lambda g, h: g.node("Div", h, np.float32(3.0)), (3, 4), (0.01, 128), {"DepthwiseConv2D"}),
    "batch norm": (
        lambda g, h: g.node("BatchNormalization", h, *(np.float32(v) * np.ones(3, np.float32) for v in (2, 1, .3, 4))),
        (3, 4, 5), (0.03, 90), {"DepthwiseConv2D"},
    ),
    "position table": (
        lambda g, h: g.node("Add", h, np.linspace(-1, 1, 20, dtype=np.float32).reshape(1, 4, 5)),
        (4, 5), (0.04, 128), {"Add"},
    ),
    "square": (lambda g, h: g.node("Mul", h, h), (3, 4, 5), (0.06, 0), {"Mul"}),
    "subtract": (
        lambda g, h: g.node("Sub", h, g.quantize(g.node("Sigmoid", h), 1 / 256, 0)), (3, 4, 5), (0.04, 128),
        {"Lut", "Add"},
    ),
    "mean": (lambda g, h: g.node("ReduceMean", h, axes=[2, 3]), (3, 4, 5), (0.01, 128), {"Mean"}),
    "global max": (lambda g, h: g.node("GlobalMaxPool", h), (3, 4, 5), (0.03, 120), {"Pool2D"}),
    "max": (
        lambda g, h: g.node("MaxPool", h, kernel_shape=[3, 2], pads=[1, 1, 1, 0], ceil_mode=1, strides=[2, 2]),
        (3, 6, 6), (0.03, 120), {"Pool2D"},
    ),
    "average": (
        lambda g, h: g.node("AveragePool", h, kernel_shape=[3, 2], pads=[1, 1, 1, 0], count_include_pad=1),
        (3, 6, 6), (0.03, 120), {"Pool2D"},
    ),
    "average, other units": (
        lambda g, h: g.node("AveragePool", h, kernel_shape=[2, 2]), (3, 6, 6), (0.05, 120), {"Pool2D"},
    ),
    "pad": (
        lambda g, h: g.node("Pad", h, np.array([0, 1, 2, 0, 0, 0, 0, 3]), np.float32(0.9)),
        (3, 4, 5), (0.03, 120), {"Pad"},
    ),
    "concat": (
        lambda g, h: g.node("Concat", h, g.quantize(h, 0.02, 128), axis=2), (3, 4, 5), (0.03, 120),
        {"Rescale", "Concat"},
    ),
    "matmul": (
        lambda g, h: g.node("MatMul", h, g.weights(np.arange(-10, 10, dtype=np.int8).reshape(5, 4), [.1, .2, .05, .1],
                                                   axis=1)),
        (6, 5), (0.3, 128), {"FullyConnected"},
    ),
    "weights quantized in the graph": (
        lambda g, h: g.node("MatMul", h, g.quantize(g.const(np.eye(5, 4, dtype=np.float32)), 0.01, 0, np.int8)),
        (6, 5), (0.03, 128), {"FullyConnected"},
    ),
    "weights transposed in the graph": (
        lambda g, h: g.node("MatMul", h, g.node("Transpose", g.weights(
            np.arange(-10, 10, dtype=np.int8).reshape(4, 5), [.1, .2, .05, .1]), perm=[1, 0])),
        (6, 5), (0.3, 128), {"FullyConnected"},
    ),
    "transpose and reshape": (
        lambda g, h: g.node("Reshape", g.node("Transpose", h, perm=[0, 2, 3, 1]), np.array([1, 10, 6])),
        (3, 4, 5), (0.03, 120), set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_is_within_one_step_of_onnx_runtime(tools: Any, name: str) -> None:
    build, shape, out, expected = OPERATORS[name]
    program, model = one_operator(tools, build, shape, out)
    assert {layer.op for layer in program.layers} == expected
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32) * 1.5
    found, theirs = reference.run_real(program, x), tools.run(model, x)
    # An average in other units is rounded in the input's first: one step of each.
    steps = 2.01 if "other units" in name else 1.01
    assert np.abs(found - theirs).max() < steps * out[0]
    # LiteRT's LeakyRelu has a multiplier for each sign, so that a half may round the other way.
    if expected <= {"Lut", "Pool2D", "Pad"} and "average" not in name and name != "leaky":
        np.testing.assert_allclose(found, theirs, atol=1e-6)


def test_a_clamp_between_equal_units_moves_into_the_layer_in_front(tools: Any) -> None:
    g = tools.graph((1, 3, 4, 4))
    h = g.quantize("x", 0.03, 120)
    h = g.node("Conv", h, g.weights(np.ones((2, 3, 1, 1), np.int8), 0.5), name="conv")
    h = g.node("Relu", g.quantize(h, 0.1, 30), name="relu")
    program = tools.lower(g.model(g.quantize(h, 0.1, 30)))
    (layer,) = program.layers
    assert isinstance(layer, Conv2D) and layer.clamp == (-98, 127) and {"conv", "relu"} <= set(layer.nodes)


def test_float_islands_get_quantize_and_dequantize(tools: Any, rng: np.random.Generator) -> None:
    g = tools.graph((1, 3, 4, 4))
    h = g.quantize("x", 0.03, 120)
    h = g.node("Conv", h, normal(rng, 2, 3, 1, 1), name="float weights")
    program = tools.lower(g.model(g.quantize(h, 0.03, 128)))
    assert [layer.op for layer in program.layers] == ["Dequantize", "Conv2D", "Quantize"]
    assert program.tensors[program.inputs[0].tensor].dtype == "int8"


def test_an_input_read_as_float_stays_float(tools: Any, rng: np.random.Generator) -> None:
    g = tools.graph((1, 3, 4, 4))
    h = g.node("Add", g.quantize("x", 0.03, 120), g.node("Relu", "x"))
    model = g.model(h)
    program = tools.lower(model)
    assert program.tensors[program.inputs[0].tensor].dtype == "float32"
    x = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(reference.run_real(program, x), tools.run(model, x), atol=1e-5)


def test_the_same_integers_read_with_another_scale(tools: Any, rng: np.random.Generator) -> None:
    g = tools.graph((1, 6))
    q = g.node("QuantizeLinear", "x", np.float32(0.05), np.uint8(100))
    h = g.node("DequantizeLinear", q, np.float32(0.1), np.uint8(90))
    model = g.model(g.node("DequantizeLinear", g.node("QuantizeLinear", h, np.float32(0.1), np.uint8(90)),
                           np.float32(0.1), np.uint8(90)))  # fmt: skip
    x = rng.normal(size=(2, 6)).astype(np.float32)
    np.testing.assert_allclose(reference.run_real(tools.lower(model), x), tools.run(model, x), atol=1e-6)


def test_a_channel_of_zero_weights_keeps_its_bias(tools: Any, rng: np.random.Generator) -> None:
    g = tools.graph((1, 3, 4, 4))
    weights = g.weights(np.array([[1, 2, 3], [0, 0, 0]], np.int8).reshape(2, 3, 1, 1), [0.1, 1e-12])
    h = g.node("Conv", g.quantize("x", 0.03, 120), weights, np.array([0.5, -2.0], np.float32))
    model = g.model(g.quantize(h, 0.02, 128))
    x = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
    assert np.abs(reference.run_real(tools.lower(model), x) - tools.run(model, x)).max() < 0.0201


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("operator", ["Conv", "depthwise", "Gemm", "MatMul"])
def test_four_bit_weights(tools: Any, rng: np.random.Generator, operator: str, per_channel: bool) -> None:
    """The layer says so, holds the integers, and computes what ONNX Runtime does."""
    from onnx import TensorProto, helper

    shape = {"Conv": (2, 3, 1, 1), "depthwise": (3, 1, 2, 2), "Gemm": (5, 7), "MatMul": (7, 5)}[operator]
    axis = 1 if operator == "MatMul" else 0
    integers = rng.integers(-8, 8, shape)
    g = tools.graph((1, 7) if len(shape) == 2 else (1, 3, 4, 4), opset=21)
    g.constants.append(helper.make_tensor("w4", TensorProto.INT4, shape, integers.reshape(-1).tolist()))
    scale = rng.uniform(0.05, 0.1, shape[axis]).astype(np.float32) if per_channel else np.float32(0.1)
    weights = g.node("DequantizeLinear", "w4", scale, **({"axis": axis} if per_channel else {}))
    options = {"depthwise": {"group": 3}, "Gemm": {"transB": 1}}.get(operator, {})
    name = "Conv" if operator == "depthwise" else operator
    model = g.model(g.quantize(g.node(name, g.quantize("x", 0.03, 120), weights, **options), 0.05, 128))
    program = tools.lower(model)
    (layer,) = program.layers
    assert layer.weight_bits == 4
    assert sorted(layer.weights.reshape(-1)) == sorted(integers.reshape(-1))
    x = rng.normal(size=(2, 7) if len(shape) == 2 else (2, 3, 4, 4)).astype(np.float32)
    assert np.abs(reference.run_real(program, x) - tools.run(model, x)).max() < 0.0501


def test_wide_values_behind_four_bit_zero_points_stay_bytes(tools: Any, rng: np.random.Generator) -> None:
    """uint4 around 0 reaches 15, which four bits of two's complement do not hold; around 8 it does not."""
    from onnx import TensorProto, helper

    for zero, bits in ((0, 8), (8, 4)):
        g = tools.graph((1, 3, 4, 4), opset=21)
        g.constants.append(helper.make_tensor("w4", TensorProto.UINT4, (2, 3, 1, 1), [0, 15, 3, 4, 8, 9]))
        g.constants.append(helper.make_tensor("z4", TensorProto.UINT4, (), [zero]))
        weights = g.node("DequantizeLinear", "w4", np.float32(0.1), "z4")
        model = g.model(g.quantize(g.node("Conv", g.quantize("x", 0.03, 120), weights), 0.05, 128))
        (layer,) = tools.lower(model).layers
        assert layer.weight_bits == bits
        np.testing.assert_array_equal(layer.weights.reshape(-1), np.array([0, 15, 3, 4, 8, 9]) - zero)


@pytest.mark.parametrize("name", ["fashion_small", "fashion_medium", "fashion_large"])
def test_shipped_example_quantized_by_onnx_runtime(tools: Any, tmp_path: Path, name: str) -> None:
    from onnxruntime.quantization import QuantType

    folder = Path(__file__).parents[2] / "examples" / "fashion"
    if not (folder / f"{name}.onnx").is_file():
        pytest.skip(f"{name}.onnx has not been trained")
    model = onnx.load(folder / f"{name}.onnx")
    test = np.load(folder / "test.npz")
    x, y = test["x"][:200], test["y"][:200]
    real = tools.lower(model)
    expected = tools.run(model, x)
    np.testing.assert_allclose(reference.run_real(real, x), expected, rtol=1e-4, atol=1e-4)
    calibration = np.load(folder / "calibration.npz")["x"][:32]
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(folder / f"{name}.onnx"), str(tmp_path / "clean.onnx"))
    qdq = tools.quantize(onnx.load(tmp_path / "clean.onnx"), calibration, tmp_path, **types)
    program = tools.lower(qdq)
    assert {layer.op for layer in program.layers} <= INTEGER_ONLY
    ours, theirs = reference.run_real(program, x), tools.run(qdq, x)
    assert (ours.argmax(1) == theirs.argmax(1)).mean() >= 0.98
    assert (ours.argmax(1) == y).mean() >= (expected.argmax(1) == y).mean() - 0.03


def test_ports_convert_both_ways(tools: Any, rng: np.random.Generator) -> None:
    program, _ = one_operator(tools, lambda g, h: g.node("MaxPool", h, kernel_shape=[1, 1]), (3, 4, 5), (0.03, 120))
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    port: Port = program.inputs[0]
    stored_x = to_stored(program, port, x)
    assert stored_x.shape == (2, 4, 5, 3) and stored_x.dtype == np.int8
    expected = np.clip(np.rint(x / np.float32(0.03)) + 120 - 128, -128, 127).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(stored_x, expected)
