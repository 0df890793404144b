"""An int16 net of odd sizes and sums beyond 32 bits on emulated cores: assembly, unaligned rows and tails included."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess

import numpy as np
import pytest

from edgescale.core.files import sha256_tree
from edgescale.core.target import load_target
from edgescale.core.variant import Artifact
from edgescale.lower import interpolated, reference
from edgescale.lower.fixedpoint import requant, requant_wide
from edgescale.lower.integer import interpolated_softmax_scaling
from edgescale.lower.program import (
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    InterpolatedLut,
    Mul,
    Pool2D,
    Program,
    Requant,
    Reshape,
    Softmax,
    Tensor,
)

CORES = ("cortex-m4-stm32l4r5", "cortex-m33-stm32u575", "cortex-m0plus")
FREE = (-32768, 32767)

pytestmark = pytest.mark.slow


def int16(name: str, *shape: int) -> Tensor:
    return Tensor(name, shape, "int16", 0.0003, 0)


def scaling(rng: np.random.Generator, rows: np.ndarray, bias: np.ndarray, rounding: str) -> Requant:
    """Factors that bring usual sums of weights [O, taps] to about a third of int16."""
    usual = np.sqrt((rows.astype(np.float64) ** 2).sum(axis=1)) * 2**13 + np.abs(bias)
    return requant_wide(2**13 * rng.uniform(0.5, 1.5, len(rows)) / usual, rounding)


def odd_net(harness) -> Program:
    rng = np.random.default_rng(11)

    def conv(name: str, source: str, out: str, shape, padding, stride=(1, 1), dilation=(1, 1), spread: int = 2**20):
        w = rng.integers(-128, 128, shape).astype(np.int8)
        bias = rng.integers(-spread, spread, shape[0])
        q = scaling(rng, w.reshape(len(w), -1), bias, "reduced")
        return Conv2D(name, (source,), out, w, bias, stride, dilation, padding, 1, q, FREE)

    def dense(name: str, source: str, out: str, shape, spread: int):
        w = rng.integers(-128, 128, shape).astype(np.int8)
        bias = rng.integers(-spread, spread, shape[0])
        return FullyConnected(name, (source,), out, w, bias, scaling(rng, w, bias, "real"), FREE)

    taps = rng.integers(-128, 128, (3, 3, 7)).astype(np.int8)
    none = np.zeros(7, np.int64)
    q = scaling(rng, taps.reshape(9, 7).T, none, "reduced")
    layers = [
        conv("c1", "x", "a", (5, 3, 3, 3), (1, 1, 1, 1)),
        conv("c2", "a", "b", (7, 2, 3, 5), (0, 1, 1, 1), dilation=(1, 2), spread=2**33),
        DepthwiseConv2D("dw", ("b",), "c", taps, none, (1, 1), (1, 1), (1, 1, 1, 1), 1, q, (0, 32767)),
        InterpolatedLut("gate", ("c",), "d", "sigmoid", *interpolated.sigmoid_scaling(0.0003)),
        Mul("mul", ("c", "d"), "e", requant(1 / 32768), FREE),
        conv("c3", "e", "f", (9, 1, 1, 7), (0, 0, 0, 0)),
        conv("c4", "f", "g", (61, 1, 1, 9), (0, 0, 0, 0), spread=2**35),
        Pool2D("pool", ("g",), "h", "max", (2, 2), (2, 3), (0, 0, 0, 0), False, None, FREE),
        Reshape("flat", ("h",), "i"),
        dense("fc1", "i", "j", (13, 366), 2**30),
        dense("fc2", "j", "k", (11, 13), 2**12),
        Softmax("softmax", ("k",), "y", *interpolated_softmax_scaling(0.0003)),
    ]
    images = [("a", 7, 9, 5), *((name, 7, 7, 7) for name in "bcde"), ("f", 7, 7, 9), ("g", 7, 7, 61), ("h", 3, 2, 61)]
    tensors = [int16(name, 1, *shape) for name, *shape in images]
    return harness.program(
        layers, [int16("x", 1, 7, 9, 3)], *tensors, int16("i", 1, 366), int16("j", 1, 13), int16("k", 1, 11),
        int16("y", 1, 11),
    )  # fmt: skip


@pytest.mark.parametrize("core", CORES)
def test_every_core_equals_the_reference(harness, core, request, monkeypatch):
    if not all(importlib.util.find_spec(package) for package in ("unicorn", "ziglang", "capstone", "elftools")):
        pytest.skip("needs pip install 'edgescale[mcu]'")
    from edgescale.rigs import get_rig

    cache = getattr(request.config, "cache", None)
    if cache is not None:
        monkeypatch.setenv("EDGESCALE_CACHE", str(cache.mkdir("edgescale")))
    program = odd_net(harness)
    target = load_target(core)
    folder = harness.new_folder()
    (made,) = harness.write([program], folder, family=target.core.kernels)
    (folder / "artifact.json").write_text(json.dumps(made.meta))
    artifact = Artifact("p0", core, "edgescale_c", "c", folder, sha256_tree(folder), made.meta)
    (values,) = harness.inputs(program, np.random.default_rng(0), 6).values()
    values[3:] = np.random.default_rng(1).normal(0, 4000, values[3:].shape)
    wanted = reference.run(program, {"x": values}, keep=program.tensors)
    spread = {name: float(np.abs(value[3:].astype(float)).max()) for name, value in wanted.items()}
    assert all(reach > 500 for reach in spread.values()), spread
    got = get_rig(target.rig).raw_executor(artifact, target)(values)
    np.testing.assert_array_equal(got, wanted["y"])
    assert len(np.unique(got[3:])) > 10
    dsp = {"conv2d_s16_dsp_2x2", "fully_connected_s16_dsp"}
    assert (dsp <= {row["kernel"] for row in made.meta["layers"]}) == (target.core.kernels == "dsp")


@pytest.mark.parametrize(
    ("family", "core"), [("scalar", "cortex-m0plus"), ("scalar", "cortex-m3"), ("dsp", "cortex-m4")]
)
def test_gcc_warns_of_nothing_and_needs_no_library(harness, family, core):
    if not shutil.which("arm-none-eabi-gcc"):
        pytest.skip("arm-none-eabi-gcc is not installed")
    folder = harness.new_folder()
    harness.write([odd_net(harness)], folder, family=family)
    for level in ("-O2", "-O3", "-Os"):
        harness.compile(
            folder, level, f"-mcpu={core}", "-mthumb", "-ffreestanding", "-c", compiler=["arm-none-eabi-gcc"],
            source="es_p0.c", output="p.o",
        )  # fmt: skip
        undefined = subprocess.run(["arm-none-eabi-nm", "-u", "p.o"], cwd=folder, capture_output=True, text=True)
        assert set(undefined.stdout.replace(" U ", "").split()) <= {"memcpy", "memset"}, undefined.stdout
