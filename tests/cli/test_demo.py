"""The main job on real input: three nets, float and int8, this machine and an emulated Cortex-M4."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_demo_meets_its_budgets_and_its_bundle_serves(
    edgescale: Callable, repository: Path, tmp_path: Path
) -> None:
    pytest.importorskip("unicorn", reason="needs pip install 'edgescale[mcu]'")
    pytest.importorskip("ziglang", reason="needs pip install 'edgescale[mcu]'")
    out = tmp_path / "demo"
    answer = edgescale("demo", "--out", out, "--json")
    assert answer.code == 0, answer.out
    result = json.loads(answer.out)
    entries = {(e["variant"], e["target"]): e["figures"] for e in result["entries"]}
    board = "cortex-m4-stm32l4r5"
    sizes = ("small", "medium", "large")
    assert set(entries) == {(f"fashion_{s}-{r}", t) for s in sizes for r in ("fp32", "w8a8") for t in ("host", board)}
    for size in sizes:
        for target in ("host", board):
            plain, quantized = entries[f"fashion_{size}-fp32", target], entries[f"fashion_{size}-w8a8", target]
            assert plain["accuracy"]["value"] - quantized["accuracy"]["value"] <= 0.005
        small, large = entries[f"fashion_{size}-w8a8", board], entries[f"fashion_{size}-fp32", board]
        for metric in ("instructions", "latency", "flash", "ram"):
            assert small[metric]["value"] < large[metric]["value"], (size, metric)
    assert all(figure["source"] for figures in entries.values() for figure in figures.values())
    for suffix in ("txt", "html", "svg"):
        assert "fashion_large" in (out / f"report.{suffix}").read_text()

    test = repository / "examples" / "fashion" / "test.npz"
    served = json.loads(edgescale("run", out / "bundle", "--input", test, "--json").out)
    assert served["top1"] >= 0.92
    tight = json.loads(edgescale("run", out / "bundle", "--input", test, "--budget", "flash<=30KiB", "--json").out)
    assert tight["variant"] == "fashion_small-w8a8"
    assert tight["met"]
