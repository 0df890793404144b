"""Every TensorFlow Lite operator: int8 equal to LiteRT's reference kernels to the bit, float to rounding."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgescale.core.model import Model
from edgescale.frontend import load_model
from edgescale.lower import lower, reference
from edgescale.lower.ports import from_stored, to_stored

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")


def _files() -> Any:
    path = Path(__file__).with_name("tflite_files.py")
    spec = importlib.util.spec_from_file_location("frontend_tflite_files", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


files = _files()
X, Y, OUT = (0.037, -11), (0.021, 25), (0.043, 4)
IMAGE = (1, 6, 5, 4)
RELU, N1, RELU6 = 1, 2, 3
SAME, VALID = 0, 1

Build = Callable[[Any, Callable[[Sequence[int], tuple[float, int]], int], np.random.Generator], tuple[list[int], int]]
"""(writer, activation, random) -> (inputs, output); activation(shape, units) is int8 or, in the float run, float32."""


def conv(writer: Any, act: Any, rng: Any, **given: Any) -> tuple[list[int], int]:
    """A CONV_2D or DEPTHWISE_CONV_2D of random weights; `given` overrides what is below."""
    o = {
        "shape": IMAGE, "x": X, "out": OUT, "kernel": (3, 2), "channels": 6, "stride": (1, 1), "dilation": (1, 1),
        "padding": SAME, "activation": 0, "per_channel": True, "depth": 0, "groups": 1,
    } | given  # fmt: skip
    n, h, w, c = o["shape"]
    depthwise = o["depth"] > 0
    channels = c * o["depth"] if depthwise else o["channels"]
    size = []
    for axis, length in enumerate((h, w)):
        span = (o["kernel"][axis] - 1) * o["dilation"][axis] + 1
        room = length if o["padding"] == SAME else length - span + 1
        size.append(-(-room // o["stride"][axis]))
    x = act(o["shape"], o["x"])
    kernel = (1, *o["kernel"], channels) if depthwise else (channels, *o["kernel"], c // o["groups"])
    weights = rng.integers(-127, 128, kernel, dtype=np.int8)
    scales = rng.uniform(0.001, 0.02, channels) if o["per_channel"] else [0.011]
    axis = 3 if depthwise else 0
    parts = [weight(writer, act, weights, scales, axis)]
    # LiteRT demands a bias of quantized convolutions.
    bias = rng.integers(-9000, 9000, channels, dtype=np.int32)
    parts.append(bias_of(writer, act, bias, o["x"][0] * np.asarray(scales, np.float32)))
    out = act((n, *size, channels), o["out"])
    options = {
        "padding": o["padding"], "strideH": o["stride"][0], "strideW": o["stride"][1],
        "dilationHFactor": o["dilation"][0], "dilationWFactor": o["dilation"][1],
        "fusedActivationFunction": o["activation"],
    }  # fmt: skip
    if depthwise:
        writer.operator(
            "DEPTHWISE_CONV_2D", [x, *parts], out, "DepthwiseConv2DOptions", 3, depthMultiplier=o["depth"], **options
        )
    else:
        writer.operator("CONV_2D", [x, *parts], out, "Conv2DOptions", 3, **options)
    return [x], out


def weight(writer: Any, act: Any, integers: np.ndarray, scales: Any, axis: int) -> int:
    """Quantized weights, or what they stand for."""
    if act.quantized:
        return int(writer.const(integers, scales=list(scales), axis=axis))
    spread = np.asarray(scales, np.float32).reshape([-1 if a == axis else 1 for a in range(integers.ndim)])
    return int(writer.const((integers * spread).astype(np.float32)))


def bias_of(writer: Any, act: Any, integers: np.ndarray, scales: np.ndarray) -> int:
    if act.quantized:
        return int(writer.const(integers, scales=scales))
    return int(writer.const((integers * scales).astype(np.float32)))


def fully_connected(writer: Any, act: Any, rng: Any, **given: Any) -> tuple[list[int], int]:
    o = {"shape": (1, 24), "out_shape": (1, 7), "units": 7, "x": X, "out": OUT, "per_channel": False, "bias": True,
         "keep": False, "activation": 0} | given  # fmt: skip
    columns = o.get("columns", o["shape"][-1])
    x = act(o["shape"], o["x"])
    weights = rng.integers(-127, 128, (o["units"], columns), dtype=np.int8)
    scales = rng.uniform(0.001, 0.02, o["units"]) if o["per_channel"] else [0.0113]
    parts = [weight(writer, act, weights, scales, 0)]
    if o["bias"]:
        bias = rng.integers(-9000, 9000, o["units"], dtype=np.int32)
        parts.append(bias_of(writer, act, bias, o["x"][0] * np.asarray(scales, np.float32)))
    else:
        parts.append(-1)
    out = act(o["out_shape"], o["out"])
    version = 12 if o["per_channel"] and act.quantized else 5
    writer.operator(
        "FULLY_CONNECTED", [x, *parts], out, "FullyConnectedOptions", version,
        keepNumDims=o["keep"], fusedActivationFunction=o["activation"],
    )  # fmt: skip
    return [x], out


def binary(kind: str, **given: Any) -> Build:
    """ADD, SUB or MUL; `constant`: the second operand is one; shapes and units as given."""

    def build(writer: Any, act: Any, rng: Any) -> tuple[list[int], int]:
        o = {"shape": IMAGE, "second": IMAGE, "x": X, "y": Y, "out": OUT, "constant": False, "activation": 0} | given
        x = act(o["shape"], o["x"])
        if o["constant"]:
            integers = rng.integers(-128, 128, o["second"], dtype=np.int8)
            real = ((integers.astype(np.int32) - o["y"][1]) * np.float32(o["y"][0])).astype(np.float32)
            y = writer.const(integers, o["y"]) if act.quantized else writer.const(real)
        else:
            y = act(o["second"], o["y"])
        order = [y, x] if o.get("swap") else [x, y]
        out = act(o["shape"], o["out"])
        table = {"ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions"}[kind]
        writer.operator(kind, order, out, table, 2, fusedActivationFunction=o["activation"])
        return ([x] if o["constant"] else [x, y]), out

    return build


def unary(
    kind: str, out_shape: Sequence[int] = IMAGE, table: str = "", extra: Sequence[Any] = (), **given: Any
) -> Build:
    """One activation in, constants `extra` beside it, one out."""

    def build(writer: Any, act: Any, rng: Any) -> tuple[list[int], int]:
        o = {"shape": IMAGE, "x": X, "out": X, "version": 2} | given
        options = {k: v for k, v in o.items() if k not in ("shape", "x", "out", "version")}
        x = act(o["shape"], o["x"])
        more = [writer.const(np.asarray(values)) for values in extra]
        out = act(out_shape, o["out"])
        writer.operator(kind, [x, *more], out, table, o["version"], **options)
        return [x], out

    return build


def pool(kind: str, **given: Any) -> Build:
    o = {"filterHeight": 3, "filterWidth": 2, "strideH": 2, "strideW": 1, "padding": SAME} | given
    rooms = [6, 5] if o["padding"] == SAME else [6 - o["filterHeight"] + 1, 5 - o["filterWidth"] + 1]
    size = [-(-room // stride) for room, stride in zip(rooms, (o["strideH"], o["strideW"]), strict=True)]
    return unary(kind, (1, *size, 4), "Pool2DOptions", **o)


def mean(axes: Sequence[int], keep: bool, out_shape: Sequence[int], **given: Any) -> Build:
    return unary("MEAN", out_shape, "ReducerOptions", [np.array(axes, np.int32)], keepDims=keep, **given)


def pad(value: int | None = None) -> Build:
    def build(writer: Any, act: Any, rng: Any) -> tuple[list[int], int]:
        x = act(IMAGE, X)
        inputs = [x, writer.const(np.array([[0, 0], [1, 2], [0, 3], [2, 0]], np.int32))]
        if value is not None:
            integer, real = np.array([value], np.int8), np.array([(value - X[1]) * X[0]], np.float32)
            inputs.append(writer.const(integer, X) if act.quantized else writer.const(real))
        out = act((1, 9, 8, 6), X)
        writer.operator(
            "PAD" if value is None else "PADV2", inputs, out, "PadOptions" if value is None else "PadV2Options", 2
        )
        return [x], out

    return build


def concatenation(axis: int, sizes: Sequence[int]) -> Build:
    def build(writer: Any, act: Any, rng: Any) -> tuple[list[int], int]:
        shapes = [[*IMAGE[: axis % 4], size, *IMAGE[axis % 4 + 1 :]] for size in sizes]
        inputs = [act(shape, X) for shape in shapes]
        out = act([*IMAGE[: axis % 4], sum(sizes), *IMAGE[axis % 4 + 1 :]], X)
        writer.operator("CONCATENATION", inputs, out, "ConcatenationOptions", 2, axis=axis)
        return inputs, out

    return build


def chain(writer: Any, act: Any, rng: Any) -> tuple[list[int], int]:
    """conv -> transpose -> conv -> squeeze of what it can: orders of elements across several operators."""
    (x,), a = conv(writer, act, rng, shape=(1, 6, 6, 3), channels=6)
    b = act((1, 6, 6, 6), OUT)
    writer.operator("TRANSPOSE", [a, writer.const(np.array([0, 2, 3, 1], np.int32))], b, "TransposeOptions", 2)
    c = act((1, 6, 6, 6), (0.05, 3))
    writer.operator("ADD", [a, b], c, "AddOptions", 2)
    d = act((1, 36, 6), (0.05, 3))
    writer.operator("RESHAPE", [c, writer.const(np.array([1, 36, 6], np.int32))], d, "ReshapeOptions", 1)
    e = act((1, 6), (0.02, -3))
    writer.operator("MEAN", [d, writer.const(np.array([1], np.int32))], e, "ReducerOptions", 2)
    return [x], e


def rows(writer: Any, act: Any, rng: Any) -> tuple[list[int], int]:
    """FULLY_CONNECTED without keep_num_dims makes rows of its own, [3, 7], and a RESHAPE gives the batch back."""
    inputs, made = fully_connected(writer, act, rng, shape=(1, 3, 8), out_shape=(3, 7), columns=8)
    out = act((1, 3, 7), OUT)
    writer.operator("RESHAPE", [made, writer.const(np.array([1, 3, 7], np.int32))], out, "ReshapeOptions", 1)
    return inputs, out


def part(function: Callable[..., Any], **given: Any) -> Build:
    return lambda writer, act, rng: function(writer, act, rng, **given)


CASES: dict[str, Build] = {
    "conv": part(conv),
    "conv valid, strided, relu": part(conv, padding=VALID, stride=(2, 1), activation=RELU),
    "conv relu6": part(conv, activation=RELU6, out=(0.06, -100)),
    "conv relu -1 to 1": part(conv, activation=N1),
    "conv dilated": part(conv, shape=(1, 9, 9, 3), dilation=(2, 3)),
    "conv per tensor": part(conv, per_channel=False),
    "conv in groups": part(conv, groups=2),
    "conv even kernel, stride 3": part(conv, kernel=(4, 4), stride=(3, 3)),
    "depthwise": part(conv, depth=1, activation=RELU),
    "depthwise, multiplier 3": part(conv, depth=3, stride=(2, 2), padding=VALID),
    "depthwise of one channel": part(conv, shape=(1, 6, 5, 1), depth=5),
    "fully connected": part(fully_connected),
    "fully connected per channel, relu": part(fully_connected, per_channel=True, activation=RELU),
    "fully connected without bias": part(fully_connected, bias=False),
    "fully connected, flattening": part(fully_connected, shape=(1, 2, 3, 4), columns=24),
    "fully connected, keep_num_dims": part(fully_connected, shape=(1, 5, 8), out_shape=(1, 5, 7), keep=True),
    "fully connected, rows": rows,
    "fully connected, keep_num_dims, relu": part(
        fully_connected, shape=(1, 2, 3, 8), out_shape=(1, 2, 3, 7), keep=True, activation=RELU
    ),
    "add": binary("ADD"),
    "add relu": binary("ADD", activation=RELU),
    "add constant": binary("ADD", constant=True),
    "add constant a channel": binary("ADD", constant=True, second=(4,)),
    "add scalar": binary("ADD", constant=True, second=(1,)),
    "add one value a channel": binary("ADD", second=(1, 1, 1, 4)),
    "add constant first": binary("ADD", constant=True, second=(4,), swap=True),
    "sub": binary("SUB"),
    "sub constant": binary("SUB", constant=True, second=(4,)),
    "sub scalar": binary("SUB", constant=True, second=(1, 1, 1, 1)),
    "mul": binary("MUL"),
    "mul in small units": binary("MUL", out=(0.0007, -3)),
    "mul constant a channel": binary("MUL", constant=True, second=(1, 1, 1, 4)),
    "mul by a gate": binary("MUL", second=(1, 1, 1, 4), y=(1 / 256, -128)),
    "mul of vectors": binary("MUL", shape=(1, 9), second=(1, 9)),
    "average pool": pool("AVERAGE_POOL_2D"),
    "average pool valid": pool("AVERAGE_POOL_2D", padding=VALID),
    "max pool": pool("MAX_POOL_2D"),
    "max pool relu": pool("MAX_POOL_2D", padding=VALID, fusedActivationFunction=RELU),
    "mean": mean([1, 2], True, (1, 1, 1, 4), out=OUT),
    "mean, axes vanish": mean([1, 2], False, (1, 4), out=(0.02, 9)),
    "mean of rows": mean([1], False, (1, 5, 4), out=OUT),
    "mean of channels": mean([-1], True, (1, 6, 5, 1), out=OUT),
    "mean in equal units": mean([2, 1], False, (1, 4)),
    "softmax": unary("SOFTMAX", (1, 12), "SoftmaxOptions", shape=(1, 12), out=(1 / 256, -128), beta=1.0),
    "softmax of an image": unary("SOFTMAX", IMAGE, "SoftmaxOptions", x=(0.11, 5), out=(1 / 256, -128), beta=1.0),
    "softmax with beta": unary("SOFTMAX", (1, 12), "SoftmaxOptions", shape=(1, 12), out=(1 / 256, -128), beta=0.7),
    "reshape": unary("RESHAPE", (1, 10, 12), "ReshapeOptions", [np.array([1, 10, 12], np.int32)], version=1),
    "squeeze": unary("SQUEEZE", (1, 6, 4), "SqueezeOptions", shape=(1, 6, 1, 4), squeezeDims=[2], version=1),
    "expand dims": unary("EXPAND_DIMS", (1, 1, 6, 4), "ExpandDimsOptions", [np.int32(1)], shape=(1, 6, 4), version=1),
    "transpose": unary("TRANSPOSE", (1, 4, 6, 5), "TransposeOptions", [np.array([0, 3, 1, 2], np.int32)]),
    "transpose of rank 3": unary(
        "TRANSPOSE", (1, 4, 6), "TransposeOptions", [np.array([0, 2, 1], np.int32)], shape=(1, 6, 4)
    ),
    "pad": pad(),
    "pad with a value": pad(57),
    "concatenate channels": concatenation(3, (4, 2, 5)),
    "concatenate rows": concatenation(1, (6, 1)),
    "concatenate, negative axis": concatenation(-2, (5, 3)),
    "relu": unary("RELU", out=(0.02, -100)),
    "relu6": unary("RELU6", out=(0.06, -90)),
    "relu -1 to 1": unary("RELU_N1_TO_1", out=OUT, version=1),
    "logistic": unary("LOGISTIC", out=(1 / 256, -128)),
    "tanh": unary("TANH", out=(1 / 128, 0)),
    "hard swish": unary("HARD_SWISH", table="HardSwishOptions", out=(0.03, -100), version=1),
    "leaky relu": unary("LEAKY_RELU", table="LeakyReluOptions", out=OUT, alpha=0.21),
    "a chain": chain,
}  # fmt: skip


class Activations:
    """Makes a file's activations: int8 in their units, or float32."""

    def __init__(self, writer: Any, quantized: bool) -> None:
        self.writer = writer
        self.quantized = quantized

    def __call__(self, shape: Sequence[int], units: tuple[float, int]) -> int:
        return int(self.writer.tensor(shape, units if self.quantized else None))


