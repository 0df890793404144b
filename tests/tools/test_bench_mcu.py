"""Instructions, flash and RAM may not grow: the shipped family (and the MLPerf Tiny models where present) on an M4.

The baseline was written by
    tools/bench_mcu.py examples/fashion/fashion_*.onnx --calib examples/fashion/calibration.npz --no-layers \
        --json tests/tools/baseline_fashion.json
    tools/bench_mcu.py <mlperf_tiny>/{kws01,ic01,ad01}_int8.tflite --no-layers --json tests/tools/baseline_mlperf.json
and is written again when a change improves it or costs more on purpose.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("EDGESCALE_TEST_DATA", ROOT.parent / "shared" / "data")) / "mlperf_tiny"
TOOL = ROOT / "tools" / "bench_mcu.py"

pytest.importorskip("unicorn", reason="needs pip install 'edgescale[mcu]'")
pytest.importorskip("ziglang", reason="needs pip install 'edgescale[mcu]'")

pytestmark = pytest.mark.slow


def _bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments), "--no-layers"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_example_family_costs_no_more_than_before() -> None:
    example = ROOT / "examples" / "fashion"
    models = [example / f"fashion_{size}.onnx" for size in ("small", "medium", "large")]
    baseline = Path(__file__).with_name("baseline_fashion.json")
    done = _bench(*models, "--calib", example / "calibration.npz", "--baseline", baseline)
    assert done.returncode == 0, done.stderr


def test_mlperf_tiny_costs_no_more_than_before_and_half_of_an_interpreter() -> None:
    pytest.importorskip("ai_edge_litert", reason="needs pip install 'edgescale[tflite]'")
    if not DATA.is_dir():
        pytest.skip(f"the MLPerf Tiny models are not at {DATA}; set EDGESCALE_TEST_DATA")
    models = [DATA / f"{name}_int8.tflite" for name in ("kws01", "ic01", "ad01")]
    done = _bench(*models, "--baseline", Path(__file__).with_name("baseline_mlperf.json"))
    assert done.returncode == 0, done.stderr


def test_a_growth_above_one_percent_is_noticed(tmp_path: Path) -> None:
    import json

    example = ROOT / "examples" / "fashion"
    baseline = json.loads(Path(__file__).with_name("baseline_fashion.json").read_text())
    for record in baseline:
        for figure in ("instructions", "flash", "ram"):
            assert record[figure] > 0
        record["flash"] = int(record["flash"] * 0.98)
    planted = tmp_path / "planted.json"
    planted.write_text(json.dumps(baseline))
    model = example / "fashion_small.onnx"
    done = _bench(model, "--calib", example / "calibration.npz", "--baseline", planted)
    assert done.returncode == 1
    assert "flash" in done.stderr
