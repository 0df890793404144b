"""ONNX operators as PyTorch functions over a batch.

A value of static shape s is a tensor [B, *s], or [1, *s] where it does not depend on the input: the batch is an axis
of its own in front, so that graphs of batch 1 run on many samples whatever they do with their first axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch.nn import functional

from edgescale.core.errors import UnsupportedModelError
from edgescale.finetune.windows import average_pool, conv, max_pool
from edgescale.frontend.graph import (
    constant,
    float_attribute,
    input_at,
    int_attribute,
    ints_attribute,
    scalar,
    shape_of,
    string_attribute,
)

Tensor = Any
Operator = Callable[[ir.Node, Sequence[Tensor]], Tensor]
"""(node, one tensor an input, None for those left out and for integer constants) -> tensor or tuple of them."""


def _static(node: ir.Node) -> tuple[int, ...]:
    """Static shape of the node's first output."""
    shape = shape_of(node.outputs[0])
    if shape is None:
        raise UnsupportedModelError(f"node {node.name!r} ({node.op_type}): its output has no static shape")
    return shape


def _rank(value: Tensor) -> int:
    return int(value.dim()) - 1


def _axis(node: ir.Node, value: Tensor, default: int) -> int:
    """Attribute `axis` as an axis of the batched tensor."""
    return int_attribute(node, "axis", default) % _rank(value) + 1


def _axes(node: ir.Node, rank: int, index: int) -> tuple[int, ...]:
    """Attribute or constant input `axes` as sorted axes of a batched tensor; all where there are none."""
    axes = ints_attribute(node, "axes")
    if axes is None:
        array = constant(input_at(node, index))
        axes = None if array is None else tuple(int(a) for a in array.reshape(-1))
    return tuple(sorted(a % rank + 1 for a in axes)) if axes else tuple(range(1, rank + 1))


def aligned(values: Sequence[Tensor]) -> list[Tensor]:
    """Tensors brought to one rank as ONNX broadcasts: missing axes come in front, behind the batch."""
    rank = max(value.dim() for value in values)
    return [value.reshape(value.shape[0], *(1,) * (rank - value.dim()), *value.shape[1:]) for value in values]


def _elementwise(function: Callable[..., Tensor]) -> Operator:
    return lambda node, args: function(*aligned(args))


