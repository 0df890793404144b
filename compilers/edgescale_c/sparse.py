"""Kernels that skip zero weights (firmware/kernels/dsp): whether they take fewer instructions, and which.

Costs are instructions of the inner loops and of what comes with each output channel, as the assembly has them; of the
columns, what they cost more than those of the dense kernel; what both kernels of a layer share (calls) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgescale_c import sparse_tables
from edgescale_c.choice import Packing
from edgescale_c.constants import Table

BLOCKS = "conv2d_s8_dsp_sparse_blocks"
"""Convolutions by blocks of four taps."""
PAIRS = "conv2d_s8_dsp_sparse_pairs"
"""Convolutions by pairs of taps of a block."""
ENTRIES = "fully_connected_s8_dsp_sparse"
"""Products of single weights with the step to each, a byte."""
PACKED = "fully_connected_s8_dsp_packed"
"""The same, steps of four bits."""

MENTIONED = 0.4
"""Share of zero weights from which on it is told what comes of them."""
LEAST = 0.25
"""Share of zero weights from which on kernels that skip are looked at: layers are dense below."""
SLOWEST = 1.5
"""The most that a layer may take beside its dense kernel where flash counts for more than instructions."""
_WORTH = 0.95
"""Share of its bytes to which packing must bring a layer to be worth another kernel."""
PIXELS = 4
"""That a convolution finishes in a pass over its weights."""

_CHANNEL_BYTES = 9
"""Bias, multiplier and shift."""
_LOADS = 0.12
"""Of what convolutions that skip do, more are loads of several words, which take a cycle a word: by the cycle tables of
Cortex-M3 and M4 (edgescale/rigs) as many instructions as this must go before the time does."""
_CONSTANT = 10
"""Instructions of a channel without weights."""
_ALL_PAIRS = 44
"""Instructions that all pairs of a block's taps cost in the columns of four pixels, beyond the dense kernel's two."""
_MOST_ENTRIES = 2**15
"""Of an output: so many are counted in any form."""


@dataclass(frozen=True)
class Candidate:
    """A kernel that skips: what it skips in words, its instructions in a pass, the bytes of its weights with all that
    lies among them, and how many times the columns of the dense kernel its own take. slower: share of the dense
    kernel's instructions that have to be saved before cycles are; obstacle: what keeps the layer from it, however few
    instructions it takes, "" where nothing does."""

    kernel: str
    unit: str
    instructions: float
    nbytes: int
    columns: int = 1
    slower: float = 0.0
    obstacle: str = ""


@dataclass(frozen=True)
class Comparison:
    """Kernels that skip beside the dense one, for a layer of `passes` passes over its weights. pack: whether flash
    counts for more than instructions; basis: words that follow the figures."""

    dense: float
    dense_bytes: int
    passes: int
    zeros: float
    candidates: tuple[Candidate, ...]
    pack: bool = False
    basis: str = ""

    @property
    def best(self) -> Candidate | None:
        """The candidate that beats the dense kernel by most and has nothing in its way: of fewest instructions; to
        pack, of fewest bytes at no more than SLOWEST times the instructions."""
        able = [found for found in self.candidates if not found.obstacle]
        plain = min(filter(self._pays, able), key=lambda found: found.instructions, default=None)
        if not self.pack:
            return plain
        most = _WORTH * (self.dense_bytes if plain is None else plain.nbytes)
        small = [found for found in able if found.nbytes < most and found.instructions <= SLOWEST * self.dense]
        return min(small, key=lambda found: (found.nbytes, found.instructions), default=plain)

    def _pays(self, found: Candidate) -> bool:
        return found.instructions < (1 - found.slower) * self.dense

    @property
    def packing(self) -> Packing | None:
        """What the choice for flash saves and costs beside the one for instructions; None where they are the same."""
        plain, packed = replace(self, pack=False).best, replace(self, pack=True).best
        nbytes, instructions = (self.dense_bytes, self.dense) if plain is None else (plain.nbytes, plain.instructions)
        if packed is None or packed.nbytes >= nbytes:
            return None
        return Packing(nbytes - packed.nbytes, round((packed.instructions - instructions) * self.passes))

    def told(self) -> str:
        """What comes of the zeros, in words; "" where they are few."""
        if self.zeros < MENTIONED or not self.candidates:
            return ""
        found = self.best
        if found is not None:
            return f"skipping {found.unit} takes {self._beside(found)}"
        found = min(self.candidates, key=lambda candidate: candidate.instructions)
        slow = "too few to save time" if found.instructions < self.dense else ""
        obstacle = f", but {reason}" if (reason := found.obstacle or slow) else ""
        return f"nothing: skipping {found.unit} would take {self._beside(found)}{obstacle}"

    def _beside(self, found: Candidate) -> str:
        """Its instructions in a run, and its bytes, beside those of the dense kernel."""
        more, longer = found.instructions - self.dense, found.nbytes - self.dense_bytes
        kind, size = ("fewer" if value < 0 else "more" for value in (more, longer))
        return (
            f"{abs(more) / self.dense:.0%} {kind} instructions ({abs(more) * self.passes:,.0f} {kind}) and "
            f"{abs(longer):,} B {size}{self.basis}"
        )


def _dense_bytes(rows: Table, bits: int) -> int:
    """Weights of the dense kernels, with a channel's bias, multiplier and shift."""
    outputs, taps = rows.shape
    return int(-(-outputs // 2) * 2 * -(-taps // 4) * 4 * bits // 8 + _CHANNEL_BYTES * outputs)


def compare_convolution(rows: Table, pixels: int, bits: int, pack: bool) -> Comparison:
    """For weights [O, taps], of `bits` bits in the dense kernel, of a convolution of `pixels` outputs a channel."""
    outputs, quads = len(rows), -(-rows.shape[1] // sparse_tables.QUAD)
    dense = -(-outputs // 2) * (24.0 * quads + 3 * -(-quads // 4) + 84)
    zeros = float((rows == 0).mean())
    taken, passes = _dense_bytes(rows, bits), -(-pixels // PIXELS)
    if zeros < LEAST:
        return Comparison(dense, taken, passes, zeros, ())
    found = []
    if sparse_tables.blocks_fit(rows):
        blocks = sparse_tables.live_quads(rows).sum(axis=1)
        live = blocks > 0
        cost = np.where(live, 29 + 17 * blocks, _CONSTANT).sum()
        nbytes = 4 + int(np.where(live, 16 + 4 * blocks, 4).sum()) + int(np.maximum(blocks - 1, 0).sum())
        found.append(Candidate(BLOCKS, "blocks of four", float(cost), nbytes, slower=_LOADS))
    halves = -(-sparse_tables.pair_counts(rows) // 2)
    live = halves > 0
    cost = np.where(live, 35 + 32 * (halves // 2) + 17 * (halves % 2), _CONSTANT).sum() + _ALL_PAIRS * quads
    nbytes = 4 + int(np.where(live, 20 + 4 * halves + 4 * -(-halves // 2) - 4, 4).sum())
    found.append(Candidate(PAIRS, "pairs", float(cost), nbytes, len(sparse_tables.PAIRS) // 2, _LOADS))
    return Comparison(dense, taken, passes, zeros, tuple(found), pack)


def compare_product(rows: Table, count: int, bits: int, pack: bool) -> Comparison:
    """For weights [O, taps], of `bits` bits in the dense kernel, of a fully connected layer of `count` rows."""
    outputs, quads = len(rows), -(-rows.shape[1] // sparse_tables.QUAD)
    dense = outputs / 8 * (31.0 * quads + 3 * -(-quads // 4)) + 22 * outputs
    zeros = float((rows == 0).mean())
    taken = _dense_bytes(rows, bits)
    if zeros < LEAST:
        return Comparison(dense, taken, count, zeros, ())
    found = []
    for kernel, unit, packed in ((ENTRIES, "single weights", False), (PACKED, "single weights, packed,", True)):
        counts = sparse_tables.entry_counts(rows, packed)
        if int(counts.max()) < _MOST_ENTRIES:
            size, words, base, group = (8, 3, 28, 35) if packed else (4, 2, 22, 17)
            pairs = -(-counts // 2)
            whole = pairs // (size // 2)
            left = pairs % (size // 2)
            cost = float((base + group * whole + 18 * (left >= 2) + 8 * (left % 2)).sum())
            nbytes = 4 * int((words * whole + 2 * (left >= 2) + left % 2).sum()) + (2 + _CHANNEL_BYTES) * outputs
            found.append(Candidate(kernel, unit, cost, nbytes))
    return Comparison(dense, taken, count, zeros, tuple(found), pack)
