"""Emitters of element-wise layers, softmax and the way between float32 and int8."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgescale.lower.fixedpoint import apply_requant
from edgescale.lower.program import (
    Add,
    Dequantize,
    Lut,
    Mul,
    Quantize,
    Rescale,
    Softmax,
    Unary,
)
from edgescale_c import emit_dsp, emit_mve
from edgescale_c.constants import Table, float_literal, int_literal
from edgescale_c.emission import C_TYPES, REGISTRY, LayerCode, Scope
from edgescale_c.requant import clamp_of, rescaled_bound

_S8 = ("es_elementwise_s8.h",)
_F32 = ("es_elementwise_f32.h",)


def _span(zero_point: int) -> int:
    """Greatest |q - zero_point| of int8 q."""
    return max(127 - zero_point, 128 + zero_point)


def _second(scope: Scope, constant: Table | None, constant_zero_point: int) -> tuple[str, int, tuple[int, ...]]:
    """C expression, zero-point and shape of the second operand of Add or Mul."""
    if constant is None:
        if len(scope.layer.inputs) != 2:
            raise scope.refuse(f"needs two operands, found {len(scope.layer.inputs)}")
        return scope.read(1), scope.source(1).zero_point, scope.source(1).shape
    wanted = "float32" if scope.is_float else "int8"
    if str(constant.dtype) != wanted:
        raise scope.refuse(f"needs a constant operand of {wanted}, found {constant.dtype}")
    return scope.constant("operand", constant), constant_zero_point, constant.shape


def broadcast(scope: Scope, shape: tuple[int, ...]) -> tuple[int, int, str]:
    """(rows, channels, ES_OPERAND_ kind) under which kernels see output and second operand."""
    out = scope.out
    size = int(np.prod(shape)) if shape else 1
    if scope.source().size != out.size:
        raise scope.refuse(f"the first operand must have the output's size, found {list(scope.source().shape)}")
    if size == out.size:
        return 1, out.size, "ES_OPERAND_FULL"
    if size == 1:
        return 1, out.size, "ES_OPERAND_SCALAR"
    if size == out.shape[-1] == shape[-1]:
        return out.size // size, size, "ES_OPERAND_CHANNEL"
    raise scope.refuse(
        "the second operand must have the output's shape, one value a channel or a single one, "
        f"found {list(shape)} for {list(out.shape)}"
    )


@REGISTRY.register(Add)
def add(scope: Scope, layer: Add) -> LayerCode:
    """Sum or difference."""
    second, zero_point, shape = _second(scope, layer.constant, layer.constant_zero_point)
    rows, channels, kind = broadcast(scope, shape)
    sign = "-1" if layer.subtract else "1"
    operands = f"{scope.read()}, {second}, {scope.write()}"
    if scope.is_float:
        clamp = scope.clamp_f32(layer.clamp)
        call = f"es_add_f32({operands}, {rows}, {channels}, {kind}, {sign}.0f, {clamp});"
        return LayerCode((call,), "add_f32", _F32)
    if scope.choice.name:
        emit = emit_mve.add if scope.choice.family == "mve" else emit_dsp.add
        return emit(scope, layer)
    if layer.rescale is None:
        raise scope.refuse("int8 needs a rescaling of its operands, found none")
    spans = [_span(zero) << layer.left_shift for zero in (scope.source().zero_point, zero_point)]
    if max(spans) >= 2**31:
        raise scope.refuse(f"left shift {layer.left_shift} leaves 32 bits")
    total = sum(rescaled_bound(q, span) for q, span in zip(layer.rescale, spans, strict=True))
    if total >= 2**31:
        raise scope.refuse(f"the sum of the rescaled operands must stay below 2^31, it may reach {total}")
    body = (
        f"const es_binary_s8 p = {{{rows}, {channels}, {kind}, {scope.source().zero_point}, {zero_point}}};",
        scope.requant(layer.rescale[0], spans[0], layer.clamp, "qa"),
        scope.requant(layer.rescale[1], spans[1], layer.clamp, "qb"),
        scope.requant(layer.requant, total, layer.clamp),
        f"es_add_s8({operands}, &p, {layer.left_shift}, {sign}, &qa, &qb, &q);",
    )
    return LayerCode(body, "add_s8", _S8)


@REGISTRY.register(Mul)
def mul(scope: Scope, layer: Mul) -> LayerCode:
    """Product."""
    second, zero_point, shape = _second(scope, layer.constant, layer.constant_zero_point)
    rows, channels, kind = broadcast(scope, shape)
    operands = f"{scope.read()}, {second}, {scope.write()}"
    if scope.is_float:
        call = f"es_mul_f32({operands}, {rows}, {channels}, {kind}, {scope.clamp_f32(layer.clamp)});"
        return LayerCode((call,), "mul_f32", _F32)
    bound = _span(scope.source().zero_point) * _span(zero_point)
    rows, channels = _channel_rows(
        scope, layer.requant is not None and layer.requant.multiplier.size > 1, rows, channels
    )
    binary = f"{{{rows}, {channels}, {kind}, {scope.source().zero_point}, {zero_point}}}"
    if scope.choice.name:
        emit = emit_mve.mul if scope.choice.family == "mve" else emit_dsp.mul
        return emit(scope, layer, operands, binary)
    body = (
        f"const es_binary_s8 p = {binary};",
        scope.requant(layer.requant, bound, layer.clamp),
        f"es_mul_s8({operands}, &p, &q);",
    )
    return LayerCode(body, "mul_s8", _S8)


def _channel_rows(scope: Scope, per_channel: bool, rows: int, channels: int) -> tuple[int, int]:
    """Rows of real channels where tables hold an entry a channel, else as given."""
    depth = scope.out.shape[-1]
    return (scope.out.size // depth, depth) if per_channel else (rows, channels)


@REGISTRY.register(Lut)
def lut(scope: Scope, layer: Lut) -> LayerCode:
    """Table look-up; the table is stored in the order of the input's bit pattern."""
    if scope.is_float or layer.table.shape != (256,):
        raise scope.refuse(f"needs an int8 tensor and a table of [256], found {list(layer.table.shape)}")
    return _tabled(scope, layer.table, "lut_s8")


