"""Weights, biases and scales in the layouts of the dsp kernels (firmware/kernels/dsp), and what they require.

Two output channels share each 16-bit half of a weight word, half = 256 * w1 + w0 (es_gemm_s8.h); the
accumulator of the odd channel comes out modulo 2^24.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgescale.lower.program import Requant
from edgescale_c.constants import Table
from edgescale_c.requant import RequantTables

Int64s = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]

_EVEN_BOUND = 2**30
_ODD_BOUND = 2**23
_MOST_SHIFT = 22


class OutOfDomainError(Exception):
    """A layer is outside what a dsp kernel computes exactly; the message says why, in a few words."""


@dataclass(frozen=True)
class Scales:
    """Multipliers and shifts to the right, int64 [channels filled up to an even number], or two equal ones for all."""

    multiplier: Int64s
    right: Int64s
    per_channel: bool

    @property
    def pairs(self) -> npt.NDArray[np.int32]:
        """Entries of `es_scale_pair`: int32 [pairs, 3], or [1, 3] where one serves all channels."""
        shifts = self.right[0::2] | self.right[1::2] << 8
        return np.stack([self.multiplier[0::2], self.multiplier[1::2], shifts], axis=1).astype(np.int32)

    def wide_pairs(self, centres: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The same with a centre behind each pair's entry: int32 [pairs, 4]."""
        return np.concatenate([np.broadcast_to(self.pairs, (len(centres), 3)), centres[:, None]], axis=1)

    @property
    def step(self) -> int:
        """Bytes from one pair's entry to the next."""
        return 12 if self.per_channel else 0

    @property
    def shifts(self) -> npt.NDArray[np.uint16]:
        """`shift` of `es_scales`, two channels a half."""
        return (self.right[0::2] | self.right[1::2] << 8).astype(np.uint16)


def scales(requant: Requant, found: RequantTables, bounds: Int64s) -> Scales:
    """Multipliers and shifts of a layer whose accumulators stay within `bounds` ([O]).

    `found` holds the layer's tables. The kernels shift right by shift + 1 (double rounding of twice the
    accumulator) or by shift + 1 (single rounding of the product's high word). Raises OutOfDomainError.
    """
    if int(bounds.max(initial=0)) >= _EVEN_BOUND:
        raise OutOfDomainError("accumulators reach 2^30")
    multiplier = np.broadcast_to(found.multiplier.astype(np.int64), bounds.shape if found.per_channel else (1,))
    shift = np.broadcast_to(found.shift.astype(np.int64), multiplier.shape)
    right = -shift - (2 if requant.rounding == "single" else 1)
    if int(right.min()) < 0:
        raise OutOfDomainError(f"scale with shift {int(shift.max())}")
    # Shifted further than its bits reach, every accumulator becomes zero.
    far = right > _MOST_SHIFT
    reach = bounds if found.per_channel else bounds.max(initial=0)
    if (far & (reach >= 2 ** np.minimum(right, 40))).any():
        raise OutOfDomainError(f"scale with shift {int(shift.min())}")
    multiplier, right = np.where(far, 0, multiplier), np.where(far, _MOST_SHIFT, right)
    if not found.per_channel:
        multiplier, right = np.repeat(multiplier, 2), np.repeat(right, 2)
    elif len(multiplier) % 2:
        multiplier, right = np.append(multiplier, 0), np.append(right, 0)
    return Scales(multiplier, right, found.per_channel)


def check_pairs(rows: Table, bounds: Int64s, *, wide: bool = False) -> bool:
    """Whether odd channels need a centre; `rows` are weights [O, taps], `bounds` of their accumulators [O].

    Raises OutOfDomainError unless the weights may share halves; `wide` says that centres are allowed.
    """
    even, odd = _even_odd(rows)
    if (256 * odd + even < -(2**15)).any():
        raise OutOfDomainError("weights of -128")
    if int(bounds[1::2].max(initial=0)) < _ODD_BOUND:
        return False
    # Over int8 inputs sums lie within 127.5 * sum |w| of the centre, rounded.
    if not wide or int(np.abs(odd).sum(axis=1).max(initial=0)) * 128 + 1 >= _ODD_BOUND:
        raise OutOfDomainError("accumulators reach 2^23")
    return True


