"""Which rows of its inputs a layer needs for some rows of its output, and the layer that computes just those.

A row is a slice of a stored tensor along its first axis after the batch that is longer than one: image rows of
[1, H, W, C], positions of [1, 1, L, C]. Rows lie one after the other in memory.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from edgescale.lower.program import (
    Add,
    Concat,
    Conv2D,
    DepthwiseConv2D,
    Dequantize,
    Layer,
    Lut,
    Mul,
    Pad,
    Pool2D,
    Program,
    Quantize,
    Rescale,
    Slice,
    Softmax,
    Tensor,
    Unary,
)

Rows = tuple[int, int]
"""First row and the one after the last."""

_ELEMENTWISE = (Lut, Unary, Rescale, Quantize, Dequantize, Softmax)


@dataclass(frozen=True)
class RowMap:
    """Output rows [a, b) need input rows [a * stride - before, (b - 1) * stride - before + reach), clipped."""

    stride: int = 1
    before: int = 0
    reach: int = 1

    def needed(self, rows: Rows, size: int) -> Rows:
        """Rows of an input of `size` rows that output rows `rows` (not empty) need."""
        low, high = self._window(rows)
        return min(max(0, low), size), max(0, min(size, high))

    def padding(self, rows: Rows, size: int) -> Rows:
        """Rows of padding before and after the input rows that `rows` need."""
        low, high = self._window(rows)
        return max(0, -low), max(0, high - size)

    def _window(self, rows: Rows) -> Rows:
        return rows[0] * self.stride - self.before, (rows[1] - 1) * self.stride - self.before + self.reach


def row_axis(program: Program, layer: Layer) -> int | None:
    """The axis whose extents are rows (1 or 2), common to the layer's output and inputs; None where there is none."""
    shape = program.tensors[layer.output].shape
    if len(shape) != 4:
        return None
    axis = 1 if shape[1] > 1 else 2
    if axis == 2 and any(_height(program.tensors[name]) != 1 for name in layer.inputs):
        return None
    return axis


def _height(tensor: Tensor) -> int:
    return tensor.shape[1] if len(tensor.shape) == 4 else 0


def rows_of(tensor: Tensor, axis: int) -> int:
    """How many rows a tensor has."""
    return tensor.shape[axis]


def row_maps(program: Program, layer: Layer, axis: int) -> tuple[RowMap | None, ...] | None:
    """For each input, which of its rows the output's rows need: a RowMap, or None where all are needed always.

    None instead of the tuple for a layer that cannot be computed row by row.
    """
    out = program.tensors[layer.output]
    sources = [program.tensors[name] for name in layer.inputs]
    if len(out.shape) != 4 or row_axis(program, layer) != axis:
        return None
    if isinstance(layer, _ELEMENTWISE):
        return (RowMap(),)
    if isinstance(layer, (Conv2D, DepthwiseConv2D, Pool2D)):
        return _window_map(program, layer, axis)
    if isinstance(layer, (Add, Mul)):
        if layer.constant is not None and layer.constant.size > out.shape[-1]:
            return None
        return tuple(RowMap() if source.shape == out.shape else None for source in sources)
    if isinstance(layer, Concat):
        return (RowMap(),) * len(sources) if layer.axis > axis else None
    if isinstance(layer, Pad):
        return (RowMap(),) if layer.before[axis] == layer.after[axis] == 0 else None
    if isinstance(layer, Slice):
        whole = sources[0].shape[axis] == out.shape[axis] and layer.begin[axis] == 0 and layer.step[axis] == 1
        return (RowMap(),) if whole else None
    return None


def _window_map(program: Program, layer: Conv2D | DepthwiseConv2D | Pool2D, axis: int) -> tuple[RowMap] | None:
    if isinstance(layer, Conv2D):
        kernel, dilation = layer.weights.shape[axis], layer.dilation[axis - 1]
    elif isinstance(layer, DepthwiseConv2D):
        kernel, dilation = layer.weights.shape[axis - 1], layer.dilation[axis - 1]
    else:
        kernel, dilation = layer.kernel[axis - 1], 1
    found = RowMap(layer.stride[axis - 1], layer.padding[axis - 1], (kernel - 1) * dilation + 1)
    size, outputs = program.tensors[layer.inputs[0]].shape[axis], program.tensors[layer.output].shape[axis]
    # A window that reaches past the stated padding, or sees nothing but padding, has a meaning of its own.
    past = (outputs - 1) * found.stride + found.reach > found.before + size + layer.padding[axis + 1]
    blind = any(a >= b for a, b in (found.needed((row, row + 1), size) for row in range(outputs)))
    return None if past or blind else (found,)


def restricted(program: Program, layer: Layer, axis: int, rows: Rows, inputs: tuple[str, ...], output: str) -> Layer:
    """The layer that computes only `rows` of the output, from inputs that hold just the rows needed."""
    changed = dataclasses.replace(layer, inputs=inputs, output=output)
    if isinstance(changed, (Conv2D, DepthwiseConv2D, Pool2D)):
        maps = row_maps(program, layer, axis)
        if maps is None or maps[0] is None:
            raise ValueError(f"{layer.op} {layer.name} is not computed row by row")
        before, after = maps[0].padding(rows, program.tensors[layer.inputs[0]].shape[axis])
        padding = list(changed.padding)
        padding[axis - 1], padding[axis + 1] = before, after
        top, left, bottom, right = padding
        changed = dataclasses.replace(changed, padding=(top, left, bottom, right))
    return changed


def with_rows(tensor: Tensor, axis: int, count: int, name: str) -> Tensor:
    """A tensor of the same units with `count` rows."""
    shape = (*tensor.shape[:axis], count, *tensor.shape[axis + 1 :])
    return dataclasses.replace(tensor, name=name, shape=shape)


def row_bytes(tensor: Tensor, axis: int) -> int:
    """Bytes of one row."""
    return tensor.nbytes // tensor.shape[axis]
