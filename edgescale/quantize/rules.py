"""Which nodes run in int8, and what each operator demands for it.

A rule returns None for a node that qualifies, else the reason, in words for the user. A node that does not
qualify stays float between DequantizeLinear and QuantizeLinear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir

from edgescale.frontend.graph import (
    DEFAULT_DOMAINS,
    constant,
    float_attribute,
    input_at,
    int_attribute,
    ints_attribute,
    is_float,
    scalar,
    shape_of,
)
from edgescale.quantize.recurrent_rules import RECURRENT, recurrent_rule

Rule = Callable[[ir.Node], str | None]

WEIGHTED = frozenset(("Conv", "Gemm", "MatMul"))
"""Operators of int8 weights: per-channel scales along `weight_axis`, int32 bias."""
BINARY = frozenset(("Add", "Sub", "Mul"))
FUSES_ACTIVATION = frozenset(("Conv", "Gemm", "MatMul", "Add"))
"""Operators after which a Relu or Clip runs as the clamp of their output."""
SAME_UNITS = frozenset(
    {"MaxPool", "AveragePool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Pad", "Identity"}
) | {"Slice", "Split", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Gather"}
"""Operators whose outputs hold nothing but (means of) their input's values: one scale and zero-point for both."""
MOVES = SAME_UNITS - {"MaxPool", "AveragePool"}
"""Operators that only move values; int8 pays for them only next to an operator that computes in int8."""
FIXED_UNITS: dict[str, tuple[float, int]] = {
    "Softmax": (1 / 256, 0),
    "Sigmoid": (1 / 256, 0),
    "Tanh": (1 / 128, 128),
}
"""Operators of a known output range: uint8 (scale, zero-point) that LiteRT's quantization specification prescribes."""


def weight_axis(node: ir.Node) -> int:
    """Axis of the output channels in the weights of a Conv, Gemm or MatMul."""
    if node.op_type == "Conv":
        return 0
    return 0 if node.op_type == "Gemm" and int_attribute(node, "transB", 0) else 1


def data_inputs(node: ir.Node) -> range:
    """Indices of the inputs that hold activations (or constants in an activation's place)."""
    if node.op_type in BINARY:
        return range(2)
    return range(len(node.inputs)) if node.op_type == "Concat" else range(1)


def _conv(node: ir.Node) -> str | None:
    weights, bias = constant(node.inputs[1]), input_at(node, 2)
    if weights is None or weights.dtype != np.float32:
        return "its weights are computed, not constant"
    if bias is not None and constant(bias) is None:
        return "its bias is computed, not constant"
    return None


def _gemm(node: ir.Node) -> str | None:
    reason = _conv(node)
    if reason is not None:
        return reason
    if int_attribute(node, "transA", 0):
        return "it transposes its input (transA=1)"
    if float_attribute(node, "alpha", 1.0) != 1.0 or (
        input_at(node, 2) is not None and float_attribute(node, "beta", 1.0) != 1.0
    ):
        return "alpha or beta is not 1"
    bias = constant(input_at(node, 2))
    weights = shape_of(node.inputs[1])
    if bias is not None and weights is not None and bias.shape != (weights[weight_axis(node)],):
        return f"its bias has the shape {list(bias.shape)}, not one value an output"
    return None


def _matmul(node: ir.Node) -> str | None:
    weights = constant(node.inputs[1])
    if weights is None or weights.dtype != np.float32:
        return "its second operand is not constant"
    if weights.ndim != 2:
        return f"its weights have {weights.ndim} dimensions, not 2"
    return None if is_float(node.inputs[0]) and constant(node.inputs[0]) is None else "its first operand is constant"


def _binary(node: ir.Node) -> str | None:
    if all(constant(value) is not None for value in node.inputs):
        return "both operands are constant"
    return None if all(is_float(value) for value in node.inputs) else "its operands are not float32"


def _one_output(node: ir.Node) -> str | None:
    return "its index output is used" if len(node.outputs) > 1 and node.outputs[1].uses() else None


def _clip(node: ir.Node) -> str | None:
    for value in node.inputs[1:]:
        if value is not None and scalar(value) is None:
            return "its bounds are computed, not constant"
    return None


def _pad(node: ir.Node) -> str | None:
    value = input_at(node, 2)
    fill = scalar(value) if value is not None else 0.0
    if fill is None:
        return "its padding value is computed, not constant"
    return None if np.isfinite(fill) else "its padding value is infinite"


def _mean(node: ir.Node) -> str | None:
    shape = shape_of(node.inputs[0])
    axes = ints_attribute(node, "axes")
    if axes is None:
        array = constant(input_at(node, 1))
        axes = None if array is None else tuple(int(a) for a in array.reshape(-1))
    if shape is None or axes is None or len(shape) < 3:
        return "it is no mean over height and width"
    return None if {a % len(shape) for a in axes} == set(range(2, len(shape))) else "its axes are not height and width"


def _gather(node: ir.Node) -> str | None:
    return None if scalar(input_at(node, 1)) is not None else "it takes several entries, or one chosen at run time"


def _any(node: ir.Node) -> str | None:
    return None


RULES: dict[str, Rule] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    **dict.fromkeys(("Add", "Sub", "Mul"), _binary),
    "Concat": _any,
    "Pad": _pad,
    "MaxPool": _one_output,
    "ReduceMean": _mean,
    "Clip": _clip,
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "Relu", "Sigmoid", "Tanh", "Softmax"), _any),
    **dict.fromkeys(("HardSwish", "HardSigmoid", "LeakyRelu"), _any),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity"), _any),
    **dict.fromkeys(RECURRENT, recurrent_rule),
    "Gather": _gather,
    **dict.fromkeys(("Slice", "Split", "DepthToSpace", "SpaceToDepth", "Expand", "Tile"), _any),
}
"""Every operator that may run in int8, with its rule."""


def refusal(node: ir.Node) -> str | None:
    """None where the node may run in int8, else why not."""
    if node.domain not in DEFAULT_DOMAINS or node.op_type not in RULES:
        return "the operator has no int8 form here"
    values = [node.inputs[i] for i in data_inputs(node)]
    made = next((value for value in node.outputs if value.name), node.outputs[0])
    if not all(is_float(value) for value in (*values, made)):
        return "its tensors are not float32"
    if all(constant(value) is not None for value in values):
        return "its inputs are constant"
    return RULES[node.op_type](node)


def quantizable(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """The nodes that run in int8: those that compute and qualify, and those that move values next to one of them."""
    able = [node for node in nodes if refusal(node) is None]
    chosen = {node for node in able if node.op_type not in MOVES}
    while True:
        more = {node for node in able if node not in chosen and any(n in chosen for n in _neighbours(node))}
        if not more:
            return chosen
        chosen |= more


def _neighbours(node: ir.Node) -> list[ir.Node]:
    source = node.inputs[0]
    producer = source.producer() if source is not None else None
    near = [use.node for output in node.outputs for use in output.uses() if use.idx in data_inputs(use.node)]
    return near if producer is None else [producer, *near]
