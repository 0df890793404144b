"""Weights and parameters as the kernels in `kernels/` read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import UnsupportedModelError
from edgescale.lower.program import (
    Add,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Mean,
    Pool2D,
    Requant,
    Softmax,
    Tensor,
)

Bytes = npt.NDArray[np.uint8]
Weighted = Conv2D | DepthwiseConv2D | FullyConnected

_FOUR = 4


@dataclass(frozen=True)
class Call:
    """A kernel (`es_conv_s8`, ...) and its constant arguments."""

    kernel: str
    weights: npt.NDArray[np.generic] | None
    parameters: Bytes

    @property
    def nbytes(self) -> int:
        """Bytes that lie in the artifact for this layer."""
        return self.parameters.nbytes + (0 if self.weights is None else self.weights.nbytes)


def call_of(layer: Weighted, source: Tensor, out: Tensor, offset: int) -> Call:
    """The kernel call that computes a layer. offset: what the kernel adds to activations, 128 or 0 (ES_OFFSET).

    Raises UnsupportedModelError where no kernel does: int16 activations, a rounding that only they have.
    """
    shape = _shape_of(layer, source, out)
    depthwise = isinstance(layer, DepthwiseConv2D)
    kind = "depthwise" if depthwise else "conv"
    if out.dtype == "float32":
        return Call(f"es_{kind}_f32", _real_weights(layer), _parameters(layer, shape, [layer.bias.astype("<f4")]))
    if out.dtype != "int8" or source.dtype != "int8":
        raise UnsupportedModelError(
            f"node {layer.name!r} ({layer.op}): the TVM back end multiplies weights with int8 or float32 activations, "
            f"found {source.dtype} -> {out.dtype}"
        )
    if layer.requant is None or layer.requant.rounding not in ("single", "double"):
        rounding = layer.requant.rounding if layer.requant else None
        raise UnsupportedModelError(
            f"node {layer.name!r} ({layer.op}): rounding {rounding!r}; the TVM back end has 'double' and 'single'"
        )
    if depthwise and layer.requant.rounding == "single":
        raise UnsupportedModelError(
            f"node {layer.name!r} (DepthwiseConv2D): rounding 'single'; depthwise kernels have 'double'"
        )
    bits = 4 if layer.weight_bits <= 4 else 8
    packed, sums = _integer_weights(layer)
    bias = layer.bias.astype(np.int64) - (source.zero_point + offset) * sums
    scales = [
        # Accumulators wrap as int32 does; what a bias carries around, the sum carries back.
        (bias & 0xFFFFFFFF).astype("<u4"),
        *_factors(layer.requant, out.shape[-1]),
    ]
    stored = _nibbles(packed) if bits == 4 else packed.reshape(-1)
    return Call(f"es_{kind}_s{bits}", stored, _parameters(layer, shape, scales))


def softmax_call(layer: Softmax, out: Tensor) -> Call:
    """The kernel call of an int8 softmax. Raises UnsupportedModelError outside the kernel's ranges."""
    channels = out.shape[-1]
    if out.dtype != "int8" or channels > 4095 or not 0 <= layer.input_left_shift <= 31:
        raise UnsupportedModelError(
            f"node {layer.name!r} (Softmax): the TVM back end has int8 with at most 4095 classes and a left shift in "
            f"[0, 31], found {out.dtype}, {channels} and {layer.input_left_shift}"
        )
    # Differences of int8 values are at least -255; beyond the limit the shifted one would leave 32 bits.
    least = max(layer.diff_min, -256, -(2**31 >> layer.input_left_shift))
    fields = [out.size // channels, channels, layer.input_multiplier, layer.input_left_shift, least]
    return Call("es_softmax_s8", None, _integers(fields))


def add_call(layer: Add, sources: list[Tensor], out: Tensor) -> Call | None:
    """The kernel call of a sum of two int8 tensors of one shape; None for another sum."""
    if out.dtype != "int8" or layer.constant is not None or layer.rescale is None or layer.requant is None:
        return None
    steps = [*layer.rescale, layer.requant]
    plain = all(step.multiplier.size == 1 and step.rounding == "double" for step in steps)
    if not plain or any(source.shape != out.shape or source.dtype != "int8" for source in sources):
        return None
    # The kernel multiplies what lies within int32: 255 steps of an operand, then the sum of the two.
    operands = [255 * 2.0 ** (layer.left_shift + max(int(step.shift[0]), 0)) for step in layer.rescale]
    rescaled = [255 * 2.0 ** (layer.left_shift + int(step.shift[0])) for step in layer.rescale]
    if max(*operands, (sum(rescaled) + 2) * 2.0 ** max(int(layer.requant.shift[0]), 0)) >= 2.0**31:
        return None
    zeros = [sources[0].zero_point, sources[-1].zero_point, out.zero_point]
    fields = [out.size, layer.left_shift, int(layer.subtract)]
    for zero, step in zip(zeros, steps, strict=True):
        fields += [zero, int(step.multiplier[0]), int(step.shift[0])]
    return Call("es_add_s8", None, _integers([*fields, *(int(bound) for bound in layer.clamp)]))


def pool_call(layer: Pool2D, source: Tensor, out: Tensor) -> Call | None:
    """The kernel call of an int8 pool in unchanged units; None for another one."""
    if out.dtype != "int8" or layer.requant is not None:
        return None
    how = 0 if layer.kind == "max" else 2 if layer.count_padding else 1
    window = [*layer.kernel, *layer.stride, 1, 1, *layer.padding, how]
    bounds = [int(bound) for bound in layer.clamp]
    shape = [*source.shape[1:], *out.shape[1:], *window, source.zero_point, out.zero_point, 0]
    return Call("es_pool_s8", None, _integers([*shape, *bounds]))


def mean_call(layer: Mean, source: Tensor, out: Tensor) -> Call | None:
    """The kernel call of an int8 mean; None for a float one."""
    if out.dtype != "int8" or layer.requant is None or layer.requant.rounding not in ("double", "single"):
        return None
    height, width, channels = source.shape[1:]
    window = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, source.zero_point, out.zero_point]
    shape = [height, width, channels, 1, 1, channels, *window, int(layer.requant.rounding == "single")]
    bias = np.full(channels, -height * width * source.zero_point, "<i4")
    return Call("es_mean_s8", None, _parameters(layer, shape, [bias, *_factors(layer.requant, channels)]))


