"""The arrangement with the smallest arena: parts of the program in stripes, where that lowers the peak.

A region around the layer that sets the peak is sought: estimates rank all of them, the best few are rewritten and
planned, and what is smallest stays, unless it would cost too much time. Then the next peak is looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from edgescale.lower.program import Program
from edgescale_c.arranged import Arranged, describe_region, placed
from edgescale_c.constants import ConstantPool
from edgescale_c.cost import cost
from edgescale_c.rows import rows_of
from edgescale_c.rules import layer_bounds, rules
from edgescale_c.schedule import Region, Timetable, need_estimate, streamable, timetable
from edgescale_c.steps import emit_steps
from edgescale_c.stripes import stripe

SLOWEST = 1.3
"""The most that an arrangement may cost beside the plain one, by estimate."""
_TRIED = 10
"""Regions that are rewritten and planned in a round."""
_ROUNDS = 8
_WORTH = 0.98
"""Share of the bytes to which a change must bring them to be worth having."""
_SPARE_CONSTANTS = 256
"""Bytes by which tables may grow."""
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16)


@dataclass(frozen=True)
class _Limit:
    cost: float
    constants: int


@dataclass(frozen=True)
class _Candidate:
    """need: bytes of the region by estimate; rest: those that the layers outside of it need."""

    table: Timetable
    need: int
    rest: int


@dataclass(frozen=True)
class _Tried:
    arranged: Arranged
    local: int
    """Bytes that the stripes need at least."""
    cost: float


def smallest(plain: Arranged, family: str, alignment: int) -> Arranged:
    """The smallest arrangement found from a plain one; that itself where nothing is much smaller.

    A net may have many peaks of one height, so a round is also content to bring one of them down.
    """
    limit = _Limit(SLOWEST * _running_cost(plain), _constants(plain) + _SPARE_CONSTANTS)
    best = current = plain
    for _ in range(_ROUNDS):
        found = _improved(current, family, alignment, limit)
        if found is None:
            break
        current = found
        if current.plan.arena_bytes <= _WORTH * best.plan.arena_bytes:
            best = current
    return best


def _constants(arranged: Arranged) -> int:
    """Bytes of tables. They grow where the stripes of one layer want its weights in different layouts."""
    pool = ConstantPool()
    emit_steps(arranged, "m", pool)
    return pool.nbytes


def _running_cost(arranged: Arranged) -> float:
    program = arranged.program
    working = [i for i in range(len(program.layers)) if not arranged.moves_nothing(i)]
    return cost(program, [program.layers[i] for i in working], [arranged.choices[i] for i in working])


def _improved(current: Arranged, family: str, alignment: int, limit: _Limit) -> Arranged | None:
    """The best of the regions tried, None where none is affordable and brings the peak down."""
    program = current.program
    bounds = layer_bounds(rules(program, current.plan.buffers, alignment, True, current.choices))
    peak = max(range(len(bounds)), key=bounds.__getitem__)
    ranked = sorted(_candidates(current, bounds, peak), key=lambda c: (max(c.need, c.rest), c.need))
    tried = []
    for candidate in ranked[:_TRIED]:
        found = _try(current, candidate, family, alignment, limit)
        if found is not None and found.local <= _WORTH * bounds[peak]:
            tried.append(found)
    if not tried:
        return None
    least = min(t.arranged.plan.arena_bytes for t in tried)
    tried = [t for t in tried if t.arranged.plan.arena_bytes <= least / _WORTH]
    local = min(t.local for t in tried)
    return min((t for t in tried if t.local <= max(local / _WORTH, least / 2)), key=lambda t: t.cost).arranged


def _try(current: Arranged, candidate: _Candidate, family: str, alignment: int, limit: _Limit) -> _Tried | None:
    """The program with one more region in stripes; None where it costs too much, or needs more than before."""
    notes = (*current.notes, describe_region(current.program, candidate.table))
    striped = stripe(current.striped, candidate.table)
    found = placed(striped, family, current.memory, alignment, True, notes)
    spent = _running_cost(found)
    if spent > limit.cost or found.plan.arena_bytes > current.plan.arena_bytes or _constants(found) > limit.constants:
        return None
    bounds = layer_bounds(rules(found.program, found.plan.buffers, alignment, True, found.choices))
    region = candidate.table.region
    after = len(current.program.layers) - region.last - 1
    return _Tried(found, max(bounds[region.first : len(bounds) - after]), spent)


def _candidates(current: Arranged, bounds: list[int], peak: int) -> Iterator[_Candidate]:
    """Regions that hold the layer of the peak."""
    program = current.program
    counts = Counter(current.striped.origin)
    free = [counts[origin] == 1 for origin in current.striped.origin]
    for axis in (1, 2):
        if not (free[peak] and streamable(program, axis, peak)):
            continue
        low = high = peak
        while low > 0 and free[low - 1] and streamable(program, axis, low - 1):
            low -= 1
        while high + 1 < len(program.layers) and free[high + 1] and streamable(program, axis, high + 1):
            high += 1
        for first in range(low, peak + 1):
            for last in range(max(peak, first + 1), high + 1):
                rest = max([*bounds[:first], *bounds[last + 1 :]], default=0)
                yield from _of_span(program, current, axis, first, last, rest)


def _of_span(program: Program, current: Arranged, axis: int, first: int, last: int, rest: int) -> Iterator[_Candidate]:
    rows = rows_of(program.tensors[program.layers[last].output], axis)
    standing = _standing_by(program, first, last)
    scratch = max(choice.scratch for choice in current.choices[first : last + 1])
    for count in _ROWS:
        if 2 * count > rows:
            break
        for hold in (True, False):
            table = timetable(program, Region(first, last, axis, count, hold))
            if table is not None:
                yield _Candidate(table, need_estimate(program, table) + standing + scratch, rest)


def _standing_by(program: Program, first: int, last: int) -> int:
    """Bytes of tensors that are neither read nor made by layers first..last but needed after them."""
    before = set(program.sources).union(layer.output for layer in program.layers[:first])
    inside = {name for layer in program.layers[first : last + 1] for name in layer.inputs}
    later = set(program.results).union(*(layer.inputs for layer in program.layers[last + 1 :]))
    return sum(program.tensors[name].nbytes for name in (before & later) - inside)
