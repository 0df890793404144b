"""Quantization-aware training of a float model: prepare, train with rounding in the loop, write QDQ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.core.model import Model
from edgescale.core.progress import SILENT, Progress
from edgescale.core.recipe import Recipe
from edgescale.finetune import checkpoint
from edgescale.finetune.annealing import Annealing, Flips
from edgescale.finetune.attention import ReparameterizeQueryKey
from edgescale.finetune.graph import TorchGraph, check
from edgescale.finetune.network import QuantizedGraph
from edgescale.finetune.objective import Objective
from edgescale.finetune.settings import Settings
from edgescale.frontend.graph import add_initializer, input_at, shape_of
from edgescale.quantize.post_training import finish, prepare
from edgescale.quantize.prepared import Prepared
from edgescale.quantize.reconstruct import round_weights
from edgescale.quantize.rules import weight_axis
from edgescale.quantize.units import Kind

Tensor = Any

WARM_UP = 0.05
JUDGED = 1024
"""Training samples by whose loss epochs are compared."""
Listener = Callable[[int, Mapping[str, float]], None]
"""(epochs done, {loss, flips, oscillations}); the counts are per weight and epoch."""


def train(
    model: Model,
    calibration: Dataset,
    data: Dataset,
    recipe: Recipe,
    settings: Settings | None = None,
    progress: Progress = SILENT,
    *,
    activations: Kind = "uint8",
    keep: Path | None = None,
    listener: Listener | None = None,
) -> ir.Model:
    """A loaded float model in QDQ form, trained under `recipe` (`w4a8-qat`) on `data` (y: labels, or None).

    The form is that of `quantize.quantize`; activation ranges start from the calibration samples, weights from the
    model's own. `keep`: file that holds the run after every epoch and that an interrupted call goes on from, removed at
    the end; resumed and uninterrupted runs give the same model. One thread; equal arguments give equal models on one
    machine. Raises as `quantize`, and UnsupportedModelError for nodes training does not compute or a loss that
    is not finite, UsageError for data that does not fit.
    """
    chosen = (settings or Settings()).checked()
    if not recipe.trained:
        raise UsageError(f"recipe {recipe} is not trained; write {recipe}-qat")
    with one_thread():
        teacher, student = start(model, calibration, recipe, chosen, progress, activations)
        run = checkpoint.identity(model.sha256, recipe, activations, calibration.sha256, data.sha256, chosen)
        fit(teacher, student, data, chosen, progress, keep=keep, run=run, listener=listener)
        made, stored = student.finished()
    if keep is not None:
        keep.unlink(missing_ok=True)
    return finish(made, stored, recipe)


def start(
    model: Model,
    calibration: Dataset,
    recipe: Recipe,
    settings: Settings,
    progress: Progress = SILENT,
    activations: Kind = "uint8",
) -> tuple[TorchGraph, QuantizedGraph]:
    """(the float model, its quantized form before training); `fit` trains the second. Raises as `train`."""
    check(list(model.ir.graph))
    source = _reparameterized(model) if "qkr" in recipe.steps else model
    plain = replace(recipe, rounding="")
    if settings.start == "float":
        plain = replace(recipe, rounding="rtn", steps=(*recipe.steps, "mse"))
    prepared = prepare(source, calibration, plain, progress, activations)
    _give_biases(prepared)
    rounded = round_weights(prepared, calibration, progress)
    return TorchGraph(prepared.graph), QuantizedGraph(prepared, rounded, settings.scales, settings.start)


def _reparameterized(model: Model) -> Model:
    """The model with query-key products in place of the two. Raises UsageError where it has no such attention."""
    graph = model.ir.clone()
    rewrite = ReparameterizeQueryKey()
    ir.passes.Sequential(rewrite, common.RemoveUnusedNodesPass())(graph)
    if not rewrite.rewritten:
        raise UsageError(
            f"{model.name} holds no attention whose query and key are projections of one value; leave out qkr"
        )
    return replace(model, ir=graph)


def _give_biases(prepared: Prepared) -> None:
    """A bias of zeros for every Conv and Gemm without one: training moves what rounding shifted."""
    for node in prepared.weighted:
        if node.op_type == "MatMul" or input_at(node, 2) is not None:
            continue
        count = (shape_of(node.inputs[1]) or (0,))[weight_axis(node)]
        bias = add_initializer(prepared.graph.graph, f"{node.name}.bias", np.zeros(count, np.float32))
        node.resize_inputs(3)
        node.replace_input_with(2, bias)


def fit(
    teacher: TorchGraph,
    student: QuantizedGraph,
    data: Dataset,
    settings: Settings,
    progress: Progress,
    *,
    keep: Path | None = None,
    run: str = "",
    listener: Listener | None = None,
) -> None:
    """Train `student` in place; see `train`. It ends with the best of its start and the state after each epoch."""
    sample = student.source.shape
    if sample is None or tuple(data.x.shape[1:]) != tuple(sample)[1:] or data.x.dtype.name != "float32":
        raise UsageError(
            f"training data {data.name}: samples are {data.x.dtype} {list(data.x.shape[1:])}, the model takes float32 "
            f"{list(sample or ())[1:]}"
        )
    objective = Objective(teacher, student, data.y, settings)
    optimizer = torch.optim.Adam(_groups(student, settings), betas=(0.9, 0.99))
    rates = [group["lr"] for group in optimizer.param_groups]
    best = Best(objective, data, settings.batch)
    done = checkpoint.load(keep, run, student, optimizer, best) if keep is not None else 0
    if not done:
        best.offer(student)
    batch = min(settings.batch, len(data))
    steps = len(data) // batch
    x = torch.from_numpy(data.x)
    annealing = Annealing(student, settings.band)
    task = progress.start("training", settings.epochs * steps)
    progress.advance(task, done * steps)
    try:
        for epoch in range(done, settings.epochs):
            # The order hangs on seed and epoch alone, so a resumed run repeats it.
            dice = torch.Generator().manual_seed(settings.seed * 100_003 + epoch)
            order = torch.randperm(len(data), generator=dice)
            calm = epoch >= settings.epochs - settings.annealed
            flips = Flips(student) if listener is not None else None
            total = 0.0
            for step in range(steps):
                factor = schedule(epoch * steps + step, settings.epochs * steps)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
                picked = order[step * batch : (step + 1) * batch]
                loss = objective(x[picked], None if objective.targets is None else objective.targets[picked])
                optimizer.zero_grad()
                loss.backward()
                if calm:
                    annealing.hold()
                optimizer.step()
                if calm:
                    annealing.release()
                if flips is not None:
                    flips.step(student)
                total += float(loss.detach())
                progress.advance(task)
            if not math.isfinite(total):
                raise UnsupportedModelError(f"training: the loss is not finite in epoch {epoch + 1}; lower the rate")
            best.offer(student)
            if keep is not None:
                checkpoint.save(keep, run, epoch + 1, student, optimizer, best)
            if listener is not None and flips is not None:
                listener(epoch + 1, {"loss": total / steps, **flips.take()})
    finally:
        progress.finish(task)
    student.load_state_dict(best.state)


class Best:
    """The parameters of the least loss seen, over the same JUDGED samples each time: the start is one candidate."""

    def __init__(self, objective: Objective, data: Dataset, batch: int) -> None:
        self._objective, self._batch = objective, batch
        self._x = torch.from_numpy(data.x[:JUDGED])
        self._y = None if objective.targets is None else objective.targets[:JUDGED]
        self.loss = math.inf
        self.state: dict[str, Any] = {}

    def offer(self, net: QuantizedGraph) -> None:
        """Keep what `net` holds now if it is better."""
        total = 0.0
        with torch.no_grad():
            for start in range(0, len(self._x), self._batch):
                part = slice(start, start + self._batch)
                x, y = self._x[part], None if self._y is None else self._y[part]
                total += float(self._objective(x, y)) * len(x)
        if total / len(self._x) < self.loss or not self.state:
            self.loss = total / len(self._x)
            self.state = {name: tensor.clone() for name, tensor in net.state_dict().items()}


def schedule(step: int, steps: int) -> float:
    """Share of the full rate: a straight line up over the first WARM_UP of the steps, half a cosine down to 0."""
    rise = max(1, int(WARM_UP * steps))
    return min(1.0, (step + 1) / rise) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _groups(net: QuantizedGraph, settings: Settings) -> list[dict[str, Any]]:
    """One group a tensor, so that Adam's step is the same share of every tensor; learned scales are logarithms."""
    groups = []
    for weights in net.weights:
        size = float(weights.detach().square().mean().sqrt())
        groups.append({"params": [weights], "lr": settings.rate * max(size, 1e-3)})
    scales = [p for part in (net.activations, net.rounders) for p in part.parameters() if p.requires_grad]
    return [*groups, {"params": scales, "lr": settings.scale_rate}] if scales else groups


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread while the block runs: sums in one order, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


__all__ = ["Best", "Listener", "Settings", "fit", "one_thread", "schedule", "start", "train"]
