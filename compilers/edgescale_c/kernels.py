"""Which kernel computes each layer, by family.

The scalar family computes everything. The dsp and mve families have kernels for what their domains
cover; every layer outside falls back to the scalar kernel, and the choice's `reason` says why.
"""

from __future__ import annotations

from collections.abc import Callable

from edgescale.lower.program import Layer, Program
from edgescale.lower.program_recurrent import Recurrent
from edgescale_c import dsp_choice, mve_choice, recurrent_scratch
from edgescale_c.choice import SCALAR, Choice

_FAMILIES = {"dsp": dsp_choice.choose, "mve": mve_choice.choose}


def choose(program: Program, family: str) -> tuple[Choice, ...]:
    """One choice a layer, for the kernels of `family`."""
    chooser = _FAMILIES.get(family)
    return tuple(_chosen(program, layer, chooser) for layer in program.layers)


def _chosen(program: Program, layer: Layer, chooser: Callable[[Program, Layer], Choice] | None) -> Choice:
    if isinstance(layer, Recurrent):
        return Choice(scratch=recurrent_scratch.needed(program, layer).total)
    return SCALAR if chooser is None else chooser(program, layer)
