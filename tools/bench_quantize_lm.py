#!/usr/bin/env python3
"""Weight-only quantization of transformers: what each method loses, beside ONNX Runtime's quantizer, in one run.

    tools/bench_quantize_lm.py encoder minilm.onnx --calib calib.npz --eval eval.npz
    tools/bench_quantize_lm.py decoder lm/64x2.onnx lm/128x2.onnx --calib lm/calib.npz --eval lm/eval.npz --figure k.svg

An encoder takes one array an input from the .npz files and gives an embedding: the loss is 1 - mean cosine to the float
model's. A decoder takes tokens (x [n, length], as `tools/train_lm.py` writes them) and gives logits: the loss is the
rise of the perplexity. Every file runs as the ONNX back end would (one thread, int8 inputs in the fused kernels); each
line gives the loss, its share of what rounding to nearest loses at the same bits and group (`pos-rtn`: scales above
zero, the largest weight over 7 at 4 bits, as papers compare with; `rtn` may take scales below zero, as ONNX Runtime's
quantizer does), bytes and latency over the float file's, layers left unfused, and seconds. Decoders are then compared
over sizes: perplexity at 2 to 8 bits and the best number of bits for an equal total.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "compilers")]
METHODS = ("pos-rtn", "rtn", "awq", "awq-abc", "gptq", "gptq-clip", "gptq-awq")
GROUPS = ("w4a16-g32", "w4a16-g128", "w3a16-g128")
LAW_BITS = (2, 3, 4, 5, 6, 8)
LAW_GROUP = 64
LATENCY_RUNS = 60
COLORS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377")

Arrays = dict[str, np.ndarray]
Loss = Callable[[Path], float]


@dataclass
class Bench:
    """One model with its data; `loss` of a file is measured against the float one."""

    model: Any
    calibration: Any
    samples: Arrays
    folder: Path
    loss: Loss = lambda path: 0.0
    nearest: dict[str, float] = field(default_factory=dict)

    @property
    def floating(self) -> Path:
        """The float file."""
        return self.folder / "float.onnx"

    def make(self, recipe: str, path: Path) -> float:
        """Quantize; seconds."""
        from edgescale.core.recipe import parse_recipe
        from edgescale.frontend import model_from_ir, save_model
        from edgescale.quantize import quantize

        start = time.perf_counter()
        graph = quantize(self.model, self.calibration, parse_recipe(recipe))
        spent = time.perf_counter() - start
        save_model(model_from_ir(graph, self.model.name), path)
        return spent


def session(path: Path) -> Any:
    """As the back end opens a file."""
    import onnxruntime
    from edgescale_onnx.backend import SESSION

    from edgescale.runtime.ort import session_options

    options = session_options(SESSION)
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def rows(path: Path, samples: Arrays) -> np.ndarray:
    """First output of every sample; where a mask says so, padding is cut off before, as an application would."""
    opened, made = session(path), []
    for i in range(len(next(iter(samples.values())))):
        mask = samples.get("attention_mask")
        cut = slice(None) if mask is None else slice(int(mask[i].sum()))
        made.append(opened.run(None, {name: array[i : i + 1, cut] for name, array in samples.items()})[0][0])
    return np.stack(made)


def cosine_loss(floating: np.ndarray, samples: Arrays) -> Loss:
    """1 - mean cosine of embeddings."""

    def loss(path: Path) -> float:
        made = rows(path, samples)
        norms = np.linalg.norm(made, axis=1) * np.linalg.norm(floating, axis=1)
        return float(1 - np.mean((made * floating).sum(axis=1) / norms))

    return loss


def perplexity(path: Path, port: str, windows: np.ndarray) -> float:
    """exp of the mean cross entropy of each next token; windows [n, length + 1]."""
    logits = rows(path, {port: windows[:, :-1]}).astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return float(np.exp(-np.mean(np.take_along_axis(logs, windows[:, 1:, None], axis=-1))))


def latencies(paths: list[Path], samples: Arrays) -> list[float]:
    """Median seconds of one sample; the files take turns, so that all see the same machine."""
    opened = [session(path) for path in paths]
    feed = {name: array[:1] for name, array in samples.items()}
    times: list[list[float]] = [[] for _ in paths]
    for _ in range(LATENCY_RUNS):
        for spent, one in zip(times, opened, strict=True):
            start = time.perf_counter()
            one.run(None, feed)
            spent.append(time.perf_counter() - start)
    return [float(np.median(spent[5:])) for spent in times]


def peers(bench: Bench, bits: int, group: int) -> dict[str, Callable[[Path], None]]:
    """ONNX Runtime's own quantizer, where it knows the bits."""
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            fed = bench.calibration.fed()
            fed = fed if isinstance(fed, dict) else {bench.model.inputs[0].name: fed}
            self._left = iter([{name: array[i : i + 1] for name, array in fed.items()} for i in range(64)])

        def get_next(self) -> Any:
            return next(self._left, None)

    def run(path: Path, symmetric: bool, config: Any) -> None:
        quantizer = nbits.MatMulNBitsQuantizer(
            str(bench.floating), bits=bits, block_size=group, is_symmetric=symmetric, accuracy_level=4,
            algo_config=config,
        )  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):  # one of them draws a progress bar
            quantizer.process()
        quantizer.model.save_model_to_file(str(path))

    if bits != 4:
        return {}
    return {
        "onnxruntime rtn": lambda path: run(path, True, None),
        "onnxruntime rtn asym": lambda path: run(path, False, None),
        "onnxruntime k_quant": lambda path: run(path, False, nbits.KQuantWeightOnlyQuantConfig()),
        "onnxruntime gptq": lambda path: run(
            path, False, nbits.GPTQWeightOnlyQuantConfig(Reader(), block_size=group, actorder=True)
        ),
    }


