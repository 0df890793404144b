"""One start of QEMU: samples in, outputs and observations out, and what its failures mean."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgescale.core.errors import MissingDependencyError, RigError
from edgescale.rigs.qemu_boards import INSTALL, Board
from edgescale.rigs.qemu_plugin import ARGUMENTS, CONFIG, Observed, read_observed

# Exit codes of harness.c and qemu_plugin.c.
_DONE, _STOPPED, _FAULT = 0, 97, 98
_PAINT, _TAKE_UP, _LEAVE_BEHIND = 1, 2, 4

_EXCEPTIONS = {2: "NMI", 3: "HardFault", 4: "MemManage", 5: "BusFault", 6: "UsageFault", 7: "SecureFault"}
# Bits of the configurable fault status register (Armv8-M Architecture Reference Manual, CFSR).
_CFSR = {
    0: "instruction access violation",
    1: "data access violation",
    4: "memory fault on exception entry",
    8: "instruction bus error",
    9: "bus error",
    10: "imprecise bus error",
    12: "bus error on exception entry",
    16: "undefined instruction",
    17: "invalid state",
    18: "invalid return address",
    19: "no coprocessor (FPU or MVE)",
    20: "stack limit exceeded",
    24: "unaligned access",
    25: "division by zero",
}
_BFAR_VALID = 1 << 15
# mcause (RISC-V Privileged Architecture, table 3.6).
_MCAUSE = {
    0: "misaligned instruction address",
    1: "instruction access fault",
    2: "illegal instruction",
    3: "breakpoint",
    4: "misaligned load",
    5: "load access fault",
    6: "misaligned store",
    7: "store access fault",
    11: "environment call",
}


@dataclass(frozen=True)
class Plugin:
    """A built plug-in, the text that configures it, and how many layers it counts."""

    path: Path
    configuration: str
    layers: int


@dataclass(frozen=True)
class Fault:
    """Where the core trapped: program counter, return address, and what as people read it."""

    counter: int
    link: int
    what: str


@dataclass
class Stream:
    """The static memory of a model with state between two starts of QEMU; None before the first."""

    memory: bytes | None = None


@dataclass(frozen=True)
class Finished:
    """Of a start: outputs uint8 [n, bytes], untouched bytes of the painted stack [n], counts where a plug-in ran.

    `clock` [n] is the harness's: of meaning only under -icount; 2^32 - 1 where it overflowed.
    """

    outputs: npt.NDArray[np.uint8]
    untouched: npt.NDArray[np.uint32]
    clock: npt.NDArray[np.uint32]
    observed: Observed | None
    fault: Fault | None = None


@cache
def qemu_version(program: str) -> tuple[int, int, str]:
    """(major, minor, as printed) of a QEMU. Raises MissingDependencyError with the line that installs it."""
    if shutil.which(program) is None:
        raise MissingDependencyError(program, INSTALL[program])
    shown = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    match = re.search(r"version (\d+)\.(\d+)(\.\d+)?", shown.stdout)
    if shown.returncode != 0 or match is None:
        raise RigError(f"{program} is installed but does not run: {(shown.stderr or shown.stdout).strip()[:200]}")
    return int(match[1]), int(match[2]), f"QEMU {match[0].removeprefix('version ')}"


def run_image(
    board: Board,
    image: Path,
    samples: npt.NDArray[np.uint8],
    output_bytes: int,
    plugin: Plugin | None,
    *,
    stream: Stream | None = None,
    icount: int | None = None,
    paint: bool,
    timeout_s: float,
) -> Finished:
    """Start the board with an image built for the harness and feed it `samples` uint8 [n, bytes].

    The samples continue `stream`. `icount` lets every instruction take 2^icount ns of virtual time. A stop by
    the plug-in and a trap are results; RigError means that QEMU failed or did not finish in time.
    """
    qemu_version(board.program)
    with tempfile.TemporaryDirectory(prefix="edgescale-qemu-") as name:
        folder = Path(name)
        flags = (_PAINT if paint else 0) | (_LEAVE_BEHIND if stream else 0)
        if stream and stream.memory is not None:
            flags |= _TAKE_UP
            (folder / "memory.bin").write_bytes(stream.memory)
        (folder / "samples.bin").write_bytes(struct.pack("<I", flags) + samples.tobytes())
        command = _command(board, image.resolve(), plugin, icount)
        if plugin:
            (folder / CONFIG).write_text(plugin.configuration)
        code, messages = _start(command, folder, timeout_s)
        if code not in (_DONE, *((_STOPPED,) if plugin else ()), _FAULT):
            raise RigError(f"{board.program} -M {board.name} ended with code {code}: {messages or 'no message'}")
        observed = read_observed(folder, plugin.layers) if plugin else None
        fault = _read_fault(folder / "fault.bin", board) if code == _FAULT else None
        record = np.dtype([("untouched", "<u4"), ("clock", "<u4"), ("output", np.uint8, (output_bytes,))])
        produced = (folder / "outputs.bin").read_bytes()
        if stream and code == _DONE:
            stream.memory = (folder / "memory.bin").read_bytes()
        records = np.frombuffer(produced[: len(produced) // record.itemsize * record.itemsize], record)
    if code == _DONE and len(records) != len(samples):
        raise RigError(f"{board.program} -M {board.name} gave {len(records)} outputs for {len(samples)} samples")
    return Finished(records["output"].copy(), records["untouched"].copy(), records["clock"].copy(), observed, fault)


@cache
def plugins_supported(program: str) -> bool:
    """Whether this QEMU was built to load plug-ins."""
    qemu_version(program)
    shown = subprocess.run([program, "-help"], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    return "-plugin " in shown.stdout


def _command(board: Board, image: Path, plugin: Plugin | None, icount: int | None) -> list[str]:
    command = [board.program, *board.machine, "-display", "none", "-monitor", "none", "-serial", "none"]
    command += ["-no-reboot", "-semihosting-config", "enable=on,target=native", "-kernel", str(image)]
    if plugin:
        command += ["-plugin", f"{str(plugin.path.resolve()).replace(',', ',,')},{ARGUMENTS}"]
    if icount is not None:
        command += ["-icount", f"shift={icount}"]
    return command


def _start(command: Sequence[str], folder: Path, timeout_s: float) -> tuple[int, str]:
    try:
        result = subprocess.run(
            command, cwd=folder, capture_output=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        raise RigError(f"{command[0]} -M {command[2]} did not finish within {timeout_s:g} s") from None
    except OSError as error:
        raise RigError(f"cannot start {command[0]}: {error}") from None
    lines = (result.stderr + result.stdout).decode(errors="replace").strip().splitlines()
    return result.returncode, "; ".join(line.strip() for line in lines[:3])


def _read_fault(path: Path, board: Board) -> Fault:
    try:
        kind, counter, link, cause, address = struct.unpack("<5I", path.read_bytes())
    except (OSError, struct.error):
        raise RigError(f"the program on {board.name} trapped, and its report cannot be read") from None
    if board.assembly == "harness_riscv32.S":
        what = _MCAUSE.get(cause, f"trap {cause:#x}")
        if cause in (1, 4, 5, 6, 7):
            what += f" at 0x{address:08X}"
        return Fault(counter, link, what)
    details = [text for bit, text in _CFSR.items() if cause >> bit & 1]
    what = _EXCEPTIONS.get(kind, f"exception {kind}") + (f" ({', '.join(details)})" if details else "")
    if cause & _BFAR_VALID:
        what += f" at 0x{address:08X}"
    return Fault(counter, link & ~1, what)
