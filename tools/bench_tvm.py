#!/usr/bin/env python3
"""The TVM back end against TVM's own import of the same QDQ model, and against ONNX Runtime: bytes and latency.

One process, one thread, the contenders in turn round by round; the figures are medians over all rounds.

    tools/bench_tvm.py MODEL.onnx [...] [--recipe w8a8] [--calib DATA.npz] [--rounds 20] [--json]

A model is a float ONNX or TFLite file, which the recipe quantizes (with --calib, or random calibration data), or one
that is quantized already. Bytes are those of the stripped shared library, linked alike for all of TVM's contenders
(TVM's run time is apart for each), and of the model file for ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["TVM_NUM_THREADS"] = "1"

import numpy as np

from edgescale.core.errors import EdgescaleError
from edgescale.core.files import sha256_file
from edgescale.core.target import load_target
from edgescale.core.variant import Recipe, Variant, parse_recipe

SECONDS_A_TURN = 0.05


@dataclass
class Contender:
    """Something that runs one inference a call; `bytes` of what is shipped."""

    name: str
    bytes: int
    run: Callable[[], object]
    output: Callable[[], np.ndarray]
    note: str = ""


def ours(name: str, variant: Variant, x: np.ndarray, folder: Path) -> Contender:
    """Our artifact, timed in stored units as the rig times it."""
    import tvm
    from edgescale_tvm import BACKEND

    from edgescale.rigs.ports import from_stored, to_stored
    from edgescale.rigs.tvm import library_of, open_machine

    artifact = BACKEND.compile(variant, load_target("host-tvm"), folder / f"ours-{name}")
    main = open_machine(library_of(artifact))["main"]
    stored = tvm.runtime.tensor(to_stored(artifact.meta["inputs"][0], x))
    port = artifact.meta["outputs"][0]
    return Contender(
        f"edgescale_tvm {name}",
        library_of(artifact).stat().st_size,
        lambda: main(stored),
        lambda: from_stored(port, main(stored).numpy().reshape(1, *port["stored_shape"][1:])),
        artifact.meta["instructions"],
    )


def imported(name: str, variant: Variant, x: np.ndarray, folder: Path) -> Contender:
    """TVM's own ONNX importer, untuned, for the same processor and linked with the same flags."""
    import onnx
    import tvm
    from edgescale_tvm.library import build_library, machine_of
    from tvm.relax.frontend.onnx import from_onnx

    from edgescale.rigs.tvm import open_machine

    module = from_onnx(onnx.load(str(variant.path)), keep_params_in_input=False)
    library = folder / f"import-{name}.so"
    build_library(module, [], machine_of(load_target("host-tvm")), library)
    main = open_machine(library)["main"]
    value = tvm.runtime.tensor(x)
    return Contender(
        f"TVM's import {name}",
        library.stat().st_size,
        lambda: main(value),
        lambda: np.asarray(main(value).numpy()),
    )


def onnx_runtime(name: str, variant: Variant, x: np.ndarray) -> Contender:
    """ONNX Runtime with one thread, as the back end edgescale_onnx opens it."""
    from edgescale_onnx.backend import SESSION

    from edgescale.runtime.ort import open_session

    session = open_session(variant.path, SESSION)
    feed = {session.get_inputs()[0].name: x}
    return Contender(
        f"ONNX Runtime {name}",
        variant.path.stat().st_size,
        lambda: session.run(None, feed),
        lambda: np.asarray(session.run(None, feed)[0]),
    )


def variants_of(path: Path, recipe: str, calib: str | None, folder: Path) -> tuple[dict[str, Variant], np.ndarray]:
    """The model as it is and under the recipe, int4 weights too; and an input."""
    from edgescale.frontend import load_dataset, load_model, model_from_ir, save_model
    from edgescale.quantize import quantize
    from edgescale.sources import RandomSource

    model = load_model(path)
    spec = model.inputs[0]
    data = load_dataset(calib) if calib else RandomSource("random").load(model.inputs)
    made: dict[str, Variant] = {}
    names = ["int8"] if model.quantized else ["fp32", recipe, recipe.replace("w8", "w4", 1)]
    for name in dict.fromkeys(names):
        graph = model.ir if name in ("fp32", "int8") else quantize(model, data, parse_recipe(name))
        file = folder / f"{name}.onnx"
        save_model(model_from_ir(graph, model.name, model.sha256), file)
        made[name] = Variant(model.name, Recipe() if name == "fp32" else parse_recipe(recipe), file, sha256_file(file))
    return made, data.x[:1].reshape(1, *spec.shape[1:]).astype(spec.dtype)


