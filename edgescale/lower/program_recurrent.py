"""Recurrent layers of the integer program: Lstm, Gru, and Initial, which gives them what they start from.

A recurrent layer runs over a whole sequence: input [1, 1, T, I], output [1, 1, T, U] in the order of the input's
steps, or [1, 1, 1, U], the last step's alone (`sequence`). `reverse` runs from step T - 1 to step 0. What the layer
hands from step to step beside its output is an int16 (or float32) vector of [1, 1, 1, U]: an LSTM's cell state, an
integer GRU's hidden state. Where the program needs that vector before or after the layer it is an input tensor which
the layer *updates*: layers before see what it starts from, layers behind what it ends with (`Layer.updates`).

Integer arithmetic is that of LiteRT's 8x8->16 LSTM: a gate is the sum of two products, each an int32 accumulator over
int8, rescaled (double rounding) to int16 in Q3.12 and saturated; logistic and tanh map Q3.12 to Q0.15 (gemmlowp,
`fixedpoint16`). The Gru follows in the same style. sat: to int16; rdiv: division by a power of two, halves away from
zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgescale.lower.program import Array, Layer, Requant, Tensor

GATE_SCALE = 2.0**-12
"""Units of a gate before its activation, Q3.12."""


@dataclass(frozen=True)
class Initial(Layer):
    """out = `values` for every sample; the input is not read, it only says how many samples there are."""

    values: Array


@dataclass(frozen=True)
class Recurrent(Layer):
    """What Lstm and Gru share; G gates of U units over I inputs.

    inputs: the sequence; then, where `has_hidden`, the output before the first step (without it, real zeros); then the
    vector that the layer updates, where it has one.

    weights [G, U, I], recurrent [G, U, U] (int8; float32), bias and recurrent_bias [G, U] (int32 in units of input
    scale * weight scale and output scale * weight scale, zero-points NOT folded in; float32). requant,
    recurrent_requant: accumulators to Q3.12, an entry a gate [G] or a row [G * U]; None for float32.
    """

    weights: Array
    recurrent: Array
    bias: Array
    recurrent_bias: Array
    requant: Requant | None
    recurrent_requant: Requant | None
    hidden_requant: Requant | None
    reverse: bool
    sequence: bool
    has_hidden: bool

    @property
    def units(self) -> int:
        """U."""
        return int(self.weights.shape[1])

    def macs(self, tensors: Mapping[str, Tensor]) -> int:
        """Those of the matrices' products, for every step."""
        return tensors[self.inputs[0]].shape[-2] * int(self.weights.size + self.recurrent.size)


@dataclass(frozen=True)
class Lstm(Recurrent):
    """Gates in the order input i, forget f, candidate g, output o; h the output, c the cell state.

    int8, exactly as LiteRT's UNIDIRECTIONAL_SEQUENCE_LSTM (each gate a; recurrent_bias is 0):
        a = sat(sat(requant(W (x - zx) + b)) + recurrent_requant(R (h - zh))), then logistic; tanh for g
        c = sat(rdiv(f * c, 15) + rdiv(i * g, 30 + cell_exponent)), clipped to +-cell_clip where that is not 0
        h = clamp(hidden_requant(o * tanh(c)) + zh, -128, 127)
    c is int16 in units of 2^cell_exponent, -15 to -9; hidden_requant takes Q0.30 to the output's units.
    float32: the same without rounding. has_cell: the last input is the cell state, which the layer updates; without
    it the cell state starts from 0 and is dropped.
    """

    cell_exponent: int
    cell_clip: float
    """In units of the cell state."""
    has_cell: bool

    @property
    def updates(self) -> tuple[str, ...]:
        """The cell state."""
        return self.inputs[-1:] if self.has_cell else ()


@dataclass(frozen=True)
class Gru(Recurrent):
    """Gates in ONNX's order update z, reset r, candidate n; s the hidden state, h the output, s in other units.

    int8: s is int16 in Q0.15; it is kept so finely because (1 - z) n may be far below a step of int8. Before the
    first step and after each, h = clamp(hidden_requant(s) + zh, -128, 127), hidden_requant from 2^-15 to the output's
    units. With a(gate) = sat(sat(requant(W (x - zx) + b)) + recurrent_requant(R (h - zh) + rb)):
        z = logistic(a(z)), r = logistic(a(r))
        linear_before_reset: n = tanh(sat(sat(requant(Wn (x - zx) + bn))
                                          + rdiv(r * sat(recurrent_requant(Rn (h - zh) + rbn)), 15)))
        else:                n = tanh(a(n)) with clamp(hidden_requant(rdiv(r * s, 15)) + zh, -128, 127) for h
        s = rdiv(z * s + (2^15 - z) * n, 15)
    `has_hidden`: the last input is s, which the layer updates; there is no int8 vector to start from.
    float32: s is h, and the input that `has_hidden` tells of is read only.
    """

    linear_before_reset: bool

    @property
    def updates(self) -> tuple[str, ...]:
        """The hidden state of an integer layer."""
        return self.inputs[-1:] if self.has_hidden and self.requant is not None else ()
