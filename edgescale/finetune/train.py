"""Quantization-aware training of a float model: prepare, train with rounding in the loop, write QDQ."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UsageError
from edgescale.core.model import Model
from edgescale.core.progress import SILENT, Progress
from edgescale.core.recipe import Recipe, override_texts
from edgescale.finetune import checkpoint
from edgescale.finetune.annealing import Annealing, Flips
from edgescale.finetune.attention import ReparameterizeQueryKey
from edgescale.finetune.graph import TorchGraph, check, give_biases
from edgescale.finetune.loop import Hook, Listener, check_samples, one_thread, run_epochs, weight_groups
from edgescale.finetune.masks import Masks
from edgescale.finetune.network import QuantizedGraph
from edgescale.finetune.objective import Objective
from edgescale.finetune.settings import Settings
from edgescale.quantize.post_training import finish, prepare
from edgescale.quantize.reconstruct import round_weights
from edgescale.quantize.units import Kind


def train(
    model: Model,
    calibration: Dataset,
    data: Dataset,
    recipe: Recipe,
    settings: Settings | None = None,
    progress: Progress = SILENT,
    *,
    activations: Kind = "uint8",
    teacher: Model | None = None,
    keep: Path | None = None,
    listener: Listener | None = None,
) -> ir.Model:
    """A loaded float model in QDQ form, trained under `recipe` (`w4a8-qat`) on `data` (y: labels, or None).

    The form is that of `quantize.quantize`; activation ranges start from the calibration samples, weights from the
    model's own. `teacher`: the net whose answers are learned (default: the model itself): the dense one where this is
    pruned. Weights that a sparsity of the recipe left zero stay zero. `keep`: file that holds the run after every
    epoch and that an interrupted call goes on from, removed at the end; resumed and uninterrupted runs give the same
    model. One thread; equal arguments give equal models on one machine. Raises as `quantize`, and UnsupportedModelError
    for nodes training does not compute or a loss that is not finite, UsageError for data that does not fit.
    """
    chosen = (settings or Settings()).checked()
    if not recipe.trained:
        raise UsageError(f"recipe {recipe} is not trained; write {recipe}-qat")
    with one_thread():
        inner, student = start(model, calibration, recipe, chosen, progress, activations)
        run = checkpoint.identity(
            [model.sha256, teacher.sha256 if teacher else "", calibration.sha256, data.sha256],
            [repr(recipe), override_texts(recipe), activations, asdict(chosen)],
        )
        dense = TorchGraph(teacher.ir) if teacher is not None else inner
        zeros = any(part.pattern != "channels" for part in recipe.sparsity)
        fit(dense, student, data, chosen, progress, inner=inner, zeros=zeros, keep=keep, run=run, listener=listener)
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
    give_biases(prepared.graph.graph, prepared.weighted)
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


def fit(
    teacher: TorchGraph,
    student: QuantizedGraph,
    data: Dataset,
    settings: Settings,
    progress: Progress,
    *,
    inner: TorchGraph | None = None,
    zeros: bool = False,
    keep: Path | None = None,
    run: str = "",
    listener: Listener | None = None,
) -> None:
    """Train `student` in place; see `train`. It ends with the best of its start and the state after each epoch.

    `inner`: the float net whose inner activations count where that is not the teacher; `zeros`: its weights that are
    zero stay so.
    """
    check_samples(student, data)
    objective = Objective(teacher, student, data.y, settings, inner)
    optimizer = torch.optim.Adam(_groups(student, settings), betas=(0.9, 0.99))
    hooks: list[Hook] = [Masks.of_zeros(inner or teacher, student)] if zeros else []
    hooks.append(Annealing(student, settings.band, settings.epochs - settings.annealed))
    if listener is not None:
        hooks.append(Flips(student))
    run_epochs(
        objective, student, optimizer, data, settings, progress, hooks, keep=keep, run=run, listener=listener
    )  # fmt: skip


def _groups(net: QuantizedGraph, settings: Settings) -> list[dict[str, Any]]:
    """Parameters with their rates; learned scales are logarithms."""
    groups = weight_groups(net, settings)
    scales = [p for part in (net.activations, net.rounders) for p in part.parameters() if p.requires_grad]
    return [*groups, {"params": scales, "lr": settings.scale_rate}] if scales else groups


__all__ = ["Listener", "Settings", "fit", "one_thread", "start", "train"]
