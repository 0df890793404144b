"""QuantizeLinear and DequantizeLinear: units of activations, quantized constants, rescaling chains."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgescale.lower.constants import Constant, Real, along_axis
from edgescale.lower.context import Context, Units, Value, units_of_tensor
from edgescale.lower.errors import NodeError
from edgescale.lower.integer import rescaling
from edgescale.lower.program import Array, Quantize, Rescale, Reshape
from edgescale.lower.registry import handles

if TYPE_CHECKING:
    import onnx_ir

QDQ = ("QuantizeLinear", "DequantizeLinear")


def parameters(context: Context, node: onnx_ir.Node, *, signed: bool = False) -> tuple[Real, Array]:
    """(scale, zero_point) of a Quantize- or DequantizeLinear as given; a missing zero-point is 0 of its type.

    Raises NodeError for scales of 0 and, unless `signed`, below.
    """
    scale = context.constant(node, 1).real()
    zero = context.optional(node, 2)
    if not ((scale != 0) if signed else (scale > 0)).all():
        rule = "scales must not be 0" if signed else "scales must be positive"
        raise NodeError(f"scale {float(scale.reshape(-1)[np.argmin(np.abs(scale) if signed else scale)]):g}", rule)
    if zero is not None:
        return scale, zero.values
    kind: np.dtype[Any] = np.dtype(np.uint8)
    if node.op_type == "DequantizeLinear" and (source := node.inputs[0]) is not None:
        known = context.constants.get(str(source.name))
        kind = known.values.dtype if known is not None else kind
    elif "output_dtype" in node.attributes:
        import onnx

        kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(node.attributes["output_dtype"].as_int()))
    return scale, np.zeros(scale.shape, kind)


def units_of(context: Context, node: onnx_ir.Node) -> Units:
    """Units an activation has behind a QuantizeLinear; uint8 becomes int8 and loses 128.

    Raises NodeError for other types, and for int16 with a zero-point.
    """
    scale, zero = parameters(context, node)
    if scale.size != 1:
        raise NodeError(f"{scale.size} scales", "activations have one scale a tensor")
    point = int(zero.reshape(-1)[0])
    if zero.dtype == np.int16:
        if point:
            raise NodeError(f"zero-point {point}", "int16 activations are symmetric, of zero-point 0")
        return Units(float(scale.reshape(-1)[0]), 0, "int16")
    if zero.dtype not in (np.int8, np.uint8):
        raise NodeError(f"type {zero.dtype}", "activations are int8, uint8 or int16")
    return Units(float(scale.reshape(-1)[0]), point - (128 if zero.dtype == np.uint8 else 0))


def fold_constant(context: Context, node: onnx_ir.Node, source: Constant) -> Constant:
    """A Quantize- or DequantizeLinear of a constant; the latter's scales may be below zero."""
    scale, zero = parameters(context, node, signed=node.op_type == "DequantizeLinear")
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    block = node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0
    rank = source.values.ndim
    axis = axis % rank if rank else 0
    if block:
        length = source.shape[axis]
        scale = np.repeat(scale, block, axis).take(range(length), axis)
        zero = np.repeat(zero, block, axis).take(range(length), axis)
    elif scale.size > 1 and (not rank or scale.size != source.shape[axis]):
        raise NodeError(f"{scale.size} scales for axis {axis} of a constant of shape {list(source.shape)}")
    else:
        scale, zero = along_axis(scale, rank, axis).astype(np.float64), along_axis(zero, rank, axis)
    if node.op_type == "DequantizeLinear":
        if not _is_integer(source.values):
            raise NodeError(
                f"a constant of type {source.values.dtype}", "constants behind DequantizeLinear are integers"
            )
        return Constant(source.values, scale, zero.astype(np.int64))
    return Constant(_quantize_constant(source.real(), scale, zero))


def _is_integer(values: Array) -> bool:
    # int4 and uint4 arrays carry an extension type that NumPy does not count as an integer.
    return np.issubdtype(values.dtype, np.integer) or str(values.dtype) in ("int4", "uint4", "int2", "uint2")


def _quantize_constant(real: Array, scale: Array, zero: npt.NDArray[Any]) -> Array:
    if not np.issubdtype(zero.dtype, np.integer):
        raise NodeError(f"type {zero.dtype}", "constants are quantized to integer types")
    limits = np.iinfo(zero.dtype)
    steps = np.rint(real.astype(np.float32) / scale.astype(np.float32)) + zero.astype(np.float32)
    result: Array = np.clip(steps, limits.min, limits.max).astype(zero.dtype)
    return result


@handles("QuantizeLinear")
def quantize(context: Context, node: onnx_ir.Node) -> None:
    """Activations: int8, uint8 or (with zero-point 0) int16, one constant positive scale and zero-point a tensor.
    Weights: any integer type whose values minus zero-point fit int8."""
    value = context.value(node)
    units = units_of(context, node)
    name = str(node.outputs[0].name)
    source = context.tensors[value.tensor]
    if source.dtype == "float32":
        made = context.tensor(name, source.shape, units)
        context.layers.append(
            Quantize(context.name_of(node), (source.name,), made.name, nodes=(context.name_of(node),))
        )
    elif units_of_tensor(source) == units:
        context.values[name] = value
        return
    else:
        made = context.tensor(name, source.shape, units)
        label = context.name_of(node)
        scaling = rescaling(source.scale, made.scale, source.dtype)
        context.layers.append(Rescale(label, (source.name,), made.name, scaling, units.limits, nodes=(label,)))
    context.values[name] = Value(made.name, value.view)


@handles("DequantizeLinear")
def dequantize(context: Context, node: onnx_ir.Node) -> None:
    """Activations: the output of a QuantizeLinear, int8, uint8 or int16, one scale a tensor. Constants: weights per
    tensor or per output channel, biases int32."""
    value = context.value(node)
    source = context.tensors[value.tensor]
    units = units_of(context, node)
    if source.dtype != units.dtype:
        raise NodeError(f"input {value.tensor} of type {source.dtype} and a zero-point of {units.dtype}")
    if units_of_tensor(source) != units:
        # Other units for the same integers: a view of the same bytes.
        made = dataclasses.replace(
            source, name=context.fresh(str(node.outputs[0].name)), scale=units[0], zero_point=units[1]
        )
        context.tensors[made.name] = made
        context.layers.append(Reshape(context.name_of(node), (source.name,), made.name))
        value = Value(made.name, value.view)
    context.values[str(node.outputs[0].name)] = value
