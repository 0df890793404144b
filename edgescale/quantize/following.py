"""Inputs of layers as the quantized and as the float layers before them make them, side by side.

Weights that are rounded to suit what data shows may as well make up for what earlier layers lost: their target is the
float output, regressed on the input that the layer will really get.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.core.dataset import Dataset
from edgescale.core.model import Model
from edgescale.quantize.awq import InputStatistics
from edgescale.quantize.relay import LIVE_BYTES, Relay
from edgescale.quantize.rounding import FOLLOWED

Real = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float32]

_DAMPINGS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Shares of the mean input power that are tried: many terms and few positions need more."""


class Inputs:
    """Samples on their way through a graph whose weights are being rounded and, beside it, through the float one."""

    def __init__(self, model: Model, graph: ir.Model, data: Dataset, *, follow: bool) -> None:
        """`graph`: a clone of the model's own, to be changed layer by layer; `follow`: whether to run the float one.

        Raises UsageError where `data` does not feed every input of `model`.
        """
        limit = LIVE_BYTES // 2 if follow else LIVE_BYTES
        self._nodes = list(graph.graph)
        self._relay = Relay(model, graph, data, limit)
        self._float_nodes: list[ir.Node] = []
        self._float: Relay | None = None
        if follow:
            source = model.ir.clone()
            self._float_nodes, self._float = list(source.graph), Relay(model, source, data, limit)

    def of(self, index: int) -> tuple[InputStatistics, Real | None]:
        """(moments of the first input of node `index`, its correction [terms, terms] or None where it is unchanged).

        Weights W of a layer that reads the changed input x' compute W (I + correction) x' to come close to W x.
        Memory is [terms, terms], whatever the number of samples.
        """
        self._relay.advance(index)
        value = _first(self._nodes[index])
        found = _moments(self._relay.rows(value))
        if self._float is None:
            return found, None
        self._float.advance(index)
        if self._float.samples != self._relay.samples:
            return found, None  # shapes depend on values, and the two hold different samples by now
        halves = [_Half(), _Half()]
        exact = self._float.rows(_first(self._float_nodes[index]))
        for position, (wanted, given) in enumerate(zip(exact, self._relay.rows(value), strict=True)):
            if wanted.shape == given.shape:
                halves[position % 2].add(wanted, given)
        return found, _correction(*halves)


def make_up(matrix: Real, correction: Real | None) -> Real:
    """Weights [outputs, terms] that make up for a changed input (see `Inputs.of`); weights of zero stay zero."""
    return matrix if correction is None else np.where(matrix == 0, 0.0, matrix + matrix @ correction)


class _Half:
    """Of every second sample: E[(x - x') x'^T] and E[x' x'^T], [terms, terms]."""

    def __init__(self) -> None:
        self._count = 0
        self._lost: Any = 0.0
        self._second: Any = 0.0

    def add(self, wanted: Rows, given: Rows) -> None:
        self._lost, self._second = self._lost + (wanted - given).T @ given, self._second + given.T @ given
        self._count += len(given)

    def joined(self, other: _Half) -> _Half:
        """Of both halves."""
        both = _Half()
        both._count = self._count + other._count
        both._lost, both._second = self._lost + other._lost, self._second + other._second
        return both

    @property
    def lost(self) -> Real:
        return np.asarray(self._lost, np.float64) / max(self._count, 1)

    @property
    def second(self) -> Real:
        return np.asarray(self._second, np.float64) / max(self._count, 1)


def _correction(one: _Half, other: _Half) -> Real | None:
    """FOLLOWED times E[(x - x') x'^T] E[x' x'^T]^-1, damped towards 0 as suits samples that it was not fitted to.

    None where nothing was lost, or nothing is regained on the other half of the samples.
    """
    if not one.lost.any() or not other.lost.any():
        return None
    best, least = None, 0.0
    for damping in _DAMPINGS:
        error = 0.0
        for fitted, held in ((one, other), (other, one)):
            made = _regression(fitted.lost, fitted.second, damping)
            # E|(x - x') - made x'|^2 less E|x - x'|^2
            error += float(np.sum((made @ held.second - 2 * held.lost) * made))
        if error < least:
            best, least = damping, error
    if best is None:
        return None
    both = one.joined(other)
    return _regression(both.lost, both.second, best)


def _regression(lost: Real, second: Real, damping: float) -> Real:
    terms = len(second)
    damped = second + (damping * float(np.trace(second)) / terms + 1e-12) * np.eye(terms)
    return np.asarray(FOLLOWED * np.linalg.solve(damped, lost.T).T)


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    if value is None:
        raise ValueError(f"{node.name}: no input")
    return value


def _moments(every: Iterator[Rows]) -> InputStatistics:
    """Moments over all rows [positions, terms]."""
    count = 0
    second: Any = 0.0
    magnitude: Any = 0.0
    mean: Any = 0.0
    for rows in every:
        count += len(rows)
        second = second + rows.T @ rows
        magnitude = magnitude + np.abs(rows).sum(axis=0, dtype=np.float64)
        mean = mean + rows.sum(axis=0, dtype=np.float64)
    divisor = max(count, 1)
    return InputStatistics(
        np.asarray(second, np.float64) / divisor,
        np.asarray(magnitude, np.float64) / divisor,
        np.asarray(mean, np.float64) / divisor,
    )
