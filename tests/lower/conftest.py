"""Helpers of the lowering tests: small ONNX models, ONNX Runtime as oracle, ONNX Runtime's quantizer."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgescale.lower import lower
from edgescale.lower.program import Program


class Graph:
    """Builds an ONNX model: `node` adds an operator with arrays as constants and returns its output's name."""

    def __init__(self, shape: Sequence[Any], name: str = "x", opset: int = 17) -> None:
        self.inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))]
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.opset = opset

    def input(self, name: str, shape: Sequence[Any], kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def const(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, operator: str, *inputs: Any, name: str | None = None, **attributes: Any) -> str:
        names = [value if isinstance(value, str) else self.const(value) for value in inputs]
        output = f"v{len(self.nodes)}"
        label = f"{operator.lower()}{len(self.nodes)}" if name is None else name
        domain = attributes.pop("domain", "")
        self.nodes.append(helper.make_node(operator, names, [output], label, domain=domain, **attributes))
        return output

    def quantize(self, value: str, scale: float, zero: int, kind: type = np.uint8) -> str:
        """A QuantizeLinear and a DequantizeLinear behind `value`."""
        parameters = (np.float32(scale), np.array(zero, kind))
        return self.node("DequantizeLinear", self.node("QuantizeLinear", value, *parameters), *parameters)

    def weights(self, integers: np.ndarray, scale: Any, zero: Any = None, axis: int = 0) -> str:
        """Quantized constant behind a DequantizeLinear."""
        scale = np.asarray(scale, np.float32)
        zero = np.zeros(scale.shape, integers.dtype) if zero is None else np.asarray(zero, integers.dtype)
        return self.node("DequantizeLinear", integers, scale, zero, axis=axis)

    def model(self, *outputs: str) -> onnx.ModelProto:
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "g", self.inputs, infos, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model)


def lower_proto(model: onnx.ModelProto) -> Program:
    """Lower a protobuf model."""
    return lower(onnx_ir.serde.deserialize_model(model), "net")


def run_onnx(model: onnx.ModelProto, x: np.ndarray | dict[str, np.ndarray], *, optimize: bool = False) -> np.ndarray:
    """First output of ONNX Runtime, sample by sample; without optimization it follows the operators literally."""
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = x if isinstance(x, dict) else {session.get_inputs()[0].name: x}
    count = len(next(iter(feed.values())))
    rows = [session.run(None, {k: v[i : i + 1] for k, v in feed.items()})[0] for i in range(count)]
    return np.concatenate(rows)


def quantize_with_ort(model: onnx.ModelProto, samples: np.ndarray, folder: Path, **options: Any) -> onnx.ModelProto:
    """QDQ form by onnxruntime.quantization.quantize_static."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter([{model.graph.input[0].name: row[None]} for row in samples])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    logging.disable(logging.WARNING)
    try:
        onnx.save(model, folder / "float.onnx")
        quantize_static(
            str(folder / "float.onnx"), str(folder / "qdq.onnx"), Reader(), quant_format=QuantFormat.QDQ, **options
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(folder / "qdq.onnx")


@pytest.fixture(scope="session")
def tools() -> Any:
    """The helpers above, for tests that pytest imports without a package around them."""

    class Tools:
        graph = Graph
        lower = staticmethod(lower_proto)
        run = staticmethod(run_onnx)
        quantize = staticmethod(quantize_with_ort)

    return Tools


@pytest.fixture(scope="session")
def mlperf_tiny() -> Callable[[str], Path]:
    """Path of a file of the MLPerf Tiny reference models; skips the test where they are absent."""

    def find(name: str) -> Path:
        roots = [os.environ.get("EDGESCALE_TEST_DATA"), Path(__file__).parents[3] / "shared" / "data"]
        for root in roots:
            if root:
                for path in (Path(root) / "mlperf_tiny" / name, Path(root) / name):
                    if path.is_file():
                        return path
        pytest.skip(f"{name} not found; set EDGESCALE_TEST_DATA to the folder that holds mlperf_tiny/")

    return find


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
