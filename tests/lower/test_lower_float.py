"""Float programs against ONNX Runtime: every operator, every layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgescale.lower import reference
from edgescale.lower.program import Conv2D, DepthwiseConv2D, FullyConnected, Program, Transpose


def check(tools: Any, model: onnx.ModelProto, shape: tuple[int, ...], count: int = 3, seed: int = 0) -> Program:
    """Lowered and reference-run equals ONNX Runtime within 1e-4; returns the program."""
    x = np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)
    program = tools.lower(model)
    expected = tools.run(model, x)
    found = reference.run_real(program, x)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    return program


def kinds(program: Program) -> list[str]:
    return [layer.op for layer in program.layers]


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    depthwise = draw(st.booleans())
    per_group = 1 if depthwise else draw(st.integers(1, 3))
    rank = draw(st.sampled_from([1, 2, 2]))
    kernel = [draw(st.integers(1, 4)) for _ in range(rank)]
    dilation = [draw(st.integers(1, 3)) for _ in range(rank)]
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [draw(st.integers(span, span + 6)) for span in spans]
    stride = [draw(st.integers(1, 3)) for _ in range(rank)]
    mode = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    attributes: dict[str, Any] = {"strides": stride, "dilations": dilation, "group": groups, "auto_pad": mode}
    if mode == "NOTSET":
        attributes["pads"] = [draw(st.integers(0, span - 1)) for _ in range(2) for span in spans]
    elif mode != "VALID":
        # ONNX Runtime defines SAME with dilation for stride 1 only in a way that matches ONNX.
        attributes["dilations"] = [1] * rank
    return {
        "weights": (groups * draw(st.integers(1, 3)), per_group, *kernel),
        "input": (groups * per_group, *size),
        "attributes": attributes,
        "seed": draw(st.integers(0, 1000)),
    }


@settings(max_examples=80, deadline=None)
@given(case=convolutions())
def test_conv_equals_onnx_runtime(tools: Any, case: dict[str, Any]) -> None:
    rng = np.random.default_rng(case["seed"])
    weights = rng.normal(size=case["weights"]).astype(np.float32)
    g = tools.graph((1, *case["input"]))
    y = g.node("Conv", "x", weights, rng.normal(size=weights.shape[0]).astype(np.float32), **case["attributes"])
    program = check(tools, g.model(y), case["input"], seed=case["seed"])
    groups = case["attributes"]["group"]
    expected = DepthwiseConv2D if groups > 1 and weights.shape[1] == 1 else Conv2D
    assert any(isinstance(layer, expected) for layer in program.layers)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    operator=st.sampled_from(["MaxPool", "AveragePool"]),
    rank=st.sampled_from([1, 2, 2]),
    ceil=st.booleans(),
    include=st.booleans(),
)
def test_pools_equal_onnx_runtime(
    tools: Any, data: st.DataObject, operator: str, rank: int, ceil: bool, include: bool
) -> None:
    kernel = [data.draw(st.integers(1, 4)) for _ in range(rank)]
    stride = [data.draw(st.integers(1, k)) for k in kernel]
    size = [data.draw(st.integers(k, k + 6)) for k in kernel]
    pads = [data.draw(st.integers(0, k - 1)) for _ in range(2) for k in kernel]
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": stride, "pads": pads}
    if operator == "AveragePool":
        attributes["count_include_pad"] = int(include)
    if operator == "MaxPool" or not include:
        attributes["ceil_mode"] = int(ceil)
    g = tools.graph((1, 3, *size))
    check(tools, g.model(g.node(operator, "x", **attributes)), (3, *size))


UNARY: list[tuple[str, dict[str, float]]] = [
    ("Relu", {}), ("Sigmoid", {}), ("Tanh", {}), ("Exp", {}), ("HardSwish", {}), ("HardSigmoid", {}),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}), ("LeakyRelu", {}), ("LeakyRelu", {"alpha": 0.2}), ("Elu", {}),
    ("Elu", {"alpha": 0.7}), ("Identity", {}), ("Dropout", {}),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "attributes"), UNARY, ids=lambda v: str(v))
def test_unary(tools: Any, operator: str, attributes: dict[str, float]) -> None:
    g = tools.graph((1, 3, 4, 5))
    check(tools, g.model(g.node("Sigmoid", g.node(operator, "x", **attributes))), (3, 4, 5))


def test_activations_fold_into_the_layer_in_front(tools: Any, rng: np.random.Generator) -> None:
    g = tools.graph((1, 3, 6, 6))
    h = g.node("Conv", "x", rng.normal(size=(4, 3, 3, 3)).astype(np.float32), name="first")
    h = g.node("Relu", h, name="act")
    h = g.node("Clip", h, np.float32(0.5), np.float32(2.0))
    program = check(tools, g.model(h), (3, 6, 6))
    (layer,) = program.layers
    assert isinstance(layer, Conv2D) and layer.clamp == (0.5, 2.0)
    assert layer.name == "first" and layer.nodes == ("first", "act", "clip2")


def test_an_activation_with_another_reader_in_front_stays(tools: Any, rng: np.random.Generator) -> None:
    g = tools.graph((1, 3, 6, 6))
    h = g.node("Conv", "x", rng.normal(size=(4, 3, 3, 3)).astype(np.float32))
    program = check(tools, g.model(g.node("Add", g.node("Relu", h), h)), (3, 6, 6))
    assert kinds(program) == ["Conv2D", "Unary", "Add"]


def test_batch_normalization_alone_and_folded(tools: Any, rng: np.random.Generator) -> None:
    def norm(g: Any, value: str, channels: int) -> str:
        parts = [rng.normal(size=channels).astype(np.float32) for _ in range(3)]
        return g.node("BatchNormalization", value, *parts, rng.uniform(0.5, 2, channels).astype(np.float32))

    g = tools.graph((1, 3, 6, 6))
    h = norm(g, g.node("Conv", "x", rng.normal(size=(4, 3, 3, 3)).astype(np.float32)), 4)
    assert kinds(check(tools, g.model(h), (3, 6, 6))) == ["Conv2D"]
    g = tools.graph((1, 3, 6, 6))
    assert kinds(check(tools, g.model(norm(g, "x", 3)), (3, 6, 6))) == ["DepthwiseConv2D"]
    g = tools.graph((1, 5))
    check(tools, g.model(norm(g, "x", 5)), (5,))
    g = tools.graph((1, 5, 7))
    check(tools, g.model(norm(g, "x", 5)), (5, 7))


@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, -2.0)])
@pytest.mark.parametrize("bias", [None, (4,), (1, 4), (1,)])
def test_gemm(tools: Any, rng: np.random.Generator, trans: int, alpha: float, beta: float, bias: Any) -> None:
    weights = rng.normal(size=(4, 6) if trans else (6, 4)).astype(np.float32)
    inputs = ["x", weights] + ([rng.normal(size=bias).astype(np.float32)] if bias else [])
    g = tools.graph((1, 6))
    check(tools, g.model(g.node("Gemm", *inputs, transB=trans, alpha=alpha, beta=beta)), (6,))


def test_weights_in_blocks_of_signed_scales(tools: Any, rng: np.random.Generator) -> None:
    g = tools.graph((1, 64), opset=21)
    scale = (rng.uniform(0.1, 0.2, (4, 5)) * rng.choice([-1, 1], (4, 5))).astype(np.float32)
    q = rng.integers(-8, 8, (64, 5)).astype(np.int8)
    y = g.node("MatMul", "x", g.node("DequantizeLinear", q, scale, axis=0, block_size=16))
    check(tools, g.model(y), (64,))


@pytest.mark.parametrize("operator", ["Add", "Mul"])
def test_a_quantized_constant_with_a_scale_below_zero(tools: Any, rng: np.random.Generator, operator: str) -> None:
    g = tools.graph((1, 3, 4, 5))
    constant = g.weights(rng.integers(-100, 100, (3, 1, 1)).astype(np.int8), -0.01)
    model = g.model(g.quantize(g.node(operator, g.quantize("x", 0.03, 128), constant), 0.04, 128))
    x = rng.normal(size=(3, 3, 4, 5)).astype(np.float32)
    found, expected = reference.run_real(tools.lower(model), x), tools.run(model, x)
    assert np.abs(found - expected).max() < 0.0401  # at most one level


def test_matmul_takes_the_addition_behind_it_as_bias(tools: Any, rng: np.random.Generator) -> None:
    g = tools.graph((1, 5, 6))
    h = g.node("MatMul", "x", rng.normal(size=(6, 4)).astype(np.float32))
    h = g.node("Relu", g.node("Add", rng.normal(size=4).astype(np.float32), h))
    assert kinds(check(tools, g.model(h), (5, 6))) == ["FullyConnected"]


SHAPES = [((1, 3, 4, 5), (1, 3, 4, 5)), ((1, 3, 4, 5), (1, 3, 1, 1)), ((1, 3, 4, 5), (1, 1, 1, 1)),
          ((1, 3, 4, 5), (1, 1, 4, 5)), ((1, 7, 5), (1, 1, 5)), ((1, 8), (1, 8))]  # fmt: skip


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul"])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_arithmetic_of_two_tensors(tools: Any, operator: str, swap: bool, shapes: Any) -> None:
    first, second = shapes
    g = tools.graph(first, "a")
    g.input("b", second)
    y = g.node(operator, *(("b", "a") if swap else ("a", "b")))
    model = g.model(g.node("Relu", y))
    rng = np.random.default_rng(1)
    feed = {n: rng.normal(size=(2, *s[1:])).astype(np.float32) for n, s in (("a", first), ("b", second))}
    np.testing.assert_allclose(
        reference.run_real(tools.lower(model), feed), tools.run(model, feed), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("operator", "swap"),
    [(o, s) for o in ("Add", "Sub", "Mul", "Div") for s in (False, True) if (o, s) != ("Div", True)],
)
@pytest.mark.parametrize("shape", [(), (1,), (3, 1, 1), (1, 3, 1, 1), (4, 5), (5,), (1, 3, 4, 5)], ids=str)
def test_arithmetic_with_a_constant(tools: Any, operator: str, swap: bool, shape: Any) -> None:
    constant = np.random.default_rng(2).uniform(0.5, 2, shape).astype(np.float32)
    g = tools.graph((1, 3, 4, 5))
    h = g.node("Relu", "x")
    check(tools, g.model(g.node(operator, *((constant, h) if swap else (h, constant)))), (3, 4, 5))


def test_channels_last_export_needs_no_transpose(tools: Any, rng: np.random.Generator) -> None:
    g = tools.graph(("N", 8, 8, 3))
    h = g.node("Transpose", "x", perm=[0, 3, 1, 2])
    h = g.node("Conv", h, rng.normal(size=(4, 3, 3, 3)).astype(np.float32), auto_pad="SAME_UPPER", strides=[2, 2])
    h = g.node("Transpose", g.node("Relu", h), perm=[0, 2, 3, 1])
    h = g.node("ReduceMean", h, axes=[1, 2], keepdims=0)
    h = g.node("MatMul", h, rng.normal(size=(4, 5)).astype(np.float32))
    program = check(tools, g.model(h), (8, 8, 3))
    assert kinds(program) == ["Conv2D", "Mean", "FullyConnected"]
    assert program.inputs[0].axes == (0, 1, 2, 3)


@pytest.mark.parametrize("how", ["flatten", "reshape", "reshape0", "squeeze"])
def test_flatten_permutes_weights_instead_of_bytes(tools: Any, rng: np.random.Generator, how: str) -> None:
    g = tools.graph((1, 3, 4, 5))
    h = g.node("Conv", "x", rng.normal(size=(6, 3, 2, 2)).astype(np.float32))
    if how == "flatten":
        h = g.node("Flatten", h)
    elif how == "squeeze":
        h = g.node("Reshape", g.node("Squeeze", h, np.array([0])), np.array([1, -1]))
    else:
        h = g.node("Reshape", h, np.array([-1, 72] if how == "reshape" else [0, -1]))
    h = g.node("Gemm", h, rng.normal(size=(7, 72)).astype(np.float32), transB=1)
    program = check(tools, g.model(h), (3, 4, 5))
    assert kinds(program) == ["Conv2D", "FullyConnected"]


def test_a_flattened_output_is_put_into_onnx_order(tools: Any, rng: np.random.Generator) -> None:
    g = tools.graph((1, 3, 4, 5))
    h = g.node("Conv", "x", rng.normal(size=(6, 3, 2, 2)).astype(np.float32))
    program = check(tools, g.model(g.node("Flatten", h)), (3, 4, 5))
    assert sum(isinstance(layer, Transpose) for layer in program.layers) == 1


@pytest.mark.parametrize("shape", [(1, 6, 2, 10), (1, 2, 3, 20), (1, 30, 4), (1, 5, 4, 6), (1, 8, 15)])
def test_reshape_in_the_middle(tools: Any, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    g = tools.graph((1, 3, 5, 9))
    h = g.node("Conv", "x", rng.normal(size=(6, 3, 2, 6)).astype(np.float32), pads=[0, 1, 0, 0])
    h = g.node("Reshape", h, np.array(shape))
    kernel = (4, shape[1], *([1] * (len(shape) - 2)))
    check(tools, g.model(g.node("Conv", h, rng.normal(size=kernel).astype(np.float32))), (3, 5, 9))


def test_one_dimensional_net(tools: Any, rng: np.random.Generator) -> None:
    g = tools.graph((1, 3, 40))
    h = g.node("Conv", "x", rng.normal(size=(8, 3, 5)).astype(np.float32), strides=[2], pads=[2, 1])
    h = g.node("MaxPool", g.node("Relu", h), kernel_shape=[2], strides=[2])
    h = g.node("Conv", h, rng.normal(size=(8, 1, 3)).astype(np.float32), group=8, dilations=[2])
    h = g.node("Transpose", h, perm=[0, 2, 1])
    h = g.node("MatMul", h, rng.normal(size=(8, 4)).astype(np.float32))
    h = g.node("Softmax", g.node("Flatten", h))
    program = check(tools, g.model(h), (3, 40))
    assert kinds(program).count("Transpose") == 0
    assert program.tensors[program.inputs[0].tensor].shape == (1, 1, 40, 3)


@pytest.mark.parametrize("axis", [1, 2, 3, -1])
def test_softmax_and_concat_along_any_axis(tools: Any, rng: np.random.Generator, axis: int) -> None:
    g = tools.graph((1, 3, 4, 5))
    h = g.node("Conv", "x", rng.normal(size=(3, 3, 1, 1)).astype(np.float32))
    h = g.node("Concat", g.node("Softmax", h, axis=axis), "x", axis=axis)
    check(tools, g.model(h), (3, 4, 5))


@pytest.mark.parametrize("axes", [[2, 3], [1], [1, 2], [3], [-1, 1], [1, 2, 3]])
@pytest.mark.parametrize("keep", [0, 1])
def test_reduce_mean(tools: Any, axes: list[int], keep: int) -> None:
    for opset, given_axes in ((17, {"axes": axes}), (18, {})):
        g = tools.graph((1, 3, 4, 5), opset=opset)
        extra = [] if opset == 17 else [np.array(axes)]
        check(tools, g.model(g.node("ReduceMean", "x", *extra, keepdims=keep, **given_axes)), (3, 4, 5))


@pytest.mark.parametrize("operator", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 7)])
def test_global_pools(tools: Any, operator: str, shape: tuple[int, ...]) -> None:
    g = tools.graph((1, *shape))
    check(tools, g.model(g.node(operator, "x")), shape)


@pytest.mark.parametrize("pads", [[0, 0, 1, 2, 0, 0, 3, 0], [0, 1, 0, 0, 0, 2, 0, 0]])
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_pad(tools: Any, rng: np.random.Generator, pads: list[int], value: float) -> None:
    g = tools.graph((1, 3, 4, 5))
    h = g.node("Pad", "x", np.array(pads), np.float32(value))
    channels = 3 + pads[1] + pads[5]
    h = g.node("Conv", h, rng.normal(size=(2, channels, 3, 3)).astype(np.float32))
    program = check(tools, g.model(h), (3, 4, 5))
    # Zeros around the image become the convolution's own padding.
    assert ("Pad" in kinds(program)) == (value != 0 or channels != 3)


def test_shapes_computed_in_the_graph_are_constants(tools: Any, rng: np.random.Generator) -> None:
    g = tools.graph(("batch", 3, 4, 5))
    h = g.node("Relu", "x")
    batch = g.node("Gather", g.node("Shape", h), np.array([0]))
    shape = g.node("Concat", batch, np.array([-1]), axis=0)
    h = g.node("Gemm", g.node("Reshape", h, shape), rng.normal(size=(60, 4)).astype(np.float32))
    model = g.model(h)
    program = tools.lower(model)
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(reference.run_real(program, x), tools.run(model, x), rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_chains_of_layout_changes(tools: Any, data: st.DataObject) -> None:
    """Random Transpose, Reshape, Squeeze and Unsqueeze between layers that fix a layout."""
    rng = np.random.default_rng(0)
    shape = (1, data.draw(st.sampled_from([2, 4, 6])), data.draw(st.sampled_from([2, 3, 4])), 6)
    g = tools.graph(shape)
    h = g.node("Conv", "x", rng.normal(size=(4, shape[1], 1, 1)).astype(np.float32))
    current = (4, *shape[2:])
    for _ in range(data.draw(st.integers(1, 5))):
        if data.draw(st.booleans()):
            order = data.draw(st.permutations(range(len(current))))
            h = g.node("Transpose", h, perm=[0, *(axis + 1 for axis in order)])
            current = tuple(current[axis] for axis in order)
        else:
            total, sizes = int(np.prod(current)), []
            while len(sizes) < 2:
                rest = total // int(np.prod(sizes))
                sizes.append(data.draw(st.sampled_from([d for d in range(1, rest + 1) if rest % d == 0])))
            current = (*sizes, total // int(np.prod(sizes)))
            h = g.node("Reshape", h, np.array([1, *current]))
    kernel = rng.normal(size=(3, current[0], 1, 1)).astype(np.float32)
    if len(current) == 2:
        kernel = kernel[..., 0]
    check(tools, g.model(g.node("Conv", h, kernel)), shape[1:])


def test_names_of_the_users_nodes_survive(tools: Any, rng: np.random.Generator) -> None:
    g = tools.graph((1, 6))
    h = g.node("Gemm", "x", rng.normal(size=(6, 4)).astype(np.float32), name="")
    h = g.node("Gemm", h, rng.normal(size=(4, 4)).astype(np.float32), name="head/fc")
    program = tools.lower(g.model(h))
    assert [layer.name for layer in program.layers] == ["Gemm_0", "head/fc"]
    assert all(isinstance(layer, FullyConnected) for layer in program.layers)


def test_every_tensor_has_one_maker(tools: Any, rng: np.random.Generator) -> None:
    g = tools.graph((1, 3, 4, 5))
    h = g.node("Conv", "x", rng.normal(size=(6, 3, 2, 2)).astype(np.float32))
    h = g.node("Flatten", g.node("Softmax", h, axis=1))
    program = tools.lower(g.model(h))
    made = [layer.output for layer in program.layers] + [port.tensor for port in program.inputs]
    assert sorted(made) == sorted(program.tensors)
