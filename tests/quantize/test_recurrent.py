"""LSTM and GRU quantized: close to the float model, units of cell states, states that stream, what stays float."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UsageError
from edgescale.core.recurrent import CELL_EXPONENT
from edgescale.core.state import decode_states
from edgescale.core.variant import Recipe
from edgescale.frontend import load_model, save_model
from edgescale.frontend.load import model_from_ir
from edgescale.lower import lower, reference
from edgescale.lower.program_recurrent import Recurrent
from edgescale.quantize import float_nodes, quantize_int8
from edgescale.rigs import onnx_executor


def _nets() -> Any:
    path = Path(__file__).resolve().parents[1] / "recurrent_nets.py"
    spec = importlib.util.spec_from_file_location("quantize_recurrent_nets", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


nets = _nets()


class Quantized:
    """A float model in a file, its int8 form in another, and the integer program of that."""

    def __init__(self, proto: onnx.ModelProto, samples: np.ndarray, folder: Path) -> None:
        onnx.save(proto, folder / "given.onnx")
        self.model = load_model(folder / "given.onnx")
        graph = quantize_int8(self.model, Dataset("calib", samples, None, ""), Recipe(8, 8))
        save_model(self.model, folder / "float.onnx")
        save_model(model_from_ir(graph, "q"), folder / "int8.onnx")
        self.proto = onnx.load(folder / "int8.onnx")
        self.program = lower(load_model(folder / "int8.onnx").ir, "q")
        self.real, self.qdq = onnx_executor(folder / "float.onnx"), onnx_executor(folder / "int8.onnx")

    def integers(self, x: np.ndarray) -> np.ndarray:
        return reference.run_real(self.program, x)


def waves(count: int, steps: int, inputs: int, seed: int = 0) -> np.ndarray:
    """Random walks of a sensor that reads from -3 to 3."""
    rng = np.random.default_rng(seed)
    return np.clip(np.cumsum(rng.normal(0, 0.5, (count, steps, inputs)), axis=1), -3, 3).astype(np.float32)


def decibels(exact: np.ndarray, found: np.ndarray) -> float:
    """Signal to quantization noise."""
    return float(10 * np.log10((exact**2).sum() / ((exact - found) ** 2).sum()))


@pytest.mark.parametrize(
    "net",
    [
        {"operator": "LSTM"}, {"operator": "LSTM", "direction": "bidirectional"}, {"operator": "LSTM", "layers": 2},
        {"operator": "LSTM", "direction": "reverse", "gain": 3.0}, {"operator": "LSTM", "last": "Y"},
        {"operator": "GRU"}, {"operator": "GRU", "linear_before_reset": 1}, {"operator": "GRU", "layers": 2},
        {"operator": "GRU", "direction": "bidirectional", "linear_before_reset": 1}, {"operator": "GRU", "last": "Y"},
    ],
    ids=lambda net: "-".join(str(value) for value in net.values()),
)  # fmt: skip
def test_the_integer_program_is_close_to_the_float_model(tmp_path, net):
    """33 dB are a two-thousandth of the signal's energy; the fixed point costs little beside the int8 ends."""
    made = Quantized(nets.classifier(**net), waves(128, 20, 6), tmp_path)
    kinds = [layer.op for layer in made.program.layers]
    assert not {"Quantize", "Dequantize"} & set(kinds), kinds
    x = waves(128, 20, 6)  # those of the calibration: outliers that it did not see say nothing of the arithmetic
    exact, integers, qdq = made.real(x), made.integers(x), made.qdq(x)
    assert decibels(exact, integers) > 33
    assert decibels(exact, integers) > decibels(exact, qdq) - 2


