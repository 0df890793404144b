"""Random nets of the operators that channels are followed through, and ONNX Runtime as the oracle."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgescale.core.dataset import Dataset
from edgescale.core.model import Model
from edgescale.frontend import model_from_ir
from edgescale.frontend.load import _finish

INPUT = (1, 3, 8, 8)


class Net:
    """An ONNX graph under construction; every method adds nodes and returns the name of their output."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.channels = {"x": INPUT[1]}

    def _constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def _add(self, op: str, inputs: list[str], channels: int, **attributes: object) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}.out"], name, **attributes))
        self.channels[f"{name}.out"] = channels
        return f"{name}.out"

    def conv(self, x: str, outputs: int, kernel: int = 3, groups: int = 1) -> str:
        shape = (outputs, self.channels[x] // groups, kernel, kernel)
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        weights = self._constant((self.rng.standard_normal(shape) * scale).astype(np.float32))
        bias = self._constant(self.rng.standard_normal(outputs).astype(np.float32) * np.float32(0.1))
        return self._add("Conv", [x, weights, bias], outputs, group=groups, pads=[kernel // 2] * 4)

    def unary(self, op: str, x: str, **attributes: object) -> str:
        return self._add(op, [x], self.channels[x], **attributes)

    def join(self, op: str, a: str, b: str, **attributes: object) -> str:
        total = self.channels[a] + (self.channels[b] if op == "Concat" else 0)
        return self._add(op, [a, b], total, **attributes)

    def scaled(self, x: str) -> str:
        factors = self._constant(self.rng.uniform(0.5, 2, (self.channels[x], 1, 1)).astype(np.float32))
        return self._add("Mul", [x, factors], self.channels[x])

    def head(self, x: str, classes: int, *, flat: bool) -> str:
        features = self.channels[x]
        if flat:
            features *= INPUT[2] * INPUT[3]
        else:
            x = self.unary("GlobalAveragePool", x)
        shape = self._constant(np.array([1, features], np.int64))
        x = self._add("Reshape", [x, shape], features) if self.rng.random() < 0.5 else self.unary("Flatten", x)
        self.channels[x] = features
        weights = (self.rng.standard_normal((classes, features)) / np.sqrt(features)).astype(np.float32)
        bias = self._constant(np.zeros(classes, np.float32))
        return self._add("Gemm", [x, self._constant(weights), bias], classes, transB=1)

    def model(self, output: str) -> Model:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, INPUT)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.constants,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        return model_from_ir(_finish(onnx.shape_inference.infer_shapes(proto), "net"), "net")


def random_net(seed: int) -> Model:
    """Convolutions (dense, grouped, depthwise), sums, concatenation, products, pooling, flattening; a dense head."""
    net = Net(seed)
    x = net.unary("Relu", net.conv("x", 8))
    for _ in range(int(net.rng.integers(1, 5))):
        kind = int(net.rng.integers(0, 7))
        width = net.channels[x]
        if kind == 0:
            x = net.unary("Relu", net.conv(x, int(net.rng.integers(1, 4)) * 4, int(net.rng.choice([1, 3]))))
        elif kind == 1:
            x = net.join("Add", x, net.conv(net.unary("Relu", net.conv(x, 12)), width))
        elif kind == 2:
            x = net.join("Concat", x, net.conv(x, 4, 1), axis=1)
        elif kind == 3:
            x = net.unary("HardSwish", net.conv(x, width * int(net.rng.integers(1, 3)), 3, width))
        elif kind == 4:
            x = net.unary("Relu", net.conv(x, 8, 3, 4))
        elif kind == 5:
            x = net.unary("MaxPool", net.scaled(x), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        else:
            gate = net.unary("Sigmoid", net.conv(net.unary("GlobalAveragePool", x), width, 1))
            x = net.join("Mul", net.conv(x, width), gate)
    return net.model(net.head(x, 5, flat=bool(net.rng.random() < 0.5)))


def samples(count: int = 24, seed: int = 0) -> Dataset:
    x = np.random.default_rng(seed).standard_normal((count, *INPUT[1:])).astype(np.float32)
    return Dataset("random", x, None, f"random:{seed}:{count}")


def run(model: Model, data: Dataset) -> np.ndarray:
    from edgescale.frontend.load import serialize

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(serialize(model), options)
    return np.concatenate([session.run(None, {model.inputs[0].name: x})[0] for x in data.batches(1)])
