"""The parts of `bench_sparsity.py` that train: recovery from pruning, and what sparse nets are worth in dense ones.

Every trained net is kept under --store, named by a hash of all it depends on, with the run beside it while it trains:
the same command goes on after an interruption and reads what is finished. Needs the extra `train` and the Debian
package `dataset-fashion-mnist`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sparsity_costs import FASHION, Cost, fashion, macs, measure, milliseconds, session, table, top1

sys.path.insert(0, str(FASHION))

from fashion_data import DEFAULT_DATA, load_split, to_input

from edgescale.core.dataset import Dataset
from edgescale.core.model import Model
from edgescale.core.recipe import parse_recipe
from edgescale.core.sparsity import Sparsity, parse_sparsity
from edgescale.finetune import Settings, need_torch
from edgescale.frontend import load_model, model_from_ir, save_model
from edgescale.laws.published import PUBLISHED
from edgescale.laws.tradeoffs import sparse_multiplier
from edgescale.quantize import quantize
from edgescale.sparsify.masks import prune_weights
from edgescale.sparsify.prune import ChannelRequest, Pruned, prune_channels

CALIBRATION = FASHION / "calibration.npz"


def images(count: int, seed: int) -> Dataset:
    """`count` labelled images of the train split, drawn with `seed`."""
    x, y = load_split(DEFAULT_DATA, "train")
    picked = np.random.default_rng(seed).permutation(len(y))[:count]
    return Dataset("train", np.ascontiguousarray(to_input(x[picked])), y[picked], f"fashion:{count}:{seed}")


def held_out() -> Dataset:
    """All 10,000 images of the test split."""
    x, y = load_split(DEFAULT_DATA, "test")
    return Dataset("test", to_input(x), y, "fashion:test")


@dataclass(frozen=True)
class Store:
    """Trained nets by what they depend on."""

    folder: Path

    def trained(self, name: str, parts: Mapping[str, object], train: Callable[..., Model]) -> Model:
        """The net, trained where it is not there; `train(keep=...)` gets the file that its run is kept in."""
        key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
        path = self.folder / f"{name}-{key}.onnx"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            save_model(train(keep=path.with_suffix(".pt")), path)
            path.with_suffix(".pt").unlink(missing_ok=True)
        return load_model(path)


def told(label: str) -> Callable[[int, Mapping[str, float]], None]:
    """Prints each epoch to the error stream."""

    def listen(epoch: int, figures: Mapping[str, float]) -> None:
        print(f"  {label}, epoch {epoch}: {figures['loss']:.4f}", file=sys.stderr, flush=True)

    return listen


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Of recovery."""
    changed = {"epochs": arguments.epochs or 5, "rate": arguments.rate, "features": arguments.features}
    return replace(Settings(), **{name: value for name, value in changed.items() if value is not None}).checked()


def recovered(dense: Model, pruned: Pruned, data: Dataset, settings: Settings, store: Store, label: str) -> Model:
    """Trained towards the dense net's answers, channels only."""
    from edgescale.finetune.recover import recover

    parts = {"dense": dense.sha256, "pruned": pruned.model.sha256, "data": data.sha256, "settings": asdict(settings)}

    train = partial(recover, dense, pruned.model, data, settings, kept=pruned.kept, listener=told(label))
    return store.trained(dense.name, parts, train)


