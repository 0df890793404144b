"""Mixed precision under a budget: how many bits each layer's weights get.

A cheap proxy ranks the layers (the error of the net's output when that layer alone has few bits), a knapsack
allocates bits under the budget, and a few of its answers are tried for real; the best one tried is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UsageError
from edgescale.core.progress import SILENT, Progress, track
from edgescale.core.recipe import Recipe
from edgescale.frontend.graph import constant, input_at
from edgescale.quantize.layers import Stored
from edgescale.quantize.patches import product_of
from edgescale.quantize.prepared import Prepared
from edgescale.quantize.reconstruct import fit, visitor
from edgescale.quantize.streams import Layer, Replacement, spread_evenly, walk

Array = npt.NDArray[np.generic]
Cost = Callable[[ir.Node, int], float]
"""(node, bits) -> what the layer costs: bytes of its weights, or a target's measured time."""

BITS = (4, 8)
PROXY_SAMPLES = 32
EXPONENTS = (1.0, 0.5, 2.0)
"""Powers of the proxy that the knapsack weighs: below 1 the many small losses count, above 1 the few large ones."""
_UNITS = 4000
"""Resolution of the knapsack's budget; costs are rounded up to it, so that no answer exceeds the budget."""


@dataclass(frozen=True)
class Attempt:
    """One allocation tried for real: bits of each free layer, share of samples that answer as the float net does,
    and output error relative to the float output's power."""

    bits: Mapping[ir.Node, int]
    stored: Mapping[ir.Node, Stored]
    agreement: float
    error: float


def choose_bits(
    prepared: Prepared, calibration: Dataset, recipe: Recipe, progress: Progress, cost: Cost | None = None
) -> dict[ir.Node, Stored]:
    """Constants of every weighted node, those not overridden with 4 or 8 bits, within `recipe.share` of 8-bit cost.

    cost: what a layer costs at a number of bits; by default the bytes of its weights. Raises UsageError where not
    even the fewest bits everywhere meet the budget.
    """
    if recipe.share is None:
        raise ValueError("a recipe without a share has nothing to choose")
    price = cost or _weight_bytes
    free = [node for node, own in prepared.weighted.items() if own.share is not None]
    fixed = sum(price(node, own.weight_bits) for node, own in prepared.weighted.items() if own.share is None)
    full = sum(price(node, 8) for node in free) + sum(price(n, 8) for n in prepared.weighted if n not in set(free))
    budget = recipe.share * full - fixed
    costs = [[price(node, bits) for bits in BITS] for node in free]
    least = sum(min(row) for row in costs)
    if least > budget:
        raise UsageError(
            f"recipe {recipe}: {BITS[0]} bits in every layer that is free to choose already cost "
            f"{(least + fixed) / full:.2f} of 8 bits, more than {recipe.share:g}; allow more, as in auto0.7"
        )
    losses = sensitivities(prepared, free, calibration, progress)
    tried: dict[tuple[int, ...], Attempt] = {}
    for power in EXPONENTS:
        choice = allocate(costs, [[loss**power for loss in row] for row in losses], budget)
        if choice not in tried:
            tried[choice] = attempt(prepared, dict(zip(free, (BITS[i] for i in choice), strict=True)), calibration)
    best = max(tried.values(), key=lambda a: (a.agreement, -a.error))
    return dict(best.stored)


def allocate(costs: Sequence[Sequence[float]], losses: Sequence[Sequence[float]], budget: float) -> tuple[int, ...]:
    """For each layer the index of one option, the sum of losses least under a total cost of at most `budget`.

    Multiple-choice knapsack by dynamic programming over the budget in _UNITS steps, costs rounded up. Raises
    UsageError where the cheapest options already cost more.
    """
    cheapest = [int(np.argmin(row)) for row in costs]
    spare = budget - sum(row[i] for row, i in zip(costs, cheapest, strict=True))
    if spare < 0:
        raise UsageError(f"no allocation costs {budget:g} or less")
    unit = max(spare / _UNITS, 1e-12)
    best = np.zeros(_UNITS + 1)
    picks: list[npt.NDArray[np.int64]] = []
    for row, loss, base in zip(costs, losses, cheapest, strict=True):
        candidates = np.full((len(row), _UNITS + 1), np.inf)
        for index, price in enumerate(row):
            step = int(np.ceil((price - row[base]) / unit - 1e-9))
            if step <= _UNITS:
                candidates[index, step:] = best[: _UNITS + 1 - step] + loss[index]
        picks.append(candidates.argmin(axis=0))
        best = candidates.min(axis=0)
    left, choice = _UNITS, []
    for row, base, pick in zip(reversed(costs), reversed(cheapest), reversed(picks), strict=True):
        index = int(pick[left])
        left -= int(np.ceil((row[index] - row[base]) / unit - 1e-9))
        choice.append(index)
    return tuple(reversed(choice))


