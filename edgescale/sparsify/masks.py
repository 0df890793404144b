"""Zeros in the weights of a float model, one-shot: which go, and what the others do to make up for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.core.model import Model
from edgescale.core.progress import SILENT, Progress, track
from edgescale.core.sparsity import BLOCK, Sparsity
from edgescale.frontend.graph import constant
from edgescale.frontend.passes import CanonicalGemm
from edgescale.frontend.passes.fusion import set_constant
from edgescale.quantize.calibrate import each_sample
from edgescale.quantize.moments import Moments
from edgescale.quantize.patches import Product, product_of
from edgescale.sparsify.channels import Weighted, find_structure

Real = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Method = Literal["update", "magnitude"]

DAMPING = 1e-2
"""Share of the mean input power added to the diagonal of a covariance."""
ROWS = 32768
_COLUMNS = 64
"""Terms whose zeros are chosen at once where the pattern lets any weight go."""


@dataclass(frozen=True)
class Row:
    """How the terms of a row lie: `inputs` channels of `kernel` taps each; term = channel * kernel + tap."""

    inputs: int
    kernel: int

    def order(self) -> npt.NDArray[np.int64]:
        """The terms with the input channels innermost, as devices store them."""
        return np.arange(self.inputs * self.kernel).reshape(self.inputs, self.kernel).T.reshape(-1)


def prune_weights(
    model: Model, data: Dataset, part: Sparsity, progress: Progress = SILENT, method: Method = "update"
) -> tuple[Model, Mapping[str, float]]:
    """The model with zeros by `part` in every layer that sums over enough input channels, and each layer's density.

    "update": optimal brain surgeon column by column (Frantar and Alistarh, "SparseGPT"): the weights behind a
    zeroed one absorb its error by the covariance of the layer's input, and the layer's input is that of the net as it
    is pruned so far. "magnitude": the smallest weights go, nothing is updated. Depthwise and grouped layers, and
    layers of fewer input channels than the pattern is wide, stay dense. Raises UsageError for a quantized model,
    UnsupportedModelError where no layer takes the pattern.
    """
    from edgescale.frontend import model_from_ir

    if model.quantized:
        raise UsageError(f"{model.name} is quantized already; prune the float model it came from")
    graph = model.ir.clone()
    CanonicalGemm()(graph)
    dense = graph.clone()
    nodes = {str(node.name): node for node in graph.graph}
    layers = layers_taking(graph.graph, part)
    if not layers:
        raise UnsupportedModelError(f"{model.name}: no layer has enough input channels for the sparsity {part}")
    densities = {}
    for layer in track(layers, progress, f"sparsity {part}", len(layers)):
        node = nodes[layer.node]
        weights = constant(node.inputs[1])
        if weights is None:
            raise ValueError(f"{layer.node}: no constant weights")
        product = product_of(node, weights.shape)
        row = Row(len(layer.reads), layer.kernel)
        matrix = product.matrix(weights)
        if method == "magnitude":
            matrix = np.where(choose(matrix**2, part, row), matrix, 0.0)
        else:
            summary = _moments(model, dense, graph, node, product, data).summary(centred=node.op_type != "MatMul")
            matrix = update(matrix, summary.xx[0], summary.yx, part, row)
            if node.op_type != "MatMul":
                bias = summary.mean_y - matrix @ summary.mean_x[0]
                set_constant(node, 2, bias.astype(np.float32), f"{layer.node}.bias")
        set_constant(node, 1, product.weights(matrix).astype(np.float32), f"{layer.node}.weight")
        densities[layer.node] = float((matrix != 0).mean())
    return model_from_ir(graph, model.name), densities


def layers_taking(graph: ir.Graph, part: Sparsity) -> list[Weighted]:
    """The layers of a graph in canonical form that zeros by `part` go into."""
    return [layer for layer in find_structure(graph).weighted if _takes(layer, part)]


def _takes(layer: Weighted, part: Sparsity) -> bool:
    inputs = len(layer.reads)
    if layer.depthwise or layer.groups > 1 or inputs < 2 * BLOCK:
        return False
    width = part.m if part.pattern == "n:m" else BLOCK if part.pattern == "block" else 1
    return inputs % width == 0


def _moments(model: Model, dense: ir.Model, graph: ir.Model, node: ir.Node, product: Product, data: Dataset) -> Moments:
    """Of the layer's input in the net as it is so far, and of what it gives in the dense net."""
    source, target = node.inputs[0], node.outputs[0]
    if source is None:
        raise ValueError(f"{node.name}: no input")
    moments = Moments()
    count = max(1, ROWS // len(data))
    wanted = each_sample(model, dense, data, [str(target.name)])
    given = each_sample(model, graph, data, [str(source.name)])
    for index, (old, new) in enumerate(zip(wanted, given, strict=True)):
        moments.update(*product.pick(new[str(source.name)], old[str(target.name)], count, index))
    return moments


def choose(scores: Real, part: Sparsity, row: Row) -> Mask:
    """Which weights [outputs, terms] stay, by their scores: the greater, the more worth."""
    order = row.order()
    ranked = scores[:, order]
    if part.pattern == "n:m":
        groups = ranked.reshape(len(ranked), -1, part.m)
        place = np.argsort(np.argsort(-groups, axis=2, kind="stable"), axis=2)
        kept = (place < part.n).reshape(ranked.shape)
    elif part.pattern == "block":
        blocks = ranked.reshape(len(ranked), -1, BLOCK).sum(axis=2)
        kept = np.repeat(_largest(blocks, 1 - part.share), BLOCK, axis=1)
    else:
        kept = _largest(ranked, 1 - part.share)
    mask = np.empty_like(kept)
    mask[:, order] = kept
    return mask


def _largest(scores: Real, share: float) -> Mask:
    """The largest `share` of all scores."""
    keep = max(1, round(share * scores.size))
    place = np.argsort(np.argsort(-scores.reshape(-1), kind="stable"))
    return np.asarray((place < keep).reshape(scores.shape))


def update(matrix: Real, xx: Real, yx: Real, part: Sparsity, row: Row) -> Real:
    """Weights [outputs, terms] with zeros by `part`, the rest fitted to moments xx [terms, terms], yx [outputs, terms].

    In the order of the terms, group by group: the zeros of a group are those of least w^2 / U_jj^2, U the upper
    Cholesky factor of the damped inverse of xx; each zeroed weight is made up for by those that follow it. A last least
    squares over what is left, row by row, also moves those before, and makes up for what the input has lost.
    """
    terms = matrix.shape[1]
    order = row.order()
    damping = DAMPING * float(np.diag(xx).mean()) + 1e-12
    hessian = xx + damping * np.eye(terms)
    upper = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)])).T
    left = matrix[:, order].copy()
    width = part.m if part.pattern == "n:m" else BLOCK if part.pattern == "block" else 1
    flat = Row(terms, 1)  # the terms are in the devices' order by now
    step = width if part.pattern == "n:m" else max(_COLUMNS // width, 1) * width
    diagonal = np.diag(upper)
    # Where parts of a layer may differ in density, one budget for the layer decides, by the scores at the start.
    whole = choose((left / diagonal) ** 2, part, flat) if part.pattern != "n:m" else None
    kept = np.ones_like(left, np.bool_)
    for start in range(0, terms, step):
        end = min(start + step, terms)
        scores = (left[:, start:end] / diagonal[start:end]) ** 2
        if whole is None:
            kept[:, start:end] = choose(scores, part, Row(end - start, 1))
        else:
            share = 1 - float(whole[:, start:end].mean())
            some = Sparsity(part.pattern, share=share)
            kept[:, start:end] = choose(scores, some, Row(end - start, 1)) if whole[:, start:end].any() else False
        for j in range(start, end):
            error = np.where(kept[:, j], 0.0, left[:, j] / upper[j, j])
            left[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
            left[~kept[:, j], j] = 0.0
    mask = np.empty_like(kept)
    mask[:, order] = kept
    # A greedy choice can be worse than a plain one; whichever leaves the least error is taken.
    wanted = yx + damping * matrix
    power = np.diag(hessian)
    masks = (mask, choose(matrix**2 * power, part, row), choose(matrix**2, part, row))
    fitted = [refit(wanted, hessian, one) for one in masks]
    return min(fitted, key=lambda one: float(np.einsum("ot,ot->", one, one @ hessian - 2 * wanted)))


def refit(wanted: Real, hessian: Real, mask: Mask) -> Real:
    """Each row's weights on its mask of least squared error: w_S = (H_SS)^-1 wanted_S."""
    found = np.zeros_like(wanted)
    for i, kept in enumerate(mask):
        at = np.flatnonzero(kept)
        if at.size:
            found[i, at] = np.linalg.solve(hessian[np.ix_(at, at)], wanted[i, at])
    return found
