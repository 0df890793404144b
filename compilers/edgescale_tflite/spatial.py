"""Pools, means, Softmax, and layers that move elements."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from edgescale.lower.integer import interpolated_softmax_scaling, mean_requant, rescaling, softmax_scaling
from edgescale.lower.program import (
    LIMITS,
    Concat,
    Mean,
    Pad,
    Pool2D,
    Requant,
    Reshape,
    Slice,
    Softmax,
    Tensor,
    Transpose,
)
from edgescale_tflite.emission import Emission, fused, writes
from edgescale_tflite.scales import Inexpressible, derived, neighbours
from edgescale_tflite.weighted import padding_of

Segment = tuple[int, int, int, int]
"""First and last input position read + 1, kernel, outputs."""


@writes(Pool2D)
def pool(emission: Emission, layer: Pool2D) -> None:
    """AVERAGE_POOL_2D and MAX_POOL_2D. Padding LiteRT does not have becomes a PAD before, or, where an average does
    not count it, pools of the parts whose windows have one size."""
    source, out = emission.of(layer.inputs[0]), emission.of(layer.output)
    if layer.requant is not None:
        if not derived(lambda: rescaling(source.scale, out.scale, source.dtype), layer.requant):
            raise Inexpressible("a rescaling by the quotient of the scales", f"{source.scale:g} to {out.scale:g}")
        mean = emission.inner(source, "pooled", out.shape)
        _pooled(emission, layer, source, mean, "NONE")
        if tuple(layer.clamp) == LIMITS[out.dtype]:
            emission.quantized(mean, emission.tensor(out.name), (source.dtype, out.dtype))
            return
        made = emission.inner(out, "requantized")
        emission.quantized(mean, made, (source.dtype, out.dtype))
        emission.bound(layer, layer.clamp, made)
        return
    emission.bounded(
        layer, layer.clamp, lambda activation, output: _pooled(emission, layer, source, output, activation)
    )


def _pooled(emission: Emission, layer: Pool2D, source: Tensor, output: int, activation: str) -> None:
    out = emission.of(layer.output)
    sizes = (source.shape[1], source.shape[2])
    padding = padding_of(sizes, out.shape[1:3], list(layer.kernel), layer.stride, layer.padding)
    counted = layer.kind == "avg" and layer.count_padding
    if padding == "VALID" or (padding == "SAME" and not counted):
        _window(emission, layer, emission.tensor(source.name), output, layer.kernel, padding, activation)
        return
    if layer.kind == "avg" and not layer.count_padding:
        _in_parts(emission, layer, source, output, activation)
        return
    top, left, bottom, right = layer.padding
    shape = (1, sizes[0] + top + bottom, sizes[1] + left + right, source.shape[3])
    padded = emission.inner(source, "padded", shape)
    emission.padded(source, (0, top, left, 0), (0, bottom, right, 0), _filler(layer, source), padded)
    _window(emission, layer, padded, output, layer.kernel, "VALID", activation)


def _filler(layer: Pool2D, source: Tensor) -> float:
    if layer.kind == "max":
        return LIMITS[source.dtype][0] if source.dtype in LIMITS else float(np.finfo(np.float32).min)
    return 0 if source.dtype == "float32" else source.zero_point


def _window(
    emission: Emission, layer: Pool2D, given: int, output: int, kernel: tuple[int, int], padding: str, activation: str
) -> None:
    kind = "MAX_POOL_2D" if layer.kind == "max" else "AVERAGE_POOL_2D"
    version = {"float32": 1, "int8": 2, "int16": 3}[emission.of(layer.inputs[0]).dtype]
    emission.operator(
        kind, [given], output, version, "Pool2DOptions", padding=emission.writer.enumerated("Padding", padding),
        strideH=layer.stride[0], strideW=layer.stride[1], filterHeight=kernel[0], filterWidth=kernel[1],
        fusedActivationFunction=fused(emission, activation),
    )  # fmt: skip


def _in_parts(emission: Emission, layer: Pool2D, source: Tensor, output: int, activation: str) -> None:
    out = emission.of(layer.output)
    rows, columns = (
        _segments(source.shape[1 + a], out.shape[1 + a], layer.kernel[a], layer.stride[a], layer.padding[a])
        for a in range(2)
    )
    units = source if layer.requant is not None else out
    bands = []
    for row in rows:
        parts = []
        for column in columns:
            given = emission.tensor(source.name)
            begin, end = [0, row[0], column[0], 0], [1, row[1], column[1], source.shape[3]]
            if (row[:2], column[:2]) != ((0, source.shape[1]), (0, source.shape[2])):
                cut = emission.inner(source, "part", (1, row[1] - row[0], column[1] - column[0], source.shape[3]))
                strided(emission, source.dtype, given, cut, begin, end, [1] * 4)
                given = cut
            made = emission.inner(units, "mean", (1, row[3], column[3], source.shape[3]))
            _window(emission, layer, given, made, (row[2], column[2]), "VALID", activation)
            parts.append(made)
        shape = (1, row[3], out.shape[2], out.shape[3])
        bands.append(parts[0] if len(parts) == 1 else _joined(emission, units, parts, shape, 2))
    if len(bands) == 1:
        emission.reshaped(bands[0], output, out.shape)
    else:
        _concat(emission, units.dtype, bands, output, 1)


def _segments(size: int, made: int, kernel: int, stride: int, before: int) -> list[Segment]:
    """Consecutive outputs whose windows have the same number of real positions."""
    windows = [(max(i * stride - before, 0), min(i * stride - before + kernel, size)) for i in range(made)]
    if any(low >= high for low, high in windows):
        raise Inexpressible("windows that reach the input", "one that lies in the padding")
    breaks = [0]
    for index, (one, other) in enumerate(pairwise(windows), start=1):
        if other[1] - other[0] != one[1] - one[0] or other[0] - one[0] != stride:
            breaks.append(index)
    breaks.append(made)
    return [
        (windows[first][0], windows[last - 1][1], windows[first][1] - windows[first][0], last - first)
        for first, last in pairwise(breaks)
    ]


def _joined(emission: Emission, units: Tensor, parts: list[int], shape: tuple[int, ...], axis: int) -> int:
    made = emission.inner(units, "joined", shape)
    _concat(emission, units.dtype, parts, made, axis)
    return made


@writes(Mean)
def mean(emission: Emission, layer: Mean) -> None:
    """MEAN over height and width."""
    source, out = emission.of(layer.inputs[0]), emission.of(layer.output)
    count = source.shape[1] * source.shape[2]
    if source.dtype != "float32" and not derived(
        lambda: mean_requant(source.scale, out.scale, count, source.dtype), layer.requant
    ):
        raise Inexpressible("a rescaling by the quotient of the scales", f"{source.scale:g} to {out.scale:g}")
    axes = emission.numbers([1, 2], "axes_1_2")
    version = {"float32": 1, "int8": 2, "int16": 3}[source.dtype]
    keep = out.shape == (1, 1, 1, source.shape[3])
    direct = keep or out.shape == (1, source.shape[3])

    def make(activation: str, output: int) -> None:
        shape = out.shape if direct else (1, 1, 1, source.shape[3])
        bounds = activation != "NONE"
        made = output if direct and not bounds else emission.inner(out, "mean", shape)
        options = {"keepDims": keep or not direct}
        emission.operator(
            "MEAN", [emission.tensor(source.name), axes], made, version, "ReducerOptions", **options
        )  # fmt: skip
        if bounds:
            emission.bound(layer, layer.clamp, made if direct else _reshaped(emission, made, out))
        elif made != output:
            emission.reshaped(made, output, out.shape)

    # MEAN applies no activation: `make` bounds what `bounded` hands it.
    emission.bounded(layer, layer.clamp, make)


def _reshaped(emission: Emission, given: int, out: Tensor) -> int:
    made = emission.inner(out, "flat")
    emission.reshaped(given, made, out.shape)
    return made


@writes(Softmax)
def softmax(emission: Emission, layer: Softmax) -> None:
    """SOFTMAX over the last axis, with the beta that gives the layer's multiplier."""
    source, out = emission.of(layer.inputs[0]), emission.of(layer.output)
    version = {"float32": 1, "int8": 2, "int16": 3}[source.dtype]
    beta = 1.0 if source.dtype == "float32" else _beta(layer, source)
    given = emission.tensor(source.name)
    emission.operator("SOFTMAX", [given], emission.tensor(out.name), version, "SoftmaxOptions", beta=beta)


