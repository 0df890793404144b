"""How much of each family of channels goes: what its loss does to the output, against what it saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UsageError
from edgescale.core.model import Model
from edgescale.core.progress import Progress, track
from edgescale.frontend.graph import constant
from edgescale.frontend.passes.fusion import set_constant
from edgescale.quantize.calibrate import each_sample
from edgescale.quantize.moments import Moments
from edgescale.quantize.patches import product_of
from edgescale.sparsify.channels import Structure
from edgescale.sparsify.importance import DAMPING, Order
from edgescale.sparsify.shrink import shrink

Real = npt.NDArray[np.float64]
Family = tuple[str, ...]

LEVELS = 12
"""Steps in which a family is taken down when its sensitivity is measured."""
SAMPLES = 128
"""Samples the output is compared on."""
LEAST_SHARE = 8
"""A family keeps at least one channel of this many."""


@dataclass(frozen=True)
class Ladder:
    """Numbers of channels of a family that may go, rising, and the output's relative error after each."""

    order: Order
    counts: tuple[int, ...]
    errors: tuple[float, ...]


def rungs(size: int, align: int) -> tuple[int, ...]:
    """Numbers of channels that may go of `size`, so that what is left is a multiple of `align` where it can be."""
    least = max(1, -(-size // LEAST_SHARE))
    step = align if size >= 2 * align else 1
    left = [n for n in range(least, size) if n % step == 0] or [least]
    picked = np.unique(np.linspace(0, len(left) - 1, min(LEVELS, len(left))).round().astype(int))
    return tuple(sorted(size - left[i] for i in picked if left[i] < size))


def outputs_of(model: Model, graph: ir.Model, data: Dataset) -> Real:
    """[samples, elements] of all outputs together."""
    names = [str(value.name) for value in graph.graph.outputs]
    found = [np.concatenate([a[n].reshape(-1) for n in names]) for a in each_sample(model, graph, data, names)]
    return np.stack(found).astype(np.float64)


def relative_error(found: Real, wanted: Real) -> float:
    """Squared error relative to the variance of what is wanted."""
    spread = float(((wanted - wanted.mean(axis=0)) ** 2).mean()) + 1e-30
    return float(((found - wanted) ** 2).mean()) / spread


def sensitivities(
    model: Model,
    graph: ir.Model,
    structure: Structure,
    orders: Mapping[Family, Order],
    moments: Mapping[str, Moments],
    data: Dataset,
    align: int,
    progress: Progress,
) -> dict[Family, Ladder]:
    """Take each family down alone, the layers that read it repaired in closed form, and compare the outputs."""
    samples = data.head(min(SAMPLES, len(data)))
    wanted = outputs_of(model, graph, samples)
    ladders = {}
    for family, order in track(list(orders.items()), progress, "sensitivity", len(orders)):
        counts = [n for n in rungs(len(structure.families[family]), align) if n <= len(order.units)]
        errors: list[float] = []
        for count in counts:
            removed = order.units[:count]
            trial = shrink(graph, structure, removed)
            repair_readers(graph, trial, structure, removed, moments)
            errors.append(relative_error(outputs_of(model, trial, samples), wanted))
        ladders[family] = Ladder(order, tuple(counts), tuple(np.maximum.accumulate(errors).tolist()))
    return ladders


def repair_readers(
    graph: ir.Model, pruned: ir.Model, structure: Structure, removed: Sequence[int], moments: Mapping[str, Moments]
) -> None:
    """Fit the layers that read removed channels to what they gave, from moments of the dense net's inputs."""
    gone = np.array(sorted(removed), np.int64)
    old = {str(node.name): node for node in graph.graph}
    new = {str(node.name): node for node in pruned.graph}
    for layer in structure.weighted:
        keep = structure.kept(layer.reads, gone)
        if layer.depthwise or keep.all():
            continue
        weights, after = constant(old[layer.node].inputs[1]), new[layer.node]
        smaller = constant(after.inputs[1])
        if weights is None or smaller is None:
            raise ValueError(f"{layer.node}: no constant weights")
        made = np.flatnonzero(structure.kept(layer.makes, gone))
        summary = moments[layer.node].summary(centred=after.op_type != "MatMul")
        taps = np.flatnonzero(np.repeat(keep, layer.kernel))
        matrix = product_of(old[layer.node], weights.shape).matrix(weights)
        rows = matrix.reshape(layer.groups, -1, matrix.shape[1])
        fitted, shift = [], []
        for g in range(layer.groups):
            xx = summary.xx[g]
            inner = xx[np.ix_(taps, taps)]
            damped = inner + (DAMPING * float(np.diag(inner).mean()) + 1e-12) * np.eye(len(taps))
            lost = np.delete(rows[g], taps, axis=1) @ np.delete(xx, taps, axis=0)[:, taps]
            part = rows[g][:, taps] + np.linalg.solve(damped, lost.T).T
            fitted.append(part)
            shift.append(rows[g] @ summary.mean_x[g] - part @ summary.mean_x[g][taps])
        product = product_of(after, smaller.shape)
        set_constant(after, 1, product.weights(np.concatenate(fitted)[made]).astype(np.float32), f"{layer.node}.weight")
        if after.op_type != "MatMul":
            bias = constant(after.inputs[2]) if len(after.inputs) > 2 else None
            moved = np.concatenate(shift)[made] + (0.0 if bias is None else bias.astype(np.float64))
            set_constant(after, 2, moved.astype(np.float32), f"{layer.node}.bias")


def choose(
    ladders: Mapping[Family, Ladder], price: Callable[[Sequence[int]], float], allowed: float
) -> tuple[int, ...]:
    """Classes to remove so that `price` of the rest is at most `allowed`, for little summed output error.

    Greedy on measured sensitivities: the step of least error added a unit of cost saved comes first; once the budget
    is met, steps that turned out not to be needed are taken back, the dearest first. Raises UsageError where even the
    lowest rungs cost more.
    """
    at = dict.fromkeys(ladders, -1)

    def removed(levels: Mapping[Family, int]) -> list[int]:
        return [
            u for f, level in levels.items() if level >= 0 for u in ladders[f].order.units[: ladders[f].counts[level]]
        ]

    def error(family: Family, level: int) -> float:
        return ladders[family].errors[level] if level >= 0 else 0.0

    now = price(())
    full = now
    while now > allowed:
        best: tuple[float, Family, int, float] | None = None
        for family, ladder in ladders.items():
            for level in range(at[family] + 1, len(ladder.counts)):
                then = price(removed({**at, family: level}))
                if then >= now:
                    continue
                rate = (error(family, level) - error(family, at[family])) / min(now - then, max(now - allowed, 1e-9))
                if best is None or rate < best[0]:
                    best = (rate, family, level, then)
        if best is None:
            raise UsageError(
                f"pruning cannot reach {allowed / full:.0%} of the cost: with every family of channels at its least, "
                f"{now / full:.0%} is left. Ask for a larger share"
            )
        at[best[1]], now = best[2], best[3]
    for family in sorted(ladders, key=lambda f: -error(f, at[f])):
        while at[family] >= 0 and price(removed({**at, family: at[family] - 1})) <= allowed:
            at[family] -= 1
    return tuple(sorted(removed(at)))


def uniform(
    structure: Structure,
    orders: Mapping[Family, Order],
    align: int,
    price: Callable[[Sequence[int]], float],
    allowed: float,
) -> tuple[int, ...]:
    """The same share of every family: the smallest that meets the budget. Raises UsageError where none does."""
    removed: list[int] = []
    for step in range(1, 101):
        removed = []
        for family, order in orders.items():
            size = len(structure.families[family])
            options = [0, *rungs(size, align)]
            count = min(options, key=lambda n: (abs(n - step / 100 * size), n))
            removed += order.units[: min(count, len(order.units))]
        if price(removed) <= allowed:
            return tuple(sorted(removed))
    raise UsageError(f"pruning every family alike leaves {price(removed) / price(()):.0%} of the cost at least")
