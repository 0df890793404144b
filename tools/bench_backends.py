#!/usr/bin/env python3
"""Every installed back end on the same variants: bytes, latency, and whether the outputs are the reference's.

One process, one thread, the contenders in turn round by round; latencies are medians over all rounds. What is not
installed or refuses a model has no row and a line that says why.

    tools/bench_backends.py MODEL.onnx [...] [--recipe w8a8] [--calib DATA.npz] [--rounds 20] [--json]
    tools/bench_backends.py --matmul 2048

A model is a float ONNX or TFLite file, which the recipe quantizes (with --calib, or random calibration data), or one
that is quantized already. `steps` is the largest difference of an integer output from the NumPy reference of the
integer program, over a few samples: 0 is equality bit for bit. LiteRT's row is timed with its default kernels and
compared by its reference kernels; generated C is timed as built for this machine, which it is not written for; `import`
is TVM's own importer on the same file, untuned; Ethos-U is Vela's model. Ratios stand below the rows; `constants` is
the ratio of weights and parameters alone, which no code around them can undercut.

--matmul N: one row of N values times a matrix N x N in ONNX Runtime, with weights and activations as recipes say.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from contenders import MAKERS, Contender, compiled, latencies, onnx_runtime, variants_of

from edgescale.core.dataset import Dataset
from edgescale.core.errors import EdgescaleError
from edgescale.core.files import sha256_file
from edgescale.core.target import load_target
from edgescale.core.variant import Artifact, Recipe, Variant, parse_recipe
from edgescale.verify import compare_with_reference, difference_from_reference

SAMPLES = 8
NPUS = ("ethos-u55-128", "ethos-u85-256")
MATMUL_RECIPES = ("fp32", "w8a8", "w4a16-g128", "w4a16-g32")


@dataclass
class Row:
    """A contender with what it was made of; no artifact where there is none of ours."""

    one: Contender
    variant: Variant
    artifact: Artifact | None
    target: str


def contenders(variants: dict[str, Variant], x: np.ndarray, folder: Path) -> tuple[dict[str, Row], list[str]]:
    """Everything that runs, by "back end variant"; and a line for each that does not run."""
    found: dict[str, Row] = {}
    refused: list[str] = []
    for label, variant in variants.items():
        for backend, target, make in MAKERS:
            name = f"{backend} {label}"
            try:
                one, artifact = make(variant, x, folder / name.replace(" ", "-"))
                one.run()
            except EdgescaleError as error:
                refused.append(f"{name}: {str(error).splitlines()[0][:160]}")
                continue
            one.name = name
            found[name] = Row(one, variant, artifact, target)
    return found, refused


def steps(row: Row, samples: Dataset) -> float | None:
    """Largest difference from the reference in steps; None for float outputs and where there is no reference."""
    if row.artifact is None:
        return None
    profile = load_target(row.target)
    if row.artifact.kind == "c":  # the host build of the same sources
        profile = replace(profile, rig="host")
    exact = row.artifact.kind in ("tflite", "tvm")
    compare = compare_with_reference if exact else difference_from_reference
    result = compare(row.variant, row.artifact, profile, samples)
    return float(result["largest_difference"]) if result.get("exact") else None


def npu_row(npu: str, label: str, variant: Variant, folder: Path) -> dict[str, Any]:
    """Vela's model of the variant. Raises EdgescaleError where there is none."""
    artifact = compiled("edgescale_ethosu", npu, variant, folder / f"{npu}-{label}")
    found = artifact.meta["vela"]
    note = f"modelled by Vela, {found['npu_ops']:.0%} of {found['operators']} operators on the NPU"
    size = (artifact.path / artifact.meta["compiled"]).stat().st_size
    us = None if found["cpu_operators"] else found["seconds"] * 1e6
    return {"name": f"{npu.removeprefix('ethos-')} {label}", "bytes": size, "us": us, "steps": None, "note": note}


def ratios_of(rows: dict[str, dict[str, Any]], found: dict[str, Row], labels: list[str]) -> dict[str, float]:
    """What the rows say of each other; what they cannot say is left out."""
    ratios: dict[str, float] = {}

    def ratio(name: str, key: str, one: str, other: str) -> None:
        if one in rows and other in rows:
            ratios[name] = rows[one][key] / rows[other][key]

    for label in labels:
        if label != "fp32":
            for backend in ("onnx", "tflite", "tvm"):
                ratio(f"{backend} {label}: times faster than fp32", "us", f"{backend} fp32", f"{backend} {label}")
            ratio(f"tvm {label}: bytes / fp32's", "bytes", f"tvm {label}", "tvm fp32")
            made = [row.artifact for name in (f"tvm {label}", "tvm fp32") if (row := found.get(name)) is not None]
            if len(made) == 2 and made[0] is not None and made[1] is not None:
                share = made[0].meta["weights_bytes"] / made[1].meta["weights_bytes"]
                ratios[f"tvm {label}: constants / fp32's"] = share
        ratio(f"tvm {label}: times faster than TVM's import", "us", f"import {label}", f"tvm {label}")
        ratio(f"tvm {label}: latency / ONNX Runtime's", "us", f"tvm {label}", f"onnx {label}")
    return ratios


