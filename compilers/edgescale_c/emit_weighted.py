"""Emitters of layers with weights: convolution, depthwise convolution, fully connected."""

from __future__ import annotations

from edgescale.lower.program import Conv2D, DepthwiseConv2D, FullyConnected
from edgescale_c import emit_dsp, emit_mve, scalar_choice
from edgescale_c.constants import Table
from edgescale_c.emission import REGISTRY, LayerCode, Scope, folded_bias
from edgescale_c.geometry import Window, window
from edgescale_c.nibbles import pack_nibbles
from edgescale_c.requant import accumulator_bounds
from edgescale_c.sparse_tables import single_entries


def _check(scope: Scope, layer: Conv2D | DepthwiseConv2D | FullyConnected, channels: int) -> None:
    weights, bias, bits = layer.weights, layer.bias, layer.weight_bits
    wanted = ("float32", "float32") if scope.is_float else ("int8", "int32")
    if (str(weights.dtype), str(bias.dtype)) != wanted:
        raise scope.refuse(f"needs weights and bias of {' and '.join(wanted)}, found {weights.dtype} and {bias.dtype}")
    if bias.shape != (channels,):
        raise scope.refuse(f"needs a bias of [{channels}], found {list(bias.shape)}")
    if bits not in (4, 8):
        raise scope.refuse(f"stores weights of 8 or 4 bits, found {bits}")
    limit = 2 ** (bits - 1)
    if not scope.is_float and (weights.min(initial=0) < -limit or weights.max(initial=0) >= limit):
        raise scope.refuse(
            f"weights of {bits} bits lie in [{-limit}, {limit - 1}], found {weights.min()} to {weights.max()}"
        )


def _bound(scope: Scope, rows: Table, bias: Table) -> int:
    """Greatest accumulator of weights seen as [O, taps]."""
    bound = int(accumulator_bounds(rows, bias, scope.source().zero_point).max(initial=0))
    if bound >= 2**31:
        raise scope.refuse(f"accumulators must stay below 2^31, this layer may reach {bound}")
    return bound


def _padding_bytes(geometry: Window) -> int:
    """Bytes that a row of taps of two neighbouring pixels spans; 0 where no pixel sees padding."""
    if not geometry.has_border:
        return 0
    return ((geometry.k_w - 1) * geometry.dilation_w + geometry.stride_w + 1) * geometry.in_c


def _sparse_rows(scope: Scope, layer: Conv2D | FullyConnected) -> LayerCode:
    """Rows times non-zero weights."""
    rows = layer.weights.reshape(len(layer.weights), -1)
    bound = _bound(scope, rows, layer.bias)
    entries, counts = single_entries(rows)
    tables = (
        scope.constant("weights", entries),
        scope.constant("counts", counts),
        scope.constant("bias", folded_bias(scope, rows, layer.bias)),
    )
    pixels = int(isinstance(layer, Conv2D))
    shape = f"{scope.source().size // rows.shape[1]}, {rows.shape[1]}, {len(rows)}, {pixels}"
    body = (
        f"const es_sparse_rows k = {{{', '.join(tables)}}};",
        scope.requant(layer.requant, bound, layer.clamp),
        f"es_sparse_s8({scope.read()}, {scope.write()}, {shape}, &k, &q);",
    )
    return LayerCode(body, scalar_choice.ROWS, ("es_sparse_s8.h",))


def _convolution(
    scope: Scope, layer: Conv2D | DepthwiseConv2D, geometry: Window, rows: Table, kernel: str
) -> LayerCode:
    if scope.is_float:
        low_high = scope.clamp_f32(layer.clamp)
        weights, bias = scope.constant("weights", layer.weights), scope.constant("bias", layer.bias)
        body: tuple[str, ...] = (
            f"const es_window g = {{{geometry.initialiser()}}};",
            f"const es_weights_f32 k = {{{weights}, {bias}, {low_high}}};",
            f"es_{kernel}_f32({scope.read()}, {scope.write()}, &g, &k);",
        )
        return LayerCode(body, f"{kernel}_f32", ("es_conv2d_f32.h",))
    bound = _bound(scope, rows, layer.bias)
    narrow = layer.weight_bits == 4
    # Depthwise weights lie as they are, those of a convolution row by row.
    shaped = layer.weights.reshape(1, -1) if isinstance(layer, DepthwiseConv2D) else rows
    weights = scope.constant("weights", pack_nibbles(shaped) if narrow else layer.weights)
    bias = scope.constant("bias", folded_bias(scope, rows, layer.bias))
    padding = scope.pool.fill(f"es_{scope.symbol}", scope.source().zero_point, _padding_bytes(geometry))
    body = (
        f"const es_window g = {{{geometry.initialiser()}}};",
        f"const es_conv2d_weights_s8 k = {{{weights}, {bias}, {padding}, {scope.source().zero_point}, "
        f"{layer.weight_bits}}};",
        scope.requant(layer.requant, bound, layer.clamp),
        f"es_{kernel}_s8({scope.read()}, {scope.write()}, &g, &k, &q);",
    )
    return LayerCode(body, f"{kernel}_s8{'_w4' if narrow else ''}", (f"es_{kernel}_s8.h",))


