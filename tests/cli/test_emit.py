"""`edgescale compile --emit`: several back ends, one table; what one of them lacks costs the others nothing."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgescale.backends import backend_names, get_backend
from edgescale.core.errors import EdgescaleError, UsageError
from edgescale.core.target import load_target
from edgescale.emitted import emitted_targets


def need(*names: str) -> None:
    for name in names:
        if name not in backend_names():
            pytest.skip(f"{name} is not installed with its entry point: pip install -e '.[dev]' again")
        try:
            get_backend(name)
        except EdgescaleError as error:
            pytest.skip(str(error))


def recurrent_nets(repository: Path) -> Any:
    spec = importlib.util.spec_from_file_location("emit_recurrent_nets", repository / "tests" / "recurrent_nets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_table_over_back_ends(edgescale: Callable, project: object, tmp_path: Path) -> None:
    need("edgescale_tflite")
    data = ["--calib", project.calib, "--eval", project.test, "-r", "w8a8"]
    answer = edgescale("compile", project.model, *data, "--emit", "onnx,tflite", "--out", tmp_path / "a", "--json")
    result = json.loads(answer.out)
    rows = {row["backend"]: row for row in result["comparison"]}
    assert list(rows) == ["edgescale_onnx", "edgescale_tflite"]
    assert {row["target"] for row in rows.values()} == {"host", "host-litert"}
    for row in rows.values():
        assert row["latency"]["source"] == "measured" and row["latency"]["value"] > 0 and row["flash"]["value"] > 0
        assert row["accuracy"]["value"] >= 0.9
    assert rows["edgescale_tflite"]["agreement"].startswith("bit for bit")
    assert "steps" in rows["edgescale_onnx"]["agreement"] or rows["edgescale_onnx"]["agreement"] == "bit for bit"
    report = tmp_path / "report.txt"
    shown = edgescale(
        "compile", project.model, *data, "--emit", "onnx,tflite", "--out", tmp_path / "b", "--report", report
    )
    for text in (shown.out, report.read_text()):
        assert "agrees with the reference" in text and "host-litert" in text
    served = json.loads(edgescale("run", tmp_path / "a", "--input", project.test, "-t", "host-litert", "--json").out)
    assert served["top1"] >= 0.9


def test_an_absent_tool_leaves_the_others(
    edgescale: Callable, project: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("edgescale_tflite")
    if "edgescale_ethosu" not in backend_names():
        pytest.skip("edgescale_ethosu is not installed with its entry point: pip install -e '.[dev]' again")
    monkeypatch.setenv("EDGESCALE_VELA", str(tmp_path / "no-vela"))
    words = ["compile", project.model, "--calib", project.calib, "--eval", project.test, "-r", "fp32,w8a8"]
    answer = edgescale(*words, "--emit", "onnx,ethosu", "--out", tmp_path / "out", "--json")
    assert answer.code == 5
    result = json.loads(answer.out)
    assert {entry["backend"] for entry in result["entries"]} == {"edgescale_onnx"}
    assert {f["exit_code"] for f in result["failures"]} == {5}
    assert all("pip install 'edgescale[ethosu]'" in f["message"] for f in result["failures"])
    shown = edgescale(*words, "--emit", "onnx,ethosu", "--out", tmp_path / "out")
    assert shown.code == 5 and shown.out.count("edgescale[ethosu]") == 1, "one sentence for all variants"


def test_targets_of_emitted_back_ends() -> None:
    assert [t.name for t in emitted_targets(["c", "onnx"], [])] == ["cortex-m4-stm32l4r5", "host"]
    board = load_target("cortex-m7-stm32f746")
    found = emitted_targets(["edgescale_c", "onnx"], [board])
    assert [(t.name, t.backends) for t in found] == [
        ("cortex-m7-stm32f746", ("edgescale_c",)), ("host", ("edgescale_onnx",)),
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r"unknown back end 'tlfite'; installed: .*\bc\b.*\bonnx\b"):
        emitted_targets(["tlfite"], [])
    with pytest.raises(UsageError, match="target host uses edgescale_onnx, none of those"):
        emitted_targets(["c"], [load_target("host")])


def test_an_unsupported_operator_costs_the_other_back_ends_nothing(
    edgescale: Callable, repository: Path, tmp_path: Path
) -> None:
    """LiteRT has no GRU: the variant is refused there, naming the node, and made everywhere else."""
    need("edgescale_tflite")
    onnx.save(recurrent_nets(repository).outputs("GRU", ["Y_h"], steps=4), tmp_path / "gru.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(0, 1, (32, 4, 3)).astype(np.float32))
    words = ["compile", tmp_path / "gru.onnx", "--calib", tmp_path / "x.npz", "-r", "w8a8"]
    answer = edgescale(*words, "--emit", "onnx,tflite,c", "--out", tmp_path / "out", "--json")
    assert answer.code == 4
    result = json.loads(answer.out)
    assert {row["backend"] for row in result["comparison"]} == {"edgescale_onnx", "edgescale_c"}
    (failure,) = result["failures"]
    assert failure["exit_code"] == 4 and failure["target"] == "host-litert"
    assert "gru" in failure["message"] and "Gru" in failure["message"] and "\n" not in failure["message"]


@pytest.mark.parametrize(
    ("script", "says"),
    [("#!/bin/sh\nkill -8 $$\n", "it crashed (SIGFPE)"), ("#!/bin/sh\n", "exit code 0"), ("no program", "be started")],
)
def test_a_failing_vela_leaves_the_others(
    edgescale: Callable, project: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, says: str
) -> None:
    need("edgescale_tflite")
    program = tmp_path / "vela"
    program.write_text(script)
    program.chmod(0o755)
    monkeypatch.setenv("EDGESCALE_VELA", str(program))
    need("edgescale_ethosu")
    words = ["compile", project.model, "--calib", project.calib, "--eval", project.test, "-r", "w8a8"]
    answer = edgescale(*words, "--emit", "onnx,tflite,ethosu", "--out", tmp_path / "out", "--json")
    assert answer.code == 5
    result = json.loads(answer.out)
    assert {row["backend"] for row in result["comparison"]} == {"edgescale_onnx", "edgescale_tflite"}
    (failure,) = result["failures"]
    assert failure["exit_code"] == 5 and says in failure["message"] and "\n" not in failure["message"]
    assert {entry["backend"] for entry in result["entries"]} == {"edgescale_onnx", "edgescale_tflite"}


def test_a_wrong_accelerator_leaves_the_others(
    edgescale: Callable, project: object, repository: Path, tmp_path: Path
) -> None:
    need("edgescale_ethosu")
    profile = (repository / "profiles" / "ethos-u55-128.toml").read_text()
    (tmp_path / "wrong.toml").write_text(profile.replace("ethos-u55-128", "ethos-u54-128"))
    words = ["compile", project.model, "--calib", project.calib, "--eval", project.test, "-r", "w8a8"]
    answer = edgescale(
        *words, "-t", tmp_path / "wrong.toml", "--emit", "onnx,ethosu", "--out", tmp_path / "out", "--json"
    )
    assert answer.code == 5
    result = json.loads(answer.out)
    assert [row["backend"] for row in result["comparison"]] == ["edgescale_onnx"]
    (failure,) = result["failures"]
    assert failure["exit_code"] == 5 and "invalid choice: 'ethos-u54-128'" in failure["message"]
    assert "'ethos-u55-128'" in failure["message"] and "\n" not in failure["message"], "the names that exist"


def test_what_leaves_the_npu_is_told_before_and_after(edgescale: Callable, project: object, tmp_path: Path) -> None:
    """A table that is none of LiteRT's functions: named by compile and analyze, with the rewrite; no latency."""
    need("edgescale_ethosu")
    model = onnx.load(project.model)
    for node in model.graph.node:
        if node.name == "stem/relu":
            node.op_type, node.name = "Elu", "stem/elu"
    onnx.save(model, tmp_path / "elu.onnx")
    words = ["compile", tmp_path / "elu.onnx", "--calib", project.calib, "-r", "w8a8", "--out", tmp_path / "out"]
    answer = edgescale(*words, "--emit", "onnx,ethosu", "--json")
    assert answer.code == 0
    result = json.loads(answer.out)
    (row,) = (row for row in result["comparison"] if row["backend"] == "edgescale_ethosu")
    assert "latency" not in row and row["agreement"] == "bit for bit"
    shown = " ".join(edgescale(*words, "--emit", "onnx,ethosu").out.split())
    quantized = next((tmp_path / "out").rglob("model.onnx"))
    analyzed = " ".join(edgescale("analyze", quantized, "-t", "ethos-u55-128").out.split())
    for told in (shown, analyzed):
        assert "'stem/elu' (GATHER)" in told and "runs on the CPU of ethos-u55-128, not on its NPU" in told
        assert "instead: a function with an operator of its own" in told