def table(bench: Bench, groups: list[str], methods: list[str]) -> None:
    """Print the lines of one model."""
    from edgescale_onnx.backend import SESSION
    from edgescale_onnx.fused import unfused_weights

    print(f"{'':28}{'loss':>9}{'of rtn':>8}{'bytes':>7}{'latency':>9}{'unfused':>9}{'s':>8}", flush=True)
    for base in groups:
        bits, group = int(base[1]), int(base.rpartition("g")[2])
        jobs: dict[str, Callable[[Path], Any]] = {}
        for method in methods:
            jobs[f"{base}-{method}"] = lambda path, recipe=f"{base}-{method}": bench.make(recipe, path)
        jobs.update(peers(bench, bits, group))
        nearest = None
        for label, job in jobs.items():
            path = bench.folder / "made.onnx"
            start = time.perf_counter()
            try:
                spent = job(path)
                spent = time.perf_counter() - start if spent is None else spent
                lost = bench.loss(path)
            except Exception as error:  # a peer's failure is a result
                print(f"{label:28}failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]}")
                continue
            nearest = lost if nearest is None else nearest
            size = path.stat().st_size / bench.floating.stat().st_size
            ours, theirs = latencies([path, bench.floating], bench.samples)
            left = len(unfused_weights(path, SESSION))
            print(
                f"{label:28}{lost:9.4f}{100 * lost / nearest:7.0f}%{size:7.2f}{ours / theirs:9.2f}{left:9}{spent:8.1f}",
                flush=True,
            )


def total_bits(model: Any, bits: int) -> float:
    """Of a model whose MatMul weights take `bits` and a 16-bit scale a group, everything else 16."""
    from edgescale.frontend.graph import constant, is_op

    dense = sum(a.size for n in model.ir.graph if is_op(n, "MatMul") and (a := constant(n.inputs[1])) is not None)
    arrays = (constant(value) for value in model.ir.graph.initializers.values())
    every = sum(array.size for array in arrays if array is not None and array.dtype == np.float32)
    return float(dense * (bits + 16 / LAW_GROUP) + (every - dense) * 16)


def law(curves: dict[int, list[tuple[float, float]]]) -> None:
    """Each number of bits' perplexity under a budget, interpolated, and the best, where its neighbours have one too.

    curves: {bits: [(total bits, perplexity), ...]}, by rising bits.
    """
    starts = sorted(min(points)[0] for points in curves.values())
    ends = sorted(max(points)[0] for points in curves.values())
    print("\nperplexity at equal total bits (interpolated over sizes):")
    print(f"{'total bits':>14}" + "".join(f"{bits:>9}" for bits in curves) + "     best")
    for budget in np.geomspace(starts[1], ends[-2], 8):
        found = {}
        for bits, points in curves.items():
            x, y = (np.log([point[i] for point in sorted(points)]) for i in (0, 1))
            if x[0] <= np.log(budget) * (1 + 1e-12) and np.log(budget) <= x[-1] * (1 + 1e-12):
                found[bits] = float(np.exp(np.interp(np.log(budget), x, y)))
        cells = "".join(f"{found[bits]:9.3f}" if bits in found else f"{'-':>9}" for bits in curves)
        best = min(found, key=found.__getitem__)
        at = list(curves).index(best)
        # Where a neighbour has no model of this size, the best may be beyond what was measured.
        best = best if all(bits in found for bits in list(curves)[max(at - 1, 0) : at + 2]) else "-"
        print(f"{budget:14,.0f}{cells}{best:>9}")


