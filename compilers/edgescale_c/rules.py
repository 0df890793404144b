"""The planning problem of a program: for every two buffers, how far apart they must lie, and what no plan can beat.

Two buffers that are never live together may share bytes; of buffers whose parts come and go, only parts that are
live together must not meet. A layer's output may reach into an input that dies in that layer, when it starts far
enough below (see overlap.py). Everything becomes pairwise rules: "b starts at least gap(a, b) bytes above a, or a
at least gap(b, a) above b". A gap may be negative where only late parts of the one meet early parts of the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from edgescale.lower.program import Program
from edgescale_c.choice import Choice
from edgescale_c.liveness import Buffer
from edgescale_c.overlap import distance

_MOST_ORDERED = 6
"""Most buffers of a layer that are tried in every order for the lower bound."""


@dataclass(frozen=True)
class Crowd:
    """What is live in one layer: the bytes that only stand by, and the buffers that may reach into each other.

    sizes: of these; gap[a][b]: least bytes from a's lowest live byte to b's where b lies above a.
    """

    resting: int
    sizes: tuple[int, ...] = ()
    gap: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Rules:
    """The planning problem.

    gap[a][b]: least bytes from a's start to b's where b lies above a; None where a and b never meet.
    step: offsets are multiples of it, one entry a buffer. crowds: one a layer, for the lower bound.
    """

    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    gap: tuple[tuple[int | None, ...], ...]
    crowds: tuple[Crowd, ...] = ()
    life: tuple[int, ...] = ()
    """In how many layers each buffer is live."""

    @cached_property
    def neighbours(self) -> tuple[tuple[tuple[int, int, int], ...], ...]:
        """For each buffer those it meets, as (which, gap from that one up to this, gap from this up to that one)."""
        count = range(len(self.sizes))
        return tuple(
            tuple(
                (b, up, down)
                for b in count
                if (up := self.gap[b][a]) is not None and (down := self.gap[a][b]) is not None
            )
            for a in count
        )


def rules(
    program: Program, found: Sequence[Buffer], alignment: int, overlap: bool, choices: Sequence[Choice] = ()
) -> Rules:
    """The pairwise rules of a program's buffers."""
    count = len(found)
    reach = _reaches(program, found, choices) if overlap else {}
    gap: list[list[int | None]] = [[None] * count for _ in found]
    for a, b in itertools.permutations(range(count), 2):
        gap[a][b] = _gap(found[a], found[b], reach)
    steps = tuple(alignment if alignment % b.item == 0 else max(alignment, b.item) for b in found)
    crowds = tuple(_crowd(found, index, reach) for index in range(max(1, len(program.layers))))
    life = tuple(buffer.last - buffer.first + 1 for buffer in found)
    return Rules(tuple(buffer.nbytes for buffer in found), steps, tuple(map(tuple, gap)), crowds, life)


Reach = Mapping[tuple[str, str], tuple[int, int]]
"""(input, output) of a layer -> the layer, and how far above the output's buffer the input's must at least lie."""


def _reaches(program: Program, found: Sequence[Buffer], choices: Sequence[Choice]) -> Reach:
    """Of every layer whose output may reach into an input that dies in it."""
    start = {name: buffer.start(name) for buffer in found for name in buffer.tensors}
    owner = {name: buffer.name for buffer in found for name in buffer.tensors}
    kept = {*program.results, *(name for name in start if owner[name] in {state.input for state in program.states})}
    result: dict[tuple[str, str], tuple[int, int]] = {}
    for index, layer in enumerate(program.layers):
        out = layer.output
        for name in set(layer.inputs) - kept:
            if owner[name] == owner[out]:
                continue
            operands = tuple(k for k, tensor in enumerate(layer.inputs) if tensor == name)
            below = distance(program, layer, operands, choices[index].order if choices else "scalar")
            if below is not None and below < program.tensors[out].nbytes:
                result[name, out] = index, below + start[out] - start[name]
    return result


def _gap(a: Buffer, b: Buffer, reach: Reach, layer: int | None = None) -> int | None:
    """Least bytes from a's start to b's where b lies above a, with what is live in `layer` only, if one is given."""
    gap: int | None = None
    if a.last < b.first or b.last < a.first:
        return None
    for p in a.pieces:
        for q in b.pieces:
            if p.first > q.last or q.first > p.last:
                continue
            if layer is not None and not (p.first <= layer <= p.last and q.first <= layer <= q.last):
                continue
            apart = p.high - q.low
            at, above = reach.get((q.tensor, p.tensor), (-1, 0))
            if q.last == p.first == at:
                apart = min(apart, above)  # q is an input that dies, p the output below it
            gap = apart if gap is None else max(gap, apart)
    return gap


def _crowd(found: Sequence[Buffer], index: int, reach: Reach) -> Crowd:
    live: list[tuple[Buffer, int, int, int]] = []
    for buffer in found:
        spans = sorted((p.low, p.high) for p in buffer.pieces if p.first <= index <= p.last)
        if not spans:
            continue
        taken, end = 0, spans[0][0]
        for low, high in spans:
            taken += max(0, high - max(low, end))
            end = max(end, high)
        live.append((buffer, spans[0][0], end, taken))
    pairs = [pair for pair, (at, _) in reach.items() if at == index]
    moving_names = {name for pair in pairs for name in pair}
    active = [i for i, (buffer, *_) in enumerate(live) if moving_names.intersection(buffer.tensors)]
    if len(active) > _MOST_ORDERED:
        return Crowd(0)  # too many to order; other layers give the bound
    resting = sum(taken for i, (*_, taken) in enumerate(live) if i not in active)
    moving = [live[i] for i in active]
    gap = tuple(
        tuple(0 if a is b else (_gap(a, b, reach, index) or 0) + low_b - low_a for b, low_b, _, _ in moving)
        for a, low_a, _, _ in moving
    )
    return Crowd(resting, tuple(high - low for _, low, high, _ in moving), gap)


def layer_bounds(problem: Rules) -> list[int]:
    """For each layer, the bytes that what is live in it needs at once.

    Exact for each layer alone: buffers that only stand by add up, and the layer's own inputs and output
    are tried in every order.
    """
    return [
        crowd.resting + min(_top(crowd, order) for order in itertools.permutations(range(len(crowd.sizes))))
        for crowd in problem.crowds
    ]


def lower_bound(problem: Rules) -> int:
    """What no plan can go below: the most that one layer, or one buffer, needs."""
    return max([*problem.sizes, *layer_bounds(problem)], default=0)


def _top(crowd: Crowd, order: Sequence[int]) -> int:
    """Highest end when each buffer lies as low as it may above those before it in `order`; alignment left out."""
    offsets: list[int] = []
    for k, item in enumerate(order):
        floor = offsets[-1] if offsets else 0
        offsets.append(max([floor] + [offsets[j] + crowd.gap[order[j]][item] for j in range(k)]))
    return max((o + crowd.sizes[i] for i, o in zip(order, offsets, strict=True)), default=0)