@pytest.mark.parametrize(
    "net", [{"operator": "LSTM"}, {"operator": "GRU"}, {"operator": "GRU", "linear_before_reset": 1}]
)
def test_a_trained_classifier_keeps_its_accuracy(tmp_path, net):
    """A reservoir with a readout fitted by ridge regression to tell rising from falling and steady tones."""
    (x, y), (test, labels) = nets.chirps(600, 24, 8, 0), nets.chirps(600, 24, 8, 1)
    shape = {"steps": 24, "inputs": 8, "units": 32, "gain": 3.0, **net}
    onnx.save(nets.classifier(readout=(np.eye(32), np.zeros(32)), **shape), tmp_path / "reservoir.onnx")
    features = onnx_executor(tmp_path / "reservoir.onnx")(x).astype(np.float64)
    ones = np.append(features, np.ones((len(x), 1)), axis=1)
    fitted = np.linalg.solve(ones.T @ ones + 0.1 * np.eye(33), ones.T @ np.eye(3)[y]).T
    made = Quantized(nets.classifier(readout=(fitted[:, :-1], fitted[:, -1]), **shape), x[:100], tmp_path)
    real, integer = ((run(test).argmax(axis=1) == labels).mean() for run in (made.real, made.integers))
    assert real > 0.85 and integer >= real - 0.01


@pytest.mark.parametrize(("operator", "kinds"), [("LSTM", {"int8", "int16"}), ("GRU", {"int16"})])
def test_states_of_a_stream_become_integers(tmp_path, operator, kinds):
    """The model takes one frame a run; its ports of states are found, calibrated as one stream and kept."""
    frames = waves(1, 300, 6).reshape(300, 1, 6)
    made = Quantized(nets.classifier(operator, steps=1, states=True, layers=2), frames, tmp_path)
    assert [spec.name for spec in made.model.inputs] == ["x"] and [spec.name for spec in made.model.outputs] == ["y"]
    program = made.program
    assert {program.tensors[state.input].dtype for state in program.states} == kinds
    assert "Dequantize" not in {layer.op for layer in program.layers}
    exact = made.real(frames)
    assert decibels(exact, made.integers(frames)) > 33 and decibels(exact, made.qdq(frames)) > 33
    # The state matters: frames on their own give something else.
    alone = np.concatenate([made.integers(frame[None]) for frame in frames])
    assert decibels(exact, alone) < 10


def test_cell_states_get_the_finest_units_that_hold_them(tmp_path):
    """The oracle reads Y_c of every prefix of every sample in ONNX Runtime."""
    import onnxruntime as ort

    samples = 3 * waves(12, 9, 6)
    reach = 0.0
    for steps in range(1, 10):
        prefix = nets.outputs("LSTM", ("Y_c",), steps=steps, inputs=6, units=8, seed=4)
        session = ort.InferenceSession(prefix.SerializeToString(), providers=["CPUExecutionProvider"])
        reach = max(reach, *(np.abs(session.run(None, {"x": x[None, :steps]})[0]).max() for x in samples))
    made = Quantized(nets.outputs("LSTM", ("Y",), steps=9, inputs=6, units=8, seed=4), samples, tmp_path)
    (node,) = [node for node in made.proto.graph.node if node.op_type == "LSTM"]
    (exponent,) = [int(entry.value) for entry in node.metadata_props if entry.key == CELL_EXPONENT]
    assert 2.0 ** (14 + exponent) < 1.25 * reach <= 2.0 ** (15 + exponent)


def test_initial_zeros_made_for_the_batch_at_run_time_cost_nothing(tmp_path):
    """As PyTorch exports an LSTM with a dynamic batch: Shape, Gather, ConstantOfShape; and Keras' Squeeze."""
    net = nets.Net(12, 6)
    moved = net.node("Transpose", ["x"], perm=[1, 0, 2])
    batch = net.node("Gather", [net.node("Shape", ["x"]), np.array([0])], axis=0)
    shape = net.node("Concat", [np.array([1]), batch, np.array([16])], axis=0)
    zeros = net.node("ConstantOfShape", [shape])
    net.node("LSTM", [moved, *net.weights("LSTM", 6, 16), "", zeros, zeros], ["Y", "Y_h"], hidden_size=16)
    whole = net.node("Transpose", [net.node("Squeeze", ["Y", np.array([1])])], perm=[1, 0, 2])
    net.node("Add", [whole, whole], [net.port("y", ["batch", 12, 16], output=True)])
    x = waves(32, 12, 6)
    made = Quantized(net.model(), x, tmp_path)
    assert [layer.op for layer in made.program.layers] == ["Lstm", "Add"]
    assert decibels(made.real(x), made.integers(x)) > 33


