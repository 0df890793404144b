"""What the README shows works as shown: its commands, its Python and its C."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def _small_model(folder: Path) -> None:
    """A small CNN with calibration and labelled data, as the README assumes them; labels are its own answers."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = {
        "w0": rng.standard_normal((8, 1, 3, 3)).astype(np.float32) * 0.5,
        "w1": rng.standard_normal((3, 8)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w1"], ["y"], "fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    x = (rng.standard_normal((200, 1, 8, 8)) * rng.uniform(0.2, 3, (200, 1, 1, 1))).astype(np.float32)
    y = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    clear = np.sort(y, axis=1)[:, -1] - np.sort(y, axis=1)[:, -2] > 0.2
    np.savez(folder / "calib.npz", x=x[:50])
    np.savez(folder / "test.npz", x=x[clear], y=y.argmax(axis=1)[clear])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder after the README's five lines were run in it."""
    pytest.importorskip("unicorn", reason="needs pip install 'edgescale[mcu]'")
    pytest.importorskip("ziglang", reason="needs pip install 'edgescale[mcu]'")
    place = tmp_path_factory.mktemp("readme")
    _small_model(place)
    block = next(b for b in _blocks("sh") if "edgescale compile" in b)
    lines = [line for line in block.replace("\\\n", " ").splitlines() if line.startswith("edgescale")]
    assert len(lines) == 3
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for line in lines:
        done = subprocess.run(line, shell=True, cwd=place, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return place


@pytest.mark.slow
def test_the_device_apps_python_runs(folder: Path) -> None:
    block = next(b for b in _blocks("python") if "Session" in b)
    sample = "import numpy as np; sample = np.load('test.npz')['x'][0]\n"
    done = subprocess.run(
        [sys.executable, "-c", sample + block], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "model-" in done.stdout


@pytest.mark.slow
def test_the_microcontrollers_c_compiles(folder: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a host C compiler: apt-get install gcc")
    block = next(iter(_blocks("c")))
    include, _, body = block.partition("\n")
    artifact = folder / "bundle" / "artifacts" / "model-w8a8@cortex-m4-stm32l4r5"
    source = folder / "main.c"
    source.write_text(f"{include}\nint main(void) {{\n{body}\n(void)input; return output[0] == 0 && input == 0; }}\n")
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", f"-I{artifact}"]
    command = [compiler, *flags, str(source), str(artifact / "es_model_w8a8.c"), "-o", str(folder / "app")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([str(folder / "app")], check=False).returncode == 0


def test_links_and_pictures_exist() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert not missing


def test_the_two_commands_exist_and_are_executable() -> None:
    for name in ("tools/demo", "tools/test", ".ci/run"):
        assert os.access(ROOT / name, os.X_OK), name
    assert "./tools/demo" in README
    assert "./tools/test" in README
