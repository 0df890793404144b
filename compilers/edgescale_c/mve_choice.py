"""Which layers the mve kernels (firmware/kernels/mve, Armv8.1-M vectors) compute, and their scratch and packed tables.

All but the depthwise convolution touch memory in an order that asks for no more than that of the scalar
kernels: whole pixels, or blocks of channels, are read before they are written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UnsupportedModelError
from edgescale.lower.program import (
    Add,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Layer,
    Lut,
    Mean,
    Mul,
    Pool2D,
    Program,
    Rescale,
)
from edgescale_c import sparse_mve
from edgescale_c.choice import SCALAR, Choice
from edgescale_c.constants import Table
from edgescale_c.dsp_choice import LEAST_TABLED, add_scales, mul_scales, weight_rows
from edgescale_c.geometry import Window, window
from edgescale_c.nibbles import pack_nibbles
from edgescale_c.pack import OutOfDomainError
from edgescale_c.requant import accumulator_bounds, tables

LANES = 16
"""Bytes of a vector."""

_LEAST_SCRATCH = 4096
_MOST_WINDOW = 4  # ES_MVE_WINDOW
_MOST_HELD = 4  # ES_MVE_HELD


def choose(program: Program, layer: Layer) -> Choice:
    """The mve kernel of a layer, else the scalar one and why."""
    chooser = _CHOOSERS.get(type(layer))
    tensors = [program.tensors[name] for name in (*layer.inputs, layer.output)]
    if chooser is None or any(tensor.dtype != "int8" for tensor in tensors):
        return SCALAR
    try:
        found = chooser(program, layer)
        if found.scratch > max(_LEAST_SCRATCH, sum(tensor.nbytes for tensor in tensors)):
            raise OutOfDomainError(f"scratch of {found.scratch} B")
    except OutOfDomainError as reason:
        return Choice(reason=str(reason))
    except UnsupportedModelError:
        return SCALAR  # its emitter says what is wrong
    return found


def _mve(name: str, *, plane: bool = False, scratch: int = 0) -> Choice:
    return Choice(name, "plane" if plane else "scalar", scratch, family="mve")


def _narrow(layer: Conv2D | DepthwiseConv2D | FullyConnected) -> str:
    """What the name of a layer's kernel ends with."""
    return "_w4" if layer.weight_bits == 4 else ""


def scales(program: Program, layer: Conv2D | DepthwiseConv2D | FullyConnected) -> npt.NDArray[np.int32]:
    """Multipliers and minus the shifts to the right, int32 [2, O]. Raises OutOfDomainError."""
    if layer.requant is None:
        raise OutOfDomainError("no rescaling")
    bounds = accumulator_bounds(weight_rows(layer), layer.bias, program.tensors[layer.inputs[0]].zero_point)
    if (bound := int(bounds.max(initial=0))) >= 2**31:
        raise OutOfDomainError("accumulators reach 2^31")
    found = tables(layer.requant, bound, layer.name)
    left = found.shift.astype(np.int32) + (1 if layer.requant.rounding == "single" else 0)
    if int(left.max()) > -1:
        raise OutOfDomainError(f"scale with shift {int(found.shift.max())}")
    return np.stack([np.broadcast_to(row, bounds.shape) for row in (found.multiplier, left)])


def in_pairs(layer: Conv2D | FullyConnected) -> bool:
    """Whether the layer's pixels go two by two, with two channels each, since their taps do not fit registers."""
    return isinstance(layer, Conv2D) and layer.groups == 1 and math.prod(layer.weights.shape[1:]) > LANES * _MOST_HELD


