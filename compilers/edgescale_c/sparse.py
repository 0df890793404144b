"""Kernels that skip zero weights (firmware/kernels/dsp): their tables, and whether they take fewer instructions.

Costs are instructions of the inner loops and of what comes with each output channel, as the assembly has them; what
both kernels of a layer share (columns, calls) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale_c.constants import Table
from edgescale_c.pack import OutOfDomainError, Words

BLOCKS = "conv2d_s8_dsp_4x1_sparse"
"""Convolutions of blocks of four taps."""
ENTRIES = "fully_connected_s8_dsp_sparse"
"""Products of single weights with the step to each."""

_QUAD = 4
_MOST = 255
_MENTIONED = 0.4
"""Share of zero weights from which on a layer is told why they do not help."""


@dataclass(frozen=True)
class Comparison:
    """Instructions of a layer for four pixels (or one row) by the kernel that skips zeros and by the dense one."""

    sparse: float
    dense: float
    zeros: float
    unit: str

    @property
    def pays(self) -> bool:
        """Whether skipping takes fewer."""
        return self.sparse < self.dense

    @property
    def reason(self) -> str:
        """Why a layer of many zeros is computed as if it had none; "" where it has few."""
        if self.pays or self.zeros < _MENTIONED:
            return ""
        more = self.sparse / self.dense - 1
        return f"{self.zeros:.0%} of the weights are zero; skipping {self.unit} would take {more:.0%} more instructions"


def compare_blocks(rows: Table) -> Comparison:
    """For weights [O, taps] of a convolution."""
    live = np.maximum(_live_quads(rows).sum(axis=1), 1)
    outputs, quads = len(rows), -(-rows.shape[1] // _QUAD)
    dense = -(-outputs // 2) * (24.0 * quads + 3 * -(-quads // 4) + 84)
    return Comparison(float(17 * live.sum() + 46 * outputs), dense, float((rows == 0).mean()), "blocks of four")


def compare_entries(rows: Table) -> Comparison:
    """For weights [O, taps] of a fully connected layer, by their non-zero weights alone."""
    words = -(-(rows != 0).sum(axis=1) // 2)
    outputs, quads = len(rows), -(-rows.shape[1] // _QUAD)
    dense = outputs / 8 * (31.0 * quads + 3 * -(-quads // 4)) + 22 * outputs
    return Comparison(float(9 * words.sum() + 36 * outputs), dense, float((rows == 0).mean()), "them")


def block_words(rows: Table) -> Words:
    """Weights [O, taps] for es_gemm_sparse_s8.h, flat. Raises OutOfDomainError."""
    quads = _quads(rows)
    live = _live_quads(rows)
    places: list[int] = []
    blocks: list[npt.NDArray[np.int8]] = []
    for channel, mask in zip(quads, live, strict=True):
        at = np.flatnonzero(mask)
        at = at if at.size else np.zeros(1, np.int64)
        steps = np.diff(at, prepend=-1) - 1
        if len(at) > _MOST or int(steps.max()) > _MOST:
            raise OutOfDomainError(f"more than {_MOST} blocks, or blocks of zeros, in a row")
        places += [len(at), *(int(step) for step in steps)]
        blocks.append(channel[at])
    data = np.concatenate(blocks).astype(np.int8)
    filled = np.zeros(-(-len(places) // 4) * 4, np.uint8)
    filled[: len(places)] = places
    words = np.ascontiguousarray(data).view("<u4").reshape(-1).astype(np.uint32)
    return np.concatenate([np.array([len(words)], np.uint32), words, filled.view("<u4").astype(np.uint32)])


@dataclass(frozen=True)
class Entries:
    """words [all entries / 2] and how many of them belong to each output [O]."""

    words: Words
    counts: npt.NDArray[np.uint16]


def entry_words(rows: Table) -> Entries:
    """Weights [O, taps] for es_dense_sparse_s8.h. Raises OutOfDomainError."""
    every: list[int] = []
    counts: list[int] = []
    for row in rows:
        entries: list[tuple[int, int]] = []
        before = 0
        for at in np.flatnonzero(row):
            step = int(at) - before
            while step > _MOST:
                entries.append((_MOST, 0))
                step -= _MOST
            entries.append((step, int(row[at])))
            before = int(at)
        if len(entries) % 2:
            entries.append((0, 0))
        counts.append(len(entries) // 2)
        every += [byte for step, weight in entries for byte in (step, weight & 0xFF)]
    if max(counts) >= 2**16:
        raise OutOfDomainError("more than 131,070 weights an output")
    packed = np.array(every or [0] * 4, np.uint8).view("<u4").astype(np.uint32)
    return Entries(packed, np.array(counts, np.uint16))


def _quads(rows: Table) -> npt.NDArray[np.int8]:
    """[O, quads, 4], filled with zeros."""
    outputs, taps = rows.shape
    full = np.zeros((outputs, -(-taps // _QUAD) * _QUAD), np.int8)
    full[:, :taps] = rows
    return full.reshape(outputs, -1, _QUAD)


def _live_quads(rows: Table) -> npt.NDArray[np.bool_]:
    return np.asarray((_quads(rows) != 0).any(axis=2))
