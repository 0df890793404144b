"""Programs in stripes: the same values as whole ones, safe plans, less memory, the same bits from generated C."""

from __future__ import annotations

import importlib.util
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from edgescale_c.arrange import arrange
from edgescale_c.arranged import placed
from edgescale_c.calls import Call, statements
from edgescale_c.generate import generate
from edgescale_c.liveness import scratch_name
from edgescale_c.rows import row_axis
from edgescale_c.schedule import Region, extra_macs, timetable
from edgescale_c.stripes import Striped, stripe
from edgescale_c.verifier import PlanError, Workspace, verify
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from edgescale.core.files import firmware_root
from edgescale.lower import reference
from edgescale.lower.program import Program, macs
from tests.seeds import SEEDS

_SPEC = importlib.util.spec_from_file_location("striped_nets", Path(__file__).with_name("striped_nets.py"))
assert _SPEC is not None and _SPEC.loader is not None
striped_nets = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(striped_nets)
Drawn, nets = striped_nets.Drawn, striped_nets.nets


def checked(arranged) -> None:
    """The verifier accepts the plan."""
    offsets = {name: arranged.plan.offset(name) for name in arranged.program.tensors}
    spaces = {
        index: Workspace(
            choice.order, arranged.plan.offset(scratch_name(index)) if choice.scratch else 0, choice.scratch
        )
        for index, choice in enumerate(arranged.choices)
    }
    verify(arranged.program, offsets, arranged.plan.arena_bytes, 1, spaces)


def samples(program: Program, count: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        port.tensor: rng.integers(-128, 128, (count, *program.tensors[port.tensor].shape[1:])).astype(np.int8)
        for port in program.inputs
    }


def regions(program: Program):
    """Every region of a program, in stripes of one to three rows, with rows held and made again."""
    for first, last in itertools.combinations_with_replacement(range(len(program.layers)), 2):
        axis = row_axis(program, program.layers[last])
        for rows, hold in itertools.product((1, 2, 3), (True, False)):
            table = None if axis is None else timetable(program, Region(first, last, axis, rows, hold))
            if table is not None:
                yield table


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(nets(5), st.sampled_from(["scalar", "dsp", "mve"]))
def test_every_region_of_random_nets_computes_the_same_and_is_planned_safely(program, family):
    given_ = samples(program)
    wanted = reference.run(program, given_)
    found = list(regions(program))
    for table in random.Random(len(found)).sample(found, min(8, len(found))):
        striped = stripe(Striped.plain(program), table)
        found = reference.run(striped.program, given_)
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value, err_msg=str(table.region))
        checked(placed(striped, family, "smallest", 1, True))
        spent = sum(macs(striped.program, layer) for layer in striped.program.layers)
        plain = sum(macs(program, layer) for layer in program.layers)
        if table.region.hold:
            assert spent <= plain  # rows that nobody reads are not made
        else:
            assert spent <= plain + extra_macs(program, table) + plain // 4


@settings(
    max_examples=2, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(nets(), min_size=12, max_size=12), st.sampled_from(["scalar", "dsp"]), SEEDS)
def test_generated_stripes_equal_the_reference_under_sanitizers(harness, drawn, family, seed):
    harness.check(harness.build(drawn, *harness.sanitizers[:1], "-O1", family=family, memory="smallest"), seed)


def front(rows: int = 48, width: int = 8) -> Program:
    """A high-resolution front: growing channels, falling resolution, a skip."""
    net = Drawn(1, rows, width, 3, 1)
    a = net.conv("x", 8, 3, 1, 1, (1, 1))
    b = net.depthwise(a, 3, 1, (1, 1))
    c = net.conv(b, 8, 1, 1, 1, (0, 0))
    d = net.add(c, a)
    e = net.conv(d, 16, 3, 2, 1, (0, 1))
    f = net.conv(e, 16, 3, 2, 1, (1, 1))
    net.pool(f, "avg", net.shape(f)[0], 1, (0, 0))
    return net.program()


@pytest.mark.parametrize("family", ["scalar", "dsp", "mve"])
def test_smallest_needs_far_less_and_says_what_it_did(family):
    program = front()
    balanced = arrange(program, family, "balanced")
    smallest = arrange(program, family, "smallest")
    assert smallest.plan.arena_bytes < 0.6 * balanced.plan.arena_bytes
    assert smallest.plan.arena_bytes >= smallest.plan.lower_bound
    notes = smallest.describe()["regions"]
    assert notes and notes[0]["stripes"] > 2 and notes[0]["halo"] in ("held", "recomputed")
    assert balanced.describe()["regions"] == []
    checked(smallest)


def test_stripes_share_functions_and_loops():
    program = front()
    made = generate(program, "m", firmware_root(), "dsp", memory="smallest")
    text = made.files["es_m.c"]
    assert "for (int32_t i = 0;" in text[text.index("void es_m_run(void)") :]
    assert len(made.meta["layers"]) < 5 * len(program.layers)
    whole = generate(program, "m", firmware_root(), "dsp")
    assert made.meta["weights_bytes"] <= whole.meta["weights_bytes"] + 64  # a depthwise kernel may lie the other way
    steps = [step for layer in made.meta["layers"] for step in layer["steps"]]
    assert len(steps) == len(set(steps)) == sum(layer["calls"] for layer in made.meta["layers"])


def test_a_shifted_part_of_a_stripe_is_caught():
    found = arrange(front(), "scalar", "smallest")
    offsets = {name: found.plan.offset(name) for name in found.program.tensors}
    verify(found.program, offsets, found.plan.arena_bytes)
    caught = 0
    moved = [layer.output for layer in found.program.layers if "#" in layer.output and offsets[layer.output] > 0]
    for name in moved[1:40]:
        try:
            verify(found.program, {**offsets, name: offsets[name] - 1}, found.plan.arena_bytes)
        except PlanError:
            caught += 1
    assert caught >= 0.9 * len(moved[1:40])


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3)), max_size=4), st.integers(1, 9))
def test_loops_make_the_same_calls_in_the_same_order(body, repeats):
    assume(body)
    calls = [Call("start", ())]
    calls += [Call(f"f{f}", (100 * f + s * i, 7)) for i in range(repeats) for f, s, _ in body]
    calls += [Call("end", ())]
    made: list[tuple] = []
    arena = range(10**6)
    lines = statements(calls, "arena")
    source, depth = [], 0
    for line in lines:
        text = line.strip().rstrip(";")
        if text.startswith("for ("):
            count = text.split("i < ")[1].split(";")[0]
            source.append(f"for i in range({count}):")
            depth = 1
        elif text == "}":
            depth = 0
        else:
            source.append("    " * depth + f"call({text.replace('(', ',', 1).replace('&', '')!r}, locals())")

    def call(text: str, scope: dict) -> None:
        name, _, rest = text.partition(",")
        rest = rest.removesuffix(")")
        values = [eval(part, {"arena": arena, "i": scope.get("i", 0)}) for part in rest.split(", ") if part]
        made.append((name, *values))

    exec("\n".join(source), {"call": call, "range": range})
    assert made == [(c.function, *c.offsets) for c in calls]
