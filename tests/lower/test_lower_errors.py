"""What cannot be lowered is refused by node, rule and value, all of it at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.lower import lower_file, operators, reference

ONE = np.ones((2, 3, 1, 1), np.float32)


def refused(tools: Any, model: onnx.ModelProto) -> str:
    with pytest.raises(UnsupportedModelError) as caught:
        tools.lower(model)
    return str(caught.value)


def conv(g: Any, value: str, weights: Any = ONE, **attributes: Any) -> str:
    return g.node("Conv", value, weights, name="the_node", **attributes)


CASES: dict[str, tuple[Callable[[Any], str], list[str]]] = {
    "unknown operator": (lambda g: g.node("Erf", "x", name="the_node"), ["op Erf", "edgescale ops"]),
    "other domain": (
        lambda g: g.node("Gelu", "x", name="the_node", domain="com.microsoft"), ["com.microsoft.Gelu"]),
    "weights at run time": (lambda g: conv(g, "x", g.node("Relu", "x")), ["computed at run time"]),
    "wrong channels": (lambda g: conv(g, "x", np.ones((2, 4, 1, 1), np.float32)), ["[2, 4, 1, 1]", "1 groups"]),
    "kernel larger than the image": (
        lambda g: conv(g, "x", np.ones((2, 3, 9, 1), np.float32)), ["kernel spanning 9", "axis of 8"]),
    "padding of another rank": (lambda g: conv(g, "x", pads=[0, 0]), ["pads [0, 0]"]),
    "negative padding": (lambda g: conv(g, "x", pads=[0, -1, 0, 0]), ["pads [0, -1, 0, 0]"]),
    "nan weights": (lambda g: conv(g, "x", ONE * np.nan), ["not finite"]),
    "transA": (
        lambda g: g.node("Gemm", g.node("Flatten", "x"), np.ones((1, 4), np.float32), transA=1, name="the_node"),
        ["transA = 1"]),
    "bias of the wrong size": (
        lambda g: g.node("Gemm", g.node("Flatten", "x"), np.ones((192, 4), np.float32), np.ones(3, np.float32),
                         name="the_node"), ["C of shape [3]", "4 columns"]),
    "product of two tensors": (lambda g: g.node("MatMul", "x", "x", name="the_node"), ["computed at run time"]),
    "dilated pool": (
        lambda g: g.node("MaxPool", "x", kernel_shape=[2, 2], dilations=[2, 2], name="the_node"), ["dilation [2, 2]"]),
    "ceil mode that counts": (
        lambda g: g.node("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, count_include_pad=1,
                         name="the_node"), ["ceil_mode = 1, count_include_pad = 1"]),
    "reflecting pad": (
        lambda g: g.node("Pad", "x", np.array([0, 0, 1, 1, 0, 0, 1, 1]), mode="reflect", name="the_node"),
        ["mode 'reflect'"]),
    "cropping pad": (
        lambda g: g.node("Pad", "x", np.array([0, 0, -1, 0, 0, 0, 0, 0]), name="the_node"), ["pads [0, 0, -1"]),
    "reshape that does not fit": (
        lambda g: g.node("Reshape", "x", np.array([1, 5, -1]), name="the_node"), ["[1, 5, -1]", "[1, 3, 8, 8]"]),
    "shapes that do not broadcast": (
        lambda g: g.node("Add", g.node("GlobalMaxPool", "x"), g.node("ReduceMean", "x", axes=[1]), name="the_node"),
        ["[1, 3, 1, 1]", "[1, 1, 8, 8]"]),
    "constant larger than the tensor": (
        lambda g: g.node("Add", g.node("GlobalMaxPool", "x"), np.ones((3, 8, 8), np.float32), name="the_node"),
        ["[1, 3, 1, 1]", "[3, 8, 8]"]),
    "divisor at run time": (lambda g: g.node("Div", "x", "x", name="the_node"), ["divisor computed at run time"]),
    "division by zero": (
        lambda g: g.node("Div", "x", np.float32(0), name="the_node"), ["division by 0"]),
    "softmax over the batch is fine, concat is not": (
        lambda g: g.node("Concat", "x", "x", axis=0, name="the_node"), ["axis 0"]),
    "quantized to unsigned 16 bits": (
        lambda g: g.node("QuantizeLinear", "x", np.float32(0.1), np.uint16(0), name="the_node"), ["uint16"]),
    "int16 with a zero-point": (
        lambda g: g.node("QuantizeLinear", "x", np.float32(0.1), np.int16(-7), name="the_node"),
        ["zero-point -7", "int16 activations are symmetric"]),
    "quantized per channel": (
        lambda g: g.node("QuantizeLinear", "x", np.full(3, 0.1, np.float32), np.zeros(3, np.uint8), axis=1,
                         name="the_node"), ["3 scales", "one scale a tensor"]),
    "negative scale": (
        lambda g: g.node("QuantizeLinear", "x", np.float32(-0.1), np.uint8(0), name="the_node"), ["scale -0.1"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_message_names_node_rule_and_value(tools: Any, name: str) -> None:
    build, expected = CASES[name]
    g = tools.graph((1, 3, 8, 8), opset=17)
    message = refused(tools, _unchecked(g, build(g)))
    assert "node 'the_node'" in message and "rule: " in message and "; found " in message
    assert all(part in message for part in expected), message
    assert "\n" not in message


def _unchecked(g: Any, output: str) -> onnx.ModelProto:
    """The model without ONNX's own shape inference, which rejects some of these first."""
    infos = [onnx.helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    graph = onnx.helper.make_graph(g.nodes, "g", g.inputs, infos, g.constants)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", g.opset)])


def quantized_conv(
    tools: Any, weights: np.ndarray, scale: Any, zero: Any = None, axis: int = 0, out: float = 0.1
) -> Any:
    g = tools.graph((1, 3, 4, 4))
    h = conv(g, g.quantize("x", 0.1, 3), g.weights(weights, scale, zero, axis))
    return g.model(g.quantize(h, out, 3))


def test_asymmetric_weights(tools: Any) -> None:
    integers = np.array([[-128, 5, 127]], np.int8).reshape(1, 3, 1, 1)
    message = refused(tools, quantized_conv(tools, integers, 0.1, 4))
    assert "zero-point 4" in message and "128 for uint8" in message and "the_node" in message


def test_weights_of_integer_layers_have_scales_above_zero(tools: Any) -> None:
    message = refused(tools, quantized_conv(tools, np.ones((2, 3, 1, 1), np.int8), [0.1, -0.2]))
    assert "the_node" in message and "must be positive" in message and "-0.2" in message
    message = refused(tools, quantized_conv(tools, np.ones((2, 3, 1, 1), np.int8), [0.1, 0.0]))
    assert "must not be 0" in message


def test_activations_have_scales_above_zero(tools: Any) -> None:
    g = tools.graph((1, 3, 4, 4))
    message = refused(tools, g.model(conv(g, g.quantize("x", -0.1, 3))))
    assert "scales must be positive; found scale -0.1" in message


def test_scales_along_the_wrong_axis(tools: Any) -> None:
    message = refused(tools, quantized_conv(tools, np.ones((2, 3, 1, 1), np.int8), [0.1, 0.2, 0.3], axis=1))
    assert "per output channel (axis 0)" in message and "[1, 3, 1, 1]" in message


def test_an_accumulator_that_could_overflow(tools: Any) -> None:
    message = refused(tools, quantized_conv(tools, np.full((2, 3, 1, 1), 127, np.int8), 1.0, out=1e-9))
    assert "accumulators must fit 32 bits" in message and "channel 0" in message


@pytest.mark.parametrize("operator", ["Add", "Mul", "GlobalAveragePool", "Relu"])
def test_an_output_scale_far_below_the_data(tools: Any, operator: str) -> None:
    g = tools.graph((1, 3, 4, 4))
    h = g.quantize("x", 10.0, 3)
    h = g.node(operator, *([h, h] if operator in ("Add", "Mul") else [h]), name="the_node")
    message = refused(tools, g.model(g.quantize(h, 1e-7, 3)))
    assert "the_node" in message and "accumulators must fit 32 bits" in message


def test_a_graph_out_of_order(tools: Any) -> None:
    g = tools.graph((1, 3))
    g.nodes = [
        onnx.helper.make_node("Relu", ["later"], ["y"], "the_node"),
        onnx.helper.make_node("Relu", ["x"], ["later"]),
    ]
    assert "'later'" in refused(tools, _unchecked(g, "y"))


def test_all_unsupported_nodes_at_once(tools: Any) -> None:
    g = tools.graph((1, 3, 8, 8))
    h = g.node("Erf", "x", name="first")
    h = g.node("Relu", h, name="fine")
    h = g.node("Sign", h, name="second")
    message = refused(tools, g.model(g.node("Add", h, g.node("Sign", "x", name="third"))))
    assert [name in message for name in ("first", "second", "third", "fine")] == [True, True, True, False]
    assert len(message.splitlines()) == 3


def test_what_no_output_needs_is_not_refused(tools: Any) -> None:
    g = tools.graph((1, 3, 8, 8))
    g.node("Erf", "x")
    tools.lower(g.model(g.node("Relu", "x")))


@pytest.mark.parametrize(
    ("shape", "found"), [((2, 3), "[2, 3]"), (("N", "C"), "[N, C]"), ((), "found none"), ((1, 0), "[1, 0]")]
)
def test_input_shapes(tools: Any, shape: tuple[Any, ...], found: str) -> None:
    g = tools.graph(shape)
    message = refused(tools, _unchecked(g, g.node("Relu", "x")))
    assert "input 'x'" in message and found in message


def test_integer_inputs_and_outputs(tools: Any) -> None:
    g = tools.graph((1, 3))
    g.input("ids", (1, 3), TensorProto.INT64)
    assert "input 'ids': rule: graph inputs are float32, int8, uint8 or int16; found int64" in refused(
        tools, _unchecked(g, g.node("Add", "x", g.node("Cast", "ids", to=1)))
    )
    g = tools.graph((1, 3))
    model = _unchecked(g, g.node("Relu", "x"))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32
    message = refused(tools, model)
    assert "graph outputs are float32, or int8, uint8 or int16 behind QuantizeLinear; found int32" in message


def test_an_output_that_is_constant(tools: Any) -> None:
    g = tools.graph((1, 3))
    constant = g.node("Identity", np.ones((1, 3), np.float32))
    assert "outputs depend on an input" in refused(tools, _unchecked(g, constant))


def test_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    for data in (b"", b"not a model", bytes(64)):
        path.write_bytes(data)
        with pytest.raises(UnsupportedModelError):
            lower_file(path, "net")
    with pytest.raises(UnsupportedModelError, match="not a readable"):
        lower_file(tmp_path / "absent.onnx", "net")


def test_operators_come_with_rules() -> None:
    table = dict(operators())
    assert {"Conv", "Gemm", "MatMul", "Softmax", "QuantizeLinear", "Concat"} <= set(table)
    assert all(len(rule) > 5 and "\n" not in rule for rule in table.values())
    assert list(table) == sorted(table)


def test_the_reference_checks_its_inputs(tools: Any) -> None:
    g = tools.graph((1, 3, 4, 4))
    program = tools.lower(g.model(g.node("Relu", "x")))
    good = np.zeros((2, 4, 4, 3), np.float32)
    assert set(reference.run(program, {"x": good}, keep=["x"])) == {"x", program.outputs[0].tensor}
    for wrong in ({}, {"x": good[..., :2]}, {"x": good.astype(np.float64)}, {"x": good[:0]}):
        with pytest.raises(UsageError):
            reference.run(program, wrong)
    with pytest.raises(UsageError, match=r"takes \[n, 3, 4, 4\]"):
        reference.run_real(program, good)
    with pytest.raises(UsageError, match="no value for input x"):
        reference.run_real(program, {"y": good})
