"""Artifacts for other machines: 64-bit Arm under qemu-aarch64 with the C runner, and the RPC rig.

The Arm test needs `qemu-aarch64` and, in the folder that EDGESCALE_TVM_AARCH64 names, libtvm_runtime.so and
libtvm_ffi.so from PyPI's aarch64 wheels, and (in lib/) the C and C++ libraries of Debian's arm64-cross packages.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgescale.core.errors import RigError
from edgescale.core.files import sha256_tree
from edgescale.core.target import load_target
from edgescale.core.variant import Artifact
from edgescale.lower import lower_file, reference
from edgescale.rigs import get_rig

RECIPES = ("w8a8", "w4a8", "fp32")


def program_of(repository: Path, tmp_path: Path, recipe: str):
    from edgescale.core.recipe import parse_recipe
    from edgescale.frontend import load_dataset, load_model, model_from_ir, save_model
    from edgescale.quantize import quantize

    folder = repository / "examples" / "fashion"
    model = load_model(folder / "fashion_small.onnx")
    graph = model.ir
    if recipe != "fp32":
        graph = quantize(model, load_dataset(str(folder / "calibration.npz")), parse_recipe(recipe))
    save_model(model_from_ir(graph, model.name, model.sha256), tmp_path / "model.onnx")
    return lower_file(tmp_path / "model.onnx", "net")


def arm() -> tuple[str, Path]:
    qemu, folder = shutil.which("qemu-aarch64"), os.environ.get("EDGESCALE_TVM_AARCH64")
    if qemu is None or folder is None:
        pytest.skip("needs qemu-aarch64 and EDGESCALE_TVM_AARCH64 (TVM's run time for aarch64)")
    return qemu, Path(folder)


@pytest.mark.parametrize("recipe", RECIPES)
def test_aarch64_equals_the_reference(harness, repository: Path, tmp_path: Path, recipe: str) -> None:
    from edgescale_tvm.runner import build_runner

    qemu, folder = arm()
    program = program_of(repository, tmp_path, recipe)
    out, meta = harness.compile(program, "aarch64-linux")
    assert meta["instructions"] == "neon-dotprod"
    libraries = [folder / "libtvm_runtime.so", folder / "libtvm_ffi.so"]
    build_runner(meta, load_target("aarch64-linux"), libraries, tmp_path / "run")
    given = harness.inputs(program, 1)
    stored = given[program.inputs[0].tensor]
    stored.tofile(tmp_path / "input.bin")
    command = [
        qemu, "-cpu", "max", "-L", str(folder), "-E", f"LD_LIBRARY_PATH={folder}:{folder / 'lib'}",
        str(tmp_path / "run"), str(out / meta["library"]), str(tmp_path / "input.bin"), str(tmp_path / "output.bin"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    wanted = reference.run(program, given)[program.outputs[0].tensor]
    got = np.fromfile(tmp_path / "output.bin", wanted.dtype).reshape(wanted.shape)
    if recipe == "fp32":
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)
    else:
        np.testing.assert_array_equal(got, wanted)


def wait_for_listener(port: int) -> None:
    """TVM's server says that it is bound before it listens; looking does not use up a connection."""
    for _ in range(200):
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        if any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows):
            return
        time.sleep(0.05)
    pytest.fail(f"nothing listens on port {port}")


def test_rpc_equals_the_reference_and_measures(harness, repository: Path, tmp_path: Path) -> None:
    from edgescale.frontend import load_dataset

    pytest.importorskip("cloudpickle", reason="TVM's RPC server needs cloudpickle, which apache-tvm does not bring")
    program = program_of(repository, tmp_path, "w8a8")
    out, meta = harness.compile(program)
    artifact = Artifact("net-w8a8", "host-tvm", "edgescale_tvm", "tvm", out, sha256_tree(out), meta)
    target = load_target("host-tvm")
    command = [
        sys.executable,
        "-m",
        "tvm.exec.rpc_server",
        "--host",
        "127.0.0.1",
        "--port",
        "39190",
        "--port-end",
        "39290",
    ]
    pipe = subprocess.PIPE
    server = subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        for line in server.stdout:
            if found := re.search(r"bind to 127\.0\.0\.1:(\d+)", line):
                break
        wait_for_listener(int(found[1]))
        rig = get_rig(f"tvm-rpc://127.0.0.1:{found[1]}")
        given = harness.inputs(program, 2)
        wanted = reference.run(program, given)[program.outputs[0].tensor]
        got = rig.raw_executor(artifact, target)(given[program.inputs[0].tensor])
        np.testing.assert_array_equal(got, wanted)
        samples = load_dataset(str(repository / "examples" / "fashion" / "test.npz")).head(1)
        figures = rig.measure(artifact, target, samples, max_seconds=0.2)
        assert figures.rig == rig.name and figures.metrics["latency"].value > 0
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # its worker outlives it otherwise
        server.wait(timeout=30)


def test_no_server_is_one_sentence(harness, repository: Path, tmp_path: Path) -> None:
    out, meta = harness.compile(program_of(repository, tmp_path, "w8a8"))
    artifact = Artifact("net-w8a8", "host-tvm", "edgescale_tvm", "tvm", out, sha256_tree(out), meta)
    with pytest.raises(RigError, match=r"tvm-rpc://127\.0\.0\.1:9: TVM refuses"):
        get_rig("tvm-rpc://127.0.0.1:9").raw_executor(artifact, load_target("host-tvm"))
