"""Ranges of weight blocks cut to the part that keeps a layer's output best, on second moments alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgescale.quantize.blocks import Blocks, at_scale, candidates, check_block, nearest_levels
from edgescale.quantize.rounding import Layout

Real = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]

_CLIPS = tuple(1 - i / 100 for i in range(61))
_COARSE = 5
"""Every so many clips are tried where other blocks are still to be chosen."""


def search_clips(
    matrix: Real,
    layout: Layout,
    second: Real,
    *,
    symmetric: bool,
    alone: bool = False,
    start: Blocks | None = None,
    coarse: bool = False,
) -> Blocks:
    """Weights [outputs, terms] rounded to nearest under the scales that keep x W^T best, [outputs, terms / group].

    Descends on E|(Q(w) - w) x|^2 of each row, one block after the other under the errors of the others, from the best
    blocks for themselves or from `start`; ranges of 1, 0.99, ..., 0.4 of the whole are tried (`coarse`: of 1, 0.95,
    ...), with signed scales both ways round. `second`: E[x x^T] [terms, terms]. alone: each block for itself, for
    roundings that carry a block's error into the next.
    """
    terms = matrix.shape[1]
    block = check_block(matrix.shape, layout.block_size)
    count = -(-terms // block[1])
    clips = _CLIPS[::_COARSE] if coarse else _CLIPS
    every = candidates(
        matrix, layout.form, block, clips, symmetric=symmetric, scale_rule=layout.scale_rule, signed=layout.signed
    )
    chosen = _Choice(matrix, layout, second, every[0] if start is None else (start.scale, start.zero_point))
    if count == 1 or alone:
        chosen.improve(every, together=False)
    else:
        if start is None:
            few = candidates(
                matrix, layout.form, block, _CLIPS[::_COARSE], symmetric=symmetric, scale_rule=layout.scale_rule,
                signed=layout.signed,
            )  # fmt: skip
            chosen.improve(few, together=False)
        chosen.improve(every, together=True)
    return at_scale(matrix, layout.form, block, chosen.scale, chosen.zero_point)


class _Choice:
    """The scales (and zero-points) chosen so far, [outputs, blocks], and the errors they make, [outputs, terms]."""

    def __init__(self, matrix: Real, layout: Layout, second: Real, first: tuple[Real, Real | None]) -> None:
        self._form, self._side = layout.form, min(layout.block_size[1], matrix.shape[1])
        self._weights, self._second = matrix.astype(np.float32), second.astype(np.float32)
        self.scale = first[0].copy()
        self.zero_point = None if first[1] is None else first[1].copy()
        self.change = np.empty_like(self._weights)
        for k in range(self.scale.shape[1]):
            self.change[:, self._part(k)] = self._error(k, first)

    def _part(self, k: int) -> slice:
        return slice(k * self._side, min((k + 1) * self._side, self._weights.shape[1]))

    def _error(self, k: int, tried: tuple[Real, Real | None]) -> Single:
        """Q(w) - w of block k under one of its scales."""
        weights = self._weights[:, self._part(k)]
        step = tried[0][:, k : k + 1].astype(np.float32)
        zero = None if tried[1] is None else tried[1][:, k : k + 1].astype(np.float32)
        levels = nearest_levels(self._form, weights / step, zero)
        return np.asarray(levels * step - weights, np.float32)

    def improve(self, tried: list[tuple[Real, Real | None]], *, together: bool) -> None:
        """Each block's best among `tried` and what it has. together: with the errors of the row's other blocks."""
        for k in range(self.scale.shape[1]):
            part = self._part(k)
            inner = self._second[part, part]
            own = self.change[:, part]
            pull = 2 * (self.change @ self._second[:, part] - own @ inner) if together else np.zeros_like(own)
            least = np.einsum("rt,rt->r", own @ inner + pull, own)
            best = np.full(len(least), -1)
            for i, one in enumerate(tried):
                other = self._error(k, one)
                errors = np.einsum("rt,rt->r", other @ inner + pull, other)
                better = errors < least
                least, best = np.where(better, errors, least), np.where(better, i, best)
            for i in np.unique(best[best >= 0]):
                rows, (scale, zero) = best == i, tried[i]
                self.scale[rows, k] = scale[rows, k]
                if self.zero_point is not None and zero is not None:
                    self.zero_point[rows, k] = zero[rows, k]
            self.change[:, part] = self._error(k, (self.scale, self.zero_point))
