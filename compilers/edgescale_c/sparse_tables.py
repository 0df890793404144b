"""Weights most of which are zero, in the layouts of the kernels that skip (firmware/kernels/dsp)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale_c.constants import Table
from edgescale_c.pack import OutOfDomainError, Scales, Words

QUAD = 4
_MOST = 255
_REACH = 2**12
_SPECIAL, _CONSTANT = 2 << 8, 3 << 8
PAIRS = ((0, 2), (1, 3), (0, 1), (2, 3), (0, 3), (1, 2))
"""Pairs of a block's four taps, in the order of the columns."""
_PIXEL_BYTES = 16
"""Of a pair in the columns."""
_MOST_STEP = _MOST // _PIXEL_BYTES


@dataclass(frozen=True)
class Channels:
    """What a stream holds of each channel besides its weights: int64 [O] each. bias: input zero-point folded in;
    rounding: 2 * zero_point + 1 of the output."""

    bias: npt.NDArray[np.int64]
    multiplier: npt.NDArray[np.int64]
    shift: npt.NDArray[np.int64]
    rounding: int

    @classmethod
    def of(cls, bias: npt.NDArray[np.int32], scales: Scales, rounding: int) -> Channels:
        """From the layer's scales, whether a channel has one of its own or not."""
        count = len(bias)
        if scales.per_channel:
            multiplier, shift = scales.multiplier[:count], scales.right[:count]
        else:
            multiplier, shift = (np.full(count, values[0]) for values in (scales.multiplier, scales.right))
        return cls(bias.astype(np.int64), multiplier, shift, rounding)

    def constant(self, channel: int) -> int:
        """Output of a channel without weights: es_scale_double of twice its bias."""
        twice, shift = 2 * int(self.bias[channel]), int(self.shift[channel])
        high = (twice * int(self.multiplier[channel]) + 2**31) >> 32
        scaled = (high + (self.rounding << shift) + (-1 if twice < 0 else 0)) >> shift
        return int(np.clip(scaled >> 1, -128, 127))

    def scale(self, channel: int) -> tuple[int, int]:
        """Offset and multiplier."""
        return self.rounding << int(self.shift[channel]), int(self.multiplier[channel])


class _Stream:
    """Words, one after another, and the heads that say what comes next."""

    def __init__(self) -> None:
        self.words = [0]
        self._head = 0

    def follow(self, kind: int) -> None:
        """Mark in the last head what is put next."""
        self.words[self._head] |= kind

    def put(self, *words: int, head: int) -> None:
        """Append a channel; its head is the word at `head`."""
        self._head = len(self.words) + head
        self.words += words

    def finish(self) -> list[int]:
        """All words; the last head says that nothing comes next."""
        self.follow(_SPECIAL)
        return self.words


