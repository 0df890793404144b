"""Reference of the layers that multiply by weights: convolutions and fully connected.

Integer sums run through BLAS in floating point, exactly: float32 where every partial sum is known to
stay below 2^24, else float64 (below 2^53 always, as accumulators fit 32 bits, those of int16 activations 47).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgescale.lower.fixedpoint import apply_requant
from edgescale.lower.program import (
    Array,
    Clamp,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Padding,
    Pair,
    Requant,
    Tensor,
)

# The largest |x - zero_point| of an int8 tensor, and of an int16 one, whose zero-point is 0.
_INT8_SPAN = 255
_INT16_SPAN = 2**15


def finish(accumulator: Array, bias: Array, requant: Requant | None, clamp: Clamp, out: Tensor) -> Array:
    """Accumulators [..., O] + bias [O] -> stored output: rescale, zero-point, clamp (integers) or clamp (float32)."""
    if out.dtype == "float32":
        total = accumulator.astype(np.float32) + bias.astype(np.float32)
        result: Array = np.clip(total, clamp[0], clamp[1]).astype(np.float32)
        return result
    if requant is None:
        raise ValueError(f"layer of {out.dtype} tensor {out.name} has no requantization")
    total64 = accumulator.astype(np.int64)
    total64 += bias.astype(np.int64)
    scaled = apply_requant(total64, requant)
    scaled += out.zero_point
    return np.clip(scaled, clamp[0], clamp[1]).astype(out.dtype)


def _centred(x: Array, source: Tensor, weight_sums: npt.NDArray[np.float64]) -> Array:
    """x - zero_point in the float type that keeps the layer's sums exact; `weight_sums` is sum |w| a channel."""
    if source.dtype == "float32":
        return x.astype(np.float32, copy=False)
    span = _INT16_SPAN if source.dtype == "int16" else _INT8_SPAN
    exact32 = float(weight_sums.max(initial=0.0)) * span < 2**24
    return x.astype(np.float32 if exact32 else np.float64) - source.zero_point


def _pad(x: Array, padding: Padding) -> Array:
    top, left, bottom, right = padding
    if not any(padding):
        return x
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))


def patches(x: Array, kernel: Pair, stride: Pair, dilation: Pair, output: Pair) -> Array:
    """View of padded x [n, H, W, C] as [n, OH, OW, KH, KW, C], no copy."""
    n, _, _, channels = x.shape
    sn, sh, sw, sc = x.strides
    return np.lib.stride_tricks.as_strided(
        x,
        (n, *output, *kernel, channels),
        (sn, sh * stride[0], sw * stride[1], sh * dilation[0], sw * dilation[1], sc),
        writeable=False,
    )


def conv2d(layer: Conv2D, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    """[n, H, W, I] -> [n, OH, OW, O]."""
    weights = layer.weights
    channels_out, height, width, per_group = weights.shape
    sums = np.abs(weights.astype(np.float64)).sum(axis=(1, 2, 3))
    x = _pad(_centred(inputs[0], tensors[0], sums), layer.padding)
    view = patches(x, (height, width), layer.stride, layer.dilation, (out.shape[1], out.shape[2]))
    n, group_out = x.shape[0], channels_out // layer.groups
    results = []
    for group in range(layer.groups):
        part = view[..., group * per_group : (group + 1) * per_group]
        columns = part.reshape(n * out.shape[1] * out.shape[2], height * width * per_group)
        kernel = weights[group * group_out : (group + 1) * group_out].reshape(group_out, -1)
        results.append(columns @ kernel.T.astype(x.dtype))
    accumulator = np.concatenate(results, axis=1) if len(results) > 1 else results[0]
    done = finish(accumulator, layer.bias, layer.requant, layer.clamp, out)
    return done.reshape(n, *out.shape[1:])


def depthwise_conv2d(layer: DepthwiseConv2D, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    """[n, H, W, C] -> [n, OH, OW, C * multiplier]."""
    height, width, _ = layer.weights.shape
    sums = np.abs(layer.weights.astype(np.float64)).sum(axis=(0, 1))
    x = _pad(_centred(inputs[0], tensors[0], sums), layer.padding)
    view = patches(x, (height, width), layer.stride, layer.dilation, (out.shape[1], out.shape[2]))
    accumulator = np.zeros((x.shape[0], *out.shape[1:]), x.dtype)
    for row in range(height):
        for column in range(width):
            tap = view[:, :, :, row, column, :]
            if layer.multiplier > 1:
                tap = np.repeat(tap, layer.multiplier, axis=3)
            accumulator += tap * layer.weights[row, column].astype(x.dtype)
    return finish(accumulator, layer.bias, layer.requant, layer.clamp, out)


def fully_connected(layer: FullyConnected, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    """[n, ..., I] of any shape holding rows of I -> [n, *out.shape[1:]], rows of O."""
    sums = np.abs(layer.weights.astype(np.float64)).sum(axis=1)
    x = _centred(inputs[0], tensors[0], sums)
    rows = x.reshape(-1, layer.weights.shape[1])
    accumulator = rows @ layer.weights.T.astype(x.dtype)
    done = finish(accumulator, layer.bias, layer.requant, layer.clamp, out)
    return done.reshape(x.shape[0], *out.shape[1:])
