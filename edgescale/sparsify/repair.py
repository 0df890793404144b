"""Least-squares repair: every layer of a pruned net is fitted to what the dense net gives, first to last."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.core.dataset import Dataset
from edgescale.core.model import Model
from edgescale.core.progress import Progress, track
from edgescale.frontend.graph import constant, input_at, is_op, only_consumer
from edgescale.frontend.passes.fusion import set_constant
from edgescale.quantize.calibrate import each_sample
from edgescale.quantize.moments import Moments
from edgescale.quantize.patches import Product, product_of
from edgescale.sparsify.channels import Labels, Structure

Real = npt.NDArray[np.float64]

ROWS = 65536
"""Positions a layer is fitted to, spread over the samples."""
RIDGE = 1e-3
"""Pull towards the weights before the repair, as a share of the mean input power."""


@dataclass(frozen=True)
class _Sum:
    """The Add behind a layer: its other operand in the dense and the pruned net."""

    dense: str
    pruned: str


def repair(
    model: Model,
    dense: ir.Model,
    pruned: ir.Model,
    structure: Structure,
    removed: Labels,
    data: Dataset,
    progress: Progress,
) -> None:
    """Fit weights and biases of `pruned` in place, layer by layer in order.

    Each layer sees the input that the layers before it, repaired, really give, and is fitted to the dense net's output
    on the channels that are left; one that ends in a sum also makes up for what the other operand lost. Moments are
    summed sample by sample; memory is that of the largest layer's covariance.
    """
    old = {str(node.name): node for node in dense.graph}
    new = {str(node.name): node for node in pruned.graph}
    done: set[str] = set()
    layers = {layer.node: layer for layer in structure.weighted}
    for name in track([str(n.name) for n in pruned.graph if str(n.name) in layers], progress, "repairing", len(layers)):
        kept = np.flatnonzero(structure.kept(layers[name].makes, removed))
        _refit(model, dense, pruned, old[name], new[name], kept, _sum_behind(old[name], new[name], done), data)
        done.add(name)


def _refit(
    model: Model,
    dense: ir.Model,
    pruned: ir.Model,
    before: ir.Node,
    after: ir.Node,
    kept: Labels,
    total: _Sum | None,
    data: Dataset,
) -> None:
    weights = constant(after.inputs[1])
    source, target = after.inputs[0], before.outputs[0]
    if weights is None or source is None:
        raise ValueError(f"{after.name}: no constant weights")
    product = product_of(after, weights.shape)
    wanted = [str(target.name)] + ([total.dense] if total else [])
    given = [str(source.name)] + ([total.pruned] if total else [])
    moments = Moments()
    count = max(1, ROWS // len(data))
    axis = 1 if after.op_type == "Conv" else -1
    pairs = zip(each_sample(model, dense, data, wanted), each_sample(model, pruned, data, given), strict=True)
    for index, (old, new) in enumerate(pairs):
        y = np.take(old[str(target.name)], kept, axis=axis)
        if total is not None:
            y = y + np.take(old[total.dense], kept, axis=axis) - new[total.pruned]
        moments.update(*product.pick(new[str(source.name)], y, count, index))
    fitted, bias = solve(product, product.matrix(weights), moments)
    set_constant(after, 1, product.weights(fitted).astype(np.float32), f"{after.name}.weight")
    if after.op_type != "MatMul":
        set_constant(after, 2, bias.astype(np.float32), f"{after.name}.bias")


def solve(product: Product, start: Real, moments: Moments) -> tuple[Real, Real]:
    """(weights [outputs, terms], bias [outputs]) of least squared error, with a pull towards `start`."""
    biased = product.node.op_type != "MatMul"
    summary = moments.summary(centred=biased)
    groups, _, terms = summary.xx.shape
    rows = start.reshape(groups, -1, terms)
    wanted = summary.yx.reshape(groups, -1, terms)
    fitted = np.empty_like(rows)
    for g in range(groups):
        hessian = summary.xx[g]
        damped = hessian + (RIDGE * float(np.diag(hessian).mean()) + 1e-12) * np.eye(terms)
        fitted[g] = rows[g] + np.linalg.solve(damped, (wanted[g] - rows[g] @ hessian).T).T
    means = np.repeat(summary.mean_x, rows.shape[1], axis=0)
    matrix = fitted.reshape(-1, terms)
    return matrix, summary.mean_y - np.einsum("ot,ot->o", matrix, means)


def _sum_behind(before: ir.Node, after: ir.Node, done: set[str]) -> _Sum | None:
    """The other operand of an Add that alone reads the layer, where everything it depends on is repaired."""
    old, new = only_consumer(before.outputs[0]), only_consumer(after.outputs[0])
    if old is None or new is None or not is_op(old, "Add") or old.outputs[0].shape != before.outputs[0].shape:
        return None
    own = 0 if new.inputs[0] is after.outputs[0] else 1
    mine, other = input_at(new, 1 - own), input_at(old, 1 - own)
    if mine is None or other is None or constant(mine) is not None or other.shape != before.outputs[0].shape:
        return None
    if mine.is_graph_input() or not _settled(mine, done):
        return None
    return _Sum(str(other.name), str(mine.name))


def _settled(value: ir.Value, done: set[str]) -> bool:
    """Whether every layer with weights that the value depends on is repaired."""
    seen, stack = set(), [value]
    while stack:
        node = stack.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if is_op(node, "Conv", "Gemm", "MatMul") and constant(node.inputs[1]) is not None and node.name not in done:
            return False
        stack.extend(v for v in node.inputs if v is not None)
    return True
