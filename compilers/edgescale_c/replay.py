"""In which order kernels read and write: their loops replayed, element by element, for the verifier.

Shares no code with planner.py, liveness.py or overlap.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.lower.program import (
    Add,
    Concat,
    Conv2D,
    DepthwiseConv2D,
    Dequantize,
    FullyConnected,
    InterpolatedLut,
    Layer,
    Lut,
    Mean,
    Mul,
    Pad,
    Pool2D,
    Program,
    Quantize,
    Rescale,
    Slice,
    Softmax,
    Unary,
)

Times = npt.NDArray[np.int64]


class Replay:
    """For each element: the step in which it is read last, and the step in which it is first written.

    Within a step reads come before writes.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.last_read: Times = np.full(inputs, -1, np.int64)
        self.first_write: Times = np.full(outputs, np.iinfo(np.int64).max, np.int64)


def taken(program: Program, layer: Slice) -> Times:
    """Which element of the input each of the output is."""
    shape, out = program.tensors[layer.inputs[0]].shape, program.tensors[layer.output].shape
    elements = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    for axis, (count, begin, step) in enumerate(zip(out, layer.begin, layer.step, strict=True)):
        elements = elements.take(begin + step * np.arange(count), axis)
    return elements.reshape(-1)


def _straight(program: Program, layer: Any, operand: int, block: int, replay: Replay) -> None:
    steps = np.arange(replay.last_read.size)
    if isinstance(layer, (Add, Mul)) and replay.last_read.size != replay.first_write.size:
        steps = np.full_like(steps, replay.first_write.size)  # a broadcast operand is read to the end
    if isinstance(layer, Mean):
        steps = np.tile(np.arange(replay.first_write.size), replay.last_read.size // replay.first_write.size)
    replay.last_read = np.maximum(replay.last_read, steps)
    replay.first_write = np.arange(replay.first_write.size)


def _rows(program: Program, layer: FullyConnected, operand: int, block: int, replay: Replay) -> None:
    outputs, inputs = layer.weights.shape
    pairs = (outputs + 1) // 2
    rows = replay.last_read.size // inputs
    for row in range(rows):
        replay.last_read[row * inputs : (row + 1) * inputs] = row * pairs + pairs - 1
        replay.first_write[row * outputs : (row + 1) * outputs] = row * pairs + np.arange(outputs) // 2


def _windows(program: Program, layer: Any, operand: int, block: int, replay: Replay) -> None:
    """Convolutions and pools: raster order, blocks of up to `block` pixels, channels in turn."""
    _, height, width, depth = program.tensors[layer.inputs[0]].shape
    _, rows, columns, channels = program.tensors[layer.output].shape
    dense = isinstance(layer, Conv2D) or (isinstance(layer, DepthwiseConv2D) and layer.multiplier > 1)
    kernel, dilation = _kernel(layer)
    if isinstance(layer, Pool2D):
        block = 1
    if kernel == (1, 1) and layer.stride == (1, 1) and not any(layer.padding):
        height, width, rows, columns = 1, height * width, 1, rows * columns
    read = replay.last_read.reshape(height, width, depth)
    write = replay.first_write.reshape(rows * columns, channels)
    turn = 0
    for pixels in _blocks(rows, columns, kernel, dilation, layer.stride, layer.padding, (height, width), block):
        last = turn + channels - 1
        for y, x in pixels:
            first_y, first_x = y * layer.stride[0] - layer.padding[0], x * layer.stride[1] - layer.padding[1]
            ys = [first_y + k * dilation[0] for k in range(kernel[0]) if 0 <= first_y + k * dilation[0] < height]
            xs = [first_x + k * dilation[1] for k in range(kernel[1]) if 0 <= first_x + k * dilation[1] < width]
            if ys and xs:
                window = read[ys[0] : ys[-1] + 1 : dilation[0], xs[0] : xs[-1] + 1 : dilation[1]]
                window[...] = last if dense else turn + np.arange(channels)
            write[y * columns + x] = turn + (np.arange(channels) // 2 * 2 if dense else np.arange(channels))
        turn += channels


def _kernel(layer: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    if isinstance(layer, Conv2D):
        return (layer.weights.shape[1], layer.weights.shape[2]), layer.dilation
    if isinstance(layer, DepthwiseConv2D):
        return (layer.weights.shape[0], layer.weights.shape[1]), layer.dilation
    return layer.kernel, (1, 1)


def _blocks(
    rows: int,
    columns: int,
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    size: tuple[int, int],
    block: int,
) -> Iterator[list[tuple[int, int]]]:
    """Output pixels in the order in which kernels finish them: pairs only where neither sees padding."""

    def clear(position: int, axis: int, extent: int) -> bool:
        first = position * stride[axis] - padding[axis]
        return position < extent and first >= 0 and first + (kernel[axis] - 1) * dilation[axis] < size[axis]

    for y in range(rows):
        x = 0
        while x < columns:
            pair = block == 2 and clear(y, 0, rows) and clear(x, 1, columns) and clear(x + 1, 1, columns)
            yield [(y, x), (y, x + 1)] if pair else [(y, x)]
            x += 2 if pair else 1


def _concat(program: Program, layer: Concat, operand: int, block: int, replay: Replay) -> None:
    shape = program.tensors[layer.output].shape
    count = math.prod(shape[: layer.axis])
    chunks = [program.tensors[name].size // count for name in layer.inputs]
    step = 0
    for o in range(count):
        for part, chunk in enumerate(chunks):
            times = step + np.arange(chunk)
            replay.first_write[step : step + chunk] = times
            if part == operand:
                seen = replay.last_read[o * chunk : (o + 1) * chunk]
                np.maximum(seen, times, out=seen)
            step += chunk


def _pad(program: Program, layer: Pad, operand: int, block: int, replay: Replay) -> None:
    source, out = program.tensors[layer.inputs[0]], program.tensors[layer.output]
    times = np.arange(out.size)
    replay.first_write = times
    middle = tuple(slice(b, b + extent) for b, extent in zip(layer.before, source.shape, strict=True))
    replay.last_read = times.reshape(out.shape)[middle].reshape(-1)


def _copied_blocks(program: Program, layer: Conv2D, operand: int, block: int, replay: Replay) -> None:
    """dsp convolution: four pixels in raster order, all their windows read in one step, written in the next."""
    _, height, width, depth = program.tensors[layer.inputs[0]].shape
    _, rows, columns, channels = program.tensors[layer.output].shape
    read = replay.last_read.reshape(height, width, depth)
    write = replay.first_write.reshape(rows * columns, channels)
    for pixel in range(rows * columns):
        step = pixel // 4 * 2
        y, x = divmod(pixel, columns)
        for ky in range(layer.weights.shape[1]):
            for kx in range(layer.weights.shape[2]):
                iy = y * layer.stride[0] - layer.padding[0] + ky * layer.dilation[0]
                ix = x * layer.stride[1] - layer.padding[1] + kx * layer.dilation[1]
                if 0 <= iy < height and 0 <= ix < width:
                    read[iy, ix] = step
        write[pixel] = step + 1


def _dense_rows(program: Program, layer: Any, operand: int, block: int, replay: Replay) -> None:
    """dsp dense product: a row is read for each group of eight, later two, of its outputs."""
    outputs = layer.weights.shape[0]
    rows = replay.first_write.size // outputs
    inputs = replay.last_read.size // rows
    pairs = (outputs + 1) // 2
    grouped = pairs // 4 * 8
    group = np.array([o // 8 if o < grouped else grouped // 8 + (o - grouped) // 2 for o in range(outputs)])
    for row in range(rows):
        start = row * (int(group[-1]) + 1)
        replay.last_read[row * inputs : (row + 1) * inputs] = start + group[-1]
        replay.first_write[row * outputs : (row + 1) * outputs] = start + group


def _single_outputs(program: Program, layer: Any, operand: int, block: int, replay: Replay) -> None:
    """dsp product of non-zero weights: a row is read for each of its outputs."""
    outputs = layer.weights.shape[0]
    rows = replay.first_write.size // outputs
    inputs = replay.last_read.size // rows
    replay.last_read[:] = np.arange(replay.last_read.size) // inputs * outputs + outputs - 1
    replay.first_write[:] = np.arange(replay.first_write.size)


def _slice(program: Program, layer: Slice, operand: int, block: int, replay: Replay) -> None:
    """What lies side by side is shifted as by memmove: every byte is read before it is overwritten."""
    elements = taken(program, layer)
    shifted = bool((np.diff(elements) == 1).all())
    replay.last_read[elements] = 0 if shifted else elements.size
    replay.first_write[:] = 0


Simulation = Callable[[Program, Any, int, int, Replay], None]
"""(program, layer, operand, block, replay): replays the layer's loops, with blocks of up to `block` pixels."""

_ORDERS: dict[str, Simulation] = {"blocks": _copied_blocks, "dense": _dense_rows, "rows": _single_outputs}
_SIMULATIONS: dict[type[Layer], Simulation] = {
    **dict.fromkeys((Lut, InterpolatedLut, Unary, Rescale, Softmax, Quantize, Dequantize, Add, Mul, Mean), _straight),
    FullyConnected: _rows,
    **dict.fromkeys((Conv2D, DepthwiseConv2D, Pool2D), _windows),
    Concat: _concat,
    Pad: _pad,
    Slice: _slice,
}


def simulation(layer: Layer, order: str) -> Simulation | None:
    """The replay of a layer whose kernel keeps `order`; None where it must not write into an input."""
    return _ORDERS.get(order) or _SIMULATIONS.get(type(layer))
