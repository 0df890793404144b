"""Programs with state: streams on the NumPy reference against LiteRT, ONNX and closed forms; slices against NumPy."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.state import StateSpec, encode_states
from edgescale.frontend import load_model
from edgescale.lower import lower, reference
from edgescale.lower.program import Concat, Port, Program, Slice, State, Tensor


def _helper() -> Any:
    path = Path(__file__).resolve().parents[1] / "frontend" / "tflite_state_files.py"
    spec = importlib.util.spec_from_file_location("lower_state_files", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def states() -> Any:
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    return _helper()


def equal_to_litert(states: Any, data: bytes, path: Path, count: int) -> Program:
    """Every output, and what every state holds before every frame."""
    program = lower(load_model(path).ir, "stream")
    frames = states.frames(data, count)
    expected, held = states.LiteRT(data).stream(frames)
    source = program.tensors[program.inputs[0].tensor]
    stored = frames.reshape(count, *source.shape[1:])
    keep = {state.name: state.input for state in program.states}
    made = reference.run_stream(program, {source.name: stored}, keep=keep.values())
    observed = made[program.outputs[0].tensor].astype(np.int16) + 128
    assert np.array_equal(observed.reshape(expected.shape), expected)
    assert set(keep) == set(held)
    for name, tensor in keep.items():
        assert np.array_equal(made[tensor].reshape(held[name].shape), held[name]), name
        assert len(np.unique(held[name])) > 20  # not one that stands still
    return program


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_equals_litert(states, tmp_path, seed):
    data = states.stream(seed)
    (tmp_path / "s.tflite").write_bytes(data)
    program = equal_to_litert(states, data, tmp_path / "s.tflite", 200)
    assert {state.name for state in program.states} == {"near", "far", "sum", "before"}


@pytest.mark.parametrize("name", ("alexa", "hey_jarvis", "hey_mycroft", "okay_nabu"))
def test_wake_word_models_equal_litert_over_1000_frames(states, name):
    path = states.wake_word(name)
    if path is None:
        pytest.skip("pymicro-wakeword is not installed and EDGESCALE_MWW is not set")
    equal_to_litert(states, path.read_bytes(), path, 1000)


def test_a_stream_may_be_cut_anywhere_and_reset(states, tmp_path):
    data = states.stream()
    (tmp_path / "s.tflite").write_bytes(data)
    program = lower(load_model(tmp_path / "s.tflite").ir, "stream")
    name, out = program.inputs[0].tensor, program.outputs[0].tensor
    frames = states.frames(data, 30).reshape(30, *program.tensors[name].shape[1:])
    whole = reference.run(program, {name: frames})[out]
    held = reference.reset(program)
    parts = [reference.run_stream(program, {name: part}, held)[out] for part in (frames[:1], frames[1:17], frames[17:])]
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(reference.run(program, {name: frames})[out], whole)
    assert not np.array_equal(reference.run(program, {name: frames[10:]})[out], whole[10:])


def smoother(**change: Any) -> onnx.ModelProto:
    """y = s = 0.75 s + 0.25 x in float32, [1, 3]."""
    one = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3]) for n in ("x", "s", "y", "s_next")]
    nodes = [
        helper.make_node("Mul", ["s", "a"], ["kept"], "keep"), helper.make_node("Mul", ["x", "b"], ["new"], "take"),
        helper.make_node("Add", ["kept", "new"], ["s_next"], "add"), helper.make_node("Relu", ["s_next"], ["y"], "out"),
    ]  # fmt: skip
    constants = [numpy_helper.from_array(np.float32(v), n) for n, v in (("a", 0.75), ("b", 0.25))]
    graph = helper.make_graph(nodes, "g", one[:2], one[2:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    spec = {"name": "s", "input": "s", "output": "s_next", "initial": np.full((1, 3), 2, np.float32)} | change
    helper.set_model_props(model, encode_states([StateSpec(**spec)]))
    return model


def test_a_float_onnx_model_with_state(tmp_path):
    from edgescale.rigs import onnx_executor

    onnx.save(smoother(), tmp_path / "s.onnx")
    model = load_model(tmp_path / "s.onnx")
    assert [spec.name for spec in model.inputs] == ["x"]
    program = lower(model.ir, "s")
    x = np.random.default_rng(0).normal(size=(25, 3)).astype(np.float32)
    expected, s = [], np.full(3, 2.0)
    for row in x.astype(np.float64):
        s = 0.75 * s + 0.25 * row
        expected.append(np.maximum(s, 0))
    assert np.allclose(reference.run_real(program, x), expected, atol=1e-6)
    assert np.allclose(onnx_executor(tmp_path / "s.onnx")(x), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": "z"}, "found no 'z'"),
        ({"output": "z"}, "found no 'z'"),
        ({"initial": np.zeros((1, 4), np.float32)}, r"at first \[1, 4\]"),
        ({"initial": np.zeros((1, 3), np.int8)}, "int8"),
    ],
)
def test_states_that_do_not_fit_are_refused(change, message):
    with pytest.raises(UnsupportedModelError, match=message):
        lower(onnx_ir.from_proto(smoother(**change)), "s")


def test_a_state_that_takes_another_states_value_gets_bytes_of_its_own():
    """Two delays in a row, then the input itself: no state may be made of the next one's place."""
    names = ("x", "s1", "s2", "y", "s1_next", "s2_next")
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in names]
    nodes = [
        helper.make_node("Identity", ["s2"], ["y"], "y"), helper.make_node("Identity", ["s1"], ["s2_next"], "second"),
        helper.make_node("Identity", ["x"], ["s1_next"], "first"),
    ]  # fmt: skip
    graph = helper.make_graph(nodes, "g", ports[:3], ports[3:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    zero = np.zeros((1, 2), np.float32)
    helper.set_model_props(model, encode_states([StateSpec(n, n, f"{n}_next", zero) for n in ("s1", "s2")]))
    program = lower(onnx_ir.from_proto(model), "delay")
    assert not {state.output for state in program.states} & set(program.sources)
    x = np.arange(1, 11, dtype=np.float32).reshape(5, 2)
    assert np.array_equal(reference.run_real(program, x), np.concatenate([np.zeros((2, 2)), x[:3]]))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_slice_and_split_equal_numpy(data):
    """ONNX Slice of int8 in any layout: positive and negative bounds, steps, a Split behind it."""
    draw = data.draw
    rank = draw(st.integers(2, 4))
    shape = [1, *(draw(st.integers(2, 6)) for _ in range(rank - 1))]
    axes = draw(st.lists(st.integers(1, rank - 1), unique=True, min_size=1))
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    cuts, vectors = [slice(None)] * rank, ([], [], [])
    for axis in axes:
        low = draw(st.integers(0, shape[axis] - 1))
        high, step = draw(st.integers(low + 1, shape[axis] + 2)), draw(st.integers(1, 3))
        start = low - shape[axis] if draw(st.booleans()) else low
        cuts[axis] = slice(low, high, step)
        for vector, value in zip(vectors, (start, high, step), strict=True):
            vector.append(value)
    expected = x[tuple(cuts)]
    words = dict(zip(("starts", "ends", "steps"), vectors, strict=True)) | {"axes": axes}
    constants = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in words.items()]
    last = expected.shape[-1]
    nodes = [helper.make_node("Slice", ["x", "starts", "ends", "axes", "steps"], ["cut"], "cut")]
    outputs = ["cut"]
    if last > 1:
        constants.append(numpy_helper.from_array(np.array([1, last - 1], np.int64), "sizes"))
        nodes.append(helper.make_node("Split", ["cut", "sizes"], ["left", "right"], "split", axis=-1))
        outputs = ["left", "right"]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    given_port = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "g", [given_port], ports, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    program = lower(onnx_ir.from_proto(model), "s")
    from edgescale.lower.ports import from_stored, to_stored

    stored = {program.inputs[0].tensor: to_stored(program, program.inputs[0], x)}
    made = reference.run(program, stored)
    parts = [from_stored(program, port, made[port.tensor]) for port in program.outputs]
    assert np.array_equal(np.concatenate(parts, axis=-1), expected)


def test_updates_run_after_the_last_reader_and_slices_merge():
    """The shift of a history waits until everybody has read it; parts of parts are taken at once."""
    from edgescale.lower.passes import simplify

    def t(name: str, rows: int, columns: int = 4) -> Tensor:
        return Tensor(name, (1, rows, 1, columns), "int8", 0.1, 0)

    tensors = {v.name: v for v in (t("x", 1), t("s", 3), t("c", 4), t("n", 3), t("half", 4, 2), t("y", 2, 2))}
    ones = (1, 1, 1, 1)
    layers = (
        Concat("join", ("s", "x"), "c", axis=1, rescale=(None, None)),
        Slice("next", ("c",), "n", begin=(0, 1, 0, 0), step=ones),
        Slice("half", ("c",), "half", begin=(0, 0, 0, 2), step=ones),
        Slice("tail", ("half",), "y", begin=(0, 1, 0, 0), step=(1, 2, 1, 1)),
    )
    port = [Port(n, n, tensors[n].shape, (0, 1, 2, 3)) for n in ("x", "y")]
    state = State("s", "s", "n", np.zeros((1, 3, 1, 4), np.int8))
    made = simplify(Program("p", tensors, (port[0],), (port[1],), layers, (state,)))
    assert [layer.name for layer in made.layers] == ["join", "tail", "next"]
    tail = made.layers[1]
    assert isinstance(tail, Slice) and tail.begin == (0, 1, 0, 2) and tail.step == (1, 2, 1, 1)


def test_calibrating_a_model_with_state_is_refused(tmp_path):
    from edgescale.core.dataset import Dataset
    from edgescale.core.errors import UsageError
    from edgescale.core.variant import Recipe
    from edgescale.quantize import quantize_int8

    onnx.save(smoother(), tmp_path / "s.onnx")
    data = Dataset("d", np.zeros((2, 3), np.float32), None, "")
    with pytest.raises(UsageError, match="keeps state between inferences"):
        quantize_int8(load_model(tmp_path / "s.onnx"), data, Recipe(8, 8))
