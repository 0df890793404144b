"""Kernels that skip zero weights (firmware/kernels/dsp): whether they take fewer instructions, and which.

Costs are instructions of the inner loops and of what comes with each output channel, as the assembly has them; of the
columns, what they cost more than those of the dense kernel; what both kernels of a layer share (calls) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgescale_c import sparse_tables
from edgescale_c.constants import Table

BLOCKS = "conv2d_s8_dsp_sparse_blocks"
"""Convolutions by blocks of four taps."""
PAIRS = "conv2d_s8_dsp_sparse_pairs"
"""Convolutions by pairs of taps of a block."""
ENTRIES = "fully_connected_s8_dsp_sparse"
"""Products of single weights with the step to each."""

MENTIONED = 0.4
"""Share of zero weights from which on it is told what comes of them."""
PIXELS = 4
"""That a convolution finishes in a pass over its weights."""


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
    """Kernels that skip beside the dense one, for a layer of `passes` passes over its weights."""

    dense: float
    passes: int
    zeros: float
    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate | None:
        """The candidate of fewest instructions, if it beats the dense kernel and nothing is in its way."""
        able = [found for found in self.candidates if not found.obstacle and self._pays(found)]
        return min(able, key=lambda found: found.instructions, default=None)

    def _pays(self, found: Candidate) -> bool:
        return found.instructions < (1 - found.slower) * self.dense

    def told(self) -> str:
        """What comes of the zeros, in words; "" where they are few."""
        if self.zeros < MENTIONED or not self.candidates:
            return ""
        found = self.best
        if found is not None:
            return f"skipping {found.unit} takes {self._beside(found)}"
        found = min(self.candidates, key=lambda candidate: candidate.instructions)
        slow = "their loads outweigh that" if found.instructions < self.dense else ""
        obstacle = f", but {reason}" if (reason := found.obstacle or slow) else ""
        return f"nothing: skipping {found.unit} would take {self._beside(found)}{obstacle}"

    def _beside(self, found: Candidate) -> str:
        """Its instructions in a run beside those of the dense kernel."""
        more = found.instructions - self.dense
        kind = "fewer" if more < 0 else "more"
        return f"{abs(more) / self.dense:.0%} {kind} instructions ({abs(more) * self.passes:,.0f} {kind})"


def compare_convolution(rows: Table, pixels: int) -> Comparison:
    """For weights [O, taps] of a convolution of `pixels` outputs a channel."""
    outputs, quads = len(rows), -(-rows.shape[1] // sparse_tables.QUAD)
    dense = -(-outputs // 2) * (24.0 * quads + 3 * -(-quads // 4) + 84)
    zeros = float((rows == 0).mean())
    passes = -(-pixels // PIXELS)
    if not zeros:
        return Comparison(dense, passes, zeros, ())
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
    return Comparison(dense, passes, zeros, tuple(found))


_LOADS = 0.12
"""Of what convolutions that skip do, more are loads of several words, which take a cycle a word: by the cycle tables of
Cortex-M3 and M4 (edgescale/rigs) as many instructions as this must go before the time does."""
_CONSTANT = 10
"""Instructions of a channel without weights."""
_ALL_PAIRS = 44
"""Instructions that all pairs of a block's taps cost in the columns of four pixels, beyond the dense kernel's two."""


def compare_product(rows: Table, count: int) -> Comparison:
    """For weights [O, taps] of `count` rows of a fully connected layer."""
    words = -(-(rows != 0).sum(axis=1) // 2)
    outputs, quads = len(rows), -(-rows.shape[1] // sparse_tables.QUAD)
    dense = outputs / 8 * (31.0 * quads + 3 * -(-quads // 4)) + 22 * outputs
    zeros = float((rows == 0).mean())
    cost = float(9 * words.sum() + 36 * outputs)
    fits = int(words.max(initial=0)) < _MOST_WORDS
    found = (Candidate(ENTRIES, "single weights", cost, int(4 * words.sum()) + 2 * outputs),) if zeros and fits else ()
    return Comparison(dense, count, zeros, found)


_MOST_WORDS = 2**15
"""Of an output, which leaves as many to entries that bridge zeros as the table counts."""
