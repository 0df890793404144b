"""Emitters of pools and mean, and of layers that only move elements: concat, pad, transpose."""

from __future__ import annotations

import math

import numpy as np

from edgescale.lower.program import ITEM_BYTES, LIMITS, Concat, Mean, Pad, Pool2D, Requant, Transpose
from edgescale_c import emit_dsp
from edgescale_c.constants import Table
from edgescale_c.emission import REGISTRY, LayerCode, Scope
from edgescale_c.geometry import window
from edgescale_c.requant import clamp_of

_MOVE = ("es_move.h",)

# What a layer without rescaling passes where the kernel's signature has one; never used in arithmetic.
_UNIT = Requant(np.array([2**30], np.int32), np.array([-1], np.int32))


@REGISTRY.register(Pool2D)
def pool2d(scope: Scope, layer: Pool2D) -> LayerCode:
    """Max or average pooling."""
    geometry = f"const es_window g = {{{window(scope.program, layer).initialiser()}}};"
    data = f"{scope.read()}, {scope.write()}, &g"
    if scope.is_float:
        flags = f"{int(layer.kind == 'max')}, {int(layer.count_padding)}"
        options = f"const es_pool_options_f32 p = {{{flags}, {scope.clamp_f32(layer.clamp)}}};"
        call = f"es_pool_f32({data}, &p);"
        return LayerCode((geometry, options, call), f"{layer.kind}_pool_f32", ("es_pool_f32.h",))
    if layer.kind == "max":
        if layer.requant is not None:
            raise scope.refuse("max pooling needs equal units of input and output, found a rescaling")
        low, high = clamp_of(layer.clamp)
        if scope.choice.family == "mve" and scope.choice.name:
            call = f"es_max_pool_mve_s8({data}, {low}, {high});"
            return LayerCode((geometry, call), scope.choice.name, ("es_pool_mve_s8.h",))
        if scope.choice.name:
            body = (geometry, f"es_max_pool_dsp_s8({data});", *emit_dsp.clamped(scope, layer.clamp))
            return LayerCode(body, scope.choice.name, ("es_pool_dsp_s8.h",))
        return LayerCode((geometry, f"es_max_pool_s8({data}, {low}, {high});"), "max_pool_s8", ("es_pool_s8.h",))
    if math.prod(layer.kernel) >= 2**23:
        raise scope.refuse(f"average pooling takes windows below 2^23 pixels, found {math.prod(layer.kernel)}")
    family = scope.family
    flags = f"{scope.source().zero_point}, {int(layer.count_padding)}, {int(layer.requant is not None)}"
    body = (
        geometry,
        f"const es_avg_pool_options p = {{{flags}}};",
        scope.requant(layer.requant or _UNIT, 255, layer.clamp),
        f"es_avg_pool{family}_s8({data}, &p, &q);",
    )
    return LayerCode(body, scope.choice.name or "avg_pool_s8", (f"es_pool{family}_s8.h",))


@REGISTRY.register(Mean)
def mean(scope: Scope, layer: Mean) -> LayerCode:
    """Mean over height and width."""
    channels = scope.source().shape[-1]
    pixels = scope.source().size // channels
    data = f"{scope.read()}, {scope.write()}, {pixels}, {channels}"
    if scope.is_float:
        return LayerCode((f"es_mean_f32({data}, {scope.clamp_f32(layer.clamp)});",), "mean_f32", ("es_pool_f32.h",))
    if pixels >= 2**23:
        raise scope.refuse(f"mean takes fewer than 2^23 pixels, found {pixels}")
    zero_point = scope.source().zero_point
    family = scope.family
    body = (
        scope.requant(layer.requant, 255 * pixels, layer.clamp),
        f"es_mean{family}_s8({data}, {zero_point}, &q);",
    )
    return LayerCode(body, scope.choice.name or "mean_s8", (f"es_pool{family}_s8.h",))