def _beta(layer: Softmax, source: Tensor) -> float:
    wanted = (layer.input_multiplier, layer.input_left_shift, layer.diff_min)
    if source.dtype == "int16":
        if interpolated_softmax_scaling(source.scale) != wanted:
            raise Inexpressible("a multiplier that follows from the input's scale", f"{layer.input_multiplier}")
        return 1.0
    if softmax_scaling(source.scale) == wanted:
        return 1.0
    real = layer.input_multiplier * 2.0 ** (layer.input_left_shift - 31)
    for beta in neighbours(real / 2.0**26 / source.scale):
        if softmax_scaling(source.scale, beta) == wanted:
            return beta
    raise Inexpressible("a multiplier that follows from the input's scale and a beta", f"{layer.input_multiplier}")


@writes(Concat)
def concat(emission: Emission, layer: Concat) -> None:
    """CONCATENATION, behind a QUANTIZE of each input in other units."""
    out = emission.of(layer.output)
    parts = []
    for name, scaling in zip(layer.inputs, layer.rescale, strict=True):
        tensor = emission.of(name)
        parts.append(emission.tensor(name) if scaling is None else _in_units(emission, tensor, out, scaling))
    _concat(emission, out.dtype, parts, emission.tensor(out.name), layer.axis)


def _in_units(emission: Emission, tensor: Tensor, out: Tensor, scaling: Requant) -> int:
    if not derived(lambda: rescaling(tensor.scale, out.scale, tensor.dtype), scaling):
        raise Inexpressible("a rescaling by the quotient of the scales", f"{tensor.scale:g} to {out.scale:g}")
    made = emission.inner(out, "part", tensor.shape)
    emission.quantized(emission.tensor(tensor.name), made, (tensor.dtype, out.dtype))
    return made


