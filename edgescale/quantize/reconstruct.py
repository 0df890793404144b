"""Rounds the weights of a prepared graph, layer by layer, by the method of each layer's recipe."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.core.dataset import Dataset
from edgescale.core.progress import Progress
from edgescale.core.recipe import Recipe
from edgescale.frontend.graph import constant, input_at
from edgescale.quantize.blocks import Blocks
from edgescale.quantize.layers import Stored, layout_of, round_to_nearest, store
from edgescale.quantize.moments import Moments
from edgescale.quantize.patches import Product, product_of
from edgescale.quantize.prepared import Prepared
from edgescale.quantize.rounding import gptq, reconstruct
from edgescale.quantize.streams import Layer, Replacement, walk

Array = npt.NDArray[np.generic]

ROWS = 16384
"""Positions of a layer's output that its moments are taken over, spread over the samples."""
_CHUNK = 2**22
"""Elements of input rows gathered at once."""


def round_weights(prepared: Prepared, calibration: Dataset, progress: Progress) -> dict[ir.Node, Stored]:
    """Constants of every weighted node, in graph order.

    Where any layer's method needs activations the two nets are walked once, so that each layer is fitted to the
    quantized input that it will get; else weights are rounded one by one.
    """
    stored: dict[ir.Node, Stored] = {}
    if not any(_needs_activations(recipe) for recipe in prepared.weighted.values()):
        for node, recipe in prepared.weighted.items():
            weights, bias = _constants(node)
            product = product_of(node, weights.shape)
            blocks = round_to_nearest(product, weights, recipe)
            stored[node] = store(product, blocks, bias, recipe, _input_scale(prepared, node))
        return stored

    walk(prepared, calibration, visitor(prepared, stored), progress)
    return stored


def visitor(prepared: Prepared, stored: dict[ir.Node, Stored]) -> Callable[[Layer], Replacement]:
    """What fits each layer a walk comes to, by its recipe, and puts its constants into `stored`."""

    def visit(layer: Layer) -> Replacement:
        recipe = prepared.weighted[layer.node]
        product = product_of(layer.node, layer.weights.shape)
        blocks, bias = fit(product, layer, recipe)
        made = store(product, blocks, bias, recipe, _input_scale(prepared, layer.node))
        stored[layer.node] = made
        return Replacement(made.real(), made.real_bias())

    return visit


def fit(product: Product, layer: Layer, recipe: Recipe) -> tuple[Blocks, Array | None]:
    """Blocks and float bias of one layer by its recipe's method."""
    if not _needs_activations(recipe):
        return round_to_nearest(product, layer.weights, recipe), layer.bias
    holds_bias = layer.node.op_type != "MatMul"
    summary = moments_of(product, layer.x, layer.y).summary(centred=holds_bias)
    matrix = product.matrix(layer.weights)
    if recipe.method == "rtn":
        blocks = round_to_nearest(product, layer.weights, recipe)
    elif recipe.method == "gptq":
        blocks = gptq(
            matrix, summary, layout_of(product, recipe), round_to_nearest(product, layer.weights, recipe).scale
        )
    else:
        blocks = reconstruct(matrix, summary, layout_of(product, recipe))
    if not holds_bias:
        return blocks, None
    rounded = blocks.real().reshape(matrix.shape)
    own = np.repeat(summary.mean_x, product.outputs // product.groups, axis=0)
    if recipe.method == "adaround" or "bc" in recipe.steps:
        return blocks, summary.mean_y - np.einsum("ot,ot->o", rounded, own)
    if "abc" in recipe.steps:
        start = np.zeros(product.outputs) if layer.bias is None else layer.bias.astype(np.float64)
        return blocks, start + np.einsum("ot,ot->o", matrix - rounded, own)
    return blocks, layer.bias


def moments_of(product: Product, x: Array, y: Array) -> Moments:
    """Moments of a layer's input rows and outputs over about ROWS positions, gathered in bounded chunks."""
    count = max(1, -(-ROWS // len(x)))
    per_sample = max(1, min(count, int(np.prod(y.shape[1:])) // product.outputs) * product.terms * product.groups)
    size = max(1, _CHUNK // per_sample)
    moments = Moments()
    for start in range(0, len(x), size):
        moments.update(*product.pick(x[start : start + size], y[start : start + size], count, start))
    return moments


def _needs_activations(recipe: Recipe) -> bool:
    return recipe.method != "rtn" or bool({"bc", "abc"} & set(recipe.steps))


def _constants(node: ir.Node) -> tuple[Array, Array | None]:
    weights = constant(node.inputs[1])
    if weights is None:
        raise ValueError(f"{node.name}: chosen without constant weights")
    return weights, constant(input_at(node, 2))


def _input_scale(prepared: Prepared, node: ir.Node) -> float | None:
    """Scale of an int8 input; None where the input stays float or takes 16 bits, and int32 biases would not do."""
    source = node.inputs[0]
    units = prepared.units.get(source) if source is not None and node in prepared.plan.nodes else None
    return units.scale if units is not None and units.kind in ("uint8", "int8") else None
