"""Vela, Arm's compiler for Ethos-U, as a subprocess, and what it reports.

A process of its own: Vela ends with a signal on some inputs (four-bit tensors), and it exits with 0 on some errors, so
success is judged by the files it leaves.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgescale.core.errors import MissingDependencyError, RigError
from edgescale.core.target import Npu

INSTALL_HINT = "pip install 'edgescale[ethosu]'"
VARIABLE = "EDGESCALE_VELA"
_SECONDS = 900
_KIB = 1024
_REASON = re.compile(
    r"Warning \([^)]*\) operator: (?P<kind>\S+), ofm: '(?P<output>[^']*)'\s*Reason: (?P<reason>[^\n]*)"
)


@dataclass(frozen=True)
class Row:
    """An operator in Vela's per-layer report. name: its output's; cycles, macs: Vela's estimate and count."""

    name: str
    kind: str
    on_npu: bool
    cycles: int
    macs: int


@dataclass(frozen=True)
class Report:
    """What Vela says of a network: bytes, cycles, seconds. reasons: output -> why its operator is on the CPU."""

    compiled: Path
    rows: tuple[Row, ...]
    sram_bytes: int
    dram_bytes: int
    flash_bytes: int
    encoded_weights_bytes: int
    cycles: int
    npu_cycles: int
    clock_hz: float
    seconds: float
    reasons: Mapping[str, str]


def command() -> list[str] | None:
    """How to start Vela: the program that EDGESCALE_VELA names, the package in this environment, or `vela` on the
    path; None where there is none."""
    if (given := os.environ.get(VARIABLE)) is not None:
        return [given] if shutil.which(given) else None
    from importlib.util import find_spec

    if find_spec("ethosu") is not None and find_spec("ethosu.vela") is not None:
        return [sys.executable, "-m", "ethosu.vela"]
    found = shutil.which("vela")
    return None if found is None else [found]


def version() -> str:
    """Vela's version, "absent" without it."""
    found = command()
    if found is None:
        return "absent"
    try:
        shown = subprocess.run([*found, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "broken"
    return shown.stdout.strip() or "broken"


def run(model: Path, npu: Npu, out: Path) -> Report:
    """Compile a .tflite file for an NPU into the directory `out`.

    Raises MissingDependencyError without Vela and RigError, in one sentence, where it crashes, refuses or leaves
    nothing.
    """
    start = command()
    if start is None:
        raise MissingDependencyError("Vela (ethos-u-vela), which compiles for Ethos-U,", INSTALL_HINT)
    options = {
        "--accelerator-config": npu.accelerator,
        "--config": npu.config,
        "--system-config": npu.system_config,
        "--memory-mode": npu.memory_mode,
        "--output-dir": str(out),
    }
    words = [word for pair in options.items() for word in pair]
    shown = ["--verbose-performance", "--verbose-cycle-estimate", "--show-cpu-operations"]
    try:
        done = subprocess.run(
            [*start, str(model), *words, *shown], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise RigError(f"Vela did not finish {model.name} within {_SECONDS} s") from None
    except OSError as error:
        raise RigError(f"Vela cannot be started: {error}") from None
    compiled = out / f"{model.stem}_vela.tflite"
    if done.returncode or not compiled.is_file():
        raise RigError(f"Vela failed on {model.name} for {npu.accelerator}: {_why(done)}")
    return _report(model.stem, compiled, out, done.stdout)


def _why(done: subprocess.CompletedProcess[str]) -> str:
    """The last thing it said, or the signal that ended it."""
    number = -done.returncode if done.returncode < 0 else done.returncode - 128
    if done.returncode < 0 or done.returncode > 128:
        try:
            return f"it crashed ({signal.Signals(number).name})"
        except ValueError:
            pass
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"\berror\b|failed|invalid", line, re.IGNORECASE)]
    return (telling or lines or [f"exit code {done.returncode}"])[-1]


def _report(stem: str, compiled: Path, out: Path, text: str) -> Report:
    summaries = sorted(out.glob(f"{stem}_summary_*.csv"))
    layers = out / f"{stem}_per-layer.csv"
    if not summaries or not layers.is_file():
        raise RigError(f"Vela compiled {stem} but left no report; update ethos-u-vela")
    try:
        with summaries[0].open(newline="") as stream:
            summary = next(csv.DictReader(stream))
        with layers.open(newline="") as stream:
            rows = tuple(_row(row) for row in csv.DictReader(stream))
        kib = {key: float(summary[f"{key}_memory_used"]) for key in ("sram", "dram", "on_chip_flash", "off_chip_flash")}
        return Report(
            compiled,
            rows,
            sram_bytes=round(kib["sram"] * _KIB),
            dram_bytes=round(kib["dram"] * _KIB),
            flash_bytes=round((kib["on_chip_flash"] + kib["off_chip_flash"]) * _KIB),
            encoded_weights_bytes=int(float(summary["total_npu_encoded_weights"])),
            cycles=int(float(summary["cycles_total"])),
            npu_cycles=int(float(summary["cycles_npu"])),
            clock_hz=float(summary["core_clock"]),
            seconds=float(summary["inference_time"]),
            reasons={found["output"]: found["reason"].strip() for found in _REASON.finditer(text)},
        )
    except (KeyError, ValueError, StopIteration) as error:
        raise RigError(f"Vela's report on {stem} is not one this edgescale reads ({error}); is it 5.x?") from None


def _row(row: Mapping[str, str]) -> Row:
    return Row(
        name=row["Name"],
        kind=row["Original Operator"],
        on_npu=row["Target"] == "NPU",
        cycles=int(float(row["Op Cycles"])),
        macs=int(float(row["MAC Count"])),
    )
