"""Layers as matrix products: the rows of input that each output value is a product of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.frontend.graph import int_attribute, ints_attribute, string_attribute
from edgescale.quantize.rules import weight_axis

Array = npt.NDArray[np.generic]
Single = npt.NDArray[np.float32]
Pads = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Product:
    """A Conv, Gemm or MatMul as y = W x + b with W [outputs, terms], in `groups` independent parts.

    `axis` is that of the output channels in the node's weights of `shape`; channels-first weights are
    [outputs, inputs, *kernel], flattened to `terms`.
    """

    node: ir.Node
    shape: tuple[int, ...]
    axis: int
    groups: int

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return self.shape[self.axis]

    @property
    def terms(self) -> int:
        """Products summed for one output value."""
        return int(np.prod(self.shape)) // max(self.outputs, 1)

    def matrix(self, weights: Array) -> npt.NDArray[np.float64]:
        """The node's weights as [outputs, terms]."""
        return np.moveaxis(np.asarray(weights, np.float64), self.axis, 0).reshape(self.outputs, -1)

    def weights(self, matrix: Array) -> Array:
        """[outputs, terms] as the node takes it."""
        moved = np.moveaxis(np.zeros(self.shape, np.bool_), self.axis, 0).shape
        return np.ascontiguousarray(np.moveaxis(matrix.reshape(moved), 0, self.axis))

    @property
    def channels_first(self) -> tuple[int, ...]:
        """Shape of the weights with the output channels moved in front."""
        return (self.outputs, *(side for a, side in enumerate(self.shape) if a != self.axis))

    def pick(self, x: Array, y: Array, count: int, seed: int) -> tuple[Single, Single]:
        """Rows of input and the outputs they give: ([groups, rows, terms], [outputs, rows]).

        x, y: the node's input and output, [samples, ...]. Of each sample at most `count` positions, drawn
        with `seed`; all where there are no more.
        """
        if self.node.op_type != "Conv":
            rows = np.asarray(x, np.float32).reshape(len(x), -1, x.shape[-1])
            results = np.asarray(y, np.float32).reshape(len(y), -1, y.shape[-1])
            at = _draw(rows.shape[1], len(x), count, seed)
            every = np.arange(len(x))[:, None]
            picked, wanted = rows[every, at], results[every, at]
            return picked.reshape(1, -1, rows.shape[-1]), wanted.reshape(-1, results.shape[-1]).T
        kernel = self.shape[2:]
        stride = ints_attribute(self.node, "strides") or (1,) * len(kernel)
        dilation = ints_attribute(self.node, "dilations") or (1,) * len(kernel)
        edges = padding(self.node, tuple(x.shape[2:]), kernel, stride, dilation)
        padded = np.pad(np.asarray(x, np.float32), [(0, 0), (0, 0), *edges])
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        axes = tuple(range(2, 2 + len(kernel)))
        view = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)
        steps: tuple[Any, ...] = tuple(slice(None, None, s) for s in (1, 1, *stride, *dilation))
        view = view[steps]
        sizes = view.shape[2 : 2 + len(kernel)]
        at = _draw(int(np.prod(sizes)), len(x), count, seed)
        places = np.unravel_index(at, sizes)
        every = np.arange(len(x))[:, None]
        chosen: tuple[Any, ...] = (every, slice(None), *places)
        taken = view[chosen]  # [samples, count, channels, *kernel]
        taken = taken.reshape(len(x) * at.shape[1], self.groups, -1).transpose(1, 0, 2)
        wanted = np.asarray(y, np.float32)[chosen].reshape(-1, self.outputs).T
        return np.ascontiguousarray(taken), wanted


def product_of(node: ir.Node, shape: tuple[int, ...]) -> Product:
    """A weighted node (see `rules.WEIGHTED`) whose weights have `shape`."""
    return Product(node, shape, weight_axis(node), int_attribute(node, "group", 1) if node.op_type == "Conv" else 1)


def padding(
    node: ir.Node, size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Pads:
    """(before, after) of each spatial axis of a Conv, `auto_pad` resolved."""
    rank, mode = len(kernel), string_attribute(node, "auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        given = ints_attribute(node, "pads") or (0,) * (2 * rank)
        return tuple((given[i], given[i + rank]) for i in range(rank))
    if mode == "VALID":
        return ((0, 0),) * rank
    edges = []
    for length, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        total = max((-(-length // s) - 1) * s + d * (k - 1) + 1 - length, 0)
        small, large = total // 2, total - total // 2
        edges.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return tuple(edges)


def _draw(positions: int, samples: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """[samples, min(count, positions)] positions, each sample its own, without repetition within one."""
    if count >= positions:
        return np.broadcast_to(np.arange(positions), (samples, positions))
    random = np.random.default_rng(seed)
    # A random start and a step coprime to the number of positions visits each at most once.
    first = max(positions // count, 1)
    steps = [s for s in range(first, min(first + 128, positions)) if np.gcd(s, positions) == 1] or [1]
    start = random.integers(0, positions, samples)
    step = np.array(steps[: min(len(steps), 32)])[random.integers(0, min(len(steps), 32), samples)]
    return np.asarray((start[:, None] + np.arange(count)[None] * step[:, None]) % positions, np.int64)