def sensitivities(
    prepared: Prepared, free: Sequence[ir.Node], calibration: Dataset, progress: Progress
) -> list[list[float]]:
    """For each free layer and each of BITS: the net's output error when it alone has that many bits.

    Relative to the output's power (10^(-SQNR/10)), over a few calibration samples, activations in float.
    """
    few: dict[ir.Node, list[Replacement]] = {}

    def visit(layer: Layer) -> Replacement | None:
        if layer.node in chosen:
            product = product_of(layer.node, layer.weights.shape)
            few[layer.node] = []
            for bits in BITS:
                blocks, bias = fit(product, layer, _with_bits(prepared.weighted[layer.node], bits))
                few[layer.node].append(Replacement(product.weights(blocks.real()), bias))
        return None

    chosen = set(free)
    walk(prepared, calibration, visit, progress)
    samples = spread_evenly(calibration.x, PROXY_SAMPLES)
    probe = Probe(prepared.graph, free)
    exact = probe.outputs(samples, {})
    power = float(np.sum(exact**2)) or 1.0
    table = []
    for node in track(free, progress, "weighing layers", len(free)):
        gaps = [probe.outputs(samples, {node: made}) - exact for made in few[node]]
        table.append([float(np.sum(gap**2)) / power for gap in gaps])
    return table


def attempt(prepared: Prepared, bits: Mapping[ir.Node, int], calibration: Dataset) -> Attempt:
    """Quantize with these bits and compare the outputs with the float net's over the calibration samples."""
    weighted = {
        node: _with_bits(recipe, bits[node]) if node in bits else recipe for node, recipe in prepared.weighted.items()
    }
    tried = replace(prepared, weighted=weighted)
    stored: dict[ir.Node, Stored] = {}
    results = walk(tried, calibration, visitor(tried, stored), SILENT)
    exact, rounded = (np.asarray(part, np.float64) for part in next(iter(results.values())))
    rows = (len(exact), -1)
    same = exact.reshape(rows).argmax(axis=1) == rounded.reshape(rows).argmax(axis=1)
    error = float(np.sum((rounded - exact) ** 2) / max(float(np.sum(exact**2)), 1e-30))
    return Attempt(bits, stored, float(np.mean(same)), error)


class Probe:
    """The float net in ONNX Runtime with layers' weights and biases open to be fed, so one session serves them all."""

    def __init__(self, graph: ir.Model, nodes: Sequence[ir.Node]) -> None:
        import onnx
        import onnxruntime

        proto = ir.to_proto(graph)
        self._source = str(next(v.name for v in graph.graph.inputs if not v.is_initializer()))
        fed = {str(v.name) for node in nodes for v in (node.inputs[1], input_at(node, 2)) if v is not None}
        for tensor in proto.graph.initializer:
            if tensor.name in fed:
                made = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                proto.graph.input.append(made)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._session: Any = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def outputs(self, samples: Array, replaced: Mapping[ir.Node, Replacement]) -> npt.NDArray[np.float64]:
        """First output over the samples, [count, ...], with the constants of some nodes replaced."""
        feeds: dict[str, Array] = {}
        for node, made in replaced.items():
            bias = input_at(node, 2)
            feeds[_name(node.inputs[1])] = np.asarray(made.weights, np.float32)
            if bias is not None and made.bias is not None:
                feeds[str(bias.name)] = np.asarray(made.bias, np.float32)
        rows = [self._session.run(None, {self._source: sample[None], **feeds})[0] for sample in samples]
        return np.concatenate(rows).astype(np.float64)


def _name(value: ir.Value | None) -> str:
    return "" if value is None else str(value.name)


def _with_bits(recipe: Recipe, bits: int) -> Recipe:
    return replace(recipe, weight_bits=bits, share=None, rounding="adaround")


def _weight_bytes(node: ir.Node, bits: int) -> float:
    weights = constant(node.inputs[1])
    return 0.0 if weights is None else float(-(-weights.size * bits // 8))
