"""The dsp kernels equal the NumPy reference bit for bit: their C on this machine, their assembly on emulated cores.

Each compiler call takes a batch of single-layer programs. For an emulated core the whole batch is one
image whose input and output are those of all programs, one after the other.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edgescale.lower.integer import add_rescaling
from edgescale.lower.program import Add, Conv2D, DepthwiseConv2D, FullyConnected, Pool2D, Requant, Tensor
from tests.seeds import SEEDS

BATCH = settings(max_examples=2, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
CORES = ("cortex-m4-stm32l4r5", "cortex-m33-stm32u575", "cortex-m7-stm32f746")

zero_points = st.sampled_from([-128, 127, 0]) | st.integers(-128, 127)


def int8(name: str, shape, zero_point: int) -> Tensor:
    return Tensor(name, tuple(shape), "int8", 0.05, zero_point)


def requant(draw, channels: int, bound: int, rounding: str = "double") -> Requant:
    """Factors that put accumulators of `bound` around the int8 range; a few far below, and a few zeros."""
    size = channels if draw(st.booleans()) else 1
    rng = np.random.default_rng(draw(SEEDS))
    multiplier = rng.integers(2**30, 2**31, size)
    shift = rng.integers(-2, 2, size) + 7 - max(1, bound).bit_length()
    kind = draw(st.integers(0, 9))
    if kind == 0:
        multiplier[rng.integers(size)] = 0
    if kind == 1:
        multiplier[...] = rng.choice([2**30, 2**31 - 1], size)
    if kind == 2:
        shift = rng.integers(-31, -1, size)
    least = -2 if rounding == "single" else -1
    return Requant(multiplier.astype(np.int32), np.clip(shift, -31, least).astype(np.int32), rounding)


def clamp(draw) -> tuple[int, int]:
    low = draw(st.sampled_from([-128, -128, -128, -5, 3]))
    return low, draw(st.sampled_from([127, 127, 127, 40, max(low, 3)]))


def weights(draw, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(draw(SEEDS))
    if draw(st.integers(0, 3)) == 0:
        return rng.choice(np.array([-127, 127], np.int8), shape)
    return rng.integers(-127, 128, shape).astype(np.int8)


def bias(draw, channels: int) -> np.ndarray:
    big = draw(st.sampled_from([1000, 1000, 100_000, 2**28]))
    return np.random.default_rng(draw(SEEDS)).integers(-big, big, channels).astype(np.int32)


@st.composite
def windows(draw, depthwise: bool):
    """(layer, inputs, output) of a convolution: window, strides, dilation, padding and depth of any kind."""
    kernels = st.sampled_from([(1, 1), (1, 1), (3, 3), (3, 3), (3, 3)]) | st.tuples(
        st.integers(1, 5), st.integers(1, 5)
    )
    k = draw(kernels)
    stride = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3), (2, 1)]))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (1, 1), (2, 1), (1, 2)]))
    reach = [(a - 1) * d + 1 for a, d in zip(k, dilation, strict=True)]
    pads = (
        tuple(draw(st.integers(0, min(reach[axis % 2], 4))) for axis in range(4)) if draw(st.booleans()) else (0,) * 4
    )
    size = [max(draw(st.integers(1, 9)), reach[axis] - pads[axis] - pads[axis + 2], 1) for axis in range(2)]
    out_size = [(size[a] + pads[a] + pads[a + 2] - reach[a]) // stride[a] + 1 for a in range(2)]
    depth = draw(st.integers(1, 12))
    if depthwise:
        multiplier = draw(st.sampled_from([1, 1, 1, 2, 3]))
        channels = depth * multiplier
        w, taps = weights(draw, (*k, channels)), k[0] * k[1]
    else:
        depth = draw(st.sampled_from([depth, depth, 4, 16, 20]))
        channels = draw(st.integers(1, 9))
        w, taps = weights(draw, (channels, *k, depth)), k[0] * k[1] * depth
    b = bias(draw, channels)
    q = requant(draw, channels, taps * 127 * 64 + int(np.abs(b).max()))
    values = w, b, stride, dilation, pads
    if depthwise:
        layer = DepthwiseConv2D("dw", ("x",), "y", *values, multiplier, q, clamp(draw))
    else:
        layer = Conv2D("conv", ("x",), "y", *values, 1, q, clamp(draw))
    out = int8("y", (1, *out_size, channels), draw(zero_points))
    return layer, [int8("x", (1, *size, depth), draw(zero_points))], out


@st.composite
def dense(draw):
    """(layer, inputs, output) of a fully connected layer, or of a convolution of a single pixel."""
    rows, inputs, outputs = draw(st.sampled_from([1, 1, 3])), draw(st.integers(1, 90)), draw(st.integers(1, 27))
    w, b = weights(draw, (outputs, inputs)), bias(draw, outputs)
    zero, zero_out = draw(zero_points), draw(zero_points)
    q = requant(
        draw, outputs, inputs * 127 * 64 + int(np.abs(b).max()), draw(st.sampled_from(["single", "single", "double"]))
    )
    if draw(st.integers(0, 3)) == 0:
        layer = Conv2D("c", ("x",), "y", w[:, None, None], b, (1, 1), (1, 1), (0,) * 4, 1, q, clamp(draw))
        return layer, [int8("x", (1, 1, 1, inputs), zero)], int8("y", (1, 1, 1, outputs), zero_out)
    layer = FullyConnected("fc", ("x",), "y", w, b, q, clamp(draw))
    return layer, [int8("x", (1, rows, inputs), zero)], int8("y", (1, rows, outputs), zero_out)


@st.composite
def others(draw):
    """(layer, inputs, output) of Add and average pooling."""
    shape = (1, draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(1, 9)))
    if draw(st.booleans()):
        kernel = draw(st.sampled_from([shape[1:3], (1, 1), (min(2, shape[1]), min(2, shape[2]))]))
        extents = tuple(shape[1 + a] - kernel[a] + 1 for a in range(2))
        zero = draw(zero_points)
        layer = Pool2D("p", ("a",), "y", "avg", kernel, (1, 1), (0,) * 4, False, None, clamp(draw))
        return layer, [int8("a", shape, zero)], int8("y", (1, *extents, shape[3]), zero)
    scales = [draw(st.sampled_from([0.01, 0.02, 0.0371, 0.5])) for _ in range(3)]
    left, pair, q = add_rescaling(*scales)
    a, b = int8("a", shape, draw(zero_points)), int8("b", shape, draw(zero_points))
    layer = Add("add", ("a", "b"), "y", left, pair, q, clamp(draw), draw(st.booleans()))
    return layer, [a, b], int8("y", shape, draw(zero_points))


@st.composite
def sparse(draw, unit: str):
    """A layer most of whose weights are zero: a convolution where blocks of four are, or any number of each four; or a
    product of single rows with few weights, anywhere."""
    rng = np.random.default_rng(draw(SEEDS))
    convolution = unit in ("blocks", "pairs")
    outputs = draw({"pairs": st.integers(16, 28), "packed": st.integers(24, 30)}.get(unit, st.integers(1, 9)))
    keep = draw(st.sampled_from([0.2, 0.3] if unit in ("pairs", "packed") else [0.0, 0.05, 0.1, 0.25]))
    k = draw(st.sampled_from([1, 3])) if convolution else 1
    depths = {"blocks": [16, 21, 32, 40], "pairs": [32, 40, 53] if k == 1 else [16, 17], "entries": [40, 90, 700]}
    depth = draw(st.sampled_from(depths.get(unit, [300, 411])))
    rows = weights(draw, (outputs, k * k * depth))
    if unit == "blocks":
        rows = rows * np.repeat(rng.random((outputs, -(-rows.shape[1] // 4))) < keep, 4, axis=1)[:, : rows.shape[1]]
    else:
        rows = rows * (rng.random(rows.shape) < keep)
    w, b = rows.astype(np.int8).reshape(outputs, k, k, depth), bias(draw, outputs)
    bound = int(np.abs(rows).sum(axis=1).max()) * 128 + int(np.abs(b).max())
    q = requant(draw, outputs, bound, "double" if convolution else draw(st.sampled_from(["single", "double"])))
    source, made = draw(zero_points), draw(zero_points)
    if not convolution and draw(st.booleans()):
        layer = FullyConnected("fc", ("x",), "y", w.reshape(outputs, depth), b, q, clamp(draw))
        count = draw(st.sampled_from([1, 1, 3]))
        return layer, [int8("x", (1, count, depth), source)], int8("y", (1, count, outputs), made)
    side = draw(st.integers(2, 5)) if convolution else 1
    layer = Conv2D("c", ("x",), "y", w, b, (1, 1), (1, 1), (k // 2,) * 4, 1, q, clamp(draw))
    return layer, [int8("x", (1, side, side, depth), source)], int8("y", (1, side, side, outputs), made)


SPARSE = {"blocks": "sparse_blocks", "pairs": "sparse_pairs", "entries": "dsp_sparse", "packed": "dsp_packed"}
"""What the kernels' names hold."""

