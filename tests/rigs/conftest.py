"""Fixtures of the rig tests: a small hand-written C artifact, and a plain NumPy computation of what it does."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgescale.core.dataset import Dataset
from edgescale.core.files import sha256_tree
from edgescale.core.target import MemoryRegion, Target, load_target
from edgescale.core.variant import Artifact

TINY = Path(__file__).parent / "tiny_artifact"
PROFILES = {
    "cortex-m0plus": "cortex-m0plus",
    "cortex-m3": "cortex-m3",
    "cortex-m4": "cortex-m4-stm32l4r5",
    "cortex-m7": "cortex-m7-stm32f746",
    "cortex-m33": "cortex-m33-stm32u575",
    "cortex-m55": "cortex-m55-an547",
    "rv32imc": "esp32-c3",
}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Compilers' caches survive between test runs, inside .pytest_cache."""
    cache = getattr(request.config, "cache", None)
    if cache is not None:
        monkeypatch.setenv("EDGESCALE_CACHE", str(cache.mkdir("edgescale")))


@pytest.fixture
def emulator() -> None:
    """Skip, with the reason, where the emulator's packages are absent."""
    absent = [p for p in ("ziglang", "unicorn", "capstone", "elftools") if importlib.util.find_spec(p) is None]
    if absent:
        pytest.skip(f"needs {', '.join(absent)}: pip install 'edgescale[mcu]'")


@pytest.fixture
def need() -> Callable[..., None]:
    """Skip, with the reason, where a rig or the compiler of a target is not installed."""

    def check(rig: str, compiler: str = "zig", target: Target | None = None) -> None:
        from edgescale.rigs import get_rig, toolchain_gcc

        hint = get_rig(rig).missing()
        if hint is None and compiler == "zig" and importlib.util.find_spec("ziglang") is None:
            hint = "pip install 'edgescale[mcu]'"
        if hint is None and compiler == "gcc" and target is not None and target.toolchain is not None:
            hint = toolchain_gcc.missing(target.toolchain)
        if hint:
            pytest.skip(f"{rig} with {compiler} needs: {hint}")

    return check


def with_compiler(target: Target, compiler: str) -> Target:
    assert target.toolchain is not None
    return dataclasses.replace(target, toolchain=dataclasses.replace(target.toolchain, compiler=compiler))


@pytest.fixture
def built_with() -> Callable[[Target, str], Target]:
    """The target with another compiler."""
    return with_compiler


def load_artifact(folder: Path) -> Artifact:
    meta = json.loads((folder / "artifact.json").read_text())
    return Artifact(f"{meta['symbol']}-w8a8", "any", "hand-written", "c", folder, sha256_tree(folder), meta)


@pytest.fixture
def tiny() -> Artifact:
    return load_artifact(TINY)


@pytest.fixture
def variation(tmp_path: Path) -> Callable[..., Artifact]:
    """A copy of the tiny artifact with replacements in its C, or with another body of its run function."""

    def make(*replacements: tuple[str, str]) -> Artifact:
        folder = tmp_path / "artifact"
        folder.mkdir(exist_ok=True)
        for name in ("es_tiny.h", "es_tiny.c", "artifact.json"):
            text = (TINY / name).read_text()
            for old, new in replacements:
                text = text.replace(old, new)
            (folder / name).write_text(text)
        return load_artifact(folder)

    return make


@pytest.fixture
def make_target() -> Callable[..., Target]:
    """The shipped profile of a core, optionally with another flash or RAM."""

    def make(core: str, **memory: dict[str, int]) -> Target:
        target = load_target(PROFILES[core])
        changed: dict[str, MemoryRegion] = dict(target.memory)
        for name, fields in memory.items():
            changed[name] = dataclasses.replace(changed[name], **fields)
        return dataclasses.replace(target, memory=changed)

    return make


@pytest.fixture
def images() -> Dataset:
    x = np.random.default_rng(7).normal(0, 30, (6, 1, 8, 8)).astype(np.float32)
    return Dataset("random", x, None, "random-7")


def quantized(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The tiny artifact's input as its port stores it: scale 0.5, zero-point -3."""
    return np.clip(np.round(x.astype(np.float64) / 0.5) - 3, -128, 127).astype(np.int8).transpose(0, 2, 3, 1)


def tiny_reference(stored: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What es_tiny_run computes, written out in NumPy: int8 [n, 8, 8, 1] -> int8 [n, 3]."""
    weights = np.array(
        [
            [1, 2, 3, 4, 5, 6, 7, 8, 9],
            [-1, -2, -3, 0, 0, 0, 3, 2, 1],
            [5, -5, 5, -5, 5, -5, 5, -5, 5],
            [9, 8, 7, 6, 5, 4, 3, 2, 1],
        ]
    )
    bias = np.array([100, -200, 300, -400])
    image = stored[..., 0].astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(1, 2)).reshape(len(image), 6, 6, 9)
    sums = windows @ weights.T + bias
    features = np.clip(np.fix(sums / 37), -128, 127)  # C divides towards zero
    totals = features.reshape(len(image), -1).sum(axis=1).astype(np.int64)[:, None] * np.array([1, -2, 3])
    return np.clip(totals >> 4, -128, 127).astype(np.int8)


@pytest.fixture
def quantize_input() -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    return quantized


@pytest.fixture
def reference() -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    return tiny_reference
