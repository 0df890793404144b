"""int16 activations: every operator of a TensorFlow Lite file equal to LiteRT's reference kernels to the bit."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.model import Model
from edgescale.frontend import load_model
from edgescale.lower import interpolated, lower, reference
from edgescale.lower.ports import from_stored, to_stored

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")


def _files() -> Any:
    name = "frontend_tflite_int16_files"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("tflite_int16_files.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


made = _files()
Net, UNIT, SAME, VALID = made.Net, made.UNIT, made.SAME, made.VALID
IMAGE = (1, 6, 5, 4)
X, Y, OUT = 0.0003, 0.0002, 0.0011
RELU, N1, RELU6 = 1, 2, 3
NONE = 0


def image(net: Any, scale: float = X) -> int:
    return int(net.input(IMAGE, scale))


def whole_net(net: Any) -> int:
    """A small classifier: convolution, depthwise, residual, pool, dense, softmax."""
    a = net.conv(net.input((1, 12, 10, 3), X), 0.0008, channels=8, stride=(2, 2), activation=RELU)
    b = net.conv(a, 0.0009, depth=1, kernel=(3, 3), activation=RELU)
    c = net.conv(b, 0.0008, channels=8, kernel=(1, 1))
    d = net.binary("ADD", a, c, 0.0012, RELU)
    e = net.pool("AVERAGE", d, kernel=(3, 3), stride=(3, 3), padding=VALID)
    return int(net.softmax(net.dense(e, 0.0015, 10)))


CASES: dict[str, Callable[[Any], int]] = {
    "conv": lambda n: n.conv(image(n), OUT),
    "conv per tensor, valid, strided, relu": lambda n: n.conv(
        image(n), OUT, per_channel=False, stride=(2, 1), padding=VALID, activation=RELU),
    "conv relu6": lambda n: n.conv(image(n), X, activation=RELU6),
    "conv relu -1 to 1": lambda n: n.conv(image(n), X, activation=N1),
    "conv dilated": lambda n: n.conv(n.input((1, 9, 9, 3), X), OUT, dilation=(2, 3)),
    "conv in groups": lambda n: n.conv(image(n), OUT, groups=2),
    "conv whose sums leave 32 bits": lambda n: n.conv(
        n.input((1, 5, 5, 64), X), 0.02, kernel=(3, 3), extreme=True, spread=3.0),
    "conv with biases beyond 32 bits": lambda n: n.conv(
        n.input((1, 4, 4, 3), 2.0**-15), 0.3, spread=4e3),
    "depthwise with biases beyond 32 bits": lambda n: n.conv(
        n.input((1, 4, 4, 3), 2.0**-15), 0.3, depth=1, spread=4e3),
    "fully connected with biases beyond 32 bits": lambda n: n.dense(
        n.input((1, 40), X), 0.9, 9, spread=2e4),
    "depthwise": lambda n: n.conv(image(n), OUT, depth=1, activation=RELU),
    "depthwise, multiplier 3": lambda n: n.conv(image(n), OUT, depth=3, stride=(2, 2), padding=VALID),
    "fully connected": lambda n: n.dense(n.input((1, 24), X), OUT, 7),
    "fully connected per channel, relu": lambda n: n.dense(
        n.input((1, 24), X), OUT, 7, per_channel=True, activation=RELU),
    "fully connected without bias": lambda n: n.dense(n.input((1, 24), X), OUT, 7, bias=None),
    "fully connected, flattening": lambda n: n.dense(image(n), OUT, 7),
    "fully connected, keep_num_dims": lambda n: n.dense(n.input((1, 5, 8), X), OUT, 7, keep=True),
    "fully connected whose sums leave 32 bits": lambda n: n.dense(
        n.input((1, 2000), X), 0.03, 5, extreme=True, spread=9.0),
    "fully connected, ties": lambda n: n.dense(n.input((1, 3), 2.0**-12), 2.0**-13, 9),
    "add": lambda n: n.binary("ADD", image(n), image(n, Y), 0.0007),
    "add relu": lambda n: n.binary("ADD", image(n), image(n, Y), 0.0005, RELU),
    "add, powers of two": lambda n: n.binary("ADD", image(n, 2.0**-12), image(n, 2.0**-13), 2.0**-11),
    "add one value a channel": lambda n: n.binary("ADD", image(n), n.input((1, 1, 1, 4), Y), 0.0007),
    "add constant": lambda n: n.binary("ADD", image(n), n.constant(IMAGE, Y), 0.0007),
    "add constant a channel": lambda n: n.binary("ADD", image(n), n.constant((4,), Y), 0.0007),
    "sub": lambda n: n.binary("SUB", image(n), image(n, Y), 0.0007),
    "sub constant": lambda n: n.binary("SUB", image(n), n.constant((1,), Y), 0.0007),
    "mul": lambda n: n.binary("MUL", image(n), image(n, Y), 0.004),
    "mul in small units": lambda n: n.binary("MUL", image(n), image(n, Y), 0.0001),
    "mul by a gate": lambda n: n.binary("MUL", image(n), n.input((1, 1, 1, 4), UNIT), X),
    "mul constant": lambda n: n.binary("MUL", image(n), n.constant((4,), Y), 0.004),
    "average pool": lambda n: n.pool("AVERAGE", image(n)),
    "average pool valid, relu": lambda n: n.pool("AVERAGE", image(n), padding=VALID, activation=RELU),
    "max pool": lambda n: n.pool("MAX", image(n)),
    "max pool relu6": lambda n: n.pool("MAX", image(n), padding=VALID, activation=RELU6),
    "mean": lambda n: n.mean(image(n), [1, 2], Y),
    "mean, axes vanish": lambda n: n.mean(image(n), [1, 2], OUT, keep=False),
    "mean in equal units": lambda n: n.mean(image(n), [1, 2], X),
    "mean of channels": lambda n: n.mean(image(n), [3], OUT),
    "softmax": lambda n: n.softmax(n.input((1, 12), X)),
    "softmax of an image": lambda n: n.softmax(image(n, 0.001)),
    "softmax of one": lambda n: n.softmax(n.input((1, 1), X)),
    "logistic": lambda n: n.unary("LOGISTIC", image(n), UNIT),
    "tanh": lambda n: n.unary("TANH", image(n), UNIT),
    "relu": lambda n: n.unary("RELU", image(n), Y),
    "relu in equal units": lambda n: n.unary("RELU", image(n), X),
    "relu6": lambda n: n.unary("RELU6", image(n), Y),
    "pad": lambda n: n.binary("ADD", n.pad(image(n), [[0, 0], [1, 2], [0, 3], [2, 0]]), n.constant((1,), Y), 0.0007),
    "pad with a value": lambda n: n.pad(image(n), [[0, 0], [1, 2], [0, 3], [2, 0]], -1234),
    "concatenate channels": lambda n: n.concat([image(n), n.input((1, 6, 5, 2), X)], 3),
    "concatenate rows": lambda n: n.concat([image(n), n.input((1, 1, 5, 4), X)], 1),
    "reshape": lambda n: n.mean(n.reshape(image(n), (1, 10, 12)), [1], OUT),
    "transpose": lambda n: n.conv(n.transpose(image(n), (0, 3, 1, 2)), OUT),
    "slice": lambda n: n.unary("RELU", n.slice(image(n), (0, 1, 2, 0), (1, 3, 2, 4)), Y),
    "requantize": lambda n: n.quantize(image(n), Y),
    "int16 to int8": lambda n: n.quantize(image(n), 0.04, "INT8", -5),
    "int8 to int16": lambda n: n.quantize(n.input(IMAGE, 0.04, "INT8", -5), X),
    "int8 to int16 in equal units": lambda n: n.quantize(n.input(IMAGE, 0.04, "INT8", 0), 0.04),
    "int8 in, int16 inside, int8 out": lambda n: n.quantize(
        n.conv(n.quantize(n.input(IMAGE, 0.04, "INT8", -5), X), OUT), 0.3, "INT8", 3),
    "a whole net": whole_net,
}  # fmt: skip


def loaded(data: bytes, folder: Path) -> Model:
    path = folder / "net.tflite"
    path.write_bytes(data)
    return load_model(path)


def samples(model: Model, count: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Uniform integers with both extremes and small values among them."""
    rng = np.random.default_rng(seed)
    given = {}
    for spec in model.inputs:
        limits = np.iinfo(spec.dtype)
        values = rng.integers(limits.min, limits.max + 1, (count, *spec.shape[1:])).astype(spec.dtype)
        values[0], values[1] = limits.min, limits.max
        values[2] = rng.normal(0, limits.max / 30, values[2].shape)
        given[spec.name] = values
    return given