def figure(curves: dict[int, list[tuple[float, float]]], path: Path) -> None:
    """Perplexity over total bits, both axes logarithmic, a line a number of bits, as SVG."""
    points = [point for line in curves.values() for point in line]
    low, high = np.log(np.min(points, axis=0)), np.log(np.max(points, axis=0))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = (np.log(point) - low) / (high - low)
        return 60 + 480 * float(x), 330 - 290 * float(y)

    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 390" font-family="sans-serif" font-size="12">']
    parts.append('<rect width="640" height="390" fill="white"/><path d="M60 30V340H550" fill="none" stroke="black"/>')
    for name, at in (("min", low), ("max", high)):
        x, y = place((float(np.exp(at[0])), float(np.exp(at[1]))))
        parts.append(f'<text x="{x:.0f}" y="356" text-anchor="middle">{np.exp(at[0]):.3g}</text><!-- {name} -->')
        parts.append(f'<text x="54" y="{y + 4:.0f}" text-anchor="end">{np.exp(at[1]):.3g}</text>')
    parts.append('<text x="300" y="378" text-anchor="middle">total bits</text><text x="20" y="20">perplexity</text>')
    for color, (bits, line) in zip(COLORS * 2, curves.items(), strict=False):
        placed = [place(point) for point in sorted(line)]
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in placed]
        parts.append(f'<text x="560" y="{50 + 18 * list(curves).index(bits)}" fill="{color}">{bits} bits</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")
    print(f"figure: {path}")


def opened(source: Path, calib: Path, samples: Arrays, folder: Path) -> Bench:
    """Load a model and its calibration data, and write the float file."""
    from edgescale.frontend import load_dataset, load_model, save_model

    model = load_model(source)
    bench = Bench(model, load_dataset(str(calib), model), samples, folder)
    save_model(model, bench.floating)
    return bench


def main() -> None:
    """Parse the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("encoder", "decoder"))
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--eval", dest="evaluation", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=400, help="of --eval, at most")
    parser.add_argument("--groups", default=",".join(GROUPS), help="bits and group sizes, comma-separated")
    parser.add_argument("--methods", default=",".join(METHODS), help="suffixes of recipes; the first is the yardstick")
    parser.add_argument("--law-method", default="rtn", help="how the sizes are quantized for the comparison")
    parser.add_argument("--figure", type=Path, help="where to write that comparison (SVG)")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # the peers log every layer
    with np.load(options.evaluation) as data:
        arrays = {name: data[name][: options.samples] for name in data.files if name != "y"}
    groups, methods = options.groups.split(","), options.methods.split(",")
    curves: dict[int, list[tuple[float, float]]] = {}
    for source in options.models:
        with tempfile.TemporaryDirectory() as name:
            samples = arrays if options.kind == "encoder" else {"x": arrays["x"][:, :-1]}
            bench = opened(source, options.calib, samples, Path(name))
            if options.kind == "encoder":
                bench.loss = cosine_loss(rows(bench.floating, samples), samples)
                print(f"\n{source.name}: 1 - mean cosine to the float model's embeddings")
                table(bench, groups, methods)
                continue
            port = bench.model.inputs[0].name
            bench.samples = {port: arrays["x"][:, :-1]}
            base = perplexity(bench.floating, port, arrays["x"])
            bench.loss = lambda path, base=base, port=port: perplexity(path, port, arrays["x"]) - base  # type: ignore[misc]
            print(f"\n{source.name}: perplexity of the float model {base:.4f}; loss is its rise")
            table(bench, groups, methods)
            curves.setdefault(16, []).append((total_bits(bench.model, 16), base))
            for bits in LAW_BITS:
                bench.make(f"w{bits}a16-g{LAW_GROUP}-{options.law_method}", bench.folder / "law.onnx")
                curves.setdefault(bits, []).append(
                    (total_bits(bench.model, bits), perplexity(bench.folder / "law.onnx", port, arrays["x"]))
                )
    if options.kind == "decoder" and len(options.models) > 1:
        curves = dict(sorted(curves.items()))
        law(curves)
        if options.figure:
            figure(curves, options.figure)


if __name__ == "__main__":
    main()
