"""How a program is run: in which order, which parts in stripes, with which kernels, and where everything lies."""

from __future__ import annotations

from dataclasses import replace

from edgescale.core.memory import Memory
from edgescale.lower.program import Program
from edgescale_c.arranged import Arranged, placed
from edgescale_c.order import orders
from edgescale_c.planner import plan
from edgescale_c.smallest import smallest
from edgescale_c.staging import STACK_RESERVE, Flash, savings, staged
from edgescale_c.stripes import Striped


def arrange(
    program: Program,
    family: str,
    memory: Memory,
    alignment: int = 1,
    overlap: bool = True,
    flash: Flash | None = None,
) -> Arranged:
    """Arrange a program for kernels of `family`. flash: that of the device, where it is known. See `generate`."""
    plain = placed(Striped.plain(program), family, memory, alignment, overlap)
    for other in orders(program, plain.choices):
        found = placed(Striped.plain(other), family, memory, alignment, overlap)
        plain = min(plain, found, key=lambda arranged: arranged.plan.arena_bytes)
    if memory == "smallest" and overlap:
        return smallest(plain, family, alignment)
    if memory == "fastest" and flash is not None:
        wide = _widened(plain, alignment, overlap, max(plain.plan.arena_bytes, flash.ram - STACK_RESERVE))
        return _fastest(wide, flash, alignment, overlap)
    return _widened(plain, alignment, overlap, plain.plan.arena_bytes)


def _widened(plain: Arranged, alignment: int, overlap: bool, most: int) -> Arranged:
    """Kernels that need much scratch, for the layers where that leaves the arena within `most` bytes."""
    for index, choice in enumerate(plain.choices):
        if choice.wider is None:
            continue
        choices = (*plain.choices[:index], choice.wider, *plain.choices[index + 1 :])
        found = plan(plain.program, alignment, overlap, choices, plain.striped.places)
        if found.arena_bytes <= most:
            plain = replace(plain, choices=choices, plan=found)
    return plain


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
