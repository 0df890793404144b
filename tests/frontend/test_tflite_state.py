"""Variables of TensorFlow Lite files: paired ports in ONNX, refusals, and ONNX Runtime feeding state back."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.state import StateSpec, decode_states, encode_states
from edgescale.frontend import load_model, save_model

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")


def _helper() -> Any:
    path = Path(__file__).with_name("tflite_state_files.py")
    spec = importlib.util.spec_from_file_location("frontend_state_files", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


states = _helper()
UNITS = (0.05, -3)


def saved(data: bytes, folder: Path) -> Path:
    path = folder / "stream.tflite"
    path.write_bytes(data)
    return path


def test_states_are_paired_ports_named_in_the_metadata(tmp_path):
    model = load_model(saved(states.stream(), tmp_path))
    assert [spec.name for spec in model.inputs] == ["frame"] and [spec.name for spec in model.outputs] == ["score"]
    found = {state.name: state for state in decode_states(model.ir.metadata_props)}
    assert set(found) == {"near", "far", "sum", "before"}
    assert found["far"].initial.shape == (1, 4, 1, 6) and found["far"].initial.dtype == np.uint8
    proto = onnx.load_from_string((save_model(model, tmp_path / "m.onnx"), (tmp_path / "m.onnx").read_bytes())[1])
    assert {state.input for state in found.values()} < {port.name for port in proto.graph.input}
    assert {state.output for state in found.values()} < {port.name for port in proto.graph.output}
    again = load_model(tmp_path / "m.onnx")
    assert again.inputs == model.inputs and again.outputs == model.outputs


def test_onnx_runtime_feeds_state_back_as_litert_keeps_it(tmp_path):
    """Within one step of the last bit: ONNX Runtime rounds products once, LiteRT twice."""
    from edgescale.rigs import onnx_executor

    data = states.stream()
    frames = states.frames(data, 90)
    expected, _ = states.LiteRT(data).stream(frames)
    model = load_model(saved(data, tmp_path))
    save_model(model, tmp_path / "m.onnx")
    execute = onnx_executor(tmp_path / "m.onnx")
    first = execute(frames[:40])
    observed = np.concatenate([first, execute(frames[40:])])  # one stream over both calls
    assert np.abs(observed * 256 - expected.astype(np.float32)).max() <= 3
    stateless = np.concatenate([onnx_executor(tmp_path / "m.onnx")(frame[None]) for frame in frames])
    assert np.abs(stateless - observed).max() > 0.1


@pytest.mark.parametrize("name", states.WAKE_WORDS)
def test_wake_word_models_load(name):
    path = states.wake_word(name)
    if path is None:
        pytest.skip("pymicro-wakeword is not installed and EDGESCALE_MWW is not set")
    model = load_model(path)
    assert [spec.shape for spec in model.inputs] == [(1, 3, 40)]
    assert len(decode_states(model.ir.metadata_props)) == 6


@pytest.mark.parametrize(
    "value",
    [np.full((1, 3), 7, np.uint8), np.arange(6, dtype=np.int8).reshape(1, 2, 3), np.array([[0.5, -1e-9]], np.float32)],
)
def test_initial_values_survive_the_metadata(value):
    (found,) = decode_states(encode_states([StateSpec("a/b", "in", "out", value)]))
    assert (found.name, found.input, found.output) == ("a/b", "in", "out")
    assert found.initial.dtype == value.dtype and np.array_equal(found.initial, value)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"input": "a", "output": "b", "shape": [2], "dtype": "int64", "initial": 0}',
        '{"input": "a", "output": "b", "shape": [2], "dtype": "int8", "initial": "AAAA"}',
        '{"input": "a", "output": "b", "shape": [2], "dtype": "int8", "initial": 300}',
        '{"input": "a", "output": "b", "shape": [0], "dtype": "int8", "initial": 0}',
    ],
)  # fmt: skip
def test_broken_metadata_is_one_sentence(text):
    with pytest.raises(UnsupportedModelError, match=r"'edgescale\.state\.s' is broken"):
        decode_states({"edgescale.state.s": text}, "net.onnx")


def test_a_variable_without_an_initial_value_is_refused(tmp_path):
    w = states.Writer()
    x = w.tensor((1, 4), UNITS, name="x")
    w.call_once()
    handle = w.variable("lonely")
    held = w.read(handle, (1, 4), UNITS)
    y = w.operator("ADD", [x, held], w.tensor((1, 4), UNITS, name="y"), "AddOptions", 2)
    w.assign(handle, y)
    with pytest.raises(UnsupportedModelError, match=r"CALL_ONCE gives every variable .* found 'lonely' without"):
        load_model(saved(w.data([x], [y]), tmp_path))


def test_a_variable_of_two_scales_is_refused(tmp_path):
    w = states.Writer()
    x = w.tensor((1, 4), UNITS, name="x")
    w.call_once()
    handle = w.variable("odd", np.zeros((1, 4), np.int8), UNITS)
    held = w.read(handle, (1, 4), UNITS)
    y = w.operator("ADD", [x, held], w.tensor((1, 4), (0.1, 0), name="y"), "AddOptions", 2)
    w.assign(handle, y)
    with pytest.raises(UnsupportedModelError, match="one shape and one scale"):
        load_model(saved(w.data([x], [y]), tmp_path))


def test_a_read_after_an_assignment_sees_it(tmp_path):
    """The state is then no state at all: what is read was made in the same inference."""
    from edgescale.lower import lower, reference

    w = states.Writer()
    x = w.tensor((1, 4), UNITS, name="x")
    w.call_once()
    handle = w.variable("scratch", np.zeros((1, 4), np.int8), UNITS)
    doubled = w.operator("ADD", [x, x], w.tensor((1, 4), UNITS), "AddOptions", 2)
    w.assign(handle, doubled)
    y = w.operator("ADD", [w.read(handle, (1, 4), UNITS), x], w.tensor((1, 4), (0.1, 0), name="y"), "AddOptions", 2)
    data = w.data([x], [y])
    program = lower(load_model(saved(data, tmp_path)).ir, "n")
    frames = states.frames(data, 60)
    assert not program.states
    observed = reference.run(program, {program.inputs[0].tensor: frames})[program.outputs[0].tensor]
    assert np.array_equal(observed, states.files.LiteRT(data).run(frames))


@pytest.mark.parametrize("cut", range(60, 4000, 331))
def test_damaged_files_with_variables_are_one_sentence(tmp_path, cut):
    data = bytearray(states.stream())
    data[cut % len(data)] ^= 0xFF
    try:
        load_model(saved(bytes(data), tmp_path))
    except UnsupportedModelError as error:
        assert str(error)
