"""Calls of the dsp kernels: weights packed, one description a layer in read-only memory."""

from __future__ import annotations

import numpy as np

from edgescale.lower.program import Add, Clamp, Conv2D, DepthwiseConv2D, FullyConnected, Mul
from edgescale_c import nibbles, pack, sparse, sparse_tables
from edgescale_c.dsp_choice import (
    WIDE,
    WIDE_GROUPS,
    add_scales,
    fill_groups,
    is_single,
    lanes,
    layer_scales,
    mul_scales,
    plane_geometry,
    weight_rows,
)
from edgescale_c.emission import LayerCode, Scope, folded_bias
from edgescale_c.geometry import Window
from edgescale_c.requant import clamp_of


def clamped(scope: Scope, clamp: Clamp) -> tuple[str, ...]:
    """Statement that narrows a finished output, where the kernel's saturation to int8 is not enough."""
    low, high = clamp_of(clamp)
    if (low, high) == (-128, 127):
        return ()
    return (f"es_clamp_s8({scope.write()}, {scope.out.size}, {low}, {high});",)


def _rounding(scope: Scope) -> int:
    return 2 * scope.out.zero_point + 1


def _scales(scope: Scope, layer: Conv2D | DepthwiseConv2D | FullyConnected) -> str:
    """Initialiser of `es_scales`."""
    scales = layer_scales(scope.program, layer)
    multiplier = scope.constant("multiplier", scales.multiplier.astype(np.int32))
    shift = scope.constant("shift", scales.shifts)
    return f"{{{multiplier}, (const uint8_t *)(const void *){shift}, {int(scales.per_channel)}}}"


def conv2d(scope: Scope, layer: Conv2D, geometry: Window) -> LayerCode:
    """Convolution by columns, or, of a single pixel whose window is the whole image, as a dense product."""
    if scope.choice.order in ("dense", "rows"):
        return _dense(scope, layer)
    wide = scope.choice.name in (WIDE, WIDE_GROUPS)
    skips = scope.choice.name in (sparse.BLOCKS, sparse.PAIRS)
    columns = "pairs" if scope.choice.name == sparse.PAIRS else "gemm"
    filled = fill_groups(layer, lanes(layer))
    gemm, steps = _gemm(scope, filled, geometry, wide)
    data = f"{scope.read()}, {scope.write()}, {scope.scratch('uint32_t')}, &k"
    if layer.groups != 1:
        declaration = (
            f"static const es_conv2d_groups k = {{.gemm = {gemm}, .window = {{{geometry.initialiser()}}}, "
            f".in_zero_point = {scope.source().zero_point}, {steps}}};"
        )
        call = f"es_conv2d_groups_s8({data});"
    elif geometry.is_pointwise and geometry.in_c % 4 == 0:
        declaration = f"static const es_conv2d_gemm k = {gemm};"
        call = f"es_conv2d_{columns}_1x1_s8({data}, {geometry.out_w});"
    else:
        declaration = (
            f"static const es_conv2d_columns k = {{.gemm = {gemm}, .window = {{{geometry.initialiser()}}}, "
            f".in_zero_point = {scope.source().zero_point}}};"
        )
        call = f"es_conv2d_{columns}{'' if geometry.in_c % 4 == 0 else '_any'}_s8({data});"
    body = (declaration, call, *clamped(scope, layer.clamp))
    headers: tuple[str, ...] = ("es_conv2d_gemm_s8.h" if layer.groups == 1 else "es_conv2d_groups_s8.h",)
    headers += ("es_gemm_sparse_s8.h",) if skips else ("es_gemm_s4.h",) if layer.weight_bits == 4 else ()
    return LayerCode(body, scope.choice.name, headers)


