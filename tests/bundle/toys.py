"""Toy bundles: linear ONNX models told apart by their gain, with figures written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgescale.bundle import Context, DatasetRecord, Entry, write_bundle
from edgescale.core.budget import Budgets, parse_budget
from edgescale.core.files import sha256_file, sha256_tree
from edgescale.core.measurement import METRIC_UNITS, LayerFigures, Measurement
from edgescale.core.quantity import Quantity
from edgescale.core.target import Core, Target
from edgescale.core.variant import Artifact, Recipe, Variant

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3) / 10 - 0.5

HOST = Target("host", "this machine", "host", ("onnx",), Core("host", 0), sha256="a" * 64)
BOARD = Target("m4", "a Cortex-M4", "emulator", ("c",), Core("cortex-m4", 120_000_000), sha256="b" * 64)


def save_linear(path: Path, gain: float) -> None:
    """y = gain * (x @ WEIGHTS), x float32 [1, 4] -> y float32 [1, 3]."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array((gain * WEIGHTS).astype(np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def quantities(values: Mapping[str, float]) -> dict[str, Quantity]:
    return {metric: Quantity(value, METRIC_UNITS[metric], "measured", "by hand") for metric, value in values.items()}


def make_entry(
    folder: Path,
    model: str,
    figures: Mapping[str, float],
    *,
    gain: float = 1.0,
    target: Target = HOST,
    recipe: Recipe | None = None,
    backend: str = "",
    **flags: bool,
) -> Entry:
    """An entry whose artifact lies under `folder`; kind "c" for every target but HOST."""
    recipe = recipe or Recipe()
    kind = "onnx" if target is HOST else "c"
    path = folder / f"{model}-{recipe}-{target.name}{backend}"
    path.mkdir(parents=True)
    meta: dict[str, object]
    if kind == "onnx":
        save_linear(path / "model.onnx", gain)
        meta = {
            "file": "model.onnx",
            "session": {"intra_op_num_threads": 1, "graph_optimization_level": "ORT_ENABLE_ALL", "config": {}},
            "inputs": [{"name": "x", "shape": [1, 4], "dtype": "float32"}],
            "outputs": [{"name": "y", "shape": [1, 3], "dtype": "float32"}],
        }
    else:
        (path / "edgescale").mkdir()
        (path / "edgescale" / "kernels.h").write_text("/* kernels */\n")
        (path / f"es_{model}.c").write_text(f"/* {model} {gain} */\n")
        meta = {"symbol": model, "sources": [f"es_{model}.c"]}
    (path / "artifact.json").write_text(json.dumps(meta))
    source = folder / f"{model}-{recipe}.onnx"
    save_linear(source, gain)
    variant = Variant(model, recipe, source, sha256_file(source))
    artifact = Artifact(variant.name, target.name, backend or f"b_{kind}", kind, path, sha256_tree(path), meta)
    layers = (LayerFigures("MatMul_0", "FullyConnected", 12, quantities({"latency": 0.5}), "matmul"),)
    measurement = Measurement(
        artifact.sha256,
        target.name,
        target.rig,
        quantities(figures),
        layers,
        {} if "energy" in figures else {"energy": "no power figure in the profile"},
        {"python": "3"},
    )
    return Entry(variant, target, artifact, measurement, **flags)


def context(budget: str = "latency<=5ms", **changes: object) -> Context:
    settings: dict[str, object] = {
        "command": 'edgescale compile a.onnx --budget "latency<=5ms"',
        "budgets": Budgets(parse_budget(budget)),
        "metric": "top1",
        "datasets": (DatasetRecord(role="evaluation", name="test", sha256="c" * 64, samples=10),),
        "tools": {"edgescale": "0.1.0"},
        "created_utc": "2026-01-01T00:00:00Z",
    }
    return Context(**{**settings, **changes})  # type: ignore[arg-type]


FAMILY: dict[str, tuple[float, dict[str, float]]] = {
    "large": (3.0, {"accuracy": 0.92, "latency": 9.0, "ram": 90_000.0, "flash": 400_000.0}),
    "medium": (2.0, {"accuracy": 0.90, "latency": 3.0, "ram": 50_000.0, "flash": 100_000.0}),
    "small": (1.0, {"accuracy": 0.85, "latency": 1.0, "ram": 20_000.0, "flash": 20_000.0}),
}


def family(folder: Path) -> list[Entry]:
    """Three host variants and two for the board; medium is selected on the host."""
    entries = [
        make_entry(folder, name, figures, gain=gain, pareto=True, selected=name == "medium")
        for name, (gain, figures) in FAMILY.items()
    ]
    board = [
        make_entry(folder, name, {**FAMILY[name][1], "energy": 12.0}, target=BOARD, selected=name == "small")
        for name in ("medium", "small")
    ]
    return entries + board


def family_bundle(folder: Path, budget: str = "latency<=5ms") -> Path:
    return write_bundle(folder / "bundle", family(folder / "made"), context(budget))
