"""Post-training int8: plan, calibrate, write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgescale import __version__
from edgescale.core.dataset import Dataset
from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.core.model import Model
from edgescale.core.progress import SILENT, Progress
from edgescale.core.variant import OBSERVERS, Recipe

if TYPE_CHECKING:
    import onnx_ir

    from edgescale.quantize.histogram import Histogram
    from edgescale.quantize.plan import Group
    from edgescale.quantize.units import Units


def quantize_int8(model: Model, calibration: Dataset, recipe: Recipe, progress: Progress = SILENT) -> onnx_ir.Model:
    """A loaded float model as QDQ int8; `model` stays as it is.

    Activations: uint8, one scale and zero-point a tensor, the range chosen by `recipe.observer` over the
    calibration samples (x: [count, *sample_shape], float32). Weights of Conv, Gemm and MatMul: int8 in
    [-127, 127], one scale an output channel; biases int32 of scale input * weight. Inputs and outputs of the
    graph stay float32. `quantize.rules` says which operators run in int8 (the rest stays float between
    DequantizeLinear and QuantizeLinear), `quantize.plan` which tensors share units. Equal arguments give
    equal models, to the byte.

    Raises UsageError for a model that is quantized already, a recipe that is not w8a8 or data that does not
    fit; UnsupportedModelError where nothing in the model runs in int8 or a node computes NaN or infinity.
    """
    if model.quantized:
        raise UsageError(
            f"{model.name} already holds QuantizeLinear/DequantizeLinear nodes; compile it as it is, or quantize the "
            "float model it came from"
        )
    if (recipe.weight_bits, recipe.activation_bits) != (8, 8):
        raise UsageError(f"recipe {recipe}: quantize_int8 makes w8a8 only")
    if recipe.observer not in OBSERVERS:
        raise UsageError(f"unknown observer {recipe.observer!r}; known: {', '.join(OBSERVERS)}")
    if not 50.0 < recipe.percentile <= 100.0:
        raise UsageError(f"percentile {recipe.percentile} must lie above 50 and at most at 100")

    from onnx_ir.passes import Sequential, common

    from edgescale.frontend.passes import CanonicalGemm
    from edgescale.quantize.calibrate import collect
    from edgescale.quantize.plan import make_plan
    from edgescale.quantize.qdq import WriteQdq
    from edgescale.quantize.recurrent import FinishRecurrent

    graph = model.ir.clone()
    CanonicalGemm()(graph)
    plan = make_plan(graph.graph)
    if not plan.nodes:
        raise UnsupportedModelError(f"{model.name} holds no operator that runs in int8; use the recipe fp32")
    observed = [str(v.name) for group in plan.groups if group.fixed is None for v in group.sources]
    histograms = collect(model, calibration, observed, progress)
    units = {
        value: found
        for group in plan.groups
        for found in [_units(group, histograms, recipe)]
        for value in group.members
    }
    finish = FinishRecurrent(plan.nodes, model, calibration)
    Sequential(WriteQdq(plan, units), finish, common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass())(graph)
    graph.metadata_props.update(
        {
            "edgescale.recipe": str(recipe),
            "edgescale.observer": recipe.observer,
            "edgescale.version": __version__,
        }
    )
    return graph


@dataclass(frozen=True)
class FloatNode:
    """A node that stays float in the int8 model, and why."""

    name: str
    op: str
    reason: str


def float_nodes(model: Model) -> tuple[FloatNode, ...]:
    """The nodes of a float model that `quantize_int8` leaves in float, in graph order, each with its reason."""
    from edgescale.quantize.rules import quantizable, refusal

    chosen = quantizable(model.ir.graph)
    return tuple(
        FloatNode(str(node.name), node.op_type, refusal(node) or "it only moves values between float operators")
        for node in model.ir.graph
        if node not in chosen
    )


def _units(group: Group, histograms: dict[str, Histogram], recipe: Recipe) -> Units:
    """Units of a group: prescribed, or of the range observed over all its sources together."""
    from edgescale.quantize.histogram import Histogram
    from edgescale.quantize.observers import choose_range
    from edgescale.quantize.units import Units, units_of

    if group.fixed is not None:
        return Units(*group.fixed)
    merged = Histogram()
    for value in group.sources:
        merged.merge(histograms[str(value.name)])
    low, high = choose_range(merged, recipe)
    return units_of(min(low, *group.extra, 0.0), max(high, *group.extra, 0.0))