def check_exact(data: bytes, folder: Path, count: int = 8, oracle: bytes | None = None) -> None:
    """The lowered program's integers equal LiteRT's on `oracle` (default: the same file)."""
    model = loaded(data, folder)
    litert = made.files.LiteRT(oracle or data)
    program = lower(model.ir, model.name)
    assert all(tensor.dtype in ("int8", "int16") for tensor in program.tensors.values())
    values = samples(model, count)
    stored = {port.tensor: to_stored(program, port, values[port.name]) for port in program.inputs}
    (port,) = program.outputs
    assert [spec.dtype for spec in model.outputs] == [port.dtype]
    found = reference.run(program, stored)[port.tensor].reshape(count, *port.shape[1:])
    np.testing.assert_array_equal(found, litert.run(*values.values()).reshape(found.shape))


@pytest.mark.parametrize("name", CASES)
def test_int16_equals_litert(name: str, tmp_path: Path) -> None:
    net = Net()
    check_exact(net.file(CASES[name](net)), tmp_path)


@pytest.mark.parametrize("kind", ["conv", "depthwise", "dense"])
def test_biases_of_32_bits_are_those_of_64(kind: str, tmp_path: Path) -> None:
    """LiteRT reads the int32 biases of int16 convolutions as if they had 64 bits; the oracle's have."""

    def file(bias: Any) -> bytes:
        net = Net(4)
        if kind == "dense":
            return bytes(net.file(net.dense(image(net), OUT, 7, bias=bias)))
        return bytes(net.file(net.conv(image(net), OUT, depth=int(kind == "depthwise"), bias=bias)))

    check_exact(file(np.int32), tmp_path, oracle=file(np.int64))


