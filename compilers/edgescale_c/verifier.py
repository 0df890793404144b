"""Checks a memory plan without the planner: own lifetimes, own replay of the kernels' loops.

Shares no code with planner.py, liveness.py or overlap.py. Two tensors that are live together must not
share a byte, unless one is the output and the other a dying input of a layer, and replaying that
layer's reads and writes shows that every shared byte is read for the last time before it is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
    Reshape,
    Slice,
    Softmax,
    Transpose,
    Unary,
)

Times = npt.NDArray[np.int64]


class PlanError(EdgescaleError):
    """A memory plan would let a layer overwrite bytes that are still needed. Always a fault of the planner."""


@dataclass(frozen=True)
class Workspace:
    """What a layer's kernel does: `order` as kernels.Order names it, and its scratch [offset, offset + nbytes)."""

    order: str = "scalar"
    offset: int = 0
    nbytes: int = 0


_SCALAR = Workspace()


def verify(
    program: Program,
    offsets: Mapping[str, int],
    arena_bytes: int,
    alignment: int = 1,
    workspaces: Mapping[int, Workspace] | None = None,
) -> None:
    """Raise PlanError unless `offsets` (bytes, one for every tensor) are safe within `arena_bytes`.

    workspaces: by index, of the layers whose kernels are not the scalar ones.
    """
    workspaces = workspaces or {}
    for name, tensor in program.tensors.items():
        if name not in offsets:
            raise PlanError(f"memory plan: tensor {name} has no place")
        start = offsets[name]
        if start < 0 or start + tensor.nbytes > arena_bytes:
            raise PlanError(f"memory plan: tensor {name} [{start}, {start + tensor.nbytes}) leaves the arena")
        inside = program.states or any(isinstance(layer, Slice) and layer.output == name for layer in program.layers)
        if (start % alignment and not inside) or start % ITEM_BYTES[tensor.dtype]:
            raise PlanError(f"memory plan: tensor {name} at {start} is not aligned")
    final = len(program.layers)
    # A tensor holds its value after layer `born` (-1: before the first) until layer `dead` has read it.
    born = dict.fromkeys(program.sources, -1) | {layer.output: i for i, layer in enumerate(program.layers)}
    dead = dict(born)
    for index, layer in enumerate(program.layers):
        dead.update(dict.fromkeys(layer.inputs, index))
    dead.update(dict.fromkeys(program.results, final))
    reads = _Reads(program, offsets)
    for index, workspace in workspaces.items():
        live = [name for name in born if born[name] <= index <= dead[name]]
        _check_scratch(reads, offsets, arena_bytes, index, live, workspace)
    for index, layer in enumerate(program.layers):
        if index in reads.standing:
            continue
        aliased = _same_bytes(program, layer)
        if aliased and offsets[layer.output] != offsets[layer.inputs[0]]:
            raise PlanError(f"memory plan: {layer.output} must lie where {layer.inputs[0]} does")
        if aliased:
            continue
        for name in born:
            if name == layer.output or born[name] >= index or dead[name] < index:
                continue
            place = offsets[layer.output], program.tensors[layer.output].nbytes
            if not reads.share(name, *place, index):
                continue
            if reads.share(name, *place, index + 1) or name not in layer.inputs:
                raise PlanError(
                    f"memory plan: layer {layer.name} would overwrite {name}, needed until layer {dead[name]}"
                )
            _check_reach(program, offsets, index, name, workspaces.get(index, _SCALAR).order)
    _check_states(program, offsets)
    held = list(program.sources)
    for i, name in enumerate(held):
        for other in held[i + 1 :]:
            if name != other and _share(program, offsets, name, other):
                raise PlanError(f"memory plan: inputs {name} and {other} share bytes")


def _check_states(program: Program, offsets: Mapping[str, int]) -> None:
    """What a run leaves is at the states' places when the next one starts, copied there at the end where it is not."""
    outputs = {port.tensor for port in program.outputs}
    for state in program.states:
        if offsets[state.input] == offsets[state.output]:
            continue
        for name in {*outputs, *(other.output for other in program.states)}:
            if name != state.input and _share(program, offsets, state.input, name):
                raise PlanError(f"memory plan: the next value of state {state.name} would overwrite {name}")


class _Reads:
    """Which bytes of every tensor are still to be read.

    `standing`: layers whose output is in place already: a Slice of bytes that stay where they are, a Concat of
    inputs that lie side by side in its place. Such a Slice reads just its part, which lives on under its own name.
    """

    def __init__(self, program: Program, offsets: Mapping[str, int]) -> None:
        self.program, self._offsets = program, offsets
        self._parts: dict[str, list[tuple[int, int, int]]] = {name: [] for name in program.tensors}
        self.standing: set[int] = set()
        for index, layer in enumerate(program.layers):
            stays = isinstance(layer, Slice) and _is_where_it_was(program, offsets, layer)
            if stays or (isinstance(layer, Concat) and _is_joined(program, offsets, layer)):
                self.standing.add(index)
            for name in layer.inputs:
                low, high = 0, program.tensors[name].nbytes
                if isinstance(layer, Slice) and index in self.standing:
                    low = offsets[layer.output] - offsets[name]
                    high = low + program.tensors[layer.output].nbytes
                self._parts[name].append((index, low, high))
        for name in program.results:
            self._parts[name].append((len(program.layers), 0, program.tensors[name].nbytes))

    def share(self, name: str, start: int, nbytes: int, index: int) -> bool:
        """Whether [start, start + nbytes) holds bytes of `name` that layer `index` or a later one reads."""
        at, end = self._offsets[name], start + nbytes
        return any(at + low < end and start < at + high for when, low, high in self._parts[name] if when >= index)


