"""Recovery from pruning: the smaller or sparse float net, trained towards the dense one's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.core.model import Model
from edgescale.core.progress import SILENT, Progress
from edgescale.core.sparsity import RECOVERIES, Sparsity
from edgescale.finetune import checkpoint
from edgescale.finetune.graph import TorchGraph, check, give_biases
from edgescale.finetune.loop import Hook, Listener, check_samples, one_thread, run_epochs, weight_groups
from edgescale.finetune.masks import Gradual, Masks, Regrown, find_layers
from edgescale.finetune.objective import Objective
from edgescale.finetune.settings import Settings
from edgescale.frontend.passes import CanonicalGemm
from edgescale.quantize.rules import WEIGHTED

CHANNEL_STEPS = 3
"""Steps in which `gmp` takes channels out, at most one an epoch."""


def recover(
    dense: Model,
    pruned: Model,
    data: Dataset,
    settings: Settings | None = None,
    progress: Progress = SILENT,
    *,
    zeros: Sparsity | None = None,
    method: str = "ft",
    kept: Mapping[str, Sequence[int]] | None = None,
    keep: Path | None = None,
    listener: Listener | None = None,
) -> Model:
    """`pruned` after training on `data` (y: labels, or None) towards the answers of `dense`; both stay as they are.

    `zeros`: the pattern in the pruned model's weights. `method` "ft": its zeros are held where they are; "rigl", "dsl":
    they move (`masks.Regrown`); "gmp": they are yet to come (`masks.Gradual`), so `pruned` has none of them. Without
    zeros every weight is trained. `kept`: channels of each node's output that pruning left, {node: indices}, by which
    inner activations are compared. `keep`: file that holds the run after every epoch and that an interrupted call goes
    on from; a finished one is left, and gives the same model at once. One thread; equal arguments give equal
    models on one machine, resumed or not. Raises UnsupportedModelError for nodes training does not compute, a model
    that takes no such zeros or a loss that is not finite, UsageError for data that does not fit or an unknown method.
    """
    from edgescale.frontend import model_from_ir

    chosen = (settings or Settings()).checked()
    graph = pruned.ir.clone()
    CanonicalGemm()(graph)
    check(list(graph.graph))
    give_biases(graph.graph, [node for node in graph.graph if node.op_type in WEIGHTED])
    with one_thread():
        student = TorchGraph(graph)
        check_samples(student, data)
        steps = chosen.epochs * (len(data) // min(chosen.batch, len(data)))
        hooks = _hooks(student, zeros, method, chosen, steps, pruned.name)
        objective = Objective(TorchGraph(dense.ir), student, data.y, chosen, kept=kept)
        optimizer = torch.optim.Adam(weight_groups(student, chosen), betas=(0.9, 0.99))
        parts = [dense.sha256, pruned.sha256, data.sha256, str(zeros), method, asdict(chosen)]
        run = checkpoint.identity(*parts)
        run_epochs(objective, student, optimizer, data, chosen, progress, hooks, keep=keep, run=run, listener=listener)
        for name, array in student.trained().items():
            graph.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return model_from_ir(graph, pruned.name)


def _hooks(
    student: TorchGraph, zeros: Sparsity | None, method: str, settings: Settings, steps: int, name: str
) -> list[Hook]:
    if method not in RECOVERIES:
        raise UsageError(f"unknown recovery {method!r}; known: {', '.join(RECOVERIES)}")
    if zeros is None:
        if method != "ft":
            raise UsageError(f"recovery {method} is about zeros; give their pattern")
        return []
    if not find_layers(student.model, zeros):
        raise UnsupportedModelError(f"{name}: no layer has enough input channels for the sparsity {zeros}")
    if method == "gmp":
        return [Gradual(student, zeros, settings, steps)]
    if method in ("rigl", "dsl"):
        return [Regrown(student, zeros, settings, steps, "rigl" if method == "rigl" else "dsl")]
    return [Masks.of_zeros(student, student)]


def prune_and_recover(
    dense: Model,
    calibration: Dataset,
    data: Dataset,
    parts: Sequence[Sparsity],
    settings: Settings | None = None,
    progress: Progress = SILENT,
    *,
    prices: Mapping[str, float] | None = None,
    folder: Path | None = None,
) -> tuple[Model, Mapping[str, Any]]:
    """The recovery `gmp`: channels in steps, each trained, then zeros grown while training; and a report.

    Both last `settings.epochs`. `prices`: as in `sparsify.sparsify`. `folder`: where runs are kept, as `recover` keeps
    one; what is in it is the caller's to remove. Raises as `sparsify.sparsify` and `recover`.
    """
    from edgescale.sparsify.gradual import prune_in_steps
    from edgescale.sparsify.prune import Pruned, request_of

    chosen = (settings or Settings()).checked()
    model = dense
    kept: dict[str, Sequence[int]] = {}
    report: dict[str, Any] = {}

    def file(name: str) -> Path | None:
        return None if folder is None else folder / f"{name}.pt"

    for part in parts:
        if part.pattern != "channels":
            model = recover(
                dense, model, data, chosen, progress, zeros=part, method="gmp", kept=kept, keep=file("zeros")
            )  # fmt: skip
            report["density"] = densities(model, part)
            continue
        steps = min(CHANNEL_STEPS, chosen.epochs)
        shares = [chosen.epochs // steps] * steps
        shares[-1] += chosen.epochs - sum(shares)

        def train(step: int, pruned: Pruned, shares: Sequence[int] = shares) -> Model:
            own = replace(chosen, epochs=shares[step])
            return recover(dense, pruned.model, data, own, progress, kept=pruned.kept, keep=file(f"channels{step}"))

        pruned = prune_in_steps(dense, calibration, request_of(part, prices), steps, train, progress)
        model, kept = pruned.model, dict(pruned.kept)
        report |= {
            "macs": {name: list(both) for name, both in pruned.macs.items()},
            "weights": {name: list(both) for name, both in pruned.parameters.items()},
        }
    return model, report


def densities(model: Model, part: Sparsity) -> dict[str, float]:
    """{node: share of its weights that is not zero} of the layers that take the pattern."""
    found = {}
    for layer in find_layers(model.ir, part):
        value = model.ir.graph.initializers[layer.name].const_value
        found[str(layer.product.node.name)] = float((value.numpy() != 0).mean()) if value is not None else 1.0
    return found
