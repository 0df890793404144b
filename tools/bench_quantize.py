#!/usr/bin/env python3
"""Post-training quantization beside other tools on the same model and data, both sides in one run.

    tools/bench_quantize.py                                    the three example nets
    tools/bench_quantize.py net.onnx --calib c.npz --eval t.npz --recipes w8a8,w4a8
    tools/bench_quantize.py kws01_fp32.tflite --eval kws01_test.npz --first 200 --dequantize 0.5847,83

Each line is one tool: top-1 drop in points from the float model (for data without labels: mean cosine instead),
agreement with its answers, SQNR of the outputs, bytes of the file and its ratio to the float one, latency ratio to
the float one in ONNX Runtime on one thread, seconds and peak memory (RSS) of quantizing in a process of its own,
import and model loading apart. ONNX Runtime is always there; NNCF and AI Edge Quantizer where the running
environment has them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "compilers")]
EXAMPLES = ROOT / "examples" / "fashion"
LATENCY_RUNS = 300


@dataclass(frozen=True)
class Job:
    """A tool to run: `tool` is a key of TOOLS, `setting` what it is to do."""

    tool: str
    setting: str
    activations: str = "uint8"

    @property
    def label(self) -> str:
        """As the table names it."""
        return f"{self.tool} {self.setting}" + ("" if self.activations == "uint8" else " s8s8")


def ours(source: Path, x: Any, name: str, job: Job, out: Path) -> Callable[[], None]:
    """edgescale under a recipe."""
    from edgescale.core.dataset import Dataset
    from edgescale.core.recipe import parse_recipe
    from edgescale.frontend import load_model, save_model
    from edgescale.quantize import quantize

    model = load_model(source)
    data = Dataset("calibration", x, None, "")
    return lambda: save_model(quantize(model, data, parse_recipe(job.setting)), out)


def onnxruntime_static(source: Path, x: Any, name: str, job: Job, out: Path) -> Callable[[], None]:
    """`quantize_static`, QDQ, per channel; setting: <calibrator>-w8 or -w4."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows = iter(x)

        def get_next(self) -> Any:
            row = next(self._rows, None)
            return None if row is None else {name: row[None]}

    method, bits = job.setting.split("-")
    kind = QuantType.QUInt8 if job.activations == "uint8" else QuantType.QInt8
    return lambda: quantize_static(
        source, out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=kind,
        weight_type=QuantType.QInt8 if bits == "w8" else QuantType.QInt4,
        calibrate_method=getattr(CalibrationMethod, method),
    )  # fmt: skip


def nncf_ptq(source: Path, x: Any, name: str, job: Job, out: Path) -> Callable[[], None]:
    """`nncf.quantize`; setting: fast-bias or full-bias correction."""
    import nncf
    import onnx

    model = onnx.load(source)
    rows = nncf.Dataset(list(x), lambda row: {name: row[None]})

    def run() -> None:
        made = nncf.quantize(model, rows, subset_size=len(x), fast_bias_correction=job.setting == "fast-bias")
        onnx.save(made, out)

    return run


def ai_edge(source: Path, x: Any, name: str, job: Job, out: Path) -> Callable[[], None]:
    """AI Edge Quantizer on a float .tflite, static int8 by minimum and maximum."""
    from ai_edge_quantizer import quantizer, recipe

    key, port = _signature(source)

    def run() -> None:
        tool = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
        calibrated = tool.calibrate({key: [{port: row[None]} for row in x]})
        out.write_bytes(tool.quantize(calibrated).quantized_model)

    return run


def _signature(source: Path) -> tuple[str, str]:
    from ai_edge_litert.interpreter import Interpreter

    listed = Interpreter(str(source)).get_signature_list()
    key = next(iter(listed), None)
    if key is None:
        raise RuntimeError("the file has no signature, which AI Edge Quantizer calibrates by")
    return key, listed[key]["inputs"][0]


TOOLS: dict[str, Callable[..., Callable[[], None]]] = {
    "edgescale": ours,
    "onnxruntime": onnxruntime_static,
    "nncf": nncf_ptq,
    "ai-edge-quantizer": ai_edge,
}


