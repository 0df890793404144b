"""The host rig on models small enough to check by hand."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgescale.core.dataset import Dataset
from edgescale.core.errors import RigError, UsageError
from edgescale.core.files import sha256_file
from edgescale.core.target import load_target
from edgescale.core.variant import Artifact
from edgescale.rigs import get_rig, local_executor, onnx_executor

WEIGHTS = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)
DENSE = np.random.default_rng(2).normal(size=(4, 5)).astype(np.float32)


def save_model(path: Path, batch: int | str = 1) -> None:
    """conv 3x3 (4 channels) + relu + global average + gemm (5), input [batch, 3, 10, 10]."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="block/conv"),
        helper.make_node("Relu", ["c"], ["r"], name="block/relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "d"], ["y"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 10, 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(WEIGHTS, "w"), numpy_helper.from_array(DENSE, "d")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, str(path))


def expected(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    features = np.maximum(np.einsum("ncyxkl,ockl->noyx", windows, WEIGHTS), 0)
    return features.mean(axis=(2, 3)) @ DENSE


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    save_model(tmp_path / "model.onnx")
    meta = {"file": "model.onnx", "session": {"intra_op_num_threads": 1}}
    return Artifact("net-fp32", "host", "edgescale_onnx", "onnx", tmp_path, sha256_file(tmp_path / "model.onnx"), meta)


@pytest.fixture
def samples() -> Dataset:
    return Dataset("random", np.random.default_rng(3).normal(size=(6, 3, 10, 10)).astype(np.float32), None, "3")


def test_executor_equals_numpy(artifact: Artifact, samples: Dataset) -> None:
    outputs = local_executor(artifact, load_target("host"))(samples.x)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, expected(samples.x), rtol=1e-5, atol=1e-5)


def test_onnx_executor_takes_a_symbolic_batch(tmp_path: Path, samples: Dataset) -> None:
    save_model(tmp_path / "dynamic.onnx", batch="N")
    outputs = onnx_executor(tmp_path / "dynamic.onnx")(samples.x)
    np.testing.assert_allclose(outputs, expected(samples.x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_measure(artifact: Artifact, samples: Dataset) -> None:
    measured = get_rig("host").measure(artifact, load_target("host"), samples, max_seconds=1.0, threads=2)
    figures = {name: q.value for name, q in measured.metrics.items()}
    assert 0 < figures["latency"] <= figures["latency_p95"] <= figures["latency_p99"]
    assert figures["init"] > 0
    assert figures["first_run"] > 0
    assert figures["flash"] == (artifact.path / "model.onnx").stat().st_size
    assert 0 < figures["ram"] < 200e6
    assert {q.source for q in measured.metrics.values()} == {"measured"}
    assert measured.environment["threads"] == "2"
    assert int(measured.environment["runs"]) >= 50
    assert measured.environment["input_crc32"] == f"{zlib.crc32(samples.x.tobytes()):08x}"
    assert "energy" in measured.unavailable
    layers = {layer.name: layer for layer in measured.layers}
    assert layers["block/conv"].macs == 8 * 8 * 4 * 27
    assert layers["head"].macs == 20
    assert layers["block/conv"].kernel == "fused", "ReLU went into the convolution"
    assert all(layer.metrics["latency"].value >= 0 for layer in measured.layers)


def test_wrong_requests(artifact: Artifact, samples: Dataset, tiny: Artifact) -> None:
    rig, target = get_rig("host"), load_target("host")
    with pytest.raises(UsageError, match="host has no option arena_limit"):
        rig.measure(artifact, target, samples, arena_limit=4)
    with pytest.raises(UsageError, match="intra_op_num_threads must be a whole number"):
        rig.measure(artifact, target, samples, threads=0)
    with pytest.raises(UsageError, match=r"takes samples of shape \(3, 10, 10\), not \(3, 9, 10\)"):
        rig.executor(artifact, target)(np.zeros((1, 3, 9, 10), np.float32))
    with pytest.raises(RigError, match="runs ONNX artifacts, not 'c'"):
        rig.executor(tiny, target)


@pytest.mark.slow
def test_memory_growth_is_the_models(tmp_path: Path, samples: Dataset, artifact: Artifact) -> None:
    """A model with 32 MiB more weights grows by at least that much more, and not by ONNX Runtime itself."""
    big = tmp_path / "big"
    big.mkdir()
    weights = np.ones((1 << 12, 1 << 11), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x", "axes"], ["m"], name="mean", keepdims=0),
            helper.make_node("MatMul", ["m", "a"], ["h"], name="first"),
            helper.make_node("MatMul", ["h", "b"], ["y"], name="second"),
        ],
        "big",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 10, 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1 << 11])],
        [
            numpy_helper.from_array(np.array([2, 3]), "axes"),
            numpy_helper.from_array(np.ones((3, 1 << 12), np.float32), "a"),
            numpy_helper.from_array(weights, "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    onnx.save(model, str(big / "model.onnx"))
    heavy = Artifact("big-fp32", "host", "edgescale_onnx", "onnx", big, "0", {"file": "model.onnx", "session": {}})

    def grown(which: Artifact) -> float:
        measured = get_rig("host").measure(which, load_target("host"), samples, max_seconds=0.2)
        return float(measured.metrics["ram"].value)

    assert grown(heavy) - grown(artifact) >= weights.nbytes * 0.9


def test_rig_names(monkeypatch: pytest.MonkeyPatch, variation: Callable[..., Artifact]) -> None:
    from edgescale.rigs import CORES, rig_fingerprint
    from edgescale.rigs.cycle_tables import TABLES
    from edgescale.rigs.machine import CORES as EMULATED

    assert set(CORES) == set(EMULATED) == set(TABLES)
    for name in ("jtag", "emulator:cortex-m55", "emulator"):
        with pytest.raises(UsageError, match=r"unknown rig .*known: host, emulator:cortex-m0, .*emulator:cortex-m33"):
            get_rig(name)
    assert get_rig("emulator:cortex-m4").name == "emulator:cortex-m4"
    assert rig_fingerprint("host") != rig_fingerprint("emulator:cortex-m4")
