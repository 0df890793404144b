"""Weights copied to RAM before a layer runs, where flash makes the core wait for them again and again.

A convolution reads its weights once for every few pixels. On a part whose flash has wait states and a data cache
smaller than a layer's weights, each of these passes waits for every line; RAM does not wait. So a copy, made once a
run, pays where passes are many. It takes scratch, placed in the arena for that layer only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgescale.core.target import Target
from edgescale.lower.program import Conv2D, Layer, Program
from edgescale_c import pack
from edgescale_c.choice import Choice
from edgescale_c.dsp_choice import WIDE, weight_rows
from edgescale_c.geometry import window

STACK_RESERVE = 2048
"""Bytes of RAM that staged weights leave to the stack and the application."""

_KERNELS = ("conv2d_s8_dsp_4x2", WIDE)
"""Kernels written in assembly: those in C lose more to writes that might change staged weights than they gain."""
_PIXELS = 4
"""That they finish in one pass over the weights."""

_WORTH = 2.0
"""Cycles that have to be saved for each that copying costs."""


@dataclass(frozen=True)
class Flash:
    """What the device's constants come from: wait states a line of `line_bytes`, the data cache in front of it, and
    the bytes of RAM there are."""

    wait_states: int
    line_bytes: int
    data_cache: int
    ram: int


def flash_of(target: Target) -> Flash | None:
    """The flash of a target; None for profiles without memories."""
    if "flash" not in target.memory or "ram" not in target.memory:
        return None
    flash = target.memory["flash"]
    line = flash.line_bytes or 4
    return Flash(flash.wait_states, line, flash.data_cache, target.memory["ram"].length)


def savings(program: Program, choices: Sequence[Choice], flash: Flash) -> dict[int, float]:
    """Layer -> cycles that staging its weights saves, of those layers where it is worth it."""
    found: dict[int, float] = {}
    for index, (layer, choice) in enumerate(zip(program.layers, choices, strict=True)):
        nbytes = _weights(layer, choice)
        if not nbytes or nbytes <= flash.data_cache:
            continue
        waits = -(-nbytes // flash.line_bytes) * flash.wait_states
        saved = (_passes(program, layer) - 1) * waits
        if saved > _WORTH * nbytes:
            found[index] = saved
    return found


def staged(choices: Sequence[Choice], program: Program, layers: Sequence[int]) -> tuple[Choice, ...]:
    """The choices with the weights of `layers` behind their scratch."""
    return tuple(
        replace(choice, scratch=-(-choice.scratch // 8) * 8 + nbytes, staged=nbytes)
        if index in layers and (nbytes := _weights(program.layers[index], choice))
        else choice
        for index, choice in enumerate(choices)
    )


def _weights(layer: Layer, choice: Choice) -> int:
    """Bytes of the table that the layer's kernel reads over and over; 0 where it does not, or is not staged."""
    if not isinstance(layer, Conv2D) or layer.groups != 1 or layer.weight_bits != 8:
        return 0
    return int(pack.gemm_weights(weight_rows(layer)).nbytes) if choice.name in _KERNELS else 0


def _passes(program: Program, layer: Layer) -> int:
    """How often the weights are read in a run."""
    geometry = window(program, layer)
    return -(-geometry.out_h * geometry.out_w // _PIXELS)
