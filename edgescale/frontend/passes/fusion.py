"""Per-channel scales and shifts behind a Conv or Gemm go into its weights and bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.core.errors import UnsupportedModelError
from edgescale.frontend.graph import (
    add_initializer,
    constant,
    float_attribute,
    input_at,
    int_attribute,
    is_op,
    only_consumer,
    shape_of,
    take_place,
)

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """y = x * scale + shift along the channel axis; scale and shift float64 [channels]."""

    scale: Vector
    shift: Vector


def normalization(node: ir.Node) -> Affine | None:
    """An inference-mode BatchNormalization as an affine map, or None where its parameters are not constant.

    y = (x - mean) / sqrt(var + epsilon) * gamma + beta. Raises UnsupportedModelError for a variance
    that makes the root imaginary or zero.
    """
    if not is_op(node, "BatchNormalization") or int_attribute(node, "training_mode", 0):
        return None
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return None
    parameters = [constant(value) for value in node.inputs[1:5]]
    if any(p is None for p in parameters):
        return None
    gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parameters)
    power = variance + float_attribute(node, "epsilon", 1e-5)
    if not (power > 0).all():
        raise UnsupportedModelError(
            f"node {node.name!r} (BatchNormalization): variance + epsilon is not above 0; the model is broken"
        )
    scale = gamma / np.sqrt(power)
    return Affine(scale, beta - mean * scale)


def per_channel(value: ir.Value | None, rank: int, axis: int, channels: int) -> Vector | None:
    """A constant that varies along `axis` of a rank-`rank` tensor only, as float64 [channels]; else None."""
    array = constant(value)
    if array is None or array.dtype != np.float32 or array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(size != 1 for at, size in enumerate(shape) if at != axis) or shape[axis] not in (1, channels):
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,)).copy()


def elementwise(node: ir.Node, source: ir.Value, axis: int) -> Affine | None:
    """Mul, Div, Add or Sub of `source` by a per-channel constant as an affine map; else None."""
    shape = shape_of(source)
    if not is_op(node, "Mul", "Div", "Add", "Sub") or shape is None or shape_of(node.outputs[0]) != shape:
        return None
    first = node.inputs[0] is source
    other = per_channel(node.inputs[1 if first else 0], len(shape), axis, shape[axis])
    if other is None or (node.op_type == "Div" and not (first and (other != 0).all())):
        return None
    one, zero = np.ones_like(other), np.zeros_like(other)
    if node.op_type == "Mul":
        return Affine(other, zero)
    if node.op_type == "Div":
        return Affine(1 / other, zero)
    if node.op_type == "Add":
        return Affine(one, other)
    return Affine(one, -other) if first else Affine(-one, other)


def set_constant(node: ir.Node, index: int, array: npt.NDArray[np.generic], name: str) -> None:
    """Make `array` input `index` of a node: in place where the initializer there has no other reader, else anew."""
    old = input_at(node, index)
    graph = node.graph
    if graph is None:
        raise ValueError("the node belongs to no graph")
    if old is not None and len(old.uses()) == 1 and not old.is_graph_output() and old.is_initializer():
        old.const_value = ir.tensor(np.asarray(array, order="C"), name=old.name)
        old.shape = ir.Shape(array.shape)
        return
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, add_initializer(graph, name, array))


class FuseAffine(ir.passes.InPlacePass):
    """Fold BatchNormalization and per-channel Mul, Div, Add, Sub by constants into the Conv or Gemm before.

    Requires: shapes inferred, constants lifted, Gemm in canonical form (`CanonicalGemm`). Contract: the Conv
    or Gemm keeps its name and takes over the name of the value behind; outputs agree to float32 rounding
    (weights are multiplied in float64). A convolution whose output is read elsewhere too is left alone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse until no chain is left."""
        modified = False
        for node in list(model.graph):
            while is_op(node, "Conv", "Gemm") and self._fuse(node, model.graph):
                modified = True
        return ir.passes.PassResult(model, modified)

    @staticmethod
    def _fuse(node: ir.Node, graph: ir.Graph) -> bool:
        output = node.outputs[0]
        after = only_consumer(output)
        weights = constant(node.inputs[1])
        if after is None or weights is None or weights.dtype != np.float32:
            return False
        bias_value = input_at(node, 2)
        bias = constant(bias_value)
        if bias_value is not None and (bias is None or bias.ndim != 1):
            return False
        if node.op_type == "Gemm" and not _canonical(node):
            return False
        affine = normalization(after) if after.inputs[0] is output else None
        affine = affine or elementwise(after, output, axis=1)
        if affine is None:
            return False
        channels = weights.shape[0]
        old = np.zeros(channels) if bias is None else bias.astype(np.float64)
        scaled = weights.astype(np.float64) * affine.scale.reshape((-1,) + (1,) * (weights.ndim - 1))
        shifted = old * affine.scale + affine.shift
        label = node.name or node.op_type
        with np.errstate(over="ignore"):
            new_weights, new_bias = scaled.astype(np.float32), shifted.astype(np.float32)
        if not (np.isfinite(new_weights).all() and np.isfinite(new_bias).all()):
            raise UnsupportedModelError(
                f"node {after.name!r} ({after.op_type}): folded into {label!r} it gives weights beyond float32"
            )
        if (affine.scale != 1).any():
            set_constant(node, 1, new_weights, f"{label}.weight")
        if bias is not None or new_bias.any():
            set_constant(node, 2, new_bias, f"{label}.bias")
        _take_over(after.outputs[0], output)
        graph.remove(after, safe=True)
        return True


def _canonical(node: ir.Node) -> bool:
    return (
        not int_attribute(node, "transA", 0)
        and int_attribute(node, "transB", 0) == 1
        and float_attribute(node, "alpha", 1.0) == 1.0
        and float_attribute(node, "beta", 1.0) == 1.0
    )


def _take_over(old: ir.Value, new: ir.Value) -> None:
    """`new` replaces `old` and takes its name, which downstream readers know it by."""
    name = old.name
    take_place(old, new)
    if new.name != name:
        old.name = None
        new.name = name


class SeparateNormalization(ir.passes.InPlacePass):
    """Turn a BatchNormalization that stands alone into a 1x1 depthwise Conv, or into Mul and Add for vectors.

    Requires: `FuseAffine` ran, shapes inferred. Contract: the node's name goes to the Conv (or the Mul; the
    Add is `<name>_shift`); every back end then meets operators it knows. Outputs agree to float32 rounding.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite each inference-mode BatchNormalization of constant parameters."""
        modified = False
        for node in list(model.graph):
            affine = normalization(node)
            shape = shape_of(node.inputs[0]) if affine is not None else None
            if affine is None or shape is None or len(shape) < 2:
                continue
            rank, name = len(shape), node.name or "norm"
            scale, shift = affine.scale.astype(np.float32), affine.shift.astype(np.float32)
            if rank in (3, 4):
                window = [1] * (rank - 2)
                made = ir.node(
                    "Conv",
                    [
                        node.inputs[0],
                        add_initializer(model.graph, f"{name}.weight", scale.reshape(-1, 1, *window)),
                        add_initializer(model.graph, f"{name}.bias", shift),
                    ],
                    attributes={"kernel_shape": window, "group": shape[1]},
                    name=name,
                )
                nodes = [made]
            else:
                spread = (-1,) + (1,) * (rank - 2)
                first = ir.node(
                    "Mul",
                    [node.inputs[0], add_initializer(model.graph, f"{name}.scale", scale.reshape(spread))],
                    name=name,
                )
                offset = add_initializer(model.graph, f"{name}.shift", shift.reshape(spread))
                nodes = [first, ir.node("Add", [first.outputs[0], offset], name=f"{name}_shift")]
            for fresh in nodes:
                fresh.outputs[0].type = node.outputs[0].type
                fresh.outputs[0].shape = node.outputs[0].shape
            model.graph.insert_before(node, nodes)
            _take_over(node.outputs[0], nodes[-1].outputs[0])
            model.graph.remove(node, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified)
