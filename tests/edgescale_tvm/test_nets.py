"""Whole nets in TVM's integer lowering: the shipped family and the MLPerf Tiny models, bit for bit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgescale.core.variant import parse_recipe
from edgescale.frontend import load_dataset, load_model
from edgescale.lower import lower


def tiny(name: str) -> Path:
    roots = [os.environ.get("EDGESCALE_TEST_DATA"), Path(__file__).parents[3] / "shared" / "data"]
    for root in filter(None, roots):
        for path in (Path(root) / "mlperf_tiny" / name, Path(root) / name):
            if path.is_file():
                return path
    pytest.skip(f"{name} not found; set EDGESCALE_TEST_DATA to the folder that holds mlperf_tiny/")


@pytest.mark.parametrize("size", ["small", "medium", "large"])
@pytest.mark.parametrize("recipe", ["fp32", "w8a8", "w4a8"])
def test_the_shipped_family(harness, repository: Path, size: str, recipe: str) -> None:
    from edgescale.quantize import quantize

    folder = repository / "examples" / "fashion"
    model, calibration = load_model(folder / f"fashion_{size}.onnx"), load_dataset(str(folder / "calibration.npz"))
    graph = model.ir if recipe == "fp32" else quantize(model, calibration, parse_recipe(recipe))
    harness.check(lower(graph, model.name))


@pytest.mark.parametrize("kind", ["int8", "fp32"])
@pytest.mark.parametrize("name", ["kws01", "ic01", "ad01"])
def test_the_reference_models(harness, name: str, kind: str) -> None:
    model = load_model(tiny(f"{name}_{kind}.tflite"))
    harness.check(lower(model.ir, model.name))