@pytest.mark.parametrize("operator", ["LSTM", "GRU"])
@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_constant_initial_states_are_constants_of_the_program(tmp_path, operator, direction):
    proto = nets.outputs(operator, ("Y",), steps=6, inputs=6, units=16, starts=True, direction=direction)
    x = waves(64, 6, 6)
    made = Quantized(proto, x, tmp_path)
    kinds = {made.program.tensors[layer.output].dtype for layer in made.program.layers if layer.op == "Initial"}
    assert kinds == ({"int8", "int16"} if operator == "LSTM" else {"int16"})
    assert decibels(made.real(x), made.integers(x)) > 33


def test_half_a_state_is_none(tmp_path):
    """initial_c comes from outside and Y_c goes nowhere: the caller keeps both ports of h as well."""
    proto = nets.classifier("LSTM", steps=1, states=True)
    del proto.graph.output[2]
    onnx.save(proto, tmp_path / "m.onnx")
    assert [spec.name for spec in load_model(tmp_path / "m.onnx").inputs] == ["x", "h0", "c0"]


def test_weights_have_a_scale_a_row_and_biases_stay_float(tmp_path):
    made = Quantized(nets.classifier("LSTM", direction="bidirectional"), waves(8, 20, 6), tmp_path)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.proto.graph.initializer}
    readers = {node.output[0]: node for node in made.proto.graph.node}
    (node,) = [node for node in made.proto.graph.node if node.op_type == "LSTM"]
    for index in (1, 2):
        read = readers[node.input[index]]
        integers, scale = arrays[read.input[0]], arrays[read.input[1]]
        assert read.op_type == "DequantizeLinear" and integers.dtype == np.int8 and scale.shape == (96,)
        assert (np.abs(integers.astype(np.int32)).max(axis=(0, 2)) == 127).all()
    assert arrays[node.input[3]].dtype == np.float32


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (nets.outputs("LSTM", ("Y", "Y_c")), "its cell state is read, which is int16 inside"),
        (nets.outputs("LSTM", ("Y",), clip=3.0), "it clips its gates or couples them"),
        (nets.outputs("GRU", ("Y",), activations=["Sigmoid", "Relu"]), "its activations are not sigmoid and tanh"),
    ],
    ids=["cell", "clip", "activations"],
)
def test_what_stays_float_says_why(tmp_path, proto, reason):
    onnx.save(proto, tmp_path / "m.onnx")
    nodes = {node.op: node.reason for node in float_nodes(load_model(tmp_path / "m.onnx"))}
    assert nodes.get("LSTM", nodes.get("GRU")) == reason


def test_a_float_lstm_beside_int8_layers_is_a_float_layer(tmp_path):
    """Its cell state is an output, so it stays float between Dequantize and Quantize."""
    proto = nets.classifier("LSTM")
    (node,) = [node for node in proto.graph.node if node.op_type == "LSTM"]
    node.output.append("Y_c0")
    proto.graph.output.append(onnx.helper.make_tensor_value_info("Y_c0", onnx.TensorProto.FLOAT, [1, 1, 24]))
    made = Quantized(proto, waves(8, 20, 6), tmp_path)
    (layer,) = [layer for layer in made.program.layers if isinstance(layer, Recurrent)]
    assert layer.requant is None and made.program.tensors[layer.output].dtype == "float32"
    assert "FullyConnected" in {layer.op for layer in made.program.layers}


def test_states_of_anything_else_are_still_refused(tmp_path):
    from edgescale.core.state import StateSpec, encode_states

    proto = nets.classifier("LSTM", steps=1, states=True)
    relu = onnx.helper.make_node("Relu", ["h0"], ["h0_positive"], "relu")
    proto.graph.node.insert(0, relu)
    (node,) = [node for node in proto.graph.node if node.op_type == "LSTM"]
    node.input[5] = "h0_positive"
    zeros = np.zeros((1, 1, 24), np.float32)
    specs = [StateSpec("h", "h0", "Y_h0", zeros), StateSpec("c", "c0", "Y_c0", zeros)]
    onnx.helper.set_model_props(proto, encode_states(specs))
    onnx.save(proto, tmp_path / "m.onnx")
    model = load_model(tmp_path / "m.onnx")
    assert len(decode_states(model.ir.metadata_props)) == 2
    with pytest.raises(UsageError, match="calibration is of models without"):
        quantize_int8(model, Dataset("calib", waves(4, 1, 6), None, ""), Recipe(8, 8))
