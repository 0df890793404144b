"""Fully connected layers: Gemm and MatMul by a constant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgescale.lower.constants import Constant
from edgescale.lower.context import Context, Value
from edgescale.lower.errors import NodeError
from edgescale.lower.layout import View, view
from edgescale.lower.program import FullyConnected
from edgescale.lower.registry import handles
from edgescale.lower.sink import follow, per_channel
from edgescale.lower.weights import integer_weights, real_weights

if TYPE_CHECKING:
    import onnx_ir


@handles("Gemm")
def gemm(context: Context, node: onnx_ir.Node) -> None:
    """Y = alpha A B + beta C with constant B and C, transA = 0, C one value or one an output column. int8 when B is
    symmetric (per tensor or per output column), alpha is positive and the output is quantized."""
    attributes = node.attributes
    if "transA" in attributes and attributes["transA"].as_int():
        raise NodeError("transA = 1")
    weights = context.constant(node, 1)
    if len(weights.shape) != 2:
        raise NodeError(f"B of shape {list(weights.shape)}")
    if not ("transB" in attributes and attributes["transB"].as_int()):
        weights = weights.transpose((1, 0))
    alpha = attributes["alpha"].as_float() if "alpha" in attributes else 1.0
    beta = attributes["beta"].as_float() if "beta" in attributes else 1.0
    bias = context.optional(node, 2)
    if bias is not None:
        flat = per_channel(bias, (1, weights.shape[0]), 1)
        if flat is None:
            raise NodeError(f"C of shape {list(bias.shape)} for {weights.shape[0]} columns")
        if beta != 1.0 or not bias.quantized:
            bias = Constant(np.broadcast_to(flat * beta, (weights.shape[0],)))
    _fully_connected(context, node, context.value(node), weights, bias, alpha)


@handles("MatMul")
def matmul(context: Context, node: onnx_ir.Node) -> None:
    """A B with A computed and B a constant matrix. int8 when B is symmetric (per tensor or per output column) and the
    output is quantized; an addition of a constant a column right behind it becomes the bias."""
    weights = context.constant(node, 1)
    if len(weights.shape) < 2 or any(size != 1 for size in weights.shape[:-2]):
        raise NodeError(f"B of shape {list(weights.shape)}")
    value = context.value(node)
    if len(weights.shape) > max(2, len(value.shape)):
        raise NodeError(f"A of shape {list(value.shape)} and B of shape {list(weights.shape)}")
    order = (len(weights.shape) - 1, len(weights.shape) - 2, *range(len(weights.shape) - 2))
    moved = weights.transpose(order)
    rows, columns = weights.shape[-1], weights.shape[-2]

    def flat(part: np.ndarray | None) -> np.ndarray | None:
        return part if part is None or part.size == 1 else part.reshape(part.shape[:2])

    matrix = Constant(moved.values.reshape(rows, columns), flat(moved.scale), flat(moved.zero_point))
    _fully_connected(context, node, value, matrix, None, 1.0)


def _fully_connected(
    context: Context, node: onnx_ir.Node, value: Value, weights: Constant, bias: Constant | None, alpha: float
) -> None:
    """weights [O, I]; input [..., I] -> [..., O]."""
    columns = value.shape[-1]
    if len(value.shape) < 2 or weights.shape[1] != columns:
        raise NodeError(f"input {list(value.shape)} and weights {list(weights.shape)} (columns first)")
    shape = (*value.shape[:-1], weights.shape[0])
    sink = follow(context, node, "offset" if weights.quantized else "affine", shape, len(shape) - 1)
    units = context.units(value)
    if units is not None and sink.units is not None and weights.quantized and alpha > 0:
        made = integer_weights(weights, bias, sink.affine[1], units, sink.units, single=True, gain=alpha)
        out_units = sink.units
    else:
        real = np.zeros(weights.shape[0]) if bias is None else bias.real().reshape(-1)
        scaled = Constant(weights.real() * alpha)
        made, out_units = real_weights(scaled, real, sink.affine), None
        value = context.real(value, node)
    source, order, result = _rows(context, value, shape, node)
    stored = (1, shape[-1]) if len(shape) == 2 and shape[0] == 1 else (1, 1, int(np.prod(shape[:-1])), shape[-1])
    out = context.tensor(sink.value, stored, out_units)
    context.layers.append(
        FullyConnected(
            context.name_of(node), (source,), out.name, nodes=sink.nodes,
            weights=np.ascontiguousarray(made.weights[:, order]), bias=made.bias, requant=made.requant,
            clamp=sink.clamp(out), weight_bits=made.bits,
        )
    )  # fmt: skip
    sink.bind(context, out, result)


def _rows(context: Context, value: Value, shape: tuple[int, ...], node: onnx_ir.Node) -> tuple[str, np.ndarray, View]:
    """(input tensor, order of the weights' columns, view of the output).

    Elements of the last axis may lie in any order as long as they are innermost: the weights follow.
    """
    found = value.view
    name = value.tensor
    last = [index for index, axis in enumerate(found.axes_of_factors()) if axis == len(found.shape) - 1]
    if set(found.order[len(found.order) - len(last) :]) != set(last):
        plain = view(value.shape, range(len(value.shape)))
        name = context.arrange(value, plain, (1, 1, int(np.prod(shape[:-1])), value.shape[-1]), node)
        found = plain
        last = [index for index, axis in enumerate(found.axes_of_factors()) if axis == len(found.shape) - 1]
    inner = [index - (last[0] if last else 0) for index in found.order[len(found.order) - len(last) :]]
    columns = np.arange(value.shape[-1]).reshape(found.factors[-1]).transpose(inner).reshape(-1)
    rows = found.order[: len(found.order) - len(last)]
    outer = (shape[-1],) if shape[-1] > 1 else ()
    order = (*rows, len(rows)) if outer else rows
    return name, columns, View(shape, (*found.factors[:-1], outer), order)
