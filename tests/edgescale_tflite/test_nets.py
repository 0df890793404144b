"""Whole nets: TensorFlow Lite files there and back, the shipped family, int16, recurrent and streaming models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgescale.core.errors import UnsupportedModelError
from edgescale.core.variant import Recipe, parse_recipe
from edgescale.frontend import load_dataset, load_model
from edgescale.lower import lower, reference
from edgescale.lower.program import LIMITS, Program


def lowered(path: Path) -> Program:
    model = load_model(path)
    return lower(model.ir, model.name)


def saved(folder: Path, data: bytes, name: str = "net.tflite") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def stream(harness: Any, written: Any, program: Program, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Consecutive samples, the variables reset before each where the file asks for it."""
    if not written.reset_each_run:
        return harness.run(written.data, program, inputs)
    count = len(next(iter(inputs.values())))
    rows = [harness.run(written.data, program, {k: v[i : i + 1] for k, v in inputs.items()}) for i in range(count)]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def check(harness: Any, program: Program, count: int = 6, seed: int = 0) -> Any:
    from edgescale_tflite.write import write_program

    written = write_program(program)
    given = harness.inputs(program, seed, count)
    wanted, got = reference.run(program, given), stream(harness, written, program, given)
    for name, value in wanted.items():
        if program.tensors[name].dtype in LIMITS:
            np.testing.assert_array_equal(got[name], value)
        else:
            np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-4)
    return written


@pytest.mark.parametrize("name", ["kws01", "ic01", "ad01"])
def test_a_file_there_and_back(harness, mlperf_tiny, tmp_path: Path, name: str) -> None:
    path = mlperf_tiny(f"{name}_int8.tflite")
    program = lowered(path)
    written = check(harness, program)
    again = lowered(saved(tmp_path, written.data))
    given = harness.inputs(program, 5)
    (port,), (port2,) = program.inputs, again.inputs
    assert (port.name, port.dtype, port.shape) == (port2.name, port2.dtype, port2.shape)
    assert [p.name for p in again.outputs] == [p.name for p in program.outputs]
    first, second = reference.run(program, given), reference.run(again, {port2.tensor: given[port.tensor]})
    np.testing.assert_array_equal(*[next(iter(found.values())) for found in (first, second)])
    # What our file computes is what the file it came from computes.
    x = given[port.tensor]
    original = harness.run(path.read_bytes(), program, given)
    np.testing.assert_array_equal(
        next(iter(original.values())).reshape(len(x), -1), first[program.outputs[0].tensor].reshape(len(x), -1)
    )
    assert len(written.data) < 1.2 * path.stat().st_size


@pytest.mark.parametrize("name", ["kws01", "ic01", "ad01"])
def test_float_files(harness, mlperf_tiny, name: str) -> None:
    check(harness, lowered(mlperf_tiny(f"{name}_fp32.tflite")), 3)


@pytest.mark.parametrize("size", ["small", "medium", "large"])
@pytest.mark.parametrize("recipe", ["fp32", "w8a8", "w4a8"])
def test_the_shipped_family(harness, repository: Path, size: str, recipe: str) -> None:
    from edgescale.quantize import quantize

    folder = repository / "examples" / "fashion"
    model = load_model(folder / f"fashion_{size}.onnx")
    calibration = load_dataset(str(folder / "calibration.npz"))
    found = Recipe() if recipe == "fp32" else parse_recipe(recipe)
    graph = model.ir if found.is_float else quantize(model, calibration, found)
    written = check(harness, lower(graph, model.name), 4)
    if recipe != "fp32":
        floats = {kind for _, kind in written.operators} & {"DEQUANTIZE", "CAST"}
        assert not floats, "integers all the way"


def test_names_and_layers_survive(harness, mlperf_tiny) -> None:
    import json

    from edgescale_tflite.write import write_program

    program = lowered(mlperf_tiny("kws01_int8.tflite"))
    data = write_program(program).data
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(data, 0)
    entry = next(m for m in model.metadata if m.name == b"edgescale")
    note = json.loads(bytes(model.buffers[entry.buffer].data))
    assert [note["layers"][number][0] for number in note["operators"]] == [layer.name for layer in program.layers]
    assert len(note["operators"]) == len(model.subgraphs[0].operators)
    interpreter = __import__("ai_edge_litert.interpreter", fromlist=["Interpreter"]).Interpreter(model_content=data)
    signature = interpreter.get_signature_list()["serving_default"]
    assert signature["inputs"] == [program.inputs[0].name] and signature["outputs"] == [program.outputs[0].name]


