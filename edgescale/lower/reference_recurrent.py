"""Reference of recurrent layers: Lstm, Gru, and Initial. Each returns the output and what it leaves in its update."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgescale.lower.fixedpoint import apply_requant, rounding_divide_by_pot
from edgescale.lower.fixedpoint16 import logistic16, saturate16, tanh16
from edgescale.lower.program import Array, Requant, Tensor
from edgescale.lower.program_recurrent import Gru, Initial, Lstm, Recurrent
from edgescale.lower.reference_elementwise import apply_function

Int = npt.NDArray[np.int64]
Real = npt.NDArray[np.float32]
Made = tuple[Array, Array | None]
"""Output, and the new value of the tensor that the layer updates."""


def initial(layer: Initial, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Array:
    """The same values for every sample."""
    return np.repeat(layer.values.reshape(out.shape), inputs[0].shape[0], axis=0)


def lstm(layer: Lstm, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Made:
    """UNIDIRECTIONAL_SEQUENCE_LSTM."""
    x = _sequence(inputs)
    count = x.shape[0]
    if out.dtype == "int8":
        h: Array = np.full((count, layer.units), out.zero_point, np.int8)  # real zeros
        c: Array = np.zeros((count, layer.units), np.int64)
    else:
        h, c = np.zeros((count, layer.units), np.float32), np.zeros((count, layer.units), np.float32)
    if layer.has_hidden:
        h = inputs[1].reshape(count, -1)
    if layer.has_cell:
        c = inputs[-1].reshape(count, -1).astype(c.dtype)
    rows = []
    for step in _steps(layer, x.shape[1]):
        if out.dtype == "int8":
            h, c = _integer_lstm(layer, x[:, step], h, c.astype(np.int64), tensors[0], out)
        else:
            h, c = _real_lstm(layer, x[:, step].astype(np.float32), h.astype(np.float32), c.astype(np.float32))
        rows.append(h)
    left = c.astype(inputs[-1].dtype).reshape(count, 1, 1, -1) if layer.has_cell else None
    return _output(layer, rows, out), left


def _integer_lstm(layer: Lstm, x: Array, h: Array, c: Int, source: Tensor, out: Tensor) -> tuple[Array, Int]:
    ahead = _products(layer.weights, layer.bias, layer.requant, x, source.zero_point)
    back = _products(layer.recurrent, layer.recurrent_bias, layer.recurrent_requant, h, out.zero_point)
    gates = [saturate16(saturate16(one) + other) for one, other in zip(ahead, back, strict=True)]
    i, f, g, o = logistic16(gates[0]), logistic16(gates[1]), tanh16(gates[2]), logistic16(gates[3])
    fresh = rounding_divide_by_pot(i * g, 30 + layer.cell_exponent)
    c = saturate16(rounding_divide_by_pot(f * c, 15) + fresh)
    if layer.cell_clip:
        c = np.clip(c, -int(layer.cell_clip), int(layer.cell_clip))
    return _stored(o * tanh16(c, 15 + layer.cell_exponent), layer.hidden_requant, out), c


def _real_lstm(layer: Lstm, x: Real, h: Real, c: Real) -> tuple[Real, Real]:
    gates = [one + other for one, other in zip(_reals(layer, x), _reals(layer, h, back=True), strict=True)]
    i, f, o = (apply_function("sigmoid", (), gates[k]) for k in (0, 1, 3))
    c = (f * c + i * np.tanh(gates[2])).astype(np.float32)
    if layer.cell_clip:
        c = np.clip(c, -np.float32(layer.cell_clip), np.float32(layer.cell_clip))
    return (o * np.tanh(c)).astype(np.float32), c


def gru(layer: Gru, inputs: list[Array], tensors: list[Tensor], out: Tensor) -> Made:
    """Gated recurrent unit."""
    x = _sequence(inputs)
    s: Array = inputs[-1].reshape(x.shape[0], -1) if layer.has_hidden else np.zeros((x.shape[0], layer.units), np.int16)
    rows: list[Array] = []
    for step in _steps(layer, x.shape[1]):
        if out.dtype == "int8":
            s = _integer_gru(layer, x[:, step], s.astype(np.int64), tensors[0], out)
            rows.append(_stored(s, layer.hidden_requant, out))
        else:
            s = _real_gru(layer, x[:, step].astype(np.float32), s.astype(np.float32))
            rows.append(s)
    left = s.astype(np.int16).reshape(s.shape[0], 1, 1, -1) if layer.updates else None
    return _output(layer, rows, out), left


def _integer_gru(layer: Gru, x: Array, s: Int, source: Tensor, out: Tensor) -> Int:
    h = _stored(s, layer.hidden_requant, out)
    ahead = _products(layer.weights, layer.bias, layer.requant, x, source.zero_point)
    back = _products(layer.recurrent, layer.recurrent_bias, layer.recurrent_requant, h, out.zero_point)
    z, r = (logistic16(saturate16(saturate16(ahead[k]) + back[k])) for k in (0, 1))
    if layer.linear_before_reset:
        third = rounding_divide_by_pot(r * saturate16(back[2]), 15)
    else:
        masked = _stored(rounding_divide_by_pot(r * s, 15), layer.hidden_requant, out)
        third = _products(layer.recurrent, layer.recurrent_bias, layer.recurrent_requant, masked, out.zero_point)[2]
    n = tanh16(saturate16(saturate16(ahead[2]) + third))
    return rounding_divide_by_pot(z * s + (2**15 - z) * n, 15)


def _real_gru(layer: Gru, x: Real, s: Real) -> Real:
    ahead, back = _reals(layer, x), _reals(layer, s, back=True)
    z, r = (apply_function("sigmoid", (), ahead[k] + back[k]) for k in (0, 1))
    third = r * back[2] if layer.linear_before_reset else _reals(layer, r * s, back=True)[2]
    fresh: Real = ((1 - z) * np.tanh(ahead[2] + third) + z * s).astype(np.float32)
    return fresh


def _sequence(inputs: list[Array]) -> Array:
    """The first input as [n, T, I]."""
    return inputs[0].reshape(inputs[0].shape[0], -1, inputs[0].shape[-1])


def _steps(layer: Recurrent, count: int) -> range:
    return range(count - 1, -1, -1) if layer.reverse else range(count)


def _output(layer: Recurrent, rows: list[Array], out: Tensor) -> Array:
    """Rows of the steps taken, [n, U] each, as the layer's output."""
    if not layer.sequence:
        rows = rows[-1:]
    stacked = np.stack(rows[::-1] if layer.reverse else rows, axis=1)
    return stacked.reshape(stacked.shape[0], *out.shape[1:])