def contenders(variants: dict[str, Variant], x: np.ndarray, folder: Path) -> tuple[list[Contender], list[str]]:
    """Everything that runs, and a line for each that does not."""
    found, failed = [], []
    for name, variant in variants.items():
        makers: list[tuple[str, Callable[[], Contender]]] = [
            (f"edgescale_tvm {name}", lambda n=name, v=variant: ours(n, v, x, folder)),  # type: ignore[misc]
            (f"TVM's import {name}", lambda n=name, v=variant: imported(n, v, x, folder)),  # type: ignore[misc]
            (f"ONNX Runtime {name}", lambda n=name, v=variant: onnx_runtime(n, v, x)),  # type: ignore[misc]
        ]
        for label, make in makers:
            try:
                made = make()
                made.run()
                found.append(made)
            except Exception as error:  # another tool's refusal is a figure too
                lines = [line for line in str(error).splitlines() if line.strip()]
                failed.append(f"{label}: {lines[-1].strip()[:160] if lines else type(error).__name__}")
    return found, failed


def latencies(found: list[Contender], rounds: int) -> dict[str, float]:
    """Median microseconds of one inference, each round giving every contender a turn of about 50 ms."""
    times: dict[str, list[float]] = {one.name: [] for one in found}
    for _ in range(rounds):
        for one in found:
            end = time.perf_counter() + SECONDS_A_TURN
            one.run()
            while True:
                start = time.perf_counter()
                one.run()
                done = time.perf_counter()
                times[one.name].append((done - start) * 1e6)
                if done > end:
                    break
    return {name: statistics.median(values) for name, values in times.items()}


def compare(path: Path, recipe: str, calib: str | None, rounds: int) -> dict[str, Any]:
    """The figures of one model: rows of contenders, ratios, refusals."""
    with tempfile.TemporaryDirectory(prefix="edgescale-bench-") as name:
        folder = Path(name)
        variants, x = variants_of(path, recipe, calib, folder)
        found, failed = contenders(variants, x, folder)
        measured = latencies(found, rounds)
    rows = [{"name": one.name, "bytes": one.bytes, "us": measured[one.name], "note": one.note} for one in found]
    by_name = {row["name"]: row for row in rows}
    ratios: dict[str, float] = {}
    for name in variants:
        mine = by_name.get(f"edgescale_tvm {name}")
        if mine is None:
            continue
        for other, label in ((f"TVM's import {name}", "import"), (f"ONNX Runtime {name}", "ONNX Runtime")):
            if other in by_name:
                ratios[f"{name} latency / {label}'s"] = mine["us"] / by_name[other]["us"]
        if "edgescale_tvm fp32" in by_name and name != "fp32":
            ratios[f"{name} bytes / fp32's"] = mine["bytes"] / by_name["edgescale_tvm fp32"]["bytes"]
    return {"model": path.name, "rows": rows, "ratios": ratios, "failed": failed}


def show(result: dict[str, Any]) -> None:
    """Print one model's figures."""
    print(f"\n{result['model']}")
    for row in result["rows"]:
        print(f"  {row['name']:<28} {row['bytes']:>10,} B {row['us']:>12.1f} us  {row['note']}")
    for name, value in result["ratios"].items():
        print(f"  {name:<40} {value:.3f}")
    for line in result["failed"]:
        print(f"  refused: {line}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--recipe", default="w8a8")
    parser.add_argument("--calib", help="calibration data; without it random samples")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    from edgescale_tvm import BACKEND

    if (hint := BACKEND.missing()) is not None:
        print(f"TVM is not installed: {hint}", file=sys.stderr)
        return 4
    try:
        results = [compare(path, given.recipe, given.calib, given.rounds) for path in given.models]
    except EdgescaleError as error:
        print(error, file=sys.stderr)
        return 4
    if given.json:
        print(json.dumps(results, indent=1))
    else:
        for result in results:
            show(result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
