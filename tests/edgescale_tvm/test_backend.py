"""The back end and the rig `tvm`: the shipped family and MLPerf's models, what is refused, what is measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from edgescale_tvm import BACKEND

from edgescale.core.errors import MissingDependencyError, RigError, UnsupportedModelError, UsageError
from edgescale.core.files import sha256_file, sha256_tree
from edgescale.core.target import load_target
from edgescale.core.variant import Artifact, Recipe, Variant, parse_recipe
from edgescale.frontend import load_dataset, load_model, model_from_ir, save_model
from edgescale.rigs import get_rig, local_executor
from edgescale.verify import compare_with_reference

TARGET = load_target("host-tvm")


@pytest.fixture(scope="module")
def fashion(harness, repository: Path, tmp_path_factory: pytest.TempPathFactory):
    """Artifacts of the small example by recipe, with their variants."""
    from edgescale.quantize import quantize

    folder = repository / "examples" / "fashion"
    model, calibration = load_model(folder / "fashion_small.onnx"), load_dataset(str(folder / "calibration.npz"))
    made = {}
    for name in ("fp32", "w8a8", "w4a8"):
        recipe = Recipe() if name == "fp32" else parse_recipe(name)
        path = tmp_path_factory.mktemp(name) / "model.onnx"
        graph = model.ir if name == "fp32" else quantize(model, calibration, recipe)
        save_model(model_from_ir(graph, model.name, model.sha256), path)
        variant = Variant("fashion_small", recipe, path, sha256_file(path))
        made[name] = variant, BACKEND.compile(variant, TARGET, path.parent / "out")
    return made


@pytest.mark.parametrize("recipe", ["fp32", "w8a8", "w4a8"])
def test_the_example_equals_the_reference(fashion, repository: Path, recipe: str) -> None:
    variant, artifact = fashion[recipe]
    samples = load_dataset(str(repository / "examples" / "fashion" / "test.npz")).head(16)
    assert compare_with_reference(variant, artifact, TARGET, samples)["exact"] == (recipe != "fp32")
    assert artifact.sha256 == sha256_tree(artifact.path)
    assert json.loads((artifact.path / "artifact.json").read_text()) == artifact.meta


def test_integers_are_computed_and_stored_as_integers(fashion) -> None:
    found = {name: artifact.meta for name, (_, artifact) in fashion.items()}
    assert found["fp32"]["kernels"] == ["es_conv_f32", "es_depthwise_f32"]
    assert set(found["w8a8"]["kernels"]) >= {"es_conv_s8", "es_depthwise_s8"}
    assert "es_conv_s4" in found["w4a8"]["kernels"]
    sizes = {name: (artifact.path / "model.so").stat().st_size for name, (_, artifact) in fashion.items()}
    assert sizes["w4a8"] < sizes["w8a8"] < sizes["fp32"]


def test_the_rig_measures(fashion, repository: Path) -> None:
    _, artifact = fashion["w8a8"]
    samples = load_dataset(str(repository / "examples" / "fashion" / "test.npz")).head(4)
    measurement = get_rig("tvm").measure(artifact, TARGET, samples, max_seconds=0.5)
    assert measurement.artifact_sha256 == artifact.sha256
    assert 0 < measurement.metrics["latency"].value <= measurement.metrics["latency_p99"].value
    assert measurement.metrics["flash"].value == (artifact.path / "model.so").stat().st_size
    assert measurement.metrics["weights"].value == artifact.meta["weights_bytes"] > 0
    x = samples.x
    np.testing.assert_array_equal(local_executor(artifact, TARGET)(x), get_rig("tvm").executor(artifact, TARGET)(x))
    with pytest.raises(UsageError, match="no option speed"):
        get_rig("tvm").measure(artifact, TARGET, samples, speed=1)


def test_a_broken_library_is_one_sentence(fashion, repository: Path, tmp_path: Path) -> None:
    _, artifact = fashion["w8a8"]
    (tmp_path / "model.so").write_bytes((artifact.path / "model.so").read_bytes()[:2000])
    broken = Artifact("net", TARGET.name, "edgescale_tvm", "tvm", tmp_path, sha256_tree(tmp_path), artifact.meta)
    with pytest.raises(RigError, match=r"model\.so is missing or not what was compiled"):
        get_rig("tvm").raw_executor(broken, TARGET)
    samples = load_dataset(str(repository / "examples" / "fashion" / "test.npz")).head(1)
    with pytest.raises(RigError, match="not what was compiled"):
        get_rig("tvm").measure(broken, TARGET, samples)


def test_a_bare_metal_target_is_refused(harness, repository: Path, tmp_path: Path) -> None:
    path = repository / "examples" / "fashion" / "fashion_small.onnx"
    with pytest.raises(UnsupportedModelError, match=r"cortex-m4-stm32l4r5: TVM's run time needs Linux"):
        BACKEND.compile(
            Variant("net", Recipe(), path, sha256_file(path)), load_target("cortex-m4-stm32l4r5"), tmp_path / "out"
        )


def test_rig_names_and_a_missing_tvm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert get_rig("tvm-rpc://board.lan:9090").port == 9090
    assert get_rig("tvm-rpc://[::1]:1").host == "::1"
    for name in ("tvm-rpc://board", "tvm-rpc://board:0", "tvm-rpc://:9090", "tvm-rpc:board:1"):
        with pytest.raises(UsageError, match="tvm-rpc://host:port"):
            get_rig(name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "edgescale[tvm]" in BACKEND.missing()
    (tmp_path / "model.so").touch()
    meta = {"library": "model.so", "library_sha256": sha256_file(tmp_path / "model.so"), "inputs": [], "outputs": []}
    artifact = Artifact("net", "host-tvm", "edgescale_tvm", "tvm", tmp_path, "0" * 64, meta)
    with pytest.raises(MissingDependencyError, match="TVM"):
        get_rig("tvm").raw_executor(artifact, TARGET)
