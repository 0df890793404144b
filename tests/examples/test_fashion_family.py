"""The tracked Fashion-MNIST family: files, shapes, sizes and accuracy in ONNX Runtime (no torch)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

FAMILY = Path(__file__).resolve().parents[2] / "examples" / "fashion"
SIZES = ("small", "medium", "large")
PARAMETERS = {"small": 5_000, "medium": 25_000, "large": 100_000}
ACCURACY_FLOOR = {"small": 0.89, "medium": 0.91, "large": 0.92}
OPERATORS = {
    *("Conv", "BatchNormalization", "Relu", "Clip", "Add", "Gemm"),
    *("GlobalAveragePool", "AveragePool", "MaxPool", "Flatten", "Reshape"),
}
FILE_LIMIT = 3 * 2**20


def model_path(size: str) -> Path:
    return FAMILY / f"fashion_{size}.onnx"


def load_model(size: str) -> onnx.ModelProto:
    return onnx.load(model_path(size), load_external_data=False)


def load_arrays(name: str) -> dict[str, NDArray[Any]]:
    with np.load(FAMILY / name, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def load_data_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fashion_data", FAMILY / "fashion_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shape_of(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def trained_numbers(model: onnx.ModelProto) -> int:
    """Count weights, biases, scales and shifts; running statistics and constants are not trained."""
    count = 0
    for tensor in model.graph.initializer:
        if tensor.name.endswith((".weight", ".bias")):
            count += int(np.prod(tensor.dims))
    return count


def macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of Conv and Gemm for one image, from inferred shapes."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {value.name: shape_of(value) for value in graph.value_info}
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type == "Conv":
            _, channels, height, width = shapes[node.output[0]]
            total += int(channels) * int(height) * int(width) * int(np.prod(weights[node.input[1]][1:]))
        elif node.op_type == "Gemm":
            total += int(np.prod(weights[node.input[1]]))
    return total


@pytest.mark.parametrize("name", ["calibration.npz", "test.npz", "LICENSE", "README.md"])
def test_file_is_there_and_small(name: str) -> None:
    path = FAMILY / name
    assert path.is_file()
    assert 0 < path.stat().st_size < FILE_LIMIT


@pytest.mark.parametrize(("name", "count"), [("calibration.npz", 512), ("test.npz", 2000)])
def test_subset_is_balanced_model_input(name: str, count: int) -> None:
    arrays = load_arrays(name)
    assert set(arrays) == {"x", "y"}
    x, y = arrays["x"], arrays["y"]
    assert x.shape == (count, 1, 28, 28)
    assert x.dtype == np.float32
    assert y.shape == (count,)
    assert y.dtype == np.int64
    assert x.min() == 0.0
    assert x.max() == 1.0
    per_class = np.bincount(y, minlength=10)
    assert len(per_class) == 10
    assert per_class.max() - per_class.min() <= 1
    pixels = x * 255
    np.testing.assert_allclose(pixels, np.round(pixels), atol=1e-4)  # nothing but k / 255
    assert len(np.unique(x.reshape(count, -1), axis=0)) == count


def test_subsets_share_no_image() -> None:
    calibration = {image.tobytes() for image in load_arrays("calibration.npz")["x"]}
    assert not calibration & {image.tobytes() for image in load_arrays("test.npz")["x"]}


@pytest.mark.parametrize("size", SIZES)
def test_model_is_one_valid_file(size: str) -> None:
    path = model_path(size)
    assert path.stat().st_size < FILE_LIMIT
    model = load_model(size)
    onnx.checker.check_model(model, full_check=True)
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
    assert next(entry.version for entry in model.opset_import if entry.domain == "") >= 17
    assert {node.domain for node in model.graph.node} == {""}
    assert {node.op_type for node in model.graph.node} <= OPERATORS


@pytest.mark.parametrize("size", SIZES)
def test_model_has_the_family_signature(size: str) -> None:
    graph = load_model(size).graph
    assert [(value.name, shape_of(value)) for value in graph.input] == [("image", ["N", 1, 28, 28])]
    assert [(value.name, shape_of(value)) for value in graph.output] == [("logits", ["N", 10])]
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("size", SIZES)
def test_model_keeps_normalisation_and_has_readable_names(size: str) -> None:
    graph = load_model(size).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("BatchNormalization") == kinds.count("Conv")
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert {"stem.conv", "stage1.block0.depthwise.conv", "pool", "classifier"} <= set(names)
    initializers = {tensor.name for tensor in graph.initializer}
    assert {"stem.conv.weight", "stage1.block0.depthwise.conv.weight", "classifier.bias"} <= initializers


def test_family_holds_depthwise_and_residual_blocks() -> None:
    for size in SIZES:
        nodes = load_model(size).graph.node
        groups = [
            attribute.i
            for node in nodes
            if node.op_type == "Conv"
            for attribute in node.attribute
            if attribute.name == "group"
        ]
        assert max(groups) > 1
        assert any(node.op_type == "Add" for node in nodes)
    kinds = {node.op_type for node in load_model("large").graph.node}
    assert {"Relu", "Clip"} <= kinds


@pytest.mark.parametrize("size", SIZES)
def test_parameter_count(size: str) -> None:
    assert trained_numbers(load_model(size)) == pytest.approx(PARAMETERS[size], rel=0.2)


def test_sizes_differ_in_work() -> None:
    small, medium, large = (macs(load_model(size)) for size in SIZES)
    assert 250_000 < small < 400_000
    assert 3 * small < medium < 2_000_000
    assert 3 * medium < large < 7_000_000


@pytest.mark.parametrize("size", SIZES)
def test_accuracy_on_the_tracked_test_images(size: str) -> None:
    arrays = load_arrays("test.npz")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model_path(size)), options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": arrays["x"]})
    assert logits.shape == (2000, 10)
    assert np.isfinite(logits).all()
    assert float((logits.argmax(axis=1) == arrays["y"]).mean()) >= ACCURACY_FLOOR[size]
    (single,) = session.run(["logits"], {"image": arrays["x"][:1]})
    np.testing.assert_allclose(single, logits[:1], atol=1e-4)


def test_missing_data_set_says_what_to_install(tmp_path: Path) -> None:
    data = load_data_module()
    with pytest.raises(data.DataMissingError, match="apt-get install dataset-fashion-mnist"):
        data.load_split(tmp_path, "train")


def test_subset_files_depend_on_the_arrays_only(tmp_path: Path) -> None:
    data = load_data_module()
    labels = np.repeat(np.arange(10), 20)
    index = data.stratified(labels, 53, seed=3)
    assert len(set(index.tolist())) == 53
    assert np.bincount(labels[index]).tolist() == [6, 6, 6, 5, 5, 5, 5, 5, 5, 5]
    assert np.array_equal(index, data.stratified(labels, 53, seed=3))
    data.save_npz(tmp_path / "a.npz", {"y": index})
    data.save_npz(tmp_path / "b.npz", {"y": index})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as stored:
        assert np.array_equal(stored["y"], index)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]
