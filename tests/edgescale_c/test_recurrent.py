"""LSTM and GRU in C: equal to the reference on this machine and on emulated cores, scratch counted, states in place."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgescale_c import BACKEND
from edgescale_c.generate import generate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgescale.core.dataset import Dataset
from edgescale.core.errors import UnsupportedModelError
from edgescale.core.files import firmware_root
from edgescale.core.target import load_target
from edgescale.core.variant import Recipe, Variant
from edgescale.frontend import load_model, save_model
from edgescale.frontend.load import model_from_ir
from edgescale.lower import lower_file, reference
from edgescale.lower.fixedpoint import requant
from edgescale.lower.fixedpoint16 import logistic16, tanh16
from edgescale.lower.ports import to_stored
from edgescale.lower.program import Reshape, Tensor, Unary
from edgescale.lower.program_recurrent import Gru, Initial, Lstm
from edgescale.quantize import quantize_int8
from tests.seeds import SEEDS

EMULATED = ("cortex-m4-stm32l4r5", "cortex-m0plus")
QEMU = {"esp32-c3": "qemu-system-riscv32", "cortex-m55-an547": "qemu-system-arm"}
BATCH = settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))


def _module(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


nets = _module("c_recurrent_nets", Path(__file__).resolve().parents[1] / "recurrent_nets.py")


@st.composite
def layers(draw):
    """(layers, input, output, other tensors, outputs) of one Lstm or Gru and what it starts from."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lstm, integer, sequence, hidden, carried = (draw(st.booleans()) for _ in range(5))
    steps, inputs, units = (draw(st.integers(1, 9)) for _ in range(3))
    gates, dtype = 4 if lstm else 3, "int8" if integer else "float32"

    def units_of() -> tuple[float, int]:
        return (float(rng.uniform(0.004, 0.05)), int(rng.integers(-128, 128))) if integer else (0.0, 0)

    x = Tensor("x", (1, 1, steps, inputs), dtype, *units_of())
    y = Tensor("y", (1, 1, steps if sequence else 1, units), dtype, *units_of())

    def numbers(*shape: int, bias: bool = False) -> np.ndarray:
        if not integer:
            return rng.normal(0, 0.5, shape).astype(np.float32)
        return rng.integers(-4000, 4000, shape).astype(np.int32) if bias else rng.integers(-128, 128, shape, np.int8)

    fields: dict[str, Any] = {
        "weights": numbers(gates, units, inputs), "recurrent": numbers(gates, units, units),
        "bias": numbers(gates, units, bias=True), "recurrent_bias": numbers(gates, units, bias=True),
        "requant": None, "recurrent_requant": None, "hidden_requant": None,
        "reverse": draw(st.booleans()), "sequence": sequence,
    }  # fmt: skip
    exponent = draw(st.integers(-15, -9)) if lstm and integer else 0
    if integer:
        entries = draw(st.sampled_from([gates, gates * units]))
        for name in ("requant", "recurrent_requant"):
            # From gates that hardly move to gates that always saturate; one scale for all now and then.
            factors = rng.uniform(*draw(st.sampled_from([(0.001, 0.01), (0.02, 1.5), (1.0, 6.0)])), entries)
            fields[name] = requant((factors if draw(st.integers(0, 3)) else np.full(entries, 0.3)).tolist())
        fields["hidden_requant"] = requant(2.0 ** (-30 if lstm else -15) / y.scale)
    if lstm and integer:
        fields["recurrent_bias"] = np.zeros((gates, units), np.int32)
    made: list[Any] = []
    names, others, ends = ["x"], [], ["y"]

    def start(name: str, tensor: Tensor, values: np.ndarray) -> None:
        made.append(Initial(f"initial {name}", ("x",), name, values.reshape(1, 1, 1, units)))
        names.append(name)
        others.append(tensor)

    shape = (1, 1, 1, units)
    if hidden and (lstm or not integer):
        start("h", Tensor("h", shape, dtype, y.scale, y.zero_point), numbers(units))
    else:
        hidden = False
    if carried and (lstm or integer):
        scale = 2.0 ** (exponent if lstm else -15) if integer else 0.0
        values = rng.integers(-(2**15), 2**15, units).astype(np.int16) if integer else numbers(units)
        start("c", Tensor("c", shape, "int16" if integer else "float32", scale), values)
        ends.append("c")
    else:
        carried = False
    if lstm:
        clip = draw(st.sampled_from([0, 3000 if integer else 0.7]))
        made.append(
            Lstm("lstm", tuple(names), "y", has_hidden=hidden, has_cell=carried, cell_exponent=exponent,
                 cell_clip=clip, **fields)
        )  # fmt: skip
    else:
        late = draw(st.booleans())
        made.append(Gru("gru", tuple(names), "y", has_hidden=hidden or carried, linear_before_reset=late, **fields))
    return made, x, y, others, ends


