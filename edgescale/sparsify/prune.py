"""Channel pruning from a dense model to a smaller dense one: order, allocate, shrink, repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.core.model import Model
from edgescale.core.progress import SILENT, Progress
from edgescale.core.sparsity import Of, Sparsity
from edgescale.sparsify.allocate import Family, choose, outputs_of, relative_error, rungs, sensitivities, uniform
from edgescale.sparsify.channels import Structure, find_structure
from edgescale.sparsify.importance import (
    IMPORTANCES,
    Order,
    activations,
    by_reconstruction,
    by_score,
    magnitudes,
    taylor_changes,
)
from edgescale.sparsify.readers import find_readers, input_moments
from edgescale.sparsify.repair import repair
from edgescale.sparsify.shrink import cost, layer_macs, layer_parameters, shrink


@dataclass(frozen=True)
class ChannelRequest:
    """What to prune to: `share` of the dense model's cost `of` may be left.

    `prices`: cost of one multiply-accumulate (or weight) of each node, {name: price}: a target's instructions, or
    times measured on it, make the budget one of those. "instructions" needs them. `align`: what is left of a family is
    a multiple of it where the family has that many.
    """

    share: float
    of: Of = "macs"
    importance: str = "reconstruction"
    allocation: Literal["sensitivity", "uniform"] = "sensitivity"
    repair: bool = True
    align: int = 4
    prices: Mapping[str, float] | None = None


def request_of(part: Sparsity, prices: Mapping[str, float] | None) -> ChannelRequest:
    """What a recipe's part asks for; prices are those of instructions."""
    return ChannelRequest(part.share, part.of, prices=prices if part.of == "instructions" else None)


@dataclass(frozen=True)
class Pruned:
    """A pruned model and what of it is left: MACs and weights of each layer before and after, channels of each family.

    `error`: squared error of the outputs on the calibration samples, relative to their variance. `kept`: which channels
    of what each layer gave are left, {node: indices}.
    """

    model: Model
    macs: Mapping[str, tuple[int, int]]
    parameters: Mapping[str, tuple[int, int]]
    families: Mapping[Family, tuple[int, int]]
    error: float
    kept: Mapping[str, tuple[int, ...]]

    @property
    def share(self) -> float:
        """Multiply-accumulates left, as a share."""
        return sum(after for _, after in self.macs.values()) / max(sum(before for before, _ in self.macs.values()), 1)


def prune_channels(model: Model, data: Dataset, request: ChannelRequest, progress: Progress = SILENT) -> Pruned:
    """A smaller dense model; `model` stays as it is. data.x: [count, *sample_shape] float32; labels are not used.

    A share of 1 gives a model equal to the byte. Raises UsageError for a request that cannot be met or a quantized
    model, UnsupportedModelError where no channel may go.
    """
    from edgescale.frontend import model_from_ir

    _check(model, request)
    dense = model.ir.clone()
    structure = find_structure(dense.graph)
    removed: tuple[int, ...] = ()
    if request.share < 1:
        if not structure.families:
            raise UnsupportedModelError(
                f"{model.name} has no channels that may go: all reach its inputs, outputs or operators that mix them"
            )
        removed = select(model, dense, structure, data, request, progress)
    graph = shrink(dense, structure, removed)
    if removed and request.repair:
        repair(model, dense, graph, structure, np.array(removed, np.int64), data, progress)
    error = 0.0
    if removed:
        error = relative_error(outputs_of(model, graph, data), outputs_of(model, dense, data))
    gone = np.array(removed, np.int64)
    kept = {
        layer.node: tuple(np.flatnonzero(structure.kept(layer.makes, gone)).tolist()) for layer in structure.weighted
    }
    return Pruned(model_from_ir(graph, model.name), *_sizes(structure, removed), error, kept)


def select(
    model: Model, dense: ir.Model, structure: Structure, data: Dataset, request: ChannelRequest, progress: Progress
) -> tuple[int, ...]:
    """The classes of channels that go."""
    orders = find_orders(model, dense, structure, data, request, progress)

    def price(removed: Sequence[int]) -> float:
        return cost(structure, removed, request.prices, of=request.of)

    allowed = request.share * price(())
    if request.allocation == "uniform":
        return uniform(structure, orders, request.align, price, allowed)
    moments = input_moments(model, dense, structure, data, progress)
    ladders = sensitivities(model, dense, structure, orders, moments, data, request.align, progress)
    return choose(ladders, price, allowed)


def find_orders(
    model: Model, dense: ir.Model, structure: Structure, data: Dataset, request: ChannelRequest, progress: Progress
) -> dict[Family, Order]:
    """The order in which the channels of each family go, by the importance asked for."""
    if request.importance == "magnitude":
        scores = magnitudes(dense, structure)
    elif request.importance == "taylor":
        scores = taylor_changes(model, dense, structure, data)
    else:
        readers = find_readers(model, dense, structure, data, progress)
        if request.importance == "reconstruction":
            return {
                family: by_reconstruction(units, readers, len(units) - max(rungs(len(units), request.align), default=0))
                for family, units in structure.families.items()
            }
        scores = activations(structure, readers)
    return {family: by_score(structure, units, scores) for family, units in structure.families.items()}


def _check(model: Model, request: ChannelRequest) -> None:
    if model.quantized:
        raise UsageError(f"{model.name} is quantized already; prune the float model it came from")
    if not 0 < request.share <= 1:
        raise UsageError(f"a share of {request.share:g} is not above 0 and at most 1")
    if request.importance not in IMPORTANCES:
        raise UsageError(f"unknown importance {request.importance!r}; known: {', '.join(IMPORTANCES)}")
    if request.of == "instructions" and not request.prices:
        raise UsageError("a share of instructions needs what each layer takes on a target; ask for a share of MACs")
    if request.align < 1:
        raise UsageError(f"channels cannot be aligned to {request.align}")


def _sizes(
    structure: Structure, removed: Sequence[int]
) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]], dict[Family, tuple[int, int]]]:
    macs, less = layer_macs(structure, ()), layer_macs(structure, removed)
    weights, fewer = layer_parameters(structure, ()), layer_parameters(structure, removed)
    gone = set(removed)
    families = {f: (len(units), len([u for u in units if u not in gone])) for f, units in structure.families.items()}
    return {n: (macs[n], less[n]) for n in macs}, {n: (weights[n], fewer[n]) for n in weights}, families
