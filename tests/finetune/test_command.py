"""Recipes that train, through the command line: asked for without data, without PyTorch, and with both."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgescale.cli.main import run

TORCH = find_spec("torch") is not None


@pytest.fixture
def project(tmp_path: Path, toy: Callable[..., onnx.ModelProto], samples: Callable, onnx_rows: Callable) -> Path:
    """model.onnx, train.npz (labelled) and test.npz (labelled) in a folder."""
    proto = toy()
    onnx.save(proto, tmp_path / "model.onnx")
    for name, count, seed in (("train", 128, 3), ("test", 64, 5)):
        x = samples(count, seed=seed).x
        np.savez(tmp_path / f"{name}.npz", x=x, y=onnx_rows(proto, x).argmax(1))
    return tmp_path


@pytest.fixture
def compiled(project: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run `compile` on the project with more options: (exit code, what was said)."""

    def call(*more: str) -> tuple[int, str]:
        fixed = ["compile", project / "model.onnx", "--eval", project / "test.npz", "--out", project / "bundle", "-q"]
        code = run([str(a) for a in (*fixed, *more)])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["-r", "w4a8-qat"], "--train DATA.npz"),
        (["-r", "w4a8", "--train", "train.npz"], "serves recipes that train"),
        (["-r", "w4a8", "--epochs", "2"], "--epochs goes with --train"),
        (["-r", "w4a8-qat-asym", "--train", "train.npz"], "symmetric levels"),
        (["-r", "fp4-qat", "--train", "train.npz"], "trains integers"),
        (["-r", "w4a8-qat-bc", "--train", "train.npz"], "trains scales and biases itself"),
        (["-r", "w4a8", "-O", "*=w8a8-qat", "--train", "train.npz"], "for the whole model"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(more: list[str], words: str, compiled: Callable) -> None:
    code, said = compiled(*more)
    assert code == 2
    assert words in " ".join(said.split())


def test_without_torch_the_command_that_installs_it_is_named(
    compiled: Callable, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgescale.finetune.find_spec", lambda name: None)
    code, said = compiled("-r", "w4a8-qat", "--train", str(project / "train.npz"))
    assert code == 5
    assert "pip install 'edgescale[train]'" in said


def test_the_command_line_does_not_import_torch() -> None:
    import subprocess

    code = "import sys, edgescale.cli.compile, edgescale.pipeline, edgescale.finetune; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(not TORCH, reason="PyTorch (extra `train`) is not installed")
def test_a_trained_variant_is_compiled_measured_and_kept(compiled: Callable, project: Path) -> None:
    train = str(project / "train.npz")
    options = ("-r", "w8a8,w8a8-qat", "--train", train, "--calib", train, "--epochs", "2")
    code, said = compiled(*options, "--json")
    assert code == 0, said
    manifest = json.loads((project / "bundle" / "manifest.json").read_text())
    scores = {entry["recipe"]["name"]: entry["figures"]["accuracy"]["value"] for entry in manifest["entries"]}
    assert set(scores) == {"w8a8", "w8a8-qat"}
    assert scores["w8a8-qat"] >= scores["w8a8"] - 0.1
    assert {data["role"] for data in manifest["datasets"]} == {"calibration", "training", "evaluation"}