def compare(path: Path, recipe: str, calib: str | None, rounds: int) -> dict[str, Any]:
    """The figures of one model: rows, ratios, refusals."""
    from edgescale.frontend import load_dataset, load_model
    from edgescale.sources import RandomSource

    with tempfile.TemporaryDirectory(prefix="edgescale-bench-") as name:
        folder = Path(name)
        variants, x = variants_of(path, recipe, calib, folder)
        data = load_dataset(calib) if calib else RandomSource("random").load(load_model(path).inputs)
        samples = data.head(SAMPLES)
        found, refused = contenders(variants, x, folder)
        measured = latencies([row.one for row in found.values()], rounds)
        rows = {
            name: {
                "name": name,
                "bytes": row.one.bytes,
                "us": measured[name],
                "steps": steps(row, samples),
                "note": row.one.note,
            }
            for name, row in found.items()
        }
        for label, variant in variants.items():
            for npu in NPUS:
                try:
                    row = npu_row(npu, label, variant, folder)
                    rows[row["name"]] = row
                except EdgescaleError as error:
                    refused.append(f"{npu} {label}: {str(error).splitlines()[0][:160]}")
    return {
        "model": path.name,
        "rows": list(rows.values()),
        "ratios": ratios_of(rows, found, list(variants)),
        "refused": refused,
    }


def matmul(size: int, rounds: int) -> dict[str, Any]:
    """One matrix in ONNX Runtime, under each of MATMUL_RECIPES."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from edgescale.frontend import load_model, model_from_ir, save_model
    from edgescale.quantize import quantize

    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, size)).astype(np.float32)
    weights = numpy_helper.from_array(rng.standard_normal((size, size)).astype(np.float32) / size**0.5, "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], "m")], "g", ends[:1], ends[1:], [weights])
    with tempfile.TemporaryDirectory(prefix="edgescale-bench-") as name:
        folder = Path(name)
        opset = [helper.make_opsetid("", 21)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), folder / "m.onnx")
        model, data = load_model(folder / "m.onnx"), Dataset("random", x, None, "0" * 64)
        found = []
        for label in MATMUL_RECIPES:
            file = folder / f"{label}.onnx"
            ir = model.ir if label == "fp32" else quantize(model, data, parse_recipe(label))
            save_model(model_from_ir(ir, model.name, model.sha256), file)
            recipe = Recipe() if label == "fp32" else parse_recipe(label)
            one = onnx_runtime(Variant(model.name, recipe, file, sha256_file(file)), x[:1])
            one.name = f"onnx {label}"
            found.append(one)
        measured = latencies(found, rounds)
    rows = [
        {"name": one.name, "bytes": one.bytes, "us": measured[one.name], "steps": None, "note": ""} for one in found
    ]
    ratios = {f"{row['name']}: times faster than fp32": rows[0]["us"] / row["us"] for row in rows[1:]}
    return {"model": f"MatMul [1, {size}] x [{size}, {size}]", "rows": rows, "ratios": ratios, "refused": []}


def show(result: dict[str, Any]) -> None:
    """Print one model's figures."""
    print(f"\n{result['model']}")
    for row in result["rows"]:
        time = "-" if row["us"] is None else f"{row['us']:.1f}"
        equal = "" if row["steps"] is None else f"{row['steps']:g} step{'' if row['steps'] == 1 else 's'}"
        print(f"  {row['name']:<16} {row['bytes']:>10,} B {time:>12} us {equal:>9}  {row['note']}")
    for name, value in result["ratios"].items():
        print(f"  {name:<44} {value:.3f}")
    for line in result["refused"]:
        print(f"  no row: {line}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--recipe", default="w8a8")
    parser.add_argument("--calib", help="calibration data; without it random samples")
    parser.add_argument("--matmul", type=int, metavar="N", help="one matrix N x N in ONNX Runtime")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not given.models and given.matmul is None:
        parser.error("name a model, or give --matmul N")
    try:
        results = [compare(path, given.recipe, given.calib, given.rounds) for path in given.models]
        if given.matmul is not None:
            results.append(matmul(given.matmul, given.rounds))
    except EdgescaleError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if given.json:
        print(json.dumps(results, indent=1))
    else:
        for result in results:
            show(result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
