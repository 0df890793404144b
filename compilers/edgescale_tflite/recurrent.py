"""Lstm as UNIDIRECTIONAL_SEQUENCE_LSTM, whose states are variable tensors of the file.

The operator keeps its states from run to run. A layer whose states are the program's own (what a streaming model
keeps) is just that. A layer that starts from zeros every time is that too if the variables are reset before each
inference; `Emission.reset_each_run` tells whoever runs the file. LiteRT has no GRU.
"""

from __future__ import annotations

import numpy as np

from edgescale.core.errors import UnsupportedModelError
from edgescale.lower.fixedpoint import requant
from edgescale.lower.program import Array, Layer, Requant, Slice, State, Tensor
from edgescale.lower.program_recurrent import GATE_SCALE, Gru, Initial, Lstm
from edgescale_tflite.emission import Emission, units_of, writes
from edgescale_tflite.flatbuffer import Units
from edgescale_tflite.scales import Inexpressible, factors, same, search
from edgescale_tflite.spatial import strided

_GATES = ("input", "forget", "cell", "output")
_OMITTED = -1


def prepare(emission: Emission) -> None:
    """Find which states and which layers around an Lstm its own variables replace.

    Raises UnsupportedModelError for states that an operator of LiteRT cannot keep.
    """
    kept: list[bool] = []
    problems = []
    for layer in emission.program.layers:
        if isinstance(layer, Lstm):
            try:
                kept.append(_states_inside(emission, layer))
            except Inexpressible as verdict:
                problems.append(f"node {layer.name!r} (op Lstm): {verdict}")
    if len(set(kept)) > 1:
        problems.append(
            "rule: LSTMs keep their states from run to run, or all start from zeros; found both, and LiteRT resets "
            "the variables of all"
        )
    if problems:
        raise UnsupportedModelError("\n".join(problems))
    emission.reset_each_run = kept[:1] == [False]


def _states_inside(emission: Emission, layer: Lstm) -> bool:
    """Whether the layer's states are the program's (True) or zeros at every run (False)."""
    kinds = [_cell(emission, layer), _hidden(emission, layer)]
    if kinds[0] != kinds[1]:
        raise Inexpressible("both states are kept or both start from zeros", "one of each")
    return kinds[0]


def _cell(emission: Emission, layer: Lstm) -> bool:
    if not layer.has_cell:
        return False
    name = layer.inputs[-1]
    readers = [other for other in emission.program.layers if name in other.inputs and other is not layer]
    if readers or name in {port.tensor for port in emission.program.outputs}:
        raise Inexpressible("nobody else reads the cell state", f"{(readers or [layer])[0].name!r} reading it")
    maker = _maker(emission, name)
    if isinstance(maker, Initial):
        _check_zeros(maker.values, 0)
        emission.skipped.add(maker.name)
        return False
    state = _state(emission, maker.inputs[0] if isinstance(maker, Slice) else name)
    if state is None or state.output != name:
        raise Inexpressible("the cell state starts from zeros or from what the last run left", "another start")
    _check_zeros(state.initial, 0)
    if maker is not None:
        emission.skipped.add(maker.name)
    emission.kept_inside.add(state.name)
    return True


def _hidden(emission: Emission, layer: Lstm) -> bool:
    if not layer.has_hidden:
        return False
    name, zero = layer.inputs[1], emission.of(layer.output).zero_point
    maker = _maker(emission, name)
    if isinstance(maker, Initial):
        _check_zeros(maker.values, zero)
        emission.skipped.add(maker.name)
        return False
    state = _state(emission, name)
    if state is None or not _is_last_step(emission, layer, state.output):
        raise Inexpressible("the output state starts from zeros or from the last step of the last run", "another start")
    _check_zeros(state.initial, zero)
    left = _maker(emission, state.output)
    if left is not None and left is not layer and not _read(emission, state.output):
        emission.skipped.add(left.name)
    emission.kept_inside.add(state.name)
    return True


