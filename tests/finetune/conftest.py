"""Nets and data small enough to train within a test."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgescale.core.dataset import Dataset
from edgescale.core.model import Model
from edgescale.frontend import load_model


def _module(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_nets = _module("finetune_nets", Path(__file__).parents[1] / "quantize" / "conftest.py")
Net = _nets.Net
_recurrent = _module("finetune_recurrent_nets", Path(__file__).parents[1] / "recurrent_nets.py")


@pytest.fixture
def net() -> type[Any]:
    return Net


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[[onnx.ModelProto], Model]:
    def load(proto: onnx.ModelProto) -> Model:
        path = tmp_path / "net.onnx"
        path.write_bytes(proto.SerializeToString())
        return load_model(path)

    return load


@pytest.fixture
def onnx_rows() -> Callable[[onnx.ModelProto, np.ndarray], np.ndarray]:
    """First output of every sample in ONNX Runtime, nothing optimised."""

    def run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return np.concatenate([session.run(None, {name: row[None]})[0] for row in x])

    return run


def residual(seed: int = 0) -> onnx.ModelProto:
    """Convolutions (one depthwise, one without a bias), a residual Add with a Relu, a linear layer; 12x12 RGB in."""
    n = Net(seed)
    t = n.relu(n.conv("x", 3, 8))
    u = n.relu6(n.conv(t, 8, 8, group=8))
    u = n.conv(u, 8, 8, 1, bias=False)
    t = n.relu(n.node("Add", [t, u]))
    t = n.node("Flatten", [n.node("GlobalAveragePool", [n.conv(t, 8, 12, strides=[2, 2])])])
    return n.proto(n.gemm(t, 12, 4))


@pytest.fixture
def toy() -> Callable[..., onnx.ModelProto]:
    return residual


@pytest.fixture
def samples() -> Callable[..., Dataset]:
    """Smooth images, with labels where a model to make them is given."""

    def make(count: int = 128, seed: int = 3, labels: np.ndarray | None = None) -> Dataset:
        return Dataset(f"images{seed}", _nets.smooth(count, (3, 12, 12), seed), labels, f"{seed}:{count}")

    return make


@pytest.fixture
def lstm() -> tuple[onnx.ModelProto, Dataset]:
    """A classifier of sequences of 12 steps, and samples for it."""
    x, y = _recurrent.chirps(32, 12, 3, 0)
    return _recurrent.classifier("LSTM", steps=12, inputs=3, units=4), Dataset("chirps", x, y, "0")
