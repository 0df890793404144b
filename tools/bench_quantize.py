#!/usr/bin/env python3
"""Post-training quantization beside other tools on the same model and data, both sides in one run.

    tools/bench_quantize.py                                    everything, on the three example nets
    tools/bench_quantize.py --kws /data/mlperf_tiny            the keyword-spotting model of MLPerf Tiny as well
    tools/bench_quantize.py --tables net.onnx --calib c.npz --eval t.npz --recipes w8a8,w4a8
    tools/bench_quantize.py --speed --rounds 5                 one section alone

The example nets are judged on the whole test split, 10,000 images, where the Debian package `dataset-fashion-mnist` is
installed: of the 2,000 that are shipped, 0.1 points are two images.

--tables: each line is one tool: top-1 drop in points from the float model (for data without labels: mean cosine
instead), agreement with its answers, SQNR of the outputs, bytes of the file and its ratio to the float one, latency
ratio to the float one in ONNX Runtime on one thread, seconds and peak memory (RSS) of quantizing in a process of its
own, import and model loading apart. ONNX Runtime is always there; NNCF and AI Edge Quantizer where the running
environment has them. --formats: the error of every number format on Gaussian data beside the published one and a
Monte Carlo estimate. --speed: time and peak memory beside `quantize_static` on a MobileNetV2. --memory: growth of
peak memory with the calibration samples. The last lines say which of the limits quantization is to keep were held.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from quantizers import ROOT, Job, Spent, jobs_for, run_job

EXAMPLES = ROOT / "examples" / "fashion"
LATENCY_RUNS = 300
SAMPLES = 4_000_000

FEW_PARAMETERS, MANY_PARAMETERS = 10_000, 90_000
"""Where a net counts as small (other limits of drop and file size) and as large (a limit of file size)."""
BEHIND = 0.1
"""Points by which w8a8 may lie behind the best other tool."""
SECONDS = 15.0
SHARE, ATTEMPTS = 0.62, 25

PUBLISHED = {
    "int8": 8.8e-5, "int6": 1.04e-3, "int5": 3.50e-3, "int4": 0.01154, "int3": 0.03744, "int2": 0.1188,
    "int1": 0.3634, "int4 mid-tread": 0.01289, "fp4-e2m1": 0.01269,
}  # fmt: skip
"""Least mean squared errors on a standard normal: uniform quantizers (Max 1960), 15 levels, FP4 E2M1."""

Claim = tuple[str, bool, str]
"""(what is to hold, whether it did, the figures)."""


@dataclass(frozen=True)
class Line:
    """One tool's figures on one model; `drop` in points of top-1, without labels 1 - mean cosine."""

    job: Job
    drop: float
    agreement: float
    sqnr: float
    size: int
    ratio: float
    slower: float | None
    spent: Spent
    right: np.ndarray | None
    """Which samples it answers as labelled."""
    share: float | None
    """Weight bytes as a share of one byte a weight; None for other tools' files."""

    def __str__(self) -> str:
        latency = "-" if self.slower is None else f"{self.slower:.2f}"
        share = "" if self.share is None else f"{self.share:7.2f}"
        return (
            f"{self.drop:7.2f}{self.agreement:8.4f}{self.sqnr:7.1f}{self.size:10,}{self.ratio:7.2f}{latency:>6}"
            f"{self.spent.seconds:7.2f}{self.spent.peak:6.0f}{self.spent.peak - self.spent.before:6.0f}{share}"
        )


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


def compare(source: Path, calibration: Any, evaluation: Any, labels: Any, recipes: list[str]) -> list[Claim]:
    """Print the table of one model; what of the limits it keeps."""
    from edgescale.frontend import load_model, save_model

    model = load_model(source)
    name = model.inputs[0].name
    with tempfile.TemporaryDirectory() as folder:
        floating = Path(folder) / "float.onnx"
        save_model(model, floating)
        base = answers(floating, evaluation)
        made: list[tuple[Job, Path, Spent, Any]] = []
        failed: list[tuple[Job, str]] = []
        for index, job in enumerate(jobs_for(recipes, tflite=source.suffix == ".tflite")):
            edge = job.tool == "ai-edge-quantizer"
            out = Path(folder) / (f"{index}.tflite" if edge else f"{index}.onnx")
            spent = run_job(source if edge else floating, calibration, name, job, out)
            if isinstance(spent, str):
                failed.append((job, spent))
                continue
            try:
                made.append((job, out, spent, answers(out, evaluation)))
            except Exception as error:  # whatever the run time of another tool's file raises
                failed.append((job, f"its file does not run: {str(error).splitlines()[0]}"))
        times = latency([floating, *(out for _, out, _, _ in made)], evaluation)
        parameters = weight_bytes(floating)[1]
        lines = [
            Line(job, *quality(base, got, labels), out.stat().st_size, out.stat().st_size / floating.stat().st_size,
                 times[out] / times[floating] if out in times else None, spent,
                 None if labels is None else got.argmax(1) == labels, share_of(job, out))
            for job, out, spent, got in made
        ]  # fmt: skip
        show(source, floating, len(calibration), base, labels, times[floating], lines, failed)
    return claims(source.stem, lines, parameters, labels is not None)


