"""Spawned compilers: what the plug-ins ask of them and how their failures read, with a stand-in; the real ones where an
environment variable names their Python."""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgescale_npu import QNN_BACKEND, RKNN_BACKEND, SpawnedBackend, rig
from onnx import TensorProto, numpy_helper

from edgescale.core.errors import MissingDependencyError, RigError, UnsupportedModelError
from edgescale.core.files import sha256_file, sha256_tree
from edgescale.core.target import Npu, load_target
from edgescale.core.variant import Variant, parse_recipe
from edgescale.frontend import load_dataset, load_model, model_from_ir, save_model
from edgescale.rigs import onnx_executor

STAND_IN = """
import json, os, signal, sys
words = sys.argv[1:]
assert words[0] == "-I", words
if words[1] == "-c":
    print("9.9")
    sys.exit()
how = os.environ["STAND_IN"]
request = json.loads(open(words[2]).read())
def answer(found):
    open(request["answer"], "w").write(json.dumps(found))
if how == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
elif how == "refuse":
    lines = ["Traceback (most recent call last):", '  File "x.py", line 1', "ValueError: no such platform 'rk1'", ""]
    answer({"error": "\\n".join(lines)})
elif how == "die":
    print("\\x1b[1;31mE build: Unsupported operator Einsum\\x1b[0m\\nbye", file=sys.stderr)
    sys.exit(3)
elif request["task"] == "compile":
    path = os.path.join(request["out"], "made.bin")
    open(path, "w").write(json.dumps(request["chip"]))
    answer({"entry": "made.bin", "files": ["made.bin"]})
elif how == "nothing":
    answer({"samples": 0})
else:
    import numpy as np, onnxruntime as ort
    session = ort.InferenceSession(request["model"])
    name = session.get_inputs()[0].name
    np.save(request["outputs"], np.concatenate([session.run(None, {name: s})[0] for s in np.load(request["samples"])]))
    answer({"samples": 1})
"""
TOOLS = [(QNN_BACKEND, "hexagon-sm8650"), (RKNN_BACKEND, "rockchip-rk3588")]
IDS = ["qnn", "rknn"]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Sets both variables to a program that behaves as it is told."""
    script, program = tmp_path / "stand_in.py", tmp_path / "python"
    script.write_text(STAND_IN)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    for backend, _ in TOOLS:
        monkeypatch.setenv(backend.tool.variable, str(program))

    def behave(how: str) -> None:
        monkeypatch.setenv("STAND_IN", how)

    behave("well")
    return behave


@pytest.fixture(scope="module")
def variants(repository: Path, tmp_path_factory: pytest.TempPathFactory):
    from edgescale.quantize import quantize

    folder = repository / "examples" / "fashion"
    model, calibration = load_model(folder / "fashion_small.onnx"), load_dataset(str(folder / "calibration.npz"))
    made = {}
    for recipe in ("w8a8", "w4a8"):
        path = tmp_path_factory.mktemp(recipe) / "model.onnx"
        graph = quantize(model, calibration, parse_recipe(recipe))
        save_model(model_from_ir(graph, model.name, model.sha256), path)
        made[recipe] = Variant(model.name, parse_recipe(recipe), path, sha256_file(path))
    return made


@pytest.fixture(scope="module")
def samples(repository: Path):
    return load_dataset(str(repository / "examples" / "fashion" / "test.npz")).head(6)


@pytest.mark.parametrize(("backend", "profile"), TOOLS, ids=IDS)
def test_an_artifact_is_compiled_run_and_weighed(
    stand_in, variants, samples, tmp_path: Path, backend: SpawnedBackend, profile: str
) -> None:
    target = load_target(profile)
    artifact = backend.compile(variants["w8a8"], target, tmp_path / "out")
    assert artifact.sha256 == sha256_tree(artifact.path) and artifact.kind == backend.tool.kind
    assert target.npu.accelerator in (artifact.path / "made.bin").read_text()
    found = rig(target.rig).executor(artifact, target)(samples.x)
    np.testing.assert_array_equal(found, onnx_executor(variants["w8a8"].path)(samples.x))
    measured = rig(target.rig).measure(artifact, target, samples)
    assert measured.metrics["flash"].value == (artifact.path / "made.bin").stat().st_size
    assert "latency" not in measured.metrics and "emulator's time is not the NPU's" in measured.unavailable["latency"]
    (artifact.path / "made.bin").unlink()
    with pytest.raises(RigError, match=r"made\.bin is missing; compile it again"):
        rig(target.rig).measure(artifact, target, samples)


@pytest.mark.parametrize(("backend", "profile"), TOOLS, ids=IDS)
def test_what_the_compiler_is_given_computes_the_same(
    stand_in, variants, samples, tmp_path: Path, backend: SpawnedBackend, profile: str
) -> None:
    """Four-bit weights in eight bits, zero-points written out, an older opset: the same outputs."""
    for recipe, variant in variants.items():
        artifact = backend.compile(variant, load_target(profile), tmp_path / recipe)
        model = onnx.load(str(artifact.path / "model.onnx"))
        kinds = {tensor.data_type for tensor in model.graph.initializer}
        assert not kinds & {TensorProto.INT4, TensorProto.UINT4}
        if backend is RKNN_BACKEND:
            assert max(opset.version for opset in model.opset_import) <= 19
            nodes = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
            assert nodes and all(len(node.input) == 3 and node.input[2] for node in nodes)
        np.testing.assert_array_equal(
            onnx_executor(artifact.path / "model.onnx")(samples.x), onnx_executor(variant.path)(samples.x)
        )


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("crash", r"failed to compile fashion_small-w8a8: it crashed \(SIGSEGV\)"),
        ("refuse", "refused to compile fashion_small-w8a8: ValueError: no such platform 'rk1'"),
        ("die", "failed to compile fashion_small-w8a8: E build: Unsupported operator Einsum"),
    ],
)
@pytest.mark.parametrize(("backend", "profile"), TOOLS, ids=IDS)
def test_however_it_ends(
    stand_in, variants, tmp_path: Path, backend: SpawnedBackend, profile: str, how: str, says: str
) -> None:
    stand_in(how)
    with pytest.raises(RigError, match=f"^{backend.tool.title} {says}$") as caught:
        backend.compile(variants["w8a8"], load_target(profile), tmp_path / "out")
    assert caught.value.exit_code == 5


def test_outputs_that_are_not_there(stand_in, variants, samples, tmp_path: Path) -> None:
    target = load_target("hexagon-sm8650")
    artifact = QNN_BACKEND.compile(variants["w8a8"], target, tmp_path / "out")
    stand_in("nothing")
    with pytest.raises(RigError, match="left no outputs"):
        rig("qnn").executor(artifact, target)(samples.x)
    with pytest.raises(RigError, match="runs artifacts of edgescale_rknn, not 'qnn'"):
        rig("rknn").executor(artifact, target)


@pytest.mark.parametrize(("backend", "profile"), TOOLS, ids=IDS)
def test_without_its_environment_the_commands_are_named(
    variants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: SpawnedBackend, profile: str
) -> None:
    for value in (None, str(tmp_path / "no-python")):
        monkeypatch.delenv(backend.tool.variable, raising=False)
        if value:
            monkeypatch.setenv(backend.tool.variable, value)
        hint = backend.missing()
        assert hint and f"pip install {backend.tool.install}" in hint and f"export {backend.tool.variable}=" in hint
        assert rig(backend.tool.kind).missing() == hint and backend.version().endswith("absent")
        with pytest.raises(MissingDependencyError, match=backend.tool.variable):
            backend.compile(variants["w8a8"], load_target(profile), tmp_path / "out")
    monkeypatch.setenv(backend.tool.variable, sys.executable)  # a Python without the package
    assert backend.missing() == hint


def test_refusals_name_the_value(stand_in, variants, tmp_path: Path) -> None:
    wrong = replace(load_target("hexagon-sm8650"), npu=Npu("sm1"))
    with pytest.raises(UnsupportedModelError, match=r"accelerator is one of sm8350, .*, found 'sm1'"):
        QNN_BACKEND.compile(variants["w8a8"], wrong, tmp_path / "a")
    with pytest.raises(UnsupportedModelError, match=r"target host has no \[npu\] table"):
        RKNN_BACKEND.compile(variants["w8a8"], load_target("host"), tmp_path / "b")
    model = onnx.load(str(variants["w8a8"].path))
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            zero = next(t for t in model.graph.initializer if t.name == node.input[2])
            if zero.data_type != TensorProto.INT16:
                zero.CopyFrom(numpy_helper.from_array(np.zeros((), np.int16), zero.name))
    onnx.save(model, tmp_path / "wide.onnx")
    wide = replace(variants["w8a8"], path=tmp_path / "wide.onnx")
    with pytest.raises(UnsupportedModelError, match=r"^node '.*': rknn-toolkit2 quantizes to int8, found 16 bits"):
        RKNN_BACKEND.compile(wide, load_target("rockchip-rk3588"), tmp_path / "c")


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "profile"), TOOLS, ids=IDS)
def test_the_real_compiler_and_emulator(
    variants, samples, tmp_path: Path, backend: SpawnedBackend, profile: str
) -> None:
    if not os.environ.get(backend.tool.variable):
        pytest.skip(f"{backend.tool.variable} names no Python with {backend.tool.package}: {backend.tool.hint}")
    assert backend.missing() is None
    target = load_target(profile)
    for recipe, variant in variants.items():
        artifact = backend.compile(variant, target, tmp_path / recipe)
        assert all((artifact.path / name).stat().st_size for name in artifact.meta["compiled"])
        found, wanted = rig(target.rig).executor(artifact, target)(samples.x), onnx_executor(variant.path)(samples.x)
        assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
        assert backend.check(load_model(variant.path)) == []
    with pytest.raises((RigError, UnsupportedModelError)) as caught:
        backend.compile(variants["w8a8"], replace(target, npu=Npu("no-such-chip")), tmp_path / "wrong")
    assert "\n" not in str(caught.value) and "no-such-chip" in str(caught.value).lower()
