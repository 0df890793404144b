"""Tables of 256 entries for element-wise int8 functions, equal to what LiteRT's reference kernels compute.

A table depends on nothing but the function and the units on both sides, so one formula serves every model,
wherever it came from. LiteRT has three:

- LOGISTIC, TANH (and EXP, ELU): the function of the dequantized value in float32, times the inverse of the output
  scale in float32, rounded half away from zero (`PopulateLookupTable`). Hard sigmoid, which LiteRT does not
  have, follows it.
- HARD_SWISH: 16-bit fixed point (`reference_ops::HardSwish`), where the output scale is at least 1/128 of the
  input's; else, where LiteRT refuses, the first formula. (An output scale above 256 times the input's shifts
  LiteRT's int16 by more than 15 bits, which C leaves undefined; here such an output is rounded correctly.)
- LEAKY_RELU: one 31-bit multiplier for each sign (`QuantizeLeakyRelu`); a negative alpha takes the first formula.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgescale.lower.fixedpoint import multiply_by_quantized_multiplier, quantize_multiplier, rounding_divide_by_pot
from edgescale.lower.reference_elementwise import apply_function

Units = tuple[float, int]
Table = npt.NDArray[np.int8]
Int = npt.NDArray[np.int64]

_INT16_MIN, _INT16_MAX = -(2**15), 2**15 - 1


def table_of(function: str, parameters: tuple[float, ...], source: Units, output: Units) -> Table:
    """int8 [256]: entry q + 128 is the function of int8 q in `source` units, in `output` units (scale, zero-point)."""
    centred = np.arange(-128, 128, dtype=np.int64) - source[1]
    scale_in, scale_out = np.float32(source[0]), np.float32(output[0])
    if function == "hardswish":
        steps = _hard_swish(centred, scale_in, scale_out)
        if steps is not None:
            return _saturated(steps, output[1])
    if function == "leakyrelu" and parameters[0] >= 0:
        return _saturated(_leaky_relu(centred, np.float32(parameters[0]), scale_in, scale_out), output[1])
    real = scale_in * centred.astype(np.float32)
    if function == "sigmoid":
        # 1 / (1 + exp(-x)), each step rounded to float32.
        with np.errstate(over="ignore"):
            made = np.float32(1) / (np.float32(1) + np.exp(-real.astype(np.float64)).astype(np.float32))
    else:
        # The function itself in float64 and its result in float32: what a correctly rounded function gives.
        made = apply_function(function, parameters, real.astype(np.float64)).astype(np.float32)
    quotient = (made * (np.float32(1) / scale_out)).astype(np.float64)
    return _saturated(np.sign(quotient) * np.floor(np.abs(quotient) + 0.5), output[1])


def _saturated(steps: npt.NDArray[np.generic], zero_point: int) -> Table:
    # Clipped before the conversion, as steps may be large or infinite.
    bounded = np.clip(steps.astype(np.float64), -1000, 1000) + zero_point
    table: Table = np.clip(bounded, -128, 127).astype(np.int8)
    return table


def _leaky_relu(centred: Int, alpha: np.float32, scale_in: np.float32, scale_out: np.float32) -> Int:
    identity = quantize_multiplier(float(scale_in / scale_out))
    sloped = quantize_multiplier(float(scale_in * alpha / scale_out))
    positive = multiply_by_quantized_multiplier(centred, *identity)
    return np.where(centred >= 0, positive, multiply_by_quantized_multiplier(centred, *sloped))


def _hard_swish(centred: Int, scale_in: np.float32, scale_out: np.float32) -> Int | None:
    """x * relu6(x + 3) / 6 in 16-bit fixed point; None where the output multiplier exceeds 1."""
    fine = np.float32(1 / 128) * scale_in
    multiplier, exponent = quantize_multiplier(float(fine / scale_out))
    if exponent > 0:
        return None
    slope, slope_exponent = quantize_multiplier(float(fine / np.float32(3 / 32768)))
    wide = centred << 7
    scaled = _high_mul16(wide, _to_int16(multiplier))
    # The gate: x on a scale where 3.0 is 2^15, saturated to [-1, 1), then moved to [0, 1).
    gate = wide if slope_exponent <= 0 else _saturate16(wide << (slope_exponent - 1))
    gate = _high_mul16(gate, _to_int16(slope))
    if slope_exponent > 0:
        gate = _saturate16(gate << 1)
    elif slope_exponent < 0:
        gate = rounding_divide_by_pot(gate, min(-slope_exponent, 31))
    gate = (gate + 2**15) >> 1
    product = gate * scaled
    # This product is cut towards zero, not rounded.
    cut = np.sign(product) * (np.abs(product) >> 15)
    return rounding_divide_by_pot(cut, min(-exponent, 31))


def _to_int16(multiplier: int) -> int:
    """A 31-bit multiplier as a 15-bit one."""
    return min((multiplier + 2**15) >> 16, _INT16_MAX)


def _high_mul16(value: Int, multiplier: int) -> Int:
    """High 16 bits of a doubled int16 product, halves up (gemmlowp `SaturatingRoundingDoublingHighMul`)."""
    return _saturate16((value * multiplier + 2**14) >> 15)


def _saturate16(value: Int) -> Int:
    return np.clip(value, _INT16_MIN, _INT16_MAX)
