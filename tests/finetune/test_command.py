"""Recipes that train, through the command line: asked for without data, without PyTorch, and with both."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest

from edgescale.cli.main import run
from edgescale.core.dataset import Dataset
from edgescale.core.variant import parse_recipe
from edgescale.quantize import quantize

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
        (["-r", "w8a8+ch0.5-ft", "--calib", "train.npz"], "--train DATA.npz"),
        (["-r", "w8a8+ch0.5-rigl", "--train", "train.npz"], "moves zeros"),
        (["-r", "w4a8", "--train", "train.npz"], "serves recipes that train"),
        (["-r", "w4a8", "--epochs", "2"], "--epochs goes with --train"),
        (["-r", "w4a8-qat-asym", "--train", "train.npz"], "symmetric levels"),
        (["-r", "fp4-qat", "--train", "train.npz"], "trains integers"),
        (["-r", "w4a8-qkr"], "qkr serves training"),
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


@pytest.mark.skipif(not TORCH, reason="PyTorch (extra `train`) is not installed")
def test_a_quantized_model_is_not_trained(compiled: Callable, project: Path, loaded: Callable) -> None:
    source = loaded(onnx.load(project / "model.onnx"))
    data = Dataset("images", np.load(project / "train.npz")["x"], None, "0")
    onnx.save(onnx_ir.to_proto(quantize(source, data, parse_recipe("w8a8"))), project / "model.onnx")
    code, said = compiled("-r", "w4a8-qat", "--train", str(project / "train.npz"))
    assert code == 2
    assert "arrived quantized" in " ".join(said.split())


@pytest.mark.skipif(not TORCH, reason="PyTorch (extra `train`) is not installed")
def test_an_interrupted_compile_goes_on_after_its_last_epoch(
    compiled: Callable, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgescale.finetune import checkpoint

    options = ("-r", "w4a8-qat", "--train", str(project / "train.npz"), "--epochs", "3")
    save, saved = checkpoint.save, []

    def noted(path: Path, run: str, epoch: int, *state: object) -> None:
        save(path, run, epoch, *state)
        saved.append(epoch)
        if len(saved) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", noted)
    code, _ = compiled(*options)
    assert (code, saved) == (130, [1])
    code, said = compiled(*options)
    assert (code, saved) == (0, [1, 2, 3]), said
    resumed = _models(project)
    code, said = compiled(*options, "--no-cache")
    assert (code, saved) == (0, [1, 2, 3, 1, 2, 3]), said
    assert _models(project) == resumed


@pytest.mark.skipif(not TORCH, reason="PyTorch (extra `train`) is not installed")
def test_an_interrupted_recovery_goes_on_after_its_last_epoch(
    compiled: Callable, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the trained rounding that follows recovery: what was recovered is not trained again."""
    from edgescale.finetune import checkpoint

    train = str(project / "train.npz")
    options = ("-r", "w4a8-qat+2:4", "--train", train, "--calib", train, "--epochs", "2")
    save, saved = checkpoint.save, []

    def noted(path: Path, run: str, epoch: int, *state: object) -> None:
        save(path, run, epoch, *state)
        saved.append(epoch)
        if len(saved) in (1, 4):
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", noted)
    assert compiled(*options)[0] == 130
    assert saved == [1]
    assert compiled(*options)[0] == 130
    assert saved == [1, 2, 1, 2]
    code, said = compiled(*options)
    assert (code, saved) == (0, [1, 2, 1, 2]), said
    resumed = _models(project)
    saved.extend([0] * 4)  # so that nothing stops any more
    code, said = compiled(*options, "--no-cache")
    assert code == 0, said
    assert _models(project) == resumed


def _models(project: Path) -> list[str]:
    """Hashes of the bundle's variants."""
    entries = json.loads((project / "bundle" / "manifest.json").read_text())["entries"]
    return [entry["variant_sha256"] for entry in entries]
