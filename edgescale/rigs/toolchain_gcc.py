"""GCC for bare metal as the second compiler: which program serves a target, and its names for the core's features.

Profiles name the core as zig does (`cortex_m4+vfp4d16sp-soft_float`); here these names become GCC's.
"""

from __future__ import annotations

import shutil
import subprocess
from functools import cache

from edgescale.core.errors import MissingDependencyError, RigError, UsageError
from edgescale.core.target import Toolchain

ARM, RISCV = "arm-none-eabi-gcc", "riscv64-unknown-elf-gcc"
INSTALL = {ARM: "apt-get install gcc-arm-none-eabi", RISCV: "apt-get install gcc-riscv64-unknown-elf"}

# LLVM's name of a floating-point unit -> GCC's -mfpu.
_ARM_FPU = {
    "vfp4d16sp": "fpv4-sp-d16",
    "vfp4d16": "vfpv4-d16",
    "fp_armv8d16sp": "fpv5-sp-d16",
    "fp_armv8d16": "fpv5-d16",
    "mve_fp": "auto",  # -mcpu=cortex-m55 and cortex-m85 have floating-point MVE unless taken away
}
_ARM_EXTENSIONS = {"-dsp": "+nodsp"}
# Part of GCC's cores already, or not a matter of code generation there.
_ARM_IMPLIED = {"+dsp", "-soft_float", "+soft_float"}
_RISCV_LETTERS = "imafdc"


def gcc_for(chain: Toolchain) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """(command, name and version, machine flags) of the GCC for a toolchain table.

    Raises MissingDependencyError with the line that installs it, UsageError where GCC has no counterpart
    for the triple or a feature.
    """
    program, machine = machine_flags(chain)
    return (program,), gcc_version(program), machine


def machine_flags(chain: Toolchain) -> tuple[str, tuple[str, ...]]:
    """The GCC program that serves a toolchain table, and the flags that choose the core. Raises UsageError."""
    architecture = chain.triple.split("-")[0]
    cpu, features = _split(chain.mcpu)
    if architecture in ("thumb", "arm"):
        return ARM, _arm(chain, cpu, features)
    if architecture == "riscv32":
        return RISCV, _riscv32(chain, cpu, features)
    raise UsageError(f"compiler gcc: no GCC is known for the triple {chain.triple!r}; known: thumb-*, riscv32-*")


def _split(mcpu: str) -> tuple[str, list[str]]:
    """`cortex_m4+vfp4d16sp-soft_float` -> (cortex_m4, [+vfp4d16sp, -soft_float])."""
    parts = mcpu.replace("-", "+-").split("+")
    return parts[0], [part if part.startswith("-") else f"+{part}" for part in parts[1:] if part]


def _arm(chain: Toolchain, cpu: str, features: list[str]) -> tuple[str, ...]:
    extensions, fpu = "", ""
    for feature in features:
        if feature.startswith("+") and feature[1:] in _ARM_FPU:
            fpu = _ARM_FPU[feature[1:]]
        elif feature in _ARM_EXTENSIONS:
            extensions += _ARM_EXTENSIONS[feature]
        elif feature not in _ARM_IMPLIED:
            raise _unknown(chain, feature)
    flags = [f"-mcpu={cpu.replace('_', '-')}{extensions}", "-mthumb"]
    if chain.triple.endswith("hf"):
        return (*flags, "-mfloat-abi=hard", f"-mfpu={fpu or 'auto'}")
    return (*flags, "-mfloat-abi=softfp", f"-mfpu={fpu}") if fpu else (*flags, "-mfloat-abi=soft")


def _riscv32(chain: Toolchain, cpu: str, features: list[str]) -> tuple[str, ...]:
    if cpu != "generic_rv32":
        raise UsageError(f"compiler gcc: write {chain.mcpu!r} as generic_rv32 with its extensions (generic_rv32+m+c)")
    letters, longer = {"i"}, []
    for feature in features:
        name = feature[1:]
        if feature.startswith("+") and name in _RISCV_LETTERS:
            letters.add(name)
        elif feature.startswith("+z"):
            longer.append(f"_{name}")
        else:
            raise _unknown(chain, feature)
    base = "".join(letter for letter in _RISCV_LETTERS if letter in letters)
    floating = "d" if "d" in letters else "f" if "f" in letters else ""
    return f"-march=rv32{base}{''.join(sorted(longer))}", f"-mabi=ilp32{floating}"


def _unknown(chain: Toolchain, feature: str) -> UsageError:
    return UsageError(f"compiler gcc: no counterpart is known for the feature {feature!r} of mcpu {chain.mcpu!r}")


@cache
def gcc_version(program: str) -> str:
    """Name and version of a GCC. Raises MissingDependencyError where it is absent."""
    if shutil.which(program) is None:
        raise MissingDependencyError(program, INSTALL[program])
    shown = subprocess.run([program, "-dumpfullversion"], capture_output=True, text=True, timeout=60)
    if shown.returncode != 0:
        raise RigError(f"{program} is installed but does not run: {shown.stderr.strip()[:200]}")
    return f"{program} {shown.stdout.strip()}"


def missing(chain: Toolchain) -> str | None:
    """None where the table's GCC is installed, else the command that installs it."""
    program, _ = machine_flags(chain)
    return None if shutil.which(program) else INSTALL[program]
