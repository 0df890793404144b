"""Writes weight-only layers: integers in blocks behind a DequantizeLinear, and what goes with them.

ONNX Runtime fuses DequantizeLinear and the MatMul or Gemm that reads it into one operator (MatMulNBits) where blocks
lie along the summed axis, a block is a power of two of at least 16 and Gemm does not transpose its weights. Groups of
another size are stored in blocks that divide them, their scales repeated; the values stay the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.core.recipe import Recipe
from edgescale.frontend.graph import add_initializer, constant, is_op, take_place
from edgescale.frontend.passes.fusion import set_constant
from edgescale.quantize.blocks import Blocks, quantize_blocks
from edgescale.quantize.formats import weight_format
from edgescale.quantize.linear import Rounded, bias_user
from edgescale.quantize.scale_folding import absorb

Array = npt.NDArray[np.generic]
Real = npt.NDArray[np.float64]

SMALLEST_BLOCK, LARGEST_BLOCK = 16, 128
"""Blocks that ONNX Runtime fuses; larger ones it would take too, but it rounds activations in the same blocks."""
_INT4 = np.dtype(ml_dtypes.int4)


def storage_block(group: int, terms: int) -> int:
    """Size of the blocks in which groups of `group` along `terms` are stored.

    The largest power of two from 16 to 128 that divides the group, or, where one group is all, the smallest that holds
    it (at most 128); `group` itself where no power of two does, and nothing fuses.
    """
    if group >= terms:
        block = SMALLEST_BLOCK
        while block < min(terms, LARGEST_BLOCK):
            block *= 2
        return block
    divisor = min(group & -group, LARGEST_BLOCK)
    return divisor if divisor >= SMALLEST_BLOCK else group


def write(graph: ir.Model, rounded: Sequence[Rounded], embeddings: Mapping[ir.Node, Recipe]) -> None:
    """Replace the weights of every layer by what it was rounded to, in place, and drop what is no longer read.

    Contract: node names and the graph's inputs and outputs stay; outputs are those of `Rounded`, layer by layer.
    """
    from onnx_ir.passes import Sequential, common

    made = {one.linear.node: one for one in rounded}
    groups: dict[ir.Value, list[ir.Node]] = {}
    for one in rounded:
        groups.setdefault(one.linear.source, []).append(one.linear.node)
    inputs: dict[ir.Value, ir.Value] = {}
    for source, nodes in groups.items():
        scale = made[nodes[0]].scale
        inputs[source] = source
        if scale is not None and not absorb(source, nodes, scale, made):
            inputs[source] = _scaled(graph.graph, source, nodes, scale)
    for source, nodes in groups.items():
        rotation = made[nodes[0]].rotation
        given = inputs[source]
        if rotation is not None:
            given = _rotated(graph.graph, given, nodes, rotation)
        for node in nodes:
            _write_layer(graph.graph, made[node], given)
    for node, recipe in embeddings.items():
        _write_embedding(graph.graph, node, recipe)
    Sequential(common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass(), common.TopologicalSortPass())(graph)


def _scaled(graph: ir.Graph, source: ir.Value, nodes: Sequence[ir.Node], scale: Real) -> ir.Value:
    """source / scale, computed."""
    factor = add_initializer(graph, f"{nodes[0].name}.input_scale", (1 / scale).astype(np.float32))
    node = ir.node("Mul", [source, factor], name=f"{nodes[0].name}.scaled_input")
    return _placed(graph, nodes[0], [node], source)


def _rotated(graph: ir.Graph, source: ir.Value, nodes: Sequence[ir.Node], rotation: Real) -> ir.Value:
    """source times the block-diagonal matrix of `rotation`: a product in one more dimension."""
    label, size = nodes[0].name, len(rotation)
    rank = len(source.shape.dims) if source.shape is not None else 3
    terms = constant(nodes[0].inputs[1])
    if terms is None:
        raise ValueError(f"{label}: no constant weights")
    width = terms.shape[1] if is_op(nodes[0], "Gemm") and _transposed(nodes[0]) else terms.shape[0]
    split = add_initializer(graph, f"{label}.split", np.array([0] * (rank - 1) + [width // size, size], np.int64))
    join = add_initializer(graph, f"{label}.join", np.array([0] * (rank - 1) + [width], np.int64))
    matrix = add_initializer(graph, f"{label}.rotation", rotation.astype(np.float32))
    first = ir.node("Reshape", [source, split], name=f"{label}.split_input")
    second = ir.node("MatMul", [first.outputs[0], matrix], name=f"{label}.rotate_input")
    third = ir.node("Reshape", [second.outputs[0], join], name=f"{label}.rotated_input")
    return _placed(graph, nodes[0], [first, second, third], source)


def _placed(graph: ir.Graph, before: ir.Node, made: Sequence[ir.Node], like: ir.Value) -> ir.Value:
    """Insert nodes and give the last one's output the type and shape of `like`."""
    for node in made:
        node.outputs[0].name = f"{node.name}_output"
        node.outputs[0].dtype = ir.DataType.FLOAT
    made[-1].outputs[0].shape = like.shape
    graph.insert_before(before, list(made))
    return made[-1].outputs[0]


def _transposed(node: ir.Node) -> bool:
    return "transB" in node.attributes and node.attributes["transB"].as_int() != 0


