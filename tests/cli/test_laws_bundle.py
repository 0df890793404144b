"""`edgescale fit` reads the measurements of a bundle."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

COUNT = 9


@pytest.fixture(scope="module")
def toys() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "bundle" / "toys.py"
    spec = importlib.util.spec_from_file_location("laws_bundle_toys", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_law_of_a_bundles_measurements(edgescale: Callable, toys: ModuleType, tmp_path: Path) -> None:
    from edgescale.bundle import write_bundle

    entries = [
        toys.make_entry(
            tmp_path / "made", f"m{i}", {"accuracy": 0.8, "flash": 1000.0 * 2**i, "latency": 3.0 * 2**i + 0.5}
        )
        for i in range(COUNT)
    ]
    bundle = write_bundle(tmp_path / "bundle", entries, toys.context())
    out = tmp_path / "law.json"
    arguments = ["fit", str(bundle), "-m", "n=flash", "--y", "latency", "-o", str(out), "--json"]
    answer = edgescale(*arguments, "--law", "growth", "--target", "host", "--where", "flash<=64000")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["checklist"]["data"]["points"] == "7" and found["params"]["b"] == pytest.approx(1, rel=1e-3)
    (row,) = json.loads(edgescale("predict", str(out), "n=128000", "--json").out)["rows"]
    assert row["cost"] == pytest.approx(3.0 * 128 + 0.5, rel=1e-3)
    answer = edgescale(*arguments, "--law", "power-law")  # falls, and latency rises
    assert answer.code == 2 and "no better than a constant" in answer.err
    answer = edgescale(*arguments, "--law", "growth", "--target", "nowhere")
    assert answer.code == 2 and "no entry for 'nowhere'" in answer.err
    answer = edgescale(*arguments, "--law", "growth", "-m", "n=model")
    assert answer.code == 2 and "is no number" in answer.err
