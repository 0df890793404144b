"""A transformer of two inputs and texts of any length, from ONNX to a served bundle."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def _nets() -> Any:
    path = Path(__file__).resolve().parents[1] / "quantize" / "transformer_nets.py"
    spec = importlib.util.spec_from_file_location("cli_transformer_nets", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_compile_measure_and_serve(edgescale: Callable, tmp_path: Path) -> None:
    nets = _nets()
    nets.encoder(tmp_path)
    model, data, out = tmp_path / "encoder.onnx", tmp_path / "text.npz", tmp_path / "bundle"
    ids = np.random.default_rng(0).integers(0, nets.WORDS, (12, 20))
    np.savez(data, ids=ids, attention_mask=np.ones_like(ids))
    recipes = "fp32,w8a16-g32,w4a16-g32-awq"
    answer = edgescale(
        "compile", model, "--recipe", recipes, "--calib", data, "--eval", data, "-O", "embedding=w8", "-t", "host",
        "--out", out, "--json",
    )  # fmt: skip
    entries = {e["variant"].split("-od")[0]: e["figures"] for e in json.loads(answer.out)["entries"]}
    names = [f"encoder-{recipe}" for recipe in recipes.split(",")]
    plain, eight, four = (next(f for v, f in entries.items() if v.startswith(name)) for name in names)
    assert eight["accuracy"]["value"] > 0.995 > four["accuracy"]["value"] > 0.9
    assert four["flash"]["value"] < eight["flash"]["value"] < 0.5 * plain["flash"]["value"]
    assert all(f["latency"]["source"] == "measured" for f in (plain, eight, four))
    served = json.loads(edgescale("run", out, "--input", data, "-n", 4, "--json").out)
    assert served["samples"] == 4


def test_rounding_to_nearest_needs_no_data_but_a_length_does(edgescale: Callable, tmp_path: Path) -> None:
    _nets().encoder(tmp_path)
    refused = edgescale("compile", tmp_path / "encoder.onnx", "--recipe", "w4a16-g32", "-t", "host")
    assert refused.code == 2
    assert "takes any length" in refused.err and "--eval or --calib" in refused.err
