"""Which kernel computes each layer, by family.

The scalar family computes everything. The dsp and mve families have kernels for what their domains
cover; every layer outside falls back to the scalar kernel, and the choice's `reason` says why.
"""

from __future__ import annotations

from edgescale.lower.program import Add, Conv2D, DepthwiseConv2D, FullyConnected, Layer, Mean, Pool2D, Program
from edgescale_c import dsp_choice, mve_choice
from edgescale_c.choice import SCALAR, Choice

_OWN = (Conv2D, DepthwiseConv2D, FullyConnected, Add, Pool2D, Mean)
"""Layers for which families have kernels of their own, all of int8."""

_FAMILIES = {"dsp": dsp_choice.choose, "mve": mve_choice.choose}


def choose(program: Program, family: str) -> tuple[Choice, ...]:
    """One choice a layer, for the kernels of `family`."""
    chooser = _FAMILIES.get(family)
    if chooser is None:
        return (SCALAR,) * len(program.layers)
    return tuple(
        Choice(reason="int16 activations") if isinstance(layer, _OWN) and _is_int16(program, layer)
        # Others are int8, float32 or without a kernel of the family's.
        else chooser(program, layer)
        for layer in program.layers
    )  # fmt: skip


def _is_int16(program: Program, layer: Layer) -> bool:
    return program.tensors[layer.inputs[0]].dtype == "int16"
