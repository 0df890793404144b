"""Weight-only quantization of transformers and language models: MatMul and Gemm with constant weights.

Layers are taken in graph order, those of one input together. Where a recipe looks at data, samples wait in front of
the layer (see `relay`), their second moments are taken, the layer is rounded, and the samples move on through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.core.model import Model
from edgescale.core.progress import SILENT, Progress, track
from edgescale.core.recipe import FLOAT, Recipe
from edgescale.frontend.graph import constant, input_at, is_op
from edgescale.frontend.passes.fusion import set_constant
from edgescale.quantize.awq import InputStatistics, Weights, fit_scales
from edgescale.quantize.blocks import Blocks, quantize_blocks, stored
from edgescale.quantize.blockwise import write
from edgescale.quantize.clipping import search_clips
from edgescale.quantize.following import Inputs, make_up
from edgescale.quantize.linear import Linear, Rounded, bias_user
from edgescale.quantize.moments import Summary
from edgescale.quantize.patches import product_of
from edgescale.quantize.rotation import apply_blocks, rotation_block, whole
from edgescale.quantize.rounding import Layout, gptq, reconstruct
from edgescale.quantize.rules import refusal

Real = npt.NDArray[np.float64]

OLDEST_OPSET = 21
"""First opset with DequantizeLinear in blocks and 4-bit integers."""


def quantize_weights(
    model: Model, calibration: Dataset | None, recipe: Recipe, progress: Progress = SILENT
) -> ir.Model:
    """A loaded float model with the weights of its MatMul and Gemm nodes under `recipe`; `model` stays as it is.

    Integers are written as blockwise DequantizeLinear before their node, which ONNX Runtime fuses into one operator
    (see `blockwise`); other formats as the float32 values they stand for. An embedding (Gather of a constant table)
    is quantized where an override names it. `calibration` feeds every input; recipes that are `data_free` need none.

    Raises UsageError for a recipe that needs data and has none, or whose overrides match nothing;
    UnsupportedModelError where nothing can be quantized or the opset is older than 21.
    """
    from edgescale.quantize.request import check_overrides, check_request, describe_recipe

    check_request(model, recipe)
    if ignored := [step for step in ("cle", "smooth") if step in recipe.steps]:
        raise UsageError(f"recipe {recipe}: {ignored[0]} serves quantized activations; awq scales inputs of weights")
    if model.ir.opset_imports.get("", 0) < OLDEST_OPSET:
        raise UnsupportedModelError(
            f"{model.name} is of opset {model.ir.opset_imports.get('', 0)}; weights in blocks need opset "
            f"{OLDEST_OPSET} or newer, and ONNX's converter cannot raise it: export the model anew"
        )
    graph = model.ir.clone()
    nodes = list(graph.graph)
    check_overrides(recipe, [str(node.name) for node in nodes], model.name)
    layers = _linears(nodes, recipe)
    embeddings = _embeddings(nodes, recipe)
    if not layers and not embeddings:
        raise UnsupportedModelError(
            f"{model.name} holds no MatMul or Gemm with constant float32 weights that recipe {recipe} quantizes"
        )
    needs_data = not all(layer.recipe.data_free for layer in layers) or not recipe.data_free
    if needs_data and calibration is None:
        raise UsageError(f"recipe {recipe} needs calibration data: give --calib, or take a data-free one (rtn, mse)")
    rounded = _round_all(model, graph, nodes, layers, calibration if needs_data else None, recipe, progress)
    write(graph, rounded, embeddings)
    describe_recipe(graph, recipe)
    return graph


def _linears(nodes: Sequence[ir.Node], recipe: Recipe) -> list[Linear]:
    """The nodes to quantize, in graph order, each with its recipe."""
    found = []
    for node in nodes:
        own = recipe.for_node(str(node.name))
        weights = constant(input_at(node, 1)) if is_op(node, "MatMul", "Gemm") else None
        if weights is None or own.weight_bits == FLOAT or refusal(node) is not None:
            continue
        found.append(Linear(node, _with_steps(own, recipe), product_of(node, weights.shape)))
    return found


def _with_steps(own: Recipe, whole_model: Recipe) -> Recipe:
    """A layer's recipe with the steps and rank that are chosen for the whole model."""
    steps = tuple(dict.fromkeys((*own.steps, *whole_model.steps)))
    return replace(own, steps=steps, rank=own.rank or whole_model.rank)


