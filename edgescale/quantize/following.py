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
from edgescale.quantize.rounding import FOLLOWED, GPTQ_DAMPING

Real = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float32]


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
        lost: Any = 0.0
        count = 0
        exact = self._float.rows(_first(self._float_nodes[index]))
        for wanted, given in zip(exact, self._relay.rows(value), strict=True):
            if wanted.shape == given.shape:
                lost, count = lost + (wanted - given).T @ given, count + len(given)
        return found, _correction(np.asarray(lost, np.float64) / max(count, 1), found.second) if count else None


def make_up(matrix: Real, correction: Real | None) -> Real:
    """Weights [outputs, terms] that make up for a changed input (see `Inputs.of`); weights of zero stay zero."""
    return matrix if correction is None else np.where(matrix == 0, 0.0, matrix + matrix @ correction)


def _correction(lost: Real, second: Real) -> Real | None:
    """FOLLOWED times E[(x - x') x'^T] E[x' x'^T]^-1, damped towards 0; None where nothing was lost."""
    if not lost.any():
        return None
    terms = len(second)
    damped = second + (GPTQ_DAMPING * float(np.trace(second)) / terms + 1e-12) * np.eye(terms)
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