def _gemm(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    x, weights = args[0], args[1]
    alpha, beta = float_attribute(node, "alpha", 1.0), float_attribute(node, "beta", 1.0)
    x = x.transpose(-1, -2) if int_attribute(node, "transA", 0) else x
    weights = weights.transpose(-1, -2) if int_attribute(node, "transB", 0) else weights
    y = torch.matmul(x, weights[0] if weights.shape[0] == 1 else weights)
    y = y if alpha == 1.0 else y * alpha
    bias = args[2] if len(args) > 2 else None
    if bias is None:
        return y
    y, bias = aligned([y, bias])
    return y + (bias if beta == 1.0 else bias * beta)


def _matmul(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    if min(map(_rank, args)) < 2:
        raise UnsupportedModelError(f"node {node.name!r} (MatMul): training takes operands of two dimensions or more")
    if args[1].shape[0] == 1 and _rank(args[1]) == 2:
        return torch.matmul(args[0], args[1][0])
    return torch.matmul(*aligned(args))


def _clip(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    low, high = (scalar(input_at(node, index)) for index in (1, 2))
    if low is None and high is None:
        return args[0]
    if low is None or high is None or low >= high:
        return torch.clamp(args[0], low, high)
    return functional.hardtanh(args[0], low, high)  # clamp's gradient takes five passes over memory, this one


def _pow(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    exponent = scalar(node.inputs[1])
    return torch.pow(args[0], exponent) if exponent is not None else torch.pow(*aligned(args))


def _gelu(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    return functional.gelu(args[0], approximate=string_attribute(node, "approximate", "none"))


def _hard_sigmoid(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    alpha, beta = float_attribute(node, "alpha", 0.2), float_attribute(node, "beta", 0.5)
    return torch.clamp(args[0] * alpha + beta, 0.0, 1.0)


def _hard_swish(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    return args[0] * torch.clamp(args[0] / 6 + 0.5, 0.0, 1.0)


def _layer_norm(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    x = args[0]
    axes = tuple(range(_axis(node, x, -1), x.dim()))
    centred = x - x.mean(axes, keepdim=True)
    spread = (centred * centred).mean(axes, keepdim=True)
    y = centred / torch.sqrt(spread + float_attribute(node, "epsilon", 1e-5))
    for index, function in ((1, torch.mul), (2, torch.add)):
        if len(args) > index and args[index] is not None:
            y = function(*aligned([y, args[index]]))
    return y


def _reduction(function: Callable[..., Tensor]) -> Operator:
    def run(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
        axes = _axes(node, _rank(args[0]), 1)
        return function(args[0], axes, keepdim=bool(int_attribute(node, "keepdims", 1)))

    return run


def _global_average(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    return args[0].mean(tuple(range(3, args[0].dim())), keepdim=True)


def _shaped(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    return args[0].reshape(args[0].shape[0], *_static(node))


def _transpose(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    perm = ints_attribute(node, "perm") or tuple(reversed(range(_rank(args[0]))))
    return args[0].permute(0, *(axis + 1 for axis in perm))


def _concat(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    batch = max(value.shape[0] for value in args)
    axis = _axis(node, args[0], 0)
    return torch.cat([value.expand(batch, *value.shape[1:]) for value in args], axis)


def _slice(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    parts = [constant(input_at(node, index)) for index in (1, 2, 3, 4)]
    if parts[0] is None or parts[1] is None:
        raise UnsupportedModelError(f"node {node.name!r} (Slice): training takes constant bounds")
    starts, ends = _integers(parts[0]), _integers(parts[1])
    axes = list(range(len(starts))) if parts[2] is None else _integers(parts[2])
    steps = [1] * len(starts) if parts[3] is None else _integers(parts[3])
    y = args[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        at = axis % _rank(args[0]) + 1
        index = np.arange(y.shape[at])[slice(start, end, step)]
        if step < 0 and end < -y.shape[at]:  # ONNX means "past the first", Python "counted from the end"
            index = np.arange(y.shape[at])[slice(start, None, step)]
        y = y.index_select(at, torch.from_numpy(np.ascontiguousarray(index)))
    return y


def _integers(array: npt.NDArray[np.generic]) -> list[int]:
    return [int(number) for number in np.asarray(array, np.int64).reshape(-1)]


def _split(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    at = _axis(node, args[0], 0)
    sizes = []
    for output in node.outputs:
        shape = shape_of(output)
        if shape is None:
            raise UnsupportedModelError(f"node {node.name!r} (Split): its outputs have no static shape")
        sizes.append(shape[at - 1])
    return tuple(torch.split(args[0], sizes, at))


def _gather(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    index = constant(node.inputs[1])
    if index is None:
        raise UnsupportedModelError(f"node {node.name!r} (Gather): training takes constant indices")
    at = _axis(node, args[0], 0)
    flat = np.asarray(index, np.int64).reshape(-1) % args[0].shape[at]
    taken = args[0].index_select(at, torch.from_numpy(np.ascontiguousarray(flat)))
    return taken.reshape(*taken.shape[:at], *index.shape, *taken.shape[at + 1 :])


def _pad(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    pads, axes = constant(input_at(node, 1)), constant(input_at(node, 3))
    mode = string_attribute(node, "mode", "constant")
    if pads is None or mode != "constant":
        raise UnsupportedModelError(f"node {node.name!r} (Pad): training takes constant pads of mode constant")
    rank = _rank(args[0])
    at = list(range(rank)) if axes is None else [int(a) % rank for a in axes.reshape(-1)]
    sides = np.asarray(pads, np.int64).reshape(2, -1)
    edges = {axis: (int(sides[0, i]), int(sides[1, i])) for i, axis in enumerate(at)}
    flat = [side for axis in reversed(range(rank)) for side in edges.get(axis, (0, 0))]
    return functional.pad(args[0], flat, value=scalar(input_at(node, 2)) or 0.0)


def _expand(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    shape = _static(node)
    value = args[0].reshape(args[0].shape[0], *(1,) * (len(shape) - _rank(args[0])), *args[0].shape[1:])
    return value.expand(value.shape[0], *shape)


def _tile(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    repeats = constant(node.inputs[1])
    if repeats is None:
        raise UnsupportedModelError(f"node {node.name!r} (Tile): training takes constant repeats")
    return args[0].repeat(1, *(int(r) for r in repeats.reshape(-1)))


def _depth_to_space(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    x, block = args[0].flatten(0, 1), int_attribute(node, "blocksize", 1)
    n, c, h, w = x.shape
    if string_attribute(node, "mode", "DCR") == "DCR":
        y = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // block**2, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(args[0].shape[0], *_static(node))


def _space_to_depth(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    x, block = args[0].flatten(0, 1), int_attribute(node, "blocksize", 1)
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(args[0].shape[0], *_static(node))


OPERATORS: dict[str, Operator] = {
    "Conv": conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _elementwise(torch.add),
    "Sub": _elementwise(torch.sub),
    "Mul": _elementwise(torch.mul),
    "Div": _elementwise(torch.div),
    "Pow": _pow,
    "Max": _elementwise(torch.maximum),
    "Min": _elementwise(torch.minimum),
    "Relu": _elementwise(torch.relu),
    "Clip": _clip,
    "Sigmoid": _elementwise(torch.sigmoid),
    "Tanh": _elementwise(torch.tanh),
    "Exp": _elementwise(torch.exp),
    "Sqrt": _elementwise(torch.sqrt),
    "Erf": _elementwise(torch.erf),
    "Neg": _elementwise(torch.neg),
    "Abs": _elementwise(torch.abs),
    "Reciprocal": _elementwise(torch.reciprocal),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": lambda node, args: functional.leaky_relu(args[0], float_attribute(node, "alpha", 0.01)),
    "Elu": lambda node, args: functional.elu(args[0], float_attribute(node, "alpha", 1.0)),
    "Softmax": lambda node, args: torch.softmax(args[0], _axis(node, args[0], -1)),
    "LogSoftmax": lambda node, args: torch.log_softmax(args[0], _axis(node, args[0], -1)),
    "LayerNormalization": _layer_norm,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": _global_average,
    "ReduceMean": _reduction(torch.mean),
    "ReduceSum": _reduction(torch.sum),
    "Reshape": _shaped,
    "Flatten": _shaped,
    "Squeeze": _shaped,
    "Unsqueeze": _shaped,
    "Identity": lambda node, args: args[0],
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Pad": _pad,
    "Expand": _expand,
    "Tile": _tile,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
"""Every operator that training computes."""