def jobs_for(recipes: list[str], tflite: bool) -> list[Job]:
    """What to run here; prints which tools are absent."""
    jobs = [Job("edgescale", recipe) for recipe in recipes]
    bits = sorted({"w4" if recipe.startswith("w4") else "w8" for recipe in recipes}, reverse=True)
    for width in bits:
        for method in ("MinMax", "Entropy", "Percentile"):
            jobs.append(Job("onnxruntime", f"{method}-{width}"))
        jobs.append(Job("onnxruntime", f"MinMax-{width}", "int8"))
    if find_spec("nncf"):
        jobs += [Job("nncf", "fast-bias"), Job("nncf", "full-bias")]
    else:
        print("nncf is not installed here: left out")
    if not find_spec("ai_edge_quantizer"):
        print("ai-edge-quantizer is not installed here: left out")
    elif tflite:
        jobs.append(Job("ai-edge-quantizer", "minmax"))
    else:
        print("ai-edge-quantizer takes .tflite models only: left out")
    return jobs


def child(pipe: Any, source: Path, x: Any, name: str, job: Job, out: Path) -> None:
    """In a process of its own: (seconds, peak MB, MB before) or the error's first line."""
    try:
        run = TOOLS[job.tool](source, x, name, job, out)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        pipe.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, before))
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def run_job(source: Path, x: Any, name: str, job: Job, out: Path) -> Any:
    """Quantize in a fresh process, so that time and memory are this tool's alone."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=child, args=(there, source, x, name, job, out))
    process.start()
    there.close()
    try:
        answer = here.recv()
    except EOFError:
        answer = "the process died"
    process.join()
    return answer


def session(path: Path) -> Any:
    """An ONNX Runtime session on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def answers(path: Path, x: Any) -> np.ndarray:
    """First output of every sample, [count, outputs]."""
    if path.suffix == ".tflite":
        return tflite_answers(path, x)
    opened = session(path)
    name = opened.get_inputs()[0].name
    return np.concatenate([opened.run(None, {name: row[None]})[0].reshape(1, -1) for row in x])


