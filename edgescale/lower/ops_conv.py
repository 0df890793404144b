"""Convolutions and batch normalization."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgescale.lower.constants import Constant, Real
from edgescale.lower.context import Context, Value
from edgescale.lower.errors import NodeError
from edgescale.lower.layout import View, channels_last, stored_shape, view
from edgescale.lower.program import Array, Conv2D, DepthwiseConv2D
from edgescale.lower.registry import handles
from edgescale.lower.sink import Sink, batch_normalization, follow
from edgescale.lower.weights import Weighted, integer_weights, real_weights
from edgescale.lower.windows import window_of

if TYPE_CHECKING:
    import onnx_ir


@handles("Conv")
def conv(context: Context, node: onnx_ir.Node) -> None:
    """Input [1, C, H, W] or [1, C, L]; constant weights and bias; any stride, padding (also auto_pad), dilation and
    groups. int8 when weights are symmetric (per tensor or per output channel) and the output is quantized."""
    value = context.value(node)
    weights = context.constant(node, 1)
    bias = context.optional(node, 2)
    rank = len(value.shape)
    if rank not in (3, 4) or len(weights.shape) != rank:
        raise NodeError(f"input {list(value.shape)} and weights {list(weights.shape)}")
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    channels_out, per_group = weights.shape[0], weights.shape[1]
    if value.shape[1] != per_group * groups or channels_out % groups:
        raise NodeError(f"input {list(value.shape)}, weights {list(weights.shape)} and {groups} groups")
    window = window_of(node, value.shape, weights.shape[2:])
    shape = (1, channels_out, *window.output[4 - rank :])
    sink = follow(context, node, "offset" if weights.quantized else "affine", shape, 1)
    made = _weighted(context, value, weights, bias, sink)
    source, out = _tensors(context, value, sink, shape, made, node)
    kernel = (weights.shape[2] if rank == 4 else 1, weights.shape[-1])
    name, clamp = context.name_of(node), sink.clamp(context.tensors[out])
    if groups > 1 and per_group == 1:
        taps: Array = np.ascontiguousarray(made.weights.reshape(channels_out, *kernel).transpose(1, 2, 0))
        context.layers.append(
            DepthwiseConv2D(
                name, (source,), out, nodes=sink.nodes, weights=taps, bias=made.bias, stride=window.stride,
                dilation=window.dilation, padding=window.padding, multiplier=channels_out // groups,
                requant=made.requant, clamp=clamp, weight_bits=made.bits,
            )
        )  # fmt: skip
    else:
        taps = np.ascontiguousarray(made.weights.reshape(channels_out, per_group, *kernel).transpose(0, 2, 3, 1))
        context.layers.append(
            Conv2D(
                name, (source,), out, nodes=sink.nodes, weights=taps, bias=made.bias, stride=window.stride,
                dilation=window.dilation, padding=window.padding, groups=groups, requant=made.requant, clamp=clamp,
                weight_bits=made.bits,
            )
        )  # fmt: skip
    sink.bind(context, context.tensors[out], view(shape, channels_last(rank)))


@handles("BatchNormalization")
def batch_norm(context: Context, node: onnx_ir.Node) -> None:
    """Input [1, C, ...] with constant scale, bias, mean and variance. Folded into a Conv in front of it; alone it
    becomes a 1x1 depthwise convolution, int8 between DequantizeLinear and QuantizeLinear."""
    value = context.value(node)
    if len(value.shape) not in (2, 3, 4):
        raise NodeError(f"input {list(value.shape)}")
    factor, offset = batch_normalization(context, node)
    if factor.size != value.shape[1]:
        raise NodeError(f"input {list(value.shape)} and {factor.size} scales")
    per_channel_affine(context, node, value, (factor, offset), 1)


def per_channel_affine(
    context: Context, node: onnx_ir.Node, value: Value, affine: tuple[Real, Real], axis: int
) -> None:
    """factor * x + offset along ONNX `axis` as a 1x1 depthwise convolution; int8 where input and output are.

    affine: (factor, offset), each [channels], or both [1] for any axis. The int8 weight of a channel is
    +-127 with a scale of its own, so the factor keeps the 31 bits of the multiplier.
    """
    sink = follow(context, node)
    units = context.units(value)
    if units is None or sink.units is None:
        value, units = context.real(value, node), None
    source, order = _innermost(context, value, axis if affine[0].size > 1 else None, node)
    stored = context.tensors[source].shape
    factor, offset = (np.broadcast_to(part, (stored[-1],)).astype(np.float64) for part in affine)
    if units is not None and sink.units is not None:
        steps = np.where(factor < 0, -127, 127).astype(np.int8)
        # A factor of zero still needs a scale for its bias.
        scales = np.maximum(np.abs(factor), 1e-30) / 127
        weights = Constant(steps.reshape(-1, 1), scales.reshape(-1, 1), np.zeros((1, 1), np.int64))
        made = integer_weights(weights, None, offset, units, sink.units, single=False)
    else:
        made = real_weights(Constant(factor.reshape(-1, 1)), np.zeros(factor.size), (np.ones(factor.size), offset))
    out = context.tensor(sink.value, stored, sink.units if made.requant is not None else None)
    context.layers.append(
        DepthwiseConv2D(
            context.name_of(node), (source,), out.name, nodes=sink.nodes, weights=made.weights.reshape(1, 1, -1),
            bias=made.bias, stride=(1, 1), dilation=(1, 1), padding=(0, 0, 0, 0), multiplier=1,
            requant=made.requant, clamp=sink.clamp(out),
        )
    )  # fmt: skip
    sink.bind(context, out, order)


def _innermost(context: Context, value: Value, axis: int | None, node: onnx_ir.Node) -> tuple[str, View]:
    """(stored rank-4 tensor whose last axis is ONNX `axis`, its order); without an axis, whatever is innermost."""
    current = context.tensors[value.tensor].shape
    order = value.view
    channels = current[-1] if axis is None else value.shape[axis]
    if axis is not None:
        owners = order.axes_of_factors()
        others = list(dict.fromkeys(owners[index] for index in order.order if owners[index] != axis))
        ones = [a for a, size in enumerate(value.shape) if size == 1 and a != axis]
        order = view(value.shape, [*ones, *others, axis])
    keep = order == value.view and len(current) == 4 and current[-1] == channels
    shape = current if keep else (1, 1, math.prod(value.shape) // channels, channels)
    return context.arrange(value, order, shape, node), order


def _weighted(context: Context, value: Value, weights: Constant, bias: Constant | None, sink: Sink) -> Weighted:
    source = context.units(value)
    if source is not None and weights.quantized and sink.units is not None:
        return integer_weights(weights, bias, sink.affine[1], source, sink.units, single=False)
    real = np.zeros(weights.shape[0]) if bias is None else bias.real().reshape(-1)
    return real_weights(weights, real, sink.affine)


def _tensors(
    context: Context, value: Value, sink: Sink, shape: tuple[int, ...], made: Weighted, node: onnx_ir.Node
) -> tuple[str, str]:
    """(stored input, new stored output) of a channels-last layer, both int8 or both float32."""
    if made.requant is None:
        value = context.real(value, node)
    source = context.spatial(value, node).name
    stored = stored_shape(shape, channels_last(len(shape)))
    return source, context.tensor(sink.value, stored, sink.units if made.requant is not None else None).name
