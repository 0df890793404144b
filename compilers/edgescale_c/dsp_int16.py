"""Which dsp kernel serves a layer of int16 activations, and its packed weights (firmware/kernels/dsp)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgescale.lower.program import Add, Conv2D, DepthwiseConv2D, FullyConnected, Layer, Mean, Pool2D, Program
from edgescale_c.choice import SCALAR, Choice
from edgescale_c.constants import Table
from edgescale_c.geometry import window

_LEAST_SCRATCH = 4096
"""Scratch that is always granted; beyond it no more than the layer's input and output together."""

_OWN = (Conv2D, DepthwiseConv2D, FullyConnected, Add, Pool2D, Mean)
"""Layers for which families have kernels of their own, of int8 all of them."""


def is_int16(program: Program, layer: Layer) -> bool:
    """Whether the layer reads int16 activations."""
    return bool(layer.inputs) and program.tensors[layer.inputs[0]].dtype == "int16"


def fallback(layer: Layer) -> Choice:
    """The scalar kernel of a layer of int16 activations, and why."""
    return Choice(reason="int16 activations") if isinstance(layer, _OWN) else SCALAR


def choose(program: Program, layer: Layer) -> Choice:
    """The dsp kernel of a layer of int16 activations, or the scalar one and why."""
    if isinstance(layer, FullyConnected):
        return Choice("fully_connected_s16_dsp")
    if not isinstance(layer, Conv2D):
        return fallback(layer)
    if layer.groups != 1:
        return Choice(reason=f"{layer.groups} groups")
    scratch = _scratch(program, layer)
    granted = program.tensors[layer.inputs[0]].nbytes + program.tensors[layer.output].nbytes
    if scratch > max(_LEAST_SCRATCH, granted):
        return Choice(reason=f"scratch of {scratch} B")
    return Choice("conv2d_s16_dsp_2x2", scratch=scratch)


def _scratch(program: Program, layer: Conv2D) -> int:
    """Bytes of two pixels' taps; none where a 1x1 window sees no padding."""
    geometry = window(program, layer)
    if geometry.k_h * geometry.k_w == 1 and not geometry.has_border:
        return 0
    taps = math.prod(layer.weights.shape[1:])
    return (taps + taps % 2) * 4


def packed(rows: Table) -> npt.NDArray[np.int8]:
    """Weights [O, taps] with the bytes 0, 2, 1, 3 of every four taps; what is left of a row stays in order."""
    whole = rows.shape[1] // 4 * 4
    quads = rows[:, :whole].reshape(len(rows), -1, 4)[:, :, [0, 2, 1, 3]].reshape(len(rows), whole)
    return np.ascontiguousarray(np.concatenate([quads, rows[:, whole:]], axis=1)).astype(np.int8)