def block_stream(rows: Table, channels: Channels) -> Words:
    """Weights [O, taps] for es_gemm_blocks_s8, flat. Raises OutOfDomainError."""
    if not blocks_fit(rows):
        raise OutOfDomainError(f"more than {_MOST} blocks, or blocks of zeros, in a row, or {_REACH} blocks of taps")
    quads, live = quads_of(rows), live_quads(rows)
    stream, places, before = _Stream(), list[int](), 0
    for channel, mask in enumerate(live):
        at = np.flatnonzero(mask)
        if not at.size:
            stream.follow(_CONSTANT)
            stream.put(channels.constant(channel) & 0xFF, head=0)
            continue
        steps = np.diff(at) - 1
        delta, others = int(at[0]) - before, len(at) - 1
        words = [int(word) for word in np.ascontiguousarray(quads[channel, at]).view("<u4").ravel()]
        head = int(channels.shift[channel]) | (delta & 0x1FFF) << 10 | others << 23
        offset, multiplier = channels.scale(channel)
        stream.put(int(channels.bias[channel]), words[0], head, *words[1:], offset, multiplier, head=2)
        places += [int(step) for step in steps]
        before = int(at[-1]) + 1
    words = stream.finish()
    words[0] |= (len(words) - 1) << 10
    filled = np.zeros(-(-len(places) // 4) * 4, np.uint8)
    filled[: len(places)] = places
    return np.concatenate([_words(words), filled.view("<u4").astype(np.uint32)])


def blocks_fit(rows: Table) -> bool:
    """Whether the fields of `block_stream` hold what the weights ask for."""
    return all(
        at.size - 1 <= _MOST and int(np.diff(at).max(initial=1)) - 1 <= _MOST and int(at.max(initial=0)) < _REACH
        for at in map(np.flatnonzero, live_quads(rows))
    )


def pair_stream(rows: Table, channels: Channels) -> Words:
    """Weights [O, taps] for es_gemm_pairs_s8, flat."""
    stream = _Stream()
    for channel, quads in enumerate(quads_of(rows)):
        entries = _pair_entries(quads)
        if not entries:
            stream.follow(_CONSTANT)
            stream.put(channels.constant(channel) & 0xFF, head=0)
            continue
        halves = -(-len(entries) // 2)
        odd = halves % 2
        entries = [(0, 0, 0)] * (2 * odd) + entries + [(0, 0, 0)] * (2 * halves - len(entries))
        weights = [_pair_word(entries[i : i + 2]) for i in range(0, len(entries), 2)]
        steps = [_bytes(step for step, _, _ in entries[i : i + 4]) for i in range(0, len(entries), 4)]
        # Where half of the first steps counts, so does the second half of their weights.
        weights = weights[odd:]
        groups = len(steps)
        words = [int(channels.bias[channel]), weights[0], steps[0]]
        words.append(int(channels.shift[channel]) | odd << 10 | (groups - 1) << 11)
        rest = iter(weights[1:])
        if not odd:
            words.append(next(rest))
        for step in steps[1:]:
            words += [next(rest), step, next(rest)]
        offset, multiplier = channels.scale(channel)
        stream.put(*words, multiplier, offset, head=3)
    return _words(stream.finish())


def pair_counts(rows: Table) -> npt.NDArray[np.int64]:
    """Pairs of each channel of weights [O, taps], those that bridge zeros among them; [O]."""
    masks = (quads_of(rows) != 0) @ (1 << np.arange(QUAD))
    counts = np.zeros(len(rows), np.int64)
    for channel, mask in enumerate(masks):
        blocks = np.flatnonzero(mask)
        if blocks.size:
            number, first, last = _COVERS[mask[blocks]].T
            start, end = blocks * len(PAIRS) + first, blocks * len(PAIRS) + last
            gaps = start - np.concatenate([[0], end[:-1]])
            counts[channel] = number.sum() + np.maximum(-(-gaps // _MOST_STEP) - 1, 0).sum()
    return counts


def _pair_entries(quads: npt.NDArray[np.int8]) -> list[tuple[int, int, int]]:
    """(step in bytes, weight in the low half, in the high half) of a channel's pairs; quads [blocks, 4]."""
    entries: list[tuple[int, int, int]] = []
    before = 0
    for block in np.flatnonzero((quads != 0).any(axis=1)):
        for slot, low, high in _cover(quads[block]):
            at = int(block) * len(PAIRS) + slot
            while at - before > _MOST_STEP:
                entries.append((_MOST_STEP * _PIXEL_BYTES, 0, 0))
                before += _MOST_STEP
            entries.append(((at - before) * _PIXEL_BYTES, low, high))
            before = at
    return entries


def _cover(taps: npt.NDArray[np.int8]) -> list[tuple[int, int, int]]:
    """Pairs (place, weights of its two taps) that hold all weights of a block: one for up to two, else two."""
    live = tuple(int(tap) for tap in np.flatnonzero(taps))
    if len(live) > 2:
        return [(slot, int(taps[low]), int(taps[high])) for slot, (low, high) in enumerate(PAIRS[:2])]
    slot = next(slot for slot, pair in enumerate(PAIRS) if set(live) <= set(pair))
    low, high = PAIRS[slot]
    return [(slot, int(taps[low]), int(taps[high]))]


def _cover_of(mask: int) -> tuple[int, int, int]:
    cover = _cover(np.array([mask >> tap & 1 for tap in range(QUAD)], np.int8)) if mask else [(0, 0, 0)]
    return len(cover), cover[0][0], cover[-1][0]


_COVERS = np.array([_cover_of(mask) for mask in range(1 << QUAD)])
"""Number of pairs, place of the first and of the last, by which taps of a block are not zero; [16, 3]."""


def _pair_word(entries: list[tuple[int, int, int]]) -> int:
    (_, low, high), (_, other_low, other_high) = entries
    return _bytes((low, other_low, high, other_high))


def _bytes(values: Iterable[int]) -> int:
    return int.from_bytes(bytes(value & 0xFF for value in values), "little")


def _words(values: list[int]) -> Words:
    return np.array([value & 0xFFFFFFFF for value in values], np.uint32)


@dataclass(frozen=True)
class Entries:
    """words of all entries, and for each output how many groups of them there are and what is left [O], as
    es_dense_sparse_s8.h has them."""

    words: Words
    counts: npt.NDArray[np.uint16]


def entry_words(rows: Table, packed: bool) -> Entries:
    """Weights [O, taps] for es_dense_sparse_s8.h. Raises OutOfDomainError."""
    words: list[int] = []
    counts: list[int] = []
    for row in rows:
        entries = _entries(row, _NIBBLE if packed else _MOST)
        size = _GROUP if not packed else 2 * _GROUP
        entries += [(0, 0)] * (len(entries) % 2)
        # What would be left as four and two takes as many words as a group.
        whole = len(entries) // size + (packed and len(entries) % size == size - 2)
        entries += [(0, 0)] * max(0, whole * size - len(entries))
        left = entries[whole * size :]
        counts.append(whole << 2 | (len(left) >= _GROUP) << 1 | (len(left) % _GROUP) // 2)
        for first in range(0, whole * size, size):
            group = entries[first : first + size]
            steps = [step for step, _ in group]
            both = zip(steps[:_GROUP], steps[_GROUP:], strict=True) if packed else ((step, 0) for step in steps)
            words.append(_bytes(low | high << 4 for low, high in both))
            words += [_bytes(weight for _, weight in group[i : i + _GROUP]) for i in range(0, size, _GROUP)]
        if len(left) >= _GROUP:
            words += [_bytes(step for step, _ in left[:_GROUP]), _bytes(weight for _, weight in left[:_GROUP])]
            left = left[_GROUP:]
        if left:
            words.append(_bytes(value for entry in left for value in entry))
    if max(counts) >= 2**16:
        raise OutOfDomainError("more weights an output than are counted")
    return Entries(_words(words or [0]), np.array(counts, np.uint16))


def single_entries(rows: Table) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.uint16]]:
    """Weights [O, taps] for es_sparse_s8.h: steps and weights [entries, 2], and the entries of each output [O]."""
    found = [_entries(row, _MOST) for row in rows]
    every = [entry for entries in found for entry in entries] or [(0, 0)]
    table = np.array([[step, weight & 0xFF] for step, weight in every], np.uint8).view(np.int8)
    return table, np.array([len(entries) for entries in found], np.uint16)


def entry_counts(rows: Table, packed: bool) -> npt.NDArray[np.int64]:
    """Entries of each output of weights [O, taps], those that bridge zeros among them; [O]."""
    most = _NIBBLE if packed else _MOST
    counts = np.zeros(len(rows), np.int64)
    for output, row in enumerate(rows):
        at = np.flatnonzero(row)
        counts[output] = at.size + np.maximum(-(-np.diff(at, prepend=0) // most) - 1, 0).sum()
    return counts


_GROUP = 4
_NIBBLE = 15


def _entries(row: Table, most: int) -> list[tuple[int, int]]:
    """(step, weight) of a row, steps of at most `most`."""
    entries: list[tuple[int, int]] = []
    before = 0
    for at in np.flatnonzero(row):
        step = int(at) - before
        while step > most:
            entries.append((most, 0))
            step -= most
        entries.append((step, int(row[at])))
        before = int(at)
    return entries


def quads_of(rows: Table) -> npt.NDArray[np.int8]:
    """[O, quads, 4], filled with zeros."""
    outputs, taps = rows.shape
    full = np.zeros((outputs, -(-taps // QUAD) * QUAD), np.int8)
    full[:, :taps] = rows
    return full.reshape(outputs, -1, QUAD)


def live_quads(rows: Table) -> npt.NDArray[np.bool_]:
    """Which blocks of four taps of weights [O, taps] hold any; [O, blocks]."""
    return np.asarray((quads_of(rows) != 0).any(axis=2))
