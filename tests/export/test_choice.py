"""`edgescale export` on the command line: what it chooses, prints and refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgescale.bundle import Context, Entry, open_bundle, write_bundle
from edgescale.core.files import sha256_file, sha256_tree
from edgescale.core.measurement import METRIC_UNITS, Measurement
from edgescale.core.quantity import Quantity
from edgescale.core.target import Core, Target, load_target
from edgescale.core.variant import Artifact, Recipe, Variant

M4, M7 = load_target("cortex-m4-stm32l4r5"), load_target("cortex-m7-stm32f746")
HOST = Target("host", "this machine", "host", ("onnx",), Core("host", 0), sha256="a" * 64)


def _entry(folder: Path, model: str, target: Target, figures: dict[str, float], **flags: bool) -> Entry:
    """An entry with hand-made figures: C of one line, or a file that is called a model."""
    path = folder / f"{model}-{target.name}"
    path.mkdir(parents=True)
    port = {"name": "x", "bytes": 4, "dtype": "float32", "shape": [1, 1], "axes": [0, 1], "stored_shape": [1, 1]}
    if target is HOST:
        (path / "model.onnx").write_bytes(b"onnx")
        io = [{"name": "x", "shape": [1, 1], "dtype": "float32"}]
        meta: dict = {"file": "model.onnx", "session": {}, "inputs": io, "outputs": io}
    else:
        (path / f"es_{model}.c").write_text(f"int {model};\n")
        (path / f"es_{model}.h").write_text("\n")
        meta = {"symbol": model, "sources": [f"es_{model}.c"], "header": f"es_{model}.h",
                "inputs": [{**port, "accessor": f"es_{model}_input"}],
                "outputs": [{**port, "accessor": f"es_{model}_output"}]}  # fmt: skip
    (path / "artifact.json").write_text(json.dumps(meta))
    source = folder / f"{model}.onnx"
    source.write_bytes(b"onnx")
    variant = Variant(model, Recipe(), source, sha256_file(source))
    kind = "onnx" if target is HOST else "c"
    artifact = Artifact(variant.name, target.name, "b", kind, path, sha256_tree(path), meta)
    quantities = {metric: Quantity(value, METRIC_UNITS[metric], "measured", "") for metric, value in figures.items()}
    return Entry(variant, target, artifact, Measurement(artifact.sha256, target.name, "rig", quantities), **flags)


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., Path]:
    def make(*entries: tuple, **options) -> Path:
        rows = [_entry(tmp_path / "made", model, target, figures, **flags) for model, target, figures, flags in entries]
        return write_bundle(tmp_path / "toy", rows, Context("edgescale compile", **options))

    return make


SMALL = ("small", M4, {"accuracy": 0.8, "flash": 1000.0, "ram": 500.0}, {})
LARGE = ("large", M4, {"accuracy": 0.9, "flash": 9000.0, "ram": 700.0}, {})
CHOSEN = ("small", M4, SMALL[2], {"selected": True})


@pytest.mark.parametrize(
    ("entries", "options", "chosen"),
    [
        ([SMALL, LARGE], [], "large-fp32@cortex-m4-stm32l4r5"),
        ([CHOSEN, LARGE], [], "small-fp32@cortex-m4-stm32l4r5"),
        ([CHOSEN, LARGE], ["--variant", "large-fp32"], "large-fp32@cortex-m4-stm32l4r5"),
        ([CHOSEN, LARGE], ["--variant", "large-fp32@cortex-m4-stm32l4r5"], "large-fp32@cortex-m4-stm32l4r5"),
        ([SMALL, LARGE], ["--budget", "flash<=5000B"], "small-fp32@cortex-m4-stm32l4r5"),
        ([CHOSEN, LARGE], ["--budget", "accuracy>=0.85"], "large-fp32@cortex-m4-stm32l4r5"),
        ([SMALL, ("small", HOST, {"accuracy": 0.99}, {})], [], "small-fp32@cortex-m4-stm32l4r5"),
        ([SMALL, ("small", M7, SMALL[2], {})], ["--target", M7.name], "small-fp32@cortex-m7-stm32f746"),
    ],
)
def test_the_right_entry(entries, options, chosen: str, toy, edgescale, tmp_path: Path) -> None:
    answer = edgescale("export", toy(*entries), "-o", tmp_path / "out", "--json", *options)
    assert answer.code == 0, answer.err
    payload = json.loads(answer.out)
    assert (payload["edgescale"], payload["entry"]) == ("export", chosen)
    assert (tmp_path / "out" / payload["header"]).is_file()
    assert json.loads((tmp_path / "out" / "edgescale-export.json").read_text())["entry"] == chosen


@pytest.mark.parametrize(
    ("entries", "options", "code", "message"),
    [
        ([("net", HOST, {"accuracy": 0.9}, {})], [], 2, "ONNX models only"),
        ([SMALL, ("small", HOST, {"accuracy": 0.9}, {})], ["-t", "host"], 2, "no C to export"),
        ([SMALL, ("small", M7, SMALL[2], {})], [], 2, "choose one with --target"),
        ([SMALL], ["-t", "cortex-m99"], 2, "cortex-m4-stm32l4r5"),
        ([SMALL, LARGE], ["-v", "medium"], 2, "large-fp32, small-fp32"),
        ([SMALL], ["-b", "flash<=1B"], 3, "Nothing was exported"),
        ([SMALL], ["-v", "small-fp32", "-b", "ram<=1B"], 3, "nothing was exported"),
        ([SMALL], ["-b", "flosh<=1B"], 2, "flosh"),
        ([SMALL], ["-l", "bazel"], 2, "bazel"),
    ],
)
def test_refusals(entries, options, code: int, message: str, toy, edgescale, tmp_path: Path) -> None:
    answer = edgescale("export", toy(*entries), "-o", tmp_path / "out", *options)
    assert (answer.code, "Traceback" in answer.err) == (code, False)
    assert message in " ".join(answer.err.split()), answer.err
    assert not (tmp_path / "out").exists()


def test_a_damaged_bundle_is_not_exported(made, edgescale, tmp_path: Path) -> None:
    shutil.copytree(made.bundle, tmp_path / "bundle")
    source = next((tmp_path / "bundle").rglob("es_fashion_small_w8a8.c"))
    source.write_text(source.read_text() + "\n")
    answer = edgescale("export", tmp_path / "bundle", "-o", tmp_path / "out")
    assert answer.code == 1 and "has been changed" in answer.err
    assert not (tmp_path / "out").exists()


def test_the_figures_printed_are_the_manifests(made, edgescale, tmp_path: Path) -> None:
    answer = edgescale("export", made.bundle, "-v", "fashion_small-w8a8", "-o", tmp_path / "out")
    entry = open_bundle(made.bundle).entry("fashion_small-w8a8@cortex-m4-stm32l4r5")
    assert f"{entry.figures['arena'].value:,.0f} B" in answer.out
    for metric in ("flash", "RAM", "arena", "stack"):
        row = next(line for line in answer.out.splitlines() if f" {metric} " in line)
        assert entry.figures[metric.lower()].source in row


def test_a_missed_budget_of_the_bundle_is_told(toy, edgescale, tmp_path: Path) -> None:
    from edgescale.core.budget import Budgets, parse_budget

    bundle = toy(SMALL, budgets=Budgets(parse_budget("flash<=10B")))
    answer = edgescale("export", bundle, "-o", tmp_path / "out")
    assert answer.code == 0 and "misses the budget" in answer.out and "flash" in answer.out


def test_the_profile_by_path_must_be_the_bundles(made, repository: Path, edgescale, tmp_path: Path) -> None:
    mine = tmp_path / "board.toml"
    mine.write_bytes((repository / "profiles" / f"{M4.name}.toml").read_bytes())
    answer = edgescale("export", made.bundle, "-t", mine, "-l", "make", "-o", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert "0x8000000" in (tmp_path / "out" / "board" / "link.ld").read_text()
    mine.write_bytes(mine.read_bytes() + b"\n")
    answer = edgescale("export", made.bundle, "-t", mine, "-l", "make", "-o", tmp_path / "other")
    assert answer.code == 2 and "differs" in answer.err


def test_firmware_dir_holds_the_cmake_package(edgescale) -> None:
    answer = edgescale("export", "--firmware-dir")
    assert answer.code == 0
    assert (Path(answer.out.strip()) / "cmake" / "edgescale-config.cmake").is_file()
    assert (Path(answer.out.strip()) / "include" / "edgescale" / "es_quantize.h").is_file()


def test_several_inputs_and_outputs_channels_first(need, sh, edgescale, strict: str, tmp_path: Path) -> None:
    """Two images in, two values out, against ONNX Runtime; the example stores channels last."""
    need("make", "gcc")
    import onnxruntime as ort
    from edgescale_c import BACKEND

    nodes = [
        helper.make_node("Add", ["a", "b"], ["s"], "sum"),
        helper.make_node("Relu", ["s"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
    ]
    shape, pooled = [1, 3, 4, 5], [1, 3, 1, 1]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "two", [value(name, TensorProto.FLOAT, shape) for name in "ab"],
        [value("r", TensorProto.FLOAT, shape), value("p", TensorProto.FLOAT, pooled)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "two.onnx")
    variant = Variant("two", Recipe(), tmp_path / "two.onnx", sha256_file(tmp_path / "two.onnx"))
    (tmp_path / "artifact").mkdir()
    artifact = BACKEND.compile(variant, M4, tmp_path / "artifact")
    measurement = Measurement(artifact.sha256, M4.name, "rig", {})
    write_bundle(tmp_path / "bundle", [Entry(variant, M4, artifact, measurement)], Context("edgescale compile"))
    out = tmp_path / "out"
    assert edgescale("export", tmp_path / "bundle", "-l", "make", "-o", out).code == 0
    x = np.random.default_rng(0).standard_normal((6, 2, 3, 4, 5)).astype(np.float32)
    (out / "build").mkdir()
    (out / "build" / "input.bin").write_bytes(np.ascontiguousarray(x.transpose(0, 1, 3, 4, 2)).tobytes())
    sh("make", "example", f"CFLAGS={strict}", cwd=out)
    sh("./host/example", cwd=out / "build")
    found = np.frombuffer((out / "build" / "output.bin").read_bytes(), np.float32).reshape(6, 63)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for row, sample in zip(found, x, strict=True):
        r, p = session.run(None, {"a": sample[:1], "b": sample[1:]})
        np.testing.assert_allclose(row[:60].reshape(4, 5, 3).transpose(2, 0, 1), r[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(row[60:], p.ravel(), rtol=1e-5, atol=1e-6)
    assert edgescale("export", tmp_path / "bundle", "-l", "arduino", "-o", tmp_path / "arduino").code == 0