def dense_weights(rows: Table, group: int) -> npt.NDArray[np.int8]:
    """Weights [O, taps] for es_gemm_mve_s8.h: [groups of 4 or 2 channels, blocks of 16 taps, group, 16]."""
    outputs, taps = rows.shape
    groups, blocks = -(-outputs // group), -(-taps // LANES)
    full = np.zeros((groups * group, blocks * LANES), np.int8)
    full[:outputs, :taps] = rows
    return np.ascontiguousarray(full.reshape(groups, group, blocks, LANES).transpose(0, 2, 1, 3))


def dense_nibbles(rows: Table, group: int) -> npt.NDArray[np.int8]:
    """The same of 4-bit weights: [groups, blocks of 16 taps, group / 2, 16], of two channels 16 * w1 + w0 + 8."""
    full = dense_weights(rows, group).astype(np.int16)
    return (full[:, :, 1::2] * 16 + full[:, :, 0::2] + 8).astype(np.int8)


def dense_scales(bias: npt.NDArray[np.int32], scaling: npt.NDArray[np.int32], group: int) -> npt.NDArray[np.int32]:
    """Folded bias [O] and `scales` -> [groups of 4 or 2 channels, 2 * group + 1].

    Biases, multipliers, and a byte a channel of shifts, those of groups of two repeated. Channels that fill a
    group up get -1 as shift.
    """
    full = np.zeros((3, -(-len(bias) // group) * group), np.int32)
    full[2] = -1
    full[0, : len(bias)] = bias
    full[1:, : len(bias)] = scaling
    grouped = full.reshape(3, -1, group)
    shifts = np.ascontiguousarray(np.tile(grouped[2], (1, 4 // group)).astype(np.int8)).view(np.int32)
    return np.concatenate([grouped[0], grouped[1], shifts], axis=1)


@dataclass(frozen=True)
class Planes:
    """`es_mve_planes` of a depthwise convolution, and whether its lines are the image's columns."""

    fields: dict[str, int]
    transposed: bool
    scratch: int


def planes(program: Program, layer: DepthwiseConv2D) -> Planes:
    """Planes with lines along the longer side of the output. Raises OutOfDomainError for windows too large."""
    _, in_h, in_w, in_c = program.tensors[layer.inputs[0]].shape
    _, out_h, out_w, out_c = program.tensors[layer.output].shape
    k_h, k_w, _ = layer.weights.shape
    # input, output, input step, output step, padding before, kernel, stride, dilation
    rows = (in_h, out_h, in_w * in_c, out_w * out_c, layer.padding[0], k_h, layer.stride[0], layer.dilation[0])
    columns = (in_w, out_w, in_c, out_c, layer.padding[1], k_w, layer.stride[1], layer.dilation[1])
    transposed = out_h > out_w
    line, place = (columns, rows) if transposed else (rows, columns)
    lines, pitch = (max((o - 1) * s + (k - 1) * d + 1, p + i) for i, o, _, _, p, k, s, d in (line, place))
    k_lines, reach = line[5], (place[5] - 1) * place[7] + 1
    vectors = -(-reach * k_lines // LANES)
    if vectors > _MOST_WINDOW or k_lines * (LANES - 1) > 255:
        raise OutOfDomainError(f"windows that span {reach * k_lines} taps")
    if lines * pitch * 7 >= 2**16:
        raise OutOfDomainError(f"planes of {lines * pitch} B")
    fields = {
        "in_lines": line[0], "in_places": place[0], "in_line_step": line[2], "in_place_step": place[2],
        "out_lines": line[1], "out_places": place[1], "out_line_step": line[3], "out_place_step": place[3],
        "lines": lines, "pitch": pitch, "pad_line": line[4], "pad_place": place[4], "k_lines": k_lines,
        "stride_line": line[6], "stride_place": place[6], "dilation_line": line[7], "taps": reach * k_lines,
        "channels": in_c, "multiplier": layer.multiplier,
    }  # fmt: skip
    copied = -(-pitch // LANES) * LANES * k_lines
    read = (-(-place[1] // 4) * 4 - 1) * place[6] * k_lines + vectors * LANES
    scratch = 8 * lines * pitch + LANES + max(copied, read)
    return Planes(fields, transposed, -(-scratch // 4) * 4)


def depthwise_weights(layer: DepthwiseConv2D, geometry: Planes) -> npt.NDArray[np.int8]:
    """[O, taps]: place after place of the window, all its lines; zeros between dilated places.

    Of 4 bits: [(O + 1) / 2, taps], two channels a byte, the first in its lower half.
    """
    w = layer.weights if geometry.transposed else layer.weights.transpose(1, 0, 2)
    step = layer.dilation[0] if geometry.transposed else layer.dilation[1]
    places, lines, channels = w.shape
    full = np.zeros((channels, (places - 1) * step + 1, lines), np.int8)
    full[:, ::step] = w.transpose(2, 0, 1)
    rows = full.reshape(channels, -1)
    return rows if layer.weight_bits == 8 else pack_nibbles(rows.T).T


def _conv2d(program: Program, layer: Conv2D) -> Choice:
    scales(program, layer)
    geometry = window(program, layer)
    skipping = sparse_mve.compare(program, layer)
    if skipping.best is not None:
        taps = math.prod(layer.weights.shape[1:])
        scratch = -(-taps // LANES) * LANES * 2
        return Choice(sparse_mve.BLOCKS, scratch=scratch, exploits=skipping.told(), family="mve")
    return replace(_dense_conv2d(layer, geometry), exploits=skipping.told())


def _dense_conv2d(layer: Conv2D, geometry: Window) -> Choice:
    if layer.groups != 1:
        column = -(-math.prod(layer.weights.shape[1:]) // LANES) * LANES
        return _mve(f"conv2d_s8_mve_groups{_narrow(layer)}", scratch=column * layer.groups)
    if geometry.k_h * geometry.k_w == 1 and not geometry.has_border:
        return _mve(f"conv2d_s8_mve_1x1{_narrow(layer)}")
    taps = math.prod(layer.weights.shape[1:])
    return _mve(f"conv2d_s8_mve{_narrow(layer)}", scratch=-(-taps // LANES) * LANES * (2 if in_pairs(layer) else 1))


def _fully_connected(program: Program, layer: FullyConnected) -> Choice:
    scales(program, layer)
    return _mve(f"fully_connected_s8_mve{_narrow(layer)}")


def _depthwise(program: Program, layer: DepthwiseConv2D) -> Choice:
    if layer.requant is not None and layer.requant.rounding == "single":
        raise OutOfDomainError("single rounding")
    scales(program, layer)
    return _mve(f"depthwise_s8_mve{_narrow(layer)}", plane=True, scratch=planes(program, layer).scratch)


def _add(program: Program, layer: Add) -> Choice:
    shapes = {program.tensors[name].shape for name in (*layer.inputs, layer.output)}
    if layer.constant is not None or len(shapes) != 1:
        raise OutOfDomainError("broadcasting")
    add_scales(program, layer)
    return _mve("add_s8_mve")


def _pool2d(program: Program, layer: Pool2D) -> Choice:
    if layer.kind == "max":
        return SCALAR if layer.requant is not None else _mve("max_pool_s8_mve")
    if layer.kernel[1] > 256:
        raise OutOfDomainError("windows above 256 pixels a row")
    return _mve("avg_pool_s8_mve")


def _mean(program: Program, layer: Mean) -> Choice:
    return _mve("mean_s8_mve")


def _mul(program: Program, layer: Mul) -> Choice:
    mul_scales(program, layer)
    return _mve("mul_s8_mve")


def _lut(program: Program, layer: Lut) -> Choice:
    return _mve("lut_s8_mve")


def _rescale(program: Program, layer: Rescale) -> Choice:
    if layer.requant.multiplier.size > 1 or program.tensors[layer.output].size < LEAST_TABLED:
        return SCALAR
    return _mve("rescale_s8_mve")


_CHOOSERS: dict[type[Layer], Callable[[Program, Any], Choice]] = {
    Conv2D: _conv2d,
    FullyConnected: _fully_connected,
    DepthwiseConv2D: _depthwise,
    Add: _add,
    Pool2D: _pool2d,
    Mean: _mean,
    Mul: _mul,
    Lut: _lut,
    Rescale: _rescale,
}