@REGISTRY.register(Conv2D)
def conv2d(scope: Scope, layer: Conv2D) -> LayerCode:
    """Convolution of any stride, padding, dilation and groups."""
    geometry = window(scope.program, layer)
    channels, height, width, depth = layer.weights.shape
    if channels != geometry.out_c or depth * layer.groups != geometry.in_c or channels % layer.groups:
        raise scope.refuse(
            f"weights {list(layer.weights.shape)} in {layer.groups} groups do not fit "
            f"{geometry.in_c} input and {geometry.out_c} output channels"
        )
    _check(scope, layer, channels)
    if scope.choice.name == scalar_choice.ROWS:
        return _sparse_rows(scope, layer)
    if scope.choice.name:
        emit = emit_mve.conv2d if scope.choice.family == "mve" else emit_dsp.conv2d
        return emit(scope, layer, geometry)
    return _convolution(scope, layer, geometry, layer.weights.reshape(channels, height * width * depth), "conv2d")


@REGISTRY.register(DepthwiseConv2D)
def depthwise_conv2d(scope: Scope, layer: DepthwiseConv2D) -> LayerCode:
    """Depthwise convolution with any channel multiplier."""
    geometry = window(scope.program, layer)
    height, width, channels = layer.weights.shape
    if channels != geometry.out_c or channels != geometry.in_c * layer.multiplier:
        raise scope.refuse(
            f"weights {list(layer.weights.shape)} with multiplier {layer.multiplier} do not fit "
            f"{geometry.in_c} input and {geometry.out_c} output channels"
        )
    _check(scope, layer, channels)
    if scope.choice.name:
        emit = emit_mve.depthwise_conv2d if scope.choice.family == "mve" else emit_dsp.depthwise_conv2d
        return emit(scope, layer)
    rows = layer.weights.reshape(height * width, channels).T
    return _convolution(scope, layer, geometry, rows, "depthwise")


@REGISTRY.register(FullyConnected)
def fully_connected(scope: Scope, layer: FullyConnected) -> LayerCode:
    """[rows, I] x [O, I] -> [rows, O]."""
    outputs, inputs = layer.weights.shape
    rows, rest = divmod(scope.source().size, inputs)
    if rest or rows * outputs != scope.out.size:
        raise scope.refuse(
            f"weights [{outputs}, {inputs}] do not fit an input of {list(scope.source().shape)} "
            f"and an output of {list(scope.out.shape)}"
        )
    _check(scope, layer, outputs)
    if scope.choice.name == scalar_choice.ROWS:
        return _sparse_rows(scope, layer)
    if scope.choice.name:
        emit = emit_mve.fully_connected if scope.choice.family == "mve" else emit_dsp.fully_connected
        return emit(scope, layer)
    shape = f"{rows}, {inputs}, {outputs}"
    if scope.is_float:
        weights, bias = scope.constant("weights", layer.weights), scope.constant("bias", layer.bias)
        body: tuple[str, ...] = (
            f"const es_weights_f32 k = {{{weights}, {bias}, {scope.clamp_f32(layer.clamp)}}};",
            f"es_fully_connected_f32({scope.read()}, {scope.write()}, {shape}, &k);",
        )
        return LayerCode(body, "fully_connected_f32", ("es_conv2d_f32.h",))
    bound = _bound(scope, layer.weights, layer.bias)
    narrow = layer.weight_bits == 4
    weights = scope.constant("weights", pack_nibbles(layer.weights) if narrow else layer.weights)
    bias = scope.constant("bias", folded_bias(scope, layer.weights, layer.bias))
    body = (
        scope.requant(layer.requant, bound, layer.clamp),
        f"es_fully_connected_s8({scope.read()}, {scope.write()}, {shape}, {weights}, {layer.weight_bits}, {bias}, &q);",
    )
    return LayerCode(body, f"fully_connected_s8{'_w4' if narrow else ''}", ("es_fully_connected_s8.h",))
