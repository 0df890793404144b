#!/usr/bin/env python3
"""Every installed back end on the same variants: bytes, latency, and whether the outputs are the reference's.

One process, one thread, the contenders in turn round by round; latencies are medians over all rounds. What is not
installed has no row and a line that says so.

    tools/bench_backends.py MODEL.onnx [...] [--recipe w8a8] [--calib DATA.npz] [--rounds 20] [--json]

A model is a float ONNX or TFLite file, which the recipe quantizes (with --calib, or random calibration data), or one
that is quantized already. `steps` is the largest difference of an integer output from the NumPy reference of the
integer program, over a few samples: 0 is equality bit for bit. LiteRT's row is timed with its default kernels and
compared by its reference kernels; generated C is timed as built for this machine, which it is not written for; Ethos-U
is Vela's model.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench_tvm import Contender, latencies, onnx_runtime, ours, variants_of

from edgescale.core.dataset import Dataset
from edgescale.core.errors import EdgescaleError
from edgescale.core.target import load_target
from edgescale.core.variant import Artifact, Variant
from edgescale.verify import compare_with_reference, difference_from_reference

SAMPLES = 8
NPU = "ethos-u55-128"


def compiled(backend: str, target: str, variant: Variant, folder: Path) -> Artifact:
    """What a back end makes of a variant. Raises EdgescaleError where it is not installed or refuses."""
    from edgescale.backends import get_backend

    return get_backend(backend).compile(variant, load_target(target), folder)


def litert(variant: Variant, x: np.ndarray, folder: Path) -> tuple[Contender, Artifact]:
    """LiteRT's default kernels, one thread, stored units in and out."""
    from edgescale.rigs.litert import file_of, open_interpreter
    from edgescale.rigs.ports import to_stored

    artifact = compiled("edgescale_tflite", "host-litert", variant, folder)
    interpreter = open_interpreter(file_of(artifact), reference_kernels=False)
    port, made = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    stored = to_stored(artifact.meta["inputs"][0], x)

    def run() -> None:
        interpreter.set_tensor(port, stored)
        interpreter.invoke()

    size = file_of(artifact).stat().st_size
    return Contender("", size, run, lambda: np.asarray(interpreter.get_tensor(made))), artifact


def generated_c(variant: Variant, x: np.ndarray, folder: Path) -> tuple[Contender, Artifact]:
    """The C for a Cortex-M4 without its vector instructions, built for this machine; bytes of its weights."""
    from edgescale.rigs.host_c import HostModel
    from edgescale.rigs.ports import to_stored

    artifact = compiled("edgescale_c", "cortex-m3", variant, folder)
    model = HostModel(artifact)
    stored = to_stored(artifact.meta["inputs"][0], x)
    size = int(artifact.meta["weights_bytes"])
    return Contender("", size, lambda: model.run_stored(stored), lambda: model.run_stored(stored), "weights"), artifact


def contenders(
    variants: dict[str, Variant], x: np.ndarray, folder: Path
) -> tuple[list[Contender], dict[str, tuple[Variant, Artifact, str]], list[str]]:
    """Everything that runs; what each was made of, by name; and a line for each that does not run."""
    found: list[Contender] = []
    made: dict[str, tuple[Variant, Artifact, str]] = {}
    refused: list[str] = []

    def take(name: str, variant: Variant, make: Callable[[Path], tuple[Contender, Artifact]], target: str) -> None:
        try:
            one, artifact = make(folder / name.replace(" ", "-"))
            one.run()
        except (EdgescaleError, ImportError) as error:
            refused.append(f"{name}: {str(error).splitlines()[0][:160]}")
            return
        one.name = name
        found.append(one)
        made[name] = variant, artifact, target

    def by_tvm(variant: Variant, label: str, out: Path) -> tuple[Contender, Artifact]:
        artifact = compiled("edgescale_tvm", "host-tvm", variant, out)
        return ours(label, variant, x, out), artifact

    def by_ort(variant: Variant, label: str, out: Path) -> tuple[Contender, Artifact]:
        return onnx_runtime(label, variant, x), compiled("edgescale_onnx", "host", variant, out)

    for label, variant in variants.items():
        take(f"onnx {label}", variant, lambda out, v=variant, n=label: by_ort(v, n, out), "host")
        take(f"tflite {label}", variant, lambda out, v=variant: litert(v, x, out), "host-litert")
        take(f"tvm {label}", variant, lambda out, v=variant, n=label: by_tvm(v, n, out), "host-tvm")
        take(f"c {label}", variant, lambda out, v=variant: generated_c(v, x, out), "cortex-m3")
    return found, made, refused


