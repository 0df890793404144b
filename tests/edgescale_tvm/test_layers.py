"""Libraries of random layers equal the NumPy reference: integers bit for bit, float32 to rounding."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.target import Toolchain, load_target
from edgescale.lower.program import (
    Add,
    Conv2D,
    DepthwiseConv2D,
    Dequantize,
    FullyConnected,
    Mul,
    Quantize,
    Requant,
    Reshape,
    Slice,
    Softmax,
    Tensor,
    Unary,
)
from tests.seeds import SEEDS

BATCH = settings(max_examples=2, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
FREE = (-np.inf, np.inf)


def real(name: str, *shape: int) -> Tensor:
    return Tensor(name, shape, "float32")


def narrow(layer, bits: int):
    """The layer with weights of that many bits."""
    if bits == 8:
        return layer
    return replace(layer, weights=np.clip(layer.weights, -8, 7).astype(np.int8), weight_bits=4)


@pytest.mark.parametrize("kind", ["conv", "depthwise", "pool"])
@BATCH
@given(data=st.data(), seed=SEEDS)
def test_window_layers(harness, drawing, kind, data, seed):
    drawn = data.draw(st.lists(drawing.window_layers(kind), min_size=24, max_size=24))
    if kind != "pool":
        drawn = [(narrow(layer, 4 if i % 3 == 0 else 8), x, y) for i, (layer, x, y) in enumerate(drawn)]
    harness.check(harness.together(drawn), seed)


@BATCH
@given(data=st.data(), seed=SEEDS)
def test_fully_connected(harness, drawing, data, seed):
    drawn = data.draw(st.lists(drawing.dense_layers(), min_size=24, max_size=24))
    drawn = [(narrow(layer, 4 if i % 3 == 0 else 8), x, y) for i, (layer, x, y) in enumerate(drawn)]
    harness.check(harness.together(drawn), seed)


@BATCH
@given(data=st.data(), seed=SEEDS)
def test_elementwise(harness, drawing, data, seed):
    drawn = data.draw(st.lists(drawing.elementwise_layers(), min_size=24, max_size=24))
    harness.check(harness.together(drawn), seed)


@BATCH
@given(data=st.data(), seed=SEEDS)
def test_moving_layers(harness, drawing, data, seed):
    drawn = data.draw(st.lists(drawing.moving_layers("int8"), min_size=16, max_size=16))
    drawn += data.draw(st.lists(drawing.moving_layers("float32"), min_size=8, max_size=8))
    harness.check(harness.together(drawn), seed)


@settings(BATCH, max_examples=1)
@given(data=st.data(), seed=SEEDS)
def test_float_window_layers(harness, drawing, data, seed):
    drawn = [
        one
        for kind in ("conv", "depthwise", "pool")
        for one in data.draw(st.lists(drawing.window_layers(kind, "float32"), min_size=12, max_size=12))
    ]
    harness.check(harness.together(drawn), seed)


def wide_layers(rng: np.random.Generator):
    """Layers with more channels and positions than a tile of the kernels has."""

    def requant(channels: int, rounding: str = "double") -> Requant:
        multiplier = rng.integers(2**30, 2**31, channels).astype(np.int32)
        return Requant(multiplier, rng.integers(-10, -6, channels).astype(np.int32), rounding)

    def numbers(*shape: int) -> np.ndarray:
        return rng.integers(-127, 128, shape).astype(np.int8)

    bias = rng.integers(-9999, 9999, 200).astype(np.int32)
    for bits in (8, 4):
        for channels in (16, 17, 33, 64, 200):
            x, y = Tensor("x", (1, 5, 7, 18), "int8", 0.1, -7), Tensor("y", (1, 5, 7, channels), "int8", 0.1, 3)
            layer = Conv2D(
                "conv", ("x",), "y", numbers(channels, 3, 3, 18), bias[:channels], (1, 1), (1, 1), (1, 1, 1, 1), 1,
                requant(channels), (-128, 127),
            )  # fmt: skip
            yield narrow(layer, bits), x, y
            dense = FullyConnected(
                "fc", ("x",), "y", numbers(channels, 630), bias[:channels], requant(channels, "single"), (-100, 127)
            )
            yield narrow(dense, bits), x, Tensor("y", (1, channels), "int8", 0.1, 3)
        x, y = Tensor("x", (1, 9, 9, 37), "int8", 0.1, 100), Tensor("y", (1, 4, 4, 37), "int8", 0.1, -128)
        layer = DepthwiseConv2D(
            "dw", ("x",), "y", numbers(3, 3, 37), bias[:37], (2, 2), (1, 1), (0, 0, 0, 0), 1, requant(37), (-128, 127)
        )
        yield narrow(layer, bits), x, y


def test_layers_wider_than_a_tile(harness):
    meta = harness.check(harness.together(list(wide_layers(np.random.default_rng(3)))), 4)
    assert meta["kernels"] == ["es_conv_s4", "es_conv_s8", "es_depthwise_s4", "es_depthwise_s8"]


@pytest.mark.parametrize(
    ("processor", "needs", "instructions"),
    [("x86_64", (), "portable"), ("cascadelake", ("avx512_vnni", "avx512bw"), "avx512-vnni")],
)
def test_kernels_of_other_x86_processors(harness, drawing, processor, needs, instructions):
    if platform.machine() != "x86_64" or not set(needs) <= set(Path("/proc/cpuinfo").read_text().split()):
        pytest.skip(f"this processor does not run what is built for {processor}")
    target = replace(load_target("host-tvm"), toolchain=Toolchain("x86_64-linux-gnu", processor))
    meta = harness.check(harness.together(list(wide_layers(np.random.default_rng(6)))), 7, target)
    assert meta["instructions"] == instructions


def test_float_layers(harness):
    rng = np.random.default_rng(5)
    shape = (1, 3, 5, 4)
    x, y = real("x", *shape), real("y", *shape)
    functions = {
        "relu": (), "clip": (-1.0, 2.0), "sigmoid": (), "tanh": (), "exp": (), "hardswish": (),
        "hardsigmoid": (0.2, 0.5), "leakyrelu": (0.1,), "elu": (0.7,),
    }  # fmt: skip
    drawn = [(Unary(f, ("x",), "y", f, p), [x], y) for f, p in functions.items()]
    drawn.append((Softmax("s", ("x",), "y", 0, 0, 0), [x], y))
    for second in (shape, (1, 1, 1, 4), (1, 1, 1, 1)):
        b, constant = real("b", *second), rng.normal(size=second).astype(np.float32)
        for subtract in (False, True):
            drawn.append((Add("add", ("x", "b"), "y", 0, None, None, (0.0, 6.0), subtract), [x, b], y))
        drawn.append((Mul("mul", ("x",), "y", None, FREE, constant), [x], y))
    for rows, outputs in ((1, 7), (3, 20)):
        w, bias = rng.normal(size=(outputs, 20)).astype(np.float32), rng.normal(size=outputs).astype(np.float32)
        layer = FullyConnected("fc", ("x",), "y", w, bias, None, FREE)
        drawn.append((layer, [real("x", 1, rows, 20)], real("y", 1, rows, outputs)))
    harness.check(harness.together(drawn))


def test_slices_and_reshapes(harness):
    x = Tensor("x", (1, 6, 5, 4), "int8", 0.1, 3)
    drawn = [
        (Slice("cut", ("x",), "y", (0, 1, 0, 2), (1, 2, 3, 1)), [x], Tensor("y", (1, 3, 2, 2), "int8", 0.1, 3)),
        (Reshape("flat", ("x",), "y"), [x], Tensor("y", (1, 120), "int8", 0.1, 3)),
    ]
    harness.check(harness.together(drawn))


def test_quantize_rounds_half_to_even_and_saturates(harness):
    units = ((0, 1.0), (-128, 0.25), (13, 0.0371), (127, 1e-20))
    drawn = [
        (Quantize("q", ("x",), "y"), [real("x", 1, 2000)], Tensor("y", (1, 2000), "int8", scale, zero))
        for zero, scale in units
    ]
    drawn.append((Dequantize("d", ("x",), "y"), [Tensor("x", (1, 2000), "int8", 0.0371, 5)], real("y", 1, 2000)))
    program = harness.together(drawn)
    harness.check(program)
    folder, meta = harness.compile(program)
    steps = np.arange(-300, 300, 0.25, dtype=np.float32)[: 2000 - 4]
    values = np.resize(np.concatenate([steps, [np.inf, -np.inf, np.nan, -0.0]]).astype(np.float32), 2000)[None]
    given_values = dict.fromkeys((port.tensor for port in program.inputs), values)
    given_values["x_4"] = np.zeros((1, 2000), np.int8)
    got = harness.run(folder / meta["library"], program, given_values)
    wanted = np.clip(np.nan_to_num(np.rint(values[0]), nan=0, posinf=1e9, neginf=-1e9), -128, 127)
    np.testing.assert_array_equal(got["y_0"][0], wanted.astype(np.int8))


def test_what_has_no_kernel_is_refused_by_name(harness):
    x, y = Tensor("x", (1, 4), "int16", 0.1), Tensor("y", (1, 2), "int16", 0.1)
    requant = Requant(np.full(2, 2**52, np.int64), np.zeros(2, np.int32), "real")
    dense = FullyConnected("head", ("x",), "y", np.ones((2, 4), np.int8), np.zeros(2, np.int64), requant, (-9, 9))
    with pytest.raises(UnsupportedModelError, match=r"'head_0' \(FullyConnected\).*int16 -> int16"):
        harness.compile(harness.together([(dense, x, y)]))
