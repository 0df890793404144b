"""QDQ ONNX with int16 activations: the integer program stays within its steps of ONNX Runtime's float arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgescale.core.errors import UnsupportedModelError
from edgescale.lower import reference
from edgescale.lower.program import Concat, Dequantize, InterpolatedLut, Mul, Quantize, Unary


def gated(tools: Any, rng: np.random.Generator) -> onnx.ModelProto:
    """Convolution, a sigmoid gate, two branches of other ranges joined, dense, softmax."""
    g = tools.graph((1, 3, 10, 8))

    def weights(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * 0.3).astype(np.float32)

    a = g.node("Relu", g.node("Conv", "x", weights(8, 3, 3, 3), weights(8), pads=[1, 1, 1, 1]))
    b = g.node("Conv", a, weights(8, 1, 3, 3), weights(8), pads=[1, 1, 1, 1], group=8)
    c = g.node("Mul", b, g.node("Sigmoid", b))
    d = g.node("Concat", a, g.node("Tanh", c), axis=1)
    e = g.node("GlobalAveragePool", g.node("MaxPool", d, kernel_shape=[2, 2], strides=[2, 2]))
    f = g.node("Gemm", g.node("Flatten", e), weights(16, 5), weights(5))
    return g.model(g.node("Softmax", f, axis=-1))


def test_what_onnx_runtimes_quantizer_writes(tools: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    from onnxruntime.quantization import QuantType

    samples = rng.normal(size=(40, 3, 10, 8)).astype(np.float32)
    model = tools.quantize(
        gated(tools, rng), samples, tmp_path, activation_type=QuantType.QInt16, weight_type=QuantType.QInt8,
        per_channel=True, extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )  # fmt: skip
    program = tools.lower(model)
    assert {tensor.dtype for tensor in program.tensors.values()} == {"int16"}
    kinds = [type(layer) for layer in program.layers]
    assert not {Quantize, Dequantize, Unary} & set(kinds)
    assert kinds.count(InterpolatedLut) == 2 and Mul in kinds
    (joined,) = [layer for layer in program.layers if isinstance(layer, Concat)]
    assert any(scaling is not None for scaling in joined.rescale)
    theirs = tools.run(model, samples)
    ours = reference.run_real(program, samples)
    # A thousandth: tables and means, not single steps, make the difference.
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_a_constant_of_its_own_range(tools: Any, rng: np.random.Generator) -> None:
    """Float constants between int16 activations get 16 bits of their own."""
    g = tools.graph((1, 4, 6, 6), opset=21)
    x = g.quantize("x", 0.0003, 0, np.int16)
    constant = rng.normal(size=(1, 4, 6, 6)).astype(np.float32)
    model = g.model(g.quantize(g.node("Mul", x, constant), 0.0006, 0, np.int16))
    samples = rng.uniform(-9, 9, (6, 4, 6, 6)).astype(np.float32)
    ours = reference.run_real(tools.lower(model), samples)
    np.testing.assert_allclose(ours, tools.run(model, samples), atol=2 * 0.0006)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda g, x, y: g.quantize(g.node("Add", x, y), 0.1, 0, np.int8),
            ["op Add", "int16 and int8", "QuantizeLinear of the other type"],
        ),
        (lambda g, x, y: g.quantize(g.node("Elu", x), 0.1, 0, np.int16), ["sigmoid and tanh", "elu"]),
        (lambda g, x, y: g.quantize(g.node("Sigmoid", x), 1 / 256, -128, np.int8), ["int8 of scale 0.0039"]),
        (lambda g, x, y: g.quantize(g.node("Relu", x), 1e-9, 0, np.int16), ["32 bits"]),
    ],
)
def test_mixed_types_and_other_functions_are_refused(tools: Any, build: Any, words: list[str]) -> None:
    g = tools.graph((1, 4))
    x = g.quantize("x", 0.0003, 0, np.int16)
    y = g.quantize(g.input("y", (1, 4)), 0.1, 0, np.int8)
    with pytest.raises(UnsupportedModelError) as caught:
        tools.lower(g.model(build(g, x, y)))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_change_of_type_is_one_layer(tools: Any) -> None:
    g = tools.graph((1, 4))
    x = g.quantize(g.quantize("x", 0.5, 3, np.int8), 0.5, 0, np.int16)
    program = tools.lower(g.model(x))
    assert [layer.op for layer in program.layers] == ["Rescale"]
    q = np.arange(-128, 128, dtype=np.int8).reshape(64, 4)
    (found,) = reference.run(program, {program.inputs[0].tensor: q}).values()
    np.testing.assert_array_equal(found, q.astype(np.int16) - 3)
