"""UNIDIRECTIONAL_SEQUENCE_LSTM: bit for bit with LiteRT's reference kernel, state included; what is refused."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.state import decode_states
from edgescale.frontend import load_model, save_model
from edgescale.lower import lower, reference
from edgescale.lower.program_recurrent import Lstm

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")


def _helper() -> Any:
    path = Path(__file__).with_name("tflite_recurrent_files.py")
    spec = importlib.util.spec_from_file_location("frontend_recurrent_files", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


lstms = _helper()
UNITS = st.tuples(st.floats(2**-9, 2**-4, width=32), st.integers(-128, 127))


def load(spec: Any, folder: Path) -> Any:
    path = folder / "lstm.tflite"
    path.write_bytes(lstms.write(spec))
    return load_model(path)


def run(program: Any, frames: np.ndarray) -> np.ndarray:
    port = program.inputs[0]
    stored = frames.reshape(len(frames), *program.tensors[port.tensor].shape[1:])
    return reference.run(program, {port.tensor: stored})[program.outputs[0].tensor]


def litert(spec: Any, frames: np.ndarray) -> np.ndarray:
    """Outputs of consecutive runs of one interpreter, which keeps the variable tensors."""
    return lstms.LiteRT(lstms.write(spec)).run(frames)


@settings(max_examples=150, deadline=None)
@given(
    spec=st.builds(
        lstms.Lstm,
        steps=st.integers(1, 6), inputs=st.integers(1, 9), units=st.integers(1, 9), x=UNITS, h=UNITS,
        cell_exponent=st.integers(-15, -9), cell_clip=st.sampled_from([0.0, 0.4, 10.0]), time_major=st.booleans(),
        layers=st.integers(1, 2), short=st.booleans(), seed=st.integers(0, 10**6),
    )
)  # fmt: skip
def test_every_bit_equals_litert_over_a_stream(tmp_path_factory, spec):
    program = lower(load(spec, tmp_path_factory.mktemp("l")).ir, "n")
    assert {layer.op for layer in program.layers} == {"Slice", "Lstm"}
    frames = lstms.frames(spec, 4)
    expected = litert(spec, frames)
    np.testing.assert_array_equal(run(program, frames).reshape(expected.shape), expected)


def test_states_start_from_real_zeros_and_are_kept_as_the_interpreter_keeps_them(tmp_path):
    spec = lstms.Lstm(h=(0.01, -37))
    model = load(spec, tmp_path)
    hidden, cell = sorted(decode_states(model.ir.metadata_props), key=lambda state: state.name, reverse=True)
    assert (hidden.name, cell.name) == ("lstm/output_state", "lstm/cell_state")
    assert hidden.initial.dtype == np.uint8 and (hidden.initial == -37 + 128).all()
    assert cell.initial.dtype == np.int16 and not cell.initial.any()
    frames = lstms.frames(spec, 2)
    frames[1] = frames[0]
    kept = litert(spec, frames)
    assert (kept[0] != kept[1]).any()
    found = lstms.LiteRT(lstms.write(spec))
    found.feed(frames[0])
    found.interpreter.reset_all_variables()
    found.feed(frames[0])
    assert np.array_equal(found.tensor(found.outputs[0]["index"])[0], kept[0])


@pytest.mark.parametrize("clip", [0.0, 0.3])
@pytest.mark.parametrize("time_major", [False, True])
def test_float_files_equal_litert_to_rounding(tmp_path, clip, time_major):
    spec = lstms.Lstm(real=True, cell_clip=clip, time_major=time_major)
    program = lower(load(spec, tmp_path).ir, "n")
    frames = lstms.frames(spec, 4)
    expected = litert(spec, frames)
    np.testing.assert_allclose(run(program, frames).reshape(expected.shape), expected, atol=2e-6)


def test_the_onnx_form_runs_in_onnx_runtime_and_survives_a_file(tmp_path):
    """Its LSTM computes in float32, so it follows LiteRT within a few steps of the output."""
    from edgescale.rigs import onnx_executor

    spec = lstms.Lstm(steps=6, units=8, h=(0.0078125, 0))
    model = load(spec, tmp_path)
    save_model(model, tmp_path / "m.onnx")
    frames = lstms.frames(spec, 6)
    expected = litert(spec, frames)
    observed = onnx_executor(tmp_path / "m.onnx")(frames)
    assert np.abs(observed / np.float32(spec.h[0]) - expected).max() <= 4
    again = lower(load_model(tmp_path / "m.onnx").ir, "n")
    assert any(isinstance(layer, Lstm) and layer.cell_exponent == -11 for layer in again.layers)
    np.testing.assert_array_equal(run(again, frames).reshape(expected.shape), expected)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"extra": "peephole"}, "peephole weights"), ({"extra": "projection"}, "a projection"),
        ({"extra": "norm"}, "layer normalization"), ({"extra": "clip"}, "a bound of the projection"),
        ({"without": "input gate"}, r"coupled input and forget gates \(CIFG\)"),
        ({"without": "bias"}, "for the forget gate; found none"),
        ({"cell_exponent": -8}, "int16 of scale 0.00390625"),
        ({"intermediate": (0.02, 4)}, "one scale and zero-point for output, output state and hidden intermediate"),
    ],
)  # fmt: skip
def test_variants_are_refused_by_name(tmp_path, change, found):
    with pytest.raises(UnsupportedModelError, match=rf"'lstm' \(UNIDIRECTIONAL_SEQUENCE_LSTM\).*{found}"):
        load(replace(lstms.Lstm(), **change), tmp_path)


@pytest.mark.parametrize("cut", range(60, 2400, 171))
def test_damaged_files_are_one_sentence(tmp_path, cut):
    data = bytearray(lstms.write(lstms.Lstm()))
    data[cut % len(data)] ^= 0xFF
    path = tmp_path / "lstm.tflite"
    path.write_bytes(bytes(data))
    try:
        load_model(path)
    except UnsupportedModelError as error:
        assert str(error)
