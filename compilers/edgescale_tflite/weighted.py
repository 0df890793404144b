"""Convolutions and fully connected layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgescale.lower.program import Array, Conv2D, DepthwiseConv2D, FullyConnected, Pair, Tensor
from edgescale_tflite.emission import Emission, fused, writes
from edgescale_tflite.flatbuffer import Units
from edgescale_tflite.scales import Inexpressible

Weighted = Conv2D | DepthwiseConv2D | FullyConnected
_PLAIN = {"float32": 1, "int8": 3, "int16": 4}


@writes(Conv2D)
def conv2d(emission: Emission, layer: Conv2D) -> None:
    """int8 and int16 with int8 weights, int8 with int4 weights, float32."""
    grouped = layer.groups > 1
    version = {"float32": 6 if grouped else 1, "int8": 6 if grouped else 3, "int16": 6 if grouped else 4}
    source, out = emission.of(layer.inputs[0]), emission.of(layer.output)
    kernel = (int(layer.weights.shape[1]), int(layer.weights.shape[2]))
    given, options = windowed(emission, source, out, layer, kernel, layer.dilation)
    parts = [given, *_constants(emission, layer, layer.weights, 0)]
    number = 7 if _narrow(emission, layer) else version[source.dtype]

    def make(activation: str, output: int) -> None:
        chosen = fused(emission, activation)
        emission.operator("CONV_2D", parts, output, number, "Conv2DOptions", **options, fusedActivationFunction=chosen)

    emission.bounded(layer, layer.clamp, make)


@writes(DepthwiseConv2D)
def depthwise(emission: Emission, layer: DepthwiseConv2D) -> None:
    """As Conv2D; any multiplier."""
    source, out = emission.of(layer.inputs[0]), emission.of(layer.output)
    kernel = (int(layer.weights.shape[0]), int(layer.weights.shape[1]))
    given, options = windowed(emission, source, out, layer, kernel, layer.dilation)
    parts = [given, *_constants(emission, layer, layer.weights[None], 3)]
    plain = {"float32": 2 if max(layer.dilation) > 1 else 1, "int8": 3, "int16": 5}[source.dtype]
    number = 6 if _narrow(emission, layer) else plain
    options["depthMultiplier"] = layer.multiplier

    def make(activation: str, output: int) -> None:
        chosen = fused(emission, activation)
        emission.operator(
            "DEPTHWISE_CONV_2D", parts, output, number, "DepthwiseConv2DOptions",
            **options, fusedActivationFunction=chosen,
        )  # fmt: skip

    emission.bounded(layer, layer.clamp, make)


@writes(FullyConnected)
def fully_connected(emission: Emission, layer: FullyConnected) -> None:
    """FULLY_CONNECTED; a 1x1 CONV_2D where accumulators are rounded as a convolution's."""
    source, out = emission.of(layer.inputs[0]), emission.of(layer.output)
    outputs, inputs = (int(n) for n in layer.weights.shape)
    rows = source.size // inputs
    if layer.requant is not None and layer.requant.rounding in ("double", "reduced"):
        _pointwise(emission, layer, source, out, rows)
        return
    constants = _constants(emission, layer, layer.weights, 0)
    per_channel = layer.requant is not None and len(emission.scales(layer)) > 1
    # Version 12 came to say that scales are per channel; for int8, run times that end at 9 (tflite-runtime 2.14, the
    # last of its name) compute them all the same.
    version = {"float32": 1, "int8": 9 if per_channel else 4, "int16": 12 if per_channel else 7}[source.dtype]
    if _narrow(emission, layer):
        version = max(version, 10)
    flat = tuple(out.shape) == (rows, outputs)
    keep = not flat and tuple(out.shape) == (*source.shape[:-1], outputs) and source.shape[-1] == inputs
    given = emission.tensor(source.name)

    def make(activation: str, output: int) -> None:
        made = output if flat or keep else emission.inner(out, "flat", (rows, outputs))
        emission.operator(
            "FULLY_CONNECTED", [given, *constants], made, max(version, 5) if keep else version,
            "FullyConnectedOptions", fusedActivationFunction=fused(emission, activation), keepNumDims=keep,
        )  # fmt: skip
        if made != output:
            emission.reshaped(made, output, out.shape)

    emission.bounded(layer, layer.clamp, make)