def _is_joined(program: Program, offsets: Mapping[str, int], layer: Concat) -> bool:
    """Whether the inputs lie one behind the other, in the output's units, where the output is."""
    at = offsets[layer.output]
    if any(layer.rescale) or math.prod(program.tensors[layer.output].shape[: layer.axis]) != 1:
        return False
    for name in layer.inputs:
        if offsets[name] != at:
            return False
        at += program.tensors[name].nbytes
    return True


def _is_where_it_was(program: Program, offsets: Mapping[str, int], layer: Slice) -> bool:
    """Whether the slice's elements lie side by side in the input, and the output is just there."""
    elements = _taken(program, layer)
    whole = elements.size == program.tensors[layer.inputs[0]].size
    start = offsets[layer.inputs[0]] + int(elements[0]) * ITEM_BYTES[program.tensors[layer.output].dtype]
    return not whole and bool((np.diff(elements) == 1).all()) and offsets[layer.output] == start


def _taken(program: Program, layer: Slice) -> Times:
    """Which element of the input each of the output is."""
    shape, out = program.tensors[layer.inputs[0]].shape, program.tensors[layer.output].shape
    elements = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    for axis, (count, begin, step) in enumerate(zip(out, layer.begin, layer.step, strict=True)):
        elements = elements.take(begin + step * np.arange(count), axis)
    return elements.reshape(-1)


def _share(program: Program, offsets: Mapping[str, int], a: str, b: str) -> bool:
    start_a, start_b = offsets[a], offsets[b]
    return start_a < start_b + program.tensors[b].nbytes and start_b < start_a + program.tensors[a].nbytes


def _same_bytes(program: Program, layer: Layer) -> bool:
    if isinstance(layer, Transpose):
        shape = program.tensors[layer.inputs[0]].shape
        index = np.arange(math.prod(shape)).reshape(shape)
        return bool(np.array_equal(index.transpose(layer.permutation).reshape(-1), index.reshape(-1)))
    return isinstance(layer, Reshape)


def _check_scratch(
    reads: _Reads, offsets: Mapping[str, int], arena_bytes: int, index: int, live: list[str], workspace: Workspace
) -> None:
    layer = reads.program.layers[index]
    low, high = workspace.offset, workspace.offset + workspace.nbytes
    if workspace.nbytes and (low < 0 or high > arena_bytes or low % 4):
        raise PlanError(f"memory plan: scratch of layer {layer.name} [{low}, {high}) leaves the arena or its alignment")
    start, out = offsets[layer.output], reads.program.tensors[layer.output].nbytes
    for name in live:
        written = name == layer.output and low < start + out and start < high
        if written or reads.share(name, low, workspace.nbytes, index):
            raise PlanError(f"memory plan: scratch of layer {layer.name} [{low}, {high}) overwrites {name}")


def _check_reach(program: Program, offsets: Mapping[str, int], index: int, name: str, order: str) -> None:
    layer = program.layers[index]
    source, out = program.tensors[name], program.tensors[layer.output]
    if order == "plane":
        # Channel c of a pixel is written where channel c of this or another pixel was, copied before.
        same_pixels = source.shape[-1] == out.shape[-1] and out.nbytes <= source.nbytes
        if offsets[name] != offsets[layer.output] or not same_pixels:
            raise PlanError(f"memory plan: layer {index} {layer.name} must lie where its input {name} does, or apart")
        return
    for block in (1, 2):
        replay = _Replay(source.size, out.size)
        for operand, tensor in enumerate(layer.inputs):
            if tensor == name:
                simulate = _ORDERS.get(order) or _SIMULATIONS.get(type(layer))
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


def _copied_blocks(program: Program, layer: Conv2D, operand: int, block: int, replay: _Replay) -> None:
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


def _dense_rows(program: Program, layer: Any, operand: int, block: int, replay: _Replay) -> None:
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


def _slice(program: Program, layer: Slice, operand: int, block: int, replay: _Replay) -> None:
    """What lies side by side is shifted as by memmove: every byte is read before it is overwritten."""
    elements = _taken(program, layer)
    shifted = bool((np.diff(elements) == 1).all())
    replay.last_read[elements] = 0 if shifted else elements.size
    replay.first_write[:] = 0


_Simulation = Callable[[Program, Any, int, int, _Replay], None]
_ORDERS: dict[str, _Simulation] = {"blocks": _copied_blocks, "dense": _dense_rows}
_SIMULATIONS: dict[type[Layer], _Simulation] = {
    **dict.fromkeys((Lut, InterpolatedLut, Unary, Rescale, Softmax, Quantize, Dequantize, Add, Mul, Mean), _straight),
    FullyConnected: _rows,
    **dict.fromkeys((Conv2D, DepthwiseConv2D, Pool2D), _windows),
    Concat: _concat,
    Pad: _pad,
    Slice: _slice,
}
