"""Which layers the portable kernels compute by non-zero weights alone (firmware/kernels/scalar/es_sparse_s8.h)."""

from __future__ import annotations

from edgescale.core.memory import PACKING, Memory
from edgescale.lower.program import Conv2D, FullyConnected, Layer, Program
from edgescale_c import sparse, sparse_tables
from edgescale_c.choice import SCALAR, Choice
from edgescale_c.dsp_choice import weight_rows
from edgescale_c.geometry import window

ROWS = "sparse_rows_s8"
"""Products of single weights with the step to each."""

_DENSE, _DENSE_OUTPUT = 4.5, 50.0
_ENTRY, _OUTPUT = 10.0, 60.0
"""Instructions of a product, and of what comes with an output, of a row; those of Armv6-M, which has fewest registers.
Armv7-M and RV32 take fewer for both."""
_BASIS = ", as Armv6-M counts"
_MARGIN = 0.1
"""Share by which instructions have to fall there to fall everywhere."""


def choose(program: Program, layer: Layer, memory: Memory) -> Choice:
    """The kernel of non-zero weights where it takes fewer instructions, else the plain one."""
    if not isinstance(layer, (Conv2D, FullyConnected)) or layer.weight_bits != 8:
        return SCALAR
    if any(program.tensors[name].dtype != "int8" for name in (*layer.inputs, layer.output)):
        return SCALAR
    if isinstance(layer, Conv2D) and (layer.groups != 1 or not window(program, layer).is_pointwise):
        return SCALAR
    rows = weight_rows(layer)
    zeros = float((rows == 0).mean())
    if zeros < sparse.MENTIONED:
        return SCALAR
    outputs, taps = rows.shape
    counts = sparse_tables.entry_counts(rows, packed=False)
    entries = int(counts.sum())
    cost = _ENTRY * entries + _OUTPUT * outputs
    found = sparse.Candidate(ROWS, "single weights", cost, 2 * entries + 2 * outputs, slower=_MARGIN)
    fits = int(counts.max(initial=0)) < 2**16
    passes = program.tensors[layer.output].size // outputs
    dense = _DENSE * taps * outputs + _DENSE_OUTPUT * outputs
    compared = sparse.Comparison(
        dense, int(rows.size), passes, zeros, (found,) if fits else (), memory in PACKING, _BASIS
    )
    name = "" if compared.best is None else ROWS
    return Choice(name, family="scalar", exploits=compared.told(), packing=compared.packing)
