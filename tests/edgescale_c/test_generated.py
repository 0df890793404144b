"""The generated folder as users and rigs see it: names, header, artifact.json, sanitizers, whole nets."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from edgescale_c import BACKEND
from edgescale_c.constants import ConstantPool, float_literal
from edgescale_c.generate import generate
from edgescale_c.names import comment, identifier

from edgescale.core.errors import UnsupportedModelError, UsageError
from edgescale.core.files import firmware_root
from edgescale.core.target import Core, Target
from edgescale.core.variant import Recipe, Variant
from edgescale.lower import lower_file, reference
from edgescale.lower.program import (
    Add,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Layer,
    Mean,
    Pool2D,
    Requant,
    Reshape,
    Softmax,
    Tensor,
)

ROOT = Path(__file__).resolve().parents[2]
FASHION = ROOT / "examples" / "fashion"
FULL = (-128, 127)


def int8(name: str, *shape: int, zero_point: int = -3) -> Tensor:
    return Tensor(name, shape, "int8", 0.05, zero_point)


def scaled(size: int, shift: int, rounding: str = "double") -> Requant:
    rng = np.random.default_rng(size)
    multiplier = rng.integers(2**30, 2**31, size).astype(np.int32)
    return Requant(multiplier, np.full(size, shift, np.int32), rounding)


def net(harness):
    """A net with every kind of layer that int8 classifiers use."""
    rng = np.random.default_rng(3)

    def w(*shape: int):
        return rng.integers(-127, 128, shape).astype(np.int8)

    def bias(count: int):
        return rng.integers(-2000, 2000, count).astype(np.int32)

    same = (1, 1, 1, 1)
    layers: list[Layer] = [
        Conv2D("stem/conv:0", ("x",), "a", w(8, 3, 3, 2), bias(8), (1, 1), (1, 1), same, 1, scaled(8, -8), FULL),
        DepthwiseConv2D("dw", ("a",), "b", w(3, 3, 8), bias(8), (1, 1), (1, 1), same, 1, scaled(8, -7), FULL),
        Conv2D("pw", ("b",), "c", w(8, 1, 1, 8), bias(8), (1, 1), (1, 1), (0,) * 4, 1, scaled(8, -7), FULL),
        Add("add", ("a", "c"), "d", 20, (scaled(1, 0), scaled(1, -1)), scaled(1, -19), FULL),
        Pool2D("pool", ("d",), "e", "max", (2, 2), (2, 2), (0,) * 4, False, None, FULL),
        Mean("mean", ("e",), "f", scaled(1, -3), FULL),
        Reshape("flat", ("f",), "g"),
        FullyConnected("fc", ("g",), "h", w(5, 8), bias(5), scaled(5, -8, "single"), FULL),
        Softmax("softmax", ("h",), "y", 1342177280, 24, -124),
    ]
    shapes = {"a": (1, 9, 7, 8), "b": (1, 9, 7, 8), "c": (1, 9, 7, 8), "d": (1, 9, 7, 8), "e": (1, 4, 3, 8)}
    others = [int8(name, *shape) for name, shape in shapes.items()]
    others += [int8("f", 1, 1, 1, 8), int8("g", 1, 8), int8("h", 1, 5), Tensor("y", (1, 5), "int8", 1 / 256, -128)]
    return harness.program(layers, [int8("x", 1, 9, 7, 2)], *others, outputs=["y", "h"])


def test_a_whole_net_equals_the_reference(harness):
    harness.check(harness.build([net(harness)], "-O3"))
    harness.check(harness.build([net(harness)], "-Os", compiler=harness.zig()))
    harness.check(harness.build([net(harness)], *harness.armv6m, compiler=harness.zig()))


def test_a_wrong_requantization_is_noticed(harness, tmp_path):
    """The comparison has teeth: one changed rounding in a copy of the kernels breaks it."""
    firmware = tmp_path / "firmware"
    shutil.copytree(firmware_root(), firmware)
    header = firmware / "include" / "edgescale" / "es_requant.h"
    text = header.read_text()
    wrong = text.replace("return (v + (v >> 31) + (INT32_C(1) << (right - 1))) >> right;", "return v >> right;")
    assert wrong != text
    header.write_text(wrong)
    with pytest.raises(AssertionError, match="Mismatched elements"):
        harness.check(harness.build([net(harness)], firmware=firmware))


DRIVER = r"""
#include <stdio.h>
int main(void)
{
    for (;;) {
        if (fread(es_p0_input(), 1, ES_P0_INPUT_BYTES, stdin) != ES_P0_INPUT_BYTES)
            return 0;
        es_p0_run();
        fwrite(es_p0_output(), 1, ES_P0_OUTPUT_BYTES, stdout);
    }
}
"""


def test_sanitizers_find_nothing(harness):
    compiler = harness.gcc()
    if compiler != ["gcc"]:
        pytest.skip("needs gcc's sanitizers")
    program = net(harness)
    folder = harness.new_folder()
    harness.write([program], folder)
    (folder / "all.c").write_text((folder / "es_p0.c").read_text() + DRIVER)
    given = harness.inputs(program, np.random.default_rng(1), 5)
    wanted = reference.run(program, given)["y"]
    for extra in ((), harness.armv6m):
        harness.compile(folder, *harness.sanitizers, *extra, compiler=compiler)
        run = subprocess.run([str(folder / "a.out")], input=given["x"].tobytes(), capture_output=True)
        assert run.returncode == 0, run.stderr.decode()
        np.testing.assert_array_equal(np.frombuffer(run.stdout, np.int8).reshape(wanted.shape), wanted)


def test_the_header_serves_c_and_cpp_and_states_its_figures(harness):
    folder = harness.new_folder()
    (made,) = harness.write([net(harness)], folder)
    header = (folder / "es_p0.h").read_text()
    meta = made.meta
    assert f"#define ES_P0_ARENA_BYTES {meta['arena_bytes']}\n" in header
    assert f"#define ES_P0_WEIGHTS_BYTES {meta['weights_bytes']}\n" in header
    assert "#define ES_P0_INPUT_SCALE 0.0500000007f\n#define ES_P0_INPUT_ZERO_POINT (-3)\n" in header
    (folder / "use.cpp").write_text('#include "es_p0.h"\nint main() { return es_p0_input() == nullptr; }\n')
    command = [*harness.gcc(), "-x", "c++", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "use.cpp"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_weights_bytes_are_the_bytes_of_the_tables(harness):
    folder = harness.new_folder()
    (made,) = harness.write([net(harness)], folder)
    sizes = {"int8_t": 1, "uint8_t": 1, "int32_t": 4, "float": 4}
    found = re.findall(r"^static const (\w+) \w+\[(\d+)\] =", (folder / "es_p0.c").read_text(), re.MULTILINE)
    assert sum(sizes[kind] * int(count) for kind, count in found) == made.meta["weights_bytes"]


@pytest.mark.parametrize("cpu", ["cortex_m0plus", "cortex_m23", "cortex_m3", "cortex_m4", "cortex_m33"])
def test_no_library_is_needed_on_a_core(harness, cpu):
    """int8 code asks the linker for nothing but memcpy and memset, also where the core lacks a long multiply."""
    from elftools.elf.elffile import ELFFile

    folder = harness.new_folder()
    harness.write([net(harness)], folder)
    core = ("-target", "thumb-freestanding-eabi", f"-mcpu={cpu}", "-fno-sanitize=all", "-fno-unwind-tables", "-Os")
    harness.compile(folder, *core, "-c", compiler=harness.zig(), output="all.o")
    with (folder / "all.o").open("rb") as handle:
        symbols = list(ELFFile(handle).get_section_by_name(".symtab").iter_symbols())
    missing = {symbol.name for symbol in symbols if symbol["st_shndx"] == "SHN_UNDEF" and symbol.name}
    assert {name.removeprefix("__aeabi_").rstrip("48") for name in missing} <= {"memcpy", "memset"}
    assert "es_p0_arena" in {symbol.name for symbol in symbols}


def test_every_layer_is_a_symbol_and_keeps_its_name(harness):
    folder = harness.new_folder()
    program = net(harness)
    (made,) = harness.write([program], folder)
    harness.compile(folder, "-c", "-O2", output="all.o")
    text = (folder / "all.o").read_bytes()
    layers = made.meta["layers"]
    assert [layer["name"] for layer in layers] == [layer.name for layer in program.layers if layer.op != "Reshape"]
    assert layers[0]["symbol"] == "es_p0_l000_stem_conv_0"
    assert layers[0]["macs"] == 9 * 7 * 8 * 18
    assert all(layer["symbol"].encode() in text for layer in layers)


def test_equal_tables_are_stored_once():
    pool = ConstantPool()
    assert pool.add("first", np.arange(5, dtype=np.int32)) == "first"
    assert pool.add("second", np.arange(5, dtype=np.int32)) == "first"
    assert pool.add("third", np.arange(5, dtype=np.int32).astype(np.float32)) == "third"
    assert pool.nbytes == 40
    assert pool.fill("es", -128, 0) == "NULL"
    assert pool.fill("es", -128, 4) == pool.fill("es", -128, 9) == "es_fill_m128"
    assert pool.nbytes == 49


def test_literals_and_names():
    assert np.float32(float_literal(0.1)[:-1]) == np.float32(0.1)
    assert float_literal(2) == "2.0f"
    assert float_literal(float("-inf")) == "-__builtin_inff()"
    assert identifier("/stage1/conv.2/Conv") == "stage1_conv_2_Conv"
    assert identifier("3x3") == "n3x3"
    assert identifier("日本") == "unnamed"
    assert "*/" not in comment("a */ b\nc")


def test_an_unknown_layer_is_an_error_that_names_node_rule_and_value(harness):
    class Strange(Layer):
        pass

    program = harness.program([Strange("odd", ("x",), "y")], [int8("x", 1, 4)], int8("y", 1, 4))
    with pytest.raises(UnsupportedModelError, match=r"'odd' \(Strange\).*has no kernel"):
        generate(program, "m", firmware_root())
    wide = Add("wide", ("x", "b"), "y", 20, (scaled(1, 0), scaled(1, 0)), scaled(1, -19), FULL)
    tensors = [int8("x", 1, 2, 2, 4), int8("b", 1, 2, 1, 1)]
    program = harness.program([wide], tensors, int8("y", 1, 2, 2, 4))
    with pytest.raises(UnsupportedModelError, match=r"'wide' \(Add\).*one value a channel.*\[1, 2, 1, 1\]"):
        generate(program, "m", firmware_root())


def target(kernels: str = "scalar") -> Target:
    return Target("test", "Test", "host", ("edgescale_c",), Core("host", 0, kernels))


@pytest.mark.skipif(not FASHION.is_dir(), reason="examples/fashion is not here")
def test_the_backend_compiles_a_float_model(tmp_path):
    path = FASHION / "fashion_small.onnx"
    variant = Variant("fashion_small", Recipe(), path, "0" * 64)
    artifact = BACKEND.compile(variant, target(), tmp_path)
    meta = json.loads((tmp_path / "artifact.json").read_text())
    assert meta == artifact.meta
    assert meta["symbol"] == "fashion_small_fp32"
    assert artifact.kind == "c" and artifact.backend == BACKEND.name
    needed = set(re.findall(r'#include "edgescale/(\w+\.h)"', (tmp_path / "es_fashion_small_fp32.c").read_text()))
    assert needed <= {path.name for path in (tmp_path / "edgescale").iterdir()}
    assert BACKEND.missing() is None
    assert BACKEND.version() == BACKEND.version()
    assert ("Conv" in dict(BACKEND.operators())) and all(rule for _, rule in BACKEND.operators())
    with pytest.raises(UsageError, match="kernel family 'quantum'"):
        BACKEND.compile(variant, target("quantum"), tmp_path)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory) -> Path:
    """fashion_medium as QDQ int8, made by ONNX Runtime's own quantizer."""
    if not (FASHION / "fashion_medium.onnx").is_file():
        pytest.skip("examples/fashion is not here")
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folder = tmp_path_factory.mktemp("qdq")
    source = FASHION / "fashion_medium.onnx"
    images = np.load(FASHION / "calibration.npz")["x"][:16]
    name = onnx.load(source).graph.input[0].name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(images)

        def get_next(self):
            image = next(self.rest, None)
            return None if image is None else {name: image[None]}

    quant_pre_process(source, folder / "clean.onnx")
    quantize_static(
        folder / "clean.onnx", folder / "int8.onnx", Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return folder / "int8.onnx"


def test_a_trained_int8_net_equals_the_reference_on_images(harness, quantized):
    program = lower_file(quantized, "fashion")
    built = harness.build([program], "-O2")
    port = program.inputs[0]
    from edgescale.lower.ports import to_stored

    images = np.load(FASHION / "test.npz")["x"][:100]
    given = {port.tensor: to_stored(program, port, images)}
    name = program.outputs[0].tensor
    np.testing.assert_array_equal(built.run(0, given)[name], reference.run(program, given)[name])
    # Overlap saves memory, and the plan stays within a tenth of what no plan can beat.
    apart = generate(program, "m", firmware_root(), overlap=False).plan
    placed = built.generated[0].plan
    assert placed.arena_bytes < 0.8 * apart.arena_bytes
    assert placed.arena_bytes <= 1.1 * placed.lower_bound


def test_the_float_net_equals_onnx_runtime(harness):
    import onnxruntime

    path = FASHION / "fashion_small.onnx"
    if not path.is_file():
        pytest.skip("examples/fashion is not here")
    program = lower_file(path, "fashion")
    built = harness.build([program], "-O2")
    port, end = program.inputs[0], program.outputs[0]
    from edgescale.lower.ports import from_stored, to_stored

    images = np.load(FASHION / "test.npz")["x"][:20]
    got = from_stored(program, end, built.run(0, {port.tensor: to_stored(program, port, images)})[end.tensor])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = np.concatenate([session.run(None, {port.name: image[None]})[0] for image in images])
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
