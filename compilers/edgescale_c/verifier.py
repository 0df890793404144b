"""Checks a memory plan without the planner: own lifetimes, own replay of the kernels' loops.

Shares no code with planner.py, liveness.py or overlap.py. Two tensors that are live together must not
share a byte, unless one is the output and the other a dying input of a layer, and replaying that
layer's reads and writes shows that every shared byte is read for the last time before it is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import EdgescaleError
from edgescale.lower.program import (
    ITEM_BYTES,
    Add,
    Concat,
    Conv2D,
    DepthwiseConv2D,
    Dequantize,
    FullyConnected,
    Layer,
    Lut,
    Mean,
    Mul,
    Pad,
    Pool2D,
    Program,
    Quantize,
    Rescale,
    Reshape,
    Softmax,
    Transpose,
    Unary,
)

Times = npt.NDArray[np.int64]


class PlanError(EdgescaleError):
    """A memory plan would let a layer overwrite bytes that are still needed. Always a fault of the planner."""


def verify(program: Program, offsets: Mapping[str, int], arena_bytes: int, alignment: int = 1) -> None:
    """Raise PlanError unless `offsets` (bytes, one for every tensor) are safe within `arena_bytes`."""
    for name, tensor in program.tensors.items():
        if name not in offsets:
            raise PlanError(f"memory plan: tensor {name} has no place")
        start = offsets[name]
        if start < 0 or start + tensor.nbytes > arena_bytes:
            raise PlanError(f"memory plan: tensor {name} [{start}, {start + tensor.nbytes}) leaves the arena")
        if start % alignment or start % ITEM_BYTES[tensor.dtype]:
            raise PlanError(f"memory plan: tensor {name} at {start} is not aligned")
    final = len(program.layers)
    # A tensor holds its value after layer `born` (-1: before the first) until layer `dead` has read it.
    born = {port.tensor: -1 for port in program.inputs} | {layer.output: i for i, layer in enumerate(program.layers)}
    dead = dict(born)
    for index, layer in enumerate(program.layers):
        dead.update(dict.fromkeys(layer.inputs, index))
    for port in program.outputs:
        dead[port.tensor] = final
    for index, layer in enumerate(program.layers):
        aliased = _same_bytes(program, layer)
        if aliased and offsets[layer.output] != offsets[layer.inputs[0]]:
            raise PlanError(f"memory plan: {layer.output} must lie where {layer.inputs[0]} does")
        if aliased:
            continue
        for name in born:
            if name == layer.output or born[name] >= index or dead[name] < index:
                continue
            if not _share(program, offsets, name, layer.output):
                continue
            if dead[name] > index or name not in layer.inputs:
                raise PlanError(
                    f"memory plan: layer {layer.name} would overwrite {name}, needed until layer {dead[name]}"
                )
            _check_reach(program, offsets, index, layer, name)
    held = [port.tensor for port in program.inputs]
    for i, name in enumerate(held):
        for other in held[i + 1 :]:
            if name != other and _share(program, offsets, name, other):
                raise PlanError(f"memory plan: inputs {name} and {other} share bytes")


def _share(program: Program, offsets: Mapping[str, int], a: str, b: str) -> bool:
    start_a, start_b = offsets[a], offsets[b]
    return start_a < start_b + program.tensors[b].nbytes and start_b < start_a + program.tensors[a].nbytes


def _same_bytes(program: Program, layer: Layer) -> bool:
    if isinstance(layer, Transpose):
        shape = program.tensors[layer.inputs[0]].shape
        index = np.arange(math.prod(shape)).reshape(shape)
        return bool(np.array_equal(index.transpose(layer.permutation).reshape(-1), index.reshape(-1)))
    return isinstance(layer, Reshape)


def _check_reach(program: Program, offsets: Mapping[str, int], index: int, layer: Layer, name: str) -> None:
    source, out = program.tensors[name], program.tensors[layer.output]
    for block in (1, 2):
        replay = _Replay(source.size, out.size)
        for operand, tensor in enumerate(layer.inputs):
            if tensor == name:
                simulate = _SIMULATIONS.get(type(layer))
                if simulate is None:
                    raise PlanError(f"memory plan: {layer.op} {layer.name} must not write into its input {name}")
                simulate(program, layer, operand, block, replay)
        read = np.repeat(replay.last_read, ITEM_BYTES[source.dtype])
        written = np.repeat(replay.first_write, ITEM_BYTES[out.dtype])
        low = max(offsets[name], offsets[layer.output])
        high = min(offsets[name] + source.nbytes, offsets[layer.output] + out.nbytes)
        inside = read[low - offsets[name] : high - offsets[name]]
        onto = written[low - offsets[layer.output] : high - offsets[layer.output]]
        if (onto < inside).any():
            raise PlanError(f"memory plan: layer {index} {layer.name} overwrites {name} before it has been read")


class _Replay:
    """For each element: the step in which it is read last, and the step in which it is first written.

    Within a step reads come before writes.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.last_read: Times = np.full(inputs, -1, np.int64)
        self.first_write: Times = np.full(outputs, np.iinfo(np.int64).max, np.int64)


def _straight(program: Program, layer: Any, operand: int, block: int, replay: _Replay) -> None:
    steps = np.arange(replay.last_read.size)
    if isinstance(layer, (Add, Mul)) and replay.last_read.size != replay.first_write.size:
        steps = np.full_like(steps, replay.first_write.size)  # a broadcast operand is read to the end
    if isinstance(layer, Mean):
        steps = np.tile(np.arange(replay.first_write.size), replay.last_read.size // replay.first_write.size)
    replay.last_read = np.maximum(replay.last_read, steps)
    replay.first_write = np.arange(replay.first_write.size)


def _rows(program: Program, layer: FullyConnected, operand: int, block: int, replay: _Replay) -> None:
    outputs, inputs = layer.weights.shape
    pairs = (outputs + 1) // 2
    rows = replay.last_read.size // inputs
    for row in range(rows):
        replay.last_read[row * inputs : (row + 1) * inputs] = row * pairs + pairs - 1
        replay.first_write[row * outputs : (row + 1) * outputs] = row * pairs + np.arange(outputs) // 2


def _windows(program: Program, layer: Any, operand: int, block: int, replay: _Replay) -> None:
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


def _concat(program: Program, layer: Concat, operand: int, block: int, replay: _Replay) -> None:
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


def _pad(program: Program, layer: Pad, operand: int, block: int, replay: _Replay) -> None:
    source, out = program.tensors[layer.inputs[0]], program.tensors[layer.output]
    times = np.arange(out.size)
    replay.first_write = times
    middle = tuple(slice(b, b + extent) for b, extent in zip(layer.before, source.shape, strict=True))
    replay.last_read = times.reshape(out.shape)[middle].reshape(-1)


_Simulation = Callable[[Program, Any, int, int, _Replay], None]
_SIMULATIONS: dict[type[Layer], _Simulation] = {
    **dict.fromkeys((Lut, Unary, Rescale, Softmax, Quantize, Dequantize, Add, Mul, Mean), _straight),
    FullyConnected: _rows,
    **dict.fromkeys((Conv2D, DepthwiseConv2D, Pool2D), _windows),
    Concat: _concat,
    Pad: _pad,
}
