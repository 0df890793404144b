"""A program arranged: its layers as they run, the kernels chosen, where everything lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from edgescale.core.memory import Memory
from edgescale.lower.program import Program
from edgescale_c.choice import Choice
from edgescale_c.kernels import choose
from edgescale_c.liveness import moves_nothing, places
from edgescale_c.planner import Plan, plan
from edgescale_c.schedule import Timetable, extra_macs, moved_bytes
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
    choices = choose(striped.program, family, memory)
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
