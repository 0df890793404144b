"""A rough cost of layers, in instructions, to compare arrangements of one program by. No figure that is shown to
anybody: what is reported is counted on the emulated core."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgescale.lower.program import (
    Concat,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Layer,
    Pad,
    Pool2D,
    Program,
    Slice,
    Softmax,
    macs,
)
from edgescale_c.choice import Choice

_CALL = 120
"""Of a layer that does next to nothing."""
_PER_MAC = {"dsp": 0.7, "mve": 0.15, "scalar": 5.0}
_PER_OUTPUT = {"dsp": 12.0, "mve": 2.0, "scalar": 20.0}
_PER_INPUT = {"dsp": 2.0, "mve": 0.5, "scalar": 1.0}


def cost(program: Program, layers: Sequence[Layer], choices: Sequence[Choice]) -> float:
    """Of running `layers` of a program once."""
    return sum(layer_cost(program, layer, choice) for layer, choice in zip(layers, choices, strict=True))


def layer_cost(program: Program, layer: Layer, choice: Choice) -> float:
    """Of one layer."""
    out = program.tensors[layer.output]
    if isinstance(layer, (Slice, Concat, Pad)):
        return _CALL + out.nbytes / 4
    family = choice.family if choice.name else "scalar"
    sources = sum(program.tensors[name].size for name in layer.inputs)
    if isinstance(layer, (Conv2D, DepthwiseConv2D, FullyConnected)):
        per_mac = _PER_MAC[family] * (2.0 if isinstance(layer, DepthwiseConv2D) else 1.0)
        read = sources
        if isinstance(layer, Conv2D):
            # Windows are gathered pixel by pixel.
            read = out.size // out.shape[-1] * math.prod(layer.weights.shape[1:])
        return _CALL + macs(program, layer) * per_mac + out.size * _PER_OUTPUT[family] + read * _PER_INPUT[family]
    if isinstance(layer, Pool2D):
        return _CALL + out.size * math.prod(layer.kernel) * 2
    per_element = 60.0 if isinstance(layer, Softmax) else _PER_OUTPUT[family]
    return _CALL + out.size * per_element
