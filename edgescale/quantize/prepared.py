"""What stands between planning and rounding: the float graph with its activations calibrated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from edgescale.core.recipe import Recipe
from edgescale.quantize.plan import Plan
from edgescale.quantize.units import Units


@dataclass(frozen=True)
class Prepared:
    """A float graph ready for its weights to be rounded: equalized where asked, activations calibrated.

    `weighted`: the nodes that get quantized weights, in order, each with its recipe; `units` of every planned value.
    """

    graph: ir.Model
    plan: Plan
    units: Mapping[ir.Value, Units]
    weighted: Mapping[ir.Node, Recipe]
    cells: Mapping[str, int] = field(default_factory=dict)
    """Units of LSTM cell states by node name: exponents of two."""
