"""The ONNX Runtime back end and the session helper it shares with the runtime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from edgescale_onnx import BACKEND
from onnx import TensorProto, helper, numpy_helper

from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.core.files import sha256_file, sha256_tree
from edgescale.core.target import load_target
from edgescale.core.variant import Recipe, Variant
from edgescale.runtime import ort

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3)


def model_proto(operator: str = "Gemm", domain: str = "") -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"], name="dense", domain=domain)],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    return model


def variant(path: Path) -> Variant:
    return Variant("net", Recipe(), path, sha256_file(path))


def test_compile_describes_and_copies(tmp_path: Path) -> None:
    onnx.save(model_proto(), str(tmp_path / "net.onnx"))
    out = tmp_path / "out"
    artifact = BACKEND.compile(variant(tmp_path / "net.onnx"), load_target("host"), out)
    assert (artifact.kind, artifact.backend, artifact.variant, artifact.target) == (
        "onnx",
        "edgescale_onnx",
        "net-fp32",
        "host",
    )
    assert artifact.sha256 == sha256_tree(out)
    assert json.loads((out / "artifact.json").read_text()) == artifact.meta
    assert artifact.meta["inputs"] == [{"name": "x", "shape": [1, 4], "dtype": "float32"}]
    assert (out / "model.onnx").read_bytes() == (tmp_path / "net.onnx").read_bytes()
    session = ort.open_session(out / artifact.meta["file"], artifact.meta["session"])
    x = np.ones((1, 4), np.float32)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ WEIGHTS)


def test_external_weights_come_along(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    onnx.save(model_proto(), str(source / "net.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    out = tmp_path / "out"
    BACKEND.compile(variant(source / "net.onnx"), load_target("host"), out)
    (source / "w.bin").unlink()
    session = ort.open_session(out / "model.onnx", {})
    np.testing.assert_allclose(session.run(None, {"x": np.ones((1, 4), np.float32)})[0], WEIGHTS.sum(axis=0)[None])


def test_refusals_carry_onnx_runtimes_words(tmp_path: Path) -> None:
    onnx.save(model_proto("Frobnicate", "my.domain"), str(tmp_path / "odd.onnx"))
    with pytest.raises(UnsupportedModelError, match=r"ONNX Runtime .* refuses it: .*Frobnicate"):
        BACKEND.compile(variant(tmp_path / "odd.onnx"), load_target("host"), tmp_path / "out")
    (tmp_path / "broken.onnx").write_bytes(b"\xff\x00 not a model")
    with pytest.raises(UnsupportedModelError, match="not a readable ONNX file"):
        BACKEND.compile(variant(tmp_path / "broken.onnx"), load_target("host"), tmp_path / "out2")


def test_backend_facts() -> None:
    assert BACKEND.missing() is None
    assert onnxruntime.__version__ in BACKEND.version()
    assert BACKEND.operators()[0][0] == "*"


def test_session_options_reach_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"session.disable_prepacking": "1", "session.x64quantprecision": "auto"}
    settings = {"intra_op_num_threads": 2, "graph_optimization_level": "ORT_ENABLE_BASIC", "config": config}
    for saturating, value in ((True, "1"), (False, "0")):
        monkeypatch.setattr(ort, "saturating_int8", lambda saturating=saturating: saturating)
        options = ort.session_options(settings)
        assert options.intra_op_num_threads == 2
        assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        assert options.get_session_config_entry("session.disable_prepacking") == "1"
        assert options.get_session_config_entry("session.x64quantprecision") == value


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"threads": 2}, "unknown key threads"),
        ({"intra_op_num_threads": 0}, "above 0"),
        ({"graph_optimization_level": "FAST"}, "ORT_ENABLE_ALL"),
    ],
)
def test_wrong_session_options(config: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        ort.session_options(config)
    with pytest.raises(UsageError, match="does not exist"):
        ort.open_session(tmp_path / "absent.onnx", {})
