"""One layer's weights: the format a recipe asks for, rounding, and what is stored of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.core.recipe import Recipe
from edgescale.quantize.blocks import Blocks, quantize_blocks, spread
from edgescale.quantize.formats import weight_format
from edgescale.quantize.patches import Product
from edgescale.quantize.rounding import Layout
from edgescale.quantize.units import BIAS_LIMIT, SMALLEST_SCALE

Array = npt.NDArray[np.generic]
Real = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stored:
    """A layer's constants as they are written.

    values: integers in the node's own shape, or float32 where the format is simulated (`scale` is then None);
    bits: storage of one weight; scale: float32, [outputs] along `axis`, or of the weights' rank with `block` elements
    an entry along `axis`; zero_point: of the scale's shape, None where all are 0. bias: int32 with `bias_scale`
    [outputs], or float32 without, or None.
    """

    values: Array
    bits: int
    scale: npt.NDArray[np.float32] | None
    zero_point: Array | None
    axis: int
    block: int
    bias: Array | None
    bias_scale: npt.NDArray[np.float32] | None

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights alone, codes packed."""
        return -(-self.values.size * (32 if self.scale is None else self.bits) // 8)

    def real(self) -> Real:
        """The weights these stand for, float64 of the node's shape."""
        if self.scale is None:
            return self.values.astype(np.float64)
        zero = np.zeros(self.scale.shape) if self.zero_point is None else self.zero_point.astype(np.float64)
        scale = self.scale.astype(np.float64)
        if self.block:
            block = tuple(self.block if a == self.axis else 1 for a in range(self.values.ndim))
            scale, zero = spread(scale, self.values.shape, block), spread(zero, self.values.shape, block)
        else:
            shape = tuple(-1 if a == self.axis else 1 for a in range(self.values.ndim))
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        return np.asarray((self.values.astype(np.float64) - zero) * scale)

    def real_bias(self) -> Real | None:
        """The bias this stands for, [outputs], or None."""
        if self.bias is None or self.bias_scale is None:
            return None if self.bias is None else self.bias.astype(np.float64)
        return np.asarray(self.bias.astype(np.float64) * self.bias_scale.astype(np.float64))


def layout_of(product: Product, recipe: Recipe) -> Layout:
    """Format and blocks of a layer's weights under its recipe.

    A group of n runs along the input channels; layers of no more than n input channels keep one scale a channel.
    """
    shape = product.channels_first
    form = weight_format(recipe.weight_format, recipe.weight_bits)
    block: tuple[int, ...] = (1, *shape[1:])
    if recipe.group == "tensor":
        block = shape
    elif recipe.group and shape[1] > recipe.group:
        block = (1, recipe.group, *(1,) * (len(shape) - 2))
    return Layout(form, shape, block, recipe.scale_rule)


def round_to_nearest(product: Product, weights: Array, recipe: Recipe) -> Blocks:
    """A layer's weights (the node's shape) rounded to nearest, as blocks of the channels-first shape."""
    layout = layout_of(product, recipe)
    return quantize_blocks(
        np.moveaxis(np.asarray(weights, np.float64), product.axis, 0),
        layout.form,
        layout.block_size,
        symmetric=recipe.symmetric,
        search="mse" in recipe.steps,
        scale_rule=layout.scale_rule,
    )


def store(product: Product, blocks: Blocks, bias: Array | None, recipe: Recipe, input_scale: float | None) -> Stored:
    """Blocks of the channels-first shape and a float bias [outputs] as the constants to write.

    input_scale: of the activations that come in; None where they stay float, and the bias with them. A channel
    whose bias would pass 2^30 units gets a larger scale (it is then all but constant, its weights below what its bias
    resolves).
    """
    if recipe.weight_format != "int":
        real = product.weights(blocks.real()).astype(np.float32)
        return Stored(real, recipe.weight_bits, None, None, product.axis, 0, _float32(bias), None)
    if max(blocks.scale.shape[1:], default=1) > 1:
        return _store_groups(product, blocks, bias, recipe)
    outputs = product.outputs
    scale = np.broadcast_to(blocks.scale.reshape(-1), (outputs,)).astype(np.float64)
    scale = np.maximum(scale, SMALLEST_SCALE)
    if bias is not None and input_scale is not None:
        need = np.abs(np.asarray(bias, np.float64)) / (input_scale * BIAS_LIMIT)
        scale = np.maximum(scale, need * (1 + 2.0**-20))  # room for rounding the scale to float32
    stored = scale.astype(np.float32)
    values, zero = blocks.values.reshape(outputs, -1), None
    if blocks.zero_point is not None:
        zero = np.broadcast_to(blocks.zero_point.reshape(-1), (outputs,)).astype(np.int8)
    else:
        # The ratio is 1 but for channels whose scale was raised above.
        ratio = np.broadcast_to(blocks.scale.reshape(-1), (outputs,)) / stored.astype(np.float64)
        values = np.where(np.abs(ratio - 1)[:, None] > 1e-6, np.rint(values * ratio[:, None]), values)
    integers = product.weights(values.reshape(blocks.values.shape)).astype(np.int8)
    if bias is None or input_scale is None:
        return Stored(integers, recipe.weight_bits, stored, zero, product.axis, 0, _float32(bias), None)
    bias_scale = (np.float32(input_scale) * stored).astype(np.float32)
    exact = np.rint(np.asarray(bias, np.float64) / bias_scale.astype(np.float64))
    steps = np.clip(exact, -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32)
    return Stored(integers, recipe.weight_bits, stored, zero, product.axis, 0, steps, bias_scale)


def _store_groups(product: Product, blocks: Blocks, bias: Array | None, recipe: Recipe) -> Stored:
    """Scales along the input channels: written as blocks of that axis, where ONNX wants every other axis whole."""
    rank = blocks.values.ndim
    own = product.axis
    axis = 1 if own == 0 else 0

    def back(part: Any, kind: Any) -> Any:
        return np.ascontiguousarray(np.moveaxis(part, 0, own)).astype(kind)

    if rank != blocks.scale.ndim:
        raise ValueError("scales of another rank than the weights")
    zero = None if blocks.zero_point is None else back(blocks.zero_point, np.int8)
    scale = np.maximum(blocks.scale, SMALLEST_SCALE)
    return Stored(
        back(blocks.values, np.int8), recipe.weight_bits, back(scale, np.float32), zero, axis, blocks.block_size[1],
        _float32(bias), None,
    )  # fmt: skip


def _float32(bias: Array | None) -> Array | None:
    return None if bias is None else np.asarray(bias, np.float32)
