"""Random but realistic nets, quantized; ONNX Runtime as the oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from edgescale.core.dataset import Dataset
from edgescale.core.model import Model
from edgescale.core.variant import Recipe
from edgescale.frontend import load_model
from edgescale.quantize import quantize_int8


class Net:
    """Collects nodes; weights are He-initialised with the spread over channels that trained nets show."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def const(self, array: Any, name: str | None = None) -> str:
        name = name or f"const_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weights(self, *shape: int, fan: int) -> np.ndarray:
        spread = self.random.lognormal(0, 0.5, size=(shape[0],) + (1,) * (len(shape) - 1))
        return (self.random.normal(size=shape) * spread * (2 / fan) ** 0.5).astype(np.float32)

    def bias(self, count: int) -> np.ndarray:
        return (self.random.normal(size=count) * 0.2).astype(np.float32)

    def node(self, op: str, inputs: list[str], name: str = "", out: str | None = None, **attributes: Any) -> str:
        out = out or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [out], name=name or f"{op}_{len(self.nodes)}", **attributes))
        return out

    def conv(self, x: str, i: int, o: int, k: int = 3, group: int = 1, bias: bool = True, **attributes: Any) -> str:
        attributes.setdefault("pads", [k // 2] * 4)
        inputs = [x, self.const(self.weights(o, i // group, k, k, fan=i // group * k * k))]
        return self.node("Conv", inputs + ([self.const(self.bias(o))] if bias else []), group=group, **attributes)

    def gemm(self, x: str, i: int, o: int, **attributes: Any) -> str:
        w = self.weights(o, i, fan=i)
        return self.node("Gemm", [x, self.const(w), self.const(self.bias(o))], transB=1, **attributes)

    def relu(self, x: str) -> str:
        return self.node("Relu", [x])

    def relu6(self, x: str) -> str:
        return self.node("Clip", [x, self.const(np.float32(0)), self.const(np.float32(6))])

    def proto(self, last: str | list[str], shape: tuple[int, ...] = (3, 12, 12), opset: int = 17) -> onnx.ModelProto:
        outputs = [last] if isinstance(last, str) else last
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", *shape])],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        model.ir_version = 8
        inferred = onnx.shape_inference.infer_shapes(model)
        known = {value.name: value for value in inferred.graph.value_info}
        for value in model.graph.output:
            value.CopyFrom(known.get(value.name, next(v for v in inferred.graph.output if v.name == value.name)))
        return model


@pytest.fixture
def net() -> Callable[..., Net]:
    return Net


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[[onnx.ModelProto], Model]:
    def load(proto: onnx.ModelProto) -> Model:
        path = tmp_path / "net.onnx"
        path.write_bytes(proto.SerializeToString())
        return load_model(path)

    return load


def smooth(count: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Images with the low frequencies of photographs: noise plus its running sums."""
    noise = np.random.default_rng(seed).normal(size=(count, *shape))
    if len(shape) > 1:
        noise = noise * 0.3 + np.cumsum(np.cumsum(noise, axis=-1), axis=-2) / np.sqrt(shape[-1] * shape[-2])
    return noise.astype(np.float32)


@pytest.fixture
def images() -> Callable[..., Dataset]:
    def make(count: int = 32, shape: tuple[int, ...] = (3, 12, 12), seed: int = 1) -> Dataset:
        return Dataset("images", smooth(count, shape, seed), None, "")

    return make


@pytest.fixture
def run() -> Callable[..., list[np.ndarray]]:
    """Outputs of a model (proto) for every sample of x, stacked."""

    def call(proto: onnx.ModelProto, x: np.ndarray, optimise: bool = False) -> list[np.ndarray]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        rows = [session.run(None, {"x": sample[None]}) for sample in x]
        return [np.concatenate(parts) for parts in zip(*rows, strict=True)]

    return call


@pytest.fixture
def optimised(tmp_path: Path) -> Callable[[onnx.ModelProto], list[str]]:
    """Operators that ONNX Runtime executes after all its optimisations."""

    def call(proto: onnx.ModelProto) -> list[str]:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]

    return call


def mean_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over samples of the cosine between rows."""
    a, b = a.reshape(len(a), -1).astype(np.float64), b.reshape(len(b), -1).astype(np.float64)
    return float(((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1) + 1e-30)).mean())


@pytest.fixture
def cosine() -> Callable[[np.ndarray, np.ndarray], float]:
    return mean_cosine


@pytest.fixture
def int8(loaded: Callable[[onnx.ModelProto], Model]) -> Callable[..., onnx.ModelProto]:
    """Quantize a float proto; returns a checked, shape-inferred proto."""

    def call(proto: onnx.ModelProto, data: Dataset, recipe: Recipe | None = None) -> onnx.ModelProto:
        made = onnx_ir.to_proto(quantize_int8(loaded(proto), data, recipe or Recipe(8, 8)))
        onnx.checker.check_model(made, full_check=True)
        return onnx.shape_inference.infer_shapes(made, strict_mode=True)

    return call


def units_in(proto: onnx.ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray, np.dtype]]:
    """{value: (scale, zero_point, dtype)} of every DequantizeLinear output and QuantizeLinear input."""
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    found = {}
    for node in proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale = constants[node.input[1]]
            zero = constants[node.input[2]] if len(node.input) > 2 else np.zeros(scale.shape, np.int8)
            key = node.input[0] if node.op_type == "QuantizeLinear" else node.output[0]
            found[key] = (scale, zero, zero.dtype)
    return found


@pytest.fixture
def units() -> Callable[[onnx.ModelProto], dict[str, tuple[np.ndarray, np.ndarray, np.dtype]]]:
    return units_in
