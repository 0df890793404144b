"""How far a layer's output may reach into its input, derived from the order in which kernels read and write.

Every kernel writes its output upwards. At any moment let W be the bytes of output written so far
(from the output's start) and R the lowest byte of the input still to be read (from the input's
start). Nothing is clobbered as long as out + W <= in + R, that is out <= in - (W - R). So the output
may start `distance` = max over time of (W - R) bytes below the input, or more, and share the rest.
The verifier replays the kernels' loops instead and does not use this module.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

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
    Softmax,
    Unary,
)
from edgescale_c.choice import Order
from edgescale_c.geometry import Window, window

_BLOCK = 2
"""Most pixels that the convolution kernels finish at once (ES_TILE_PIXELS)."""

_DSP_BLOCK = 4
"""Pixels that the dsp convolution reads, then writes."""

_FAR = np.int64(2**62)


def distance(program: Program, layer: Layer, buffer_inputs: tuple[int, ...], order: Order = "scalar") -> int | None:
    """Bytes by which the output must start below the operands `buffer_inputs`, which share one buffer.

    order: that of the kernel chosen for the layer.

    Not negative; None where the two must not share a byte (it may also exceed the output's size, which
    means the same).
    """
    worst = 0
    for operand in buffer_inputs:
        found = _operand_distance(program, layer, operand, order)
        if found is None:
            return None
        worst = max(worst, found)
    return worst


def _operand_distance(program: Program, layer: Layer, operand: int, order: Order) -> int | None:
    source, out = program.tensors[layer.inputs[operand]], program.tensors[layer.output]
    item_in, item_out = ITEM_BYTES[source.dtype], ITEM_BYTES[out.dtype]
    if order == "plane":
        return None  # the same place or another one: liveness.py decides
    if order == "blocks":
        return _blocks(window(program, layer))
    if order in ("dense", "rows"):
        return _dense_rows(source.size, out.size, source.size // _row_length(layer))
    if isinstance(layer, (Lut, InterpolatedLut, Unary, Rescale, Softmax, Quantize, Dequantize)):
        return _upwards(source.size, item_in, item_out)
    if isinstance(layer, (Add, Mul)):
        whole = source.size == out.size
        return _upwards(source.size, item_in, item_out) if whole else None
    if isinstance(layer, Mean):
        return _upwards(out.size, item_in, item_out)
    if isinstance(layer, FullyConnected):
        rows = source.size // layer.weights.shape[1]
        return _dense_rows(source.nbytes, out.nbytes, rows)
    if isinstance(layer, Conv2D):
        return _dense(window(program, layer), item_in, item_out)
    if isinstance(layer, DepthwiseConv2D):
        geometry = window(program, layer)
        if layer.multiplier > 1:
            return _dense(geometry, item_in, item_out)
        return _channelwise(geometry, item_in, _BLOCK)
    if isinstance(layer, Pool2D):
        return _channelwise(window(program, layer), item_in, 1)
    if isinstance(layer, Concat):
        return _concat(program, layer, operand)
    if isinstance(layer, Pad):
        return _pad(program, layer)
    return None


def _largest(values: npt.NDArray[np.int64]) -> int:
    return max(0, int(values.max(initial=0)))


def _upwards(steps: int, item_in: int, item_out: int) -> int:
    """Element i is read, then written; after the last read nothing can be lost."""
    return max(0, (steps - 1) * (item_out - item_in))


def first_reads(geometry: Window) -> npt.NDArray[np.int64]:
    """Lowest input element each output pixel reads, in raster order; `_FAR` where it reads only padding."""

    def axis(outputs: int, size: int, kernel: int, stride: int, dilation: int, pad: int) -> npt.NDArray[np.int64]:
        taps = np.arange(outputs)[:, None] * stride - pad + np.arange(kernel)[None, :] * dilation
        real = np.where((taps >= 0) & (taps < size), taps, _FAR)
        lowest: npt.NDArray[np.int64] = real.min(axis=1)
        return lowest

    g = geometry
    rows = axis(g.out_h, g.in_h, g.k_h, g.stride_h, g.dilation_h, g.pad_top)[:, None]
    columns = axis(g.out_w, g.in_w, g.k_w, g.stride_w, g.dilation_w, g.pad_left)[None, :]
    missing = (rows == _FAR) | (columns == _FAR)
    reads = (np.where(missing, 0, rows) * g.in_w + np.where(missing, 0, columns)) * g.in_c
    return np.where(missing, _FAR, reads).reshape(-1)


def _from_here_on(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Least of each value and all after it."""
    return np.minimum.accumulate(values[::-1])[::-1]


def _dense(geometry: Window, item_in: int, item_out: int) -> int:
    """Blocks of up to `_BLOCK` pixels, whose input is read until their last channel is written."""
    reads = _from_here_on(first_reads(geometry))
    pixel = np.arange(reads.size, dtype=np.int64)
    written = np.minimum(pixel + _BLOCK, reads.size) * (geometry.out_c * item_out)
    needed = reads < _FAR
    return _largest(written[needed] - reads[needed] * item_in)


def _row_length(layer: Layer) -> int:
    """Inputs of one row of a layer computed as a dense product."""
    if not isinstance(layer, (FullyConnected, Conv2D)):
        raise TypeError(f"{layer.op} is no dense product")
    return math.prod(layer.weights.shape[1:])


def _dense_rows(source_bytes: int, out_bytes: int, rows: int) -> int:
    """Row after row; a row is read until its last output is written."""
    row = np.arange(rows, dtype=np.int64)
    return _largest((row + 1) * (out_bytes // rows) - row * (source_bytes // rows))


def _blocks(geometry: Window) -> int:
    """Blocks of `_DSP_BLOCK` int8 pixels, each read wholly before it is written."""
    reads = _from_here_on(first_reads(geometry))
    start = np.arange(0, reads.size, _DSP_BLOCK)
    needed = reads[start] < _FAR
    return _largest((start * geometry.out_c - reads[start])[needed])


def _channelwise(geometry: Window, item: int, block: int) -> int:
    """Channel c of a block of pixels is read, then written; channels above c and later pixels come after."""
    reads = first_reads(geometry)
    later = _from_here_on(reads)
    pixel = np.arange(reads.size, dtype=np.int64)
    # After channel c of a block that starts at pixel p: written (p + block - 1) * C + c + 1, still needed base + c + 1.
    last = np.minimum(pixel + block - 1, reads.size - 1)
    needed = reads < _FAR
    within = (last * geometry.out_c - reads)[needed]
    # After whole blocks: q pixels written, pixel q and later ones still to be read.
    needed = later < _FAR
    between = (pixel * geometry.out_c - later)[needed]
    return max(_largest(within), _largest(between)) * item


def _concat(program: Program, layer: Concat, operand: int) -> int:
    """Chunk o of every input in turn is copied to chunk o of the output."""
    out = program.tensors[layer.output]
    count = math.prod(out.shape[: layer.axis])
    chunks = [program.tensors[name].nbytes // count for name in layer.inputs]
    stride = sum(chunks)
    return (count - 1) * (stride - chunks[operand]) + sum(chunks[:operand])


def _pad(program: Program, layer: Pad) -> int:
    """Rows of the last axis are copied upwards; the gap between writing and reading only grows."""
    source, out = program.tensors[layer.inputs[0]], program.tensors[layer.output]
    final = [extent - 1 for extent in source.shape[:-1]] + [0]
    read = written = 0
    for axis, index in enumerate(final):
        read = read * source.shape[axis] + index
        written = written * out.shape[axis] + index + layer.before[axis]
    return (written - read) * ITEM_BYTES[source.dtype]