def _integers(values: list[int]) -> Bytes:
    return np.frombuffer(np.array(values, "<i4").tobytes(), np.uint8)


def _factors(requant: Requant, channels: int) -> list[npt.NDArray[np.generic]]:
    """Multiplier and shift of every channel."""
    return [
        np.broadcast_to(requant.multiplier, (channels,)).astype("<i4"),
        np.broadcast_to(requant.shift, (channels,)).astype("i1"),
    ]


def _shape_of(layer: Weighted, source: Tensor, out: Tensor) -> list[int]:
    """The integers of `es_layer` up to the clamp."""
    if isinstance(layer, FullyConnected):
        inputs = layer.weights.shape[1]
        rows = source.size // inputs
        sizes = [1, rows, inputs, 1, rows, layer.weights.shape[0]]
        window = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1]
    else:
        sizes = [*source.shape[1:], *out.shape[1:]]
        kernel = layer.weights.shape[:2] if isinstance(layer, DepthwiseConv2D) else layer.weights.shape[1:3]
        many = layer.multiplier if isinstance(layer, DepthwiseConv2D) else layer.groups
        window = [*kernel, *layer.stride, *layer.dilation, *layer.padding, many]
    single = layer.requant is not None and layer.requant.rounding == "single"
    return [*sizes, *window, source.zero_point, out.zero_point, int(single)]


def _parameters(layer: Weighted | Mean, shape: list[int], scales: list[npt.NDArray[np.generic]]) -> Bytes:
    clamp = np.array(layer.clamp, "<f4" if layer.requant is None else "<i4")
    pieces = [np.array(shape, "<i4"), clamp, *scales]
    return np.frombuffer(b"".join(np.ascontiguousarray(piece).tobytes() for piece in pieces), np.uint8)


def _real_weights(layer: Weighted) -> npt.NDArray[np.float32]:
    """[groups][taps and inputs][channels]; a depthwise layer's are that already."""
    weights = layer.weights.astype("<f4")
    if isinstance(layer, DepthwiseConv2D):
        return weights.reshape(-1)
    groups = layer.groups if isinstance(layer, Conv2D) else 1
    grouped = weights.reshape(groups, weights.shape[0] // groups, -1)
    return np.ascontiguousarray(grouped.transpose(0, 2, 1)).reshape(-1)


def _integer_weights(layer: Weighted) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int64]]:
    """Weights [..., channels, 4] in the kernels' order, int8, and their sum a channel."""
    weights = layer.weights.astype(np.int8)
    if isinstance(layer, DepthwiseConv2D):
        taps = weights.reshape(-1, weights.shape[-1])
        sums = taps.sum(axis=0, dtype=np.int64)
        fours = _in_fours(taps, axis=0)
        return np.ascontiguousarray(fours.transpose(0, 2, 1)), sums
    channels = weights.shape[0]
    sums = weights.reshape(channels, -1).sum(axis=1, dtype=np.int64)
    groups = layer.groups if isinstance(layer, Conv2D) else 1
    if isinstance(layer, FullyConnected):
        runs = weights.reshape(channels, 1, -1)
    elif layer.dilation[1] == 1 and groups == 1:  # as es_segments: whole rows of the window
        runs = weights.reshape(channels, weights.shape[1], -1)
    else:
        runs = weights.reshape(channels, weights.shape[1] * weights.shape[2], -1)
    fours = _in_fours(runs, axis=2)
    grouped = fours.reshape(groups, channels // groups, *fours.shape[1:])
    return np.ascontiguousarray(grouped.transpose(0, 2, 3, 1, 4)), sums


def _in_fours(values: npt.NDArray[np.int8], axis: int) -> npt.NDArray[np.int8]:
    """`axis` in steps of four, an axis of its own behind it, zeros at the end."""
    missing = -values.shape[axis] % _FOUR
    widths: list[Any] = [(0, 0)] * values.ndim
    widths[axis] = (0, missing)
    padded = np.pad(values, widths)
    shape = [*padded.shape[:axis], padded.shape[axis] // _FOUR, _FOUR, *padded.shape[axis + 1 :]]
    return padded.reshape(shape)


def _nibbles(packed: npt.NDArray[np.int8]) -> Bytes:
    """Two a byte, the first one low, each 8 more than its value."""
    pairs = (packed.reshape(-1, 2).astype(np.int16) + 8).astype(np.uint8)
    return np.asarray(pairs[:, 0] | (pairs[:, 1] << 4), np.uint8)
