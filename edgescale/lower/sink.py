"""Where a node's result goes: what follows it and can be folded in, and the units it is wanted in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgescale.lower.constants import Constant, Real
from edgescale.lower.context import Context, Units, Value, units_of_tensor
from edgescale.lower.errors import NodeError
from edgescale.lower.integer import clamp_of
from edgescale.lower.layout import Shape, View
from edgescale.lower.program import Clamp, Tensor
from edgescale.lower.qdq import units_of

if TYPE_CHECKING:
    import onnx_ir

Absorb = Literal["nothing", "activation", "offset", "affine"]
"""What a layer takes in: nothing; a Relu or Clip; also an addition a channel before it (a bias); also a factor."""

Affine = tuple[Real, Real]
"""(factor, offset), one entry a channel: y = factor * x + offset."""


@dataclass(frozen=True)
class Sink:
    """The end of the chain that starts at a node.

    value: ONNX name of the chain's result = clip(factor * y + offset, low, high), y the node's own.
    nodes: names of the chain's nodes. units: those of the QuantizeLinear nodes `quantizers` where they
    are the result's only readers and agree, else None.
    """

    value: str
    nodes: tuple[str, ...]
    units: Units | None
    quantizers: tuple[onnx_ir.Node, ...]
    absorbed: tuple[onnx_ir.Node, ...]
    affine: Affine
    low: float = -math.inf
    high: float = math.inf

    def clamp(self, tensor: Tensor) -> Clamp:
        """The chain's bounds in the units of the output `tensor`."""
        return clamp_of(tensor, self.low, self.high)

    def bind(self, context: Context, tensor: Tensor, view: View) -> None:
        """Say that `tensor` holds the result in the order of `view`; the chain's nodes are done."""
        made = Value(tensor.name, view)
        context.values[self.value] = made
        context.done.update(id(node) for node in self.absorbed)
        if self.units is not None and self.units == units_of_tensor(tensor):
            for node in self.quantizers:
                context.values[str(node.outputs[0].name)] = made
                context.done.add(id(node))


def follow(
    context: Context, node: onnx_ir.Node, absorb: Absorb = "activation", shape: Shape = (), channel_axis: int = 0
) -> Sink:
    """Walk from `node` over what may be folded in, while each result has one reader.

    shape, channel_axis: ONNX shape of the node's output and the axis `affine` runs along.
    """
    channels = shape[channel_axis] if shape else 1
    names, absorbed = [context.name_of(node)], []
    factor, offset = np.ones(channels), np.zeros(channels)
    low, high = -math.inf, math.inf
    end = node.outputs[0]
    while absorb != "nothing" and (reader := _sole_reader(context, end)) is not None:
        bounds = activation_bounds(context, reader)
        if bounds is not None:
            low, high = (min(max(bound, bounds[0]), bounds[1]) for bound in (low, high))
        else:
            bounded = not (math.isinf(low) and math.isinf(high))
            step = None if bounded or absorb == "activation" else affine_step(context, reader, end, shape, channel_axis)
            if step is None or (absorb == "offset" and np.any(step[0] != 1)):
                break
            factor, offset = factor * step[0], offset * step[0] + step[1]
        names.append(context.name_of(reader))
        absorbed.append(reader)
        end = reader.outputs[0]
    quantizers = _quantizers(context, end)
    wanted = {_units_or_none(context, quantizer) for quantizer in quantizers}
    units = wanted.pop() if len(wanted) == 1 else None
    if units is not None:
        names.extend(context.name_of(quantizer) for quantizer in quantizers)
    return Sink(
        str(end.name), tuple(names), units, quantizers, tuple(absorbed), (factor, offset), float(low), float(high)
    )