def quality(base: Any, got: Any, labels: Any) -> tuple[float, float, float]:
    """(drop, agreement, SQNR in dB) of a tool's outputs [count, outputs] against the float ones."""
    if labels is not None:
        drop = 100 * float(np.mean(base.argmax(1) == labels) - np.mean(got.argmax(1) == labels))
    else:
        norms = np.linalg.norm(base, axis=1) * np.linalg.norm(got, axis=1) + 1e-30
        drop = float(1 - np.mean((base * got).sum(axis=1) / norms))
    agreement = float(np.mean(base.argmax(1) == got.argmax(1)))
    return drop, agreement, float(10 * np.log10((base**2).sum() / max(((got - base) ** 2).sum(), 1e-30)))


def weight_bytes(path: Path) -> tuple[int, int]:
    """(bytes as stored, count) of all constants of more than one axis."""
    import onnx

    tensors = [t for t in onnx.load(path).graph.initializer if len(t.dims) > 1]
    return sum(len(t.raw_data) for t in tensors), sum(int(np.prod(t.dims)) for t in tensors)


def share_of(job: Job, path: Path) -> float | None:
    """Weight bytes of a file of ours as a share of those at 8 bits."""
    if job.tool != "edgescale":
        return None
    stored, count = weight_bytes(path)
    return stored / max(count, 1)


def show(
    source: Path, floating: Path, held: int, base: Any, labels: Any, us: float, lines: list[Line],
    failed: list[tuple[Job, str]],
) -> None:  # fmt: skip
    """Print the table."""
    print(f"\n{source.name}: {held} calibration samples, {len(base)} evaluation samples")
    if labels is not None:
        print(f"float top-1 {100 * float(np.mean(base.argmax(1) == labels)):.2f}, ", end="")
    print(f"{floating.stat().st_size:,} B, {us:.0f} us")
    heads = (
        f"{'drop':>7}{'agree':>8}{'SQNR':>7}{'bytes':>10}{'ratio':>7}{'lat.':>6}{'s':>7}{'MB':>6}{'+MB':>6}{'w/w8':>7}"
    )
    print(f"{'':34}" + heads)
    for line in lines:
        print(f"{line.job.label:34}{line}")
    for job, reason in failed:
        print(f"{job.label:34}failed: {reason[:90]}")


def claims(name: str, lines: list[Line], parameters: int, labelled: bool) -> list[Claim]:
    """The limits of one model: drops, distance to the best other tool, seconds, bytes."""
    if not labelled:
        return []
    small = parameters < FEW_PARAMETERS
    found: list[Claim] = []
    for line in lines:
        if line.job.tool != "edgescale":
            continue
        recipe, drop = line.job.setting, line.drop
        limit = {"w8a8": 0.6 if small else 0.3, "w4a8": 2.0 if small else 1.0, "auto": 0.5}.get(recipe)
        if limit is None:
            continue
        found.append((f"{name} {recipe}: drop <= {limit} points", drop <= limit + 1e-9, f"{drop:.2f}"))
        if recipe == "w8a8":
            found += _beside(name, line, [one for one in lines if one.job.tool != "edgescale" and one.job.bits == 8])
            most = 0.55 if small else 0.35 if parameters > MANY_PARAMETERS else None
            if most is not None:
                found.append((f"{name} w8a8: file <= {most} of the float one", line.ratio <= most, f"{line.ratio:.3f}"))
        if recipe == "w4a8":
            seconds = line.spent.seconds
            found.append((f"{name} w4a8: at most {SECONDS:.0f} s", seconds <= SECONDS, f"{seconds:.1f} s"))
        if recipe == "auto":
            share, tried = line.share or 1.0, line.spent.tried
            found.append((f"{name} auto: <= {SHARE} of int8 weight bytes", share <= SHARE, f"{share:.3f}"))
            found.append((f"{name} auto: at most {ATTEMPTS} true evaluations", tried <= ATTEMPTS, f"{tried}"))
    return found


def _beside(name: str, line: Line, peers: list[Line]) -> list[Claim]:
    best = min(peers, key=lambda one: one.drop, default=None)
    if best is None:
        return []
    behind = line.drop - best.drop
    words = f"{line.drop:.2f} against {best.drop:.2f} of {best.job.label}"
    if line.right is not None and best.right is not None:
        # Of samples that one of the two answers right, each is as likely the other's where both are equally good.
        error = 100 * float(np.sqrt(np.sum(line.right != best.right))) / line.right.size
        words += f" (standard error of the difference {error:.2f})"
    return [(f"{name} w8a8: at most {BEHIND} points behind the best other tool", behind <= BEHIND + 1e-9, words)]