def _gemm(scope: Scope, layer: Conv2D, geometry: Window, wide: bool) -> tuple[str, str]:
    """Initialiser of `es_conv2d_gemm`, of all groups, and fields that say how far their tables lie apart."""
    rows = weight_rows(layer)
    folded = folded_bias(scope, rows, layer.bias)
    if scope.choice.name in (sparse.BLOCKS, sparse.PAIRS):
        channels = sparse_tables.Channels.of(folded, layer_scales(scope.program, layer), _rounding(scope))
        made = sparse_tables.block_stream if scope.choice.name == sparse.BLOCKS else sparse_tables.pair_stream
        kernel = "es_gemm_blocks_s8" if scope.choice.name == sparse.BLOCKS else "es_gemm_pairs_s8"
        words, values = made(rows, channels), np.zeros(0, np.int32)
        # Bias and scales lie in the stream: no kernel reads these.
        bias = f"(const int32_t *)(const void *){scope.constant('weights', words)}"
        scales = f"{{{bias}, (const uint8_t *)(const void *){scope.constant('weights', words)}, 0}}"
    elif layer.weight_bits == 4:
        kernel, words = "es_gemm_2x4_s4", nibbles.gemm_words(rows)
        values = nibbles.table(folded, layer_scales(scope.program, layer), twice=True)
        table = scope.constant("table", values)
        scales, bias = f"{{{table}, (const uint8_t *)(const void *){table}, 0}}", table
    else:
        kernel, words = "es_gemm_4x2_wide_s8" if wide else "es_gemm_4x2_s8", pack.gemm_weights(rows)
        values = pack.wide_bias(folded, rows) if wide else pack.pair_bias(folded)
        scales, bias = _scales(scope, layer), scope.constant("bias", values)
    gemm = (
        f"{{.gemm = {kernel}, .weights = {scope.weights(words, 'uint32_t')}, .bias = {bias}, .scales = {scales}, "
        f".rounding = {_rounding(scope)}, .tap_pairs = {-(-rows.shape[1] // 4) * 2}, "
        f".in_c = {geometry.in_c // layer.groups}, "
        f".out_c = {geometry.out_c // layer.groups}}}"
    )
    steps = f".weights_step = {words.size // layer.groups}, .bias_step = {values.size // layer.groups}"
    return gemm, steps


def fully_connected(scope: Scope, layer: FullyConnected) -> LayerCode:
    """[rows, I] x [O, I] -> [rows, O]."""
    return _dense(scope, layer)


def _sparse(scope: Scope, layer: Conv2D | FullyConnected) -> LayerCode:
    """A dense product by its non-zero weights."""
    rows = weight_rows(layer)
    outputs, inputs = rows.shape
    packed = scope.choice.name == sparse.PACKED
    entries = sparse_tables.entry_words(rows, packed)
    bias = np.ascontiguousarray(folded_bias(scope, rows, layer.bias))
    body = (
        f"static const es_sparse_layer k = {{.entries = {scope.constant('weights', entries.words)}, "
        f".counts = {scope.constant('counts', entries.counts)}, .bias = {scope.constant('bias', bias)}, "
        f".scales = {_scales(scope, layer)}, .rounding = {_rounding(scope)}, .single = {int(is_single(layer))}}};",
        f"es_fully_connected_{'packed' if packed else 'sparse'}_s8({scope.read()}, {scope.write()}, "
        f"{scope.source().size // inputs}, {inputs}, {outputs}, &k);",
        *clamped(scope, layer.clamp),
    )
    return LayerCode(body, scope.choice.name, ("es_dense_sparse_s8.h",))