def activation_bounds(context: Context, node: onnx_ir.Node) -> tuple[float, float] | None:
    """(least, greatest) of a Relu, or of a Clip with constant bounds; None for any other node."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    if node.op_type != "Clip":
        return None
    bounds = []
    for index, (name, absent) in enumerate((("min", -math.inf), ("max", math.inf)), start=1):
        given = node.inputs[index] if index < len(node.inputs) else None
        if given is not None and given.name:
            if given.name not in context.constants:
                return None
            bounds.append(float(context.constants[given.name].real().reshape(-1)[0]))
        else:
            bounds.append(node.attributes[name].as_float() if name in node.attributes else absent)
    # Wide bounds, such as the greatest float that older exporters write, bound nothing.
    low, high = (math.copysign(math.inf, bound) if abs(bound) > 1e30 else bound for bound in bounds)
    return low, high


def affine_step(
    context: Context, node: onnx_ir.Node, source: onnx_ir.Value, shape: Shape, channel_axis: int
) -> Affine | None:
    """`node` as factor * source + offset along `channel_axis` of a source of `shape`; None where it is not that."""
    channels = shape[channel_axis]
    if node.op_type == "BatchNormalization":
        if node.inputs[0] is not source or channel_axis != 1:
            return None
        return batch_normalization(context, node)
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    position = 0 if node.inputs[0] is source else 1
    other = node.inputs[1 - position]
    if other is None or str(other.name) not in context.constants:
        return None
    constant = per_channel(context.constants[str(other.name)], shape, channel_axis)
    return None if constant is None else arithmetic(node.op_type, constant, channels, constant_first=position == 1)


def arithmetic(operator: str, constant: Real, channels: int, *, constant_first: bool) -> Affine | None:
    """x op constant (or constant op x) as an affine map; None for constant / x and for a division by 0."""
    ones, zeros = np.ones(channels), np.zeros(channels)
    if operator == "Add":
        return ones, zeros + constant
    if operator == "Sub":
        return (-ones, zeros + constant) if constant_first else (ones, zeros - constant)
    if operator == "Mul":
        return ones * constant, zeros
    if constant_first or np.any(constant == 0):
        return None
    return ones / constant, zeros


def per_channel(constant: Constant, shape: Shape, channel_axis: int) -> Real | None:
    """A constant that broadcasts to `shape` and varies along `channel_axis` only, as [channels] or [1]; else None."""
    if len(constant.shape) > len(shape):
        return None
    aligned = (1,) * (len(shape) - len(constant.shape)) + constant.shape
    if any(size not in (1, shape[axis]) for axis, size in enumerate(aligned)):
        return None
    if any(size != 1 and axis != channel_axis for axis, size in enumerate(aligned)):
        return None
    return constant.real().reshape(-1)


def batch_normalization(context: Context, node: onnx_ir.Node) -> Affine:
    """scale * (x - mean) / sqrt(variance + epsilon) + bias. Raises NodeError for run-time statistics."""
    scale, bias, mean, variance = (context.constant(node, index).real().reshape(-1) for index in range(1, 5))
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    factor = scale / np.sqrt(variance + epsilon)
    return factor, bias - factor * mean


def _units_or_none(context: Context, quantizer: onnx_ir.Node) -> Units | None:
    try:
        return units_of(context, quantizer)
    except NodeError:
        # The error belongs to the QuantizeLinear node and is raised when its turn comes.
        return None


def readers(context: Context, value: onnx_ir.Value) -> list[tuple[onnx_ir.Node, int]]:
    """Nodes that read `value` and are needed, each with the input it is there."""
    return [(use.node, use.idx) for use in value.uses() if id(use.node) in context.needed]


def _sole_reader(context: Context, value: onnx_ir.Value) -> onnx_ir.Node | None:
    found = readers(context, value)
    if value.is_graph_output() or len(found) != 1:
        return None
    node, index = found[0]
    # Bounds of a Clip are not its data.
    return node if index == 0 or node.op_type in ("Add", "Sub", "Mul", "Div") else None


def _quantizers(context: Context, value: onnx_ir.Value) -> tuple[onnx_ir.Node, ...]:
    """The QuantizeLinear nodes that are the only readers of `value`; none where anything else reads it."""
    found = readers(context, value)
    if value.is_graph_output() or any(node.op_type != "QuantizeLinear" or index for node, index in found):
        return ()
    return tuple(node for node, _ in found)