KINDS = {unit: sparse(unit) for unit in SPARSE} | {
    "conv": windows(False),
    "depthwise": windows(True),
    "dense": dense(),
    "others": others(),
}


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    cache = getattr(request.config, "cache", None)
    if cache is not None:
        monkeypatch.setenv("EDGESCALE_CACHE", str(cache.mkdir("edgescale")))


@pytest.mark.parametrize("kind", KINDS)
@BATCH
@given(data=st.data(), seed=SEEDS)
def test_dsp_layers_equal_the_reference(shared_harness, kind, data, seed):
    harness = shared_harness
    drawn = data.draw(st.lists(KINDS[kind], min_size=20, max_size=20))
    programs = [harness.program([layer], x, y) for layer, x, y in drawn]
    memory = "packed" if kind == "packed" else "balanced"
    built = harness.build(programs, "-O2", family="dsp", memory=memory)
    names = [one.meta["layers"][0]["kernel"] for one in built.generated]
    assert sum("dsp" in name for name in names) > 10, [one.meta["layers"][0]["reason"] for one in built.generated]
    if kind in SPARSE:
        assert sum(SPARSE[kind] in name for name in names) > 10, names
    harness.check(built, seed)
    if all(importlib.util.find_spec(package) for package in ("unicorn", "ziglang", "capstone", "elftools")):
        harness.check_emulated(built, CORES[seed % 3], seed, "dsp", memory=memory)