def _is_last_step(emission: Emission, layer: Lstm, name: str) -> bool:
    """Whether a tensor is the output after the last step that was taken."""
    out = emission.of(layer.output)
    if name == layer.output:
        return out.shape[2] == 1
    maker = _maker(emission, name)
    last = 0 if layer.reverse or not layer.sequence else out.shape[2] - 1
    return (
        isinstance(maker, Slice)
        and maker.inputs[0] == layer.output
        and maker.begin == (0, 0, last, 0)
        and emission.of(name).shape == (1, 1, 1, layer.units)
    )


def _maker(emission: Emission, name: str) -> Layer | None:
    return next((layer for layer in emission.program.layers if layer.output == name), None)


def _state(emission: Emission, name: str) -> State | None:
    return next((state for state in emission.program.states if state.input == name), None)


def _read(emission: Emission, name: str) -> bool:
    program = emission.program
    return any(name in layer.inputs for layer in program.layers) or any(p.tensor == name for p in program.outputs)


def _check_zeros(values: Array, zero: int) -> None:
    if np.any(values != zero):
        raise Inexpressible("states start from real zeros, as LiteRT's variables do", "other values")


@writes(Gru)
def gru(emission: Emission, layer: Gru) -> None:
    """No operator of LiteRT computes a GRU with this arithmetic."""
    raise Inexpressible("a layer that LiteRT has an operator for (use an LSTM, or the C back end)", "a GRU")


@writes(Initial)
def initial(emission: Emission, layer: Initial) -> None:
    """A constant."""
    out = emission.of(layer.output)
    emission.index[out.name] = emission.writer.constant(out.name, layer.values.reshape(out.shape), units_of(out))


@writes(Lstm)
def lstm(emission: Emission, layer: Lstm) -> None:
    """float32, or int8 with one scale a matrix; a reversed one between REVERSE_V2."""
    source, out = emission.of(layer.inputs[0]), emission.of(layer.output)
    steps, width = source.shape[-2], source.shape[-1]
    given = emission.inner(source, "sequence", (1, steps, width))
    emission.reshaped(emission.tensor(source.name), given, (1, steps, width))
    if layer.reverse:
        given = _reversed(emission, source, given, (1, steps, width))
    real = out.dtype == "float32"
    weights = _matrices(emission, layer, "weights", layer.weights, layer.requant, source)
    recurrent = _matrices(emission, layer, "recurrent", layer.recurrent, layer.recurrent_requant, out)
    states = _variables(emission, layer, out)
    omitted = [_OMITTED] * 3
    inputs = [given, *weights, *recurrent, *omitted, *_biases(emission, layer, source), *omitted[:2], *states]
    made = emission.inner(out, "sequence", (1, steps, layer.units))
    emission.writer.operator(
        "UNIDIRECTIONAL_SEQUENCE_LSTM", [*inputs, *[_OMITTED] * 4], [made], 1 if real else 3,
        "UnidirectionalSequenceLSTMOptions", () if real else _intermediates(emission, layer, out),
        fusedActivationFunction=emission.writer.enumerated("ActivationFunctionType", "TANH"),
        cellClip=_cell_clip(layer), projClip=0.0, timeMajor=False,
    )  # fmt: skip
    if not layer.sequence:
        last = emission.inner(out, "last", (1, 1, layer.units))
        strided(emission, out.dtype, made, last, [0, steps - 1, 0], [1, steps, layer.units], [1, 1, 1])
        made = last
    elif layer.reverse:
        made = _reversed(emission, out, made, (1, steps, layer.units))
    emission.reshaped(made, emission.tensor(out.name), out.shape)


def _reversed(emission: Emission, like: Tensor, given: int, shape: tuple[int, ...]) -> int:
    made = emission.inner(like, "reversed", shape)
    emission.operator("REVERSE_V2", [given, emission.numbers([1], "axis_1")], made, 3, "ReverseV2Options")
    return made


