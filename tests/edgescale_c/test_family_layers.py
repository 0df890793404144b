"""Layers that the dsp and mve families compute alike: equal to the NumPy reference bit for bit.

In C on this machine, and with the instructions of their own on emulated cores.

Each compiler call takes a batch of single-layer programs; for an emulated core a batch is one image.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edgescale.core.target import load_target
from edgescale.lower import reference
from edgescale.lower.program import Conv2D, DepthwiseConv2D, FullyConnected, Lut, Mul, Pool2D, Requant, Rescale, Tensor
from tests.seeds import SEEDS

BATCH = settings(max_examples=2, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
CORES = {"scalar": "cortex-m3", "dsp": "cortex-m4-stm32l4r5", "mve": "cortex-m55-an547"}

zero_points = st.sampled_from([-128, 127, 0]) | st.integers(-128, 127)


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    cache = getattr(request.config, "cache", None)
    if cache is not None:
        monkeypatch.setenv("EDGESCALE_CACHE", str(cache.mkdir("edgescale")))


def int8(name: str, shape, zero_point: int) -> Tensor:
    return Tensor(name, tuple(shape), "int8", 0.05, zero_point)


def clamp(draw) -> tuple[int, int]:
    low = draw(st.sampled_from([-128, -128, -128, -5, 3]))
    return low, draw(st.sampled_from([127, 127, 127, 40, max(low, 3)]))


def factor(draw, bound: int) -> Requant:
    """One factor that puts values of `bound` around the int8 range, seldom far below."""
    rng = np.random.default_rng(draw(SEEDS))
    shift = draw(st.sampled_from([-2, -1, 0, 1])) + 7 - bound.bit_length()
    if draw(st.integers(0, 9)) == 0:
        shift = draw(st.integers(-31, -1))
    return Requant(rng.integers(2**30, 2**31, 1).astype(np.int32), np.array([min(shift, -1)], np.int32))


@st.composite
def elementwise(draw, family: str):
    """(layer, inputs, output) of Mul, Lut, Rescale and max pooling."""
    rng = np.random.default_rng(draw(SEEDS))
    kind = draw(st.sampled_from(["mul", "mul", "lut", "rescale", "pool", "pool"]))
    shape = (1, draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 21)))
    zero, zero_out = draw(zero_points), draw(zero_points)
    a, y = int8("a", shape, zero), int8("y", shape, zero_out)
    if kind == "lut":
        return Lut("lut", ("a",), "y", rng.integers(-128, 128, 256).astype(np.int8), "noise"), [a], y
    if kind == "rescale":
        shape = (1, 11, 10, 10 + shape[3])  # large enough for a table
        scaling = Requant(np.array([2**30 + 12345]), np.array([draw(st.sampled_from([-3, -1, 0, 1, 2]))]))
        layer = Rescale("rescale", ("a",), "y", scaling, clamp(draw))
        return layer, [int8("a", shape, zero)], int8("y", shape, zero_out)
    if kind == "pool":
        kernel = draw(st.sampled_from([(1, 1), (2, 2), (3, 3), (4, 3), (1, 2)]))
        kernel = tuple(min(k, size) for k, size in zip(kernel, shape[1:3], strict=True))
        stride = draw(st.sampled_from([(1, 1), (2, 2), (1, 2)]))
        pads = (kernel[0] // 2, kernel[1] // 2, kernel[0] // 2, 0) if draw(st.booleans()) else (0,) * 4
        extents = [(shape[1 + i] + pads[i] + pads[i + 2] - kernel[i]) // stride[i] + 1 for i in range(2)]
        layer = Pool2D("pool", ("a",), "y", "max", kernel, stride, pads, False, None, clamp(draw))
        return layer, [a], int8("y", (1, *extents, shape[3]), zero)
    second = draw(st.sampled_from([shape, (1, 1, 1, shape[3]), (1, 1, 1, 1)]))
    b = int8("b", second, draw(zero_points))
    constant = rng.integers(-128, 128, second).astype(np.int8) if draw(st.booleans()) else None
    names, inputs = (("a",), [a]) if constant is not None else (("a", "b"), [a, b])
    return Mul("mul", names, "y", factor(draw, 255 * 255), clamp(draw), constant, b.zero_point), inputs, y


def factors(draw, channels: int, bound: int) -> Requant:
    """One factor a channel, or one for all."""
    size = channels if draw(st.booleans()) else 1
    rng = np.random.default_rng(draw(SEEDS))
    shift = rng.integers(-2, 2, size) + 7 - max(1, bound).bit_length()
    multiplier = rng.integers(2**30, 2**31, size)
    if draw(st.integers(0, 9)) == 0:
        multiplier[rng.integers(size)] = 0
    return Requant(multiplier.astype(np.int32), np.clip(shift, -31, -1).astype(np.int32))


@st.composite
def grouped(draw, family: str):
    """(layer, inputs, output) of a convolution of several groups."""
    rng = np.random.default_rng(draw(SEEDS))
    groups = draw(st.integers(2, 5))
    depth, width = draw(st.sampled_from([1, 2, 3, 4, 8, 20])), draw(st.integers(1, 9))
    k = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (2, 5)]))
    stride, dilation = draw(st.sampled_from([(1, 1), (2, 2), (1, 2)])), draw(st.sampled_from([(1, 1), (1, 1), (2, 1)]))
    reach = [(a - 1) * d + 1 for a, d in zip(k, dilation, strict=True)]
    pads = tuple(draw(st.integers(0, 2)) for _ in range(4)) if draw(st.booleans()) else (0,) * 4
    size = [max(draw(st.integers(1, 7)), reach[i] - pads[i] - pads[i + 2], 1) for i in range(2)]
    extents = [(size[i] + pads[i] + pads[i + 2] - reach[i]) // stride[i] + 1 for i in range(2)]
    channels = groups * width
    w = rng.integers(-127, 128, (channels, *k, depth)).astype(np.int8)
    big = draw(st.sampled_from([1000, 1000, 2**25]))
    b = rng.integers(-big, big, channels).astype(np.int32)
    q = factors(draw, channels, k[0] * k[1] * depth * 127 * 64 + big)
    layer = Conv2D("groups", ("x",), "y", w, b, stride, dilation, pads, groups, q, clamp(draw))
    x = int8("x", (1, *size, groups * depth), draw(zero_points))
    return layer, [x], int8("y", (1, *extents, channels), draw(zero_points))


@st.composite
def narrow(draw, family: str):
    """(layer, inputs, output) of a layer with weights of four bits: any kind, any parity of its sizes."""
    rng = np.random.default_rng(draw(SEEDS))
    kind = draw(st.sampled_from(["conv", "conv", "groups", "depthwise", "depthwise", "dense", "pixel"]))
    zero, zero_out = draw(zero_points), draw(zero_points)
    rows = draw(st.sampled_from([1, 1, 3]))
    big = draw(st.sampled_from([1000, 1000, 2**24]))

    def weights(*shape: int) -> np.ndarray:
        if draw(st.integers(0, 3)) == 0:
            return rng.choice(np.array([-8, 7], np.int8), shape)
        return rng.integers(-8, 8, shape).astype(np.int8)

    def parameters(channels: int, taps: int):
        """Bias and rescaling."""
        return rng.integers(-big, big, channels).astype(np.int32), factors(draw, channels, taps * 8 * 64 + big)

    if kind in ("dense", "pixel"):
        inputs, outputs = draw(st.integers(1, 90)), draw(st.integers(1, 27))
        b, q = parameters(outputs, inputs)
        if kind == "pixel":
            values = weights(outputs, 1, 1, inputs), b, (1, 1), (1, 1), (0,) * 4, 1, q, clamp(draw)
            layer = Conv2D("pixel", ("x",), "y", *values, weight_bits=4)
            return layer, [int8("x", (1, 1, 1, inputs), zero)], int8("y", (1, 1, 1, outputs), zero_out)
        single = draw(st.booleans())
        q = replace(q, rounding="single", shift=np.minimum(q.shift, -2)) if single else q
        layer = FullyConnected("fc", ("x",), "y", weights(outputs, inputs), b, q, clamp(draw), weight_bits=4)
        return layer, [int8("x", (1, rows, inputs), zero)], int8("y", (1, rows, outputs), zero_out)
    k = draw(st.sampled_from([(1, 1), (1, 1), (3, 3), (3, 3), (2, 5), (5, 4)]))
    stride = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3)]))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (1, 1), (2, 1), (1, 2)]))
    reach = [(a - 1) * d + 1 for a, d in zip(k, dilation, strict=True)]
    pads = tuple(draw(st.integers(0, 2)) for _ in range(4)) if draw(st.booleans()) else (0,) * 4
    size = [max(draw(st.integers(1, 8)), reach[i] - pads[i] - pads[i + 2], 1) for i in range(2)]
    extents = [(size[i] + pads[i] + pads[i + 2] - reach[i]) // stride[i] + 1 for i in range(2)]
    if kind == "depthwise":
        depth, multiplier = draw(st.integers(1, 19)), draw(st.sampled_from([1, 1, 2, 3]))
        channels = depth * multiplier
        b, q = parameters(channels, k[0] * k[1])
        values = weights(*k, channels), b, stride, dilation, pads, multiplier, q, clamp(draw)
        layer = DepthwiseConv2D("dw", ("x",), "y", *values, weight_bits=4)
    else:
        groups = draw(st.integers(2, 4)) if kind == "groups" else 1
        each = draw(st.sampled_from([1, 2, 3, 4, 7, 8, 16, 20, 70]))
        depth, channels = groups * each, groups * draw(st.integers(1, 11))
        b, q = parameters(channels, k[0] * k[1] * each)
        values = weights(channels, *k, each), b, stride, dilation, pads, groups, q, clamp(draw)
        layer = Conv2D("conv", ("x",), "y", *values, weight_bits=4)
    return layer, [int8("x", (1, *size, depth), zero)], int8("y", (1, *extents, channels), zero_out)


KINDS = {"elementwise": elementwise, "grouped": grouped, "narrow": narrow}
CASES = [(kind, family) for kind in KINDS for family in CORES if family != "scalar" or kind == "narrow"]


def most_bytes(layer) -> float:
    """What a layer's constants may take: two weights a byte, some filled up, and 16 bytes a channel beside them.

    The scalar kernels also hold padding of a row of windows of two pixels, of at most 12 columns.
    """
    shape = layer.weights.shape
    channels, taps = (shape[2], shape[0] * shape[1]) if isinstance(layer, DepthwiseConv2D) else (shape[0], shape[1:])
    groups = getattr(layer, "groups", 1)
    filled = groups * (-(-channels // groups // 4) * 4)
    depth = shape[2] if isinstance(layer, DepthwiseConv2D) else groups * shape[-1]
    padding = 12 * depth if any(getattr(layer, "padding", ())) else 0
    return (filled * (int(np.prod(taps)) + 16)) / 2 + 16 * filled + 64 + padding


def emulates(family: str) -> bool:
    if family != "mve":
        return all(map(importlib.util.find_spec, ("unicorn", "ziglang", "capstone", "elftools")))
    from edgescale.rigs import get_rig

    return get_rig(load_target(CORES[family]).rig).missing() is None


@pytest.mark.parametrize(("kind", "family"), CASES)
@BATCH
@given(data=st.data(), seed=SEEDS)
def test_layers_equal_the_reference(shared_harness, kind, family, data, seed):
    harness = shared_harness
    drawn = data.draw(st.lists(KINDS[kind](family), min_size=20, max_size=20))
    programs = [harness.program([layer], x, y) for layer, x, y in drawn]
    built = harness.build(programs, "-O2", family=family)
    layers = [one.meta["layers"][0] for one in built.generated]
    assert family == "scalar" or sum(family in layer["kernel"] for layer in layers) > 15, layers
    if kind == "narrow":
        for program, one in zip(programs, built.generated, strict=True):
            assert one.meta["layers"][0]["kernel"].endswith("_w4")
            assert one.meta["weights_bytes"] < most_bytes(program.layers[0])
    harness.check(built, seed)
    if emulates(family):
        harness.check_emulated(built, CORES[family], seed, family)
        if shutil.which("arm-none-eabi-gcc"):
            harness.check_emulated(built, CORES[family], seed, family, "gcc")


@pytest.mark.parametrize(("kind", "family"), CASES)
@settings(BATCH, max_examples=1)
@given(data=st.data(), seed=SEEDS)
def test_layers_without_undefined_behaviour(shared_harness, kind, family, data, seed):
    """A few under the address and undefined-behaviour sanitizers, which take the compiler long."""
    harness = shared_harness
    if harness.gcc() != ["gcc"]:
        pytest.skip("needs gcc's sanitizers")
    count = 2 if family == "scalar" else 6
    drawn = data.draw(st.lists(KINDS[kind](family), min_size=count, max_size=count))
    programs = [harness.program([layer], x, y) for layer, x, y in drawn]
    folder = harness.new_folder()
    made = harness.write(programs, folder, family=family)
    steps = []
    for one in made:
        steps += [f"fread({port['accessor']}(), 1, {port['bytes']}, stdin);" for port in one.meta["inputs"]]
        steps.append(f"es_{one.meta['symbol']}_run();")
        steps += [f"fwrite({port['accessor']}(), 1, {port['bytes']}, stdout);" for port in one.meta["outputs"]]
    text = '#include <stdio.h>\n#include "all.c"\n#pragma GCC diagnostic ignored "-Wunused-result"\n'
    (folder / "main.c").write_text(text + "int main(void)\n{\n" + "\n".join(steps) + "\nreturn 0;\n}\n")
    harness.compile(folder, *harness.sanitizers, compiler=["gcc"], source="main.c", output="all")
    drawn_inputs = [harness.inputs(p, np.random.default_rng(seed + i)) for i, p in enumerate(programs)]
    given_inputs = [{name: v[:1] for name, v in x.items()} for x in drawn_inputs]
    stdin = b"".join(np.ascontiguousarray(v).tobytes() for x in given_inputs for v in x.values())
    result = subprocess.run([str(folder / "all")], input=stdin, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()[-2000:]
    wanted = [reference.run(p, x) for p, x in zip(programs, given_inputs, strict=True)]
    assert result.stdout == b"".join(np.ascontiguousarray(v).tobytes() for y in wanted for v in y.values())


@pytest.mark.parametrize("family", ["scalar", "dsp", "mve"])
def test_a_single_pixel_under_padding_is_no_dense_product(shared_harness, family):
    """One input pixel, a 1x1 window, and padding that moves the only output beside it."""
    weights = np.full((3, 1, 1, 4), 7, np.int8)
    bias = np.arange(3, dtype=np.int32) * 1000
    for padding, stride in (((0, 1, 1, 0), (2, 2)), ((1, 0, 0, 1), (2, 2)), ((1, 1, 0, 0), (3, 3))):
        scaling = Requant(np.full(3, 2**30, np.int32), np.full(3, -5, np.int32))
        layer = Conv2D("c", ("x",), "y", weights, bias, stride, (1, 1), padding, 1, scaling, (-128, 127))
        program = shared_harness.program([layer], [int8("x", (1, 1, 1, 4), 5)], int8("y", (1, 1, 1, 3), -2))
        shared_harness.check(shared_harness.build([program], family=family))
