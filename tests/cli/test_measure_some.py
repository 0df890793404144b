"""`compile --measure`: some variants are measured, the law predicts the others, and the predictions hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

FAMILY = Path(__file__).resolve().parents[2] / "examples" / "fashion"
SIZES = [str(FAMILY / f"fashion_{size}.onnx") for size in ("small", "medium")]
RECIPES = "fp32," + ",".join(f"w{bits}a8-rtn" for bits in range(4, 9))


def compiled(edgescale: Callable, out: Path, *arguments: str):
    data = ["--calib", FAMILY / "calibration.npz", "--eval", FAMILY / "test.npz", "--json", "--out", out]
    return edgescale("compile", *SIZES, *data, *arguments)


def test_some_are_measured_and_the_rest_predicted(edgescale: Callable, tmp_path: Path) -> None:
    some = json.loads(compiled(edgescale, tmp_path / "some", "-r", RECIPES, "--measure", "0.6").out)
    told = some["exploration"]
    assert told["measured"] == len(some["entries"]) <= 7 and told["variants"] == 12 and not told["trouble"]
    everything = {
        entry["variant"]: entry["figures"]["accuracy"]["value"]
        for entry in json.loads(compiled(edgescale, tmp_path / "all", "-r", RECIPES).out)["entries"]
    }
    predicted = {row["variant"]: row["accuracy"] for row in told["predictions"]}
    measured = {entry["variant"] for entry in some["entries"]}
    assert set(predicted) | measured == set(everything) and not set(predicted) & measured
    away = {name: abs(found["value"] - everything[name]) for name, found in predicted.items()}
    inside = [found["low"] <= everything[name] <= found["high"] for name, found in predicted.items()]
    assert sum(away.values()) / len(away) < 0.01 and sum(inside) >= len(inside) - 1, (away, predicted)
    assert all(found["low"] <= found["value"] <= found["high"] <= 1 for found in predicted.values())


@pytest.mark.parametrize(
    ("recipes", "share", "told"),
    [
        ("w8a8,w8a8-bc,w4a8-rtn,fp32", "0.5", "fashion_small-w8a8 and fashion_small-w8a8-bc have the same weights"),
        ("w8a8,w8a8+auto,w4a8-rtn,fp32", "0.5", "name shares, as in w8a8+ch0.5"),
        ("w8a8,w8a8+ch0.5,w8a8+2:4,fp32", "0.5", "several kinds (channels, n:m)"),
        ("w8a8,w4a8-rtn,fp32", "0.4", "2 of 6 candidates may be measured"),
    ],
)
def test_what_the_law_cannot_do_is_refused_before_anything_is_made(
    edgescale: Callable, tmp_path: Path, recipes: str, share: str, told: str
) -> None:
    answer = compiled(edgescale, tmp_path / "bundle", "-r", recipes, "--measure", share)
    assert answer.code == 2 and told in answer.err
    assert not (tmp_path / "bundle").exists()


def test_models_that_arrive_quantized_leave_nothing_to_predict(edgescale: Callable, tmp_path: Path) -> None:
    compiled(edgescale, tmp_path / "first", "-r", "w8a8-rtn")
    made = sorted((tmp_path / "first").rglob("model.onnx"))
    given = [path.rename(path.with_name(f"{i}.onnx")) for i, path in enumerate(made)]
    data = ["--calib", FAMILY / "calibration.npz", "--eval", FAMILY / "test.npz", "--measure", "0.5"]
    answer = edgescale("compile", *given, *data, "--out", tmp_path / "second")
    assert answer.code == 2 and "those given arrived quantized" in answer.err
    assert not (tmp_path / "second").exists()