def recovery(arguments: argparse.Namespace) -> None:
    """Channel pruning and as many epochs for both sides: ours by the target's instructions, and plain magnitude."""
    need_torch()
    calibration, test = fashion("calibration"), held_out()
    data, settings, store = images(arguments.images, 0), settings_of(arguments), Store(arguments.store)
    print(f"{settings.epochs} epochs of {len(data):,} images; top-1 of all {len(test):,} test images, percent")
    head = (
        "net | method | MACs left | fp32 pruned | fp32 trained | drop | int8 trained | instructions | speed-up | flash"
    )
    table(f"{head} | share | host ms | speed-up")
    for size in arguments.sizes:
        dense = load_model(FASHION / f"fashion_{size}.onnx")
        full, start = macs(dense), top1(dense, test)
        base = measure(dense, arguments.target, CALIBRATION, None)
        rows: list[tuple[str, Model, float, Cost]] = [("dense", dense, start, base)]
        for share in arguments.shares:
            ours = prune_channels(dense, calibration, ChannelRequest(share, "instructions", prices=prices(dense, base)))
            plain = no_fewer(dense, calibration, ours.share)
            for label, pruned in (("plain magnitude", plain), (f"ch{share:g}i", ours)):
                before = top1(pruned.model, test)
                model = recovered(dense, pruned, data, settings, store, f"{size} {label}")
                rows.append((f"{label}-ft", model, before, measure(model, arguments.target, CALIBRATION, None)))
        times = milliseconds([model for _, model, _, _ in rows], test)
        for (label, model, before, cost), taken in zip(rows, times, strict=True):
            after = top1(model, test)
            print(
                f"| {size} | {label} | {macs(model) / full:.3f} | {before:.2f} | {after:.2f} | {start - after:.2f} | "
                f"{top1(rounded(model, calibration), test):.2f} | {cost.instructions:,.0f} | "
                f"{base.instructions / cost.instructions:.2f} | {cost.flash:,.0f} | {cost.flash / base.flash:.2f} | "
                f"{taken:.3f} | {times[0] / taken:.2f} |",
                flush=True,
            )


def no_fewer(dense: Model, calibration: Dataset, share: float) -> Pruned:
    """Pruned by plain magnitude, every family alike, to the least MACs that are no fewer than `share` of them."""
    request = ChannelRequest(share, "macs", "magnitude", "uniform", repair=False)
    found = prune_channels(dense, calibration, request)
    while found.share < share:
        request = replace(request, share=request.share + 0.01)
        found = prune_channels(dense, calibration, request)
    return found


def prices(dense: Model, base: Cost) -> dict[str, float]:
    """{node: instructions of one multiply-accumulate} of the dense int8 net on the target."""
    from edgescale.sparsify.channels import find_structure
    from edgescale.sparsify.shrink import layer_macs

    counts = layer_macs(find_structure(dense.ir.graph), ())
    return {name: base.layers[name].instructions / count for name, count in counts.items() if name in base.layers}


def rounded(model: Model, calibration: Dataset) -> Model:
    """The int8 net."""
    return model_from_ir(quantize(model, calibration, parse_recipe("w8a8")), model.name)


def zeros(arguments: argparse.Namespace) -> None:
    """Zeros by magnitude, with update, and trained: held, grown along the cubic, moved."""
    need_torch()
    from edgescale.finetune.recover import recover

    calibration, test = fashion("calibration"), held_out()
    data, settings, store = images(arguments.images, 0), settings_of(arguments), Store(arguments.store)
    print(f"{settings.epochs} epochs of {len(data):,} images; fp32 top-1 of all {len(test):,} test images, percent")
    head = ["net", "sparsity", "dense", "magnitude", "with update", *(f"-{name}" for name in arguments.recoveries)]
    table(" | ".join(head))
    for path in arguments.models or [FASHION / f"fashion_{size}.onnx" for size in arguments.sizes]:
        dense = load_model(path)
        for text in arguments.patterns:
            part = parse_sparsity(text)
            plain, _ = prune_weights(dense, calibration, part, method="magnitude")
            updated, _ = prune_weights(dense, calibration, part)
            scores = [f"{top1(model, test):.2f}" for model in (dense, plain, updated)]
            for method in arguments.recoveries:
                if method == "dsl" and part.pattern == "n:m":
                    scores.append("-")
                    continue
                start = dense if method == "gmp" else updated
                parts = {"dense": dense.sha256, "start": start.sha256, "data": data.sha256, "method": [text, method]}
                listen = told(f"{dense.name} {text}-{method}")
                train = partial(recover, dense, start, data, settings, zeros=part, method=method, listener=listen)
                made = store.trained(dense.name, {**parts, "settings": asdict(settings)}, train)
                scores.append(f"{top1(made, test):.2f}")
            print(f"| {dense.name} | {text} | {' | '.join(scores)} |", flush=True)


