"""Pools and means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from edgescale.lower.attributes import axes_of, flag
from edgescale.lower.context import Context, Value
from edgescale.lower.errors import NodeError
from edgescale.lower.integer import mean_requant, rescaling
from edgescale.lower.layout import channels_last, stored_shape, view
from edgescale.lower.program import Mean, Pool2D
from edgescale.lower.registry import handles
from edgescale.lower.sink import follow
from edgescale.lower.windows import Window, window_of

if TYPE_CHECKING:
    import onnx_ir


@handles("MaxPool")
def max_pool(context: Context, node: onnx_ir.Node) -> None:
    """Input [1, C, H, W] or [1, C, L]; any kernel, stride, padding (also auto_pad) and ceil_mode; dilation 1; only the
    first output. int8 where the input is."""
    value = _spatial_value(context, node)
    if len(node.outputs) > 1 and any(output.uses() for output in node.outputs[1:]):
        raise NodeError("a reader of Indices")
    window = window_of(node, value.shape, _kernel(node))
    if window.dilation != (1, 1):
        raise NodeError(f"dilation {list(window.dilation)}")
    _pool(context, node, value, window, "max", count_padding=False)


@handles("AveragePool")
def average_pool(context: Context, node: onnx_ir.Node) -> None:
    """Input [1, C, H, W] or [1, C, L]; any kernel, stride, padding (also auto_pad); ceil_mode except where a window
    with count_include_pad = 1 leaves the padding; dilation 1. int8 between DequantizeLinear and QuantizeLinear."""
    value = _spatial_value(context, node)
    count_padding = flag(node, "count_include_pad")
    window = window_of(node, value.shape, _kernel(node))
    if window.dilation != (1, 1):
        raise NodeError(f"dilation {list(window.dilation)}")
    pads = list(node.attributes["pads"].as_ints()) if "pads" in node.attributes else [0] * 4
    if count_padding and flag(node, "ceil_mode"):
        behind = pads[len(pads) // 2 :]
        reach = window.padding[2:] if len(behind) == 2 else window.padding[3:]
        if any(needed > given for needed, given in zip(reach, behind, strict=True)):
            raise NodeError(f"ceil_mode = 1, count_include_pad = 1 and windows {list(reach)} behind, pads {pads}")
    _pool(context, node, value, window, "avg", count_padding=count_padding)


@handles("GlobalMaxPool")
def global_max_pool(context: Context, node: onnx_ir.Node) -> None:
    """Input [1, C, H, W] or [1, C, L]. int8 where the input is."""
    value = _spatial_value(context, node)
    height, width = value.shape[2:] if len(value.shape) == 4 else (1, value.shape[2])
    window = Window((height, width), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
    _pool(context, node, value, window, "max", count_padding=False)


@handles("GlobalAveragePool")
def global_average_pool(context: Context, node: onnx_ir.Node) -> None:
    """Input [1, C, H, W] or [1, C, L]. int8 between DequantizeLinear and QuantizeLinear."""
    value = _spatial_value(context, node)
    _mean(context, node, value, tuple(range(2, len(value.shape))), keep=True)


@handles("ReduceMean")
def reduce_mean(context: Context, node: onnx_ir.Node) -> None:
    """Constant axes without the batch axis. int8 between DequantizeLinear and QuantizeLinear."""
    value = context.value(node)
    rank = len(value.shape)
    axes = axes_of(context, node, 1, rank)
    if axes is None:
        axes = () if flag(node, "noop_with_empty_axes") else tuple(range(rank))
    if not axes:
        context.values[str(node.outputs[0].name)] = value
        return
    if any(value.shape[axis] != 1 for axis in axes if axis == 0):
        raise NodeError(f"axes {list(axes)}")
    _mean(context, node, value, axes, keep=flag(node, "keepdims", default=True))


def _spatial_value(context: Context, node: onnx_ir.Node) -> Value:
    value = context.value(node)
    if len(value.shape) not in (3, 4):
        raise NodeError(f"input {list(value.shape)}")
    return value


def _kernel(node: onnx_ir.Node) -> tuple[int, ...]:
    if "kernel_shape" not in node.attributes:
        raise NodeError("no kernel_shape")
    return tuple(node.attributes["kernel_shape"].as_ints())


def _pool(
    context: Context,
    node: onnx_ir.Node,
    value: Value,
    window: Window,
    kind: Literal["max", "avg"],
    *,
    count_padding: bool,
) -> None:
    rank = len(value.shape)
    sink = follow(context, node)
    units = context.units(value)
    scaling = None
    if kind == "avg":
        if units is None or sink.units is None:
            value, units = context.real(value, node), None
        elif sink.units != units:
            scaling, units = rescaling(units.scale, sink.units.scale, units.dtype), sink.units
    if any(pad >= size for pad, size in zip(window.padding, window.kernel * 2, strict=True)):
        raise NodeError(
            f"padding {list(window.padding)} for kernel {list(window.kernel)}", "padding is below the kernel"
        )
    source = context.spatial(value, node)
    shape = (1, value.shape[1], *window.output[4 - rank :])
    axes = channels_last(rank)
    out = context.tensor(sink.value, stored_shape(shape, axes), units)
    context.layers.append(
        Pool2D(
            context.name_of(node), (source.name,), out.name, nodes=sink.nodes, kind=kind, kernel=window.kernel,
            stride=window.stride, padding=window.padding, count_padding=count_padding and any(window.padding),
            requant=scaling, clamp=sink.clamp(out),
        )
    )  # fmt: skip
    sink.bind(context, out, view(shape, axes))


def _mean(context: Context, node: onnx_ir.Node, value: Value, axes: tuple[int, ...], *, keep: bool) -> None:
    """Mean over ONNX `axes`: they are stored outermost, as H and W of [1, H, W, rest]."""
    shape = value.shape
    sink = follow(context, node)
    units = context.units(value)
    integer = units is not None and sink.units is not None
    if not integer:
        value = context.real(value, node)
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    sizes = [shape[axis] for axis in axes]
    width = sizes[-1]
    count, left = int(np.prod(sizes)), int(np.prod([shape[axis] for axis in rest]))
    source = context.arrange(value, view(shape, (*axes, *rest)), (1, count // width, width, left), node)
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    result = kept if keep else tuple(shape[axis] for axis in rest)
    stored = (1, 1, 1, left) if len(result) > 2 else (1, left)
    out = context.tensor(sink.value, stored, sink.units if integer else None)
    scaling = None
    if units is not None and sink.units is not None:
        scaling = mean_requant(units.scale, sink.units.scale, count, units.dtype)
    context.layers.append(
        Mean(context.name_of(node), (source,), out.name, nodes=sink.nodes, requant=scaling, clamp=sink.clamp(out))
    )
    sink.bind(context, out, view(result, range(len(result))))