def _embeddings(nodes: Sequence[ir.Node], recipe: Recipe) -> dict[ir.Node, Recipe]:
    """Look-ups in a constant table that an override names, with its recipe. Raises UsageError for fewer than 8 bits."""
    found = {}
    for node in nodes:
        rules = [rule for rule in recipe.overrides if fnmatchcase(str(node.name), rule.pattern)]
        table = constant(input_at(node, 0)) if is_op(node, "Gather") else None
        if not rules or table is None or table.ndim != 2 or table.dtype != np.float32:
            continue
        own = rules[-1].recipe
        if own.weight_bits == FLOAT:
            continue
        if own.weight_bits != 8 or own.weight_format != "int":
            raise UsageError(
                f"override {rules[-1].pattern}={own}: embeddings ({node.name}) are stored in 8 bits: write w8"
            )
        found[node] = own
    return found


def _round_all(
    model: Model,
    graph: ir.Model,
    nodes: Sequence[ir.Node],
    layers: Sequence[Linear],
    calibration: Dataset | None,
    recipe: Recipe,
    progress: Progress,
) -> list[Rounded]:
    """Every layer rounded, siblings of one input together, in the order in which the first of them runs."""
    siblings: dict[ir.Value, list[Linear]] = {}
    for layer in layers:
        siblings.setdefault(layer.source, []).append(layer)
    order = {node: index for index, node in enumerate(nodes)}
    inputs = None
    if calibration is not None:
        follow = any(_suits_data(layer.recipe) for layer in layers)
        inputs = Inputs(model, graph, calibration, follow=follow)
    rounded: list[Rounded] = []
    for group in track(list(siblings.values()), progress, "rounding weights", len(siblings)):
        if inputs is None:
            rounded += round_siblings(group, None)
            continue
        made = round_siblings(group, *inputs.of(order[group[0].node]))
        for one in made:
            _install(one)
        rounded += made
    return rounded


def _suits_data(recipe: Recipe) -> bool:
    """Whether weights are chosen by what they do to the input."""
    return recipe.method != "rtn" or bool({"awq", "clip"} & set(recipe.steps))


def round_siblings(group: Sequence[Linear], x: InputStatistics | None, correction: Real | None = None) -> list[Rounded]:
    """Layers of one input, scaled and rotated alike, each rounded by its recipe.

    x: statistics of the input; correction: what it has lost, to be made up for (see `following`).
    """
    matrices = [make_up(layer.matrix(), correction if _suits_data(layer.recipe) else None) for layer in group]
    steps = set(group[0].recipe.steps)
    scale = rotation = None
    blocks: list[Blocks] = []
    if "awq" in steps and x is not None:
        weights = [Weights(w, one.layout, one.recipe.symmetric) for w, one in zip(matrices, group, strict=True)]
        seen = x.centred() if all(map(_corrects, group)) else x
        nearest = "hadamard" not in steps and all(layer.recipe.method == "rtn" for layer in group)
        scale, blocks = fit_scales(weights, seen, nearest=nearest)
    if scale is not None and x is not None:
        x, matrices = x.scaled(scale), [matrix * scale for matrix in matrices]
    if "hadamard" in steps:
        terms = matrices[0].shape[1]
        rotation = rotation_block(terms)
        matrices = [apply_blocks(matrix, rotation) for matrix in matrices]
        x = None if x is None else x.rotated(whole(rotation, terms))
    given: Sequence[Blocks | None] = blocks or [None] * len(group)
    return [
        _finish(layer, matrix, x, scale, rotation, made)
        for layer, matrix, made in zip(group, matrices, given, strict=True)
    ]


def _corrects(layer: Linear) -> bool:
    """Whether the layer's bias takes the mean error of its output."""
    return bool({"bc", "abc"} & set(layer.recipe.steps)) and _bias(layer.node) is not None


