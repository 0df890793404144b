"""Test-only translation of an int8 .tflite file into a Program, for comparison with LiteRT.

Only what the three MLPerf Tiny models and the single-op files of these tests need.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgescale.lower import fixedpoint
from edgescale.lower.integer import add_rescaling, mean_requant, softmax_scaling
from edgescale.lower.program import (
    Add,
    Concat,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Layer,
    Mean,
    Mul,
    Pad,
    Pool2D,
    Port,
    Program,
    Requant,
    Rescale,
    Reshape,
    Softmax,
    Tensor,
)


class Reader:
    """Walks one .tflite graph and collects layers; tensor i of the file is named t<i>."""

    def __init__(self, data: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
        self.graph = self.model.subgraphs[0]
        self.names = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}

    def data(self, index: int) -> np.ndarray:
        tensor = self.graph.tensors[index]
        kinds = {self.schema.TensorType.INT8: np.int8, self.schema.TensorType.INT32: np.int32}
        raw = np.array(self.model.buffers[tensor.buffer].data, np.uint8).tobytes()
        return np.frombuffer(raw, kinds[tensor.type]).reshape(tensor.shape)

    def scales(self, index: int) -> np.ndarray:
        return np.array(self.graph.tensors[index].quantization.scale, np.float64)

    def tensor(self, index: int) -> Tensor:
        t = self.graph.tensors[index]
        zero = int(t.quantization.zeroPoint[0])
        shape = tuple(int(d) for d in t.shape)
        return Tensor(f"t{index}", (1, *shape[1:]), "int8", float(self.scales(index)[0]), zero)

    def program(self) -> Program:
        tensors: dict[str, Tensor] = {}
        layers: list[Layer] = []
        for i in self.graph.inputs:
            tensors[f"t{i}"] = self.tensor(i)
        for position, op in enumerate(self.graph.operators):
            code = self.model.operatorCodes[op.opcodeIndex]
            kind = self.names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            out = self.tensor(op.outputs[0])
            tensors[out.name] = out
            layers.append(getattr(self, kind.lower())(f"{position}_{kind}", op, out))
        ports = []
        for i in [*self.graph.inputs, *self.graph.outputs]:
            shape = tensors[f"t{i}"].shape
            ports.append(Port(f"t{i}", f"t{i}", shape, tuple(range(len(shape)))))
        return Program("tflite", tensors, tuple(ports[:-1]), (ports[-1],), tuple(layers))

    def clamp(self, activation: int, out: Tensor) -> tuple[int, int]:
        kinds = self.schema.ActivationFunctionType
        low, high = -128, 127
        if activation in (kinds.RELU, kinds.RELU6):
            low = max(low, out.zero_point)
        if activation == kinds.RELU6:
            high = min(high, out.zero_point + round(6 / out.scale))
        return low, high

    def window(self, options: Any, source: Tensor, out: Tensor, kernel: tuple[int, int]) -> dict[str, Any]:
        stride = (options.strideH, options.strideW)
        dilation = (getattr(options, "dilationHFactor", 1), getattr(options, "dilationWFactor", 1))
        padding = [0, 0, 0, 0]
        if options.padding == self.schema.Padding.SAME:
            for axis in range(2):
                span = (kernel[axis] - 1) * dilation[axis] + 1
                total = max((out.shape[1 + axis] - 1) * stride[axis] + span - source.shape[1 + axis], 0)
                padding[axis], padding[axis + 2] = total // 2, total - total // 2
        return {"stride": stride, "padding": tuple(padding)}

    def weighted(self, op: Any, out: Tensor, *, single: bool) -> tuple[Tensor, np.ndarray, np.ndarray, Requant]:
        source = self.tensor(op.inputs[0])
        weights = self.data(op.inputs[1])
        scales = self.scales(op.inputs[1])
        channels = out.shape[-1]
        bias = self.data(op.inputs[2]) if op.inputs[2] >= 0 else np.zeros(channels, np.int32)
        scaling = fixedpoint.requant([source.scale * s / out.scale for s in scales], single=single)
        return source, weights, bias, scaling

    def conv_2d(self, name: str, op: Any, out: Tensor) -> Layer:
        source, weights, bias, scaling = self.weighted(op, out, single=False)
        options = op.builtinOptions
        return Conv2D(
            name, (source.name,), out.name, weights=weights, bias=bias, groups=1, requant=scaling,
            dilation=(options.dilationHFactor, options.dilationWFactor),
            clamp=self.clamp(options.fusedActivationFunction, out),
            **self.window(options, source, out, weights.shape[1:3]),
        )  # fmt: skip

    def depthwise_conv_2d(self, name: str, op: Any, out: Tensor) -> Layer:
        source, weights, bias, scaling = self.weighted(op, out, single=False)
        options = op.builtinOptions
        return DepthwiseConv2D(
            name, (source.name,), out.name, weights=weights[0], bias=bias, requant=scaling,
            multiplier=out.shape[3] // source.shape[3],
            dilation=(options.dilationHFactor, options.dilationWFactor),
            clamp=self.clamp(options.fusedActivationFunction, out),
            **self.window(options, source, out, weights.shape[1:3]),
        )  # fmt: skip

    def fully_connected(self, name: str, op: Any, out: Tensor) -> Layer:
        source, weights, bias, scaling = self.weighted(op, out, single=True)
        clamp = self.clamp(op.builtinOptions.fusedActivationFunction, out)
        return FullyConnected(name, (source.name,), out.name, weights=weights, bias=bias, requant=scaling, clamp=clamp)

    def add(self, name: str, op: Any, out: Tensor) -> Layer:
        a, b = (self.tensor(i) for i in op.inputs)
        shift, rescale, scaling = add_rescaling(a.scale, b.scale, out.scale)
        clamp = self.clamp(op.builtinOptions.fusedActivationFunction, out)
        return Add(name, (a.name, b.name), out.name, left_shift=shift, rescale=rescale, requant=scaling, clamp=clamp)

    def sub(self, name: str, op: Any, out: Tensor) -> Layer:
        import dataclasses

        layer = self.add(name, op, out)
        assert isinstance(layer, Add)
        return dataclasses.replace(layer, subtract=True)

    def mul(self, name: str, op: Any, out: Tensor) -> Layer:
        a, b = (self.tensor(i) for i in op.inputs)
        clamp = self.clamp(op.builtinOptions.fusedActivationFunction, out)
        scaling = fixedpoint.requant(a.scale * b.scale / out.scale)
        return Mul(name, (a.name, b.name), out.name, requant=scaling, clamp=clamp)

    def pool(self, kind: str, name: str, op: Any, out: Tensor) -> Layer:
        source, options = self.tensor(op.inputs[0]), op.builtinOptions
        kernel = (options.filterHeight, options.filterWidth)
        return Pool2D(
            name, (source.name,), out.name, kind=kind, kernel=kernel, count_padding=False, requant=None,
            clamp=self.clamp(options.fusedActivationFunction, out), **self.window(options, source, out, kernel),
        )  # fmt: skip

    def average_pool_2d(self, name: str, op: Any, out: Tensor) -> Layer:
        return self.pool("avg", name, op, out)

    def max_pool_2d(self, name: str, op: Any, out: Tensor) -> Layer:
        return self.pool("max", name, op, out)

    def mean(self, name: str, op: Any, out: Tensor) -> Layer:
        source = self.tensor(op.inputs[0])
        count = source.shape[1] * source.shape[2]
        scaling = mean_requant(source.scale, out.scale, count)
        return Mean(name, (source.name,), out.name, requant=scaling, clamp=(-128, 127))

    def softmax(self, name: str, op: Any, out: Tensor) -> Layer:
        source = self.tensor(op.inputs[0])
        multiplier, shift, least = softmax_scaling(source.scale)
        return Softmax(
            name, (source.name,), out.name, input_multiplier=multiplier, input_left_shift=shift, diff_min=least
        )

    def quantize(self, name: str, op: Any, out: Tensor) -> Layer:
        source = self.tensor(op.inputs[0])
        return Rescale(name, (source.name,), out.name, fixedpoint.requant(source.scale / out.scale), (-128, 127))

    def concatenation(self, name: str, op: Any, out: Tensor) -> Layer:
        names = tuple(f"t{i}" for i in op.inputs)
        return Concat(name, names, out.name, axis=op.builtinOptions.axis, rescale=(None,) * len(names))

    def reshape(self, name: str, op: Any, out: Tensor) -> Layer:
        return Reshape(name, (f"t{op.inputs[0]}",), out.name)

    def pad(self, name: str, op: Any, out: Tensor) -> Layer:
        amounts = self.data(op.inputs[1])
        before, after = (tuple(int(v) for v in amounts[:, side]) for side in range(2))
        return Pad(name, (f"t{op.inputs[0]}",), out.name, before=before, after=after, value=out.zero_point)


def single_operator(operator: str, options: dict[str, Any]) -> bytes:
    """A .tflite of one operator over [1, *size, 5] (size 6 x 4 unless given), units by tensor from `options`."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    height, width = options.get("size", (6, 4))
    shape = [1, height, width, 5]
    buffers = [schema.BufferT()]
    tensors: list[Any] = []

    def tensor(name: str, dims: list[int], units: tuple[float, int] | None, values: np.ndarray | None = None) -> int:
        made = schema.TensorT()
        made.name, made.shape = name.encode(), np.array(dims, np.int32)
        made.type = schema.TensorType.INT8 if units else schema.TensorType.INT32
        if units:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale = np.array([units[0]], np.float32)
            made.quantization.zeroPoint = np.array([units[1]], np.int64)
        buffer = schema.BufferT()
        if values is not None:
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        buffers.append(buffer)
        made.buffer = len(buffers) - 1
        tensors.append(made)
        return len(tensors) - 1

    x = options["x"]
    inputs, extra, out_shape, out, version = [], [], shape, options["out"], 2
    camel = "".join(part.capitalize() for part in operator.split("_")).replace("2d", "2D")
    union = {"MEAN": "Reducer", "MAX_POOL_2D": "Pool2D", "AVERAGE_POOL_2D": "Pool2D"}.get(operator, camel)
    details = getattr(schema, f"{union}OptionsT")()
    kind = getattr(schema.BuiltinOptions, f"{union}Options")
    inputs.append(tensor("x", shape, x))
    if operator in ("ADD", "SUB", "MUL"):
        inputs.append(tensor("y", shape, options["y"]))
        activations = schema.ActivationFunctionType
        details.fusedActivationFunction = getattr(activations, options.get("activation", "NONE"))
    elif operator == "CONCATENATION":
        inputs.append(tensor("y", [1, height, width, 2], x))
        details.axis, out_shape, out = 3, [*shape[:3], 7], x
    elif operator == "MEAN":
        extra.append(tensor("axes", [2], None, np.array([1, 2], np.int32)))
        details.keepDims, out_shape = True, [1, 1, 1, 5]
    elif operator == "PAD":
        extra.append(tensor("pads", [4, 2], None, np.array([[0, 0], [1, 2], [0, 3], [0, 0]], np.int32)))
        out_shape, out = [1, height + 3, width + 3, 5], x
    elif operator == "SOFTMAX":
        details.beta, out = 1.0, (1 / 256, -128)
    elif operator.endswith("POOL_2D"):
        same = options["same"]
        details.filterHeight, details.filterWidth, details.strideH, details.strideW = 3, 2, 2, 1
        details.padding = schema.Padding.SAME if same else schema.Padding.VALID
        out_shape = [1, 3, 4, 5] if same else [1, 2, 3, 5]
        out = x
    elif operator == "QUANTIZE":
        version = 2
    step = schema.OperatorT()
    step.inputs = np.array(inputs + extra, np.int32)
    step.outputs = np.array([tensor("out", out_shape, out)], np.int32)
    step.builtinOptions, step.builtinOptionsType = details, kind
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, operator)
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), version
    graph = schema.SubGraphT()
    graph.tensors, graph.operators = tensors, [step]
    graph.inputs, graph.outputs = np.array(inputs, np.int32), step.outputs
    model = schema.ModelT()
    model.version, model.buffers, model.subgraphs, model.operatorCodes = 3, buffers, [graph], [code]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
