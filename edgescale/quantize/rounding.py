"""Choosing levels that keep a layer's output, not its weights: coordinate descent and GPTQ on second moments.

Both minimise E|(s q - w*) x|^2 = (s q - w*) H (s q - w*)^T over levels q, row by row, H the second moment of the
quantized layer's input. Arrays are [groups, rows, terms], H [groups, terms, terms].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.quantize.blocks import Blocks, Shape, constrain, covering, spread
from edgescale.quantize.formats import Format
from edgescale.quantize.moments import Summary

Real = npt.NDArray[np.float64]

FOLLOWED = 0.75
"""How far the target moves from the float layer on the quantized input (0) to the regression of the float output on
that input (1): all the way, noise in the input shrinks the weights (regression dilution), and layer adds to layer."""
DAMPING = 3e-3
"""Pull towards the float weights, as a share of the mean input power."""
GPTQ_DAMPING = 1e-2
_CLIPS = np.linspace(0.4, 1.1, 15)
_SWEEPS = 6
_COLUMNS = 64
"""Columns updated one by one before the rest of the row follows in one matrix product."""
_WORK = 2e8
"""Row updates (scales tried x outputs x terms^2) a sweep may cost."""


@dataclass(frozen=True)
class Layout:
    """A layer's weights in a format: blocks of `block_size` on the channels-first `shape` [outputs, inputs, ...].

    signed: scales may be below zero.
    """

    form: Format
    shape: Shape
    block_size: Shape
    scale_rule: str = ""
    signed: bool = False


def reconstruct(matrix: Real, summary: Summary, layout: Layout) -> Blocks:
    """Levels and scales for weights [outputs, terms] that reproduce the float output from the quantized input.

    AdaRound's objective with the asymmetric target, over all levels instead of the two neighbours: several clips a
    block, each optimised by exact coordinate descent, the best kept row by row. Weights of zero stay zero.
    """
    groups, _, terms = summary.xx.shape
    weights = matrix.reshape(groups, -1, terms)
    damp = DAMPING * np.einsum("gii->g", summary.xx)[:, None, None] / terms + 1e-12
    hessian = summary.xx + damp * np.eye(terms)
    followed = summary.yx.reshape(weights.shape)
    wanted = FOLLOWED * followed + (1 - FOLLOWED) * weights @ summary.xx + damp * weights
    target = np.linalg.solve(hessian, wanted.transpose(0, 2, 1)).transpose(0, 2, 1)
    full = covering(matrix.reshape(layout.shape), layout.form, layout.block_size, signed=layout.signed)
    clips = _clips(matrix.shape[0] * terms * terms, weights, full, hessian, layout)
    scales = [constrain(full * clip, layout.scale_rule) for clip in clips]
    wide = [spread(scale, layout.shape, layout.block_size).reshape(weights.shape) for scale in scales]
    # All clips descend together, as more rows of one problem.
    live = np.tile(weights != 0, (1, len(clips), 1))
    levels, cost = descend(
        np.tile(target, (1, len(clips), 1)), hessian, np.concatenate(wide, axis=1), layout.form, live
    )
    rows = weights.shape[1]
    best = cost.reshape(groups, len(clips), rows).argmin(axis=1)
    taken = levels.reshape(groups, len(clips), rows, terms)[np.arange(groups)[:, None], best, np.arange(rows)]
    chosen = scales[0]
    if full.shape[0] == layout.shape[0]:
        chosen = np.stack(scales)[best.reshape(-1), np.arange(layout.shape[0])]
    return Blocks(taken.reshape(layout.shape), chosen, None, layout.block_size)


def _clips(work: float, weights: Real, full: Real, hessian: Real, layout: Layout) -> list[float]:
    """The clips to descend from: all of them in small layers, else those of the least rounding error.

    A scale that rows share is chosen once for all of them, by the error weighted with the input's power.
    """
    power = np.einsum("gii->gi", hessian)[:, None, :]
    errors = []
    for clip in _CLIPS:
        scale = constrain(full * clip, layout.scale_rule)
        wide = spread(scale, layout.shape, layout.block_size).reshape(weights.shape)
        errors.append(float(np.sum((layout.form.nearest(weights / wide) * wide - weights) ** 2 * power)))
    count = 1 if full.shape[0] != layout.shape[0] else int(np.clip(_WORK / work, 2, _CLIPS.size))
    return [float(_CLIPS[i]) for i in sorted(np.argsort(errors)[:count])]


def descend(
    target: Real, hessian: Real, scale: Real, form: Format, live: npt.NDArray[np.bool_] | None = None
) -> tuple[Real, Real]:
    """(levels, error of each row): from the nearest levels, one column after the other to its exact optimum.

    Each step lowers (s q - t) H (s q - t)^T or leaves it; ends when a sweep changes nothing, after _SWEEPS at most.
    Levels that are not `live` (all are where it is None) are zero.
    """
    live = np.ones(target.shape, np.bool_) if live is None else live
    levels = np.where(live, form.nearest(target / scale), 0.0)
    slope = (scale * levels - target) @ hessian
    power = np.einsum("gii->gi", hessian)
    terms = target.shape[-1]
    for _ in range(_SWEEPS):
        moved = False
        for start in range(0, terms, _COLUMNS):
            block = slice(start, min(start + _COLUMNS, terms))
            inner, local = hessian[:, block, block], slope[:, :, block].copy()
            before = levels[:, :, block].copy()
            for j in range(block.stop - start):
                step = scale[:, :, start + j]
                old = levels[:, :, start + j]
                new = form.nearest(old - local[:, :, j] / (step * power[:, None, start + j]))
                new = np.where(live[:, :, start + j], new, 0.0)
                change = (new - old) * step
                if not change.any():
                    continue
                levels[:, :, start + j] = new
                local += change[:, :, None] * inner[:, None, j]
            change = (levels[:, :, block] - before) * scale[:, :, block]
            if change.any():
                moved = True
                slope += change @ hessian[:, block]
        if not moved:
            break
    error = scale * levels - target
    return levels, np.asarray(np.einsum("grt,grt->gr", error, slope))


def gptq(matrix: Real, summary: Summary, layout: Layout, scale: Real, zero_point: Real | None = None) -> Blocks:
    """Round weights [outputs, terms] column by column; the rest of the row absorbs each column's error.

    Frantar et al., "GPTQ": with U the upper Cholesky factor of H^-1, the columns behind j lose
    (w_j - s q_j) / U_jj * U_j. Columns go in the order of falling input power; weights of zero stay zero.
    scale, zero_point: one a block.
    """
    groups, _, terms = summary.xx.shape
    rows = matrix.reshape(groups, -1, terms).copy()
    wide = spread(scale, layout.shape, layout.block_size).reshape(rows.shape)
    offset = np.zeros(1) if zero_point is None else spread(zero_point, layout.shape, layout.block_size)
    offset = np.broadcast_to(offset.reshape(-1 if zero_point is None else rows.shape), rows.shape)
    levels = np.empty_like(rows)
    for group in range(groups):
        hessian = summary.xx[group]
        power = np.diag(hessian)
        damped = hessian + (GPTQ_DAMPING * float(power.mean()) + 1e-12) * np.eye(terms)
        order = np.argsort(-power, kind="stable")
        upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
        # Columns as rows: each is one stretch of memory.
        left, steps = (np.ascontiguousarray(part[group][:, order].T) for part in (rows, wide))
        live = np.ascontiguousarray(rows[group][:, order].T) != 0
        zeros = np.ascontiguousarray(offset[group][:, order].T)
        for start in range(0, terms, _COLUMNS):
            block = slice(start, min(start + _COLUMNS, terms))
            errors = np.empty((block.stop - start, left.shape[1]))
            for k, j in enumerate(range(start, block.stop)):
                level = np.where(live[j], layout.form.nearest(left[j] / steps[j] + zeros[j]), zeros[j])
                levels[group][:, order[j]] = level
                errors[k] = (left[j] - (level - zeros[j]) * steps[j]) / upper[j, j]
                left[j + 1 : block.stop] -= upper[j, j + 1 : block.stop, None] * errors[k]
            left[block.stop :] -= upper[block, block.stop :].T @ errors
    return Blocks(levels.reshape(layout.shape), scale, zero_point, layout.block_size)
