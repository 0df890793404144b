"""A bundle of the shipped fashion_small net for a Cortex-M4, and what the emulated core answers to its samples."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgescale.bundle import open_bundle
from edgescale.cli.main import run
from edgescale.core.target import load_target
from edgescale.export.source import Source, read_source
from edgescale.rigs import get_rig
from edgescale.served import entry_artifact

STRICT = "-Wall -Wextra -Wconversion -Wshadow -Wpedantic -Werror"
TARGET = "cortex-m4-stm32l4r5"
SAMPLES = 8
HINTS = {
    "gcc": "gcc",
    "g++": "g++",
    "make": "make",
    "cmake": "cmake",
    "arm-none-eabi-gcc": "gcc-arm-none-eabi",
    "qemu-system-arm": "qemu-system-arm",
}


@dataclass(frozen=True)
class Made:
    """The bundle with variants fp32 and w8a8; seven real samples and a blank one.

    answers: variant -> outputs [8, 10] float32 of the emulated core, by the rig that `edgescale run` uses.
    """

    root: Path
    bundle: Path
    x: np.ndarray
    answers: dict[str, np.ndarray]


@dataclass(frozen=True)
class Answer:
    """What a command gave back."""

    code: int
    out: str
    err: str


@pytest.fixture
def edgescale(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run the command line in this process."""

    def call(*arguments: object) -> Answer:
        code = run([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def edgescale_once() -> Callable[..., None]:
    """Run the command line in this process for a fixture; it must succeed."""

    def call(*arguments: object) -> None:
        assert run([str(a) for a in arguments]) == 0

    return call


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, repository: Path, _private_store: None) -> Made:
    pytest.importorskip("unicorn", reason="needs pip install 'edgescale[mcu]'")
    pytest.importorskip("ziglang", reason="needs pip install 'edgescale[mcu]'")
    root = tmp_path_factory.mktemp("export")
    fashion = repository / "examples" / "fashion"
    data = np.load(fashion / "test.npz")
    x, y = data["x"][:64], data["y"][:64]
    np.savez(root / "test.npz", x=x, y=y)
    arguments = ["compile", fashion / "fashion_small.onnx", "-t", TARGET, "--calib", fashion / "calibration.npz"]
    arguments += ["--eval", root / "test.npz", "--samples", "1", "--out", root / "bundle", "--quiet"]
    assert run([str(argument) for argument in arguments]) == 0
    samples = np.concatenate([x[: SAMPLES - 1], np.zeros_like(x[:1])])
    opened, target = open_bundle(root / "bundle"), load_target(TARGET)
    answers = {}
    for entry in opened.entries_for(TARGET):
        artifact = entry_artifact(opened, entry)
        answers[entry.variant] = np.asarray(get_rig(target.rig).executor(artifact, target)(samples))
    return Made(root, root / "bundle", samples, answers)


@pytest.fixture(scope="session")
def need() -> Callable[..., None]:
    """Skip, saying what to install, where a tool is absent."""

    def check(*tools: str) -> None:
        for tool in tools:
            if shutil.which(tool) is None:
                pytest.skip(f"needs {tool}: apt-get install {HINTS[tool]}")

    return check


@pytest.fixture(scope="session")
def sh() -> Callable[..., str]:
    """Run a command to its end; what it printed."""

    def call(*command: object, cwd: Path, code: int = 0, **options: Any) -> str:
        words = [str(word) for word in command]
        done = subprocess.run(
            words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options
        )
        assert done.returncode == code, f"{' '.join(words)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    return call


@pytest.fixture(scope="session")
def source(made: Made, repository: Path) -> Source:
    """The int8 entry as the layouts see it."""
    bundle = open_bundle(made.bundle)
    entry = bundle.entry(f"fashion_small-w8a8@{TARGET}")
    return read_source(bundle, entry, load_target(TARGET), "1.0.0", repository / "firmware")


@pytest.fixture(scope="session")
def strict() -> str:
    return STRICT