def test_buffers_lie_on_16_bytes(harness, mlperf_tiny) -> None:
    from ai_edge_litert import schema_py_generated as schema
    from edgescale_tflite.write import write_program

    data = write_program(lowered(mlperf_tiny("kws01_int8.tflite"))).data
    model = schema.Model.GetRootAs(data, 0)
    base = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    places = [
        buffer.DataAsNumpy().__array_interface__["data"][0] - base
        for buffer in (model.Buffers(i) for i in range(model.BuffersLength()))
        if buffer.DataLength()
    ]
    assert places and all(place % 16 == 0 for place in places)


@pytest.fixture(scope="module")
def recurrent_files(harness: Any, repository: Path) -> Any:
    return harness.load_module(
        "tflite_recurrent_files_here", repository / "tests" / "frontend" / "tflite_recurrent_files.py"
    )


@pytest.mark.parametrize(
    "options",
    [
        {}, {"steps": 1}, {"time_major": True}, {"real": True}, {"layers": 2}, {"cell_clip": 2.0},
        {"units": 9, "cell_exponent": -13},
    ],
    ids=str,
)  # fmt: skip
def test_lstm_files_keep_their_states(harness, recurrent_files, tmp_path: Path, options: dict[str, Any]) -> None:
    program = lowered(saved(tmp_path, recurrent_files.write(recurrent_files.Lstm(**options))))
    written = check(harness, program, 7)
    assert not written.reset_each_run
    again = lowered(saved(tmp_path, written.data))
    assert {state.initial.dtype for state in again.states} == {state.initial.dtype for state in program.states}


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("quantized", [False, True])
def test_lstm_that_starts_from_zeros(
    harness, repository: Path, tmp_path: Path, direction: str, quantized: bool
) -> None:
    from edgescale.core.dataset import Dataset
    from edgescale.quantize import quantize

    nets = harness.load_module("tflite_recurrent_nets", repository / "tests" / "recurrent_nets.py")
    onnx.save(nets.classifier("LSTM", direction=direction, steps=6, units=5, gain=1.0), tmp_path / "net.onnx")
    model = load_model(tmp_path / "net.onnx")
    x = nets.chirps(32, 6, 6, 0)[0].astype(np.float32)
    graph = quantize(model, Dataset("x", x, None, "0" * 64), parse_recipe("w8a8")) if quantized else model.ir
    if quantized:  # our quantizer gives each row a scale of its own
        with pytest.raises(
            UnsupportedModelError, match="one scale for all rows of a gate's matrix; found a scale a row"
        ):
            check(harness, lower(graph, "net"), 5)
    else:
        assert check(harness, lower(graph, "net"), 5).reset_each_run


def test_gru_is_refused_by_name(harness, repository: Path, tmp_path: Path) -> None:
    from edgescale_tflite.write import write_program

    nets = harness.load_module("tflite_recurrent_nets", repository / "tests" / "recurrent_nets.py")
    onnx.save(nets.classifier("GRU", steps=6, units=5), tmp_path / "net.onnx")
    with pytest.raises(UnsupportedModelError, match=r"'gru.*' \(op Gru\): rule: .*LSTM.*found a GRU"):
        write_program(lowered(tmp_path / "net.onnx"))


def test_streaming_files_keep_their_variables(harness, repository: Path, tmp_path: Path) -> None:
    states = harness.load_module("tflite_state_files_here", repository / "tests" / "frontend" / "tflite_state_files.py")
    program = lowered(saved(tmp_path, states.stream()))
    written = check(harness, program, 20)
    again = lowered(saved(tmp_path, written.data))
    assert {state.name for state in again.states} == {state.name for state in program.states}
    if (wake_word := states.wake_word("okay_nabu")) is not None:
        check(harness, lowered(wake_word), 12)


def test_scales_of_a_scaled_product_are_those_a_file_can_hold(harness, tmp_path: Path) -> None:
    """Gemm's alpha is a factor on the weights' scales, and a channel of almost no weights gets coarser ones."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(3)
    scales = rng.uniform(0.01, 0.02, 7).astype(np.float32)
    scales[2] = 1e-12
    arrays = {
        "x_scale": np.float32(0.05), "x_zero": np.uint8(117), "w": rng.integers(-127, 128, (7, 12)).astype(np.int8),
        "w_scale": scales, "w_zero": np.zeros(7, np.int8), "b": rng.normal(0, 3, 7).astype(np.float32),
        "y_scale": np.float32(0.031), "y_zero": np.uint8(130),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"], "x_q"),
        helper.make_node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_r"], "x_r"),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_r"], "w_r", axis=0),
        helper.make_node("Gemm", ["x_r", "w_r", "b"], ["g"], "dense", alpha=0.3, transB=1),
        helper.make_node("QuantizeLinear", ["g", "y_scale", "y_zero"], ["y_q"], "y_q"),
        helper.make_node("DequantizeLinear", ["y_q", "y_scale", "y_zero"], ["y"], "y_r"),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", s]) for n, s in (("x", 12), ("y", 7))]
    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "n.onnx")
    check(harness, lowered(tmp_path / "n.onnx"), 16)