def check(harness: Any, built: Any, seed: int) -> None:
    """As the harness checks, int16 to the bit too."""
    for index, program in enumerate(built.programs):
        inputs = harness.inputs(program, np.random.default_rng(seed + index))
        wanted = reference.run(program, inputs)
        for name, value in built.run(index, inputs).items():
            if value.dtype.kind == "i":
                np.testing.assert_array_equal(value, wanted[name], err_msg=f"{name} of {program.layers}")
            else:
                np.testing.assert_allclose(value, wanted[name], rtol=3e-5, atol=3e-5, err_msg=f"{program.layers}")


@BATCH
@given(drawn=st.lists(layers(), min_size=20, max_size=20), seed=SEEDS)
def test_every_layer_equals_the_reference(shared_harness, drawn, seed):
    programs = [shared_harness.program(made, [x], y, *more, outputs=ends) for made, x, y, more, ends in drawn]
    for flags in (("-O2",), shared_harness.armv6m):
        check(shared_harness, shared_harness.build(programs, *flags), seed)
    for family in ("dsp", "mve"):
        check(shared_harness, shared_harness.build(programs, family=family), seed)


def test_fixed_point_functions_equal_the_reference_over_every_input(harness):
    folder = harness.new_folder()
    kernels = firmware_root() / "kernels" / "scalar"
    source = """#include "es_recurrent_s16.h"
void every(int32_t *out);
void every(int32_t *out)
{
    for (int32_t a = -32768; a < 32768; a++) {
        *out++ = es_gate_logistic(a);
        for (int32_t bits = 0; bits < 7; bits++)
            *out++ = es_gate_tanh_inline(a, bits);
    }
}
"""
    (folder / "all.c").write_text(source)
    paths = [f"-I{kernels}", f"-I{firmware_root() / 'include' / 'edgescale'}"]
    harness.compile(folder, "-shared", "-fPIC", *paths, output="all.so")
    out = np.zeros((2**16, 8), np.int32)
    ctypes.CDLL(str(folder / "all.so")).every(out.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)))
    a = np.arange(-(2**15), 2**15)
    np.testing.assert_array_equal(out[:, 0], logistic16(a))
    for bits in range(7):
        np.testing.assert_array_equal(out[:, 1 + bits], tanh16(a, bits))


