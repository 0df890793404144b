"""A small builder of ONNX models and ONNX Runtime as the oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper


class Builder:
    """Collects nodes and initializers; `build` makes the model."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def const(self, array: Any, name: str | None = None) -> str:
        name = name or f"const_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def normal(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        return (self.random.normal(size=shape) * scale).astype(np.float32)

    def node(self, op: str, inputs: list[str], name: str = "", out: str | None = None, **attributes: Any) -> str:
        out = out or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [out], name=name, **attributes))
        return out

    def conv(self, x: str, i: int, o: int, k: int = 3, bias: bool = True, name: str = "", **attributes: Any) -> str:
        fan = i * k * k / attributes.get("group", 1)
        weights = self.normal(o, i // attributes.get("group", 1), k, k, scale=(2 / fan) ** 0.5)
        inputs = [x, self.const(weights)] + ([self.const(self.normal(o, scale=0.2))] if bias else [])
        return self.node("Conv", inputs, name, **attributes)

    def norm(self, x: str, channels: int, name: str = "") -> str:
        parameters = [
            self.random.uniform(0.5, 1.5, channels),
            self.random.normal(size=channels) * 0.3,
            self.random.normal(size=channels) * 0.3,
            self.random.uniform(0.3, 2.0, channels),
        ]
        return self.node(
            "BatchNormalization", [x, *(self.const(p.astype(np.float32)) for p in parameters)], name, epsilon=1e-3
        )

    def build(
        self,
        outputs: dict[str, list[Any] | None],
        inputs: dict[str, list[Any]] | None = None,
        opset: int = 17,
        kinds: dict[str, int] | None = None,
    ) -> onnx.ModelProto:
        kinds = kinds or {}
        given = inputs or {"x": ["N", 3, 8, 8]}
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(n, kinds.get(n, onnx.TensorProto.FLOAT), s) for n, s in given.items()],
            [helper.make_tensor_value_info(n, kinds.get(n, onnx.TensorProto.FLOAT), s) for n, s in outputs.items()],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        model.ir_version = 8
        return model


def run_model(model: bytes | Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs in ONNX Runtime without any optimisation."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, feeds)


@pytest.fixture
def builder() -> Callable[..., Builder]:
    return Builder


@pytest.fixture
def run() -> Callable[[bytes | Path, dict[str, np.ndarray]], list[np.ndarray]]:
    return run_model


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Write a model (or bytes) to a file of a temporary folder; gives the path."""

    def write(model: onnx.ModelProto | bytes, name: str = "net.onnx") -> Path:
        path = tmp_path / name
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return path

    return write
