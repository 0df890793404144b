"""Which integer types may meet in a layer: one check over the layers that lowering made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgescale.lower.context import Context
from edgescale.lower.program import LIMITS, Layer, Lut, Rescale
from edgescale.lower.program_recurrent import Initial


def check_types(context: Context, layers: Sequence[Layer], refuse: Callable[[str], None]) -> None:
    """Refuse layers between int8 and int16 that are no change of units, and tables of int8 for int16."""
    for layer in layers:
        # What a recurrent layer updates is of another type than what it reads.
        names = [name for name in (*layer.inputs, layer.output) if name not in layer.updates]
        tensors = [context.tensors[name] for name in names]
        kinds = sorted({tensor.dtype for tensor in tensors} & set(LIMITS))
        rule = ""
        if len(kinds) > 1 and not isinstance(layer, (Initial, Rescale)):
            rule = "integer inputs and outputs have one type (put a QuantizeLinear of the other type between)"
        elif isinstance(layer, Lut) and kinds != ["int8"]:
            rule = "tables are of int8"
        if rule:
            refuse(f"node {layer.name!r} (op {layer.op}): rule: {rule}; found {' and '.join(kinds)}")