def _write_layer(graph: ir.Graph, one: Rounded, given: ir.Value) -> None:
    node, label = one.linear.node, one.linear.node.name
    if one.bias is not None and (found := bias_user(node)) is not None:
        set_constant(*found, one.bias.astype(np.float32), f"{label}.bias")
    if is_op(node, "Gemm"):
        node.attributes["transB"] = ir.convenience.convert_attribute("transB", 0)
    node.replace_input_with(0, given)
    node.replace_input_with(1, weights_value(graph, node, str(label), one.blocks, one.linear.recipe))
    if one.low_rank is not None:
        _add_low_rank(graph, node, given, one.low_rank)


def weights_value(graph: ir.Graph, node: ir.Node, label: str, blocks: Blocks, recipe: Recipe) -> ir.Value:
    """Weights [terms, outputs] for a node: dequantized integers, or the float32 values of a simulated format."""
    if recipe.weight_format != "int":
        return add_initializer(graph, f"{label}.weight", blocks.real().T.astype(np.float32))
    terms = blocks.values.shape[1]
    group = blocks.block_size[1]
    block = storage_block(group, terms)
    kind = _INT4 if recipe.weight_bits <= 4 else np.dtype(np.int8)
    owner = np.arange(-(-terms // block)) * block // group

    def stored(part: Real) -> Real:
        """Entries of blocks [outputs or 1, groups] -> [stored blocks, outputs]."""
        return np.asarray(np.broadcast_to(part, (blocks.values.shape[0], part.shape[1])).T[owner])

    parts = [
        add_initializer(graph, f"{label}.weight_q", blocks.values.T.astype(np.int8).astype(kind)),
        add_initializer(graph, f"{label}.weight_s", stored(blocks.scale).astype(np.float32)),
    ]
    if blocks.zero_point is not None:
        parts.append(
            add_initializer(graph, f"{label}.weight_z", stored(blocks.zero_point).astype(np.int8).astype(kind))
        )
    read = ir.node("DequantizeLinear", parts, attributes={"axis": 0, "block_size": block}, name=f"{label}.weight")
    read.outputs[0].name = f"{label}.weight_output"
    read.outputs[0].dtype = ir.DataType.FLOAT
    read.outputs[0].shape = ir.Shape(blocks.values.T.shape)
    graph.insert_before(node, read)
    return read.outputs[0]


def _add_low_rank(graph: ir.Graph, node: ir.Node, given: ir.Value, factors: tuple[Real, Real]) -> None:
    """y + (x A) B behind a node."""
    label, output = node.name, node.outputs[0]
    names = (f"{label}.low_rank_a", f"{label}.low_rank_b")
    a, b = (add_initializer(graph, n, part.astype(np.float32)) for n, part in zip(names, factors, strict=True))
    first = ir.node("MatMul", [given, a], name=f"{label}.low_rank_in")
    second = ir.node("MatMul", [first.outputs[0], b], name=f"{label}.low_rank_out")
    total = ir.node("Add", [output, second.outputs[0]], name=f"{label}.corrected")
    for made in (first, second, total):
        made.outputs[0].name = f"{made.name}_output"
        made.outputs[0].dtype = ir.DataType.FLOAT
    total.outputs[0].shape = output.shape
    take_place(output, total.outputs[0])
    total.replace_input_with(0, output)
    if output.name is None:
        output.name = f"{label}.uncorrected"
    graph.insert_after(node, [first, second, total])


def _write_embedding(graph: ir.Graph, node: ir.Node, recipe: Recipe) -> None:
    """Gather of integers and of their scales, dequantized behind: nothing but the rows looked up becomes float."""
    table = constant(node.inputs[0])
    if table is None:
        raise ValueError(f"{node.name}: no constant table")
    width = table.shape[1]
    group = width if recipe.group in (0, "tensor") else min(int(recipe.group), width)
    blocks = quantize_blocks(
        table, weight_format("int", 8), (1, group), symmetric=recipe.symmetric, search="mse" in recipe.steps
    )
    label, output = node.name, node.outputs[0]
    values: list[tuple[str, Array]] = [("q", blocks.values.astype(np.int8)), ("s", blocks.scale.astype(np.float32))]
    if blocks.zero_point is not None:
        values.append(("z", blocks.zero_point.astype(np.int8)))
    looked_up = []
    for part, array in values:
        gather = ir.node(
            "Gather", [add_initializer(graph, f"{label}.table_{part}", array), node.inputs[1]],
            attributes={"axis": 0}, name=f"{label}.rows_{part}",
        )  # fmt: skip
        gather.outputs[0].name = f"{label}.rows_{part}_output"
        gather.outputs[0].dtype = ir.DataType.from_numpy(array.dtype)
        looked_up.append(gather)
    read = ir.node(
        "DequantizeLinear", [gather.outputs[0] for gather in looked_up],
        attributes={"axis": -1, "block_size": group}, name=f"{label}.dequantized",
    )  # fmt: skip
    read.outputs[0].name = f"{label}.dequantized_output"
    read.outputs[0].dtype, read.outputs[0].shape = ir.DataType.FLOAT, output.shape
    graph.insert_before(node, [*looked_up, read])
    take_place(output, read.outputs[0])
    graph.remove(node, safe=True)
