"""What the benches of sparsity measure: accuracy, multiply-accumulates and milliseconds here, costs on a device."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgescale.cache import StageStore
from edgescale.core.dataset import Dataset
from edgescale.core.memory import Memory
from edgescale.core.model import Model
from edgescale.core.recipe import parse_recipe
from edgescale.core.target import load_target
from edgescale.frontend import save_model
from edgescale.pipeline import Request, compile_models
from edgescale.sparsify.channels import find_structure
from edgescale.sparsify.shrink import layer_macs

FASHION = Path(__file__).resolve().parents[1] / "examples" / "fashion"
ROUNDS = 7


@dataclass(frozen=True)
class LayerCost:
    """Of a layer on a device. cycles: modelled, NaN where the core has no model; exploited: what comes of its zeros."""

    instructions: float
    cycles: float
    kernel: str
    exploited: str


@dataclass(frozen=True)
class Cost:
    """Of an int8 model on a device."""

    instructions: float
    flash: float
    accuracy: float | None
    layers: dict[str, LayerCost]


def fashion(name: str) -> Dataset:
    """Calibration or test samples of the example."""
    data = np.load(FASHION / f"{name}.npz")
    return Dataset(name, data["x"], data["y"], name)


def session(model: Model):
    """ONNX Runtime, one thread."""
    import onnxruntime

    from edgescale.frontend.load import serialize

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(serialize(model), options, providers=["CPUExecutionProvider"])


def top1(model: Model, data: Dataset) -> float:
    """Percent."""
    run, name = session(model), model.inputs[0].name
    outputs = np.concatenate([run.run(None, {name: x})[0] for x in data.batches(1)])
    return 100 * float((outputs.argmax(axis=1) == data.y).mean())


def milliseconds(models: list[Model], data: Dataset) -> list[float]:
    """Of one inference on this machine."""
    runs = [session(model) for model in models]
    best = [float("inf")] * len(models)
    for _ in range(ROUNDS):
        for i, (run, model) in enumerate(zip(runs, models, strict=True)):
            start = time.perf_counter()
            for x in data.x[:100]:
                run.run(None, {model.inputs[0].name: x[None]})
            best[i] = min(best[i], (time.perf_counter() - start) * 10)
    return best


def macs(model: Model) -> int:
    """Of one inference."""
    return sum(layer_macs(find_structure(model.ir.graph), ()).values())


def measure(
    model: Model,
    target: str,
    calibration: Path,
    evaluation: Path | None,
    recipe: str = "w8a8",
    memory: Memory = "balanced",
) -> Cost:
    """Compile under `recipe` for the device, verify against the reference, and count."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{model.name}.onnx"
        save_model(model, path)
        request = Request(
            (path,),
            (load_target(target),),
            (parse_recipe(recipe),),
            calibration=str(calibration),
            evaluation=None if evaluation is None else str(evaluation),
            samples=1,
            out=Path(folder) / "bundle",
            memory=memory,
        )
        result = compile_models(request, StageStore())
    if result.failures:
        raise result.failures[0].error
    found = result.entries[0].measurement
    accuracy = found.metrics.get("accuracy")
    layers = {
        layer.name: LayerCost(
            float(layer.metrics["instructions"].value),
            float(layer.metrics["cycles"].value) if "cycles" in layer.metrics else float("nan"),
            layer.kernel,
            layer.metrics["density"].note if "density" in layer.metrics else "",
        )
        for layer in found.layers
        if "instructions" in layer.metrics
    }
    return Cost(
        float(found.metrics["instructions"].value),
        float(found.metrics["flash"].value),
        None if accuracy is None else 100 * float(accuracy.value),
        layers,
    )


def table(head: str) -> None:
    """The head of a table."""
    print(f"| {head} |\n|{'---|' * (head.count('|') + 1)}", flush=True)
