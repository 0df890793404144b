"""docs/write-a-backend.md, as written: its files become an installed package, its commands run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "write-a-backend.md").read_text()
FILES = dict(re.findall(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
COMMANDS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[0].splitlines()


def net(convolution: bool) -> onnx.ModelProto:
    """[N, 1, 4, 6] -> 5 classes: two Gemm with a Relu between them; before them a convolution, where asked for."""
    rng = np.random.default_rng(0)
    weights = {"k": (1, 1, 3, 3), "w0": (24, 16), "b0": (16,), "w1": (16, 5), "b1": (5,)}
    nodes = [
        helper.make_node("Flatten", ["c" if convolution else "x"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w0", "b0"], ["g"], "hidden"),
        helper.make_node("Relu", ["g"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "w1", "b1"], ["y"], "head"),
    ]
    if convolution:
        nodes.insert(0, helper.make_node("Conv", ["x", "k"], ["c"], "stem", pads=[1, 1, 1, 1]))
    else:
        del weights["k"]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 4, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(rng.normal(0, 0.4, shape).astype(np.float32), n) for n, shape in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


class Shop:
    """A folder with the package, the models and the data; runs edgescale with the package installed."""

    def __init__(self, root: Path) -> None:
        self.root, self.site = root, root / "site"
        for name, text in FILES.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        self.install(tomllib.loads(FILES["pyproject.toml"]))
        import onnxruntime as ort

        rng = np.random.default_rng(1)
        x = rng.normal(0, 1, (128, 1, 4, 6)).astype(np.float32)
        for name, convolution in (("mlp", False), ("cnn", True)):
            onnx.save(net(convolution), root / f"{name}.onnx")
        answers = ort.InferenceSession(net(False).SerializeToString()).run(None, {"x": x})[0]
        np.savez(root / "calib.npz", x=x[:64])
        np.savez(root / "test.npz", x=x[64:], y=answers[64:].argmax(axis=1))

    def install(self, project: dict) -> None:
        """What an installer does with that pyproject.toml: files and metadata onto the path."""
        for package in project["tool"]["setuptools"]["packages"]:
            (self.site / package).mkdir(parents=True)
            kept = ["*.py", *project["tool"]["setuptools"]["package-data"][package]]
            for path in (path for pattern in kept for path in (self.root / package).glob(pattern)):
                (self.site / package / path.name).write_bytes(path.read_bytes())
        about = project["project"]
        metadata = self.site / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Name: {about['name']}\nVersion: {about['version']}\n")
        groups = [
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
            for group, entries in about["entry-points"].items()
        ]
        (metadata / "entry_points.txt").write_text("\n".join(groups))

    def edgescale(self, line: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(filter(None, [str(self.site), *sys.path]))
        environment = {**os.environ, "PYTHONPATH": path, "EDGESCALE_CACHE": str(self.root / "cache")}
        command = [
            sys.executable,
            "-P",
            "-m",
            *shlex.split(line),
        ]  # -P: the package as installed, not the folder it came from
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("backend"))


def test_it_is_about_a_hundred_lines() -> None:
    """Lines of code, without blank ones."""
    code = [line for name, text in FILES.items() if name.endswith(".py") for line in text.splitlines() if line.strip()]
    assert set(FILES) == {
        "pyproject.toml",
        *(f"edgescale_dense/{name}" for name in ("__init__.py", "rig.py", "dense-host.toml")),
    }
    assert 80 <= len(code) <= 120


def test_its_commands_run(shop: Shop) -> None:
    assert COMMANDS[0] == "pip install ."
    outputs = []
    for line in COMMANDS[1:]:
        done = shop.edgescale(line)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        outputs.append(" ".join(done.stdout.split()))
    operators, table, served = outputs
    assert "edgescale_dense" in operators and "constant weights, int8" in operators
    assert "dense-host" in table and "bit for bit" in table
    assert "accuracy" in served or "top1" in served


def test_its_figures_are_in_the_comparison(shop: Shop) -> None:
    words = "edgescale compile mlp.onnx --calib calib.npz --eval test.npz -r fp32,w8a8 --emit onnx,dense --out b --json"
    done = shop.edgescale(words)
    result = json.loads(done.stdout)
    rows = {(row["backend"], row["variant"]): row for row in result["comparison"]}
    dense = rows["edgescale_dense", "mlp-w8a8"]
    assert dense["agreement"] == "bit for bit" and dense["latency"]["source"] == "measured"
    assert dense["flash"]["value"] > 24 * 16 and dense["accuracy"]["value"] >= 0.9
    # The float variant is refused, by name, rule and value; the other back end's row stays.
    assert done.returncode == 4 and ("edgescale_onnx", "mlp-fp32") in rows
    (failure,) = result["failures"]
    assert "activations are int8, found float32" in failure["message"]


def test_a_convolution_is_named(shop: Shop) -> None:
    done = shop.edgescale("edgescale compile cnn.onnx --calib calib.npz -r w8a8 --emit onnx,dense --out c --json")
    result = json.loads(done.stdout)
    assert done.returncode == 4
    assert [row["backend"] for row in result["comparison"]] == ["edgescale_onnx"]
    assert result["failures"][0]["message"].startswith(
        "node 'stem': only fully connected layers run here, found Conv2D"
    )
    analyzed = shop.edgescale("edgescale analyze cnn.onnx -t edgescale_dense/dense-host.toml")
    assert analyzed.returncode == 4 and "only fully connected layers run here" in " ".join(analyzed.stdout.split())


def test_a_changed_bit_is_caught(shop: Shop) -> None:
    """The proof of equality is edgescale's, not the package's."""
    path = shop.site / "edgescale_dense" / "rig.py"
    good = path.read_text()
    path.write_text(good.replace("np.int64(1) << (right - 1)", "np.int64(0)"))
    try:
        done = shop.edgescale(
            "edgescale compile mlp.onnx --calib calib.npz -r w8a8 --emit dense --out d --json --no-cache"
        )
    finally:
        path.write_text(good)
    assert done.returncode == 5 and "differs from the reference by 1 steps" in done.stdout
