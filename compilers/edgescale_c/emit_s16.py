"""Emitters of layers that compute on int16 activations (zero-point 0), between int16 and int8, and to float32."""

from __future__ import annotations

import math

import numpy as np

from edgescale.lower import interpolated
from edgescale.lower.fixedpoint import reduced_multiplier
from edgescale.lower.program import (
    LIMITS,
    Add,
    Clamp,
    Conv2D,
    DepthwiseConv2D,
    Dequantize,
    FullyConnected,
    InterpolatedLut,
    Mean,
    Mul,
    Pool2D,
    Quantize,
    Requant,
    Rescale,
    Softmax,
)
from edgescale_c.constants import Table, float_literal, int_literal
from edgescale_c.dsp_int16 import packed
from edgescale_c.emission import REGISTRY, LayerCode, Scope
from edgescale_c.emit_elementwise import broadcast
from edgescale_c.geometry import window
from edgescale_c.requant import clamp_of, rescaled_bound

_ELEMENTWISE = ("es_elementwise_s16.h",)
_CONVOLUTION = ("es_conv2d_s16.h",)
_DSP = ("es_conv2d_dsp_s16.h",)
_SPAN = 2**15

_UNIT = Requant(np.array([2**30], np.int32), np.array([-1], np.int32))
"""What a pool without rescaling passes; never used in arithmetic."""


def _sums(scope: Scope, rows: Table, bias: Table) -> tuple[str, int]:
    """(initialiser of `es_weights_s16` behind the weights, whether sums may leave 32 bits); rows [O, taps]."""
    if rows.dtype != np.int8 or bias.dtype != np.int64 or bias.shape != (len(rows),):
        raise scope.refuse(
            f"int16 needs int8 weights and an int64 bias of [{len(rows)}], found {rows.dtype} and {bias.dtype} "
            f"{list(bias.shape)}"
        )
    reach = np.abs(rows.astype(np.int64)).sum(axis=1) * _SPAN + np.abs(bias)
    most = int(reach.max(initial=0))
    if most >= 2**47:
        raise scope.refuse(f"sums must stay below 2^47, this layer may reach {most}")
    if most >= 2**31:
        return f"NULL, {scope.constant('bias', bias)}", 1
    return f"{scope.constant('bias', bias.astype(np.int32))}, NULL", 0


def _reduced(scope: Scope, scaling: Requant | None, wide: int, clamp: Clamp) -> str:
    if scaling is None or scaling.rounding != "reduced":
        raise scope.refuse(f'int16 convolutions rescale by "reduced", found {scaling and scaling.rounding}')
    right = 15 - scaling.shift.astype(np.int64)
    multiplier = reduced_multiplier(scaling.multiplier)
    if ((right < 8) & (multiplier > 0)).any():
        raise scope.refuse(f"int16 convolutions shift to the left by at most 7, found {int(scaling.shift.max())}")
    # Below 2^-31 nothing is left of any sum.
    gone = (multiplier == 0) | (right > 46)
    multiplier, right = np.where(gone, 0, multiplier), np.where(gone, 46, right)
    return f"{_tables(scope, multiplier, right, multiplier.astype(np.int16))}, {wide}, {_bounds(clamp)}"


def _tables(scope: Scope, multiplier: Table, right: Table, stored: Table) -> str:
    """Tables of multipliers as they are stored ([O, ...]) and of right shifts, of one entry where all channels are
    alike, and whether they hold one a channel."""
    alike = bool((multiplier == multiplier[0]).all() and (right == right[0]).all())
    if alike:
        stored, right = stored[:1], right[:1]
    names = f"{scope.constant('multiplier', stored)}, {scope.constant('shift', right.astype(np.int8))}"
    return f"{names}, {int(not alike)}"


def _bounds(clamp: Clamp) -> str:
    low, high = clamp_of(clamp, "int16")
    return f"{low}, {high}"


@REGISTRY.register(Conv2D, DepthwiseConv2D, int16=True)
def convolution(scope: Scope, layer: Conv2D | DepthwiseConv2D) -> LayerCode:
    """Convolution of any stride, padding, dilation and groups, or depthwise with any multiplier."""
    _ = scope.is_float
    geometry = window(scope.program, layer)
    depthwise = isinstance(layer, DepthwiseConv2D)
    channels = layer.weights.shape[2 if isinstance(layer, DepthwiseConv2D) else 0]
    depth = geometry.in_c * layer.multiplier if isinstance(layer, DepthwiseConv2D) else channels
    fits = isinstance(layer, DepthwiseConv2D) or layer.weights.shape[3] * layer.groups == geometry.in_c
    if channels != geometry.out_c or channels != depth or not fits:
        raise scope.refuse(
            f"weights {list(layer.weights.shape)} do not fit {geometry.in_c} input and {geometry.out_c} output channels"
        )
    rows = layer.weights.reshape(-1, channels).T if depthwise else layer.weights.reshape(channels, -1)
    bias, wide = _sums(scope, rows, layer.bias)
    name, scratch, weights, header = "depthwise_s16" if depthwise else "conv2d_s16", "", layer.weights, _CONVOLUTION
    if scope.choice.name:
        name, scratch, weights, header = "conv2d_dsp_s16", f"{scope.scratch('int16_t')}, ", packed(rows), _DSP
    body = (
        f"const es_window g = {{{geometry.initialiser()}}};",
        f"const es_weights_s16 k = {{{scope.constant('weights', weights)}, {bias}}};",
        f"const es_reduced q = {{{_reduced(scope, layer.requant, wide, layer.clamp)}}};",
        f"es_{name}({scope.read()}, {scope.write()}, {scratch}&g, &k, &q);",
    )
    return LayerCode(body, scope.choice.name or name, header)


