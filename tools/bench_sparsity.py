#!/usr/bin/env python3
"""What sparsity gives on a device: accuracy, multiply-accumulates, instructions, flash and milliseconds side by side.

    python tools/bench_sparsity.py channels    # channel pruning of the example family against plain magnitude
    python tools/bench_sparsity.py patterns    # 2:4, 1x4 blocks, unstructured, each with and without weight update
    python tools/bench_sparsity.py accuracy --models vit.onnx   # the same without a device, any image classifier
    python tools/bench_sparsity.py kernels     # every layer of the large net, dense and sparse
    python tools/bench_sparsity.py layers      # single layers with random zeros, dense and sparse
    python tools/bench_sparsity.py flash       # an AD-shaped dense net, 90 % of the weights zero
    python tools/bench_sparsity.py recovery    # channel pruning and five epochs of training, ours and plain magnitude
    python tools/bench_sparsity.py zeros       # patterns of zeros, one-shot and trained (-ft, -gmp, -rigl, -dsl)
    python tools/bench_sparsity.py family      # what sparse nets trained from scratch are worth in dense ones

The last three train (extra `train`, Debian package `dataset-fashion-mnist`), keep what is finished under --store and go
on after an interruption.

Instructions, flash and RAM: the int8 model on the emulated core of --target. Milliseconds: the float model on this
machine, ONNX Runtime, one thread, the fastest of several rounds, dense and pruned taking turns.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from sparsity_costs import FASHION, LayerCost, fashion, macs, measure, milliseconds, table, top1

from edgescale.core.dataset import Dataset
from edgescale.core.model import Model
from edgescale.core.sparsity import parse_sparsity
from edgescale.frontend import load_model
from edgescale.sparsify.masks import prune_weights
from edgescale.sparsify.prune import ChannelRequest, prune_channels

METHODS = {
    "plain": ("magnitude, uniform, no repair", ChannelRequest(1.0, "macs", "magnitude", "uniform", repair=False)),
    "repaired": ("magnitude, uniform, repair", ChannelRequest(1.0, "macs", "magnitude", "uniform")),
    "ours": ("reconstruction, sensitivity, repair", ChannelRequest(1.0)),
}


def channels(arguments: argparse.Namespace) -> None:
    """Least-squares repair, no training; against plain magnitude with and without the same repair."""
    data, test = fashion("calibration"), fashion("test")
    head = "net | method | MACs left | top-1 % fp32 | drop | top-1 % int8 | instructions | speed-up | flash | share | "
    table(head + "host ms | speed-up")
    for size in arguments.sizes:
        dense = load_model(FASHION / f"fashion_{size}.onnx")
        full, start = macs(dense), top1(dense, test)
        base = measure(dense, arguments.target, FASHION / "calibration.npz", FASHION / "test.npz")
        rows = [("dense", dense, base)]
        for share in arguments.shares:
            for method in arguments.methods:
                label, request = METHODS[method]
                request = replace(request, share=share)
                pruned = prune_channels(dense, data, request).model
                cost = measure(pruned, arguments.target, FASHION / "calibration.npz", FASHION / "test.npz")
                rows.append((f"{label}, ch{share:g}", pruned, cost))
        times = milliseconds([model for _, model, _ in rows], test)
        for (label, model, cost), taken in zip(rows, times, strict=True):
            print(
                f"| {size} | {label} | {macs(model) / full:.3f} | {top1(model, test):.2f} | "
                f"{start - top1(model, test):.2f} | {cost.accuracy:.2f} | {cost.instructions:,.0f} | "
                f"{base.instructions / cost.instructions:.2f} | {cost.flash:,.0f} | {cost.flash / base.flash:.2f} | "
                f"{taken:.3f} | {times[0] / taken:.2f} |",
                flush=True,
            )


def patterns(arguments: argparse.Namespace) -> None:
    """One-shot zeros with update against magnitude; what exploits them on the device."""
    data, test = fashion("calibration"), fashion("test")
    head = (
        "net | sparsity | density | top-1 % magnitude | with update | dense | instructions | speed-up | flash share | "
    )
    table(head + "layers that skip")
    for size in arguments.sizes:
        dense = load_model(FASHION / f"fashion_{size}.onnx")
        start = top1(dense, test)
        base = measure(dense, arguments.target, FASHION / "calibration.npz", None)
        for text in arguments.patterns:
            part = parse_sparsity(text)
            plain, _ = prune_weights(dense, data, part, method="magnitude")
            better, densities = prune_weights(dense, data, part)
            cost = measure(better, arguments.target, FASHION / "calibration.npz", None)
            skip = sum("sparse" in layer.kernel for layer in cost.layers.values())
            print(
                f"| {size} | {text} | {np.mean(list(densities.values())):.2f} | {top1(plain, test):.2f} | "
                f"{top1(better, test):.2f} | {start:.2f} | {cost.instructions:,.0f} | "
                f"{base.instructions / cost.instructions:.2f} | {cost.flash / base.flash:.2f} | "
                f"{skip} of {len(densities)} |",
                flush=True,
            )
            for name, layer in cost.layers.items():
                if layer.exploited.startswith("nothing"):
                    print(f"  {name}: {layer.exploited}")


def accuracy(arguments: argparse.Namespace) -> None:
    """Top-1 of float models for 28x28 images of Fashion-MNIST: by magnitude, and with weight update."""
    data, test = fashion("calibration").head(arguments.samples), fashion("test")
    table("model | sparsity | layers | dense top-1 % | magnitude | with update")
    for path in arguments.models or [FASHION / f"fashion_{size}.onnx" for size in arguments.sizes]:
        dense = load_model(path)
        for text in arguments.patterns:
            plain, _ = prune_weights(dense, data, parse_sparsity(text), method="magnitude")
            better, densities = prune_weights(dense, data, parse_sparsity(text))
            scores = " | ".join(f"{top1(model, test):.2f}" for model in (dense, plain, better))
            print(f"| {dense.name} | {text} | {len(densities)} | {scores} |", flush=True)


def kernels(arguments: argparse.Namespace) -> None:
    """Layer by layer: the dense kernel beside what the same layer runs with zeros."""
    data = fashion("calibration")
    table("net | sparsity | layer | dense | sparse | speed-up | in cycles | exploited by")
    for size in arguments.sizes:
        dense = load_model(FASHION / f"fashion_{size}.onnx")
        before = measure(dense, arguments.target, FASHION / "calibration.npz", None)
        for text in arguments.patterns:
            sparse, densities = prune_weights(dense, data, parse_sparsity(text))
            after = measure(sparse, arguments.target, FASHION / "calibration.npz", None)
            for name in densities:
                if name in before.layers and name in after.layers:
                    print(f"| {size} | {text} | {name} | {beside(before.layers[name], after.layers[name])} |")


def beside(old: LayerCost, new: LayerCost) -> str:
    """Cells: instructions of both, how many times fewer, the same of cycles, what comes of the zeros."""
    return (
        f"{old.instructions:,.0f} | {new.instructions:,.0f} | {old.instructions / new.instructions:.2f} | "
        f"{old.cycles / new.cycles:.2f} | {new.exploited}"
    )


def single_layer(inputs: int, outputs: int, kernel: int, side: int) -> Model:
    """A convolution of `side` x `side` pixels, or with side 1 a dense layer; random weights."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    shape = (outputs, inputs, kernel, kernel) if side > 1 else (outputs, inputs)
    weights = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    constants = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.zeros(outputs, np.float32), "b")]
    if side > 1:
        node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "layer", pads=[kernel // 2] * 4)
        shapes = [[1, inputs, side, side], [1, outputs, side, side]]
    else:
        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], "layer", transB=1)
        shapes = [[1, inputs], [1, outputs]]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip("xy", shapes, strict=True)]
    graph = helper.make_graph([node], "layer", ports[:1], ports[1:], constants)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
        return load_model(path)