@REGISTRY.register(Concat)
def concat(scope: Scope, layer: Concat) -> LayerCode:
    """Chunk after chunk of each input; an input that the plan put in its final place is not copied."""
    item = ITEM_BYTES[scope.out.dtype]
    _ = scope.is_float
    axis = layer.axis % len(scope.out.shape)
    count = math.prod(scope.out.shape[:axis])
    stride = scope.out.nbytes // count
    declarations: list[str] = []
    calls: list[str] = []
    at = 0
    for k, scaling in enumerate(layer.rescale):
        chunk = scope.source(k).nbytes // count
        target = scope.write_at(at)
        in_place = count == 1 and scope.plan.offset(scope.source(k).name) == scope.plan.offset(scope.out.name) + at
        at += chunk
        if scaling is None and in_place:
            continue
        declarations.append(f"const es_chunks p{k} = {{{count}, {chunk}, {stride}}};")
        if scaling is None:
            calls.append(f"es_concat_part({scope.read(k)}, {target}, i, &p{k}, {int(scope.shares_bytes(k))});")
            continue
        if scope.is_float:
            raise scope.refuse("rescales integer inputs only, found float32")
        zero_point = scope.source(k).zero_point
        declarations.append(scope.requant(scaling, 255 if item == 1 else 2**15, LIMITS[scope.out.dtype], f"q{k}"))
        if item == 2:
            calls.append(f"es_concat_part_rescaled_s16({scope.read(k)}, {target}, i, &p{k}, &q{k});")
            continue
        calls.append(f"es_concat_part_rescaled_s8({scope.read(k)}, (int8_t *){target}, i, &p{k}, {zero_point}, &q{k});")
    if at != stride:
        raise scope.refuse(f"inputs of {at} bytes a chunk do not fill an output of {stride}")
    loop = (f"for (int32_t i = 0; i < {count}; i++) {{", *(f"    {call}" for call in calls), "}") if calls else ()
    rescaled = item == 2 and any(scaling is not None for scaling in layer.rescale)
    return LayerCode((*declarations, *loop), "concat", ("es_elementwise_s16.h",) if rescaled else _MOVE)


@REGISTRY.register(Pad)
def pad(scope: Scope, layer: Pad) -> LayerCode:
    """Constant padding of up to four axes."""
    item = ITEM_BYTES[scope.out.dtype]
    _ = scope.is_float
    value: Table = np.array([layer.value], scope.out.dtype)
    axes = [list(entry) for entry in zip(scope.source().shape, layer.before, layer.after, strict=True)]
    # Axes that are not padded join their outer neighbour: fewer, longer copies.
    while len(axes) > 1 and axes[-1][1] == axes[-1][2] == 0:
        inner = axes.pop()[0]
        axes[-1] = [entry * inner for entry in axes[-1]]
    while len(axes) > 4 and axes[0] == [1, 0, 0]:
        axes.pop(0)
    if len(axes) > 4:
        raise scope.refuse(f"pads up to four axes, found {len(axes)}")
    axes[-1] = [entry * item for entry in axes[-1]]
    axes = [[1, 0, 0]] * (4 - len(axes)) + axes
    columns = ["{" + ", ".join(str(axis[k]) for axis in axes) + "}" for k in range(3)]
    octets = scope.constant("value", value.view(np.uint8))
    body = (
        f"const es_padding p = {{{', '.join(columns)}}};",
        f"es_pad({scope.read()}, {scope.write()}, &p, {octets}, {item}, {int(scope.shares_bytes(0))});",
    )
    return LayerCode(body, "pad", _MOVE)


@REGISTRY.register(Transpose)
def transpose(scope: Scope, layer: Transpose) -> LayerCode:
    """Permutation of up to six axes, after joining axes that stay together."""
    item = ITEM_BYTES[scope.out.dtype]
    _ = scope.is_float
    shape = scope.source().shape
    steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    joined: list[list[int]] = []
    for axis in layer.permutation:
        if shape[axis] == 1:
            continue
        if joined and joined[-1][1] == steps[axis] * shape[axis]:
            joined[-1] = [joined[-1][0] * shape[axis], steps[axis]]
        else:
            joined.append([shape[axis], steps[axis]])
    if len(joined) > 6:
        raise scope.refuse(f"transposes up to six axes that move apart, found {len(joined)}")
    joined = [[1, 0]] * (6 - len(joined)) + joined
    sizes, moves = (", ".join(str(axis[k]) for axis in joined) for k in range(2))
    body = (
        f"const es_transposition t = {{{{{sizes}}}, {{{moves}}}}};",
        f"es_transpose({scope.read()}, {scope.write()}, &t, {item});",
    )
    return LayerCode(body, "transpose", _MOVE)