def _dense(scope: Scope, layer: Conv2D | FullyConnected) -> LayerCode:
    if scope.choice.name in (sparse.ENTRIES, sparse.PACKED):
        return _sparse(scope, layer)
    rows = weight_rows(layer)
    outputs, inputs = rows.shape
    scales = layer_scales(scope.program, layer)
    call = (
        f"{scope.read()}, {scope.write()}, {scope.scratch('int8_t')}, {scope.source().size // inputs}, {inputs}, "
        f"{outputs}, &k);"
    )
    if layer.weight_bits == 4:
        folded = folded_bias(scope, rows, layer.bias)
        table = scope.constant("table", nibbles.table(folded, scales, twice=not is_single(layer)))
        fields = f"{scope.constant('weights', nibbles.dense_words(rows))}, {table}, {_rounding(scope)}"
        declaration = f"static const es_nibble_layer k = {{{fields}, {int(is_single(layer))}}};"
        body: tuple[str, ...] = (declaration, f"es_fully_connected_dense_s4({call}", *clamped(scope, layer.clamp))
        return LayerCode(body, scope.choice.name, ("es_dense_s4.h",))
    folded = folded_bias(scope, rows, layer.bias)
    bias, entries, step = pack.pair_bias(folded), scales.pairs, scales.step
    if wide := scope.choice.name.endswith("_wide"):
        # [pairs, 3]: the last is twice the centre.
        around = pack.wide_bias(folded, rows)
        bias, centres = np.ascontiguousarray(around[:, :2]), around[:, 2]
        entries, step = scales.wide_pairs(centres // 2 if is_single(layer) else centres), 16
    body = (
        f"static const es_dense_layer k = {{.weights = {scope.constant('weights', pack.dense_weights(rows))}, "
        f".bias = {scope.constant('bias', bias)}, "
        f".scale = (const es_scale_pair *)(const void *){scope.constant('scale', entries)}, "
        f".scale_step = {step}, .rounding = {_rounding(scope)}, .single = {int(is_single(layer))}, "
        f".wide = {int(wide)}}};",
        f"es_fully_connected_dense_s8({call}",
        *clamped(scope, layer.clamp),
    )
    return LayerCode(body, scope.choice.name, ("es_fully_connected_dense_s8.h",))


def depthwise_conv2d(scope: Scope, layer: DepthwiseConv2D) -> LayerCode:
    """Depthwise convolution, channel by channel on a plane."""
    geometry = plane_geometry(scope.program, layer)
    weights = layer.weights.transpose(1, 0, 2) if geometry.transposed else layer.weights
    narrow = layer.weight_bits == 4
    if narrow:
        filled = geometry.fields["dilation_place"] == 1 and not geometry.is_3x3
        taps = f".weights = {scope.constant('weights', nibbles.plane_nibbles(weights, filled))}"
    elif geometry.is_3x3:
        taps = f".weights = {scope.constant('weights', pack.plane_bytes(weights))}"
    elif geometry.fields["dilation_place"] == 1:
        taps = f".weights = {scope.constant('weights', pack.plane_weights(weights))}"
    else:
        taps = f".weights = {scope.constant('weights', pack.single_tap_weights(weights))}"
    if geometry.is_3x3:
        taps += f", .kernel = es_plane_3x3{'_by_2' if geometry.fields['stride_place'] == 2 else ''}_s8"
    function = f"es_depthwise_{'3x3' if geometry.is_3x3 else 'plane'}_{'s4' if narrow else 's8'}"
    bias = folded_bias(scope, weight_rows(layer), layer.bias)
    fields = ", ".join(f".{name} = {value}" for name, value in geometry.fields.items())
    body = (
        f"static const es_plane g = {{{fields}}};",
        f"static const es_depthwise_weights k = {{{taps}, "
        f".bias = {scope.constant('bias', np.ascontiguousarray(bias))}, .scales = {_scales(scope, layer)}, "
        f".in_zero_point = {scope.source().zero_point}, .rounding = {_rounding(scope)}}};",
        f"{function}({scope.read()}, {scope.write()}, {scope.scratch('int16_t')}, &g, &k);",
        *clamped(scope, layer.clamp),
    )
    return LayerCode(body, scope.choice.name, ("es_depthwise_plane_s8.h",))


def add(scope: Scope, layer: Add) -> LayerCode:
    """Sum or difference of two tensors of one shape."""
    scales = add_scales(scope.program, layer)
    operands = []
    for index, (multiplier, right) in enumerate(scales.operands):
        base = -scope.source(index).zero_point * 2 ** (layer.left_shift + 1)
        operands.append(f"{{{base}, {multiplier}, {right}}}")
    multiplier, shift = scales.total.multiplier[0], scales.total.right[0]
    body = (
        f"const es_add_layer k = {{.left_shift = {layer.left_shift}, .a = {operands[0]}, .b = {operands[1]}, "
        f".sign = {-1 if layer.subtract else 1}, .multiplier = {multiplier}, .shift = {shift}, "
        f".rounding = {_rounding(scope)}}};",
        f"es_add_dsp_s8({scope.read(0)}, {scope.read(1)}, {scope.write()}, {scope.out.size}, &k);",
        *clamped(scope, layer.clamp),
    )
    return LayerCode(body, scope.choice.name, ("es_add_dsp_s8.h",))


def mul(scope: Scope, layer: Mul, operands: str, shape: str) -> LayerCode:
    """Product; `operands` and `shape` as the scalar kernel takes them."""
    scales = mul_scales(scope.program, layer)
    body = (
        f"const es_mul_layer k = {{{shape}, {scales.multiplier[0]}, {scales.right[0]}, {_rounding(scope)}}};",
        f"es_mul_dsp_s8({operands}, &k);",
        *clamped(scope, layer.clamp),
    )
    return LayerCode(body, scope.choice.name, ("es_mul_dsp_s8.h",))
