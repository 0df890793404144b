"""Ethos-U: what Vela places where, what is said before it runs, and how its failures read."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgescale_tflite.ethosu import BACKEND, vela
from edgescale_tflite.ethosu.backend import DIALECT, compile_program
from edgescale_tflite.ethosu.placement import fallbacks, family_of
from edgescale_tflite.write import write_program
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edgescale.core.errors import MissingDependencyError, RigError, UnsupportedModelError
from edgescale.core.files import sha256_file, sha256_tree
from edgescale.core.target import Npu, Target, load_target
from edgescale.core.variant import Artifact, Variant, parse_recipe
from edgescale.frontend import load_dataset, load_model, model_from_ir, save_model
from edgescale.frontend.tflite.reader import read
from edgescale.lower import fixedpoint, lower
from edgescale.lower.program import Conv2D, Lut, Port, Program, Tensor
from edgescale.rigs import get_rig
from edgescale.verify import compare_with_reference
from tests.seeds import SEEDS

TARGETS = ("ethos-u55-128", "ethos-u65-256", "ethos-u85-256")
BATCH = settings(max_examples=2, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="session")
def compiler(harness: Any) -> None:
    if vela.command() is None:
        pytest.skip(f"Vela is not installed: {vela.INSTALL_HINT}, or name the program in {vela.VARIABLE}")


def lowered(path: Path) -> Program:
    model = load_model(path)
    return lower(model.ir, model.name)


def f32(value: float) -> float:
    return float(np.float32(value))


def three_layers(table: bool = True) -> Program:
    """Two convolutions around a table that is no function of LiteRT's."""
    rng = np.random.default_rng(0)
    shape = (1, 8, 8, 16)
    names, scales = ("x", "c", "t", "y"), (0.05, 0.06, 0.07, 0.08)
    tensors = [Tensor(name, shape, "int8", f32(scale), 3) for name, scale in zip(names, scales, strict=True)]

    def conv(one: Tensor, other: Tensor) -> Conv2D:
        scaling = fixedpoint.requant([one.scale * f32(0.01) / other.scale] * 16)
        weights = rng.integers(-7, 8, (16, 3, 3, 16)).astype(np.int8)
        return Conv2D(
            f"conv_{other.name}", (one.name,), other.name, weights, np.zeros(16, np.int32), (1, 1), (1, 1),
            (1, 1, 1, 1), 1, scaling, (-128, 127), weight_bits=4,
        )  # fmt: skip

    x, c, t, y = tensors
    odd = Lut("strange", ("c",), "t", rng.integers(-128, 128, 256).astype(np.int8), "strange")
    layers = (conv(x, c), odd, conv(t, y)) if table else (conv(x, y),)
    ports = [(Port(p.name, p.name, shape, (0, 1, 2, 3)),) for p in (x, y)]
    return Program("net", {p.name: p for p in tensors}, ports[0], ports[1], layers)


@pytest.mark.parametrize("name", ["kws01", "ic01", "ad01"])
@pytest.mark.parametrize("target", TARGETS)
def test_the_reference_models_run_on_the_npu_alone(
    compiler: None, mlperf_tiny, tmp_path: Path, target: str, name: str
) -> None:
    program = lowered(mlperf_tiny(f"{name}_int8.tflite"))
    meta = compile_program(program, load_target(target), tmp_path)
    found = meta["vela"]
    assert found["npu_ops"] == found["npu_macs"] == found["npu_cycles_share"] == 1 and found["predicted"]
    assert meta["fallbacks"] == meta["notes"] == []
    kinds = [op.kind for op in read((tmp_path / "model_vela.tflite").read_bytes(), "compiled").operators]
    assert kinds == ["CUSTOM ethos-u"]
    assert found["seconds"] == pytest.approx(found["cycles"] / found["clock_hz"], rel=1e-3)
    assert [row["name"] for row in meta["layers"]] == [layer.name for layer in program.layers]
    assert sum(row["cycles"] for row in meta["layers"]) >= 0.9 * found["npu_cycles"]
    heavy = [row for row in meta["layers"] if row["macs"] > 10_000]
    assert heavy and all(row["cycles"] > 0 for row in heavy)


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_the_shipped_family_runs_on_the_npu_alone(compiler: None, repository: Path, tmp_path: Path, size: str) -> None:
    from edgescale.quantize import quantize

    folder = repository / "examples" / "fashion"
    model, calibration = load_model(folder / f"fashion_{size}.onnx"), load_dataset(str(folder / "calibration.npz"))
    sizes = {}
    for recipe in ("w8a8", "w4a8"):
        path = tmp_path / f"{recipe}.onnx"
        save_model(
            model_from_ir(quantize(model, calibration, parse_recipe(recipe)), model.name, model.sha256), path
        )  # fmt: skip
        variant = Variant(model.name, parse_recipe(recipe), path, sha256_file(path))
        for name in TARGETS:
            target = load_target(name)
            artifact = BACKEND.compile(variant, target, tmp_path / f"{recipe}-{name}")
            samples = load_dataset(str(folder / "test.npz")).head(4)
            assert compare_with_reference(variant, artifact, target, samples)["exact"]
            measured = get_rig("vela").measure(artifact, target, samples)
            assert measured.metrics["npu"].value == 1 and measured.metrics["npu_macs"].value == 1
            assert measured.metrics["latency"].source == measured.metrics["ram"].source == "modelled"
            assert "by Vela" in measured.metrics["latency"].note
            sizes[recipe, name] = measured.metrics["weights"].value
    # Narrow weights lie in eight bits each, and the NPU's decoder gets them small again.
    assert all(sizes["w4a8", name] < sizes["w8a8", name] for name in TARGETS)


