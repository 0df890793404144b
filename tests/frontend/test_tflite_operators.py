"""Every TensorFlow Lite operator: int8 equal to LiteRT's reference kernels to the bit, float to rounding."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgescale.core.model import Model
from edgescale.frontend import load_model
from edgescale.lower import lower, reference
from edgescale.lower.ports import from_stored, to_stored

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")


def _module(name: str) -> Any:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"frontend_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


files = _module("tflite_files")
cases = _module("tflite_operator_cases")


class Activations:
    """Makes a file's activations: int8 in their units, or float32."""

    def __init__(self, writer: Any, quantized: bool) -> None:
        self.writer = writer
        self.quantized = quantized

    def __call__(self, shape: Sequence[int], units: tuple[float, int]) -> int:
        return int(self.writer.tensor(shape, units if self.quantized else None))


def file_of(build: Any, *, quantized: bool, seed: int = 0) -> bytes:
    writer = files.Writer()
    inputs, out = build(writer, Activations(writer, quantized), np.random.default_rng(seed))
    return bytes(writer.data(inputs, [out]))


def loaded(data: bytes, folder: Path) -> Model:
    path = folder / "net.tflite"
    path.write_bytes(data)
    return load_model(path)


def integers(model: Model, count: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Uniform int8 samples with both extremes among them."""
    rng = np.random.default_rng(seed)
    made = {}
    for spec in model.inputs:
        made[spec.name] = rng.integers(-128, 128, (count, *spec.shape[1:]), dtype=np.int8)
        made[spec.name][0], made[spec.name][-1] = -128, 127
    return made


def check_exact(data: bytes, folder: Path, count: int = 6) -> None:
    """The lowered program's integers equal LiteRT's, and ports are those of the file."""
    model = loaded(data, folder)
    assert model.quantized
    litert = files.LiteRT(data)
    assert [spec.shape for spec in model.inputs] == [tuple(d["shape"]) for d in litert.inputs]
    assert {spec.dtype for spec in (*model.inputs, *model.outputs)} == {"int8"}
    program = lower(model.ir, model.name)
    assert all(port.axes == tuple(range(len(port.shape))) for port in (*program.inputs, *program.outputs))
    assert all(tensor.dtype == "int8" for tensor in program.tensors.values())
    given = integers(model, count)
    stored = {port.tensor: to_stored(program, port, given[port.name]) for port in program.inputs}
    (port,) = program.outputs
    found = reference.run(program, stored)[port.tensor].reshape(count, *port.shape[1:])
    np.testing.assert_array_equal(found, litert.run(*given.values()).reshape(found.shape))


@pytest.mark.parametrize("name", cases.CASES)
def test_int8_equals_litert(name: str, tmp_path: Path) -> None:
    check_exact(file_of(cases.CASES[name], quantized=True), tmp_path)


@pytest.mark.parametrize("name", cases.CASES)
def test_float_agrees_with_litert_in_onnx_runtime_and_lowered(name: str, tmp_path: Path) -> None:
    import onnx_ir
    import onnxruntime

    data = file_of(cases.CASES[name], quantized=False)
    model = loaded(data, tmp_path)
    assert not model.quantized
    litert = files.LiteRT(data)
    assert [spec.shape for spec in model.inputs] == [tuple(d["shape"]) for d in litert.inputs]
    rng = np.random.default_rng(2)
    given = {s.name: rng.normal(size=(3, *s.shape[1:])).astype(np.float32) * 2 for s in model.inputs}
    theirs = litert.run(*given.values())
    session = onnxruntime.InferenceSession(
        onnx_ir.to_proto(model.ir).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rows = [session.run(None, {k: v[i : i + 1] for k, v in given.items()})[0] for i in range(3)]
    np.testing.assert_allclose(np.concatenate(rows), theirs, rtol=1e-4, atol=1e-4)
    program = lower(model.ir, model.name)
    stored = {port.tensor: to_stored(program, port, given[port.name]) for port in program.inputs}
    (port,) = program.outputs
    found = from_stored(program, port, reference.run(program, stored)[port.tensor])
    np.testing.assert_allclose(found.reshape(theirs.shape), theirs, rtol=1e-4, atol=1e-4)


scales = st.floats(-9, 0).map(lambda e: float(np.float32(2.0**e)))
zero_points = st.integers(-128, 127)
units = st.tuples(scales, zero_points)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_drawn_convolutions_equal_litert(data: Any, tmp_path: Path) -> None:
    draw = data.draw
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    # LiteRT's depthwise kernels and ours alike take either.
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2))) if stride == (1, 1) else (1, 1)
    least = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    shape = (1, draw(st.integers(least[0], 9)), draw(st.integers(least[1], 9)), draw(st.integers(1, 5)))
    x, factor = draw(units), draw(st.floats(0.2, 4.0))
    options = {
        "shape": shape, "x": x, "out": (float(np.float32(x[0] * 0.7 * factor)), draw(zero_points)), "kernel": kernel,
        "stride": stride, "dilation": dilation, "padding": draw(st.sampled_from([cases.SAME, cases.VALID])),
        "depth": draw(st.integers(0, 2)), "activation": draw(st.sampled_from([0, cases.RELU, cases.N1, cases.RELU6])),
        "per_channel": draw(st.booleans()),
    }  # fmt: skip
    check_exact(file_of(cases.part(cases.conv, **options), quantized=True, seed=draw(st.integers(0, 99))), tmp_path, 3)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_drawn_fully_connected_layers_equal_litert(data: Any, tmp_path: Path) -> None:
    draw = data.draw
    x, columns, rows = draw(units), draw(st.integers(1, 40)), draw(st.integers(1, 9))
    options = {
        "shape": (1, columns), "units": rows, "out_shape": (1, rows), "x": x,
        "out": (float(np.float32(x[0] * draw(st.floats(0.1, 4.0)))), draw(zero_points)),
        "activation": draw(st.sampled_from([0, cases.RELU, cases.N1, cases.RELU6])), "bias": draw(st.booleans()),
    }  # fmt: skip
    check_exact(
        file_of(cases.part(cases.fully_connected, **options), quantized=True, seed=draw(st.integers(0, 99))),
        tmp_path,
        40,
    )


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_drawn_arithmetic_equals_litert(data: Any, tmp_path: Path) -> None:
    draw = data.draw
    kind = draw(st.sampled_from(["ADD", "SUB", "MUL"]))
    x, y = draw(units), draw(units)
    scale = x[0] * y[0] * draw(st.floats(1.0, 300.0)) if kind == "MUL" else max(x[0], y[0]) * draw(st.floats(0.1, 4.0))
    second = draw(st.sampled_from([cases.IMAGE, (1, 1, 1, 4), (1, 1, 1, 1)]))
    build = cases.binary(
        kind, x=x, y=y, out=(float(np.float32(scale)), draw(zero_points)), second=second, constant=draw(st.booleans()),
        activation=draw(st.sampled_from([0, cases.RELU, cases.N1, cases.RELU6])),
    )  # fmt: skip
    check_exact(file_of(build, quantized=True), tmp_path, 40)


@pytest.mark.slow
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["LOGISTIC", "TANH", "HARD_SWISH", "LEAKY_RELU", "RELU", "RELU6"]), x=units, y=units,
       alpha=st.floats(0.0, 1.5, width=32))  # fmt: skip
def test_every_input_of_drawn_activations_equals_litert(
    kind: str, x: tuple[float, int], y: tuple[float, int], alpha: float, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"alpha": alpha, "table": "LeakyReluOptions"} if kind == "LEAKY_RELU" else {}
    # What LiteRT accepts, and (hard swish) computes within int16.
    out = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0), "HARD_SWISH": (x[0] * 1.2, y[1])}.get(kind, y)
    options["version"] = 1 if kind == "HARD_SWISH" else 2
    table = options.pop("table", "HardSwishOptions" if kind == "HARD_SWISH" else "")
    data = file_of(cases.unary(kind, (1, 256), table, shape=(1, 256), x=x, out=out, **options), quantized=True)
    model = loaded(data, tmp_path)
    program = lower(model.ir, model.name)
    every = np.arange(-128, 128, dtype=np.int8)[None]
    (found,) = reference.run(program, {program.inputs[0].tensor: every}).values()
    np.testing.assert_array_equal(found, files.LiteRT(data).run(every))
