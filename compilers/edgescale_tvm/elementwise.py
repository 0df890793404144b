"""Layers that work element by element, or only move elements, as TVM tensor expressions.

Every function takes the layer, its inputs as tensors of TVM's `te`, their descriptions and that of the output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.lower.program import (
    LIMITS,
    Add,
    Clamp,
    Concat,
    Dequantize,
    Layer,
    Lut,
    Mean,
    Mul,
    Pad,
    Quantize,
    Requant,
    Rescale,
    Slice,
    Tensor,
    Transpose,
    Unary,
)
from edgescale_tvm.arithmetic import Expr, Factors, clip, constant, factors_of, scaled, stored, stored_real, wide

Tensors = list[Any]


def constants(layer: Layer) -> list[npt.NDArray[np.generic]]:
    """What a layer's expression takes behind its inputs: an operand or table, then factors a channel."""
    found: list[Any] = []
    if isinstance(layer, (Add, Mul)) and layer.constant is not None:
        found.append(layer.constant)
    if isinstance(layer, Lut):
        found.append(layer.table)
    if isinstance(layer, (Mul, Rescale, Mean)):
        found += factors_of(layer.requant)
    return [np.ascontiguousarray(value) for value in found]


def _pair(layer: Add | Mul, inputs: Tensors, tensors: list[Tensor]) -> Any:
    """Function from output indices to both operands and the second one's zero-point."""
    first, second = inputs[:2]
    zero = layer.constant_zero_point if layer.constant is not None else tensors[1].zero_point
    shape = [int(size) for size in second.shape]
    if int(np.prod(shape)) == 1:
        return lambda *at: (first(*at), second(*([0] * len(shape)))), zero
    # Missing axes lie in front, but for the batch: one value a channel, or whole rows.
    return lambda *at: (first(*at), second(*_broadcast(shape, at))), zero


def _broadcast(shape: list[int], at: tuple[Expr, ...]) -> list[Expr]:
    used = at[len(at) - len(shape) :]
    return [0 if size == 1 else index for size, index in zip(shape, used, strict=True)]


def add(layer: Add, inputs: Tensors, tensors: list[Tensor], out: Tensor) -> Any:
    """a + b or a - b."""
    from tvm import te

    operands, zero = _pair(layer, inputs, tensors)
    if out.dtype == "float32":

        def real(*at: Expr) -> Expr:
            a, b = operands(*at)
            return stored_real(a - b if layer.subtract else a + b, layer.clamp)

        return te.compute(out.shape, real, name="add")
    rescale, requant = layer.rescale, layer.requant
    if rescale is None or requant is None:
        raise ValueError(f"Add layer {layer.name} on integer tensors has no rescaling")

    def integer(*at: Expr) -> Expr:
        a, b = operands(*at)
        left = constant(layer.left_shift)
        a = scaled((wide(a) - constant(tensors[0].zero_point)) << left, rescale[0])
        b = scaled((wide(b) - constant(zero)) << left, rescale[1])
        return stored(scaled(a - b if layer.subtract else a + b, requant), layer.clamp, out)

    return te.compute(out.shape, integer, name="add")


def mul(layer: Mul, inputs: Tensors, tensors: list[Tensor], out: Tensor) -> Any:
    """a * b."""
    from tvm import te

    operands, zero = _pair(layer, inputs, tensors)
    if out.dtype == "float32":

        def real(*at: Expr) -> Expr:
            a, b = operands(*at)
            return stored_real(a * b, layer.clamp)

        return te.compute(out.shape, real, name="mul")
    requant = layer.requant
    if requant is None:
        raise ValueError(f"Mul layer {layer.name} on integer tensors has no requantization")

    def integer(*at: Expr) -> Expr:
        a, b = operands(*at)
        product = (wide(a) - constant(tensors[0].zero_point)) * (wide(b) - constant(zero))
        return stored(scaled(product, requant, inputs[2:], at[-1]), layer.clamp, out)

    return te.compute(out.shape, integer, name="mul")


def lut(layer: Lut, inputs: Tensors, tensors: list[Tensor], out: Tensor) -> Any:
    """table[q + 128]; the table is the second input."""
    from tvm import te

    x, table = inputs
    return te.compute(out.shape, lambda *at: table(x(*at).astype("int32") + 128), name="lut")


def rescale(layer: Rescale, inputs: Tensors, tensors: list[Tensor], out: Tensor) -> Any:
    """Integers in other units."""
    return _rescaled(inputs[0], tensors[0], layer.requant, layer.clamp, out, inputs[1:])


def _rescaled(x: Any, source: Tensor, requant: Requant, clamp: Clamp, out: Tensor, factors: Factors = ()) -> Any:
    from tvm import te

    def value(*at: Expr) -> Expr:
        return stored(scaled(wide(x(*at)) - constant(source.zero_point), requant, factors, at[-1]), clamp, out)

    return te.compute(x.shape, value, name="rescale")


