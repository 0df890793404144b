"""A small CNN this repository does not ship, with data, as a user would bring them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgescale.cli.main import run


@dataclass(frozen=True)
class Project:
    """A user's folder: model.onnx (8x8 RGB, 4 classes), calib.npz, test.npz."""

    root: Path
    model: Path
    calib: Path
    test: Path


def tiny_cnn(seed: int = 0) -> onnx.ModelProto:
    """Conv-BN-ReLU, depthwise, residual add, max pool, Gemm, Softmax; symbolic batch; PyTorch's layout."""
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int, scale: float = 0.4) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.standard_normal(shape) * scale).astype(np.float32), name)

    positive = numpy_helper.from_array(rng.uniform(0.5, 1.5, 8).astype(np.float32), "bn.var")
    weights = [
        weight("conv.w", 8, 3, 3, 3), weight("conv.b", 8), weight("bn.g", 8, scale=1.0), weight("bn.b", 8),
        weight("bn.m", 8), positive, weight("dw.w", 8, 1, 3, 3), weight("dw.b", 8), weight("pw.w", 8, 8, 1, 1),
        weight("fc.w", 4, 128, scale=0.15), weight("fc.b", 4),
    ]  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["image", "conv.w", "conv.b"], ["c"], "stem/conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "bn.g", "bn.b", "bn.m", "bn.var"], ["n"], "stem/bn"),
        helper.make_node("Relu", ["n"], ["r"], "stem/relu"),
        helper.make_node("Conv", ["r", "dw.w", "dw.b"], ["d"], "block/dw", pads=[1, 1, 1, 1], group=8),
        helper.make_node("Conv", ["d", "pw.w"], ["p"], "block/pw"),
        helper.make_node("Add", ["p", "r"], ["a"], "block/add"),
        helper.make_node("MaxPool", ["a"], ["m"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["m"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "fc.w", "fc.b"], ["logits"], "head/fc", transB=1),
        helper.make_node("Softmax", ["logits"], ["prob"], "head/softmax"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("prob", TensorProto.FLOAT, ["N", 4])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Labels are the float model's own answers, so that its accuracy is 1."""
    import onnxruntime as ort

    rng = np.random.default_rng(1)
    model = tiny_cnn()
    onnx.save(model, tmp_path / "model.onnx")
    x = rng.standard_normal((96, 3, 8, 8)).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y = session.run(None, {"image": x})[0].argmax(axis=1)
    np.savez(tmp_path / "calib.npz", x=x[:32])
    np.savez(tmp_path / "test.npz", x=x[32:], y=y[32:])
    return Project(tmp_path, tmp_path / "model.onnx", tmp_path / "calib.npz", tmp_path / "test.npz")


@dataclass(frozen=True)
class Answer:
    """What a command gave back."""

    code: int
    out: str
    err: str


@pytest.fixture
def edgescale(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run the command line in this process."""

    def call(*arguments: object) -> Answer:
        code = run([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call
