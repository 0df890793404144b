"""The memory plan: optimal on small problems by brute force, checked by an independent verifier, tight when run."""

from __future__ import annotations

import itertools
import random
import subprocess

import numpy as np
import pytest
from edgescale_c.generate import generate
from edgescale_c.liveness import buffers
from edgescale_c.overlap import distance
from edgescale_c.planner import Rules, lower_bound, plan, rules, search
from edgescale_c.verifier import PlanError, verify
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edgescale.lower import reference
from edgescale.lower.program import (
    Add,
    Concat,
    Conv2D,
    DepthwiseConv2D,
    Layer,
    Lut,
    Pool2D,
    Port,
    Program,
    Requant,
    Reshape,
    Tensor,
)
from tests.seeds import SEEDS

UNIT = Requant(np.array([2**30], np.int32), np.array([-7], np.int32))
FULL = (-128, 127)


def int8(name: str, *shape: int) -> Tensor:
    return Tensor(name, shape, "int8", 0.1, 0)


def build(layers: list[Layer], inputs: list[str], outputs: list[str], tensors: list[Tensor]) -> Program:
    by_name = {tensor.name: tensor for tensor in tensors}

    def ports(names: list[str]) -> tuple[Port, ...]:
        return tuple(Port(n, n, by_name[n].shape, tuple(range(len(by_name[n].shape)))) for n in names)

    return Program("test", by_name, ports(inputs), ports(outputs), tuple(layers))


def lut(source: str, out: str) -> Lut:
    return Lut(out, (source,), out, np.arange(-128, 128).astype(np.int8), "identity")


