"""Generated C of random single-layer programs equals the NumPy reference, also where plans overlap.

Each compiler call takes a batch of programs; every batch is built twice: for this machine, and along
the paths of cores without a long multiply or a divide.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edgescale.lower.program import (
    Add,
    Concat,
    Conv2D,
    DepthwiseConv2D,
    Dequantize,
    FullyConnected,
    Lut,
    Mean,
    Mul,
    Pad,
    Pool2D,
    Quantize,
    Requant,
    Rescale,
    Softmax,
    Tensor,
    Transpose,
    Unary,
)
from tests.seeds import SEEDS

BATCH = settings(
    max_examples=2,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
FREE = (-math.inf, math.inf)

zero_points = st.sampled_from([-128, 127, 0]) | st.integers(-128, 127)


def requant(draw, channels: int, bound: int, rounding: str = "double") -> Requant:
    """Factors that put accumulators of `bound` around the int8 range, with extremes now and then."""
    size = channels if draw(st.booleans()) else 1
    rng = np.random.default_rng(draw(SEEDS))
    multiplier = rng.integers(2**30, 2**31, size)
    bits = max(1, bound).bit_length()
    shift = rng.integers(-2, 4, size) + 7 - bits
    kind = draw(st.integers(0, 5))
    if kind == 0:
        multiplier[rng.integers(size)] = 0
    if kind == 1:
        multiplier, shift = multiplier >> rng.integers(0, 9, size), shift
    if kind == 2:
        shift[...] = rng.integers(-31, 1, size)
    if kind == 3:
        shift[...] = min(0, 30 - bits)
    shift = np.clip(shift, -31, max(-31, 31 - bits))
    return Requant(multiplier.astype(np.int32), shift.astype(np.int32), rounding)


def clamp(draw) -> tuple[float, float]:
    low = draw(st.sampled_from([-128, -128, -5, 3]))
    return low, draw(st.sampled_from([127, 127, 40, max(low, 3)]))


def weights(rng: np.random.Generator, shape: tuple[int, ...], kind: int) -> np.ndarray:
    if kind == 0:
        return rng.choice(np.array([-127, 127], np.int8), shape)
    return rng.integers(-127, 128, shape).astype(np.int8)


def int8(name: str, shape, zero_point: int, scale: float = 0.05) -> Tensor:
    return Tensor(name, tuple(shape), "int8", scale, zero_point)


@st.composite
def window_layers(draw, kind: str, dtype: str = "int8"):
    """(layer, input, output) of a convolution, depthwise convolution or pool."""
    rng = np.random.default_rng(draw(SEEDS))
    k = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    if draw(st.integers(0, 9)) == 0:
        k = (9, 3)
    if draw(st.integers(0, 4)) == 0:
        k = (1, 1)
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    if k == (1, 1) and draw(st.booleans()):
        stride = (1, 1)
    dilation = (1, 1) if kind == "pool" else (draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from([1, 1, 2, 3])))
    reach = [(a - 1) * d + 1 for a, d in zip(k, dilation, strict=True)]
    limit = [min(r, 3) for r in reach] if kind != "pool" else [a - 1 for a in k]
    pads = tuple(draw(st.integers(0, limit[axis % 2])) if draw(st.booleans()) else 0 for axis in range(4))
    size = [max(draw(st.integers(1, 9)), reach[axis] - pads[axis] - pads[axis + 2], 1) for axis in range(2)]
    out_size = [(size[a] + pads[a] + pads[a + 2] - reach[a]) // stride[a] + 1 for a in range(2)]
    groups = draw(st.sampled_from([1, 1, 2, 3])) if kind == "conv" else 1
    depth = draw(st.integers(1, 9))
    width = draw(st.integers(1, 5))
    in_c = depth * groups
    zp_in, zp_out = draw(zero_points), draw(zero_points)
    source = int8("x", (1, *size, in_c), zp_in)
    if dtype == "float32":
        source = Tensor("x", source.shape, "float32")
    bounds = clamp(draw) if dtype == "int8" else draw(st.sampled_from([FREE, (0.0, 6.0)]))
    if kind == "pool":
        out_c = in_c
        mode = draw(st.sampled_from(["max", "avg"]))
        rescaled = dtype == "int8" and mode == "avg" and draw(st.booleans())
        rescaling = requant(draw, 1, 255) if rescaled else None
        rescaling = rescaling and Requant(rescaling.multiplier[:1], rescaling.shift[:1])
        layer = Pool2D("pool", ("x",), "y", mode, k, stride, pads, draw(st.booleans()), rescaling, bounds)
        zp_out = zp_out if rescaled else zp_in
    else:
        multiplier = draw(st.sampled_from([1, 1, 1, 2, 3])) if kind == "depthwise" else 1
        out_c = width * groups if kind == "conv" else in_c * multiplier
        shape = (out_c, *k, depth) if kind == "conv" else (*k, out_c)
        taps = k[0] * k[1] * (depth if kind == "conv" else 1)
        if dtype == "float32":
            w, b, q = rng.normal(0, 1, shape).astype(np.float32), rng.normal(0, 1, out_c).astype(np.float32), None
        else:
            w = weights(rng, shape, draw(st.integers(0, 3)))
            big = draw(st.sampled_from([1000, 1000, 2**30]))
            b = rng.integers(-big, big, out_c).astype(np.int32)
            q = requant(draw, out_c, big + taps * 127 * 255 // 4)
        if kind == "conv":
            layer = Conv2D("conv", ("x",), "y", w, b, stride, dilation, pads, groups, q, bounds)
        else:
            layer = DepthwiseConv2D("dw", ("x",), "y", w, b, stride, dilation, pads, multiplier, q, bounds)
    shape = (1, *out_size, out_c)
    out = Tensor("y", shape, "float32") if dtype == "float32" else int8("y", shape, zp_out)
    return layer, source, out


@st.composite
def dense_layers(draw):
    rng = np.random.default_rng(draw(SEEDS))
    rows, inputs, outputs = draw(st.sampled_from([1, 1, 3])), draw(st.integers(1, 70)), draw(st.integers(1, 9))
    w = weights(rng, (outputs, inputs), draw(st.integers(0, 3)))
    b = rng.integers(-1000, 1000, outputs).astype(np.int32)
    q = requant(draw, outputs, inputs * 127 * 64, draw(st.sampled_from(["single", "single", "double"])))
    layer = FullyConnected("fc", ("x",), "y", w, b, q, clamp(draw))
    return layer, int8("x", (1, rows, inputs), draw(zero_points)), int8("y", (1, rows, outputs), draw(zero_points))


@st.composite
def elementwise_layers(draw):
    """(layer, inputs, output) of Add, Mul, Lut, Rescale or Softmax."""
    rng = np.random.default_rng(draw(SEEDS))
    kind = draw(st.sampled_from(["add", "mul", "lut", "rescale", "softmax"]))
    channels = draw(st.integers(1, 12))
    shape = (1, draw(st.integers(1, 4)), draw(st.integers(1, 4)), channels)
    a, out = int8("a", shape, draw(zero_points)), int8("y", shape, draw(zero_points))
    if kind == "lut":
        return Lut("lut", ("a",), "y", rng.integers(-128, 128, 256).astype(np.int8), "test"), [a], out
    if kind == "rescale":
        return Rescale("rescale", ("a",), "y", requant(draw, channels, 255), clamp(draw)), [a], out
    if kind == "softmax":
        scale = draw(st.sampled_from([0.001, 0.05, 0.3, 2.0]))
        from edgescale.lower.integer import softmax_scaling

        return Softmax("softmax", ("a",), "y", *softmax_scaling(scale)), [a], int8("y", shape, -128, 1 / 256)
    second = draw(st.sampled_from([shape, (1, 1, 1, channels), (1, 1, 1, 1)]))
    b = int8("b", second, draw(zero_points))
    constant = rng.integers(-128, 128, second).astype(np.int8) if draw(st.booleans()) else None
    names, inputs = (("a",), [a]) if constant is not None else (("a", "b"), [a, b])
    if kind == "mul":
        q = requant(draw, channels, 255 * 255)
        return Mul("mul", names, "y", q, clamp(draw), constant, b.zero_point), inputs, out
    from edgescale.lower.integer import add_rescaling

    scales = [draw(st.sampled_from([0.01, 0.02, 0.0371, 0.5])) for _ in range(3)]
    left, pair, q = add_rescaling(*scales)
    layer = Add("add", names, "y", left, pair, q, clamp(draw), draw(st.booleans()), constant, b.zero_point)
    return layer, inputs, out


@st.composite
def moving_layers(draw, dtype: str):
    """(layer, inputs, output) of Concat, Pad, Transpose or Mean."""
    kind = draw(st.sampled_from(["concat", "pad", "transpose", "mean"]))
    shape = tuple(draw(st.integers(1, 4)) for _ in range(3))
    zero = draw(zero_points)

    def tensor(name: str, extents: tuple[int, ...], zero_point: int = zero) -> Tensor:
        return int8(name, extents, zero_point) if dtype == "int8" else Tensor(name, extents, "float32")

    if kind == "concat":
        axis = draw(st.integers(1, 3))
        parts = [
            tensor(f"x{i}", (1, *shape[: axis - 1], draw(st.integers(1, 4)), *shape[axis:]), draw(zero_points))
            for i in range(draw(st.integers(1, 4)))
        ]
        rescale = [requant(draw, 1, 255) if dtype == "int8" and draw(st.booleans()) else None for _ in parts]
        out = tensor("y", (1, *shape[: axis - 1], sum(p.shape[axis] for p in parts), *shape[axis:]), draw(zero_points))
        return Concat("concat", tuple(p.name for p in parts), "y", axis, tuple(rescale)), parts, out
    x = tensor("x", (1, *shape))
    if kind == "mean":
        q = requant(draw, shape[2], 255 * shape[0] * shape[1]) if dtype == "int8" else None
        bounds = clamp(draw) if dtype == "int8" else FREE
        return Mean("mean", ("x",), "y", q, bounds), [x], tensor("y", (1, 1, 1, shape[2]), draw(zero_points))
    if kind == "pad":
        before, after = (tuple(draw(st.integers(0, 2)) for _ in range(3)) for _ in range(2))
        extents = [b + s + a for b, s, a in zip(before, shape, after, strict=True)]
        value = draw(st.integers(-128, 127)) if dtype == "int8" else draw(st.sampled_from([0.0, 1.5, -math.inf]))
        return Pad("pad", ("x",), "y", (0, *before), (0, *after), value), [x], tensor("y", (1, *extents))
    order = (0, *draw(st.permutations([1, 2, 3])))
    return Transpose("transpose", ("x",), "y", order), [x], tensor("y", tuple((1, *shape)[i] for i in order))


def check(harness, programs, seed: int) -> None:
    harness.check(harness.build(programs, "-O2"), seed)
    harness.check(harness.build(programs, *harness.armv6m), seed)


@pytest.mark.parametrize("kind", ["conv", "depthwise", "pool"])
@BATCH
@given(data=st.data(), seed=SEEDS)
def test_window_layers(shared_harness, kind, data, seed):
    drawn = data.draw(st.lists(window_layers(kind), min_size=16, max_size=16))
    check(shared_harness, [shared_harness.program([layer], [x], y) for layer, x, y in drawn], seed)


@BATCH
@given(drawn=st.lists(dense_layers(), min_size=16, max_size=16), seed=SEEDS)
def test_fully_connected(shared_harness, drawn, seed):
    check(shared_harness, [shared_harness.program([layer], [x], y) for layer, x, y in drawn], seed)


@BATCH
@given(drawn=st.lists(elementwise_layers(), min_size=24, max_size=24), seed=SEEDS)
def test_elementwise(shared_harness, drawn, seed):
    check(shared_harness, [shared_harness.program([layer], x, y) for layer, x, y in drawn], seed)


@BATCH
@given(
    drawn=st.lists(moving_layers("int8"), min_size=16, max_size=16),
    real=st.lists(moving_layers("float32"), min_size=8, max_size=8),
    seed=SEEDS,
)
def test_moving_layers(shared_harness, drawn, real, seed):
    check(shared_harness, [shared_harness.program([layer], x, y) for layer, x, y in drawn + real], seed)


@pytest.mark.parametrize("kind", ["conv", "depthwise", "pool"])
@settings(BATCH, max_examples=1)
@given(data=st.data(), seed=SEEDS)
def test_float_window_layers(shared_harness, kind, data, seed):
    drawn = data.draw(st.lists(window_layers(kind, "float32"), min_size=12, max_size=12))
    programs = [shared_harness.program([layer], [x], y) for layer, x, y in drawn]
    shared_harness.check(shared_harness.build(programs, "-O2"), seed)


def real(name: str, *shape: int) -> Tensor:
    return Tensor(name, shape, "float32")


def test_float_layers(harness):
    rng = np.random.default_rng(5)
    shape = (1, 3, 5, 4)
    x, y = real("x", *shape), real("y", *shape)
    functions = {
        "relu": (), "clip": (-1.0, 2.0), "sigmoid": (), "tanh": (), "exp": (), "hardswish": (),
        "hardsigmoid": (0.2, 0.5), "leakyrelu": (0.1,), "elu": (0.7,),
    }  # fmt: skip
    programs = [harness.program([Unary("f", ("x",), "y", f, p)], [x], y) for f, p in functions.items()]
    programs.append(harness.program([Softmax("s", ("x",), "y", 0, 0, 0)], [x], y))
    for second in (shape, (1, 1, 1, 4), (1, 1, 1, 1)):
        b = real("b", *second)
        constant = rng.normal(size=second).astype(np.float32)
        for subtract in (False, True):
            add = Add("add", ("x", "b"), "y", 0, None, None, (0.0, 6.0), subtract)
            programs.append(harness.program([add], [x, b], y))
        programs.append(harness.program([Mul("mul", ("x",), "y", None, FREE, constant)], [x], y))
    for rows, outputs in ((1, 7), (3, 2)):
        w, bias = rng.normal(size=(outputs, 20)).astype(np.float32), rng.normal(size=outputs).astype(np.float32)
        layer = FullyConnected("fc", ("x",), "y", w, bias, None, FREE)
        programs.append(harness.program([layer], [real("x", 1, rows, 20)], real("y", 1, rows, outputs)))
    harness.check(harness.build(programs, "-O2"))


def test_quantize_rounds_half_to_even_and_saturates(harness):
    x = real("x", 1, 2000)
    programs = [
        harness.program([Quantize("q", ("x",), "y")], [x], int8("y", (1, 2000), zero, scale))
        for zero, scale in ((0, 1.0), (-128, 0.25), (13, 0.0371), (127, 1e-20))
    ]
    programs += [
        harness.program([Dequantize("d", ("q",), "y")], [int8("q", (1, 2000), zero, 0.0371)], real("y", 1, 2000))
        for zero in (-128, 5)
    ]
    built = harness.build(programs, "-O2")
    harness.check(built)
    steps = np.arange(-300, 300, 0.25, dtype=np.float32)[: 2000 - 4]
    given_values = np.concatenate([steps, [np.inf, -np.inf, np.nan, -0.0]]).astype(np.float32)
    given_values = np.resize(given_values, 2000)[None]
    got = built.run(0, {"x": given_values})["y"][0]
    wanted = np.clip(np.nan_to_num(np.rint(given_values[0]), nan=0, posinf=1e9, neginf=-1e9), -128, 127)
    np.testing.assert_array_equal(got, wanted.astype(np.int8))
