"""The back end and the rig `litert`: what is compiled, verified, measured and refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgescale_tflite import BACKEND

from edgescale.core.errors import MissingDependencyError, RigError, UsageError
from edgescale.core.files import sha256_file, sha256_tree
from edgescale.core.target import load_target
from edgescale.core.variant import Artifact, Recipe, Variant, parse_recipe
from edgescale.frontend import load_dataset, load_model, model_from_ir, save_model
from edgescale.rigs import get_rig, local_executor, rig_fingerprint
from edgescale.verify import compare_with_reference

TARGET = load_target("host-litert")


@pytest.fixture(scope="module")
def fashion(harness: Any, repository: Path, tmp_path_factory: pytest.TempPathFactory):
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


def samples(repository: Path, count: int):
    return load_dataset(str(repository / "examples" / "fashion" / "test.npz")).head(count)


@pytest.mark.parametrize("recipe", ["fp32", "w8a8", "w4a8"])
def test_the_example_equals_the_reference(fashion, repository: Path, recipe: str) -> None:
    variant, artifact = fashion[recipe]
    assert compare_with_reference(variant, artifact, TARGET, samples(repository, 16))["exact"] == (recipe != "fp32")
    assert artifact.sha256 == sha256_tree(artifact.path)
    assert json.loads((artifact.path / "artifact.json").read_text()) == artifact.meta


def test_narrow_weights_are_stored_narrow(fashion) -> None:
    weights = {name: artifact.meta["weights_bytes"] for name, (_, artifact) in fashion.items()}
    assert weights["w4a8"] < 0.75 * weights["w8a8"] < 0.35 * weights["fp32"]


def test_the_rig_measures(fashion, repository: Path) -> None:
    _, artifact = fashion["w8a8"]
    given = samples(repository, 4)
    measurement = get_rig("litert").measure(artifact, TARGET, given, max_seconds=0.5)
    assert measurement.artifact_sha256 == artifact.sha256
    assert 0 < measurement.metrics["latency"].value <= measurement.metrics["latency_p99"].value
    assert measurement.metrics["flash"].value == (artifact.path / "model.tflite").stat().st_size
    assert measurement.metrics["weights"].value == artifact.meta["weights_bytes"] > 0
    assert re.fullmatch(r"(1 step|\d+ steps) on 4 samples", measurement.environment["default_kernels_differ_by"])
    np.testing.assert_array_equal(
        local_executor(artifact, TARGET)(given.x), get_rig("litert").executor(artifact, TARGET)(given.x)
    )
    with pytest.raises(UsageError, match="no option speed"):
        get_rig("litert").measure(artifact, TARGET, given, speed=1)
    assert rig_fingerprint("litert") != rig_fingerprint("host")


def test_a_truncated_file_is_one_sentence(fashion, repository: Path, tmp_path: Path) -> None:
    _, artifact = fashion["w8a8"]
    (tmp_path / "model.tflite").write_bytes((artifact.path / "model.tflite").read_bytes()[:2000])
    broken = Artifact("net", TARGET.name, "edgescale_tflite", "tflite", tmp_path, sha256_tree(tmp_path), artifact.meta)
    with pytest.raises(RigError, match=r"model\.tflite is missing or not what was compiled"):
        get_rig("litert").raw_executor(broken, TARGET)
    with pytest.raises(RigError, match="not what was compiled"):
        get_rig("litert").measure(broken, TARGET, samples(repository, 1))
    other = Artifact("net", "host", "edgescale_onnx", "onnx", tmp_path, "0" * 64, {"file": "model.onnx"})
    with pytest.raises(RigError, match="runs TensorFlow Lite artifacts, not 'onnx'"):
        get_rig("litert").raw_executor(other, TARGET)


def test_a_missing_litert_names_the_command(fashion, monkeypatch: pytest.MonkeyPatch) -> None:
    _, artifact = fashion["w8a8"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "edgescale[tflite]" in BACKEND.missing()
    with pytest.raises(MissingDependencyError, match="LiteRT"):
        get_rig("litert").raw_executor(artifact, TARGET)
