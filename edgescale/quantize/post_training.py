"""Post-training quantization under any recipe: plan, calibrate, round, write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.core.model import Model
from edgescale.core.progress import SILENT, Progress
from edgescale.core.recipe import FLOAT, Recipe
from edgescale.core.state import decode_states
from edgescale.quantize.request import check_overrides, check_request, describe_recipe

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgescale.core.variant import LayerDiagnosis
    from edgescale.quantize.histogram import Histogram
    from edgescale.quantize.layers import Stored
    from edgescale.quantize.plan import Group
    from edgescale.quantize.prepared import Prepared
    from edgescale.quantize.units import Kind, Units


def quantize(
    model: Model,
    calibration: Dataset | None,
    recipe: Recipe,
    progress: Progress = SILENT,
    *,
    activations: Kind = "uint8",
) -> ir.Model:
    """A loaded float model in QDQ form under `recipe`; `model` stays as it is.

    Activations of 8 bits: one scale and zero-point a tensor, stored as `activations` ("uint8", which ONNX Runtime
    runs fastest on x86, or "int8"), the range chosen by `recipe.observer` over the calibration samples
    (x: [count, *sample_shape], float32). Of 16 bits: int16, symmetric. Weights of Conv, Gemm and MatMul: as the
    recipe says, in 4-bit initializers where they take no more; biases int32 of scale input * weight beside int8
    activations and one weight scale a channel, else float32. Inputs and outputs of the graph stay float32.
    `quantize.rules` says which operators run in integers (the rest stays float between DequantizeLinear and
    QuantizeLinear), `quantize.plan` which tensors share units. Transformers and recipes that leave activations float go
    through `quantize.weight_only`, which needs no data for rounding to nearest (None). Equal arguments give equal
    models, to the byte.

    Raises UsageError for a model that is quantized already, a recipe whose overrides match nothing or data that does
    not fit; UnsupportedModelError where nothing in the model can be quantized or a node computes NaN or infinity.
    """
    return quantize_and_explain(model, calibration, recipe, progress, activations=activations, explain=False)[0]


def quantize_and_explain(
    model: Model,
    calibration: Dataset | None,
    recipe: Recipe,
    progress: Progress = SILENT,
    *,
    activations: Kind = "uint8",
    explain: bool = True,
) -> tuple[ir.Model, tuple[LayerDiagnosis, ...]]:
    """As `quantize`, with the diagnosis of its layers (see `diagnose`), worst first; empty without `explain`.

    Weight-only quantization (see `weight_only`) is not diagnosed.
    """
    from edgescale.quantize.diagnose import diagnose
    from edgescale.quantize.mixed import choose_bits
    from edgescale.quantize.reconstruct import round_weights
    from edgescale.quantize.weight_only import needs_weight_only, quantize_weights

    if needs_weight_only(model, recipe):
        return quantize_weights(model, calibration, recipe, progress), ()
    if calibration is None:
        raise UsageError(f"recipe {recipe} needs calibration data")
    prepared = prepare(model, calibration, recipe, progress, activations)
    if recipe.share is not None:
        stored = choose_bits(prepared, calibration, recipe, progress)
    else:
        stored = round_weights(prepared, calibration, progress)
    # What a state changes from sample to sample is no layer's own loss.
    streaming = bool(decode_states(model.ir.metadata_props, model.name))
    found = () if streaming or not explain else diagnose(prepared, stored, calibration, progress)
    return finish(prepared, stored, recipe), found


def finish(prepared: Prepared, stored: Mapping[ir.Node, Stored], recipe: Recipe) -> ir.Model:
    """Write what was decided into the prepared graph and say so in its metadata."""
    from onnx_ir.passes import Sequential, common

    from edgescale.quantize.compact import Compact
    from edgescale.quantize.qdq import WriteQdq
    from edgescale.quantize.recurrent import FinishRecurrent

    graph = prepared.graph
    write = WriteQdq(prepared.plan, prepared.units, stored)
    recurrent = FinishRecurrent(prepared.plan.nodes, prepared.cells)
    Sequential(write, recurrent, common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass(), Compact())(graph)
    describe_recipe(graph, recipe)
    if recipe.share is not None:
        graph.metadata_props["edgescale.bits"] = "; ".join(f"{node.name}={made.bits}" for node, made in stored.items())
    return graph


def prepare(
    model: Model, calibration: Dataset, recipe: Recipe, progress: Progress = SILENT, activations: Kind = "uint8"
) -> Prepared:
    """Everything before weights are rounded. Raises as `quantize`."""
    check_request(model, recipe)

    from edgescale.frontend.passes import CanonicalGemm
    from edgescale.quantize.balance import balance
    from edgescale.quantize.calibrate import collect
    from edgescale.quantize.equalize import equalize
    from edgescale.quantize.plan import make_plan
    from edgescale.quantize.recurrent_ranges import cell_exponents
    from edgescale.quantize.recurrent_rules import RECURRENT
    from edgescale.quantize.rules import WEIGHTED, refusal

    graph = model.ir.clone()
    CanonicalGemm()(graph)
    nodes = list(graph.graph)
    check_overrides(recipe, [str(node.name) for node in nodes], model.name)
    recipes = _recipes(nodes, recipe)
    if {"cle", "smooth"} & set(recipe.steps):
        equalize(model, graph, calibration, recipe.steps, progress)
    elif recipe.activation_bits == 8:
        moved = balance(model, graph, calibration, lambda node: recipes[node].weight_bits, progress)
        if moved:
            graph.metadata_props["edgescale.balanced"] = "; ".join(moved)
    floats = frozenset(node for node, own in recipes.items() if _stays_float(node, own))
    plan = make_plan(graph.graph, floats)
    weighted = {
        node: own
        for node, own in recipes.items()
        if own.weight_bits < FLOAT and node.op_type in WEIGHTED and refusal(node) is None
    }
    if not plan.nodes and not weighted:
        raise UnsupportedModelError(f"{model.name} holds no operator that runs in int8; use the recipe fp32")
    observed = [str(v.name) for group in plan.groups if group.fixed is None or group.gate for v in group.sources]
    histograms = collect(model, graph, calibration, observed, progress)
    units: dict[ir.Value, Units] = {}
    for group in plan.groups:
        found = _units(group, histograms, recipe, _kind(group, recipes, activations))
        units.update(dict.fromkeys(group.members, found))
    recurrent = any(node.op_type in RECURRENT for node in plan.nodes)
    return Prepared(graph, plan, units, weighted, cell_exponents(model, calibration) if recurrent else {})


def _stays_float(node: ir.Node, own: Recipe) -> bool:
    """Whether a node's activations stay float: asked for, or an LSTM or GRU beside anything but int8."""
    from edgescale.quantize.recurrent_rules import RECURRENT

    integers = own.activation_bits == 8 and own.activation_format != "fp8"
    return own.weight_only or (node.op_type in RECURRENT and not integers)


