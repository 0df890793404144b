"""The `tflite-runtime` package of old boards (2.14, NumPy 1) runs our int8 and float files.

It cannot share an environment with NumPy 2, so EDGESCALE_TFLITE_RUNTIME names the Python of one of its own:

    python -m venv old && old/bin/pip install tflite-runtime 'numpy<2'
    EDGESCALE_TFLITE_RUNTIME=old/bin/python ./tools/test tests/edgescale_tflite/test_old_runtime.py
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgescale.core.variant import parse_recipe
from edgescale.frontend import load_dataset, load_model
from edgescale.lower import lower, reference

VARIABLE = "EDGESCALE_TFLITE_RUNTIME"
RUN = """
import sys
import numpy as np
from tflite_runtime.interpreter import Interpreter, OpResolverType
model, samples, outputs, kind = sys.argv[1:]
interpreter = Interpreter(model, experimental_op_resolver_type=getattr(OpResolverType, kind))
interpreter.allocate_tensors()
(port,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
found = []
for sample in np.load(samples):
    interpreter.set_tensor(port["index"], sample[None])
    interpreter.invoke()
    found.append(interpreter.get_tensor(made["index"])[0].copy())
np.save(outputs, np.stack(found))
"""


@pytest.fixture(scope="module")
def python(harness: Any) -> str:
    found = os.environ.get(VARIABLE)
    if not found:
        pytest.skip(f"{VARIABLE} names no Python with tflite-runtime and NumPy 1")
    shown = subprocess.run([found, "-c", "import tflite_runtime.interpreter, numpy"], capture_output=True, text=True)
    assert shown.returncode == 0, f"{VARIABLE}={found}: {shown.stderr}"
    return found


def run(python: str, data: bytes, given: np.ndarray, folder: Path, kind: str = "BUILTIN_REF") -> np.ndarray:
    """Outputs [n, -1] of the old run time."""
    (folder / "net.tflite").write_bytes(data)
    np.save(folder / "x.npy", given)
    words = [str(folder / name) for name in ("net.tflite", "x.npy", "y.npy")]
    done = subprocess.run([python, "-c", RUN, *words, kind], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "y.npy").reshape(len(given), -1)


@pytest.mark.parametrize("recipe", ["fp32", "w8a8"])
@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_the_shipped_family(
    python: str, harness: Any, repository: Path, tmp_path: Path, size: str, recipe: str
) -> None:
    from edgescale_tflite.write import write_program

    from edgescale.quantize import quantize

    folder = repository / "examples" / "fashion"
    model, calibration = load_model(folder / f"fashion_{size}.onnx"), load_dataset(str(folder / "calibration.npz"))
    graph = model.ir if recipe == "fp32" else quantize(model, calibration, parse_recipe(recipe))
    program = lower(graph, model.name)
    data = write_program(program).data
    (given,) = harness.inputs(program, 0, 40).values()
    wanted = reference.run(program, {program.inputs[0].tensor: given})[program.outputs[0].tensor].reshape(40, -1)
    got = run(python, data, given, tmp_path)
    assert got.dtype == wanted.dtype
    gap = got.astype(np.float64) - wanted
    if recipe == "fp32":
        assert np.abs(gap).max() <= 1e-3
    else:
        # Fully connected accumulators are rounded twice there, once in LiteRT: a step in some outputs, no more.
        assert np.abs(gap).max() <= 1 and (gap != 0).mean() < 0.02
    run(python, data, given, tmp_path, "AUTO")  # its default kernels run the file too


@pytest.mark.parametrize("name", ["kws01", "ic01", "ad01"])
def test_the_reference_models(python: str, harness: Any, mlperf_tiny: Any, tmp_path: Path, name: str) -> None:
    """Bit for bit what the file we read computes there."""
    from edgescale_tflite.write import write_program

    path = mlperf_tiny(f"{name}_int8.tflite")
    model = load_model(path)
    program = lower(model.ir, model.name)
    (given,) = harness.inputs(program, 0, 40).values()
    ours = run(python, write_program(program).data, given, tmp_path)
    np.testing.assert_array_equal(ours, run(python, path.read_bytes(), given, tmp_path))
