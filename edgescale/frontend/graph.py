"""Small questions about an onnx_ir graph: constants, static shapes, attributes, the one consumer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

DEFAULT_DOMAINS = ("", "ai.onnx")


def constant(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """The array of an initializer, or None for anything computed, fed or absent."""
    if value is None or not value.is_initializer() or value.is_graph_input() or value.const_value is None:
        return None
    return value.const_value.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The number in a one-element initializer, or None."""
    array = constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def shape_of(value: ir.Value | None) -> tuple[int, ...] | None:
    """The static shape of a value, or None where a dimension or the rank is unknown."""
    if value is None or value.shape is None:
        return None
    dims = value.shape.dims
    return tuple(d for d in dims if isinstance(d, int)) if all(isinstance(d, int) for d in dims) else None


def is_float(value: ir.Value | None) -> bool:
    """Whether the value is a float32 tensor."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """Integer attribute of a node."""
    return node.attributes[name].as_int() if name in node.attributes else default


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    """Float attribute of a node."""
    return node.attributes[name].as_float() if name in node.attributes else default


def ints_attribute(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """Integer-list attribute of a node, None where absent."""
    return tuple(node.attributes[name].as_ints()) if name in node.attributes else None


def string_attribute(node: ir.Node, name: str, default: str) -> str:
    """String attribute of a node."""
    return node.attributes[name].as_string() if name in node.attributes else default


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether the node is one of the default domain's `op_types`."""
    return node is not None and node.domain in DEFAULT_DOMAINS and node.op_type in op_types


def stored_bits(graph: ir.Graph, unquantized: int = 32) -> tuple[int, int]:
    """(weights, activations): the bits a quantized graph stores.

    Weights: the width that most elements of the constants under DequantizeLinear have (biases of int32 and more
    apart). Activations: 16 where a QuantizeLinear writes int16, else 8. `unquantized` where there is none.
    """
    elements: Counter[int] = Counter()
    for node in graph:
        value = input_at(node, 0) if is_op(node, "DequantizeLinear") else None
        if value is not None and value.const_value is not None and (bits := value.const_value.dtype.bitwidth) < 32:
            elements[bits] += value.const_value.size
    zeros = [input_at(node, 2) for node in graph if is_op(node, "QuantizeLinear")]
    arrays = [8 if zero is None or (array := constant(zero)) is None else 8 * array.dtype.itemsize for zero in zeros]
    weights = max(elements, key=lambda bits: (elements[bits], bits), default=unquantized)
    return weights, max(arrays, default=unquantized)


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The node that alone reads `value` once, or None where there are others or it is a graph output."""
    if value.is_graph_output() or len(value.uses()) != 1:
        return None
    return next(iter(value.uses())).node


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index` of a node, None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def add_initializer(graph: ir.Graph, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
    """Register `array` under `name`, or under `name_1`, `name_2`, ... where a value of that name exists."""
    unique = fresh_name(graph, name)
    value = ir.val(unique, const_value=ir.tensor(np.asarray(array, order="C"), name=unique))
    graph.register_initializer(value)
    return value


def fresh_name(graph: ir.Graph, name: str) -> str:
    """`name`, or the first of `name_1`, `name_2`, ... that no value of the graph carries."""
    taken = {value.name for value in graph.inputs} | set(graph.initializers)
    taken |= {value.name for node in graph.all_nodes() for value in node.outputs}
    candidate, count = name, 0
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate


def take_place(old: ir.Value, new: ir.Value) -> None:
    """Let `new` stand wherever `old` is read or returned; a graph output keeps `old`'s name."""
    is_output = old.is_graph_output()
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    if is_output:
        name, old.name = old.name, None
        new.name = name


def drop_nodes(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    """Remove nodes whose outputs nobody reads any more."""
    graph.remove(list(nodes), safe=True)
