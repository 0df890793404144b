"""The memory plan: an offset in the arena for every buffer, as few bytes as the search can reach.

Two buffers that are never live together may share bytes. So may a layer's output and an input that
dies in that layer, when the output starts far enough below (see overlap.py). Everything is a set of
pairwise rules "b starts at least gap(a, b) bytes above a, or a at least gap(b, a) above b", and the
task is to choose, for each pair, which of the two holds, so that the highest end is lowest.

For a given order of buffers, first fit gives each the lowest offset that its rules with the buffers
already placed allow. Taken in order of rising offsets, first fit rebuilds an optimal plan, so trying
all orders would find it. The search tries a handful of good orders, then an exact branch and bound
(small programs) or a seeded local search (large ones), and stops as soon as it meets the lower bound.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from edgescale.lower.program import Program
from edgescale_c.choice import Choice
from edgescale_c.liveness import Buffer, buffers, roots
from edgescale_c.overlap import distance

_EXACT_BUFFERS = 14
"""Most buffers for which branch and bound is tried."""
_EXACT_NODES = 60_000
_LOCAL_STEPS = 1_500


@dataclass(frozen=True)
class Plan:
    """Offsets in bytes from the arena's start.

    `arena_bytes` is exact: the highest end of any buffer. `lower_bound` is a figure no plan can go
    below (the most that one layer's live buffers need); `proven` says that the search showed the plan
    to be the best there is, for the given order of layers.
    """

    buffers: tuple[Buffer, ...]
    offsets: tuple[int, ...]
    arena_bytes: int
    lower_bound: int
    proven: bool
    alignment: int

    def offset(self, tensor: str) -> int:
        """Offset of a tensor. Raises KeyError for a tensor the program does not hold."""
        for buffer, offset in zip(self.buffers, self.offsets, strict=True):
            if tensor in buffer.tensors:
                return offset + buffer.start(tensor)
        raise KeyError(tensor)


@dataclass(frozen=True)
class Rules:
    """The planning problem.

    gap[a][b]: least bytes from a's start to b's where b lies above a; None where a and b never meet.
    step: offsets are multiples of it, one entry a buffer.
    """

    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    gap: tuple[tuple[int | None, ...], ...]
    layers: tuple[tuple[int, ...], ...]
    """Buffers live in each layer."""


def plan(program: Program, alignment: int = 1, overlap: bool = True, choices: Sequence[Choice] = ()) -> Plan:
    """Place every buffer of `program`, scratch of the chosen kernels included.

    alignment: bytes to which every offset is rounded, at least the element's size. overlap: whether a
    layer's output may share bytes with an input that dies in it.
    """
    found = buffers(program, choices if overlap else _apart(choices))
    problem = rules(program, found, alignment, overlap, choices)
    bound = lower_bound(problem)
    offsets, proven = search(problem, bound)
    return Plan(tuple(found), tuple(offsets), _end(problem, offsets), bound, proven, alignment)


def _apart(choices: Sequence[Choice]) -> list[Choice]:
    """The same kernels, none in place."""
    return [replace(choice, order="scalar") for choice in choices]


def rules(
    program: Program, found: Sequence[Buffer], alignment: int, overlap: bool, choices: Sequence[Choice] = ()
) -> Rules:
    """The pairwise rules of a program's buffers."""
    count = len(found)
    gap: list[list[int | None]] = [[None] * count for _ in found]
    for a, b in itertools.permutations(range(count), 2):
        if found[a].meets(found[b]):
            gap[a][b] = found[a].nbytes
    if overlap:
        for source, target, below in _reaching(program, found, choices):
            gap[target][source] = min(found[target].nbytes, below)
    steps = tuple(_multiple(alignment, buffer.item) for buffer in found)
    layers = tuple(
        tuple(i for i, buffer in enumerate(found) if buffer.first <= index <= buffer.last)
        for index in range(max(1, len(program.layers)))
    )
    return Rules(tuple(buffer.nbytes for buffer in found), steps, tuple(map(tuple, gap)), layers)


def _multiple(alignment: int, item: int) -> int:
    return alignment if alignment % item == 0 else max(alignment, item)


def _reaching(program: Program, found: Sequence[Buffer], choices: Sequence[Choice]) -> Iterable[tuple[int, int, int]]:
    """(input buffer, output buffer, distance) of every layer whose output may reach into a dying input."""
    owner = roots(program, choices)
    index_of = {buffer.name: index for index, buffer in enumerate(found)}
    kept = {owner[name] for name in program.results} | {state.input for state in program.states}
    for index, layer in enumerate(program.layers):
        target = index_of[owner[layer.output]]
        if found[target].first != index or owner[layer.output] != layer.output:
            continue
        for name in {owner[tensor] for tensor in layer.inputs}:
            if found[index_of[name]].last != index or name in kept:
                continue
            operands = tuple(k for k, tensor in enumerate(layer.inputs) if owner[tensor] == name)
            below = distance(program, layer, operands, choices[index].order if choices else "scalar")
            if below is not None:
                yield index_of[name], target, below


def first_fit(problem: Rules, order: Sequence[int]) -> list[int]:
    """Lowest allowed offset for each buffer, placed in `order`."""
    offsets = [0] * len(order)
    placed: list[int] = []
    for item in order:
        offsets[item] = _lowest(problem, item, placed, offsets)
        placed.append(item)
    return offsets


def _lowest(problem: Rules, item: int, placed: Iterable[int], offsets: Sequence[int]) -> int:
    # Each placed neighbour forbids one open interval of offsets.
    forbidden = []
    for other in placed:
        above, below = problem.gap[other][item], problem.gap[item][other]
        if above is not None and below is not None:
            forbidden.append((offsets[other] - below, offsets[other] + above))
    step, offset = problem.steps[item], 0
    for low, high in sorted(forbidden):
        if low < offset < high:
            offset = -(-high // step) * step
    return offset


def _end(problem: Rules, offsets: Sequence[int]) -> int:
    return max((o + s for o, s in zip(offsets, problem.sizes, strict=True)), default=0)


def lower_bound(problem: Rules) -> int:
    """The most bytes that the buffers live in one layer need at once.

    Exact for each layer alone: buffers that only stand by add up, and the layer's own inputs and output
    are tried in every order.
    """
    best = max(problem.sizes, default=0)
    for live in problem.layers:
        active = [i for i in live if any(_reaches(problem, i, j) for j in live if j != i)]
        resting = sum(problem.sizes[i] for i in live if i not in active)
        if len(active) > 6:
            continue  # too many to order; other layers give the bound
        tops = [_top(problem, order) for order in itertools.permutations(active)]
        best = max(best, resting + min(tops))
    return best


def _reaches(problem: Rules, a: int, b: int) -> bool:
    return problem.gap[a][b] != problem.sizes[a] or problem.gap[b][a] != problem.sizes[b]


def _top(problem: Rules, order: Sequence[int]) -> int:
    """Highest end when each buffer lies as low as it may above those before it in `order`; alignment left out."""
    offsets: list[int] = []
    for k, item in enumerate(order):
        floor = offsets[-1] if offsets else 0
        offsets.append(max([floor] + [offsets[j] + (problem.gap[order[j]][item] or 0) for j in range(k)]))
    return max((o + problem.sizes[i] for i, o in zip(order, offsets, strict=True)), default=0)


def search(problem: Rules, bound: int) -> tuple[list[int], bool]:
    """The best offsets found, and whether no plan can be better."""
    count = len(problem.sizes)
    if count == 0:
        return [], True
    life = [sum(i in live for live in problem.layers) for i in range(count)]
    keys = [
        lambda i: (-problem.sizes[i], i),
        lambda i: (-problem.sizes[i] * life[i], i),
        lambda i: (-life[i], -problem.sizes[i]),
        lambda i: i,
        lambda i: -i,
    ]
    best_order = min(
        (sorted(range(count), key=key) for key in keys), key=lambda o: _end(problem, first_fit(problem, o))
    )
    best = first_fit(problem, best_order)
    if _end(problem, best) <= bound:
        return best, True
    if count <= _EXACT_BUFFERS:
        exact, complete = _branch_and_bound(problem, bound, best)
        if complete:
            return exact, True
        best = min(best, exact, key=lambda o: _end(problem, o))
    local = _local_search(problem, bound, best_order)
    best = min(best, local, key=lambda o: _end(problem, o))
    return best, _end(problem, best) <= bound


def _branch_and_bound(problem: Rules, bound: int, start: list[int]) -> tuple[list[int], bool]:
    """Every order of rising offsets, cut where it cannot beat the best; False where the node limit stopped it."""
    count = len(problem.sizes)
    best, best_end = start, _end(problem, start)
    offsets = [0] * count
    nodes = 0

    def descend(placed: list[int], rest: list[int], floor: int) -> bool:
        nonlocal best, best_end, nodes
        if not rest:
            best, best_end = list(offsets), _end(problem, offsets)
            return True
        seen: set[tuple[int, int]] = set()
        choices = sorted((_lowest(problem, i, placed, offsets), -problem.sizes[i], i) for i in rest)
        for offset, _, item in choices:
            nodes += 1
            if nodes > _EXACT_NODES:
                return False
            # Orders of rising offsets are enough; anything lower belongs to another branch.
            if offset < floor or offset + problem.sizes[item] >= best_end or (offset, item) in seen:
                continue
            seen.add((offset, item))
            offsets[item] = offset
            if not descend([*placed, item], [i for i in rest if i != item], offset):
                return False
            if best_end <= bound:
                return True
        return True

    complete = descend([], list(range(count)), 0)
    return best, complete


def _local_search(problem: Rules, bound: int, order: list[int]) -> list[int]:
    """Moves of one buffer within the order, kept when they do no harm; the seed is fixed, the result repeatable."""
    random_source = random.Random(1)
    count = len(order)
    offsets = first_fit(problem, order)
    end = _end(problem, offsets)
    best = offsets
    best_end = end
    for _ in range(_LOCAL_STEPS):
        if best_end <= bound or count < 2:
            break
        source, target = random_source.sample(range(count), 2)
        trial = list(order)
        trial.insert(target, trial.pop(source))
        offsets = first_fit(problem, trial)
        trial_end = _end(problem, offsets)
        if trial_end <= end:
            order, end = trial, trial_end
        if trial_end < best_end:
            best, best_end = offsets, trial_end
    return best