def formats() -> list[Claim]:
    """Print the error of every format at its best scale, integrated and on samples; the published ones are claims."""
    from edgescale.quantize.formats import gmse, integer, mid_rise, minifloat, quantile

    forms = {f"int{k}": mid_rise(k) for k in range(8, 0, -1)}
    forms |= {f"int{k} two's complement": integer(k) for k in range(8, 1, -1)}
    forms |= {"int4 mid-tread": integer(4, narrow=True), "fp4-e2m1": minifloat(2, 1)}
    forms |= {"fp8-e4m3": minifloat(4, 3, reserved=1), "nf4": quantile(4)}
    x = np.random.default_rng(0).normal(size=SAMPLES)
    print(f"\n{'format':24}{'GMSE':>11}{'scale':>9}{f'{SAMPLES:,} samples':>19}{'published':>11}")
    found = []
    for name, form in forms.items():
        error, scale = gmse(form)
        sampled = float(np.mean((form.nearest(x / scale) * scale - x) ** 2))
        known = PUBLISHED.get(name)
        print(f"{name:24}{error:11.3e}{scale:9.4f}{sampled:19.3e}{f'{known:.3e}' if known else '-':>11}")
        if known is not None:
            off = abs(error / known - 1)
            found.append((f"GMSE of {name} within 1 % of the published", off <= 0.01, f"{100 * off:.2f} %"))
    return found


def keyword_spotting(folder: Path) -> tuple[Path, Any, Any]:
    """(float model, samples, labels) of MLPerf Tiny's files in a folder: kws01_{fp32,int8}.tflite, kws01_test.npz."""
    from ai_edge_litert.interpreter import Interpreter

    scale, zero = Interpreter(str(folder / "kws01_int8.tflite")).get_input_details()[0]["quantization"]
    with np.load(folder / "kws01_test.npz") as data:
        x = ((data["x"].astype(np.float32) - zero) * np.float32(scale)).astype(np.float32)
        return folder / "kws01_fp32.tflite", x, data["y"].reshape(-1)


def example_test() -> tuple[Any, Any]:
    """(samples, labels) of the example: all 10,000 test images where its data are installed, else the 2,000 shipped."""
    sys.path.insert(0, str(EXAMPLES))
    from fashion_data import DEFAULT_DATA, DataMissingError, load_split, to_input

    try:
        x, y = load_split(DEFAULT_DATA, "test")
    except DataMissingError:
        with np.load(EXAMPLES / "test.npz") as data:
            return data["x"], data["y"].reshape(-1)
    return to_input(x), y


def tables(options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Claim]:
    """The tables of all models asked for."""
    from edgescale.frontend import load_model

    given: list[tuple[Path, Any, Any, Any]] = []
    models, calib, evaluation = options.models, options.calib, options.evaluation
    if not models:
        models = [EXAMPLES / f"fashion_{size}.onnx" for size in ("small", "medium", "large")]
        calib = calib or EXAMPLES / "calibration.npz"
    elif evaluation is None:
        parser.error("give --eval")
    if evaluation is None:
        x, y = example_test()
    else:
        with np.load(evaluation) as data:
            x, y = data["x"], data["y"].reshape(-1) if "y" in data else None
    held = np.load(calib)["x"] if calib else x[: options.first]
    given += [(source, held, x, y) for source in models]
    if options.kws:
        source, x, y = keyword_spotting(options.kws)
        given.append((source, x[:200], x, y))
    found: list[Claim] = []
    for source, held, x, y in given:
        shape = load_model(source).inputs[0].shape[1:]
        rows, held = (np.ascontiguousarray(part.reshape(-1, *shape)) for part in (x, held))
        found += compare(source, held, rows, y, options.recipes.split(","))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run the sections, sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="default: the example family")
    parser.add_argument("--calib", type=Path, help=".npz with x; default: the first samples of --eval, see --first")
    parser.add_argument("--eval", dest="evaluation", type=Path, help=".npz with x and, for top-1, y")
    parser.add_argument("--first", type=int, default=200, help="without --calib: how many samples calibrate")
    parser.add_argument("--kws", type=Path, help="folder of MLPerf Tiny's kws01_fp32.tflite, _int8.tflite, _test.npz")
    parser.add_argument("--recipes", default="w8a8,w4a8,auto", help="of edgescale, comma-separated")
    parser.add_argument("--images", type=int, default=500, help="of --speed")
    parser.add_argument("--rounds", type=int, default=3, help="of --speed")
    for section in ("tables", "formats", "speed", "memory"):
        parser.add_argument(f"--{section}", action="store_true", help="this section; default: all")
    options = parser.parse_args(arguments)
    wanted = {name for name in ("tables", "formats", "speed", "memory") if getattr(options, name)}
    wanted = wanted or {"tables", "formats", "speed", "memory"}
    from bench_quantize_load import memory, speed

    found: list[Claim] = []
    if "formats" in wanted:
        found += formats()
    if "tables" in wanted:
        found += tables(options, parser)
    if "speed" in wanted:
        found += speed(options.images, options.rounds)
    if "memory" in wanted:
        found += memory(EXAMPLES / "fashion_large.onnx", options.recipes.split(","))
    print()
    for claim, held, figures in found:
        print(f"{'held  ' if held else 'MISSED'}  {claim}: {figures}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
