"""Scales and zero-points: of activations from a range, of weights and biases from their values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

# Dead tensors (nothing but zeros in calibration) and tensors below float32's useful range get this range.
_DEAD_RANGE = (0.0, 1.0)
_SMALLEST_SCALE = 2.0**-96
# A bias takes at most half of an int32, so that the sum of products (up to 33,000 of 255 * 127) fits beside it.
BIAS_LIMIT = 2**30
# Below this part of the layer's largest weight scale a channel's own scale gains nothing: its contribution is far
# under one step of the output, whose scale all channels share.
_SMALLEST_PART = 2.0**-24


@dataclass(frozen=True)
class Units:
    """real = scale * (q - zero_point), q uint8; `scale` is exactly a float32 above 0."""

    scale: float
    zero_point: int

    def quantize(self, array: Array) -> npt.NDArray[np.uint8]:
        """Nearest q, ties to even, saturated to 0..255; the array's shape."""
        levels = np.rint(np.asarray(array, np.float64) / self.scale) + self.zero_point
        stored: npt.NDArray[np.uint8] = np.clip(levels, 0, 255).astype(np.uint8)
        return stored


def units_of(low: float, high: float) -> Units:
    """uint8 units that cover [low, high], extended to hold zero exactly.

    An empty range (a dead tensor: all zeros) gets [0, 1].
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 255 * _SMALLEST_SCALE:
        low, high = _DEAD_RANGE
    scale = float(np.float32((high - low) / 255))
    return Units(scale, int(np.clip(np.rint(-low / scale), 0, 255)))


@dataclass(frozen=True)
class Weights:
    """values: int8 of the weights' shape within [-127, 127]; scale: float32 [channels]; bias: int32 [channels]
    in units of input scale * scale, zero-point 0, or None."""

    values: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    bias: npt.NDArray[np.int32] | None
    bias_scale: npt.NDArray[np.float32]


def quantize_weights(weights: Array, bias: Array | None, axis: int, input_scale: float) -> Weights:
    """Per-channel symmetric int8 weights along `axis`, int32 bias.

    A channel's scale is its largest magnitude / 127, with three exceptions: a channel of zeros takes the layer's
    largest scale (1/127 where all are zero), a channel 2^24 times smaller than the largest takes the
    smallest scale that counts, and where the bias would pass 2^30 units the scale is raised until it fits
    (the channel is then all but constant, its weights below what its bias resolves).
    """
    exact = np.moveaxis(np.asarray(weights, np.float64), axis, 0).reshape(weights.shape[axis], -1)
    scale = np.abs(exact).max(axis=1, initial=0.0) / 127
    largest = float(scale.max(initial=0.0)) or 1 / 127
    scale = np.where(scale > 0, np.maximum(scale, largest * _SMALLEST_PART), largest)
    scale = np.maximum(scale, _SMALLEST_SCALE)
    if bias is not None:
        need = np.abs(np.asarray(bias, np.float64)) / (input_scale * BIAS_LIMIT)
        scale = np.maximum(scale, need * (1 + 2.0**-20))  # room for rounding the scale to float32
    stored = scale.astype(np.float32)
    spread = [1] * weights.ndim
    spread[axis] = -1
    ratio = np.asarray(weights, np.float64) / stored.astype(np.float64).reshape(spread)
    values = np.clip(np.rint(ratio), -127, 127).astype(np.int8)
    bias_scale = (np.float32(input_scale) * stored).astype(np.float32)
    quantized = None
    if bias is not None:
        exact_bias = np.rint(np.asarray(bias, np.float64) / bias_scale.astype(np.float64))
        quantized = np.clip(exact_bias, -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32)
    return Weights(values, stored, quantized, bias_scale)
