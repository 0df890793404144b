"""How far the cell states of a float model's LSTMs reach over calibration samples, in every step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgescale.core.dataset import Dataset
from edgescale.core.model import Model
from edgescale.core.recurrent import CELL_EXPONENTS
from edgescale.frontend.graph import constant, input_at, string_attribute
from edgescale.quantize.calibrate import each_sample
from edgescale.quantize.recurrent_rules import CELL, HIDDEN

Real = npt.NDArray[np.float64]

_HEADROOM = 1.25
"""The cell state may grow beyond what calibration saw by this factor."""


def cell_exponents(model: Model, data: Dataset) -> dict[str, int]:
    """Units of the cell state of every LSTM of a float model by the node's name: exponents of two.

    data: x [count, *sample_shape]. ONNX shows a cell state after the last step only, so the recurrence is computed
    here, from what ONNX Runtime says the node reads. Of constant weights; other LSTMs get the widest range.
    """
    nodes = [node for node in model.ir.graph if node.op_type == "LSTM"]
    if not nodes:
        return {}
    known = [node for node in nodes if all(constant(node.inputs[k]) is not None for k in (1, 2))]
    names = [str(node.inputs[0].name) for node in known if node.inputs[0] is not None]
    largest = dict.fromkeys(map(id, known), 0.0)
    carried: dict[tuple[int, int], tuple[Real, Real]] = {}
    for arrays in each_sample(model, model.ir, data, names):
        for node in known:
            for direction in range(np.asarray(constant(node.inputs[1])).shape[0]):
                key = id(node), direction
                x = arrays[str(node.inputs[0].name)]  # type: ignore[union-attr]
                reach, left = _run(node, direction, x, carried.get(key))
                largest[key[0]] = max(largest[key[0]], reach)
                start = input_at(node, CELL)
                if start is not None and start.is_graph_input():
                    carried[key] = left  # the samples are one stream
    return {
        str(node.name): _exponent(_HEADROOM * largest[id(node)]) if id(node) in largest else CELL_EXPONENTS[-1]
        for node in nodes
    }


def _exponent(reach: float) -> int:
    return next((e for e in CELL_EXPONENTS if reach <= 2.0 ** (15 + e)), CELL_EXPONENTS[-1])


def _run(
    node: ir.Node, direction: int, sequence: npt.NDArray[np.generic], start: tuple[Real, Real] | None
) -> tuple[float, tuple[Real, Real]]:
    """(greatest magnitude of the cell state in any step, what the last step leaves) of one sample."""
    weights, recurrent = (np.asarray(constant(node.inputs[k]), np.float64)[direction] for k in (1, 2))
    units = recurrent.shape[1]
    given = constant(input_at(node, 3))
    bias = np.zeros(8 * units) if given is None else np.asarray(given, np.float64)[direction]
    x = np.asarray(sequence, np.float64).reshape(-1, weights.shape[1])
    if direction == 1 or string_attribute(node, "direction", "forward") == "reverse":
        x = x[::-1]
    ahead = x @ weights.T + bias[: 4 * units] + bias[4 * units :]
    h, c = start or (_start(node, HIDDEN, direction, units), _start(node, CELL, direction, units))
    reach = float(np.abs(c).max())
    for row in ahead:
        i, o, f, g = np.split(row + recurrent @ h, 4)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        reach = max(reach, float(np.abs(c).max()))
    return reach, (h, c)


def _start(node: ir.Node, index: int, direction: int, units: int) -> Real:
    given = constant(input_at(node, index))
    return np.zeros(units) if given is None else np.asarray(given, np.float64).reshape(-1, units)[direction]


def _sigmoid(x: Real) -> Real:
    result: Real = 0.5 * (1 + np.tanh(0.5 * x))
    return result
