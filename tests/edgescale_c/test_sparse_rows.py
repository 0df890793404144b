"""The portable kernel of non-zero weights: equal to the NumPy reference, and cheaper on every core it is chosen for."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edgescale_c.generate import generate
from edgescale_c.scalar_choice import ROWS
from edgescale_c.sparse_tables import single_entries
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edgescale.core.dataset import Dataset
from edgescale.core.files import firmware_root, sha256_tree
from edgescale.core.target import load_target
from edgescale.core.variant import Artifact
from edgescale.lower import reference
from edgescale.lower.program import Conv2D, FullyConnected, Requant, Tensor
from tests.seeds import SEEDS

BATCH = settings(max_examples=2, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
CORES = ("cortex-m0plus", "cortex-m3", "esp32-c3")


def layer_of(rng: np.random.Generator, outputs: int, depth: int, side: int, density: float, single: bool):
    """(layer, input, output) of a pointwise convolution or, with side 1, of a fully connected layer of a row or two."""
    # Of an exact number: the choice of the kernel is asserted.
    kept = rng.permutation(outputs * depth).reshape(outputs, depth) < int(density * outputs * depth)
    weights = (rng.integers(-128, 128, (outputs, depth)) * kept).astype(np.int8)
    bias = rng.integers(-(2**12), 2**12, outputs).astype(np.int32)
    count = outputs if rng.random() < 0.5 else 1
    shift = 9 - int(np.abs(weights.astype(int)).sum(axis=1).max() * 128 + 2**12).bit_length()
    scaling = Requant(rng.integers(2**30, 2**31, count).astype(np.int32), np.full(count, min(shift, -1), np.int32))
    scaling = replace(scaling, rounding="single" if single else "double")
    zero, zero_out = (int(v) for v in rng.integers(-128, 128, 2))
    if side > 1:
        x = Tensor("x", (1, side, side + 1, depth), "int8", 0.05, zero)
        shaped = weights[:, None, None]
        layer = Conv2D("c", ("x",), "y", shaped, bias, (1, 1), (1, 1), (0,) * 4, 1, scaling, (-100, 127))
    else:
        x = Tensor("x", (1, int(rng.integers(1, 3)), depth), "int8", 0.05, zero)
        layer = FullyConnected("f", ("x",), "y", weights, bias, scaling, (-128, 127))
    return layer, [x], Tensor("y", (*x.shape[:-1], outputs), "int8", 0.05, zero_out)


@st.composite
def layers(draw):
    rng = np.random.default_rng(draw(SEEDS))
    side = draw(st.sampled_from([1, 2, 3]))
    depth, outputs = draw(st.sampled_from([16, 33, 700])), draw(st.integers(1, 9))
    return layer_of(rng, outputs, depth, side, draw(st.sampled_from([0.0, 0.02, 0.25])), draw(st.booleans()))


@BATCH
@given(data=st.data(), seed=SEEDS)
def test_outputs_equal_the_reference(shared_harness, data, seed):
    harness = shared_harness
    drawn = data.draw(st.lists(layers(), min_size=16, max_size=16))
    programs = [harness.program([layer], x, y) for layer, x, y in drawn]
    for flags in (("-O2",), ("-O2", *harness.armv6m)):
        built = harness.build(programs, *flags, family="scalar")
        assert all(one.meta["layers"][0]["kernel"] == ROWS for one in built.generated)
        harness.check(built, seed)


def test_sanitizers_find_nothing(harness):
    if harness.gcc() != ["gcc"]:
        pytest.skip("needs gcc's sanitizers")
    rng = np.random.default_rng(0)
    programs = [
        harness.program([layer], x, y) for layer, x, y in (layer_of(rng, 5, 300, s, 0.1, False) for s in (1, 3))
    ]
    folder = harness.new_folder()
    made = harness.write(programs, folder, family="scalar")
    steps = []
    for one in made:
        steps += [f"fread({port['accessor']}(), 1, {port['bytes']}, stdin);" for port in one.meta["inputs"]]
        steps.append(f"es_{one.meta['symbol']}_run();")
        steps += [f"fwrite({port['accessor']}(), 1, {port['bytes']}, stdout);" for port in one.meta["outputs"]]
    text = '#include <stdio.h>\n#include "all.c"\n#pragma GCC diagnostic ignored "-Wunused-result"\n'
    (folder / "main.c").write_text(text + "int main(void)\n{\n" + "\n".join(steps) + "\nreturn 0;\n}\n")
    harness.compile(folder, *harness.sanitizers, compiler=["gcc"], source="main.c", output="all")
    given_inputs = [{n: v[:1] for n, v in harness.inputs(p, rng).items()} for p in programs]
    stdin = b"".join(np.ascontiguousarray(v).tobytes() for x in given_inputs for v in x.values())
    result = subprocess.run([str(folder / "all")], input=stdin, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()[-2000:]
    wanted = [reference.run(p, x) for p, x in zip(programs, given_inputs, strict=True)]
    assert result.stdout == b"".join(np.ascontiguousarray(v).tobytes() for y in wanted for v in y.values())


def test_the_table_holds_the_weights():
    rng = np.random.default_rng(3)
    rows = (rng.integers(-128, 128, (7, 1500)) * (rng.random((7, 1500)) < 0.004)).astype(np.int8)
    rows[2, [0, 1499]] = 7, -128
    entries, counts = single_entries(rows)
    found, at = np.zeros_like(rows), 0
    for row, count in zip(found, counts, strict=True):
        place = 0
        for step, weight in entries[at : at + count]:
            place += int(np.uint8(step))
            row[place] += weight
        at += int(count)
    np.testing.assert_array_equal(found, rows)


def counted(harness, folder: Path, drawn, core: str) -> tuple[float, str]:
    """Instructions of the layer, and its kernel."""
    from edgescale.rigs import get_rig

    target = load_target(core)
    layer, (x,), y = drawn
    made = generate(harness.program([layer], [x], y), "net", firmware_root(), target.core.kernels)
    for name, text in made.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "artifact.json").write_text(json.dumps(made.meta))
    artifact = Artifact("net", target.name, "edgescale_c", "c", folder, sha256_tree(folder), dict(made.meta))
    data = Dataset("x", np.zeros((1, *x.shape[1:]), np.float32), None, "x")
    found = get_rig(target.rig).measure(artifact, target, data).layers[0]
    return float(found.metrics["instructions"].value), found.kernel


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("shape", [(64, 256, 1), (24, 32, 8)])
def test_it_is_cheaper_wherever_it_is_chosen(harness, core, shape, tmp_path):
    from edgescale.rigs import get_rig

    pytest.importorskip("ziglang")
    if (missing := get_rig(load_target(core).rig).missing()) is not None:
        pytest.skip(missing)
    dense, _ = counted(harness, tmp_path / "dense", layer_of(np.random.default_rng(0), *shape, 1.0, False), core)
    for density, least in ((0.1, 2.0), (0.25, 1.3), (0.34, 1.0)):
        sparse, kernel = counted(
            harness, tmp_path / f"{density}", layer_of(np.random.default_rng(0), *shape, density, False), core
        )
        assert kernel == ROWS
        assert dense / sparse > least, (density, dense / sparse)
