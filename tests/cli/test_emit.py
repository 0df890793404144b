"""`edgescale compile --emit`: several back ends, one table; what one of them lacks costs the others nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

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
