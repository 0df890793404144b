"""Weights of recurrent layers: from ONNX's stacked matrices to gates, as integers with their rescaling or as reals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgescale.lower.constants import Constant, Real
from edgescale.lower.context import Units
from edgescale.lower.errors import NodeError
from edgescale.lower.fixedpoint import requant
from edgescale.lower.program import Array, Requant
from edgescale.lower.program_recurrent import GATE_SCALE
from edgescale.lower.weights import check_accumulator, exact_bias, fit_bias


@dataclass(frozen=True)
class Stack:
    """One direction's constants, gates in the layer's order: matrix [G * U, I] and bias [G * U] of a product."""

    matrix: Constant
    bias: Constant
    units: int
    """U."""


@dataclass(frozen=True)
class Product:
    """weights [G, U, I], bias [G, U]; requant None for float32."""

    weights: Array
    bias: Array
    requant: Requant | None


def stacks(
    weights: Constant, recurrent: Constant, bias: Constant | None, direction: int, order: Sequence[int], apart: int
) -> tuple[Stack, Stack]:
    """(input product, recurrent product) of one direction of ONNX's W [D, G*U, I], R [D, G*U, U], B [D, 2*G*U].

    order: ONNX's gate of each gate of the layer. apart: how many gates, the last ones, keep the recurrent bias in the
    recurrent product; that of the others is added to the input product's. Raises NodeError where shapes do not fit.
    """
    units = recurrent.shape[-1]
    stacked = len(order) * units
    first = weights.shape
    if len(first) != 3 or first[1] != stacked or recurrent.shape != (first[0], stacked, units):
        raise NodeError(f"W of shape {list(first)} and R of shape {list(recurrent.shape)}")
    if bias is not None and bias.shape != (first[0], 2 * stacked):
        raise NodeError(f"B of shape {list(bias.shape)} for {len(order)} gates of {units} units")
    rows = np.concatenate([np.arange(gate * units, (gate + 1) * units) for gate in order])
    ahead, back = (_rows(_direction(part, direction), rows) for part in (weights, recurrent))
    if bias is None:
        zeros = Constant(np.zeros(stacked))
        return Stack(ahead, zeros, units), Stack(back, zeros, units)
    given = _direction(bias, direction)
    kept = _rows(given, rows)
    real = _rows(given, rows + stacked).real()
    own = np.where(np.arange(stacked) >= stacked - apart * units, real, 0.0)
    added = real - own
    total = Constant(kept.real() + added) if added.any() else kept
    return Stack(ahead, total, units), Stack(back, Constant(own), units)


def integer_product(stack: Stack, source: Units) -> Product:
    """int8 weights, int32 bias and the rescaling to Q3.12, the factor in float32 as LiteRT computes it.

    An entry a gate where all rows of every gate have one scale, else an entry a row. Raises NodeError where the
    weights are not symmetric or an accumulator could leave int32.
    """
    integers, scales = stack.matrix.symmetric_int8(axis=0)
    exact = exact_bias(stack.bias, source[0] * scales)
    if exact is not None:
        steps: Real = exact.astype(np.float64)
    else:
        real = np.broadcast_to(stack.bias.real(), scales.shape)
        integers, scales, steps = fit_bias(integers, scales, source[0], real, 2.0**30)
    factors = np.float32(source[0]) * scales.astype(np.float32) / np.float32(GATE_SCALE)
    every = requant(factors.tolist())
    bias = check_accumulator(integers, steps, source[1], every)
    gates = len(scales) // stack.units
    by_gate = scales.reshape(gates, stack.units)
    if (by_gate == by_gate[:, :1]).all():
        every = Requant(every.multiplier[:: stack.units], every.shift[:: stack.units])
    shape = (gates, stack.units)
    return Product(integers.reshape(*shape, -1), bias.reshape(shape), every)


def real_product(stack: Stack) -> Product:
    """float32 weights and bias."""
    shape = (stack.matrix.shape[0] // stack.units, stack.units)
    weights = stack.matrix.real().astype(np.float32).reshape(*shape, -1)
    bias = np.broadcast_to(stack.bias.real(), (stack.matrix.shape[0],)).astype(np.float32)
    return Product(weights, bias.reshape(shape), None)


def _direction(constant: Constant, index: int) -> Constant:
    """Entry `index` of the first axis, the quantization's parameters with it."""

    def taken(part: Any) -> Any:
        if part is None or part.size == 1:
            return None if part is None else part.reshape(-1)
        aligned = part.reshape((1,) * (constant.values.ndim - part.ndim) + part.shape)
        return aligned[index if aligned.shape[0] > 1 else 0]

    return Constant(constant.values[index], taken(constant.scale), taken(constant.zero_point))


def _rows(constant: Constant, rows: npt.NDArray[np.intp]) -> Constant:
    """Entries `rows` of the first axis, the quantization's parameters with them."""

    def taken(part: Any) -> Any:
        return part if part is None or part.shape[0] == 1 else part[rows]

    return Constant(constant.values[rows], taken(constant.scale), taken(constant.zero_point))
