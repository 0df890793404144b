"""The mve kernels equal the NumPy reference bit for bit: their C on this machine, their vectors on an emulated M55.

Each compiler call takes a batch of single-layer programs. For the M55 a whole batch is one image and one start of
QEMU: its input and output are those of all programs, one after the other.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from edgescale_c.firmware import needed_headers
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edgescale.core.files import firmware_root, sha256_tree
from edgescale.core.target import load_target
from edgescale.core.variant import Artifact
from edgescale.lower import reference
from edgescale.lower.fixedpoint import apply_requant
from edgescale.lower.integer import add_rescaling
from edgescale.lower.program import Add, Conv2D, DepthwiseConv2D, FullyConnected, Mean, Pool2D, Requant, Tensor
from edgescale.rigs import get_rig, host_c
from tests.seeds import SEEDS

BATCH = settings(max_examples=1, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
CORE = "cortex-m55-an547"
WORKER = "void es_all_run(void)"

zero_points = st.sampled_from([-128, 127, 0]) | st.integers(-128, 127)


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    cache = getattr(request.config, "cache", None)
    if cache is not None:
        monkeypatch.setenv("EDGESCALE_CACHE", str(cache.mkdir("edgescale")))


def int8(name: str, shape, zero_point: int) -> Tensor:
    return Tensor(name, tuple(shape), "int8", 0.05, zero_point)


def requant(draw, channels: int, bound: int, rounding: str = "double") -> Requant:
    """Factors that put accumulators of `bound` around the int8 range; a few far below, a few zeros, all shifts."""
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
        return rng.choice(np.array([-128, 127], np.int8), shape)
    return rng.integers(-128, 128, shape).astype(np.int8)


def bias(draw, channels: int) -> np.ndarray:
    big = draw(st.sampled_from([1000, 2**30]))
    return np.random.default_rng(draw(SEEDS)).integers(-big, big, channels).astype(np.int32)


@st.composite
def windows(draw, depthwise: bool):
    """(layer, inputs, output) of a convolution: window, strides, dilation, padding and depth of any kind."""
    kernels = st.sampled_from([(1, 1), (1, 1), (3, 3), (3, 3)]) | st.tuples(st.integers(1, 5), st.integers(1, 5))
    k = draw(kernels)
    stride = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3), (2, 1)]))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (1, 1), (2, 1), (1, 2)]))
    reach = [(a - 1) * d + 1 for a, d in zip(k, dilation, strict=True)]
    pads = (
        tuple(draw(st.integers(0, min(reach[axis % 2], 4))) for axis in range(4)) if draw(st.booleans()) else (0,) * 4
    )
    size = [max(draw(st.integers(1, 9)), reach[axis] - pads[axis] - pads[axis + 2], 1) for axis in range(2)]
    out_size = [(size[a] + pads[a] + pads[a + 2] - reach[a]) // stride[a] + 1 for a in range(2)]
    if depthwise:
        depth, multiplier = draw(st.sampled_from([8, 16]) | st.integers(1, 20)), draw(st.sampled_from([1, 1, 1, 2, 3]))
        channels = depth * multiplier
        w, taps = weights(draw, (*k, channels)), k[0] * k[1]
    else:
        depth = draw(st.integers(1, 12) | st.sampled_from([16, 20, 48, 64, 70, 96]))
        channels = draw(st.sampled_from([4, 8]) | st.integers(1, 9))
        w, taps = weights(draw, (channels, *k, depth)), k[0] * k[1] * depth
    q = requant(draw, channels, taps * 127 * 64)
    values = w, bias(draw, channels), stride, dilation, pads
    if depthwise:
        layer = DepthwiseConv2D("dw", ("x",), "y", *values, multiplier, q, clamp(draw))
    else:
        layer = Conv2D("conv", ("x",), "y", *values, 1, q, clamp(draw))
    out = int8("y", (1, *out_size, channels), draw(zero_points))
    return layer, [int8("x", (1, *size, depth), draw(zero_points))], out


@st.composite
def dense(draw):
    """(layer, inputs, output) of a fully connected layer, of either rounding."""
    rows, outputs = draw(st.sampled_from([1, 1, 3])), draw(st.integers(1, 27))
    inputs = draw(st.integers(1, 150) | st.sampled_from([16, 64, 128]))
    w, b = weights(draw, (outputs, inputs)), bias(draw, outputs)
    q = requant(draw, outputs, inputs * 127 * 64, draw(st.sampled_from(["single", "single", "double"])))
    layer = FullyConnected("fc", ("x",), "y", w, b, q, clamp(draw))
    zero, zero_out = draw(zero_points), draw(zero_points)
    return layer, [int8("x", (1, rows, inputs), zero)], int8("y", (1, rows, outputs), zero_out)


@st.composite
def others(draw):
    """(layer, inputs, output) of Add, average pooling and Mean."""
    shape = (1, draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(1, 20)))
    kind = draw(st.sampled_from(["add", "add", "pool", "mean"]))
    zero, zero_out = draw(zero_points), draw(zero_points)
    if kind == "mean":
        high = draw(st.sampled_from([shape[1], 70]))  # 70 x 5 pixels: more than one run of 256
        pixels = high * shape[2]
        q = requant(draw, 1, 127 * pixels)
        layer = Mean("m", ("a",), "y", q, clamp(draw))
        return layer, [int8("a", (1, high, *shape[2:]), zero)], int8("y", (1, shape[3]), zero_out)
    if kind == "pool":
        kernel = draw(st.sampled_from([shape[1:3], (1, 1), (min(2, shape[1]), min(2, shape[2]))]))
        pads = (kernel[0] // 2, kernel[1] // 2, 0, 0) if draw(st.booleans()) else (0,) * 4
        extents = tuple(shape[1 + a] + pads[a] - kernel[a] + 1 for a in range(2))
        layer = Pool2D("p", ("a",), "y", "avg", kernel, (1, 1), pads, draw(st.booleans()), None, clamp(draw))
        return layer, [int8("a", shape, zero)], int8("y", (1, *extents, shape[3]), zero)
    scales = [draw(st.sampled_from([0.01, 0.02, 0.0371, 0.5])) for _ in range(3)]
    left, pair, q = add_rescaling(*scales)
    a, b = int8("a", shape, zero), int8("b", shape, draw(zero_points))
    layer = Add("add", ("a", "b"), "y", left, pair, q, clamp(draw), draw(st.booleans()))
    return layer, [a, b], int8("y", shape, zero_out)


KINDS = {"conv": windows(False), "depthwise": windows(True), "dense": dense(), "others": others()}


def artifact_of(folder, text: str, size_in: int, size_out: int, layers: list[dict]) -> Artifact:
    """C with `es_all_run` between all_in and all_out as an artifact of one input and one output."""
    ports = f"""static int8_t all_in[{size_in}] __attribute__((aligned(4))), all_out[{size_out}];
