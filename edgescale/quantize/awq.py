"""Activation-aware scaling and clipping of weights (Lin et al., "AWQ"), on second moments alone.

Y = Q(W diag(s)) (diag(s)^-1 X): input channels that carry large activations are scaled up before rounding, so that
their weights lose less. Weights are [outputs, terms], H [terms, terms] the second moment of the layers' input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.quantize.blocks import Blocks, best_of, candidates, check_block, quantize_blocks
from edgescale.quantize.rounding import Layout

Real = npt.NDArray[np.float64]

_EXPONENTS = tuple(i / 20 for i in range(20))
_CLIPS = tuple(1 - i / 20 for i in range(11))
_LEAST = 1e-4


@dataclass(frozen=True)
class InputStatistics:
    """Of a layer's input x: E[x x^T] [terms, terms], E|x| and E[x] [terms]."""

    second: Real
    magnitude: Real
    mean: Real

    def scaled(self, scale: Real) -> InputStatistics:
        """Those of x / scale."""
        return InputStatistics(self.second / np.outer(scale, scale), self.magnitude / scale, self.mean / scale)

    def rotated(self, matrix: Real) -> InputStatistics:
        """Those of x M; E|x M| is bounded by its root mean square, which stands for it."""
        second = matrix.T @ self.second @ matrix
        return InputStatistics(second, np.sqrt(np.maximum(np.diag(second), 0)), self.mean @ matrix)


def search_scales(
    weights: Sequence[Real], layouts: Sequence[Layout], symmetric: Sequence[bool], x: InputStatistics
) -> Real:
    """The scales [terms] under which layers of one input lose least when rounded to nearest.

    s = E|x|^a, a the best of 0, 0.05, ..., 0.95, at least 1e-4, divided by sqrt(max s * min s). The loss is the sum of
    E|(Q(W s) / s - W) x|^2 over the layers; a = 0 leaves them as they are (then all scales are 1).
    """
    second = x.second.astype(np.float32)
    best, least = np.ones(len(x.magnitude)), np.inf
    for exponent in _EXPONENTS:
        scale = np.maximum(x.magnitude**exponent, _LEAST)
        scale = scale / np.sqrt(scale.max() * scale.min())
        loss = 0.0
        for matrix, layout, even in zip(weights, layouts, symmetric, strict=True):
            made = quantize_blocks(
                matrix * scale, layout.form, layout.block_size, symmetric=even, scale_rule=layout.scale_rule,
                signed=layout.signed,
            )  # fmt: skip
            change = (made.real() / scale - matrix).astype(np.float32)
            loss += float(np.sum((change @ second) * change))
        if loss < least:
            best, least = scale, loss
    return best


def search_clips(matrix: Real, layout: Layout, x: InputStatistics, *, symmetric: bool) -> Blocks:
    """Weights rounded to nearest, each block's range cut to the part that keeps the block's output best.

    Ranges of 1, 0.95, ..., 0.5 of the whole are tried; the loss of a block is E|(Q(w) - w) x|^2 over its own terms.
    """
    outputs, terms = matrix.shape
    side = min(layout.block_size[1], terms)
    count = -(-terms // side)
    padded = np.zeros((count * side, count * side), np.float32)
    padded[:terms, :terms] = x.second
    local = np.stack([padded[i : i + side, i : i + side] for i in range(0, count * side, side)])

    def error(made: Blocks) -> Real:
        change = np.zeros((outputs, count * side), np.float32)
        change[:, :terms] = made.real() - matrix
        parts = change.reshape(outputs, count, side).transpose(1, 0, 2)
        return np.asarray(np.einsum("gns,gns->ng", parts @ local, parts), np.float64)

    block = check_block(matrix.shape, layout.block_size)
    tried = candidates(
        matrix, layout.form, block, _CLIPS, symmetric=symmetric, scale_rule=layout.scale_rule, signed=layout.signed
    )
    return best_of(matrix, layout.form, block, tried, error)
