"""Weights of four bits: two a byte, and the words of the dsp kernels (firmware/kernels/dsp/es_gemm_s4.h)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgescale_c.constants import Table
from edgescale_c.pack import Int64s, OutOfDomainError, Scales, Words


def pack_nibbles(rows: Table) -> npt.NDArray[np.int8]:
    """Integers [n, taps] in [-8, 7] -> [n, (taps + 1) // 2]: the first of two in the lower half of a byte."""
    count, taps = rows.shape
    full = np.zeros((count, taps + taps % 2), np.uint8)
    full[:, :taps] = rows.astype(np.uint8) & 15
    packed: npt.NDArray[np.int8] = (full[:, 0::2] | full[:, 1::2] << 4).astype(np.uint8).view(np.int8)
    return packed


def plane_nibbles(weights: Table, filled: bool) -> npt.NDArray[np.int8]:
    """Depthwise weights [lines, places, C], channel after channel; `filled`: lines of an even number of places."""
    lines, places, channels = weights.shape
    full = np.zeros((channels, lines, places + (places % 2 if filled else 0)), np.int8)
    full[..., :places] = weights.transpose(2, 0, 1)
    return pack_nibbles(full.reshape(1, -1))


def check_groups(rows: Table) -> None:
    """Whether four channels may share words, for weights [O, taps] over int8 inputs. Raises OutOfDomainError."""
    sums = np.abs(rows.astype(np.int64)).sum(axis=1) * 128
    for lane, bits in ((3, 19), (2, 23), (1, 27)):
        if int(sums[lane::4].max(initial=0)) >= 2**bits:
            raise OutOfDomainError(f"4-bit weights with sums of 2^{bits}")


def _group_words(rows: Table) -> npt.NDArray[np.uint32]:
    """[groups of four channels, quads of taps, 2]: the words of taps (t, t+2) and (t+1, t+3)."""
    outputs, taps = rows.shape
    full = np.zeros((-(-outputs // 4) * 4, -(-taps // 4) * 4), np.int64)
    full[:outputs, :taps] = rows
    lanes = full.reshape(-1, 4, full.shape[1])
    halves = (lanes[:, 3] & 15) << 12 | lanes[:, 2] + 8 << 8 | lanes[:, 1] + 8 << 4 | lanes[:, 0] + 8
    quads = halves.reshape(len(halves), -1, 4)
    words: npt.NDArray[np.uint32] = (quads[:, :, :2] | quads[:, :, 2:] << 16).astype(np.uint32)
    return words


def gemm_words(rows: Table) -> Words:
    """Weights [O, taps] for es_gemm_s4.h: words [groups of four channels, tap pairs]."""
    words = _group_words(rows)
    return words.reshape(len(words), -1)


def dense_words(rows: Table) -> Words:
    """Weights [O, taps] for es_dense_s4.h: two groups of four channels side by side, then a single one, flat."""
    words = _group_words(rows)
    double = (len(rows) + 3) // 8 * 2
    # [pairs of groups, 2, quads, 2] -> [pairs of groups, quads, 2, 2]
    head = words[:double].reshape(-1, 2, *words.shape[1:]).transpose(0, 2, 1, 3)
    return np.concatenate([head.reshape(-1), words[double:].reshape(-1)])


def table(folded: npt.NDArray[np.int32], scales: Scales, *, twice: bool) -> npt.NDArray[np.int32]:
    """Bias [O] with the zero-point folded in (`twice`: doubled) and scales -> [groups of four channels, 9]."""
    size = len(folded)

    def lanes(values: Int64s) -> Int64s:
        full = np.zeros(-(-size // 4) * 4, np.int64)
        full[:size] = values
        return full.reshape(-1, 4)

    multiplier, right = scales.multiplier, scales.right
    if scales.per_channel:
        multiplier, right = multiplier[:size], right[:size]
    else:
        multiplier, right = multiplier[:1], right[:1]
    bias = lanes(folded.astype(np.int64) * (2 if twice else 1)).astype(np.uint64).astype(np.uint32).view(np.int32)
    shifts = np.ascontiguousarray(lanes(right).astype(np.uint8)).view(np.int32)
    return np.concatenate([bias, lanes(multiplier).astype(np.int32), shifts], axis=1)
