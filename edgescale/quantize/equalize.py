"""Moves scale between neighbouring layers without changing the net: cross-layer equalization, SmoothQuant.

Between a layer and the one that alone reads it, each channel may be divided by s > 0 in the first and multiplied by s
in the second, as long as what lies between is positively homogeneous: f(s x) = s f(x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.core.dataset import Dataset
from edgescale.core.model import Model
from edgescale.core.progress import Progress
from edgescale.frontend.graph import constant, input_at, int_attribute, is_op, only_consumer, shape_of
from edgescale.frontend.passes.fusion import set_constant
from edgescale.quantize.rules import weight_axis

Real = npt.NDArray[np.float64]

HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Dropout")
_ROUNDS = 20
_SETTLED = 1e-3
_STRENGTH = 0.5
"""SmoothQuant's alpha: how much of the activations' spread goes into the weights."""
_LIMIT = 2.0**12
"""Largest factor a channel is scaled by, either way: dead channels give no sensible one."""


@dataclass(frozen=True)
class Pair:
    """`first` makes the channels that `second` alone reads; `between`: the value `second` reads."""

    first: ir.Node
    second: ir.Node
    between: ir.Value


def equalize(model: Model, graph: ir.Model, data: Dataset, steps: Sequence[str], progress: Progress) -> None:
    """Apply "cle" and "smooth", where `steps` names them, to a float graph in place (Gemm in canonical form).

    cle: Nagel et al., "Data-free quantization through weight equalization and bias correction": each channel's
    weights reach equally far in both layers, s_i = sqrt(r1_i / r2_i), repeated until nothing moves. smooth: Xiao
    et al., "SmoothQuant": s_i = max|x_i|^0.5 / max|w_i|^0.5 over the calibration samples, as far as the channel
    comes from a layer whose weights can take the factor in. Clip (ReLU6) is not homogeneous and ends a pair.
    """
    pairs = find_pairs(graph.graph)
    if "smooth" in steps:
        from edgescale.quantize.calibrate import channel_spreads

        spreads = channel_spreads(model, graph, data, [str(pair.between.name) for pair in pairs], progress)
        for pair in pairs:
            read = _input_reach(pair.second)
            rescale(pair, _factors(_per_channel(spreads[str(pair.between.name)].reach, len(read)), read, _STRENGTH))
    if "cle" in steps:
        for _ in range(_ROUNDS):
            moved = 0.0
            for pair in pairs:
                factors = _factors(_output_reach(pair.first), _input_reach(pair.second), 0.5)
                rescale(pair, factors)
                moved = max(moved, float(np.abs(np.log(factors)).max(initial=0.0)))
            if moved < _SETTLED:
                break


def find_pairs(graph: ir.Graph) -> list[Pair]:
    """Every pair of weighted nodes with nothing but homogeneous operators of a single reader between them."""
    pairs = []
    for node in graph:
        if not rescalable(node):
            continue
        value, after = node.outputs[0], only_consumer(node.outputs[0])
        while after is not None and is_op(after, *HOMOGENEOUS) and after.inputs[0] is value:
            value = after.outputs[0]
            after = only_consumer(value)
        if after is not None and rescalable(after) and after.inputs[0] is value and _channels_meet(node, after):
            pairs.append(Pair(node, after, value))
    return pairs


def rescale(pair: Pair, factors: Real) -> None:
    """Divide the channels by `factors` [channels] in the first layer and multiply them in the second."""
    divide_outputs(pair.first, factors)
    multiply_inputs(pair.second, factors)


def divide_outputs(node: ir.Node, factors: Real) -> None:
    """Divide what a layer makes by `factors` [outputs], in its weights and bias."""
    weights, bias = _weights(node), constant(input_at(node, 2))
    axis = weight_axis(node)
    shaped = factors.reshape(tuple(-1 if a == axis else 1 for a in range(weights.ndim)))
    set_constant(node, 1, (weights / shaped).astype(np.float32), f"{node.name}.weight")
    if bias is not None:
        set_constant(node, 2, (bias.astype(np.float64) / factors).astype(np.float32), f"{node.name}.bias")


def multiply_inputs(node: ir.Node, factors: Real) -> None:
    """Multiply the weights that a layer reads each input channel with by `factors` [channels]."""
    weights = _weights(node) * _spread_inputs(node, factors)
    set_constant(node, 1, weights.astype(np.float32), f"{node.name}.weight")


def _factors(made: Real, read: Real, strength: float) -> Real:
    """s = made^strength / read^(1 - strength), 1 where either side is zero."""
    alive = (made > 0) & (read > 0)
    safe_made, safe_read = np.where(alive, made, 1.0), np.where(alive, read, 1.0)
    return np.clip(safe_made**strength / safe_read ** (1 - strength), 1 / _LIMIT, _LIMIT)


def rescalable(node: ir.Node) -> bool:
    """Whether it is a Conv or Gemm (canonical) whose constants belong to it alone."""
    if not is_op(node, "Conv", "Gemm") or constant(node.inputs[1]) is None:
        return False
    if is_op(node, "Gemm") and int_attribute(node, "transB", 0) != 1:
        return False
    bias = input_at(node, 2)
    if bias is not None and (constant(bias) is None or len(bias.uses()) != 1):
        return False
    weights = node.inputs[1]
    return weights is not None and len(weights.uses()) == 1


def _channels_meet(first: ir.Node, second: ir.Node) -> bool:
    """Both sides count the same channels, and groups of the second are depthwise or one."""
    made = _weights(first).shape[weight_axis(first)]
    if is_op(second, "Gemm"):
        return bool(_weights(second).shape[1] == made and is_op(first, "Gemm"))
    groups, shape = int_attribute(second, "group", 1), shape_of(second.inputs[0])
    return shape is not None and len(shape) > 2 and shape[1] == made and groups in (1, made) and is_op(first, "Conv")


def _weights(node: ir.Node) -> Real:
    array = constant(node.inputs[1])
    if array is None:
        raise ValueError(f"{node.name}: no constant weights")
    return array.astype(np.float64)


def _output_reach(node: ir.Node) -> Real:
    """Largest weight of each output channel."""
    moved = np.moveaxis(_weights(node), weight_axis(node), 0)
    return np.asarray(np.abs(moved).reshape(len(moved), -1).max(axis=1, initial=0.0))


def _input_reach(node: ir.Node) -> Real:
    """Largest weight that multiplies each input channel."""
    weights = np.abs(_weights(node))
    if is_op(node, "Gemm"):
        return np.asarray(weights.max(axis=0, initial=0.0))
    groups = int_attribute(node, "group", 1)
    if groups > 1:  # depthwise: a channel's own filters, `multiplier` of them
        return np.asarray(weights.reshape(groups, -1).max(axis=1, initial=0.0))
    return np.asarray(np.moveaxis(weights, 1, 0).reshape(weights.shape[1], -1).max(axis=1, initial=0.0))


def _spread_inputs(node: ir.Node, factors: Real) -> Real:
    """Factors of the input channels, shaped to multiply the node's weights."""
    if is_op(node, "Gemm"):
        return factors[None, :]
    rank = _weights(node).ndim
    groups = int_attribute(node, "group", 1)
    if groups > 1:
        own = np.repeat(factors, _weights(node).shape[0] // groups)
        return own.reshape(-1, *(1,) * (rank - 1))
    return factors.reshape(1, -1, *(1,) * (rank - 2))


def _per_channel(reach: Real, channels: int) -> Real:
    return np.broadcast_to(reach, (channels,)).astype(np.float64)
