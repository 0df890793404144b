"""Which kernel of the dsp family serves a layer (Cortex-M4, M7, M33), and what it needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.memory import PACKING, Memory
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
from edgescale_c import nibbles, pack, sparse
from edgescale_c.choice import SCALAR, Choice
from edgescale_c.constants import Table
from edgescale_c.requant import accumulator_bounds, rescaled_bound, tables

WIDE = "conv2d_s8_dsp_4x2_wide"
"""The convolution for accumulators around centres of their own."""

WIDE_GROUPS = "conv2d_s8_dsp_groups_wide"
"""The same with several groups."""

_LEAST_SCRATCH = 4096
"""Scratch that is always granted; beyond it no more than the layer's input and output together."""


def choose(program: Program, layer: Layer, memory: Memory = "balanced") -> Choice:
    """The dsp kernel of a layer, or the scalar one and why."""
    chooser = _DSP.get(type(layer))
    if (weighing := _WEIGHING.get(type(layer))) is not None:
        chooser = partial(weighing, memory=memory)
    tensors = [program.tensors[name] for name in (*layer.inputs, layer.output)]
    if chooser is None or any(tensor.dtype != "int8" for tensor in tensors):
        return SCALAR
    try:
        found = chooser(program, layer)
        if found.scratch > max(_LEAST_SCRATCH, sum(tensor.nbytes for tensor in tensors)):
            raise pack.OutOfDomainError(f"scratch of {found.scratch} B")
    except pack.OutOfDomainError as reason:
        return Choice(reason=str(reason))
    except UnsupportedModelError:
        return SCALAR  # its emitter says what is wrong
    return found


def weight_rows(layer: Conv2D | DepthwiseConv2D | FullyConnected) -> Table:
    """Weights as [O, taps]."""
    if isinstance(layer, DepthwiseConv2D):
        return layer.weights.reshape(-1, layer.weights.shape[2]).T
    return layer.weights.reshape(len(layer.weights), -1)


def layer_scales(program: Program, layer: Conv2D | DepthwiseConv2D | FullyConnected) -> pack.Scales:
    """Scales of a layer with weights. Raises OutOfDomainError; UnsupportedModelError for what no kernel takes."""
    if layer.requant is None:
        raise pack.OutOfDomainError("no rescaling")
    bounds = _bounds(program, layer)
    return pack.scales(layer.requant, tables(layer.requant, int(bounds.max(initial=0)), layer.name), bounds)


def _bounds(program: Program, layer: Conv2D | DepthwiseConv2D | FullyConnected) -> pack.Int64s:
    return accumulator_bounds(weight_rows(layer), layer.bias, program.tensors[layer.inputs[0]].zero_point)


def is_single(layer: Add | Conv2D | DepthwiseConv2D | FullyConnected) -> bool:
    """Whether the layer's requantization rounds once."""
    return layer.requant is not None and layer.requant.rounding == "single"


def fill_groups(layer: Conv2D, multiple: int) -> Conv2D:
    """The layer with the channels of each group filled up to a `multiple`, by ones without weights."""
    width = len(layer.weights) // layer.groups
    missing = -width % multiple
    if layer.groups == 1 or not missing:
        return layer

    def filled(values: npt.NDArray[Any], value: int) -> npt.NDArray[Any]:
        grouped = values.reshape(layer.groups, width, *values.shape[1:])
        padding = [(0, 0), (0, missing), *[(0, 0)] * (values.ndim - 1)]
        return np.pad(grouped, padding, constant_values=value).reshape(-1, *values.shape[1:])

    scaling = layer.requant
    if scaling is not None and scaling.multiplier.size > 1:
        scaling = replace(scaling, multiplier=filled(scaling.multiplier, 0), shift=filled(scaling.shift, -2))
    return replace(layer, weights=filled(layer.weights, 0), bias=filled(layer.bias, 0), requant=scaling)


def lanes(layer: Conv2D | FullyConnected) -> int:
    """Output channels whose weights share words."""
    return 4 if layer.weight_bits == 4 else 2


