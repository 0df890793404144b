"""The words for a layer's kernel: its name, the scratch it needs, the order in which it touches memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Order = Literal["scalar", "blocks", "dense", "rows", "plane"]
"""How a kernel reads and writes: "scalar": as overlap.py and verifier.py know of the scalar kernel;
"blocks": blocks of four pixels, each read wholly before it is written; "dense": row after row, a row
read to the end for every group of outputs; "rows": the same for every output; "plane": channel after
channel, each read wholly before it is written."""


@dataclass(frozen=True)
class Packing:
    """Of a layer whose weights take less flash than where instructions alone count: bytes saved, instructions more in a
    run, by the tables that choices are made by."""

    nbytes: int
    instructions: int


@dataclass(frozen=True)
class Choice:
    """A layer's kernel. `name` is empty for the scalar one, whose name its emitter knows."""

    name: str = ""
    order: Order = "scalar"
    scratch: int = 0
    """Bytes, aligned to four, used in this layer only."""
    staged: int = 0
    """Of the scratch, the bytes at its end into which the weights are copied before the layer runs."""
    reason: str = ""
    """Why a family's own kernel does not serve."""
    exploits: str = ""
    """What comes of zero weights, in words; empty where they are few."""
    packing: Packing | None = None
    """What packed weights save and cost, whether the layer has them or not."""
    wider: Choice | None = None
    """What would serve better with more scratch than layers are granted; None where nothing would."""
    family: Literal["dsp", "mve", "scalar"] = "dsp"
    """Of the kernel that `name` names."""


SCALAR = Choice()