LAYERS = [
    (16, 24, 1, 14),
    (16, 64, 1, 14),
    (32, 64, 1, 8),
    (64, 64, 1, 8),
    (128, 128, 1, 4),
    (32, 32, 3, 8),
    (256, 64, 1, 1),
]
"""(inputs, outputs, window, side of the image)."""


def layers(arguments: argparse.Namespace) -> None:
    """Single layers, whose zeros lie anywhere a pattern allows; flash with the code of the kernels."""
    table("layer | sparsity | dense | sparse | speed-up | in cycles | exploited by | flash dense | sparse")
    for inputs, outputs, kernel, side in LAYERS:
        dense = single_layer(inputs, outputs, kernel, side)
        x = np.random.default_rng(1).standard_normal((32, *dense.inputs[0].shape[1:])).astype(np.float32)
        with tempfile.TemporaryDirectory() as folder:
            calibration = Path(folder) / "x.npz"
            np.savez(calibration, x=x)
            before = measure(dense, arguments.target, calibration, None)
            for text in arguments.patterns:
                zeros, _ = prune_weights(
                    dense, Dataset("random", x, None, "random"), parse_sparsity(text), method="magnitude"
                )
                after = measure(zeros, arguments.target, calibration, None)
                shape = f"{inputs} -> {outputs}, {kernel}x{kernel}, {side * side} pixels"
                cells = beside(before.layers["layer"], after.layers["layer"])
                print(f"| {shape} | {text} | {cells} | {before.flash:,.0f} | {after.flash:,.0f} |", flush=True)


