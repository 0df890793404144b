"""tools/bench_backends.py: a row for every back end that is installed, equal to the reference where it is to be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgescale.backends import load_backend


def bench(repository: Path, *words: str) -> Any:
    command = [sys.executable, str(repository / "tools" / "bench_backends.py"), *words, "--rounds", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def medium(repository: Path) -> Any:
    folder = repository / "examples" / "fashion"
    return bench(repository, str(folder / "fashion_medium.onnx"), "--calib", str(folder / "calibration.npz"))


def test_every_installed_back_end_has_rows(medium: Any) -> None:
    rows = {row["name"]: row for row in medium["rows"]}
    names = {"edgescale_onnx": "onnx", "edgescale_tflite": "tflite", "edgescale_tvm": "tvm", "edgescale_c": "c"}
    for backend, short in names.items():
        ready = load_backend(backend).missing() is None
        for recipe in ("fp32", "w8a8", "w4a8"):
            assert (f"{short} {recipe}" in rows) == ready
            assert ready or any(line.startswith(f"{short} {recipe}: ") for line in medium["refused"])
        if ready and short != "onnx":
            assert rows[f"{short} w8a8"]["steps"] == rows[f"{short} w4a8"]["steps"] == 0
    assert all(row["bytes"] > 0 and (row["us"] is None or row["us"] > 0) for row in rows.values())


def test_ethos_u_takes_every_operator(medium: Any) -> None:
    if load_backend("edgescale_ethosu").missing() is not None:
        pytest.skip("Vela is not installed: pip install 'edgescale[ethosu]'")
    rows = {row["name"]: row for row in medium["rows"]}
    for npu in ("u55-128", "u85-256"):
        for recipe in ("w8a8", "w4a8"):
            assert "100% of" in rows[f"{npu} {recipe}"]["note"] and rows[f"{npu} {recipe}"]["us"] > 0
        assert rows[f"{npu} fp32"]["us"] is None, "no latency where the CPU has a share"


def test_without_calibration_data(repository: Path) -> None:
    result = bench(repository, str(repository / "examples" / "fashion" / "fashion_small.onnx"))
    assert {"onnx fp32", "onnx w8a8", "onnx w4a8"} <= {row["name"] for row in result["rows"]}


def test_one_matrix(repository: Path) -> None:
    result = bench(repository, "--matmul", "256")
    sizes = {row["name"]: row["bytes"] for row in result["rows"]}
    assert sizes["onnx w4a16-g128"] < sizes["onnx w4a16-g32"] < sizes["onnx w8a8"] < 0.3 * sizes["onnx fp32"]


def test_integer_artifacts_of_tvm_beat_its_own_import(repository: Path) -> None:
    if (hint := load_backend("edgescale_tvm").missing()) is not None:
        pytest.skip(f"TVM is not installed: {hint}")
    folder = repository / "examples" / "fashion"
    result = bench(repository, str(folder / "fashion_large.onnx"), "--calib", str(folder / "calibration.npz"))
    ratios = result["ratios"]
    assert ratios["tvm w8a8: bytes / fp32's"] <= 0.35
    assert ratios["tvm w4a8: bytes / fp32's"] <= 0.22
    assert ratios["tvm w8a8: times faster than TVM's import"] >= 8
    notes = {row["note"] for row in result["rows"] if row["name"].startswith("tvm ") and row["note"]}
    if notes != {"portable"}:
        assert ratios["tvm w8a8: latency / ONNX Runtime's"] <= 3