def test_float_edges(tmp_path: Path) -> None:
    """float32 in and out: what is between is int16, and outputs are the dequantized integers."""
    net = Net()
    data = net.file(net.dequantize(net.conv(net.quantize(net.input(IMAGE, None), X), OUT)))
    model = loaded(data, tmp_path)
    program = lower(model.ir, model.name)
    # Multiples of the scale: halves, which LiteRT and ONNX round to different sides, do not occur.
    values = np.random.default_rng(0).integers(-32768, 32768, (4, *IMAGE[1:])).astype(np.float32) * np.float32(X)
    (port,) = program.inputs
    (out,) = program.outputs
    found = reference.run(program, {port.tensor: to_stored(program, port, values)})[out.tensor]
    np.testing.assert_array_equal(from_stored(program, out, found), made.files.LiteRT(data).run(values))


def test_onnx_runtime_agrees_to_rounding(tmp_path: Path) -> None:
    """The QDQ form in ONNX Runtime, which computes in float32 between the integers, within a thousandth."""
    import onnx_ir
    import onnxruntime

    net = Net()
    data = net.file(whole_net(net))
    model = loaded(data, tmp_path)
    session = onnxruntime.InferenceSession(
        onnx_ir.to_proto(model.ir).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    values = samples(model, 6)
    (name,) = values
    rows = [session.run(None, {name: values[name][i : i + 1]})[0] for i in range(6)]
    theirs = made.files.LiteRT(data).run(values[name])
    assert np.abs(np.concatenate(rows).astype(int) - theirs).max() <= 32


REFUSED: dict[str, tuple[Callable[[Any], int], list[str]]] = {
    "zero-point": (lambda n: n.conv(n.input(IMAGE, X, "INT16", 3), OUT), ["zero-point of 0", "zero-point 3"]),
    "function without a table": (lambda n: n.unary("HARD_SWISH", image(n), Y, "HardSwishOptions"), ["hardswish"]),
    "scale of a sigmoid": (lambda n: n.unary("LOGISTIC", image(n, 6.0), UNIT), ["below 16/3", "scale 6"]),
    "scales of a concatenation": (lambda n: n.concat([image(n), image(n, Y)], 3), ["one scale", "0.0003, 0.0002"]),
    "scales of a pool": (lambda n: n.pool("MAX", image(n), scale=Y), ["one scale", "0.0003, 0.0002"]),
    "two types": (
        lambda n: n.operator("ADD", [image(n), n.input(IMAGE, 0.1, "INT8")], IMAGE, OUT, "AddOptions"), ["int8"]),
    "addition by shifts": (
        lambda n: n.operator("ADD", [image(n, 2.0**-12), image(n, 2.0**-12)], IMAGE, 2.0**-11, "AddOptions",
                             potScaleInt16=True), ["pot_scale_int16"]),
    "beta": (lambda n: n.unary("SOFTMAX", image(n), UNIT, "SoftmaxOptions", beta=0.7), ["beta 0.7"]),
    "tiny output scale": (lambda n: n.conv(image(n), 1e-9), ["16", "channel"]),
    "bias beyond 62 bits": (
        lambda n: n.operator(
            "FULLY_CONNECTED", [n.input((1, 3), X), n.writer.const(np.ones((2, 3), np.int8), scales=[0.1]),
            n.writer.const(np.array([2**62, 1]), scales=[X * 0.1])], (1, 2), OUT, "FullyConnectedOptions"),
        ["within 62 bits", str(2**62)]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_covered_is_refused(name: str, tmp_path: Path) -> None:
    build, words = REFUSED[name]
    net = Net()
    data = net.file(build(net))
    with pytest.raises(UnsupportedModelError) as caught:
        model = loaded(data, tmp_path)
        lower(model.ir, model.name)
    assert all(word in str(caught.value) for word in words), str(caught.value)


scales = st.floats(-15, -6).map(lambda e: float(np.float32(2.0**e)))
DRAWN = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
seeds = st.integers(0, 999)


@settings(max_examples=40, **DRAWN)
@given(data=st.data())
def test_drawn_convolutions_equal_litert(data: Any, tmp_path: Path) -> None:
    draw = data.draw
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2))) if stride == (1, 1) else (1, 1)
    least = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    shape = (1, draw(st.integers(least[0], 9)), draw(st.integers(least[1], 9)), draw(st.sampled_from([1, 2, 5, 40])))
    net = Net(draw(seeds))
    x = draw(scales)
    scale = float(np.float32(x * draw(st.floats(0.3, 9.0))))
    out = net.conv(
        net.input(shape, x), scale, kernel=kernel, stride=stride,
        dilation=dilation, padding=draw(st.sampled_from([SAME, VALID])), depth=draw(st.integers(0, 2)),
        activation=draw(st.sampled_from([NONE, RELU, N1, RELU6])), per_channel=draw(st.booleans()),
        extreme=draw(st.booleans()), spread=scale * draw(st.sampled_from([0, 100, 30000, 10**6])),
    )  # fmt: skip
    check_exact(net.file(out), tmp_path, 4)


