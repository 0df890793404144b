"""Convolutions and pools of one or two spatial axes as PyTorch functions; tensors are [batch, *static shape]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from torch.nn import functional

from edgescale.core.errors import UnsupportedModelError
from edgescale.frontend.graph import int_attribute, ints_attribute
from edgescale.quantize.patches import Pads, padding

Tensor = Any
_CONV = {1: functional.conv1d, 2: functional.conv2d}
_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d}
_AVERAGE = {1: functional.avg_pool1d, 2: functional.avg_pool2d}


def conv(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    """Conv with constant weights [outputs, inputs / group, *kernel]."""
    x, weights = args[0], args[1]
    if weights.shape[0] != 1:
        raise UnsupportedModelError(f"node {node.name!r} (Conv): training takes constant weights")
    rank = _spatial(node, x)
    bias = args[2][0] if len(args) > 2 and args[2] is not None else None
    kernel = tuple(weights.shape[3:])
    strides, dilations = _steps(node, rank)
    images = x.flatten(0, 1)
    edges = padding(node, tuple(images.shape[2:]), kernel, strides, dilations)
    if all(before == after for before, after in edges):
        pads = tuple(before for before, _ in edges)
    else:
        images, pads = functional.pad(images, _flat(edges)), (0,) * rank
    y = _CONV[rank](images, weights[0], bias, strides, pads, dilations, int_attribute(node, "group", 1))
    return y.unflatten(0, x.shape[:2])


def max_pool(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    """MaxPool; padding never wins."""
    x = args[0]
    rank = _spatial(node, x)
    kernel = _window(node)
    strides, dilations = _steps(node, rank)
    images = x.flatten(0, 1)
    edges = padding(node, tuple(images.shape[2:]), kernel, strides, dilations)
    images = functional.pad(images, _flat(edges), value=float("-inf")) if any(map(any, edges)) else images
    return _MAX[rank](images, kernel, strides, 0, dilations).unflatten(0, x.shape[:2])


def average_pool(node: ir.Node, args: Sequence[Tensor]) -> Tensor:
    """AveragePool; padding counts only with count_include_pad."""
    x = args[0]
    rank = _spatial(node, x)
    kernel = _window(node)
    strides, dilations = _steps(node, rank)
    if set(dilations) != {1}:
        raise UnsupportedModelError(f"node {node.name!r} (AveragePool): training takes no dilations")
    images = x.flatten(0, 1)
    edges = padding(node, tuple(images.shape[2:]), kernel, strides, dilations)
    if not any(map(any, edges)):
        return _AVERAGE[rank](images, kernel, strides).unflatten(0, x.shape[:2])
    y = _AVERAGE[rank](functional.pad(images, _flat(edges)), kernel, strides)
    if not int_attribute(node, "count_include_pad", 0):
        inside = functional.pad(images[:1, :1].detach() * 0 + 1, _flat(edges))
        y = y / _AVERAGE[rank](inside, kernel, strides)
    return y.unflatten(0, x.shape[:2])


def _spatial(node: ir.Node, x: Tensor) -> int:
    rank = int(x.dim()) - 3
    if rank not in _CONV:
        raise UnsupportedModelError(
            f"node {node.name!r} ({node.op_type}): training takes one or two spatial axes, this has {rank}"
        )
    if int_attribute(node, "ceil_mode", 0):
        raise UnsupportedModelError(f"node {node.name!r} ({node.op_type}): training takes no ceil_mode")
    return rank


def _window(node: ir.Node) -> tuple[int, ...]:
    kernel = ints_attribute(node, "kernel_shape")
    if kernel is None:
        raise UnsupportedModelError(f"node {node.name!r} ({node.op_type}) has no kernel_shape")
    return kernel


def _steps(node: ir.Node, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (
        ints_attribute(node, "strides") or (1,) * rank,
        ints_attribute(node, "dilations") or (1,) * rank,
    )


def _flat(edges: Pads) -> list[int]:
    """(before, after) of each axis as PyTorch takes them: last axis first."""
    return [side for pair in reversed(edges) for side in pair]