def conv(source: str, out: str, in_c: int, out_c: int, k: int = 3, stride: int = 1) -> Conv2D:
    pads = (k // 2,) * 4
    weights = np.random.default_rng(1).integers(-127, 128, (out_c, k, k, in_c)).astype(np.int8)
    bias = np.zeros(out_c, np.int32)
    return Conv2D(out, (source,), out, weights, bias, (stride, stride), (1, 1), pads, 1, UNIT, FULL)


@st.composite
def graphs(draw) -> Program:
    """Random graphs of copies, concatenations and one-pixel convolutions over small vectors."""
    tensors = [int8("t0", 1, 1, 1, draw(st.integers(1, 4)))]
    layers: list[Layer] = []
    for index in range(1, draw(st.integers(2, 6))):
        name = f"t{index}"
        first = draw(st.sampled_from(tensors))
        kind = draw(st.sampled_from(["lut", "concat", "conv", "reshape"]))
        if kind == "lut":
            tensors.append(int8(name, *first.shape))
            layers.append(lut(first.name, name))
        elif kind == "reshape":
            tensors.append(int8(name, 1, 1, 1, first.size))
            layers.append(Reshape(name, (first.name,), name))
        elif kind == "concat":
            second = draw(st.sampled_from(tensors))
            tensors.append(int8(name, 1, 1, 1, first.shape[-1] + second.shape[-1]))
            layers.append(Concat(name, (first.name, second.name), name, 3, (None, None)))
        else:
            depth = draw(st.integers(1, 4))
            tensors.append(int8(name, 1, 1, 1, depth))
            layers.append(conv(first.name, name, first.shape[-1], depth, 1))
    used = {name for layer in layers for name in layer.inputs}
    ends = [tensor.name for tensor in tensors if tensor.name not in used]
    return build(layers, ["t0"], ends, tensors)


def brute_force(problem: Rules) -> int:
    """Least arena over all offsets, by enumeration."""
    count = len(problem.sizes)
    best = sum(problem.sizes)
    offsets = [0] * count

    def allowed(i: int) -> bool:
        for j in range(i):
            above, below = problem.gap[j][i], problem.gap[i][j]
            if above is None or below is None:
                continue
            if offsets[j] - below < offsets[i] < offsets[j] + above:
                return False
        return True

    def descend(i: int) -> None:
        nonlocal best
        if i == count:
            best = min(best, max(o + s for o, s in zip(offsets, problem.sizes, strict=True)))
            return
        for offset in range(best - problem.sizes[i]):
            offsets[i] = offset
            if allowed(i):
                descend(i + 1)

    descend(0)
    return best


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_plans_of_small_graphs_are_optimal_and_safe(program):
    found = plan(program)
    verify(program, {name: found.offset(name) for name in program.tensors}, found.arena_bytes)
    problem = rules(program, found.buffers, 1, True)
    least = brute_force(problem)
    assert found.lower_bound <= least
    assert found.proven
    assert found.arena_bytes == least


@settings(
    max_examples=2, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(graphs(), min_size=20, max_size=20), SEEDS)
def test_graphs_that_share_bytes_equal_the_reference(harness, drawn, seed):
    harness.check(harness.build(drawn, "-O2"), seed)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_search_is_optimal_for_random_rules(seed):
    source = random.Random(seed)
    count = source.randint(2, 5)
    sizes = tuple(source.randint(1, 4) for _ in range(count))
    gap: list[list[int | None]] = [[None] * count for _ in range(count)]
    for i, j in itertools.combinations(range(count), 2):
        if source.random() < 0.7:
            gap[i][j], gap[j][i] = sizes[i], sizes[j]
            if source.random() < 0.4:
                gap[i][j] = source.randint(0, sizes[i])
    problem = Rules(sizes, (1,) * count, tuple(map(tuple, gap)), ())
    offsets, proven = search(problem, lower_bound(problem))
    assert proven
    assert max(o + s for o, s in zip(offsets, sizes, strict=True)) == brute_force(problem)


def test_reshape_shares_bytes_and_a_chain_works_in_place():
    tensors = [int8("x", 1, 4, 4, 2), int8("a", 1, 4, 4, 2), int8("f", 1, 32), int8("y", 1, 32)]
    program = build([lut("x", "a"), Reshape("r", ("a",), "f"), lut("f", "y")], ["x"], ["y"], tensors)
    found = plan(program)
    assert found.arena_bytes == 32
    assert found.offset("a") == found.offset("f")
    assert plan(program, overlap=False).arena_bytes == 64


def test_a_concatenation_of_vectors_is_not_copied(tmp_path):
    from edgescale.core.files import firmware_root

    tensors = [int8("x", 1, 6), int8("a", 1, 6), int8("b", 1, 6), int8("y", 1, 12)]
    layers = [lut("x", "a"), lut("x", "b"), Concat("cat", ("a", "b"), "y", 1, (None, None))]
    program = build(layers, ["x"], ["y"], tensors)
    made = generate(program, "m", firmware_root())
    assert made.plan.arena_bytes == 12
    assert made.plan.offset("a") == made.plan.offset("y")
    assert "es_concat_part(" not in made.files["es_m.c"]


def test_alignment_is_kept():
    tensors = [int8("x", 1, 5), int8("a", 1, 5), int8("b", 1, 5), int8("y", 1, 10)]
    layers = [lut("x", "a"), lut("x", "b"), Concat("cat", ("a", "b"), "y", 1, (None, None))]
    program = build(layers, ["x"], ["y"], tensors)
    found = plan(program, alignment=4)
    assert all(offset % 4 == 0 for offset in found.offsets)
    verify(program, {name: found.offset(name) for name in program.tensors}, found.arena_bytes, 4)


def residual() -> Program:
    tensors = [int8(name, 1, 6, 6, 4) for name in ("x", "a", "b", "y")]
    add = Add("add", ("a", "b"), "y", 20, (UNIT, UNIT), UNIT, FULL)
    return build([lut("x", "a"), conv("a", "b", 4, 4), add], ["x"], ["y"], tensors)


def test_a_planted_overlap_is_caught():
    program = residual()
    found = plan(program)
    offsets = {name: found.offset(name) for name in program.tensors}
    verify(program, offsets, found.arena_bytes)
    # a is read again by add, so b must not lie on it anywhere.
    with pytest.raises(PlanError, match="needed until layer 2"):
        verify(program, {**offsets, "b": offsets["a"] + 1}, 1000)
    with pytest.raises(PlanError, match="leaves the arena"):
        verify(program, offsets, found.arena_bytes - 1)
    with pytest.raises(PlanError, match="no place"):
        verify(program, {name: o for name, o in offsets.items() if name != "b"}, 1000)


def test_an_output_too_close_to_its_input_is_caught():
    program = build([conv("x", "y", 4, 4)], ["x"], ["y"], [int8("x", 1, 6, 6, 4), int8("y", 1, 6, 6, 4)])
    layer = program.layers[0]
    below = distance(program, layer, (0,))
    assert below is not None and 0 < below < 144
    verify(program, {"x": below, "y": 0}, 1000)
    for wrong in (below // 2, 0):
        with pytest.raises(PlanError, match="before it has been read"):
            verify(program, {"x": wrong, "y": 0}, 1000)
    with pytest.raises(PlanError, match="before it has been read"):
        verify(program, {"x": 0, "y": 8}, 1000)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_distances_are_safe_by_replay_and_nearly_tight(seed):
    source = random.Random(seed)
    size, channels, k = source.randint(1, 7), source.randint(1, 4), source.randint(1, 3)
    stride, pad = source.randint(1, 2), source.randint(0, k - 1)
    size = max(size, k - 2 * pad)
    out = (size + 2 * pad - k) // stride + 1
    kind = source.choice(["conv", "depthwise", "pool"])
    out_c = source.randint(1, 5) if kind == "conv" else channels
    pads = (pad,) * 4
    zeros = np.zeros(out_c, np.int32)
    layer: Layer
    if kind == "conv":
        w = np.zeros((out_c, k, k, channels), np.int8)
        layer = Conv2D("l", ("x",), "y", w, zeros, (stride, stride), (1, 1), pads, 1, UNIT, FULL)
    elif kind == "depthwise":
        w = np.zeros((k, k, out_c), np.int8)
        layer = DepthwiseConv2D("l", ("x",), "y", w, zeros, (stride, stride), (1, 1), pads, 1, UNIT, FULL)
    else:
        layer = Pool2D("l", ("x",), "y", "max", (k, k), (stride, stride), pads, False, None, FULL)
    tensors = [int8("x", 1, size, size, channels), int8("y", 1, out, out, out_c)]
    program = build([layer], ["x"], ["y"], tensors)
    below = distance(program, layer, (0,))
    assert below is not None
    verify(program, {"x": below, "y": 0}, 10**6)
    # At most a block of two pixels more than the replay demands.
    slack = 0 if kind == "pool" else 3 * out_c + 2 * channels
    tight = below - slack - 1
    if tight >= 0 and below < tensors[1].nbytes:
        with pytest.raises(PlanError):
            verify(program, {"x": tight, "y": 0}, 10**6)


def test_lifetimes_of_outputs_and_of_inputs_read_late():
    tensors = [int8(name, 1, 8) for name in ("x", "late", "a", "y")]
    add = Add("add", ("a", "late"), "y", 20, (UNIT, UNIT), UNIT, FULL)
    program = build([lut("x", "a"), add], ["x", "late"], ["y", "a"], tensors)
    live = {b.name: (b.first, b.last) for b in buffers(program)}
    assert live == {"x": (0, 0), "late": (0, 1), "a": (0, 1), "y": (1, 1)}
    found = plan(program)
    # a is an output as well: y may take the place of `late`, never of a.
    assert found.offset("y") != found.offset("a")
    assert found.arena_bytes == 16


MAIN = """
#include <stdio.h>
int main(void)
{
    int8_t *x = es_p0_input();
    for (int i = 0; i < ES_P0_INPUT_BYTES; i++)
        x[i] = (int8_t)(i * 37);
    es_p0_run();
    for (int i = 0; i < ES_P0_OUTPUT_BYTES; i++)
        printf("%d\\n", es_p0_output()[i]);
    return 0;
}
"""


def test_the_arena_is_exact(harness):
    """At the reported size the address sanitizer is content; one byte less is a compile error, or is detected."""
    compiler = harness.gcc()
    if compiler != ["gcc"]:
        pytest.skip("needs gcc's address sanitizer")
    program = residual()
    folder = harness.new_folder()
    (made,) = harness.write([program], folder)
    text = (folder / "es_p0.c").read_text()
    (folder / "all.c").write_text(text + MAIN)
    harness.compile(folder, *harness.sanitizers, "-Wno-unused", compiler=compiler)
    run = subprocess.run([str(folder / "a.out")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    x = (np.arange(144) * 37).astype(np.int8).reshape(1, 6, 6, 4)
    wanted = reference.run(program, {"x": x})["y"]
    np.testing.assert_array_equal(np.array(run.stdout.split(), int), wanted.reshape(-1))

    arena = made.meta["arena_bytes"]
    with pytest.raises(AssertionError, match="es_assert_p0_arena_capacity"):
        harness.compile(folder, f"-DES_P0_ARENA_CAPACITY={arena - 1}", compiler=compiler)
    header = (folder / "es_p0.h").read_text()
    smaller = header.replace(f"ARENA_BYTES {arena}", f"ARENA_BYTES {arena - 1}")
    assert smaller != header
    (folder / "es_p0.h").write_text(smaller)
    harness.compile(folder, *harness.sanitizers, "-Wno-array-bounds", "-Wno-stringop-overflow", compiler=compiler)
    run = subprocess.run([str(folder / "a.out")], capture_output=True, text=True)
    assert run.returncode != 0
    assert "es_p0_arena" in run.stderr
