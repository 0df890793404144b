"""A MatMul or Gemm whose weights alone are quantized, before and after."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.core.recipe import Recipe
from edgescale.frontend.graph import constant, input_at, is_op, only_consumer
from edgescale.quantize.blocks import Blocks
from edgescale.quantize.layers import layout_of
from edgescale.quantize.patches import Product
from edgescale.quantize.rotation import apply_blocks
from edgescale.quantize.rounding import Layout

Real = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Linear:
    """A MatMul or Gemm y = x W^T (+ b) to be quantized under `recipe`; `product` reads its weights [outputs, terms]."""

    node: ir.Node
    recipe: Recipe
    product: Product

    @property
    def source(self) -> ir.Value:
        """The input x."""
        value = self.node.inputs[0]
        if value is None:
            raise ValueError(f"{self.node.name}: no input")
        return value

    @property
    def layout(self) -> Layout:
        """Format and blocks of the weights."""
        return replace(layout_of(self.product, self.recipe), signed=self.recipe.signed_scales)

    def matrix(self) -> Real:
        """The float weights, [outputs, terms]."""
        weights = constant(self.node.inputs[1])
        if weights is None:
            raise ValueError(f"{self.node.name}: chosen without constant weights")
        return self.product.matrix(weights)


@dataclass(frozen=True)
class Rounded:
    """What becomes of a Linear: y = ((x / scale) M) Q^T + (x / scale) M A B + bias.

    blocks: Q [outputs, terms]; scale [terms] of the input or None (1); rotation: the block of M or None; low_rank:
    (A [terms, rank], B [rank, outputs]) or None; bias: a new value of the layer's bias [outputs] or None (as it is).
    """

    linear: Linear
    blocks: Blocks
    scale: Real | None
    rotation: Real | None
    low_rank: tuple[Real, Real] | None
    bias: Real | None

    def effective(self) -> Real:
        """W [outputs, terms] of the same layer on x itself, without its bias."""
        matrix = self.blocks.real()
        if self.low_rank is not None:
            matrix = matrix + (self.low_rank[0] @ self.low_rank[1]).T
        if self.rotation is not None:
            matrix = apply_blocks(matrix, self.rotation.T)
        return matrix if self.scale is None else matrix / self.scale

    def divided(self, factors: Real) -> Rounded:
        """The same layer with its outputs divided by `factors` [outputs]."""
        scale = np.broadcast_to(self.blocks.scale, (len(factors), self.blocks.scale.shape[1])) / factors[:, None]
        zero = self.blocks.zero_point
        zero = None if zero is None else np.broadcast_to(zero, scale.shape)
        block = (1, self.blocks.block_size[1])
        blocks = Blocks(self.blocks.values, scale.astype(np.float32).astype(np.float64), zero, block)
        low_rank = None if self.low_rank is None else (self.low_rank[0], self.low_rank[1] / factors)
        return replace(self, blocks=blocks, low_rank=low_rank, bias=None if self.bias is None else self.bias / factors)


def bias_user(node: ir.Node) -> tuple[ir.Node, int] | None:
    """(node, input) that adds a constant per output to a layer: the Gemm itself, or the Add behind a MatMul."""
    outputs = constant(node.inputs[1])
    if outputs is None:
        return None
    if is_op(node, "Gemm"):
        return (node, 2) if constant(input_at(node, 2)) is not None else None
    after = only_consumer(node.outputs[0])
    if after is None or not is_op(after, "Add"):
        return None
    index = 1 if after.inputs[0] is node.outputs[0] else 0
    array = constant(after.inputs[index])
    return (after, index) if array is not None and array.shape == (outputs.shape[1],) else None
