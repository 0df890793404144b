"""What the choice of kernels that skip zeros says they cost, against instructions counted on the emulated core.

The dense twin of a layer is the same one without zeros."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from edgescale_c import sparse
from edgescale_c.generate import generate

from edgescale.core.dataset import Dataset
from edgescale.core.files import firmware_root, sha256_tree
from edgescale.core.memory import Memory
from edgescale.core.target import load_target
from edgescale.core.variant import Artifact
from edgescale.lower.program import Conv2D, FullyConnected, Port, Program, Requant, Tensor

M4 = "cortex-m4-stm32l4r5"


def keep_two_of_four(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    order = rng.random((*rows.shape[:-1], rows.shape[-1] // 4, 4)).argsort(axis=-1).argsort(axis=-1)
    return np.where((order < 2).reshape(rows.shape), rows, 0)


def keep_blocks(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A quarter of the blocks of four, anywhere in the layer."""
    blocks = np.zeros(rows.size // 4, bool)
    blocks[rng.permutation(blocks.size)[: blocks.size // 4]] = True
    return np.where(np.repeat(blocks, 4).reshape(rows.shape), rows, 0)


def keep_some(share: float):
    return lambda rows, rng: np.where(rng.random(rows.shape) < share, rows, 0)


def network(weights: np.ndarray, side: int) -> Program:
    """One convolution of `side` x `side` pixels, or, for weights [O, I], one fully connected layer."""
    outputs, depth = len(weights), weights.shape[-1]
    bias = np.arange(outputs, dtype=np.int32) * 100
    q = Requant(np.full(outputs, 2**30 + 7, np.int32), np.full(outputs, -6, np.int32), "double")
    stored = (1, side, side, depth) if weights.ndim == 4 else (1, depth)
    x, y = Tensor("x", stored, "int8", 0.05, 3), Tensor("y", (*stored[:-1], outputs), "int8", 0.05, -7)
    w = weights.astype(np.int8)
    if weights.ndim == 4:
        padding = (weights.shape[1] // 2,) * 4
        layer = Conv2D("c", ("x",), "y", w, bias, (1, 1), (1, 1), padding, 1, q, (-128, 127))
    else:
        layer = FullyConnected("c", ("x",), "y", w, bias, replace(q, rounding="single"), (-128, 127))
    ports = [Port(t.name, t.name, t.shape, tuple(range(len(t.shape)))) for t in (x, y)]
    return Program("net", {"x": x, "y": y}, (ports[0],), (ports[1],), (layer,))


def counted(program: Program, folder, memory: Memory = "balanced", target_name: str = M4):
    """(instructions of the layer, its entry in artifact.json)."""
    from edgescale.rigs import get_rig

    target = load_target(target_name)
    made = generate(program, "net", firmware_root(), target.core.kernels, memory=memory)
    for name, text in made.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "artifact.json").write_text(json.dumps(made.meta))
    artifact = Artifact("net", target.name, "edgescale_c", "c", folder, sha256_tree(folder), dict(made.meta))
    x = np.zeros((1, *program.tensors["x"].shape[1:]), np.float32)
    found = get_rig(target.rig).measure(artifact, target, Dataset("x", x, None, "x"))
    return float(found.layers[0].metrics["instructions"].value), made.meta["layers"][0]


CASES = {
    "2:4, 16 inputs": ((24, 1, 1, 16), 14, keep_two_of_four, sparse.PAIRS),
    "2:4, 64 inputs": ((64, 1, 1, 64), 8, keep_two_of_four, sparse.PAIRS),
    "2:4, 3x3": ((32, 3, 3, 16), 12, keep_two_of_four, sparse.PAIRS),
    "1x4, 16 inputs": ((24, 1, 1, 16), 14, keep_blocks, sparse.BLOCKS),
    "1x4, 64 inputs": ((64, 1, 1, 64), 8, keep_blocks, sparse.BLOCKS),
    "1x4, 3x3": ((32, 3, 3, 16), 12, keep_blocks, sparse.BLOCKS),
    "anywhere, 64 inputs": ((64, 1, 1, 64), 8, keep_some(0.25), sparse.PAIRS),
    "anywhere, dense product": ((64, 256), 1, keep_some(0.1), sparse.ENTRIES),
    "packed, dense product": ((64, 256), 1, keep_some(0.25), sparse.PACKED),
}


@pytest.mark.parametrize("case", CASES)
def test_the_cost_model_says_what_the_core_counts(case, tmp_path):
    for package in ("unicorn", "ziglang", "capstone", "elftools"):
        pytest.importorskip(package)
    shape, side, keep, kernel = CASES[case]
    rng = np.random.default_rng(0)
    dense = rng.integers(1, 100, shape)
    memory: Memory = "packed" if kernel == sparse.PACKED else "balanced"
    before, _ = counted(network(dense, side), tmp_path / "dense")
    after, layer = counted(network(keep(dense, rng), side), tmp_path / "sparse", memory)
    assert layer["kernel"] == kernel
    number, kind = re.search(r"\(([\d,]+) (fewer|more)\)", layer["exploited"]).groups()
    told = float(number.replace(",", "")) * (1 if kind == "fewer" else -1)
    assert told == pytest.approx(before - after, abs=0.04 * before)
