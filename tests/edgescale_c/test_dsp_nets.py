"""Whole nets on the dsp kernels: the MLPerf Tiny models, in-place plans, sanitizers, compilers, no kernel lost."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from edgescale_c import BACKEND, dsp_choice, kernels
from edgescale_c.generate import generate
from edgescale_c.planner import plan
from edgescale_c.verifier import PlanError, Workspace, verify

from edgescale.core.files import firmware_root
from edgescale.core.target import load_target
from edgescale.core.variant import Recipe, Variant
from edgescale.lower import lower_file, reference
from edgescale.lower.program import Conv2D, DepthwiseConv2D, FullyConnected, Pool2D, Requant, Reshape, Tensor

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("EDGESCALE_TEST_DATA", ROOT.parent / "shared" / "data")) / "mlperf_tiny"
M4 = "cortex-m4-stm32l4r5"
FULL = (-128, 127)
SAME = (1, 1, 1, 1)
EMULATOR = all(importlib.util.find_spec(package) for package in ("unicorn", "ziglang", "capstone", "elftools"))


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    cache = getattr(request.config, "cache", None)
    if cache is not None:
        monkeypatch.setenv("EDGESCALE_CACHE", str(cache.mkdir("edgescale")))


def int8(name: str, *shape: int, zero_point: int = -3) -> Tensor:
    return Tensor(name, shape, "int8", 0.05, zero_point)


def scaled(size: int, shift: int, rounding: str = "double") -> Requant:
    rng = np.random.default_rng(size)
    return Requant(rng.integers(2**30, 2**31, size).astype(np.int32), np.full(size, shift, np.int32), rounding)


def net(harness):
    """Convolution of three channels, depthwise in place and not, pointwise, strided, pooled, fully connected."""
    rng = np.random.default_rng(3)

    def w(*shape: int):
        return rng.integers(-127, 128, shape).astype(np.int8)

    def bias(count: int):
        return rng.integers(-2000, 2000, count).astype(np.int32)

    one = (1, 1)
    layers = [
        Conv2D("stem", ("x",), "a", w(8, 3, 3, 3), bias(8), one, one, SAME, 1, scaled(8, -9), FULL),
        DepthwiseConv2D("dw1", ("a",), "b", w(3, 3, 8), bias(8), one, one, SAME, 1, scaled(8, -7), (-20, 100)),
        Conv2D("pw1", ("b",), "c", w(7, 1, 1, 8), bias(7), one, one, (0,) * 4, 1, scaled(7, -7), FULL),
        DepthwiseConv2D("dw2", ("c",), "d", w(5, 3, 7), bias(7), (2, 2), one, (2, 1, 2, 1), 1, scaled(7, -7), FULL),
        Conv2D("odd", ("d",), "e", w(5, 3, 3, 7), bias(5), one, one, SAME, 1, scaled(1, -10), (-10, 90)),
        Pool2D("pool", ("e",), "f", "avg", (5, 4), one, (0,) * 4, False, None, FULL),
        Reshape("flat", ("f",), "g"),
        FullyConnected("fc", ("g",), "y", w(11, 5), bias(11), scaled(11, -8, "single"), FULL),
    ]
    shapes = {"a": (9, 7, 8), "b": (9, 7, 8), "c": (9, 7, 7), "d": (5, 4, 7), "e": (5, 4, 5), "f": (1, 1, 5)}
    others = [int8(name, 1, *shape) for name, shape in shapes.items()]
    return harness.program(layers, [int8("x", 1, 9, 7, 3)], *others, int8("g", 1, 5), int8("y", 1, 11))


def test_a_net_runs_in_place_and_under_sanitizers(harness):
    program = net(harness)
    built = harness.build([program], "-O3", family="dsp")
    harness.check(built)
    rows = {row["tensor"]: row for row in built.generated[0].meta["plan"]}
    assert rows["b"]["offset"] == rows["a"]["offset"] and rows["d"]["offset"] == rows["c"]["offset"]
    assert {layer["kernel"] for layer in built.generated[0].meta["layers"]} == {
        "conv2d_s8_dsp_4x2", "depthwise_s8_dsp_3x3", "depthwise_s8_dsp_plane", "avg_pool_s8_dsp",
        "fully_connected_s8_dsp_1x8",
    }  # fmt: skip
    if harness.gcc() != ["gcc"]:
        pytest.skip("needs gcc's sanitizers")
    folder = harness.new_folder()
    harness.write([program], folder, family="dsp")
    driver = (
        "#include <stdio.h>\nint main(void)\n{\n    while (fread(es_p0_input(), 1, ES_P0_INPUT_BYTES, stdin) == "
        "ES_P0_INPUT_BYTES) {\n        es_p0_run();\n        fwrite(es_p0_output(), 1, ES_P0_OUTPUT_BYTES, stdout);\n"
        "    }\n    return 0;\n}\n"
    )
    (folder / "main.c").write_text((folder / "es_p0.c").read_text() + driver)
    harness.compile(folder, *harness.sanitizers, compiler=["gcc"], source="main.c", output="net")
    x = harness.inputs(program, np.random.default_rng(2), 8)
    result = subprocess.run([str(folder / "net")], input=x["x"].tobytes(), capture_output=True)
    assert result.returncode == 0, result.stderr.decode()[-2000:]
    wanted = reference.run(program, x)["y"]
    np.testing.assert_array_equal(np.frombuffer(result.stdout, np.int8).reshape(wanted.shape), wanted)


def test_the_verifier_catches_planted_faults(harness):
    """Scratch over a live tensor, and an output that lies neither apart from nor exactly on its input."""
    program = net(harness)
    choices = kernels.choose(program, "dsp")
    placed = plan(program, choices=choices)
    offsets = {name: placed.offset(name) for name in program.tensors}
    spaces = {
        index: Workspace(c.order, placed.offset(f"scratch of layer {index}") if c.scratch else 0, c.scratch)
        for index, c in enumerate(choices)
    }
    verify(program, offsets, placed.arena_bytes, 1, spaces)
    for index, space in spaces.items():
        if space.nbytes:
            moved = dataclasses.replace(space, offset=(offsets[program.layers[index].output] + 3) // 4 * 4)
            with pytest.raises(PlanError, match="scratch"):
                verify(program, offsets, placed.arena_bytes, 1, spaces | {index: moved})
    apart = {name: 4096 * i for i, name in enumerate(offsets)}
    apart["g"] = apart["f"]
    bare = {i: dataclasses.replace(space, nbytes=0) for i, space in spaces.items()}
    verify(program, apart, 10**6, 1, bare)
    verify(program, apart | {"b": apart["a"]}, 10**6, 1, bare)
    verify(program, apart | {"c": apart["b"] + 1}, 10**6, 1, bare)  # four pixels of 7 bytes after four of 8
    with pytest.raises(PlanError, match="must lie where"):
        verify(program, apart | {"b": apart["a"] - 1}, 10**6, 1, bare)
    with pytest.raises(PlanError, match="before it has been read"):
        verify(program, apart | {"c": apart["b"] + 9}, 10**6, 1, bare)
    with pytest.raises(PlanError, match="before it has been read"):
        verify(program, apart | {"y": apart["g"]}, 10**6, 1, bare)


def test_large_biases_get_centres(harness):
    """Channels that a folded batch normalization has switched off keep the layer on its kernel."""
    rng = np.random.default_rng(1)
    w = rng.integers(-127, 128, (7, 1, 1, 8)).astype(np.int8)
    bias = rng.choice(np.array([-(2**29), 2**24, -(2**23), 7], np.int32), 7)
    layer = Conv2D("c", ("x",), "y", w, bias, (1, 1), (1, 1), (0,) * 4, 1, scaled(7, -22), FULL)
    program = harness.program([layer], [int8("x", 1, 4, 4, 8)], int8("y", 1, 4, 4, 7))
    built = harness.build([program], "-O1", family="dsp")
    assert built.generated[0].meta["layers"][0]["kernel"] == dsp_choice.WIDE
    harness.check(built)


@pytest.mark.parametrize("rounding", ["single", "double"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_dense_layers_whose_accumulators_need_24_bits(harness, rounding, per_channel):
    """Large biases, and sums of many taps: on this machine and on the emulated core."""
    rng = np.random.default_rng(3)
    programs = []
    for outputs, inputs in ((11, 30), (8, 640), (1, 21)):
        w = rng.integers(-127, 128, (outputs, inputs)).astype(np.int8)
        bias = rng.integers(-(2**27), 2**27, outputs).astype(np.int32)
        scaling = scaled(outputs if per_channel else 1, -21, rounding)
        layer = FullyConnected("fc", ("x",), "y", w, bias, scaling, FULL)
        programs.append(harness.program([layer], [int8("x", 1, inputs)], int8("y", 1, outputs)))
    built = harness.build(programs, "-O1", family="dsp")
    kernels_used = [one.meta["layers"][0]["kernel"] for one in built.generated]
    assert [kernel.endswith("_wide") for kernel in kernels_used] == [True, True, False]
    harness.check(built)
    if EMULATOR:
        harness.check_emulated(built, M4, 0, "dsp")


def test_what_no_dsp_kernel_covers_says_why(harness):
    rng = np.random.default_rng(0)

    def conv(w, bias=0, shift=-9):
        channels = len(w)
        layer = Conv2D(
            "c", ("x",), "y", w, np.full(channels, bias, np.int32), (1, 1), (1, 1), (0,) * 4, 1,
            scaled(channels, shift), FULL,
        )  # fmt: skip
        return harness.program([layer], [int8("x", 1, 4, 4, 8)], int8("y", 1, 4, 4, channels))

    w = rng.integers(-127, 128, (6, 1, 1, 8)).astype(np.int8)
    bad = w.copy()
    bad[0, 0, 0, 0], bad[1, 0, 0, 0] = -1, -128
    cases = {
        "weights of -128": conv(bad),
        "accumulators reach 2^30": conv(w, bias=2**30),
        "scale with shift 0": conv(w, shift=0),
    }
    for reason, program in cases.items():
        made = generate(program, "p", firmware_root(), "dsp").meta["layers"][0]
        assert (made["kernel"], made["reason"]) == ("conv2d_s8", reason)
    harness.check(harness.build(list(cases.values()), "-O1", family="dsp"))


@pytest.mark.parametrize(
    ("cpu", "flags"), [("cortex_m4", ["-O0"]), ("cortex_m4", ["-Os"]), ("cortex_m33", ["-O3"]), ("cortex_m0plus", [])]
)
def test_generated_code_compiles_for_cores(harness, cpu, flags):
    """Without a warning at every level, also where a core has no DSP instructions: C stands in."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("needs the ziglang package")
    folder = harness.new_folder()
    harness.write([net(harness)], folder, family="dsp")
    target = ["-target", "thumb-freestanding-eabi", f"-mcpu={cpu}", "-fno-sanitize=all", "-c"]
    harness.compile(folder, *target, *flags, compiler=harness.zig(), source="es_p0.c", output="p.o")