@settings(max_examples=40, **DRAWN)
@given(data=st.data())
def test_drawn_fully_connected_layers_equal_litert(data: Any, tmp_path: Path) -> None:
    draw = data.draw
    net = Net(draw(seeds))
    x = draw(scales)
    scale = float(np.float32(x * draw(st.floats(0.05, 9.0) | st.sampled_from([0.5, 0.25, 1.0, 2.0]))))
    out = net.dense(
        net.input((1, draw(st.integers(1, 600))), x), scale, draw(st.integers(1, 9)),
        per_channel=draw(st.booleans()), bias=draw(st.sampled_from([None, np.int64])),
        activation=draw(st.sampled_from([NONE, RELU, N1, RELU6])), extreme=draw(st.booleans()),
        spread=scale * draw(st.sampled_from([0, 100, 30000, 10**6])),
    )  # fmt: skip
    check_exact(net.file(out), tmp_path, 40)


@settings(max_examples=60, **DRAWN)
@given(data=st.data())
def test_drawn_arithmetic_equals_litert(data: Any, tmp_path: Path) -> None:
    draw = data.draw
    kind = draw(st.sampled_from(["ADD", "SUB", "MUL"]))
    x, y = draw(scales), draw(scales)
    scale = x * y * draw(st.floats(4.0, 40000.0)) if kind == "MUL" else max(x, y) * draw(st.floats(0.1, 4.0))
    net = Net(draw(seeds))
    shape = draw(st.sampled_from([IMAGE, (1, 1, 1, 4), (1, 1, 1, 1)]))
    a = image(net, x)
    b = net.constant(shape, y) if draw(st.booleans()) else net.input(shape, y)
    out = net.binary(kind, a, b, float(np.float32(scale)), draw(st.sampled_from([NONE, RELU, N1, RELU6])))
    check_exact(net.file(out), tmp_path, 40)


