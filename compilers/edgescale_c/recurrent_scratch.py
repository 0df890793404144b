"""The scratch of recurrent layers: what lies where in it."""

from __future__ import annotations

from dataclasses import dataclass

from edgescale.lower.program import ITEM_BYTES, Program
from edgescale.lower.program_recurrent import Gru, Recurrent


@dataclass(frozen=True)
class Scratch:
    """Bytes from the scratch's start to each part, None where the layer does not need it; `total` bytes in all.

    carried: the vector that the layer would update, where the program has none; other: outputs beside the layer's
    own; masked: a GRU's r * s.
    """

    carried: int | None
    other: int | None
    masked: int | None
    total: int


def needed(program: Program, layer: Recurrent) -> Scratch:
    """The parts of a layer's scratch, widest elements first."""
    out = program.tensors[layer.output]
    integer, gru = out.dtype == "int8", isinstance(layer, Gru)
    item, vector = ITEM_BYTES[out.dtype], 2 if integer else 4
    steps = program.tensors[layer.inputs[0]].shape[-2]
    wanted = (
        (not layer.updates and (integer or not gru), vector),
        ((not layer.sequence and steps > 1) or (integer and gru), item),
        (isinstance(layer, Gru) and not layer.linear_before_reset, item),
    )
    places: list[int | None] = []
    total = 0
    for present, width in wanted:
        places.append(total if present else None)
        total += layer.units * width if present else 0
    carried, other, masked = places
    return Scratch(carried, other, masked, total)