def _even_odd(rows: Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Weights [O, taps] as those of even and odd channels, [pairs, taps rounded up to 4], filled with zeros."""
    outputs, taps = rows.shape
    full = np.zeros((outputs + outputs % 2, -(-taps // 4) * 4), np.int64)
    full[:outputs, :taps] = rows
    return full[0::2], full[1::2]


def _halves(rows: Table) -> npt.NDArray[np.int64]:
    even, odd = _even_odd(rows)
    return 256 * odd + even


def _words(low: npt.NDArray[np.int64], high: npt.NDArray[np.int64]) -> Words:
    """32-bit words of two halves each."""
    result: Words = ((low & 0xFFFF) | (high & 0xFFFF) << 16).astype(np.uint32)
    return result


def _quad_words(rows: Table) -> Words:
    """[pairs, quads, 2]: of four taps t .. t+3, the words (t, t+2) and (t+1, t+3)."""
    halves = _halves(rows)
    quads = halves.reshape(len(halves), -1, 4)
    return _words(quads[:, :, :2], quads[:, :, 2:])


def gemm_weights(rows: Table) -> Words:
    """Weights [O, taps] for es_gemm_s8.h: words [pairs, tap pairs]."""
    words = _quad_words(rows)
    return words.reshape(len(words), -1)


def dense_weights(rows: Table) -> Words:
    """Weights [O, taps] for es_dense_s8.h: groups of four pairs side by side, then single pairs, flat."""
    words = _quad_words(rows)
    grouped = len(words) // 4 * 4
    # [groups, 4, quads, 2] -> [groups, quads, 4, 2]
    head = words[:grouped].reshape(-1, 4, words.shape[1], 2).transpose(0, 2, 1, 3)
    return np.concatenate([head.reshape(-1), words[grouped:].reshape(-1)])


def _pair_columns(values: npt.NDArray[np.generic]) -> tuple[Int64s, Int64s]:
    """[O] as values of even and odd channels, [pairs] each, filled with a zero."""
    full = np.zeros(len(values) + len(values) % 2, np.int64)
    full[: len(values)] = values
    return full[0::2], full[1::2]


def pair_bias(folded: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Bias [O], zero-point folded in -> [pairs, 2]: b0 and 256 * b1 + b0, modulo 2^32."""
    even, odd = _pair_columns(folded)
    return _wrapped(np.stack([even, 256 * odd + even], axis=1))


def wide_bias(folded: npt.NDArray[np.int32], rows: Table) -> npt.NDArray[np.int32]:
    """The same with centres: [pairs, 3] of b0, 256 * (b1 - centre) + b0, 2 * centre."""
    even, odd = _pair_columns(folded)
    # Inputs lie around -1/2.
    centre = odd - _pair_columns(rows.astype(np.int64).sum(axis=1))[1] // 2
    return _wrapped(np.stack([even, 256 * (odd - centre) + even, 2 * centre], axis=1))


def _wrapped(values: Int64s) -> npt.NDArray[np.int32]:
    result: npt.NDArray[np.int32] = values.astype(np.uint64).astype(np.uint32).view(np.int32)
    return result


def plane_bytes(weights: Table) -> npt.NDArray[np.int8]:
    """Depthwise weights [3, 3, C] for the 3x3 kernels: [C, 9] and three bytes to read past them, flat."""
    result: npt.NDArray[np.int8] = np.append(weights.transpose(2, 0, 1).reshape(-1), np.zeros(3)).astype(np.int8)
    return result


def plane_weights(weights: Table) -> Words:
    """Depthwise weights [lines, places, C] as words of two taps, [C, lines, (places + 1) / 2]."""
    lines, places, channels = weights.shape
    full = np.zeros((channels, lines, places + places % 2), np.int64)
    full[..., :places] = weights.astype(np.int64).transpose(2, 0, 1)
    return _words(full[..., 0::2], full[..., 1::2])


def single_tap_weights(weights: Table) -> Words:
    """Depthwise weights [lines, places, C] as one 32-bit word a tap, [C, lines, places]: for dilated places."""
    result: Words = weights.astype(np.int64).transpose(2, 0, 1).astype(np.int32).view(np.uint32)
    return result
