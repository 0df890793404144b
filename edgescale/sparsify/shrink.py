"""Takes channels out of a graph: smaller constants, the same nodes; and what is left to compute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from edgescale.core.errors import UsageError
from edgescale.frontend.graph import constant
from edgescale.frontend.passes.fusion import set_constant
from edgescale.sparsify.channels import Labels, Structure


def shrink(model: ir.Model, structure: Structure, removed: Iterable[int]) -> ir.Model:
    """`model` without the channels of the classes `removed`, its shapes inferred anew; `model` stays as it is.

    Without any removed the copy is equal to the byte. Raises UsageError where a layer would keep no channel.
    """
    gone = np.array(sorted(removed), np.int64)
    copy = model.clone()
    if not gone.size:
        return copy
    nodes = {str(node.name): node for node in copy.graph}
    kept_of: dict[tuple[str, int], list[tuple[int, Labels]]] = {}
    for trim in structure.trims:
        kept = np.flatnonzero(structure.kept(trim.labels, gone))
        if not kept.size:
            raise UsageError(f"node {trim.node!r} would keep no channel; prune less")
        if kept.size < len(trim.labels):
            kept_of.setdefault((trim.node, trim.index), []).append((trim.axis, kept))
    for (name, index), cuts in kept_of.items():
        node = nodes[name]
        array = constant(node.inputs[index])
        if array is None:
            raise ValueError(f"{name}: input {index} is no constant")
        for axis, kept in cuts:
            array = np.take(array, kept, axis=axis)
        set_constant(node, index, array, f"{name}.{'weight' if index == 1 else 'bias'}")
    for layer in structure.weighted:
        if layer.depthwise:
            nodes[layer.node].attributes["group"] = ir.AttrInt64("group", int(structure.kept(layer.reads, gone).sum()))
    for name, channels in structure.shapes.items():
        node = nodes[name]
        dims = list(node.outputs[0].shape or ())
        dims[channels.axis] = int(structure.kept(channels.labels, gone).sum())
        set_constant(node, 1, np.array(dims, np.int64), f"{name}.shape")
    return _inferred(copy)


def _inferred(model: ir.Model) -> ir.Model:
    from edgescale.frontend.shapes import infer

    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    made: ir.Model = ir.from_proto(infer(proto, "the pruned model"))
    return made


def layer_macs(structure: Structure, removed: Iterable[int]) -> dict[str, int]:
    """Multiply-accumulates of every layer with weights for one sample, {node: count}."""
    gone = np.array(sorted(removed), np.int64)
    found = {}
    for layer in structure.weighted:
        made, read = structure.kept(layer.makes, gone).sum(), structure.kept(layer.reads, gone).sum()
        found[layer.node] = int(made * (1 if layer.depthwise else read) * layer.kernel * layer.positions)
    return found


def layer_parameters(structure: Structure, removed: Iterable[int]) -> dict[str, int]:
    """Weights of every layer, {node: count}; biases apart."""
    positions = {layer.node: layer.positions for layer in structure.weighted}
    return {name: macs // positions[name] for name, macs in layer_macs(structure, removed).items()}


def cost(structure: Structure, removed: Iterable[int], prices: Mapping[str, float] | None, *, of: str) -> float:
    """Cost of the layers with weights: "bytes" (one a weight) or MACs, each layer's times its price (default 1)."""
    counted = (layer_parameters if of == "bytes" else layer_macs)(structure, removed)
    return float(sum(count * (prices or {}).get(name, 1.0) for name, count in counted.items()))
