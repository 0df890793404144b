"""int8 models: close to the float ones, of the promised form, fused by ONNX Runtime, deterministic."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import numpy_helper

from edgescale import __version__
from edgescale.core.dataset import Dataset
from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.core.variant import OBSERVERS, Recipe, parse_recipe
from edgescale.frontend import describe, load_dataset, load_metric, load_model, model_from_ir, save_model
from edgescale.frontend.load import serialize
from edgescale.quantize import quantize_int8

W8A8 = parse_recipe("w8a8")


def residual_net(n):
    """Conv-ReLU, depthwise-ReLU6, residual Add-ReLU, pools, concat, fully connected."""
    t = n.relu(n.conv("x", 3, 16, strides=[2, 2]))
    s = n.relu6(n.conv(t, 16, 16, group=16))
    s = n.conv(s, 16, 16, 1)
    t = n.relu(n.node("Add", [s, t]))
    t = n.node("MaxPool", [t], kernel_shape=[2, 2], strides=[2, 2])
    t = n.node("Concat", [n.relu(n.conv(t, 16, 8, 1)), n.conv(t, 16, 8)], axis=1)
    t = n.node("Flatten", [n.node("GlobalAveragePool", [t])])
    return n.gemm(t, 16, 5)


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("opset", [13, 18, 21])
def test_close_to_float_for_every_observer(net, int8, images, run, observer, opset, cosine):
    n = net(3)
    proto = n.proto(residual_net(n), opset=opset)
    made = int8(proto, images(), Recipe(8, 8, observer))
    x = images(40, seed=2).x
    assert cosine(run(proto, x)[0], run(made, x)[0]) > 0.99


def test_promised_form(net, int8, images, units):
    n = net()
    made = int8(n.proto(residual_net(n)), images())
    found = units(made)
    producers = {o: node for node in made.graph.node for o in node.output}
    constants = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    for node in made.graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        x, w, b = (producers[name] for name in node.input)
        assert {p.op_type for p in (x, w, b)} == {"DequantizeLinear"}
        weights, scale = constants[w.input[0]], constants[w.input[1]]
        assert weights.dtype == np.int8
        assert weights.min() >= -127
        assert (np.abs(weights.reshape(len(weights), -1)).max(axis=1) == 127).all()
        assert scale.shape == (weights.shape[0],)
        assert len(w.input) == 2 or not constants[w.input[2]].any()
        assert next(a.i for a in w.attribute if a.name == "axis") == 0
        assert constants[b.input[0]].dtype == np.int32
        np.testing.assert_array_equal(constants[b.input[1]], found[node.input[0]][0] * scale)
        assert found[node.input[0]][2] == np.uint8
    readers = Counter(name for node in made.graph.node for name in node.input)
    for node in made.graph.node:
        if node.op_type in ("Relu", "Clip"):
            assert producers[node.input[0]].op_type in ("Conv", "Add")
            assert readers[node.input[0]] == 1
        if node.op_type in ("MaxPool", "Flatten"):
            assert found[node.input[0]][:2] == found[node.output[0]][:2]
        if node.op_type == "Concat":  # a rectified and a signed input: zero-point 0 stays for the first
            rectified, signed = (found[name][:2] for name in node.input)
            assert rectified[1] == 0
            assert signed == found[node.output[0]][:2]
            assert signed[1] > 0
    assert {t.data_type for t in made.graph.initializer} <= {
        onnx.TensorProto.UINT8,
        onnx.TensorProto.INT8,
        onnx.TensorProto.INT32,
        onnx.TensorProto.FLOAT,
    }
    assert made.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert made.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    metadata = {entry.key: entry.value for entry in made.metadata_props}
    assert metadata["edgescale.recipe"] == "w8a8"
    assert metadata["edgescale.version"] == __version__


@pytest.mark.parametrize("rectified", [True, False])
def test_concatenated_tensors_of_one_kind_share_units(net, int8, images, rectified, optimised, units):
    n = net()
    parts = [n.conv("x", 3, width) for width in (4, 6, 8)]
    out = n.node("Concat", [n.relu(p) for p in parts] if rectified else parts, axis=1)
    made = int8(n.proto(n.conv(out, 18, 4)), images())
    found = units(made)
    concat = next(node for node in made.graph.node if node.op_type == "Concat")
    assert len({(float(found[v][0]), int(found[v][1])) for v in (*concat.input, concat.output[0])}) == 1
    assert (int(found[concat.output[0]][1]) == 0) == rectified
    assert Counter(optimised(made))["QLinearConv"] == 4


def test_names_survive(net, int8, images, loaded):
    n = net()
    proto = n.proto(residual_net(n))
    before = [node.name for node in loaded(proto).ir.graph]
    after = [node.name for node in int8(proto, images()).graph.node if not node.op_type.endswith("Linear")]
    assert after == before
    made = int8(proto, images())
    assert [v.name for v in made.graph.output] == [v.name for v in proto.graph.output]


def test_onnx_runtime_fuses_everything(net, int8, images, optimised):
    n = net()
    made = int8(n.proto(residual_net(n)), images())
    ops = Counter(optimised(made))
    assert ops["QLinearConv"] == 5
    assert ops["QGemm"] + ops["QLinearMatMul"] == 1
    assert ops["QLinearAdd"] == 1
    assert ops["QuantizeLinear"] == ops["DequantizeLinear"] == 1
    assert not set(ops) & {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "Add", "Relu", "Clip", "Concat"}


def test_equal_arguments_give_equal_bytes(net, images, loaded):
    n = net()
    model = loaded(n.proto(residual_net(n)))
    before = serialize(model)
    first, second = (serialize(quantize_int8(model, images(), W8A8)) for _ in range(2))
    assert first == second
    assert serialize(model) == before


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_with_alpha_and_beta(net, int8, images, run, trans, optimised, cosine):
    n = net()
    flat = n.node("Flatten", [n.relu(n.conv("x", 3, 4, strides=[2, 2]))])
    w = n.weights(10, 144, fan=144)
    inputs = [flat, n.const(w if trans else w.T.copy()), n.const(n.bias(10)[None])]
    proto = n.proto(n.node("Gemm", inputs, transB=trans, alpha=0.5, beta=3.0))
    made = int8(proto, images())
    assert cosine(run(proto, images().x)[0], run(made, images().x)[0]) > 0.99
    assert "QGemm" in optimised(made)


def test_figures_of_the_quantized_model_are_those_of_the_float_one(net, loaded, images):
    n = net()
    model = loaded(n.proto(residual_net(n)))
    made = model_from_ir(quantize_int8(model, images(), W8A8), "quantized")
    assert made.quantized
    before, after = describe(model), describe(made)
    assert (before.macs, before.parameters) == (after.macs, after.parameters)
    assert before.peak_int8_bytes == after.peak_int8_bytes


def test_shared_weights_and_bias(net, int8, images, run, cosine):
    n = net()
    w, b = n.const(n.weights(3, 3, 3, 3, fan=27), "shared"), n.const(n.bias(3), "bias")
    t = n.relu(n.node("Conv", ["x", w, b], pads=[1, 1, 1, 1]))
    proto = n.proto(n.node("Conv", [t, w, b], pads=[1, 1, 1, 1]))
    made = int8(proto, images())
    assert sum(t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4 for t in made.graph.initializer) == 1
    assert sum(t.data_type == onnx.TensorProto.INT32 and len(t.dims) == 1 for t in made.graph.initializer) == 2
    assert cosine(run(proto, images().x)[0], run(made, images().x)[0]) > 0.99


def test_refusals(net, loaded, images, tmp_path):
    n = net()
    model = loaded(n.proto(residual_net(n)))
    made = quantize_int8(model, images(), W8A8)
    save_model(made, tmp_path / "q.onnx")
    with pytest.raises(UsageError, match="already holds QuantizeLinear"):
        quantize_int8(load_model(tmp_path / "q.onnx"), images(), W8A8)
    with pytest.raises(UsageError, match="w8a8 only"):
        quantize_int8(model, images(), Recipe())
    with pytest.raises(UsageError, match="percentile"):
        quantize_int8(model, images(), Recipe(8, 8, "percentile", 0.5))
    with pytest.raises(UsageError, match="observer"):
        quantize_int8(model, images(), Recipe(8, 8, "guess"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"\[3, 10, 12\].*\[3, 12, 12\]"):
        quantize_int8(model, images(4, (3, 10, 12)), W8A8)
    nothing = net()
    with pytest.raises(UnsupportedModelError, match="no operator that runs in int8"):
        quantize_int8(loaded(nothing.proto(nothing.node("Erf", ["x"]))), images(), W8A8)


def test_nan_in_calibration_names_the_node(net, loaded, images):
    n = net()
    t = n.node("Sqrt", [n.conv("x", 3, 4)], "root")
    model = loaded(n.proto(n.conv(t, 4, 4)))
    with pytest.raises(UnsupportedModelError, match=r"'root' \(Sqrt\).*sample 0"):
        quantize_int8(model, images(), W8A8)


def test_calibration_memory_does_not_grow_with_the_samples(net, loaded, images):
    import tracemalloc

    n = net()
    model = loaded(n.proto(residual_net(n)))
    peaks = []
    for count in (64, 512):  # fewer do not fill the histograms yet
        data = images(count)
        tracemalloc.start()
        quantize_int8(model, data, W8A8)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.2


def test_progress_is_told(net, loaded, images):
    steps = []

    class Listener:
        def start(self, label, total):
            steps.append((label, total))
            return 7

        def advance(self, task, count=1):
            steps.append(task)

        def finish(self, task):
            steps.append("end")

    n = net()
    quantize_int8(loaded(n.proto(residual_net(n))), images(5), W8A8, Listener())
    passes = [[(label, 5), 7, 7, 7, 7, 7, "end"] for label in ("calibrating channels", "calibrating")]
    assert steps == passes[0] + passes[1]


EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "fashion"


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_fashion_within_half_a_point(run, size):
    path = EXAMPLES / f"fashion_{size}.onnx"
    if not path.is_file() or not (EXAMPLES / "test.npz").is_file():
        pytest.skip(f"{os.path.relpath(path)} or its data is absent")
    model = load_model(path)
    calibration = load_dataset(str(EXAMPLES / "calibration.npz"), model)
    evaluation = load_dataset(str(EXAMPLES / "test.npz"), model, need_labels=True)
    name = model.inputs[0].name
    top1 = load_metric("top1")
    scores = []
    for graph in (model.ir, quantize_int8(model, calibration, W8A8)):
        proto = onnx_ir.to_proto(graph)
        scores.append(top1(accuracy_run(proto, name, evaluation), evaluation.y))
    assert scores[1] >= scores[0] - 0.005


def accuracy_run(proto: onnx.ModelProto, name: str, data: Dataset) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {name: sample})[0] for sample in data.batches(1)])
