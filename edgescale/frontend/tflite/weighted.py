"""Convolutions and fully connected layers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir

from edgescale.frontend.tflite.graph import Graph, Refusal
from edgescale.frontend.tflite.options import SAME, VALID
from edgescale.frontend.tflite.reader import Operator, Tensor
from edgescale.frontend.tflite.registry import (
    activated,
    activation,
    finish,
    handles,
    operands,
    real_array,
    result,
    same_kind,
)

Array = npt.NDArray[np.generic]
Arrange = Callable[[Array], Array]


@handles("CONV_2D")
def conv_2d(graph: Graph, op: Operator) -> None:
    """Constant weights and bias; SAME or VALID padding, any stride, dilation and groups; float32, or 8- or 16-bit
    activations with weights of 8 or 4 bits and one scale, or one an output channel (of int16: int8 weights, a bias of
    int64 or int32); 8-bit weights of a float32 convolution are dequantized."""
    _, weights, _ = operands(graph, op, 2, 3)
    source = activation(graph, op.inputs[0])
    if weights is None or len(weights.shape) != 4 or len(source.shape) != 4:
        raise Refusal("input and weights have four axes", f"an input {list(source.shape)}")
    channels, per_group = source.shape[3], weights.shape[3]
    if not per_group or channels % per_group or weights.shape[0] % (channels // per_group):
        raise Refusal("weights [O, H, W, I / groups]", f"{list(weights.shape)} for {channels} channels")
    parts = _parameters(graph, op, source, weights, lambda w: w.transpose(0, 3, 1, 2), axis=0)
    _convolve(graph, op, source, parts, (weights.shape[1], weights.shape[2]), channels // per_group)


@handles("DEPTHWISE_CONV_2D")
def depthwise_conv_2d(graph: Graph, op: Operator) -> None:
    """As CONV_2D, each input channel with the same number of output channels."""
    _, weights, _ = operands(graph, op, 2, 3)
    source = activation(graph, op.inputs[0])
    if weights is None or len(weights.shape) != 4 or len(source.shape) != 4 or weights.shape[0] != 1:
        raise Refusal("an input of four axes and weights [1, H, W, O]", f"an input {list(source.shape)}")
    channels = source.shape[3]
    if weights.shape[3] % channels:
        raise Refusal("a multiple of the input's channels", f"{weights.shape[3]} for {channels}")
    parts = _parameters(graph, op, source, weights, lambda w: w.transpose(3, 0, 1, 2), axis=3)
    _convolve(graph, op, source, parts, (weights.shape[1], weights.shape[2]), channels)


def _convolve(
    graph: Graph, op: Operator, source: Tensor, parts: list[str], kernel: tuple[int, int], groups: int
) -> None:
    strides, pads, dilations = window(op, source, result(graph, op), kernel)
    inputs = [graph.real(op.inputs[0], "first"), *parts]
    finish(
        graph, op, "first", "Conv", inputs,
        kernel_shape=list(kernel), strides=strides, dilations=dilations, pads=pads, group=groups,
    )  # fmt: skip


def window(
    op: Operator, source: Tensor, made: Tensor, kernel: tuple[int, int]
) -> tuple[list[int], list[int], list[int]]:
    """(strides, pads as ONNX counts them, dilations) of a window operator over [1, H, W, C].

    SAME: the output has ceil(size / stride) positions; what padding that takes goes in equal parts to both
    sides, the odd row or column to the end.
    """
    strides = [int(op.options.get(name, 0)) for name in ("StrideH", "StrideW")]
    dilations = [int(op.options.get(name, 1)) for name in ("DilationHFactor", "DilationWFactor")]
    padding = op.options.get("Padding", SAME)
    if min(*strides, *dilations, *kernel) < 1 or padding not in (SAME, VALID) or len(made.shape) != 4:
        raise Refusal(
            "strides, dilations and kernels from 1 on, padding SAME or VALID",
            f"strides {strides}, dilations {dilations}, kernel {list(kernel)}, padding {padding}",
        )
    before, after = [], []
    for axis in range(2):
        size, span = source.shape[1 + axis], (kernel[axis] - 1) * dilations[axis] + 1
        total = max((math.ceil(size / strides[axis]) - 1) * strides[axis] + span - size, 0) if padding == SAME else 0
        if size + total < span:
            raise Refusal("the window fits its input", f"a window of {span} over {size}")
        before.append(total // 2)
        after.append(total - total // 2)
    return strides, before + after, dilations


@handles("FULLY_CONNECTED")
def fully_connected(graph: Graph, op: Operator) -> None:
    """Constant weights [O, I] in the default format, constant or no bias; with or without keep_num_dims; types as
    CONV_2D."""
    _, weights, _ = operands(graph, op, 2, 3)
    source = activation(graph, op.inputs[0])
    made = result(graph, op)
    if weights is None or len(weights.shape) != 2 or op.options.get("WeightsFormat", 0):
        raise Refusal("weights [O, I] in the default format", "others")
    units, columns = weights.shape
    rows = math.prod(source.shape) // max(columns, 1)
    kept = bool(op.options.get("KeepNumDims", 0))
    wanted = (*source.shape[:-1], units) if kept else made.shape
    if rows * columns != math.prod(source.shape) or made.shape != wanted or math.prod(made.shape) != rows * units:
        raise Refusal(
            "rows of I inputs become rows of O outputs",
            f"input {list(source.shape)}, weights {list(weights.shape)}, output {list(made.shape)}",
        )
    parts = _parameters(graph, op, source, weights, lambda w: w, axis=0)
    value = graph.real(op.inputs[0])
    if source.shape != (rows, columns):
        value = graph.node("Reshape", [value, _shape(graph, (rows, columns))])
    if made.shape == (rows, units):
        finish(graph, op, "last", "Gemm", [value, *parts], transB=1)
        return
    # What moves elements works on what is stored, so that the rows are quantized before they get their axes back.
    flat = graph.unique(f"{graph.operator}/rows")
    activated(graph, op, flat, "Gemm", [value, *parts], transB=1)
    if made.quantized:
        flat = graph.node("QuantizeLinear", [flat, *graph.units(op.outputs[0])])
    shape = _shape(graph, made.shape)
    graph.bind_stored(op.outputs[0], lambda name: graph.node("Reshape", [flat, shape], name), "last")


def _shape(graph: Graph, shape: tuple[int, ...]) -> str:
    return graph.constant(f"shape_{'x'.join(map(str, shape))}", np.asarray(shape, np.int64))


def _parameters(graph: Graph, op: Operator, source: Tensor, weights: Tensor, arrange: Arrange, axis: int) -> list[str]:
    """Weights with the output channel first and the bias, as ONNX values; `axis` is that of the file's channels."""
    made = result(graph, op)
    same_kind(source, made)
    bias = graph.tensor(op.inputs[2]) if len(op.inputs) > 2 and op.inputs[2] >= 0 else None
    if weights.data is None or weights.sparse:
        raise Refusal("constant weights, stored dense", f"{weights.name!r}")
    channels = weights.shape[axis]
    if bias is not None and (bias.data is None or bias.data.size != channels):
        raise Refusal("a constant bias of one number an output channel", f"{bias.name!r} {list(bias.shape)}")
    if not source.quantized:
        real = [(weights, arrange(real_array(weights)))]
        real += [] if bias is None else [(bias, real_array(bias).reshape(-1))]
        return [graph.constant(graph.name(tensor.index), array) for tensor, array in real]
    found = weights.quantization
    if found is None or weights.data.dtype not in (np.int8, np.uint8):
        raise Refusal(
            "integer activations meet 8- or 4-bit weights", f"{weights.name!r} of type {weights.kind.lower()}"
        )
    if found.scale.size > 1 and (found.axis != axis or found.scale.size != channels):
        raise Refusal(
            "weight scales per tensor or per output channel",
            f"{found.scale.size} scales along axis {found.axis} of {list(weights.shape)}",
        )
    if not (found.scale > 0).all():
        raise Refusal("weight scales are positive", f"{float(found.scale.min()):g} in {weights.name!r}")
    name = graph.name(weights.index)
    scale = found.scale if found.scale.size > 1 else found.scale.reshape(())
    integers = weights.data.astype(onnx_ir.DataType.INT4.numpy()) if weights.kind == "INT4" else weights.data
    zero = found.zero_point.astype(integers.dtype).reshape(scale.shape)
    parts = [_dequantized(graph, name, arrange(integers), scale, zero)]
    if bias is not None:
        low, high = _bias(source, bias)
        # LiteRT adds the integers whatever scale the file notes for them: their unit is the product's.
        product = np.asarray(graph.quantization(source.index).scale[0] * scale, np.float32)
        zeros = np.zeros(product.shape, np.int32)
        name = graph.name(bias.index)
        parts.append(_dequantized(graph, name, low, product, zeros))
        if high.any():
            # A DequantizeLinear takes 32 bits: the rest counts in 2^31 steps.
            rest = _dequantized(graph, f"{name}/high", high, product * np.float32(2**31), zeros)
            parts[-1] = graph.node("Add", [parts[-1], rest])
    return parts


