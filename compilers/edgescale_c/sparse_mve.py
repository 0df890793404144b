"""Convolutions of the mve family by blocks of four taps (firmware/kernels/mve/es_sparse_mve_s8.h): whether that takes
fewer instructions than 16 products a vector, and the tables."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgescale.lower.program import Conv2D, Program
from edgescale_c import sparse
from edgescale_c.constants import Table
from edgescale_c.geometry import window
from edgescale_c.sparse_tables import live_quads, quads_of

BLOCKS = "conv2d_s8_mve_sparse_blocks"

_LANES = 16
_FOUR = 4
_PLACES = 256
_MOST_FOURS = 255
_HELD = 4
_GATHERS = 0.3
"""A gather takes a core a cycle a word or more, which instructions do not show: so many of them must go."""
_COPY = 9.0
"""Instructions to copy a vector of taps."""
_PAIR_VECTOR, _PAIR_END = 8.2, 28.0
"""Dense, of two channels of two pixels: instructions of 16 taps, and of what comes with the outputs."""
_LOOPED_VECTOR, _UNROLLED = 10.0, 9
"""The same where taps are read in place and more vectors than ES_MVE_UNROLLED."""
_QUAD_VECTOR, _QUAD_END = 8.0, 18.0
"""Dense, of four channels of one pixel whose taps stay in registers."""
_FOURS, _END = 6.5, 45.0
"""Of two pixels: instructions of four blocks of a channel; of what comes with the outputs of two channels."""


def compare(program: Program, layer: Conv2D) -> sparse.Comparison:
    """Blocks beside the dense kernel, for two pixels."""
    rows = layer.weights.reshape(len(layer.weights), -1)
    outputs, taps = rows.shape
    vectors = -(-taps // _LANES)
    geometry = window(program, layer)
    direct = geometry.k_h * geometry.k_w == 1 and not geometry.has_border
    copies = 2 * _COPY * vectors
    if vectors > _HELD:
        vector = _LOOPED_VECTOR if direct and vectors > _UNROLLED else _PAIR_VECTOR
        dense = -(-outputs // 2) * (vector * vectors + _PAIR_END)
    else:
        dense = 2 * -(-outputs // 4) * (_QUAD_VECTOR * vectors + _QUAD_END)
    dense += 0.0 if direct else copies
    passes = geometry.out_h * -(-geometry.out_w // 2)
    zeros = float((rows == 0).mean())
    nbytes = int(-(-outputs // 2) * 2 * vectors * _LANES)
    fours = -(-live_quads(rows).sum(axis=1) // _FOUR)
    fits = layer.groups == 1 and layer.weight_bits == 8 and -(-taps // _FOUR) <= _PLACES
    if zeros < sparse.LEAST or not fits or int(fours.max()) > _MOST_FOURS:
        return sparse.Comparison(dense, nbytes, passes, zeros, ())
    cost = _FOURS * float(fours.sum()) + _END * -(-outputs // 2) + copies
    taken = int(20 * fours.sum()) + outputs
    found = sparse.Candidate(BLOCKS, "blocks of four", cost, taken, slower=_GATHERS)
    return sparse.Comparison(dense, nbytes, passes, zeros, (found,))


def tables(rows: Table) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Weights [O, taps] -> weights [blocks, 4], places [blocks] and counts [O filled up to an even number]."""
    outputs, full = len(rows), quads_of(rows)
    weights: list[npt.NDArray[np.int8]] = [np.zeros((0, _FOUR), np.int8)]
    places: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)]
    counts = np.zeros(outputs + outputs % 2, np.uint8)
    for channel, mask in enumerate(live_quads(rows)):
        at = np.flatnonzero(mask)
        counts[channel] = -(-at.size // _FOUR)
        missing = int(counts[channel]) * _FOUR - at.size
        weights.append(np.pad(full[channel, at], ((0, missing), (0, 0))))
        places.append(np.pad(at, (0, missing)))
    made = np.concatenate(weights), np.concatenate(places).astype(np.uint8)
    if not made[1].size:
        made = np.zeros((1, _FOUR), np.int8), np.zeros(1, np.uint8)
    return *made, counts