def _recipes(nodes: list[ir.Node], recipe: Recipe) -> dict[ir.Node, Recipe]:
    """Each node's recipe; a Relu or Clip that is the clamp of an overridden layer follows that layer."""
    from edgescale.frontend.graph import is_op, only_consumer
    from edgescale.quantize.rules import FUSES_ACTIVATION

    recipes = {node: recipe.for_node(str(node.name)) for node in nodes}
    for node in nodes:
        after = only_consumer(node.outputs[0])
        clamp = after if node.op_type in FUSES_ACTIVATION and is_op(after, "Relu", "Clip") else None
        if clamp is not None and recipes[clamp] is recipe:
            recipes[clamp] = recipes[node]
    return recipes


def _kind(group: Group, recipes: Mapping[ir.Node, Recipe], activations: Kind) -> Kind:
    """How a group is stored: as the node that makes it asks for, or for graph inputs the first that reads it."""
    value = group.sources[0] if group.sources else group.members[0]
    producer = value.producer()
    node = producer if producer is not None else next(iter(value.uses())).node
    own = recipes[node]
    if own.activation_format == "fp8":
        return "fp8"
    return "int16" if own.activation_bits == 16 else activations


def _units(group: Group, histograms: Mapping[str, Histogram], recipe: Recipe, kind: Kind) -> Units:
    """Units of a group: prescribed, or of the range observed over all its sources together."""
    from edgescale.quantize.histogram import Histogram
    from edgescale.quantize.observers import choose_range
    from edgescale.quantize.units import prescribed, units_of

    if group.fixed is not None and not (group.gate and kind in ("uint8", "int8")):
        return prescribed(*group.fixed, kind)
    merged = Histogram()
    for value in group.sources:
        merged.merge(histograms[str(value.name)])
    # The observers weigh 256 levels; what has more takes the whole range.
    low, high = choose_range(merged, recipe) if kind in ("uint8", "int8") else (merged.minimum, merged.maximum)
    return units_of(min(low, *group.extra, 0.0), max(high, *group.extra, 0.0), kind)
