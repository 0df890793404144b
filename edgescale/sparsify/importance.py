"""How much each channel is worth: scores of single channels, and the order of least reconstruction error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.core.dataset import Dataset
from edgescale.core.model import Model
from edgescale.frontend.graph import constant
from edgescale.frontend.passes.fusion import set_constant
from edgescale.quantize.calibrate import each_sample
from edgescale.quantize.patches import product_of
from edgescale.sparsify.channels import Structure
from edgescale.sparsify.readers import Reader

Real = npt.NDArray[np.float64]

IMPORTANCES: dict[str, str] = {
    "magnitude": "squared norm of the weights that make the channel",
    "activation": "mean square of what the channel carries into the layers that read it",
    "taylor": "first-order change of the model's output as the channel fades (finite difference)",
    "reconstruction": "error of the layers that read it after least-squares repair, one channel after the other",
}
DAMPING = 1e-3
"""Share of the mean input power added to the diagonal of a covariance."""
_FADE = 0.125
_TAYLOR_SAMPLES = 16


@dataclass(frozen=True)
class Order:
    """Channels of one family, the first to go first; `losses` [n]: error after each has gone (relative, summed)."""

    units: tuple[int, ...]
    losses: tuple[float, ...]


def magnitudes(graph: ir.Model, structure: Structure) -> dict[int, float]:
    """{class: squared norm of its filters}, over all layers that make it."""
    nodes = {str(node.name): node for node in graph.graph}
    scores = dict.fromkeys(structure.units, 0.0)
    for layer in structure.weighted:
        if layer.depthwise:
            continue
        weights = constant(nodes[layer.node].inputs[1])
        if weights is None:
            raise ValueError(f"{layer.node}: no constant weights")
        norms = (product_of(nodes[layer.node], weights.shape).matrix(weights) ** 2).sum(axis=1)
        for unit, norm in zip(structure.root[layer.makes], norms, strict=True):
            if int(unit) in scores:
                scores[int(unit)] += float(norm)
    return scores


def activations(structure: Structure, readers: Sequence[Reader]) -> dict[int, float]:
    """{class: variance of its channels as they are read, relative to the reader's mean}."""
    scores = dict.fromkeys(structure.units, 0.0)
    for reader in readers:
        power = np.diag(reader.xx) / (np.diag(reader.xx).mean() + 1e-30)
        for unit, value in zip(reader.units, power, strict=True):
            if int(unit) in scores:
                scores[int(unit)] += float(value)
    return scores


def taylor_changes(model: Model, graph: ir.Model, structure: Structure, data: Dataset) -> dict[int, float]:
    """{class: mean square of d output / d gate}, the gate multiplying the channel where it is read."""
    samples = data.head(min(_TAYLOR_SAMPLES, len(data)))
    outputs = [str(value.name) for value in graph.graph.outputs]

    def run(one: ir.Model) -> Real:
        found = [np.concatenate([a[n].reshape(-1) for n in outputs]) for a in each_sample(model, one, samples, outputs)]
        return np.stack(found).astype(np.float64)

    before = run(graph)
    scores = {}
    for unit in structure.units:
        faded = graph.clone()
        nodes = {str(node.name): node for node in faded.graph}
        for layer in structure.weighted:
            hit = structure.root[layer.reads] == unit
            if layer.depthwise or not hit.any():
                continue
            node = nodes[layer.node]
            weights = constant(node.inputs[1])
            if weights is None:
                raise ValueError(f"{layer.node}: no constant weights")
            product = product_of(node, weights.shape)
            gate = np.repeat(np.where(hit, 1 - _FADE, 1.0), layer.kernel)
            faint = product.weights(product.matrix(weights) * gate).astype(np.float32)
            set_constant(node, 1, faint, f"{layer.node}.weight")
        scores[unit] = float(np.mean(((run(faded) - before) / _FADE) ** 2))
    return scores


def by_score(structure: Structure, family: Sequence[int], scores: Mapping[int, float]) -> Order:
    """Least first; the losses are the scores summed, relative to the family's."""
    ranked = sorted(family, key=lambda unit: (scores[unit], unit))
    total = sum(scores[unit] for unit in family) + 1e-30
    return Order(tuple(ranked), tuple(float(x) for x in np.cumsum([scores[unit] for unit in ranked]) / total))


def by_reconstruction(family: Sequence[int], readers: Sequence[Reader], least: int) -> Order:
    """Greedy: again and again the channel whose loss the others can make up for best, until `least` are left.

    Optimal brain surgeon on groups of columns: removing the columns S of W costs tr(W_S (H^-1_SS)^-1 W_S^T) once
    the rest is fitted anew, W <- W - W_S (H^-1_SS)^-1 H^-1_S: . Errors of several readers are summed, each relative to
    the power of what it gives.
    """
    mine = [reader for reader in readers if np.isin(reader.units, family).any()]
    weights = [reader.weights.copy() for reader in mine]
    inverses = []
    for reader in mine:
        damping = DAMPING * float(np.diag(reader.xx).mean()) + 1e-12
        inverses.append(np.linalg.inv(reader.xx + damping * np.eye(len(reader.xx))))
    powers = [reader.power for reader in mine]
    left = list(family)
    gone: list[int] = []
    losses: list[float] = []
    total = 0.0
    while len(left) > least:
        costs = []
        for unit in left:
            price = 0.0
            for reader, matrix, inverse, power in zip(mine, weights, inverses, powers, strict=True):
                at = np.flatnonzero(reader.units == unit)
                if at.size:
                    part = matrix[:, at]
                    price += float(np.sum(part * np.linalg.solve(inverse[np.ix_(at, at)], part.T).T)) / power
            costs.append(price)
        chosen = int(np.argmin(costs))
        total += max(costs[chosen], 0.0)
        unit = left.pop(chosen)
        gone.append(unit)
        losses.append(total)
        for i, reader in enumerate(mine):
            at = np.flatnonzero(reader.units == unit)
            if not at.size:
                continue
            inverse = inverses[i]
            own = np.linalg.solve(inverse[np.ix_(at, at)], inverse[at])
            weights[i] = weights[i] - weights[i][:, at] @ own
            weights[i][:, at] = 0.0
            inverse = inverse - inverse[:, at] @ own
            inverse[at, :] = 0.0
            inverse[:, at] = 0.0
            inverse[at, at] = 1.0
            inverses[i] = inverse
    return Order(tuple(gone), tuple(losses))