def quantize(layer: Quantize, inputs: Tensors, tensors: list[Tensor], out: Tensor) -> Any:
    """float32 -> integers: half to even, saturated; NaN becomes the zero-point."""
    from tvm import te, tirx

    low, high = LIMITS[out.dtype]

    def value(*at: Expr) -> Expr:
        x = inputs[0](*at)
        steps = tirx.nearbyint(x / tirx.const(float(np.float32(out.scale)), "float32"))
        bounded = clip(steps, tirx.const(-1e9, "float32"), tirx.const(1e9, "float32"))
        known = tirx.Select(tirx.isnan(x), tirx.const(0.0, "float32"), bounded)
        whole = known.astype("int32") + tirx.const(out.zero_point, "int32")
        return clip(whole, tirx.const(low, "int32"), tirx.const(high, "int32")).astype(out.dtype)

    return te.compute(out.shape, value, name="quantize")


def dequantize(layer: Dequantize, inputs: Tensors, tensors: list[Tensor], out: Tensor) -> Any:
    """scale * (q - zero_point)."""
    from tvm import te, tirx

    source = tensors[0]
    scale = float(np.float32(source.scale))

    def value(*at: Expr) -> Expr:
        centred = inputs[0](*at).astype("int32") - tirx.const(source.zero_point, "int32")
        return centred.astype("float32") * tirx.const(scale, "float32")

    return te.compute(out.shape, value, name="dequantize")


def unary(layer: Unary, inputs: Tensors, tensors: list[Tensor], out: Tensor) -> Any:
    """Element-wise float32 function."""
    from tvm import te

    return te.compute(
        out.shape, lambda *at: _FUNCTIONS[layer.function](inputs[0](*at), *layer.parameters), name="unary"
    )


def _real(value: float) -> Expr:
    from tvm import tirx

    return tirx.const(float(value), "float32")


def _relu(x: Expr) -> Expr:
    from tvm import te

    return te.max(x, _real(0))


def _clip(x: Expr, low: float, high: float) -> Expr:
    return stored_real(x, (low, high))


def _sigmoid(x: Expr) -> Expr:
    from tvm import tirx

    e = tirx.exp(tirx.Select(x < _real(0), x, _real(0) - x))
    return tirx.Select(x >= _real(0), _real(1) / (_real(1) + e), e / (_real(1) + e))


def _tanh(x: Expr) -> Expr:
    # By exp of what is negative: exact at both ends, and no cancellation that 1e-6 of 1 would show.
    from tvm import tirx

    magnitude = tirx.Select(x < _real(0), _real(0) - x, x)
    e = tirx.exp(magnitude * _real(-2))
    value = (_real(1) - e) / (_real(1) + e)
    return tirx.Select(x < _real(0), _real(0) - value, value)


def _exp(x: Expr) -> Expr:
    from tvm import tirx

    return tirx.exp(x)


def _hard_sigmoid(x: Expr, alpha: float, beta: float) -> Expr:
    return stored_real(x * _real(alpha) + _real(beta), (0.0, 1.0))


def _leaky_relu(x: Expr, alpha: float) -> Expr:
    from tvm import tirx

    return tirx.Select(x < _real(0), x * _real(alpha), x)


def _elu(x: Expr, alpha: float) -> Expr:
    from tvm import te, tirx

    return tirx.Select(x < _real(0), _real(alpha) * (tirx.exp(te.min(x, _real(0))) - _real(1)), x)


_FUNCTIONS: dict[str, Any] = {
    "relu": _relu,
    "clip": _clip,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "exp": _exp,
    "hardswish": lambda x: x * stored_real(x / _real(6) + _real(0.5), (0.0, 1.0)),
    "hardsigmoid": _hard_sigmoid,
    "leakyrelu": _leaky_relu,
    "elu": _elu,
}


def concat(layer: Concat, inputs: Tensors, tensors: list[Tensor], out: Tensor) -> Any:
    """Concatenation; inputs of other units are rescaled."""
    from tvm import topi

    parts = [
        x if requant is None else _rescaled(x, tensor, requant, LIMITS[out.dtype], out)
        for x, tensor, requant in zip(inputs, tensors, layer.rescale, strict=True)
    ]
    return topi.concatenate(parts, axis=layer.axis)


def pad(layer: Pad, inputs: Tensors, tensors: list[Tensor], out: Tensor) -> Any:
    """Constant padding."""
    from tvm import te, tirx

    x = inputs[0]
    filling = float(layer.value) if out.dtype == "float32" else int(layer.value)
    fill = tirx.const(filling, out.dtype)

    def value(*at: Expr) -> Expr:
        inside, moved = [], []
        for index, before, size in zip(at, layer.before, x.shape, strict=True):
            inside += [index >= before, index < before + size]
            moved.append(index - before)
        return tirx.if_then_else(tirx.all(*inside), x(*moved), fill)

    return te.compute(out.shape, value, name="pad")


def transpose(layer: Transpose, inputs: Tensors, tensors: list[Tensor], out: Tensor) -> Any:
    """out = in.transpose(permutation)."""
    from tvm import te

    inverse = [int(axis) for axis in np.argsort(layer.permutation)]
    return te.compute(out.shape, lambda *at: inputs[0](*(at[axis] for axis in inverse)), name="transpose")


def cut(layer: Slice, inputs: Tensors, tensors: list[Tensor], out: Tensor) -> Any:
    """Every step-th element from `begin` on."""
    from tvm import te

    def value(*at: Expr) -> Expr:
        return inputs[0](*(b + i * s for b, i, s in zip(layer.begin, at, layer.step, strict=True)))

    return te.compute(out.shape, value, name="slice")
