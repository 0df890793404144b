"""Real scales -> the integer parameters of a layer, as LiteRT's `Prepare` functions derive them."""

from __future__ import annotations

import math

import numpy as np

from edgescale.lower.errors import NodeError
from edgescale.lower.fixedpoint import INT32_MAX, quantize_multiplier, requant
from edgescale.lower.program import Clamp, Requant, Tensor

ADD_LEFT_SHIFT = 20
"""Headroom of int8 Add: operands are widened by 20 bits before they are rescaled."""

SOFTMAX_UNITS = (1 / 256, -128)
"""Scale and zero-point of int8 Softmax's output, fixed by its arithmetic."""

_SOFTMAX_INTEGER_BITS = 5


def add_rescaling(scale_a: float, scale_b: float, scale_out: float) -> tuple[int, tuple[Requant, Requant], Requant]:
    """(left_shift, operands' rescaling, output's rescaling) of int8 Add and Sub.

    Operands become units of twice the larger scale, so that their sum cannot overflow.
    """
    twice_max = 2.0 * max(scale_a, scale_b)
    # Each operand stays below 255 * 2^20 / 2, their sum below twice that.
    output = bounded(requant(twice_max / (2.0**ADD_LEFT_SHIFT * scale_out)), 255.0 * 2**ADD_LEFT_SHIFT)
    return ADD_LEFT_SHIFT, (requant(scale_a / twice_max), requant(scale_b / twice_max)), output


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


def mean_requant(scale_in: float, scale_out: float, count: int) -> Requant:
    """Rescaling of a sum over `count` positions to their mean.

    LiteRT folds 1 / count into the multiplier with as many bits as fit, so it may lie below 2^30.
    """
    multiplier, shift = quantize_multiplier(scale_in / scale_out)
    bits = min(count.bit_length() - 1, 32, 31 + shift)
    scaling = requant(1.0)
    scaling.multiplier[0] = (multiplier << bits) // count
    scaling.shift[0] = shift - bits
    return bounded(scaling, 255.0 * count)


def softmax_scaling(scale_in: float, beta: float = 1.0) -> tuple[int, int, int]:
    """(input_multiplier, input_left_shift, diff_min) of int8 Softmax: differences to the maximum become Q5.26."""
    real = min(beta * scale_in * 2.0 ** (31 - _SOFTMAX_INTEGER_BITS), float(INT32_MAX))
    multiplier, shift = quantize_multiplier(real)
    radius = (2.0**_SOFTMAX_INTEGER_BITS - 1) * 2.0 ** (31 - _SOFTMAX_INTEGER_BITS) / 2.0**shift
    return multiplier, shift, -math.floor(radius)


def rescaling(scale_in: float, scale_out: float) -> Requant:
    """int8 units to other int8 units."""
    return bounded(requant(scale_in / scale_out), 255.0)


def activation_rescaling(scale_in: float, scale_out: float) -> Requant:
    """int8 units to other int8 units in a Relu or Clip of its own, where LiteRT divides the scales in float32."""
    return bounded(requant(float(np.float32(scale_in) / np.float32(scale_out))), 255.0)


def product_requant(scale_a: float, scale_b: float, scale_out: float) -> Requant:
    """Rescaling of the product of two int8 values; LiteRT's Mul computes the factor in float32."""
    factor = np.float32(scale_a) * np.float32(scale_b) / np.float32(scale_out)
    return bounded(requant(float(factor)), 255.0**2)


def clamp_of(tensor: Tensor, low: float = -math.inf, high: float = math.inf) -> Clamp:
    """Real bounds in the units of `tensor`: q for int8 (rounded half away, within [-128, 127]), real for float32."""
    if tensor.dtype == "float32":
        return low, high

    def stored(real: float, unbounded: int) -> int:
        if math.isinf(real):
            return unbounded
        # LiteRT divides in float32 and rounds half away from zero.
        steps = math.floor(float(np.float32(abs(real)) / np.float32(tensor.scale)) + 0.5)
        return min(127, max(-128, tensor.zero_point + (steps if real > 0 else -steps)))

    return stored(low, -128), stored(high, 127)
