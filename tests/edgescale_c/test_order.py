"""The order of layers: as good as the best of all orders on small graphs, never worse than the given one."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from edgescale_c.arrange import arrange
from edgescale_c.planner import plan
from hypothesis import HealthCheck, given, settings

from edgescale.lower import reference
from edgescale.lower.program import Program

_SPEC = importlib.util.spec_from_file_location("striped_nets", Path(__file__).with_name("striped_nets.py"))
assert _SPEC is not None and _SPEC.loader is not None
striped_nets = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(striped_nets)
Drawn, nets = striped_nets.Drawn, striped_nets.nets


def orders(program: Program) -> Iterator[Program]:
    """The program in every order that its tensors allow."""
    layers = program.layers

    def extend(path: tuple[int, ...], known: frozenset[str]) -> Iterator[tuple[int, ...]]:
        if len(path) == len(layers):
            yield path
            return
        for index, layer in enumerate(layers):
            if index not in path and known.issuperset(layer.inputs):
                yield from extend((*path, index), known | {layer.output})

    for path in extend((), frozenset(program.sources)):
        yield dataclasses.replace(program, layers=tuple(layers[index] for index in path))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(nets(6))
def test_arenas_of_small_graphs_are_within_five_percent_of_the_best_order(program):
    least = min(plan(other).arena_bytes for other in orders(program))
    found = arrange(program, "scalar", "balanced").plan.arena_bytes
    assert found <= 1.05 * least
    assert found <= plan(program).arena_bytes


def test_a_wide_branch_is_finished_before_the_next_begins():
    net = Drawn(1, 8, 8, 2, 1)
    wide = [net.conv("x", 16, 3, 1, 1, (1, 1)) for _ in range(4)]
    thin = [net.conv(name, 1, 3, 2, 1, (1, 1)) for name in wide]
    total = thin[0]
    for name in thin[1:]:
        total = net.add(total, name)
    program = net.program()
    given_order = plan(program).arena_bytes
    found = arrange(program, "scalar", "balanced")
    assert found.plan.arena_bytes < 0.5 * given_order
    x = {"x": np.random.default_rng(2).integers(-128, 128, (2, 8, 8, 2)).astype(np.int8)}
    wanted = reference.run(program, x)[total]
    np.testing.assert_array_equal(reference.run(found.program, x)[total], wanted)
