"""Which kernel computes each layer, by family.

The scalar family computes everything. The dsp and mve families have kernels for what their domains
cover; every layer outside falls back to the scalar kernel, and the choice's `reason` says why.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgescale.core.memory import Memory
from edgescale.lower.program import Layer, Program
from edgescale.lower.program_recurrent import Recurrent
from edgescale_c import dsp_choice, dsp_int16, mve_choice, recurrent_scratch, scalar_choice, sparse
from edgescale_c.choice import Choice

_FAMILIES = ("dsp", "mve")

_KERNEL_BYTES = 512
"""Code of another kernel, about: packing that saves less is none."""


def choose(program: Program, family: str, memory: Memory = "balanced") -> tuple[Choice, ...]:
    """One choice a layer, for the kernels of `family`, which are to be good at what `memory` says."""
    found = tuple(_told(layer, _choice(program, layer, family, memory), family) for layer in program.layers)
    saved = sum(choice.packing.nbytes for choice in found if choice.packing is not None)
    if memory == "packed" and 0 < saved < _KERNEL_BYTES:
        return tuple(replace(choice, packing=None) for choice in choose(program, family))
    return found


def density(layer: Layer) -> float | None:
    """Share of a layer's weights that are not zero; None for layers without weights."""
    weights = getattr(layer, "weights", None)
    return None if weights is None or not weights.size else float(np.count_nonzero(weights)) / weights.size


def _told(layer: Layer, choice: Choice, family: str) -> Choice:
    """The choice, which says what comes of a layer's zeros also where its kernel takes no notice."""
    share = density(layer)
    if choice.exploits or share is None or share > 1 - sparse.MENTIONED:
        return choice
    return replace(choice, exploits=f"nothing: no kernel of the {family} family skips zeros of {layer.op}")


def _choice(program: Program, layer: Layer, family: str, memory: Memory) -> Choice:
    if isinstance(layer, Recurrent):
        return Choice(scratch=recurrent_scratch.needed(program, layer).total)
    if family not in _FAMILIES:
        return scalar_choice.choose(program, layer, memory)
    if dsp_int16.is_int16(program, layer):
        return dsp_int16.choose(program, layer) if family == "dsp" else dsp_int16.fallback(layer)
    return dsp_choice.choose(program, layer, memory) if family == "dsp" else mve_choice.choose(program, layer)
