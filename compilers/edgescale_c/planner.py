"""The memory plan: an offset in the arena for every buffer, as few bytes as the search can reach.

The task is to choose, for each pair of buffers, which of its two rules holds (see rules.py), so that the highest
end is lowest. For a given order of buffers, first fit gives each the lowest offset that its rules with the buffers
already placed allow. Taken in order of rising offsets, first fit rebuilds an optimal plan, so trying
all orders would find it. The search tries a handful of good orders, then an exact branch and bound
(small programs) or a seeded local search (large ones), and stops as soon as it meets the lower bound.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgescale.lower.program import Program
from edgescale_c.choice import Choice
from edgescale_c.liveness import Buffer, Places, buffers
from edgescale_c.rules import Rules, lower_bound, rules

_EXACT_BUFFERS = 14
"""Most buffers for which branch and bound is tried."""
_EXACT_NODES = 60_000
_LOCAL_STEPS = 1_500
_LOCAL_PLACINGS = 100_000
"""Most buffers placed in all steps of the local search together."""


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


def plan(
    program: Program,
    alignment: int = 1,
    overlap: bool = True,
    choices: Sequence[Choice] = (),
    wanted: Places | None = None,
) -> Plan:
    """Place every buffer of `program`, scratch of the chosen kernels included.

    alignment: bytes to which every offset is rounded, at least the element's size. overlap: whether a
    layer's output may share bytes with an input that dies in it. wanted: places that tensors must take in the
    buffers of others.
    """
    found = buffers(program, choices if overlap else _apart(choices), wanted)
    problem = rules(program, found, alignment, overlap, choices)
    bound = lower_bound(problem)
    offsets, proven = search(problem, bound)
    return Plan(tuple(found), tuple(offsets), _end(problem, offsets), bound, proven, alignment)


def _apart(choices: Sequence[Choice]) -> list[Choice]:
    """The same kernels, none in place."""
    return [replace(choice, order="scalar") for choice in choices]


def first_fit(problem: Rules, order: Sequence[int]) -> list[int]:
    """Lowest allowed offset for each buffer, placed in `order`."""
    offsets: list[int | None] = [None] * len(order)
    for item in order:
        offsets[item] = _lowest(problem, item, offsets)
    return [offset or 0 for offset in offsets]


def _lowest(problem: Rules, item: int, offsets: Sequence[int | None]) -> int:
    # Each placed neighbour forbids one open interval of offsets.
    forbidden = [
        (at - below, at + above)
        for other, above, below in problem.neighbours[item]
        if (at := offsets[other]) is not None and at + above > 0
    ]
    forbidden.sort()
    step, offset = problem.steps[item], 0
    for low, high in forbidden:
        if low < offset < high:
            offset = -(-high // step) * step
    return offset


def _end(problem: Rules, offsets: Sequence[int]) -> int:
    return max((o + s for o, s in zip(offsets, problem.sizes, strict=True)), default=0)


def search(problem: Rules, bound: int) -> tuple[list[int], bool]:
    """The best offsets found, and whether no plan can be better."""
    count = len(problem.sizes)
    if count == 0:
        return [], True
    life = problem.life or (1,) * count
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
        if complete and all(gap is None or gap >= 0 for row in problem.gap for gap in row):
            return exact, True
        best = min(best, exact, key=lambda o: _end(problem, o))
    local = _local_search(problem, bound, best_order)
    best = min(best, local, key=lambda o: _end(problem, o))
    return best, _end(problem, best) <= bound


def _branch_and_bound(problem: Rules, bound: int, start: list[int]) -> tuple[list[int], bool]:
    """Every order of rising offsets, cut where it cannot beat the best; False where the node limit stopped it.

    Buffers whose parts slide past each other (negative gaps) may fit at two places above others; then the lower one
    is taken, and the search proves nothing.
    """
    count = len(problem.sizes)
    best, best_end = start, _end(problem, start)
    offsets: list[int | None] = [None] * count
    nodes = 0

    def descend(rest: list[int], floor: int) -> bool:
        nonlocal best, best_end, nodes
        if not rest:
            best = [offset or 0 for offset in offsets]
            best_end = _end(problem, best)
            return True
        seen: set[tuple[int, int]] = set()
        choices = sorted((_lowest(problem, i, offsets), -problem.sizes[i], i) for i in rest)
        for offset, _, item in choices:
            nodes += 1
            if nodes > _EXACT_NODES:
                return False
            # Orders of rising offsets are enough; anything lower belongs to another branch.
            if offset < floor or offset + problem.sizes[item] >= best_end or (offset, item) in seen:
                continue
            seen.add((offset, item))
            offsets[item] = offset
            if not descend([i for i in rest if i != item], offset):
                return False
            offsets[item] = None
            if best_end <= bound:
                return True
        return True

    complete = descend(list(range(count)), 0)
    return best, complete


def _local_search(problem: Rules, bound: int, order: list[int]) -> list[int]:
    """Moves of one buffer within the order, kept when they do no harm; the seed is fixed, the result repeatable."""
    random_source = random.Random(1)
    count = len(order)
    offsets = first_fit(problem, order)
    end = _end(problem, offsets)
    best = offsets
    best_end = end
    for _ in range(min(_LOCAL_STEPS, _LOCAL_PLACINGS // max(count, 1))):
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
