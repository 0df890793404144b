"""Reference of element-wise layers: Add, Mul, Lut, Unary, Rescale, Quantize, Dequantize."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgescale.lower import interpolated
from edgescale.lower.fixedpoint import apply_requant
from edgescale.lower.program import (
    LIMITS,
    Add,
    Array,
    Clamp,
    Dequantize,
    InterpolatedLut,
    Lut,
    Mul,
    Quantize,
    Rescale,
    Tensor,
    Unary,
)

Real = npt.NDArray[np.floating]


def _operand(layer: Add | Mul, inputs: list[Array], tensors: list[Tensor], rank: int) -> tuple[Array, int]:
    """Second operand with its zero-point, shaped to broadcast against [n, *shape[1:]] of `rank` axes."""
    if layer.constant is not None:
        value: Array = layer.constant
        if value.ndim < rank and value.size > 1:
            value = value.reshape((1,) * (rank - value.ndim) + value.shape)
        return value, layer.constant_zero_point
    second = inputs[1]
    if second.ndim < rank:
        # One value a channel, or one in all, for each sample.
        second = second.reshape(second.shape[0], *(1,) * (rank - 2), -1)
    return second, tensors[1].zero_point


def add(layer: Add, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    """a + b or a - b (LiteRT reference `Add`, `Sub`)."""
    second, second_zero = _operand(layer, inputs, tensors, inputs[0].ndim)
    sign = -1 if layer.subtract else 1
    if out.dtype == "float32":
        total = inputs[0].astype(np.float32) + np.float32(sign) * second.astype(np.float32)
        return _clip_real(total, layer.clamp)
    if layer.rescale is None or layer.requant is None:
        raise ValueError(f"Add layer {layer.name} on integer tensors has no rescaling")
    a = (inputs[0].astype(np.int64) - tensors[0].zero_point) << layer.left_shift
    b = (second.astype(np.int64) - second_zero) << layer.left_shift
    raw = apply_requant(a, layer.rescale[0]) + sign * apply_requant(b, layer.rescale[1])
    return _clip_integer(apply_requant(raw, layer.requant) + out.zero_point, layer.clamp, out)


def mul(layer: Mul, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    """a * b (LiteRT reference `Mul`)."""
    second, second_zero = _operand(layer, inputs, tensors, inputs[0].ndim)
    if out.dtype == "float32":
        return _clip_real(inputs[0].astype(np.float32) * second.astype(np.float32), layer.clamp)
    if layer.requant is None:
        raise ValueError(f"Mul layer {layer.name} on integer tensors has no requantization")
    product = (inputs[0].astype(np.int64) - tensors[0].zero_point) * (second.astype(np.int64) - second_zero)
    return _clip_integer(apply_requant(product, layer.requant) + out.zero_point, layer.clamp, out)


def lut(layer: Lut, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    """table[q + 128]."""
    result: Array = layer.table[inputs[0].astype(np.int16) + 128]
    return result


def interpolated_lut(layer: InterpolatedLut, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    """sigmoid or tanh of int16 (LiteRT reference `Logistic`, `Tanh`)."""
    argument = interpolated.scaled(inputs[0].astype(np.int64), layer.multiplier, layer.shift)
    function = interpolated.sigmoid if layer.function == "sigmoid" else interpolated.tanh
    return np.clip(function(argument), *LIMITS["int16"]).astype(np.int16)


def rescale(layer: Rescale, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    """Integers in other units or of the other type (LiteRT `Requantize`)."""
    centred = inputs[0].astype(np.int64) - tensors[0].zero_point
    return _clip_integer(apply_requant(centred, layer.requant) + out.zero_point, layer.clamp, out)


def quantize(layer: Quantize, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    """float32 -> int8 or int16."""
    return quantize_real(inputs[0], out.scale, out.zero_point, out.dtype)


def dequantize(layer: Dequantize, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    """int8 or int16 -> float32."""
    return dequantize_real(inputs[0], tensors[0].scale, tensors[0].zero_point)


def quantize_real(x: Array, scale: float, zero_point: int, dtype: str = "int8") -> Array:
    """round_half_even(x / scale) + zero_point, saturated to `dtype`; the quotient in float32, as ONNX defines it.

    NaN becomes zero_point.
    """
    steps = np.rint(x.astype(np.float32, copy=False) / np.float32(scale))
    steps = np.nan_to_num(steps, nan=0.0, posinf=1e9, neginf=-1e9)
    stored: Array = np.clip(steps.astype(np.float64) + zero_point, *LIMITS[dtype]).astype(dtype)
    return stored


def dequantize_real(q: Array, scale: float, zero_point: int) -> npt.NDArray[np.float32]:
    """scale * (q - zero_point) in float32."""
    return (q.astype(np.int32) - zero_point).astype(np.float32) * np.float32(scale)


def unary(layer: Unary, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    """Element-wise float32 function."""
    return apply_function(layer.function, layer.parameters, inputs[0].astype(np.float32)).astype(np.float32)


def apply_function(function: str, parameters: tuple[float, ...], x: Real) -> Real:
    """The element-wise functions of Unary and Lut, in the precision of `x`.

    Parameters: clip (least, greatest); hardsigmoid (alpha, beta): max(0, min(1, alpha*x + beta));
    leakyrelu (alpha) and elu (alpha) for x < 0. The others take none.
    Raises ValueError for an unknown function.
    """
    if function not in FUNCTIONS:
        raise ValueError(f"unknown element-wise function {function!r}; known: {', '.join(FUNCTIONS)}")
    with np.errstate(over="ignore"):
        result: Real = FUNCTIONS[function](x, *parameters)
    return result


def _sigmoid(x: Real) -> Real:
    # The form that never overflows on either side.
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


FUNCTIONS: dict[str, Callable[..., Real]] = {
    "relu": lambda x: np.maximum(x, 0),
    "clip": lambda x, least, greatest: np.clip(x, least, greatest),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "exp": np.exp,
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "hardsigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "leakyrelu": lambda x, alpha: np.where(x < 0, alpha * x, x),
    "elu": lambda x, alpha: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x),
}
"""Name -> function(x, *parameters) of every function a Unary or Lut layer may hold."""


def _clip_integer(x: npt.NDArray[np.int64], clamp: Clamp, out: Tensor) -> Array:
    return np.clip(x, clamp[0], clamp[1]).astype(out.dtype)


def _clip_real(x: Array, clamp: Clamp) -> Array:
    result: Array = np.clip(x, clamp[0], clamp[1]).astype(np.float32)
    return result
