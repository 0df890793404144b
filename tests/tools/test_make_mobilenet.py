"""tools/make_mobilenet.py: LiteRT and the compiled program agree on its files; what a visual-wake-words net costs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgescale.lower import lower, reference

TOOLS = Path(__file__).resolve().parents[2] / "tools"

pytest.importorskip("ai_edge_litert", reason="needs pip install 'edgescale[tflite]'")

MACS = 7_489_664
# TFLite Micro + CMSIS-NN on the trained net of these shapes (revisions of 2026-08).
PUBLISHED = {"cortex-m4-stm32l4r5": 24_720_015, "cortex-m55-an547": 6_433_611}


def _run(tool: str, *arguments: object) -> None:
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _emulates(name: str) -> bool:
    from edgescale.core.target import load_target
    from edgescale.rigs import get_rig

    packages = ("unicorn", "ziglang", "capstone", "elftools")
    return all(map(importlib.util.find_spec, packages)) and get_rig(load_target(name).rig).missing() is None


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_program_and_emulated_cores_equal_litert(tmp_path: Path, bits: int) -> None:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
    from edgescale_c import BACKEND

    from edgescale.core.target import load_target
    from edgescale.core.variant import Recipe, Variant
    from edgescale.frontend import load_model, save_model
    from edgescale.rigs import get_rig

    file = tmp_path / "net.tflite"
    _run("make_mobilenet.py", file, "--bits", bits, "--size", 64, "--width", 0.125, "--classes", 5)
    litert = Interpreter(model_path=str(file), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    litert.allocate_tensors()
    (given,), (made,) = litert.get_input_details(), litert.get_output_details()
    x = np.random.default_rng(1).integers(-128, 128, (3, 64, 64, 3), dtype=np.int8)
    wanted = np.zeros((3, 5), np.int8)
    for row, sample in zip(wanted, x, strict=True):
        litert.set_tensor(given["index"], sample[None])
        litert.invoke()
        row[:] = litert.get_tensor(made["index"])[0]
    assert len(np.unique(wanted)) > 2
    model = load_model(file)
    program = lower(model.ir, model.name)
    (ours,) = reference.run(program, {program.inputs[0].tensor: x}).values()
    np.testing.assert_array_equal(ours.reshape(3, 5), wanted)
    save_model(model, tmp_path / "net.onnx")
    variant = Variant("net", Recipe(8, 8), tmp_path / "net.onnx", "")
    for name in filter(_emulates, PUBLISHED):
        target = load_target(name)
        artifact = BACKEND.compile(variant, target, tmp_path / name)
        stored = get_rig(target.rig).raw_executor(artifact, target)(x)
        np.testing.assert_array_equal(np.asarray(stored).reshape(3, 5), wanted, err_msg=name)
        heavy = [layer["kernel"] for layer in artifact.meta["layers"] if layer["macs"]]
        assert all(kernel.endswith("_w4") == (bits == 4) for kernel in heavy), heavy


# Bytes of flash with weights of 8 and 4 bits, and how many times the instructions the latter take.
FLASH = {"cortex-m4-stm32l4r5": (245_000, 140_000), "cortex-m55-an547": (250_000, 150_000)}
LIMITS = {"cortex-m4-stm32l4r5": 0.45, "cortex-m55-an547": 0.55}
NARROW = 1.35


@pytest.mark.slow
@pytest.mark.parametrize("target", PUBLISHED)
def test_half_the_instructions_of_an_interpreter_and_little_flash(tmp_path: Path, target: str) -> None:
    if not _emulates(target):
        pytest.skip(f"{target} cannot be emulated here")
    for bits in (8, 4):
        _run("make_mobilenet.py", tmp_path / f"vww{bits}.tflite", "--bits", bits)
    files = [tmp_path / f"vww{bits}.tflite" for bits in (8, 4)]
    _run("bench_mcu.py", *files, "--no-layers", "--target", target, "--json", tmp_path / "figures.json")
    wide, narrow = json.loads((tmp_path / "figures.json").read_text())
    assert wide["macs"] == narrow["macs"] == MACS
    assert (wide["flash"] <= FLASH[target][0], narrow["flash"] <= FLASH[target][1]) == (True, True)
    assert wide["instructions"] <= LIMITS[target] * PUBLISHED[target]
    assert narrow["instructions"] <= NARROW * wide["instructions"]