def file_of(build: Build, *, quantized: bool, seed: int = 0) -> bytes:
    writer = files.Writer()
    inputs, out = build(writer, Activations(writer, quantized), np.random.default_rng(seed))
    return bytes(writer.data(inputs, [out]))


def loaded(data: bytes, folder: Path) -> Model:
    path = folder / "net.tflite"
    path.write_bytes(data)
    return load_model(path)


def integers(model: Model, count: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Uniform int8 samples with both extremes among them."""
    rng = np.random.default_rng(seed)
    made = {}
    for spec in model.inputs:
        made[spec.name] = rng.integers(-128, 128, (count, *spec.shape[1:]), dtype=np.int8)
        made[spec.name][0], made[spec.name][-1] = -128, 127
    return made


def check_exact(data: bytes, folder: Path, count: int = 6) -> None:
    """The lowered program's integers equal LiteRT's, and ports are those of the file."""
    model = loaded(data, folder)
    assert model.quantized
    litert = files.LiteRT(data)
    assert [spec.shape for spec in model.inputs] == [tuple(d["shape"]) for d in litert.inputs]
    assert {spec.dtype for spec in (*model.inputs, *model.outputs)} == {"int8"}
    program = lower(model.ir, model.name)
    assert all(port.axes == tuple(range(len(port.shape))) for port in (*program.inputs, *program.outputs))
    assert all(tensor.dtype == "int8" for tensor in program.tensors.values())
    given = integers(model, count)
    stored = {port.tensor: to_stored(program, port, given[port.name]) for port in program.inputs}
    (port,) = program.outputs
    found = reference.run(program, stored)[port.tensor].reshape(count, *port.shape[1:])
    np.testing.assert_array_equal(found, litert.run(*given.values()).reshape(found.shape))


@pytest.mark.parametrize("name", CASES)
def test_int8_equals_litert(name: str, tmp_path: Path) -> None:
    check_exact(file_of(CASES[name], quantized=True), tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_float_agrees_with_litert_in_onnx_runtime_and_lowered(name: str, tmp_path: Path) -> None:
    import onnx_ir
    import onnxruntime

    data = file_of(CASES[name], quantized=False)
    model = loaded(data, tmp_path)
    assert not model.quantized
    litert = files.LiteRT(data)
    assert [spec.shape for spec in model.inputs] == [tuple(d["shape"]) for d in litert.inputs]
    rng = np.random.default_rng(2)
    given = {s.name: rng.normal(size=(3, *s.shape[1:])).astype(np.float32) * 2 for s in model.inputs}
    theirs = litert.run(*given.values())
    session = onnxruntime.InferenceSession(
        onnx_ir.to_proto(model.ir).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rows = [session.run(None, {k: v[i : i + 1] for k, v in given.items()})[0] for i in range(3)]
    np.testing.assert_allclose(np.concatenate(rows), theirs, rtol=1e-4, atol=1e-4)
    program = lower(model.ir, model.name)
    stored = {port.tensor: to_stored(program, port, given[port.name]) for port in program.inputs}
    (port,) = program.outputs
    found = from_stored(program, port, reference.run(program, stored)[port.tensor])
    np.testing.assert_allclose(found.reshape(theirs.shape), theirs, rtol=1e-4, atol=1e-4)


scales = st.floats(-9, 0).map(lambda e: float(np.float32(2.0**e)))
zero_points = st.integers(-128, 127)
units = st.tuples(scales, zero_points)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_drawn_convolutions_equal_litert(data: Any, tmp_path: Path) -> None:
    draw = data.draw
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    # LiteRT's depthwise kernels and ours alike take either.
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2))) if stride == (1, 1) else (1, 1)
    least = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    shape = (1, draw(st.integers(least[0], 9)), draw(st.integers(least[1], 9)), draw(st.integers(1, 5)))
    x, factor = draw(units), draw(st.floats(0.2, 4.0))
    options = {
        "shape": shape, "x": x, "out": (float(np.float32(x[0] * 0.7 * factor)), draw(zero_points)), "kernel": kernel,
        "stride": stride, "dilation": dilation, "padding": draw(st.sampled_from([SAME, VALID])),
        "depth": draw(st.integers(0, 2)), "activation": draw(st.sampled_from([0, RELU, N1, RELU6])),
        "per_channel": draw(st.booleans()),
    }  # fmt: skip
    check_exact(file_of(part(conv, **options), quantized=True, seed=draw(st.integers(0, 99))), tmp_path, 3)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_drawn_fully_connected_layers_equal_litert(data: Any, tmp_path: Path) -> None:
    draw = data.draw
    x, columns, rows = draw(units), draw(st.integers(1, 40)), draw(st.integers(1, 9))
    options = {
        "shape": (1, columns), "units": rows, "out_shape": (1, rows), "x": x,
        "out": (float(np.float32(x[0] * draw(st.floats(0.1, 4.0)))), draw(zero_points)),
        "activation": draw(st.sampled_from([0, RELU, N1, RELU6])), "bias": draw(st.booleans()),
    }  # fmt: skip
    check_exact(file_of(part(fully_connected, **options), quantized=True, seed=draw(st.integers(0, 99))), tmp_path, 40)


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_drawn_arithmetic_equals_litert(data: Any, tmp_path: Path) -> None:
    draw = data.draw
    kind = draw(st.sampled_from(["ADD", "SUB", "MUL"]))
    x, y = draw(units), draw(units)
    scale = x[0] * y[0] * draw(st.floats(1.0, 300.0)) if kind == "MUL" else max(x[0], y[0]) * draw(st.floats(0.1, 4.0))
    second = draw(st.sampled_from([IMAGE, (1, 1, 1, 4), (1, 1, 1, 1)]))
    build = binary(
        kind, x=x, y=y, out=(float(np.float32(scale)), draw(zero_points)), second=second, constant=draw(st.booleans()),
        activation=draw(st.sampled_from([0, RELU, N1, RELU6])),
    )  # fmt: skip
    check_exact(file_of(build, quantized=True), tmp_path, 40)


@pytest.mark.slow
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["LOGISTIC", "TANH", "HARD_SWISH", "LEAKY_RELU", "RELU", "RELU6"]), x=units, y=units,
       alpha=st.floats(0.0, 1.5, width=32))  # fmt: skip
def test_every_input_of_drawn_activations_equals_litert(
    kind: str, x: tuple[float, int], y: tuple[float, int], alpha: float, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"alpha": alpha, "table": "LeakyReluOptions"} if kind == "LEAKY_RELU" else {}
    # What LiteRT accepts, and (hard swish) computes within int16.
    out = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0), "HARD_SWISH": (x[0] * 1.2, y[1])}.get(kind, y)
    options["version"] = 1 if kind == "HARD_SWISH" else 2
    table = options.pop("table", "HardSwishOptions" if kind == "HARD_SWISH" else "")
    data = file_of(unary(kind, (1, 256), table, shape=(1, 256), x=x, out=out, **options), quantized=True)
    model = loaded(data, tmp_path)
    program = lower(model.ir, model.name)
    every = np.arange(-128, 128, dtype=np.int8)[None]
    (found,) = reference.run(program, {program.inputs[0].tensor: every}).values()
    np.testing.assert_array_equal(found, files.LiteRT(data).run(every))
