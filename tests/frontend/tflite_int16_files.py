"""Small .tflite files of int16 activations and int8 weights ("16x8"), as TensorFlow's converter writes them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def _files() -> Any:
    name = "frontend_tflite_files"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("tflite_files.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


files = _files()
SAME, VALID = 0, 1
UNIT = 2.0**-15
"""Scale of what LOGISTIC, TANH and SOFTMAX give."""


class Net:
    """Operators on int16 activations, one after another; each method takes tensors and gives its output's."""

    def __init__(self, seed: int = 0) -> None:
        self.writer = files.Writer()
        self.rng = np.random.default_rng(seed)
        self.inputs: list[int] = []

    def input(self, shape: Sequence[int], scale: float | None, kind: str = "INT16", zero: int = 0) -> int:
        """A graph input; float32 without a scale."""
        self.inputs.append(self.activation(shape, scale, kind, zero))
        return self.inputs[-1]

    def activation(self, shape: Sequence[int], scale: float | None, kind: str = "INT16", zero: int = 0) -> int:
        if scale is None:
            return int(self.writer.tensor(shape))
        return int(self.writer.tensor(shape, (scale, zero), kind=kind))

    def file(self, *outputs: int) -> bytes:
        return bytes(self.writer.data(self.inputs, list(outputs)))

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(int(size) for size in self.writer.tensors[tensor].shape)

    def scale(self, tensor: int) -> float:
        return float(self.writer.tensors[tensor].quantization.scale[0])

    def operator(
        self, kind: str, inputs: Sequence[int], shape: Sequence[int], scale: float | None, table: str = "",
        version: int = 3, made: str = "INT16", zero: int = 0, **options: Any,
    ) -> int:  # fmt: skip
        out = self.activation(shape, scale, made, zero)
        return int(self.writer.operator(kind, list(inputs), out, table, version, **options))

    def weights(
        self, x: int, shape: Sequence[int], axis: int, per_channel: bool, bias: Any, spread: float, extreme: bool
    ) -> tuple[list[int], np.ndarray]:
        """Weights and bias (int64, int32 or None), and the product's scales."""
        channels = shape[axis]
        integers = self.rng.integers(-127, 128, shape, dtype=np.int8)
        if extreme:
            integers = np.where(integers < 0, -127, 127).astype(np.int8)
        scales = np.float32(self.rng.uniform(0.001, 0.02, channels if per_channel else 1))
        parts = [self.writer.const(integers, scales=list(scales), axis=axis)]
        product = np.float32(np.float32(self.scale(x)) * scales)
        if bias is None:
            return [*parts, -1], product
        values = self.rng.normal(0, spread, channels) / np.broadcast_to(product, channels)
        limit = min(np.iinfo(bias).max, 2**44)
        values = np.clip(np.rint(values), -limit, limit).astype(bias)
        return [*parts, self.writer.const(values, scales=list(product))], product

    def conv(
        self, x: int, scale: float, *, channels: int = 6, kernel: Sequence[int] = (3, 2),
        stride: Sequence[int] = (1, 1), dilation: Sequence[int] = (1, 1), padding: int = SAME,
        activation: int = 0, per_channel: bool = True,
        depth: int = 0, groups: int = 1, bias: Any = np.int64, spread: float = 1.0, extreme: bool = False,
    ) -> int:  # fmt: skip
        """CONV_2D, or DEPTHWISE_CONV_2D where `depth` gives a multiplier."""
        n, h, w, c = self.shape(x)
        channels = c * depth if depth else channels
        size = []
        for axis, length in enumerate((h, w)):
            span = (kernel[axis] - 1) * dilation[axis] + 1
            size.append(-(-(length if padding == SAME else length - span + 1) // stride[axis]))
        shape, axis = ((1, *kernel, channels), 3) if depth else ((channels, *kernel, c // groups), 0)
        parts, _ = self.weights(x, shape, axis, per_channel, bias, spread, extreme)
        options: dict[str, Any] = {
            "padding": padding, "strideH": stride[0], "strideW": stride[1], "dilationHFactor": dilation[0],
            "dilationWFactor": dilation[1], "fusedActivationFunction": activation,
        }  # fmt: skip
        kind, table = "CONV_2D", "Conv2DOptions"
        if depth:
            kind, table, options = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions", options | {"depthMultiplier": depth}
        return self.operator(kind, [x, *parts], (n, *size, channels), scale, table, 5, **options)

    def dense(
        self, x: int, scale: float, units: int, *, per_channel: bool = False, bias: Any = np.int64,
        activation: int = 0, keep: bool = False, spread: float = 1.0, extreme: bool = False,
    ) -> int:  # fmt: skip
        shape = self.shape(x)
        columns = shape[-1] if keep else int(np.prod(shape[1:]))
        parts, _ = self.weights(x, (units, columns), 0, per_channel, bias, spread, extreme)
        made = (*shape[:-1], units) if keep else (shape[0], units)
        return self.operator(
            "FULLY_CONNECTED", [x, *parts], made, scale, "FullyConnectedOptions", 12 if per_channel else 7,
            keepNumDims=keep, fusedActivationFunction=activation,
        )  # fmt: skip

    def binary(
        self, kind: str, a: int, b: int, scale: float, activation: int = 0, shape: Sequence[int] | None = None
    ) -> int:
        options: dict[str, Any] = {} if kind == "MUL" else {"potScaleInt16": False}
        return self.operator(
            kind, [a, b], shape or self.shape(a), scale, f"{kind.capitalize()}Options",
            fusedActivationFunction=activation, **options,
        )  # fmt: skip

    def constant(self, shape: Sequence[int], scale: float) -> int:
        values = self.rng.integers(-32768, 32768, shape).astype(np.int16)
        return int(self.writer.const(values, (scale, 0)))

    def pool(
        self, kind: str, x: int, *, kernel: Sequence[int] = (2, 3), stride: Sequence[int] = (2, 1),
        padding: int = SAME, activation: int = 0, scale: float | None = None,
    ) -> int:  # fmt: skip
        n, h, w, c = self.shape(x)
        size = [
            -(-(length if padding == SAME else length - kernel[axis] + 1) // stride[axis])
            for axis, length in enumerate((h, w))
        ]
        return self.operator(
            f"{kind}_POOL_2D", [x], (n, *size, c), scale or self.scale(x), "Pool2DOptions", padding=padding,
            strideH=stride[0], strideW=stride[1], filterHeight=kernel[0], filterWidth=kernel[1],
            fusedActivationFunction=activation,
        )  # fmt: skip

    def mean(self, x: int, axes: Sequence[int], scale: float, *, keep: bool = True) -> int:
        shape = self.shape(x)
        made = [1 if axis in axes else size for axis, size in enumerate(shape) if keep or axis not in axes]
        axis = self.writer.const(np.array(axes, np.int32))
        return self.operator("MEAN", [x, axis], made, scale, "ReducerOptions", keepDims=keep)

    def unary(self, kind: str, x: int, scale: float, table: str = "", **options: Any) -> int:
        return self.operator(kind, [x], self.shape(x), scale, table, **options)

    def softmax(self, x: int) -> int:
        return self.unary("SOFTMAX", x, UNIT, "SoftmaxOptions", beta=1.0)

    def pad(self, x: int, amounts: Sequence[Sequence[int]], value: int | None = None) -> int:
        shape = [a + size + b for (a, b), size in zip(amounts, self.shape(x), strict=True)]
        inputs = [x, self.writer.const(np.array(amounts, np.int32))]
        if value is not None:
            inputs.append(self.writer.const(np.array([value], np.int16), (self.scale(x), 0)))
        kind = "PAD" if value is None else "PADV2"
        return self.operator(kind, inputs, shape, self.scale(x), "PadOptions" if value is None else "PadV2Options", 2)

    def concat(self, parts: Sequence[int], axis: int, scale: float | None = None) -> int:
        shape = list(self.shape(parts[0]))
        shape[axis] = sum(self.shape(part)[axis] for part in parts)
        made = scale or self.scale(parts[0])
        return self.operator("CONCATENATION", parts, shape, made, "ConcatenationOptions", axis=axis)

    def reshape(self, x: int, shape: Sequence[int]) -> int:
        to = self.writer.const(np.array(shape, np.int32))
        return self.operator("RESHAPE", [x, to], shape, self.scale(x), "ReshapeOptions", 1)

    def transpose(self, x: int, order: Sequence[int]) -> int:
        to = self.writer.const(np.array(order, np.int32))
        shape = [self.shape(x)[axis] for axis in order]
        return self.operator("TRANSPOSE", [x, to], shape, self.scale(x), "TransposeOptions", 4)

    def slice(self, x: int, begin: Sequence[int], size: Sequence[int]) -> int:
        parts = [self.writer.const(np.array(part, np.int32)) for part in (begin, size)]
        return self.operator("SLICE", [x, *parts], size, self.scale(x), "SliceOptions")

    def quantize(self, x: int, scale: float, made: str = "INT16", zero: int = 0) -> int:
        return self.operator("QUANTIZE", [x], self.shape(x), scale, "QuantizeOptions", 2, made, zero)

    def dequantize(self, x: int) -> int:
        return self.operator("DEQUANTIZE", [x], self.shape(x), None, "DequantizeOptions", 2)