def _tabled(scope: Scope, values: npt.NDArray[np.int8], kernel: str) -> LayerCode:
    """Look-up in `values`, int8 [256] from that of -128 on."""
    table = scope.constant("table", np.roll(values, 128).astype(np.int8))
    call = f"es_lut{scope.family}_s8({scope.read()}, {scope.write()}, {scope.out.size}, {table});"
    headers = (f"es_lut{scope.family}_s8.h",) if scope.family else _S8
    return LayerCode((call,), scope.choice.name or kernel, headers)


@REGISTRY.register(Rescale)
def rescale(scope: Scope, layer: Rescale) -> LayerCode:
    """int8 to int8 in other units."""
    if scope.is_float:
        raise scope.refuse("rescales int8 tensors only, found float32")
    if scope.choice.name:
        every = np.arange(-128, 128)[:, None] - scope.source().zero_point
        values = apply_requant(every, layer.requant)[:, 0] + scope.out.zero_point
        return _tabled(scope, np.clip(values, *clamp_of(layer.clamp)).astype(np.int8), "rescale_s8")
    rows, channels = _channel_rows(scope, layer.requant.multiplier.size > 1, 1, scope.out.size)
    zero_point = scope.source().zero_point
    body = (
        scope.requant(layer.requant, _span(zero_point), layer.clamp),
        f"es_rescale_s8({scope.read()}, {scope.write()}, {rows}, {channels}, {zero_point}, &q);",
    )
    return LayerCode(body, "rescale_s8", _S8)


@REGISTRY.register(Softmax)
def softmax(scope: Scope, layer: Softmax) -> LayerCode:
    """Softmax over the last axis."""
    channels = scope.out.shape[-1]
    rows = scope.out.size // channels
    if scope.is_float:
        call = f"es_softmax_f32({scope.read()}, {scope.write()}, {rows}, {channels});"
        return LayerCode((call,), "softmax_f32", _F32)
    if channels > 4095:
        raise scope.refuse(f"fixed-point softmax takes at most 4095 classes, found {channels}")
    if not 0 <= layer.input_left_shift <= 31:
        raise scope.refuse(f"fixed-point softmax needs a left shift in [0, 31], found {layer.input_left_shift}")
    # Differences of int8 values are at least -255; beyond the limit the shifted one would leave 32 bits.
    diff_min = max(layer.diff_min, -256, -(2**31 >> layer.input_left_shift))
    multiplier = int_literal(layer.input_multiplier)
    body = (
        f"const es_softmax p = {{{rows}, {channels}, {multiplier}, {layer.input_left_shift}, {diff_min}}};",
        f"es_softmax_s8({scope.read()}, {scope.write()}, &p);",
    )
    return LayerCode(body, "softmax_s8", ("es_softmax_s8.h",))


_FUNCTIONS = {
    "relu": ("ES_CLIP", 0),
    "clip": ("ES_CLIP", 2),
    "sigmoid": ("ES_SIGMOID", 0),
    "tanh": ("ES_TANH", 0),
    "exp": ("ES_EXP", 0),
    "hardswish": ("ES_HARDSWISH", 0),
    "hardsigmoid": ("ES_HARDSIGMOID", 2),
    "leakyrelu": ("ES_LEAKYRELU", 1),
    "elu": ("ES_ELU", 1),
}


@REGISTRY.register(Unary)
def unary(scope: Scope, layer: Unary) -> LayerCode:
    """Element-wise float32 function."""
    if not scope.is_float or layer.function not in _FUNCTIONS:
        raise scope.refuse(f"float32 functions are {', '.join(_FUNCTIONS)}; found {layer.function!r}")
    name, count = _FUNCTIONS[layer.function]
    if len(layer.parameters) != count:
        raise scope.refuse(f"{layer.function} takes {count} parameters, found {len(layer.parameters)}")
    given = (0.0, float("inf")) if layer.function == "relu" else (*layer.parameters, 0.0, 0.0)[:2]
    parameters = ", ".join(map(float_literal, given))
    call = f"es_unary_f32({scope.read()}, {scope.write()}, {scope.out.size}, {name}, {parameters});"
    return LayerCode((call,), f"{layer.function}_f32", _F32)


@REGISTRY.register(Quantize, Dequantize)
def convert(scope: Scope, layer: Quantize | Dequantize) -> LayerCode:
    """float32 to int8 and back."""
    down = isinstance(layer, Quantize)
    wanted = ("float32", "int8") if down else ("int8", "float32")
    source, out = scope.source(), scope.out
    if (source.dtype, out.dtype) != wanted or not {source.dtype, out.dtype} <= set(C_TYPES):
        raise scope.refuse(f"converts {wanted[0]} to {wanted[1]}, found {source.dtype} to {out.dtype}")
    units = out if down else source
    scale = float_literal(units.scale)
    if not np.isfinite(np.float32(units.scale)) or not np.float32(units.scale) > 0:
        raise scope.refuse(f"needs a finite scale above 0 in float32, found {units.scale}")
    name = "quantize_s8" if down else "dequantize_s8"
    call = f"es_{name}({scope.read()}, {scope.write()}, {out.size}, {scale}, {units.zero_point});"
    return LayerCode((call,), name, _F32)
