"""What ONNX files say about recurrent operators beyond ONNX: entries of a node's metadata.

An LSTM between DequantizeLinear and QuantizeLinear says nothing of the fixed point of its cell state, and ONNX's
`clip` bounds other values than a TensorFlow Lite file's. Both stand in the LSTM node's `metadata_props`, which other
runtimes ignore:

    edgescale.lstm.cell_exponent = "-11"    the cell state is int16 in units of 2^-11; int8 LSTM nodes have this entry
    edgescale.lstm.cell_clip = "10.0"       after every step the cell state is clipped to [-10, 10]; absent: not at all

A GRU needs none: its hidden state lies in [-1, 1] and is int16 in units of 2^-15.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping

from edgescale.core.errors import UnsupportedModelError

CELL_EXPONENT = "edgescale.lstm.cell_exponent"
CELL_CLIP = "edgescale.lstm.cell_clip"

CELL_EXPONENTS = range(-15, -8)
"""Units of a cell state that the fixed-point tanh takes: ranges of [-1, 1) to [-64, 64)."""
HIDDEN_EXPONENT = -15
"""Units of a GRU's hidden state, 2^-15."""


class CellMetadataError(UnsupportedModelError):
    """A node's entry is broken: `rule` is what it must meet, `found` what it is."""

    def __init__(self, rule: str, found: str) -> None:
        super().__init__(f"rule: {rule}; found {found}")
        self.rule = rule
        self.found = found


def set_cell(metadata: MutableMapping[str, str], exponent: int | None, clip: float = 0.0) -> None:
    """Note the cell state's units (None: the node computes in float32) and its bound (0: none)."""
    if exponent is not None:
        metadata[CELL_EXPONENT] = str(exponent)
    if clip:
        metadata[CELL_CLIP] = repr(float(clip))


def cell_exponent(metadata: Mapping[str, str]) -> int | None:
    """The cell state's units as an exponent of two; None where the node does not say. Raises CellMetadataError."""
    text = metadata.get(CELL_EXPONENT)
    if text is None:
        return None
    known = {str(exponent): exponent for exponent in CELL_EXPONENTS}
    if text not in known:
        limits = f"{CELL_EXPONENTS[0]} to {CELL_EXPONENTS[-1]}"
        raise CellMetadataError(f"its metadata {CELL_EXPONENT} is an integer from {limits}", repr(text))
    return known[text]


def cell_clip(metadata: Mapping[str, str]) -> float:
    """The bound of the cell state, 0 for none. Raises CellMetadataError."""
    text = metadata.get(CELL_CLIP, "0")
    try:
        bound = float(text)
    except ValueError:
        bound = -1.0
    if not (math.isfinite(bound) and bound >= 0):
        raise CellMetadataError(f"its metadata {CELL_CLIP} is a finite number from 0 on", repr(text))
    return bound
