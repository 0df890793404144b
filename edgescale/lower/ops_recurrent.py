"""Recurrent operators: LSTM and GRU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgescale.core.recurrent import HIDDEN_EXPONENT, CellMetadataError, cell_clip, cell_exponent
from edgescale.lower.attributes import flag
from edgescale.lower.context import Context
from edgescale.lower.errors import NodeError
from edgescale.lower.fixedpoint import requant
from edgescale.lower.integer import bounded
from edgescale.lower.program_recurrent import Gru, Lstm
from edgescale.lower.recurrent_node import RecurrentNode
from edgescale.lower.recurrent_weights import Product
from edgescale.lower.registry import handles

if TYPE_CHECKING:
    import onnx_ir


@handles("LSTM")
def lstm(context: Context, node: onnx_ir.Node) -> None:
    """Batch 1, constant W, R and B, any direction and layout, initial states, the default activations; without
    sequence_lens, peepholes, clip and input_forget. int8 (cell state int16) when X, W and R are quantized, Y and Y_h
    go to QuantizeLinear, and the node's metadata name the cell state's units (`edgescale.lstm.cell_exponent`)."""
    try:
        exponent, clip = cell_exponent(node.metadata_props), cell_clip(node.metadata_props)
    except CellMetadataError as error:
        raise NodeError(error.found, error.rule) from None
    if flag(node, "input_forget"):
        raise NodeError("input_forget = 1")
    peepholes = context.optional(node, 7)
    if peepholes is not None and peepholes.real().any():
        raise NodeError("peephole weights P")
    job = RecurrentNode(context, node, (0, 2, 3, 1))
    units = job.integer_units(exponent, (6, 2)) if exponent is not None else None
    for direction in range(job.directions):
        ahead, back = job.products(direction, units, 0)
        hidden = job.hidden(direction, units)
        cell = job.carried(direction, 6, 2, exponent if units else None)
        steps = clip if units is None or exponent is None else min(int(np.float32(clip / 2.0**exponent)), 2**15 - 1)
        scaling = None
        if units is not None:
            scaling = bounded(requant(float(np.float32(2.0**-30 / units[0]))), 2.0**30)
        job.layer(
            direction, units, [name for name in (hidden, cell) if name is not None], Lstm,
            hidden_requant=scaling, has_hidden=hidden is not None, has_cell=cell is not None,
            cell_exponent=exponent if units and exponent is not None else 0, cell_clip=steps,
            **_weights(ahead, back),
        )  # fmt: skip
    job.finish(units, None)
    job.bind_carried(2)


@handles("GRU")
def gru(context: Context, node: onnx_ir.Node) -> None:
    """Batch 1, constant W, R and B, any direction and layout, initial states, the default activations,
    linear_before_reset 0 or 1; without sequence_lens and clip. int8 (hidden state int16) when X, W and R are quantized
    and Y and Y_h go to QuantizeLinear."""
    late = flag(node, "linear_before_reset")
    job = RecurrentNode(context, node, (0, 1, 2))
    units = job.integer_units(HIDDEN_EXPONENT, (5, 1))
    for direction in range(job.directions):
        ahead, back = job.products(direction, units, int(late))
        scaling = None
        if units is None:
            hidden = job.hidden(direction, None)
        else:
            hidden = job.carried(direction, 5, 1, HIDDEN_EXPONENT)
            scaling = bounded(requant(2.0**HIDDEN_EXPONENT / units[0]), 2.0**15)
        job.layer(
            direction, units, [name for name in (hidden,) if name is not None], Gru,
            hidden_requant=scaling, has_hidden=hidden is not None, linear_before_reset=late, **_weights(ahead, back),
        )  # fmt: skip
    job.finish(units, HIDDEN_EXPONENT)
    if units is not None:
        job.bind_carried(1)


def _weights(ahead: Product, back: Product) -> dict[str, Any]:
    return {
        "weights": ahead.weights, "bias": ahead.bias, "requant": ahead.requant,
        "recurrent": back.weights, "recurrent_bias": back.bias, "recurrent_requant": back.requant,
    }  # fmt: skip
