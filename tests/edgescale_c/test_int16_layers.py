"""Generated C of random int16 programs equals the NumPy reference, also where plans overlap and next to int8.

Each compiler call takes a batch of programs; every batch is built twice: for this machine, and along the paths of
cores without a long multiply or a divide. Drawn layers and a net also run under the sanitizers.
"""

from __future__ import annotations

import math
import subprocess

import numpy as np
import pytest
from edgescale_c.planner import plan
from edgescale_c.verifier import PlanError, verify
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edgescale.core.errors import UnsupportedModelError
from edgescale.lower import interpolated, reference
from edgescale.lower.fixedpoint import requant, requant_wide
from edgescale.lower.integer import add_rescaling, interpolated_softmax_scaling, mean_requant
from edgescale.lower.program import (
    Add,
    Concat,
    Conv2D,
    DepthwiseConv2D,
    Dequantize,
    FullyConnected,
    InterpolatedLut,
    Mean,
    Mul,
    Pad,
    Pool2D,
    Program,
    Quantize,
    Requant,
    Rescale,
    Reshape,
    Slice,
    Softmax,
    Tensor,
    Transpose,
)
from tests.seeds import SEEDS

BATCH = settings(max_examples=2, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
FREE = (-32768, 32767)


def int16(name: str, *shape: int, scale: float = 0.0003) -> Tensor:
    return Tensor(name, shape, "int16", scale, 0)


def int8(name: str, *shape: int, zero_point: int = -5, scale: float = 0.05) -> Tensor:
    return Tensor(name, shape, "int8", scale, zero_point)


def clamp(draw) -> tuple[float, float]:
    low = draw(st.sampled_from([-32768, -32768, -500, 3, 0]))
    return low, draw(st.sampled_from([32767, 32767, 4000, max(low, 3)]))


def parameters(draw, rng, shape: tuple[int, ...], rows: np.ndarray, rounding: str) -> tuple[np.ndarray, Requant]:
    """(bias, rescaling) of weights seen as [O, taps], so that sums fill int16, more or less."""
    outputs = len(rows)
    spread = draw(st.sampled_from([0, 1000, 2**31, 2**40]))
    bias = rng.integers(-spread, spread + 1, outputs)
    reach = np.abs(rows.astype(np.float64)).sum(axis=1) * 2**15 + np.abs(bias)
    factors = np.minimum(rng.uniform(0.2, 40, outputs) * 2**15 / np.maximum(reach, 1), 100)
    factors = np.minimum(factors, 2.0**30 / np.maximum(reach, 1))
    kind = draw(st.integers(0, 5))
    if kind == 0:
        factors[:] = factors.min()
    if kind == 1:
        factors[rng.integers(outputs)] = 0
    if kind == 2:
        factors = np.exp2(np.floor(np.log2(np.maximum(factors, 1e-30))))
    if kind == 3:
        factors *= 2.0 ** -rng.integers(0, 60)
    return bias.astype(np.int64), requant_wide(factors, rounding)


def weights(draw, rng, shape: tuple[int, ...]) -> np.ndarray:
    if draw(st.integers(0, 3)) == 0:
        return rng.choice(np.array([-128, 127], np.int8), shape)
    return rng.integers(-128, 128, shape).astype(np.int8)


@st.composite
def window_layers(draw, kind: str):
    """(layer, input, output) of a convolution, depthwise convolution or pool."""
    rng = np.random.default_rng(draw(SEEDS))
    k = draw(st.sampled_from([(1, 1), (1, 1), (3, 3), (2, 3), (4, 1), (9, 3)]))
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
    depth, width = draw(st.integers(1, 9) | st.just(60)), draw(st.integers(1, 5))
    in_c = depth * groups
    source = int16("x", 1, *size, in_c)
    bounds = clamp(draw)
    if kind == "pool":
        mode = draw(st.sampled_from(["max", "avg"]))
        scaling = requant(draw(st.floats(0.1, 3.0))) if mode == "avg" and draw(st.booleans()) else None
        layer = Pool2D("pool", ("x",), "y", mode, k, stride, pads, draw(st.booleans()), scaling, bounds)
        return layer, source, int16("y", 1, *out_size, in_c)
    if kind == "conv":
        w = weights(draw, rng, (width * groups, *k, depth))
        bias, scaling = parameters(draw, rng, w.shape, w.reshape(len(w), -1), "reduced")
        layer = Conv2D("conv", ("x",), "y", w, bias, stride, dilation, pads, groups, scaling, bounds)
        return layer, source, int16("y", 1, *out_size, len(w))
    multiplier = draw(st.sampled_from([1, 1, 1, 2, 3]))
    w = weights(draw, rng, (*k, in_c * multiplier))
    bias, scaling = parameters(draw, rng, w.shape, w.reshape(-1, w.shape[2]).T, "reduced")
    layer = DepthwiseConv2D("dw", ("x",), "y", w, bias, stride, dilation, pads, multiplier, scaling, bounds)
    return layer, source, int16("y", 1, *out_size, w.shape[2])


@st.composite
def dense_layers(draw):
    rng = np.random.default_rng(draw(SEEDS))
    rows, inputs, outputs = (
        draw(st.sampled_from([1, 1, 3])),
        draw(st.integers(1, 70) | st.just(900)),
        draw(st.integers(1, 9)),
    )
    w = weights(draw, rng, (outputs, inputs))
    bias, scaling = parameters(draw, rng, w.shape, w, "real")
    layer = FullyConnected("fc", ("x",), "y", w, bias, scaling, clamp(draw))
    return layer, int16("x", 1, rows, inputs), int16("y", 1, rows, outputs)


@st.composite
def elementwise_layers(draw):
    """(layer, inputs, output) of the layers that see one element at a time, or a row."""
    rng = np.random.default_rng(draw(SEEDS))
    kind = draw(
        st.sampled_from(["add", "mul", "rescale", "up", "down", "sigmoid", "tanh", "softmax", "mean", "quantize"])
    )
    channels = draw(st.integers(1, 12))
    shape = (1, draw(st.integers(1, 4)), draw(st.integers(1, 4)), channels)
    a, out = int16("a", *shape), int16("y", *shape)
    bounds = clamp(draw)
    factor = draw(st.floats(0.01, 4.0) | st.sampled_from([1.0, 0.5, 2.0]))
    if kind == "rescale":
        return Rescale("rescale", ("a",), "y", requant(factor), bounds), [a], out
    if kind == "up":
        return Rescale("up", ("a",), "y", requant(factor * 100), bounds), [int8("a", *shape)], out
    if kind == "down":
        return Rescale("down", ("a",), "y", requant(factor / 100), (-100, 127)), [a], int8("y", *shape)
    if kind in ("sigmoid", "tanh"):
        scale = draw(st.sampled_from([2.0**-12, 2.0**-11, 0.0003, 0.001, 0.2, 5.0, 1e-7]))
        return InterpolatedLut("f", ("a",), "y", kind, *interpolated.sigmoid_scaling(scale)), [a], out
    if kind == "softmax":
        scaling = interpolated_softmax_scaling(draw(st.sampled_from([1e-6, 0.0003, 0.001, 0.3])))
        return Softmax("softmax", ("a",), "y", *scaling), [a], out
    if kind == "mean":
        q = mean_requant(0.0003, 0.0003 / factor, shape[1] * shape[2], "int16")
        return Mean("mean", ("a",), "y", q, bounds), [a], int16("y", 1, 1, 1, channels)
    if kind == "quantize":
        if draw(st.booleans()):
            return Dequantize("d", ("a",), "y"), [a], Tensor("y", shape, "float32")
        return Quantize("q", ("a",), "y"), [Tensor("a", shape, "float32")], out
    second = draw(st.sampled_from([shape, (1, 1, 1, channels), (1, 1, 1, 1)]))
    b = int16("b", *second)
    constant = rng.integers(-32768, 32768, second).astype(np.int16) if draw(st.booleans()) else None
    names, inputs = (("a",), [a]) if constant is not None else (("a", "b"), [a, b])
    if kind == "mul":
        return Mul("mul", names, "y", requant(factor / 2**14), bounds, constant, 0), inputs, out
    left, pair, q = add_rescaling(0.0003, 0.0003 * draw(st.floats(0.1, 9.0)), 0.0005, "int16")
    return Add("add", names, "y", left, pair, q, bounds, draw(st.booleans()), constant, 0), inputs, out


@st.composite
def moving_layers(draw):
    """(layer, inputs, output) of Concat, Pad, Transpose or Slice."""
    kind = draw(st.sampled_from(["concat", "pad", "transpose", "slice"]))
    shape = tuple(draw(st.integers(1, 4)) for _ in range(3))
    x = int16("x", 1, *shape)
    if kind == "concat":
        axis = draw(st.integers(1, 3))
        parts = [
            int16(f"x{i}", 1, *shape[: axis - 1], draw(st.integers(1, 4)), *shape[axis:])
            for i in range(draw(st.integers(1, 4)))
        ]
        out = int16("y", 1, *shape[: axis - 1], sum(p.shape[axis] for p in parts), *shape[axis:])
        rescale = tuple(requant(draw(st.floats(0.1, 3.0))) if draw(st.booleans()) else None for _ in parts)
        return Concat("concat", tuple(p.name for p in parts), "y", axis, rescale), parts, out
    if kind == "pad":
        before, after = (tuple(draw(st.integers(0, 2)) for _ in range(3)) for _ in range(2))
        extents = [b + s + a for b, s, a in zip(before, shape, after, strict=True)]
        value = draw(st.sampled_from([0, -32768, 32767, 258]))
        return Pad("pad", ("x",), "y", (0, *before), (0, *after), value), [x], int16("y", 1, *extents)
    if kind == "slice":
        begin = tuple(draw(st.integers(0, size - 1)) for size in shape)
        step = tuple(draw(st.integers(1, 2)) for _ in shape)
        extents = [math.ceil((size - first) / s) for size, first, s in zip(shape, begin, step, strict=True)]
        return Slice("slice", ("x",), "y", (0, *begin), (1, *step)), [x], int16("y", 1, *extents)
    order = (0, *draw(st.permutations([1, 2, 3])))
    return Transpose("transpose", ("x",), "y", order), [x], int16("y", *((1, *shape)[i] for i in order))


def check(harness, drawn, seed: int) -> None:
    programs = [harness.program([layer], x if isinstance(x, list) else [x], y) for layer, x, y in drawn]
    if any(isinstance(layer, (Conv2D, FullyConnected)) for layer, _, _ in drawn):
        harness.check(harness.build(programs, "-O2", family="dsp"), seed)
    harness.check(harness.build(programs, "-O2"), seed)
    harness.check(harness.build(programs, *harness.armv6m), seed)


@pytest.mark.parametrize("kind", ["conv", "depthwise", "pool"])
@BATCH
@given(data=st.data(), seed=SEEDS)
def test_window_layers(shared_harness, kind, data, seed):
    check(shared_harness, data.draw(st.lists(window_layers(kind), min_size=16, max_size=16)), seed)


@settings(BATCH, max_examples=3)
@given(drawn=st.lists(dense_layers(), min_size=24, max_size=24), seed=SEEDS)
def test_fully_connected(shared_harness, drawn, seed):
    check(shared_harness, drawn, seed)


@settings(BATCH, max_examples=3)
@given(drawn=st.lists(elementwise_layers(), min_size=30, max_size=30), seed=SEEDS)
def test_elementwise(shared_harness, drawn, seed):
    check(shared_harness, drawn, seed)


@BATCH
@given(drawn=st.lists(moving_layers(), min_size=24, max_size=24), seed=SEEDS)
def test_moving_layers(shared_harness, drawn, seed):
    check(shared_harness, drawn, seed)


def net(harness, rng):
    """int8 in, up to int16, convolutions, pool and dense, down to int8: buffers of both sizes share the arena."""

    def conv(name, source, out, shape):
        w = rng.integers(-127, 128, shape).astype(np.int8)
        bias = rng.integers(-(2**20), 2**20, shape[0]).astype(np.int64)
        q = requant_wide(rng.uniform(1e-4, 3e-4, shape[0]), "reduced")
        pad = shape[1] // 2
        return Conv2D(name, (source,), out, w, bias, (1, 1), (1, 1), (pad,) * 4, 1, q, FREE)

    w = rng.integers(-127, 128, (3, 3, 6)).astype(np.int8)
    dense = rng.integers(-127, 128, (5, 96)).astype(np.int8)
    layers = [
        Rescale("up", ("x",), "a", requant(200.0), FREE),
        conv("c1", "a", "b", (6, 3, 3, 3)),
        DepthwiseConv2D("dw", ("b",), "c", w, np.zeros(6, np.int64), (1, 1), (1, 1), (1, 1, 1, 1), 1,
                        requant_wide([0.002] * 6, "reduced"), (0, 32767)),
        conv("c2", "c", "d", (6, 1, 1, 6)),
        Add("add", ("b", "d"), "e", *add_rescaling(0.0003, 0.0004, 0.0006, "int16"), FREE),
        Pool2D("pool", ("e",), "f", "avg", (2, 2), (2, 2), (0, 0, 0, 0), False, None, FREE),
        Reshape("flat", ("f",), "g"),
        FullyConnected("fc", ("g",), "h", dense, np.zeros(5, np.int64), requant_wide([0.001] * 5, "real"), FREE),
        Softmax("softmax", ("h",), "p", *interpolated_softmax_scaling(0.0003)),
        Rescale("down", ("p",), "y", requant(1 / 128), (-128, 127)),
    ]  # fmt: skip
    images = [int16(name, 1, 8, 8, depth) for name, depth in (("a", 3), ("b", 6), ("c", 6), ("d", 6), ("e", 6))]
    rows = [int16("f", 1, 4, 4, 6), int16("g", 1, 96), int16("h", 1, 5), int16("p", 1, 5)]
    return harness.program(layers, [int8("x", 1, 8, 8, 3)], *images, *rows, int8("y", 1, 5, zero_point=-128))


def test_a_net_between_int8_and_int16(harness):
    programs = [net(harness, np.random.default_rng(3))]
    for options in ({}, {"alignment": 8}, {"overlap": False}, {"family": "dsp"}):
        harness.check(harness.build(programs, "-O1", **options))


@settings(BATCH, max_examples=1)
@given(data=st.data(), seed=SEEDS)
def test_drawn_layers_and_a_net_under_the_sanitizers(shared_harness, data, seed):
    drawn = [data.draw(window_layers(kind)) for kind in ("conv", "conv", "depthwise", "depthwise", "pool", "pool")]
    drawn += [data.draw(dense_layers()) for _ in range(2)]
    drawn += [data.draw(strategy) for strategy in (elementwise_layers(), moving_layers()) for _ in range(5)]
    programs = [shared_harness.program([layer], x if isinstance(x, list) else [x], y) for layer, x, y in drawn]
    programs = [p for p in programs if all(t.dtype != "float32" for t in p.tensors.values())]
    sanitized(shared_harness, [*programs, net(shared_harness, np.random.default_rng(seed))], "scalar")
    sanitized(shared_harness, [*programs[:8], net(shared_harness, np.random.default_rng(seed + 1))], "dsp")


def sanitized(harness, programs: list[Program], family: str) -> None:
    """A main that runs every program on each of its samples, under the sanitizers; it prints the outputs."""
    folder = harness.new_folder()
    made = harness.write(programs, folder, family=family)
    lines = [f'#include "es_p{i}.c"' for i in range(len(programs))] + ["#include <stdio.h>", "int main(void) {"]
    wanted: list[int] = []
    for i, (program, one) in enumerate(zip(programs, made, strict=True)):
        values = harness.inputs(program, np.random.default_rng(i))
        for sample in range(3):
            for port, meta in zip(program.inputs, one.meta["inputs"], strict=True):
                flat = ", ".join(map(str, values[port.tensor][sample].reshape(-1).tolist()))
                lines.append(f"{{ static const {meta['dtype']}_t x[] = {{{flat}}};")
                lines.append(f"__builtin_memcpy({meta['accessor']}(), x, sizeof x); }}")
            (out,) = one.meta["outputs"]
            lines.append(f"es_p{i}_run();")
            lines.append(f"for (int i = 0; i < {math.prod(out['stored_shape'])}; i++)")
            lines.append(f'    printf("%d ", {out["accessor"]}()[i]);')
        found = reference.run(program, values)[program.outputs[0].tensor]
        wanted += found.reshape(-1).tolist()
    (folder / "main.c").write_text("\n".join([*lines, "return 0; }"]))
    harness.compile(folder, *harness.sanitizers, source="main.c", output="main")
    result = subprocess.run([folder / "main"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    assert list(map(int, result.stdout.split())) == wanted


def test_plans_between_one_and_two_bytes_are_as_tight_as_they_can_be_and_checked(harness):
    """Widened values go below, narrowed ones may take the input's place; anything closer is refused by the verifier."""
    size = 100
    up = harness.program([Rescale("up", ("x",), "y", requant(200.0), FREE)], [int8("x", 1, size)], int16("y", 1, size))
    down = harness.program(
        [Rescale("down", ("x",), "y", requant(0.005), (-128, 127))], [int16("x", 1, size)], int8("y", 1, size)
    )
    # Value i is read, then written: all but the last output bytes may lie over what has been read.
    assert plan(up).arena_bytes == 2 * size
    assert plan(down).arena_bytes == 2 * size
    harness.check(harness.build([up, down], "-O2"))
    verify(up, {"x": size, "y": 0}, 2 * size)
    verify(down, {"x": 0, "y": 0}, 2 * size)
    wrong = [
        (up, {"x": size - 2, "y": 0}, "before it has been read"),
        (up, {"x": 0, "y": 0}, "before it has been read"),
        (up, {"x": 0, "y": size + 1}, "not aligned"),
        (down, {"x": 0, "y": 2}, "before it has been read"),
    ]
    for program, offsets, words in wrong:
        with pytest.raises(PlanError, match=words):
            verify(program, offsets, 4 * size)


def test_products_next_to_halves_round_as_doubles_do(harness):
    """Accumulators whose exact product lies within a double's rounding of a half."""
    rng = np.random.default_rng(0)
    programs = []
    for shift in (-20, -12, -30):
        # A factor whose reciprocal times k + 1/2 is almost a whole number: the closest accumulators of 2^16 halves.
        best = []
        for _ in range(200):
            mantissa = int(rng.integers(2**52, 2**53))
            halves = [(k, (2 * k + 1) << (52 - shift)) for k in rng.integers(0, 32767, 400).tolist()]
            best += [
                (abs(h % mantissa) if h % mantissa < mantissa // 2 else mantissa - h % mantissa, mantissa, h)
                for _, h in halves
            ]
        best.sort()
        factors = [mantissa for _, mantissa, _ in best[:12]]
        sums = [round(h / mantissa) for _, mantissa, h in best[:12]]
        scaling = Requant(np.array(factors, np.int64), np.full(12, shift, np.int32), "real")
        for sign in (1, -1):
            bias = np.array([sign * s for s in sums], np.int64)
            layer = FullyConnected("fc", ("x",), "y", np.zeros((12, 1), np.int8), bias, scaling, FREE)
            programs.append(harness.program([layer], [int16("x", 1, 1)], int16("y", 1, 12)))
    harness.check(harness.build(programs, "-O2"))
    harness.check(harness.build(programs, *harness.armv6m))


def test_what_the_kernels_do_not_take_is_refused(harness):
    x, y = int16("x", 1, 4), int16("y", 1, 4)
    w = np.ones((4, 4), np.int8)
    bias = np.zeros(4, np.int64)
    cases = [
        (FullyConnected("fc", ("x",), "y", w, bias, requant([0.1] * 4), FREE), "real"),
        (FullyConnected("fc", ("x",), "y", w, bias.astype(np.int32), requant_wide([0.1] * 4, "real"), FREE), "int64"),
        (FullyConnected("fc", ("x",), "y", w, bias + 2**50, requant_wide([0.1] * 4, "real"), FREE), "2^47"),
        (Mul("mul", ("x",), "y", requant(0.1), FREE, np.ones(4, np.int8)), "int16"),
    ]
    for layer, words in cases:
        with pytest.raises(UnsupportedModelError, match=words.replace("^", r"\^")):
            harness.write([harness.program([layer], [x], y)], harness.new_folder())


def test_families_fall_back_to_scalar_and_say_why(harness):
    program = net(harness, np.random.default_rng(0))
    for family, convolution in (("dsp", ("conv2d_s16_dsp_2x2", "")), ("mve", ("conv2d_s16", "int16 activations"))):
        (made,) = harness.write([program], harness.new_folder(), family=family)
        reasons = {row["name"]: (row["kernel"], row["reason"]) for row in made.meta["layers"]}
        assert reasons["c1"] == convolution
        assert reasons["pool"] == ("avg_pool_s16", "int16 activations")
