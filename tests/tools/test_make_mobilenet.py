"""tools/make_mobilenet.py: LiteRT and the compiled program agree on its files; what a visual-wake-words net costs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgescale.frontend import load_model
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


@pytest.mark.parametrize("bits", [8, 4])
def test_the_program_equals_litert(tmp_path: Path, bits: int) -> None:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    file = tmp_path / "net.tflite"
    _run("make_mobilenet.py", file, "--bits", bits, "--size", 64, "--width", 0.125, "--classes", 5)
    litert = Interpreter(model_path=str(file), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    litert.allocate_tensors()
    (given,), (made,) = litert.get_input_details(), litert.get_output_details()
    model = load_model(file)
    program = lower(model.ir, model.name)
    x = np.random.default_rng(1).integers(-128, 128, (3, 64, 64, 3), dtype=np.int8)
    wanted = []
    for sample in x:
        litert.set_tensor(given["index"], sample[None])
        litert.invoke()
        wanted.append(litert.get_tensor(made["index"])[0])
    (ours,) = reference.run(program, {program.inputs[0].tensor: x}).values()
    np.testing.assert_array_equal(ours.reshape(3, 5), wanted)
    assert len(np.unique(wanted)) > 2


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("unicorn", "ziglang"))), reason="needs pip install 'edgescale[mcu]'"
)
def test_half_the_instructions_of_an_interpreter_and_245_kb_of_flash(tmp_path: Path) -> None:
    file = tmp_path / "vww.tflite"
    _run("make_mobilenet.py", file)
    _run("bench_mcu.py", file, "--no-layers", "--json", tmp_path / "m4.json")
    (record,) = json.loads((tmp_path / "m4.json").read_text())
    assert record["macs"] == MACS
    assert record["flash"] <= 245_000
    assert record["instructions"] <= 0.45 * PUBLISHED["cortex-m4-stm32l4r5"]


@pytest.mark.slow
def test_the_same_on_vectors(tmp_path: Path) -> None:
    from edgescale.core.target import load_target
    from edgescale.rigs import get_rig

    if reason := get_rig(load_target("cortex-m55-an547").rig).missing():
        pytest.skip(reason)
    file = tmp_path / "vww.tflite"
    _run("make_mobilenet.py", file)
    _run("bench_mcu.py", file, "--no-layers", "--target", "cortex-m55-an547", "--json", tmp_path / "m55.json")
    (record,) = json.loads((tmp_path / "m55.json").read_text())
    assert record["flash"] <= 250_000
    assert record["instructions"] <= 0.55 * PUBLISHED["cortex-m55-an547"]
