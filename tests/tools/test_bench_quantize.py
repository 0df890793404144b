"""tools/bench_quantize.py: both sides on one small net, its limits, and the formats beside published errors."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def _run(*arguments: object) -> str:
    command = [sys.executable, str(ROOT / "tools" / "bench_quantize.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tables_hold_every_tool_and_every_limit(tmp_path):
    examples = ROOT / "examples" / "fashion"
    with np.load(examples / "test.npz") as data:
        np.savez(tmp_path / "few.npz", x=data["x"][:200], y=data["y"][:200])
    out = _run(
        "--tables", examples / "fashion_small.onnx", "--calib", examples / "calibration.npz",
        "--eval", tmp_path / "few.npz", "--recipes", "w8a8",
    )  # fmt: skip
    lines = {line[:34].strip(): line[34:].split() for line in out.splitlines()}
    tools = ["edgescale w8a8", *(f"onnxruntime {m}-w8" for m in ("MinMax", "Entropy", "Percentile"))]
    for tool in tools:
        assert len(lines[tool]) >= 9
        assert float(lines[tool][1]) > 0.95
    assert int(lines["edgescale w8a8"][3].replace(",", "")) < int(lines["onnxruntime MinMax-w8"][3].replace(",", ""))
    told = [line for line in out.splitlines() if re.match(r"held|MISSED", line)]
    assert len(told) == 3
    best = min(float(lines[tool][0]) for tool in tools[1:])
    behind = next(line for line in told if "behind" in line)
    assert behind.startswith("held" if float(lines[tools[0]][0]) - best <= 0.1 else "MISSED")


def test_formats_are_measured_and_compared():
    out = _run("--formats")
    rows = [line.split() for line in out.splitlines() if line.startswith("int4 ")]
    integrated, sampled = float(rows[0][1]), float(rows[0][3])
    assert abs(integrated / sampled - 1) < 0.01
    assert out.count("held") == 9