@settings(max_examples=1, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(drawn=st.lists(layers(), min_size=30, max_size=30), seed=SEEDS)
def test_sanitizers_find_nothing(shared_harness, drawn, seed):
    compiler = shared_harness.gcc()
    if compiler != ["gcc"] or shutil.which("gcc") is None:
        pytest.skip("needs gcc's sanitizers")
    programs = [shared_harness.program(made, [x], y, *more, outputs=ends) for made, x, y, more, ends in drawn]
    folder = shared_harness.new_folder()
    shared_harness.write(programs, folder)
    calls = []
    for index, program in enumerate(programs):
        size = program.tensors["x"].nbytes
        fill = (
            f"(uint8_t)(i * 37u + {seed}u)"
            if program.tensors["x"].dtype == "int8"
            else "(uint8_t)(i % 4u == 3u ? 63u : i)"
        )
        calls.append(
            f"{{ uint8_t *x = (uint8_t *)es_p{index}_input(); for (uint32_t i = 0; i < {size}u; i++) x[i] = {fill};"
            f" es_p{index}_run(); }}"
        )
    (folder / "main.c").write_text('#include "all.c"\nint main(void)\n{\n' + "\n".join(calls) + "\nreturn 0;\n}\n")
    shared_harness.compile(folder, *shared_harness.sanitizers, compiler=compiler, source="main.c", output="net")
    result = subprocess.run([folder / "net"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize(
    ("operator", "last", "extra"),
    [
        ("LSTM", "Y_h", 2 * 24 + 24), ("GRU", "Y_h", 2 * 24 + 24 + 24),
    ],
)  # fmt: skip
def test_scratch_is_what_the_recurrence_needs(tmp_path, operator, last, extra):
    """Beside input and output: the int16 vector, and outputs of the step before (and a GRU's r * s)."""
    program, _ = quantized(nets.classifier(operator, last=last), waves(16, 20), tmp_path)
    made = generate(program, "n", firmware_root())
    (row,) = [row for row in made.meta["plan"] if row["tensor"].startswith("scratch")]
    assert row["bytes"] == extra
    assert made.meta["arena_bytes"] == 20 * 6 + 24 + extra


def waves(count: int, steps: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.clip(np.cumsum(rng.normal(0, 0.5, (count, steps, 6)), axis=1), -3, 3).astype(np.float32)


def quantized(proto: onnx.ModelProto, samples: np.ndarray, folder: Path) -> tuple[Any, Variant]:
    """The integer program of a net quantized by us, and its variant."""
    onnx.save(proto, folder / "given.onnx")
    model = load_model(folder / "given.onnx")
    graph = quantize_int8(model, Dataset("calib", samples, None, ""), Recipe(8, 8))
    save_model(model_from_ir(graph, "net"), folder / "net.onnx")
    return lower_file(folder / "net.onnx", "net"), Variant("net", Recipe(8, 8), folder / "net.onnx", "")


NETS = {
    "lstm": {"operator": "LSTM", "layers": 2},
    "bidirectional lstm": {"operator": "LSTM", "direction": "bidirectional"},
    "gru": {"operator": "GRU", "last": "Y"},
    "late gru": {"operator": "GRU", "linear_before_reset": 1, "layers": 2},
    "streaming lstm": {"operator": "LSTM", "steps": 1, "states": True, "layers": 2},
    "streaming gru": {"operator": "GRU", "steps": 1, "states": True},
}


@pytest.fixture(scope="module", params=list(NETS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("net")
    net = NETS[request.param]
    samples = waves(1, 64).reshape(64, 1, 6) if net.get("states") else waves(16, 20)
    program, variant = quantized(nets.classifier(**net), samples, folder)
    port = program.inputs[0]
    stored = to_stored(program, port, samples[:12])
    return program, variant, stored, reference.run(program, {port.tensor: stored})[program.outputs[0].tensor], folder


def executed(case: Any, name: str) -> np.ndarray:
    from edgescale.rigs import get_rig

    _, variant, stored, expected, folder = case
    target = load_target(name)
    artifact = BACKEND.compile(variant, target, folder / f"c-{name}")
    return get_rig(target.rig).raw_executor(artifact, target)(stored).reshape(expected.shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", EMULATED)
def test_emulated_cores_equal_the_reference(case, name):
    pytest.importorskip("unicorn", reason="needs pip install 'edgescale[mcu]'")
    pytest.importorskip("ziglang", reason="needs pip install 'edgescale[mcu]'")
    np.testing.assert_array_equal(executed(case, name), case[3])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(QEMU))
def test_cores_in_qemu_equal_the_reference(case, name):
    if shutil.which(QEMU[name]) is None:
        pytest.skip(f"needs {QEMU[name]}")
    np.testing.assert_array_equal(executed(case, name), case[3])


def test_states_are_updated_in_place_and_reset_starts_again(case, harness):
    program, _, stored, expected, _ = case
    built = harness.build([program])
    states = built.generated[0].meta["states"]
    if not states:
        pytest.skip("a net without states")
    assert all(state["in_place"] for state in states if program.tensors[state["tensor"]].dtype == "int16")
    for _ in range(2):
        getattr(built.library, built.generated[0].meta["reset"])()
        found = built.run(0, {program.inputs[0].tensor: stored})[program.outputs[0].tensor]
        np.testing.assert_array_equal(found, expected)


def test_a_tflite_lstm_equals_litert_on_an_emulated_core(tmp_path):
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    pytest.importorskip("unicorn", reason="needs pip install 'edgescale[mcu]'")
    from edgescale.rigs import get_rig

    lstms = _module("c_recurrent_files", Path(__file__).parents[1] / "frontend" / "tflite_recurrent_files.py")
    spec = lstms.Lstm(steps=7, inputs=10, units=16, cell_clip=10.0)
    (tmp_path / "m.tflite").write_bytes(lstms.write(spec))
    save_model(load_model(tmp_path / "m.tflite"), tmp_path / "m.onnx")
    frames = lstms.frames(spec, 20)
    expected = lstms.LiteRT(lstms.write(spec)).run(frames)
    target = load_target("cortex-m4-stm32l4r5")
    artifact = BACKEND.compile(Variant("m", Recipe(8, 8), tmp_path / "m.onnx", ""), target, tmp_path / "c")
    stored = frames.reshape(20, *artifact.meta["inputs"][0]["stored_shape"][1:])
    found = get_rig(target.rig).raw_executor(artifact, target)(stored)
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def test_an_update_under_another_name_is_refused(harness):
    """A view of the cell state as it was before the layer is read behind it; or the state itself is updated."""
    rng = np.random.default_rng(0)
    shape = (1, 1, 1, 4)
    x, c = Tensor("x", (1, 1, 3, 2), "float32"), Tensor("c", shape, "float32")
    fields: dict[str, Any] = {
        "weights": rng.normal(0, 1, (4, 4, 2)).astype(np.float32),
        "recurrent": rng.normal(0, 1, (4, 4, 4)).astype(np.float32),
        "bias": np.zeros((4, 4), np.float32), "recurrent_bias": np.zeros((4, 4), np.float32),
        "requant": None, "recurrent_requant": None, "hidden_requant": None, "reverse": False, "sequence": False,
        "has_hidden": False, "has_cell": True, "cell_exponent": 0, "cell_clip": 0,
    }  # fmt: skip
    cell = Lstm("cell", ("x", "c"), "y", **fields)
    y, view, z = Tensor("y", shape, "float32"), Tensor("view", (1, 4), "float32"), Tensor("z", (1, 4), "float32")
    start = Initial("start", ("x",), "c", np.ones(shape, np.float32))
    layers = [start, Reshape("rename", ("c",), "view"), cell, Unary("late", ("view",), "z", "tanh")]
    program = harness.program(layers, [x], y, c, view, z, outputs=["y", "z"])
    with pytest.raises(UnsupportedModelError, match=r"updates 'c', whose bytes 'view' still needs as they were"):
        generate(program, "n", firmware_root())
    with pytest.raises(UnsupportedModelError, match=r"found the port or state 'c'"):
        generate(harness.program([cell], [x, c], y), "n", firmware_root())


def test_what_the_kernels_do_not_take_is_refused(harness):
    rng = np.random.default_rng(0)
    x, y = Tensor("x", (1, 1, 3, 2), "int8", 0.1, 0), Tensor("y", (1, 1, 3, 4), "int8", 0.01, 0)
    fields: dict[str, Any] = {
        "weights": rng.integers(-9, 9, (4, 4, 2), np.int8), "recurrent": rng.integers(-9, 9, (4, 4, 4), np.int8),
        "bias": np.zeros((4, 4), np.int32), "recurrent_bias": np.zeros((4, 4), np.int32),
        "requant": requant([0.1] * 4), "recurrent_requant": requant([0.1] * 4), "hidden_requant": requant(2.0**-23),
        "reverse": False, "sequence": True, "has_hidden": False, "has_cell": False, "cell_exponent": -11,
        "cell_clip": 0,
    }  # fmt: skip

    def refused(match: str, **change: Any) -> None:
        layer = Lstm("cell", ("x",), "y", **(fields | change))
        with pytest.raises(UnsupportedModelError, match=rf"node 'cell' \(Lstm\): {match}"):
            generate(harness.program([layer], [x], y), "n", firmware_root())

    refused("an int8 LSTM has one bias a gate", recurrent_bias=np.ones((4, 4), np.int32))
    refused(r"needs an output of 1 \* 4 elements", sequence=False)
    refused("needs int8 weights and int32 bias", requant=None)
    refused(r"accumulators must stay below 2\^31", requant=requant([math.ldexp(1.0, 28)] * 4))