def _groups(program: Program, layer: Conv2D) -> Choice:
    filled = fill_groups(layer, lanes(layer))
    layer_scales(program, filled)
    narrow = layer.weight_bits == 4
    if narrow:
        nibbles.check_groups(weight_rows(filled))
    wide = not narrow and pack.check_pairs(weight_rows(filled), _bounds(program, filled), wide=True)
    if is_single(layer):
        raise pack.OutOfDomainError("single rounding")
    taps = math.prod(layer.weights.shape[1:])
    gathered = 0 if layer.weights.shape[-1] % 4 == 0 else -(-taps // 4) * 4
    columns = -(-taps // 4) * 32 * layer.groups
    name = "conv2d_s8_dsp_groups_w4" if narrow else WIDE_GROUPS if wide else "conv2d_s8_dsp_groups"
    return Choice(name, "blocks", scratch=columns + gathered)


def _conv2d(program: Program, layer: Conv2D, memory: Memory) -> Choice:
    if layer.groups != 1:
        return _groups(program, layer)
    taps = math.prod(layer.weights.shape[1:])
    out = program.tensors[layer.output]
    source = program.tensors[layer.inputs[0]]
    layer_scales(program, layer)
    single_pixel = out.size == layer.weights.shape[0] and source.size == taps and not any(layer.padding)
    narrow = layer.weight_bits == 4
    if single_pixel:
        return _product(program, layer, "conv2d_s8_dsp_dense", taps, memory)
    if is_single(layer):
        raise pack.OutOfDomainError("single rounding")
    columns = -(-taps // 4) * 32
    gathered = 0 if source.shape[-1] % 4 == 0 else -(-taps // 4) * 4
    pixels = out.size // out.shape[-1]
    skipping = sparse.compare_convolution(weight_rows(layer), pixels, layer.weight_bits, memory in PACKING)
    # The least RAM leaves no room for more columns.
    most = max(_LEAST_SCRATCH, source.nbytes + out.nbytes) if memory != "smallest" else columns + gathered
    limited = _obstructed(skipping, layer, lambda found: found.columns * columns + gathered, most)

    def skip(compared: sparse.Comparison) -> Choice | None:
        if (found := compared.best) is None:
            return None
        scratch, told = found.columns * columns + gathered, compared.told()
        return Choice(found.kernel, "blocks", scratch=scratch, exploits=told, packing=compared.packing)

    wider = skip(_obstructed(skipping, layer)) if memory != "smallest" else None
    if (found := skip(limited)) is not None:
        return replace(found, wider=wider if wider is not None and wider.name != found.name else None)
    if narrow:
        nibbles.check_groups(weight_rows(layer))
    wide = not narrow and pack.check_pairs(weight_rows(layer), _bounds(program, layer), wide=True)
    name = "conv2d_s8_dsp_2x4_w4" if narrow else WIDE if wide else "conv2d_s8_dsp_4x2"
    dense = Choice(name, "blocks", scratch=columns + gathered, exploits=limited.told(), packing=limited.packing)
    return replace(dense, wider=wider)


def _obstructed(
    skipping: sparse.Comparison,
    layer: Conv2D | FullyConnected,
    scratch: Callable[[sparse.Candidate], int] = lambda _: 0,
    most: int = 0,
) -> sparse.Comparison:
    """The comparison with what is in the way of each kernel: scratch beyond `most` bytes; more bytes than the weights
    take at four bits, where they have those."""

    def obstacle(found: sparse.Candidate) -> str:
        if (needed := scratch(found)) > most:
            return f"needs {needed:,} B of scratch, {most:,} B are granted"
        if layer.weight_bits == 4 and found.nbytes > skipping.dense_bytes:
            return f"the weights would take {found.nbytes:,} B, at 4 bits they take {skipping.dense_bytes:,} B"
        return ""

    return replace(skipping, candidates=tuple(replace(c, obstacle=obstacle(c)) for c in skipping.candidates))


def _suffix(narrow: bool, wide: bool) -> str:
    """What the name of a dense kernel ends with."""
    return "_w4" if narrow else "_wide" if wide else ""


def _row_scratch(taps: int) -> int:
    return 0 if taps % 4 == 0 else -(-taps // 4) * 4


def _fully_connected(program: Program, layer: FullyConnected, memory: Memory) -> Choice:
    layer_scales(program, layer)
    return _product(program, layer, "fully_connected_s8_dsp_1x8", layer.weights.shape[1], memory)


def _product(program: Program, layer: Conv2D | FullyConnected, name: str, taps: int, memory: Memory) -> Choice:
    """The kernel of rows of `taps` inputs."""
    count = program.tensors[layer.inputs[0]].size // taps
    skipping = sparse.compare_product(weight_rows(layer), count, layer.weight_bits, memory in PACKING)
    skipping = _obstructed(skipping, layer)
    if (found := skipping.best) is not None:
        return Choice(found.kernel, "rows", exploits=skipping.told(), packing=skipping.packing)
    narrow = layer.weight_bits == 4
    if narrow:
        nibbles.check_groups(weight_rows(layer))
    wide = not narrow and pack.check_pairs(weight_rows(layer), _bounds(program, layer), wide=True)
    return Choice(
        f"{name}{_suffix(narrow, wide)}",
        "dense",
        scratch=_row_scratch(taps),
        exploits=skipping.told(),
        packing=skipping.packing,
    )


@dataclass(frozen=True)
class PlaneGeometry:
    """`es_plane` of a depthwise convolution, in its order, and whether rows and columns changed places."""

    fields: dict[str, int]
    transposed: bool

    @property
    def scratch(self) -> int:
        """Bytes of the plane and the two halves after it."""
        return self.fields["lines"] * self.fields["pitch"] * 2 + 4

    @property
    def words(self) -> int:
        """Words of the weights of a channel, where windows are not 3x3."""
        places = self.fields["k_places"]
        return self.fields["k_lines"] * ((places + 1) // 2 if self.fields["dilation_place"] == 1 else places)

    @property
    def is_3x3(self) -> bool:
        """Whether the assembly for 3x3 windows serves: without dilation, places that move by one or two."""
        f = self.fields
        window = f["k_lines"] == f["k_places"] == 3
        return window and f["stride_place"] <= 2 and f["dilation_line"] == f["dilation_place"] == 1


def plane_geometry(program: Program, layer: DepthwiseConv2D) -> PlaneGeometry:
    """The plane of one channel, its lines along the longer side of the output."""
    _, in_h, in_w, in_c = program.tensors[layer.inputs[0]].shape
    _, out_h, out_w, out_c = program.tensors[layer.output].shape
    k_h, k_w, _ = layer.weights.shape
    # (input, output, input step, output step, padding before, kernel, stride, dilation)
    rows = (in_h, out_h, in_w * in_c, out_w * out_c, layer.padding[0], k_h, layer.stride[0], layer.dilation[0])
    columns = (in_w, out_w, in_c, out_c, layer.padding[1], k_w, layer.stride[1], layer.dilation[1])
    transposed = out_h > out_w
    line, place = (columns, rows) if transposed else (rows, columns)
    extent = [max((o - 1) * s + (k - 1) * d + 1, p + i) for i, o, _, _, p, k, s, d in (line, place)]
    fields = {
        "in_lines": line[0], "in_places": place[0], "in_line_step": line[2], "in_place_step": place[2],
        "out_lines": line[1], "out_places": place[1], "out_line_step": line[3], "out_place_step": place[3],
        "lines": extent[0], "pitch": extent[1] + extent[1] % 2, "pad_line": line[4], "pad_place": place[4],
        "k_lines": line[5], "k_places": place[5], "stride_line": line[6], "stride_place": place[6],
        "dilation_line": line[7], "dilation_place": place[7], "channels": in_c, "multiplier": layer.multiplier,
    }  # fmt: skip
    return PlaneGeometry(fields, transposed)


def _depthwise(program: Program, layer: DepthwiseConv2D) -> Choice:
    if is_single(layer):
        raise pack.OutOfDomainError("single rounding")
    layer_scales(program, layer)
    geometry = plane_geometry(program, layer)
    if any(value >= 2**15 for name, value in geometry.fields.items() if not name.endswith("_step")):
        raise pack.OutOfDomainError("more than 32,767 pixels a line or channels")
    name = "depthwise_s8_dsp_3x3" if geometry.is_3x3 else "depthwise_s8_dsp_plane"
    if layer.weight_bits == 4:
        unpacked = 0 if geometry.is_3x3 else -(-geometry.scratch // 4) * 4 - geometry.scratch + 4 * geometry.words
        return Choice(f"{name}_w4", "plane", scratch=geometry.scratch + unpacked)
    return Choice(name, "plane", scratch=geometry.scratch)


@dataclass(frozen=True)
class AddScales:
    """(multiplier, right shift) of both operands, and the scale of their sum."""

    operands: tuple[tuple[int, int], tuple[int, int]]
    total: pack.Scales


def add_scales(program: Program, layer: Add) -> AddScales:
    """Scales of an Add of two int8 tensors of one shape. Raises OutOfDomainError."""
    if layer.rescale is None or layer.requant is None:
        raise pack.OutOfDomainError("no rescaling")
    operands, reach = [], 0
    for name, scaling in zip(layer.inputs, layer.rescale, strict=True):
        span = max(127 - program.tensors[name].zero_point, 128 + program.tensors[name].zero_point) << layer.left_shift
        found = tables(scaling, span, layer.name)
        right = -int(found.shift[0])
        # A zero-point of the other sign reaches 2^left_shift * 256 on the way.
        if found.per_channel or scaling.rounding != "double" or not 0 <= right <= 30 or layer.left_shift > 21:
            raise pack.OutOfDomainError("scale of an operand")
        operands.append((int(found.multiplier[0]), right))
        reach += rescaled_bound(scaling, span)
    total = pack.scales(layer.requant, tables(layer.requant, reach, layer.name), np.array([reach], np.int64))
    if total.per_channel or is_single(layer):
        raise pack.OutOfDomainError("scale of the sum")
    return AddScales((operands[0], operands[1]), total)


def _add(program: Program, layer: Add) -> Choice:
    shapes = {program.tensors[name].shape for name in (*layer.inputs, layer.output)}
    if layer.constant is not None or len(shapes) != 1:
        raise pack.OutOfDomainError("broadcasting")
    add_scales(program, layer)
    return Choice("add_s8_dsp")


def _pool2d(program: Program, layer: Pool2D) -> Choice:
    if layer.kind == "max":
        if layer.requant is not None:
            return SCALAR
        return Choice("max_pool_s8_dsp")
    if math.prod(layer.kernel) > 256:
        raise pack.OutOfDomainError("windows above 256 pixels")
    return Choice("avg_pool_s8_dsp")


def _mean(program: Program, layer: Mean) -> Choice:
    return Choice("mean_s8_dsp")


def mul_scales(program: Program, layer: Mul) -> pack.Scales:
    """Scale of a Mul, one for all channels. Raises OutOfDomainError."""
    if layer.requant is None or layer.requant.rounding == "single":
        raise pack.OutOfDomainError("scale of the product")
    zero_points = [program.tensors[name].zero_point for name in layer.inputs]
    zero_points += [] if layer.constant is None else [layer.constant_zero_point]
    bound = math.prod(max(127 - zero, 128 + zero) for zero in zero_points)
    found = pack.scales(layer.requant, tables(layer.requant, bound, layer.name), np.array([bound], np.int64))
    if found.per_channel:
        raise pack.OutOfDomainError("scales of channels")
    return found


def _mul(program: Program, layer: Mul) -> Choice:
    mul_scales(program, layer)
    return Choice("mul_s8_dsp")


def _lut(program: Program, layer: Lut) -> Choice:
    return Choice("lut_s8_dsp")


LEAST_TABLED = 1024
"""Elements from which on a Rescale is a table of 256 bytes."""


def _rescale(program: Program, layer: Rescale) -> Choice:
    if layer.requant.multiplier.size > 1 or program.tensors[layer.output].size < LEAST_TABLED:
        return SCALAR
    return Choice("rescale_s8_dsp")


_WEIGHING: dict[type[Layer], Callable[..., Choice]] = {Conv2D: _conv2d, FullyConnected: _fully_connected}
"""Layers with several kernels, among which what `memory` asks for decides."""

_DSP: dict[type[Layer], Callable[[Program, Any], Choice]] = {
    DepthwiseConv2D: _depthwise,
    Add: _add,
    Pool2D: _pool2d,
    Mean: _mean,
    Mul: _mul,
    Lut: _lut,
    Rescale: _rescale,
}