def _concat(emission: Emission, dtype: str, parts: list[int], output: int, axis: int) -> None:
    version = {"float32": 1, "int8": 2, "int16": 3}[dtype]
    none = fused(emission, "NONE")
    emission.operator(
        "CONCATENATION", parts, output, version, "ConcatenationOptions", axis=axis, fusedActivationFunction=none
    )


@writes(Pad)
def pad(emission: Emission, layer: Pad) -> None:
    """PAD, or PADV2 for another value than real zero."""
    source = emission.of(layer.inputs[0])
    emission.padded(source, layer.before, layer.after, layer.value, emission.tensor(layer.output))


@writes(Reshape)
def reshape(emission: Emission, layer: Reshape) -> None:
    """RESHAPE."""
    out = emission.of(layer.output)
    emission.reshaped(emission.tensor(layer.inputs[0]), emission.tensor(out.name), out.shape)


@writes(Transpose)
def transpose(emission: Emission, layer: Transpose) -> None:
    """TRANSPOSE."""
    order = emission.numbers(list(layer.permutation), f"order_{''.join(map(str, layer.permutation))}")
    version = {"float32": 1, "int8": 2, "int16": 4}[emission.of(layer.output).dtype]
    given = emission.tensor(layer.inputs[0])
    emission.operator("TRANSPOSE", [given, order], emission.tensor(layer.output), version, "TransposeOptions")


@writes(Slice)
def slice_(emission: Emission, layer: Slice) -> None:
    """STRIDED_SLICE."""
    out = emission.of(layer.output)
    ends = [b + (n - 1) * s + 1 for b, n, s in zip(layer.begin, out.shape, layer.step, strict=True)]
    given = emission.tensor(layer.inputs[0])
    strided(emission, out.dtype, given, emission.tensor(out.name), list(layer.begin), ends, list(layer.step))


def strided(
    emission: Emission, dtype: str, given: int, output: int, begin: list[int], end: list[int], steps: list[int]
) -> None:
    """`output` is every step-th element of `given` in [begin, end) of each axis."""
    parts = [given]
    for what, values in (("begin", begin), ("end", end), ("steps", steps)):
        parts.append(emission.numbers(values, f"{what}_{'x'.join(map(str, values))}"))
    version = {"float32": 1, "int8": 2, "int16": 4}[dtype]
    masks: dict[str, Any] = dict.fromkeys(("beginMask", "endMask", "ellipsisMask", "newAxisMask", "shrinkAxisMask"), 0)
    emission.operator("STRIDED_SLICE", parts, output, version, "StridedSliceOptions", **masks)
