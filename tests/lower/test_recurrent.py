"""LSTM and GRU nodes as float layers against ONNX Runtime, the fixed-point functions, and what is refused."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgescale.core.errors import UnsupportedModelError
from edgescale.lower import reference
from edgescale.lower.fixedpoint16 import logistic16, tanh16
from edgescale.lower.ports import from_stored
from edgescale.lower.program_recurrent import Recurrent


def _nets() -> Any:
    path = Path(__file__).resolve().parents[1] / "recurrent_nets.py"
    spec = importlib.util.spec_from_file_location("lower_recurrent_nets", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


nets = _nets()
WANTED = [("Y",), ("Y_h",), ("Y", "Y_h"), ("Y_c",), ("Y", "Y_h", "Y_c"), ("Y_h", "Y_c")]


def run_all(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    """Every output of ONNX Runtime, sample by sample."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = [session.run(None, {"x": row[None]}) for row in x]
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def check(tools: Any, model: onnx.ModelProto, x: np.ndarray, oracle: onnx.ModelProto | None = None) -> Any:
    program = tools.lower(model)
    found = reference.run(program, {program.inputs[0].tensor: x.reshape(len(x), 1, *x.shape[1:])})
    for port, wanted in zip(program.outputs, run_all(oracle or model, x), strict=True):
        np.testing.assert_allclose(from_stored(program, port, found[port.tensor]), wanted, atol=2e-6, rtol=1e-5)
    return program


@settings(max_examples=60, deadline=None)
@given(
    operator=st.sampled_from(["LSTM", "GRU"]),
    wanted=st.sampled_from(WANTED),
    direction=st.sampled_from(["forward", "reverse", "bidirectional"]),
    sizes=st.tuples(*[st.integers(1, 6)] * 3),
    starts=st.booleans(),
    late=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_output_equals_onnx_runtime(tools, operator, wanted, direction, sizes, starts, late, seed):
    if operator == "GRU" and "Y_c" in wanted:
        wanted = ("Y_h",)
    extra = {"linear_before_reset": int(late)} if operator == "GRU" else {}
    steps, inputs, units = sizes
    model = nets.outputs(
        operator,
        wanted,
        steps=steps,
        inputs=inputs,
        units=units,
        starts=starts,
        direction=direction,
        seed=seed,
        **extra,
    )
    check(tools, model, np.random.default_rng(seed).normal(0, 1, (3, steps, inputs)).astype(np.float32))


@pytest.mark.parametrize("operator", ["LSTM", "GRU"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_layout_1_is_layout_0_with_the_batch_in_front(tools, operator, direction):
    """ONNX Runtime does not run layout 1 itself."""
    oracle = nets.outputs(operator, ("Y", "Y_h"), direction=direction, starts=True)
    model = onnx.ModelProto()
    model.CopyFrom(oracle)
    for node in list(model.graph.node):
        if node.op_type == "Transpose":
            for other in model.graph.node:
                for index, name in enumerate(other.input):
                    if name == node.output[0]:
                        other.input[index] = node.input[0]
            model.graph.node.remove(node)
    (node,) = model.graph.node
    node.attribute.append(onnx.helper.make_attribute("layout", 1))
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.ndim == 3 and array.shape[1] == 1:  # initial states
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.transpose(1, 0, 2), tensor.name))
    for index, port in enumerate(model.graph.output):
        port.name = node.output[index]
    x = np.random.default_rng(2).normal(0, 1, (2, 5, 3)).astype(np.float32)
    check(tools, model, x, oracle)


def test_a_sequence_of_which_the_last_step_is_taken_is_never_stored(tools):
    model = nets.classifier("LSTM", steps=7, last="Y")
    x = np.random.default_rng(0).normal(0, 1, (2, 7, 6)).astype(np.float32)
    program = tools.lower(onnx.shape_inference.infer_shapes(_fixed_batch(model)))
    found = reference.run_real(program, x)
    np.testing.assert_allclose(found, run_all(model, x)[0], atol=1e-5)
    (layer,) = [layer for layer in program.layers if isinstance(layer, Recurrent)]
    assert not layer.sequence and program.tensors[layer.output].size == 24


def _fixed_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for port in (*fixed.graph.input, *fixed.graph.output):
        port.type.tensor_type.shape.dim[0].dim_value = 1
    return fixed


def test_fixed_point_functions_are_close_to_the_real_ones():
    """gemmlowp's polynomials: within 7 steps of 2^-15 for the logistic, 13 for tanh, over every int16."""
    a = np.arange(-(2**15), 2**15)
    assert np.abs(logistic16(a) - 2**15 / (1 + np.exp(-a / 2**12))).max() < 7
    for bits in range(7):
        assert np.abs(tanh16(a, bits) - 2**15 * np.tanh(a / 2 ** (15 - bits))).max() < 13
    assert np.array_equal(tanh16(a[1:]), -tanh16(-a[1:]))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"activations": ["HardSigmoid", "Tanh", "Tanh"]}, "activations hardsigmoid, tanh, tanh"),
        ({"clip": 3.0}, "clip"), ({"input_forget": 1}, "input_forget = 1"),
    ],
)  # fmt: skip
def test_variants_of_lstm_are_refused_by_name(tools, change, found):
    with pytest.raises(UnsupportedModelError, match=rf"node 'lstm1' \(op LSTM\).* found {found}"):
        tools.lower(nets.outputs("LSTM", ("Y",), **change))


def test_peepholes_other_lengths_and_broken_metadata_are_refused(tools):
    def with_inputs(*more: Any) -> onnx.ModelProto:
        model = nets.outputs("LSTM", ("Y",), starts=True)
        for index, array in more:
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"more{index}"))
            given = model.graph.node[1].input
            given.extend([""] * (index + 1 - len(given)))
            given[index] = f"more{index}"
        return model

    tools.lower(with_inputs((7, np.zeros((1, 12), np.float32)), (4, np.array([5], np.int32))))
    with pytest.raises(UnsupportedModelError, match="peephole weights P"):
        tools.lower(with_inputs((7, np.ones((1, 12), np.float32))))
    with pytest.raises(UnsupportedModelError, match="sequence_lens of 3 for 5 steps"):
        tools.lower(with_inputs((4, np.array([3], np.int32))))
    model = nets.outputs("LSTM", ("Y",))
    entry = model.graph.node[1].metadata_props.add()
    entry.key, entry.value = "edgescale.lstm.cell_exponent", "-3"
    model.ir_version = 10
    with pytest.raises(UnsupportedModelError, match=r"an integer from -15 to -9; found '-3'"):
        tools.lower(model)


@pytest.mark.parametrize("index", [-1, 0, 2])
def test_gather_of_one_index_is_a_slice(tools, rng, index):
    g = tools.graph([1, 3, 4, 5])
    out = g.node("Gather", g.node("Relu", "x"), np.array(index), axis=2)
    model = g.model(g.node("Sigmoid", out))
    x = rng.normal(0, 1, (2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(reference.run_real(tools.lower(model), x), tools.run(model, x), atol=1e-6)


def test_gather_of_several_indices_is_refused(tools):
    g = tools.graph([1, 3, 4])
    model = g.model(g.node("Relu", g.node("Gather", "x", np.array([0, 1]), axis=1)))
    with pytest.raises(UnsupportedModelError, match="2 indices along axis 1"):
        tools.lower(model)
