"""What quantizing costs: seconds and peak memory on a MobileNetV2-size net, growth of memory with the samples."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from quantizers import Job, Spent, run_job

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""MobileNetV2: expansion, channels, blocks and first stride of each stage."""
SIDE = 224
FEW, MANY = 100, 10_000


def mobilenet_v2(path: Path, classes: int = 1000) -> None:
    """A MobileNetV2 of width 1 for 224x224 images, random weights, batch norms folded: its answers mean nothing."""
    import onnx
    from onnx import helper, numpy_helper

    random = np.random.default_rng(0)
    nodes: list[Any] = []
    constants: list[Any] = []

    def const(array: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(array, np.float32), f"c{len(constants)}"))
        return str(constants[-1].name)

    def node(op: str, inputs: list[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"v{len(nodes)}"], name=f"{op}_{len(nodes)}", **attributes))
        return str(nodes[-1].output[0])

    low, high = const(0), const(6)

    def conv(x: str, i: int, o: int, kernel: int, stride: int = 1, group: int = 1, *, clamp: bool = True) -> str:
        shape = (o, i // group, kernel, kernel)
        gain = np.sqrt((2 if clamp else 1) / np.prod(shape[1:])) * random.lognormal(0, 0.3, (o, 1, 1, 1))
        inputs = [x, const(random.normal(size=shape) * gain), const(0.1 * random.normal(size=o))]
        y = node("Conv", inputs, pads=[kernel // 2] * 4, strides=[stride] * 2, group=group)
        return node("Clip", [y, low, high]) if clamp else y

    x, width = conv("x", 3, 32, 3, 2), 32
    for expansion, channels, blocks, first in STAGES:
        for block in range(blocks):
            inner, stride = width * expansion, first if block == 0 else 1
            y = conv(x, width, inner, 1) if expansion > 1 else x
            y = conv(conv(y, inner, inner, 3, stride, inner), inner, channels, 1, clamp=False)
            x = node("Add", [x, y]) if stride == 1 and width == channels else y
            width = channels
    x = node("Flatten", [node("GlobalAveragePool", [conv(x, width, 1280, 1)])])
    weights = [const(random.normal(size=(classes, 1280)) / 36), const(np.zeros(classes))]
    nodes.append(helper.make_node("Gemm", [x, *weights], ["y"], name="head", transB=1))
    ports = [helper.make_tensor_value_info("x", 1, [1, 3, SIDE, SIDE])]
    result = [helper.make_tensor_value_info("y", 1, [1, classes])]
    graph = helper.make_graph(nodes, "mobilenet_v2", ports, result, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def images(path: Path, count: int, shape: Sequence[int]) -> None:
    """A .npy of random images with the smoothness of photographs, written one by one: [count, *shape] float32."""
    out = np.lib.format.open_memmap(path, "w+", np.float32, (count, *shape))
    random = np.random.default_rng(1)
    for index in range(count):
        noise = random.normal(size=shape)
        out[index] = 0.3 * noise + np.cumsum(np.cumsum(noise, axis=-1), axis=-2) / np.sqrt(shape[-1] * shape[-2])
    out.flush()


def speed(count: int, rounds: int) -> list[tuple[str, bool, str]]:
    """Ours and `quantize_static` in turn on the same images; (claim, held, figures) of time and memory."""
    jobs = [Job("edgescale", "w8a8"), Job("onnxruntime", "MinMax-w8")]
    runs: dict[Job, list[Spent]] = {job: [] for job in jobs}
    with tempfile.TemporaryDirectory() as folder:
        source, rows = Path(folder) / "mobilenet_v2.onnx", Path(folder) / "images.npy"
        mobilenet_v2(source)
        images(rows, count, (3, SIDE, SIDE))
        print(f"\nMobileNetV2, {count} images of {SIDE}x{SIDE}, {rounds} rounds in turn: median (each)")
        for _ in range(rounds):
            for job in jobs:
                spent = run_job(source, rows, "x", job, Path(folder) / "out.onnx")
                if isinstance(spent, str):
                    raise SystemExit(f"{job.label}: {spent}")
                runs[job].append(spent)
    for job, done in runs.items():
        each = ", ".join(f"{one.seconds:.1f} s {one.peak:.0f} MB" for one in done)
        print(f"{job.label:24}{_median(done, 'seconds'):8.1f} s{_median(done, 'peak'):8.0f} MB   ({each})")
    (mine, theirs) = ({key: _median(runs[job], key) for key in ("seconds", "peak")} for job in jobs)
    return [
        (f"MobileNetV2 on {count} images: {what} no more than quantize_static's", mine[key] <= theirs[key], figures)
        for key, what, figures in (
            ("seconds", "time", f"{mine['seconds']:.1f} against {theirs['seconds']:.1f} s"),
            ("peak", "peak memory", f"{mine['peak']:.0f} against {theirs['peak']:.0f} MB"),
        )
    ]


def memory(source: Path, recipes: Sequence[str]) -> list[tuple[str, bool, str]]:
    """Peak memory with FEW and MANY samples, held in memory by the process; (claim, held, figures) for each recipe."""
    from edgescale.frontend import load_model

    port = load_model(source).inputs[0]
    found = []
    print(f"\n{source.name}: peak memory with {FEW:,} and {MANY:,} calibration samples")
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "images.npy"
        images(rows, MANY, port.shape[1:])
        x = np.load(rows)
        for recipe in recipes:
            few, many = (
                run_job(source, x[:count], port.name, Job("edgescale", recipe), Path(folder) / "out.onnx")
                for count in (FEW, MANY)
            )
            if isinstance(few, str) or isinstance(many, str):
                raise SystemExit(f"edgescale {recipe}: {few if isinstance(few, str) else many}")
            rise = many.peak - few.peak
            figures = f"{few.peak:.0f} and {many.peak:.0f} MB, {rise:.0f} MB more"
            print(f"edgescale {recipe:14}{figures}, {few.seconds:.1f} and {many.seconds:.1f} s")
            found.append((f"{source.stem} {recipe}: {MANY:,} samples take < 200 MB more", rise < 200, figures))
    return found


def _median(runs: list[Spent], key: str) -> float:
    return float(np.median([getattr(run, key) for run in runs]))