def tflite_answers(path: Path, x: Any) -> np.ndarray:
    """As `answers`, by LiteRT; a quantized port is (de)quantized as the file says."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    port, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    rows = []
    for row in x:
        value = row.reshape(port["shape"]).astype(np.float32)
        if port["dtype"] != np.float32:
            scale, zero = port["quantization"]
            limits = np.iinfo(port["dtype"])
            value = np.clip(np.rint(value / scale) + zero, limits.min, limits.max).astype(port["dtype"])
        interpreter.set_tensor(port["index"], value)
        interpreter.invoke()
        out = interpreter.get_tensor(result["index"]).astype(np.float64)
        if result["dtype"] != np.float32:
            scale, zero = result["quantization"]
            out = (out - zero) * scale
        rows.append(out.reshape(1, -1))
    return np.concatenate(rows)


def latency(paths: list[Path], x: Any) -> dict[Path, float]:
    """Median microseconds of one inference; the models take turns, so that all see the same machine."""
    opened = {path: session(path) for path in paths if path.suffix == ".onnx"}
    times: dict[Path, list[float]] = {path: [] for path in opened}
    for turn in range(LATENCY_RUNS):
        row = x[turn % len(x)][None]
        for path, one in opened.items():
            feeds = {one.get_inputs()[0].name: row}
            start = time.perf_counter()
            one.run(None, feeds)
            times[path].append(time.perf_counter() - start)
    return {path: float(np.median(spent[20:])) * 1e6 for path, spent in times.items()}


def opened_answers(path: Path, x: Any) -> Any:
    """`answers`, or why the file a tool wrote cannot be run."""
    try:
        return answers(path, x)
    except Exception as error:
        return f"its file does not run: {str(error).splitlines()[0]}"


def usable(spent: Any) -> bool:
    """Whether a tool wrote a file that runs."""
    return not isinstance(spent, str) and not isinstance(spent[-1], str)


def compare(source: Path, calibration: Any, evaluation: Any, labels: Any, recipes: list[str]) -> None:
    """Print the table of one model."""
    from edgescale.frontend import load_model, save_model

    model = load_model(source)
    name = model.inputs[0].name
    with tempfile.TemporaryDirectory() as folder:
        floating = Path(folder) / "float.onnx"
        save_model(model, floating)
        base = answers(floating, evaluation)
        made: list[tuple[Job, Path, Any]] = []
        for index, job in enumerate(jobs_for(recipes, source.suffix == ".tflite")):
            out = Path(folder) / (f"{index}.tflite" if job.tool == "ai-edge-quantizer" else f"{index}.onnx")
            given = source if job.tool == "ai-edge-quantizer" else floating
            spent = run_job(given, calibration, name, job, out)
            made.append((job, out, spent if isinstance(spent, str) else (*spent, opened_answers(out, evaluation))))
        times = latency([floating, *(path for _, path, answer in made if usable(answer))], evaluation)
        score = "top-1" if labels is not None else "cosine"
        print(f"\n{source.name}: {len(calibration)} calibration samples, {len(evaluation)} evaluation samples")
        if labels is not None:
            print(f"float {score} {100 * float(np.mean(base.argmax(1) == labels)):.2f}, ", end="")
        print(f"{floating.stat().st_size:,} B, {times[floating]:.0f} us")
        print(
            f"{'':34}{'drop':>7}{'agree':>8}{'SQNR':>7}{'bytes':>10}{'ratio':>7}{'lat.':>6}{'s':>7}{'MB':>6}{'+MB':>6}"
        )
        for job, path, answer in made:
            if not usable(answer):
                print(f"{job.label:34}failed: {(answer if isinstance(answer, str) else answer[-1])[:90]}")
                continue
            print(f"{job.label:34}" + figures(path, floating, base, labels, times, answer))


def figures(path: Path, floating: Path, base: Any, labels: Any, times: dict[Path, float], spent: Any) -> str:
    """One line of the table."""
    seconds, peak, before, got = spent
    if labels is not None:
        drop = 100 * float(np.mean(base.argmax(1) == labels) - np.mean(got.argmax(1) == labels))
    else:
        norms = np.linalg.norm(base, axis=1) * np.linalg.norm(got, axis=1) + 1e-30
        drop = float(1 - np.mean((base * got).sum(axis=1) / norms))
    agreement = float(np.mean(base.argmax(1) == got.argmax(1)))
    sqnr = 10 * np.log10((base**2).sum() / max(((got - base) ** 2).sum(), 1e-30))
    size = path.stat().st_size
    speed = f"{times[path] / times[floating]:.2f}" if path in times else "-"
    return (
        f"{drop:7.2f}{agreement:8.4f}{sqnr:7.1f}{size:10,}{size / floating.stat().st_size:7.2f}{speed:>6}"
        f"{seconds:7.2f}{peak:6.0f}{peak - before:6.0f}"
    )


def main() -> None:
    """Parse the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="default: the example family")
    parser.add_argument("--calib", type=Path, help=".npz with x; default: the first samples of --eval, see --first")
    parser.add_argument("--eval", dest="evaluation", type=Path, help=".npz with x and, for top-1, y")
    parser.add_argument("--first", type=int, default=200, help="without --calib: how many samples calibrate")
    parser.add_argument("--dequantize", help="SCALE,ZERO_POINT of integer samples")
    parser.add_argument("--recipes", default="w8a8,w4a8", help="of edgescale, comma-separated")
    options = parser.parse_args()
    models = options.models or [EXAMPLES / f"fashion_{size}.onnx" for size in ("small", "medium", "large")]
    calib, evaluation = options.calib, options.evaluation
    if not options.models:
        calib, evaluation = calib or EXAMPLES / "calibration.npz", evaluation or EXAMPLES / "test.npz"
    if evaluation is None:
        parser.error("give --eval")
    with np.load(evaluation) as data:
        x, y = data["x"], data["y"].reshape(-1) if "y" in data else None
    calibration = np.load(calib)["x"] if calib else x[: options.first]
    if options.dequantize:
        scale, zero = (float(part) for part in options.dequantize.split(","))
        x, calibration = (((part.astype(np.float32) - zero) * scale).astype(np.float32) for part in (x, calibration))
    for source in models:
        from edgescale.frontend import load_model

        shape = load_model(source).inputs[0].shape[1:]
        rows, held = (np.ascontiguousarray(part.reshape(-1, *shape)) for part in (x, calibration))
        compare(source, held, rows, y, options.recipes.split(","))


if __name__ == "__main__":
    main()