def steps(variant: Variant, artifact: Artifact, target: str, samples: Dataset) -> float | None:
    """Largest difference from the reference in steps; None for float outputs and where there is no reference."""
    profile = load_target(target)
    if artifact.kind == "c":  # the host build of the same sources
        from dataclasses import replace

        profile = replace(profile, rig="host")
    exact = artifact.kind in ("tflite", "tvm")
    compare = compare_with_reference if exact else difference_from_reference
    result = compare(variant, artifact, profile, samples)
    return float(result["largest_difference"]) if result.get("exact") else None


def npu_row(label: str, variant: Variant, folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """Vela's model of the variant, or why there is none."""
    try:
        artifact = compiled("edgescale_ethosu", NPU, variant, folder / f"npu-{label}")
    except EdgescaleError as error:
        return None, f"ethosu {label}: {str(error).splitlines()[0][:160]}"
    found = artifact.meta["vela"]
    note = f"modelled by Vela, {found['npu_ops']:.0%} of {found['operators']} operators on {NPU}"
    size = (artifact.path / artifact.meta["compiled"]).stat().st_size
    us = None if found["cpu_operators"] else found["seconds"] * 1e6
    return {"name": f"ethosu {label}", "bytes": size, "us": us, "steps": None, "note": note}, None


def compare(path: Path, recipe: str, calib: str | None, rounds: int) -> dict[str, Any]:
    """The figures of one model: rows, ratios, refusals."""
    from edgescale.frontend import load_dataset, load_model
    from edgescale.sources import RandomSource

    with tempfile.TemporaryDirectory(prefix="edgescale-bench-") as name:
        folder = Path(name)
        variants, x = variants_of(path, recipe, calib, folder)
        data = load_dataset(calib) if calib else RandomSource("random").load(load_model(path).inputs[0])
        samples = data.head(SAMPLES)
        found, made, refused = contenders(variants, x, folder)
        measured = latencies(found, rounds)
        rows: list[dict[str, Any]] = []
        for one in found:
            rows.append(
                {
                    "name": one.name,
                    "bytes": one.bytes,
                    "us": measured[one.name],
                    "steps": steps(*made[one.name], samples),
                    "note": one.note,
                }
            )
        for label, variant in variants.items():
            row, reason = npu_row(label, variant, folder)
            rows += [row] if row else []
            refused += [reason] if reason else []
    by_name = {row["name"]: row for row in rows}
    ratios = {}
    for backend in ("onnx", "tflite", "tvm"):
        if f"{backend} fp32" in by_name and f"{backend} {recipe}" in by_name:
            ratios[f"{backend}: {recipe} faster than fp32"] = (
                by_name[f"{backend} fp32"]["us"] / by_name[f"{backend} {recipe}"]["us"]
            )
    return {"model": path.name, "rows": rows, "ratios": ratios, "refused": refused}


def show(result: dict[str, Any]) -> None:
    """Print one model's figures."""
    print(f"\n{result['model']}")
    for row in result["rows"]:
        time = "-" if row["us"] is None else f"{row['us']:.1f}"
        steps_ = "" if row["steps"] is None else f"{row['steps']:g} steps"
        print(f"  {row['name']:<16} {row['bytes']:>10,} B {time:>12} us {steps_:>9}  {row['note']}")
    for name, value in result["ratios"].items():
        print(f"  {name}: {value:.2f}x")
    for line in result["refused"]:
        print(f"  no row: {line}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--recipe", default="w8a8")
    parser.add_argument("--calib", help="calibration data; without it random samples")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        results = [compare(path, given.recipe, given.calib, given.rounds) for path in given.models]
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