def _products(weights: Array, bias: Array, scaling: Requant | None, x: Array, zero_point: int) -> list[Int]:
    """A rescaled product [n, U] a gate, of weights [G, U, I] and x [n, I]."""
    if scaling is None:
        raise ValueError("an integer recurrent layer has no rescaling")
    gates, units, _ = weights.shape
    found = []
    for k in range(gates):
        # Exact: every partial sum is an integer far below 2^53.
        product = (x.astype(np.float64) - zero_point) @ weights[k].T.astype(np.float64)
        part = slice(k, k + 1) if scaling.multiplier.size == gates else slice(k * units, (k + 1) * units)
        one = Requant(scaling.multiplier[part], scaling.shift[part], scaling.rounding)
        found.append(apply_requant(product.astype(np.int64) + bias[k].astype(np.int64), one))
    return found


def _stored(value: Int, scaling: Requant | None, out: Tensor) -> npt.NDArray[np.int8]:
    """A vector of fixed point in the output's units."""
    if scaling is None:
        raise ValueError("an integer recurrent layer has no rescaling")
    return np.clip(apply_requant(value, scaling) + out.zero_point, -128, 127).astype(np.int8)


def _reals(layer: Recurrent, x: Real, *, back: bool = False) -> list[Real]:
    """A product [n, U] a gate, of the weights or (`back`) of the recurrent ones."""
    weights, bias = (layer.recurrent, layer.recurrent_bias) if back else (layer.weights, layer.bias)
    pairs = zip(weights.astype(np.float32), bias.astype(np.float32), strict=True)
    return [x @ w.T + b for w, b in pairs]