def _pointwise(emission: Emission, layer: FullyConnected, source: Tensor, out: Tensor, rows: int) -> None:
    outputs, inputs = (int(n) for n in layer.weights.shape)
    given = emission.tensor(source.name)
    if source.shape != (1, 1, rows, inputs):
        shaped = emission.inner(source, "rows", (1, 1, rows, inputs))
        emission.reshaped(given, shaped, (1, 1, rows, inputs))
        given = shaped
    parts = [given, *_constants(emission, layer, layer.weights.reshape(outputs, 1, 1, inputs), 0)]
    straight = tuple(out.shape) == (1, 1, rows, outputs)
    number = 7 if _narrow(emission, layer) else _PLAIN[source.dtype]
    options: dict[str, Any] = {"padding": emission.writer.enumerated("Padding", "VALID")}
    options |= dict.fromkeys(("strideH", "strideW", "dilationHFactor", "dilationWFactor"), 1)

    def make(activation: str, output: int) -> None:
        made = output if straight else emission.inner(out, "rows", (1, 1, rows, outputs))
        chosen = fused(emission, activation)
        emission.operator("CONV_2D", parts, made, number, "Conv2DOptions", **options, fusedActivationFunction=chosen)
        if made != output:
            emission.reshaped(made, output, out.shape)

    emission.bounded(layer, layer.clamp, make)


def _narrow(emission: Emission, layer: Weighted) -> bool:
    """Whether the weights are stored in four bits: LiteRT has kernels for that where activations are int8."""
    return emission.dialect.int4 and layer.weight_bits <= 4 and emission.of(layer.inputs[0]).dtype == "int8"


def _constants(emission: Emission, layer: Weighted, weights: Array, axis: int) -> list[int]:
    """Weights and bias of a layer; `axis`: that of the output channels."""
    source, out = emission.of(layer.inputs[0]), emission.of(layer.output)
    name = layer.name
    if layer.requant is None:
        if source.dtype != "float32":
            raise Inexpressible("integer layers are rescaled", f"{source.dtype} without a rescaling")
        return [
            emission.weight(f"{name}/weights", weights.astype(np.float32), None),
            emission.weight(f"{name}/bias", layer.bias.astype(np.float32), None),
        ]
    if source.dtype != out.dtype:
        raise Inexpressible("one type of activations", f"{source.dtype} to {out.dtype}")
    scales = emission.scales(layer)
    steps = tuple(source.scale * scale for scale in scales)
    narrow = "int4" if _narrow(emission, layer) else None
    wide = np.int64 if source.dtype == "int16" else np.int32
    return [
        emission.weight(f"{name}/weights", weights.astype(np.int8), Units(scales, 0, axis), narrow),
        emission.weight(f"{name}/bias", layer.bias.astype(wide), Units(steps, 0, 0)),
    ]


def windowed(
    emission: Emission, source: Tensor, out: Tensor, layer: Any, kernel: Pair, dilation: Pair
) -> tuple[int, dict[str, Any]]:
    """The operator's input and its window's options; padding that neither SAME nor VALID is becomes a PAD before."""
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding = padding_of(source.shape[1:3], out.shape[1:3], spans, layer.stride, layer.padding)
    given = emission.tensor(source.name)
    if padding is None:
        top, left, bottom, right = layer.padding
        shape = (1, source.shape[1] + top + bottom, source.shape[2] + left + right, source.shape[3])
        given = emission.inner(source, "padded", shape)
        value = 0 if source.dtype == "float32" else source.zero_point
        emission.padded(source, (0, top, left, 0), (0, bottom, right, 0), value, given)
        padding = "VALID"
    options = {
        "padding": emission.writer.enumerated("Padding", padding),
        "strideH": layer.stride[0], "strideW": layer.stride[1],
        "dilationHFactor": dilation[0], "dilationWFactor": dilation[1],
    }  # fmt: skip
    return given, options


def padding_of(
    size: tuple[int, ...], made: tuple[int, ...], spans: list[int], stride: Pair, padding: tuple[int, int, int, int]
) -> str | None:
    """The schema's padding that gives the same windows, VALID before SAME; None where neither does."""
    fits = {"VALID": True, "SAME": True}
    for axis in range(2):
        valid = (size[axis] - spans[axis]) // stride[axis] + 1 if size[axis] >= spans[axis] else 0
        fits["VALID"] &= padding[axis] == 0 and made[axis] == valid
        total = max((made[axis] - 1) * stride[axis] + spans[axis] - size[axis], 0)
        fits["SAME"] &= made[axis] == -(-size[axis] // stride[axis]) and padding[axis] == total // 2
    return next((name for name, fit in fits.items() if fit), None)
