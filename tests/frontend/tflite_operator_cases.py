"""Files of single TensorFlow Lite operators, one builder a kind, and named cases of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

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