def anomaly_net() -> Model:
    """A dense autoencoder of MLPerf Tiny's shape (640, 4 x 128, 8, 4 x 128, 640), random weights."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng, nodes, constants, x = np.random.default_rng(0), [], [], "x"
    widths = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640]
    for i, (fan, units) in enumerate(pairwise(widths)):
        weights = (rng.standard_normal((units, fan)) * np.sqrt(2 / fan)).astype(np.float32)
        constants.append(numpy_helper.from_array(weights, f"w{i}"))
        constants.append(numpy_helper.from_array(np.zeros(units, np.float32), f"b{i}"))
        nodes.append(helper.make_node("Gemm", [x, f"w{i}", f"b{i}"], [f"y{i}"], f"dense{i}", transB=1))
        x = f"y{i}"
        if units != 640:
            nodes.append(helper.make_node("Relu", [x], [f"r{i}"], f"relu{i}"))
            x = f"r{i}"
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 640]) for n in ("x", x)]
    graph = helper.make_graph(nodes, "ad", ports[:1], ports[1:], constants)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ad.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
        return load_model(path)


def flash(arguments: argparse.Namespace) -> None:
    """Flash and instructions of a weight-bound net, dense and with single weights skipped."""
    model = anomaly_net()
    x = np.random.default_rng(1).standard_normal((256, 640)).astype(np.float32)
    data = Dataset("random", x, None, "random")
    with tempfile.TemporaryDirectory() as folder:
        calibration = Path(folder) / "x.npz"
        np.savez(calibration, x=x)
        base = measure(model, arguments.target, calibration, None)
        table("net | sparsity | memory | flash | of dense | instructions | of dense | layers packed")
        print(f"| AD-shaped | dense | balanced | {base.flash:,.0f} | 1.00 | {base.instructions:,.0f} | 1.00 | 0 |")
        for share in (0.5, 0.75, 0.8, 0.9, 0.95):
            sparse, _ = prune_weights(model, data, parse_sparsity(f"u{share}"))
            for memory in ("balanced", "packed"):
                cost = measure(sparse, arguments.target, calibration, None, memory=memory)
                packed = sum("sparse" in layer.kernel or "packed" in layer.kernel for layer in cost.layers.values())
                print(
                    f"| AD-shaped | u{share} | {memory} | {cost.flash:,.0f} | {cost.flash / base.flash:.2f} | "
                    f"{cost.instructions:,.0f} | {cost.instructions / base.instructions:.2f} | {packed} |",
                    flush=True,
                )


def trained(part: str) -> Callable[[argparse.Namespace], None]:
    """A part that trains."""

    def run(arguments: argparse.Namespace) -> None:
        import bench_sparsity_train

        getattr(bench_sparsity_train, part)(arguments)

    return run


def main() -> None:
    """Run the part that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"channels": channels, "patterns": patterns, "accuracy": accuracy, "kernels": kernels}
    parts |= {"layers": layers, "flash": flash}
    parts |= {part: trained(part) for part in ("recovery", "zeros", "family")}
    parser.add_argument("part", choices=parts)
    parser.add_argument("--target", default="cortex-m4-stm32l4r5")
    parser.add_argument("--sizes", nargs="+", default=["large"], choices=["small", "medium", "large"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), help="channels: which")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5])
    parser.add_argument("--patterns", nargs="+", default=["2:4", "1:4", "4:8", "1x4:0.5", "1x4:0.75", "u0.75"])
    parser.add_argument("--models", nargs="+", type=Path, help="accuracy: these instead of the example's")
    parser.add_argument("--samples", type=int, default=512, help="accuracy: calibration samples")
    parser.add_argument("--recoveries", nargs="*", default=["ft", "gmp", "rigl", "dsl"], help="zeros: which")
    parser.add_argument("--store", type=Path, default=FASHION.parents[1] / "build" / "sparsity", help="trained nets")
    parser.add_argument("--images", type=int, default=20_000, help="training images")
    parser.add_argument("--epochs", type=int, help="of training  [default: 5, family: 10]")
    parser.add_argument("--rate", type=float, help="of training, as a share of each tensor's root mean square")
    parser.add_argument("--features", type=float, help="weight of the inner activations' error")
    parser.add_argument("--widths", nargs="+", type=int, default=[4, 6, 8, 12, 16, 24, 32], help="family: dense nets")
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.5, 0.75, 0.875], help="family: zeros")
    parser.add_argument("--seeds", type=int, default=1, help="family: nets of each kind")
    arguments = parser.parse_args()
    parts[arguments.part](arguments)


if __name__ == "__main__":
    main()