def plain_net(width: int, seed: int) -> Model:
    """Three 3x3 convolutions of stride 2 with width, 2 and 4 times as many channels, mean, linear: random weights."""
    rng, nodes, constants, x, channels = np.random.default_rng(seed), [], [], "image", 1

    def constant(array: np.ndarray, name: str) -> str:
        constants.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    for i, outputs in enumerate((width, 2 * width, 4 * width)):
        weights = rng.standard_normal((outputs, channels, 3, 3)) * np.sqrt(2 / (9 * channels))
        inputs = [x, constant(weights, f"conv{i}.w"), constant(np.zeros(outputs), f"conv{i}.b")]
        nodes.append(helper.make_node("Conv", inputs, [f"c{i}"], f"conv{i}", strides=[2, 2], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"relu{i}"))
        x, channels = f"r{i}", outputs
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["mean"], "mean"))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"], "flatten"))
    weights = rng.standard_normal((10, channels)) * np.sqrt(1 / channels)
    inputs = ["flat", constant(weights, "head.w"), constant(np.zeros(10), "head.b")]
    nodes.append(helper.make_node("Gemm", inputs, ["logits"], "head", transB=1))
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("image", [1, 1, 28, 28]), ("logits", [1, 10]))
    ]
    graph = helper.make_graph(nodes, f"plain{width}", ports[:1], ports[1:], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(proto)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"plain{width}.onnx"
        onnx.save(proto, path)
        return load_model(path)


def test_loss(model: Model, data: Dataset) -> float:
    """Mean cross-entropy, nats."""
    run, name = session(model), model.inputs[0].name
    logits = np.concatenate([run.run(None, {name: x})[0] for x in data.batches(1)]).astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(logits)), data.y]).mean())


def non_zero(model: Model) -> tuple[int, int]:
    """Weights that are not zero, and all; biases apart."""
    arrays = [v.const_value.numpy() for v in model.ir.graph.initializers.values()]
    found = [a for a in arrays if a.ndim > 1]
    return sum(int((a != 0).sum()) for a in found), sum(a.size for a in found)


def family(arguments: argparse.Namespace) -> None:
    """Dense sizes and sparse nets of one family, each trained from scratch on as many samples; the sparse by `gmp`.

    A sparse net's multiplier is the size of the dense net of equal test loss over its non-zero weights: dense losses
    are interpolated in the logarithms of both.
    """
    need_torch()
    from edgescale.finetune.recover import recover

    data, test, store = images(arguments.images, 0), held_out(), Store(arguments.store)
    settings = Settings(epochs=arguments.epochs or 10, rate=arguments.rate or 0.01, labels=1.0, features=0.0).checked()

    def loss_of(width: int, part: Sparsity | None) -> tuple[float, int, float]:
        losses, nets = [], []
        for seed in range(arguments.seeds):
            own = replace(settings, seed=seed)
            start = plain_net(width, seed)
            parts = {"width": width, "zeros": str(part), "data": data.sha256, "settings": asdict(own)}
            label = f"width {width} {part or 'dense'} seed {seed}"
            method = "gmp" if part else "ft"
            train = partial(recover, start, start, data, own, zeros=part, method=method, listener=told(label))
            nets.append(store.trained(f"plain{width}", parts, train))
            losses.append(test_loss(nets[-1], test))
        kept, every = non_zero(nets[0])
        return float(np.mean(losses)), kept, 1 - kept / every

    print(
        f"{settings.epochs} epochs of {len(data):,} images from scratch, {arguments.seeds} seed(s); "
        f"test loss in nats; multipliers of the sparse law: arXiv:2309.08520"
    )
    table("width | sparsity | non-zero weights | test loss | dense of equal loss | multiplier | law, ViT | law, T5")
    dense = []
    for width in arguments.widths:
        loss, size, _ = loss_of(width, None)
        dense.append((loss, size))
        print(f"| {width} | 0 | {size:,} | {loss:.4f} | {size:,} | 1 | 1 | 1 |", flush=True)
    dense.sort()
    logs = np.log([loss for loss, _ in dense]), np.log([size for _, size in dense])
    for width in arguments.widths[-2:]:
        for share in arguments.sparsities:
            loss, size, sparsity = loss_of(width, parse_sparsity(f"u{share:g}"))
            inside = logs[0][0] <= np.log(loss) <= logs[0][-1]
            equal = float(np.exp(np.interp(np.log(loss), *logs)))
            worth = f"{equal:,.0f} | {equal / size:.2f}" if inside else "outside the dense sizes | -"
            laws = " | ".join(
                f"{float(sparse_multiplier(PUBLISHED[n], sparsity)):.2f}" for n in ("sparse-vit", "sparse-t5")
            )
            print(f"| {width} | {sparsity:.3f} | {size:,} | {loss:.4f} | {worth} | {laws} |", flush=True)