def _finish(
    layer: Linear,
    matrix: Real,
    x: InputStatistics | None,
    scale: Real | None,
    rotation: Real | None,
    blocks: Blocks | None,
) -> Rounded:
    """Round one layer's (scaled, rotated) weights, unless `blocks` are given; x: statistics of what they multiply."""
    recipe = layer.recipe
    if blocks is None:
        # The bias takes the mean error, so only what varies is left to the weights.
        seen = x.centred() if x is not None and _corrects(layer) else x
        blocks = round_matrix(matrix, layer.layout, recipe, seen)
    blocks = replace(blocks, scale=stored(blocks.scale))
    error = matrix - blocks.real()
    low_rank = _low_rank(error, recipe.rank) if recipe.rank else None
    if low_rank is not None:
        error = error - (low_rank[0] @ low_rank[1]).T
    bias = None
    if x is not None and _corrects(layer):
        bias = np.asarray(_bias(layer.node), np.float64) + error @ x.mean
    return Rounded(layer, blocks, scale, rotation, low_rank, bias)


def round_matrix(matrix: Real, layout: Layout, recipe: Recipe, x: InputStatistics | None) -> Blocks:
    """Weights [outputs, terms] rounded by the recipe's method.

    A block's scale covers its range; `mse` cuts the range to the least squared error of the weights, `clip` and `awq`
    to the least error of the output. Then rtn rounds to nearest, gptq column by column with the error carried on, and
    adaround descends to the levels that keep the output best.
    """
    if x is not None and {"awq", "clip"} & set(recipe.steps):
        carries = recipe.method == "gptq"
        blocks = search_clips(matrix, layout, x.second, symmetric=recipe.symmetric, alone=carries)
    else:
        blocks = quantize_blocks(
            matrix, layout.form, layout.block_size, symmetric=recipe.symmetric, search="mse" in recipe.steps,
            scale_rule=layout.scale_rule, signed=layout.signed,
        )  # fmt: skip
    if recipe.method == "rtn" or x is None:
        return blocks
    summary = Summary(x.mean[None], matrix @ x.mean, x.second[None], matrix @ x.second)
    if recipe.method == "adaround":
        return reconstruct(matrix, summary, layout)
    return gptq(matrix, summary, layout, blocks.scale, blocks.zero_point)


def _low_rank(error: Real, rank: int) -> tuple[Real, Real]:
    """(A [terms, rank], B [rank, outputs]): the nearest product of that rank to `error` [outputs, terms].

    LoRC of ZeroQuant-FP: the singular value decomposition, each factor taking the root of the singular values.
    """
    left, values, right = np.linalg.svd(error, full_matrices=False)
    root = np.sqrt(values[:rank])
    return np.asarray(right[:rank].T * root), np.asarray((left[:, :rank] * root).T)


def _bias(node: ir.Node) -> npt.NDArray[np.generic] | None:
    found = bias_user(node)
    return None if found is None else constant(found[0].inputs[found[1]])


def _install(one: Rounded) -> None:
    """Let the float graph compute with what was rounded, so that later layers see its effect."""
    node = one.linear.node
    set_constant(node, 1, one.linear.product.weights(one.effective()).astype(np.float32), f"{node.name}.weight")
    found = bias_user(node)
    if one.bias is not None and found is not None:
        set_constant(*found, one.bias.astype(np.float32), f"{node.name}.bias")


def needs_weight_only(model: Model, recipe: Recipe) -> bool:
    """Whether a model under a recipe is quantized here.

    So are models of token inputs or several inputs, recipes with steps of weight-only quantization, and nets of MatMul
    and Gemm alone whose recipes leave every activation float. Raises UsageError for integer activations that the model
    cannot have.
    """
    every: Mapping[str, Recipe] = {"": recipe, **{rule.pattern: rule.recipe for rule in recipe.overrides}}
    if model.sequence:
        for own in every.values():
            if own.activation_format != "int" or own.activation_bits not in (16, FLOAT):
                raise UsageError(
                    f"recipe {own} quantizes activations, which is for models of one float input of fixed shape; "
                    f"{model.name} takes {', '.join(f'{s.name} ({s.dtype})' for s in model.inputs)}: quantize its "
                    "weights alone, as in w4a16-g32-awq or w8a16"
                )
        return True
    if recipe.asks_weight_only:
        return True
    plain = not any(is_op(node, "Conv") for node in model.ir.graph)
    return plain and all(own.weight_only for own in every.values())