def _bias(source: Tensor, bias: Tensor) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """The integers of a bias, low + 2^31 * high, each int32 [O]; high is 0 where all of them fit 32 bits.

    LiteRT 2.3 reads int32 biases of int16 layers as if they had 64 bits; here they count as what they are.
    """
    wide = source.kind == "INT16"
    if bias.data is None or bias.data.dtype not in ((np.int32, np.int64) if wide else (np.int32,)):
        raise Refusal(f"an int32{' or int64' if wide else ''} bias", f"{bias.name!r} of type {bias.kind.lower()}")
    values = bias.data.reshape(-1).astype(np.int64)
    limits = np.iinfo(np.int32)
    if ((values >= limits.min) & (values <= limits.max)).all():
        return values.astype(np.int32), np.zeros(values.size, np.int32)
    high = values >> 31
    if ((high < limits.min) | (high > limits.max)).any():
        raise Refusal("a bias within 62 bits", f"{values.min()} to {values.max()} in {bias.name!r}")
    return (values - (high << 31)).astype(np.int32), high.astype(np.int32)


def _dequantized(graph: Graph, name: str, integers: Array, scale: Array, zero: Array) -> str:
    """A quantized constant behind a DequantizeLinear of its first axis, or of none for one scale."""
    parts = [graph.constant(name, integers), graph.constant(f"{name}/scale", scale)]
    parts.append(graph.constant(f"{name}/zero_point", zero))
    label = f"{name.split(';')[0]}/DequantizeLinear"
    attributes = {"axis": 0} if scale.ndim else {}
    return graph.node("DequantizeLinear", parts, graph.unique(f"{name}/dequantized"), label=label, **attributes)
