"""Calls of the mve kernels: tables packed, geometry and scales as constants at the call."""

from __future__ import annotations

import numpy as np

from edgescale.lower.program import Add, Clamp, Conv2D, DepthwiseConv2D, FullyConnected, Mul
from edgescale_c import mve_choice, sparse_mve
from edgescale_c.dsp_choice import add_scales, fill_groups, is_single, mul_scales, weight_rows
from edgescale_c.emission import LayerCode, Scope, folded_bias
from edgescale_c.geometry import Window
from edgescale_c.requant import clamp_of


def _output(scope: Scope, clamp: Clamp, single: bool) -> str:
    low, high = clamp_of(clamp)
    return f"{{{scope.out.zero_point}, {low}, {high}, {int(single)}}}"


def _gemm(scope: Scope, layer: Conv2D | FullyConnected, channels: int) -> str:
    """Declaration of the layer's `es_mve_gemm`, called k, of `channels` a group."""
    rows = weight_rows(layer)
    group = 2 if mve_choice.in_pairs(layer) else 4
    packed = mve_choice.dense_nibbles if layer.weight_bits == 4 else mve_choice.dense_weights
    weights = scope.constant("weights", packed(rows, group))
    bias = folded_bias(scope, rows, layer.bias)
    scales = mve_choice.dense_scales(bias, mve_choice.scales(scope.program, layer), group)
    shape = f"{rows.shape[1]}, {channels}, {layer.weight_bits}"
    output = _output(scope, layer.clamp, is_single(layer))
    return f"const es_mve_gemm k = {{{weights}, {scope.constant('scale', scales)}, {shape}, {output}}};"


def conv2d(scope: Scope, layer: Conv2D, geometry: Window) -> LayerCode:
    """Convolution of any groups."""
    if scope.choice.name == sparse_mve.BLOCKS:
        return _blocks(scope, layer, geometry)
    kernel = "es_conv2d_mve_s8" if layer.groups == 1 else "es_conv2d_groups_mve_s8"
    body = (
        f"const es_window g = {{{geometry.initialiser()}}};",
        _gemm(scope, fill_groups(layer, 4), geometry.out_c // layer.groups),
        f"{kernel}({scope.read()}, {scope.write()}, {scope.scratch('int8_t')}, &g, &k, {scope.source().zero_point});",
    )
    return LayerCode(body, scope.choice.name, ("es_conv2d_mve_s8.h",))


def _blocks(scope: Scope, layer: Conv2D, geometry: Window) -> LayerCode:
    """Convolution by blocks of four taps."""
    rows = weight_rows(layer)
    weights, places, counts = sparse_mve.tables(rows)
    bias = folded_bias(scope, rows, layer.bias)
    scales = mve_choice.dense_scales(bias, mve_choice.scales(scope.program, layer), 2)
    names = [scope.constant("weights", weights), scope.constant("places", places), scope.constant("counts", counts)]
    fields = f"{', '.join(names)}, {scope.constant('scale', scales)}, {rows.shape[1]}, {len(rows)}"
    body = (
        f"const es_window g = {{{geometry.initialiser()}}};",
        f"const es_mve_sparse k = {{{fields}, {_output(scope, layer.clamp, is_single(layer))}}};",
        f"es_conv2d_sparse_mve_s8({scope.read()}, {scope.write()}, {scope.scratch('int8_t')}, &g, &k, "
        f"{scope.source().zero_point});",
    )
    return LayerCode(body, scope.choice.name, ("es_sparse_mve_s8.h",))


def fully_connected(scope: Scope, layer: FullyConnected) -> LayerCode:
    """[rows, I] x [O, I] -> [rows, O]."""
    rows = scope.source().size // layer.weights.shape[1]
    call = f"es_fully_connected_mve_s8({scope.read()}, {scope.write()}, {rows}, &k);"
    return LayerCode((_gemm(scope, layer, len(layer.weights)), call), scope.choice.name, ("es_conv2d_mve_s8.h",))


def depthwise_conv2d(scope: Scope, layer: DepthwiseConv2D) -> LayerCode:
    """Depthwise convolution on strips of eight channels' planes."""
    geometry = mve_choice.planes(scope.program, layer)
    bias = folded_bias(scope, weight_rows(layer), layer.bias)
    multiplier, left = mve_choice.scales(scope.program, layer)
    scales = scope.constant("scale", np.stack([bias, multiplier], axis=1))
    shifts = scope.constant("shift", left.astype(np.int8))
    weights = scope.constant("weights", mve_choice.depthwise_weights(layer, geometry))
    fields = ", ".join(f".{name} = {value}" for name, value in geometry.fields.items())
    body = (
        f"const es_mve_planes g = {{{fields}}};",
        f"const es_mve_depthwise k = {{{weights}, {scales}, {shifts}, {layer.weight_bits}, "
        f"{scope.source().zero_point}, "
        f"{_output(scope, layer.clamp, False)}}};",
        f"es_depthwise_mve_s8({scope.read()}, {scope.write()}, {scope.scratch('int8_t')}, &g, &k);",
    )
    return LayerCode(body, scope.choice.name, ("es_depthwise_mve_s8.h",))


def add(scope: Scope, layer: Add) -> LayerCode:
    """Sum or difference of two tensors of one shape."""
    scales = add_scales(scope.program, layer)
    a, b = (
        f"{{{-scope.source(index).zero_point * 2**layer.left_shift}, {multiplier}, {right}}}"
        for index, (multiplier, right) in enumerate(scales.operands)
    )
    multiplier, shift = int(scales.total.multiplier[0]), int(scales.total.right[0])
    body = (
        f"const es_mve_add k = {{{layer.left_shift}, {a}, {b}, {-1 if layer.subtract else 1}, {multiplier}, "
        f"{-shift - 1}, {_output(scope, layer.clamp, False)}}};",
        f"es_add_mve_s8({scope.read(0)}, {scope.read(1)}, {scope.write()}, {scope.out.size}, &k);",
    )
    return LayerCode(body, scope.choice.name, ("es_add_mve_s8.h",))


def mul(scope: Scope, layer: Mul, operands: str, shape: str) -> LayerCode:
    """Product; `operands` and `shape` as the scalar kernel takes them."""
    scales = mul_scales(scope.program, layer)
    body = (
        f"const es_mve_mul k = {{{shape}, {scales.multiplier[0]}, {-scales.right[0] - 1}, "
        f"{_output(scope, layer.clamp, False)}}};",
        f"es_mul_mve_s8({operands}, &k);",
    )
    return LayerCode(body, scope.choice.name, ("es_mul_mve_s8.h",))