def test_a_truncated_file_is_one_sentence(edgescale: Callable, project: object, tmp_path: Path) -> None:
    """A file that this command made, cut: as a model, and inside its bundle."""
    need("edgescale_tflite")
    words = ["compile", project.model, "--calib", project.calib, "-r", "w8a8", "--emit", "onnx,tflite"]
    assert edgescale(*words, "--out", tmp_path / "out").code == 0
    whole = next((tmp_path / "out").rglob("model.tflite"))
    cut = tmp_path / "cut.tflite"
    for size in (0, 7, len(whole.read_bytes()) // 2, len(whole.read_bytes()) - 400):
        cut.write_bytes(whole.read_bytes()[:size])
        answer = edgescale("compile", cut, "--emit", "onnx,tflite", "--out", tmp_path / "no")
        assert answer.code == 4 and not (tmp_path / "no").exists()
        assert "cut.tflite" in answer.err and "Traceback" not in answer.err + answer.out
        assert answer.err.strip().startswith("error: ") and answer.err.count("error:") == 1
    whole.write_bytes(whole.read_bytes()[:2000])
    served = edgescale("run", tmp_path / "out", "--input", project.test, "-t", "host-litert")
    assert served.code == 1 and "model.tflite does not match its SHA-256" in served.err, "a bundle is whole or refused"


def test_tuning_needs_a_back_end_that_tunes(edgescale: Callable, project: object, tmp_path: Path) -> None:
    words = ["compile", project.model, "--calib", project.calib, "-r", "w8a8", "--out", tmp_path / "out"]
    answer = edgescale(*words, "--emit", "onnx,c", "--tune", 3)
    told = " ".join(answer.err.split())
    assert answer.code == 2
    assert "--tune 3: none of the back ends used (edgescale_onnx, edgescale_c) times candidates" in told