@REGISTRY.register(FullyConnected, int16=True)
def fully_connected(scope: Scope, layer: FullyConnected) -> LayerCode:
    """[rows, I] x [O, I] -> [rows, O]."""
    _ = scope.is_float
    outputs, inputs = layer.weights.shape
    rows, rest = divmod(scope.source().size, inputs)
    if rest or rows * outputs != scope.out.size:
        raise scope.refuse(
            f"weights [{outputs}, {inputs}] do not fit an input of {list(scope.source().shape)} "
            f"and an output of {list(scope.out.shape)}"
        )
    scaling = layer.requant
    if scaling is None or scaling.rounding != "real":
        raise scope.refuse(f'int16 fully connected layers rescale by "real", found {scaling and scaling.rounding}')
    bias, wide = _sums(scope, layer.weights, layer.bias)
    right = 53 - scaling.shift.astype(np.int64)
    multiplier = scaling.multiplier.astype(np.int64)
    # Beyond 2^-47 nothing is left of any sum.
    gone = (multiplier == 0) | (right > 100)
    if ((right < 32) & ~gone).any():
        raise scope.refuse(f"factors must stay below 2^21, found a shift of {int(scaling.shift.max())}")
    multiplier, right = np.where(gone, 0, multiplier), np.where(gone, 100, right)
    words = np.stack([multiplier & 0xFFFFFFFF, multiplier >> 32], axis=1).astype(np.uint32)
    dsp = bool(scope.choice.name)
    weights = scope.constant("weights", packed(layer.weights) if dsp else layer.weights)
    name = "fully_connected_dsp_s16" if dsp else "fully_connected_s16"
    body = (
        f"const es_weights_s16 k = {{{weights}, {bias}}};",
        f"const es_real_scale q = {{{_tables(scope, multiplier, right, words)}, {wide}, {_bounds(layer.clamp)}}};",
        f"es_{name}({scope.read()}, {scope.write()}, {rows}, {inputs}, {outputs}, &k, &q);",
    )
    return LayerCode(body, scope.choice.name or name, _DSP if dsp else ("es_fully_connected_s16.h",))


@REGISTRY.register(Add, Mul, int16=True)
def binary(scope: Scope, layer: Add | Mul) -> LayerCode:
    """Sum, difference or product."""
    _ = scope.is_float
    if layer.constant is None:
        second, shape = scope.read(1), scope.source(1).shape
    else:
        if layer.constant.dtype != np.int16:
            raise scope.refuse(f"needs a constant operand of int16, found {layer.constant.dtype}")
        second, shape = scope.constant("operand", layer.constant), layer.constant.shape
    rows, channels, kind = broadcast(scope, shape)
    declaration = f"const es_binary_s16 p = {{{rows}, {channels}, {kind}}};"
    operands = f"{scope.read()}, {second}, {scope.write()}, &p"
    if isinstance(layer, Mul):
        scaling = scope.requant(layer.requant, _SPAN * _SPAN, layer.clamp)
        return LayerCode((declaration, scaling, f"es_mul_s16({operands}, &q);"), "mul_s16", _ELEMENTWISE)
    span = _SPAN << layer.left_shift
    if layer.rescale is None or span >= 2**31:
        raise scope.refuse(f"needs a rescaling of its operands, widened within 32 bits; left shift {layer.left_shift}")
    total = sum(rescaled_bound(scaling, span) for scaling in layer.rescale)
    if total >= 2**31:
        raise scope.refuse(f"the sum of the rescaled operands must stay below 2^31, it may reach {total}")
    sign = "-1" if layer.subtract else "1"
    body = (
        declaration,
        scope.requant(layer.rescale[0], span, layer.clamp, "qa"),
        scope.requant(layer.rescale[1], span, layer.clamp, "qb"),
        scope.requant(layer.requant, total, layer.clamp),
        f"es_add_s16({operands}, {layer.left_shift}, {sign}, &qa, &qb, &q);",
    )
    return LayerCode(body, "add_s16", _ELEMENTWISE)


@REGISTRY.register(Rescale, int16=True)
def rescale(scope: Scope, layer: Rescale) -> LayerCode:
    """int16 to other units, and between int16 and int8."""
    source, out = scope.source(), scope.out
    if layer.requant.multiplier.size > 1 or not {source.dtype, out.dtype} <= set(LIMITS):
        raise scope.refuse(f"rescales integers by one factor, found {source.dtype} to {out.dtype}")
    span = _SPAN if source.dtype == "int16" else max(127 - source.zero_point, 128 + source.zero_point)
    name = {"int8": "rescale_s8_s16", "int16": f"rescale_s16{'_s8' if out.dtype == 'int8' else ''}"}[source.dtype]
    zero_point = f"{source.zero_point}, " if source.dtype == "int8" else ""
    body = (
        scope.requant(layer.requant, span, layer.clamp),
        f"es_{name}({scope.read()}, {scope.write()}, {out.size}, {zero_point}&q);",
    )
    return LayerCode(body, name, _ELEMENTWISE)


