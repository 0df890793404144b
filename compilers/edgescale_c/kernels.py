"""Which kernel computes each layer, by family.

The scalar family computes everything. The dsp and mve families have kernels for what their domains
cover; every layer outside falls back to the scalar kernel, and the choice's `reason` says why.
"""

from __future__ import annotations

from edgescale.lower.program import Program
from edgescale_c import dsp_choice, mve_choice
from edgescale_c.choice import SCALAR, Choice

_FAMILIES = {"dsp": dsp_choice.choose, "mve": mve_choice.choose}


def choose(program: Program, family: str) -> tuple[Choice, ...]:
    """One choice a layer, for the kernels of `family`."""
    chooser = _FAMILIES.get(family)
    return tuple(SCALAR if chooser is None else chooser(program, layer) for layer in program.layers)
