"""Which of LiteRT's own operators computes a table of 256 entries: found by asking LiteRT.

The interpreter's reference kernel runs on all 256 values; the operator is used only if it gives the very same table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt

from edgescale.lower.tables import table_of
from edgescale_tflite.flatbuffer import Units, Writer

Table = npt.NDArray[np.int8]
Pair = tuple[float, int]


@dataclass(frozen=True)
class Native:
    """An operator with its version and options."""

    kind: str
    version: int
    options: Mapping[str, float] = field(default_factory=dict)


_OPERATORS = {
    "sigmoid": Native("LOGISTIC", 2),
    "tanh": Native("TANH", 2),
    "hardswish": Native("HARD_SWISH", 1),
    "exp": Native("EXP", 2),
    "elu": Native("ELU", 1),
}
_FIXED = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}
"""Output units that LiteRT demands."""


def native_operator(function: str, table: Table, source: Pair, output: Pair) -> Native | None:
    """The operator that computes `table` from int8 in units `source` to units `output`; None where none does."""
    for candidate in _candidates(function, table, source, output):
        if _FIXED.get(candidate.kind, output) != output:
            continue
        made = _litert_table(candidate.kind, candidate.version, tuple(candidate.options.items()), source, output)
        if made is not None and made == table.tobytes():
            return candidate
    return None


def _candidates(function: str, table: Table, source: Pair, output: Pair) -> Iterator[Native]:
    if function in _OPERATORS:
        yield _OPERATORS[function]
    if function == "leakyrelu" and (alpha := _slope(table, source, output)) is not None:
        yield Native("LEAKY_RELU", 2, {"alpha": alpha})


def _slope(table: Table, source: Pair, output: Pair) -> float | None:
    """A slope of the negative half that gives the table: in the middle of those that each entry allows."""
    centred = np.arange(-128, 128) - source[1]
    steps = table.astype(np.float64) - output[1]
    told = (centred < 0) & (table > -128) & (table < 127)
    if not told.any():
        return None
    unit = output[0] / (source[0] * -centred[told])
    low, high = ((-steps[told] - 0.5) * unit).max(), ((-steps[told] + 0.5) * unit).min()
    for place in (0.5, 0.25, 0.75):
        alpha = float(np.float32(max(low, 0.0) * (1 - place) + high * place))
        if np.array_equal(table_of("leakyrelu", (alpha,), source, output), table):
            return alpha
    return None


@cache
def _litert_table(
    kind: str, version: int, options: tuple[tuple[str, float], ...], source: Pair, output: Pair
) -> bytes | None:
    """What LiteRT's reference kernel makes of all 256 inputs; None where it refuses."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    writer = Writer()
    x = writer.tensor("x", (1, 256), "int8", Units((source[0],), source[1]))
    y = writer.tensor("y", (1, 256), "int8", Units((output[0],), output[1]))
    table = {"LEAKY_RELU": "LeakyReluOptions"}.get(kind, "")
    writer.operator(kind, [x], [y], version, table, (), **dict(options))
    data = writer.data("", {"x": x}, {"y": y}, {})
    try:
        interpreter = Interpreter(model_content=data, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError):
        return None
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.arange(-128, 128, dtype=np.int8)[None])
    interpreter.invoke()
    made: bytes = interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).tobytes()
    return made