@REGISTRY.register(InterpolatedLut, int16=True)
def interpolated_lut(scope: Scope, layer: InterpolatedLut) -> LayerCode:
    """sigmoid or tanh; the table is shared by all layers."""
    _ = scope.is_float
    if not 0 <= layer.shift <= 31 or not 0 <= layer.multiplier < (2**16 if layer.shift == 0 else 2**15):
        raise scope.refuse(
            f"needs a multiplier of 15 bits and a shift of 0 to 31, found {layer.multiplier}, {layer.shift}"
        )
    table = scope.constant("table", interpolated.sigmoid_table())
    body = (
        f"const es_interpolation p = {{{table}, {layer.multiplier}, {layer.shift}}};",
        f"es_{layer.function}_s16({scope.read()}, {scope.write()}, {scope.out.size}, &p);",
    )
    return LayerCode(body, f"{layer.function}_s16", _ELEMENTWISE)


@REGISTRY.register(Softmax, int16=True)
def softmax(scope: Scope, layer: Softmax) -> LayerCode:
    """Softmax over the last axis."""
    _ = scope.is_float
    channels = scope.out.shape[-1]
    if channels >= 2**16 or not -31 <= layer.input_left_shift <= 15:
        raise scope.refuse(
            f"softmax takes fewer than 2^16 classes and shifts from -31 to 15, found {channels}, "
            f"{layer.input_left_shift}"
        )
    tables = [
        scope.constant("exponential", interpolated.exponential_table()),
        scope.constant("reciprocal", interpolated.reciprocal_table()),
    ]
    rows = scope.out.size // channels
    scaling = f"{int_literal(layer.input_multiplier)}, {layer.input_left_shift}"
    body = (
        f"const es_softmax_tables p = {{{rows}, {channels}, {scaling}, {', '.join(tables)}}};",
        f"es_softmax_s16({scope.read()}, {scope.write()}, &p);",
    )
    return LayerCode(body, "softmax_s16", ("es_softmax_s16.h",))


@REGISTRY.register(Pool2D, int16=True)
def pool2d(scope: Scope, layer: Pool2D) -> LayerCode:
    """Max or average pooling."""
    _ = scope.is_float
    if layer.kind == "max" and layer.requant is not None:
        raise scope.refuse("max pooling needs equal units of input and output, found a rescaling")
    if math.prod(layer.kernel) >= 2**16:
        raise scope.refuse(f"pools take windows below 2^16 pixels, found {math.prod(layer.kernel)}")
    flags = f"{int(layer.kind == 'max')}, {int(layer.count_padding)}, {int(layer.requant is not None)}"
    body = (
        f"const es_window g = {{{window(scope.program, layer).initialiser()}}};",
        f"const es_pool_options_s16 p = {{{flags}}};",
        scope.requant(layer.requant or _UNIT, _SPAN, layer.clamp),
        f"es_pool_s16({scope.read()}, {scope.write()}, &g, &p, &q);",
    )
    return LayerCode(body, f"{layer.kind}_pool_s16", ("es_pool_s16.h",))


@REGISTRY.register(Mean, int16=True)
def mean(scope: Scope, layer: Mean) -> LayerCode:
    """Mean over height and width."""
    _ = scope.is_float
    channels = scope.source().shape[-1]
    pixels = scope.source().size // channels
    if pixels >= 2**16:
        raise scope.refuse(f"mean takes fewer than 2^16 pixels of int16, found {pixels}")
    body = (
        scope.requant(layer.requant, _SPAN * pixels, layer.clamp),
        f"es_mean_s16({scope.read()}, {scope.write()}, {pixels}, {channels}, &q);",
    )
    return LayerCode(body, "mean_s16", ("es_pool_s16.h",))


@REGISTRY.register(Quantize, Dequantize, int16=True)
def convert(scope: Scope, layer: Quantize | Dequantize) -> LayerCode:
    """float32 to int16 and back."""
    down = isinstance(layer, Quantize)
    wanted = ("float32", "int16") if down else ("int16", "float32")
    source, out = scope.source(), scope.out
    if (source.dtype, out.dtype) != wanted:
        raise scope.refuse(f"converts {wanted[0]} to {wanted[1]}, found {source.dtype} to {out.dtype}")
    scale = (out if down else source).scale
    if not np.isfinite(np.float32(scale)) or not np.float32(scale) > 0:
        raise scope.refuse(f"needs a finite scale above 0 in float32, found {scale}")
    name = "quantize_s16" if down else "dequantize_s16"
    call = f"es_{name}({scope.read()}, {scope.write()}, {out.size}, {float_literal(scale)});"
    return LayerCode((call,), name, ("es_convert_s16.h",))
