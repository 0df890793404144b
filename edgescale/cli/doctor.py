"""`edgescale doctor`: what is installed, what is missing for which part, and the command that installs it."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from edgescale import __version__
from edgescale.cli.common import console, json_option, print_json
from edgescale.core.errors import EdgescaleError

# package -> (what it is for, the command that installs it)
_CORE = ("numpy", "onnx", "onnx-ir", "onnxruntime", "click", "rich", "scipy", "msgspec")
_OPTIONAL: dict[str, tuple[str, str]] = {
    "ziglang": ("C compiler for microcontrollers and this machine", "pip install 'edgescale[mcu]'"),
    "unicorn": ("Cortex-M emulator", "pip install 'edgescale[mcu]'"),
    "capstone": ("instruction decoding for counts and cycle models", "pip install 'edgescale[mcu]'"),
    "pyelftools": ("flash and RAM read from linked images", "pip install 'edgescale[mcu]'"),
    "ai-edge-litert": ("TensorFlow Lite files in and out, rig litert", "pip install 'edgescale[tflite]'"),
    "ethos-u-vela": ("compiler for Ethos-U NPUs, rig vela", "pip install 'edgescale[ethosu]'"),
    "apache-tvm": ("back end and rigs for Linux-class processors", "pip install 'edgescale[tvm]'"),
    "torch": ("training the example family", "pip install 'edgescale[train]'"),
}
_TOOLS: dict[str, tuple[str, str]] = {
    "gcc": ("second host compiler; sanitizer runs in the tests", "apt-get install gcc"),
    "qemu-system-arm": ("rigs qemu:mps3-an547 (Cortex-M55) and other boards", "apt-get install qemu-system-arm"),
    "qemu-system-riscv32": ("rig qemu:virt-riscv32", "apt-get install qemu-system-misc"),
    "arm-none-eabi-gcc": (
        'second compiler for Cortex-M (compiler = "gcc" in a profile)',
        "apt-get install gcc-arm-none-eabi",
    ),
    "riscv64-unknown-elf-gcc": ("second compiler for RISC-V", "apt-get install gcc-riscv64-unknown-elf"),
}


@click.command("doctor")
@json_option
def command(as_json: bool) -> int:
    """Check the installation. Exit code 0 when the core is complete, 1 when it is not."""
    rows = _packages() + _programs() + _backends() + _rigs()
    broken = [row for row in rows if row["part"] == "core" and not row["ok"]]
    if as_json:
        print_json("doctor", {"ok": not broken, "checks": rows, "cache": _cache()})
    else:
        _show(rows)
    return 1 if broken else 0


def _row(part: str, name: str, ok: bool, detail: str, fix: str = "") -> dict[str, Any]:
    return {"part": part, "name": name, "ok": ok, "detail": detail, "fix": "" if ok else fix}


def _packages() -> list[dict[str, Any]]:
    rows = [
        _row("core", "python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or newer")
    ]
    rows.append(_row("core", "edgescale", True, __version__))
    for name in _CORE:
        found = _version(name)
        rows.append(_row("core", name, found is not None, found or "missing", f"pip install {name}"))
    for name, (purpose, fix) in _OPTIONAL.items():
        found = _version(name)
        rows.append(_row("optional", name, found is not None, f"{found or 'missing'}: {purpose}", fix))
    return rows


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _programs() -> list[dict[str, Any]]:
    rows = []
    for name, (purpose, fix) in _TOOLS.items():
        path = shutil.which(name)
        rows.append(_row("optional", name, path is not None, f"{path or 'missing'}: {purpose}", fix))
    return rows


def _backends() -> list[dict[str, Any]]:
    from edgescale.backends import backend_names, load_backend

    rows = []
    for name in backend_names():
        try:
            hint = load_backend(name).missing()
        except EdgescaleError as error:
            hint = str(error)
        rows.append(_row("back end", name, hint is None, "ready" if hint is None else "not ready", hint or ""))
    return rows


def _rigs() -> list[dict[str, Any]]:
    from edgescale.core.target import load_target, profile_names
    from edgescale.rigs import get_rig

    rows = []
    for target in map(load_target, profile_names()):
        try:
            hint = get_rig(target.rig).missing()
        except EdgescaleError as error:
            hint = str(error)
        state = f"rig {target.rig} {'ready' if hint is None else 'not ready'}"
        rows.append(_row("target", target.name, hint is None, state, hint or ""))
    return rows


def _cache() -> dict[str, Any]:
    from edgescale.cache import StageStore
    from edgescale.core.files import cache_root

    return {"path": str(cache_root()), "bytes": StageStore().size()}


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from edgescale.core.quantity import format_value
    from edgescale.report.figures import plain

    table = Table(title="edgescale doctor", title_justify="left")
    for heading in ("part", "name", "", "found", "install with"):
        table.add_column(heading)
    for row in rows:
        mark = "[green]ok[/]" if row["ok"] else "[yellow]missing[/]"
        table.add_row(row["part"], row["name"], mark, plain(row["detail"]), plain(row["fix"]))
    console().print(table)
    cache = _cache()
    click.echo(f"Stored stages: {format_value(cache['bytes'], 'B')} in {cache['path']} (safe to delete)")