def test_an_operator_without_npu_is_named_with_what_would_help(compiler: None, tmp_path: Path) -> None:
    program = three_layers()
    target = load_target("ethos-u55-128")
    meta = compile_program(program, target, tmp_path)
    assert [row["kind"] for row in meta["fallbacks"]] == ["CAST", "GATHER"]
    assert 0 < meta["vela"]["npu_ops"] < 1 and meta["vela"]["predicted"]
    assert [row["on_cpu"] for row in meta["layers"]] == [False, True, False]
    (cast, gather) = meta["notes"]
    assert "'strange' (GATHER) runs on the CPU of ethos-u55-128" in gather and "HardSwish" in gather
    assert "'strange' (CAST)" in cast
    # A measurement refuses to call the NPU's part the latency.
    artifact = Artifact("net", target.name, BACKEND.name, "ethosu", tmp_path, sha256_tree(tmp_path), meta)
    samples = load_dataset_of(program)
    measured = get_rig("vela").measure(artifact, target, samples)
    assert "latency" not in measured.metrics and "2 operators run on the CPU" in measured.unavailable["latency"]
    # An Ethos-U85 has both operators.
    assert compile_program(program, load_target("ethos-u85-256"), tmp_path / "u85")["fallbacks"] == []


def load_dataset_of(program: Program) -> Any:
    from edgescale.core.dataset import Dataset

    shape = program.inputs[0].shape
    return Dataset("x", np.zeros((2, *shape[1:]), np.float32), None, "0" * 64)


@BATCH
@given(data=st.data(), seed=SEEDS)
def test_what_is_said_before_is_what_happens(compiler: None, harness, drawing, data, seed, tmp_path_factory) -> None:
    """Drawn layers: the operators Vela leaves to the CPU are those that were named."""
    told = harness.load_module("told_layers", Path(__file__).with_name("test_layers.py")).told
    strategies = [drawing.window_layers(kind) for kind in ("conv", "depthwise", "pool")]
    strategies += [drawing.dense_layers(), drawing.elementwise_layers(), drawing.moving_layers("int8")]
    drawn = [one for some in strategies for one in data.draw(st.lists(some, min_size=5, max_size=5))]
    program = harness.together([told(*one) for one in drawn])
    for name in ("ethos-u55-128", "ethos-u85-256"):
        meta = compile_program(program, load_target(name), tmp_path_factory.mktemp("vela"))
        assert meta["vela"]["predicted"], meta["fallbacks"]


def test_a_float_model_is_one_note(compiler: None, repository: Path) -> None:
    model = load_model(repository / "examples" / "fashion" / "fashion_small.onnx")
    (note,) = BACKEND.notes(model, load_target("ethos-u55-128"))
    assert "more of 14 operators run on the CPU" in note and note.endswith("quantize the model (recipe w8a8)")


def test_narrow_weights_are_kept_in_eight_bits(harness) -> None:
    file = read(write_program(three_layers(), DIALECT).data, "net")
    assert {tensor.kind for tensor in file.tensors if tensor.data is not None and tensor.data.ndim == 4} == {"INT8"}
    wide = read(write_program(three_layers()).data, "net")
    assert {tensor.kind for tensor in wide.tensors if tensor.data is not None and tensor.data.ndim == 4} == {"INT4"}
    assert any("int4" in found.reason for found in fallbacks(wide, family_of("ethos-u55-128")))


def test_a_target_without_an_npu_is_refused(harness, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"target host has no \[npu\] table"):
        compile_program(three_layers(), load_target("host"), tmp_path)