int8_t *es_all_input(void);
const int8_t *es_all_output(void);
{WORKER};
int8_t *es_all_input(void) {{ return all_in; }}
const int8_t *es_all_output(void) {{ return all_out; }}
"""
    (folder / "es_all.c").write_text(text.replace("@PORTS@", ports))

    def port(accessor: str, size: int) -> dict:
        shape = [1, size]
        return {
            "name": accessor, "accessor": accessor, "bytes": size, "dtype": "int8", "scale": 1.0, "zero_point": 0,
            "shape": shape, "axes": [0, 1], "stored_shape": shape,
        }  # fmt: skip

    meta = {
        "symbol": "all", "sources": ["es_all.c"], "header": "all.c", "arena_bytes": 0, "weights_bytes": 0,
        "inputs": [port("es_all_input", size_in)], "outputs": [port("es_all_output", size_out)], "layers": layers,
    }  # fmt: skip
    (folder / "artifact.json").write_text(json.dumps(meta))
    return Artifact("all", "any", "edgescale_c", "c", folder, sha256_tree(folder), meta)


def batch_artifact(harness, programs, made) -> Artifact:
    folder = harness.new_folder()
    harness.write(programs, folder, family="mve")
    steps = []
    for one in made:
        steps += [f"move({p['accessor']}(), x, {p['bytes']}); x += {p['bytes']};" for p in one.meta["inputs"]]
        steps.append(f"es_{one.meta['symbol']}_run();")
        steps += [f"move(y, {p['accessor']}(), {p['bytes']}); y += {p['bytes']};" for p in one.meta["outputs"]]
    body = "\n    ".join(steps)
    text = (
        '#include "all.c"\n@PORTS@'
        "static void move(int8_t *to, const int8_t *from, int n) { while (n-- > 0) *to++ = *from++; }\n"
        f"{WORKER}\n{{\n    const int8_t *x = all_in;\n    int8_t *y = all_out;\n    {body}\n}}\n"
    )
    sizes = [sum(port["bytes"] for one in made for port in one.meta[kind]) for kind in ("inputs", "outputs")]
    return artifact_of(folder, text, *sizes, [layer for one in made for layer in one.meta["layers"]])


def check_emulated(harness, built, seed: int, compiler: str = "zig") -> None:
    target = load_target(CORE)
    target = replace(target, toolchain=replace(target.toolchain, compiler=compiler))
    samples = [harness.inputs(p, np.random.default_rng(seed + i)) for i, p in enumerate(built.programs)]
    wanted = [reference.run(p, x) for p, x in zip(built.programs, samples, strict=True)]
    stored = np.concatenate([v.reshape(len(v), -1) for x in samples for v in x.values()], axis=1)
    artifact = batch_artifact(harness, built.programs, built.generated)
    got = get_rig(target.rig).raw_executor(artifact, target)(stored)
    at = 0
    for program, outputs in zip(built.programs, wanted, strict=True):
        expected = np.concatenate([v.reshape(len(v), -1) for v in outputs.values()], axis=1)
        part = got[:, at : at + expected.shape[1]]
        np.testing.assert_array_equal(part, expected, err_msg=f"{CORE}, {compiler}: {program}")
        at += expected.shape[1]


def why_not_emulated() -> str | None:
    return get_rig(load_target(CORE).rig).missing()


@pytest.mark.parametrize("kind", KINDS)
@BATCH
@given(data=st.data(), seed=SEEDS)
def test_mve_layers_equal_the_reference(shared_harness, kind, data, seed):
    harness = shared_harness
    drawn = data.draw(st.lists(KINDS[kind], min_size=24, max_size=24))
    programs = [harness.program([layer], x, y) for layer, x, y in drawn]
    built = harness.build(programs, "-O2", family="mve")
    names = [one.meta["layers"][0]["kernel"] for one in built.generated]
    assert sum("mve" in name for name in names) > 18, [one.meta["layers"][0]["reason"] for one in built.generated]
    harness.check(built, seed)
    if why_not_emulated() is None:
        check_emulated(harness, built, seed)
        if shutil.which("arm-none-eabi-gcc"):
            check_emulated(harness, built, seed, "gcc")


@pytest.mark.parametrize(("channels", "size"), [(4, (5, 8)), (6, (6, 8)), (8, (5, 8))])
def test_a_store_of_some_lanes_drops_none_before_it(harness, channels, size):
    """GCC 12 took one for a store of all lanes: copying the taps of the second pixel undid the outputs of the first."""
    if not shutil.which("arm-none-eabi-gcc"):
        pytest.skip("needs GCC for Arm: apt-get install gcc-arm-none-eabi")
    if (missing := why_not_emulated()) is not None:
        pytest.skip(missing)
    rng = np.random.default_rng(0)
    w, b = rng.integers(-128, 128, (channels, 3, 4, 5)).astype(np.int8), rng.integers(-999, 999, channels)
    factor = Requant(np.array([1180204323], np.int32), np.array([-12], np.int32), "double")
    layer = Conv2D("c", ("x",), "y", w, b.astype(np.int32), (1, 3), (2, 1), (0,) * 4, 1, factor, (-128, 127))
    out = int8("y", (1, size[0] - 4, (size[1] - 4) // 3 + 1, channels), 127)
    built = harness.build([harness.program([layer], [int8("x", (1, *size, 5), -128)], out)], "-O2", family="mve")
    check_emulated(harness, built, 1, "gcc")


REQUANT = """#include "es_mve.h"
@PORTS@
void es_all_run(void)
{
    const int32_t *word = (const int32_t *)(const void *)all_in;
    const es_mve_output o = {word[2], -128, 127, word[3]}, narrow = {word[2], -100, 99, word[3]};
    for (int32_t i = 0; i < COUNT; i += 4) {
#if ES_MVE
        const int32x4_t acc = vldrwq_s32(word + 4 + i), m = vdupq_n_s32(word[0]), left = vdupq_n_s32(word[1]);
        vstrbq_s32(all_out + i, es_mve_requant(acc, m, left, &o));
        vstrbq_s32(all_out + COUNT + i, es_mve_requant(acc, m, left, &narrow));
#else
        for (int32_t j = i; j < i + 4; j++) {
            all_out[j] = es_mve_requant_one(word[4 + j], word[0], word[1], &o);
            all_out[COUNT + j] = es_mve_requant_one(word[4 + j], word[0], word[1], &narrow);
        }
#endif
    }
}
"""
COUNT = 4000


def scaled_accumulators(rng: np.random.Generator, multiplier: int, shift: int) -> np.ndarray:
    """int32 accumulators next to every rounding boundary of an int8 result, next to 0 and at the ends of the range."""
    halves = np.arange(-300, 300) + 0.5
    exact = np.rint(halves * 2.0 ** (31 - shift) / max(multiplier, 1))
    near = (exact[:, None] + np.arange(-2, 3)).reshape(-1)
    near = near[np.abs(near) < 2**31 - 2].astype(np.int64)
    ends = np.concatenate([np.arange(-(2**31), -(2**31) + 20), np.arange(2**31 - 20, 2**31), np.arange(-200, 200)])
    both = np.concatenate([near, ends])
    return np.concatenate([both, rng.integers(-(2**31), 2**31, COUNT - both.size)]).astype(np.int32)


@pytest.mark.parametrize("where", ["host", "emulated"])
@pytest.mark.parametrize("rounding", ["double", "single"])
def test_requantization_equals_the_reference_over_its_domain(shared_harness, rounding, where):
    """Every shift, the extreme multipliers and random ones, against the NumPy reference."""
    if where == "emulated" and (reason := why_not_emulated()):
        pytest.skip(reason)
    folder = shared_harness.new_folder()
    for name, text in needed_headers(REQUANT, firmware_root(), "mve").items():
        (folder / name).write_text(text)
    artifact = artifact_of(folder, REQUANT.replace("COUNT", str(COUNT)), 16 + 4 * COUNT, 2 * COUNT, [])
    rng = np.random.default_rng(5)
    cases = []
    for shift in range(-31, -1 if rounding == "single" else 0):
        for multiplier in (2**30, 2**31 - 1, int(rng.integers(2**30, 2**31)), 0):
            cases.append((multiplier, shift, int(rng.integers(-128, 128)), scaled_accumulators(rng, multiplier, shift)))
    single = rounding == "single"
    stored = np.stack([np.array([m, s + single, z, single, *acc], np.int32).view(np.int8) for m, s, z, acc in cases])
    if where == "host":
        got = host_c.raw_executor(artifact)(stored)
    else:
        got = get_rig(load_target(CORE).rig).raw_executor(artifact, load_target(CORE))(stored)
    for row, (multiplier, shift, zero, acc) in zip(got, cases, strict=True):
        q = Requant(np.array([multiplier], np.int32), np.array([shift], np.int32), rounding)
        v = apply_requant(acc.astype(np.int64)[:, None], q)[:, 0] + zero
        wanted = np.concatenate([np.clip(v, -128, 127), np.clip(v, -100, 99)])
        np.testing.assert_array_equal(row, wanted, err_msg=f"{multiplier} {shift} {zero}")
