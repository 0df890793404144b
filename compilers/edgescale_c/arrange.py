"""How a program is run: in which order, which parts in stripes, with which kernels, and where everything lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from edgescale.core.memory import Memory
from edgescale.lower.program import Program
from edgescale_c.choice import Choice
from edgescale_c.kernels import choose
from edgescale_c.liveness import moves_nothing, places
from edgescale_c.order import orders
from edgescale_c.planner import Plan, plan
from edgescale_c.schedule import Timetable, extra_macs, moved_bytes
from edgescale_c.staging import STACK_RESERVE, Flash, savings, staged
from edgescale_c.states import Place
from edgescale_c.stripes import Striped


@dataclass(frozen=True)
class Arranged:
    """A program ready to be emitted. notes: the regions that run in stripes, as artifact.json describes them."""

    striped: Striped
    choices: tuple[Choice, ...]
    plan: Plan
    memory: Memory
    notes: tuple[Mapping[str, Any], ...] = ()

    @property
    def program(self) -> Program:
        """The layers as they run."""
        return self.striped.program

    @cached_property
    def _places(self) -> Mapping[str, Place]:
        return places(self.program, self.choices, self.striped.places)

    def moves_nothing(self, index: int) -> bool:
        """Whether a layer needs no code."""
        return moves_nothing(self.program, self.program.layers[index], self._places)

    def describe(self) -> dict[str, Any]:
        """For artifact.json."""
        return {"mode": self.memory, "regions": [dict(note) for note in self.notes]}


def placed(
    striped: Striped,
    family: str,
    memory: Memory,
    alignment: int,
    overlap: bool,
    notes: tuple[Mapping[str, Any], ...] = (),
) -> Arranged:
    """Choose kernels and plan the memory of a program that is in its final form."""
    choices = choose(striped.program, family)
    found = plan(striped.program, alignment, overlap, choices, striped.places)
    return Arranged(striped, choices, found, memory, notes)


def describe_region(program: Program, table: Timetable) -> dict[str, Any]:
    """A region of `program` in words and figures."""
    layers = program.layers[table.region.first : table.region.last + 1]
    return {
        "first": layers[0].name,
        "last": layers[-1].name,
        "layers": len(layers),
        "stripes": table.stripes,
        "rows": table.region.rows,
        "halo": "held" if table.region.hold else "recomputed",
        "extra_macs": extra_macs(program, table),
        "moved_bytes": moved_bytes(program, table),
    }


def arrange(
    program: Program,
    family: str,
    memory: Memory,
    alignment: int = 1,
    overlap: bool = True,
    flash: Flash | None = None,
) -> Arranged:
    """Arrange a program for kernels of `family`. flash: that of the device, where it is known. See `generate`."""
    from edgescale_c.smallest import smallest

    plain = placed(Striped.plain(program), family, memory, alignment, overlap)
    for other in orders(program, plain.choices):
        found = placed(Striped.plain(other), family, memory, alignment, overlap)
        plain = min(plain, found, key=lambda arranged: arranged.plan.arena_bytes)
    if memory == "smallest" and overlap:
        return smallest(plain, family, alignment)
    return _fastest(plain, flash, alignment, overlap) if memory == "fastest" and flash is not None else plain


def _fastest(plain: Arranged, flash: Flash, alignment: int, overlap: bool) -> Arranged:
    """Weights staged in RAM where that saves time; as long as the arena does not fit the device, the layer is given
    up that frees most bytes for each cycle lost."""
    program = plain.program
    saved = savings(program, plain.choices, flash)

    def with_staged(layers: list[int]) -> Arranged:
        choices = staged(plain.choices, program, layers)
        return replace(plain, choices=choices, plan=plan(program, alignment, overlap, choices, plain.striped.places))

    found = with_staged(list(saved))
    while saved and found.plan.arena_bytes + STACK_RESERVE > flash.ram:
        without = {index: with_staged([other for other in saved if other != index]) for index in saved}
        freed = {index: found.plan.arena_bytes - other.plan.arena_bytes for index, other in without.items()}
        given_up = max(saved, key=lambda index: (freed[index] / saved[index], -saved[index]))
        found = without[given_up]
        del saved[given_up]
    return found if saved else plain