@settings(max_examples=40, **DRAWN)
@given(data=st.data())
def test_drawn_pools_means_and_clamps_equal_litert(data: Any, tmp_path: Path) -> None:
    draw = data.draw
    x, factor = draw(scales), draw(st.floats(0.1, 4.0))
    net = Net(draw(seeds))
    shape = (1, draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(1, 5)))
    a = net.input(shape, x)
    kind = draw(st.sampled_from(["AVERAGE", "MAX", "MEAN", "RELU", "RELU6", "QUANTIZE"]))
    scale = float(np.float32(x * factor))
    if kind == "MEAN":
        out = net.mean(a, draw(st.sampled_from([[1, 2], [1], [2], [3], [1, 2, 3]])), scale)
    elif kind == "QUANTIZE":
        out = net.quantize(a, scale * 256, "INT8", draw(st.integers(-128, 127)))
    elif kind.startswith("RELU"):
        out = net.unary(kind, a, scale)
    else:
        kernel = (draw(st.integers(1, shape[1])), draw(st.integers(1, shape[2])))
        out = net.pool(
            kind, a, kernel=kernel, stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
            padding=draw(st.sampled_from([SAME, VALID])), activation=draw(st.sampled_from([NONE, RELU, N1, RELU6])),
        )  # fmt: skip
    check_exact(net.file(out), tmp_path, 20)


@settings(max_examples=40, **DRAWN)
@given(scale=scales | st.sampled_from([2.0**-12, 2.0**-11, 1.0, 5.0, 1e-7]), kind=st.sampled_from(["LOGISTIC", "TANH"]))
def test_every_input_of_drawn_activations_equals_litert(scale: float, kind: str, tmp_path: Path) -> None:
    net = Net()
    data = net.file(net.unary(kind, net.input((1, 65536), scale), UNIT))
    model = loaded(data, tmp_path)
    program = lower(model.ir, model.name)
    every = np.arange(-32768, 32768).astype(np.int16)[None]
    (found,) = reference.run(program, {program.inputs[0].tensor: every}).values()
    np.testing.assert_array_equal(found, made.files.LiteRT(data).run(every))


@settings(max_examples=30, **DRAWN)
@given(data=st.data())
def test_drawn_softmax_equals_litert(data: Any, tmp_path: Path) -> None:
    net = Net()
    width = data.draw(st.integers(1, 300))
    out = net.softmax(net.input((1, data.draw(st.integers(1, 3)), width), data.draw(scales)))
    check_exact(net.file(out), tmp_path, 40)


def test_tables_are_monotonic() -> None:
    """Interpolated exponential and sigmoid never fall as their argument grows."""
    every = np.arange(-32768, 32768, dtype=np.int64)
    assert (np.diff(interpolated.interpolate(every, interpolated.exponential_table())) >= 0).all()
    assert (np.diff(interpolated.interpolate(every, interpolated.reciprocal_table())) <= 0).all()
    assert (np.diff(interpolated.sigmoid_table().astype(int)) >= 0).all()
