"""Which kernel computes each layer, by family.

The scalar family computes everything. The dsp and mve families have kernels for what their domains
cover; every layer outside falls back to the scalar kernel, and the choice's `reason` says why.
"""

from __future__ import annotations

from edgescale.lower.program import Layer, Program
from edgescale.lower.program_recurrent import Recurrent
from edgescale_c import dsp_choice, dsp_int16, mve_choice, recurrent_scratch
from edgescale_c.choice import SCALAR, Choice

_FAMILIES = {"dsp": dsp_choice.choose, "mve": mve_choice.choose}


def choose(program: Program, family: str) -> tuple[Choice, ...]:
    """One choice a layer, for the kernels of `family`."""
    return tuple(_choice(program, layer, family) for layer in program.layers)


def _choice(program: Program, layer: Layer, family: str) -> Choice:
    if isinstance(layer, Recurrent):
        return Choice(scratch=recurrent_scratch.needed(program, layer).total)
    if family not in _FAMILIES:
        return SCALAR
    if dsp_int16.is_int16(program, layer):
        return dsp_int16.choose(program, layer) if family == "dsp" else dsp_int16.fallback(layer)
    return _FAMILIES[family](program, layer)
