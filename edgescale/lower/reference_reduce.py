"""Reference of layers that combine positions: pools, Mean, Softmax."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgescale.lower import fixedpoint, interpolated
from edgescale.lower.program import LIMITS, Array, Mean, Pool2D, Softmax, Tensor
from edgescale.lower.reference_conv import patches


def pool2d(layer: Pool2D, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    """[n, H, W, C] -> [n, OH, OW, C] (LiteRT reference `MaxPool`, `AveragePool`)."""
    x = inputs[0]
    is_float = tensors[0].dtype == "float32"
    if layer.kind == "max":
        least = -np.inf if is_float else LIMITS[out.dtype][0]
        windows = _windows(layer, x, least, out)
        largest = windows.max(axis=(3, 4))
        result: Array = np.clip(largest, layer.clamp[0], layer.clamp[1]).astype(x.dtype)
        return result
    # What lies in the padding adds a real zero, or nothing; the divisor tells the two apart.
    zero = 0 if is_float else tensors[0].zero_point
    counts = _counts(layer, x.shape, out)
    if is_float:
        total = _windows(layer, x, 0.0, out).sum(axis=(3, 4), dtype=np.float32)
        mean = total / counts.astype(np.float32)
        return np.asarray(np.clip(mean, layer.clamp[0], layer.clamp[1]), np.float32)
    if layer.count_padding:
        sums = _windows(layer, x.astype(np.int32), zero, out).sum(axis=(3, 4), dtype=np.int64)
    else:
        sums = _windows(layer, x.astype(np.int32), 0, out).sum(axis=(3, 4), dtype=np.int64)
    rounded = divide_half_away(sums, counts)
    if layer.requant is not None:
        rounded = fixedpoint.apply_requant(rounded - zero, layer.requant) + out.zero_point
    return np.clip(rounded, layer.clamp[0], layer.clamp[1]).astype(out.dtype)


def _windows(layer: Pool2D, x: Array, fill: float, out: Tensor) -> Array:
    top, left, bottom, right = layer.padding
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    return patches(padded, layer.kernel, layer.stride, (1, 1), (out.shape[1], out.shape[2]))


def _counts(layer: Pool2D, shape: tuple[int, ...], out: Tensor) -> npt.NDArray[np.int64]:
    """Divisors [1, OH, OW, 1]."""
    if layer.count_padding:
        return np.full((1, 1, 1, 1), layer.kernel[0] * layer.kernel[1], np.int64)
    windows = _windows(layer, np.ones((1, *shape[1:3], 1), np.int64), 0, out)
    result: npt.NDArray[np.int64] = np.maximum(windows.sum(axis=(3, 4)), 1)
    return result


def divide_half_away(sums: npt.NDArray[np.int64], counts: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """sums / counts rounded half away from zero, as C's truncating division does after adding count / 2."""
    divisor = np.asarray(counts, np.int64)
    magnitude = (np.abs(sums) + divisor // 2) // divisor
    result: npt.NDArray[np.int64] = np.sign(sums) * magnitude
    return result


def mean(layer: Mean, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    """[n, H, W, C] -> mean over H and W, in the shape of `out`."""
    x = inputs[0]
    if out.dtype == "float32":
        average = x.mean(axis=(1, 2), dtype=np.float32)
        done: Array = np.clip(average, layer.clamp[0], layer.clamp[1]).astype(np.float32)
    else:
        if layer.requant is None:
            raise ValueError(f"Mean layer {layer.name} on integer tensors has no requantization")
        count = x.shape[1] * x.shape[2]
        sums = x.sum(axis=(1, 2), dtype=np.int64) - count * tensors[0].zero_point
        scaled = fixedpoint.apply_requant(sums, layer.requant) + out.zero_point
        done = np.clip(scaled, layer.clamp[0], layer.clamp[1]).astype(out.dtype)
    return done.reshape(x.shape[0], *out.shape[1:])


def softmax(layer: Softmax, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    """Softmax over the last axis (LiteRT reference `Softmax`)."""
    x = inputs[0]
    if out.dtype == "float32":
        shifted = np.exp(x - x.max(axis=-1, keepdims=True))
        result: Array = (shifted / shifted.sum(axis=-1, keepdims=True)).astype(np.float32)
        return result
    if out.dtype == "int16":
        return _softmax_int16(layer, x)
    difference = x.astype(np.int64) - x.max(axis=-1, keepdims=True)
    counted = difference >= layer.diff_min
    kept = np.where(counted, difference, 0)
    scaled = fixedpoint.saturating_rounding_doubling_high_mul(kept << layer.input_left_shift, layer.input_multiplier)
    exponentials = fixedpoint.exp_on_negative_values(scaled)
    # The sum runs in Q12.19, the exponentials are Q0.31.
    terms = np.where(counted, fixedpoint.rounding_divide_by_pot(exponentials, 12), 0)
    total = terms.sum(axis=-1, keepdims=True)
    # Leading zeros of a positive int32; frexp is exact here.
    headroom = 32 - np.frexp(total.astype(np.float64))[1].astype(np.int64)
    bits_over_unit = 12 - headroom
    reciprocal = fixedpoint.one_over_one_plus_x((total << headroom) - (1 << 31))
    product = fixedpoint.saturating_rounding_doubling_high_mul(reciprocal, exponentials)
    shifted_out = fixedpoint.rounding_divide_by_pot(product, bits_over_unit + 31 - 8)
    return np.where(counted, np.clip(shifted_out - 128, -128, 127), -128).astype(np.int8)


def _softmax_int16(layer: Softmax, x: Array) -> Array:
    """exp and 1 / (1 + x) by interpolation (LiteRT reference `SoftmaxInt16`)."""
    difference = x.astype(np.int64) - x.max(axis=-1, keepdims=True)
    scaled = fixedpoint.multiply_by_quantized_multiplier(difference, layer.input_multiplier, layer.input_left_shift)
    # [-65535, 0] stands for [-10, 0], and is moved to int16.
    position = np.clip(scaled + LIMITS["int16"][1], *LIMITS["int16"])
    exponentials = interpolated.interpolate(position, interpolated.exponential_table())
    total = exponentials.sum(axis=-1, keepdims=True)
    # Leading zeros of the sum in Q16.15; frexp is exact here.
    headroom = 32 - np.frexp(total.astype(np.float64))[1].astype(np.int64)
    mantissa = ((total << (headroom - 1)) + (1 << 13)) >> 14
    position = np.clip(mantissa - (1 << 15) - (1 << 16), *LIMITS["int16"])
    reciprocal = interpolated.interpolate(position, interpolated.reciprocal_table())
    right = 31 - headroom
    quotient = (exponentials * reciprocal + (np.int64(1) << (right - 1))) >> right
    result: Array = np.clip(quotient, 0, LIMITS["int16"][1]).astype(np.int16)
    return result