def _cell_clip(layer: Lstm) -> float:
    """In real units, as the file has it."""
    scale = 2.0**layer.cell_exponent if layer.requant is not None else 1.0
    return float(layer.cell_clip) * scale


def _matrices(
    emission: Emission, layer: Lstm, name: str, weights: Array, scaling: Requant | None, source: Tensor
) -> list[int]:
    """A constant for each gate."""
    if scaling is None:
        return [
            emission.weight(f"{layer.name}/{name}_{gate}", weights[k].astype(np.float32), None)
            for k, gate in enumerate(_GATES)
        ]
    return [
        emission.weight(f"{layer.name}/{name}_{gate}", weights[k].astype(np.int8), Units((scale,)))
        for (k, gate), scale in zip(enumerate(_GATES), _scales(layer, scaling, source.scale), strict=True)
    ]


def _scales(layer: Lstm, scaling: Requant, scale_in: float) -> list[float]:
    """One scale a gate."""
    found = []
    for part in range(len(_GATES)):
        size = len(scaling.multiplier) // len(_GATES)
        rows = slice(part * size, (part + 1) * size)
        wanted = Requant(scaling.multiplier[rows][:1], scaling.shift[rows][:1], scaling.rounding)
        if not same(wanted, Requant(scaling.multiplier[rows], scaling.shift[rows], scaling.rounding)):
            raise Inexpressible("one scale for all rows of a gate's matrix", "a scale a row")

        def accepts(scale: float, wanted: Requant = wanted) -> bool:
            factor = np.float32(scale_in) * np.float32(scale) / np.float32(GATE_SCALE)
            return same(requant(float(factor)), wanted)

        estimate = float(factors(wanted)[0]) * GATE_SCALE / scale_in
        found.append(search(estimate, accepts, f"the rescaling of the {_GATES[part]} gate"))
    return found


def _biases(emission: Emission, layer: Lstm, source: Tensor) -> list[int]:
    if layer.requant is None:
        both = layer.bias.astype(np.float32) + layer.recurrent_bias.astype(np.float32)
        return [emission.weight(f"{layer.name}/bias_{gate}", both[k], None) for k, gate in enumerate(_GATES)]
    if layer.recurrent_bias.any():
        raise Inexpressible("no bias of the recurrent product", "one")
    scales = [source.scale * scale for scale in _scales(layer, layer.requant, source.scale)]
    return [
        emission.weight(f"{layer.name}/bias_{gate}", layer.bias[k].astype(np.int32), Units((scales[k],)))
        for k, gate in enumerate(_GATES)
    ]


def _variables(emission: Emission, layer: Lstm, out: Tensor) -> list[int]:
    writer, shape = emission.writer, (1, layer.units)
    real = out.dtype == "float32"
    hidden = writer.tensor(f"{layer.name}/output_state", shape, out.dtype, units_of(out), variable=True)
    cell_units = None if real else Units((2.0**layer.cell_exponent,))
    kind = "float32" if real else "int16"
    return [hidden, writer.tensor(f"{layer.name}/cell_state", shape, kind, cell_units, variable=True)]


def _intermediates(emission: Emission, layer: Lstm, out: Tensor) -> tuple[int, ...]:
    """Units of what the operator computes on the way: the gates' Q3.12, and the hidden vector's."""
    if layer.hidden_requant is None or not same(
        requant(float(np.float32(2.0**-30) / np.float32(out.scale))), layer.hidden_requant
    ):
        raise Inexpressible("a hidden vector rescaled to the output's units", "another rescaling")
    gates = [
        emission.writer.tensor(f"{layer.name}/gate_{gate}", (0,), "int16", Units((GATE_SCALE,))) for gate in _GATES
    ]
    return (*gates, emission.writer.tensor(f"{layer.name}/hidden", (0,), "int8", units_of(out)))
