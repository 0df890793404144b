"""tools/bench_tvm.py: every contender runs, and what the integer artifact must be ahead in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from edgescale_tvm import BACKEND


def test_integer_artifacts_beat_tvms_own_import(repository: Path) -> None:
    if (hint := BACKEND.missing()) is not None:
        pytest.skip(f"TVM is not installed: {hint}")
    folder = repository / "examples" / "fashion"
    command = [sys.executable, str(repository / "tools" / "bench_tvm.py"), str(folder / "fashion_large.onnx")]
    command += ["--calib", str(folder / "calibration.npz"), "--rounds", "3", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    ratios = result["ratios"]
    assert ratios["w8a8 bytes / fp32's"] <= 0.35
    assert ratios["w4a8 bytes / fp32's"] <= 0.22
    assert ratios["w8a8 latency / import's"] <= 1 / 8
    vectors = {row["note"] for row in result["rows"] if row["note"]}
    if vectors != {"portable"}:
        assert ratios["w8a8 latency / ONNX Runtime's"] <= 3
