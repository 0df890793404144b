"""Real scales -> the integer parameters of a layer, as LiteRT's `Prepare` functions derive them."""

from __future__ import annotations

import math

import numpy as np

from edgescale.lower.context import Units
from edgescale.lower.errors import NodeError
from edgescale.lower.fixedpoint import INT32_MAX, quantize_multiplier, requant
from edgescale.lower.interpolated import SOFTMAX_SPAN
from edgescale.lower.program import LIMITS, Clamp, Requant, Tensor

ADD_LEFT_SHIFT: dict[str, int] = {"int8": 20, "int16": 15}
"""Headroom of Add: operands are widened by so many bits before they are rescaled."""

SPAN: dict[str, float] = {"int8": 255.0, "int16": 2.0**15}
"""The largest |q - zero_point|."""

SOFTMAX_UNITS: dict[str, Units] = {"int8": Units(1 / 256, -128), "int16": Units(2.0**-15, 0, "int16")}
"""Units of Softmax's output, fixed by its arithmetic."""

_SOFTMAX_INTEGER_BITS = 5


def add_rescaling(
    scale_a: float, scale_b: float, scale_out: float, dtype: str = "int8"
) -> tuple[int, tuple[Requant, Requant], Requant]:
    """(left_shift, operands' rescaling, output's rescaling) of integer Add and Sub.

    Operands become units of twice the larger scale, so that their sum cannot overflow.
    """
    twice_max = 2.0 * max(scale_a, scale_b)
    left = ADD_LEFT_SHIFT[dtype]
    # Each operand stays below half its span * 2^left, their sum below twice that.
    output = bounded(requant(twice_max / (2.0**left * scale_out)), SPAN[dtype] * 2**left)
    return left, (requant(scale_a / twice_max), requant(scale_b / twice_max)), output


def bounded(scaling: Requant, worst: float) -> Requant:
    """`scaling`, once an accumulator of magnitude `worst` is known to stay in int32 after its left shift.

    Raises NodeError otherwise.
    """
    left = max(0, int(scaling.shift.max()))
    if scaling.rounding == "double" and worst * 2.0**left > INT32_MAX:
        raise NodeError(
            f"a value of up to {worst:.3g} * 2^{left}",
            "accumulators must fit 32 bits (an output scale nearer to the data)",
        )
    return scaling


def mean_requant(scale_in: float, scale_out: float, count: int, dtype: str = "int8") -> Requant:
    """Rescaling of a sum over `count` positions to their mean.

    LiteRT folds 1 / count into the multiplier with as many bits as fit, so it may lie below 2^30.
    """
    multiplier, shift = quantize_multiplier(scale_in / scale_out)
    bits = min(count.bit_length() - 1, 32, 31 + shift)
    scaling = requant(1.0)
    scaling.multiplier[0] = (multiplier << bits) // count
    scaling.shift[0] = shift - bits
    return bounded(scaling, SPAN[dtype] * count)


def softmax_scaling(scale_in: float, beta: float = 1.0) -> tuple[int, int, int]:
    """(input_multiplier, input_left_shift, diff_min) of int8 Softmax: differences to the maximum become Q5.26."""
    real = min(beta * scale_in * 2.0 ** (31 - _SOFTMAX_INTEGER_BITS), float(INT32_MAX))
    multiplier, shift = quantize_multiplier(real)
    radius = (2.0**_SOFTMAX_INTEGER_BITS - 1) * 2.0 ** (31 - _SOFTMAX_INTEGER_BITS) / 2.0**shift
    return multiplier, shift, -math.floor(radius)


def interpolated_softmax_scaling(scale_in: float) -> tuple[int, int, int]:
    """(input_multiplier, shift, 0) of int16 Softmax: differences to the maximum in 65535ths of SOFTMAX_SPAN."""
    scaling = bounded(requant(scale_in / (SOFTMAX_SPAN / 65535.0)), 65535.0)
    return int(scaling.multiplier[0]), int(scaling.shift[0]), 0


def rescaling(scale_in: float, scale_out: float, dtype: str = "int8") -> Requant:
    """Units of `dtype` to others."""
    return bounded(requant(scale_in / scale_out), SPAN[dtype])


def activation_rescaling(scale_in: float, scale_out: float, dtype: str = "int8") -> Requant:
    """Units of `dtype` to others in a Relu or Clip of its own, where LiteRT divides the scales in float32."""
    return bounded(requant(float(np.float32(scale_in) / np.float32(scale_out))), SPAN[dtype])


def product_requant(scale_a: float, scale_b: float, scale_out: float, dtype: str = "int8") -> Requant:
    """Rescaling of the product of two integers of `dtype`; LiteRT's Mul computes the factor in float32."""
    factor = np.float32(scale_a) * np.float32(scale_b) / np.float32(scale_out)
    return bounded(requant(float(factor)), SPAN[dtype] ** 2)


def clamp_of(tensor: Tensor, low: float = -math.inf, high: float = math.inf) -> Clamp:
    """Real bounds in the units of `tensor`: q for integers (rounded half away, within its type), real for float32."""
    if tensor.dtype == "float32":
        return low, high
    least, most = LIMITS[tensor.dtype]

    def stored(real: float, unbounded: int) -> int:
        if math.isinf(real):
            return unbounded
        # LiteRT divides in float32 and rounds half away from zero.
        steps = math.floor(float(np.float32(abs(real)) / np.float32(tensor.scale)) + 0.5)
        return min(most, max(least, tensor.zero_point + (steps if real > 0 else -steps)))

    return stored(low, least), stored(high, most)
