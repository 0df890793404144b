"""Weights and biases of convolutions and fully connected layers: folding, integers, the rescaling factor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.lower.constants import Constant, Real
from edgescale.lower.context import Units
from edgescale.lower.errors import NodeError
from edgescale.lower.fixedpoint import requant, requant_wide
from edgescale.lower.program import Array, Requant
from edgescale.lower.sink import Affine

INT32_LIMIT = 2**31 - 1
WIDE_LIMIT = 2**47
"""What accumulators of int16 activations stay below, so that products with 15 bits fit 64."""


@dataclass(frozen=True)
class Weighted:
    """weights [O, ...] with the output channel first; bias [O]; requant None for float32; bits of a stored weight."""

    weights: Array
    bias: Array
    requant: Requant | None
    bits: int = 8


def real_weights(weights: Constant, bias: Real, affine: Affine) -> Weighted:
    """Float layer: factor * (w x + bias) + offset folded into weights [O, ...] and bias [O]."""
    factor, offset = affine
    shaped = factor.reshape(-1, *(1,) * (weights.values.ndim - 1))
    folded = (weights.real() * shaped).astype(np.float32)
    return Weighted(folded, (bias * factor + offset).astype(np.float32), None)


def integer_weights(
    weights: Constant,
    bias: Constant | None,
    offset: Real,
    source: Units,
    output: Units,
    *,
    single: bool,
    gain: float = 1.0,
) -> Weighted:
    """Integer layer: int8 weights [O, ...], bias in units of scale_x * scale_w (int32; int64 for int16 activations),
    rescaling a channel.

    offset: real addition to the bias [O]; gain > 0: factor on the weights. single: the rounding (see
    Requant) of a fully connected layer. Raises NodeError where an accumulator could leave its type.
    """
    integers, scales = weights.symmetric_int8(axis=0)
    # Scales stay float32, as files hold them.
    scales = (scales * gain).astype(np.float32).astype(np.float64)
    units = source[0] * scales
    exact = exact_bias(bias, units)
    if exact is not None and not np.any(offset):
        steps = exact.astype(np.float64)
    else:
        real = offset if bias is None else bias.real().reshape(-1) + offset
        largest = 2.0**40 if source.dtype == "int16" else 2.0**30
        integers, scales, steps = fit_bias(integers, scales, source[0], np.broadcast_to(real, scales.shape), largest)
    factors = source[0] * scales / output[0]
    if source.dtype == "int16":
        scaling = requant_wide(factors, "real" if single else "reduced")
        return Weighted(integers, check_wide_accumulator(integers, steps, factors, scaling), scaling)
    scaling = requant(factors, single=single)
    return Weighted(
        integers, check_accumulator(integers, steps, source[1], scaling), scaling, _stored_bits(weights, integers)
    )


def _stored_bits(weights: Constant, integers: npt.NDArray[np.int8]) -> int:
    """4 where the model's own type is as narrow and the integers, less their zero-point, are too; else 8."""
    narrow = str(weights.values.dtype) in ("int4", "uint4", "int2", "uint2")
    return 4 if narrow and integers.min(initial=0) >= -8 and integers.max(initial=0) <= 7 else 8


def exact_bias(bias: Constant | None, units: Real) -> npt.NDArray[np.int64] | None:
    """The integers of a bias that is already in `units`; None where it is not."""
    if bias is None or bias.scale is None:
        return None
    if not np.allclose(np.broadcast_to(bias.scale.reshape(-1), units.shape), units, rtol=1e-5, atol=0):
        return None
    zero = 0 if bias.zero_point is None else bias.zero_point
    return np.broadcast_to((bias.values.astype(np.int64) - zero).reshape(-1), units.shape)


def fit_bias(
    integers: npt.NDArray[np.int8], scales: Real, scale_in: float, real: Real, largest: float
) -> tuple[npt.NDArray[np.int8], Real, Real]:
    """Biases as integers; a channel whose bias would exceed `largest` gets coarser weights.

    That happens where all weights of a channel are (almost) zero, so that their scale says nothing.
    """
    steps = np.rint(real / (scale_in * scales))
    too_large = np.abs(steps) > largest
    if not too_large.any():
        return integers, scales, steps
    wider = np.where(too_large, np.abs(real) / (scale_in * largest), scales).astype(np.float32).astype(np.float64)
    ratio = (scales / wider).reshape(-1, *(1,) * (integers.ndim - 1))
    return np.rint(integers * ratio).astype(np.int8), wider, np.rint(real / (scale_in * wider))


def check_wide_accumulator(
    integers: npt.NDArray[np.int8], bias: Real, factors: Real, scaling: Requant
) -> npt.NDArray[np.int64]:
    """The bias as int64, once the worst accumulator of int16 activations is known to fit 47 bits, and what it is
    rescaled to 32."""
    sums = np.abs(integers.reshape(integers.shape[0], -1).astype(np.float64)).sum(axis=1)
    worst = sums * 2.0**15 + np.abs(bias)
    reach = worst * factors
    if np.any(worst >= WIDE_LIMIT) or np.any(reach >= INT32_LIMIT):
        channel = int(np.argmax(np.maximum(worst / WIDE_LIMIT, reach / INT32_LIMIT)))
        raise NodeError(
            f"channel {channel} may reach {worst[channel]:.3g}, rescaled {reach[channel]:.3g}",
            "accumulators of int16 activations must fit 47 bits, and 32 once rescaled (an output scale nearer to "
            "the data)",
        )
    if scaling.rounding == "reduced" and int(scaling.shift.max(initial=0)) > 7:
        raise NodeError(f"a factor of {factors.max():.3g}", "int16 convolutions rescale by factors below 128")
    return bias.astype(np.int64)


def check_accumulator(
    integers: npt.NDArray[np.int8], bias: Real, zero_in: int, scaling: Requant
) -> npt.NDArray[np.int32]:
    """The bias as int32, once the worst accumulator, shifted left where it must be, is known to fit int32."""
    span = max(127 - zero_in, 128 + zero_in)
    sums = np.abs(integers.reshape(integers.shape[0], -1).astype(np.float64)).sum(axis=1)
    worst = sums * span + np.abs(bias)
    left = np.where(scaling.rounding == "double", np.maximum(scaling.shift, 0), 0)
    if np.any(worst * 2.0**left > INT32_LIMIT):
        channel = int(np.argmax(worst * 2.0**left))
        raise NodeError(
            f"channel {channel} may reach {worst[channel]:.3g} * 2^{int(np.broadcast_to(left, worst.shape)[channel])}",
            "accumulators must fit 32 bits (a smaller layer, or an output scale nearer to the data)",
        )
    return bias.astype(np.int32)