def test_generated_code_compiles_with_gcc_for_arm_and_as_cpp(harness):
    folder = harness.new_folder()
    harness.write([net(harness)], folder, family="dsp")
    if shutil.which("arm-none-eabi-gcc"):
        for level in ("-O0", "-O2", "-Os"):
            harness.compile(
                folder, level, "-mcpu=cortex-m4", "-mthumb", "-ffreestanding", "-c",
                compiler=["arm-none-eabi-gcc"], source="es_p0.c", output="p.o",
            )  # fmt: skip
    headers = sorted(path.name for path in (firmware_root() / "kernels" / "dsp").glob("*.h"))
    (folder / "all.cpp").write_text("".join(f'#include "edgescale/{name}"\n' for name in headers))
    for name in headers:
        shutil.copy(firmware_root() / "kernels" / "dsp" / name, folder / "edgescale")
    for header in (*(firmware_root() / "kernels" / "scalar").glob("*.h"), *(firmware_root() / "include").rglob("*.h")):
        shutil.copy(header, folder / "edgescale")
    command = [*harness.gcc(), "-x", "c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "all.cpp"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


LIMITS = {  # instructions, flash, RAM with stack: issue 3, "balanced"
    "kws01": (0.53 * 7_845_137, 40_000, 17_000),
    "ic01": (0.55 * 29_873_837, 95_000, 42_000),
    "ad01": (0.72 * 582_277, 280_000, 2_600),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LIMITS)
def test_mlperf_tiny_models(name, tmp_path):
    """Bit-equal with the reference on this machine and on the emulated M4, within instructions, flash and RAM."""
    path = DATA / f"{name}_int8.tflite"
    if not path.is_file():
        pytest.skip(f"no {path.name}: set EDGESCALE_TEST_DATA to the folder that holds mlperf_tiny")
    pytest.importorskip("ai_edge_litert", reason="needs the extra tflite")
    if not EMULATOR:
        pytest.skip("needs pip install 'edgescale[mcu]'")
    from edgescale.core.dataset import Dataset
    from edgescale.frontend import load_model, save_model
    from edgescale.rigs import get_rig, host_c

    model = load_model(path)
    save_model(model, tmp_path / "model.onnx")
    program = lower_file(tmp_path / "model.onnx", name)
    target = load_target(M4)
    artifact = BACKEND.compile(Variant(name, Recipe(8, 8), tmp_path / "model.onnx", ""), target, tmp_path / "out")
    tensor = program.tensors[program.inputs[0].tensor]
    rng = np.random.default_rng(6)
    stored = rng.integers(-128, 128, (40, *tensor.shape[1:])).astype(np.int8)
    stored[0], stored[1] = -128, 127
    wanted = reference.run(program, {tensor.name: stored})[program.outputs[0].tensor]
    np.testing.assert_array_equal(host_c.raw_executor(artifact)(stored), wanted)
    rig = get_rig(target.rig)
    np.testing.assert_array_equal(rig.raw_executor(artifact, target)(stored[:6]), wanted[:6])
    if shutil.which("arm-none-eabi-gcc") and target.toolchain is not None:
        gcc = dataclasses.replace(target, toolchain=dataclasses.replace(target.toolchain, compiler="gcc"))
        np.testing.assert_array_equal(rig.raw_executor(artifact, gcc)(stored[:3]), wanted[:3])
    x = rng.integers(-128, 128, (1, *model.inputs[0].shape[1:])).astype(np.int8)
    metrics = rig.measure(artifact, target, Dataset("random", x, None, "")).metrics
    figures = [metrics[metric].value for metric in ("instructions", "flash", "ram")]
    assert all(figure <= limit for figure, limit in zip(figures, LIMITS[name], strict=True)), figures
    heavy = [layer for layer in artifact.meta["layers"] if layer["macs"]]
    assert all("dsp" in layer["kernel"] for layer in heavy)
