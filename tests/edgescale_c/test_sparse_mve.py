"""Blocks of four on Cortex-M55: equal to the reference, cheaper where chosen, declined with a figure elsewhere."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from edgescale_c import sparse_mve
from hypothesis import HealthCheck, Phase, given, settings

from edgescale.lower.program import Conv2D, Requant, Tensor
from tests.seeds import SEEDS

BATCH = settings(max_examples=1, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
M55 = "cortex-m55-an547"


def _module(name: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


costs = _module("test_sparse_cost")


def block_layer(rng: np.random.Generator, keep: float, *, single: bool, k: int, depth: int):
    """(layer, inputs, output) of a convolution with `keep` of its blocks of four."""
    outputs, side, stride = int(rng.integers(24, 40)), int(rng.integers(3, 7)), int(rng.integers(1, 3))
    rows = rng.integers(-128, 128, (outputs, k * k * depth))
    mask = np.repeat(rng.random((outputs, -(-rows.shape[1] // 4))) < keep, 4, axis=1)[:, : rows.shape[1]]
    rows = (rows * mask).astype(np.int8)
    bias = rng.integers(-(2**14), 2**14, outputs).astype(np.int32)
    bound = int(np.abs(rows.astype(int)).sum(axis=1).max()) * 128 + 2**14
    count = outputs if rng.random() < 0.7 else 1
    shift = np.full(count, min(9 - bound.bit_length(), -2), np.int32)
    q = Requant(rng.integers(2**30, 2**31, count).astype(np.int32), shift, "single" if single else "double")
    zeros = [int(v) for v in rng.integers(-128, 128, 2)]
    pad, dilation = int(rng.integers(0, 2)) * (k // 2), (2 if side > 4 and rng.random() < 0.2 else 1)
    out = (side + 2 * pad - (k - 1) * dilation - 1) // stride + 1
    x = Tensor("x", (1, side, side + 1, depth), "int8", 0.05, zeros[0])
    wide = (side + 1 + 2 * pad - (k - 1) * dilation - 1) // stride + 1
    y = Tensor("y", (1, out, wide, outputs), "int8", 0.05, zeros[1])
    w = rows.reshape(outputs, k, k, depth)
    clamp = (-128, 127) if rng.random() < 0.7 else (-90, 100)
    return Conv2D("c", ("x",), "y", w, bias, (stride,) * 2, (dilation,) * 2, (pad,) * 4, 1, q, clamp), [x], y


@BATCH
@given(seed=SEEDS)
def test_outputs_equal_the_reference(shared_harness, seed):
    harness, rng = shared_harness, np.random.default_rng(seed)
    shapes = [(1, 256), (1, 201), (3, 32), (3, 19)] * 5
    drawn = [
        block_layer(rng, keep, single=rng.random() < 0.3, k=k, depth=depth)
        for (k, depth), keep in zip(shapes, [0.0, 0.05, 0.1, 0.15, 0.2] * 4, strict=True)
    ]
    programs = [harness.program([layer], x, y) for layer, x, y in drawn]
    built = harness.build(programs, "-O2", family="mve")
    names = [one.meta["layers"][0]["kernel"] for one in built.generated]
    assert sum(name == sparse_mve.BLOCKS for name in names) > 8, names
    harness.check(built, seed)
    if shutil.which("qemu-system-arm") and importlib.util.find_spec("ziglang"):
        harness.check_emulated(built, M55, seed, "mve")
        if shutil.which("arm-none-eabi-gcc"):
            harness.check_emulated(built, M55, seed, "mve", "gcc")


def test_tables_hold_the_weights():
    rng = np.random.default_rng(0)
    rows = rng.integers(-128, 128, (7, 150)) * np.repeat(rng.random((7, 38)) < 0.3, 4, axis=1)[:, :150]
    rows[3] = 0
    weights, places, counts = sparse_mve.tables(rows)
    assert len(weights) == len(places) == 4 * counts.sum()
    found, at = np.zeros((7, 38, 4), np.int64), 0
    for channel in range(7):
        for _ in range(4 * int(counts[channel])):
            found[channel, places[at]] += weights[at]
            at += 1
    np.testing.assert_array_equal(found.reshape(7, -1)[:, :150], rows)
    assert counts[7] == 0


@pytest.mark.parametrize("shape", [(32, 3, 3, 32), (64, 1, 1, 256)])
def test_the_cost_model_says_what_the_core_counts(shape, tmp_path):
    from edgescale.core.target import load_target
    from edgescale.rigs import get_rig

    pytest.importorskip("ziglang")
    if (missing := get_rig(load_target(M55).rig).missing()) is not None:
        pytest.skip(missing)
    rng = np.random.default_rng(0)
    dense = rng.integers(1, 100, shape)
    before, _ = costs.counted(costs.network(dense, 4), tmp_path / "dense", target_name=M55)
    sparse = costs.network(costs.keep_blocks(dense, rng), 4)
    after, layer = costs.counted(sparse, tmp_path / "sparse", target_name=M55)
    assert layer["kernel"] == sparse_mve.BLOCKS
    told = float(re.search(r"\(([\d,]+) fewer\)", layer["exploited"])[1].replace(",", ""))
    assert before / after > 1.4
    assert told == pytest.approx(before - after, abs=0.15 * before)


def test_two_of_four_is_declined_and_says_by_how_much(tmp_path):
    rng = np.random.default_rng(0)
    weights = costs.keep_two_of_four(rng.integers(1, 100, (64, 1, 1, 64)), rng)
    from edgescale_c.generate import generate

    from edgescale.core.files import firmware_root

    (layer,) = generate(costs.network(weights, 4), "net", firmware_root(), "mve").meta["layers"]
    assert "sparse" not in layer["kernel"]
    wanted = r"nothing: skipping blocks of four would take \d+% more instructions \([\d,]+ more\) and [\d,]+ B more"
    assert re.fullmatch(wanted, layer["exploited"])
