#!/usr/bin/env python3
"""Write a quantized MobileNetV1 as a .tflite file: random weights, the graph a Keras model converts to.

    tools/make_mobilenet.py vww_stand_in.tflite
    tools/make_mobilenet.py vww_int4.tflite --bits 4
    tools/make_mobilenet.py larger.tflite --size 128 --width 0.5 --classes 10

The default has the layers and shapes of the MLPerf Tiny visual-wake-words model (7,489,664 multiply-accumulates), for
measuring cost where the trained file is not at hand: its answers mean nothing. Activation scales are those of one
random image, weights have a scale a channel, and the same seed gives the same file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from edgescale.core.files import write_whole

Reals = npt.NDArray[np.float64]

STEM = 32
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
"""Filters of a block at width 1, and the stride of its depthwise convolution."""


def padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME: pixels before and after one axis."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def windows(x: Reals, kernel: int, stride: int) -> Reals:
    """[H, W, C] -> [H', W', C, kernel, kernel] of a convolution padded SAME with zeros."""
    pads = [padding(size, kernel, stride) for size in x.shape[:2]]
    full = np.pad(x, [*pads, (0, 0)])
    return np.lib.stride_tricks.sliding_window_view(full, (kernel, kernel), (0, 1))[::stride, ::stride]


class Net:
    """The file so far, and the real activation `x` [H, W, C] that a random image gives."""

    def __init__(self, size: int, bits: int, seed: int) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.bits = bits
        self.rng = np.random.default_rng(seed)
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [schema.BufferT()]
        self.operators: list[Any] = []
        self.codes: dict[tuple[str, int], int] = {}
        self.x: Reals = self.rng.uniform(0, 1, (size, size, 3))
        self.at = self.tensor("input", (1, size, size, 3), "INT8", [1 / 255], -128)
        self.scale = 1 / 255

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        kind: str,
        scales: Any = (),
        zero: int = 0,
        axis: int = 0,
        data: Any = None,
    ) -> int:
        """A tensor's index; `data`: bytes of a constant."""
        made = self.schema.TensorT()
        made.name, made.shape = name.encode(), np.array(shape, np.int32)
        made.type = getattr(self.schema.TensorType, kind)
        if len(scales):
            made.quantization = self.schema.QuantizationParametersT()
            made.quantization.scale = np.array(scales, np.float32)
            made.quantization.zeroPoint = np.full(len(scales), zero, np.int64)
            made.quantization.quantizedDimension = axis
        if data is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(data, np.uint8)
            made.buffer = len(self.buffers)
            self.buffers.append(buffer)
        self.tensors.append(made)
        return len(self.tensors) - 1

    def operator(self, kind: str, version: int, inputs: list[int], output: int, table: str, **options: Any) -> None:
        """Append an operator; its output is what the next one reads."""
        made = self.schema.OperatorT()
        made.opcodeIndex = self.codes.setdefault((kind, version), len(self.codes))
        made.inputs, made.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        made.builtinOptionsType = getattr(self.schema.BuiltinOptions, table)
        made.builtinOptions = getattr(self.schema, f"{table}T")()
        for name, value in options.items():
            setattr(made.builtinOptions, name, value)
        self.operators.append(made)
        self.at = output

    def activation(self, name: str, shape: tuple[int, ...], relu: bool) -> int:
        """Output tensor with the range that `x` has, zero included."""
        low, high = min(float(self.x.min()), 0.0), max(float(self.x.max()), 1e-3)
        self.scale = (high - low) / 255
        zero = -128 if relu else round(-128 - low / self.scale)
        return self.tensor(name, shape, "INT8", [self.scale], zero)

    def weighted(self, name: str, kernel: Reals, axis: int) -> tuple[Reals, list[int], Reals]:
        """Weights and bias quantized along `axis`: the real values they stand for, and their tensors' indices."""
        most = 2 ** (self.bits - 1) - 1
        others = tuple(i for i in range(kernel.ndim) if i != axis)
        scales = np.abs(kernel).max(axis=others) / most
        shaped = scales.reshape([-1 if i == axis else 1 for i in range(kernel.ndim)])
        stored = np.clip(np.rint(kernel / shaped), -most, most).astype(np.int8)
        bias = np.rint(self.rng.normal(0, 0.1, len(scales)) / (self.scale * scales)).astype(np.int32)
        data = stored.tobytes()
        if self.bits == 4:
            flat = np.append(stored.reshape(-1), np.zeros(stored.size % 2, np.int8)).astype(np.uint8) & 15
            data = (flat[0::2] | flat[1::2] << 4).astype(np.uint8).tobytes()
        kind = "INT4" if self.bits == 4 else "INT8"
        made = self.tensor(f"{name}/weights", kernel.shape, kind, scales, axis=axis, data=data)
        offset = self.tensor(f"{name}/bias", (len(bias),), "INT32", self.scale * scales, data=bias.tobytes())
        return stored * shaped, [made, offset], bias * self.scale * scales

    def convolution(self, name: str, filters: int, kernel: int, stride: int) -> None:
        """Convolution, padded SAME, and ReLU."""
        depth = self.x.shape[2]
        weights = self.rng.normal(0, np.sqrt(2 / (kernel * kernel * depth)), (filters, kernel, kernel, depth))
        real, constants, bias = self.weighted(name, weights, 0)
        self.x = np.maximum(
            np.einsum("hwckl,oklc->hwo", windows(self.x, kernel, stride), real, optimize=True) + bias, 0
        )
        options = {"strideH": stride, "strideW": stride, "dilationHFactor": 1, "dilationWFactor": 1}
        inputs = [self.at, *constants]
        output = self.activation(f"{name}/Relu", (1, *self.x.shape), True)
        self.operator("CONV_2D", 3, inputs, output, "Conv2DOptions", fusedActivationFunction=1, **options)

    def depthwise(self, name: str, stride: int) -> None:
        """Depthwise 3x3 convolution, padded SAME, and ReLU."""
        depth = self.x.shape[2]
        real, constants, bias = self.weighted(name, self.rng.normal(0, np.sqrt(2 / 9), (1, 3, 3, depth)), 3)
        self.x = np.maximum(np.einsum("hwckl,klc->hwc", windows(self.x, 3, stride), real[0], optimize=True) + bias, 0)
        options = {"strideH": stride, "strideW": stride, "dilationHFactor": 1, "dilationWFactor": 1}
        inputs = [self.at, *constants]
        output = self.activation(f"{name}/Relu", (1, *self.x.shape), True)
        table = "DepthwiseConv2DOptions"
        self.operator(
            "DEPTHWISE_CONV_2D", 3, inputs, output, table, fusedActivationFunction=1, depthMultiplier=1, **options
        )

    def head(self, classes: int) -> None:
        """Average pool over the image, fully connected layer, softmax."""
        height, width, depth = self.x.shape
        valid = self.schema.Padding.VALID
        pooled = self.tensor("pool", (1, 1, 1, depth), "INT8", [self.scale], -128)
        options = {"filterHeight": height, "filterWidth": width, "strideH": height, "strideW": width, "padding": valid}
        self.operator("AVERAGE_POOL_2D", 2, [self.at], pooled, "Pool2DOptions", **options)
        self.x = self.x.mean(axis=(0, 1))
        shape = np.array([-1, depth], np.int32)
        wanted = self.tensor("flatten/shape", (2,), "INT32", data=shape.tobytes())
        flat = self.tensor("flatten", (1, depth), "INT8", [self.scale], -128)
        self.operator("RESHAPE", 1, [self.at, wanted], flat, "ReshapeOptions", newShape=shape)
        real, constants, bias = self.weighted("dense", self.rng.normal(0, np.sqrt(1 / depth), (classes, depth)), 0)
        self.x = real @ self.x + bias
        inputs = [self.at, *constants]
        self.operator(
            "FULLY_CONNECTED", 12, inputs, self.activation("dense", (1, classes), False), "FullyConnectedOptions"
        )
        output = self.tensor("softmax", (1, classes), "INT8", [1 / 256], -128)
        self.operator("SOFTMAX", 2, [self.at], output, "SoftmaxOptions", beta=1.0)

    def file(self) -> bytes:
        """The bytes of the .tflite file."""
        import flatbuffers

        schema = self.schema
        codes = []
        for kind, version in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, kind)
            code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), version
            codes.append(code)
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = np.array([0], np.int32), np.array([self.at], np.int32)
        model = schema.ModelT()
        model.version, model.buffers, model.subgraphs, model.operatorCodes = 3, self.buffers, [graph], codes
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def mobilenet(size: int = 96, width: float = 0.25, classes: int = 2, bits: int = 8, seed: int = 0) -> bytes:
    """MobileNetV1 for `size` x `size` colour images, with weights of `bits` (8 or 4) bits."""
    net = Net(size, bits, seed)
    net.convolution("conv0", int(STEM * width), 3, 2)
    for number, (filters, stride) in enumerate(BLOCKS, 1):
        net.depthwise(f"block{number}/depthwise", stride)
        net.convolution(f"block{number}/pointwise", int(filters * width), 1, 1)
    net.head(classes)
    return net.file()


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--size", default=96, show_default=True, type=click.IntRange(32), help="Pixels of the image's side.")
@click.option("--width", default=0.25, show_default=True, type=click.FloatRange(1 / 32, 4), help="Factor of filters.")
@click.option("--classes", default=2, show_default=True, type=click.IntRange(1))
@click.option("--bits", default="8", show_default=True, type=click.Choice(["8", "4"]), help="Of the weights.")
@click.option("--seed", default=0, show_default=True)
def main(file: Path, size: int, width: float, classes: int, bits: str, seed: int) -> None:
    """See the command's help, which is the module's text."""
    write_whole(file, mobilenet(size, width, classes, int(bits), seed))


if __name__ == "__main__":
    main()
