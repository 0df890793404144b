"""Query-key reparameterization (OFQ): each head's query and key weights as the one matrix that scores depend on.

Scores before the softmax are (x Q_h + b)(x K_h + c)^T. With M_h = Q_h K_h^T they are (x M_h + K_h b) x^T and terms
that are equal along a row, which softmax takes out. Rounding M_h in place of Q_h and K_h, a crossing of the one no
longer moves what the other is trained towards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.frontend.graph import add_initializer, constant, fresh_name, ints_attribute, is_op, scalar, shape_of

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Projection:
    """A linear map split into heads: source x weights + bias, [1, tokens, heads, width] before its transposition."""

    source: ir.Value
    weights: Array
    bias: Array | None
    heads: int
    width: int


class ReparameterizeQueryKey(ir.passes.InPlacePass):
    """Rewrite every attention of the form Softmax([Mul|Div|Add] (Q K^T)) whose Q and K are projections of one value.

    Requires canonical form (see `frontend.passes.clean`); the inputs of such a product are a Reshape and a Transpose
    of a MatMul and Add. Contract: outputs stay to float32 rounding; the product keeps its name; the weights are
    [channels, heads * channels]. `rewritten` counts the attentions changed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rewritten = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Find the products, build x M x^T before each."""
        for node in list(model.graph):
            if node.op_type == "MatMul" and _softmax_follows(node):
                query, key = _projection(node.inputs[0], (0, 2, 1, 3)), _projection(node.inputs[1], (0, 2, 3, 1))
                if query is not None and key is not None and query.source is key.source and query.heads == key.heads:
                    _rewrite(model.graph, node, query, key)
                    self.rewritten += 1
        return ir.passes.PassResult(model, self.rewritten > 0)


def _softmax_follows(node: ir.Node) -> bool:
    """Whether a row of the product is only scaled and shifted by constants until its softmax."""
    value = node.outputs[0]
    while len(value.uses()) == 1 and not value.is_graph_output():
        after = next(iter(value.uses())).node
        if is_op(after, "Softmax"):
            return after.attributes["axis"].as_int() in (-1, 3) if "axis" in after.attributes else True
        others = [other for other in after.inputs if other is not value]
        scaled = is_op(after, "Mul", "Div") and after.inputs[0] is value and scalar(others[0]) is not None
        if not scaled and not (is_op(after, "Add") and constant(others[0]) is not None):
            return False
        value = after.outputs[0]
    return False


def _projection(value: ir.Value | None, order: tuple[int, ...]) -> Projection | None:
    """The projection that `value` is the transposition `order` of (from [1, tokens, heads, width])."""
    turn = value.producer() if value is not None else None
    if turn is None or not is_op(turn, "Transpose") or ints_attribute(turn, "perm") != order:
        return None
    split = turn.inputs[0].producer() if turn.inputs[0] is not None else None
    if split is None or not is_op(split, "Reshape"):
        return None
    before, shape = shape_of(split.inputs[0]), shape_of(split.outputs[0])
    if before is None or shape is None or len(shape) != 4 or before != (1, shape[1], shape[2] * shape[3]):
        return None
    if split.inputs[0] is None:
        return None
    node, bias = split.inputs[0].producer(), None
    if is_op(node, "Add") and node is not None:
        constants = [constant(v) for v in node.inputs]
        at = next((i for i, array in enumerate(constants) if array is not None), None)
        summand = None if at is None else node.inputs[1 - at]
        bias = None if at is None else constants[at]
        node = summand.producer() if summand is not None else None
        if bias is None or bias.shape != (before[2],):
            return None
    weights = constant(node.inputs[1]) if node is not None and is_op(node, "MatMul") else None
    if node is None or weights is None or node.inputs[0] is None or weights.ndim != 2:
        return None
    return Projection(node.inputs[0], weights, bias, shape[2], shape[3])


def _rewrite(graph: ir.Graph, node: ir.Node, query: Projection, key: Projection) -> None:
    channels = query.weights.shape[0]
    tokens = (shape_of(query.source) or (1, 1))[1]
    q = query.weights.astype(np.float64).reshape(channels, query.heads, query.width)
    k = key.weights.astype(np.float64).reshape(channels, key.heads, key.width)
    joint = np.einsum("ihw,jhw->ihj", q, k).reshape(channels, -1).astype(np.float32)
    name = str(node.name)
    made = [ir.node("MatMul", [query.source, add_initializer(graph, f"{name}.query_key", joint)], name=f"{name}.joint")]
    if query.bias is not None:
        shift = np.einsum("hw,jhw->hj", query.bias.astype(np.float64).reshape(query.heads, -1), k).reshape(-1)
        bias = add_initializer(graph, f"{name}.query_key_bias", shift.astype(np.float32))
        made.append(ir.node("Add", [made[-1].outputs[0], bias], name=f"{name}.shift"))
    split = add_initializer(graph, f"{name}.heads", np.array([1, tokens, query.heads, channels], np.int64))
    made.append(ir.node("Reshape", [made[-1].outputs[0], split], name=f"{name}.split"))
    made.append(ir.node("Transpose", [made[-1].outputs[0]], attributes={"perm": [0, 2, 1, 3]}, name=f"{name}.turn"))
    one = add_initializer(graph, f"{name}.one", np.array([1], np.int64))
    wide = ir.node("Unsqueeze", [query.source, one], name=f"{name}.wide")
    tall = ir.node("Transpose", [wide.outputs[0]], attributes={"perm": [0, 1, 3, 2]}, name=f"{name}.tall")
    shapes: list[tuple[int, ...]] = [(1, tokens, query.heads * channels)] * (len(made) - 2)
    shapes += [(1, tokens, query.heads, channels), (1, query.heads, tokens, channels)]
    shapes += [(1, 1, tokens, channels), (1, 1, channels, tokens)]
    for part, shape in zip([*made, wide, tall], shapes, strict=True):
        part.outputs[0].name = fresh_name(graph, f"{part.name}.out")
        part.outputs[0].shape, part.outputs[0].dtype = ir.Shape(shape), ir.DataType.FLOAT
    graph.insert_before(node, [*made, wide, tall])
    node.replace_input_with(0, made[-1].outputs[0])
    node.replace_input_with(1, tall.outputs[0])