def with_npu(**changes: str) -> Target:
    target = load_target("ethos-u55-128")
    return replace(target, npu=replace(target.npu, **changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"accelerator": "ethos-u54-128"}, "invalid choice: 'ethos-u54-128'"),
        ({"system_config": "Nowhere"}, "Nowhere"),
        ({"memory_mode": "Shared"}, "Shared"),
    ],
)
def test_a_wrong_name_is_one_sentence(compiler: None, tmp_path: Path, changes: dict[str, str], says: str) -> None:
    with pytest.raises(RigError, match="Vela failed on model") as caught:
        compile_program(three_layers(), with_npu(**changes), tmp_path)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_truncated_file_is_one_sentence(compiler: None, tmp_path: Path) -> None:
    (tmp_path / "cut.tflite").write_bytes(write_program(three_layers(), DIALECT).data[:2000])
    with pytest.raises(RigError, match=r"^Vela failed on cut.tflite for ethos-u55-128: [^\n]+$"):
        vela.run(tmp_path / "cut.tflite", with_npu().npu, tmp_path / "out")


def test_a_crash_is_one_sentence(compiler: None, tmp_path: Path) -> None:
    """Tensors of four bits end Vela 5.2 with a signal."""
    (tmp_path / "narrow.tflite").write_bytes(write_program(three_layers()).data)
    with pytest.raises(RigError, match=r"^Vela failed on narrow.tflite for ethos-u55-128: [^\n]+$"):
        vela.run(tmp_path / "narrow.tflite", with_npu().npu, tmp_path / "out")


@pytest.mark.parametrize(
    ("script", "says"),
    [("kill -8 $$", r"it crashed \(SIGFPE\)"), ("exit 3", "exit code 3"), ("echo done", "done")],
)
def test_however_it_ends(harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, says: str) -> None:
    program = tmp_path / "vela"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv(vela.VARIABLE, str(program))
    with pytest.raises(RigError, match=f"^Vela failed on model.tflite for ethos-u55-128: {says}$"):
        compile_program(three_layers(), with_npu(), tmp_path / "out")


def test_without_vela_the_command_is_named(harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(vela.VARIABLE, str(tmp_path / "nothing"))
    assert "edgescale[ethosu]" in BACKEND.missing() and BACKEND.version().endswith("vela absent")
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgescale\[ethosu\]'"):
        vela.run(tmp_path / "x.tflite", Npu("ethos-u55-128", "a", "b"), tmp_path)
    assert os.environ[vela.VARIABLE].endswith("nothing")


def weighty(weights: np.ndarray) -> Program:
    """A 3x3 convolution of 64 channels on 16x16 pixels."""
    shape = (1, 16, 16, 64)
    x, y = Tensor("x", shape, "int8", f32(0.05), 3), Tensor("y", shape, "int8", f32(0.4), -5)
    scaling = fixedpoint.requant([x.scale * f32(0.01) / y.scale] * 64)
    layer = Conv2D(
        "conv", ("x",), "y", weights.astype(np.int8), np.zeros(64, np.int32), (1, 1), (1, 1), (1, 1, 1, 1), 1, scaling,
        (-128, 127),
    )  # fmt: skip
    ports = [(Port(p.name, p.name, shape, (0, 1, 2, 3)),) for p in (x, y)]
    return Program("net", {"x": x, "y": y}, ports[0], ports[1], (layer,))


def test_sparse_and_narrow_weights_are_costs(compiler: None, tmp_path: Path) -> None:
    """What selection and search read of an artifact knows zeros, narrow ranges and, on U85, the pattern 2:4."""
    rng = np.random.default_rng(0)
    dense = rng.integers(-127, 128, (64, 3, 3, 64))
    dense[dense == 0] = 1
    groups = dense.reshape(64, 3, 3, 16, 4).copy()
    order = np.argsort(rng.random(groups.shape), axis=-1)
    np.put_along_axis(groups, order[..., :2], 0, axis=-1)
    half = dense * (rng.permutation(dense.size).reshape(dense.shape) % 2)
    kinds = {"dense": dense, "2:4": groups.reshape(dense.shape), "half": half, "narrow": dense % 15 - 7}
    cycles: dict[tuple[str, str], float] = {}
    weights: dict[tuple[str, str], float] = {}
    for name in ("ethos-u55-128", "ethos-u85-256"):
        for kind, values in kinds.items():
            out = tmp_path / f"{name}-{kind.replace(':', '')}"
            program = weighty(values)
            meta = compile_program(program, load_target(name), out)
            artifact = Artifact("net", name, BACKEND.name, "ethosu", out, sha256_tree(out), meta)
            found = get_rig("vela").measure(artifact, load_target(name), load_dataset_of(program)).metrics
            cycles[name, kind], weights[name, kind] = found["cycles"].value, found["weights"].value
        for kind in ("2:4", "half"):
            assert weights[name, kind] < 0.8 * weights[name, "dense"]
        assert weights[name, "narrow"] < 0.6 * weights[name, "dense"]
    assert cycles["ethos-u85-256", "2:4"] < 0.7 * cycles["ethos-u85-256", "half"]
    assert cycles["ethos-u55-128", "2:4"] > 0.95 * cycles["ethos-u55-128", "half"]
