"""`edgescale compile` on an LSTM and a GRU, from ONNX to a bundle whose emulated cores compute the reference's bits."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

BOARDS = ("cortex-m4-stm32l4r5", "cortex-m0plus")
RISCV = "esp32-c3"


def _nets() -> Any:
    path = Path(__file__).resolve().parents[1] / "recurrent_nets.py"
    spec = importlib.util.spec_from_file_location("cli_recurrent_nets", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operator", "net"),
    [("LSTM", {}), ("GRU", {"linear_before_reset": 1}), ("LSTM", {"steps": 1, "states": True})],
    ids=["lstm", "gru", "streaming-lstm"],
)
def test_a_recurrent_model_reaches_microcontrollers(
    edgescale: Callable, tmp_path: Path, operator: str, net: dict[str, Any]
) -> None:
    pytest.importorskip("unicorn", reason="needs pip install 'edgescale[mcu]'")
    pytest.importorskip("ziglang", reason="needs pip install 'edgescale[mcu]'")
    boards = (*BOARDS, RISCV) if shutil.which("qemu-system-riscv32") else BOARDS
    steps = net.get("steps", 20)
    onnx.save(_nets().classifier(operator, **net), tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(0, 0.5, (32 * 20 // steps, steps, 6)), axis=1)
    np.savez(tmp_path / "calib.npz", x=np.clip(walk, -3, 3).astype(np.float32))
    targets = [argument for board in boards for argument in ("-t", board)]
    answer = edgescale(
        "compile", tmp_path / "model.onnx", "--recipe", "fp32,w8a8", "--calib", tmp_path / "calib.npz",
        *targets, "--out", tmp_path / "bundle", "--json",
    )  # fmt: skip
    entries = {(entry["variant"], entry["target"]): entry for entry in json.loads(answer.out)["entries"]}
    assert set(entries) == {(f"model-{recipe}", board) for recipe in ("fp32", "w8a8") for board in boards}
    for board in boards:
        entry, plain = entries["model-w8a8", board], entries["model-fp32", board]
        assert entry["environment"]["verified_exact"] == "True"
        assert entry["figures"]["accuracy"]["value"] > 0.99  # cosine to the float model
        assert entry["figures"]["flash"]["value"] < plain["figures"]["flash"]["value"]
        assert entry["figures"]["arena"]["value"] < 0.5 * plain["figures"]["arena"]["value"]
